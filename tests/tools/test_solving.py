# SPDX-License-Identifier: Apache-2.0
"""What a solve leaves alone: what is cached, what was asked before, what nobody looks at."""
import contextlib
import ctypes
import hashlib
import json
import os
import random
import select
import signal
import socket
import sqlite3
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
from test_fileops import build as build_op  # noqa: E402
from test_git import Server, commit, git, git_source  # noqa: E402
from test_llb import copy, diff, file_op, local, mkdir, mkfile  # noqa: E402

NOISE = random.Random(1).randbytes(1 << 20)
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
        "base": layout("base", lazy_layer({"etc/name": b"base\n", "both": b"base", "big": NOISE}),
                       plain_layer({"plain": b"p" * 5000})),
        "app": layout("app", lazy_layer({"app/bin": NOISE, "both": b"app"})),
        "other": layout("other", lazy_layer({"other": NOISE[::-1]})),
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


def test_a_second_build_needs_no_network(build, registry, web, git_server):
    """What cannot have changed is not asked for, and what is pinned is asked for by nobody."""
    web.put("/file", b"from the web")
    repo = git_server.top / "app"
    repo.mkdir()
    git("init", "-q", cwd=repo)
    (repo / "file").write_text("from git")
    at = commit(repo)
    app = image(registry, "app", is_pinned=True)
    download = source(web.url("/file"), {"http.checksum": sha256(b"from the web")})
    clone = git_source(f"git://{git_server.host}/app", at)
    ops = (app, download, clone, merge(app, download, clone))
    build(*ops)
    id = build.id
    requests(registry), git_server.count(), web.log.clear()
    for args in (), ("--offline",):
        assert set(build(*ops, args=args).values()) <= {CACHED, None}
        assert build.id == id
        assert (requests(registry), git_server.count(), web.log) == ([], 0, [])


def test_what_a_tag_meant_last_will_do_offline(build, registry):
    base = image(registry, "base")
    ops = (base, file_op(copy("/etc/name", "/n", input=0, secondary=0), inputs=[base]))
    build(*ops)
    id = build.id
    requests(registry)
    assert build(*ops, args=("--offline",))[ops[1]] == CACHED
    assert build.id == id and requests(registry) == []


# ---------------------------------------------------------------- nothing but images


def test_merging_images_moves_no_layer(build, registry, llbfs, tmp_path):
    base, app, other = (image(registry, name) for name in ("base", "app", "other"))
    merged = merge(base, app, other)
    ops = (base, app, other, merged, diff(base, merged))
    assert set(build(*ops).values()) <= {DONE}
    assert not [path for _, path in requests(registry) if is_layer(registry, path)]
    build(base)
    assert not [path for _, path in requests(registry) if is_layer(registry, path)]

    # names: the tables of what has some, and the one layer that has none
    plain = registry.images["base"].layers()[1]
    lazy = [d for name in registry.images for d in registry.images[name].layers()
            if estargz_toc(d)]
    build(base, app, other, merged)
    assert llbfs.text("ls", f"ref://{build.id}").split() == ["app", "big", "both", "etc", "other", "plain"]
    log = registry.state()["log"]
    for desc in lazy:
        moved = sum(e["bytes"] for e in log if desc["digest"] in e["path"])
        assert 0 < moved < len(NOISE) / 8, desc
    assert [e["bytes"] for e in log if plain["digest"] in e["path"]] == [plain["size"]]


def estargz_toc(desc):
    return (desc.get("annotations") or {}).get(images.estargz.TOC_ANNOTATION)


# ---------------------------------------------------------------- independent inputs


def retag(layout, *layers):
    layout.manifests.clear()
    layout.image(layers)


def test_inputs_of_a_merge_stay_cached_when_another_changes(build, registry, llbfs, tmp_path):
    ctx = tmp_path / "ctx"
    ctx.mkdir()
    (ctx / "used").write_text("used")
    (ctx / "unused").write_text("unused")
    base, app, context = image(registry, "base"), image(registry, "app"), local()
    from_app = file_op(copy("/app/bin", "/bin", secondary=0), inputs=[app])
    from_ctx = file_op(copy("/used", "/used", secondary=0), inputs=[context])
    made = file_op(mkfile("/made", b"made"))
    on_made = file_op(mkfile("/more", b"more", input=0), inputs=[made])
    on_base = file_op(mkfile("/b", b"b", input=0), inputs=[base])
    merged = merge(on_base, from_app, from_ctx, on_made)
    used = file_op(copy("/more", "/m", secondary=0), inputs=[merged])
    ops = (base, app, context, from_app, from_ctx, made, on_made, on_base, merged, used)
    args = ("--local", f"ctx={ctx}")
    assert build(*ops, args=args)[used] == DONE
    first = build.id

    retag(registry.images["base"], lazy_layer({"etc/name": b"new base\n"}))
    after = build(*ops, args=args)
    assert (after[on_base], after[merged]) == (DONE, DONE)
    assert {after[op] for op in (from_app, from_ctx, on_made, used)} == {CACHED}
    assert build.id == first  # by content: what it copies is the same

    (ctx / "unused").write_text("changed")
    after = build(*ops, args=args)
    assert {after[op] for op in (from_app, from_ctx, on_made, on_base, merged, used)} <= {
        CACHED, None}
    (ctx / "used").write_text("changed")
    after = build(*ops, args=args)
    assert (after[from_ctx], after[merged]) == (DONE, DONE)
    assert {after[op] for op in (from_app, on_made, on_base, used)} <= {CACHED, None}
    build(*ops[:-1], args=args)
    assert llbfs("cat", f"ref://{build.id}", "/used", "/etc/name") == b"changednew base\n"


# ---------------------------------------------------------------- failures


def test_a_failure_ends_the_rest_and_keeps_what_was_done(build, web):
    """While one vertex hangs, another fails."""
    web.put("/slow", b"s" * 1000)
    web.fault("/slow", stall=10, count=1)
    slow = source(web.url("/slow"), {"http.checksum": sha256(b"s" * 1000)})
    made = file_op(mkfile("/made", b"made"))
    fails = file_op(mkfile("/made/x", input=0), inputs=[made])
    begin = time.monotonic()
    after = build(made, fails, slow, merge(slow, fails), code=3)
    assert (after[made], after[fails]) == (DONE, FAILED)
    assert time.monotonic() - begin < 20
    assert build(made, file_op(mkfile("/y", input=0), inputs=[made]))[made] == CACHED


def test_a_failure_ends_git(build, registry):
    """The layer that tells that a path cannot be comes when git has been started."""
    base = image(registry, "base")
    registry.fault(delay=0.5, count=-1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        clone = git_source("git://127.0.0.1:%d/app" % silent.getsockname()[1], "0" * 39 + "1")
        fails = file_op(mkfile("/etc/name/x", input=0), inputs=[base])
        begin = time.monotonic()
        assert build(base, fails, clone, merge(clone, fails), code=3)[fails] == FAILED
        assert time.monotonic() - begin < 20
        assert select.select([silent], [], [], 0)[0]  # git has asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_download_at_once(llbfs, web, build, tmp_path, number):
    web.put("/slow", b"s" * 1000)
    web.fault("/slow", stall=10, count=1)
    slow = source(web.url("/slow"))
    ops = (slow, file_op(copy("/slow", "/s", secondary=0), inputs=[slow]))
    (tmp_path / "slow.pb").write_bytes(definition(*ops))
    p = subprocess.Popen([llbfs.path, "build", tmp_path / "slow.pb"], env=llbfs.env,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(lambda: web.log)
    begin = time.monotonic()
    p.send_signal(number)
    p.communicate(timeout=60)
    assert p.returncode == -number and time.monotonic() - begin < 10
    assert build(*ops)[ops[1]] == DONE


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---------------------------------------------------------------- many at once


class World:
    """Sources of all kinds, and definitions that share parts."""

    def __init__(self, registry, web, top):
        self.registry, self.top = registry, top
        (top / "ctx").mkdir()
        for i in range(30):
            (top / "ctx" / f"f{i}").write_text(f"local {i}")
        web.put("/file", b"w" * 200_000, etag='"1"')
        context, download = local(), source(web.url("/file"))
        self.context, self.download = context, download
        self.tagged = image(registry, "base")
        pinned = [image(registry, name, is_pinned=True) for name in ("app", "other")]
        parts = [self.tagged, *pinned, context, download]
        parts += [file_op(copy(f"/f{i}", f"/l{i}", secondary=0), inputs=[context])
                  for i in range(6)]
        parts += [file_op(copy("/file", "/w", secondary=0), inputs=[download]),
                  file_op(copy("/app/bin", "/b", secondary=0), inputs=[pinned[0]]),
                  file_op(copy("/plain", "/p", secondary=0), inputs=[self.tagged])]
        chain = file_op(mkfile("/c", b"c"))
        parts.append(chain)
        for i in range(12):
            chain = file_op(mkfile(f"/c{i}", b"%d" % i, input=0), inputs=[chain])
            parts.append(chain)
        # a build in a build, which does again what others do
        self.inner = parts[-13:-4]
        inner = file_op(mkfile("/buildkit.llb.definition", definition(*self.inner)))
        parts += [inner, build_op(inner)]
        self.parts = parts
        self.definitions = []
        for i in range(12):
            merged = merge(*(parts[5 + (4 * i + k) % (len(parts) - 5)] for k in range(8)))
            last = file_op(mkdir(f"/end{i % 4}", input=0), inputs=[merged])
            self.definitions.append([*parts, merged, last])

    def write(self, i):
        path = self.top / f"{i}.pb"
        if not path.exists():
            path.write_bytes(definition(*self.definitions[i]))
        return path


@pytest.fixture
def world(registry, web, tmp_path):
    (tmp_path / "world").mkdir()
    return World(registry, web, tmp_path / "world")


class Builder:
    """A build in the background."""

    def __init__(self, llbfs, world, i, env=None):
        self.i = i
        self.err = open(world.top / f"err{id(self)}", "w+b")
        self.p = subprocess.Popen(
            [llbfs.path, "--progress", "rawjson", "build", "--local", f"ctx={world.top}/ctx",
             world.write(i)], env=env or llbfs.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=self.err)

    def end(self):
        out = self.p.communicate(timeout=120)[0]
        self.err.seek(0)
        text = self.err.read().decode()
        self.err.close()
        return self.p.returncode, out.decode().strip(), text


def fetched(registry):
    """How often each blob and each manifest was asked for by its digest."""
    count = {}
    for method, path in requests(registry):
        if "sha256:" in path and method == "GET":
            name = path[path.index("sha256:"):]
            count[name] = count.get(name, 0) + 1
    return count


def slow_answers(registry, web):
    """So slow that whoever asks meets others who do."""
    registry.fault(delay=0.2, count=-1)
    web.fault("/file", count=1, cut=1000)


def test_many_builds_at_once_do_each_vertex_once(llbfs, world, registry, web):
    slow_answers(registry, web)
    builders = [Builder(llbfs, world, i % len(world.definitions)) for i in range(50)]
    done, ids = {}, {}
    for b in builders:
        code, id, text = b.end()
        assert code == 0, text
        ids.setdefault(b.i, set()).add(id)
        for digest, state in states(text).items():
            done.setdefault(digest, []).append(state)
    # each asks what a tag or a URL means now, and looks at the local folder
    asked = {sha256(op) for op in (world.tagged, world.context, world.download)}
    twice = {d: s for d, s in done.items() if s.count(DONE) > 1 and d not in asked}
    assert not twice and all(len(same) == 1 for same in ids.values())
    never = {d for d, s in done.items() if DONE not in s} - asked
    assert never <= {sha256(op) for op in world.inner}  # done in a build in a build
    plain = registry.images["base"].layers()[1]["digest"]
    log = registry.state()["log"]
    assert [e["status"] for e in log if plain in e["path"]] == [200]
    bodies = [status for path, status, _, _ in web.log if status != 304]
    assert bodies in ([200, 206], [200, 200])  # the first was cut


def tree_of(llbfs, id):
    facts = listing.of_tar(llbfs("tar", f"ref://{id}"))
    for one in facts.values():
        one.pop("mtime")
    return facts


@pytest.mark.parametrize("seed", range(3))
def test_killed_builds_leave_the_rest_sound(llbfs, world, registry, web, tmp_path, seed):
    slow_answers(registry, web)
    rng = random.Random(seed)
    builders = [Builder(llbfs, world, i % len(world.definitions)) for i in range(24)]
    victims = rng.sample(builders, 12)
    for b in victims:
        time.sleep(rng.random() / 20)
        b.p.kill()
    for b in builders:
        code, _, text = b.end()
        assert code == 0 or (b in victims and code == -signal.SIGKILL), text

    registry.clear()
    whole = {**llbfs.env, "LLBFS_ROOT": str(tmp_path / "undisturbed")}
    os.mkdir(whole["LLBFS_ROOT"])
    for i in range(len(world.definitions)):
        code, id, text = Builder(llbfs, world, i).end()
        assert code == 0, text
        code, again, text = Builder(llbfs, world, i).end()
        assert (code, again) == (0, id)
        assert {s for d, s in states(text).items() if d != sha256(world.context)} == {CACHED}
        if i % 4 == seed:
            code, id_of_whole, _ = Builder(llbfs, world, i, env=whole).end()
            here, llbfs.env["LLBFS_ROOT"] = llbfs.env["LLBFS_ROOT"], whole["LLBFS_ROOT"]
            expected = tree_of(llbfs, id_of_whole)
            llbfs.env["LLBFS_ROOT"] = here
            assert tree_of(llbfs, id) == expected
    store = llbfs.env["LLBFS_ROOT"]
    assert not os.listdir(f"{store}/tmp")
    with contextlib.closing(sqlite3.connect(f"{store}/catalogue.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
