#!/usr/bin/env python3
"""A read-only OCI registry on loopback that serves one OCI image layout.

registry.py LAYOUT [PORT]

CRI's restore pulls the base image by digest even if it is present, so a lab node needs one.
An image's name is its annotation org.opencontainers.image.ref.name without the host, "busybox:1".
"""
import json
import os
import re
import shutil
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LAYOUT = sys.argv[1]
PORT = int(sys.argv[2]) if len(sys.argv) > 2 else 5000
MANIFEST = re.compile(r"^/v2/([a-z0-9._/-]+)/manifests/([A-Za-z0-9_.:-]+)$")
BLOB = re.compile(r"^/v2/([a-z0-9._/-]+)/blobs/(sha256:[0-9a-f]{64})$")
DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")


def images():
    with open(os.path.join(LAYOUT, "index.json")) as f:
        for m in json.load(f)["manifests"]:
            ref = m["annotations"]["org.opencontainers.image.ref.name"]
            name, tag = ref.split("/", 1)[1].rsplit(":", 1)
            yield name, tag, m


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def fail(self, status, code):
        body = json.dumps({"errors": [{"code": code, "message": self.path}]}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def blob(self, digest, media_type):
        try:
            f = open(os.path.join(LAYOUT, "blobs", *digest.split(":")), "rb")
        except FileNotFoundError:
            return self.fail(404, "BLOB_UNKNOWN")
        with f:
            self.send_response(200)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(os.fstat(f.fileno()).st_size))
            self.send_header("Docker-Content-Digest", digest)
            self.end_headers()
            if self.command != "HEAD":
                shutil.copyfileobj(f, self.wfile, 1 << 20)

    def do_GET(self):
        path = self.path.split("?", 1)[0]
        if path in ("/v2", "/v2/"):
            self.send_response(200)
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if m := MANIFEST.match(path):
            name, ref = m.groups()
            for have, tag, desc in images():
                if have == name and ref in (tag, desc["digest"]):
                    return self.blob(desc["digest"], desc["mediaType"])
            return self.fail(404, "MANIFEST_UNKNOWN")
        if m := BLOB.match(path):
            return self.blob(m.group(2), "application/octet-stream")
        self.fail(404, "NAME_UNKNOWN")

    do_HEAD = do_GET


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
