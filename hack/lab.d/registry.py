#!/usr/bin/env python3
"""An OCI registry on loopback that serves one OCI image layout, and in memory what is pushed to it.

registry.py LAYOUT [PORT]

CRI's restore pulls the base image by digest even if it is present, so a lab node needs one.
An image's name is its annotation org.opencontainers.image.ref.name without the host, "busybox:1".
"""
import hashlib
import json
import os
import re
import shutil
import sys
from urllib.parse import parse_qs, urlsplit
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LAYOUT = sys.argv[1]
PORT = int(sys.argv[2]) if len(sys.argv) > 2 else 5000
MANIFEST = re.compile(r"^/v2/([a-z0-9._/-]+)/manifests/([A-Za-z0-9_.:-]+)$")
BLOB = re.compile(r"^/v2/([a-z0-9._/-]+)/blobs/(sha256:[0-9a-f]{64})$")
UPLOAD = re.compile(r"^/v2/([a-z0-9._/-]+)/blobs/uploads/([0-9a-f]*)$")
pushed = {}  # blobs and manifests by their digest
named = {}  # (name, tag or digest): (media type, digest)
uploads = {}


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

    def done(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def blob(self, digest, media_type):
        if digest in pushed:
            body = pushed[digest]
            self.send_response(200)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", digest)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            return
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
            if found := named.get((name, ref)):
                return self.blob(found[1], found[0])
            for have, tag, desc in images():
                if have == name and ref in (tag, desc["digest"]):
                    return self.blob(desc["digest"], desc["mediaType"])
            return self.fail(404, "MANIFEST_UNKNOWN")
        if m := BLOB.match(path):
            return self.blob(m.group(2), "application/octet-stream")
        self.fail(404, "NAME_UNKNOWN")

    do_HEAD = do_GET

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        body, path = self.body(), self.path.split("?", 1)[0]
        if not UPLOAD.match(path) or body:
            return self.fail(404, "NAME_UNKNOWN")
        upload = os.urandom(8).hex()
        uploads[upload] = b""
        self.done(202, Location=path + upload, Range="0-0")

    def do_PATCH(self):
        body, m = self.body(), UPLOAD.match(self.path)
        if not m or m.group(2) not in uploads:
            return self.fail(404, "BLOB_UPLOAD_UNKNOWN")
        have = uploads[m.group(2)]
        if int(self.headers.get("Content-Range", f"{len(have)}-").split("-")[0]) != len(have):
            return self.done(416, Location=self.path, Range=f"0-{len(have) - 1}")
        uploads[m.group(2)] = have = have + body
        self.done(202, Location=self.path, Range=f"0-{len(have) - 1}")

    def do_PUT(self):
        body, url = self.body(), urlsplit(self.path)
        if m := MANIFEST.match(url.path):
            name, ref = m.groups()
            digest = "sha256:" + hashlib.sha256(body).hexdigest()
            pushed[digest] = body
            named[name, ref] = named[name, digest] = (self.headers["Content-Type"], digest)
            return self.done(201, Location=f"/v2/{name}/manifests/{digest}", Docker_Content_Digest=digest)
        m = UPLOAD.match(url.path)
        if not m or m.group(2) not in uploads:
            return self.fail(404, "BLOB_UPLOAD_UNKNOWN")
        body = uploads.pop(m.group(2)) + body
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        if parse_qs(url.query).get("digest") != [digest]:
            return self.fail(400, "DIGEST_INVALID")
        pushed[digest] = body
        self.done(201, Location=f"/v2/{m.group(1)}/blobs/{digest}", Docker_Content_Digest=digest)

    def do_DELETE(self):
        m = UPLOAD.match(self.path)
        if not m or uploads.pop(m.group(2), None) is None:
            return self.fail(404, "BLOB_UPLOAD_UNKNOWN")
        self.done(204)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
