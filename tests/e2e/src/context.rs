//! What a test has in its hands: containers, pods and their output. Whatever it makes is
//! registered here and removed after it, however it ended.

mod container;
mod output;
mod pod;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

pub use self::container::Container;
pub use self::output::Output;
pub use self::pod::{Pod, PodContainer};
use crate::containerd::{Api, State};
use crate::events::Events;
use crate::lab::{Lab, Node, SCRATCH};
use crate::patience::PATIENCE;
use crate::runtime::Runtime;

/// containerd's namespace of everything that is not a pod.
pub const NAMESPACE: &str = "default";

/// A test's hands.
#[derive(Clone, Debug)]
pub struct Context {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    test: String,
    runtime: Runtime,
    lab: Arc<Lab>,
    next: AtomicU32,
    made: Mutex<Vec<Made>>,
    differences: Mutex<Vec<String>>,
}

/// Something to be removed after the test.
#[derive(Clone, Debug)]
enum Made {
    Container { node: Node, id: String },
    Pod { node: Node, id: String },
    Image { node: Node, name: String },
    Folder { path: PathBuf },
    Mount { node: Node, path: String },
    Undone { node: Node, script: String },
}

impl Context {
    /// The hands of the test called `test`.
    pub fn new(test: &str, runtime: Runtime, lab: Arc<Lab>) -> Self {
        Self {
            inner: Arc::new(Inner {
                test: test.replace("::", "-").replace('_', "-"),
                runtime,
                lab,
                next: AtomicU32::new(0),
                made: Mutex::new(Vec::new()),
                differences: Mutex::new(Vec::new()),
            }),
        }
    }

    /// The shim under test.
    pub fn runtime(&self) -> Runtime {
        self.inner.runtime
    }

    /// The first node.
    pub fn a(&self) -> anyhow::Result<&Node> {
        self.inner.lab.node(0)
    }

    /// The second node.
    pub fn b(&self) -> anyhow::Result<&Node> {
        self.inner.lab.node(1)
    }

    /// Whether the peer runs and differs here, which is noted with its reason and printed
    /// at the end. Only cryo is held to what stands in the other branch.
    pub fn differs(&self, reason: &str) -> bool {
        let peer = self.inner.runtime == Runtime::Runc;
        if peer {
            let mut noted = lock(&self.inner.differences);
            if !noted.iter().any(|r| r == reason) {
                noted.push(reason.into());
            }
        }
        peer
    }

    /// The differences met so far.
    pub fn differences(&self) -> Vec<String> {
        lock(&self.inner.differences).clone()
    }

    /// An id that no other test uses.
    pub fn id(&self, what: &str) -> String {
        let n = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let mut id = format!("{}-{what}{n}", self.inner.test);
        // containerd's limit is 76.
        if id.len() > 70 {
            id = id.split_off(id.len() - 70);
        }
        id.trim_start_matches('-').to_owned()
    }

    /// A fresh folder on the node's disk; the path is the node's.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, node: &Node, what: &str) -> anyhow::Result<String> {
        let path = format!("{SCRATCH}/{}", self.id(what));
        std::fs::create_dir_all(node.host(&path)).with_context(|| path.clone())?;
        self.made(Made::Folder {
            path: node.host(&path),
        });
        Ok(path)
    }

    /// A fresh tmpfs with these options (`size=4m` for a disk that fills up); the path is the node's.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub async fn tmpfs(&self, node: &Node, options: &str) -> anyhow::Result<String> {
        let path = self.folder(node, "disk")?;
        node.exec(&["mount", "-t", "tmpfs", "-o", options, "tmpfs", &path])
            .await?
            .success()?;
        self.made(Made::Mount {
            node: node.clone(),
            path: path.clone(),
        });
        Ok(path)
    }

    /// Binds a fresh folder over a path of the node, which comes back after the test; the
    /// folder's path is the node's.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub async fn cover(&self, node: &Node, path: &str) -> anyhow::Result<String> {
        let folder = self.folder(node, "cover")?;
        node.exec(&["mount", "--bind", &folder, path])
            .await?
            .success()?;
        self.made(Made::Mount {
            node: node.clone(),
            path: path.into(),
        });
        Ok(folder)
    }

    /// Has a shell script run on the node after the test, which undoes what the test did there.
    pub fn undo(&self, node: &Node, script: String) {
        self.made(Made::Undone {
            node: node.clone(),
            script,
        });
    }

    /// Registers an image for removal.
    pub fn image(&self, node: &Node, name: &str) {
        self.made(Made::Image {
            node: node.clone(),
            name: name.into(),
        });
    }

    /// Makes a container (no task yet) by `ctr container create`.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub async fn container(
        &self,
        node: &Node,
        image: &str,
        command: &[&str],
    ) -> anyhow::Result<Container> {
        self.container_with(node, &[], image, command).await
    }

    /// As [`Context::container`] with more flags of `ctr container create`.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub async fn container_with(
        &self,
        node: &Node,
        flags: &[&str],
        image: &str,
        command: &[&str],
    ) -> anyhow::Result<Container> {
        let id = self.id("c");
        let container = self.adopt(node, &id)?;
        let mut args = vec![
            "container",
            "create",
            "--runtime",
            self.inner.runtime.containerd_name(),
        ];
        args.extend(flags);
        args.push(image);
        args.push(&id);
        args.extend(command);
        node.ctr(&args).await?;
        Ok(container)
    }

    /// A container that somebody else makes (`ctr run`, `ctr container restore`); it is
    /// removed after the test.
    ///
    /// # Errors
    /// When the id is not one for containerd's API.
    pub fn adopt(&self, node: &Node, id: &str) -> anyhow::Result<Container> {
        self.made(Made::Container {
            node: node.clone(),
            id: id.into(),
        });
        Ok(Container {
            node: node.clone(),
            api: node.api(NAMESPACE)?,
            id: id.into(),
        })
    }

    /// A busybox shell running `script`, started, with its output read.
    ///
    /// # Errors
    /// When any step fails.
    pub async fn shell(&self, node: &Node, script: &str) -> anyhow::Result<(Container, Output)> {
        let container = self
            .container(node, crate::workload::BUSYBOX, &["sh", "-c", script])
            .await?;
        let output = container.create().await?;
        container.start().await?;
        Ok((container, output))
    }

    /// The events of ordinary containers from now on.
    ///
    /// # Errors
    /// When containerd refuses.
    pub async fn events(&self, node: &Node) -> anyhow::Result<Events> {
        Events::subscribe(&node.api(NAMESPACE)?, NAMESPACE).await
    }

    /// Has a pod removed after the test that was made by other means.
    pub fn adopt_pod(&self, node: &Node, id: &str) {
        self.made(Made::Pod {
            node: node.clone(),
            id: id.into(),
        });
    }

    /// Removes a container that somebody else made (`ctr run`), at once.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn clean_up_container(&self, node: &Node, id: &str) -> anyhow::Result<()> {
        remove(Made::Container {
            node: node.clone(),
            id: id.into(),
        })
        .await
    }

    /// Removes everything this test made, newest first.
    ///
    /// # Errors
    /// The first that could not be removed; the others are removed nevertheless.
    pub async fn clean_up(&self) -> anyhow::Result<()> {
        let mut first = Ok(());
        loop {
            let Some(made) = lock(&self.inner.made).pop() else {
                return first;
            };
            let what = format!("{made:?}");
            let done = tokio::time::timeout(2 * PATIENCE, remove(made)).await;
            let done = done.unwrap_or_else(|_| Err(anyhow::anyhow!("it does not end")));
            if first.is_ok() {
                first = done.with_context(|| {
                    format!("clean up {}", what.chars().take(160).collect::<String>())
                });
            }
        }
    }

    fn made(&self, made: Made) {
        lock(&self.inner.made).push(made);
    }
}

async fn remove(made: Made) -> anyhow::Result<()> {
    match made {
        Made::Container { node, id } => {
            let api = node.api(NAMESPACE)?;
            end_task(&api, &id).await?;
            if let Ok(container) = api.container(&id).await {
                api.remove_container(&id).await?;
                if !container.snapshot_key.is_empty() {
                    api.remove_snapshot(&container.snapshotter, &container.snapshot_key)
                        .await
                        .ok();
                }
            }
        }
        Made::Pod { node, id } => {
            node.cri().stop_pod(&id).await?;
            node.cri().remove_pod(&id).await?;
        }
        Made::Image { node, name } => {
            node.api(NAMESPACE)?.remove_image(&name).await.ok();
        }
        Made::Folder { path } => match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        },
        Made::Mount { node, path } => {
            node.exec(&["umount", &path]).await?.success()?;
        }
        Made::Undone { node, script } => {
            node.exec(&["sh", "-c", &script]).await?.success()?;
        }
    }
    Ok(())
}

/// Ends and deletes a task in whatever state it is.
async fn end_task(api: &Api, id: &str) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    while let Ok(state) = api.state(id).await {
        ensure!(
            Instant::now() < end,
            "the task {id} does not go, in state {state:?}"
        );
        match state {
            State::Stopped | State::Unknown => {
                api.delete(id).await.ok();
            }
            State::Paused | State::Pausing => {
                api.resume(id).await.ok();
                api.kill(id, 9).await.ok();
            }
            State::Created => {
                api.kill(id, 9).await.ok();
                api.delete(id).await.ok();
            }
            State::Running => {
                api.kill(id, 9).await.ok();
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
