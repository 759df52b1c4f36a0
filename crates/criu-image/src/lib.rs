//! CRIU's image files: framing, messages, typed views.
#![forbid(unsafe_code)]
