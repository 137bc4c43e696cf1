# SPDX-License-Identifier: Apache-2.0
"""Registries that answer wrongly, and stores without room: right bytes or one clear error, within
the deadline; never wrong bytes.
"""
import errno
import hashlib
import os
import random
import subprocess
import time

import pytest

import images
import listing
from program import SLOW

DEADLINE = 1.0


@pytest.fixture(scope="module")
def image(shared):
    """({form: layout}, {path: content}): the same files by a lazy layer and by a plain one."""
    rng = random.Random(7)
    files = {"small": b"x" * 100, "noise": rng.randbytes(700_000), "text": b"all work " * 50_000}
    files.update({f"d/{i}": rng.randbytes(3000) for i in range(20)})
    tar = images.tar([images.entry("d/"), *(images.entry(n, d) for n, d in files.items())])
    layouts = {"estargz": images.estargz_layer(tar, chunk=100_000),
               "gzip": images.encoded(tar, "gzip-1"), "zstd": images.encoded(tar, "zstd-1")}
    return {form: images.Layout(f"{shared}/{form}").image([layer])
            for form, layer in layouts.items()}, files


# What a fault leads to: True: all files come out right after all; False: errors where the faulty
# answer is to a request for a range (a pass asks for the whole blob); None: either.
FAULTS = {
    "200 for 206": ({"ignore_range": True, "count": -1}, True),
    "short ranges": ({"short_range": 5000, "count": -1}, True),
    "one short range": ({"short_range": 1}, True),
    "wide ranges": ({"wide_range": 1000, "count": -1}, None),
    "shifted ranges": ({"shift_range": 7, "count": -1}, False),
    "one shifted range": ({"shift_range": 7}, True),
    "Content-Range of another place": ({"content_range": "bytes 5-9/100", "count": -1}, False),
    "Content-Range that is none": ({"content_range": "bytes what", "count": -1}, False),
    "no Content-Range": ({"content_range": "", "count": -1}, None),
    "wrong bytes": ({"wrong_bytes": 255, "count": -1}, False),
    "wrong bytes once": ({"wrong_bytes": 1}, True),
    "bytes of an encoding": ({"encoding": "gzip", "count": -1}, None),
    "401": ({"status": 401, "count": -1}, False),
    "403": ({"status": 403, "count": -1}, False),
    "404": ({"status": 404, "count": -1}, False),
    "416": ({"status": 416, "count": -1}, False),
    "429 once": ({"status": 429, "headers": {"Retry-After": "0"}}, True),
    "429 for ever": ({"status": 429, "headers": {"Retry-After": "3600"}, "count": -1}, False),
    "500 twice": ({"status": 500, "count": 2}, True),
    "500 for ever": ({"status": 500, "count": -1}, False),
    "503 once": ({"status": 503}, True),
    "cut once": ({"cut_after": 2000}, True),
    "cut always": ({"cut_after": 20, "count": -1}, None),
    "hang up once": ({"hang_up": True}, True),
    "hang up always": ({"hang_up": True, "count": -1}, False),
    "stall": ({"stall_after": 10, "count": -1}, False),
    "stall before the answer": ({"delay": 3600, "count": -1}, False),
    "a trickle": ({"rate": 40, "count": -1}, False),
    "a long header": ({"status": 200, "headers": {"X": "y" * 60_000}, "count": -1}, False),
}


def read_all(m, files):
    """{path: right, errno}; wrong bytes fail the test at once."""
    results = {}
    for name, content in files.items():
        try:
            with open(m / name, "rb") as f:
                assert f.read() == content, f"{name}: wrong bytes"
            results[name] = "right"
        except OSError as e:
            results[name] = e.errno
    return results


@pytest.mark.parametrize("form", ["estargz", "gzip"])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_while_a_file_is_read(llbfs, serve, image, fault, form):
    """The fault begins when the mount is up; each read ends in time."""
    spec, comes_right = FAULTS[fault]
    layouts, files = image
    r = serve({"app": layouts[form].path})
    if form == "gzip":  # all of it is fetched at once: the fault must be there before
        r.fault(match="/blobs/", **spec)
    m = llbfs.start_mount(f"{r.host}/app", options=["--deadline", f"{DEADLINE * SLOW}s",
                                                     "--prefetch", "none"])
    start = time.monotonic()
    if not m.wait_ready():
        assert m.join() in (3, 4, 5, 6, 8) and comes_right is not True
        assert m.stderr().count("\n") == 1 and r.host in m.stderr(), m.stderr()
        assert time.monotonic() - start < (DEADLINE + 3) * SLOW
        return
    if form == "estargz":
        assert set(os.listdir(m.path)) == {"d", "small", "noise", "text"}
        r.fault(match="/blobs/", **spec)
    start = time.monotonic()
    some = {name: files[name] for name in ("small", "noise")}
    results = read_all(m, some)
    seconds = time.monotonic() - start
    status = m.status()
    if comes_right is True:
        assert set(results.values()) == {"right"}, (results, status["errors"])
    else:
        assert set(results.values()) <= {"right", errno.EIO}, results
        if comes_right is False and form == "estargz":
            assert set(results.values()) == {errno.EIO}, results
        if errno.EIO in results.values():
            text = status["errors"][0]["text"]
            assert r.host in text or "deadline" in text, text
        # one after another, each within its deadline
        assert seconds < len(some) * (DEADLINE + 0.5) * SLOW
    m.umount()


@pytest.mark.parametrize("form", ["estargz", "zstd"])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_everything_a_command_asks_for(llbfs, serve, image, fault, form):
    spec, comes_right = FAULTS[fault]
    layouts, files = image
    r = serve({"app": layouts[form].path})
    r.fault(match="/blobs/", **spec)
    start = time.monotonic()
    done = llbfs.run("cat", "--deadline", f"{DEADLINE * SLOW}s", f"{r.host}/app", "/noise",
                     code=None)
    assert time.monotonic() - start < (2 * DEADLINE + 3) * SLOW
    if done.returncode == 0:
        assert done.stdout == files["noise"]
        return
    assert comes_right is not True, done.stderr
    assert done.returncode in (3, 4, 5, 6, 8)
    assert files["noise"].startswith(done.stdout)
    assert len(done.stderr.splitlines()) == 1 and r.host.encode() in done.stderr, done.stderr


MANIFEST_FAULTS = {
    "401": ({"status": 401}, 4), "403": ({"status": 403}, 4), "404": ({"status": 404}, 3),
    "500": ({"status": 500}, 5), "429": ({"status": 429, "headers": {"Retry-After": "99"}}, 5),
    "cut": ({"cut_after": 10}, 5), "hang up": ({"hang_up": True}, 5), "stall": ({"delay": 99}, 5),
    "wrong bytes": ({"wrong_bytes": 1}, 6), "a web page": ({"status": 200, "body": "<html>"}, 6),
    "nothing": ({"status": 200, "body": ""}, 6), "redirect to itself": (
        {"status": 307, "headers": {"Location": "/v2/app/manifests/latest"}}, None),
    "redirect to a file": ({"status": 307, "headers": {"Location": "file:///etc/passwd"}}, None),
}


@pytest.mark.parametrize("fault", MANIFEST_FAULTS)
def test_fault_of_the_manifest(llbfs, serve, image, fault):
    spec, code = MANIFEST_FAULTS[fault]
    r = serve({"app": image[0]["estargz"].path})
    r.fault(match="/manifests/", count=-1, **spec)
    start = time.monotonic()
    done = llbfs.run("ls", "--deadline", f"{DEADLINE * SLOW}s", f"{r.host}/app", code=None)
    assert time.monotonic() - start < (DEADLINE + 3) * SLOW
    assert done.returncode == code or code is None and done.returncode > 2, done
    assert done.stderr.count(b"\n") == 1 and r.host.encode() in done.stderr and not done.stdout
    r.clear()  # and nothing of it was kept
    assert llbfs.run("cat", f"{r.host}/app", "/small").stdout == image[1]["small"]


def test_signed_urls_that_expire_are_asked_for_again(llbfs, serve, image):
    layouts, files = image
    r = serve({"app": layouts["estargz"].path}, redirect=True, redirect_ttl=0.2)
    with llbfs.mount(f"{r.host}/app", options=["--prefetch", "none"]) as m:
        for name in ("small", "d/3", "noise", "d/4", "text"):
            with open(m / name, "rb") as f:
                assert f.read() == files[name]
            r.revoke()
        assert m.status()["errors"] == []


def test_tokens_that_are_revoked_are_asked_for_again(llbfs, serve, image):
    layouts, files = image
    r = serve({"app": layouts["estargz"].path}, auth="token")
    with llbfs.mount(f"{r.host}/app", options=["--prefetch", "none"]) as m:
        for name in ("small", "d/3", "noise"):
            with open(m / name, "rb") as f:
                assert f.read() == files[name]
            r.revoke()
        assert m.status()["errors"] == []


def test_redirect_to_a_host_that_is_not_there(llbfs, serve, image):
    layouts, files = image
    r = serve({"app": layouts["estargz"].path}, redirect=True, redirect_host="127.0.0.9")
    done = llbfs.run("cat", "--deadline", "2s", f"{r.host}/app", "/small", code=5)
    assert done.stderr.count(b"\n") == 1 and b"127.0.0.9" in done.stderr


def test_reads_recover_when_the_registry_does(llbfs, serve, image):
    layouts, files = image
    r = serve({"app": layouts["estargz"].path})
    with llbfs.mount(f"{r.host}/app", options=["--deadline", f"{DEADLINE * SLOW}s",
                                               "--prefetch", "none"]) as m:
        assert os.stat(m / "noise").st_size == 700_000
        r.fault(match="/blobs/", status=500, count=-1)
        with pytest.raises(OSError) as e:
            with open(m / "noise", "rb") as f:
                f.read()
        assert e.value.errno == errno.EIO
        r.clear()
        assert read_all(m, files) == dict.fromkeys(files, "right")


# --- no room ---

@pytest.fixture
def small_disk(work):
    """A file system of 24 MB for the store."""
    path = f"{work}/disk"
    os.mkdir(path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture(scope="module")
def large(shared):
    rng = random.Random(3)
    contents = {"small": b"small", **{f"f{i}": rng.randbytes(3_000_000) for i in range(12)}}
    tar = images.tar([images.entry(n, d) for n, d in contents.items()])
    return images.Layout(f"{shared}/large").image([images.estargz_layer(tar, level=1)]), contents


def digests(contents):
    return {n: hashlib.sha256(d).hexdigest() for n, d in contents.items()}


def fill(m, contents):
    """Reads everything; returns what failed with ENOSPC. Wrong bytes or other errors fail."""
    failed = set()
    for name, digest in digests(contents).items():
        try:
            assert listing.sha256_of(m / name) == digest
        except OSError as e:
            assert e.errno == errno.ENOSPC, (name, e)
            failed.add(name)
    return failed


def test_full_disk_fails_the_read_that_needed_room(llbfs, serve, large, small_disk):
    layout, contents = large
    r = serve({"app": layout.path})
    with open(f"{small_disk}/other", "wb") as f:  # not ours to evict
        f.write(bytes(12_000_000))
    with llbfs.mount(f"{r.host}/app", options=["--prefetch", "none", "--max-used-space", "1GB"],
                     root=f"{small_disk}/store") as m:
        failed = fill(m, contents)
        read = set(contents) - failed
        assert failed and "small" in read
        errors = m.status()["errors"]
        assert errors and errors[0]["code"] == "ENOSPC" and len(errors[0]["text"]) > 10
        for name in sorted(read):  # others go on
            assert listing.sha256_of(m / name) == digests(contents)[name]
        os.unlink(f"{small_disk}/other")
        for name in sorted(failed)[:2]:  # and with room, so does this one
            assert listing.sha256_of(m / name) == digests(contents)[name]


def test_bound_that_leases_fill_fails_the_read_that_needed_room(llbfs, serve, large):
    layout, contents = large
    r = serve({"app": layout.path})
    with llbfs.mount(f"{r.host}/app",
                     options=["--prefetch", "none", "--max-used-space", "16MB"]) as m:
        failed = fill(m, contents)
        assert failed
        errors = m.status()["errors"]
        assert errors and errors[0]["code"] == "ENOSPC" and "16" in errors[0]["text"], errors
        used = int(subprocess.run(["du", "-s", "-B1", llbfs.store], stdout=subprocess.PIPE,
                                  check=True).stdout.split()[0])
        assert used < 17_500_000


def test_bound_evicts_what_no_lease_covers(llbfs, serve, large, work):
    layout, contents = large
    others = [images.Layout(f"{work}/{i}").image([images.estargz_layer(images.tar(
        [images.entry("f", random.Random(i).randbytes(6_000_000))]), level=1)]) for i in range(5)]
    r = serve({str(i): one.path for i, one in enumerate(others)})
    for i in range(5):
        with llbfs.mount(f"{r.host}/{i}", options=["--max-used-space", "16MB"]) as m:
            assert listing.sha256_of(m / "f") == hashlib.sha256(
                random.Random(i).randbytes(6_000_000)).hexdigest()
            assert m.status()["errors"] == []
    used = int(subprocess.run(["du", "-s", "-B1", llbfs.store], stdout=subprocess.PIPE,
                              check=True).stdout.split()[0])
    assert used < 17_500_000


def test_full_disk_during_the_first_pass(llbfs, serve, large, small_disk, work):
    _, contents = large
    tar = images.tar([images.entry(n, d) for n, d in contents.items()])
    layout = images.Layout(f"{work}/plain").image([images.encoded(tar, "gzip-1")])
    r = serve({"app": layout.path})
    start = time.monotonic()
    done = llbfs.run("cat", "--deadline", "10s", f"{r.host}/app", "/small", code=8,
                     root=f"{small_disk}/store")
    assert b"space" in done.stderr.lower() and done.stderr.count(b"\n") == 1, done.stderr
    assert time.monotonic() - start < 15 * SLOW
