//! Logging: one logfmt line per record, one `write(2)` per line, to containerd's fifo.
//!
//! containerd copies what it reads from the bundle's `log` fifo to its own log, so the lines look
//! like its own: `time="…" level=info msg="…" key=value`. The fifo is opened for reading and
//! writing and never blocks: with containerd away or stuck a line is dropped and counted, and the
//! count is logged when there is room again. Lines fit into `PIPE_BUF`, so they never mix.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_log::NormalizeEvent as _;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

/// Longest line: what a pipe takes whole.
const MAX_LINE_BYTES: usize = 4096;

/// The name of the fifo in a bundle.
pub const FIFO: &str = "log";

/// Why there is no logging.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The fifo is missing, or is something else.
    #[error("open log fifo: {0}")]
    Fifo(io::Error),
    /// Somebody initialized logging before.
    #[error("logging is set up already")]
    Twice,
}

/// Opens a log fifo so that neither opening nor writing ever blocks.
///
/// # Errors
///
/// What `open` says; [`io::ErrorKind::InvalidInput`] if it is no fifo.
pub fn open_fifo(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Both directions: a fifo without a reader would refuse to open, and kill by SIGPIPE later.
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    if !file.metadata()?.file_type().is_fifo() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is not a fifo", path.display()),
        ));
    }
    Ok(file)
}

/// Sends all of `tracing` and `log` to the fifo in `bundle` from `level` up, and panics too.
///
/// # Errors
///
/// [`LogError`]; the caller may go on without a log.
pub fn init(bundle: &Path, level: LevelFilter) -> Result<(), LogError> {
    let fifo = open_fifo(&bundle.join(FIFO)).map_err(LogError::Fifo)?;
    let subscriber = tracing_subscriber::registry().with(Logfmt::new(fifo).with_filter(level));
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Twice)?;
    // ttrpc formats whole messages at trace level: keep the bridge shut for them.
    tracing_log::LogTracer::builder()
        .with_max_level(match level {
            LevelFilter::OFF => tracing_log::log::LevelFilter::Off,
            LevelFilter::ERROR => tracing_log::log::LevelFilter::Error,
            LevelFilter::WARN => tracing_log::log::LevelFilter::Warn,
            LevelFilter::INFO => tracing_log::log::LevelFilter::Info,
            LevelFilter::DEBUG => tracing_log::log::LevelFilter::Debug,
            _ => tracing_log::log::LevelFilter::Trace,
        })
        .init()
        .map_err(|_| LogError::Twice)?;
    std::panic::set_hook(Box::new(|info| {
        let text = crate::rpc::panic_text(info.payload());
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(at, "panic: {text}");
    }));
    Ok(())
}

/// The level that `start` passed on, else the one `-debug` asks for.
#[must_use]
pub fn level(debug: bool) -> LevelFilter {
    std::env::var(crate::bootstrap::start::LOG_LEVEL_ENV)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(if debug {
            LevelFilter::DEBUG
        } else {
            LevelFilter::INFO
        })
}

/// A `tracing` layer that writes logfmt lines.
#[derive(Debug)]
pub struct Logfmt<W> {
    out: W,
    dropped: Arc<AtomicU64>,
}

impl<W> Logfmt<W> {
    /// Writes to `out`, each line by one `write` call.
    #[must_use]
    pub fn new(out: W) -> Self {
        Self {
            out,
            dropped: Arc::default(),
        }
    }

    /// Lines lost and not yet reported.
    #[must_use]
    pub fn dropped(&self) -> Arc<AtomicU64> {
        self.dropped.clone()
    }
}

impl<W> Logfmt<W>
where
    for<'a> &'a W: io::Write,
{
    fn write(&self, line: &str) {
        let lost = self.dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let note = format!(
                "time=\"{}\" level=warning msg=\"log lines were dropped\" count={lost}\n",
                Rfc3339(SystemTime::now())
            );
            if !self.write_once(&note) {
                self.dropped.fetch_add(lost + 1, Ordering::Relaxed);
                return;
            }
        }
        if !self.write_once(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write_once(&self, line: &str) -> bool {
        (&self.out)
            .write(line.as_bytes())
            .is_ok_and(|n| n == line.len())
    }
}

/// A span's fields, formatted once.
struct SpanFields(String);

impl<S, W> Layer<S> for Logfmt<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: 'static,
    for<'a> &'a W: io::Write,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(SpanFields(fields.pairs));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id)
            && let Some(SpanFields(pairs)) = span.extensions_mut().get_mut()
        {
            let mut fields = Fields::default();
            values.record(&mut fields);
            pairs.push_str(&fields.pairs);
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let normalized = event.normalized_metadata();
        let meta = normalized.as_ref().unwrap_or_else(|| event.metadata());
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in ctx.event_scope(event).into_iter().flatten() {
            if let Some(SpanFields(pairs)) = span.extensions().get() {
                fields.pairs.push_str(pairs);
            }
        }
        self.write(&line(
            SystemTime::now(),
            *meta.level(),
            &fields.message,
            &fields.pairs,
        ));
    }
}

fn line(at: SystemTime, level: Level, message: &str, pairs: &str) -> String {
    let level = match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    let mut line = format!("time=\"{}\" level={level} msg=", Rfc3339(at));
    push_value(&mut line, message, true);
    line.push_str(pairs);
    if line.len() >= MAX_LINE_BYTES {
        const CUT: &str = "... (cut)\"";
        let mut end = MAX_LINE_BYTES - 1 - CUT.len();
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push_str(CUT);
    }
    line.push('\n');
    line
}

#[derive(Default)]
struct Fields {
    message: String,
    pairs: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            // The bridge's own: where the record came from.
            name if name.starts_with("log.") => {}
            name => {
                self.pairs.push(' ');
                self.pairs.push_str(name);
                self.pairs.push('=');
                push_value(&mut self.pairs, value, false);
            }
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        // Our errors name their cause in the source, not in the text.
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            let next = error.to_string();
            if !text.ends_with(&next) {
                let _ = write!(text, ": {next}");
            }
            cause = error.source();
        }
        self.record_str(field, &text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// Appends a value, quoted as logrus does when it is not a plain word.
fn push_value(out: &mut String, value: &str, always: bool) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !always && !value.is_empty() && value.chars().all(plain) {
        out.push_str(value);
        return;
    }
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Control characters of a container must not reach a terminal.
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A time as RFC 3339 with nanoseconds, in UTC.
pub(crate) struct Rfc3339(pub(crate) SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self
            .0
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
            second / 3600,
            second / 60 % 60,
            second % 60,
            since.subsec_nanos()
        )
    }
}

/// Year, month and day of a count of days since 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years that begin in March put the leap day last; 400 of them have 146097 days.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + carry, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read as _;
    use std::sync::Mutex;

    #[derive(Debug, Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl io::Write for &Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            self.0.lock().unwrap().push(text);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn at(seconds: u64, nanos: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)
    }

    #[test]
    fn dates() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00.000000005Z"),
            (951_782_400, "2000-02-29T00:00:00.000000005Z"),
            (1_795_428_278, "2026-11-23T10:04:38.000000005Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000005Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000005Z"),
        ] {
            assert_eq!(Rfc3339(at(seconds, 5)).to_string(), want);
        }
    }

    #[test]
    fn golden_lines() {
        assert_eq!(
            line(at(0, 0), Level::INFO, "serving \"x\"", " pid=7"),
            "time=\"1970-01-01T00:00:00.000000000Z\" level=info msg=\"serving \\\"x\\\"\" pid=7\n"
        );
        let long = line(at(0, 0), Level::WARN, &"ä".repeat(5000), " a=b");
        assert!(long.len() <= MAX_LINE_BYTES && long.ends_with("... (cut)\"\n"));
    }

    #[test]
    fn spans_errors_and_the_bridge() {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry()
            .with(Logfmt::new(lines.clone()).with_filter(LevelFilter::INFO));
        tracing::subscriber::with_default(subscriber, || {
            let _in =
                tracing::info_span!("task", id = "c1", extra = tracing::field::Empty).entered();
            tracing::Span::current().record("extra", "two words");
            let error = io::Error::from(io::ErrorKind::NotFound);
            tracing::warn!(
                n = 3,
                error = &error as &dyn std::error::Error,
                "went {}",
                "wrong"
            );
            tracing::debug!("not this");
        });
        let lines = lines.0.lock().unwrap().join("");
        assert!(
            lines.ends_with(
                "level=warning msg=\"went wrong\" n=3 error=\"entity not found\" id=c1 extra=\"two words\"\n"
            ),
            "{lines}"
        );
        assert_eq!(lines.lines().count(), 1);
    }

    fn fifo(dir: &Path) -> std::path::PathBuf {
        let path = dir.join(FIFO);
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            &path,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        )
        .unwrap();
        path
    }

    #[test]
    fn a_full_fifo_drops_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        // No reader: neither opening nor writing may block.
        let layer = Logfmt::new(open_fifo(&path).unwrap());
        let dropped = layer.dropped();
        let text = format!("{}\n", "x".repeat(1000));
        for _ in 0..100 {
            layer.write(&text);
        }
        let lost = dropped.load(Ordering::Relaxed);
        assert!(lost > 0, "64 KiB hold no 100 lines");

        let mut reader = open_fifo(&path).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let _ = reader.read(&mut buffer).unwrap();
        layer.write("after\n");
        assert_eq!(dropped.load(Ordering::Relaxed), 0);
        let n = reader.read(&mut buffer).unwrap();
        let got = String::from_utf8_lossy(&buffer[..n]);
        assert!(
            got.ends_with(&format!("count={lost}\nafter\n")),
            "{}",
            &got[got.len().saturating_sub(200)..]
        );
    }

    #[test]
    fn only_a_fifo_will_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FIFO), "").unwrap();
        let error = open_fifo(&dir.path().join(FIFO)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(open_fifo(&dir.path().join("missing")).is_err());
    }

    proptest! {
        #[test]
        fn always_one_line(message in ".*", value in ".*") {
            let mut pairs = " k=".to_owned();
            push_value(&mut pairs, &value, false);
            let line = line(SystemTime::now(), Level::ERROR, &message, &pairs);
            prop_assert!(line.len() <= MAX_LINE_BYTES);
            prop_assert_eq!(line.lines().count(), 1);
            prop_assert!(line.ends_with('\n'));
        }
    }
}
