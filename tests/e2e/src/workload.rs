//! What the test containers run, and how their output is read.

use anyhow::{Context as _, ensure};

/// busybox.
pub const BUSYBOX: &str = "localhost:5000/busybox:1";
/// busybox and python3.
pub const PYTHON: &str = "localhost:5000/python:1";

/// Counts on stdout, ten times a second, in the shell alone but for the `sleep` children,
/// which come and go.
pub const COUNTER: &str = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done";

/// As [`COUNTER`], and writes each number to `/count` in its root file system.
pub const FILE_COUNTER: &str =
    "i=0; while :; do echo $i; echo $i > /count; i=$((i+1)); sleep 0.1; done";

/// A python process that holds `mib` MiB of memory no page of which is alike, prints
/// `ready`, then counts, and prints a digest of its memory when it gets SIGUSR1.
pub fn heap(mib: usize) -> String {
    format!(
        "import os, signal, sys, time, zlib\n\
         heap = bytearray(os.urandom(1 << 20) * {mib})\n\
         for page in range(0, len(heap), 4096): heap[page:page + 8] = page.to_bytes(8, 'little')\n\
         signal.signal(signal.SIGUSR1, lambda *_: print('digest', zlib.crc32(heap), flush=True))\n\
         print('ready', zlib.crc32(heap), flush=True)\n\
         i = 0\n\
         while True:\n\
         \x20   print(i, flush=True)\n\
         \x20   i += 1\n\
         \x20   time.sleep(0.05)\n"
    )
}

/// The numbers of a counter's output; other lines are left out, and so is a last line
/// that is not complete.
pub fn numbers(output: &str) -> Vec<u64> {
    let complete = output.rfind('\n').map_or("", |end| &output[..end]);
    complete
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect()
}

/// Checks that the numbers follow one another without a gap or a repeat.
///
/// # Errors
/// When they do not, with the first pair that does not.
pub fn consecutive(numbers: &[u64]) -> anyhow::Result<()> {
    for pair in numbers.windows(2) {
        if let [before, after] = pair {
            ensure!(*after == before + 1, "{after} came after {before}");
        }
    }
    Ok(())
}

/// Checks that `after` goes on exactly where `before` ended.
///
/// # Errors
/// When either is empty or has a gap, or `after` starts elsewhere.
pub fn goes_on(before: &[u64], after: &[u64]) -> anyhow::Result<()> {
    let last = before.last().context("nothing was counted before")?;
    let next = after.first().context("nothing was counted after")?;
    ensure!(
        *next == last + 1,
        "counted up to {last} before and went on with {next}"
    );
    consecutive(before)?;
    consecutive(after)
}

/// The text of a CRI log file without its time, stream and tag columns.
pub fn cri_log(log: &str) -> String {
    log.lines()
        .filter_map(|line| line.splitn(4, ' ').nth(3))
        .map(|text| format!("{text}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_leaves_out_an_incomplete_line() {
        assert_eq!(numbers("1\n2\nnoise\n3\n4"), [1, 2, 3]);
        assert_eq!(numbers(""), Vec::<u64>::new());
    }

    #[test]
    fn goes_on_wants_the_next_number() {
        assert!(goes_on(&[1, 2], &[3, 4]).is_ok());
        assert!(goes_on(&[1, 2], &[4]).is_err());
        assert!(goes_on(&[1, 3], &[4]).is_err());
        assert!(goes_on(&[], &[0]).is_err());
    }

    #[test]
    fn cri_log_keeps_the_text() {
        let log = "2026-11-23T10:00:00Z stdout F 1\n2026-11-23T10:00:01Z stderr F two words\n";
        assert_eq!(cri_log(log), "1\ntwo words\n");
    }
}
