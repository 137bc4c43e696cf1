# SPDX-License-Identifier: Apache-2.0
"""What a solve leaves alone: what is cached, what was asked before, what nobody looks at."""
import contextlib
import ctypes
import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time

import pytest

from conftest import TESTS

sys.path.insert(0, f"{TESTS}/mount")
import images  # noqa: E402
import listing  # noqa: E402
from fileserver import FileServer  # noqa: E402
from llb import definition, merge, source  # noqa: E402
from registry import Registry  # noqa: E402
from test_git import Server, commit, git, git_source  # noqa: E402
from test_llb import copy, diff, file_op, local, mkdir, mkfile  # noqa: E402

DONE, CACHED, FAILED = "done", "cached", "failed"


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def states(progress):
    """How each vertex ended, from the lines of --progress rawjson: {digest: state}."""
    found = {}
    for line in progress.splitlines():
        for v in json.loads(line)["vertexes"] if line.startswith("{") else ():
            if "completed" in v:
                found[v["digest"]] = (FAILED if v.get("error") else
                                      CACHED if v.get("cached") else DONE)
    return found


@pytest.fixture
def build(llbfs, tmp_path):
    """Builds ops; returns {op: state}. The ID is in .id."""
    def run(*ops, args=(), code=0):
        path = tmp_path / "def.pb"
        path.write_bytes(definition(*ops))
        out = llbfs.text("--progress", "rawjson", "build", *args, path, code=code)
        run.id = out.strip()
        by_digest = states(llbfs.stderr)
        return {op: by_digest.get(sha256(op)) for op in ops}
    return run


@pytest.fixture
def web():
    with FileServer() as server:
        yield server


@pytest.fixture
def git_server(tmp_path):
    (tmp_path / "repos").mkdir()
    with Server(tmp_path / "repos") as s:
        yield s
        s.shutdown()


def tarred(files):
    return images.tar([images.entry(name, data) for name, data in files.items()])


def plain_layer(files):
    data = tarred(files)
    return images.TAR, data, sha256(data), None


def lazy_layer(files):
    return images.estargz_layer(tarred(files))


@pytest.fixture
def registry(tmp_path):
    """Repositories `base`, `app` (a lazy layer each, and a plain one) and `other`."""
    def layout(name, *layers):
        return images.Layout(str(tmp_path / "layouts" / name)).image(layers)

    layouts = {
        "base": layout("base", lazy_layer({"etc/name": b"base\n", "both": b"base"}),
                       plain_layer({"plain": b"p" * 5000})),
        "app": layout("app", lazy_layer({"app/bin": b"b" * 9000, "both": b"app"})),
        "other": layout("other", lazy_layer({"other": b"o" * 9000})),
    }
    with Registry({name: layout.path for name, layout in layouts.items()}) as r:
        r.images = layouts
        yield r


def image(registry, name, is_pinned=False):
    pin = f"@{registry.images[name].manifests[-1]['digest']}" if is_pinned else ""
    return source(f"docker-image://{registry.host}/{name}:latest{pin}")


def requests(registry):
    """What was asked since the last time."""
    log = [(e["method"], e["path"].split("?")[0]) for e in registry.state()["log"]]
    registry.clear()
    return log


def is_layer(registry, path):
    return any(d["digest"].split(":")[1] in path for layout in registry.images.values() for d in layout.layers())


class Reads:
    """Which files below some folders are read meanwhile."""
    ACCESS, IS_FOLDER = 0x1, 0x40000000

    def __init__(self, *tops):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.fd >= 0
        self.folders = {}
        for top in tops:
            for folder, _, _ in os.walk(top):
                wd = self.libc.inotify_add_watch(self.fd, os.fsencode(folder), self.ACCESS)
                assert wd > 0, os.strerror(ctypes.get_errno())
                self.folders[wd] = folder

    def __enter__(self):
        return self

    def __exit__(self, *args):
        os.close(self.fd)

    def read(self):
        """Those so far."""
        found, data = set(), b""
        with contextlib.suppress(BlockingIOError):
            while True:
                data += os.read(self.fd, 1 << 16)
        while data:
            wd, what, _, n = struct.unpack_from("iIII", data)
            name = data[16:16 + n].rstrip(b"\0").decode()
            data = data[16 + n:]
            assert wd > 0, "too many events"
            if name and not what & self.IS_FOLDER:
                found.add(f"{self.folders[wd]}/{name}")
        return found


def settle(top):
    """Waits until a change of these files could no longer hide behind the time of the last one."""
    youngest = max(os.lstat(f"{folder}/{name}").st_ctime
                   for folder, folders, files in os.walk(top) for name in (*folders, *files))
    while time.time() < youngest + 0.3:
        time.sleep(0.05)


# ---------------------------------------------------------------- again


def test_a_second_build_asks_only_what_may_have_changed(build, registry, web, git_server, tmp_path):
    ctx = tmp_path / "ctx"
    (ctx / "deep").mkdir(parents=True)
    for i in range(20):
        (ctx / "deep" / f"f{i}").write_text(f"content {i}")
    settle(ctx)
    web.put("/file", b"from the web", etag='"1"')
    repo = git_server.top / "app"
    repo.mkdir()
    git("init", "-q", cwd=repo)
    (repo / "file").write_text("from git")
    commit(repo)

    base, app = image(registry, "base"), image(registry, "app", is_pinned=True)
    download, clone = source(web.url("/file")), git_source(f"git://{git_server.host}/app")
    context = local()
    copied = file_op(copy("/deep", "/ctx", contents=True, output=-1),
                     copy("/etc/name", "/name", input=2, secondary=1), inputs=[context, base])
    merged = merge(base, app, copied)
    top = file_op(copy("/file", "/web", input=0, secondary=1, output=-1),
                  copy("/file", "/git", input=3, secondary=2, output=0),
                  inputs=[merged, download, clone])
    ops = (base, app, download, clone, context, copied, merged, top)
    args = ("--local", f"ctx={ctx}")

    first = build(*ops, args=args)
    id = build.id
    assert first[copied] == first[top] == DONE
    assert web.statuses() == [200] and git_server.count() >= 1
    assert {m for m, _ in requests(registry)} <= {"GET", "HEAD"}

    for _ in range(2):
        with Reads(ctx, tmp_path / "store") as reads:
            again = build(*ops, args=args)
            read = reads.read()
        assert build.id == id
        assert {op: s for op, s in again.items() if s not in (CACHED, None)} == (
            {context: DONE} if again[context] == DONE else {})
        log = requests(registry)
        assert len(log) == 1 and log[0][1] == "/v2/base/manifests/latest", log
        assert web.statuses()[1:] == [304] * len(web.statuses()[1:])
        assert git_server.count() == 1
        assert not [f for f in read if f.startswith(f"{ctx}/") or is_layer(registry, f)
                    or "/content/" in f], read
    assert web.statuses() == [200, 304, 304]
