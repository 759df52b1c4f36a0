//! Drives a real containerd in the lab (`hack/lab`) from the host: through `ctr`,
//! through containerd's gRPC API and through CRI.
//!
//! The tests themselves are in `tests/e2e/`, the benchmark and the soak in `src/bin/`;
//! this library is what all of them stand on. `README.md` beside it says how to run them.
#![forbid(unsafe_code)]

pub mod audit;
pub mod compat;
pub mod conformance;
pub mod containerd;
pub mod context;
pub mod cri;
pub mod crictl;
pub mod events;
pub mod images;
pub mod lab;
pub mod machine;
pub mod network;
pub mod patience;
pub mod reference;
pub mod rpc;
pub mod runner;
pub mod runtime;
pub mod screens;
pub mod shims;
pub mod workload;
