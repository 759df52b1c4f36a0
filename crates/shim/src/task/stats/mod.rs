//! Stats: what a container uses, in containerd's message for the machine's
//! version of cgroups.
//!
//! The kernel's files are read directly, at each call and in the container's own
//! cgroups: that needs neither the container's actor nor a process that lives,
//! so it works from Create to Delete, and for a restored container as well.

mod files;
mod v1;
mod v2;

use std::collections::HashMap;
use std::path::PathBuf;

use cryo_engine::cgroup::{Cgroups, Hierarchy, Kind};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use self::files::{Dir, Table};
use super::context::internal;
use crate::rpc::TaskError;

/// What the container uses now. A cgroup that is not there yet uses nothing. Blocks.
///
/// # Errors
///
/// When the message cannot be encoded, which it always can.
pub fn read(cgroups: &Cgroups) -> Result<Any, TaskError> {
    let dirs: Vec<_> = cgroups.dirs().collect();
    if dirs.iter().any(|(h, _)| has_controllers(h)) {
        let dir = |controller: &str| Dir(find(&dirs, |h| h.has(controller)));
        let metrics = v1::metrics(dir, rustix::param::clock_ticks_per_second(), &disks());
        pack("io.containerd.cgroups.v1.Metrics", &metrics)
    } else {
        let metrics = v2::metrics(&Dir(find(&dirs, |h| h.kind == Kind::V2)));
        pack("io.containerd.cgroups.v2.Metrics", &metrics)
    }
}

/// The kills in a `memory.oom_control` of v1 or a `memory.events` of v2.
pub(super) fn oom_kills(text: &str) -> u64 {
    Table::parse(text).get("oom_kill")
}

/// The hierarchies `name=...` of v1 count nothing.
fn has_controllers(hierarchy: &Hierarchy) -> bool {
    matches!(&hierarchy.kind, Kind::V1(names) if names.iter().any(|n| !n.starts_with("name=")))
}

fn find(dirs: &[(&Hierarchy, PathBuf)], is: impl Fn(&Hierarchy) -> bool) -> Option<PathBuf> {
    let found = dirs.iter().find(|(h, _)| is(h));
    found.map(|(_, dir)| dir.clone())
}

/// containerd uses the message's full name bare, with no host before it.
fn pack(name: &str, metrics: &impl Message) -> Result<Any, TaskError> {
    Ok(Any {
        type_url: name.to_owned(),
        value: metrics.write_to_bytes().map_err(internal)?,
        ..Any::default()
    })
}

/// The names of the machine's block devices.
fn disks() -> HashMap<(u64, u64), String> {
    parse_disks(&std::fs::read_to_string("/proc/diskstats").unwrap_or_default())
}

fn parse_disks(diskstats: &str) -> HashMap<(u64, u64), String> {
    let disk = |line: &str| {
        let mut fields = line.split_whitespace();
        let number = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((number, format!("/dev/{}", fields.next()?)))
    };
    diskstats.lines().filter_map(disk).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_message_is_that_of_the_machine_and_a_missing_cgroup_uses_nothing() {
        let Ok(cgroups) = Cgroups::at(Path::new("/cryo-stats-test/none")) else {
            return;
        };
        let any = read(&cgroups).unwrap();
        let v1 = cgroups.dirs().any(|(h, _)| has_controllers(h));
        if v1 {
            assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
            use containerd_shim_protos::cgroups::metrics::Metrics;
            use protobuf::Message as _;
            let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
            assert_eq!(metrics.cpu.usage.total, 0);
        } else {
            assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        }
    }

    #[test]
    fn disks_have_names() {
        let text = " 254       0 vda 1 2 3\n   7       1 loop1 0 0\nbroken\n";
        let disks = parse_disks(text);
        assert_eq!(disks.len(), 2);
        assert_eq!(disks[&(254, 0)], "/dev/vda");
    }
}
