//! Which devices a container may use, on cgroup v2.
//!
//! v1 has a controller that libcgroups writes the spec's rules to. v2 has none: a program
//! made of the rules is attached to the cgroup, and the kernel asks it.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use cryo_sys::bpf::{self, Instruction};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};
use std::os::fd::AsFd as _;

use crate::cgroup::{Cgroups, Kind};

/// The rules could not be put in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot open the cgroup {folder}")]
    Open {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "cannot limit the devices of {folder}: on cgroup v2 this takes a kernel with CONFIG_CGROUP_BPF, CAP_BPF and CAP_NET_ADMIN"
    )]
    Attach {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Puts the rules for devices in force, for this container's new cgroup. On v1 there is
/// nothing to do.
pub(crate) fn limit(cgroups: &Cgroups, resources: Option<&LinuxResources>) -> Result<(), Error> {
    if cgroups.dirs().any(|(h, _)| h.has("devices")) {
        return Ok(());
    }
    let Some((_, folder)) = cgroups.dirs().find(|(h, _)| h.kind == Kind::V2) else {
        return Ok(());
    };
    let given = resources.and_then(|r| r.devices().as_ref());
    let mut rules: Vec<Rule> = given.into_iter().flatten().filter_map(Rule::of).collect();
    rules.extend(EVERYBODYS);
    let opened = File::open(&folder).map_err(|source| Error::Open {
        folder: folder.clone(),
        source,
    })?;
    bpf::limit_devices(opened.as_fd(), &program(&rules))
        .map_err(|source| Error::Attach { folder, source })
}

const MAKE: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MAKE | READ | WRITE;
const BLOCK: u8 = 1;
const CHAR: u8 = 2;

/// One rule, in the kernel's numbers. What is `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u8>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// What every container may do, as on v1: make any device (which opens none), and use the
/// usual ones and its terminals.
const EVERYBODYS: [Rule; 12] = [
    usual(CHAR, None, None, MAKE),
    usual(BLOCK, None, None, MAKE),
    usual(CHAR, Some(1), Some(3), ALL),
    usual(CHAR, Some(1), Some(5), ALL),
    usual(CHAR, Some(1), Some(7), ALL),
    usual(CHAR, Some(1), Some(8), ALL),
    usual(CHAR, Some(1), Some(9), ALL),
    usual(CHAR, Some(5), Some(0), ALL),
    usual(CHAR, Some(5), Some(1), ALL),
    usual(CHAR, Some(5), Some(2), ALL),
    usual(CHAR, Some(136), None, ALL),
    usual(CHAR, Some(10), Some(200), ALL),
];

const fn usual(kind: u8, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
    Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    }
}

impl Rule {
    /// `None` for a rule of no device at all.
    fn of(rule: &LinuxDeviceCgroup) -> Option<Self> {
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(BLOCK),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHAR),
            Some(LinuxDeviceType::P) => return None,
        };
        // A negative number is any.
        let number = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok());
        let letters = rule.access().as_deref().filter(|a| !a.is_empty());
        let access = letters.unwrap_or("rwm").bytes().fold(0, |all, letter| {
            all | match letter {
                b'm' => MAKE,
                b'r' => READ,
                b'w' => WRITE,
                _ => 0,
            }
        });
        Some(Self {
            allow: rule.allow(),
            kind,
            // As v1 has it: a rule for all kinds is one for all devices.
            major: kind.and_then(|_| number(rule.major())),
            minor: kind.and_then(|_| number(rule.minor())),
            access,
        })
    }
}

/// The program that walks the rules from the last to the first. In r3 is what of the
/// access is still to be allowed; a rule that denies any of it ends the walk, and what no
/// rule allows is denied.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut all = vec![
        load_word(2, 0),
        op(MOVE_REGISTER, 3, 2, 0, 0),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(AND, 2, 0, 0, 0xffff),
        load_word(4, 4),
        load_word(5, 8),
    ];
    for rule in rules.iter().rev() {
        let access = i32::from(rule.access);
        let act = if rule.allow {
            [
                op(AND, 3, 0, 0, i32::from(ALL & !rule.access)),
                op(JUMP_UNLESS_EQUAL, 3, 0, 2, 0),
                op(MOVE, 0, 0, 0, 1),
                op(EXIT, 0, 0, 0, 0),
            ]
        } else {
            [
                op(JUMP_IF_SET, 3, 0, 1, access),
                op(JUMP, 0, 0, 2, 0),
                op(MOVE, 0, 0, 0, 0),
                op(EXIT, 0, 0, 0, 0),
            ]
        };
        let wanted = [
            (2, rule.kind.map(u32::from)),
            (4, rule.major),
            (5, rule.minor),
        ];
        let tests: Vec<_> = wanted
            .iter()
            .filter_map(|(register, value)| Some((*register, (*value)?)))
            .collect();
        for (at, (register, value)) in tests.iter().enumerate() {
            // Past the other tests and what the rule does.
            let beyond = i16::try_from(tests.len() - at - 1 + act.len()).unwrap_or(i16::MAX);
            all.push(op(
                JUMP_UNLESS_EQUAL,
                *register,
                0,
                beyond,
                value.cast_signed(),
            ));
        }
        all.extend(act);
    }
    all.push(op(MOVE, 0, 0, 0, 0));
    all.push(op(EXIT, 0, 0, 0, 0));
    all
}

const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const SHIFT_RIGHT: u8 = 0x77;
const AND: u8 = 0x57;
const JUMP: u8 = 0x05;
/// Both compare 32 bits: a device's number has no sign.
const JUMP_UNLESS_EQUAL: u8 = 0x56;
const JUMP_IF_SET: u8 = 0x46;
const EXIT: u8 = 0x95;
const LOAD_WORD: u8 = 0x61;

const fn op(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: target | source << 4,
        offset,
        immediate,
    }
}

/// Reads a number of the question, which r1 points to.
const fn load_word(target: u8, offset: i16) -> Instruction {
    op(LOAD_WORD, target, 1, offset, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would hear from the program.
    fn allows(program: &[Instruction], kind: u8, major: u32, minor: u32, access: u8) -> bool {
        let question = [u32::from(access) << 16 | u32::from(kind), major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        loop {
            let i = program[at];
            let (target, source) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let number = u64::from(i.immediate.cast_unsigned());
            at += 1;
            let jump = match i.code {
                MOVE => {
                    registers[target] = number;
                    false
                }
                MOVE_REGISTER => {
                    registers[target] = registers[source];
                    false
                }
                SHIFT_RIGHT => {
                    registers[target] >>= number;
                    false
                }
                AND => {
                    registers[target] &= number;
                    false
                }
                LOAD_WORD => {
                    assert_eq!(source, 1);
                    registers[target] = question[usize::try_from(i.offset).unwrap() / 4].into();
                    false
                }
                JUMP => true,
                JUMP_UNLESS_EQUAL => registers[target] != number,
                JUMP_IF_SET => registers[target] & number != 0,
                EXIT => return registers[0] == 1,
                other => panic!("no such instruction: {other:#x}"),
            };
            if jump {
                at += usize::try_from(i.offset).unwrap();
            }
        }
    }

    fn rules(json: &str) -> Vec<Rule> {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
        rules.iter().filter_map(Rule::of).collect()
    }

    #[test]
    fn what_no_rule_allows_is_denied() {
        let nothing = program(&[]);
        assert!(!allows(&nothing, CHAR, 1, 3, READ));
    }

    #[test]
    fn the_last_rule_counts_and_rules_add_up() {
        let program = program(&rules(
            r#"[{"allow":true,"access":"rwm"},
                {"allow":false,"access":"rwm"},
                {"allow":true,"type":"c","major":10,"minor":229,"access":"r"},
                {"allow":true,"type":"c","major":10,"minor":229,"access":"w"},
                {"allow":true,"type":"b","major":8,"access":"rw"},
                {"allow":false,"type":"b","major":8,"minor":1,"access":"w"},
                {"allow":true,"type":"c","major":4294967295,"minor":-1,"access":"r"}]"#,
        ));
        assert!(allows(&program, CHAR, 10, 229, READ | WRITE));
        assert!(!allows(&program, CHAR, 10, 229, READ | MAKE));
        assert!(!allows(&program, CHAR, 10, 228, READ));
        assert!(!allows(&program, BLOCK, 10, 229, READ));
        assert!(allows(&program, BLOCK, 8, 0, READ | WRITE));
        assert!(allows(&program, BLOCK, 8, 1, READ));
        assert!(!allows(&program, BLOCK, 8, 1, READ | WRITE));
        assert!(allows(&program, CHAR, u32::MAX, 7, READ));
    }

    #[test]
    fn the_usual_devices_are_everybodys() {
        let mut all = rules(r#"[{"allow":false,"access":"rwm"}]"#);
        all.extend(EVERYBODYS);
        let program = program(&all);
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (136, 4)] {
            assert!(allows(&program, CHAR, major, minor, READ | WRITE));
        }
        assert!(allows(&program, BLOCK, 8, 0, MAKE));
        assert!(!allows(&program, BLOCK, 8, 0, READ));
        // Beside them an empty list is no freedom.
        assert!(!allows(&super::program(&EVERYBODYS), BLOCK, 8, 0, READ));
    }

    #[test]
    fn privileged_is_all() {
        let mut all = rules(r#"[{"allow":false},{"allow":true,"type":"a","access":"rwm"}]"#);
        all.extend(EVERYBODYS);
        assert!(allows(&program(&all), BLOCK, 8, 0, ALL));
    }
}
