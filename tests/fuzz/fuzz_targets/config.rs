//! `config.json`: all that reads it, and that adapting it for libcontainer gives the container no more than it says.
#![no_main]

use cryo_engine::spec::{self, Namespace};
use cryo_engine::{cgroup, fuzzing};
use cryo_shim::bootstrap::{group_in, group_of};
use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

const V1: &str = "1 0 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  2 0 0:2 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                  3 0 0:3 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n";
const V2: &str = "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

/// What becomes of a cgroup mount.
enum CgroupMount {
    /// It is left as it is.
    None,
    /// By binds.
    Replaced,
    /// Its folders become read-only paths.
    ReadOnly,
}

/// What `adapt` may change, made alike in both.
fn blank(mut spec: Spec, cgroup_mount: CgroupMount) -> Spec {
    if let Some(root) = spec.root_mut() {
        root.set_path("/".into());
    }
    if let Some(process) = spec.process_mut()
        && process.no_new_privileges() == Some(false)
    {
        process.set_no_new_privileges(None);
    }
    if let Some(linux) = spec.linux_mut() {
        let word = linux.rootfs_propagation().clone();
        linux.set_rootfs_propagation(word.map(|w| w.trim_start_matches('r').to_owned()));
    }
    match cgroup_mount {
        CgroupMount::None => {}
        CgroupMount::Replaced => {
            spec.set_mounts(None);
        }
        CgroupMount::ReadOnly => {
            if let Some(linux) = spec.linux_mut() {
                linux.set_readonly_paths(None);
            }
        }
    }
    spec
}

fuzz_target!(|json: &[u8]| {
    let group = group_of(json, "c1");
    let Ok(spec) = spec::parse(json) else {
        return;
    };
    // `start` reads the annotations alone, the service all of it: they must agree on the shim, unless `start` refuses,
    // as it does where a key is there twice.
    if let Ok(group) = group {
        assert_eq!(group, group_in(spec.annotations().as_ref(), "c1"));
    }
    let again = serde_json::to_vec(&spec).expect("a spec is JSON");
    assert_eq!(spec::parse(&again).expect("what was written is read"), spec);

    let _ = (
        spec::cgroup_path(&spec),
        spec::binds(&spec),
        spec::console_size(&spec),
    );
    let _ = (
        spec::terminal(&spec),
        spec::outside(&spec, spec::user(&spec)),
    );
    let own = spec::namespace(&spec, LinuxNamespaceType::Cgroup) == Namespace::New;
    for mountinfo in [V1, V2] {
        let mut adapted = spec.clone();
        let hierarchies = cgroup::parse_hierarchies(mountinfo);
        if fuzzing::adapt(&mut adapted, hierarchies).is_ok() {
            let change = || match spec::cgroup_mount(&spec) {
                Some(_) if mountinfo == V1 && own => CgroupMount::ReadOnly,
                Some(_) if mountinfo == V1 => CgroupMount::Replaced,
                _ => CgroupMount::None,
            };
            assert_eq!(blank(adapted, change()), blank(spec.clone(), change()));
        }
    }
    if let Some(process) = spec.process() {
        let process = serde_json::to_vec(process).expect("a process is JSON");
        let _ = fuzzing::exec_plan(&process, &spec);
    }
});
