# SPDX-License-Identifier: Apache-2.0
"""How little is fetched, in which order, and what is left when the registry is gone.

What came over the network is counted by the registry's own log.
"""
import errno
import hashlib
import os
import random
import threading
import time

import pytest

import images
from program import SLOW, wait_until

WANTED = "usr/lib/pkg7/module3.so"
DELAY = 0.15 * SLOW


def module(rng):
    return rng.randbytes(rng.randrange(1000, 40_000))


def layer_tar(seed, n_packages, large):
    """Folders of small files and a few large ones; noise, so that gzip cannot shrink it."""
    rng = random.Random(seed)
    entries = [images.entry("usr/"), images.entry("usr/lib/")]
    for p in range(n_packages):
        entries.append(images.entry(f"usr/lib/pkg{p}/"))
        entries += [images.entry(f"usr/lib/pkg{p}/module{i}.so", module(rng)) for i in range(8)]
    entries += [images.entry(f"usr/lib/large{seed}.{i}", rng.randbytes(6 << 20))
                for i in range(large)]
    return images.tar(entries)


@pytest.fixture(scope="module")
def big(shared):
    """An index of platforms with an eStargz image of three layers and 80 MB."""
    layout = images.Layout(f"{shared}/big")
    layers = [images.estargz_layer(tar, level=1) for tar in (
        layer_tar(1, 60, 6), layer_tar(2, 5, 4), images.tar([images.entry("top/")]),
        only_others(3))]
    other = layout.manifest(layers[:1], arch="arm64")
    layout.tag(layout.index([layout.manifest(layers), other]))
    layout.tag(layout.manifest(layers), "plain")
    assert sum(d["size"] for d in layout.layers()) >= 80_000_000
    return layout


def only_others(seed):
    rng = random.Random(seed)
    return images.tar([images.entry("opt/"), *(
        images.entry(f"opt/file{i}", rng.randbytes(9000)) for i in range(900)),
        images.entry("opt/large", rng.randbytes(8 << 20))])


def rounds(log):
    """How many requests had to wait for one another. Each answer took DELAY at least, so one that
    began later than that may have needed it."""
    depth = []
    for i, e in enumerate(log):
        before = [depth[k] for k in range(i) if log[k]["time"] + DELAY <= e["time"]]
        depth.append(1 + max(before, default=0))
    return max(depth)


def bound(layout, n=0):
    """All tables of contents, the members that hold the wanted file, 64 KiB a layer."""
    total = 0
    for desc in layout.layers(n):
        toc = images.Toc(layout.read(desc["digest"]))
        total += toc.toc_bytes + 65536
        total += sum(end - first for first, end in toc.members(WANTED))
    return total


@pytest.mark.parametrize("tag, auth, chain", [
    ("plain", "none", 4), ("latest", "none", 5), ("plain", "token", 6), ("latest", "token", 7)])
def test_one_small_file_of_a_large_image(llbfs, serve, big, tag, auth, chain):
    r = serve({"big": big.path}, auth=auth)
    r.fault(delay=DELAY, count=-1)
    with llbfs.mount(f"{r.host}/big:{tag}", options=["--prefetch", "none"]) as m:
        with open(m / WANTED, "rb") as f:
            content = f.read()
        status = m.status()
    assert hashlib.sha256(content).hexdigest() == wanted_digest(big)
    log = r.log
    print(f"{len(log)} requests, {rounds(log)} one after another,"
          f" {sum(e['bytes'] for e in log)} bytes of {bound(big)} allowed")
    assert rounds(log) <= chain, [(e["time"], e["path"], e["range"]) for e in log]
    assert sum(e["bytes"] for e in log) <= bound(big)
    assert status["bytes_fetched"] == sum(e["bytes"] for e in log)
    assert status["requests"] == len(log)
    assert status["bytes_total"] == sum(d["size"] for d in big.layers())
    blobs = [e for e in log if "/blobs/" in e["path"]]
    large = {d["digest"] for d in big.layers() if d["size"] > 65536}
    assert all(e["range"] for e in blobs if e["path"].split("/")[-1] in large), "a whole blob"
    assert len(blobs) <= 2 * len(big.layers()) + 1
    by_digest = {d["digest"]: d for d in status["layers"]}
    for digest, layer in by_digest.items():
        assert layer["fetched"] <= sum(e["bytes"] for e in blobs if digest in e["path"])
        assert layer["lazy"] and layer["format"] == "estargz"


def wanted_digest(layout):
    for desc in reversed(layout.layers()):
        for e in images.Toc(layout.read(desc["digest"])).entries:
            if e["name"] == WANTED:
                return e["digest"].removeprefix("sha256:")
    raise AssertionError


@pytest.mark.parametrize("command", [["cat", "/" + WANTED], ["stat", "/" + WANTED], ["ls", "/top"],
                                     ["find", "/usr", "-name", "large1.*"]])
def test_commands_fetch_no_more_than_a_mount(llbfs, serve, big, command):
    r = serve({"big": big.path})
    llbfs.run(command[0], f"{r.host}/big", *command[1:])
    assert sum(e["bytes"] for e in r.log) <= bound(big)


def test_second_read_asks_nobody(llbfs, serve, big):
    r = serve({"big": big.path})
    with llbfs.mount(f"{r.host}/big") as m:
        with open(m / WANTED, "rb") as f:
            first = f.read()
    before = len(r.log)
    with llbfs.mount(f"{r.host}/big", options=["--prefetch", "none"]) as m:
        with open(m / WANTED, "rb") as f:
            assert f.read() == first
    # the tag may be asked for anew, layers may not
    assert not [e for e in r.log[before:] if "/blobs/" in e["path"]]
    assert len(r.log) - before <= 2


def test_what_one_mount_read_the_next_prefetches(llbfs, serve, big, work):
    r = serve({"big": big.path})
    with llbfs.mount(f"{r.host}/big") as m:
        with open(m / WANTED, "rb") as f:
            first = f.read()
    digest = next(d["digest"] for d in reversed(big.layers())
                  if images.Toc(big.read(d["digest"])).members(WANTED))
    # as on a machine whose content was evicted, but whose store remembers
    for folder in ("partial", "content", "frames"):
        for name in os.listdir(f"{llbfs.store}/{folder}"):
            os.unlink(f"{llbfs.store}/{folder}/{name}")
    before = len(r.log)
    with llbfs.mount(f"{r.host}/big", options=["--prefetch", "learned"]) as m:
        assert wait_until(lambda: [e for e in r.log[before:] if digest in e["path"] and e["done"]])
        r.stop()
        with open(m / WANTED, "rb") as f:
            assert f.read() == first


def test_plain_layers_are_fetched_once_and_at_the_same_time(llbfs, serve, work):
    layout = images.Layout(f"{work}/plain").image(
        [images.encoded(layer_tar(seed, 20, 1), "gzip-1") for seed in range(4)])
    r = serve({"plain": layout.path})
    r.fault(match="/blobs/", delay=DELAY, count=-1)
    start = time.monotonic()
    with llbfs.mount(f"{r.host}/plain") as m:
        assert len(os.listdir(m / "usr/lib")) == 24
        status = m.status()
    layers = layout.layers()
    for desc in layers:
        asked = [e for e in r.log if desc["digest"] in e["path"]]
        assert sum(e["bytes"] for e in asked) == desc["size"]
    first = [min(e["time"] for e in r.log if d["digest"] in e["path"]) for d in layers]
    assert max(first) - min(first) < DELAY, "layers were fetched one after another"
    assert status["errors"] == [] and time.monotonic() - start < 30 * SLOW
    assert {layer["reason"] for layer in status["layers"]} <= {""} or all(
        "streamed" in layer["reason"] for layer in status["layers"])
    # lazily for ever: another mount reads a file without a whole layer being read
    before = len(r.log)
    with llbfs.mount(f"{r.host}/plain") as m:
        with open(m / "usr/lib/pkg3/module3.so", "rb") as f:
            assert f.read()
        assert all(layer["lazy"] for layer in m.status()["layers"])
    assert not [e for e in r.log[before:] if "/blobs/" in e["path"]]


# --- the registry goes away ---

DEADLINE = 2.0


def read_error(path):
    """(errno, seconds it took)"""
    start = time.monotonic()
    try:
        with open(path, "rb") as f:
            f.read()
    except OSError as e:
        return e.errno, time.monotonic() - start
    return None, time.monotonic() - start


def check_gone(m, host):
    with open(m / WANTED, "rb") as f:
        assert len(f.read()) >= 1000
    assert len(os.listdir(m / "usr/lib/pkg1")) == 8
    code, seconds = read_error(m / "usr/lib/large1.2")
    assert code == errno.EIO and seconds < (DEADLINE + 1) * SLOW
    errors = m.status()["errors"]
    assert errors and errors[0]["code"] and host in errors[0]["text"], errors
    with open(m / WANTED, "rb") as f:  # and the mount goes on
        assert len(f.read()) >= 1000


def test_mount_comes_up_without_its_registry(llbfs, serve, big):
    r = serve({"big": big.path})
    options = ["--deadline", f"{DEADLINE * SLOW}s", "--prefetch", "none"]
    with llbfs.mount(f"{r.host}/big", options=options) as m:
        with open(m / WANTED, "rb") as f:
            f.read()
    r.stop()
    with llbfs.mount(f"{r.host}/big", options=options) as m:
        check_gone(m, r.host)
    llbfs.run("cat", f"{r.host}/big", f"/{WANTED}")
    with llbfs.mount(f"{r.host}/big", options=[*options, "--offline"]) as m:
        with open(m / WANTED, "rb") as f:
            assert f.read()
        assert read_error(m / "usr/lib/large1.2")[0] == errno.EIO
        assert m.status()["requests"] == 0


def test_registry_that_stops_under_a_mount(llbfs, serve, big):
    r = serve({"big": big.path})
    with llbfs.mount(f"{r.host}/big",
                     options=["--deadline", f"{DEADLINE * SLOW}s", "--prefetch", "none"]) as m:
        with open(m / WANTED, "rb") as f:
            f.read()
        os.listdir(m / "usr/lib/pkg1")
        r.stop()
        check_gone(m, r.host)


def test_registry_that_never_answers_again(llbfs, serve, big):
    r = serve({"big": big.path})
    options = ["--deadline", f"{DEADLINE * SLOW}s", "--prefetch", "none"]
    with llbfs.mount(f"{r.host}/big", options=options) as m:
        with open(m / WANTED, "rb") as f:
            f.read()
    r.fault(stall_after=0, count=-1)
    start = time.monotonic()
    with llbfs.mount(f"{r.host}/big", options=options) as m:
        assert time.monotonic() - start < (DEADLINE + 3) * SLOW
        check_gone(m, r.host)


def test_registry_gone_before_anything_was_local(llbfs, serve, big):
    r = serve({"big": big.path})
    r.stop()
    start = time.monotonic()
    done = llbfs.run("ls", "--deadline", "2s", f"{r.host}/big", code=5)
    assert done.stderr.count(b"\n") == 1 and r.host.encode() in done.stderr
    assert time.monotonic() - start < 5 * SLOW


def test_reads_that_wait_hold_nobody_up(llbfs, serve, big):
    """While many reads wait for a registry that stalls, what is local is served at once."""
    r = serve({"big": big.path})
    with llbfs.mount(f"{r.host}/big",
                     options=["--deadline", f"{6 * SLOW}s", "--prefetch", "none"]) as m:
        with open(m / WANTED, "rb") as f:
            expected = f.read()
        r.fault(match="/blobs/", stall_after=0, count=-1)
        waiting = [threading.Thread(target=read_error, args=(m / f"usr/lib/pkg{i}/module0.so",))
                   for i in range(10, 58)]
        for t in waiting:
            t.start()
        assert wait_until(lambda: m.status()["parked"] >= 40)
        start = time.monotonic()
        with open(m / WANTED, "rb") as f:
            assert f.read() == expected
        assert len(os.listdir(m / "opt")) == 901
        os.stat(m / "usr/lib/large1.1")
        assert time.monotonic() - start < 1 * SLOW
        r.clear()
        for t in waiting:
            t.join(20 * SLOW)
            assert not t.is_alive()
