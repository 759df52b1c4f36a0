//! The one writer of archives: the same files in the same order give the same bytes.

use std::io::{self, Read, Write};

/// A tar archive in the making. All in it is root's, for root alone, and of 1970.
pub struct Archive<W: Write>(tar::Builder<W>);

impl<W: Write> Archive<W> {
    /// An archive without entries.
    pub fn new(out: W) -> Self {
        Self(tar::Builder::new(out))
    }

    /// Adds a directory.
    ///
    /// # Errors
    ///
    /// Those of what is written to.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        let mut header = header(tar::EntryType::Directory, 0o700, 0);
        self.0
            .append_data(&mut header, format!("{name}/"), io::empty())
    }

    /// Adds a file of `size` bytes.
    ///
    /// # Errors
    ///
    /// Those of what is read and written, and when the content is shorter than `size`.
    pub fn file(&mut self, name: &str, size: u64, content: &mut dyn Read) -> io::Result<()> {
        let mut header = header(tar::EntryType::Regular, 0o600, size);
        let mut content = content.take(size);
        self.0.append_data(&mut header, name, &mut content)?;
        if content.limit() > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{name} is shorter than it was to be"),
            ));
        }
        Ok(())
    }

    /// Writes the end marker, and gives back what was written to.
    ///
    /// # Errors
    ///
    /// Those of what is written to.
    pub fn finish(self) -> io::Result<W> {
        self.0.into_inner()
    }
}

impl<W: Write> std::fmt::Debug for Archive<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").finish_non_exhaustive()
    }
}

/// The header of an entry without its name.
pub(crate) fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let mut archive = Archive::new(Vec::new());
        let error = archive.file("a", 5, &mut &b"four"[..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
