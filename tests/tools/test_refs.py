# SPDX-License-Identifier: Apache-2.0
"""ref://ID: what is kept in the store, with every command that takes a REF."""
import os
import subprocess
import sys

import pytest

from conftest import DEMO, TESTS

sys.path.insert(0, f"{TESTS}/mount")
from llb import definition, field, op_input, source, varint  # noqa: E402


def action(kind, body, input=0, secondary=None, output=0):
    head = varint(1 << 3) + varint(input & (1 << 64) - 1)
    if secondary is not None:
        head += varint(2 << 3) + varint(secondary)
    return field(2, head + varint(3 << 3) + varint(output & (1 << 64) - 1) + field(kind, body))


@pytest.fixture
def save(llbfs):
    def run(*args):
        return subprocess.run([os.environ["SAVEREF"], *args[:-1], llbfs.env["LLBFS_ROOT"], args[-1]],
                              check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return run


@pytest.fixture
def kept(save, tmp_path):
    """A local folder with a new file, and its ID; the folder is gone."""
    ctx = tmp_path / "ctx"
    ctx.mkdir()
    (ctx / "small").write_text("small")
    (ctx / "large").write_bytes(bytes(range(256)) * 4096)
    os.link(ctx / "small", ctx / "hard")
    base = source("local://ctx")
    top = op_input(base) + field(4, action(5, field(1, b"/new") + varint(2 << 3) + varint(0o600)
                                           + field(3, b"text")))
    (tmp_path / "def.pb").write_bytes(definition(base, top))
    ref = save("--local", f"ctx={ctx}", f"llb://{tmp_path}/def.pb")
    for f in ctx.iterdir():
        f.unlink()
    ctx.rmdir()
    return ref


def test_the_commands_take_it(llbfs, kept, tmp_path):
    assert len(kept) == 64
    ref = f"ref://{kept[:12]}"
    assert llbfs.text("ls", ref).split() == ["hard", "large", "new", "small"]
    assert llbfs("cat", ref, "/hard", "/new") == b"smalltext"
    assert llbfs("cat", ref, "/large") == bytes(range(256)) * 4096
    tar = llbfs("tar", ref)
    assert tar == llbfs("tar", f"ref://{kept}") and b"smalltext" not in tar
    llbfs("cp", ref, "/large", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == bytes(range(256)) * 4096
    assert llbfs("diff", ref, f"ref://sha256:{kept}") == b""
    assert "D /new" in llbfs.text("diff", ref, DEMO, code=1).splitlines()


def test_inspect_says_the_id(llbfs, save, kept):
    merge, = llbfs.json("inspect", f"ref://{kept}")
    assert merge["id"] == kept and merge["kind"] == "merge"
    image = save(DEMO)
    was, = llbfs.json("inspect", DEMO)
    now, = llbfs.json("inspect", f"ref://{image}")
    assert now.pop("id") == image and "id" not in was
    assert now.pop("ref") == f"ref://{image}" and was.pop("ref") == DEMO
    assert now == was


def test_equal_results_are_one(save, kept):
    assert save(DEMO) == save(DEMO) != kept
    assert save(f"ref://{kept[:8]}") == kept


def test_what_is_no_id(llbfs, kept):
    assert "0000000" in llbfs.error(3, "ls", "ref://0000000")
    assert "6 hex digits" in llbfs.error(2, "ls", "ref://abc")
    assert "6 hex digits" in llbfs.error(2, "ls", "ref://what-is-this")


def test_lost_content_is_one_clear_line(llbfs, kept):
    folder = os.path.join(llbfs.env["LLBFS_ROOT"], "content")
    name, = os.listdir(folder)
    os.unlink(f"{folder}/{name}")
    assert name in llbfs.error(3, "ls", f"ref://{kept}")


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"),
                    reason="needs root and /dev/fuse")
def test_it_mounts(llbfs, kept, tmp_path):
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    llbfs("mount", f"ref://{kept[:10]}", mnt)
    try:
        assert sorted(os.listdir(mnt)) == ["hard", "large", "new", "small"]
        assert (mnt / "large").read_bytes() == bytes(range(256)) * 4096
        assert os.stat(mnt / "hard").st_ino == os.stat(mnt / "small").st_ino
        assert (mnt / "new").read_text() == "text"
    finally:
        llbfs("umount", mnt)
