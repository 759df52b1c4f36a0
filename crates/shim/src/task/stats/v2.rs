//! What cgroup v2 tells, as `io.containerd.cgroups.v2.Metrics`.

use std::collections::HashMap;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats,
    PidsStat,
};
use protobuf::MessageField;

use super::files::{Dir, Table, device};

pub(super) fn metrics(dir: &Dir) -> Metrics {
    Metrics {
        pids: MessageField::some(PidsStat {
            current: dir.number("pids.current").unwrap_or(0),
            limit: dir.number("pids.max").unwrap_or(0),
            ..PidsStat::default()
        }),
        cpu: MessageField::some(cpu(dir)),
        memory: MessageField::some(memory(dir)),
        io: MessageField::some(IOStat {
            usage: io(&dir.text("io.stat").unwrap_or_default()),
            psi: pressure(dir, "io.pressure").into(),
            ..IOStat::default()
        }),
        hugetlb: hugetlb(dir),
        memory_events: dir.table("memory.events").map(|t| memory_events(&t)).into(),
        ..Metrics::default()
    }
}

fn cpu(dir: &Dir) -> CPUStat {
    let stat = dir.table("cpu.stat").unwrap_or_default();
    CPUStat {
        usage_usec: stat.get("usage_usec"),
        user_usec: stat.get("user_usec"),
        system_usec: stat.get("system_usec"),
        nr_periods: stat.get("nr_periods"),
        nr_throttled: stat.get("nr_throttled"),
        throttled_usec: stat.get("throttled_usec"),
        nr_bursts: stat.get("nr_bursts"),
        burst_usec: stat.get("burst_usec"),
        psi: pressure(dir, "cpu.pressure").into(),
        ..CPUStat::default()
    }
}

fn memory(dir: &Dir) -> MemoryStat {
    let stat = dir.table("memory.stat").unwrap_or_default();
    MemoryStat {
        anon: stat.get("anon"),
        file: stat.get("file"),
        kernel_stack: stat.get("kernel_stack"),
        slab: stat.get("slab"),
        sock: stat.get("sock"),
        shmem: stat.get("shmem"),
        file_mapped: stat.get("file_mapped"),
        file_dirty: stat.get("file_dirty"),
        file_writeback: stat.get("file_writeback"),
        anon_thp: stat.get("anon_thp"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        slab_reclaimable: stat.get("slab_reclaimable"),
        slab_unreclaimable: stat.get("slab_unreclaimable"),
        pgfault: stat.get("pgfault"),
        pgmajfault: stat.get("pgmajfault"),
        workingset_refault: either(&stat, "workingset_refault"),
        workingset_activate: either(&stat, "workingset_activate"),
        workingset_nodereclaim: stat.get("workingset_nodereclaim"),
        pgrefill: stat.get("pgrefill"),
        pgscan: stat.get("pgscan"),
        pgsteal: stat.get("pgsteal"),
        pgactivate: stat.get("pgactivate"),
        pgdeactivate: stat.get("pgdeactivate"),
        pglazyfree: stat.get("pglazyfree"),
        pglazyfreed: stat.get("pglazyfreed"),
        thp_fault_alloc: stat.get("thp_fault_alloc"),
        thp_collapse_alloc: stat.get("thp_collapse_alloc"),
        usage: dir.number("memory.current").unwrap_or(0),
        usage_limit: dir.number("memory.max").unwrap_or(0),
        max_usage: dir.number("memory.peak").unwrap_or(0),
        swap_usage: dir.number("memory.swap.current").unwrap_or(0),
        swap_limit: dir.number("memory.swap.max").unwrap_or(0),
        swap_max_usage: dir.number("memory.swap.peak").unwrap_or(0),
        psi: pressure(dir, "memory.pressure").into(),
        ..MemoryStat::default()
    }
}

/// Linux 5.9 parted these in two.
fn either(stat: &Table, name: &str) -> u64 {
    let parts = ["_anon", "_file"].map(|part| stat.get(&format!("{name}{part}")));
    parts.into_iter().fold(stat.get(name), u64::saturating_add)
}

fn memory_events(table: &Table) -> MemoryEvents {
    MemoryEvents {
        low: table.get("low"),
        high: table.get("high"),
        max: table.get("max"),
        oom: table.get("oom"),
        oom_kill: table.get("oom_kill"),
        oom_group_kill: table.get("oom_group_kill"),
        ..MemoryEvents::default()
    }
}

fn hugetlb(dir: &Dir) -> Vec<HugeTlbStat> {
    let stat = |size: String| {
        let number = |what: &str| dir.number(&format!("hugetlb.{size}.{what}")).unwrap_or(0);
        HugeTlbStat {
            current: number("current"),
            max: number("max"),
            failcnt: dir
                .table(&format!("hugetlb.{size}.events"))
                .map_or(0, |t| t.get("max")),
            pagesize: size,
            ..HugeTlbStat::default()
        }
    };
    dir.page_sizes(".current").into_iter().map(stat).collect()
}

/// Lines `MAJOR:MINOR rbytes=N wbytes=N rios=N wios=N ...`
fn io(text: &str) -> Vec<IOEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = device(fields.next()?)?;
        let values = keyed(fields);
        let get = |key: &str| values.get(key).and_then(|v| v.parse().ok()).unwrap_or(0);
        Some(IOEntry {
            major,
            minor,
            rbytes: get("rbytes"),
            wbytes: get("wbytes"),
            rios: get("rios"),
            wios: get("wios"),
            ..IOEntry::default()
        })
    };
    text.lines().filter_map(entry).collect()
}

fn keyed<'a>(fields: impl Iterator<Item = &'a str>) -> HashMap<&'a str, &'a str> {
    fields.filter_map(|f| f.split_once('=')).collect()
}

/// Lines `some|full avg10=N avg60=N avg300=N total=N`
fn pressure(dir: &Dir, file: &str) -> Option<PSIStats> {
    let text = dir.text(file)?;
    let mut stats = PSIStats::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let kind = fields.next();
        let values = keyed(fields);
        let average = |key| values.get(key).and_then(|v| v.parse().ok()).unwrap_or(0.0);
        let data = MessageField::some(PSIData {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: values
                .get("total")
                .and_then(|v| v.parse().ok())
                .unwrap_or(0),
            ..PSIData::default()
        });
        match kind {
            Some("some") => stats.some = data,
            Some("full") => stats.full = data,
            _ => {}
        }
    }
    Some(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_is_read() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 10\nsystem_usec 20\nnr_periods 1\nnr_throttled 2\nthrottled_usec 3\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
            ),
            (
                "memory.stat",
                "anon 1\nfile 2\ninactive_file 5\npgfault 6\nworkingset_refault_anon 3\nworkingset_refault_file 4\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "8192\n"),
            ("memory.peak", "5000\n"),
            ("memory.swap.current", "7\n"),
            ("memory.swap.max", "max\n"),
            (
                "memory.events",
                "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
            ),
            (
                "io.stat",
                "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:0 \n",
            ),
            ("hugetlb.2MB.current", "1\n"),
            ("hugetlb.2MB.max", "2\n"),
            ("hugetlb.2MB.events", "max 3\n"),
            ("hugetlb.2MB.rsvd.current", "9\n"),
        ] {
            std::fs::write(root.path().join(name), text).unwrap();
        }
        let metrics = metrics(&Dir(Some(root.path().to_owned())));

        assert_eq!((metrics.pids.current, metrics.pids.limit), (2, u64::MAX));
        let cpu = &metrics.cpu;
        assert_eq!(
            (cpu.usage_usec, cpu.user_usec, cpu.system_usec),
            (30, 10, 20)
        );
        assert_eq!(
            (cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec),
            (1, 2, 3)
        );
        assert_eq!((cpu.psi.some.total, cpu.psi.full.total), (12, 3));
        assert!((cpu.psi.some.avg10 - 1.5).abs() < f64::EPSILON);
        let memory = &metrics.memory;
        assert_eq!((memory.anon, memory.file, memory.inactive_file), (1, 2, 5));
        assert_eq!((memory.pgfault, memory.workingset_refault), (6, 7));
        assert_eq!(
            (memory.usage, memory.usage_limit, memory.max_usage),
            (4096, 8192, 5000)
        );
        assert_eq!((memory.swap_usage, memory.swap_limit), (7, u64::MAX));
        assert!(memory.psi.is_none());
        let events = &metrics.memory_events;
        assert_eq!((events.low, events.high, events.max), (1, 2, 3));
        assert_eq!(
            (events.oom, events.oom_kill, events.oom_group_kill),
            (4, 5, 6)
        );
        let io = &metrics.io.usage;
        assert_eq!(io.len(), 2);
        assert_eq!((io[0].major, io[0].minor), (254, 0));
        assert_eq!(
            (io[0].rbytes, io[0].wbytes, io[0].rios, io[0].wios),
            (1, 2, 3, 4)
        );
        assert_eq!(metrics.hugetlb.len(), 1);
        let pages = &metrics.hugetlb[0];
        assert_eq!((pages.current, pages.max, pages.failcnt), (1, 2, 3));
    }

    #[test]
    fn what_clients_reach_into_is_there_without_any_controller() {
        let metrics = metrics(&Dir(None));
        assert!(metrics.cpu.is_some() && metrics.memory.is_some() && metrics.pids.is_some());
        assert!(metrics.memory_events.is_none());
    }
}
