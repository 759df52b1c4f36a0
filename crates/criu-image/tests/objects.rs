//! Sockets, places and credentials: what is read, and what is refused.
#![allow(clippy::unwrap_used)]

use cryo_criu_image::files::{Object, OpenFile, Places};
use cryo_criu_image::security::Security;
use cryo_criu_image::sockets::{kind_name, protocol_name, state_name};
use cryo_criu_image::{Error, Reader, View, Writer, msg};

fn single<V: View>(wire: V::Wire) -> Result<V, Error> {
    let mut writer = Writer::new(V::KIND, Vec::new()).unwrap();
    writer.message(&wire).unwrap();
    Reader::new("f", writer.into_inner().as_slice())?.single()
}

fn options() -> Option<msg::SkOptsEntry> {
    Some(msg::SkOptsEntry {
        so_sndbuf: Some(1),
        so_rcvbuf: Some(2),
    })
}

fn inet(family: u32, source: &[u32]) -> msg::FileEntry {
    msg::FileEntry {
        r#type: Some(4),
        id: Some(3),
        isk: Some(msg::InetSkEntry {
            id: Some(3),
            ino: Some(9),
            family: Some(family),
            r#type: Some(1),
            proto: Some(6),
            state: Some(10),
            src_port: Some(8080),
            dst_port: Some(0),
            src_addr: source.to_vec(),
            dst_addr: source.to_vec(),
            opts: options(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn address(family: u32, words: &[u32]) -> String {
    match single::<OpenFile>(inet(family, words)).unwrap().object {
        Object::Inet(socket) => format!("{:?}", socket.source.map(|source| source.to_string())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn addresses() {
    // As they lie in memory of a little-endian machine.
    assert_eq!(address(2, &[0x0100_007f]), "Some(\"127.0.0.1\")");
    assert_eq!(address(10, &[0, 0, 0, 0x0100_0000]), "Some(\"::1\")");
    assert_eq!(
        address(10, &[0xb80d_0120, 0, 0, 0x0200_0000]),
        "Some(\"2001:db8::2\")"
    );
    assert_eq!(address(40, &[]), "None");
    for (family, words) in [(2, &[][..]), (2, &[1, 2]), (10, &[1])] {
        let text = single::<OpenFile>(inet(family, words))
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("isk.src_addr has the impossible value"),
            "{text}"
        );
    }
    let mut port = inet(2, &[0]);
    port.isk.as_mut().unwrap().src_port = Some(65536);
    assert_eq!(
        single::<OpenFile>(port).unwrap_err().to_string(),
        "f: message at offset 8: field isk.src_port has the impossible value 65536"
    );
}

#[test]
fn what_criu_always_writes_has_to_be_there() {
    let mut without = inet(2, &[0]);
    without.isk.as_mut().unwrap().opts = None;
    let text = single::<OpenFile>(without).unwrap_err().to_string();
    assert_eq!(text, "f: message at offset 8 lacks its field opts");
    for (kind, field) in [(4, "isk"), (5, "usk"), (10, "psk"), (13, "nlsk")] {
        let empty = msg::FileEntry {
            r#type: Some(kind),
            id: Some(1),
            ..Default::default()
        };
        let text = single::<OpenFile>(empty).unwrap_err().to_string();
        assert_eq!(
            text,
            format!("f: message at offset 8 lacks its field {field}")
        );
    }
    assert!(single::<Places>(msg::FsEntry::default()).is_err());
}

#[test]
fn other_sockets() {
    let netlink = msg::FileEntry {
        r#type: Some(13),
        id: Some(1),
        nlsk: Some(msg::NetlinkSkEntry {
            protocol: Some(0),
            state: Some(7),
            opts: options(),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert!(matches!(
        single::<OpenFile>(netlink).unwrap().object,
        Object::Netlink(socket) if socket.buffers.receive == 2
    ));
    let packet = msg::FileEntry {
        r#type: Some(10),
        id: Some(1),
        psk: Some(msg::PacketSkEntry {
            r#type: Some(3),
            protocol: Some(0x0300),
            ifindex: Some(2),
            opts: options(),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert!(matches!(
        single::<OpenFile>(packet).unwrap().object,
        Object::Packet(socket) if socket.interface == 2
    ));
    assert_eq!((state_name(10), state_name(13)), (Some("LISTEN"), None));
    assert_eq!((kind_name(1), kind_name(7)), (Some("STREAM"), None));
    assert_eq!((protocol_name(17), protocol_name(3)), (Some("UDP"), None));
}

#[test]
fn credentials() {
    let of = |creds| {
        single::<Security>(msg::SecurityEntry {
            thread_core: Some(msg::ThreadSecurityEntry {
                creds: Some(creds),
                seccomp_mode: Some(2),
                seccomp_filter: None,
            }),
        })
    };
    let creds = msg::CredsEntry {
        uid: Some(1),
        gid: Some(2),
        euid: Some(3),
        egid: Some(4),
        suid: Some(5),
        sgid: Some(6),
        fsuid: Some(7),
        fsgid: Some(8),
        cap_eff: vec![1 << 31, 1],
        secbits: Some(0),
        no_new_privs: Some(1),
        ..Default::default()
    };
    let own = of(creds.clone()).unwrap().credentials.unwrap();
    assert_eq!((own.users, own.groups), ([1, 3, 5, 7], [2, 4, 6, 8]));
    assert_eq!((own.effective, own.permitted), (3 << 31, 0));
    assert!(own.no_new_privileges);

    let long = msg::CredsEntry {
        cap_eff: vec![0; 3],
        ..creds.clone()
    };
    let text = of(long).unwrap_err().to_string();
    assert!(
        text.contains("creds.cap_eff has the impossible value 3 words"),
        "{text}"
    );
    let less = msg::CredsEntry {
        euid: None,
        ..creds
    };
    assert!(of(less).is_err());
    // Older images have them elsewhere.
    let none = single::<Security>(msg::SecurityEntry::default()).unwrap();
    assert_eq!(none.credentials, None);
}
