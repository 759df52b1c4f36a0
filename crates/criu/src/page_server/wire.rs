//! The talk of CRIU's page servers, as far as it asks for memory. Numbers are little-endian.

/// How long a request is, and the head of an answer.
pub(super) const HEAD: usize = 32;

const ADD: u32 = 6;
const GET: u32 = 7;
const CLOSE: u32 = 0x1023;
const FORCE_CLOSE: u32 = 0x1024;
/// Above the number of a command: what is said of the pages.
const FLAGS_SHIFT: u32 = 16;
/// The pages come along.
const PRESENT: u32 = 4;

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Memory of a process, by its number in the images. It may get less than it asks for.
    Get {
        process: u32,
        address: u64,
        pages: u64,
    },
    /// It needs nothing more.
    Close,
    /// None that we know.
    Other(u32),
}

impl Request {
    pub(super) fn parse(head: &[u8; HEAD]) -> Self {
        let number = |at: usize| {
            let bytes = head.get(at..).and_then(<[u8]>::first_chunk);
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        // Between the command and the count is a gap.
        let command = number(0) & u64::from(u32::MAX);
        match command as u32 {
            GET => match u32::try_from(number(24)) {
                Ok(process) => Self::Get {
                    process,
                    address: number(16),
                    pages: number(8),
                },
                Err(_) => Self::Other(GET),
            },
            CLOSE | FORCE_CLOSE => Self::Close,
            other => Self::Other(other),
        }
    }
}

/// What goes before the pages of an answer.
pub(super) fn answer(process: u32, address: u64, pages: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    let command = u64::from(ADD | PRESENT << FLAGS_SHIFT);
    let numbers = [command, pages, address, process.into()];
    for (bytes, number) in head.chunks_exact_mut(8).zip(numbers) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    head
}

/// The answer to [`Request::Close`]: whether it had all.
pub(super) fn closed(complete: bool) -> [u8; 4] {
    let status: i32 = if complete { 0 } else { -1 };
    status.to_le_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn head(command: u32, pages: u64, address: u64, id: u64) -> [u8; HEAD] {
        let mut head = [0xAA; HEAD];
        head[..4].copy_from_slice(&command.to_le_bytes());
        head[8..16].copy_from_slice(&pages.to_le_bytes());
        head[16..24].copy_from_slice(&address.to_le_bytes());
        head[24..].copy_from_slice(&id.to_le_bytes());
        head
    }

    #[test]
    fn requests_are_those_of_criu() {
        let get = Request::Get {
            process: 7,
            address: 0x7fff_0000_1000,
            pages: 3,
        };
        assert_eq!(Request::parse(&head(7, 3, 0x7fff_0000_1000, 7)), get);
        assert_eq!(Request::parse(&head(0x1023, 0, 0, 0)), Request::Close);
        assert_eq!(Request::parse(&head(0x1024, 0, 0, 0)), Request::Close);
        for strange in [0, 1, 4, 6, 7 | 1 << 16, u32::MAX] {
            assert_eq!(
                Request::parse(&head(strange, 1, 0, 1)),
                Request::Other(strange)
            );
        }
        assert_eq!(Request::parse(&head(7, 1, 0, 1 << 32)), Request::Other(7));
    }

    #[test]
    fn an_answer_brings_its_pages_along() {
        assert_eq!(answer(9, 0x2000, 2), {
            let mut head = head(6 | 4 << 16, 2, 0x2000, 9);
            head[4..8].fill(0);
            head
        });
        assert_eq!(closed(true), [0; 4]);
        assert_eq!(closed(false), [0xff; 4]);
    }
}
