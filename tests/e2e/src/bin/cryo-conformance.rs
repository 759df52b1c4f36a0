//! critest's specs against cryo and against the Go shim with runc, in the lab; writes
//! `docs/conformance.md` and fails on what must not be. `make conformance`, as root.
#![forbid(unsafe_code)]

use anyhow::ensure;
use cryo_e2e::conformance::{TOOLS, judge, page, reasons, run};
use cryo_e2e::lab::{Lab, repository, work_with};
use cryo_e2e::runtime::Runtime;

/// A node for each, so that neither finds what the other left.
const NODES: [&str; 2] = ["e2e-conf-a", "e2e-conf-b"];

fn main() -> anyhow::Result<()> {
    work_with(TOOLS, conformance())
}

async fn conformance() -> anyhow::Result<()> {
    let reasons = reasons()?;
    let lab = Lab::up(&NODES).await?;
    println!("critest against cryo, then against the Go shim: some minutes");
    let cryo = run(lab.node(0)?, Runtime::Cryo).await;
    let peer = run(lab.node(1)?, Runtime::Runc).await;
    lab.down()?;
    let (cryo, peer) = (cryo?, peer?);
    let path = repository().join("docs/conformance.md");
    std::fs::write(&path, page(&cryo, &peer, &reasons))?;
    println!("wrote docs/conformance.md");
    let wrong = judge(&cryo, Some(&peer), &reasons);
    ensure!(wrong.is_empty(), "\n  {}", wrong.join("\n  "));
    Ok(())
}
