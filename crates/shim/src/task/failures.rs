//! Keeps failed checkpoints and restores where they outlive the bundle. The form of what is
//! kept, and its bounds, are [`cryo_checkpoint::failures`]'s.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) use cryo_checkpoint::failures::DIR;
use cryo_checkpoint::failures::{KEEP, LOG, MAX_LOG_BYTES, RECORD, Record};
use cryo_criu::{Cause, Diagnosis};

use super::context::Context;
use super::pause::Why;
use crate::log::Rfc3339;

/// Longer errors are cut, so that no record is longer than its readers accept.
const MAX_ERROR_BYTES: usize = 8 * 1024;

/// What there is to know about a failure, now.
pub(super) fn record(
    operation: &str,
    namespace: &str,
    container: &str,
    diagnosis: Option<&Diagnosis>,
    error: &str,
) -> Record {
    let error = one_line(error);
    let known = diagnosis.filter(|d| d.cause != Cause::Unknown);
    Record {
        time: Rfc3339(SystemTime::now()).to_string(),
        operation: operation.to_owned(),
        namespace: namespace.to_owned(),
        container: container.to_owned(),
        cause: known.map_or(error.clone(), |d| d.cause.what().to_owned()),
        remedy: known.map(|d| d.cause.remedy().to_owned()),
        error,
        lines: diagnosis.map(|d| d.lines.clone()).unwrap_or_default(),
    }
}

/// Keeps that a container stayed paused after a checkpoint, until the shim resumed it.
pub(super) fn keep_late_client(context: &Context, limit: Duration) {
    let cause = Why::Limit(limit).to_string();
    let record = Record {
        remedy: Some("if the client died, nothing: the container runs again; if it is only slow, allow it more with resume-within under [checkpoint] in /etc/cryo/config.toml, and make the checkpoint again, as its copy of the container's files may not fit it".to_owned()),
        ..record("resume", &context.shared.namespace, context.id(), None, &cause)
    };
    keep(Path::new(DIR), &record, None);
}

fn one_line(error: &str) -> String {
    let mut line = String::new();
    for c in error.chars() {
        if line.len() + c.len_utf8() > MAX_ERROR_BYTES {
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
    line
}

/// Keeps `record` and the end of `log`. Answers where the latter is, unless there is none or
/// it cannot be kept: then the failure at hand is still the one to report.
pub(super) fn keep(dir: &Path, record: &Record, log: Option<&Path>) -> Option<PathBuf> {
    fs::create_dir_all(dir).ok()?;
    let stamp = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()?
        .as_millis();
    let stem = format!(
        "{stamp}-{}-{}-{}",
        record.operation, record.namespace, record.container
    );
    let write = |extension: &str, bytes: &[u8]| {
        let path = dir.join(format!("{stem}.{extension}"));
        let partial = dir.join(format!("{stem}.partial"));
        fs::write(&partial, bytes)
            .and_then(|()| fs::rename(&partial, &path))
            .inspect_err(|error| {
                tracing::warn!(%error, path = %path.display(), "a failure is not kept");
                let _ = fs::remove_file(&partial);
            })
            .ok()
            .map(|()| path)
    };
    let log = log.and_then(tail).and_then(|text| write(LOG, &text));
    if let Ok(json) = serde_json::to_vec_pretty(record) {
        write(RECORD, &json);
    }
    prune(dir);
    log
}

fn tail(log: &Path) -> Option<Vec<u8>> {
    let mut file = fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG_BYTES)))
        .ok()?;
    let mut text = Vec::new();
    file.take(MAX_LOG_BYTES).read_to_end(&mut text).ok()?;
    Some(text)
}

/// Removes all but the last. Names begin with the time, all of one length for the next 260
/// years.
fn prune(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let mut files: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    files.sort();
    let stems = files.chunk_by(|a, b| a.with_extension("") == b.with_extension(""));
    let stems: Vec<_> = stems.collect();
    for old in stems.iter().take(stems.len().saturating_sub(KEEP)) {
        for file in *old {
            let _ = fs::remove_file(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryo_checkpoint::failures::{self, MAX_RECORD_BYTES};
    use cryo_criu::log::diagnose;

    #[test]
    fn failures_are_kept_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dump.log");
        let kept = dir.path().join("failures");
        // The longest there can be, and every byte of it escaped in JSON.
        let lines = format!("Error (criu/x.c:1): {}\n", "\"".repeat(1000)).repeat(100);
        let diagnosis = diagnose(&lines);
        let error = "\"\u{1}".repeat(100_000);
        let record = record("dump", "ns", "id", Some(&diagnosis), &error);
        assert_eq!(keep(&kept, &record, Some(&log)), None);
        fs::write(&log, vec![b'x'; 2 * 1024 * 1024]).unwrap();
        fs::write(kept.join("1-dump-ns-old.log"), "of an older version").unwrap();
        for i in 0..KEEP + 5 {
            let record = Record {
                container: format!("id{i}"),
                ..record.clone()
            };
            let path = keep(&kept, &record, Some(&log)).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len(), MAX_LOG_BYTES);
            let json = fs::metadata(path.with_extension(RECORD)).unwrap().len();
            assert!(json <= MAX_RECORD_BYTES, "{json}");
        }
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 2 * KEEP);
        let found = failures::list(&kept).unwrap();
        assert_eq!(found.len(), KEEP);
        let newest = found[0].record.as_ref().unwrap();
        assert_eq!(newest.container, format!("id{}", KEEP + 4));
    }

    #[test]
    fn a_record_names_the_cause_or_else_the_error() {
        let known = diagnose("Error (criu/x.c:1): Some file locks are hold by dumping tasks!");
        let of = |diagnosis| record("dump", "ns", "id", diagnosis, "the error");
        assert_eq!(of(Some(&known)).cause, Cause::FileLocks.what());
        assert_eq!(
            of(Some(&known)).remedy.as_deref(),
            Some(Cause::FileLocks.remedy())
        );
        let unknown = diagnose("Error (criu/x.c:1): something quite new");
        assert_eq!(of(Some(&unknown)).cause, "the error");
        assert_eq!(of(Some(&unknown)).lines, ["something quite new"]);
        assert_eq!(of(None).remedy, None);
    }
}
