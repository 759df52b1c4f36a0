"""Makes an image of a checkpoint archive: checkpoint_image.py ARCHIVE CONTAINER NAME OUT

OUT is an OCI archive for `ctr images import`. CRI takes an image whose index has the annotation for a checkpoint.
"""
import hashlib
import io
import json
import sys
import tarfile

archive, container, name, out = sys.argv[1:]
files = {}


def blob(data, kind, **more):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    digest = hashlib.sha256(data).hexdigest()
    files["blobs/sha256/" + digest] = data
    kind = f"application/vnd.oci.image.{kind}"
    return {"mediaType": kind, "digest": "sha256:" + digest, "size": len(data), **more}


with open(archive, "rb") as file:
    layer = blob(file.read(), "layer.v1.tar")
platform = {"architecture": "amd64", "os": "linux"}
rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
config = blob({**platform, "config": {}, "rootfs": rootfs}, "config.v1+json")
annotations = {"org.criu.checkpoint.container.name": container}
manifest = blob(
    {"schemaVersion": 2, "config": config, "layers": [layer], "annotations": annotations},
    "manifest.v1+json",
    platform=platform,
)
index = blob(
    {"schemaVersion": 2, "manifests": [manifest], "annotations": annotations},
    "index.v1+json",
    annotations={"io.containerd.image.name": name},
)
files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [index]}).encode()
files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
with tarfile.open(out, "w") as tar:
    for path, data in files.items():
        entry = tarfile.TarInfo(path)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
