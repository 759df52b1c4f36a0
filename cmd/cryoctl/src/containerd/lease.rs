//! Leases: what they hold, containerd does not collect.
//!
//! A lease is given back when its work is done. That of a process that was killed ends after a
//! day, or when the next one is done with its own: by then that holds what it needs of it.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::Context;

use super::messages::{AddResource, Empty, Id, Lease, ListLeasesResponse, Resource};
use super::{Client, Refused};

/// A lease that nobody gives back ends by itself after this time.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// The label that has containerd end it.
const EXPIRES: &str = "containerd.io/gc.expire";

/// The label that says whose it is.
const OWNER: &str = "cryo/owner";

impl Client {
    /// The same client with a lease, which holds what comes into containerd's store by it until
    /// [`Client::release`].
    ///
    /// # Errors
    ///
    /// When containerd gives none.
    pub(crate) async fn with_lease(&self) -> anyhow::Result<Self> {
        let number = fs::read_to_string("/proc/sys/kernel/random/uuid");
        let number = number.context("no random name for a lease")?;
        let id = format!("cryoctl-{}", number.trim());
        let expires = crate::text::rfc3339(SystemTime::now() + LEASE);
        let mut labels = HashMap::from([(EXPIRES.to_owned(), expires)]);
        labels.extend(Owner::this().map(|owner| (OWNER.to_owned(), owner.text())));
        let lease = Lease {
            id: id.clone(),
            labels,
        };
        let method = "/containerd.services.leases.v1.Leases/Create";
        let what = || "containerd gives no lease".to_owned();
        let _: Empty = self.call(what, method, lease).await?;
        Ok(Self {
            lease: Some(id.parse().context("the lease's name")?),
            ..self.clone()
        })
    }

    /// The name of the lease; empty without one.
    pub(crate) fn lease(&self) -> &str {
        let lease = self.lease.as_ref();
        lease.and_then(|id| id.to_str().ok()).unwrap_or_default()
    }

    /// Has the lease hold what may be there already: a blob (`content`) or a snapshot
    /// (`snapshots/SNAPSHOTTER`).
    pub(crate) async fn hold(&self, kind: &str, id: &str) -> Result<(), Refused> {
        if self.lease.is_none() {
            return Ok(());
        }
        let request = AddResource {
            id: self.lease().to_owned(),
            resource: Some(Resource {
                id: id.to_owned(),
                kind: kind.to_owned(),
            }),
        };
        let method = "/containerd.services.leases.v1.Leases/AddResource";
        let what = || format!("cannot hold {id}");
        self.call::<_, Empty>(what, method, request).await.map(drop)
    }

    /// Gives the lease back, and those of processes that are gone.
    ///
    /// # Errors
    ///
    /// containerd's, of the own lease: what of the others stays ends by itself.
    pub(crate) async fn release(self) -> Result<(), Refused> {
        let own = self.delete_lease(self.lease()).await;
        let method = "/containerd.services.leases.v1.Leases/List";
        let what = || "cannot list leases".to_owned();
        let listed: Result<ListLeasesResponse, _> = self.call(what, method, Empty {}).await;
        for lease in listed.map(|all| all.leases).unwrap_or_default() {
            let owner = lease.labels.get(OWNER);
            if owner.is_some_and(|owner| Owner::is_gone(owner)) {
                let _ = self.delete_lease(&lease.id).await;
            }
        }
        own
    }

    async fn delete_lease(&self, id: &str) -> Result<(), Refused> {
        let method = "/containerd.services.leases.v1.Leases/Delete";
        let what = || format!("cannot give the lease {id} back");
        let request = Id::of(id);
        self.call::<_, Empty>(what, method, request).await.map(drop)
    }

    /// Runs work whose results in containerd's store are not collected before it ends.
    ///
    /// # Errors
    ///
    /// Those of the work, and when containerd gives no lease.
    pub(crate) async fn leased<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let leased = self.with_lease().await?;
        let done = work(&leased).await;
        let given_back = leased.release().await;
        let done = done?;
        given_back?;
        Ok(done)
    }
}

/// A process, so that it is told from a later one with its number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    boot: String,
    pid_namespace: String,
    pid: u32,
    /// When it began, in ticks since the boot.
    began: u64,
}

impl Owner {
    fn this() -> Option<Self> {
        let pid = std::process::id();
        Some(Self {
            boot: boot()?,
            pid_namespace: pid_namespace()?,
            pid,
            began: began(pid)?,
        })
    }

    fn text(&self) -> String {
        let Self {
            boot,
            pid_namespace,
            pid,
            began,
        } = self;
        format!("{boot} {pid_namespace} {pid} {began}")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        Some(Self {
            boot: words.next()?.to_owned(),
            pid_namespace: words.next()?.to_owned(),
            pid: words.next()?.parse().ok()?,
            began: words.next()?.parse().ok()?,
        })
    }

    /// Whether that process has ended for sure. Of one in another pid namespace nothing is known.
    fn is_gone(text: &str) -> bool {
        let (Some(owner), Some(boot), Some(namespace)) =
            (Self::parse(text), boot(), pid_namespace())
        else {
            return false;
        };
        if owner.boot != boot {
            return true;
        }
        owner.pid_namespace == namespace && began(owner.pid) != Some(owner.began)
    }
}

fn boot() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(boot.trim().to_owned())
}

fn pid_namespace() -> Option<String> {
    let link = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(link.to_str()?.to_owned())
}

fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, which may have anything in it, ends with the last bracket; it is field 2, this 22.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_gone_when_it_is() {
        let this = Owner::this().unwrap();
        assert_eq!(Owner::parse(&this.text()), Some(this.clone()));
        assert!(!Owner::is_gone(&this.text()));
        let later = Owner {
            began: this.began + 1,
            ..this.clone()
        };
        let elsewhere = Owner {
            pid_namespace: "pid:[1]".to_owned(),
            ..later.clone()
        };
        let before = Owner {
            boot: "another".to_owned(),
            ..elsewhere.clone()
        };
        assert!(Owner::is_gone(&later.text()));
        assert!(!Owner::is_gone(&elsewhere.text()));
        assert!(Owner::is_gone(&before.text()));
        for text in ["", "a b", "a b c d"] {
            assert!(!Owner::is_gone(text), "{text:?}");
        }
    }
}
