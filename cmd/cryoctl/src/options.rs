//! The options of the shim as flags. There is one table of them, the shim's own
//! ([`cryo_criu::options`]), so that the two cannot differ.

use std::marker::PhantomData;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use cryo_criu::options::{Kind, Layer, Opt, Raw, Source, Table, Unit};

/// What the command line says of the options of `T`.
#[derive(Debug, Clone)]
pub(crate) struct Flags<T> {
    given: Vec<(&'static str, String)>,
    table: PhantomData<T>,
}

impl<T> Flags<T> {
    /// As the shim takes them, `NAME=VALUE`.
    pub(crate) fn given(&self) -> Vec<String> {
        let each = self.given.iter();
        each.map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    /// The value of one, if it was given.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.given.iter().find(|(given, _)| *given == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl<T: Table> Flags<T> {
    /// For the annotations of a container.
    ///
    /// # Errors
    ///
    /// For one that is not for annotations, with what to do.
    pub(crate) fn annotations(&self) -> anyhow::Result<Vec<(String, String)>> {
        let annotation = |(name, value): &(&str, String)| {
            let mut layer = Layer::<T>::new(Source::Annotation);
            layer.put(name, Raw::Text(value))?;
            Ok((format!("{}.cryo/{name}", T::SECTION), value.clone()))
        };
        self.given.iter().map(annotation).collect()
    }
}

impl<T: Table> Args for Flags<T> {
    fn augment_args(command: Command) -> Command {
        let known = T::OPTIONS
            .iter()
            .filter(|o| !matches!(o.kind, Kind::Refused(_)));
        command
            .next_help_heading("What criu is told")
            .args(known.map(argument))
            .next_help_heading(None::<&str>)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Table> FromArgMatches for Flags<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |option: &Opt<T>| {
            let value = matches.try_get_one::<String>(option.name).ok().flatten()?;
            Some((option.name, value.clone()))
        };
        Ok(Self {
            given: T::OPTIONS.iter().filter_map(given).collect(),
            table: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Without Markdown: of a link, its text.
pub(crate) fn plain(markdown: &str) -> String {
    let mut text = markdown.replace('`', "");
    while let Some((before, rest)) = text.split_once("](")
        && let Some((_, after)) = rest.split_once(')')
    {
        text = format!("{}{after}", before.replacen('[', "", 1));
    }
    text
}

fn argument<T: Table>(option: &'static Opt<T>) -> Arg {
    let default = match option.default {
        "none" | "false" => String::new(),
        default => format!(" [default: {default}]"),
    };
    let meaning = plain(option.meaning);
    let argument = Arg::new(option.name)
        .long(option.name)
        .help(format!("{meaning}{default}"));
    let judge = |text: &str| {
        let mut layer = Layer::<T>::new(Source::Request);
        let judged = layer.put(option.name, Raw::Text(text));
        judged.map(|()| text.to_owned()).map_err(|e| e.what)
    };
    match &option.kind {
        Kind::Flag(_) => argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("BOOL")
            .value_parser(PossibleValuesParser::new(["true", "false"])),
        Kind::Word(words) => argument
            .value_name("WORD")
            .value_parser(PossibleValuesParser::new(
                words.iter().map(|(word, _)| *word),
            )),
        Kind::Number { unit, .. } => argument
            .value_name(match unit {
                Unit::Bytes => "BYTES",
                Unit::Seconds => "SECONDS",
            })
            .value_parser(judge),
        Kind::Text { .. } | Kind::Refused(_) => argument.value_name("TEXT").value_parser(judge),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use cryo_criu::options::{Checkpoint, Restore};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line<T: Table + Clone + Send + Sync> {
        #[command(flatten)]
        flags: Flags<T>,
    }

    fn parse<T: Table + Clone + Send + Sync>(line: &str) -> Result<Flags<T>, clap::Error> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        Line::<T>::try_parse_from(words).map(|line| line.flags)
    }

    #[test]
    fn each_option_of_the_table_is_a_flag() {
        let flags =
            parse::<Checkpoint>("--tcp-close --file-locks=false --ghost-limit 16M").unwrap();
        assert_eq!(
            flags.given(),
            ["file-locks=false", "ghost-limit=16M", "tcp-close=true"]
        );
        assert_eq!(flags.get("ghost-limit"), Some("16M"));
        assert_eq!(flags.get("timeout"), None);
        for option in Restore::OPTIONS {
            let refused = matches!(option.kind, Kind::Refused(_));
            let value = match option.kind {
                Kind::Text { .. } if option.name == "parents" => "/var/lib/parents",
                Kind::Text { .. } => "apparmor:x",
                _ => option.default,
            };
            let line = format!("--{}={value}", option.name);
            assert_eq!(parse::<Restore>(&line).is_err(), refused, "{line}");
        }
    }

    #[test]
    fn wrong_values_are_told_with_the_right_ones() {
        for (line, words) in [
            ("--ghost-limit many", "4294967295"),
            ("--network-lock none", "nftables"),
            ("--tcp-close=perhaps", "true, false"),
            ("--timeout 0", "1 to 600"),
        ] {
            let text = parse::<Checkpoint>(line).unwrap_err().to_string();
            assert!(text.contains(words), "{line}: {text}");
        }
    }

    #[test]
    fn help_has_no_markdown() {
        assert_eq!(plain("as `K` in [a.md](b.md) says"), "as K in a.md says");
        for option in Checkpoint::OPTIONS {
            assert!(
                !plain(option.meaning).contains(['`', ']']),
                "{}",
                option.name
            );
        }
    }

    #[test]
    fn not_all_are_for_annotations() {
        let flags = parse::<Restore>("--tcp-close").unwrap();
        assert_eq!(
            flags.annotations().unwrap(),
            [("restore.cryo/tcp-close".to_owned(), "true".to_owned())]
        );
        let flags = parse::<Restore>("--auto-dedup").unwrap();
        let text = flags.annotations().unwrap_err().to_string();
        assert!(text.contains("/etc/cryo/config.toml"), "{text}");
    }
}
