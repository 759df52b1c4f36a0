//! What checkpoints and restores took, as Podman's `--print-stats` prints it. Times are in
//! microseconds.

use std::time::Duration;

use cryo_criu_image::stats::{DumpStats, RestoreStats};
use serde_json::{Value, json};

/// One container of a checkpoint.
#[derive(Debug)]
pub(crate) struct Checkpointed {
    pub(crate) id: String,
    /// What the runtime took.
    pub(crate) took: Duration,
    pub(crate) criu: Option<DumpStats>,
}

/// What `podman container checkpoint --print-stats` prints.
pub(crate) fn of_checkpoint(whole: Duration, all: &[Checkpointed]) -> Value {
    let each: Vec<Value> = all
        .iter()
        .map(|one| {
            let criu = one.criu.map(|criu| {
                json!({
                    "freezing_time": criu.freezing_time_us,
                    "frozen_time": criu.frozen_time_us,
                    "memdump_time": criu.memdump_time_us,
                    "memwrite_time": criu.memwrite_time_us,
                    "pages_scanned": criu.pages_scanned,
                    "pages_written": criu.pages_written,
                })
            });
            json!({
                "Id": one.id,
                "runtime_checkpoint_duration": us(one.took),
                "criu_statistics": criu,
            })
        })
        .collect();
    json!({"podman_checkpoint_duration": us(whole), "container_statistics": each})
}

/// What `podman container restore --print-stats` prints, of one container.
pub(crate) fn of_restore(
    whole: Duration,
    id: &str,
    took: Duration,
    criu: Option<RestoreStats>,
) -> Value {
    let criu = criu.map(|criu| {
        json!({
            "forking_time": criu.forking_time_us,
            "restore_time": criu.restore_time_us,
            "pages_compared": criu.pages_compared,
            "pages_skipped_cow": criu.pages_skipped_cow,
            "pages_restored": criu.pages_restored,
        })
    });
    json!({
        "podman_restore_duration": us(whole),
        "container_statistics": [{
            "Id": id,
            "runtime_restore_duration": us(took),
            "criu_statistics": criu,
        }],
    })
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_podmans() {
        let one = Checkpointed {
            id: "c".to_owned(),
            took: Duration::from_millis(2),
            criu: None,
        };
        let json = of_checkpoint(Duration::from_millis(3), &[one]);
        assert_eq!(json["podman_checkpoint_duration"], 3000);
        assert_eq!(json["container_statistics"][0]["Id"], "c");
        assert_eq!(
            json["container_statistics"][0]["runtime_checkpoint_duration"],
            2000
        );
        let stats = RestoreStats {
            forking_time_us: 1,
            restore_time_us: 2,
            pages_compared: 3,
            pages_skipped_cow: 4,
            pages_restored: Some(5),
        };
        let json = of_restore(Duration::from_millis(3), "c", Duration::ZERO, Some(stats));
        assert_eq!(
            json["container_statistics"][0]["criu_statistics"]["pages_restored"],
            5
        );
    }
}
