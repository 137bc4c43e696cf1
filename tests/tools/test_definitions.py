# SPDX-License-Identifier: Apache-2.0
"""The three forms of a definition give the same vertices, keys and trees; what is beside its ops."""
import base64
import io
import json
import re
import subprocess
import sys
import tarfile

import pytest

from conftest import TESTS

sys.path.insert(0, f"{TESTS}/mount")
from images import digest  # noqa: E402
from llb import definition, field, op_input  # noqa: E402

DATA = f"{TESTS}/data/llb"
BOTH = ["copy-chmod-str", "diff-nonancestor", "exec-cache-private", "exec-mount-selector",
        "exec-multi-output", "file-mkfile-named-owner", "file-rm-wildcard", "graph-location",
        "graph-requires", "merge-3", "src-git", "src-local"]


def vertices(llbfs, form):
    """Without what a session makes up or a store has, and without source lines, which not every
    form has."""
    got = llbfs.json("inspect", "--offline", f"llb://{form}")[0]["vertices"]
    text = re.sub(r"random:[0-9a-f]{64}", "random", json.dumps(got))
    found = {v["digest"]: v for v in json.loads(text)}
    for v in found.values():
        del v["source"], v["cached"]
        if "random" in v["cache_maps"]:
            del v["ingredients"]
    return found


def convert(lines):
    """The lines of dump-llb as convertllb prints them: another shape, other names and numbers."""
    enums = {"mountType": ["BIND", "SECRET", "SSH", "CACHE", "TMPFS"], "network":
             ["UNSET", "HOST", "NONE"], "sharing": ["SHARED", "PRIVATE", "LOCKED"]}
    wide = ("input", "secondaryInput", "output", "timestamp", "index")

    def value(key, v):
        if isinstance(v, dict):
            return flat(v)
        if isinstance(v, list):
            return [value(None, x) for x in v]
        if key in enums:
            return enums[key][v]
        return str(v) if key in wide else v

    def flat(o):
        out = {}
        for k, v in o.items():
            if k in ("Op", "Action", "User") and isinstance(v, dict):
                out.update(flat(v))
            else:
                out[re.sub("_(.)", lambda m: m[1].upper(), k)] = value(k, v)
        return out
    lines = [json.loads(line) for line in lines.splitlines()]
    return {"def": {line["Digest"]: flat(line["Op"]) for line in reversed(lines)},
            "metadata": {line["Digest"]: line["OpMetadata"] for line in lines}, "source": {}}


@pytest.mark.parametrize("name", BOTH)
def test_each_form_has_the_same_vertices_and_keys(llbfs, tmp_path, name):
    want = vertices(llbfs, f"{DATA}/{name}.pb")
    assert want and vertices(llbfs, f"{DATA}/{name}.jsonl") == want
    with open(f"{DATA}/{name}.jsonl") as lines:
        converted = convert(lines.read())
    (tmp_path / "def.json").write_text(json.dumps(converted, indent=1))
    assert vertices(llbfs, tmp_path / "def.json") == want


def files(data):
    """A tar but for times, which are those of the solve where a definition has none."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(m.name, m.type, m.mode, m.uid, m.gid, m.linkname,
                 tar.extractfile(m).read() if m.isreg() else None) for m in tar]


def test_each_form_gives_the_same_tree(llbfs, tmp_path):
    want = files(llbfs("tar", f"llb://{DATA}/merge-2.pb"))
    assert len(want) > 3
    with open(f"{DATA}/merge-2.jsonl") as lines:
        lines = lines.read()
    (tmp_path / "def.json").write_text(json.dumps(convert(lines)))
    assert files(llbfs("tar", f"llb://{DATA}/merge-2.jsonl")) == want
    assert files(llbfs("tar", f"llb://{tmp_path}/def.json")) == want
    for form in lines, json.dumps(convert(lines)), "\n\t " + lines:
        p = subprocess.run([llbfs.path, "tar", "llb://-"], env=llbfs.env, input=form.encode(),
                           capture_output=True, timeout=60)
        assert p.returncode == 0 and files(p.stdout) == want, p.stderr


def test_one_vertex_of_a_json_definition(llbfs):
    want = {line for line in llbfs.text("find", f"llb://{DATA}/merge-2.pb").splitlines()}
    name = next(iter(vertices(llbfs, f"{DATA}/merge-2.jsonl")))
    got = set(llbfs.text("find", f"llb://{DATA}/merge-2.jsonl#{name[7:19]}").splitlines())
    assert len(got) > 1 and got < want


def test_changed_and_lost_ops_are_refused(llbfs, tmp_path):
    with open(f"{DATA}/merge-3.jsonl") as f:
        lines = f.read()
    path = tmp_path / "def.jsonl"
    for old, new in ((":493", ":492"), ('"constraints":{}', '"x":1'), ('"/d/a"', '"/d/\\u0000"')):
        path.write_text(lines.replace(old, new, 1))
        name = json.loads(next(a for a, b in zip(lines.splitlines(), path.read_text().splitlines())
                               if a != b))["Digest"]
        assert f"vertex {name}: its op does not hash" in llbfs.error(6, "ls", f"llb://{path}")
    path.write_text(lines[:-30])
    assert "JSON, value 5" in llbfs.error(6, "ls", f"llb://{path}")
    path.write_text("\n".join(lines.splitlines()[:-1]))
    assert "terminal" in llbfs.error(6, "ls", f"llb://{path}")
    assert "symlink" in llbfs.error(6, "ls", f"llb://{DATA}/file-symlink.jsonl")


def test_a_capability_that_is_not_known_is_refused(llbfs, tmp_path):
    op = field(4, field(2, field(1, 2**64 - 1) + field(2, 2**64 - 1)
                        + field(6, field(1, "/d") + field(2, 0o755))))
    for cap, code in (("file.base", 0), ("file.teleport", 8)):
        meta = field(1, digest(op)) + field(2, field(5, field(1, cap) + field(2, 1)))
        (tmp_path / "def.pb").write_bytes(definition(op) + field(2, meta))
        if code:
            line = llbfs.error(code, "ls", f"llb://{tmp_path}/def.pb")
            assert f'vertex {digest(op)} (file) requires the capability "{cap}"' in line
        else:
            assert llbfs.text("ls", f"llb://{tmp_path}/def.pb") == "d\n"


def test_constraints_are_no_reason_to_refuse(llbfs, tmp_path):
    """BuildKit has one worker and looks at no filter; what it solves is solved here."""
    op = field(4, field(2, field(1, 2**64 - 1) + field(2, 2**64 - 1)
                        + field(6, field(1, "/d") + field(2, 0o755))))
    op += field(11, field(1, "labels.executor==oci") + field(1, "id~=^x"))
    (tmp_path / "def.pb").write_bytes(definition(op))
    assert llbfs.text("ls", f"llb://{tmp_path}/def.pb") == "d\n"


def test_where_a_vertex_comes_from(llbfs, tmp_path):
    got = llbfs.json("inspect", f"llb://{DATA}/graph-location.pb")[0]["vertices"]
    assert [v["source"] for v in got] == [[{"file": "Foofile", "ranges": [[1, 0, 2, 3]]}]]
    got = llbfs.json("inspect", "--offline", f"llb://{DATA}/dockerfile-copyfancy.json")[0]
    lines = {r[0] for v in got["vertices"] for s in v["source"] for r in s["ranges"]}
    assert len(lines) > 5 and {s["file"] for v in got["vertices"] for s in v["source"]} == {
        "Dockerfile"}
    # an error has the line, in either form
    base = field(4, field(2, field(1, 2**64 - 1) + field(2, 2**64 - 1)
                          + field(6, field(1, "/d") + field(2, 0o755))))
    op = op_input(base) + field(4, field(2, field(2, 2**64 - 1) + field(7, field(1, "/no"))))
    span = field(2, field(1, field(1, 12)) + field(2, field(1, 13)))
    source = (field(1, field(1, digest(op)) + field(2, field(1, span)))
              + field(2, field(1, "Dockerfile")))
    (tmp_path / "def.pb").write_bytes(definition(base, op) + field(3, source))
    assert f"vertex {digest(op)} (rm /no, Dockerfile:12): " in llbfs.error(
        3, "ls", f"llb://{tmp_path}/def.pb")
    mkdir = {"path": "/d", "mode": 493}
    terminal = op_input(op)
    document = {
        "def": {digest(base): {"file": {"actions": [{"input": "-1", "secondaryInput": "-1",
                                                     "mkdir": mkdir}]}},
                digest(terminal): {"inputs": [{"digest": digest(op)}]},
                digest(op): {"inputs": [{"digest": digest(base)}], "file": {"actions": [
                    {"secondaryInput": "-1", "rm": {"path": "/no"}}]}}},
        "source": {"locations": {digest(op): {"locations": [
                       {"ranges": [{"start": {"line": 12}}]}]}},
                   "infos": [{"filename": "Dockerfile",
                              "data": base64.b64encode(b"FROM scratch").decode()}]}}
    (tmp_path / "def.json").write_text(json.dumps(document))
    assert f"vertex {digest(op)} (rm /no, Dockerfile:12): " in llbfs.error(
        3, "ls", f"llb://{tmp_path}/def.json")


def test_an_error_is_one_line_whatever_a_vertex_is_called(llbfs, tmp_path):
    op = field(4, field(2, field(2, 2**64 - 1) + field(7, field(1, "/a\n\x1b[31mb"))))
    base = field(4, field(2, field(1, 2**64 - 1) + field(2, 2**64 - 1)
                          + field(6, field(1, "/d") + field(2, 0o755))))
    (tmp_path / "def.pb").write_bytes(definition(base, op_input(base) + op))
    assert "(rm /a  [31mb)" in llbfs.error(3, "ls", f"llb://{tmp_path}/def.pb")
