# SPDX-License-Identifier: Apache-2.0
"""Random operations that change a tree, done alike in several folders, and what is compared.

One operation is a tuple; doing it gives its errno (0 when it went well). Two folders that began
equal and give equal errnos for the same operations must end equal.
"""
import ctypes
import errno
import os
import random
import stat

import listing

LIBC = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE = 1, 2
KEEP_SIZE, PUNCH, ZERO = 1, 3, 16
AT_FDCWD = -100


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def renameat2(old, new, flags):
    checked(LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def fallocate(fd, mode, off, size):
    checked(LIBC.fallocate(fd, mode, ctypes.c_int64(off), ctypes.c_int64(size)))


def data_of(seed, size):
    return random.Random(seed).randbytes(size)


class Changes:
    """Picks operations: names come from a small set, so that they meet."""

    KINDS = (["write"] * 6 + ["append"] * 3 + ["create", "truncate", "truncate", "punch", "zero"] +
             ["rename"] * 4 + ["exchange", "noreplace", "link", "link", "symlink", "mkdir", "mkdir",
              "unlink", "unlink", "rmdir", "chmod", "chown", "utime", "setxattr", "setxattr",
              "removexattr", "mknod", "tmpfile", "copy", "rmtree", "mapped"])

    def __init__(self, seed, names, folders, largest=300_000):
        self.random = random.Random(seed)
        self.names = names
        self.folders = list(folders)
        self.largest = largest

    def path(self):
        return f"{self.random.choice(self.folders)}/{self.random.choice(self.names)}"

    def size(self):
        return self.random.choice([0, 1, 7, 4096, 65536, self.random.randrange(self.largest)])

    def next(self):
        r = self.random
        kind = r.choice(self.KINDS)
        path = self.path()
        if kind == "mkdir" and len(self.folders) < 30:
            self.folders.append(path)
        return (kind, path, self.path(), self.size(), self.size(), r.randrange(1 << 30))


def rmtree(path):
    with os.scandir(path) as entries:
        found = list(entries)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            rmtree(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(path)


def is_file(path):
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError(errno.EINVAL, "")


def do_data(root, kind, path, other, off, size, seed):
    if kind == "tmpfile":
        fd = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR, 0o640)
        try:
            os.write(fd, data_of(seed, min(size, 5000)))
            if seed % 2:
                os.link(f"/proc/self/fd/{fd}", path, follow_symlinks=True)
        finally:
            os.close(fd)
        return
    if kind == "create":
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 | seed & 0o77))
        return
    if kind != "copy":
        try:
            is_file(path)
        except FileNotFoundError:
            if kind != "write":
                raise
    if kind == "copy":
        is_file(path)
        with open(path, "rb") as a, open(other, "xb") as b:
            while os.copy_file_range(a.fileno(), b.fileno(), 1 << 20):
                pass
        return
    fd = os.open(path, os.O_RDWR | (os.O_CREAT if kind == "write" else 0), 0o644)
    try:
        if kind == "write":
            os.pwrite(fd, data_of(seed, size), off)
        elif kind == "append":
            os.pwrite(fd, data_of(seed, size), os.fstat(fd).st_size)
        elif kind == "truncate":
            os.ftruncate(fd, size)
        elif kind == "punch":
            fallocate(fd, PUNCH, off, size)
        elif kind == "zero":
            fallocate(fd, ZERO | (KEEP_SIZE if seed % 2 else 0), off, size)
        elif kind == "mapped":
            do_mapped(fd, off, size, seed)
    finally:
        os.close(fd)


def do_mapped(fd, off, size, seed):
    import mmap
    length = os.fstat(fd).st_size
    if not length:
        return
    with mmap.mmap(fd, length) as m:
        data = data_of(seed, size)[:max(0, length - off)]
        m[off:off + len(data)] = data


def do_one(root, kind, path, other, off, size, seed):
    path, other = root + path, root + other
    if kind in ("write", "append", "truncate", "punch", "zero", "create", "tmpfile", "copy",
                "mapped"):
        do_data(root, kind, path, other, off, size, seed)
    elif kind == "rename":
        os.rename(path, other)
    elif kind in ("exchange", "noreplace"):
        renameat2(path, other, EXCHANGE if kind == "exchange" else NOREPLACE)
    elif kind == "link":
        os.link(path, other, follow_symlinks=False)
    elif kind == "symlink":
        os.symlink(f"to-{seed}", path)
    elif kind == "mkdir":
        os.mkdir(path, 0o700 | seed & 0o77)
    elif kind == "unlink":
        os.unlink(path)
    elif kind == "rmdir":
        os.rmdir(path)
    elif kind == "rmtree":
        if seed % 3 == 0:
            rmtree(path)
    elif kind == "chmod":
        os.lstat(path)
        if not os.path.islink(path):
            os.chmod(path, seed & 0o7777)
    elif kind == "chown":
        os.chown(path, seed & 7, seed >> 3 & 7, follow_symlinks=False)
    elif kind == "utime":
        os.utime(path, ns=(seed, seed * 1001), follow_symlinks=False)
    elif kind == "setxattr":
        os.setxattr(path, f"trusted.{seed % 5}", data_of(seed, size % 1000),
                    follow_symlinks=False)
    elif kind == "removexattr":
        os.removexattr(path, f"trusted.{seed % 5}", follow_symlinks=False)
    elif kind == "mknod":
        os.mknod(path, [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK][seed % 3] | 0o600,
                 os.makedev(seed % 200, seed % 1000) if seed % 3 == 1 else 0)


def do(root, op):
    """Returns the errno."""
    try:
        do_one(root, *op)
    except OSError as error:
        return error.errno
    return 0


def look(root, times=()):
    """What is compared of a tree: all but times, of which only those of the paths given."""
    facts = listing.of_dir(root)
    for path, one in facts.items():
        if path not in times:
            del one["mtime"]
        if one["type"] != "dir":
            one["nlink"] = os.lstat(root + path).st_nlink
    return facts


def replay(ops, *roots):
    """Does them all everywhere; errnos must agree."""
    for i, op in enumerate(ops):
        results = [do(root, op) for root in roots]
        names = [errno.errorcode.get(r, r) for r in results]
        assert len(set(results)) == 1, (i, op, names)
