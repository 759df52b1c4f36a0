//! What `cryoctl diff` compares beyond checkpointctl: memory by area and page, mounts, what
//! processes may do, the root file system.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZero;

use clap::Args;
use cryo_checkpoint::memory::diff::{self, AreaDiff, Fate, Pages};
use cryo_checkpoint::source::Source;
use cryo_checkpoint::{memory, rootfs, source};
use cryo_criu_image::Kind;
use cryo_criu_image::mounts::Mount;
use cryo_criu_image::security::Security;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::progress::ProgressArgs;
use crate::table::Table;
use crate::text::printable;

/// Most threads that pages are hashed on: each has a buffer, and more wait for the disk.
const MAX_THREADS: usize = 16;

/// What to compare.
#[derive(Debug, Args)]
pub(super) struct Detail {
    /// Compare the memory of processes, area by area and page by page.
    #[arg(long)]
    memory: bool,

    /// Compare users, groups, capabilities and the like of processes.
    #[arg(long)]
    credentials: bool,

    /// Compare mounts.
    #[arg(long)]
    mounts: bool,

    /// Compare what was changed in the root file system.
    #[arg(long)]
    rootfs: bool,

    #[command(flatten)]
    progress: ProgressArgs,
}

/// What was found: text for people, and members of the JSON object.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) text: String,
    pub(super) json: serde_json::Map<String, Value>,
}

/// Before and after of something with a name; `None` where it was not there.
type Change = (String, Option<String>, Option<String>);

impl Detail {
    /// Compares what was asked for. `ranges`: tell where memory changed, which the text does not.
    pub(super) fn compare(
        &self,
        before: &Source,
        after: &Source,
        show_unchanged: bool,
        ranges: bool,
    ) -> Result<Report, Failure> {
        let mut report = Report::default();
        if self.memory {
            let processes = self.memory(before, after, ranges)?;
            memory_report(&processes, show_unchanged, &mut report);
        }
        if self.credentials {
            let changes = changes(&credentials(before)?, &credentials(after)?);
            report.add("Credential changes", "credential_changes", &changes);
        }
        if self.mounts {
            let changes = changes(&mounts(before)?, &mounts(after)?);
            report.add("Mount changes", "mount_changes", &changes);
        }
        if self.rootfs {
            let changes = changes(&files(before)?, &files(after)?);
            report.add("Root file system changes", "rootfs_changes", &changes);
        }
        Ok(report)
    }

    fn memory(
        &self,
        before: &Source,
        after: &Source,
        ranges: bool,
    ) -> Result<Vec<ProcessDiff>, Failure> {
        let old = memory::processes(before)?;
        let new = memory::processes(after)?;
        let both = || {
            new.iter()
                .filter(|(process, _)| old.iter().any(|(was, _)| was.pid == process.pid))
        };
        let mut total = 0;
        for (process, _) in both() {
            for checkpoint in [before, after] {
                total += memory::Memory::open(checkpoint, process.pid)?.1.bytes();
            }
        }
        let progress = self.progress.start("comparing", total);
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let options = diff::Options {
            ranges,
            threads: threads.min(MAX_THREADS),
            pages_at_once: diff::PAGES_AT_ONCE,
        };
        both()
            .map(|(process, core)| {
                let was = diff::Image::open(before, process.pid)?;
                let is = diff::Image::open(after, process.pid)?;
                let done = |bytes| progress.add(bytes);
                Ok(ProcessDiff {
                    pid: process.pid,
                    name: core.comm_lossy().into_owned(),
                    areas: diff::compare(&was, &is, options, done)?,
                })
            })
            .collect()
    }
}

/// The memory of a process that is in both.
struct ProcessDiff {
    pid: u32,
    name: String,
    areas: Vec<AreaDiff>,
}

fn range(range: cryo_criu_image::mm::Range) -> String {
    format!("{:012x}-{:012x}", range.start, range.end)
}

fn fate(area: &AreaDiff) -> &'static str {
    match (area.fate, area.pages.is_same()) {
        (Fate::Added, _) => "+",
        (Fate::Removed, _) => "-",
        (Fate::Altered, _) => "~",
        (Fate::Kept, true) => "=",
        (Fate::Kept, false) => "~",
    }
}

fn memory_report(processes: &[ProcessDiff], show_unchanged: bool, report: &mut Report) {
    let mut json = Vec::new();
    // Writing to a string does not fail.
    for process in processes {
        let mut total = Pages::default();
        let mut rows = Vec::new();
        let mut areas = Vec::new();
        for area in &process.areas {
            total = total.plus(area.pages);
            let mark = fate(area);
            if mark == "=" && !show_unchanged {
                continue;
            }
            rows.push(row(
                mark,
                &range(area.range),
                &area.permissions,
                &area.name,
                area.pages,
            ));
            areas.push(json!({
                "start": format!("{:#x}", area.range.start),
                "end": format!("{:#x}", area.range.end),
                "before": area.before.map(range),
                "permissions": area.permissions,
                "name": area.name,
                "change": area.fate,
                "pages": area.pages,
                "touched": area.touched.iter().copied().map(range).collect::<Vec<_>>(),
            }));
        }
        rows.push(row("", "all areas", "", "", total));
        let mut table = Table::new(&[
            " ", "Area", "Perm", "What", "Changed", "Added", "Zero", "Removed", "Same",
        ]);
        for row in &rows {
            table.fit(row.iter().map(String::as_str));
        }
        let _ = writeln!(
            report.text,
            "\nMemory of [{}] {}, in pages\n\n{}{}",
            process.pid,
            printable(&process.name),
            table.head(),
            rows.iter()
                .map(|row| table.row(row.iter().map(String::as_str)))
                .collect::<String>()
                .trim_end(),
        );
        json.push(json!({
            "pid": process.pid,
            "name": process.name,
            "pages": total,
            "areas": areas,
        }));
    }
    report.json.insert("memory_areas".to_owned(), json.into());
}

fn row(mark: &str, area: &str, permissions: &str, name: &str, pages: Pages) -> [String; 9] {
    [
        mark.to_owned(),
        area.to_owned(),
        permissions.to_owned(),
        printable(name).into_owned(),
        pages.changed.to_string(),
        pages.added.to_string(),
        pages.zero.to_string(),
        pages.removed.to_string(),
        pages.same.to_string(),
    ]
}

impl Report {
    fn add(&mut self, title: &str, key: &str, changes: &[Change]) {
        let _ = writeln!(self.text, "\n{title}\n");
        if changes.is_empty() {
            self.text.push_str("none\n");
        }
        let mut json = Vec::new();
        for (name, before, after) in changes {
            let line = match (before, after) {
                (None, Some(after)) => format!("+ {name}  {after}"),
                (Some(before), None) => format!("- {name}  {before}"),
                (before, after) => format!(
                    "~ {name}  {} -> {}",
                    before.as_deref().unwrap_or_default(),
                    after.as_deref().unwrap_or_default()
                ),
            };
            let _ = writeln!(self.text, "{}", printable(&line));
            json.push(json!({ "name": name, "before": before, "after": after }));
        }
        self.json.insert(key.to_owned(), json.into());
    }
}

/// What differs, in order of names.
fn changes(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<Change> {
    let mut names: Vec<_> = before.keys().chain(after.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .map(|name| {
            (
                name.clone(),
                before.get(name).cloned(),
                after.get(name).cloned(),
            )
        })
        .filter(|(_, before, after)| before != after)
        .collect()
}

/// One line for each right of each thread.
fn credentials(checkpoint: &Source) -> Result<BTreeMap<String, String>, Failure> {
    let mut all = BTreeMap::new();
    for (process, _) in memory::processes(checkpoint)? {
        for tid in std::iter::once(process.pid).chain(process.threads) {
            let name = checkpoint.image_name(Kind::Core, tid.into());
            let Some(security) = checkpoint.view::<Security>(&name)? else {
                return Err(source::Error::Missing { name }.into());
            };
            let mut add = |what: &str, value: String| {
                all.insert(format!("[{tid}] {what}"), value);
            };
            add(
                "seccomp mode",
                format!("{}", security.seccomp_mode.unwrap_or_default()),
            );
            let Some(credentials) = security.credentials else {
                continue;
            };
            add("users", format!("{:?}", credentials.users));
            add("groups", format!("{:?}", credentials.groups));
            add("more groups", format!("{:?}", credentials.more_groups));
            for (what, set) in [
                ("inheritable capabilities", credentials.inheritable),
                ("permitted capabilities", credentials.permitted),
                ("effective capabilities", credentials.effective),
                ("bounding capabilities", credentials.bounding),
                ("ambient capabilities", credentials.ambient),
            ] {
                add(what, format!("{set:016x}"));
            }
            add("securebits", format!("{:#x}", credentials.securebits));
            add("no_new_privs", credentials.no_new_privileges.to_string());
            if let Some(profile) = credentials.lsm_profile {
                add(
                    "security module",
                    String::from_utf8_lossy(&profile).into_owned(),
                );
            }
        }
    }
    Ok(all)
}

/// What is mounted where; of several mounts on one place, all.
fn mounts(checkpoint: &Source) -> Result<BTreeMap<String, String>, Failure> {
    let mut all = BTreeMap::<String, String>::new();
    let names: Vec<String> = checkpoint
        .images()
        .filter(|(name, _)| matches!(Kind::of_file_name(name), Some((Kind::Mountpoints, _))))
        .map(|(_, entry)| entry.name.clone())
        .collect();
    for name in names {
        let Some(mounts) = checkpoint.views::<Mount>(&name)? else {
            continue;
        };
        for mount in mounts {
            let mount = mount.map_err(|error| source::damaged(&name, error))?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let line = format!(
                "{} {} of {} flags {:#x} {}",
                mount.fs_type().map_or("?".to_owned(), text),
                text(&mount.root),
                text(&mount.source),
                mount.flags,
                text(&mount.options),
            );
            // CRIU leaves the slash in front out.
            let place = format!(
                "/{}",
                text(&mount.mountpoint).trim_start_matches(['.', '/'])
            );
            let lines = all.entry(place).or_default();
            if !lines.is_empty() {
                lines.push_str("; ");
            }
            lines.push_str(line.trim_end());
        }
    }
    Ok(all)
}

fn files(checkpoint: &Source) -> Result<BTreeMap<String, String>, Failure> {
    let items = rootfs::list(checkpoint)
        .map_err(anyhow::Error::from)?
        .unwrap_or_default();
    Ok(items
        .into_iter()
        .map(|(path, item)| {
            let mut line = match item.kind {
                "deleted" => "deleted".to_owned(),
                kind => format!("{kind} {:04o} {}:{}", item.mode, item.uid, item.gid),
            };
            if let Some(target) = item.target {
                let _ = write!(line, " -> {target}");
            }
            if let Some(sha256) = item.sha256 {
                let _ = write!(line, " {} bytes sha256:{sha256}", item.size_bytes);
            }
            (format!("/{path}"), line)
        })
        .collect())
}
