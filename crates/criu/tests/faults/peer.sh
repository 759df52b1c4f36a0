#!/bin/sh
# Stands in for criu in main.rs: a link to this file, whose name is the script to play,
# beside a file "exe" that names the test program.
dir=${0%/*}
echo run >>"$dir/runs"
# Safe Rust cannot close a number that it does not own.
[ "${0##*/}" = closes ] && exec sleep 60 3>&-
# As a half-restored task does: the connection outlives criu.
[ "${0##*/}" = leaves-a-holder ] && { sleep 20 & kill -9 $$; }
CRYO_PEER=${0##*/} exec "$(cat "$dir/exe")" --exact peer --nocapture --quiet
