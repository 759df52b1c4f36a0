//! A dump that waits for its memory to be fetched.
//!
//! CRIU's own server of pages is not used: it takes a connection that comes and goes for the end
//! of the transfer, and kills the tasks on it. Instead CRIU is given a socket to serve that nobody
//! ever asks at, and is kept waiting at the question before ([`Event::StatusReady`]). The memory is
//! still in the tasks, which it holds stopped, so whoever may trace them can read it.
//!
//! Measured with CRIU 4.2.1: refused there, or killed, the tasks run on with their memory as it
//! was, untraced and without CRIU's code in them.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;

use super::worker::{Ending, Place, Talk, Worker};
use super::{Control, Criu, DumpResult, collect, open_work_dir};
use crate::error::{CriuError, Operation};
use crate::notify::{Event, Notify};
use crate::proto::{CriuReq, CriuResp, ReqType};
use crate::request::{BadOption, DumpOptions, FIRST_PASSED_FD};

/// A dump whose images are complete but for the memory that can be fetched later. The tasks are
/// stopped. Dropping it undoes the dump.
#[derive(Debug)]
pub struct Serving {
    worker: Worker,
    request: CriuReq,
    log_file: String,
    /// Our end of the socket that CRIU would serve.
    pages: Option<OwnedFd>,
}

impl Criu {
    /// Dumps all but the memory that can be fetched later, and blocks until that is done, undone
    /// or dead.
    ///
    /// # Errors
    ///
    /// As [`Criu::dump`]; [`BadOption`] for a dump that would let the tree run on, or that names
    /// another place for its memory.
    pub fn dump_lazily(
        &self,
        options: DumpOptions,
        notify: &mut dyn Notify,
        control: &Control<'_>,
    ) -> Result<Serving, CriuError> {
        let operation = Operation::Dump;
        if options.leave_running || options.page_server.is_some() {
            return Err(CriuError::BadOption(BadOption {
                option: "lazy_pages",
                what: "memory stays with the tasks until it is fetched, and they end then"
                    .to_owned(),
            }));
        }
        let options = DumpOptions {
            lazy_pages: true,
            ..options
        };
        let (pages, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| CriuError::Io {
            operation,
            what: "make a socket".to_owned(),
            source: e.into(),
        })?;
        let passed = collect(operation, std::iter::once(Ok(theirs)))?;
        let dir = open_work_dir(operation, &options.work_dir)?;
        let request = options.request(dir.1.as_raw_fd())?;
        let place = Place {
            work_dir: Some(dir),
            ..Place::default()
        };
        // A socket that is passed, so that CRIU listens nowhere.
        let mut criu = self.clone();
        criu.args
            .extend(["--ps-socket".to_owned(), FIRST_PASSED_FD.to_string()]);
        let mut worker = Worker::launch(&criu, operation, place, passed)?;
        let talked = worker
            .send(&request)
            .and_then(|()| worker.converse(&request, Some(&Event::StatusReady), notify, control));
        match talked {
            Ok(None) => Ok(Serving {
                worker,
                request,
                log_file: options.log_file,
                pages: Some(pages),
            }),
            Ok(Some(response)) => {
                let exit = worker.finish(control);
                if response.success && worker.ending.is_none() {
                    return Err(
                        worker.protocol("an answer before its memory was fetched".to_owned())
                    );
                }
                Err(worker.judge(Ok(response), exit, &options.log_file))
            }
            Err(end) => {
                let exit = worker.finish(control);
                Err(worker.judge(Err(end), exit, &options.log_file))
            }
        }
    }
}

impl Serving {
    /// Readable once CRIU has ended. The tasks then run on, if nothing else stops them.
    #[must_use]
    pub fn criu(&self) -> BorrowedFd<'_> {
        self.worker.child.pidfd()
    }

    /// CRIU, a child that this waits for.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.worker.child.pid()
    }

    /// All was fetched: CRIU kills the tasks.
    ///
    /// # Errors
    ///
    /// [`CriuError`]. Unless it was killed or died, the tasks are as before.
    pub fn end(mut self) -> Result<DumpResult, CriuError> {
        // The end of the connection, to CRIU's server.
        self.pages = None;
        let talked = self.answer(true);
        let exit = self.worker.finish(&Control::default());
        match talked {
            Ok(response) if response.success => Ok(DumpResult { restored: false }),
            other => Err(self.worker.judge(other, exit, &self.log_file)),
        }
    }

    /// It was not: the tasks run on.
    ///
    /// # Errors
    ///
    /// [`CriuError`], if CRIU has not done so in order.
    pub fn undo(mut self) -> Result<(), CriuError> {
        self.refuse()
    }

    fn refuse(&mut self) -> Result<(), CriuError> {
        self.worker.ending = Some(Ending::Refused {
            event: Event::StatusReady.name().to_owned(),
            reason: "given up".to_owned(),
        });
        let talked = self.answer(false);
        let exit = self.worker.finish(&Control::default());
        if talked.is_ok() && !self.worker.killed {
            return Ok(());
        }
        self.worker.ending = None;
        Err(self.worker.judge(talked, exit, &self.log_file))
    }

    /// Answers the question that CRIU waits at, and waits for its last word.
    fn answer(&mut self, consent: bool) -> Result<CriuResp, Talk> {
        let control = Control {
            deadline: Some(Instant::now() + Control::default().grace),
            ..Control::default()
        };
        self.worker.send(&CriuReq {
            notify_success: Some(consent),
            ..CriuReq::of(ReqType::Notify)
        })?;
        let response = self
            .worker
            .converse(&self.request, None, &mut (), &control)?;
        // It stops nowhere on its way.
        response.ok_or(Talk::Closed)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if self.worker.sock.is_some()
            && let Err(error) = self.refuse()
        {
            tracing::warn!(%error, "a dump was not undone in order");
        }
    }
}
