//! Every kind of container restores: the cases of `cryo_e2e::compat`.

use anyhow::ensure;
use cryo_e2e::compat::{CASES, Case, Kind, judge, run};
use cryo_e2e::context::Context;
use cryo_e2e::crictl::TOOLS;
use cryo_e2e::runner::Test;

/// A test for each case.
pub(crate) fn tests() -> impl Iterator<Item = Test> {
    CASES.iter().map(|case| {
        let test = Test::new(case.name, move |cx| restores(cx, case))
            .not_on_runc("`make compatibility` runs the cases with both");
        match case.kind {
            Kind::Task | Kind::Served(_) => test,
            Kind::Pod | Kind::PodOfUsers => test.needs(TOOLS),
        }
    })
}

async fn restores(cx: Context, case: &Case) -> anyhow::Result<()> {
    if let Some(form) = (case.form)() {
        println!("{}: {form}", case.name);
    }
    let wrong = judge(case, &run(&cx, case).await?);
    ensure!(wrong.is_empty(), "\n  {}", wrong.join("\n  "));
    Ok(())
}
