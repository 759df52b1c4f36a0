//! The cases of containers that restore, with cryo and with the Go shim, in the lab; writes
//! `docs/compatibility.md` and fails on what must not be. `make compatibility`, as root.
#![forbid(unsafe_code)]

use std::sync::Arc;

use anyhow::{bail, ensure};
use cryo_e2e::compat::{CASES, is_whole_failure, judge, page, run, run_one_by_one};
use cryo_e2e::context::Context;
use cryo_e2e::crictl::TOOLS;
use cryo_e2e::lab::{Lab, make_tool, repository};
use cryo_e2e::runtime::Runtime;

/// A node for each, so that neither finds what the other left.
const NODES: [&str; 2] = ["e2e-compat-a", "e2e-compat-b"];

fn main() -> anyhow::Result<()> {
    if let Some(reason) = Lab::missing(Runtime::Cryo) {
        bail!(reason);
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(compatibility())
}

async fn compatibility() -> anyhow::Result<()> {
    for tool in TOOLS {
        make_tool(tool).await?;
    }
    let mut wrong = Vec::new();
    let mut cryo = Vec::new();
    let mut peer = Vec::new();
    for (node, runtime) in NODES.into_iter().zip([Runtime::Cryo, Runtime::Runc]) {
        let lab = Arc::new(Lab::up(&[node]).await?);
        for case in CASES {
            println!("{} with {}", case.name, runtime.name());
            let cx = Context::new(case.name, runtime, Arc::clone(&lab));
            let mut rows = run(&cx, case).await?;
            if runtime == Runtime::Runc && is_whole_failure(&rows) {
                rows = run_one_by_one(&cx, case).await?;
            }
            let cleaned = cx.clean_up().await;
            match runtime {
                Runtime::Cryo => {
                    cleaned?;
                    wrong.extend(judge(case, &rows));
                    cryo.extend(rows);
                }
                Runtime::Runc => {
                    if let Err(error) = cleaned {
                        println!("left behind: {error:#}");
                    }
                    peer.extend(rows);
                }
            }
        }
        if let Some(lab) = Arc::into_inner(lab) {
            lab.down()?;
        }
    }
    std::fs::write(
        repository().join("docs/compatibility.md"),
        page(&cryo, &peer),
    )?;
    println!("wrote docs/compatibility.md");
    ensure!(wrong.is_empty(), "\n  {}", wrong.join("\n  "));
    Ok(())
}
