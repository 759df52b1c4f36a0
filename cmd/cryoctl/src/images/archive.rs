//! An OCI image layout in a tar archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use cryo_checkpoint::oci::Hasher;
use cryo_checkpoint::oci::model::{self, Descriptor, Index};
use cryo_checkpoint::tar_stream::TarStream;

use super::layout::Temporary;
use super::{
    Broken, LAYOUT_VERSION, Sink, Source, Target, add_name, named, no_images, verify, verify_bytes,
};

const BLOCK: u64 = 512;

/// An archive that is read.
pub(super) struct Archive {
    file: File,
    shown: String,
    tag: Option<String>,
    /// Where each file's content is, and how long it is.
    entries: BTreeMap<String, (u64, u64)>,
}

impl Archive {
    pub(super) fn open(path: &Path, tag: Option<&str>) -> anyhow::Result<Self> {
        let shown = path.display().to_string();
        let file = File::open(path).with_context(|| format!("{shown} cannot be opened"))?;
        let mut tar = TarStream::seekable(BufReader::new(file.try_clone()?));
        let mut entries = BTreeMap::new();
        while let Some(entry) = tar.next_entry().with_context(|| shown.clone())? {
            if !entry.directory {
                let place = (entry.content_offset, entry.size_bytes);
                ensure!(
                    entries.insert(entry.name.clone(), place).is_none(),
                    "{shown} is unsafe: {} is there twice",
                    entry.name
                );
            }
        }
        ensure!(
            entries.contains_key("oci-layout") && entries.contains_key("index.json"),
            "{shown} is no archive of an OCI layout: it has no oci-layout and index.json"
        );
        Ok(Self {
            file,
            shown,
            tag: tag.map(str::to_owned),
            entries,
        })
    }

    fn content(&self, name: &str, offset: u64) -> anyhow::Result<impl Read + use<>> {
        let Some((start, size)) = self.entries.get(name) else {
            bail!("{} is incomplete: {name} is missing", self.shown);
        };
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(start.saturating_add(offset)))?;
        Ok(file.take(size.saturating_sub(offset)))
    }
}

impl Source for Archive {
    fn root(&mut self) -> anyhow::Result<(Descriptor, Vec<u8>)> {
        let mut bytes = Vec::new();
        self.content("index.json", 0)?
            .take(model::MAX_DOCUMENT_BYTES + 1)
            .read_to_end(&mut bytes)?;
        let index = Index::parse("index.json", &bytes)?;
        let root = named(&index, self.tag.as_deref(), &self.shown)?.clone();
        let bytes = super::whole(self, &root)?;
        Ok((root, bytes))
    }

    fn blob(&mut self, blob: &Descriptor, offset: u64) -> anyhow::Result<Box<dyn Read + '_>> {
        let name = format!("blobs/sha256/{}", blob.digest.hex());
        Ok(Box::new(self.content(&name, offset)?))
    }
}

/// An archive that is written. The header of a blob is written when its digest and length are
/// known, over the room that was left for it, so that nothing is written twice.
pub(super) struct Writer {
    /// `None` once it has its name.
    file: Option<Temporary>,
    path: PathBuf,
    tag: Option<String>,
    written: BTreeMap<String, u64>,
    end: u64,
}

impl Writer {
    pub(super) fn create(path: &Path, tag: Option<&str>) -> anyhow::Result<Self> {
        let mut name = path
            .file_name()
            .context("the archive has no name")?
            .to_owned();
        name.push(".partial");
        let mut this = Self {
            file: Some(Temporary::create(&path.with_file_name(name))?),
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            written: BTreeMap::new(),
            end: 0,
        };
        this.put("oci-layout", LAYOUT_VERSION)?;
        Ok(this)
    }

    fn out(&mut self) -> anyhow::Result<&mut File> {
        Ok(&mut self.file.as_mut().context("the archive is complete")?.file)
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        if self.written.contains_key(name) {
            return Ok(());
        }
        let end = self.end;
        let out = self.out()?;
        out.seek(SeekFrom::Start(end + BLOCK))?;
        out.write_all(bytes)?;
        self.finish(name, bytes.len() as u64)
    }

    /// Closes the entry whose content stands behind the room for its header.
    fn finish(&mut self, name: &str, size: u64) -> anyhow::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_mode(0o600);
        header.set_size(size);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        let start = self.end;
        let padding = (BLOCK - size % BLOCK) % BLOCK;
        let out = self.out()?;
        out.seek(SeekFrom::Start(start))?;
        out.write_all(header.as_bytes())?;
        // What is not written of a file is zeros.
        let end = start + BLOCK + size + padding;
        out.set_len(end)?;
        self.end = end;
        self.written.insert(name.to_owned(), size);
        Ok(())
    }
}

impl Target for Writer {
    fn has(&mut self, blob: &Descriptor) -> anyhow::Result<bool> {
        let name = format!("blobs/sha256/{}", blob.digest.hex());
        Ok(self.written.get(&name) == Some(&blob.size))
    }

    fn begin(&mut self, _: Option<&Descriptor>) -> anyhow::Result<Box<dyn Sink + '_>> {
        let end = self.end;
        self.out()?.seek(SeekFrom::Start(end + BLOCK))?;
        Ok(Box::new(EntrySink {
            archive: self,
            hasher: Hasher::default(),
            length: 0,
        }))
    }

    fn document(&mut self, descriptor: &Descriptor, bytes: &[u8]) -> anyhow::Result<()> {
        verify_bytes(descriptor, bytes)?;
        self.put(&format!("blobs/sha256/{}", descriptor.digest.hex()), bytes)
    }

    fn name(&mut self, root: &Descriptor) -> anyhow::Result<()> {
        let mut index = no_images();
        add_name(&mut index, root, self.tag.as_deref());
        self.put("index.json", &serde_json::to_vec(&index)?)?;
        let end = self.end + 2 * BLOCK;
        self.out()?.set_len(end)?;
        match self.file.take() {
            Some(file) => file.persist(&self.path),
            None => Ok(()),
        }
    }
}

struct EntrySink<'a> {
    archive: &'a mut Writer,
    hasher: Hasher,
    length: u64,
}

impl Write for EntrySink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let out = self.archive.out().map_err(io::Error::other)?;
        let written = out.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or(bytes));
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for EntrySink<'_> {
    fn commit(self: Box<Self>, blob: &Descriptor) -> Result<(), Broken> {
        verify(blob, self.hasher.finish()).map_err(Broken::Content)?;
        let name = format!("blobs/sha256/{}", blob.digest.hex());
        Ok(self.archive.finish(&name, self.length)?)
    }
}
