# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the server in the middle of cold reads: no wrong byte, nothing lost that was there.

The registry answers slowly, so that an image takes several lives of the server to arrive. What a
life has read correctly is here: no later life may ask for the members that hold it.
"""
import hashlib
import json
import os
import random
import re
import subprocess
import threading

import pytest

import images
import program
from program import SLOW

LIVES = 10  # of each store
# Bytes a second of each answer: the plain layers arrive in a life or two, the lazy one in most.
RATE = 3_000_000 // SLOW
LAZY_RATE = 150_000 // SLOW


def content(seed, n_files):
    """Noise and text in turn, so that there are blocks of every kind."""
    rng = random.Random(seed)
    return {f"f{i}": rng.randbytes(rng.randrange(1000, 90_000)) if i % 2 else
            b"%d line of text\n" % i * rng.randrange(100, 9000) for i in range(n_files)}


@pytest.fixture(scope="module")
def image(shared):
    """One eStargz layer, one gzip and one zstd layer, with different files."""
    files = {}
    layers = []
    for n, make in enumerate((images.estargz_layer, images.encoded_as("gzip-1"),
                              images.encoded_as("zstd-1"))):
        of_layer = {f"layer{n}/{name}": data for name, data in content(n, 24).items()}
        files.update(of_layer)
        layers.append(make(images.tar([images.entry(f"layer{n}/"), *(
            images.entry(name, data) for name, data in of_layer.items())])))
    layout = images.Layout(f"{shared}/image").image(layers)
    return layout, {name: hashlib.sha256(data).digest() for name, data in files.items()}


class Reader(threading.Thread):
    """Reads all files in a random order until the mount dies."""

    def __init__(self, mount, digests, rng):
        super().__init__()
        self.mount, self.digests = mount, digests
        self.order = rng.sample(sorted(digests), len(digests))
        self.read, self.wrong = [], []

    def run(self):
        for name in self.order:
            try:
                with open(self.mount / name, "rb") as f:
                    data = f.read()
            except OSError:
                continue  # the server is dead, or dies just now
            good = hashlib.sha256(data).digest() == self.digests[name]
            (self.read if good else self.wrong).append(name)


def ranges(entries, digest, size):
    """[(first, end)] that were asked for of a blob."""
    out = []
    for e in entries:
        if digest in e["path"]:
            m = re.fullmatch(r"bytes=(\d+)-(\d+)", e["range"] or f"bytes=0-{size - 1}")
            out.append((int(m[1]), int(m[2]) + 1))
    return out


def one_life(llbfs, ref, digests, rng, seconds):
    """Returns (what was read right, what was read wrong)."""
    m = llbfs.start_mount(ref, options=["--prefetch", "none", "--deadline", "30s"])
    killer = threading.Timer(seconds, m.process.kill)
    killer.start()
    try:
        if not m.wait_ready():
            return [], []
        readers = [Reader(m, digests, rng) for _ in range(2)]
        for r in readers:
            r.start()
        m.process.wait(60 * SLOW)
        for r in readers:
            r.join(60 * SLOW)
            assert not r.is_alive()
    finally:
        killer.join()
        m.kill()
    return [n for r in readers for n in r.read], [n for r in readers for n in r.wrong]


def check_store(store):
    """Whatever stands in blobs/sha256 is complete: that is its promise."""
    folder = f"{store}/blobs/sha256"
    for name in os.listdir(folder):
        with open(f"{folder}/{name}", "rb") as f:
            assert hashlib.sha256(f.read()).hexdigest() == name
    with open(f"{store}/oci-layout") as f:
        assert json.load(f)["imageLayoutVersion"] == "1.0.0"


@pytest.mark.parametrize("seed", range(10))
def test_server_killed_at_random_moments(llbfs, serve, image, seed):
    print(f"seed {seed}")
    rng = random.Random(seed)
    layout, digests = image
    lazy, *plain = layout.layers()
    toc = images.Toc(layout.read(lazy["digest"]))
    r = serve({"app": layout.path})
    r.fault(match=lazy["digest"], rate=LAZY_RATE, count=-1)
    r.fault(match="/blobs/", rate=RATE, count=-1)
    ref = f"{r.host}/app"
    read, lives = set(), []
    for _ in range(LIVES):
        before = len(r.log)
        good, wrong = one_life(llbfs, ref, digests, rng, rng.uniform(0.02, 0.35) * SLOW)
        assert not wrong
        asked = r.log[before:]
        for name in read:
            for first, end in toc.members(name):
                again = [a for a in ranges(asked, lazy["digest"], lazy["size"])
                         if a[0] < end and first < a[1]]
                assert not again, f"{name} at {first}..{end} was here, and asked for again"
        read.update(n for n in good if n.startswith("layer0/"))
        lives.append(len(good))
        check_store(llbfs.store)
    r.clear()  # at full speed now
    with llbfs.mount(ref) as m:
        for name, digest in digests.items():
            with open(m / name, "rb") as f:
                assert hashlib.sha256(f.read()).digest() == digest, name
        assert m.status()["errors"] == []
    print(f"files read in each life: {lives}")
    check_store(llbfs.store)
    # now everything is here
    before = len(r.log)
    with llbfs.mount(ref) as m:
        for name, digest in digests.items():
            with open(m / name, "rb") as f:
                assert hashlib.sha256(f.read()).digest() == digest, name
    assert not [e for e in r.log[before:] if "/blobs/" in e["path"]]


def test_a_pass_goes_on_where_a_killed_server_left_it(llbfs, serve, shared):
    rng = random.Random(99)
    tar = images.tar([images.entry(f"f{i}", rng.randbytes(400_000)) for i in range(20)])
    layout = images.Layout(f"{shared}/plain").image([images.encoded(tar, "gzip-1")])
    (layer,) = layout.layers()
    r = serve({"app": layout.path})
    rate = 8_000_000 // SLOW
    r.fault(match="/blobs/", rate=rate, count=-1)
    n, slack = 5, 1 << 20
    for _ in range(n):
        one_life(llbfs, f"{r.host}/app", {}, rng, 0.2 * SLOW)
    r.faults.clear()
    llbfs.run("cat", f"{r.host}/app", "/f19")
    total = sum(e["bytes"] for e in r.log if layer["digest"] in e["path"])
    print(f"{total} bytes for a layer of {layer['size']}, after {n} kills")
    assert total <= layer["size"] + n * slack


def test_bytes_damaged_in_the_store_are_never_served(llbfs, serve, image):
    layout, digests = image
    r = serve({"app": layout.path})
    ref = f"{r.host}/app"
    names = [n for n in digests if n.startswith("layer0/")]
    with llbfs.mount(ref, options=["--prefetch", "none"]) as m:
        for name in names:
            with open(m / name, "rb") as f:
                f.read()
    damaged = 0
    for folder in ("partial", "content", "frames", "blobs/sha256"):
        for name in os.listdir(f"{llbfs.store}/{folder}"):
            path = f"{llbfs.store}/{folder}/{name}"
            if os.path.getsize(path) < 100_000:
                continue
            damaged += 1
            with open(path, "r+b") as f:
                for off in range(0, os.path.getsize(path), 4096):
                    f.seek(off + 100)
                    f.write(b"damaged!")
    assert damaged
    with llbfs.mount(ref, options=["--prefetch", "none"]) as m:
        for name in digests:
            try:
                with open(m / name, "rb") as f:
                    assert hashlib.sha256(f.read()).digest() == digests[name], name
            except OSError:
                assert m.status()["errors"]


def test_two_mounts_at_once_fetch_a_layer_once(llbfs, serve, image):
    layout, digests = image
    r = serve({"app": layout.path})
    r.fault(match="/blobs/", rate=RATE, count=-1)
    mounts = [llbfs.start_mount(f"{r.host}/app", options=["--prefetch", "none"]) for _ in range(4)]
    assert all(m.wait_ready() for m in mounts)
    readers = [Reader(m, digests, random.Random(i)) for i, m in enumerate(mounts)]
    for t in readers:
        t.start()
    for t in readers:
        t.join(120 * SLOW)
        assert not t.is_alive()
        assert not t.wrong and len(t.read) == len(digests)
    for m in mounts:
        assert m.status()["errors"] == []
        m.umount()
    for layer in layout.layers()[1:]:
        total = sum(e["bytes"] for e in r.log if layer["digest"] in e["path"])
        assert total == layer["size"], "a whole layer was fetched twice"
    check_store(llbfs.store)


def test_many_processes_read_at_once(llbfs, serve, image, work):
    layout, digests = image
    r = serve({"app": layout.path})
    sums = f"{work}/sums"
    with open(sums, "w") as f:
        for name, digest in digests.items():
            f.write(f"{digest.hex()}  {name}\n")
    with llbfs.mount(f"{r.host}/app") as m:
        checks = [subprocess.Popen(["sha256sum", "--quiet", "-c", sums], cwd=m.path,
                                   stdout=subprocess.PIPE) for _ in range(16)]
        for c in checks:
            out, _ = c.communicate(timeout=120 * SLOW)
            assert c.returncode == 0, out
        assert m.status()["errors"] == []


def test_fifty_commands_share_a_cold_store(llbfs, serve, image):
    layout, digests = image
    r = serve({"app": layout.path})
    name = "layer1/f4"
    commands = [subprocess.Popen([program.BIN, "cat", f"{r.host}/app", f"/{name}"],
                                 env=llbfs.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(50)]
    for c in commands:
        out, said = c.communicate(timeout=120 * SLOW)
        assert c.returncode == 0, said.decode()
        assert hashlib.sha256(out).digest() == digests[name]
    for layer in layout.layers()[1:]:
        total = sum(e["bytes"] for e in r.log if layer["digest"] in e["path"])
        assert total == layer["size"]
