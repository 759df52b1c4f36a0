#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn criu() -> Probe {
    Probe::new(Version::new(4, 2, 1))
}

fn annotations(all: &[(&str, &str)]) -> Result<Layer<Checkpoint>, Refused> {
    let all: HashMap<String, String> = all
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Layer::annotations(&all)
}

fn layer(source: Source, name: &str, raw: Raw<'_>) -> Layer<Checkpoint> {
    let mut layer = Layer::new(source);
    layer.put(name, raw).unwrap();
    layer
}

fn refusal(source: Source, name: &str, raw: Raw<'_>) -> String {
    let refused = Layer::<Checkpoint>::new(source).put(name, raw);
    refused.unwrap_err().to_string()
}

#[test]
fn tables_are_in_order_and_whole() {
    fn check<T: Table>() {
        for pair in T::OPTIONS.windows(2) {
            assert!(pair[0].name < pair[1].name, "{}", pair[1].name);
        }
        for o in T::OPTIONS {
            assert!(
                !o.name
                    .contains(|c: char| !c.is_ascii_lowercase() && c != '-')
            );
            assert!(
                o.meaning.ends_with('.') && !o.meaning.contains(['|', '\n']),
                "{}",
                o.name
            );
            if let Kind::Word(words) = &o.kind {
                assert!(words.iter().any(|(w, _)| *w == o.default), "{}", o.name);
            }
        }
    }
    check::<Checkpoint>();
    check::<Restore>();
}

/// The default that the table tells is the one that there is.
#[test]
fn setting_the_default_changes_nothing() {
    fn check<T: Table + PartialEq + std::fmt::Debug>() {
        for o in T::OPTIONS {
            if matches!(o.kind, Kind::Text { .. } | Kind::Refused(_)) {
                continue;
            }
            let source = match o.access {
                Access::Request => Source::Request,
                _ => Source::Node,
            };
            let mut layer = Layer::<T>::new(source);
            layer.put(o.name, Raw::Text(o.default)).unwrap();
            let values: T = resolve(
                &[&layer],
                &Probe {
                    mem_track: true,
                    ..criu()
                },
            )
            .unwrap();
            // Unset is the same to CRIU, which has this default itself.
            if o.name != "ghost-limit" {
                assert_eq!(values, T::default(), "{}", o.name);
            }
        }
    }
    check::<Checkpoint>();
    check::<Restore>();
}

#[test]
fn the_request_goes_over_annotations_over_the_node() {
    let node = layer(Source::Node, "network-lock", Raw::Text("iptables"));
    let pod = annotations(&[("checkpoint.cryo/network-lock", "skip")]).unwrap();
    let request = layer(Source::Request, "network-lock", Raw::Text("nftables"));
    let lock = |layers: &[&Layer<Checkpoint>]| resolve(layers, &criu()).unwrap().network_lock;
    use crate::request::NetworkLockMethod::{Iptables, Nftables, Skip};
    assert_eq!(lock(&[]), None);
    assert_eq!(lock(&[&node]), Some(Iptables));
    assert_eq!(lock(&[&node, &pod]), Some(Skip));
    assert_eq!(lock(&[&request, &pod, &node]), Some(Nftables));
}

#[test]
fn what_is_unknown_or_not_ones_own_is_refused_by_name() {
    let text = annotations(&[("checkpoint.cryo/file-lock", "true")])
        .unwrap_err()
        .to_string();
    assert!(
        text.starts_with("the annotation checkpoint.cryo/file-lock: there is no such option"),
        "{text}"
    );
    assert!(
        text.contains("file-locks") && !text.contains("page-server"),
        "{text}"
    );

    let text = annotations(&[("checkpoint.cryo/page-server", "1.2.3.4:5")])
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("only the node's owner") && text.contains("[checkpoint] page-server"),
        "{text}"
    );
    let text = refusal(Source::Node, "parent-path", Raw::Text("../a"));
    assert!(text.contains("only the request"), "{text}");
    let text = refusal(Source::Node, "lazy-pages", Raw::Bool(true));
    assert!(text.contains("only the request"), "{text}");

    // Those of others are theirs.
    let layer = annotations(&[
        ("org.criu.config", "/x"),
        ("restore.cryo/x", ""),
        ("checkpoint.cryox/y", ""),
    ]);
    assert!(layer.unwrap().given.is_empty());
}

#[test]
fn values_are_checked() {
    for (name, raw) in [
        ("file-locks", Raw::Text("yes")),
        ("file-locks", Raw::Integer(1)),
        ("timeout", Raw::Integer(0)),
        ("timeout", Raw::Text("601")),
        ("timeout", Raw::Text("5K")),
        ("timeout", Raw::Text("+5")),
        ("timeout", Raw::Bool(true)),
        ("ghost-limit", Raw::Text("4G")),
        ("ghost-limit", Raw::Text("-1")),
        ("ghost-limit", Raw::Text("M")),
        ("ghost-limit", Raw::Text("18446744073709551615K")),
        ("ghost-limit", Raw::Integer(-1)),
        ("network-lock", Raw::Text("NFTABLES")),
        ("empty-ns", Raw::Text("ipc")),
        ("page-server", Raw::Text("localhost:9")),
        ("page-server", Raw::Text("1.2.3.4")),
        ("parent-path", Raw::Text("/var/lib/a")),
        ("parent-path", Raw::Text("")),
        ("parent-path", Raw::Text("a\0b")),
        ("parent-path", Raw::Other("float")),
    ] {
        let text = refusal(Source::Request, name, raw);
        let field = text.starts_with("CheckpointOptions.");
        let name = text.starts_with(&format!("checkpoint option {name}: "));
        assert!(field || name, "{text}");
    }
    let text = refusal(Source::Node, "ghost-limit", Raw::Text(&"9".repeat(500)));
    assert!(text.len() < 250, "{text}");
    for (text, bytes) in [("0", 0), ("4096", 4096), ("64K", 64 << 10), ("3G", 3 << 30)] {
        let layer = layer(Source::Node, "ghost-limit", Raw::Text(text));
        assert_eq!(
            resolve(&[&layer], &criu()).unwrap().ghost_limit_bytes,
            Some(bytes)
        );
    }
}

#[test]
fn an_older_criu_is_told_before_anything_is_frozen() {
    let old = Probe::new(Version::new(3, 18, 0));
    let lock = layer(Source::Node, "network-lock", Raw::Text("skip"));
    let text = resolve(&[&lock], &old).unwrap_err().to_string();
    assert!(
        text.starts_with("[checkpoint] network-lock: this needs CRIU 3.19 or newer, here is 3.18"),
        "{text}"
    );
    let close = annotations(&[("checkpoint.cryo/tcp-close", "true")]).unwrap();
    let text = resolve(&[&close], &old).unwrap_err().to_string();
    assert!(
        text.contains("the annotation checkpoint.cryo/tcp-close: this needs CRIU 4.0"),
        "{text}"
    );
    // What is switched off needs nothing, and neither does what was overruled.
    let off = layer(Source::Request, "tcp-close", Raw::Bool(false));
    assert!(!resolve(&[&close, &off], &old).unwrap().tcp_close);
}

#[test]
fn memory_that_is_not_tracked_is_told() {
    let parent = layer(Source::Request, "parent-path", Raw::Text("../first"));
    let pre_dump = annotations(&[("checkpoint.cryo/pre-dump", "true")]).unwrap();
    for layer in [&parent, &pre_dump] {
        let text = resolve(&[layer], &criu()).unwrap_err().to_string();
        assert!(text.contains("CONFIG_MEM_SOFT_DIRTY"), "{text}");
    }
    let tracked = Probe {
        mem_track: true,
        ..criu()
    };
    let values = resolve(&[&parent, &pre_dump], &tracked).unwrap();
    assert!(values.pre_dump && values.parent_path.is_some());
}

#[test]
fn memory_that_cannot_be_filled_in_is_told() {
    let mut lazy = Layer::<Restore>::new(Source::Node);
    lazy.put("lazy-pages", Raw::Bool(true)).unwrap();
    let text = resolve(&[&lazy], &criu()).unwrap_err().to_string();
    assert!(text.contains("CONFIG_USERFAULTFD"), "{text}");
    let able = Probe {
        lazy_pages: true,
        ..criu()
    };
    assert!(resolve(&[&lazy], &able).unwrap().lazy_pages);
}

/// The page has the tables of the code; `CRYO_BLESS=1` writes them anew.
#[test]
fn the_documentation_has_these_tables() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/options.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let mut wanted = page.clone();
    for (section, table) in [
        ("checkpoint", markdown::<Checkpoint>()),
        ("restore", markdown::<Restore>()),
    ] {
        let begin = format!("<!-- {section}: begin -->\n");
        let end = format!("<!-- {section}: end -->\n");
        let (head, rest) = wanted.split_once(&begin).unwrap();
        let (_, tail) = rest.split_once(&end).unwrap();
        wanted = format!("{head}{begin}\n{table}\n{end}{tail}");
    }
    if std::env::var_os("CRYO_BLESS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    } else {
        assert!(
            page == wanted,
            "docs/options.md is stale: run `CRYO_BLESS=1 cargo test -p cryo-criu --lib documentation`"
        );
    }
}

proptest! {
    #[test]
    fn any_annotation_is_taken_or_refused(name in "\\PC{0,20}", value in "\\PC{0,80}", known: proptest::sample::Index) {
        let known = Checkpoint::OPTIONS[known.index(Checkpoint::OPTIONS.len())].name;
        for name in [name.as_str(), known] {
            let key = format!("checkpoint.cryo/{name}");
            if let Err(refused) = annotations(&[(&key, &value)]) {
                prop_assert!(!refused.to_string().contains(char::is_control));
            }
        }
    }

    #[test]
    fn the_last_source_wins(values in proptest::array::uniform3(proptest::option::of(1u32..=600))) {
        let sources = [Source::Node, Source::Annotation, Source::Request];
        let layers: Vec<_> = sources
            .into_iter()
            .zip(values)
            .map(|(source, value)| match value {
                Some(n) => layer(source, "timeout", Raw::Integer(n.into())),
                None => Layer::new(source),
            })
            .collect();
        let resolved = resolve(&layers.iter().rev().collect::<Vec<_>>(), &criu()).unwrap();
        let wanted = values.into_iter().flatten().next_back().unwrap_or(5);
        prop_assert_eq!(resolved.timeout_s, wanted);
    }
}
