//! The screens in `docs/cryoctl.md`: each `console` block is run and compared.
//!
//! A block holds one command after `$ ` and what it prints, stdout before stderr. It runs in a
//! directory with the files below; to show another one, add it to [`directory`]. The page is
//! written anew by `CRYO_BLESS=1 cargo test -p cryoctl --test docs`. What cannot run here stands in `text`
//! blocks; the screens of commands that need a node are in the other [`PAGES`], and made in the lab
//! (`tests/e2e/tests/e2e/screens.rs`).
#![allow(clippy::unwrap_used)]

#[path = "../../../crates/checkpoint/tests/fixture/mod.rs"]
mod fixture;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fixture::container;

/// The pages with screens.
const PAGES: [&str; 3] = ["cryoctl.md", "live.md", "images.md"];

/// What begins a screen.
const BEGIN: &str = "```console\n$ ";

fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name)
}

/// ```text
/// web.tar later.tar     two checkpoints of one container, by containerd's CRI
/// web.tar.zst           the first one, compressed
/// compressed.tar        the same with memory that CRIU 4.3 compressed
/// images/               the image directory of another one
/// checkpoints/          what the kubelet leaves behind
/// cut.tar               half a checkpoint
/// pod.tar               two containers of a pod, web and sidecar
/// bin/                  in PATH: cryoctl, a plugin, and a link named checkpointctl
/// ```
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let web = fixture::tar(&container::archive());
    fs::write(path.join("web.tar"), &web).unwrap();
    fs::write(path.join("later.tar"), fixture::tar(&container::later())).unwrap();
    fs::write(
        path.join("web.tar.zst"),
        zstd::encode_all(&*web, 3).unwrap(),
    )
    .unwrap();
    fs::write(path.join("cut.tar"), &web[..20_000]).unwrap();
    fs::write(path.join("pod.tar"), pod()).unwrap();
    let mut compressed = container::archive();
    fixture::compressed(&mut compressed);
    fs::write(path.join("compressed.tar"), fixture::tar(&compressed)).unwrap();
    fixture::write(&path.join("images"), &fixture::images());
    let kubelet = path.join("checkpoints");
    fs::create_dir(&kubelet).unwrap();
    let name = "checkpoint-web-0_shop-web-2026-03-13T21:43:06Z.tar";
    fs::write(kubelet.join(name), &web).unwrap();

    let bin = path.join("bin");
    fs::create_dir(&bin).unwrap();
    let cryoctl = env!("CARGO_BIN_EXE_cryoctl");
    symlink(cryoctl, bin.join("cryoctl")).unwrap();
    symlink(cryoctl, bin.join("checkpointctl")).unwrap();
    for program in ["head", "ls"] {
        symlink(Path::new("/usr/bin").join(program), bin.join(program)).unwrap();
    }
    let plugin = bin.join("checkpointctl-hello");
    let script = "#!/bin/sh\n[ \"$1\" = --plugin-description ] && echo 'Greet somebody' && exit 42\necho \"hello $*\"\n";
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// A tar of the tars of two containers.
fn pod() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, files) in [
        ("sidecar.tar", container::later()),
        ("web.tar", container::archive()),
    ] {
        let archive = fixture::tar(&files);
        let mut header = tar::Header::new_gnu();
        header.set_size(archive.len() as u64);
        builder.append_data(&mut header, name, &*archive).unwrap();
    }
    builder.into_inner().unwrap()
}

/// What a command line prints.
fn screen(directory: &Path, line: &str) -> String {
    let output = Command::new("/bin/sh")
        .args(["-c", line])
        .current_dir(directory)
        .env_clear()
        .env("PATH", directory.join("bin"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text)
        .unwrap()
        .replace(directory.to_str().unwrap(), "/tmp/cp")
}

#[test]
fn the_screens_are_what_is_printed() {
    const END: &str = "```\n";
    let path = page("cryoctl.md");
    let page = fs::read_to_string(&path).unwrap();
    let directory = directory();
    let mut pieces = page.split(BEGIN);
    let mut wanted = pieces.next().unwrap().to_owned();
    let mut commands = 0;
    for piece in pieces {
        let (line, rest) = piece.split_once('\n').unwrap();
        let (_, tail) = match rest.strip_prefix(END) {
            Some(tail) => ("", tail),
            None => rest.split_once(&format!("\n{END}")).unwrap(),
        };
        let mut shown = screen(directory.path(), line);
        if !shown.is_empty() && !shown.ends_with('\n') {
            shown.push('\n');
        }
        wanted.push_str(&format!("{BEGIN}{line}\n{shown}{END}{tail}"));
        commands += 1;
    }
    assert!(commands > 0, "no screens");
    if std::env::var_os("CRYO_BLESS").is_some() {
        fs::write(&path, &wanted).unwrap();
    } else {
        assert!(
            page == wanted,
            "docs/cryoctl.md is stale: run `CRYO_BLESS=1 cargo test -p cryoctl --test docs`"
        );
    }
}

#[test]
fn no_command_is_without_a_screen() {
    let help = Command::new(env!("CARGO_BIN_EXE_cryoctl"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let (commands, _) = commands.split_once("\n\n").unwrap();
    let names = commands.lines().filter_map(|line| {
        let line = line.strip_prefix("  ")?;
        line.split(' ').next().filter(|name| !name.is_empty())
    });
    let pages = PAGES.map(|name| fs::read_to_string(page(name)).unwrap());
    let screens = |name: &str| {
        let begin = format!("{BEGIN}cryoctl {name}");
        pages.iter().flat_map(move |page| {
            let tails = page.split(&*begin).skip(1);
            tails
                .filter(|tail| tail.starts_with([' ', '\n']))
                .collect::<Vec<_>>()
        })
    };
    let (shown, lacking): (Vec<_>, Vec<_>) = names.partition(|name| screens(name).next().is_some());
    assert!(lacking.is_empty(), "no screen of {lacking:?}");
    assert!(shown.len() > 20, "{shown:?}");
}
