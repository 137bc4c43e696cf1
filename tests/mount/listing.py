# SPDX-License-Identifier: Apache-2.0
"""What is known of a tree's files, as {path: facts}, from different places, to be compared.

Paths are text with surrogates for bytes that are not UTF-8, and begin with a slash. Facts:
type mode uid gid mtime (ns) and, where they apply, size sha256 link dev xattrs (hex), group (the
first path of the same inode, when there are several).
"""
import base64
import hashlib
import io
import json
import os
import stat
import tarfile

KINDS = {stat.S_IFREG: "reg", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink", stat.S_IFCHR: "char",
         stat.S_IFBLK: "block", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}
TAR_KINDS = {tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.CHRTYPE: "char",
             tarfile.BLKTYPE: "block", tarfile.FIFOTYPE: "fifo"}
SECOND = 10**9


def sha256_of(path):
    h = hashlib.sha256()
    with open(path, "rb", buffering=0) as f:
        while piece := f.read(1 << 20):
            h.update(piece)
    return h.hexdigest()


def xattrs_of(path):
    return {name: os.getxattr(path, name, follow_symlinks=False).hex()
            for name in os.listxattr(path, follow_symlinks=False)}


def of_file(path, content=True):
    st = os.lstat(path)
    facts = {"type": KINDS[stat.S_IFMT(st.st_mode)], "mode": stat.S_IMODE(st.st_mode),
             "uid": st.st_uid, "gid": st.st_gid, "mtime": st.st_mtime_ns}
    if facts["type"] == "reg":
        facts["size"] = st.st_size
        if content:
            facts["sha256"] = sha256_of(path)
    elif facts["type"] == "symlink":
        facts["link"] = os.readlink(path)
    elif facts["type"] in ("char", "block"):
        facts["dev"] = [os.major(st.st_rdev), os.minor(st.st_rdev)]
    xattrs = xattrs_of(path)
    if xattrs:
        facts["xattrs"] = xattrs
    return facts, st


def group(facts, inodes):
    """Notes which paths share an inode. @inodes: {path: inode}"""
    names = {}
    for path in sorted(inodes, key=os.fsencode):
        names.setdefault(inodes[path], []).append(path)
    for paths in names.values():
        if len(paths) > 1:
            for path in paths:
                facts[path]["group"] = paths[0]
    return facts


def of_dir(root, content=True):
    """A folder of the host: a mount, or what an unpacker left."""
    facts, inodes = {"/": of_file(root, content)[0]}, {}
    todo = [""]
    while todo:
        folder = todo.pop()
        for name in os.listdir(f"{root}{folder}"):
            path = f"{folder}/{name}"
            facts[path], st = of_file(root + path, content)
            if facts[path]["type"] == "dir":
                todo.append(path)
            else:
                inodes[path] = st.st_ino
    return group(facts, inodes)


def of_rows(text):
    """The JSON lines of llbfs ls, find or stat."""
    facts, inodes = {}, {}
    for line in text.splitlines():
        row = json.loads(line)
        one = {k: row[k] for k in ("type", "uid", "gid", "size", "sha256", "link", "xattrs")
               if k in row}
        one["mode"] = int(row["mode"], 8)
        one["mtime"] = row["mtime"] * SECOND + row.get("mtime_ns", 0)
        if "dev" in row:
            one["dev"] = [int(n) for n in row["dev"].split(":")]
        facts[row["path"]] = one
        if row["type"] != "dir":
            inodes[row["path"]] = row["inode"]
    return group(facts, inodes)


def pax_seconds(member):
    """mtime in ns, exactly: a float would lose some."""
    text = member.pax_headers.get("mtime")
    if text is None:
        return int(member.mtime) * SECOND
    whole, _, fraction = text.partition(".")
    ns = int(fraction.ljust(9, "0")[:9]) if fraction else 0
    return int(whole) * SECOND + (-ns if text.startswith("-") else ns)


def of_tar(data):
    facts, inodes = {}, {}
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as t:
        for member in t:
            path = "/" + member.name.strip("/").removeprefix("./")
            if member.islnk():
                target = "/" + member.linkname.lstrip("/").removeprefix("./")
                facts[path] = dict(facts[target])
                inodes[path] = inodes[target]
                continue
            one = {"type": TAR_KINDS.get(member.type, "reg"), "mode": member.mode,
                   "uid": member.uid, "gid": member.gid, "mtime": pax_seconds(member)}
            if one["type"] == "reg":
                one["size"] = member.size
                one["sha256"] = hashlib.sha256(t.extractfile(member).read()).hexdigest()
            elif one["type"] == "symlink":
                one["link"] = member.linkname
            elif one["type"] in ("char", "block"):
                one["dev"] = [member.devmajor, member.devminor]
            xattrs = {k[len("SCHILY.xattr."):]: v.encode("utf-8", "surrogateescape").hex()
                      for k, v in member.pax_headers.items() if k.startswith("SCHILY.xattr.")}
            if xattrs:
                one["xattrs"] = xattrs
            facts[path] = one
            if one["type"] != "dir":
                inodes[path] = path
    return group(facts, inodes)


def of_expected(path):
    """tests/data/formats/expected.jsonl"""
    facts = {}
    with open(path, encoding="utf-8") as f:
        for line in f:
            row = json.loads(line)
            one = {k: row[k] for k in ("type", "uid", "gid", "size", "sha256", "link", "xattrs")
                   if k in row}
            one["mode"] = int(row["mode"], 8)
            one["mtime"] = row["mtime"] * SECOND
            if "dev" in row:
                dev = row["dev"]
                one["dev"] = [int(n) for n in dev.split(":")] if isinstance(dev, str) else dev
            if "hardlink" in row or row.get("nlink", 1) > 1 and row["type"] != "dir":
                one["group"] = row.get("hardlink", row["path"])
            facts[row["path"]] = one
    return facts


def whole_seconds(facts):
    """As a table of contents keeps times."""
    return {path: {**one, "mtime": one["mtime"] // SECOND * SECOND} for path, one in facts.items()}


def differences(expected, got):
    """Lines about what differs, none when equal. Of the root only type and mode count: unpackers
    give it a time and an owner of their own."""
    lines = []
    for path in sorted({*expected, *got}):
        a, b = expected.get(path), got.get(path)
        if path == "/":
            keys = ("type", "mode")
            a, b = ({k: x.get(k) for k in keys} if x else None for x in (a, b))
        if a is None or b is None:
            lines.append(f"{path!r} is only in what was {'got' if a is None else 'expected'}")
        elif a != b:
            keys = [k for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
            lines += [f"{path!r} {k}: expected {a.get(k)!r}, got {b.get(k)!r}" for k in keys]
    return lines


def assert_equal(expected, got):
    lines = differences(expected, got)
    assert not lines, f"{len(lines)} differences:\n" + "\n".join(lines[:40])
    assert len(expected) > 1
