# SPDX-License-Identifier: Apache-2.0
"""What the real BuildKit did, done again.

Each folder in cases/ is one definition that buildkitd (moby/buildkit 73ed6825, overlayfs) solved:

    def.pb          the definition, as the client marshalled it
    case.json       about: what it is; args: which sources the command line gave; error: BuildKit's,
                    when it refused; records: the digests of all records that it exported
    result.jsonl    the files of the result, one a line; mtime null: the time of the solve

digests has, one a line, every digest that BuildKit computed for a cache key while it solved these
and some more: of ops, of selectors, of content, and of keys made of those. One that llbfs computes and
that is not among them is wrong.

images.json has images that BuildKit exported of some: their configs without times, and the digests of
their layers; null: one that has the time of the solve in it, or bytes that only Go's gzip makes.
"""
import json
import os
import subprocess
import time

import pytest

import listing
from conftest import HERE

# Sources that cannot be solved yet: the cases that have them are left out.
LATER = []
# What BuildKit itself does differently each time.
UNSTABLE = {"src-git-keepdir": ["/.git/index"]}
# How the program is to end where BuildKit refuses.
NOT_FOUND, OTHER = 3, 8


def read(*path):
    with open(os.path.join(HERE, *path), "rb") as f:
        return f.read()


class Case:
    def __init__(self, name):
        self.name = name
        self.ref = f"llb://{HERE}/cases/{name}/def.pb"
        self.definition = read("cases", name, "def.pb")
        self.__dict__.update({"args": [], "error": None, "records": [],
                              **json.loads(read("cases", name, "case.json"))})

    def is_later(self):
        return any(scheme.encode() in self.definition for scheme in LATER)

    def expected(self):
        """The rows of result.jsonl, as listing has them."""
        facts, inodes = {}, {}
        rows = [json.loads(line) for line in read("cases", self.name, "result.jsonl").splitlines()]
        for row in sorted(rows, key=lambda row: row["type"] == "hardlink"):
            path = row["path"]
            if row["type"] == "hardlink":
                facts[path] = dict(facts["/" + row["link"]])
                inodes[path] = inodes["/" + row["link"]]
                continue
            one = {k: row[k] for k in ("uid", "gid", "link", "dev") if k in row}
            one["type"] = "reg" if row["type"] == "file" else row["type"]
            one["mode"] = int(row["mode"], 8)
            one["mtime"] = row["mtime"]
            if one["type"] == "reg":
                one.update(size=row["size"], sha256=row["sha256"])
            if "xattrs" in row:
                one["xattrs"] = {k: v.encode().hex() for k, v in row["xattrs"].items()}
            facts[path] = one
            if one["type"] != "dir":
                inodes[path] = path
        return listing.group(facts, inodes)


CASES = [case for case in map(Case, sorted(os.listdir(f"{HERE}/cases"))) if not case.is_later()]
SOLVED = [case for case in CASES if not case.error]
REFUSED = [case for case in CASES if case.error]


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def known_only(expected, got):
    """Whole seconds, and of times only those that are the same in each solve."""
    for path, facts in got.items():
        facts["mtime"] //= listing.SECOND
        if expected.get(path, {}).get("mtime", 0) is None:
            facts["mtime"] = None


@each(SOLVED)
def test_the_files_are_buildkits(llbfs, case):
    expected, got = case.expected(), listing.of_tar(llbfs("tar", case.ref, *case.args))
    got.pop("/", None)
    for path in UNSTABLE.get(case.name, []):
        for facts in (expected[path], got[path]):
            facts.update(size=0, sha256="")
    known_only(expected, got)
    lines = listing.differences(expected, got)
    assert not lines, f"{case.about}:\n" + "\n".join(lines)


IMAGES = json.loads(read("images.json"))


@each([case for case in SOLVED if case.name in IMAGES])
def test_images_are_buildkits(llbfs, case, tmp_path):
    want = IMAGES[case.name]
    top, path = str(tmp_path / "out"), os.path.join(HERE, "cases", case.name, "def.pb")
    llbfs("build", *case.args, "--output", f"type=oci,tar=false,dest={top}", path)

    def document(digest):
        with open(f"{top}/blobs/sha256/{digest[len('sha256:'):]}", encoding="ascii") as f:
            return json.load(f)
    with open(f"{top}/index.json", encoding="ascii") as f:
        manifest = document(json.load(f)["manifests"][0]["digest"])
    config = document(manifest["config"]["digest"])
    config.pop("created")
    ids = config["rootfs"]["diff_ids"]
    for i, said in enumerate(want["config"]["rootfs"]["diff_ids"]):
        ids[i] = said and ids[i]
    for got, said in zip(config["history"], want["config"]["history"]):
        got.pop("created")
        if "created_by" not in said: # BuildKit had imported it, and named the import
            got.pop("created_by")
    assert json.dumps(config) == json.dumps(want["config"])
    layers = [layer["digest"] for layer in manifest["layers"]]
    assert [said and got for said, got in zip(want["layers"], layers)] == want["layers"]


@each(REFUSED)
def test_what_buildkit_refuses_is_refused(llbfs, case):
    code, out, err = llbfs.run("tar", case.ref, *case.args)
    is_missing = "not found" in case.error or "no such file" in case.error
    assert (out, code) == (b"", NOT_FOUND if is_missing else OTHER), (case.error, err)
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("llbfs: ") and "vertex sha256:" in lines[0], err


@pytest.fixture(scope="module")
def digests():
    return {f"sha256:{line}" for line in read("digests").decode().split()}


def keys_of(vertex):
    """Every digest in the keys of a vertex that is the same in each solve."""
    found = [*vertex["cache_maps"], *vertex["selectors"]]
    found += [one[what] for one in vertex["content_keys"] for what in ("digest", "record")]
    found += [record["digest"] for record in vertex["records"]]
    found.append(vertex["cache_key"])
    return [digest for digest in found if digest and not digest.startswith("random:")]


@each(SOLVED)
def test_cache_keys_are_buildkits(llbfs, case, digests):
    shown = json.loads(llbfs("inspect", "--format", "json", case.ref, *case.args))
    vertices = shown["vertices"]
    assert vertices
    for vertex in vertices:
        wrong = [digest for digest in keys_of(vertex) if digest not in digests]
        assert not wrong, (vertex["name"], wrong)
        assert vertex["cache_key"] and not vertex.get("unknown"), vertex
        assert not vertex["cached"]
        with_content = [i for i, content in enumerate(vertex["contents"]) if content is not None]
        assert [one["input"] for one in vertex["content_keys"]] == with_content
        assert all(one["digest"] for one in vertex["content_keys"]), vertex["content_keys"]
    # What BuildKit exported is called as it is here.
    ours = {digest for vertex in vertices for digest in keys_of(vertex)}
    assert not set(case.records) - ours


def test_a_solve_moves_only_what_is_read(llbfs, network, inputs):
    case = next(case for case in SOLVED if case.name == "merge-3")
    network.clear()
    llbfs("ls", case.ref, "/a")
    blobs = [one["path"] for one in network.log if "/blobs/" in one["path"]]
    assert len(blobs) == len(set(blobs)), "a blob was asked for twice"
