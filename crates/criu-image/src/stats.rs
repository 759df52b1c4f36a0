//! `stats-dump` and `stats-restore`: what an operation took.

use crate::msg::{DumpStatsEntry, RestoreStatsEntry, StatsEntry};
use crate::{At, Error, Kind, View};

/// The statistics of a dump, from `stats-dump`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DumpStats {
    /// Until all tasks stood still.
    pub freezing_time_us: u32,
    /// From then until they ran again, or were ended: what the container's users notice.
    pub frozen_time_us: u32,
    /// Taking memory over from the tasks.
    pub memdump_time_us: u32,
    /// Writing it.
    pub memwrite_time_us: u32,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages left out because the parent image has them.
    pub pages_skipped_parent: u64,
    /// Pages written.
    pub pages_written: u64,
    /// Pages left to be served later; those of `--lazy-pages` only.
    pub pages_lazy: u64,
    /// Pages of shared memory written.
    pub shared_pages_written: u64,
}

impl View for DumpStats {
    type Wire = StatsEntry;

    const KIND: Kind = Kind::StatsDump;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        let dump: DumpStatsEntry = at.need(wire.dump, "dump")?;
        Ok(Self {
            freezing_time_us: at.need(dump.freezing_time, "freezing_time")?,
            frozen_time_us: at.need(dump.frozen_time, "frozen_time")?,
            memdump_time_us: at.need(dump.memdump_time, "memdump_time")?,
            memwrite_time_us: at.need(dump.memwrite_time, "memwrite_time")?,
            pages_scanned: at.need(dump.pages_scanned, "pages_scanned")?,
            pages_skipped_parent: at.need(dump.pages_skipped_parent, "pages_skipped_parent")?,
            pages_written: at.need(dump.pages_written, "pages_written")?,
            pages_lazy: at.need(dump.pages_lazy, "pages_lazy")?,
            shared_pages_written: dump.shpages_written.unwrap_or_default(),
        })
    }
}

/// The statistics of a restore, from `stats-restore`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreStats {
    /// Making the tasks.
    pub forking_time_us: u32,
    /// The whole restore.
    pub restore_time_us: u32,
    /// Pages compared with those of a parent task.
    pub pages_compared: u64,
    /// Pages shared with a parent task.
    pub pages_skipped_cow: u64,
    /// Pages restored.
    pub pages_restored: Option<u64>,
}

impl View for RestoreStats {
    type Wire = StatsEntry;

    const KIND: Kind = Kind::StatsRestore;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        let restore: RestoreStatsEntry = at.need(wire.restore, "restore")?;
        Ok(Self {
            forking_time_us: at.need(restore.forking_time, "forking_time")?,
            restore_time_us: at.need(restore.restore_time, "restore_time")?,
            pages_compared: at.need(restore.pages_compared, "pages_compared")?,
            pages_skipped_cow: at.need(restore.pages_skipped_cow, "pages_skipped_cow")?,
            pages_restored: restore.pages_restored,
        })
    }
}
