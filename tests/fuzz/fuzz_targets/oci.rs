//! What comes with an image: documents, names, addresses, a registry's headers, credentials, the
//! files that say what the container is, and the layer of its root file system.
#![no_main]

use std::io;

use cryo_checkpoint::convert::rootfs::{with_whiteouts, without_whiteouts};
use cryo_checkpoint::convert::{Engine, metadata};
use cryo_checkpoint::oci::annotations::Facts;
use cryo_checkpoint::oci::auth::{Challenge, CredentialsFile, first_byte, received, token};
use cryo_checkpoint::oci::model::{Config, Document, Index, Manifest};
use cryo_checkpoint::oci::reference::{Place, Reference};
use cryo_checkpoint::oci::url::Url;
use libfuzzer_sys::fuzz_target;

fn documents(bytes: &[u8]) {
    if let Ok(document) = Document::parse(None, bytes) {
        let written = match &document {
            Document::Index(index) => serde_json::to_vec(index),
            Document::Manifest(manifest) => serde_json::to_vec(manifest),
        };
        let again = Document::parse(None, &written.unwrap());
        assert_eq!(again.unwrap(), document, "written and read again");
    }
    let _ = Index::parse("", bytes);
    let _ = Manifest::parse(bytes);
    let _ = Config::parse(bytes);
    let _ = token(bytes);
    if let Ok(file) = CredentialsFile::parse(bytes) {
        let _ = file.find("docker.io", "library/a");
        let _ = file.find("localhost:5000", "a/b");
    }
}

fn names(text: &str) {
    if let Ok(name) = text.parse::<Reference>() {
        let whole = name.to_string();
        assert_eq!(whole.parse::<Reference>().unwrap(), name, "{whole}");
        let url = format!("https://{}/v2/{}/x", name.host(), name.repository);
        let parsed: Url = url.parse().unwrap();
        assert_eq!(parsed.host(), name.host().to_ascii_lowercase());
    }
    if let Ok(place) = text.parse::<Place>() {
        let whole = place.to_string();
        assert_eq!(whole.parse::<Place>().unwrap(), place, "{whole}");
    }
    let base = Url::new(true, "registry.example:5000", "/v2/a/blobs/uploads/");
    if let Ok(to) = base.join(text) {
        assert!(to.to_string().starts_with("https://"), "{to}");
        let same: Url = to.to_string().parse().unwrap();
        assert_eq!(same, to);
        let _ = to.with_query("digest", text);
    }
    let _ = Challenge::parse(text);
    let _ = received(text);
    let _ = first_byte(text);
}

fuzz_target!(|bytes: &[u8]| {
    documents(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        names(text);
        let mut facts = Facts::default();
        facts.learn_versions(cryo_checkpoint::dump_log::Versions::in_log(text));
    }
    // Two files, with a zero between them.
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (config, spec) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or(b"{}"),
    );
    if let Ok(facts) = Facts::of(config, spec) {
        let _ = facts.annotations();
    }
    for to in [Engine::Containerd, Engine::CriO, Engine::Podman] {
        if let Ok(converted) = metadata(to, config, spec, "runc") {
            let (config, spec) = (
                &converted.files["config.dump"],
                &converted.files["spec.dump"],
            );
            assert!(metadata(to, config, spec, "runc").is_err(), "twice");
        }
    }
    let mut plain = Vec::new();
    if let Ok(deleted) = without_whiteouts(bytes, &mut plain) {
        let mut again = Vec::new();
        let none = without_whiteouts(&*plain, &mut again).unwrap();
        assert!(none.paths.is_empty() && none.opaque.is_empty());
        assert_eq!(again, plain);
        let _ = with_whiteouts(&*plain, &deleted.paths, io::sink());
    }
});
