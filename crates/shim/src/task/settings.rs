//! The options of a checkpoint or restore, gathered from all who may set them.

use std::fs;
use std::path::Path;

use cryo_criu::config::Config;
use cryo_criu::options::{self, Checkpoint, Layer, Raw, Refused, Restore, Source, Table};
use cryo_criu::{Criu, Probe};
use cryo_engine::spec;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use prost::Message as _;
use protobuf::well_known_types::any::Any;

use super::context::Context;
use super::criu::from_criu;
use crate::rpc::TaskError;

/// What a container's annotations say. They are judged when it is made: whoever misspelt one
/// learns it then, and not from the one checkpoint that mattered.
#[derive(Debug)]
pub struct Annotations {
    checkpoint: Layer<Checkpoint>,
    restore: Layer<Restore>,
}

impl Annotations {
    /// Reads those of a specification.
    ///
    /// # Errors
    ///
    /// InvalidArgument for one under our names that is not known, or not for annotations.
    pub fn read(spec: &Spec) -> Result<Self, TaskError> {
        let all = || spec.annotations().iter().flatten();
        Ok(Self {
            checkpoint: Layer::annotations(all()).map_err(invalid)?,
            restore: Layer::annotations(all()).map_err(invalid)?,
        })
    }
}

/// The options of this checkpoint.
pub(super) fn of_checkpoint(
    context: &Context,
    config: &Config,
    request: &Layer<Checkpoint>,
    criu: &Criu,
) -> Result<Checkpoint, TaskError> {
    let layers = [&config.checkpoint, &context.annotations.checkpoint, request];
    let options = options::resolve(&layers, &probe(criu)?).map_err(unmet)?;
    check_empty_netns(options.empty_netns, &context.spec)?;
    Ok(options)
}

/// The options of this restore.
pub(super) fn of_restore(
    context: &Context,
    config: &Config,
    criu: &Criu,
) -> Result<Restore, TaskError> {
    let mut request = Layer::new(Source::Request);
    put_all(&mut request, &context.options.restore)?;
    let layers = [&config.restore, &context.annotations.restore, &request];
    let options = options::resolve(&layers, &probe(criu)?).map_err(unmet)?;
    check_empty_netns(options.empty_netns, &context.spec)?;
    check_lsm(&options, in_use)?;
    check_lazy(&options, &context.spec)?;
    Ok(options)
}

fn probe(criu: &Criu) -> Result<Probe, TaskError> {
    criu.probe().map_err(from_criu)
}

/// A pod's network is not the container's: an empty one in its place would be a surprise.
fn check_empty_netns(empty: bool, spec: &Spec) -> Result<(), TaskError> {
    let own = spec::namespace(spec, LinuxNamespaceType::Network) == spec::Namespace::New;
    if empty && !own {
        return Err(TaskError::FailedPrecondition(
            "empty-ns: the container has no network namespace of its own that could be empty: leave the option out".to_owned(),
        ));
    }
    Ok(())
}

/// CRIU would find it out only with the processes half restored.
fn check_lsm(options: &Restore, in_use: impl Fn(&str) -> bool) -> Result<(), TaskError> {
    let profile = options.lsm_profile.as_deref();
    let lsm = profile.and_then(|p| p.split_once(':')).map(|(lsm, _)| lsm);
    let context = options.lsm_mount_context.as_ref().map(|_| "selinux");
    for (option, lsm) in [("lsm-profile", lsm), ("lsm-mount-context", context)] {
        if let Some(lsm) = lsm.filter(|lsm| !in_use(lsm)) {
            return Err(TaskError::FailedPrecondition(format!(
                "[restore] {option}: {lsm} is not in use on this node: leave the option out, or start the kernel with it"
            )));
        }
    }
    Ok(())
}

/// Memory that is not there yet.
fn check_lazy(options: &Restore, spec: &Spec) -> Result<(), TaskError> {
    let refused = |why: &str| {
        Err(TaskError::FailedPrecondition(format!(
            "lazy-pages: {why}: leave the option out"
        )))
    };
    if !options.lazy_pages {
        return Ok(());
    }
    if spec::namespace(spec, LinuxNamespaceType::User) != spec::Namespace::Host {
        return refused(
            "the container has a user namespace, in which the kernel gives out no userfaultfd that tells of forks",
        );
    }
    if options.auto_dedup {
        return refused(
            "memory that is still to come cannot be cut out of the images (auto-dedup)",
        );
    }
    Ok(())
}

fn in_use(lsm: &str) -> bool {
    match lsm {
        "apparmor" => fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.starts_with('Y')),
        "selinux" => Path::new("/sys/fs/selinux/enforce").exists(),
        _ => false,
    }
}

fn invalid(error: Refused) -> TaskError {
    TaskError::InvalidArgument(error.to_string())
}

fn unmet(error: Refused) -> TaskError {
    TaskError::FailedPrecondition(error.to_string())
}

/// `containerd.runc.v1.CheckpointOptions`, with the field that came in 2026.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CheckpointOptions {
    #[prost(bool, tag = "1")]
    pub(super) exit: bool,
    #[prost(bool, tag = "2")]
    open_tcp: bool,
    #[prost(bool, tag = "3")]
    external_unix_sockets: bool,
    #[prost(bool, tag = "4")]
    terminal: bool,
    #[prost(bool, tag = "5")]
    file_locks: bool,
    #[prost(string, repeated, tag = "6")]
    empty_namespaces: Vec<String>,
    #[prost(string, tag = "7")]
    cgroups_mode: String,
    #[prost(string, tag = "8")]
    pub(super) image_path: String,
    #[prost(string, tag = "9")]
    pub(super) work_path: String,
    #[prost(string, tag = "10")]
    parent_path: String,
    /// Our own: `NAME=VALUE` of any option. containerd passes on what it does not know.
    #[prost(string, repeated, tag = "7601")]
    cryo: Vec<String>,
}

impl CheckpointOptions {
    /// Reads a request's; none is the default.
    pub(super) fn read(any: Option<&Any>) -> Result<Self, TaskError> {
        let Some(any) = any else {
            return Ok(Self::default());
        };
        if any.type_url.rsplit('/').next() != Some("containerd.runc.v1.CheckpointOptions") {
            return Err(TaskError::InvalidArgument(format!(
                "checkpoint options of type {} are not known: send containerd.runc.v1.CheckpointOptions or none",
                any.type_url
            )));
        }
        Self::decode(&*any.value).map_err(|e| {
            TaskError::InvalidArgument(format!("the checkpoint options cannot be decoded: {e}"))
        })
    }

    /// Those that are in the table. A field that is not set says nothing: the others decide.
    pub(super) fn layer(&self) -> Result<Layer<Checkpoint>, TaskError> {
        let mut layer = Layer::new(Source::Request);
        let mut put = |name, raw| layer.put(name, raw).map_err(invalid);
        for (name, on) in [
            ("tcp-established", self.open_tcp),
            ("ext-unix-sk", self.external_unix_sockets),
            ("shell-job", self.terminal),
            ("file-locks", self.file_locks),
        ] {
            if on {
                put(name, Raw::Bool(true))?;
            }
        }
        for namespace in &self.empty_namespaces {
            put("empty-ns", Raw::Text(namespace))?;
        }
        for (name, text) in [
            ("manage-cgroups", &self.cgroups_mode),
            ("parent-path", &self.parent_path),
        ] {
            if !text.is_empty() {
                put(name, Raw::Text(text))?;
            }
        }
        put_all(&mut layer, &self.cryo)?;
        Ok(layer)
    }
}

/// Adds `NAME=VALUE` of a request.
fn put_all<T: Table>(layer: &mut Layer<T>, given: &[String]) -> Result<(), TaskError> {
    for option in given {
        let (name, value) = option.split_once('=').unwrap_or((option, "true"));
        layer.put(name, Raw::Text(value)).map_err(invalid)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
