//! How long the tests wait for what has to come.

use std::time::{Duration, Instant};

use anyhow::bail;

/// How long a condition may take to come true before that is a failure. A machine that has far more
/// to do than processors to do it with needs seconds for what takes milliseconds elsewhere; nobody
/// waits as long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again until something is found.
///
/// # Errors
/// When nothing is found within [`PATIENCE`], with `what` was waited for; and what `look` fails with.
pub async fn until<T>(
    what: &str,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("waited in vain for {}s: {what}", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
