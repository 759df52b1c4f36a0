//! What a `config.json` may say: each variation beside runc.

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::{Any, CreateTaskRequest, RuncOptions};
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::lab::{self, Node};
use cryo_e2e::runtime::Runtime;
use cryo_e2e::workload::{BUSYBOX, PYTHON};
use prost::Message as _;
use serde_json::{Value, json};

/// How a variation ends, with runc and here.
enum Ending {
    /// It runs, and says the same.
    Same,
    /// It is refused by both; here in these words.
    Refused(&'static str),
}

use Ending::{Refused, Same};

/// The exit code and the output of what ran, or why it did not.
type Ran = Result<(u32, String), String>;

/// A variation: its name, what it changes, what the container runs, how it ends.
type Case = (&'static str, fn(&mut Value, &Scene), &'static str, Ending);

/// The variations in which libcontainer 0.7 alone differs from runc. One more is
/// [`the_session_keyring_is_the_containers_own`].
const VARIATIONS: [Case; 13] = [
    (
        "no PATH, and a command with a slash",
        |c, _| c["process"]["env"] = json!(["A=1"]),
        "echo $A",
        Same,
    ),
    (
        "seccomp with noNewPrivileges false",
        |c, _| {
            c["process"]["noNewPrivileges"] = json!(false);
            c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
        },
        "grep -e Seccomp: -e NoNewPrivs: /proc/self/status; mkdir /tmp/x 2>&1",
        Same,
    ),
    (
        "a cwd that is missing",
        |c, _| c["process"]["cwd"] = json!("/made/for/it"),
        "pwd; ls -ldn . | cut -d ' ' -f 1",
        Same,
    ),
    (
        "stdio of a user who is not root",
        |c, _| c["process"]["user"] = json!({"uid": 1000, "gid": 1000}),
        "echo out > /dev/stdout && echo err > /dev/stderr && id -u",
        Same,
    ),
    (
        "rslave as root propagation",
        |c, _| c["linux"]["rootfsPropagation"] = json!("rslave"),
        "grep ' / / ' /proc/self/mountinfo | grep -o -e master: -e shared:; true",
        Same,
    ),
    (
        "an idmapped mount",
        |c, scene| {
            let map = json!([{"containerID": 0, "hostID": 1000, "size": 100}]);
            add(
                &mut c["mounts"],
                json!({"destination": "/vol", "type": "bind", "source": scene.volume,
                    "options": ["rbind", "idmap", "ro"], "uidMappings": map, "gidMappings": map}),
            );
        },
        "ls -ln /vol | tail -n 1 | awk '{print $3, $4, $9}'; touch /vol/x 2>&1",
        Same,
    ),
    (
        "several mappings of a user namespace",
        |c, _| {
            add(&mut c["linux"]["namespaces"], json!({"type": "user"}));
            let maps = json!([{"containerID": 0, "hostID": 100000, "size": 1000},
                {"containerID": 1000, "hostID": 300000, "size": 64536}]);
            c["linux"]["uidMappings"] = maps.clone();
            c["linux"]["gidMappings"] = maps;
            c["process"]["user"] = json!({"uid": 1001, "gid": 1002, "additionalGids": [5, 1003]});
        },
        "cat /proc/self/uid_map /proc/self/gid_map; id; echo out > /dev/stdout",
        Same,
    ),
    (
        "tmpcopyup",
        |c, _| {
            add(
                &mut c["mounts"],
                json!({"destination": "/var/copied", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "noexec", "tmpcopyup", "size=1m"]}),
            );
        },
        "cd /var/copied; find . | sort | while read f; do stat -c '%n %a %u %g %F %s' $f; done; \
         cat a/file; readlink link; touch new && grep /var/copied /proc/self/mountinfo | \
         sed 's/.*- //; s/,inode64//'",
        Same,
    ),
    (
        "a capability that nobody knows",
        |c, _| {
            for set in ["bounding", "effective", "permitted"] {
                c["process"]["capabilities"][set] = json!(["CAP_KILL", "CAP_FLY"]);
            }
        },
        "grep Cap /proc/self/status",
        Same,
    ),
    (
        "an SELinux label without SELinux",
        |c, _| c["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0"),
        "true",
        Refused("SELinux"),
    ),
    (
        "unified resources where there is cgroup v1",
        |c, _| c["linux"]["resources"] = json!({"unified": {"memory.high": "1000000000"}}),
        "true",
        Refused("linux.resources.unified"),
    ),
    (
        "a poststart hook that fails",
        |c, _| c["hooks"] = json!({"poststart": [{"path": "/bin/false"}]}),
        "sleep 1000",
        Refused("hook"),
    ),
    (
        "a cgroup in every hierarchy",
        |c, _| {
            if let Some(all) = c["linux"]["namespaces"].as_array_mut() {
                all.retain(|n| n["type"] != "cgroup");
            }
        },
        "sort /proc/self/cgroup",
        Same,
    ),
];

/// More of the kind, around what cryo makes itself.
const MORE: [Case; 9] = [
    (
        "a bind of what the root of a user namespace cannot reach",
        |c, scene| {
            user_namespace(c);
            add(
                &mut c["mounts"],
                json!({"destination": "/vol", "type": "bind",
                    "source": format!("{}/closed/volume", scene.folder), "options": ["rbind", "ro"]}),
            );
        },
        "cat /vol/file; touch /vol/x 2>&1",
        Same,
    ),
    (
        "rshared as root propagation",
        |c, _| c["linux"]["rootfsPropagation"] = json!("rshared"),
        "grep ' / / ' /proc/self/mountinfo | grep -o -e master: -e shared:; true",
        Same,
    ),
    (
        "idmapped mounts of a user namespace",
        |c, scene| {
            user_namespace(c);
            let file = format!("{}/file", scene.volume);
            for (at, source, option) in
                [("/vol", &scene.volume, "ridmap"), ("/file", &file, "idmap")]
            {
                add(
                    &mut c["mounts"],
                    json!({"destination": at, "type": "bind", "source": source,
                        "options": ["rbind", option]}),
                );
            }
        },
        "for f in /vol/file /file; do stat -c '%n %u %g' $f; done; echo other > /file && cat /vol/file",
        Same,
    ),
    (
        "an idmapped mount of what cannot be one",
        |c, _| {
            let map = json!([{"containerID": 0, "hostID": 1000, "size": 100}]);
            add(
                &mut c["mounts"],
                json!({"destination": "/vol", "type": "bind", "source": "/proc",
                    "options": ["rbind", "idmap"], "uidMappings": map, "gidMappings": map}),
            );
        },
        "true",
        Refused("cannot idmap the mount /vol"),
    ),
    (
        "an idmapped mount with one kind of mappings",
        |c, scene| {
            add(
                &mut c["mounts"],
                json!({"destination": "/vol", "type": "bind", "source": scene.volume,
                    "options": ["rbind", "idmap"],
                    "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 100}]}),
            );
        },
        "true",
        Refused("one kind of mappings"),
    ),
    (
        "mappings that overlap",
        |c, _| {
            user_namespace(c);
            let map = json!([{"containerID": 0, "hostID": 1, "size": 10},
                {"containerID": 5, "hostID": 100, "size": 10}]);
            c["linux"]["uidMappings"] = map;
        },
        "true",
        Refused("mappings must not overlap"),
    ),
    (
        "tmpcopyup over nothing",
        |c, _| {
            add(
                &mut c["mounts"],
                json!({"destination": "/var/nothing/there", "type": "tmpfs", "source": "tmpfs",
                    "options": ["tmpcopyup", "mode=700"]}),
            );
        },
        "stat -c '%a %u' /var/nothing/there; touch /var/nothing/there/x && echo made",
        Same,
    ),
    (
        "io priority, scheduler and personality",
        |c, _| {
            c["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
            c["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 3});
            c["linux"]["personality"] = json!({"domain": "LINUX32"});
        },
        "uname -m; awk '{print $19, $41}' /proc/self/stat; ionice",
        Same,
    ),
    (
        "read-only recursively",
        |c, scene| {
            add(
                &mut c["mounts"],
                json!({"destination": "/vol", "type": "bind", "source": scene.volume,
                    "options": ["rbind", "rro"]}),
            );
        },
        "touch /vol/x 2>&1; touch /vol/sub/x 2>&1",
        Same,
    ),
];

/// What the cases find on the node.
struct Scene {
    node: Node,
    folder: String,
    volume: String,
    cgroup: String,
}

impl Scene {
    /// busybox's root as a folder, and a volume with a tmpfs inside.
    async fn set(cx: &Context) -> anyhow::Result<Self> {
        let node = cx.a()?.clone();
        let folder = cx.folder(&node, "scene")?;
        let volume = cx.tmpfs(&node, "size=1m").await?;
        let script = format!(
            "set -e; cd {folder}; mkdir root image
             ctr image mount {BUSYBOX} $PWD/image > /dev/null
             cp -a image/. root
             ctr image unmount --rm $PWD/image > /dev/null
             mkdir -p root/var/copied/a root/vol; touch root/file
             echo below > root/var/copied/a/file; ln -s a/file root/var/copied/link
             chown 7:8 root/var/copied/a/file; chmod 4711 root/var/copied/a/file
             chmod 1750 root/var/copied
             mkdir -p closed/volume; chmod 700 closed; echo here > closed/volume/file
             chmod 755 {volume}
             mkdir {volume}/sub; echo text > {volume}/file; chown 5:6 {volume}/file"
        );
        node.exec(&["sh", "-c", &script]).await?.success()?;
        Ok(Self {
            node,
            folder,
            volume,
            cgroup: format!("/default/{}", cx.id("cgroup")),
        })
    }

    fn config(&self, script: &str) -> Value {
        let capabilities = json!([
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_KILL",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SYS_NICE"
        ]);
        let namespaces: Vec<_> = ["pid", "ipc", "uts", "mount", "network", "cgroup"]
            .iter()
            .map(|kind| json!({"type": kind}))
            .collect();
        json!({
            "ociVersion": "1.1.0",
            "process": {
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "user": {"uid": 0, "gid": 0},
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities
                },
                "noNewPrivileges": true,
            },
            "root": {"path": format!("{}/root", self.folder)},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                    "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {"cgroupsPath": self.cgroup, "namespaces": namespaces},
        })
    }

    /// Writes the configuration of the next container.
    fn write(&self, config: &Value) -> anyhow::Result<()> {
        let path = format!("{}/config.json", self.folder);
        Ok(std::fs::write(
            self.node.host(&path),
            serde_json::to_vec(config)?,
        )?)
    }

    /// A container of this id, of what was written.
    async fn container(
        &self,
        cx: &Context,
        runtime: Runtime,
        id: &str,
    ) -> anyhow::Result<Container> {
        let config = format!("{}/config.json", self.folder);
        let container = cx.adopt(&self.node, id)?;
        let create = [
            "container",
            "create",
            "--runtime",
            runtime.containerd_name(),
        ];
        let command = [&create[..], &["--config", &config, id]].concat();
        self.node.ctr(&command).await?;
        Ok(container)
    }

    /// Runs what was written to its end. Not by `ctr run`, which on a busy machine loses the output
    /// of what is short.
    async fn run(&self, cx: &Context, runtime: Runtime, id: &str) -> anyhow::Result<Ran> {
        let container = self.container(cx, runtime, id).await?;
        let output = Output::open(&self.node, id)?;
        let spec = container.api.container(id).await?.spec;
        let spec: Value = serde_json::from_slice(&spec.context("no spec")?.value)?;
        // As ctr does it.
        let owner = |map: &str| {
            let host = spec["linux"][map][0]["hostID"].as_u64().unwrap_or(0);
            u32::try_from(host)
        };
        let options = RuncOptions {
            io_uid: owner("uidMappings")?,
            io_gid: owner("gidMappings")?,
            ..Default::default()
        };
        let request = CreateTaskRequest {
            container_id: id.into(),
            stdout: output.path("stdout"),
            stderr: output.path("stderr"),
            options: Some(options.any()),
            ..Default::default()
        };
        let started = match container.api.create(request).await {
            Ok(_) => container.api.start(id).await.map(|_| ()),
            Err(refused) => Err(refused),
        };
        let ran = match started {
            Ok(()) => {
                let code = container.finish().await?;
                Ok((code, output.complete().await?))
            }
            Err(refused) => Err(refused.message().to_owned()),
        };
        cx.clean_up_container(&self.node, id).await?;
        Ok(ran)
    }

    /// Runs all cases with runc and with the shim under test.
    async fn compare(&self, cx: &Context, cases: &[Case]) -> anyhow::Result<()> {
        let id = cx.id("v");
        for (name, change, script, ending) in cases {
            let mut config = self.config(script);
            change(&mut config, self);
            self.write(&config)?;
            let theirs = self.run(cx, Runtime::Runc, &id).await?;
            let ours = self.run(cx, cx.runtime(), &id).await?;
            let both = format!("{name}: runc {theirs:?}, here {ours:?}");
            match ending {
                Same => ensure!(ours.is_ok() && ours == theirs, "{both}"),
                Refused(words) => {
                    let said = ours.as_ref().err().with_context(|| both.clone())?;
                    ensure!(
                        theirs.is_err() && (cx.runtime() == Runtime::Runc || said.contains(words)),
                        "{both}"
                    );
                }
            }
            // Where no cgroup is, no process is.
            let name = self.cgroup.rsplit('/').next().unwrap_or_default();
            let find = ["find", "/sys/fs/cgroup", "-name", name];
            let left = self.node.exec(&find).await?.stdout;
            ensure!(left.is_empty(), "{both}; this stays:\n{left}");
        }
        Ok(())
    }
}

fn add(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

fn user_namespace(config: &mut Value) {
    add(&mut config["linux"]["namespaces"], json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
}

pub(crate) async fn variations_are_as_with_runc(cx: Context) -> anyhow::Result<()> {
    Scene::set(&cx).await?.compare(&cx, &VARIATIONS).await
}

pub(crate) async fn mounts_users_and_scheduling_are_as_with_runc(
    cx: Context,
) -> anyhow::Result<()> {
    Scene::set(&cx).await?.compare(&cx, &MORE).await
}

pub(crate) async fn a_terminal_has_its_size_and_its_user(cx: Context) -> anyhow::Result<()> {
    let scene = Scene::set(&cx).await?;
    let mut config = scene.config("stty size; stat -c %u $(tty); echo x > $(tty); echo done");
    config["process"]["terminal"] = json!(true);
    config["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    for users in ["the host's", "its own"] {
        if users == "its own" {
            user_namespace(&mut config);
        }
        scene.write(&config)?;
        let mut said = Vec::new();
        for runtime in [Runtime::Runc, cx.runtime()] {
            let id = cx.id("tty");
            let container = scene.container(&cx, runtime, &id).await?;
            let output = Output::open(&scene.node, &id)?;
            let request = CreateTaskRequest {
                container_id: id.clone(),
                terminal: true,
                stdout: output.path("stdout"),
                ..Default::default()
            };
            container.api.create(request).await?;
            container.start().await?;
            let text = output
                .until(|text| text.contains("done").then(|| text.to_owned()))
                .await
                .with_context(|| format!("{runtime:?} with {users} users"))?;
            container.finish().await?;
            said.push(text);
        }
        ensure!(
            said[0] == said[1] && said[1].starts_with("33 77\r\n1000\r\n"),
            "{users}: {said:?}"
        );
    }
    Ok(())
}

/// Says what the session keyring of the process is.
const KEYRING: &str = "
import ctypes, platform
describe, session, text = 6, -3, ctypes.create_string_buffer(200)
keyctl = {'x86_64': 250, 'aarch64': 219}[platform.machine()]
ctypes.CDLL(None).syscall(keyctl, describe, session, text, len(text))
print(text.value.decode().split(';')[-1])
";

pub(crate) async fn the_session_keyring_is_the_containers_own(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    for runtime in [Runtime::Runc, cx.runtime()] {
        let id = cx.id("keys");
        cx.adopt(node, &id)?;
        let name = runtime.containerd_name();
        let run = ["run", "--rm", "--runtime", name, PYTHON, &id];
        let script = format!("python3 -c \"{KEYRING}\"");
        let said = node.ctr_script(&run, &script).await?.success()?;
        ensure!(said == format!("_ses.{id}\n"), "{name}: {said}");
    }
    Ok(())
}

/// A root whose snapshot has the owners of the image, and shows the container's.
pub(crate) async fn a_root_shows_the_owners_of_a_user_namespace(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let mut said = Vec::new();
    for runtime in [Runtime::Runc, cx.runtime()] {
        let id = cx.id("remap");
        cx.adopt(node, &id)?;
        let script = "stat -c '%u %g' / /bin/sh; touch /made && stat -c %u /made; \
                      chown 5 /etc/passwd && stat -c %u /etc/passwd";
        let map = "0:100000:65536";
        let run = [
            "run",
            "--rm",
            "--remap-labels",
            "--uidmap",
            map,
            "--gidmap",
            map,
        ];
        let rest = ["--runtime", runtime.containerd_name(), BUSYBOX, &id];
        let run = [&run[..], &rest].concat();
        said.push(node.ctr_script(&run, script).await?.success()?);
    }
    ensure!(
        said[0] == said[1] && said[1] == "0 0\n0 0\n0\n5\n",
        "{said:?}"
    );
    Ok(())
}

/// A restore could not show the owners, so it is refused before anything is made.
pub(crate) async fn an_idmapped_mount_is_not_restored(cx: Context) -> anyhow::Result<()> {
    let scene = Scene::set(&cx).await?;
    let mut config = scene.config("true");
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 100}]);
    add(
        &mut config["mounts"],
        json!({"destination": "/vol", "type": "bind", "source": scene.volume,
            "options": ["rbind", "idmap"], "uidMappings": map, "gidMappings": map}),
    );
    scene.write(&config)?;
    let id = cx.id("c");
    let container = scene.container(&cx, cx.runtime(), &id).await?;
    let image = cx.folder(&scene.node, "image")?;
    let request = CreateTaskRequest {
        container_id: id,
        options: Some(
            RuncOptions {
                criu_image_path: image,
                ..Default::default()
            }
            .any(),
        ),
        ..Default::default()
    };
    let error = container
        .api
        .create(request)
        .await
        .err()
        .context("created")?;
    ensure!(error.code() == tonic::Code::FailedPrecondition, "{error:?}");
    ensure!(error.message().contains("idmapped mount /vol"), "{error:?}");
    Ok(())
}

/// The part of `-info`'s answer that is looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct RuntimeInfo {
    #[prost(message, optional, tag = "4")]
    features: Option<Any>,
}

/// What `-info` claims and another test does not try. Id-mapped mounts, the refusal of SELinux
/// labels and the hooks are tried by [`variations_are_as_with_runc`].
pub(crate) async fn info_claims_what_is_true(cx: Context) -> anyhow::Result<()> {
    let scene = Scene::set(&cx).await?;
    let shim = lab::binaries().join(cx.runtime().shim());
    let answer = std::process::Command::new(shim)
        .arg("-info")
        .stdin(std::process::Stdio::null())
        .output()?;
    let info = RuntimeInfo::decode(&*answer.stdout).context("the answer to -info")?;
    let features: Value = serde_json::from_slice(&info.features.context("no features")?.value)?;
    let linux = &features["linux"];
    ensure!(
        linux["mountExtensions"]["idmap"]["enabled"] == true,
        "{linux}"
    );
    ensure!(linux["selinux"]["enabled"] == false, "{linux}");
    ensure!(linux["cgroup"]["systemd"] == true, "{linux}");
    let names = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };

    // A bind with each option.
    let mut config = scene.config("ls /tmp/m | wc -l; ls /proc/self/ns | wc -l");
    let mut count = 0;
    for option in names(&features["mountOptions"]) {
        if !["idmap", "ridmap", "tmpcopyup"].contains(&option.as_str()) {
            count += 1;
            let at = format!("/tmp/m/{option}");
            add(
                &mut config["mounts"],
                json!({"destination": at, "type": "bind", "source": scene.volume,
                    "options": ["rbind", option]}),
            );
        }
    }
    ensure!(count > 40, "{features}");
    // The user namespace has tests of its own; in one the kernel locks some of these options.
    let mut namespaces = names(&linux["namespaces"]);
    namespaces.retain(|n| n != "user");
    config["linux"]["namespaces"] = namespaces.iter().map(|n| json!({"type": n})).collect();
    // A filter with every action and operator that is not fatal or for an agent.
    let actions = names(&linux["seccomp"]["actions"]);
    let operators = names(&linux["seccomp"]["operators"]);
    ensure!(actions.len() == 9 && operators.len() == 7, "{linux}");
    let rules = actions
        .iter()
        .filter(|a| *a != "SCMP_ACT_NOTIFY" && *a != "SCMP_ACT_ALLOW");
    let mut syscalls: Vec<_> = rules
        .enumerate()
        .map(|(n, action)| {
            let unused = [
                "acct",
                "swapon",
                "swapoff",
                "reboot",
                "kexec_load",
                "iopl",
                "ioperm",
                "vhangup",
            ];
            json!({"names": [unused[n % unused.len()]], "action": action})
        })
        .collect();
    syscalls.extend(operators.iter().map(|op| {
        json!({"names": ["personality"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": 77, "valueTwo": 7, "op": op}]})
    }));
    config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls,
        "architectures": linux["seccomp"]["archs"]});
    scene.write(&config)?;
    let run = scene.run(&cx, cx.runtime(), &cx.id("all")).await?;
    // And the user's; two have a second name there, for children.
    let wanted = format!("{count}\n{}\n", namespaces.len() + 3);
    ensure!(run == Ok((0, wanted.clone())), "{wanted:?}: {run:?}");
    Ok(())
}
