//! Who a user is in the container, from within it.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

/// What is read of `/etc/passwd` at most.
const PASSWD_BYTES: u64 = 1024 * 1024;

/// The home directory of a user.
pub(super) fn home(uid: u32) -> String {
    passwd(Path::new("/etc/passwd"))
        .as_deref()
        .and_then(|text| home_in(text, uid))
        .unwrap_or("/")
        .to_owned()
}

/// The container made the file: it may be a fifo, or endless.
fn passwd(path: &Path) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(CWD, path, flags, Mode::empty()).ok()?);
    file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let mut bytes = Vec::new();
    file.take(PASSWD_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.nth(2)?.parse() == Ok(uid)).then_some(())?;
        fields.nth(2).filter(|home| !home.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::fs::FileType;

    use super::*;

    #[test]
    fn homes() {
        let text = "root:x:0:0:root:/root:/bin/sh\nbroken\nnobody:x:65534:1:n:/none:\ne:x:5:5::\n";
        assert_eq!(home_in(text, 0), Some("/root"));
        assert_eq!(home_in(text, 65534), Some("/none"));
        assert_eq!(home_in(text, 5), None);
        assert_eq!(home_in(text, 7), None);
    }

    #[test]
    fn a_fifo_for_a_passwd_does_not_hang() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(passwd(&path), None);
    }

    proptest! {
        #[test]
        fn any_passwd_is_read(text in "([a-z0-9:]{0,20}\n?){0,5}", uid: u32) {
            let _ = home_in(&text, uid);
        }
    }
}
