# SPDX-License-Identifier: Apache-2.0
"""Git sources: repositories made on the fly and served on loopback."""
import functools
import hashlib
import http.server
import io
import os
import socket
import socketserver
import subprocess
import sys
import tarfile
import threading
from types import SimpleNamespace

import pytest

from conftest import TESTS

sys.path.insert(0, f"{TESTS}/mount")
from llb import definition, merge, source  # noqa: E402

TIME = 1_700_000_000
ENV = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1",
       "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "c",
       "GIT_COMMITTER_EMAIL": "c@example.org", "GIT_AUTHOR_DATE": f"{TIME} +0000",
       "GIT_COMMITTER_DATE": f"{TIME} +0000", "GIT_ALLOW_PROTOCOL": "file:git"}


def git(*args, cwd):
    out = subprocess.run(["git", "-c", "init.defaultBranch=main", *map(str, args)], cwd=cwd, env=ENV,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert out.returncode == 0, (args, out.stderr)
    return out.stdout.decode().strip()


def commit(repo, message="a change"):
    git("add", "-A", cwd=repo)
    git("commit", "-q", "-m", message, cwd=repo)
    return git("rev-parse", "HEAD", cwd=repo)


class Server(socketserver.ThreadingTCPServer):
    """What `git daemon` serves, with connections counted."""
    allow_reuse_address = daemon_threads = True

    def __init__(self, top):
        self.asked, self.top = 0, top
        super().__init__(("127.0.0.1", 0), None)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def finish_request(self, request, client_address):
        self.asked += 1
        subprocess.run(["git", "daemon", "--inetd", "--export-all", f"--base-path={self.top}"],
                       stdin=request, stdout=request, stderr=subprocess.DEVNULL, env=ENV,
                       timeout=60)

    def count(self):
        """How often it was asked since the last time."""
        n, self.asked = self.asked, 0
        return n


@pytest.fixture
def server(tmp_path):
    (tmp_path / "repos").mkdir()
    with Server(tmp_path / "repos") as s:
        yield s
        s.shutdown()


@pytest.fixture
def repo(server):
    """Two commits: `one` with tag v1 (light), `two` with main, HEAD, branch dev/x, v2 (annotated)."""
    top = server.top / "app"
    (top / "sub" / "deep").mkdir(parents=True)
    git("init", "-q", cwd=top)
    (top / "file").write_text("one\n")
    (top / "sub" / "deep" / "leaf").write_text("leaf\n")
    (top / "run.sh").write_text("#!/bin/sh\n")
    os.chmod(top / "run.sh", 0o775)
    os.symlink("file", top / "link")
    os.symlink("sub", top / "way")
    one = commit(top)
    git("tag", "v1", cwd=top)
    (top / "file").write_text("two\n")
    two = commit(top)
    git("tag", "-a", "v2", "-m", "annotated", cwd=top)
    git("branch", "dev/x", cwd=top)
    return SimpleNamespace(top=top, one=one, two=two, tag=git("rev-parse", "v2", cwd=top),
                           url=f"git://{server.host}/app")


def git_source(url, fragment="", **attrs):
    identifier = "git://" + url.split("://")[-1] + (f"#{fragment}" if fragment else "")
    return source(identifier, {"git.fullurl": url, **{f"git.{k}": v for k, v in attrs.items()}})


@pytest.fixture
def solve(llbfs, tmp_path):
    """The result of a definition as {path: tar member}; content is in .text."""
    def run(*ops, code=0, args=()):
        path = tmp_path / "def.pb"
        path.write_bytes(definition(*ops))
        args = ("tar", *args, f"llb://{path}")
        if code:
            return llbfs.error(code, *args)
        found = {}
        run.bytes = llbfs(*args)
        with tarfile.open(fileobj=io.BytesIO(run.bytes)) as tar:
            for m in tar:
                text = tar.extractfile(m).read().decode("latin-1") if m.isreg() else m.linkname
                found["/" + m.name.strip("/")] = SimpleNamespace(
                    text=text, mode=m.mode, uid=m.uid, gid=m.gid, mtime=m.mtime)
        found.pop("/.", found.pop("/", None))
        return found
    return run


def test_refs(repo, solve):
    for fragment in ("", "main", "refs/heads/main", "heads/main", "v2", "refs/tags/v2", "dev/x",
                     repo.two):
        got = solve(git_source(repo.url, fragment))
        assert got["/file"].text == "two\n", fragment
        assert sorted(got) == ["/file", "/link", "/run.sh", "/sub", "/sub/deep",
                               "/sub/deep/leaf", "/way"]
    for fragment in ("v1", "tags/v1", repo.one):
        assert solve(git_source(repo.url, fragment))["/file"].text == "one\n"
    assert solve(git_source(repo.url, "dev%2Fx"))["/file"].text == "two\n"


def test_metadata(repo, solve):
    got = solve(git_source(repo.url))
    assert all((m.uid, m.gid) == (0, 0) for m in got.values())
    assert {p: m.mode for p, m in got.items()} == {
        "/file": 0o644, "/link": 0o777, "/run.sh": 0o755, "/sub": 0o755, "/sub/deep": 0o755,
        "/sub/deep/leaf": 0o644, "/way": 0o777}
    assert got["/link"].text == "file"
    assert all(m.mtime > TIME + 1000 for m in got.values())
    got = solve(git_source(repo.url, mtime="commit"))
    assert all(m.mtime == TIME for m in got.values())


def test_subdirs(repo, solve):
    assert sorted(solve(git_source(repo.url, "main:sub"))) == ["/deep", "/deep/leaf"]
    assert sorted(solve(git_source(repo.url, ":/sub/deep/"))) == ["/leaf"]
    assert "/file" in solve(git_source(repo.url, "main:../.."))
    assert "no folder" in solve(git_source(repo.url, "main:way"), code=3)
    assert "no folder" in solve(git_source(repo.url, "main:file"), code=3)
    assert "no folder" in solve(git_source(repo.url, "main:nowhere"), code=3)


def test_what_is_not_there(repo, server, solve):
    assert "does not contain ref nowhere" in solve(git_source(repo.url, "nowhere"), code=3)
    assert "does not contain ref" in solve(git_source(repo.url, repo.two[:8]), code=3)
    assert "does not contain commit" in solve(git_source(repo.url, "0" * 40), code=3)
    assert "/none" in solve(git_source(f"git://{server.host}/none"), code=8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"git://127.0.0.1:{free.getsockname()[1]}/app"
        assert "refused" in solve(git_source(url), code=5)


def test_a_server_that_says_nothing(llbfs, solve):
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"git://127.0.0.1:{mute.getsockname()[1]}/app"
        assert "nothing came" in solve(git_source(url), code=5, args=("--deadline", "1s"))


def test_git_ends_with_us(llbfs, tmp_path):
    """Also when nobody can tell it to."""
    path = tmp_path / "def.pb"
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        path.write_bytes(definition(git_source(f"git://127.0.0.1:{mute.getsockname()[1]}/app")))
        with subprocess.Popen([llbfs.path, "ls", f"llb://{path}"], env=llbfs.env) as p:
            mute.settimeout(30)
            connection = mute.accept()[0]
            p.kill()
        connection.settimeout(30)
        while connection.recv(4096):
            pass


def test_what_is_asked(repo, server, solve, llbfs):
    server.count()
    solve(git_source(repo.url, repo.two))
    assert server.count() == 1
    solve(git_source(repo.url, repo.two))
    solve(git_source(repo.url, repo.two), args=("--offline",))
    assert server.count() == 0
    solve(git_source(repo.url))
    assert server.count() == 1
    # One command asks once for a ref, however often it is used.
    one, two = git_source(repo.url, "main:sub"), git_source(repo.url, "main")
    solve(one, two, merge(one, two))
    assert server.count() == 1
    assert "offline" in solve(git_source(repo.url), args=("--offline",), code=5)
    assert "offline" in solve(git_source(repo.url, repo.one), args=("--offline",), code=5)


def test_refs_that_move(repo, solve):
    assert solve(git_source(repo.url))["/file"].text == "two\n"
    (repo.top / "file").write_text("three\n")
    commit(repo.top)
    git("tag", "-f", "v1", cwd=repo.top)
    assert solve(git_source(repo.url))["/file"].text == "three\n"
    assert solve(git_source(repo.url, "v1"))["/file"].text == "three\n"
    git("branch", "-D", "dev/x", cwd=repo.top)
    git("branch", "dev", cwd=repo.top)
    assert solve(git_source(repo.url, "dev"))["/file"].text == "three\n"
    assert solve(git_source(repo.url, repo.one))["/file"].text == "one\n"


def test_checksums(repo, solve):
    for fragment, good in (("main", repo.two), ("v2", repo.two), ("v2", repo.tag[:10]),
                           (repo.one, repo.one[:7])):
        assert "/file" in solve(git_source(repo.url, fragment, checksum=good))
    for fragment, bad in (("main", repo.one), (repo.two, repo.one), ("v2", "0" * 12)):
        assert "expected checksum" in solve(git_source(repo.url, fragment, checksum=bad), code=6)
    assert "hexadecimal" in solve(git_source(repo.url, "main", checksum="xyz"), code=6)


def test_fetch_by_commit(repo, server, solve):
    server.count()
    got = solve(git_source(repo.url, "main", checksum=repo.one, fetchbycommit="true"))
    assert got["/file"].text == "one\n" and server.count() == 1
    assert "whole commit" in solve(git_source(repo.url, checksum="12", fetchbycommit="true"),
                                   code=6)


def kept(repo, solve, tmp_path, fragment="", **attrs):
    solve(git_source(repo.url, fragment, keepgitdir="true", **attrs))
    out = tmp_path / "out"
    subprocess.run(["rm", "-rf", out], check=True)
    out.mkdir()
    with tarfile.open(fileobj=io.BytesIO(solve.bytes)) as tar:
        tar.extractall(out)
    refs = git("for-each-ref", "--format=%(refname)", cwd=out).split()
    assert git("status", "--porcelain", cwd=out) == ""
    assert git("remote", "get-url", "origin", cwd=out) == repo.url
    return git("rev-parse", "HEAD", cwd=out), refs


def test_a_kept_repository(repo, solve, tmp_path):
    assert kept(repo, solve, tmp_path) == (repo.two, ["refs/heads/main", "refs/tags/main"])
    assert kept(repo, solve, tmp_path, "v1") == (repo.one, ["refs/heads/v1", "refs/tags/v1"])
    assert kept(repo, solve, tmp_path, "v2") == (repo.two, ["refs/tags/v2"])
    # The key says what the ref resolves to, not how it was written: the result of "v1" will do.
    assert kept(repo, solve, tmp_path, "refs/tags/v1")[0] == repo.one
    assert kept(repo, solve, tmp_path, repo.one) == (repo.one, [])
    assert kept(repo, solve, tmp_path, "main", checksum=repo.one, fetchbycommit="true") == (
        repo.one, ["refs/heads/main", "refs/tags/refs/heads/main"])
    got = solve(git_source(repo.url, "main:sub", keepgitdir="true"))
    assert sorted(got) == ["/deep", "/deep/leaf"]


@pytest.fixture
def parent(repo, server):
    """A repository with app as a submodule, twice: by an address and by a relative one."""
    top = server.top / "parent"
    top.mkdir()
    git("init", "-q", cwd=top)
    git("submodule", "add", "-q", repo.url, "mod/app", cwd=top)
    git("submodule", "add", "-q", "--name", "again", repo.url, "again", cwd=top)
    git("config", "-f", ".gitmodules", "submodule.again.url", "../app", cwd=top)
    commit(top)
    return SimpleNamespace(top=top, url=f"git://{server.host}/parent")


def test_submodules(parent, solve):
    got = solve(git_source(parent.url))
    assert got["/mod/app/file"].text == got["/again/file"].text == "two\n"
    assert not [p for p in got if p.endswith("/.git")]
    got = solve(git_source(parent.url, skipsubmodules="true"))
    assert sorted(got) == ["/.gitmodules", "/again", "/mod", "/mod/app"]
    got = solve(git_source(parent.url, keepgitdir="true"))
    assert got["/mod/app/.git"].text == "gitdir: ../../.git/modules/mod/app\n"


def test_hostile_submodules(parent, repo, solve, tmp_path):
    for url in (f"file://{repo.top}", str(repo.top), "ext::sh -c touch% " + str(tmp_path / "owned"),
                "-u./payload"):
        git("config", "-f", ".gitmodules", "submodule.again.url", url, cwd=parent.top)
        commit(parent.top)
        assert "submodules" in solve(git_source(parent.url), code=8)
    assert not (tmp_path / "owned").exists()


def test_hostile_refs(repo, solve, tmp_path):
    for fragment in ("-x", "--upload-pack=touch owned", "a b", "a..b~1", "main^{}", "a*",
                     "refs/heads/main%7F", "x%00"):
        assert solve(git_source(repo.url, fragment), code=6 if "%00" in fragment else 2)
    assert "https://ext::" in solve(git_source("ext::sh -c true"), code=8)
    odd = source("git://a/b", {"git.fullurl": "git://a\nb/c"})
    assert "invalid git address" in solve(odd, code=2)
    odd = source("git://a/b", {"git.fullurl": "https://u:secret@127.0.0.1:1/x"})
    assert "secret" not in solve(odd, code=5)


def test_attributes_that_are_refused(repo, solve):
    for name in ("bundle", "checkoutbundle", "sig.pubkey", "sig.requiresignedtag"):
        assert f"git.{name} is not supported" in solve(git_source(repo.url, **{name: "x"}), code=8)


def test_text_attributes_apply(repo, solve):
    (repo.top / ".gitattributes").write_text("*.txt text eol=crlf\n*.sub export-subst ident\n")
    (repo.top / "lines.txt").write_bytes(b"a\nb\n")
    commit(repo.top)
    assert solve(git_source(repo.url))["/lines.txt"].text == "a\r\nb\r\n"


def test_an_empty_commit(repo, server, solve):
    top = server.top / "empty"
    top.mkdir()
    git("init", "-q", cwd=top)
    git("commit", "-q", "--allow-empty", "-m", "nothing", cwd=top)
    assert solve(git_source(f"git://{server.host}/empty")) == {}


def test_sha256(server, solve):
    top = server.top / "long"
    top.mkdir()
    git("init", "-q", "--object-format=sha256", cwd=top)
    (top / "file").write_text("long\n")
    name = commit(top)
    assert len(name) == 64
    url = f"git://{server.host}/long"
    assert solve(git_source(url))["/file"].text == "long\n"
    assert solve(git_source(url, name, keepgitdir="true"))["/file"].text == "long\n"


def test_a_server_without_single_commits(repo, server, solve):
    """The plain files of a repository, over http."""
    bare = server.top / "dumb"
    git("clone", "-q", "--bare", repo.top, bare, cwd=server.top)
    git("update-server-info", cwd=bare)
    handler = functools.partial(QuietHandler, directory=str(server.top))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{web.server_port}/dumb"
        assert solve(git_source(url))["/file"].text == "two\n"
        assert solve(git_source(url, repo.one))["/file"].text == "one\n"
        assert "does not contain commit" in solve(git_source(url, "1" * 40), code=3)
        web.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_nothing_is_left(repo, solve, llbfs, tmp_path):
    work = tmp_path / "store" / "git" / "work"
    (work / "dead" / "tree" / "a").mkdir(parents=True)
    solve(git_source(repo.url))
    assert os.listdir(work) == []
    solve(git_source(repo.url, "main:nowhere"), code=3)
    assert os.listdir(work) == []


def test_clones_are_forgotten(repo, parent, solve, tmp_path):
    top = tmp_path / "store" / "git"
    solve(git_source(repo.url))
    old = next(top / name for name in os.listdir(top) if name != "work")
    solve(git_source(parent.url, skipsubmodules="true"))
    assert len(os.listdir(top)) == 3
    os.utime(old / "llbfs", (TIME, TIME))
    solve(git_source(parent.url, skipsubmodules="true", mtime="commit"))
    assert len(os.listdir(top)) == 2 and not old.exists()
    assert solve(git_source(repo.url))["/file"].text == "two\n"


def test_a_clone_that_was_not_finished(repo, solve, tmp_path):
    solve(git_source(repo.url))
    top = tmp_path / "store" / "git"
    clone = next(top / name for name in os.listdir(top) if name != "work")
    os.unlink(clone / "llbfs")
    (clone / "shallow.lock").touch()
    assert solve(git_source(repo.url, repo.one))["/file"].text == "one\n"


def test_many_at_once(repo, llbfs, tmp_path):
    path = tmp_path / "def.pb"
    path.write_bytes(definition(git_source(repo.url, "main")))
    running = [subprocess.Popen([llbfs.path, "cat", f"llb://{path}", "/file"], env=llbfs.env,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(5)]
    for p in running:
        out, why = p.communicate(timeout=100)
        assert (out, p.returncode) == (b"two\n", 0), why


def test_keys(repo, llbfs, tmp_path):
    def map_of(fragment="", **attrs):
        path = tmp_path / "def.pb"
        path.write_bytes(definition(git_source(repo.url, fragment, **attrs)))
        return llbfs.json("inspect", f"llb://{path}")[0]["vertices"][0]["cache_maps"][0]

    def expect(key):
        return "sha256:" + hashlib.sha256(f"buildkit.source.v0:{key}".encode()).hexdigest()

    assert map_of() == map_of("main") == map_of("v2") == map_of(repo.two) == expect(repo.two)
    assert map_of("v1:sub/../sub") == expect(f"{repo.one}:sub/../sub")
    assert map_of("main:/.") == expect(repo.two)
    assert map_of("main:..") == expect(f"{repo.two}:..")
    assert map_of("v2", keepgitdir="true") == expect(f"{repo.tag}.git#refs/tags/v2")
    assert map_of(keepgitdir="true") == expect(f"{repo.two}.git#refs/heads/main")
    assert map_of("main", skipsubmodules="true", mtime="commit") == expect(
        f"{repo.two}(skip-submodules)(mtime=commit)")
    assert map_of("main", checksum=repo.one, fetchbycommit="true") == expect(repo.one)


def test_git_is_not_installed(repo, solve, llbfs, tmp_path):
    llbfs.env["PATH"] = str(tmp_path)
    assert "Debian's package git" in solve(git_source(repo.url), code=7)


def test_ssh(solve, llbfs, tmp_path):
    """What the program ssh is called with: the hosts of the definition, the caller's agent if it may."""
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text(f"""#!/bin/sh
        for a; do case $a in UserKnownHostsFile=*) cat "${{a#*=}}" > {tmp_path}/hosts; esac; done
        echo "agent=$SSH_AUTH_SOCK home=$HOME $*" > {tmp_path}/called
        echo 'git@host: Permission denied (publickey).' >&2
        exit 255
        """)
    ssh.chmod(0o755)
    llbfs.env.update(PATH=f"{ssh.parent}:{ENV['PATH']}", SSH_AUTH_SOCK="/agent")
    why = solve(git_source("git@host:r.git", "main", knownsshhosts="host key\n"), code=4)
    assert "Permission denied" in why
    called = (tmp_path / "called").read_text()
    assert (tmp_path / "hosts").read_text() == "host key\n"
    assert called.startswith("agent= home=/nonexistent -F /dev/null -o BatchMode=yes")
    assert "StrictHostKeyChecking=yes" in called and "git@host" in called
    solve(git_source("ssh://git@host/r.git", "main", mountsshsock="default"), code=4)
    called = (tmp_path / "called").read_text()
    assert called.startswith("agent=/agent ") and "StrictHostKeyChecking=no" in called
