# SPDX-License-Identifier: Apache-2.0
"""build: definitions in, results out, and what is shown meanwhile."""
import hashlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tarfile
import time

import estargz
import pytest
from registry import Registry

from conftest import TESTS
from test_llb import copy, file_op, local, mkdir, mkfile, symlink

sys.path.insert(0, f"{TESTS}/mount")
from llb import definition, merge, source  # noqa: E402

ID = re.compile(r"[0-9a-f]{64}\n")
FILES = {"/d": None, "/d/f": b"text", "/d/l": b"f"}


def digest(op):
    return "sha256:" + hashlib.sha256(op).hexdigest()


OP = file_op(mkdir("/d", 0o751, output=-1), mkfile("/d/f", b"text", 0o640, input=0, output=-1),
             symlink("f", "/d/l", input=1))
NAME = "mkdir /d, mkfile /d/f, symlink /d/l -> f"


@pytest.fixture
def path(tmp_path):
    """A definition that needs nothing."""
    path = tmp_path / "def.pb"
    path.write_bytes(definition(OP))
    return path


def check_tar(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        got = {"/" + m.name.strip("/"): m for m in tar}
    assert sorted(got) == sorted(FILES)
    assert (got["/d"].mode, got["/d/f"].mode, got["/d/l"].linkname) == (0o751, 0o640, "f")


def check_folder(top):
    assert (top / "d" / "f").read_bytes() == b"text" and os.readlink(top / "d" / "l") == "f"
    assert (top / "d" / "f").stat().st_mode & 0o7777 == 0o640
    assert (top / "d" / "f").stat().st_mtime == 1_700_000_000


def names(folder):
    return sorted(os.listdir(folder))


# ---------------------------------------------------------------- the result


def test_the_id_is_told(llbfs, path, tmp_path):
    id = llbfs.text("build", path)
    assert ID.fullmatch(id)
    check_tar(llbfs("tar", f"ref://{id.strip()}"))
    with open(path) as f:
        p = subprocess.run([llbfs.path, "build", "-"], env=llbfs.env, stdin=f, timeout=60,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        f.seek(0)
        q = subprocess.run([llbfs.path, "build"], env=llbfs.env, stdin=f, timeout=60,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for told in p.stdout, q.stdout:
        assert ID.fullmatch(told.decode())
        check_tar(llbfs("tar", f"ref://{told.decode()[:12]}"))
    iid, metadata = tmp_path / "iid", tmp_path / "metadata"
    iid.write_text("that of another build")
    id = llbfs.text("build", "--iidfile", iid, "--metadata-file", metadata, path)
    assert iid.read_text() == id.strip()
    assert json.loads(metadata.read_text()) == {"llbfs.ref": id.strip()}
    assert not [name for name in names(tmp_path) if name.startswith(".llbfs")]


def test_a_failure_tells_no_id(llbfs, tmp_path):
    iid, metadata, tar = tmp_path / "iid", tmp_path / "metadata", tmp_path / "out.tar"
    for file in iid, metadata, tar:
        file.write_text("that of another build")
    base = file_op(mkfile("/f"))
    fails = file_op(mkfile("/f/x", input=0), inputs=[base])
    (tmp_path / "def.pb").write_bytes(definition(base, fails))
    line = llbfs.error(3, "--progress", "quiet", "build", "--iidfile", iid, "--metadata-file",
                       metadata, "-o", f"type=tar,dest={tar}", tmp_path / "def.pb")
    assert digest(fails) in line and "mkfile /f/x" in line and "not a folder" in line
    assert not iid.exists() and not metadata.exists()
    assert tar.read_text() == "that of another build"


def test_the_cache_can_be_left_alone(llbfs, path):
    llbfs("build", path)
    llbfs("build", "--no-cache", path)
    assert "CACHED" not in llbfs.stderr


def test_nothing_is_fetched_without_an_output(llbfs, tmp_path):
    layout = str(tmp_path / "layout")
    layer = tarred({"file": b"x" * 1000})
    make_layout(layout, layer)
    with Registry({"app": layout}) as registry:
        image = source(f"docker-image://{registry.host}/app:latest")
        (tmp_path / "def.pb").write_bytes(definition(OP, image, merge(image, OP)))
        assert ID.fullmatch(llbfs.text("build", tmp_path / "def.pb"))
        asked = [r["path"] for r in registry.state()["log"]]
        assert any("/manifests/" in p for p in asked)
        assert not any(digest(layer) in p for p in asked)


# ---------------------------------------------------------------- outputs


def test_local(llbfs, path, tmp_path):
    out = tmp_path / "new" / "out"
    llbfs("build", "--output", f"type=local,dest={out}", path)
    check_folder(out)
    (out / "other").write_text("stays")
    (out / "d" / "f").write_text("goes")
    assert ID.fullmatch(llbfs.text("build", "-o", out, path))
    check_folder(out)
    assert (out / "other").read_text() == "stays"
    assert names(tmp_path / "new") == ["out"]
    llbfs("build", "-o", "out2/", path, cwd=tmp_path)
    check_folder(tmp_path / "out2")


def test_tar(llbfs, path, tmp_path):
    out = tmp_path / "out.tar"
    for arg in ("type=tar,dest=-", "type=tar", "-", '"type=tar"', "TYPE=tar"):
        check_tar(llbfs("build", "--output", arg, path))
    out.write_text("old")
    assert ID.fullmatch(llbfs.text("build", "--output", f"type=tar,dest={out}", path))
    check_tar(out.read_bytes())
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask()
    link = tmp_path / "link.tar"
    link.symlink_to("out.tar")
    out.write_text("old")
    llbfs("build", "--output", f"type=tar,dest={link}", path)
    assert link.is_symlink()
    check_tar(out.read_bytes())
    r, w = os.pipe()
    llbfs("build", "--output", f"type=tar,dest=/dev/fd/{w}", path, pass_fds=[w])
    os.close(w)
    with open(r, "rb") as f:
        check_tar(f.read())


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_several_outputs(llbfs, path, tmp_path):
    check_tar(llbfs("build", "-o", tmp_path / "one", "-o", "-", "-o",
                    f'"type=tar","dest={tmp_path}/a,b.tar"', path))
    check_folder(tmp_path / "one")
    check_tar((tmp_path / "a,b.tar").read_bytes())


def test_mount(llbfs, path, tmp_path):
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root and /dev/fuse")
    where = tmp_path / "mnt"
    where.mkdir()
    assert ID.fullmatch(llbfs.text("build", "-o", "type=mount,dest=mnt", path, cwd=tmp_path))
    try:
        check_folder(where)
    finally:
        llbfs("umount", where)


@pytest.mark.parametrize("arg, says", [
    ("type=cow,dest=x", '"cow"'), ("type=image,name=x", "push=true"), ("type=image", "name=NAME"),
    ("type=oci,push=true", '"push"'),
    ("dest=x", "type"), ("type=local", "dest=DIR"), ("type=mount", "dest=DIR"),
    ("type=local,dest=-", "dest=DIR"), ("type=local,dest=", "empty"), ("", "empty"),
    ("type=local,dest=x,push=true", '"push"'), ("type=local,dest=x,type=tar", "too many"),
    ("a,b", "too many"), ("type=tar,a", '"a"'), ('type=local,dest="x', "quote"),
    ("type=tar,dest=.", "folder"),
])
def test_outputs_that_are_refused(llbfs, path, tmp_path, arg, says):
    before = names(tmp_path)
    assert says in llbfs.error(2, "build", "--output", arg, path, cwd=tmp_path)
    assert names(tmp_path) == before and not (tmp_path / "store" / "blobs").exists()


def test_outputs_that_cannot_be(llbfs, path, tmp_path):
    assert "stdout" in llbfs.error(2, "build", "-o", "-", "-o", "type=tar", path)
    llbfs.error(3, "build", "-o", f"type=mount,dest={tmp_path}/no", path)
    llbfs.error(3, "build", "-o", f"type=tar,dest={tmp_path}/no/x.tar", path)
    llbfs.error(3, "build", "-o", path, path)
    # what a name stands for is found out when the files are there
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "d").write_text("in the way")
    line = llbfs.error(8, "--progress", "quiet", "build", "-o", tmp_path / "out", path)
    assert "only some of the files" in line and "in the way" in line


def test_a_tar_is_not_for_a_terminal(llbfs, path):
    master, slave = pty.openpty()
    p = subprocess.run([llbfs.path, "build", "-o", "-", path], env=llbfs.env, stdout=slave,
                       stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=60)
    os.close(master)
    os.close(slave)
    assert p.returncode == 2 and b"not for a terminal" in p.stderr


# ---------------------------------------------------------------- inputs


def test_local_sources(llbfs, tmp_path):
    (tmp_path / "ctx").mkdir()
    (tmp_path / "ctx" / "a").write_text("A")
    ctx = local()
    (tmp_path / "def.pb").write_bytes(definition(ctx, file_op(copy("/a", "/b"), inputs=[ctx])))
    args = ("--progress", "quiet", "build", "-o", tmp_path / "out", tmp_path / "def.pb")
    assert "--local ctx=DIR" in llbfs.error(3, *args)
    assert not (tmp_path / "out").exists()
    llbfs(*args, "--local", f"ctx={tmp_path}/ctx")
    assert (tmp_path / "out" / "b").read_text() == "A"


DOCKERFILE = "# a comment\n\n  from scratch\nCOPY a b\n"
HINT = "docker buildx build --call=convertllb,format=json"


def test_dockerfiles_are_for_docker(llbfs, tmp_path):
    top = tmp_path / "dir"
    top.mkdir()
    for name, text in {"Dockerfile": "", "Dockerfile.x": "x", "file": DOCKERFILE}.items():
        (top / name).write_text(text)
    assert f"{HINT} {top} | llbfs build - " in llbfs.error(2, "build", top)
    assert f"{HINT} {top} | llbfs build - " in llbfs.error(2, "build", top / "Dockerfile")
    assert f"{HINT} -f file . | llbfs build - " in llbfs.error(2, "build", "file", cwd=top)
    line = llbfs.error(2, "build", top / "Dockerfile.x")
    assert f"{HINT} -f {top}/Dockerfile.x {top} | llbfs build - " in line
    p = subprocess.run([llbfs.path, "build"], env=llbfs.env, input=DOCKERFILE.encode(), timeout=60,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert p.returncode == 2 and f"{HINT} . | llbfs build - ".encode() in p.stderr


def test_what_is_no_definition(llbfs, path, tmp_path):
    llbfs.error(3, "build", tmp_path / "no")
    assert "word too many" in llbfs.error(2, "build", path, path)
    (tmp_path / "junk").write_bytes(b"\xff" * 100)
    llbfs.error(6, "build", tmp_path / "junk")
    path.rename(tmp_path / "Dockerfile.pb")  # is what it holds, not what it is called
    llbfs("build", tmp_path / "Dockerfile.pb")
    master, slave = pty.openpty()
    p = subprocess.run([llbfs.path, "build"], env=llbfs.env, stdin=slave, timeout=60,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.close(master)
    os.close(slave)
    assert p.returncode == 2 and b"a definition is missing" in p.stderr


@pytest.mark.parametrize("arg, code, says", [
    ("id=x,src=secret", 0, ""), ("id=x,source=secret,type=file", 0, ""), ("id=x,env=HOME", 0, ""),
    ("id=HOME", 0, ""), ("id=secret", 0, ""), ("type=env,id=x", 0, ""),
    ("type=env,id=x,src=HOME", 0, ""), ('"ID=a,b",src=secret', 0, ""),
    ("src=secret", 2, "id=ID"), ("id=,src=secret", 2, "id=ID"), ("id=x,mode=1", 2, "mode=1"),
    ("x", 2, '"x"'), ("id=x,id=y", 2, "twice"), ("type=x,id=x", 2, "type"),
    ("id=x,src=secret,env=HOME", 2, "both"), ("id=x,src=no", 3, "no"), ("id=no", 3, "no"),
    ("type=file,id=HOME", 3, "HOME"), ('id="x', 2, "quote"),
])
def test_secrets(llbfs, path, tmp_path, arg, code, says):
    (tmp_path / "secret").write_text("s")
    args = ("build", "--secret", arg, path)
    if code:
        assert says in llbfs.error(code, *args, cwd=tmp_path)
    else:
        llbfs(*args, cwd=tmp_path)


# ---------------------------------------------------------------- progress


@pytest.fixture
def failing(tmp_path):
    fails = file_op(mkfile("/d/f/x", input=0), inputs=[OP])
    (tmp_path / "fails.pb").write_bytes(definition(OP, fails))
    return tmp_path / "fails.pb"


def test_plain(llbfs, path, failing, tmp_path):
    llbfs("--progress", "plain", "build", "-o", tmp_path / "out", path)
    assert re.fullmatch(rf"#1 {NAME}\n#1 (CACHED|DONE \d\.\ds)\n\n"
                        r"#2 exporting to client directory\n#2 DONE \d\.\ds\n\n", llbfs.stderr)
    llbfs("build", failing, code=3)  # auto is plain, where stderr is no terminal
    assert re.fullmatch(rf"(?s)#1 {NAME}\n#1 (CACHED|DONE \d\.\ds)\n\n"
                        r"#2 mkfile /d/f/x\n#2 ERROR: [^\n]*not a folder\n\n"
                        r"------\n > mkfile /d/f/x:\n------\n"
                        r"llbfs: vertex sha256:[^\n]*not a folder\n", llbfs.stderr)


def test_quiet(llbfs, path):
    llbfs.env["BUILDKIT_PROGRESS"] = "quiet"
    llbfs("build", path)
    assert llbfs.stderr == ""


def test_rawjson(llbfs, failing):
    llbfs("--progress", "rawjson", "build", failing, code=3)
    lines = llbfs.stderr.splitlines()
    assert lines.pop().startswith("llbfs: vertex")
    rows = [json.loads(line) for line in lines]
    seen = {}
    for row in rows:
        for vertex in row["vertexes"]:
            seen.setdefault(vertex["name"], []).append(vertex)
    first, second = seen[NAME], seen["mkfile /d/f/x"]
    assert [v["name"] for v in rows[0]["vertexes"]] == [NAME, "mkfile /d/f/x"]
    assert "started" not in first[0] and "completed" in first[-1] and "inputs" not in first[0]
    assert all(v["digest"] == digest(OP) for v in first)
    assert second[-1]["inputs"] == [digest(OP)] and "not a folder" in second[-1]["error"]
    assert first[-1]["completed"] >= first[-1]["started"]


class Terminal:
    """Runs a build with a terminal as stderr."""

    def __init__(self, llbfs, *args, cwd=None, **env):
        self.master, slave = pty.openpty()
        self.p = subprocess.Popen([llbfs.path, *map(str, args)], stderr=slave, env={
            **llbfs.env, "TERM": "xterm", **env}, stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL, cwd=cwd)
        os.close(slave)
        self.text = ""

    def read(self, until=None, begin=0):
        """Reads until a text is there, after @begin, or to the end."""
        end = time.monotonic() + 60
        while not until or until not in self.text[begin:]:
            assert select.select([self.master], [], [], end - time.monotonic())[0], self.text
            try:
                self.text += os.read(self.master, 1 << 16).decode()
            except OSError:  # nobody has the other side any more
                assert not until, self.text
                break
        return self.text

    def end(self, code=0):
        self.read()
        self.p.communicate(timeout=60)
        os.close(self.master)
        assert self.p.returncode == code
        return self.text


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_keeps_the_picture(llbfs, path, no_color):
    shown = Terminal(llbfs, "build", path, NO_COLOR=no_color).end()
    last = shown[shown.rindex("[+] Building"):]
    assert re.match(r"\[\+\] Building \d\.\ds \(1/1\) FINISHED\033\[K\r\n", last)
    assert re.search(rf" => (CACHED )?{NAME} +\d\.\ds", last) and last.count("\n") == 2
    assert last.endswith("\033[J\033[?7h\033[?25h")
    assert ("\033[34m" in shown) == (no_color == "")


def test_a_terminal_shows_what_failed(llbfs, failing):
    shown = Terminal(llbfs, "build", failing, NO_COLOR="1").end(3)
    assert " => ERROR mkfile /d/f/x" in shown and "FINISHED" not in shown
    assert shown.splitlines()[-4:-1] == ["\033[J\033[?7h\033[?25h------", " > mkfile /d/f/x:",
                                         "------"]


def test_a_dumb_terminal_gets_lines(llbfs, path):
    shown = Terminal(llbfs, "build", path, TERM="dumb").end()
    assert shown.startswith("#1 ") and "\033" not in shown


# ---------------------------------------------------------------- things that take long


def tarred(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def make_layout(layout, layer):
    """An image of one plain layer."""
    config = json.dumps({"architecture": "amd64", "os": "linux",
                         "rootfs": {"type": "layers", "diff_ids": [digest(layer)]}}).encode()
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": estargz.MANIFEST_TYPE,
        "config": {"mediaType": estargz.CONFIG_TYPE, "size": len(config),
                   "digest": estargz.add_blob(layout, config)},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": len(layer),
                    "digest": estargz.add_blob(layout, layer)}]}).encode()
    index = {"schemaVersion": 2, "manifests": [{
        "mediaType": estargz.MANIFEST_TYPE, "size": len(manifest),
        "digest": estargz.add_blob(layout, manifest),
        "annotations": {"org.opencontainers.image.ref.name": "latest"}}]}
    with open(f"{layout}/index.json", "w") as f:
        json.dump(index, f)
    with open(f"{layout}/oci-layout", "w") as f:
        f.write('{"imageLayoutVersion": "1.0.0"}')


def test_files_of_an_image_are_taken_out(llbfs, tmp_path):
    layout = str(tmp_path / "layout")
    make_layout(layout, tarred({"a": b"A" * 1000}))
    with Registry({"app": layout}) as registry:
        image = source(f"docker-image://{registry.host}/app:latest")
        (tmp_path / "def.pb").write_bytes(
            definition(image, file_op(copy("/a", "/b"), inputs=[image])))
        llbfs("build", "-o", tmp_path / "out", tmp_path / "def.pb")
    assert (tmp_path / "out" / "b").read_bytes() == b"A" * 1000


def test_the_demo(llbfs, tmp_path):
    """tests/data/demo.pb, which README shows, is what is written here."""
    with open(f"{TESTS}/data/demo/index.json") as f:
        image = json.load(f)["manifests"][0]["digest"]
    base = source(f"oci-layout://demo/demo@{image}", {"oci.store": "demo"})
    op = file_op(mkfile("/hello", b"from a build\n", input=0), inputs=[base])
    with open(f"{TESTS}/data/demo.pb", "rb") as f:
        assert f.read() == definition(base, op)
    args = ("build", "--oci-layout", f"demo={TESTS}/data/demo", f"{TESTS}/data/demo.pb")
    id = llbfs.text(*args).strip()
    assert llbfs("cat", f"ref://{id}", "/hello") == b"from a build\n"
    llbfs(*args, "-o", tmp_path / "out")
    assert (tmp_path / "out" / "etc" / "motd").read_bytes() == llbfs("cat", f"ref://{id}",
                                                                     "/etc/motd")


@pytest.fixture
def stuck(tmp_path):
    """A definition of an image whose layer begins to come, and never ends."""
    layout = str(tmp_path / "layout")
    layer = tarred({"a": b"a" * (1 << 20), "b": os.urandom(4 << 20)})
    make_layout(layout, layer)
    with Registry({"app": layout}) as registry:
        registry.fault(match=f"/blobs/{digest(layer)}", rate=1 << 18, count=-1)
        image = source(f"docker-image://{registry.host}/app:latest")
        (tmp_path / "stuck.pb").write_bytes(definition(OP, image, merge(OP, image)))
        yield tmp_path / "stuck.pb", digest(layer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("dest", ["new", "there", "out.tar"])
def test_an_interrupt_leaves_nothing_half_written(llbfs, stuck, tmp_path, number, dest):
    path, layer = stuck
    out = tmp_path / "outs"
    (out / "there").mkdir(parents=True)
    (out / "there" / "other").write_text("stays")
    what = "tar" if dest == "out.tar" else "local"
    t = Terminal(llbfs, "build", "--iidfile", tmp_path / "iid", "-o",
                 f"type={what},dest={out}/{dest}", path, NO_COLOR="1")
    t.read(f" => => {layer}"[:60])  # the export waits for the layer, and says so
    begin = time.monotonic()
    t.p.send_signal(number)
    t.end(-number)
    assert time.monotonic() - begin < 10
    assert names(out) == ["there"] and not (tmp_path / "iid").exists()
    assert names(out / "there") == ["other"] or dest == "there"
    assert not [n for n in names(out / "there") if n.startswith(".llbfs")]


def test_what_is_ignored_stays_ignored(llbfs, stuck, tmp_path):
    """As nohup wishes."""
    path, layer = stuck
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        t = Terminal(llbfs, "build", "-o", "out", path, cwd=tmp_path)
    finally:
        signal.signal(signal.SIGINT, old)
    t.read(f" => => {layer}"[:60])
    t.p.send_signal(signal.SIGINT)
    begin = len(t.text)
    t.read(until="\033[?25h", begin=begin)  # it goes on drawing
    t.p.send_signal(signal.SIGTERM)
    t.end(-signal.SIGTERM)


def test_a_failed_export_is_taken_away(llbfs, tmp_path):
    layout = str(tmp_path / "layout")
    layer = tarred({"b": os.urandom(1 << 16)})
    make_layout(layout, layer)
    with Registry({"app": layout}) as registry:
        image = source(f"docker-image://{registry.host}/app:latest")
        (tmp_path / "def.pb").write_bytes(definition(OP, image, merge(OP, image)))
        registry.fault(match=f"/blobs/{digest(layer)}", status=404, count=-1)
        for dest in "type=local,dest=new", "type=tar,dest=x.tar":
            llbfs("--progress=plain", "build", "-o", dest, "--iidfile", "iid", tmp_path / "def.pb",
                  code=8, cwd=tmp_path)
            assert re.search(r"(?s)#\d exporting to client \w+\n#4 ERROR: .*404", llbfs.stderr)
            assert names(tmp_path) == ["def.pb", "layout", "store"]


def test_a_layer_is_fetched_under_the_vertex_that_has_it(llbfs, tmp_path):
    layout = str(tmp_path / "layout")
    layer = tarred({"b": os.urandom(1 << 19)})
    make_layout(layout, layer)
    with Registry({"app": layout}) as registry:
        image = source(f"docker-image://{registry.host}/app:latest")
        (tmp_path / "def.pb").write_bytes(definition(OP, image, merge(OP, image)))
        registry.fault(match=f"/blobs/{digest(layer)}", rate=1 << 18, count=-1)
        llbfs("--progress=rawjson", "build", "-o", "type=tar,dest=x.tar", tmp_path / "def.pb",
              cwd=tmp_path)
    statuses = [s for line in llbfs.stderr.splitlines() for s in json.loads(line).get("statuses", [])]
    assert {(s["id"], s["vertex"]) for s in statuses} == {(digest(layer), digest(image))}
    last = statuses[-1]
    assert last["current"] == last["total"] and "completed" in last
