//! Driving CRIU: requests, transport, notifications, causes of failure.
#![forbid(unsafe_code)]
