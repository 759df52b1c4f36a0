//! Memory as rows of sixteen bytes.

use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use cryo_checkpoint::memory::{self, Memory, Piece};

use super::{Memparse, check_pid};
use crate::failure::Failure;
use crate::newfile::NewFile;

/// How many bytes of memory are turned into rows at a time: what becomes of them is five times as
/// much, and should still be in the processor's cache when it is written.
const PIECE: usize = 1 << 16;

/// Bytes of memory in a row.
const ROW: usize = 16;

/// `0000561949e94000  48 83 … 02  |H...|`, with its end of line.
const LINE: usize = 16 + 2 + 3 * ROW + 2 + ROW + 2;

const HEADER: &str = "\
Address           Hexadecimal                                       ASCII            \n\
-------------------------------------------------------------------------------------\n";

pub(super) fn hexdump(args: &Memparse, path: &Path) -> Result<(), Failure> {
    let checkpoint = args.choice.checkpoint(path)?;
    check_pid(&checkpoint, args.pid)?;
    let memory = args.memory(&checkpoint, args.pid)?;
    let (pid, shown) = (args.pid, path.display());
    let mut stdout = io::stdout().lock();
    let Some(output) = &args.output else {
        write!(
            stdout,
            "\nDisplaying memory pages content for process ID {pid} from checkpoint: {shown}\n\n"
        )?;
        let progress = args.progress.start("printing", memory.bytes());
        let mut stdout = BufWriter::with_capacity(1 << 16, stdout);
        folded(&memory, &mut stdout, |bytes| progress.add(bytes))?;
        stdout.flush()?;
        return Ok(());
    };
    let new = NewFile::create(output)?;
    writeln!(
        stdout,
        "\nWriting memory pages content for process ID {pid} from checkpoint: {shown} to file: {}...",
        output.display()
    )?;
    let progress = args.progress.start("writing", memory.bytes());
    if new.is_regular() {
        whole(&memory, &new, args.threads(), |bytes| progress.add(bytes))?;
    } else {
        let mut out = BufWriter::with_capacity(1 << 16, new.file());
        out.write_all(HEADER.as_bytes())?;
        memory.each_piece(PIECE, |piece| {
            out.write_all(&lines(piece))?;
            progress.add(piece.bytes.len() as u64);
            Ok::<_, memory::Error>(())
        })?;
        out.flush()?;
    }
    drop(progress);
    // Five times the size of the memory: the disk would take longer than all else.
    new.finish_unsynced()
}

/// All rows. They are all of one length, so that each piece's place in the file is known.
fn whole(
    memory: &Memory,
    new: &NewFile,
    threads: usize,
    done: impl Fn(u64) + Sync,
) -> Result<(), memory::Error> {
    let text = |position: u64| HEADER.len() as u64 + position / ROW as u64 * LINE as u64;
    new.file().set_len(text(memory.bytes()))?;
    new.file().write_all_at(HEADER.as_bytes(), 0)?;
    memory.each_piece_on(threads, PIECE, |piece| {
        new.file()
            .write_all_at(&lines(piece), text(piece.position))?;
        done(piece.bytes.len() as u64);
        Ok(())
    })
}

fn lines(piece: Piece<'_>) -> Vec<u8> {
    let mut text = Vec::with_capacity(piece.bytes.len() / ROW * LINE);
    let addresses = (piece.address..).step_by(ROW);
    for (address, row) in addresses.zip(piece.bytes.chunks_exact(ROW)) {
        text.extend_from_slice(&line(address, row));
    }
    text
}

/// Rows, those that look like the one before folded into a `*`. As checkpointctl does it: what
/// counts is how a row looks as text, and each run of pages of the image begins anew.
fn folded(memory: &Memory, out: &mut impl Write, done: impl Fn(u64)) -> Result<(), memory::Error> {
    out.write_all(HEADER.as_bytes())?;
    let mut cursor = memory.cursor(0)?;
    let mut buffer = Vec::new();
    for run in memory.runs() {
        let mut previous: Option<[u8; ROW]> = None;
        let mut folding = false;
        for (_, part) in memory::parts([*run].into_iter(), PIECE) {
            cursor.read_part(part, &mut buffer)?;
            for (address, row) in (part.address..).step_by(ROW).zip(buffer.chunks_exact(ROW)) {
                let look = look(row);
                if previous == Some(look) {
                    if !folding {
                        out.write_all(b"*\n")?;
                    }
                    folding = true;
                    continue;
                }
                previous = Some(look);
                folding = false;
                out.write_all(&line(address, row))?;
            }
            done(part.bytes);
        }
    }
    Ok(())
}

fn line(address: u64, row: &[u8]) -> [u8; LINE] {
    let mut line = [b' '; LINE];
    let (start, rest) = line.split_at_mut(16);
    for (digit, shift) in start.iter_mut().zip((0..16).rev()) {
        *digit = hex((address >> (4 * shift)) as u8 & 0xf);
    }
    let (digits, rest) = rest.split_at_mut(2 + 3 * ROW + 1);
    let digits = digits.get_mut(2..).unwrap_or_default();
    for (slot, byte) in digits.chunks_exact_mut(3).zip(row) {
        if let [high, low, _] = slot {
            *high = hex(byte >> 4);
            *low = hex(byte & 0xf);
        }
    }
    if let [open, text @ .., close, end] = rest {
        *open = b'|';
        text.copy_from_slice(&look(row));
        *close = b'|';
        *end = b'\n';
    }
    line
}

fn hex(nibble: u8) -> u8 {
    nibble + if nibble < 10 { b'0' } else { b'a' - 10 }
}

fn look(row: &[u8]) -> [u8; ROW] {
    let mut look = [b'.'; ROW];
    for (to, byte) in look.iter_mut().zip(row) {
        *to = if (0x20..0x7f).contains(byte) {
            *byte
        } else {
            b'.'
        };
    }
    look
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line() {
        let row: Vec<u8> = (0x78..0x88).collect();
        assert_eq!(
            String::from_utf8_lossy(&line(0x5619_49e9_4000, &row)),
            "0000561949e94000  78 79 7a 7b 7c 7d 7e 7f 80 81 82 83 84 85 86 87  |xyz{|}~.........|\n"
        );
    }
}
