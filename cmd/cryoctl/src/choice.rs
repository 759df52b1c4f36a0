//! Which container of a pod's archive a command is about.

use std::path::Path;

use anyhow::bail;
use clap::Args;
use cryo_checkpoint::source::Source;

use crate::failure::Failure;
use crate::images;

/// The flag that names it, the same in every command that reads checkpoints.
#[derive(Debug, Args)]
pub(crate) struct Choice {
    /// Of the archive of a pod, this container, as its directory or archive in it is called.
    #[arg(long, value_name = "NAME")]
    pub(crate) container: Option<String>,
}

impl Choice {
    /// Opens the checkpoint of one container.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or has several containers and none of them, or another one, is named.
    pub(crate) fn checkpoint(&self, path: &Path) -> Result<Source, Failure> {
        Ok(self.one(path, images::open(path)?)?)
    }

    /// Opens the checkpoints of all containers, or of the one that is named.
    ///
    /// # Errors
    ///
    /// As [`Choice::checkpoint`], but for several containers.
    pub(crate) fn checkpoints(&self, path: &Path) -> Result<Vec<Source>, Failure> {
        let all = images::open(path)?;
        match self.container {
            None => Ok(all),
            Some(_) => Ok(vec![self.one(path, all)?]),
        }
    }

    /// The one that is named, or the only one.
    ///
    /// # Errors
    ///
    /// When there is no such one.
    pub(crate) fn one(&self, path: &Path, mut all: Vec<Source>) -> anyhow::Result<Source> {
        let path = path.display();
        let names: Vec<_> = all.iter().filter_map(Source::container).collect();
        let names = names.join(", ");
        if let Some(wanted) = &self.container {
            if names.is_empty() {
                bail!("{path} is of one container and of no pod: leave --container out");
            }
            all.retain(|one| one.container() == Some(wanted));
            if all.is_empty() {
                bail!("{path} has no container {wanted}: there are {names}");
            }
        }
        match all.pop() {
            Some(one) if all.is_empty() => Ok(one),
            Some(_) => bail!(
                "{path} is of a pod with several containers: name one by --container: {names}"
            ),
            None => bail!("{path} has no container"),
        }
    }
}
