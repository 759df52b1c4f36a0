//! Whether the container's filter is in force on each task that the images filter. Pure.
//!
//! No filter takes another one back, so a chain may hold others, before or after it. But it has to
//! hold the very program that the new specification makes on this node. What tasks the images do
//! not filter the gate finds.

use cryo_checkpoint::image_dir::{Filter, Seccomp};

use super::Violation;

/// `SECCOMP_FILTER_FLAG_TSYNC`, which CRIU adds, and `..._LOG`, the only one that the kernel tells:
/// more is in no honest image.
const FLAGS: u32 = 1 | 2;

/// Judges the filters of a checkpoint; `wanted` is the specification's.
pub(super) fn judge(found: &Seccomp, wanted: &[u8]) -> Result<(), Violation> {
    let right = |filter: &&Filter| filter.program == wanted && filter.flags & !FLAGS == 0;
    for (task, first) in &found.chains {
        let chain = first.and_then(|first| chain(&found.filters, first));
        let what = match chain {
            Some(chain) if chain.iter().any(right) => continue,
            Some(chain) => {
                let lengths = chain.iter().map(|f| (f.program.len() / 8).to_string());
                let lengths: Vec<_> = lengths.collect();
                format!("others, of {} instructions", lengths.join(" and "))
            }
            None => "a chain of them that cannot be followed".to_owned(),
        };
        return Err(Violation {
            who: format!("process or thread {task}"),
            property: "seccomp filters".to_owned(),
            found: what,
            allowed: format!(
                "the specification's of {} instructions, with others or without",
                wanted.len() / 8
            ),
        });
    }
    Ok(())
}

/// The filters that CRIU loads, from this one on, in their order; `None` if it would never end.
fn chain(filters: &[Filter], first: u32) -> Option<Vec<&Filter>> {
    let mut chain = Vec::new();
    let mut at = Some(first);
    while let Some(number) = at {
        let filter = filters.get(usize::try_from(number).ok()?)?;
        chain.push(filter);
        if chain.len() > filters.len() {
            return None;
        }
        at = filter.next;
    }
    Some(chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: [u8; 16] = [7; 16];

    fn filter(program: &[u8], next: Option<u32>) -> Filter {
        Filter {
            program: program.to_vec(),
            next,
            flags: 0,
        }
    }

    fn judged(filters: &[Filter], chains: &[Option<u32>]) -> Result<(), String> {
        let found = Seccomp {
            filters: filters.to_vec(),
            chains: chains.iter().map(|first| (7, *first)).collect(),
        };
        judge(&found, &WANTED).map_err(|v| v.to_string())
    }

    #[test]
    fn the_specs_filter_is_in_every_chain() {
        assert_eq!(judged(&[], &[]), Ok(()));
        let own = filter(&WANTED, None);
        let shared = Filter {
            flags: FLAGS,
            ..own.clone()
        };
        // As CRIU writes them: the last of a chain stands first.
        let filters = [own, filter(&[1; 8], None), filter(&WANTED, Some(1)), shared];
        assert_eq!(judged(&filters, &[Some(0), Some(2), Some(3)]), Ok(()));
        // On top of another one it is in force as well.
        let above = [filter(&[0; 8], Some(1)), filter(&WANTED, None)];
        assert_eq!(judged(&above, &[Some(0)]), Ok(()));
    }

    #[test]
    fn what_is_not_is_named() {
        let own = || filter(&WANTED, None);
        let flagged = Filter { flags: 4, ..own() };
        let endless = [own(), filter(&WANTED, Some(2)), filter(&WANTED, Some(1))];
        let lost = "a chain of them that cannot be followed";
        for (filters, first, found) in [
            (
                &[filter(&[0; 8], None)][..],
                Some(0),
                "others, of 1 instructions",
            ),
            // There, but not in its chain.
            (
                &[filter(&[0; 8], None), filter(&WANTED, Some(0))],
                Some(0),
                "others, of 1 instructions",
            ),
            (
                &[filter(&[0; 8], Some(1)), filter(&WANTED[..8], None)],
                Some(0),
                "others, of 1 and 1 instructions",
            ),
            (&[flagged], Some(0), "others, of 2 instructions"),
            (&endless, Some(1), lost),
            (&[own()], Some(1), lost),
            (&[filter(&WANTED, Some(9))], Some(0), lost),
            (&[own()], None, lost),
        ] {
            assert_eq!(
                judged(filters, &[first]),
                Err(format!(
                    "process or thread 7: seccomp filters: found {found}, allowed the specification's of 2 instructions, with others or without"
                ))
            );
        }
    }
}
