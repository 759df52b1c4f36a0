//! What cgroup v1 tells, as `io.containerd.cgroups.v1.Metrics`.

use std::collections::HashMap;

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
    MemoryStat, Metrics, PidsStat, Throttle,
};
use protobuf::MessageField;

use super::files::{Dir, Table, device};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The metrics. `dir` answers a controller's folder; processor time comes in
/// units of which there are `ticks` a second; `disks` names block devices.
pub(super) fn metrics(
    dir: impl Fn(&str) -> Dir,
    ticks: u64,
    disks: &HashMap<(u64, u64), String>,
) -> Metrics {
    let memory_dir = dir("memory");
    Metrics {
        hugetlb: hugetlb(&dir("hugetlb")),
        pids: MessageField::some(pids(&dir("pids"))),
        cpu: MessageField::some(CPUStat {
            usage: MessageField::some(cpu_usage(&dir("cpuacct"), ticks)),
            throttling: MessageField::some(throttling(&dir("cpu"))),
            ..CPUStat::default()
        }),
        memory: MessageField::some(memory(&memory_dir)),
        blkio: MessageField::some(blkio(&dir("blkio"), disks)),
        memory_oom_control: memory_dir
            .table("memory.oom_control")
            .map(|t| oom_control(&t))
            .into(),
        ..Metrics::default()
    }
}

fn hugetlb(dir: &Dir) -> Vec<HugetlbStat> {
    let stat = |size: String| {
        let number = |what: &str| dir.number(&format!("hugetlb.{size}.{what}")).unwrap_or(0);
        HugetlbStat {
            usage: number("usage_in_bytes"),
            max: number("max_usage_in_bytes"),
            failcnt: number("failcnt"),
            pagesize: size,
            ..HugetlbStat::default()
        }
    };
    let sizes = dir.page_sizes(".usage_in_bytes");
    sizes.into_iter().map(stat).collect()
}

fn pids(dir: &Dir) -> PidsStat {
    PidsStat {
        current: dir.number("pids.current").unwrap_or(0),
        // Here no limit is 0.
        limit: dir
            .number("pids.max")
            .filter(|l| *l != u64::MAX)
            .unwrap_or(0),
        ..PidsStat::default()
    }
}

fn cpu_usage(dir: &Dir, ticks: u64) -> CPUUsage {
    let stat = dir.table("cpuacct.stat").unwrap_or_default();
    let nanos = |name| match stat.get(name).checked_mul(NANOS_PER_SECOND) {
        Some(scaled) => scaled.checked_div(ticks).unwrap_or(0),
        None => u64::MAX,
    };
    CPUUsage {
        total: dir.number("cpuacct.usage").unwrap_or(0),
        kernel: nanos("system"),
        user: nanos("user"),
        per_cpu: dir
            .text("cpuacct.usage_percpu")
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect(),
        ..CPUUsage::default()
    }
}

fn throttling(dir: &Dir) -> Throttle {
    let stat = dir.table("cpu.stat").unwrap_or_default();
    Throttle {
        periods: stat.get("nr_periods"),
        throttled_periods: stat.get("nr_throttled"),
        throttled_time: stat.get("throttled_time"),
        ..Throttle::default()
    }
}

fn memory(dir: &Dir) -> MemoryStat {
    let stat = dir.table("memory.stat").unwrap_or_default();
    MemoryStat {
        cache: stat.get("cache"),
        rss: stat.get("rss"),
        rss_huge: stat.get("rss_huge"),
        mapped_file: stat.get("mapped_file"),
        dirty: stat.get("dirty"),
        writeback: stat.get("writeback"),
        pg_pg_in: stat.get("pgpgin"),
        pg_pg_out: stat.get("pgpgout"),
        pg_fault: stat.get("pgfault"),
        pg_maj_fault: stat.get("pgmajfault"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        hierarchical_memory_limit: stat.get("hierarchical_memory_limit"),
        hierarchical_swap_limit: stat.get("hierarchical_memsw_limit"),
        total_cache: stat.get("total_cache"),
        total_rss: stat.get("total_rss"),
        total_rss_huge: stat.get("total_rss_huge"),
        total_mapped_file: stat.get("total_mapped_file"),
        total_dirty: stat.get("total_dirty"),
        total_writeback: stat.get("total_writeback"),
        total_pg_pg_in: stat.get("total_pgpgin"),
        total_pg_pg_out: stat.get("total_pgpgout"),
        total_pg_fault: stat.get("total_pgfault"),
        total_pg_maj_fault: stat.get("total_pgmajfault"),
        total_inactive_anon: stat.get("total_inactive_anon"),
        total_active_anon: stat.get("total_active_anon"),
        total_inactive_file: stat.get("total_inactive_file"),
        total_active_file: stat.get("total_active_file"),
        total_unevictable: stat.get("total_unevictable"),
        usage: entry(dir, "memory").into(),
        swap: entry(dir, "memory.memsw").into(),
        kernel: entry(dir, "memory.kmem").into(),
        kernel_tcp: entry(dir, "memory.kmem.tcp").into(),
        ..MemoryStat::default()
    }
}

fn entry(dir: &Dir, prefix: &str) -> Option<MemoryEntry> {
    let number = |what: &str| dir.number(&format!("{prefix}.{what}"));
    Some(MemoryEntry {
        usage: number("usage_in_bytes")?,
        limit: number("limit_in_bytes").unwrap_or(0),
        max: number("max_usage_in_bytes").unwrap_or(0),
        failcnt: number("failcnt").unwrap_or(0),
        ..MemoryEntry::default()
    })
}

fn oom_control(table: &Table) -> MemoryOomControl {
    MemoryOomControl {
        oom_kill_disable: table.get("oom_kill_disable"),
        under_oom: table.get("under_oom"),
        oom_kill: table.get("oom_kill"),
        ..MemoryOomControl::default()
    }
}

/// Which files there are depends on the scheduler of the disks; what the
/// throttling layer counts is always there.
fn blkio(dir: &Dir, disks: &HashMap<(u64, u64), String>) -> BlkIOStat {
    let first = |names: &[&str]| {
        let lists = names.iter().filter_map(|name| {
            let text = dir.text(&format!("blkio.{name}"))?;
            Some(blkio_entries(&text, disks)).filter(|list| !list.is_empty())
        });
        lists.into_iter().next().unwrap_or_default()
    };
    BlkIOStat {
        io_service_bytes_recursive: first(&[
            "io_service_bytes_recursive",
            "bfq.io_service_bytes_recursive",
            "throttle.io_service_bytes_recursive",
            "throttle.io_service_bytes",
        ]),
        io_serviced_recursive: first(&[
            "io_serviced_recursive",
            "bfq.io_serviced_recursive",
            "throttle.io_serviced_recursive",
            "throttle.io_serviced",
        ]),
        io_queued_recursive: first(&["io_queued_recursive", "bfq.io_queued_recursive"]),
        io_service_time_recursive: first(&[
            "io_service_time_recursive",
            "bfq.io_service_time_recursive",
        ]),
        io_wait_time_recursive: first(&["io_wait_time_recursive", "bfq.io_wait_time_recursive"]),
        io_merged_recursive: first(&["io_merged_recursive", "bfq.io_merged_recursive"]),
        io_time_recursive: first(&["time_recursive", "bfq.time_recursive"]),
        sectors_recursive: first(&["sectors_recursive", "bfq.sectors_recursive"]),
        ..BlkIOStat::default()
    }
}

/// Lines `MAJOR:MINOR [OPERATION] VALUE`; the last one is a total.
fn blkio_entries(text: &str, disks: &HashMap<(u64, u64), String>) -> Vec<BlkIOEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = device(fields.next()?)?;
        let (op, value) = match (fields.next()?, fields.next()) {
            (op, Some(value)) => (op, value),
            (value, None) => ("", value),
        };
        Some(BlkIOEntry {
            op: op.to_owned(),
            device: disks.get(&(major, minor)).cloned().unwrap_or_default(),
            major,
            minor,
            value: value.parse().ok()?,
            ..BlkIOEntry::default()
        })
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    fn read(root: &Path) -> Metrics {
        let disks = HashMap::from([((254, 0), "/dev/vda".to_owned())]);
        let dir = |name: &str| Dir(Some(root.join(name)).filter(|d| d.exists()));
        metrics(dir, 100, &disks)
    }

    #[test]
    fn every_controller_is_read() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        write(
            &at("cpuacct"),
            &[
                ("cpuacct.usage", "123456789\n"),
                ("cpuacct.usage_percpu", "100 200 \n"),
                ("cpuacct.stat", "user 3\nsystem 4\n"),
            ],
        );
        write(
            &at("cpu"),
            &[(
                "cpu.stat",
                "nr_periods 5\nnr_throttled 2\nthrottled_time 77\nwait_sum 1\n",
            )],
        );
        write(
            &at("memory"),
            &[
                ("memory.usage_in_bytes", "4096\n"),
                ("memory.limit_in_bytes", "8192\n"),
                ("memory.max_usage_in_bytes", "5000\n"),
                ("memory.failcnt", "3\n"),
                ("memory.kmem.usage_in_bytes", "10\n"),
                (
                    "memory.stat",
                    "cache 1\nrss 2\npgpgin 3\nhierarchical_memsw_limit 9\ntotal_inactive_file 11\ntotal_rss 12\n",
                ),
                (
                    "memory.oom_control",
                    "oom_kill_disable 0\nunder_oom 1\noom_kill 6\n",
                ),
            ],
        );
        write(
            &at("pids"),
            &[("pids.current", "2\n"), ("pids.max", "100\n")],
        );
        write(
            &at("blkio"),
            &[
                ("blkio.bfq.io_service_bytes_recursive", "Total 0\n"),
                (
                    "blkio.throttle.io_service_bytes_recursive",
                    "254:0 Read 10\n254:0 Write 20\n7:1 Sync 5\nTotal 30\n",
                ),
                ("blkio.throttle.io_serviced", "254:0 Read 1\nTotal 1\n"),
                ("blkio.sectors_recursive", "254:0 8\n"),
            ],
        );
        write(
            &at("hugetlb"),
            &[
                ("hugetlb.2MB.usage_in_bytes", "2097152\n"),
                ("hugetlb.2MB.max_usage_in_bytes", "4194304\n"),
                ("hugetlb.2MB.failcnt", "1\n"),
                ("hugetlb.2MB.rsvd.usage_in_bytes", "1\n"),
            ],
        );
        let metrics = read(root.path());

        let usage = &metrics.cpu.usage;
        assert_eq!(
            (usage.total, &*usage.per_cpu),
            (123_456_789, &[100, 200][..])
        );
        assert_eq!((usage.user, usage.kernel), (30_000_000, 40_000_000));
        let throttling = &metrics.cpu.throttling;
        assert_eq!(
            (
                throttling.periods,
                throttling.throttled_periods,
                throttling.throttled_time
            ),
            (5, 2, 77)
        );
        let memory = &metrics.memory;
        assert_eq!((memory.cache, memory.rss, memory.pg_pg_in), (1, 2, 3));
        assert_eq!(memory.hierarchical_swap_limit, 9);
        assert_eq!((memory.total_inactive_file, memory.total_rss), (11, 12));
        let usage = &memory.usage;
        assert_eq!(
            (usage.usage, usage.limit, usage.max, usage.failcnt),
            (4096, 8192, 5000, 3)
        );
        assert_eq!(memory.kernel.usage, 10);
        assert!(memory.swap.is_none() && memory.kernel_tcp.is_none());
        let oom = &metrics.memory_oom_control;
        assert_eq!(
            (oom.oom_kill_disable, oom.under_oom, oom.oom_kill),
            (0, 1, 6)
        );
        assert_eq!((metrics.pids.current, metrics.pids.limit), (2, 100));
        let bytes: Vec<_> = metrics
            .blkio
            .io_service_bytes_recursive
            .iter()
            .map(|e| (e.major, e.minor, &*e.device, &*e.op, e.value))
            .collect();
        assert_eq!(
            bytes,
            [
                (254, 0, "/dev/vda", "Read", 10),
                (254, 0, "/dev/vda", "Write", 20),
                (7, 1, "", "Sync", 5)
            ]
        );
        assert_eq!(metrics.blkio.io_serviced_recursive.len(), 1);
        let sectors = &metrics.blkio.sectors_recursive;
        assert_eq!((&*sectors[0].op, sectors[0].value), ("", 8));
        assert_eq!(metrics.hugetlb.len(), 1);
        let pages = &metrics.hugetlb[0];
        assert_eq!(
            (&*pages.pagesize, pages.usage, pages.max, pages.failcnt),
            ("2MB", 2_097_152, 4_194_304, 1)
        );
    }

    #[test]
    fn no_limit_of_processes_is_zero() {
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join("pids"), &[("pids.max", "max\n")]);
        assert_eq!(read(root.path()).pids.limit, 0);
    }

    #[test]
    fn what_clients_reach_into_is_there_without_any_controller() {
        let metrics = read(Path::new("/nonexistent"));
        assert!(metrics.cpu.usage.is_some() && metrics.cpu.throttling.is_some());
        assert!(metrics.pids.is_some() && metrics.memory.is_some());
        assert!(metrics.memory.usage.is_none() && metrics.memory_oom_control.is_none());
    }
}
