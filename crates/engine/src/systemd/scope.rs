//! Where a container goes that systemd is to place: `slice:prefix:name`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::spec::Error;

/// The longest name that a unit of systemd may have.
const MAX_NAME: usize = 255;

/// A container's scope: the unit `prefix-name.scope` below a slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    slice: String,
    unit: String,
    path: PathBuf,
}

impl Scope {
    /// Reads `linux.cgroupsPath` as runc does with `SystemdCgroup`: no slice is
    /// `system.slice`, and no path at all a scope of the container's own there.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when it is not `slice:prefix:name`, or would not
    /// be names of units.
    pub fn parse(cgroups_path: &Path, id: &str) -> Result<Self, Error> {
        let bad = |remedy| Error::Unsupported {
            what: format!("linux.cgroupsPath {cgroups_path:?}"),
            remedy,
        };
        const FORM: &str = "with SystemdCgroup it has to be SLICE:PREFIX:NAME, such as \
             system.slice:cryo:NAME; is the kubelet's cgroupDriver systemd, too?";
        let text = cgroups_path.to_str().ok_or_else(|| bad(FORM))?;
        let own = format!(":cryo:{id}");
        let text = if text.is_empty() { &own } else { text };
        let mut parts = text.split(':');
        let (Some(slice), Some(prefix), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad(FORM));
        };
        let slice = if slice.is_empty() {
            "system.slice"
        } else {
            slice
        };
        if name.ends_with(".slice") {
            return Err(bad(
                "a slice has no processes of its own; give the container a NAME without .slice",
            ));
        }
        if name.is_empty() {
            return Err(bad(FORM));
        }
        let unit = format!("{prefix}-{name}.scope");
        for name in [slice, unit.as_str()] {
            if name.len() > MAX_NAME || !name.chars().all(is_of_a_unit) {
                return Err(bad(
                    "the name of a unit is of letters, digits and _.-\\, 255 at most",
                ));
            }
        }
        let path = expand(slice)
            .ok_or_else(|| {
                bad("a slice is NAME.slice, below others as in a-b.slice, without empty parts")
            })?
            .join(&unit);
        Ok(Self {
            slice: slice.to_owned(),
            unit,
            path,
        })
    }

    /// The slice's unit.
    #[must_use]
    pub fn slice(&self) -> &str {
        &self.slice
    }

    /// The scope's unit.
    #[must_use]
    pub fn unit(&self) -> &str {
        &self.unit
    }

    /// Its cgroup, with a leading slash.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn is_of_a_unit(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '\\')
}

/// The cgroup of a slice: `a-b.slice` is below `a.slice`, and `-.slice` is the root.
fn expand(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice")?;
    let mut path = PathBuf::from("/");
    if name == "-" {
        return Some(path);
    }
    let mut so_far = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        so_far = if so_far.is_empty() {
            part.to_owned()
        } else {
            format!("{so_far}-{part}")
        };
        path.push(format!("{so_far}.slice"));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Scope, Error> {
        Scope::parse(Path::new(text), "id")
    }

    #[test]
    fn paths_are_expanded_as_runc_does() {
        for (text, slice, path) in [
            (
                "kubepods-burstable-pod1_2.slice:cri-containerd:abc",
                "kubepods-burstable-pod1_2.slice",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-abc.scope",
            ),
            (
                "machine.slice:libpod:x",
                "machine.slice",
                "/machine.slice/libpod-x.scope",
            ),
            (":docker:x", "system.slice", "/system.slice/docker-x.scope"),
            ("-.slice:a:b", "-.slice", "/a-b.scope"),
            ("a.slice::b", "a.slice", "/a.slice/-b.scope"),
            ("", "system.slice", "/system.slice/cryo-id.scope"),
        ] {
            let scope = parse(text).unwrap();
            assert_eq!(
                (scope.slice(), scope.path()),
                (slice, Path::new(path)),
                "{text}"
            );
            assert!(scope.path().ends_with(scope.unit()), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_of_a_unit_is_refused() {
        let long = format!("a.slice:p:{}", "n".repeat(250));
        for text in [
            "/default/x",
            "a.slice:x",
            "a.slice:b:c:d",
            "a.slice:b:",
            "a.slice:b:c.slice",
            "a:b:c",
            ".slice:b:c",
            "a-.slice:b:c",
            "-a.slice:b:c",
            "a--b.slice:b:c",
            "../a.slice:b:c",
            "a/b.slice:b:c",
            "a.slice:../b:c",
            "a.slice:b:c/../../d",
            "a.slice:b:c d",
            "a.slice:b:c\n",
            "a.slice:b@:c",
            "a.slice:b:\u{e9}",
            long.as_str(),
        ] {
            assert!(
                matches!(parse(text), Err(Error::Unsupported { .. })),
                "{text:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_path_leads_out_of_its_slices(text in "[a-z./:@\\\\ -]{0,40}") {
            if let Ok(scope) = parse(&text) {
                let names = scope.path().strip_prefix("/").unwrap();
                prop_assert!(names.components().all(|c| matches!(c, std::path::Component::Normal(_))));
                prop_assert!(scope.unit().ends_with(".scope"));
            }
        }
    }
}
