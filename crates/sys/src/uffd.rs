//! userfaultfd(2): somebody else supplies the pages of a process.
//!
//! One descriptor belongs to one address space. What is registered with it and not there yet stops
//! whoever touches it, until a page is put there. When the last copy of the descriptor is closed,
//! all that is registered becomes ordinary memory: what was not put there by then is zeros.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::io::Errno;

/// What linux/userfaultfd.h calls its ioctls' type.
const UFFDIO: u64 = 0xaa;
const API: u64 = request(READ | WRITE, 0x3f, 24);
const REGISTER: u64 = request(READ | WRITE, 0x00, 32);
const WAKE: u64 = request(READ, 0x02, 16);
const COPY: u64 = request(READ | WRITE, 0x03, 40);
const ZEROPAGE: u64 = request(READ | WRITE, 0x04, 32);

const WRITE: u64 = 1;
const READ: u64 = 2;

const fn request(direction: u64, number: u64, bytes: u64) -> u64 {
    direction << 30 | bytes << 16 | UFFDIO << 8 | number
}

/// `UFFD_API`, the only one there is.
const UFFD_API: u64 = 0xaa;
/// Fork, remap, remove and unmap are told: what CRIU asks for.
const FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
/// `UFFDIO_REGISTER_MODE_MISSING`
const MISSING: u64 = 1;

/// Bytes of a `struct uffd_msg`.
const MESSAGE_BYTES: usize = 32;
/// Most messages of one [`Uffd::events`].
const MESSAGES: usize = 16;

/// A userfaultfd.
#[derive(Debug)]
pub struct Uffd(File);

/// What the owner of the memory does with it. Addresses and lengths are in bytes.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// The process has forked, and its child has the same areas registered with this.
    Fork(Uffd),
    /// Pages have moved.
    Remap {
        /// From here.
        from: u64,
        /// To here.
        to: u64,
        /// So many bytes of them.
        bytes: u64,
    },
    /// What is between these is to be zeros when it is touched next.
    Remove {
        /// The first address.
        start: u64,
        /// The address behind the last.
        end: u64,
    },
    /// What is between these is no memory any more.
    Unmap {
        /// The first address.
        start: u64,
        /// The address behind the last.
        end: u64,
    },
}

/// How far a call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// So many bytes, from the first on, are there now.
    pub bytes: u64,
    /// Why not all.
    pub error: Option<Errno>,
}

impl Uffd {
    /// One for this process's own memory, non-blocking, that tells of all events.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SYS_PTRACE` in the first user namespace, `ENOSYS` from a kernel
    /// without userfaultfd.
    pub fn new() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: userfaultfd(2) takes flags and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made it for us, and nobody else knows it.
        let uffd = Self(unsafe { File::from_raw_fd(fd) });
        let mut api = [UFFD_API, FEATURES, 0];
        uffd.call(API, &mut api)?;
        Ok(uffd)
    }

    /// Asks to be told of what is not there in an area of this process.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what is no memory or has no pages of this kind.
    pub fn register(&self, address: u64, bytes: u64) -> io::Result<()> {
        let mut register = [address, bytes, MISSING, 0];
        Ok(self.call(REGISTER, &mut register)?)
    }

    /// A second descriptor of the same.
    ///
    /// # Errors
    ///
    /// When there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// What has happened, at most 16 of it; nothing if nothing has. The descriptor has to be
    /// non-blocking.
    ///
    /// # Errors
    ///
    /// What read(2) says.
    pub fn events(&self) -> io::Result<Vec<Event>> {
        let mut messages = [0u8; MESSAGES * MESSAGE_BYTES];
        let bytes = match (&self.0).read(&mut messages) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => return Err(e),
        };
        let messages = messages[..bytes].chunks_exact(MESSAGE_BYTES);
        Ok(messages.filter_map(event).collect())
    }

    /// Puts a page or several there, and lets those go on that wait for them.
    ///
    /// `EEXIST`: the next page is there already. `ENOENT`: some of it is not registered, or not
    /// one area. `EAGAIN`: [`Uffd::events`] first. `ESRCH`: the process is gone. `ENOMEM`: its
    /// cgroup, or the machine, has no memory left.
    #[must_use]
    pub fn copy(&self, to: u64, pages: &[u8]) -> Done {
        let bytes = pages.len() as u64;
        let mut copy = [to, pages.as_ptr() as u64, bytes, 0, 0];
        let result = self.call(COPY, &mut copy);
        done(result, bytes, copy[4])
    }

    /// Puts zeros there, as [`Uffd::copy`] does.
    #[must_use]
    pub fn zero(&self, to: u64, bytes: u64) -> Done {
        let mut zero = [to, bytes, 0, 0];
        let result = self.call(ZEROPAGE, &mut zero);
        done(result, bytes, zero[3])
    }

    /// Lets those look again who wait for a page there.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what is not whole pages.
    pub fn wake(&self, address: u64, bytes: u64) -> io::Result<()> {
        let mut range = [address, bytes];
        Ok(self.call(WAKE, &mut range)?)
    }

    fn call<const N: usize>(&self, request: u64, argument: &mut [u64; N]) -> Result<(), Errno> {
        // SAFETY: each request above is called with the argument of its own size (24, 32, 16, 40
        // bytes), which lives through the call. What the kernel reads through an address in it is
        // a slice that the caller borrows; what it writes is memory that was registered for that,
        // in a process that waits for it.
        let rc = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                request as libc::Ioctl,
                argument.as_mut_ptr(),
            )
        };
        if rc == 0 {
            return Ok(());
        }
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl From<Uffd> for OwnedFd {
    fn from(uffd: Uffd) -> Self {
        uffd.0.into()
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `told` is a number of bytes, or an error as a negative number.
fn done(result: Result<(), Errno>, bytes: u64, told: u64) -> Done {
    match result {
        Ok(()) => Done { bytes, error: None },
        Err(error) => Done {
            bytes: if told <= bytes { told } else { 0 },
            error: Some(error),
        },
    }
}

fn event(message: &[u8]) -> Option<Event> {
    let number = |at: usize| {
        let bytes = message.get(at..at + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    let (first, second) = (number(8)?, number(16)?);
    Some(match message.first()? {
        0x12 => Event::Fault(second),
        0x13 => {
            let bytes = message.get(8..12)?.try_into().ok()?;
            let fd = RawFd::try_from(u32::from_ne_bytes(bytes)).ok()?;
            // SAFETY: the kernel has made it for the reader of this message, which nobody reads
            // twice.
            Event::Fork(Uffd(unsafe { File::from_raw_fd(fd) }))
        }
        0x14 => Event::Remap {
            from: first,
            to: second,
            bytes: number(24)?,
        },
        0x15 => Event::Remove {
            start: first,
            end: second,
        },
        0x16 => Event::Unmap {
            start: first,
            end: second,
        },
        _ => return None,
    })
}
