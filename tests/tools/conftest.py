# SPDX-License-Identifier: Apache-2.0
"""What the tests of the command line share: the program, a store, images."""
import json
import os
import subprocess
import sys

import pytest

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, TESTS)
DEMO = f"oci-layout://{TESTS}/data/demo"


class Program:
    def __init__(self, store):
        self.path = os.environ["LLBFS_BIN"]
        self.env = {**os.environ, "LLBFS_ROOT": str(store), "XDG_RUNTIME_DIR": str(store / "run")}
        os.makedirs(store / "run", mode=0o700)

    def __call__(self, *args, code=0, **more):
        """Runs it; returns stdout. More than the expected exit code is an error."""
        p = subprocess.run([self.path, *map(str, args)], env=self.env, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=60, **more)
        assert p.returncode == code, (args, p.returncode, p.stderr.decode(errors="replace"))
        self.stderr = p.stderr.decode(errors="surrogateescape")
        return p.stdout

    def text(self, *args, **more):
        return self(*args, **more).decode(errors="surrogateescape")

    def json(self, *args, **more):
        return [json.loads(line) for line in self(*args, "--format", "json", **more).splitlines()]

    def error(self, code, *args, **more):
        """The one line of an error."""
        assert self(*args, code=code, **more) == b""
        lines = self.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("llbfs: "), self.stderr
        return lines[0]


@pytest.fixture
def llbfs(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    return Program(store)


@pytest.fixture
def tree(tmp_path):
    """A host folder with one of everything that needs no root."""
    top = tmp_path / "tree"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "file").write_bytes(b"hello\n")
    (top / "a" / "b" / "deep").write_bytes(b"x" * 1000)
    (top / "empty").write_bytes(b"")
    os.link(top / "a" / "file", top / "zlink")
    os.symlink("a/file", top / "soft")
    os.symlink("/a/file", top / "absolute")
    os.symlink("nowhere", top / "dangling")
    os.mkfifo(top / "pipe")
    with open(top / "sparse", "wb") as f:
        f.truncate(1 << 20)
        f.seek(1 << 19)
        f.write(b"island")
    os.chmod(top / "a" / "file", 0o4751)
    os.chmod(top / "a", 0o1700)
    os.setxattr(top / "empty", "user.note", b"\x00\xff=")
    for path in ("a/b/deep", "empty", "soft", "a"):
        os.utime(top / path, ns=(0, 1234567890_123456789), follow_symlinks=False)
    return top
