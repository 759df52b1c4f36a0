//! Logs of failed checkpoints and restores, kept where they outlive the bundle.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the logs are kept.
pub(super) const DIR: &str = "/var/lib/cryo/failures";

/// How many logs are kept; the oldest go first.
const KEEP: usize = 20;

/// Longer logs keep their end, where the cause is.
const MAX_BYTES: u64 = 1024 * 1024;

/// Keeps `log` under a name that says what failed. Answers where, unless it
/// cannot be kept: then the failure at hand is still the one to report.
pub(super) fn keep(
    dir: &Path,
    log: &Path,
    operation: &str,
    namespace: &str,
    id: &str,
) -> Option<PathBuf> {
    let text = tail(log)?;
    fs::create_dir_all(dir).ok()?;
    let stamp = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()?
        .as_millis();
    let path = dir.join(format!("{stamp}-{operation}-{namespace}-{id}.log"));
    let partial = path.with_extension("partial");
    fs::write(&partial, text)
        .and_then(|()| fs::rename(&partial, &path))
        .ok()?;
    prune(dir);
    Some(path)
}

fn tail(log: &Path) -> Option<Vec<u8>> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_BYTES)))
        .ok()?;
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    Some(text)
}

/// Names begin with the time, all of one length for the next 260 years.
fn prune(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let mut logs: Vec<_> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .collect();
    logs.sort();
    for old in logs.iter().take(logs.len().saturating_sub(KEEP)) {
        let _ = fs::remove_file(old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_kept_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dump.log");
        let kept = dir.path().join("failures");
        assert_eq!(keep(&kept, &log, "dump", "ns", "id"), None);
        fs::write(&log, vec![b'x'; 2 * 1024 * 1024]).unwrap();
        for i in 0..KEEP + 5 {
            let path = keep(&kept, &log, "dump", "ns", &format!("id{i}")).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len(), MAX_BYTES);
        }
        assert_eq!(fs::read_dir(&kept).unwrap().count(), KEEP);
    }
}
