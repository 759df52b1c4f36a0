//! The runtime's options of either type. The same options say the same in both.
#![no_main]

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use cryo_shim::options::RuntimeOptions;
use libfuzzer_sys::fuzz_target;

fn parse(type_url: &str, value: &[u8]) -> Option<RuntimeOptions> {
    let any = Any {
        type_url: type_url.into(),
        value: value.to_vec(),
        ..Any::default()
    };
    RuntimeOptions::parse(Some(&any)).ok()
}

/// `runtimeoptions.v1.Options` around a TOML text.
#[derive(Clone, PartialEq, prost::Message)]
struct Generic {
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

fn parse_toml(body: &[u8]) -> Option<RuntimeOptions> {
    let generic = Generic {
        config_body: body.to_vec(),
    };
    let value = prost::Message::encode_to_vec(&generic);
    parse("runtimeoptions.v1.Options", &value)
}

fn to_toml(options: &RuntimeOptions) -> String {
    let RuntimeOptions {
        no_pivot_root,
        no_new_keyring,
        shim_cgroup,
        io_uid,
        io_gid,
        systemd_cgroup,
        criu_work_path,
        root,
        // Of a request alone.
        restore: _,
    } = options;
    let mut table = toml::Table::new();
    for (key, value) in [
        ("NoPivotRoot", no_pivot_root.to_owned().into()),
        ("NoNewKeyring", no_new_keyring.to_owned().into()),
        ("ShimCgroup", shim_cgroup.as_str().into()),
        ("IoUid", toml::Value::Integer((*io_uid).into())),
        ("IoGid", toml::Value::Integer((*io_gid).into())),
        ("SystemdCgroup", systemd_cgroup.to_owned().into()),
        ("CriuWorkPath", criu_work_path.as_str().into()),
        ("Root", root.as_str().into()),
    ] {
        table.insert(key.into(), value);
    }
    table.to_string()
}

fuzz_target!(|data: &[u8]| {
    let _ = parse("runtimeoptions.v1.Options", data);
    let _ = parse_toml(data);
    for options in [parse("containerd.runc.v1.Options", data), parse_toml(data)] {
        if let Some(mut options) = options {
            options.restore.clear();
            assert_eq!(parse_toml(to_toml(&options).as_bytes()), Some(options));
        }
    }
});
