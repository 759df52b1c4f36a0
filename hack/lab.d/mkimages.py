#!/usr/bin/env python3
"""Makes the lab's images as an OCI image layout: mkimages.py TARGET

Runs in the lab's root; needs no network. The same root gives the same bytes. Changing this file
makes the images again.

  busybox:1  busybox, every applet a link
  python:1   busybox and python3 with the part of the standard library that tests use
  pause:1    one static program that reaps and ends at SIGTERM
  and those that critest asks for by name, which a node has in its registry alone
"""
import gzip
import hashlib
import importlib.util
import io
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile

TARGET = sys.argv[1]
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def blob(data):
    digest = hashlib.sha256(data).hexdigest()
    with open(f"{TARGET}/blobs/sha256/{digest}", "wb") as f:
        f.write(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def as_json(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Layer:
    def __init__(self):
        self.entries = {}

    def parents(self, path):
        parts = path.split("/")[:-1]
        for i in range(len(parts)):
            self.entries.setdefault("/".join(parts[: i + 1]), ("dir", 0o755, b""))

    def dir(self, path, mode=0o755):
        self.parents(path)
        self.entries[path] = ("dir", mode, b"")

    def file(self, path, data, mode=0o644):
        self.parents(path)
        self.entries[path] = ("file", mode, data)

    def link(self, path, target):
        self.parents(path)
        self.entries[path] = ("link", 0o777, target)

    def copy(self, path):
        with open("/" + path, "rb") as f:
            self.file(path, f.read(), 0o755 if os.access("/" + path, os.X_OK) else 0o644)

    def program(self, path, mode=0o755):
        """A program of the lab's root with the libraries that it is linked to."""
        self.copy(path)
        self.entries[path] = ("file", mode, self.entries[path][2])
        for lib in libraries("/" + path):
            self.copy(lib[1:])

    def tar(self):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for path, (kind, mode, data) in sorted(self.entries.items()):
                info = tarfile.TarInfo(path)
                info.mode = mode
                if kind == "dir":
                    info.type = tarfile.DIRTYPE
                elif kind == "link":
                    info.type = tarfile.SYMTYPE
                    info.linkname = data
                else:
                    info.size = len(data)
                tar.addfile(info, io.BytesIO(data) if kind == "file" else None)
        return out.getvalue()


def image(layers, **config):
    tars = [layer.tar() for layer in layers]
    conf = blob(as_json({
        "architecture": ARCH, "os": "linux", "created": "1970-01-01T00:00:00Z",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(t).hexdigest() for t in tars]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "hack/lab"} for _ in tars],
    }))
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **conf},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    **blob(gzip.compress(t, 1, mtime=0))} for t in tars],
    }
    return {"mediaType": manifest["mediaType"], **blob(as_json(manifest))}


def busybox():
    layer = Layer()
    for path in ("bin", "dev", "etc", "home", "mnt", "proc", "root", "run", "sbin", "sys", "usr/bin", "usr/sbin", "var"):
        layer.dir(path)
    layer.dir("tmp", 0o1777)
    layer.dir("root", 0o700)
    with open("/bin/busybox", "rb") as f:
        layer.file("bin/busybox", f.read(), 0o755)
    for applet in subprocess.run(["/bin/busybox", "--list-full"], check=True, capture_output=True, text=True).stdout.split():
        if applet != "bin/busybox":
            layer.link(applet, "/bin/busybox")
    layer.link("bin/sh", "/bin/busybox")
    layer.link("linuxrc", "/bin/busybox")
    del layer.entries["linuxrc"]
    layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n")
    layer.file("etc/group", b"root:x:0:\nnobody:x:65534:\n")
    return layer


# Parts of the standard library that no test asks for.
LEAVE_OUT = {
    "test", "idlelib", "tkinter", "turtledemo", "ensurepip", "pydoc_data", "lib2to3", "venv", "xmlrpc", "curses",
    "dbm", "sqlite3", "wsgiref", "unittest", "__pycache__", "__phello__", "_pyrepl", "dist-packages", "site-packages",
}


def libraries(path):
    """The shared libraries that a program is linked to, by the dynamic linker's own word."""
    out = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    return re.findall(r"(?:=> )?(/\S+) \(0x", out)


def python():
    layer = Layer()
    exe = os.path.realpath("/usr/bin/python3")
    wanted = {exe}
    lib = sysconfig.get_path("stdlib")
    for top, dirs, files in os.walk(lib):
        dirs[:] = sorted(d for d in dirs if d not in LEAVE_OUT and not d.startswith("config-"))
        for name in sorted(files):
            path = os.path.join(top, name)
            if os.path.islink(path) or name == "EXTERNALLY-MANAGED" or name in ("pydoc.py", "turtle.py", "doctest.py"):
                continue
            if name.endswith(".so"):
                wanted.add(path)
            elif name.endswith(".py"):
                layer.copy(path[1:])
                # Compiled by hash, so that the bytes do not depend on times.
                with open(path, "rb") as f:
                    source = f.read()
                code = compile(source, path, "exec", dont_inherit=True, optimize=0)
                data = importlib._bootstrap_external._code_to_hash_pyc(code, importlib.util.source_hash(source), False)
                layer.file(importlib.util.cache_from_source(path)[1:], bytes(data))
    todo = sorted(wanted)
    while todo:
        path = todo.pop()
        layer.copy(path[1:])
        for dep in libraries(path):
            if dep not in wanted:
                wanted.add(dep)
                todo.append(dep)
    # /lib and /lib64 are links into /usr on Debian; the image keeps plain folders.
    layer.link("usr/bin/python3", os.path.basename(exe))
    layer.link("usr/bin/python", os.path.basename(exe))
    return layer


def web_server():
    """A web server that, as critest wants of nginx, goes by that name, is the `master process` and says where it is
    in /var/run/nginx.pid: nginx PORT TITLE"""
    layer = Layer()
    layer.dir("var/run")
    layer.file("srv/index.html", b"<p>hello\n")
    layer.file("usr/sbin/nginx", b"""#!/bin/sh
trap 'kill $!; exit 0' QUIT TERM INT
httpd -f -p "$1" -h /srv &
echo $$ >/var/run/nginx.pid
echo "httpd listens on port $1"
wait $!
""", 0o755)
    return layer


def critest_images(busybox):
    """The images that the specs of critest (sigs.k8s.io/cri-tools) name, with what they use of them. Each is an image of
    its own: the specs remove them by id."""
    of_registry = "e2e-test-images/"
    of_project = "k8s-staging-cri-tools/"
    users = Layer()
    users.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n"
                             b"www-data:x:33:33::/var:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n")
    users.file("etc/group", b"root:x:0:\nwww-data:x:33:\nusers:x:100:\ndefault-user:x:1000:\n"
                            b"group-defined-in-image:x:50000:default-user\nnobody:x:65534:\n")
    tools = Layer()
    tools.program("usr/bin/ipcs")
    tools.program("usr/bin/pgrep")
    tools.entries["bin/ls"] = busybox.entries["bin/busybox"]  # a file, to be masked
    of_root = Layer()
    of_root.program("usr/bin/id", 0o4755)
    web = [busybox, web_server()]
    pause_layers, pause_cmd = pause()
    images = {}

    def add(*names, layers=(busybox, users), **config):
        labels = {"lab.cryo.name": names[0]}
        desc = image(layers, **{"Env": [PATH], "Labels": labels, "Cmd": ["sh"], **config})
        for name in names:
            images[name] = desc

    add(of_registry + "busybox:1.29-2", layers=[busybox, tools])
    add(of_registry + "nginx:1.14-2", layers=web, Cmd=["nginx", "80", "master process"])
    add(of_registry + "httpd:2.4.39-4", layers=web, Cmd=["nginx", "80", "httpd"])
    add(of_project + f"hostnet-nginx-{ARCH}:latest", layers=web, Cmd=["nginx", "12003", "master process"])
    add(of_registry + "nonewprivs:1.3", layers=[busybox, of_root], Cmd=["sh", "-c", 'echo "Effective uid: $(/usr/bin/id -u)"'])
    add("pause:3.9", layers=pause_layers, Entrypoint=pause_cmd, Cmd=None)
    add(of_project + "test-image-predefined-group:latest", User="1000")
    add(of_project + "test-image-user-uid:latest", User="1002")
    add(of_project + "test-image-user-username:latest", User="www-data")
    add(of_project + "test-image-user-uid-group:latest", User="1003:users")
    add(of_project + "test-image-user-username-group:latest", User="www-data:users")
    for name in ("test-image-latest:latest", "test-image-tag:test", "test-image-tag:all",
                 "test-image-1:latest", "test-image-2:latest", "test-image-3:latest"):
        add(of_project + name)
    add(*(of_project + f"test-image-tags:{tag}" for tag in (1, 2, 3)))
    return images


def pause():
    layer = Layer()
    if ARCH == "amd64":
        layer.file("pause", elf_amd64(), 0o755)
        return [layer], ["/pause"]
    return [busybox()], ["/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait; done"]


def elf_amd64():
    """A static program of 94 bytes of code: it blocks SIGINT, SIGTERM and SIGCHLD, then waits for one of
    them for ever; a child is reaped, anything else ends it. So the pause image needs no compiler."""
    mask = (1 << 1) | (1 << 14) | (1 << 16)  # SIGINT 2, SIGTERM 15, SIGCHLD 17
    code = bytes.fromhex(
        "68" + mask.to_bytes(4, "little").hex()  # push mask
        + "4889e6"          # mov rsi, rsp
        "31ff"              # xor edi, edi        SIG_BLOCK
        "31d2"              # xor edx, edx
        "41ba08000000"      # mov r10d, 8
        "b80e000000"        # mov eax, 14         rt_sigprocmask
        "0f05"              # syscall
        # wait:
        "4889e7"            # mov rdi, rsp        the set
        "31f6"              # xor esi, esi
        "31d2"              # xor edx, edx        no timeout
        "41ba08000000"      # mov r10d, 8
        "b880000000"        # mov eax, 128        rt_sigtimedwait
        "0f05"              # syscall
        "83f811"            # cmp eax, 17
        "7409"              # je reap
        "83f800"            # cmp eax, 0
        "7ce2"              # jl wait             EINTR
        "eb1c"              # jmp exit
        "9090"              # nop; nop
        # reap:
        "83cfff"            # or edi, -1
        "31f6"              # xor esi, esi
        "ba01000000"        # mov edx, 1          WNOHANG
        "4531d2"            # xor r10d, r10d
        "b83d000000"        # mov eax, 61         wait4
        "0f05"              # syscall
        "85c0"              # test eax, eax
        "7fe8"              # jg reap
        "ebc4"              # jmp wait
        # exit:
        "31ff"              # xor edi, edi
        "b83c000000"        # mov eax, 60         exit
        "0f05"              # syscall
    )
    base, head = 0x400000, 64 + 56
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    le = lambda *pairs: b"".join(v.to_bytes(n, "little") for v, n in pairs)
    ehdr = ident + le((2, 2), (62, 2), (1, 4), (base + head, 8), (64, 8), (0, 8), (0, 4), (64, 2), (56, 2), (1, 2),
                      (0, 2), (0, 2), (0, 2))
    size = head + len(code)
    phdr = le((1, 4), (5, 4), (0, 8), (base, 8), (base, 8), (size, 8), (size, 8), (0x1000, 8))
    return ehdr + phdr + code


def main():
    os.makedirs(f"{TARGET}/blobs/sha256", exist_ok=True)
    base = busybox()
    pause_layers, pause_cmd = pause()
    pulled = {
        "busybox:1": image([base], Env=[PATH], Cmd=["sh"]),
        "python:1": image([base, python()], Env=[PATH], Cmd=["python3"]),
        "pause:1": image(pause_layers, Env=[PATH], Entrypoint=pause_cmd),
    }
    made = {**pulled, **critest_images(base)}
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{**desc, "platform": {"architecture": ARCH, "os": "linux"},
                       "annotations": {"org.opencontainers.image.ref.name": "localhost:5000/" + name}}
                      for name, desc in made.items()],
    }
    with open(f"{TARGET}/index.json", "wb") as f:
        f.write(as_json(index))
    with open(f"{TARGET}/refs", "w") as f:  # what a node pulls, for shells: "busybox:1 busybox@sha256:..."
        for name, desc in pulled.items():
            f.write(f"{name} {name.split(':')[0]}@{desc['digest']}\n")
    with open(f"{TARGET}/oci-layout", "wb") as f:
        f.write(as_json({"imageLayoutVersion": "1.0.0"}))


main()
