//! An OCI image layout as a directory.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use cryo_checkpoint::oci::Hasher;
use cryo_checkpoint::oci::model::{self, Descriptor, Index};
use rustix::fs::{FlockOperation, OFlags, flock};

use super::{
    Broken, LAYOUT_VERSION, Sink, Source, Target, add_name, named, no_images, verify, verify_bytes,
};

/// A layout's directory. Its files are for their owner alone: a checkpoint holds secrets.
pub(super) struct Layout {
    path: PathBuf,
    tag: Option<String>,
    /// Held while something is written.
    _lock: Option<File>,
}

impl Layout {
    /// Opens one to read it.
    pub(super) fn open(path: &Path, tag: Option<&str>) -> anyhow::Result<Self> {
        let shown = path.display();
        ensure!(
            path.join("oci-layout").is_file() && path.join("index.json").is_file(),
            "{shown} is no OCI layout: it has no oci-layout and index.json"
        );
        Ok(Self {
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            _lock: None,
        })
    }

    /// Opens one to write into it; makes it if it is not there.
    pub(super) fn create(path: &Path, tag: Option<&str>) -> anyhow::Result<Self> {
        let shown = path.display();
        if path.exists() {
            let empty = fs::read_dir(path)
                .with_context(|| format!("{shown} cannot be opened"))?
                .next()
                .is_none();
            ensure!(
                empty || path.join("oci-layout").is_file(),
                "{shown} is no OCI layout, and not empty: name another directory"
            );
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path.join("blobs/sha256"))
            .with_context(|| format!("{shown} cannot be made"))?;
        let lock = File::open(path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("{shown} is being written by another process"))?;
        let this = Self {
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            _lock: Some(lock),
        };
        this.put("oci-layout", LAYOUT_VERSION)?;
        Ok(this)
    }

    fn blob_path(&self, blob: &Descriptor) -> PathBuf {
        self.path.join("blobs/sha256").join(blob.digest.hex())
    }

    fn index(&self) -> anyhow::Result<Index> {
        let path = self.path.join("index.json");
        let mut bytes = Vec::new();
        regular(&path)?
            .take(model::MAX_DOCUMENT_BYTES + 1)
            .read_to_end(&mut bytes)?;
        Ok(Index::parse("index.json", &bytes)?)
    }

    /// Writes a file that is there whole or not at all.
    fn put(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.path.join(name);
        let mut file = Temporary::create(&path.with_extension("partial"))?;
        file.file.write_all(bytes)?;
        file.persist(&path)
    }
}

impl Source for Layout {
    fn root(&mut self) -> anyhow::Result<(Descriptor, Vec<u8>)> {
        let index = self.index()?;
        let place = self.path.display().to_string();
        let root = named(&index, self.tag.as_deref(), &place)?.clone();
        let bytes = super::whole(self, &root)?;
        Ok((root, bytes))
    }

    fn blob(&mut self, blob: &Descriptor, offset: u64) -> anyhow::Result<Box<dyn Read + '_>> {
        let mut file = regular(&self.blob_path(blob))?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Box::new(file))
    }
}

impl Target for Layout {
    fn has(&mut self, blob: &Descriptor) -> anyhow::Result<bool> {
        let Ok(mut file) = regular(&self.blob_path(blob)) else {
            return Ok(false);
        };
        if file.metadata()?.len() != blob.size {
            return Ok(false);
        }
        Ok(digest(&mut file)?.finish() == blob.digest)
    }

    fn begin(&mut self, expected: Option<&Descriptor>) -> anyhow::Result<Box<dyn Sink + '_>> {
        let blobs = self.path.join("blobs/sha256");
        let Some(blob) = expected else {
            let file = Temporary::create(&blobs.join("new.partial"))?;
            return Ok(Box::new(FileSink::new(file, blobs)));
        };
        let path = blobs.join(format!("{}.partial", blob.digest.hex()));
        let mut file = Temporary::go_on(&path)?;
        let mut sink = FileSink {
            hasher: digest(&mut file.file)?,
            offset: file.file.stream_position()?,
            file,
            blobs,
        };
        if sink.offset > blob.size {
            sink.file.file.set_len(0)?;
            sink.file.file.rewind()?;
            sink.hasher = Hasher::default();
            sink.offset = 0;
        }
        Ok(Box::new(sink))
    }

    fn document(&mut self, descriptor: &Descriptor, bytes: &[u8]) -> anyhow::Result<()> {
        verify_bytes(descriptor, bytes)?;
        self.put(&format!("blobs/sha256/{}", descriptor.digest.hex()), bytes)
    }

    fn name(&mut self, root: &Descriptor) -> anyhow::Result<()> {
        let mut index = match self.path.join("index.json").exists() {
            true => self.index()?,
            false => no_images(),
        };
        add_name(&mut index, root, self.tag.as_deref());
        self.put("index.json", &serde_json::to_vec(&index)?)
    }
}

struct FileSink {
    file: Temporary,
    hasher: Hasher,
    offset: u64,
    blobs: PathBuf,
}

impl FileSink {
    fn new(file: Temporary, blobs: PathBuf) -> Self {
        Self {
            file,
            hasher: Hasher::default(),
            offset: 0,
            blobs,
        }
    }
}

impl Write for FileSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.file.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or(bytes));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for FileSink {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn commit(mut self: Box<Self>, blob: &Descriptor) -> Result<(), Broken> {
        if let Err(error) = verify(blob, self.hasher.clone().finish()) {
            // There is nothing in it that a later try could go on with.
            self.file.keep = false;
            return Err(Broken::Content(error));
        }
        let path = self.blobs.join(blob.digest.hex());
        Ok(self.file.persist(&path)?)
    }

    fn discard(mut self: Box<Self>) {
        self.file.keep = false;
    }
}

/// A file under a name that is not its own yet.
pub(super) struct Temporary {
    pub(super) file: File,
    path: PathBuf,
    /// Whether it stays there when it does not get its name.
    keep: bool,
}

impl Temporary {
    /// A new one; one that an earlier process left is taken away.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
        };
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(path).and_then(|()| open())
            }
            other => other,
        };
        Ok(Self {
            file: file.with_context(|| format!("{} cannot be made", path.display()))?,
            path: path.to_owned(),
            keep: false,
        })
    }

    /// One that an earlier process may have begun, and that a later one may go on with.
    fn go_on(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            keep: true,
        })
    }

    /// Gives it its name, once it is on the disk.
    pub(super) fn persist(mut self, path: &Path) -> anyhow::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, path)
            .with_context(|| format!("{} cannot be made", path.display()))?;
        self.keep = true;
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.keep {
            // Whatever is wrong with it, the next process will meet it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Reads to the end.
fn digest(file: &mut File) -> io::Result<Hasher> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher),
            read => hasher.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

/// Opens a file that is one, without following a link.
fn regular(path: &Path) -> anyhow::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .with_context(|| format!("{} cannot be opened", path.display()))?;
    ensure!(
        file.metadata()?.is_file(),
        "{} is not a regular file",
        path.display()
    );
    Ok(file)
}
