//! Whether all of a checkpoint is there and decodes; and what it needs, on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use cryo_checkpoint::source::{Entry, Error, Form, Source};
use cryo_checkpoint::{image_dir, layout};
use cryo_criu_image::files::{Descriptor, OpenFile};
use cryo_criu_image::inventory::{Inventory, Lsm, TaskIds};
use cryo_criu_image::mm::MemoryMap;
use cryo_criu_image::mounts::Mount;
use cryo_criu_image::msg::ThreadEntry;
use cryo_criu_image::pagemap::PagemapTotals;
use cryo_criu_image::pstree::{Process, ProcessTree};
use cryo_criu_image::task::{Arch, Core, TaskState};
use cryo_criu_image::{Body, Kind, RawReader, View};
use prost::Message as _;

use super::foreign::Foreign;
use crate::finding::Finding;
use crate::progress::Progress;

/// At most so many of one kind are told.
const MAX_ALIKE: usize = 5;

const MAKE_ANEW: &str = "make the checkpoint again, or copy it anew from where it was made";

/// What the checkpoint needs of a node.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// By CRIU's words.
    pub(super) architecture: Option<&'static str>,
    pub(super) lsm: Option<&'static str>,
    /// Parts of the processor's state that were in use: bits of XCR0.
    pub(super) xstate: u64,
    /// Types of the file systems that are made anew.
    pub(super) filesystems: BTreeSet<String>,
    /// Where something of the outside has to be mounted.
    pub(super) external_mounts: BTreeSet<String>,
    pub(super) user_namespace: bool,
    pub(super) time_namespace: bool,
    pub(super) tcp_connections: usize,
    pub(super) foreign: Foreign,
}

/// Looks at all of it; of images of an unknown version, at that alone.
pub(super) fn look(source: &Source, progress: &Progress, all: &mut Vec<Finding>) -> Facts {
    let mut facts = Facts::default();
    if let Err(error @ Error::Version(_)) = source.check_version() {
        let remedy = "update cryo, and criu to the release that made it";
        all.push(Finding::error("version", error.to_string(), remedy));
        return facts;
    }
    let mut problems = Problems::default();
    let pages = problems.keep("integrity", decode(source, progress, &mut facts));
    let damaged = problems.count();
    if let Some(pages) = pages {
        pages.compare(source, &mut problems);
    }
    for (image, entry) in source.images() {
        if !image_dir::is_known(image) {
            facts.foreign.files.add(&entry.name);
        }
    }
    let done = tree(source, &mut facts, &mut problems);
    let done = problems.keep("completeness", done);
    let parts = parts(source, &mut problems);
    problems.keep("completeness", parts);
    if damaged == 0 && done.is_some() && problems.count() == 0 {
        let count = source.images().count();
        all.push(Finding::ok(
            "integrity",
            format!("{count} images decode, and none that they speak of is missing"),
        ));
    }
    all.append(&mut problems.found);
    facts
}

/// What is wrong, bounded: a damaged checkpoint can be wrong in a million places.
#[derive(Debug, Default)]
struct Problems {
    found: Vec<Finding>,
    by_name: BTreeMap<&'static str, usize>,
}

impl Problems {
    fn tell(&mut self, name: &'static str, text: String) {
        let count = self.by_name.entry(name).or_default();
        *count += 1;
        if *count <= MAX_ALIKE {
            self.found.push(Finding::error(name, text, MAKE_ANEW));
        } else if *count == MAX_ALIKE + 1 {
            self.found
                .push(Finding::error(name, "and there is more of it", MAKE_ANEW));
        }
    }

    fn keep<T>(&mut self, name: &'static str, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.tell(name, format!("{:#}", anyhow::Error::from(error)));
                None
            }
        }
    }

    fn count(&self) -> usize {
        self.by_name.values().sum()
    }
}

/// How many pages the pagemaps speak of, by the number of the file that has them.
#[derive(Debug, Default)]
struct Pages {
    present: BTreeMap<u32, u64>,
    parents: u64,
    lazy: u64,
    /// The size of one on the machine; that of most where no memory map says it.
    page_bytes: Option<u64>,
    newer: bool,
}

impl Pages {
    fn compare(&self, source: &Source, problems: &mut Problems) {
        if self.parents > 0 {
            problems.tell(
                "completeness",
                format!(
                    "{} pages are in the checkpoint before it: it is incremental",
                    self.parents
                ),
            );
        }
        if self.lazy > 0 {
            problems.tell(
                "completeness",
                format!("{} pages are with a page server, not here", self.lazy),
            );
        }
        let page_bytes = self.page_bytes.unwrap_or(4096);
        for (&id, &pages) in &self.present {
            let name = source.image_name(Kind::Pages, id.into());
            let wanted = pages.saturating_mul(page_bytes);
            match source.file(&name) {
                // Of compressed pages the pagemap does not tell it to us.
                Some(_) if self.newer => {}
                Some(file) if file.size_bytes == wanted => {}
                Some(file) => problems.tell(
                    "integrity",
                    format!(
                        "{name} has {} bytes, and the pagemaps speak of {wanted}",
                        file.size_bytes
                    ),
                ),
                None if pages > 0 => problems.tell("completeness", format!("{name} is missing")),
                None => {}
            }
        }
    }
}

/// Reads each image to its end.
fn decode(source: &Source, progress: &Progress, facts: &mut Facts) -> Result<Pages, Error> {
    let mut pages = Pages::default();
    let kind_of = |entry: &Entry| {
        let image = source.image_of(&entry.name)?;
        Kind::of_file_name(image).map(|(kind, _)| kind)
    };
    let wanted = |entry: &Entry| !entry.directory && kind_of(entry).is_some();
    source.visit(wanted, |entry, reader| {
        let Some(kind) = kind_of(entry) else {
            return Ok(());
        };
        let name = entry.name.as_str();
        let damaged = |e| cryo_checkpoint::source::damaged(name, e);
        match kind {
            Kind::Pagemap | Kind::PagemapShmem => {
                let totals = PagemapTotals::read(name, reader).map_err(damaged)?;
                let present = pages.present.entry(totals.pages_id).or_default();
                *present = present.saturating_add(totals.present);
                pages.parents = pages.parents.saturating_add(totals.parent);
                pages.lazy = pages.lazy.saturating_add(totals.absent_lazy);
                pages.newer |= totals.newer;
                if totals.newer {
                    facts.foreign.pagemaps.add(name);
                }
            }
            Kind::Mm => {
                for map in messages::<MemoryMap>(name, reader)? {
                    pages.page_bytes = Some(map.page_bytes());
                }
            }
            Kind::Core => {
                let mut raw = RawReader::new(name, kind, reader).map_err(damaged)?;
                while let Some(message) = raw.next_entry().map_err(damaged)? {
                    facts.xstate |= xstate(message.bytes);
                }
            }
            Kind::Mountpoints => {
                for mount in messages::<Mount>(name, reader)? {
                    facts.mount(&mount);
                }
            }
            Kind::TcpStream => {
                facts.tcp_connections += 1;
                drain(name, reader)?;
            }
            _ if kind.body() == Body::Messages => {
                let mut raw = RawReader::new(name, kind, reader).map_err(damaged)?;
                while raw.next_entry().map_err(damaged)?.is_some() {}
            }
            _ => drain(name, reader)?,
        }
        progress.add(entry.size_bytes);
        Ok::<(), Error>(())
    })?;
    Ok(pages)
}

fn messages<V: View>(name: &str, reader: impl Read) -> Result<Vec<V>, Error> {
    let all = cryo_criu_image::Reader::<V, _>::new(name, reader).and_then(Iterator::collect);
    all.map_err(|e| cryo_checkpoint::source::damaged(name, e))
}

/// What is no message is read all the same: its end may be missing.
fn drain(name: &str, reader: &mut dyn Read) -> Result<(), Error> {
    io::copy(reader, &mut io::sink())
        .map(drop)
        .map_err(|source| Error::Unreadable {
            name: name.to_owned(),
            source,
        })
}

/// What of the processor's state a thread had in use; nothing for other machines than x86.
fn xstate(message: &[u8]) -> u64 {
    let thread = ThreadEntry::decode(message).ok();
    let registers = thread.and_then(|thread| thread.thread_info?.fpregs);
    let xsave = registers.and_then(|registers| registers.xsave);
    xsave.and_then(|xsave| xsave.xstate_bv).unwrap_or_default()
}

impl Facts {
    fn mount(&mut self, mount: &Mount) {
        let at = String::from_utf8_lossy(&mount.mountpoint).into_owned();
        // CRIU writes paths of the namespace with a dot before them.
        let at = at.strip_prefix('.').unwrap_or(&at).to_owned();
        match (&mount.ext_key, mount.fs_type()) {
            (Some(_), _) if at != "/" => {
                self.external_mounts.insert(at);
            }
            (None, Some(kind)) if at != "/" => {
                self.filesystems
                    .insert(String::from_utf8_lossy(kind).into_owned());
            }
            _ => {}
        }
    }
}

/// From the processes to what they refer to.
fn tree(source: &Source, facts: &mut Facts, problems: &mut Problems) -> Result<(), Error> {
    let name = source.image_name(Kind::Inventory, 0);
    let inventory: Inventory = source.view(&name)?.ok_or(Error::Missing { name })?;
    facts.lsm = match inventory.lsm {
        Lsm::Apparmor => Some("apparmor"),
        Lsm::Selinux => Some("selinux"),
        Lsm::Unknown(number) => {
            facts.foreign.lsm = Some(number);
            None
        }
        _ => None,
    };
    let root_time = inventory.root_ids.and_then(|ids| ids.time_ns);
    let name = source.image_name(Kind::Pstree, 0);
    let tree = ProcessTree::read(&name, source.reader(&name)?)
        .map_err(|e| cryo_checkpoint::source::damaged(&name, e))?;
    let files = open_files(source)?;
    for process in tree.processes() {
        one(source, process, files.as_ref(), root_time, facts, problems)?;
    }
    Ok(())
}

/// The numbers of all open files; none in images of old CRIUs, which have a file for each kind.
fn open_files(source: &Source) -> Result<Option<BTreeSet<u32>>, Error> {
    let name = source.image_name(Kind::Files, 0);
    let Some(all) = source.views::<OpenFile>(&name)? else {
        return Ok(None);
    };
    let ids = all
        .map(|file| file.map(|file| file.id))
        .collect::<Result<_, _>>();
    ids.map(Some)
        .map_err(|e| cryo_checkpoint::source::damaged(&name, e))
}

fn one(
    source: &Source,
    process: &Process,
    files: Option<&BTreeSet<u32>>,
    root_time: Option<u32>,
    facts: &mut Facts,
    problems: &mut Problems,
) -> Result<(), Error> {
    let pid = process.pid;
    let mut need = |kind: Kind, number: u32| {
        let name = source.image_name(kind, number.into());
        let there = source.file(&name).is_some();
        if !there {
            problems.tell(
                "completeness",
                format!("{name} is missing, of the process {pid}"),
            );
        }
        there
    };
    for thread in &process.threads {
        need(Kind::Core, *thread);
    }
    if !need(Kind::Core, pid) {
        return Ok(());
    }
    let Some(core) = source.view::<Core>(&source.image_name(Kind::Core, pid.into()))? else {
        return Ok(());
    };
    match core.arch {
        Arch::Unknown(number) => facts.foreign.machine = Some(number),
        arch => facts.architecture = Some(arch.as_str()),
    }
    match core.process.as_ref().map(|own| own.state) {
        Some(TaskState::Dead | TaskState::Zombie) => return Ok(()),
        Some(TaskState::Unknown(state)) => {
            let text = format!("state {state} of the process {pid}");
            facts.foreign.states.add(text);
        }
        _ => {}
    }
    need(Kind::Mm, pid);
    need(Kind::Pagemap, pid);
    let ids = match core.ids {
        Some(ids) => Some(ids),
        None => source.view::<TaskIds>(&source.image_name(Kind::Ids, pid.into()))?,
    };
    let Some(ids) = ids else {
        need(Kind::Ids, pid);
        return Ok(());
    };
    facts.time_namespace |= ids.time_ns.is_some() && ids.time_ns != root_time;
    facts.user_namespace |= ids.user_ns.is_some_and(|ns| {
        let name = source.image_name(Kind::Userns, ns.into());
        source.file(&name).is_some()
    });
    let name = source.image_name(Kind::Fdinfo, ids.files.into());
    if !need(Kind::Fdinfo, ids.files) {
        return Ok(());
    }
    let Some(descriptors) = source.views::<Descriptor>(&name)? else {
        return Ok(());
    };
    for descriptor in descriptors {
        let descriptor = descriptor.map_err(|e| cryo_checkpoint::source::damaged(&name, e))?;
        if files.is_some_and(|files| !files.contains(&descriptor.file_id)) {
            problems.tell(
                "completeness",
                format!(
                    "the process {pid} has descriptor {}, of a file {} that files.img lacks",
                    descriptor.fd, descriptor.file_id
                ),
            );
        }
    }
    Ok(())
}

/// What an engine needs beside criu's images.
fn parts(source: &Source, problems: &mut Problems) -> Result<(), Error> {
    if matches!(source.form(), Form::ImageDirectory | Form::ImageArchive) {
        return Ok(());
    }
    for name in [layout::CONFIG_DUMP, layout::SPEC_DUMP] {
        if source.json::<serde_json::Value>(name)?.is_none() {
            problems.tell("completeness", format!("{name} is missing"));
        }
    }
    Ok(())
}
