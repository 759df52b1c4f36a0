//! The modes of the program that need containers: the long-lived process, and
//! the cleanup after one that died.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::shim_async::create_task;
use cryo_criu::config;
use cryo_engine::Zygote;
use cryo_sys::heap;

use crate::args::Flags;
use crate::bootstrap::{self, socket};
use crate::debug::{self, DebugSocket};
use crate::entry::{BoxError, Entry, init_log};
use crate::events::{self, EventSink, Publisher};
use crate::serve::{self, Shutdown};

use crate::task::context::{STATE_ROOT, Shared};
use crate::task::delete::{self, Ended};
use crate::task::reaper::Reaper;
use crate::task::service::Service;

/// How long `delete` waits for containerd to take its events: nobody else tells of these ends.
const FORWARD_LIMIT: Duration = Duration::from_secs(30);

/// The program's modes.
pub const ENTRY: Entry = Entry {
    serve,
    delete: clean_up,
    annotations: HashMap::new,
};

/// The long-lived process: its zygote first, while there is one thread, then
/// the service.
fn serve(flags: &Flags) -> Result<(), BoxError> {
    let listener = serve::take_listener()?;
    serve::become_subreaper()?;
    let zygote = Zygote::spawn()?;
    heap::share_one();
    // One thread for the service, and one for the blocking call of each running
    // operation, which goes away soon after: then the shim is at rest.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .thread_keep_alive(Duration::from_secs(1))
        .on_thread_stop(heap::trim)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        init_log(flags);
        let reaper = Reaper::start()?;
        let zygote_pid = zygote.pid();
        let (_pidfd, zygote_exit) = reaper.watch(zygote_pid)?;
        let publisher = publisher(flags);
        let service = Service::new(Arc::new(Shared {
            namespace: flags.namespace.clone(),
            engine: Arc::new(zygote),
            events: publisher.clone(),
            reaper,
            state_root: state_root(Path::new(".")),
            config: PathBuf::from(config::PATH),
        }));
        tokio::spawn(async move {
            if zygote_exit.await.is_ok() {
                tracing::error!("the zygote is gone: no container can be made any more");
            }
        });
        let debug = debug_socket(flags, &service);
        let shutdown = Shutdown::new();
        let (finished, trigger) = (service.clone(), shutdown.clone());
        tokio::spawn(async move {
            finished.finished().await;
            trigger.trigger();
        });
        let services = serve::both_versions(create_task(Arc::new(service.clone())));
        let dump = async || {
            for line in service.dump().await.lines() {
                tracing::info!("{line}");
            }
        };
        let flush = async |limit| {
            if let Err(error) = publisher.flush(limit).await {
                tracing::warn!(%error, "events are lost");
            }
        };
        serve::serve(listener, services, shutdown, dump, flush).await?;
        drop(debug);
        Ok::<_, BoxError>(())
    })
}

/// A shim without one is better than none.
fn debug_socket(flags: &Flags, service: &Service) -> Option<DebugSocket> {
    let path = debug::path(&state_root(Path::new(".")), &flags.namespace, &flags.id);
    let service = service.clone();
    let state = move || {
        let service = service.clone();
        // Plain data cannot fail to serialize.
        async move { serde_json::to_string_pretty(&service.dump().await).unwrap_or_default() + "\n" }
    };
    DebugSocket::serve(&path, state)
        .inspect_err(|error| tracing::warn!(%error, "no debug socket"))
        .ok()
}

/// Where the state of a shim is that was started for this bundle.
fn state_root(bundle: &Path) -> PathBuf {
    bootstrap::state_root_of(bundle).unwrap_or_else(|| PathBuf::from(STATE_ROOT))
}

fn publisher(flags: &Flags) -> Arc<Publisher> {
    let address =
        std::env::var("TTRPC_ADDRESS").unwrap_or_else(|_| format!("{}.ttrpc", flags.address));
    Arc::new(Publisher::new(
        &address,
        &flags.namespace,
        events::Config::default(),
    ))
}

/// `delete`: containerd calls it when the shim's connection has ended.
fn clean_up(flags: &Flags) -> Result<DeleteResponse, BoxError> {
    let state_root = state_root(&flags.bundle);
    // containerd gives five seconds, then it kills: what CRI waits for comes first.
    let group = delete::Group::find(&state_root, &flags.namespace, &flags.id);
    let others = group.kill();
    let exit = delete::killed();
    // While there is one thread.
    let zygote = Zygote::spawn()?;
    let (told, removed) = std::thread::scope(|scope| {
        let telling = scope.spawn(|| forward_exits(flags, &others));
        let removed = group.remove(&zygote);
        let told = telling.join();
        (told.unwrap_or_else(|_| Err("panicked".into())), removed)
    });
    removed?;
    told?;
    // The dead shim could not; if it was of a group, this is the group's id.
    let dir = bootstrap::socket_dir_of(&flags.bundle);
    let socket = socket::path(&dir, &flags.address, &flags.namespace, &flags.id)?;
    socket::remove_stale(&socket)?;
    socket::remove_stale(&debug::path(&state_root, &flags.namespace, &flags.id))?;
    let mut answer = DeleteResponse::new();
    answer.exit_status = exit.status;
    answer.exited_at = Some(events::timestamp(exit.at)).into();
    Ok(answer)
}

/// Tells containerd of the ends of the pod's other containers: of these it
/// hears from nobody else.
fn forward_exits(flags: &Flags, ended: &[Ended]) -> Result<(), BoxError> {
    if ended.is_empty() {
        return Ok(());
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let publisher = publisher(flags);
            for Ended { id, exit } in ended {
                let sink: &dyn EventSink = &*publisher;
                events::exit(sink, id, id, 0, exit.status, exit.at);
            }
            Ok(publisher.flush(FORWARD_LIMIT).await?)
        })
}
