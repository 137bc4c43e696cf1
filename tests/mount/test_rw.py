# SPDX-License-Identifier: Apache-2.0
"""Mounts that can be written: the same as a host folder with the same files."""
import errno
import json
import mmap
import os
import random
import shutil
import signal
import socket
import stat
import struct
import subprocess

import pytest

import images
import listing
import program
import writing

NOISE = random.Random(3).randbytes(1_000_000)
NAMES = ["a", "b", "c", "d1", "d2", "f", "big", "link"]
FOLDERS = ["", "/d1", "/d2", "/d1/d1", "/d2/d1"]


@pytest.fixture(scope="module")
def image(shared):
    """Two layers; names that the random operations meet; hard links, holes, xattrs, devices."""
    e = images.entry
    low = images.tar([
        e("a", b"aaa"), e("big", NOISE), e("d1/", mode=0o755), e("d1/f", NOISE[:200_000]),
        e("d1/d1/"), e("d1/d1/a", b"deep" * 30_000), e("d2/"), e("d2/d1/"), e("d2/d1/b", b"x"),
        images.hardlink("d2/f", "d1/f"), images.symlink("link", "d1/f"),
        e("d2/c", b"c" * 65536, xattrs={"user.k": b"v"}),
        images.device("d1/c", 1, 3, mode=0o666), e("gone", b"")])
    top = images.tar([e("b", NOISE[:70_000], uid=5, gid=6, mode=0o4755), e(".wh.gone"),
                      *(e(f"many/{i:04}", b"%d" % i) for i in range(600))])
    return images.Layout(f"{shared}/image").image(
        [images.estargz_layer(low, chunk=100_000), images.encoded(top)])


@pytest.fixture
def plain(llbfs, image, work):
    """The image's files in a host folder."""
    path = f"{work}/plain"
    with llbfs.mount(image.ref) as m:
        subprocess.run(["cp", "-a", m.path, path], check=True)
    return path


OPTIONS = ["-o", "suid,dev,allow_other", "--rw"]


def mount_rw(llbfs, image, upper=None, more=(), **env):
    options = [*OPTIONS, *more, *(["--upper", upper] if upper else [])]
    return llbfs.mount(image if isinstance(image, str) else image.ref, options=options, **env)


# --- the same as a host folder ---

@pytest.mark.parametrize("seed", range(8))
def test_random_changes_are_as_on_the_host(llbfs, image, plain, work, seed):
    """Also when mounted again, and when the server was killed between two operations."""
    changes = writing.Changes(seed, NAMES, FOLDERS)
    upper = f"{work}/upper"
    for how in ("umount", "kill", "umount"):
        m = mount_rw(llbfs, image, upper)
        writing.replay([changes.next() for _ in range(250)], plain, m.path)
        before = writing.look(m.path)
        listing.assert_equal(writing.look(plain), before)
        if how == "umount":
            m.umount()
        else:
            m.kill()
        with mount_rw(llbfs, image, upper) as m:
            listing.assert_equal(before, writing.look(m.path))
            assert m.status()["errors"] == []


@pytest.mark.parametrize("seed", [100, 101])
def test_a_scratch_mount_writes_nothing_that_stays(llbfs, image, plain, seed):
    changes = writing.Changes(seed, NAMES, FOLDERS)
    with mount_rw(llbfs, image) as m:
        writing.replay([changes.next() for _ in range(300)], plain, m.path)
        listing.assert_equal(writing.look(plain), writing.look(m.path))
        assert os.listdir(f"{llbfs.store}/scratch")
    assert os.listdir(f"{llbfs.store}/scratch") == []
    with mount_rw(llbfs, image) as m:
        assert sorted(os.listdir(m.path)) == ["a", "b", "big", "d1", "d2", "link", "many"]
        m.kill()
    with mount_rw(llbfs, image):
        assert len(os.listdir(f"{llbfs.store}/scratch")) == 1


def test_over_a_host_folder(llbfs, plain, work):
    """Whose numbers mean nothing to the next server: changes are found by their paths."""
    model = f"{work}/model"
    subprocess.run(["cp", "-a", plain, model], check=True)
    changes = writing.Changes(7, NAMES, FOLDERS)
    upper = f"{work}/upper"
    for _ in range(3):
        with mount_rw(llbfs, plain, upper) as m:
            writing.replay([changes.next() for _ in range(150)], model, m.path)
            listing.assert_equal(writing.look(model), writing.look(m.path))
        moved = f"{work}/moved"
        os.rename(upper, moved)
        upper = moved if upper != moved else upper
        with mount_rw(llbfs, plain, upper) as m:
            listing.assert_equal(writing.look(model), writing.look(m.path))


def test_several_processes_in_folders_of_their_own(llbfs, image, plain, work):
    script = ("import sys, writing; c = writing.Changes(int(sys.argv[1]), ['a', 'b', 'c', 'd'], "
              "['/' + sys.argv[2]]); writing.replay([c.next() for _ in range(300)], *sys.argv[3:])")
    with mount_rw(llbfs, image, f"{work}/upper") as m:
        folders = ["d1", "d2", "many", "d1/d1"]
        running = [subprocess.Popen(["/usr/bin/python3", "-c", script, str(i), folder, plain,
                                     m.path],
                                    env={**os.environ, "PYTHONPATH":
                                         f"{os.path.dirname(writing.__file__)}:"
                                         f"{os.path.dirname(os.path.dirname(writing.__file__))}"})
                   for i, folder in enumerate(folders[:3])]
        assert [p.wait(120) for p in running] == [0, 0, 0]
        listing.assert_equal(writing.look(plain), writing.look(m.path))


# --- one file, however it is looked at ---

def test_a_file_opened_before_its_copy_up_is_the_same_file(llbfs, image):
    with mount_rw(llbfs, image) as m:
        before = os.stat(m / "d1/f")
        with open(m / "d1/f", "rb", buffering=0) as old:
            with mmap.mmap(old.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                assert old.read(100) == NOISE[:100]
                with open(m / "d2/f", "r+b", buffering=0) as new:  # the other name
                    new.seek(150_000)
                    new.write(b"NEW")
                assert mapped[150_000:150_003] == b"NEW"
                assert os.pread(old.fileno(), 5, 149_999) == (
                    NOISE[149_999:150_000] + b"NEW" + NOISE[150_003:150_004])
        after = os.stat(m / "d1/f")
        assert (before.st_ino, before.st_nlink) == (after.st_ino, after.st_nlink)
        assert os.stat(m / "d2/f").st_ino == after.st_ino


def test_numbers_stay_through_everything(llbfs, image, work):
    with mount_rw(llbfs, image, f"{work}/u") as m:
        numbers = {p: os.lstat(m / p).st_ino for p in ("a", "d1", "d1/d1/a", "d1/f", "link")}
        os.chmod(m / "a", 0o600)
        os.rename(m / "d1", m / "moved")
        with open(m / "moved/d1/a", "ab") as f:
            f.write(b"!")
        os.rename(m / "link", m / "moved/link")
        names = {"a": "a", "d1": "moved", "d1/d1/a": "moved/d1/a", "d1/f": "moved/f",
                 "link": "moved/link"}
        assert {k: os.lstat(m / v).st_ino for k, v in names.items()} == numbers
    with mount_rw(llbfs, image, f"{work}/u") as m:
        assert {k: os.lstat(m / v).st_ino for k, v in names.items()} == numbers
        for entry in os.scandir(m / "moved"):
            assert entry.inode() == entry.stat(follow_symlinks=False).st_ino


def test_what_is_open_lives_on_without_a_name(llbfs, image, work):
    with mount_rw(llbfs, image, f"{work}/u") as m:
        with open(m / "big", "r+b", buffering=0) as low, open(m / "n", "w+b", buffering=0) as new:
            new.write(b"new")
            os.unlink(m / "big")
            os.unlink(m / "n")
            assert os.fstat(low.fileno()).st_nlink == os.fstat(new.fileno()).st_nlink == 0
            assert os.pread(low.fileno(), 10, 999_990) == NOISE[-10:]
            os.pwrite(low.fileno(), b"late", 5)
            assert os.pread(low.fileno(), 10, 0) == NOISE[:5] + b"late" + NOISE[9:10]
            assert os.pread(new.fileno(), 10, 0) == b"new"
        here = os.open(m / "d1/d1", os.O_DIRECTORY)
        os.unlink("a", dir_fd=here)
        os.rmdir(m / "d1/d1")
        assert os.listdir(here) == []
        with pytest.raises(FileNotFoundError):
            os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=here)
        os.close(here)
        program.wait_until(lambda: not sum(len(f) for _, _, f in os.walk(f"{work}/u/data")))
        assert not sum(len(f) for _, _, f in os.walk(f"{work}/u/data"))


def test_metadata_copies_no_content(llbfs, image, work):
    with mount_rw(llbfs, image, f"{work}/u") as m:
        requests = m.status()["bytes_fetched"]
        os.chmod(m / "big", 0o600)
        os.chown(m / "d1/f", 1, 1)
        os.rename(m / "d1", m / "d3")
        os.link(m / "big", m / "big2")
        os.setxattr(m / "d2/c", "user.more", b"1")
        os.truncate(m / "d3/d1/a", 10_000_000)
        with open(m / "big", "ab") as f:
            f.write(b"end")
        assert m.status()["bytes_fetched"] == requests
        kept = sum(os.stat(os.path.join(d, n)).st_blocks * 512
                   for d, _, files in os.walk(f"{work}/u/data") for n in files)
        assert kept <= 2 * 4096
        assert os.getxattr(m / "d2/c", "user.k") == b"v"
        with open(m / "big2", "rb") as f:
            assert f.read() == NOISE + b"end"
        with open(m / "d3/d1/a", "rb") as f:
            assert f.read() == (b"deep" * 30_000).ljust(10_000_000, b"\0")


def test_names_come_and_go_while_a_folder_is_read(llbfs, image):
    with mount_rw(llbfs, image) as m:
        with os.scandir(m / "many") as entries:
            seen = [next(entries).name for _ in range(100)]
            for i in range(0, 600, 2):
                os.unlink(m / f"many/{i:04}")
            for i in range(300):
                open(m / f"many/new{i}", "x").close()
            seen += [e.name for e in entries]
        assert len(seen) == len(set(seen))
        assert {f"{i:04}" for i in range(1, 600, 2)} <= set(seen)
        names = os.listdir(m / "many")
        assert len(names) == len(set(names)) == 600
        shutil.rmtree(m / "many")
        os.mkdir(m / "many")
        assert os.listdir(m / "many") == []


# --- as the kernel and programs want it ---

def test_setuid_goes_when_others_write(llbfs, image):
    def writer(path):
        os.chdir(os.path.dirname(path))
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        with open(os.path.basename(path), "r+b") as f:
            f.write(b"!")

    with mount_rw(llbfs, image) as m:
        os.chmod(m.path, 0o777)
        for path in (m / "b", m / "n"):
            open(path, "ab").close()
            os.chmod(path, 0o6777)
            os.setxattr(path, "security.capability", struct.pack("<5I", 0x2000001, 1, 0, 0, 0))
            pid = os.fork()
            if pid == 0:
                try:
                    writer(path)
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o777
            assert "security.capability" not in os.listxattr(path)
            os.chmod(path, 0o6755)
            os.chown(path, 3, 3)
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o755


def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


def test_acls_of_what_lies_below(llbfs, plain):
    none = 0xffffffff
    full = acl((1, 6, none), (2, 7, 1000), (4, 4, none), (16, 7, none), (32, 0, none))
    os.setxattr(f"{plain}/d1", "system.posix_acl_default", full)
    os.setxattr(f"{plain}/a", "system.posix_acl_access", full)
    with mount_rw(llbfs, plain) as m:
        open(m / "d1/new", "x").close()
        os.mkdir(m / "d1/d1/none")
        assert os.getxattr(m / "d1/new", "system.posix_acl_access") == acl(
            (1, 6, none), (2, 7, 1000), (4, 4, none), (16, 6, none), (32, 0, none))
        assert os.listxattr(m / "d1/d1/none") == []
        os.chmod(m / "a", 0o604)
        assert os.getxattr(m / "a", "system.posix_acl_access") == acl(
            (1, 6, none), (2, 7, 1000), (4, 4, none), (16, 0, none), (32, 4, none))
    assert os.getxattr(f"{plain}/a", "system.posix_acl_access") == full


def test_acls(llbfs, image):
    none = 0xffffffff
    full = acl((1, 6, none), (2, 7, 1000), (4, 4, none), (16, 7, none), (32, 0, none))
    with mount_rw(llbfs, image) as m:
        os.setxattr(m / "a", "system.posix_acl_access", full)
        assert stat.S_IMODE(os.stat(m / "a").st_mode) == 0o670
        os.chmod(m / "a", 0o640)
        assert os.getxattr(m / "a", "system.posix_acl_access") == acl(
            (1, 6, none), (2, 7, 1000), (4, 4, none), (16, 4, none), (32, 0, none))
        os.setxattr(m / "d1", "system.posix_acl_default", full)
        open(m / "d1/new", "x").close()
        assert os.getxattr(m / "d1/new", "system.posix_acl_access") == acl(
            (1, 6, none), (2, 7, 1000), (4, 4, none), (16, 6, none), (32, 0, none))
        os.mkdir(m / "d1/sub")
        assert os.getxattr(m / "d1/sub", "system.posix_acl_default") == full
        subprocess.run(["cp", "-a", m / "d1", m / "d9"], check=True)
        assert os.getxattr(m / "d9", "system.posix_acl_default") == full
        os.setxattr(m / "a", "system.posix_acl_access",
                    acl((1, 7, none), (4, 5, none), (32, 5, none)))
        assert "system.posix_acl_access" not in os.listxattr(m / "a")
        assert stat.S_IMODE(os.stat(m / "a").st_mode) == 0o755


def test_direct_io_sparse_files_and_locks(llbfs, image):
    import fcntl
    with mount_rw(llbfs, image) as m:
        buffer = mmap.mmap(-1, 8192)
        buffer[:] = b"d" * 8192
        fd = os.open(m / "big", os.O_RDWR | os.O_DIRECT)
        assert os.pwritev(fd, [buffer], 65536 - 4096) == 8192
        os.close(fd)
        with open(m / "big", "rb") as f:
            assert f.read() == NOISE[:61440] + b"d" * 8192 + NOISE[69632:]
        with open(m / "sparse", "w+b", buffering=0) as f:
            os.pwrite(f.fileno(), b"x", 1 << 40)
            assert os.lseek(f.fileno(), 0, os.SEEK_DATA) == 1 << 40
            assert os.lseek(f.fileno(), 0, os.SEEK_HOLE) == 0
            os.truncate(m / "sparse", 0)
            fcntl.flock(f, fcntl.LOCK_EX)
            with open(m / "sparse", "rb") as g, pytest.raises(BlockingIOError):
                fcntl.flock(g, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(f, fcntl.LOCK_EX, 10)
        with pytest.raises(OSError) as error:
            os.truncate(m / "sparse", (1 << 63) - 1)
        assert error.value.errno == errno.EFBIG
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(m / "socket")
        assert os.statvfs(m.path).f_bavail > 0
        with pytest.raises(OSError) as error:
            open(m / ("n" * 256), "x")
        assert error.value.errno == errno.ENAMETOOLONG


def test_programs_work(llbfs, image, work):
    """git and SQLite are particular about names, times, locks and maps."""
    with mount_rw(llbfs, image, f"{work}/u") as m:
        run = ("set -e; git init -q r; cd r; cp -r ../d1 .; git add -A; "
               "git -c user.name=x -c user.email=x@y commit -qm one; git mv d1 d3; "
               "git -c user.name=x -c user.email=x@y commit -qam two; git gc -q; git fsck; "
               "test -z \"$(git status --porcelain)\"")
        subprocess.run(["sh", "-c", run], cwd=m.path, check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, env={**os.environ, "HOME": work})
        import sqlite3
        for mode in ("wal", "delete"):
            db = sqlite3.connect(m / f"{mode}.db")
            db.execute(f"pragma journal_mode={mode}")
            db.execute("create table t(a, b)")
            for i in range(50):
                with db:
                    db.execute("insert into t values (?, ?)", (i, "x" * 1000))
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)
            db.close()


# --- content from far away ---

def test_a_write_that_cannot_have_what_it_needs_fails(llbfs, serve, image, work):
    r = serve({"app": image.path})
    upper = f"{work}/u"
    options = ["--prefetch", "none", "--deadline", "2s"]
    with mount_rw(llbfs, f"{r.host}/app", upper, options) as m:
        os.stat(m / "big")
        r.stop()
        with open(m / "big", "r+b", buffering=0) as f:
            with pytest.raises(OSError) as error:
                os.pwrite(f.fileno(), b"NEW", 200_000)
            assert error.value.errno == errno.EIO
            assert os.pwrite(f.fileno(), b"end", 1_000_000) == 3  # needs nothing
        assert m.status()["errors"]


# --- servers that come and go ---

def test_two_servers_never_share_an_upper(llbfs, image, work):
    with mount_rw(llbfs, image, f"{work}/u"):
        other = llbfs.start_mount(image.ref, options=[*OPTIONS, "--upper", f"{work}/u"])
        assert not other.wait_ready()
        assert other.join() != 0 and "another mount" in other.stderr()
    os.mkdir(f"{work}/mine")
    open(f"{work}/mine/file", "x").close()
    other = llbfs.start_mount(image.ref, options=[*OPTIONS, "--upper", f"{work}/mine"])
    assert not other.wait_ready() and "mine" in other.stderr()
    assert os.listdir(f"{work}/mine") == ["file"]


def test_status_says_that_it_can_be_written(llbfs, image, work):
    with mount_rw(llbfs, image, f"{work}/u") as m:
        status = m.status()
        assert status["rw"] is True and status["upper"] == f"{work}/u"
        assert status["data"] == "noopen" and status["data_reason"]
    for data in ("open", "passthrough"):
        with mount_rw(llbfs, image, None, ["-o", f"data={data}"]) as m:
            with open(m / "big", "r+b", buffering=0) as f:
                f.write(b"NEW")
                assert os.pread(f.fileno(), 5, 0) == b"NEW" + NOISE[3:5]
            assert m.status()["data"] == ("open" if data == "open" else "noopen")
    llbfs.run("mount", "--upper", f"{work}/u", image.ref, f"{work}/mnt", code=2)


def test_a_dead_server_is_cleared_and_the_upper_goes_on(llbfs, image, work):
    point, upper = f"{work}/point", f"{work}/u"
    os.mkdir(point)
    llbfs.run("mount", *OPTIONS, "--upper", upper, image.ref, point)
    pid = llbfs.json("status", point)[0]["pid"]
    with open(f"{point}/n", "x") as f:
        f.write("kept")
    os.kill(pid, signal.SIGKILL)
    assert program.wait_until(lambda: "dead" in llbfs.run("mounts").stdout.decode())
    llbfs.run("umount", point)
    llbfs.run("mount", *OPTIONS, "--upper", upper, image.ref, point)
    with open(f"{point}/n") as f:
        assert f.read() == "kept"
    llbfs.run("umount", point)


@pytest.mark.parametrize("round_", range(10))
def test_killed_while_writing(llbfs, image, work, round_):
    """What was answered is there, whatever was under way is old or new."""
    upper = f"{work}/u"
    m = mount_rw(llbfs, image, upper)
    log = f"{work}/log"
    script = """
import json, os, random, sys
r = random.Random(int(sys.argv[2])); os.chdir(sys.argv[1])
log = open(sys.argv[3], "w", buffering=1)
for i in range(100000):
    name = f"f{r.randrange(20)}"
    data = (b"%06d." % i) * r.randrange(1, 9000)
    log.write(json.dumps(["begin", name, i, len(data)]) + "\\n")
    with open(name + ".new", "wb") as f:
        f.write(data); f.flush()
        if i % 4 == 0: os.fsync(f.fileno())
    os.rename(name + ".new", name)
    with open("big", "r+b") as f:
        f.seek(r.randrange(900000)); f.write(data[:7])
    log.write(json.dumps(["end", name, i, len(data)]) + "\\n")
"""
    writer = subprocess.Popen(["/usr/bin/python3", "-c", script, m.path, str(round_), log],
                              stderr=subprocess.DEVNULL)
    wanted = 20 + round_ * 13
    assert program.wait_until(lambda: os.path.exists(log) and
                              sum(1 for _ in open(log)) > wanted, 30)
    m.kill()
    writer.wait(20)
    ends, begun = {}, {}
    for line in open(log):
        kind, name, i, size = json.loads(line)
        (begun if kind == "begin" else ends)[name] = (i, size)
    with mount_rw(llbfs, image, upper) as m:
        for name, (i, size) in ends.items():
            with open(m / name, "rb") as f:
                data = f.read()
            fits = [data == (b"%06d." % n) * (length // 7)
                    for n, length in ((i, size), begun[name])]
            assert any(fits), (name, i, data[:20], len(data))
        with open(m / "big", "rb") as f:
            assert len(f.read()) == len(NOISE)


def test_fsx(llbfs, image, work):
    """A file against a copy in memory: read, write, mmap, truncate, punch, copy, open again."""
    fsx = os.environ.get("FSX_BIN")
    assert fsx, "FSX_BIN names the program that tests/mount/fsx.c makes"
    with mount_rw(llbfs, image, f"{work}/u") as m:
        for seed, name in ((1, "fresh"), (2, "big"), (3, "d1/f")):
            subprocess.run([fsx, m / name, str(seed), "6000"], check=True, timeout=300)


def test_a_full_disk_says_so_and_loses_nothing(llbfs, image, work):
    disk = f"{work}/disk"
    os.mkdir(disk)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], check=True)
    try:
        with mount_rw(llbfs, image, f"{disk}/u") as m:
            with pytest.raises(OSError) as error:
                for i in range(100):
                    with open(m / f"n{i}", "xb", buffering=0) as f:
                        f.write(NOISE[:100_000])
            assert error.value.errno == errno.ENOSPC
            with pytest.raises(OSError) as error:
                for i in range(100_000):
                    open(m / f"{i:0200}", "x").close()
            assert error.value.errno == errno.ENOSPC
            os.unlink(m / "n3")
            program.wait_until(lambda: os.statvfs(m.path).f_bavail)
            with open(m / "a", "r+b") as f:
                f.write(b"A")
            with pytest.raises(OSError):  # and ends with a full disk
                with open(m / "b", "r+b", buffering=0) as f:
                    for i in range(100):
                        os.pwrite(f.fileno(), NOISE[:50_000], 70_000 + i * 50_000)
            before = writing.look(m.path)
        with mount_rw(llbfs, image, f"{disk}/u") as m:
            listing.assert_equal(before, writing.look(m.path))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
