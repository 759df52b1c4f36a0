//! critest against cryo. `make conformance` runs it against the peer too.

use anyhow::ensure;
use cryo_e2e::conformance::{judge, reasons, run};
use cryo_e2e::context::Context;

pub(crate) async fn critest(cx: Context) -> anyhow::Result<()> {
    let report = run(cx.a()?, cx.runtime()).await?;
    let wrong = judge(&report, None, &reasons()?);
    ensure!(wrong.is_empty(), "\n  {}", wrong.join("\n  "));
    Ok(())
}
