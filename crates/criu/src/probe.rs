//! What a criu program is: version and features, asked once per program.

use std::collections::HashMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{CriuError, Operation};
use crate::proto::{CriuReq, CriuResp, Features, ReqType};
use crate::swrk::{Control, Criu};

/// The oldest CRIU that is used. Older ones cannot dump an already frozen cgroup.
pub const MINIMUM: Version = Version::new(4, 0, 0);

/// Longer than the first run after a boot, which looks at the kernel.
const LIMIT: Duration = Duration::from_secs(30);

/// A version of CRIU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number; 0 where there is none.
    pub sublevel: u32,
}

impl Version {
    /// This version.
    #[must_use]
    pub const fn new(major: u32, minor: u32, sublevel: u32) -> Self {
        Self {
            major,
            minor,
            sublevel,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.sublevel != 0 {
            write!(f, ".{}", self.sublevel)?;
        }
        Ok(())
    }
}

/// What a criu program can do with this kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Probe {
    /// Its version.
    pub version: Version,
    /// Memory changes can be tracked: pre-dumps work.
    pub mem_track: bool,
    /// Memory can be filled after a restore.
    pub lazy_pages: bool,
    /// Processes can be remembered by pidfds between pre-dumps.
    pub pidfd_store: bool,
    /// Images can be compressed (4.3).
    pub mem_compression: bool,
}

impl Probe {
    /// A CRIU of this version that finds nothing in the kernel.
    #[must_use]
    pub const fn new(version: Version) -> Self {
        Self {
            version,
            mem_track: false,
            lazy_pages: false,
            pidfd_store: false,
            mem_compression: false,
        }
    }
}

/// A program as it lies on the disk; another one at the same path is another key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    mtime_s: i64,
    mtime_ns: i64,
}

static KNOWN: LazyLock<Mutex<HashMap<Key, Probe>>> = LazyLock::new(Mutex::default);

impl Criu {
    /// Asks for version and features, or remembers what this program answered before.
    ///
    /// # Errors
    ///
    /// [`CriuError::NotFound`], [`CriuError::TooOld`], or what became of the worker. Failures
    /// are not remembered.
    pub fn probe(&self) -> Result<Probe, CriuError> {
        let key = self.key()?;
        if let Some(probe) = lock().get(&key) {
            return self.accept(*probe);
        }
        let version = CriuReq {
            keep_open: Some(true),
            ..CriuReq::of(ReqType::Version)
        };
        let all = Features {
            mem_track: Some(true),
            lazy_pages: Some(true),
            pidfd_store: Some(true),
            mem_compression: Some(true),
        };
        let features = CriuReq {
            features: Some(all),
            ..CriuReq::of(ReqType::FeatureCheck)
        };
        let control = Control {
            deadline: Some(Instant::now() + LIMIT),
            ..Control::default()
        };
        let answers = self.ask(&[version, features], &control)?;
        let [version, features] = &answers[..] else {
            return Err(self.bad("an answer too few"));
        };
        let probe = self.read(version, features)?;
        lock().insert(key, probe);
        self.accept(probe)
    }

    fn accept(&self, probe: Probe) -> Result<Probe, CriuError> {
        if probe.version < MINIMUM {
            return Err(CriuError::TooOld {
                path: self.binary().to_owned(),
                found: probe.version,
                minimum: MINIMUM,
            });
        }
        Ok(probe)
    }

    fn read(&self, version: &CriuResp, features: &CriuResp) -> Result<Probe, CriuError> {
        let Some(v) = version.version.as_ref().filter(|_| version.success) else {
            return Err(self.bad("no version"));
        };
        let number = |n: i32| u32::try_from(n).map_err(|_| self.bad("a negative version"));
        let f = features.features.clone().unwrap_or_default();
        Ok(Probe {
            version: Version {
                major: number(v.major_number)?,
                minor: number(v.minor_number)?,
                sublevel: number(v.sublevel.unwrap_or(0))?,
            },
            mem_track: f.mem_track.unwrap_or(false),
            lazy_pages: f.lazy_pages.unwrap_or(false),
            pidfd_store: f.pidfd_store.unwrap_or(false),
            mem_compression: f.mem_compression.unwrap_or(false),
        })
    }

    fn bad(&self, what: &str) -> CriuError {
        CriuError::Protocol {
            operation: Operation::Probe,
            path: self.binary().to_owned(),
            what: what.to_owned(),
        }
    }

    fn key(&self) -> Result<Key, CriuError> {
        let meta = std::fs::metadata(self.binary()).map_err(|_| CriuError::NotFound {
            looked: self.binary().display().to_string(),
        })?;
        Ok(Key {
            path: self.binary().to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            mtime_s: meta.mtime(),
            mtime_ns: meta.mtime_nsec(),
        })
    }
}

fn lock() -> std::sync::MutexGuard<'static, HashMap<Key, Probe>> {
    // A panic elsewhere leaves the map whole.
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_and_print() {
        let v = Version::new;
        assert!(v(3, 19, 0) < MINIMUM && MINIMUM <= v(4, 0, 0) && v(4, 2, 1) < v(4, 10, 0));
        assert_eq!(v(4, 2, 1).to_string(), "4.2.1");
        assert_eq!(v(4, 0, 0).to_string(), "4.0");
    }
}
