//! The cases of containers that restore, with cryo and with the Go shim, in the lab; writes
//! `docs/compatibility.md` and fails on what must not be. `make compatibility`, as root.
//!
//! With words in the command line only the cases that have one in their name are run, and their
//! rows are printed instead: `cargo run -p cryo-e2e --bin cryo-compat -- redis nginx`.
#![forbid(unsafe_code)]

use std::sync::Arc;

use anyhow::ensure;
use cryo_e2e::compat::{CASES, Case, judge, page, run, run_peer};
use cryo_e2e::context::Context;
use cryo_e2e::crictl::TOOLS;
use cryo_e2e::lab::{Lab, repository, work_with};
use cryo_e2e::runtime::Runtime;

/// Two nodes for each, so that neither finds what the other left.
const NODES: [[&str; 2]; 2] = [
    ["e2e-compat-a", "e2e-compat-b"],
    ["e2e-compat-c", "e2e-compat-d"],
];

fn main() -> anyhow::Result<()> {
    work_with(TOOLS, compatibility())
}

async fn compatibility() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |case: &Case| words.is_empty() || words.iter().any(|w| case.name.contains(w));
    let mut wrong = Vec::new();
    let mut cryo = Vec::new();
    let mut peer = Vec::new();
    for (nodes, runtime) in NODES.into_iter().zip([Runtime::Cryo, Runtime::Runc]) {
        let lab = Arc::new(Lab::up(&nodes).await?);
        for case in CASES.iter().filter(|case| wanted(case)) {
            println!("{} with {}", case.name, runtime.name());
            let cx = Context::new(case.name, runtime, Arc::clone(&lab));
            let rows = match runtime {
                Runtime::Cryo => run(&cx, case).await?,
                Runtime::Runc => run_peer(&cx, case).await?,
            };
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
    let page = page(&cryo, &peer);
    if words.is_empty() {
        std::fs::write(repository().join("docs/compatibility.md"), page)?;
        println!("wrote docs/compatibility.md");
    } else {
        println!("{page}");
    }
    ensure!(wrong.is_empty(), "\n  {}", wrong.join("\n  "));
    Ok(())
}
