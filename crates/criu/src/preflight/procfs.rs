//! Reading a process's folder in this machine's `/proc`.
//!
//! By the id that the process has here, and never below the container's own `/proc`, which it
//! may have mounted over. Only what the kernel answers by itself is read: not `cmdline` and
//! `environ`, which are the process's memory and can be made to wait, and of files no more than
//! is known without asking a remote or FUSE server.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, readlinkat, statx};

use super::file::{Kind, Stat};

/// The most that is read of a small file. Only a descriptor's locks can make one longer.
const MAX_TEXT: u64 = 64 << 10;

/// A folder of `/proc`. It stays that of its process: when that ends, reads fail.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

impl Folder {
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        Self::at(CWD, &format!("/proc/{pid}"))
    }

    /// Of the calling thread.
    pub(super) fn own() -> io::Result<Self> {
        Self::at(CWD, "/proc/thread-self")
    }

    pub(super) fn below(&self, name: &str) -> io::Result<Self> {
        Self::at(self.0.as_fd(), name)
    }

    fn at(from: impl std::os::fd::AsFd, name: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(from, name, flags, Mode::empty())?))
    }

    /// Opens what a link of the kernel's shows, or a file.
    pub(super) fn open(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(openat(&self.0, name, flags, Mode::empty())?)
    }

    pub(super) fn text(&self, name: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        let file = File::from(self.open(name)?);
        file.take(MAX_TEXT).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Hands over each line of a file that may be long, until one is not wanted.
    pub(super) fn lines(&self, name: &str, mut each: impl FnMut(&str) -> bool) -> io::Result<()> {
        let mut reader = BufReader::new(File::from(self.open(name)?));
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            if !each(String::from_utf8_lossy(&line).trim_end_matches('\n')) {
                break;
            }
            line.clear();
        }
        Ok(())
    }

    pub(super) fn link(&self, name: &str) -> io::Result<String> {
        let target = readlinkat(&self.0, name, Vec::new())?;
        Ok(target.to_string_lossy().into_owned())
    }

    /// The entries that are numbers.
    pub(super) fn numbers(&self) -> io::Result<Vec<u32>> {
        let entries = rustix::fs::Dir::read_from(&self.0)?;
        let mut numbers = Vec::new();
        for entry in entries {
            let entry = entry?;
            numbers.extend(
                entry
                    .file_name()
                    .to_str()
                    .ok()
                    .and_then(|n| n.parse::<u32>().ok()),
            );
        }
        Ok(numbers)
    }

    /// What is known of the file that a link of the kernel's shows.
    pub(super) fn stat(&self, name: &str) -> io::Result<Stat> {
        const FOLLOWING_WITHOUT_ASKING: AtFlags = AtFlags::STATX_DONT_SYNC;
        let found = statx(
            &self.0,
            name,
            FOLLOWING_WITHOUT_ASKING,
            StatxFlags::BASIC_STATS,
        )?;
        let kind = match rustix::fs::FileType::from_raw_mode(found.stx_mode.into()) {
            rustix::fs::FileType::RegularFile => Kind::Regular,
            rustix::fs::FileType::CharacterDevice => {
                Kind::Character(found.stx_rdev_major, found.stx_rdev_minor)
            }
            rustix::fs::FileType::BlockDevice => Kind::Block,
            _ => Kind::Other,
        };
        Ok(Stat {
            kind,
            links: found.stx_nlink,
            bytes: found.stx_blocks.saturating_mul(512),
            block_bytes: found.stx_blksize,
        })
    }

    /// The name of the protocol of the socket that a link of the kernel's shows.
    pub(super) fn protocol(&self, name: &str) -> io::Result<String> {
        let path = format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd());
        let mut buffer = [0; 64];
        let len = rustix::fs::getxattr(&path, c"system.sockprotoname", &mut buffer[..])?;
        let name = buffer.get(..len).unwrap_or_default();
        Ok(String::from_utf8_lossy(name)
            .trim_end_matches('\0')
            .to_owned())
    }
}
