//! The limits of a cgroup v2 as systemd names them.

use super::dbus::{Property, Value};

const NUMBERS: [(&str, &str); 6] = [
    ("memory.high", "MemoryHigh"),
    ("memory.low", "MemoryLow"),
    ("memory.max", "MemoryMax"),
    ("memory.min", "MemoryMin"),
    ("memory.swap.max", "MemorySwapMax"),
    ("pids.max", "TasksMax"),
];

const MASKS: [(&str, &str); 2] = [
    ("cpuset.cpus", "AllowedCPUs"),
    ("cpuset.mems", "AllowedMemoryNodes"),
];

/// More processors or memory nodes than the kernel can be built for.
const MAX_BITS: usize = 1 << 16;

/// The limits in a cgroup's files. What has no file, as where the kernel has no
/// such controller, is not limited.
pub(super) fn properties(file: impl Fn(&str) -> Option<String>) -> Vec<Property> {
    let mut found = Vec::new();
    for (name, property) in NUMBERS {
        found.extend(file(name).and_then(|text| Some((property, Value::Number(number(&text)?)))));
    }
    // A cgroup for idle time has no weight.
    let weight = file("cpu.weight").and_then(|text| number(&text));
    found.extend(
        weight
            .filter(|w| (1..=10_000).contains(w))
            .map(|w| ("CPUWeight", Value::Number(w))),
    );
    found.extend(
        file("cpu.max")
            .and_then(|text| bandwidth(&text))
            .into_iter()
            .flatten(),
    );
    for (name, property) in MASKS {
        let mask = file(name).and_then(|text| mask(&text));
        found.extend(mask.map(|mask| (property, Value::Bytes(mask))));
    }
    found
}

fn number(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        other => other.parse().ok(),
    }
}

/// `QUOTA PERIOD`: systemd counts the quota per second, and from that again per
/// period, without what is behind the point.
fn bandwidth(text: &str) -> Option<[Property; 2]> {
    let (quota, period) = text.trim().split_once(' ')?;
    let period: u64 = period.parse().ok().filter(|p| *p > 0)?;
    let per_second = match number(quota)? {
        u64::MAX => u64::MAX,
        quota => quota.checked_mul(1_000_000)?.div_ceil(period),
    };
    Some([
        ("CPUQuotaPerSecUSec", Value::Number(per_second)),
        ("CPUQuotaPeriodUSec", Value::Number(period)),
    ])
}

/// `0-2,5` as bits, the lowest first; `None` when there are none.
fn mask(text: &str) -> Option<Vec<u8>> {
    let mut mask = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= MAX_BITS {
            return None;
        }
        for bit in first..=last {
            if mask.len() <= bit / 8 {
                mask.resize(bit / 8 + 1, 0u8);
            }
            if let Some(byte) = mask.get_mut(bit / 8) {
                *byte |= 1 << (bit % 8);
            }
        }
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn of(files: &[(&str, &str)]) -> HashMap<&'static str, Value> {
        let text = |name: &str| {
            let found = files.iter().find(|(n, _)| *n == name);
            found.map(|(_, text)| format!("{text}\n"))
        };
        properties(text).into_iter().collect()
    }

    #[test]
    fn limits_have_systemds_names_and_units() {
        let told = of(&[
            ("memory.max", "33554432"),
            ("memory.swap.max", "0"),
            ("pids.max", "max"),
            ("cpu.weight", "79"),
            ("cpu.max", "33333 70000"),
            ("cpuset.cpus", "0-1,9"),
            ("cpuset.mems", ""),
        ]);
        let wanted = [
            ("MemoryMax", Value::Number(33_554_432)),
            ("MemorySwapMax", Value::Number(0)),
            ("TasksMax", Value::Number(u64::MAX)),
            ("CPUWeight", Value::Number(79)),
            ("CPUQuotaPerSecUSec", Value::Number(476_186)),
            ("CPUQuotaPeriodUSec", Value::Number(70_000)),
            ("AllowedCPUs", Value::Bytes(vec![3, 2])),
        ];
        assert_eq!(told, wanted.into_iter().collect());
    }

    #[test]
    fn a_quota_is_the_same_after_systemds_counting() {
        for (quota, period) in [
            (33_333, 70_000),
            (1_000, 1_000_000),
            (25_000, 100_000),
            (7_777, 99_991),
        ] {
            let [(_, per_second), _] = bandwidth(&format!("{quota} {period}")).unwrap();
            let Value::Number(per_second) = per_second else {
                panic!("{per_second:?}");
            };
            assert_eq!(per_second * period / 1_000_000, quota);
        }
        let [(_, none), _] = bandwidth("max 100000").unwrap();
        assert_eq!(none, Value::Number(u64::MAX));
    }

    #[test]
    fn an_idle_cgroup_has_no_weight() {
        assert!(of(&[("cpu.weight", "0")]).is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".{0,40}") {
            properties(|_| Some(text.clone()));
        }
    }
}
