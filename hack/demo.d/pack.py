# pack.py DIR NAME: makes DIR.tar, which `ctr container restore --live` takes under NAME, of DIR/image.tar, an export
# of the image that `ctr task checkpoint` made. Blobs stay as they are. The index gets the three annotations that
# `ctr container checkpoint` would have written, since ctr restores only what has them; that command cannot end the
# container. The images of CRIU are unpacked into DIR/checkpoint, where cryoctl reads them.
import hashlib
import io
import json
import os
import sys
import tarfile

folder, name = sys.argv[1:]
CRIU = "application/vnd.containerd.container.criu.checkpoint.criu.tar"

with tarfile.open(f"{folder}/image.tar") as exported, tarfile.open(f"{folder}.tar", "w") as packed:

    def blob(descriptor):
        return exported.extractfile("blobs/" + descriptor["digest"].replace(":", "/"))

    def add(path, data):
        entry = tarfile.TarInfo(path)
        entry.size, entry.mode = len(data), 0o444
        packed.addfile(entry, io.BytesIO(data))

    top = json.load(exported.extractfile("index.json"))
    index = json.load(blob(top["manifests"][0]))
    annotations = index["annotations"]
    annotations["org.opencontainers.image.ref.name"] = annotations["image.name"]
    annotations["io.containerd.checkpoint.runtime"] = "io.containerd.cryo.v2"
    annotations["io.containerd.checkpoint.snapshotter"] = "overlayfs"
    data = json.dumps(index).encode()
    digest = hashlib.sha256(data).hexdigest()
    top["manifests"][0].update(
        digest="sha256:" + digest, size=len(data), annotations={"io.containerd.image.name": name}
    )

    for entry in exported:
        if entry.isfile() and entry.name != "index.json":
            packed.addfile(entry, exported.extractfile(entry))
    add("blobs/sha256/" + digest, data)
    add("index.json", json.dumps(top).encode())

    memory = next(d for d in index["manifests"] if d["mediaType"] == CRIU)
    with tarfile.open(fileobj=blob(memory)) as images:
        images.extractall(f"{folder}/checkpoint", filter="data")
os.remove(f"{folder}/image.tar")
