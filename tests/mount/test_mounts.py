# SPDX-License-Identifier: Apache-2.0
"""What a mount is like for those who use it, and how it comes and goes."""
import ctypes
import errno
import mmap
import os
import random
import re
import signal
import subprocess
import threading
import time

import pytest

import images
import listing
import program
from program import SLOW, wait_until

NOISE = random.Random(5).randbytes(3_000_000)


@pytest.fixture(scope="module")
def image(shared):
    """One lazy and one plain layer, with a bit of everything."""
    e = images.entry
    low = images.tar([
        e("big", NOISE), e("d/", mode=0o750, uid=11), e("d/f", b"low" * 999), e("gone", b"x"),
        images.hardlink("d/same", "d/f"), images.symlink("link", "d/f"),
        e("x", b"x", xattrs={"user.a": b"1\x002", "security.b": b"v" * 4000}),
        images.device("null", 1, 3, mode=0o666),
        e("script", b"#!/bin/sh\necho it ran\n", mode=0o755),
        e("suid", b"", mode=0o4755)])
    top = images.tar([e("many/"), *(e(f"many/{i:05}", b"%d" % i) for i in range(5000)),
                      e(".wh.gone"), e("mine", b"m", uid=65534, mode=0o600)])
    return images.Layout(f"{shared}/image").image(
        [images.estargz_layer(low, chunk=500_000), images.encoded(top)])


@pytest.fixture
def mount(llbfs, image):
    with llbfs.mount(image.ref) as m:
        yield m


# --- reading ---

def test_programs_run_from_a_mount(llbfs, formats):
    for form in ("estargz-default", "gzip-single"):
        with llbfs.mount(f"oci-layout://{formats(form)}:v1") as m:
            out = subprocess.run(["chroot", m.path, "/bin/busybox", "sh", "-c",
                                  "echo hello; exec /bin/busybox ls /"],
                                 stdout=subprocess.PIPE, check=True).stdout.split()
            assert out[0] == b"hello" and b"bin" in out


def test_scripts_run_from_a_mount(mount):
    out = subprocess.run([mount / "script"], stdout=subprocess.PIPE, check=True).stdout
    assert out == b"it ran\n"


@pytest.mark.parametrize("data", ["auto", "noopen", "passthrough", "open"])
def test_ways_of_data_give_the_same_bytes(llbfs, image, data):
    with llbfs.mount(image.ref, options=["-o", f"data={data}"]) as m:
        for _ in range(2):  # the second time, flat copies may have been made
            with open(m / "big", "rb") as f:
                assert f.read() == NOISE
                with mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                    assert mapped[1_234_567:1_234_999] == NOISE[1_234_567:1_234_999]
                    assert mapped[:] == NOISE
            with open(m / "d/f", "rb") as f:
                assert f.read() == b"low" * 999
            for off, n in ((0, 1), (4095, 2), (2_999_999, 5), (500_000 - 3, 9), (3_000_000, 1)):
                with open(m / "big", "rb", buffering=0) as f:
                    assert os.pread(f.fileno(), n, off) == NOISE[off:off + n]
        status = m.status()
    assert status["data_reason"]
    assert status["data"] in ({data} if data != "auto" else {"noopen", "passthrough", "open"})


def test_passthrough_begins_when_all_is_here(llbfs, serve, image):
    """An inode's way of reading stays as it was at its first open until its last release."""
    r = serve({"app": image.path})
    options = ["-o", "data=passthrough", "--prefetch", "none"]
    with llbfs.mount(f"{r.host}/app", options=options) as m:
        with open(m / "big", "rb") as first:
            assert first.read(10) == NOISE[:10]
            assert m.status()["passthrough"] == 0
            assert first.read() == NOISE[10:]
            with open(m / "big", "rb") as second:  # all is here, but the first is still open
                assert second.read() == NOISE

        def opened():
            with open(m / "big", "rb") as f:
                assert f.read() == NOISE
            return m.status()["passthrough"]

        assert wait_until(opened), m.status()
        with open(m / "big", "rb") as a, open(m / "big", "rb") as b:
            assert a.read() == b.read() == NOISE
        assert m.status()["errors"] == []


def test_extended_attributes(mount):
    assert sorted(os.listxattr(mount / "x")) == ["security.b", "user.a"]
    assert os.getxattr(mount / "x", "user.a") == b"1\x002"
    assert os.getxattr(mount / "x", "security.b") == b"v" * 4000
    with pytest.raises(OSError) as error:
        os.getxattr(mount / "x", "user.none")
    assert error.value.errno == errno.ENODATA
    assert os.listxattr(mount / "d") == []
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(2)
    size = libc.getxattr(os.fsencode(mount / "x"), b"user.a", buffer, 2)
    assert size == -1 and ctypes.get_errno() == errno.ERANGE
    assert libc.getxattr(os.fsencode(mount / "x"), b"user.a", None, 0) == 3


def test_large_folders_are_listed_whole_by_everybody(mount):
    names = sorted(f"{i:05}" for i in range(5000))
    results = []

    def scan():
        with os.scandir(mount / "many") as it:
            results.append(sorted(entry.name for entry in it if entry.is_file()))

    threads = [threading.Thread(target=scan) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30 * SLOW)
    assert results == [names] * 6


def test_folders_can_be_read_from_where_one_was(mount):
    """telldir and seekdir, as NFS servers and rm -r use them."""
    libc = ctypes.CDLL(None, use_errno=True)

    class Dirent(ctypes.Structure):
        _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("len", ctypes.c_uint16),
                    ("type", ctypes.c_uint8), ("name", ctypes.c_char * 256)]

    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.readdir.argtypes = libc.telldir.argtypes = libc.closedir.argtypes = [ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    libc.telldir.restype = ctypes.c_long
    folder = libc.opendir(os.fsencode(mount / "many"))
    seen = []
    while True:
        place = libc.telldir(folder)
        entry = libc.readdir(folder)
        if not entry:
            break
        dirent = Dirent.from_address(entry)
        seen.append((place, dirent.name, dirent.ino, dirent.type))
    assert {name for _, name, _, _ in seen[:2]} == {b".", b".."} and len(seen) == 5002
    for place, name, ino, kind in random.Random(2).sample(seen, 200):
        libc.seekdir(folder, place)
        dirent = Dirent.from_address(libc.readdir(folder))
        assert (dirent.name, dirent.ino, dirent.type) == (name, ino, kind)
    libc.closedir(folder)
    inodes = {name: ino for _, name, ino, _ in seen}
    assert inodes[b".."] == os.stat(mount.path).st_ino
    assert inodes[b"."] == os.stat(mount / "many").st_ino
    assert inodes[b"00042"] == os.stat(mount / "many/00042").st_ino


def test_inode_numbers_are_the_same_for_the_next_server(llbfs, image):
    def inodes(**more):
        with llbfs.mount(image.ref, **more) as m:
            return {path: os.lstat(m.path + path).st_ino for path in listing.of_dir(m.path, False)}

    first = inodes()
    assert inodes() == first
    assert inodes(root=f"{llbfs.work}/another-store") == first
    assert first["/d/f"] == first["/d/same"] and len(set(first.values())) == len(first) - 1


def test_hard_links_count(mount):
    assert os.stat(mount / "d/f").st_nlink == 2 == os.stat(mount / "d/same").st_nlink
    assert os.stat(mount / "x").st_nlink == 1


def test_a_mount_cannot_be_changed(mount):
    for change in (lambda: open(mount / "x", "ab"), lambda: os.unlink(mount / "x"),
                   lambda: os.mkdir(mount / "n"), lambda: os.chmod(mount / "x", 0),
                   lambda: os.rename(mount / "x", mount / "y"), lambda: os.utime(mount / "x"),
                   lambda: os.setxattr(mount / "x", "user.n", b""),
                   lambda: os.link(mount / "x", mount / "y"),
                   lambda: os.truncate(mount / "x", 0)):
        with pytest.raises(OSError) as error:
            change()
        assert error.value.errno == errno.EROFS


def test_names_that_are_not_there(mount):
    for name in ("none", "d/none", "gone", "none/none", "n" * 255):
        with pytest.raises(FileNotFoundError):
            os.stat(mount / name)
    with pytest.raises(NotADirectoryError):
        os.stat(mount / "x/y")
    with pytest.raises(OSError) as error:
        os.stat(mount / ("n" * 256))
    assert error.value.errno == errno.ENAMETOOLONG


def test_statfs(mount):
    st = os.statvfs(mount.path)
    assert st.f_flag & os.ST_RDONLY and st.f_namemax == 255 and st.f_bsize >= 512
    assert st.f_bfree == st.f_bavail == 0 or st.f_blocks >= st.f_bfree


def test_holes_show(llbfs, work):
    os.mkdir(f"{work}/src")
    with open(f"{work}/src/holes", "wb") as f:
        for off in (0, 1_000_000, 4_194_304):
            f.seek(off)
            f.write(b"data" * 2000)
        f.truncate(6_000_000)
    tar = images.pipe(b"", "tar", "-C", f"{work}/src", "--format=posix", "--sparse",
                      "--hole-detection=seek", "-c", "holes")
    layout = images.Layout(f"{work}/layout").image([images.encoded(tar)])
    with llbfs.mount(layout.ref) as m:
        with open(m / "holes", "rb") as f, open(f"{work}/src/holes", "rb") as source:
            content = source.read()
            at, data = 0, 0
            while at < 6_000_000:
                try:
                    start = os.lseek(f.fileno(), at, os.SEEK_DATA)
                except OSError as error:
                    assert error.errno == errno.ENXIO
                    start = 6_000_000
                assert not any(content[at:start]), "a hole over data"
                if start == 6_000_000:
                    break
                at = os.lseek(f.fileno(), start, os.SEEK_HOLE)
                data += at - start
            assert 24_000 <= data <= 60_000
            with pytest.raises(OSError) as error:
                os.lseek(f.fileno(), 6_000_000, os.SEEK_DATA)
            assert error.value.errno == errno.ENXIO
            f.seek(0)
            assert f.read() == content
        assert os.stat(m / "holes").st_blocks * 512 < 200_000


def test_open_files_cost_the_server_no_descriptors(mount):
    files = [open(mount / f"many/{i:05}", "rb") for i in range(3000)]
    try:
        assert [f.read() for f in files[::97]] == [b"%d" % i for i in range(0, 3000, 97)]
        assert len(os.listdir(f"/proc/{mount.pid}/fd")) < 200
    finally:
        for f in files:
            f.close()


# --- who may ---

def as_nobody(*command):
    return subprocess.run(command, user=65534, group=65534, extra_groups=[],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_others_may_look_only_when_allowed(llbfs, image, work):
    for folder in (work, f"{work}/mnt"):
        os.chmod(folder, 0o755)
    with llbfs.mount(image.ref) as m:
        assert as_nobody("cat", m / "x").returncode != 0
    with llbfs.mount(image.ref, options=["-o", "allow_other"]) as m:
        assert as_nobody("cat", m / "x").stdout == b"x"
        assert as_nobody("cat", m / "mine").stdout == b"m"
        assert as_nobody("ls", m / "d").returncode != 0  # 0750, and the kernel checks it
    with llbfs.mount(image.ref, options=["-o", "allow_other,uid=65534,gid=65534"]) as m:
        assert as_nobody("ls", m / "d").stdout.split() == [b"f", b"same"]
        assert {(os.lstat(m.path + p).st_uid, os.lstat(m.path + p).st_gid)
                for p in ("/x", "/d", "/link", "/mine")} == {(65534, 65534)}


def flags_of(path):
    with open("/proc/self/mountinfo") as f:
        return next(line.split()[5].split(",") for line in f if line.split()[4] == path)


def test_devices_and_set_user_id_only_when_asked_for(llbfs, image):
    with llbfs.mount(image.ref) as m:
        assert {"ro", "nosuid", "nodev"} <= set(flags_of(m.path))
        with pytest.raises(PermissionError):
            open(m / "null", "rb")
    with llbfs.mount(image.ref, options=["-o", "suid,dev"]) as m:
        assert not {"nosuid", "nodev"} & set(flags_of(m.path))
        with open(m / "null", "rb") as f:
            assert f.read() == b""


# --- coming and going ---

WAYS = {
    "llbfs umount": lambda m: m.program.run("umount", m.path),
    "umount": lambda m: subprocess.run(["umount", m.path], check=True),
    "fusermount3": lambda m: subprocess.run(["fusermount3", "-u", m.path], check=True),
    "SIGTERM": lambda m: m.process.send_signal(signal.SIGTERM),
    "SIGINT": lambda m: m.process.send_signal(signal.SIGINT),
    "SIGHUP": lambda m: m.process.send_signal(signal.SIGHUP),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_end(llbfs, image, way):
    m = llbfs.mount(image.ref)
    assert os.listdir(llbfs.runtime)
    with open(m / "d/f", "rb") as f:
        assert f.read(3) == b"low"
    WAYS[way](m)
    assert m.join() == 0, m.stderr()
    assert not program.mounts_below(m.path) and os.listdir(m.path) == []
    assert not [n for n in os.listdir(llbfs.runtime) if n.endswith(".sock")]
    assert m.stderr() == ""
    assert llbfs.json("mounts") == [x for x in llbfs.json("mounts") if x["mountpoint"] != m.path]


def close_dead(fd):
    try:
        os.close(fd)
    except OSError as error:  # what close says of a file whose server has gone
        assert error.errno == errno.ENOTCONN


@pytest.mark.parametrize("way", ["SIGTERM", "llbfs umount"])
def test_end_while_in_use(llbfs, image, way):
    m = llbfs.mount(image.ref)
    fd = os.open(m / "big", os.O_RDONLY)
    try:
        assert os.pread(fd, 3, 0) == NOISE[:3]
        if way == "SIGTERM":
            WAYS[way](m)
            assert m.join() == 0
            with pytest.raises(OSError):
                os.pread(fd, 10, 2_500_000)
        else:
            assert m.program.run("umount", m.path, code=8).stderr.count(b"\n") == 1
            assert os.pread(fd, 3, 0) == NOISE[:3]
            m.program.run("umount", "-l", m.path)
            assert not program.mounts_below(m.path)
            assert os.pread(fd, 3, 2_000_000) == NOISE[2_000_000:2_000_003]
    finally:
        close_dead(fd)
    assert m.join() == 0


@pytest.mark.parametrize("way", ["SIGTERM", "llbfs umount -l"])
def test_end_while_reads_wait_for_the_network(llbfs, serve, image, way):
    r = serve({"app": image.path})
    m = llbfs.mount(f"{r.host}/app", options=["--prefetch", "none", "--deadline", "60s"])
    os.stat(m / "big")
    r.fault(match="/blobs/", stall_after=0, count=-1)
    codes = []

    def read():
        try:
            with open(m / "big", "rb") as f:
                f.read()
        except OSError as error:
            codes.append(error.errno)

    t = threading.Thread(target=read)
    t.start()
    assert wait_until(lambda: m.status()["parked"])
    start = time.monotonic()
    if way == "SIGTERM":
        m.process.send_signal(signal.SIGTERM)
    else:
        m.program.run("umount", "-l", m.path)
        r.clear()
        r.stop()  # the read that waits ends with the connection or with its deadline
        m.process.send_signal(signal.SIGTERM)
    t.join(10 * SLOW)
    assert not t.is_alive() and m.join() == 0
    assert len(codes) == 1 and time.monotonic() - start < 10 * SLOW


def test_a_dead_server_is_cleared(llbfs, image):
    m = llbfs.mount(image.ref)
    fd = os.open(m / "x", os.O_RDONLY)
    m.process.kill()
    m.process.wait()
    for touch in (lambda: os.stat(m / "d"), lambda: os.listdir(m.path)):
        with pytest.raises(OSError) as error:
            touch()
        assert error.value.errno == errno.ENOTCONN
    dead = next(x for x in llbfs.json("mounts") if x["mountpoint"] == m.path)
    assert dead["answers"] is False
    for command in (["status", m.path], ["mount", image.ref, m.path]):
        done = llbfs.run(*command, code=None)
        assert done.returncode > 1 and b"umount" in done.stderr and done.stderr.count(b"\n") == 1
    close_dead(fd)
    llbfs.run("umount", m.path)
    assert not program.mounts_below(m.path)
    again = program.Mount(llbfs, [image.ref], m.path, (), {})
    llbfs.mounts.append(again)
    assert again.wait_ready() and "x" in os.listdir(m.path)


def test_many_mounts_of_one_store(llbfs, image):
    mounts = [llbfs.start_mount(image.ref) for _ in range(12)]
    assert all(m.wait_ready() for m in mounts)
    rows = {row["mountpoint"]: row for row in llbfs.json("mounts")}
    for m in mounts:
        assert rows[m.path] == {"mountpoint": m.path, "ref": image.ref, "pid": m.pid,
                                "answers": True}
        status = m.status()
        assert status["mountpoint"] == m.path and status["pid"] == m.pid
        assert status["rw"] is False and status["prefetch"] == "learned"
        with open(m / "d/f", "rb") as f:
            assert f.read() == b"low" * 999
    for m in mounts:
        m.umount()


def break_layer(layout, n):
    path = f"{layout.path}/blobs/{layout.layers()[n]['digest'].replace(':', '/')}"
    with open(path, "r+b") as f:
        f.seek(os.path.getsize(path) // 2)
        f.write(b"damage" * 10)


@pytest.mark.parametrize("where", ["foreground", "background"])
def test_a_layer_that_is_broken_fails_the_mount(llbfs, work, where):
    layout = images.Layout(f"{work}/layout").image(
        [images.encoded(images.tar([images.entry("f", NOISE)]))])
    break_layer(layout, 0)
    if where == "foreground":
        m = llbfs.start_mount(layout.ref)
        if m.wait_ready():  # the mount was up before the layer had been read
            with pytest.raises(OSError) as error:
                os.listdir(m.path)
            assert error.value.errno == errno.EIO and "sha256:" in m.status()["errors"][0]["text"]
            return
        assert m.join() == 6 and m.stderr().count("\n") == 1 and "sha256:" in m.stderr()
    else:
        os.mkdir(f"{work}/m")
        done = llbfs.run("mount", layout.ref, f"{work}/m", code=None)
        if done.returncode == 0:
            with pytest.raises(OSError):
                os.listdir(f"{work}/m")
            return
        assert done.returncode == 6 and done.stderr.count(b"\n") == 1 and b"sha256:" in done.stderr
    assert not program.mounts_below(work)


def test_background_mount_of_a_name_prints_where(llbfs, serve, image):
    r = serve({"team/app": image.path})
    out = llbfs.run("mount", f"{r.host}/team/app:latest").stdout
    path = out.decode().rstrip("\n")
    assert path.startswith(llbfs.runtime) and out.count(b"\n") == 1
    with open(f"{path}/x", "rb") as f:
        assert f.read() == b"x"
    (row,) = [x for x in llbfs.json("mounts") if x["mountpoint"] == path]
    llbfs.run("umount", path)
    assert not os.path.exists(path)
    assert wait_until(lambda: not os.path.exists(f"/proc/{row['pid']}"))


def test_status_counts_what_is_read(llbfs, serve, image):
    r = serve({"app": image.path})
    with llbfs.mount(f"{r.host}/app", options=["--prefetch", "none"]) as m:
        before = m.status()
        with open(m / "big", "rb") as f:
            f.read()
        after = m.status()
        assert after["bytes_served"] - before["bytes_served"] >= len(NOISE)
        assert after["reads"] > before["reads"]
        assert after["bytes_fetched"] - before["bytes_fetched"] >= len(NOISE)
        lazy, plain = after["layers"]
        assert (lazy["format"], plain["format"]) == ("estargz", "gzip")
        assert plain["fetched"] == plain["size"] and 0 < lazy["fetched"] <= lazy["size"] * 1.1
        table = llbfs.run("status", "--format", "table", m.path).stdout.decode()
        assert m.path in table and re.search(r"estargz lazy", table)


def test_prefetch_all_makes_everything_local(llbfs, serve, image):
    r = serve({"app": image.path})
    with llbfs.mount(f"{r.host}/app", options=["--prefetch", "all"]) as m:
        assert wait_until(lambda: all(
            x["ready"] and x["here"] >= 0.99 * x["size"] - 4096 for x in m.status()["layers"])), \
            m.status()["layers"]
        r.stop()
        with open(m / "big", "rb") as f:
            assert f.read() == NOISE


def test_a_host_without_fuse(llbfs, image):
    """Exit code 7 and what to do about it; what needs no FUSE works."""
    def hidden(*args):
        empty = 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"'
        return subprocess.run(["unshare", "-m", "sh", "-c", empty, "sh", program.BIN, *args],
                              env=llbfs.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=60 * SLOW)

    os.mkdir(f"{llbfs.work}/m")
    done = hidden("mount", image.ref, f"{llbfs.work}/m")
    assert done.returncode == 7 and done.stderr.count(b"\n") == 1 and b"/dev/fuse" in done.stderr
    assert hidden("cat", image.ref, "/x").stdout == b"x"
