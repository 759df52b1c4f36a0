//! The host name of a pod that a restored container joins.
//!
//! CRIU writes the host and the domain name of the checkpoint into the namespace that the
//! container is restored in, be it that of a pod that lives and has a name. [`Names`] has what
//! was there before, and puts it back.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cryo_engine::mountpoint;
use rustix::system::{setdomainname, sethostname, uname};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Host and domain name.
type Pair = (CString, CString);

/// The names of the namespaces that are being restored into, by inode, and by how many: the
/// second of two at once would find what CRIU wrote for the first.
static IN_USE: Mutex<BTreeMap<u64, (Pair, usize)>> = Mutex::new(BTreeMap::new());

/// The names of a uts namespace, which come back when this is dropped.
#[derive(Debug)]
pub(super) struct Names {
    namespace: OwnedFd,
    inode: u64,
    names: Pair,
}

impl Names {
    /// Those of the namespace that this path is.
    ///
    /// # Errors
    ///
    /// When it cannot be opened or entered.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let (namespace, inode) = mountpoint::open_namespace(path)?;
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        let names = match in_use.get_mut(&inode) {
            Some((names, users)) => {
                *users += 1;
                names.clone()
            }
            None => {
                let names = within(&namespace, || {
                    let found = uname();
                    Ok((found.nodename().to_owned(), found.domainname().to_owned()))
                })?;
                in_use.insert(inode, (names.clone(), 1));
                names
            }
        };
        Ok(Self {
            namespace,
            inode,
            names,
        })
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let (host, domain) = &self.names;
        let result = within(&self.namespace, || {
            sethostname(host.to_bytes())?;
            Ok(setdomainname(domain.to_bytes())?)
        });
        if let Err(error) = result {
            tracing::error!(%error, ?host, "the pod has the host name of the checkpoint");
        }
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, users)) = in_use.get_mut(&self.inode) {
            *users -= 1;
            if *users == 0 {
                in_use.remove(&self.inode);
            }
        }
    }
}

/// Does something in a uts namespace, in a thread that ends with it.
fn within<T: Send>(
    namespace: &OwnedFd,
    act: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("uts".to_owned())
            .spawn_scoped(scope, || {
                let kind = LinkNameSpaceType::HostNameAndNISDomainName;
                move_into_link_name_space(namespace.as_fd(), Some(kind))?;
                act()
            })?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread for it panicked")))
    })
}
