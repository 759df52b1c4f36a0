//! The images before: what memory had not changed since stands there.
//!
//! ```text
//! STORE/.../third/parent -> ../second      pages that changed after the second
//! STORE/.../second/parent -> ../first
//! STORE/.../first                          a pre-dump, or a whole checkpoint
//! ```
//!
//! CRIU writes the link as it was told and follows it wherever it leads, which in a checkpoint
//! from elsewhere may be the memory of somebody else. So a chain is followed only within a
//! directory that the node's owner names, and only from one directory to another beside it.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, fstat, openat};

use super::{Error, check_names, flat_error, memory};
use crate::flat::{self, FlatDir};
use crate::layout;

/// The longest chain; each link costs a descriptor and a look at each page that did not change.
const MAX_PARENTS: usize = 64;

/// Images that others inherit from.
#[derive(Debug)]
pub(super) struct Parent {
    name: String,
    pub(super) files: FlatDir,
}

impl Parent {
    /// An error of this directory, as one of the whole.
    pub(super) fn error(&self, source: Error) -> Error {
        Error::Parent {
            name: self.name.clone(),
            source: Box::new(source),
        }
    }
}

/// Checks the memory of these images and of all that they inherit from; answers the latter, the
/// nearest first. Parents have to be beneath `store`; without one there may be none.
///
/// # Errors
///
/// Those of a directory that is not safe to open or not complete, within [`Error::Parent`] if it
/// is one of the parents.
pub(super) fn check(files: &FlatDir, store: Option<&Path>) -> Result<Vec<Parent>, Error> {
    let chain = match (files.has_link(), store) {
        (false, _) => Vec::new(),
        (true, None) => return Err(foreign("a symbolic link")),
        (true, Some(store)) => follow(files, store)?,
    };
    memory::check(files, chain.first().map(|p| &p.files))?;
    for (n, parent) in chain.iter().enumerate() {
        let next = chain.get(n + 1).map(|p| &p.files);
        memory::check(&parent.files, next).map_err(|e| parent.error(e))?;
    }
    Ok(chain)
}

fn follow(files: &FlatDir, store: &Path) -> Result<Vec<Parent>, Error> {
    let folder = folder_of(files, store)?;
    let mut seen = BTreeSet::from([identity(files.fd())?]);
    let mut chain: Vec<Parent> = Vec::new();
    loop {
        let last = chain.last().map_or(files, |p| &p.files);
        if !last.has_link() {
            return Ok(chain);
        }
        if chain.len() == MAX_PARENTS {
            return Err(Error::TooManyParents { limit: MAX_PARENTS });
        }
        let name = name_of_parent(last)?;
        let files = open(&folder, &name)?;
        let back = !seen.insert(identity(files.fd())?);
        let parent = Parent { name, files };
        if back {
            return Err(parent.error(foreign("a link back to where the chain has been")));
        }
        check_names(&parent.files).map_err(|e| parent.error(e))?;
        chain.push(parent);
    }
}

/// The directory that holds the images' own, and their parents.
fn folder_of(files: &FlatDir, store: &Path) -> Result<OwnedFd, Error> {
    let unreadable = |name: &Path| {
        let name = name.display().to_string();
        move |source| Error::Unreadable { name, source }
    };
    let store = fs::canonicalize(store).map_err(unreadable(store))?;
    let link = format!("/proc/self/fd/{}", files.fd().as_raw_fd());
    let path = fs::read_link(&link).map_err(unreadable(Path::new(&link)))?;
    if path == store || !path.starts_with(&store) {
        return Err(foreign(
            "a link, and the directory is not in that which `parents` names",
        ));
    }
    let folder = openat(files.fd(), "..", DIRECTORY, Mode::empty())
        .map_err(|e| unreadable(Path::new(".."))(e.into()))?;
    let stat = fstat(&folder).map_err(|e| unreadable(Path::new(".."))(e.into()))?;
    if flat::is_exposed(&stat) {
        return Err(Error::Exposed {
            name: "the directory that holds it and its parents".to_owned(),
        });
    }
    Ok(folder)
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn open(folder: &OwnedFd, name: &str) -> Result<FlatDir, Error> {
    let opened = openat(folder, name, DIRECTORY, Mode::empty()).map_err(flat::Error::from);
    opened
        .and_then(FlatDir::of_images)
        .map_err(|error| flat_error(&format!("../{name}"), error))
}

/// The `NAME` of `../NAME`.
fn name_of_parent(files: &FlatDir) -> Result<String, Error> {
    let target = files
        .link_target()
        .map_err(|e| flat_error(layout::PARENT, e))?;
    let mut parts = Path::new(&target).components();
    match (parts.next(), parts.next(), parts.next()) {
        (Some(Component::ParentDir), Some(Component::Normal(name)), None) => {
            Ok(name.to_string_lossy().into_owned())
        }
        _ => Err(foreign(
            "a link that does not lead to a directory beside it (../NAME)",
        )),
    }
}

fn identity(fd: BorrowedFd<'_>) -> Result<(u64, u64), Error> {
    let stat = fstat(fd).map_err(|e| flat_error("the directory", e.into()))?;
    Ok((stat.st_dev, stat.st_ino))
}

fn foreign(what: &'static str) -> Error {
    Error::Foreign {
        name: layout::PARENT.to_owned(),
        what,
    }
}
