# SPDX-License-Identifier: Apache-2.0
"""Graphs of a thousand vertices, solved and mounted. (Overlayfs refuses as many layers.)"""
import os
import subprocess
import sys

import pytest

from conftest import TESTS

sys.path.insert(0, f"{TESTS}/mount")
from llb import definition, merge  # noqa: E402
from test_llb import copy, file_op, mkfile  # noqa: E402
from test_mount import cleared, mnt  # noqa: E402,F401
from test_solving import NOISE, image, is_layer, registry  # noqa: E402,F401

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"),
                                reason="needs root and /dev/fuse")
N = 1000


def mkfiles():
    ops = [file_op(mkfile("/f0", b"0"))]
    for i in range(1, N):
        ops.append(file_op(mkfile(f"/f{i}", b"%d" % i, input=0), inputs=[ops[-1]]))
    return ops, {f"f{i}": b"%d" % i for i in range(N)}


def copies():
    """Each copies what the one before it has copied."""
    ops = [file_op(mkfile("/f0", b"the first"))]
    for i in range(1, N):
        ops.append(file_op(copy(f"/f{i - 1}", f"/f{i}", input=0, secondary=0), inputs=[ops[-1]]))
    return ops, {f"f{i}": b"the first" for i in range(N)}


def rewrites():
    """One path, written a thousand times."""
    ops = [file_op(mkfile("/f", b"0"))]
    for i in range(1, N):
        ops.append(file_op(mkfile("/f", b"%d" % i, input=0), inputs=[ops[-1]]))
    return ops, {"f": b"%d" % (N - 1)}


def merged():
    ops = [file_op(mkfile(f"/f{i}", b"%d" % i)) for i in range(N)]
    return [*ops, merge(*ops)], {f"f{i}": b"%d" % i for i in range(N)}


def look(mnt, files):
    """The inode numbers, when all is as it should be."""
    found = subprocess.run(["find", ".", "-type", "f"], cwd=mnt, stdout=subprocess.PIPE,
                           check=True, text=True).stdout.split()
    assert sorted(found) == sorted(f"./{name}" for name in files)
    inodes = {}
    for name, data in files.items():
        st = (mnt / name).stat()
        assert (st.st_size, st.st_mode & 0o7777, st.st_nlink) == (len(data), 0o644, 1)
        assert (mnt / name).read_bytes() == data
        inodes[name] = st.st_ino
    assert len(set(inodes.values())) == len(files)
    return inodes


@pytest.mark.parametrize("make", [mkfiles, copies, rewrites, merged])
def test_a_thousand_vertices_are_mounted(llbfs, mnt, tmp_path, make):  # noqa: F811
    ops, files = make()
    path = tmp_path / "def.pb"
    path.write_bytes(definition(*ops))
    inodes = []
    for args in ("build", "-o", f"type=mount,dest={mnt}", path), ("mount", f"llb://{path}", mnt):
        id = llbfs.text("--progress", "quiet", *args).strip() or id
        inodes.append(look(mnt, files))
        llbfs("umount", mnt)
    llbfs("mount", f"ref://{id}", mnt)
    inodes.append(look(mnt, files))
    llbfs("umount", mnt)
    assert inodes[0] == inodes[1] == inodes[2]


def test_merged_images_are_mounted_by_their_tables(llbfs, mnt, registry,  # noqa: F811
                                                   tmp_path):
    """Of what can be lazy, no file comes before it is read."""
    ops = [image(registry, name) for name in ("app", "other")]
    path = tmp_path / "def.pb"
    path.write_bytes(definition(*ops, merge(*ops)))
    llbfs("build", "-o", f"type=mount,dest={mnt}", path)
    assert sorted(os.listdir(mnt)) == ["app", "both", "other"]
    log = [e for e in registry.state()["log"] if is_layer(registry, e["path"])]
    assert sum(e["bytes"] for e in log) < len(NOISE) / 8  # of twice as much
    assert (mnt / "app" / "bin").read_bytes() == NOISE
    llbfs("umount", mnt)
