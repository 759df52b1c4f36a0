//! Podman in a node.

/// A script's beginning: `podman` with the runtime that is the first argument and all its state in
/// the folder that is the second. At the end nothing of it is left.
pub(crate) const SETUP: &str = r#"
set -euo pipefail
runtime=$1 dir=$2
export PODMAN_IGNORE_CGROUPSV1_WARNING=1 TMPDIR=$dir
podman() {
	command podman --root "$dir/root" --runroot "$dir/run" --tmpdir "$dir/tmp" --cgroup-manager cgroupfs \
		--events-backend none --runtime "$runtime" "$@"
}
clean() {
	podman rm -fa -t 0 >/dev/null || true
	# What conmon runs at a container's end is at work for a while after that.
	for _ in $(seq 600); do pgrep -f "$dir/root" >/dev/null || break; sleep 0.1; done
	umount "$dir/root/overlay" 2>/dev/null || true
	find /sys/fs/cgroup -depth -type d -path '*/libpod_parent*' -exec rmdir {} + 2>/dev/null || true
}
trap clean EXIT
"#;
