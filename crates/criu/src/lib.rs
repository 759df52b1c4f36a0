//! Driving CRIU: requests, transport, notifications, causes of failure.
//!
//! One `criu swrk` process per operation. All calls block; a caller in async code puts them on
//! a blocking thread. How an operation ends early is told at [`Control`].
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use cryo_criu::{Control, Criu, DumpOptions};
//!
//! let criu = Criu::new("/usr/sbin/criu");
//! criu.probe()?;
//! let images = std::fs::File::open("/var/lib/cryo/images")?;
//! let options = DumpOptions {
//!     leave_running: true,
//!     ..DumpOptions::new(4711, images.into(), "/run/cryo/work")
//! };
//! criu.dump(options, &mut (), &Control::default())?;
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]

pub mod config;
pub mod error;
pub mod lazy;
pub mod log;
pub mod notify;
pub mod options;
pub mod page_server;
pub mod preflight;
pub mod probe;
pub mod proto;
pub mod request;
pub mod swrk;

pub use cryo_sys::spawn::{Bind, Exit, MountPlan, Tree};
pub use error::{CriuError, Failure, Operation};
pub use log::{Cause, Diagnosis};
pub use notify::{Event, Notify, Refusal};
pub use probe::{Probe, Version};
pub use request::{DumpOptions, External, PageServer, RestoreOptions};
pub use swrk::{Abort, Control, Criu, DumpResult, RestoreResult, Serving};
