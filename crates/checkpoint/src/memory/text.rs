//! Short pieces of memory: arguments and environment.

use cryo_criu_image::mm::Range;

use super::{Error, Memory};

/// Longest piece: the kernel gives arguments and environment together less.
const MAX_BYTES: u64 = 8 << 20;

impl Memory {
    /// The bytes of a range; what the image does not have is zero.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if it is longer than any process's arguments are, and as
    /// [`super::Cursor::read`].
    pub fn bytes_of(&self, range: Range) -> Result<Vec<u8>, Error> {
        if range.bytes() > MAX_BYTES {
            return Err(Error::Refused(format!(
                "the checkpoint is damaged: arguments or environment of {} bytes",
                range.bytes()
            )));
        }
        let mut bytes = vec![0; usize::try_from(range.bytes()).unwrap_or_default()];
        if bytes.is_empty() {
            return Ok(bytes);
        }
        let mut cursor = self.cursor(0)?;
        for run in self.runs() {
            let Some(part) = run.part(range.start, range.end) else {
                continue;
            };
            let start = usize::try_from(part.address - range.start).unwrap_or_default();
            let end = start + usize::try_from(part.bytes).unwrap_or_default();
            if let Some(place) = bytes.get_mut(start..end) {
                cursor.read(part, place)?;
            }
        }
        Ok(bytes)
    }
}
