//! A container of its own, by containerd's tasks.

use std::collections::HashMap;
use std::fs::File;
use std::time::Instant;

use anyhow::{Context, bail};
use cryo_criu_image::Reader;
use cryo_criu_image::stats::RestoreStats;
use serde_json::{Value, json};
use tonic::Code;

use super::source::Source;
use super::{Restore, demands};
use crate::containerd::messages::{
    Any, Container, CreateTask, Descriptor, Empty, Id, Kill, Mount, OneContainer, RuncOptions,
    Runtime,
};
use crate::containerd::{Client, Refused};
use crate::interrupt::{Interrupt, Interrupted};
use crate::shiminfo;
use crate::stats;
use crate::target::Found;
use crate::text;

/// containerd restores a task from this directory, applies what was changed in the root file
/// system, which is beside it, and starts it.
const FROM_PATH: &str = "RestoreFromPath";

/// What the new container is made of.
struct Plan {
    id: String,
    image: String,
    /// The image's root file system.
    chain_id: String,
    runtime: Runtime,
    snapshotter: String,
    labels: HashMap<String, String>,
    spec: Value,
}

pub(super) async fn restore(
    asked: &Restore,
    client: &Client,
    source: &Source,
    interrupt: &Interrupt,
) -> anyhow::Result<String> {
    let began = Instant::now();
    let plan = plan(asked, client, source).await?;
    if !asked.options.given().is_empty() {
        shiminfo::check_installed(client, &plan.runtime.name).await?;
    }
    interrupt.check()?;
    let rootfs = make(client, &plan).await?;
    let started = Instant::now();
    let done = start(asked, client, source, &plan, rootfs).await;
    let took = started.elapsed();
    let done = match done {
        // It cannot be given up halfway.
        Ok(()) if interrupt.came() => Err(Interrupted.into()),
        other => other,
    };
    if let Err(error) = done {
        return match remove(client, &plan).await {
            Ok(()) => Err(error),
            Err(left) => Err(error.context(format!("and something of it is left: {left:#}"))),
        };
    }
    if !asked.print_stats {
        return Ok(format!("{}\n", plan.id));
    }
    let criu = File::open(source.work().join("stats-restore"))
        .map_err(anyhow::Error::from)
        .and_then(|file| {
            let mut entries = Reader::<RestoreStats, _>::new("stats-restore", file)?;
            Ok(entries.next().transpose()?)
        })?;
    text::pretty(&stats::of_restore(began.elapsed(), &plan.id, took, criu))
}

/// What to make, without making anything.
async fn plan(asked: &Restore, client: &Client, source: &Source) -> anyhow::Result<Plan> {
    let config = source.config.as_ref();
    let id = match (&asked.id, config) {
        (Some(id), _) => id.clone(),
        (None, Some(config)) if !config.id.is_empty() => config.id.clone(),
        _ => {
            bail!("the checkpoint does not say what container it is of: name the new one with --id")
        }
    };
    // It goes into paths, here and in containerd, which checks again.
    let fine = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if id.is_empty() || id.len() > 76 || !id.chars().all(fine) || id.starts_with('.') {
        bail!("{id:?} is no id for a container: name one with --id");
    }
    if client.container(&id).await.is_ok() {
        bail!(
            "there is a container {id} in containerd's namespace {} already: remove it, or name another id with --id",
            client.namespace()
        );
    }
    let like = match &asked.like {
        Some(other) => Some(Found::of(client.container(other).await?)?),
        None => None,
    };
    let (spec, runtime, snapshotter, labels) = match &like {
        Some(like) => (
            like.spec.clone(),
            like.record.runtime.clone().unwrap_or_default(),
            like.record.snapshotter.clone(),
            like.record.labels.clone(),
        ),
        None => (
            given(asked, source)?,
            Runtime {
                name: asked.runtime.clone(),
                options: None,
            },
            asked.snapshotter.clone(),
            HashMap::new(),
        ),
    };
    let of_like = like.as_ref().map(|like| like.record.image.clone());
    let image = asked.image.clone().or(of_like).or_else(|| {
        let name = config.map(|config| config.rootfs_image_name.clone());
        name.filter(|name| !name.is_empty())
    });
    let image =
        image.context("the checkpoint does not say what image it is of: name it with --image")?;
    let found = client.image(&image).await?.with_context(|| {
        format!(
            "the image {image} is not here: `ctr --namespace {} images pull {image}`, or name another with --image",
            client.namespace()
        )
    })?;
    let wanted = config
        .map(|config| config.rootfs_image_ref.as_str())
        .unwrap_or_default();
    if asked.image.is_none()
        && like.is_none()
        && let Some((_, digest)) = wanted.split_once('@')
        && digest != found.digest.to_string()
    {
        bail!(
            "the image {image} is another one now: it is {}, and the checkpoint is of {digest}; pull that, or name an image with --image",
            found.digest
        );
    }
    Ok(Plan {
        chain_id: client.chain_id(&found).await?.to_string(),
        spec: adapt(spec, client.namespace(), &id, like.is_some()),
        id,
        image,
        runtime,
        snapshotter,
        labels,
    })
}

/// The checkpoint's own specification, if it may be trusted.
fn given(asked: &Restore, source: &Source) -> anyhow::Result<Value> {
    let Some(spec) = &source.spec else {
        bail!("these are images alone: name a container with the same specification with --like");
    };
    if source.is_of_pod() {
        bail!("it is a checkpoint of a pod's container, which needs a pod: name one with --pod");
    }
    let demands = demands::of(spec);
    if !asked.trust && !demands.is_empty() {
        bail!(
            "the checkpoint asks for more than an ordinary container has: {}; if you know where it comes from, say --trust, or take the specification of another container with --like",
            demands.join(", ")
        );
    }
    Ok(spec.clone())
}

/// The same for a container of this name.
fn adapt(mut spec: Value, namespace: &str, id: &str, trusted: bool) -> Value {
    if let Some(linux) = spec.get_mut("linux").and_then(Value::as_object_mut) {
        linux.insert(
            "cgroupsPath".to_owned(),
            json!(format!("/{namespace}/{id}")),
        );
    }
    // Those of a checkpoint could group it with another container's shim, or name devices.
    if !trusted
        && let Some(annotations) = spec.get_mut("annotations").and_then(Value::as_object_mut)
    {
        annotations.retain(|name, _| {
            name.starts_with("checkpoint.cryo/") || name.starts_with("restore.cryo/")
        });
    }
    spec
}

/// The container, without a process, and how to mount its root file system.
async fn make(client: &Client, plan: &Plan) -> anyhow::Result<Vec<Mount>> {
    client
        .leased(async |client| {
            let rootfs = client
                .prepare(&plan.snapshotter, &plan.id, &plan.chain_id)
                .await?;
            let container = Container {
                id: plan.id.clone(),
                labels: plan.labels.clone(),
                image: plan.image.clone(),
                runtime: Some(plan.runtime.clone()),
                spec: Some(Any {
                    type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(),
                    value: serde_json::to_vec(&plan.spec)?,
                }),
                snapshotter: plan.snapshotter.clone(),
                snapshot_key: plan.id.clone(),
                ..Container::default()
            };
            let method = "/containerd.services.containers.v1.Containers/Create";
            let what = || format!("cannot make the container {}", plan.id);
            let request = OneContainer {
                container: Some(container),
            };
            let made: Result<OneContainer, Refused> = client.call(what, method, request).await;
            if let Err(error) = made {
                client.remove_snapshot(&plan.snapshotter, &plan.id).await?;
                return Err(error.into());
            }
            Ok(rootfs)
        })
        .await
}

async fn start(
    asked: &Restore,
    client: &Client,
    source: &Source,
    plan: &Plan,
    rootfs: Vec<Mount>,
) -> anyhow::Result<()> {
    let text = |path: &std::path::Path| {
        let text = path.to_str().map(str::to_owned);
        text.with_context(|| format!("{} is not UTF-8, as containerd wants it", path.display()))
    };
    let log = match &asked.log {
        Some(log) => format!("file://{}", text(&std::path::absolute(log)?)?),
        None => String::new(),
    };
    let options = RuncOptions {
        criu_image_path: String::new(),
        criu_work_path: text(source.work())?,
        cryo: asked.options.given(),
    };
    let terminal = plan.spec.pointer("/process/terminal");
    let request = CreateTask {
        container_id: plan.id.clone(),
        rootfs,
        stdout: log.clone(),
        stderr: log,
        terminal: terminal.and_then(Value::as_bool).unwrap_or_default(),
        checkpoint: Some(Descriptor {
            annotations: HashMap::from([(FROM_PATH.to_owned(), text(source.images())?)]),
            ..Descriptor::default()
        }),
        options: Some(options.any()),
        ..CreateTask::default()
    };
    let what = || format!("cannot restore {}", plan.id);
    let method = "/containerd.services.tasks.v1.Tasks/Create";
    let _: Empty = client
        .call_within(asked.limit(), what, method, request)
        .await?;
    Ok(())
}

/// Removes what there is of a container that failed.
async fn remove(client: &Client, plan: &Plan) -> anyhow::Result<()> {
    let gone = |result: Result<Empty, Refused>| match result {
        Err(e) if e.code() != Code::NotFound => Err(e),
        _ => Ok(()),
    };
    if let Ok(task) = client.task(&plan.id).await {
        let method = "/containerd.services.tasks.v1.Tasks/Kill";
        let what = || format!("cannot end {}", plan.id);
        let kill = Kill {
            container_id: plan.id.clone(),
            signal: 9,
            all: true,
        };
        if task.pid != 0 {
            let _ = client.call::<_, Empty>(what, method, kill).await;
            let method = "/containerd.services.tasks.v1.Tasks/Wait";
            let what = || format!("{} does not end", plan.id);
            let _ = client
                .call::<_, Empty>(what, method, Id::of(&plan.id))
                .await;
        }
        let method = "/containerd.services.tasks.v1.Tasks/Delete";
        let what = || format!("cannot remove the task of {}", plan.id);
        gone(client.call(what, method, Id::of(&plan.id)).await)?;
    }
    let method = "/containerd.services.containers.v1.Containers/Delete";
    let what = || format!("cannot remove the container {}", plan.id);
    gone(client.call(what, method, Id::of(&plan.id)).await)?;
    match client.remove_snapshot(&plan.snapshotter, &plan.id).await {
        Err(e) if e.code() != Code::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_old_container_are_not_kept() {
        let spec = json!({
            "annotations": {
                "io.containerd.runc.v2.group": "other",
                "checkpoint.cryo/tcp-close": "true",
            },
            "linux": {"cgroupsPath": "/other"},
        });
        let adapted = adapt(spec.clone(), "default", "c2", false);
        let wanted = json!({
            "annotations": {"checkpoint.cryo/tcp-close": "true"},
            "linux": {"cgroupsPath": "/default/c2"},
        });
        assert_eq!(adapted, wanted);
        let kept = adapt(spec, "default", "c2", true);
        assert_eq!(kept["annotations"]["io.containerd.runc.v2.group"], "other");
    }
}
