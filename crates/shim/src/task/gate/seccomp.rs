//! Whether the container's filter is in force on whatever filters the images have. Pure.
//!
//! No filter that is loaded takes another one back, so what counts is the first of each chain: it
//! has to be the very program that the new specification makes on this node. The gate sees later
//! that every task has a chain; which one does not matter then.

use cryo_checkpoint::image_dir::Filter;

use super::Violation;

/// The only flag that the kernel tells of a filter, so the only one in an honest image.
const LOG: u32 = 2;

/// Judges the filters of a checkpoint; `wanted` is the specification's.
pub(super) fn judge(filters: &[Filter], wanted: &[u8]) -> Result<(), Violation> {
    for (number, filter) in filters.iter().enumerate() {
        let bad = |found: String| {
            Err(Violation {
                who: "seccomp.img".to_owned(),
                property: format!("filter {number}"),
                found,
                allowed: format!(
                    "the specification's of {} instructions below all others",
                    wanted.len() / 8
                ),
            })
        };
        match filter.before {
            // It comes after one that is judged too.
            Some(before) => {
                if !ends(filters, before) {
                    return bad("a chain without a beginning".to_owned());
                }
            }
            None if filter.program != wanted => {
                let count = filter.program.len() / 8;
                return bad(format!("another one of {count} instructions"));
            }
            None if filter.flags & !LOG != 0 => {
                return bad(format!("it with the flags {:#x}", filter.flags));
            }
            None => {}
        }
    }
    Ok(())
}

/// Whether a chain comes to a first filter.
fn ends(filters: &[Filter], from: u32) -> bool {
    let before = |number: &u32| filters.get(usize::try_from(*number).ok()?)?.before;
    let last = std::iter::successors(Some(from), before)
        .take(filters.len() + 1)
        .enumerate()
        .last();
    last.is_some_and(|(steps, last)| {
        let last = usize::try_from(last).ok().and_then(|n| filters.get(n));
        steps < filters.len() && last.is_some_and(|f| f.before.is_none())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: [u8; 16] = [7; 16];

    fn filter(program: &[u8], before: Option<u32>) -> Filter {
        Filter {
            program: program.to_vec(),
            before,
            flags: 0,
        }
    }

    fn judged(filters: &[Filter]) -> Result<(), String> {
        judge(filters, &WANTED).map_err(|v| v.to_string())
    }

    #[test]
    fn the_specs_filter_is_below_all_others() {
        assert_eq!(judged(&[]), Ok(()));
        let own = filter(&WANTED, None);
        let logged = Filter {
            flags: LOG,
            ..own.clone()
        };
        let of_the_container = filter(&[1; 8], Some(0));
        assert_eq!(
            judged(&[
                own.clone(),
                of_the_container,
                filter(&[2; 8], Some(1)),
                logged
            ]),
            Ok(())
        );
        // CRIU may write a chain from its end.
        assert_eq!(judged(&[filter(&[1; 8], Some(1)), own]), Ok(()));
    }

    #[test]
    fn what_is_not_is_named() {
        let allowed = "allowed the specification's of 2 instructions below all others";
        let own = || filter(&WANTED, None);
        let flagged = Filter { flags: 4, ..own() };
        for (filters, found) in [
            (
                vec![own(), filter(&[0; 8], None)],
                "filter 1: found another one of 1 instructions",
            ),
            (
                vec![filter(&WANTED[..8], None)],
                "filter 0: found another one of 1 instructions",
            ),
            // The right one, above a stranger.
            (
                vec![filter(&WANTED, Some(1)), filter(&[0; 8], None)],
                "filter 1: found another one of 1 instructions",
            ),
            (vec![flagged], "filter 0: found it with the flags 0x4"),
            (
                vec![filter(&WANTED, Some(0))],
                "filter 0: found a chain without a beginning",
            ),
            (
                vec![own(), filter(&WANTED, Some(2)), filter(&WANTED, Some(1))],
                "filter 1: found a chain without a beginning",
            ),
            (
                vec![own(), filter(&WANTED, Some(9))],
                "filter 1: found a chain without a beginning",
            ),
        ] {
            assert_eq!(
                judged(&filters),
                Err(format!("seccomp.img: {found}, {allowed}"))
            );
        }
    }
}
