use std::path::Path;

use containerd_shim_protos::shim::oci;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;

use super::*;

#[test]
fn ids_cannot_climb() {
    for id in ["", ".", "..", "a/b", "a\0", "ä", "a b"] {
        assert!(
            matches!(check_id(id), Err(TaskError::InvalidArgument(_))),
            "{id:?}"
        );
    }
    check_id("k8s_pause-1.2+x").unwrap();
    check_id(&"a".repeat(255)).unwrap();
    check_id(&"a".repeat(256)).unwrap_err();
}

fn request(path: &str, options: Option<oci::CheckpointOptions>) -> api::CheckpointTaskRequest {
    let mut request = api::CheckpointTaskRequest::new();
    request.path = path.to_owned();
    request.options = options
        .map(|o| {
            let mut any = Any::new();
            any.type_url = "containerd.runc.v1.CheckpointOptions".to_owned();
            any.value = o.write_to_bytes().unwrap();
            any
        })
        .into();
    request
}

#[test]
fn no_options_leave_the_container_running() {
    let parsed = checkpoint_request(&request("/images", None), 0).unwrap();
    assert_eq!(parsed.images, Path::new("/images"));
    assert!(!parsed.exit && parsed.work.is_none() && parsed.deadline.is_none());
}

#[test]
fn options_are_carried_over() {
    let mut options = oci::CheckpointOptions::new();
    options.exit = true;
    options.image_path = "/other".to_owned();
    options.work_path = "/work".to_owned();
    let parsed = checkpoint_request(&request("", Some(options)), 1_000).unwrap();
    assert_eq!(parsed.images, Path::new("/other"));
    assert_eq!(parsed.work.as_deref(), Some(Path::new("/work")));
    assert!(parsed.exit && parsed.deadline.is_some());
}

#[test]
fn a_checkpoint_without_a_place_or_with_strange_options_is_refused() {
    for bad in [request("", None), request("relative", None)] {
        assert!(matches!(
            checkpoint_request(&bad, 0),
            Err(TaskError::InvalidArgument(_))
        ));
    }
    let mut strange = request("/images", Some(oci::CheckpointOptions::new()));
    if let Some(any) = strange.options.as_mut() {
        any.type_url = "x.y.Z".to_owned();
    }
    let error = checkpoint_request(&strange, 0).unwrap_err();
    assert!(error.to_string().contains("x.y.Z"), "{error}");
}
