# SPDX-License-Identifier: Apache-2.0
"""The program under test, in an environment of its own: a store, a runtime folder, credentials.

A mount is served in the foreground, as a child of the test: it tells on $NOTIFY_SOCKET when it
answers, and its exit code and its stderr are seen. (What is served in the background is tested in
test_lifecycle.py.) Every wait here has a deadline.
"""
import json
import os
import re
import select
import signal
import socket
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.environ.get("LLBFS_BIN", os.path.join(HERE, "../../build/llbfs"))


def is_sanitized():
    """A sanitized build is several times slower: bounds on time are wider for it."""
    with open(BIN, "rb") as f:
        return re.search(rb"__[at]san_init", f.read()) is not None


SLOW = 3 if is_sanitized() else 1


def mounts_below(path):
    """Mountpoints at or below a path, the innermost first. Touches none of them."""
    found = []
    with open("/proc/self/mountinfo", "rb") as f:
        for line in f:
            point = line.split()[4].decode("unicode_escape").encode("latin-1")
            if (point + b"/").startswith(os.fsencode(path) + b"/"):
                found.append(point)
    return found[::-1]


def clear_mounts(path):
    for point in mounts_below(path):
        subprocess.run([b"umount", b"-l", point], stderr=subprocess.DEVNULL)


def wait_until(condition, seconds=10, step=0.01):
    """For what has no event to wait for. The last value of the condition is returned."""
    end = time.monotonic() + seconds * SLOW
    while True:
        value = condition()
        if value or time.monotonic() > end:
            return value
        time.sleep(step)


class Mount:
    def __init__(self, program, words, path, options, env):
        self.program, self.path = program, path
        notify = f"{program.work}/notify-{program.number()}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.socket.bind(notify)
        self.stderr_path = f"{program.work}/mount-{program.number()}.stderr"
        with open(self.stderr_path, "wb") as stderr:
            self.process = subprocess.Popen(
                [BIN, "mount", "-f", *options, *words, path], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=stderr,
                env={**program.env, "NOTIFY_SOCKET": notify, **env})
        self.pid = self.process.pid

    def wait_ready(self, seconds=60):
        """True when it answers, False when it ended instead."""
        pidfd = os.pidfd_open(self.pid)
        try:
            ready, _, _ = select.select([self.socket, pidfd], [], [], seconds * SLOW)
        finally:
            os.close(pidfd)
        assert ready, f"no answer after {seconds} s: {self.stderr()}"
        return self.socket in ready and self.socket.recv(100) == b"READY=1"

    def stderr(self):
        with open(self.stderr_path, errors="replace") as f:
            return f.read()

    def status(self):
        return self.program.json("status", self.path)[0]

    def join(self, seconds=20):
        """Its exit code, once it has ended."""
        return self.process.wait(seconds * SLOW)

    def umount(self):
        self.program.run("umount", self.path)
        assert self.join() == 0, self.stderr()

    def kill(self):
        """kill -9, and takes the mount that is left behind away."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        clear_mounts(self.path)

    def close(self):
        """Whatever the state: nothing stays."""
        clear_mounts(self.path)
        try:
            self.process.wait(5 * SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None and self.process.poll() is None:
            self.umount()

    def __truediv__(self, name):
        return f"{self.path}/{name}"


class Program:
    def __init__(self, work):
        self.work = work
        self.counter = 0
        self.mounts = []
        self.store = f"{work}/store"
        self.runtime = f"{work}/run/llbfs"
        for name in ("run", "home", "docker", "mnt"):
            os.makedirs(f"{work}/{name}")
        os.chmod(f"{work}/run", 0o700)
        keep = {k: v for k, v in os.environ.items()
                if k in ("PATH", "TMPDIR") or k.endswith("SAN_OPTIONS")}
        self.env = {
            **keep, "HOME": f"{work}/home", "XDG_RUNTIME_DIR": f"{work}/run", "LC_ALL": "C.UTF-8",
            "DOCKER_CONFIG": f"{work}/docker", "LLBFS_ROOT": self.store,
            "BUILDKIT_PROGRESS": "quiet",
        }
        for name in ("ASAN", "UBSAN", "LSAN", "TSAN"):
            options = keep.get(f"{name}_OPTIONS", "")
            self.env[f"{name}_OPTIONS"] = f"{options}:log_path={work}/sanitizer"

    def number(self):
        self.counter += 1
        return self.counter

    def run(self, *args, code=0, stdin=b"", seconds=120, root=None, **env):
        """Runs a command to its end; stdout and stderr are bytes. @code None: any will do."""
        env = {**self.env, **env}
        if root:
            env["LLBFS_ROOT"] = root
        done = subprocess.run([BIN, *args], input=stdin, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env=env, timeout=seconds * SLOW)
        if code is not None:
            assert done.returncode == code, (args, done.returncode, done.stderr, done.stdout[:500])
        return done

    def json(self, *args, **more):
        out = self.run("--format", "json", *args, **more).stdout
        return [json.loads(line) for line in out.splitlines()]

    def start_mount(self, *words, options=(), root=None, **env):
        path = f"{self.work}/mnt/{self.number()}"
        os.mkdir(path)
        if root:
            env["LLBFS_ROOT"] = root
        mount = Mount(self, words, path, options, env)
        self.mounts.append(mount)
        return mount

    def mount(self, *words, **more):
        mount = self.start_mount(*words, **more)
        assert mount.wait_ready(), f"exit code {mount.process.wait()}: {mount.stderr()}"
        return mount

    def new_store(self):
        """From here on an empty store."""
        self.store = f"{self.work}/store-{self.number()}"
        self.env["LLBFS_ROOT"] = self.store

    def credentials(self, **auths):
        """What docker login would leave: {host: "user:password" in base64}."""
        with open(f"{self.work}/docker/config.json", "w") as f:
            json.dump({"auths": {host: {"auth": auth} for host, auth in auths.items()}}, f)

    def close(self):
        for mount in self.mounts:
            mount.close()
        clear_mounts(self.work)

    def sanitizer_reports(self):
        texts = []
        for name in sorted(os.listdir(self.work)):
            if name.startswith("sanitizer"):
                with open(f"{self.work}/{name}", errors="replace") as f:
                    texts.append(f.read())
        return texts
