# SPDX-License-Identifier: Apache-2.0
"""The servers that BuildKit had when it solved the definitions in cases/.

The definitions name a registry at 127.0.0.1:5000 and a git daemon at 127.0.0.1:9418, and these
names are in the digests of their vertices. So that the ports are free, the tests have a network of
their own (of root, or of a user namespace); where the kernel gives none, they take the host's.
"""
import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.path.dirname(HERE)
sys.path[:0] = [TESTS, f"{TESTS}/mount"]

from registry import Registry  # noqa: E402

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
REGISTRY_PORT, GIT_PORT = 5000, 9418


def write(path, text):
    with open(path, "w", encoding="ascii") as f:
        f.write(text)


def leave_network():
    """A network with nothing but a loopback device, from here on and for all children."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWNET | (CLONE_NEWUSER if uid else 0)) != 0:
        return
    if uid:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{uid} {uid} 1")
        write("/proc/self/gid_map", f"{gid} {gid} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))


def layout(folder, desc):
    """The layout of one image, which is tagged 1."""
    os.makedirs(folder)
    os.symlink(f"{HERE}/images/blobs", f"{folder}/blobs")
    desc = {**desc, "annotations": {"org.opencontainers.image.ref.name": "1"}}
    write(f"{folder}/oci-layout", '{"imageLayoutVersion": "1.0.0"}')
    write(f"{folder}/index.json", json.dumps({"schemaVersion": 2, "manifests": [desc]}))
    return folder


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder with inputs/ (what was given to BuildKit) and images/ (layouts)."""
    top = str(tmp_path_factory.mktemp("golden"))
    os.mkdir(f"{top}/inputs")
    for name in ("ctx", "git-repo"):
        subprocess.run(["tar", "-xzpf", f"{HERE}/inputs/{name}.tar.gz", "-C", f"{top}/inputs"],
                       check=True)
    with open(f"{HERE}/images/refs.json", encoding="ascii") as f:
        for name, desc in json.load(f).items():
            layout(f"{top}/images/{name}", desc)
    return top


def git_daemon(base):
    p = subprocess.Popen(["git", "daemon", "--reuseaddr", "--export-all", "--listen=127.0.0.1",
                          f"--port={GIT_PORT}", f"--base-path={base}", base],
                         stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while time.monotonic() < end and p.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", GIT_PORT), 1).close()
            return p
        except OSError:
            time.sleep(0.02)
    raise RuntimeError("no git daemon")


@pytest.fixture(scope="session")
def network(inputs):
    """The registry, with the log of its requests."""
    leave_network()
    names = os.listdir(f"{inputs}/images")
    git = git_daemon(f"{inputs}/inputs")
    try:
        with Registry({f"golden/{name}": f"{inputs}/images/{name}" for name in names},
                      port=REGISTRY_PORT) as registry:
            yield registry
    finally:
        git.terminate()
        git.wait()


class Program:
    def __init__(self, store, cwd):
        self.path = os.environ["LLBFS_BIN"]
        self.cwd = cwd
        self.env = {**os.environ, "LLBFS_ROOT": str(store)}

    def run(self, *args):
        """(exit code, stdout, stderr)"""
        p = subprocess.run([self.path, *args], env=self.env, cwd=self.cwd, timeout=120,
                           stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return p.returncode, p.stdout, p.stderr.decode(errors="replace")

    def __call__(self, *args):
        code, out, err = self.run(*args)
        assert code == 0, (args, code, err)
        return out


@pytest.fixture
def llbfs(tmp_path, inputs, network):
    return Program(tmp_path / "store", inputs)
