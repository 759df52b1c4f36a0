//! AppArmor: a container's profile holds for it and its execs, and after a restore.

use anyhow::{Context as _, ensure};
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::lab::{Node, lab_folder};
use cryo_e2e::workload::{BUSYBOX, COUNTER, goes_on, numbers};
use tonic::Code;

use crate::failures::explained;

/// All but one file, for those who have this profile.
const PROFILE: &str = "profile NAME flags=(attach_disconnected,mediate_deleted) {
  file, capability, network, unix, mount, umount, pivot_root, signal, ptrace,
  deny /forbidden w,
}
";

/// Why there is no AppArmor here.
pub(crate) fn missing() -> Option<&'static str> {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if !enabled.is_ok_and(|e| e.trim() == "Y") {
        return Some("this kernel has no AppArmor; `make test-vm` has one that has");
    }
    let parser = lab_folder().join("root/usr/sbin/apparmor_parser");
    (!parser.exists()).then_some("the lab has no apparmor_parser; `hack/vm` fetches it")
}

async fn load(cx: &Context, node: &Node, name: &str) -> anyhow::Result<()> {
    let folder = cx.folder(node, "profile")?;
    let path = format!("{folder}/{name}");
    std::fs::write(node.host(&path), PROFILE.replace("NAME", name))?;
    let load = ["apparmor_parser", "--replace", "--skip-cache", &path];
    node.exec(&load).await?.success()?;
    Ok(())
}

/// Checks that the container's process and an exec have the profile, and that it holds.
async fn holds(container: &Container, name: &str, output: &Output) -> anyhow::Result<()> {
    output.count_on(2).await?;
    let pid = container.api.get(&container.id).await?.pid;
    let path = format!("/proc/{pid}/attr/current");
    let profile = std::fs::read_to_string(container.node.host(&path))?;
    ensure!(profile.trim() == format!("{name} (enforce)"), "{profile}");
    let script =
        "cat /proc/self/attr/current; echo x >/allowed && echo 1; echo x >/forbidden || echo 2";
    let exec = container.exec("e", script, false).await?;
    let code = container.finish_exec("e").await?;
    let said = exec.complete().await?;
    let wanted = format!("{name} (enforce)\n1\n2\n");
    ensure!(code == 0 && said == wanted, "{code}: {said:?}");
    Ok(())
}

pub(crate) async fn a_profile_is_kept(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    load(&cx, node, "cryo-e2e").await?;
    load(&cx, node, "cryo-other").await?;
    let container = cx.container(node, BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let profile = async |name: &str| {
        let name = name.to_owned();
        container
            .edit_spec(|spec| spec["process"]["apparmorProfile"] = name.into())
            .await
    };
    profile("cryo-e2e").await?;
    let output = container.create().await?;
    container.start().await?;
    holds(&container, "cryo-e2e", &output).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, true).await?;
    container.finish().await?;
    let before = numbers(&output.complete().await?);

    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    holds(&container, "cryo-e2e", &output).await?;
    container.kill_and_delete().await?;

    // The specification says who it may be, not the checkpoint.
    profile("cryo-other").await?;
    let _output = container.create_from(Some(&image)).await?;
    let answer = container.api.start(&container.id).await;
    let words = ["AppArmor profile", "cryo-e2e", "cryo-other"];
    explained(&cx, answer, &[Code::PermissionDenied], &words)?;
    container
        .api
        .delete(&container.id)
        .await
        .context("delete")?;
    Ok(())
}
