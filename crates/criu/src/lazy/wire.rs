//! What the shim and its memory server say to each other.
//!
//! Two `SOCK_SEQPACKET` sockets, one for each direction, so that neither waits for a reader that
//! waits for it. A message is a letter and numbers, little endian; descriptors come with it.
//!
//! ```text
//! to the server   I process              pagemap [pages]   the images of a process
//!                 T process id           uffd              a task, and what it is called from here on
//!                 E                                        there are no more: fill
//! to the shim     F id                   uffd              a task has forked; its child's
//!                 G id                                     nothing more to come for it: let go
//!                 L left all                               bytes
//!                 X text                                   it fails, for this reason
//!                 A                                        all is there
//! ```

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use cryo_sys::scm;
use cryo_sys::uffd::Uffd;

/// The longest message.
const MAX_BYTES: usize = 4096;

/// A message to the server.
#[derive(Debug)]
pub enum Order {
    /// The images of a process.
    Images {
        /// Its number in them.
        process: u32,
        /// `pagemap-*.img`.
        pagemap: OwnedFd,
        /// `pages-*.img`, if there is one.
        pages: Option<OwnedFd>,
    },
    /// A process whose memory is to be filled.
    Task {
        /// Its number in the images.
        process: u32,
        /// What it is called from here on.
        id: u64,
        /// Its memory.
        uffd: Uffd,
    },
    /// There are no more, and all have registered their memory: what nobody touches can be filled.
    End,
}

/// A message of the server.
#[derive(Debug)]
pub enum Report {
    /// A process has forked.
    Forked {
        /// What its child is called.
        id: u64,
        /// The child's memory.
        uffd: Uffd,
    },
    /// Nothing more is to come for this one.
    Gone {
        /// What it is called.
        id: u64,
    },
    /// How far it is.
    Left {
        /// Bytes to come.
        bytes: u64,
        /// Bytes that were to come at first.
        all: u64,
    },
    /// It cannot go on.
    Failed(String),
    /// All is there.
    Filled,
}

impl Order {
    /// Sends it; descriptors stay the caller's until it is dropped.
    ///
    /// # Errors
    ///
    /// What the socket says.
    pub fn send(&self, to: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Images {
                process,
                pagemap,
                pages,
            } => {
                let files = std::iter::once(pagemap).chain(pages);
                let fds: Vec<_> = files.map(|fd| fd.as_fd()).collect();
                send(to, b'I', &[(*process).into()], &fds)
            }
            Self::Task { process, id, uffd } => {
                send(to, b'T', &[(*process).into(), *id], &[uffd.as_fd()])
            }
            Self::End => send(to, b'E', &[], &[]),
        }
    }

    /// Waits for one; `None` is the end of the connection.
    ///
    /// # Errors
    ///
    /// What the socket says, or `InvalidData`.
    pub fn receive(from: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let Some((letter, data, fds)) = receive(from)? else {
            return Ok(None);
        };
        let mut fds = fds.into_iter();
        let process = || u32::try_from(number(&data, 0)?).map_err(|_| bad());
        Ok(Some(match letter {
            b'I' => Self::Images {
                process: process()?,
                pagemap: fds.next().ok_or_else(bad)?,
                pages: fds.next(),
            },
            b'T' => Self::Task {
                process: process()?,
                id: number(&data, 1)?,
                uffd: fds.next().ok_or_else(bad)?.into(),
            },
            b'E' => Self::End,
            _ => return Err(bad()),
        }))
    }
}

impl Report {
    /// Sends it, as [`Order::send`] does.
    ///
    /// # Errors
    ///
    /// What the socket says.
    pub fn send(&self, to: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Forked { id, uffd } => send(to, b'F', &[*id], &[uffd.as_fd()]),
            Self::Gone { id } => send(to, b'G', &[*id], &[]),
            Self::Left { bytes, all } => send(to, b'L', &[*bytes, *all], &[]),
            Self::Failed(text) => {
                let mut end = text.len().min(MAX_BYTES - 1);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                let text = text.get(..end).unwrap_or_default();
                scm::send(to, &[b"X", text.as_bytes()].concat(), &[])
            }
            Self::Filled => send(to, b'A', &[], &[]),
        }
    }

    /// Waits for one; `None` is the end of the connection.
    ///
    /// # Errors
    ///
    /// What the socket says, or `InvalidData`.
    pub fn receive(from: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let Some((letter, data, fds)) = receive(from)? else {
            return Ok(None);
        };
        Ok(Some(match letter {
            b'F' => Self::Forked {
                id: number(&data, 0)?,
                uffd: fds.into_iter().next().ok_or_else(bad)?.into(),
            },
            b'G' => Self::Gone {
                id: number(&data, 0)?,
            },
            b'L' => Self::Left {
                bytes: number(&data, 0)?,
                all: number(&data, 1)?,
            },
            b'X' => Self::Failed(String::from_utf8_lossy(&data).into_owned()),
            b'A' => Self::Filled,
            _ => return Err(bad()),
        }))
    }
}

fn send(to: BorrowedFd<'_>, letter: u8, numbers: &[u64], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut data = vec![letter];
    data.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    scm::send(to, &data, fds)
}

type Message = (u8, Vec<u8>, Vec<OwnedFd>);

fn receive(from: BorrowedFd<'_>) -> io::Result<Option<Message>> {
    let Some((mut data, fds)) = scm::recv(from, MAX_BYTES)? else {
        return Ok(None);
    };
    let letter = data.remove(0);
    Ok(Some((letter, data, fds)))
}

fn number(data: &[u8], index: usize) -> io::Result<u64> {
    let bytes = data.get(index * 8..index * 8 + 8).ok_or_else(bad)?;
    bytes.try_into().map(u64::from_le_bytes).map_err(|_| bad())
}

fn bad() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message that nobody sends")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn orders_and_reports_arrive_as_they_were() {
        let (a, b) = scm::pair().unwrap();
        let images = |pages| Order::Images {
            process: 7,
            pagemap: file(),
            pages,
        };
        let task = Order::Task {
            process: 8,
            id: u64::MAX,
            uffd: file().into(),
        };
        for order in [images(None), images(Some(file())), task, Order::End] {
            order.send(a.as_fd()).unwrap();
        }
        let next = || Order::receive(b.as_fd()).unwrap().unwrap();
        assert!(matches!(
            next(),
            Order::Images {
                process: 7,
                pages: None,
                ..
            }
        ));
        assert!(matches!(next(), Order::Images { pages: Some(_), .. }));
        assert!(matches!(
            next(),
            Order::Task {
                process: 8,
                id: u64::MAX,
                ..
            }
        ));
        assert!(matches!(next(), Order::End));

        let forked = Report::Forked {
            id: 1,
            uffd: file().into(),
        };
        let long = Report::Failed("ü".repeat(MAX_BYTES));
        let left = Report::Left { bytes: 2, all: 3 };
        for report in [forked, Report::Gone { id: 4 }, left, long, Report::Filled] {
            report.send(a.as_fd()).unwrap();
        }
        let next = || Report::receive(b.as_fd()).unwrap().unwrap();
        assert!(matches!(next(), Report::Forked { id: 1, .. }));
        assert!(matches!(next(), Report::Gone { id: 4 }));
        assert!(matches!(next(), Report::Left { bytes: 2, all: 3 }));
        assert!(matches!(next(), Report::Failed(text) if text.chars().all(|c| c == 'ü')));
        assert!(matches!(next(), Report::Filled));
        drop(a);
        assert!(Report::receive(b.as_fd()).unwrap().is_none());
    }

    #[test]
    fn nonsense_is_an_error() {
        let (a, b) = scm::pair().unwrap();
        for bytes in [&b"?"[..], b"T", b"I1234567", b"F12345678"] {
            scm::send(a.as_fd(), bytes, &[]).unwrap();
            scm::send(a.as_fd(), bytes, &[]).unwrap();
            assert!(Order::receive(b.as_fd()).is_err());
            assert!(Report::receive(b.as_fd()).is_err());
        }
    }
}
