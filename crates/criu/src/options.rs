//! The options of checkpoints and restores: their names, who may set them, what they mean.
//!
//! Two tables, [`Checkpoint`]'s and [`Restore`]'s, say it once. What reads annotations, the
//! node's configuration or a request goes through them by [`Layer`]; `docs/options.md` is
//! checked against them. All of this is pure.
//!
//! Three layers give one value: the request over the container's annotations over the node's
//! configuration. **An annotation can only choose**: a flag, a number in a range or one word of
//! a list. What is free text, so could name a file or a host, is for the node's owner or the
//! request.

mod tables;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use crate::probe::{Probe, Version};

pub use tables::{Checkpoint, Restore};
pub use text::markdown;

/// The annotation of a shim's `-info` which says that it reads options by name in requests (field
/// 7601 of containerd's messages); one without it would not see them.
pub const IN_REQUESTS: &str = "checkpoint.cryo/options-in-requests";

/// A set of options with its table.
pub trait Table: Default + 'static {
    /// What begins its annotations, and its section in the node's configuration.
    const SECTION: &'static str;
    /// Its options, by name.
    const OPTIONS: &'static [Opt<Self>];
}

/// One option.
#[derive(Debug)]
pub struct Opt<T: 'static> {
    /// Its name, in annotations and in the node's configuration.
    pub name: &'static str,
    /// Its values, and what they do.
    pub kind: Kind<T>,
    /// Who may set it.
    pub access: Access,
    /// The field of `containerd.runc.v1.CheckpointOptions` that sets it too.
    pub field: Option<&'static str>,
    /// What is so if nobody sets it.
    pub default: &'static str,
    /// The first CRIU that has it.
    pub since: Version,
    /// What CRIU has to find in the kernel.
    pub needs: Option<Feature>,
    /// What it does, in Markdown.
    pub meaning: &'static str,
}

/// The values of an option, and where they go.
#[derive(Debug)]
pub enum Kind<T: 'static> {
    /// `true` or `false`.
    Flag(fn(&mut T) -> &mut bool),
    /// A whole number.
    Number {
        /// What is counted.
        unit: Unit,
        /// The numbers that are accepted.
        range: RangeInclusive<u32>,
        /// Takes it.
        set: fn(&mut T, u32),
    },
    /// One of these words.
    Word(&'static [Word<T>]),
    /// Text of this form; whoever sets it is trusted.
    Text {
        /// The form, for people.
        form: &'static str,
        /// Takes it, or says what is wrong with it.
        set: fn(&mut T, &str) -> Result<(), &'static str>,
    },
    /// Known from other runtimes, and refused for this reason.
    Refused(&'static str),
}

/// A word, and what it does.
pub type Word<T> = (&'static str, fn(&mut T));

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes; `K`, `M` and `G` after the digits are powers of 1024.
    Bytes,
    /// Seconds.
    Seconds,
}

/// Who may set an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Whoever makes the container, by an annotation; and all others.
    Anyone,
    /// The node's owner, in the configuration; and a request that has a field for it.
    Node,
    /// A request alone.
    Request,
}

/// What CRIU may find in the kernel, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Changes of memory can be tracked.
    MemTrack,
    /// Memory can be filled in by others.
    LazyPages,
}

/// Where a value comes from; the later ones win.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// `/etc/cryo/config.toml`.
    Node,
    /// The container's annotations.
    Annotation,
    /// The request.
    Request,
}

/// A value as it is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Raw<'a> {
    /// Text; an annotation is nothing else.
    Text(&'a str),
    /// A boolean of TOML, or of a request.
    Bool(bool),
    /// A number of TOML.
    Integer(i64),
    /// Something else of TOML, by its type; no option has such values.
    Other(&'static str),
}

/// An option that is refused: where it was set, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Refused {
    /// The annotation, key or field.
    pub place: String,
    /// What is wrong, and what to do.
    pub what: String,
}

/// What one source says.
#[derive(Debug, Clone)]
pub struct Layer<T: 'static> {
    source: Source,
    given: Vec<Given<T>>,
}

#[derive(Debug, Clone)]
struct Given<T: 'static> {
    option: &'static Opt<T>,
    value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Flag(bool),
    Number(u32),
    Word(usize),
    Text(String),
}

impl<T: Table> Layer<T> {
    /// One that says nothing.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self {
            source,
            given: Vec::new(),
        }
    }

    /// What a container's annotations say; those of others are passed over.
    ///
    /// # Errors
    ///
    /// [`Refused`] for the first, by name, that is not known, not for annotations, or not a
    /// value of its option.
    pub fn annotations<'a>(
        all: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, Refused> {
        let prefix = format!("{}.cryo/", T::SECTION);
        let ours: BTreeMap<_, _> = all
            .into_iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, value)))
            .collect();
        let mut layer = Self::new(Source::Annotation);
        for (name, value) in ours {
            layer.put(name, Raw::Text(value))?;
        }
        Ok(layer)
    }

    /// Adds a value.
    ///
    /// # Errors
    ///
    /// [`Refused`] when the option is not known, is not for this source, or has other values.
    pub fn put(&mut self, name: &str, raw: Raw<'_>) -> Result<(), Refused> {
        let Some(option) = T::OPTIONS.iter().find(|o| o.name == name) else {
            let names: Vec<_> = T::OPTIONS
                .iter()
                .filter(|o| self.source.may_set(o.access) && !matches!(o.kind, Kind::Refused(_)))
                .map(|o| o.name)
                .collect();
            return Err(Refused {
                place: self.source.place::<T>(name, None),
                what: format!(
                    "there is no such option: correct or remove it; there are {}",
                    names.join(", ")
                ),
            });
        };
        let place = || self.source.place::<T>(name, option.field);
        if !self.source.may_set(option.access) {
            return Err(Refused {
                place: place(),
                what: match option.access {
                    Access::Request => "only the request of a checkpoint can say this".to_owned(),
                    _ => format!(
                        "only the node's owner may set this: [{}] {name} in /etc/cryo/config.toml",
                        T::SECTION
                    ),
                },
            });
        }
        let value = option
            .kind
            .read(raw)
            .and_then(|v| {
                let tried = option.kind.apply(&mut T::default(), &v);
                tried.map(|()| v).map_err(str::to_owned)
            })
            .map_err(|what| Refused {
                place: place(),
                what,
            })?;
        self.given.push(Given { option, value });
        Ok(())
    }
}

/// One value for each option: of the last layer that has it, or the default.
///
/// # Errors
///
/// [`Refused`] when this CRIU is too old for something that was asked for, or the kernel
/// lacks it.
pub fn resolve<T: Table>(layers: &[&Layer<T>], probe: &Probe) -> Result<T, Refused> {
    let mut ordered = layers.to_vec();
    ordered.sort_by_key(|l| l.source);
    let mut last: BTreeMap<&str, (Source, &Given<T>)> = BTreeMap::new();
    for layer in ordered {
        for given in &layer.given {
            last.insert(given.option.name, (layer.source, given));
        }
    }
    let mut values = T::default();
    for (source, given) in last.into_values() {
        let refused = |what| Refused {
            place: source.place::<T>(given.option.name, given.option.field),
            what,
        };
        if given.value != Value::Flag(false) {
            given.option.supported(probe).map_err(refused)?;
        }
        let applied = given.option.kind.apply(&mut values, &given.value);
        applied.map_err(|what| refused(what.to_owned()))?;
    }
    Ok(values)
}

impl<T> Opt<T> {
    fn supported(&self, probe: &Probe) -> Result<(), String> {
        if probe.version < self.since {
            return Err(format!(
                "this needs CRIU {} or newer, here is {}: update CRIU, or leave the option out",
                self.since, probe.version
            ));
        }
        match self.needs {
            Some(Feature::MemTrack) if !probe.mem_track => Err(
                "this needs a kernel that tracks changes of memory (CONFIG_MEM_SOFT_DIRTY), which CRIU does not find here: make a full checkpoint"
                    .to_owned(),
            ),
            Some(Feature::LazyPages) if !probe.lazy_pages => Err(
                "this needs a kernel with userfaultfd (CONFIG_USERFAULTFD) that tells of forks, which CRIU does not find here: leave the option out, or use such a kernel"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }
}

impl<T> Kind<T> {
    fn read(&self, raw: Raw<'_>) -> Result<Value, String> {
        let wanted = match (self, raw) {
            (Self::Refused(reason), _) => return Err((*reason).to_owned()),
            (Self::Flag(_), Raw::Bool(on)) => return Ok(Value::Flag(on)),
            (Self::Flag(_), Raw::Text("true")) => return Ok(Value::Flag(true)),
            (Self::Flag(_), Raw::Text("false")) => return Ok(Value::Flag(false)),
            (Self::Number { unit, range, .. }, _) => {
                let number = match raw {
                    Raw::Integer(n) => u64::try_from(n).ok(),
                    Raw::Text(text) => unit.parse(text),
                    Raw::Bool(_) | Raw::Other(_) => None,
                };
                if let Some(n) = number.and_then(|n| u32::try_from(n).ok())
                    && range.contains(&n)
                {
                    return Ok(Value::Number(n));
                }
                self.values()
            }
            (Self::Word(words), Raw::Text(text)) => {
                if let Some(n) = words.iter().position(|(word, _)| *word == text) {
                    return Ok(Value::Word(n));
                }
                self.values()
            }
            (Self::Text { .. }, Raw::Text(text)) if !text.contains('\0') => {
                return Ok(Value::Text(text.to_owned()));
            }
            _ => self.values(),
        };
        Err(format!("{raw} is not a value of it: it is {wanted}"))
    }

    fn apply(&self, values: &mut T, value: &Value) -> Result<(), &'static str> {
        match (self, value) {
            (Self::Flag(at), Value::Flag(on)) => *at(values) = *on,
            (Self::Number { set, .. }, Value::Number(n)) => set(values, *n),
            (Self::Word(words), Value::Word(n)) => {
                if let Some((_, set)) = words.get(*n) {
                    set(values);
                }
            }
            (Self::Text { set, .. }, Value::Text(text)) => set(values, text)?,
            // `read` of the same kind has made the value.
            _ => {}
        }
        Ok(())
    }
}

impl Unit {
    fn parse(self, text: &str) -> Option<u64> {
        let (digits, factor) = match (self, text.char_indices().next_back()) {
            (Self::Bytes, Some((at, 'K'))) => (text.get(..at)?, 1 << 10),
            (Self::Bytes, Some((at, 'M'))) => (text.get(..at)?, 1 << 20),
            (Self::Bytes, Some((at, 'G'))) => (text.get(..at)?, 1 << 30),
            _ => (text, 1),
        };
        // `parse` alone would take "+1".
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        digits.parse::<u64>().ok()?.checked_mul(factor)
    }
}

impl Source {
    fn may_set(self, access: Access) -> bool {
        match access {
            Access::Anyone => true,
            Access::Node => self != Self::Annotation,
            Access::Request => self == Self::Request,
        }
    }

    /// What to call an option that was set here.
    fn place<T: Table>(self, name: &str, field: Option<&str>) -> String {
        match self {
            Self::Node => format!("[{}] {}", T::SECTION, name.escape_debug()),
            Self::Annotation => {
                format!("the annotation {}.cryo/{}", T::SECTION, name.escape_debug())
            }
            // What has no field comes by its name, as `cryoctl` sends it.
            Self::Request => match field {
                Some(field) => format!("CheckpointOptions.{field}"),
                None => format!("{} option {}", T::SECTION, name.escape_debug()),
            },
        }
    }
}

impl fmt::Display for Raw<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Others write it; an error is no place for a book.
            Self::Text(text) if text.chars().count() > 60 => {
                write!(f, "{:?}...", text.chars().take(60).collect::<String>())
            }
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Bool(on) => write!(f, "{on}"),
            Self::Integer(n) => write!(f, "{n}"),
            Self::Other(kind) => write!(f, "a value of type {kind}"),
        }
    }
}

#[cfg(test)]
mod tests;
