# SPDX-License-Identifier: Apache-2.0
"""--output type=image and type=oci of an image as it is: nothing comes here that need not."""
import json
import os
import random
import subprocess
import sys

import pytest

from conftest import TESTS

sys.path.insert(0, f"{TESTS}/mount")
from images import Layout, encoded, entry, tar  # noqa: E402
from llb import definition, merge, source  # noqa: E402
from registry import Registry  # noqa: E402

CONTENT = random.Random(7).randbytes(3 << 20)


@pytest.fixture(autouse=True)
def quiet(llbfs):
    llbfs.env["BUILDKIT_PROGRESS"] = "quiet"
    llbfs.env["DOCKER_CONFIG"] = llbfs.env["LLBFS_ROOT"]


@pytest.fixture
def image(tmp_path):
    layers = [encoded(tar([entry("a", CONTENT)]), "gzip-9"), encoded(tar([entry("b", b"two")]))]
    return Layout(f"{tmp_path}/image").image(layers)


@pytest.fixture
def empty(tmp_path):
    def make(name="empty"):
        os.makedirs(tmp_path / name / "blobs/sha256")
        (tmp_path / name / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
        return str(tmp_path / name)
    return make


@pytest.fixture
def build(llbfs, tmp_path):
    def run(name, output, **more):
        (tmp_path / "def.pb").write_bytes(definition(source(f"docker-image://{name}")))
        return llbfs.text("build", "--output", output, tmp_path / "def.pb", **more)
    return run


def blobs(path):
    folder = f"{path}/blobs/sha256"
    return {n: open(f"{folder}/{n}", "rb").read() for n in os.listdir(folder)}


def layer_digests(layout):
    with open(f"{layout.path}/index.json") as f:
        top = json.load(f)["manifests"][0]["digest"]
    manifest = json.loads(blobs(layout.path)[top.split(":")[1]])
    return [layer["digest"].split(":")[1] for layer in manifest["layers"]]


def held(llbfs):
    return set(os.listdir(f"{llbfs.env['LLBFS_ROOT']}/blobs/sha256"))


def layer_gets(r, layers):
    return [e for e in r.log if e["method"] == "GET" and any(d in e["path"] for d in layers)]


def test_same_registry_moves_no_layer(llbfs, build, image, empty):
    layers = layer_digests(image)
    with Registry({"from": image.path, "to/here": empty()}, auth="token") as r:
        build(f"{r.host}/from:latest", f"type=image,name={r.host}/to/here:v2,push=true")
        assert layer_gets(r, layers) == []
        sent = [e for e in r.log if e["received"]]
        assert sum(e["received"] for e in sent) < 4000  # config and manifest
        assert {e["path"].split("?")[0] for e in r.log if e["status"] == 201} >= \
            {"/v2/to/here/blobs/uploads/", "/v2/to/here/manifests/v2"}
        assert blobs(r.layouts["to/here"].path) == blobs(image.path)
        assert not held(llbfs) & set(layers)
        assert llbfs("cat", f"{r.host}/to/here:v2", "/b") == b"two"


def test_other_registry_streams_each_byte_once(llbfs, build, image, empty):
    layers = layer_digests(image)
    size = sum(len(blobs(image.path)[d]) for d in layers)
    with Registry({"from": image.path}) as a, Registry({"to": empty()}) as b:
        build(f"{a.host}/from:latest", f"type=image,name={b.host}/to:1,push=true")
        gets = layer_gets(a, layers)
        assert len(gets) == 2 and sum(e["bytes"] for e in gets) == size
        puts = [e for e in b.log if e["method"] == "PUT" and "uploads" in e["path"]]
        assert size < sum(e["received"] for e in puts) < size + 4000
        assert blobs(b.layouts["to"].path) == blobs(image.path)
        assert not held(llbfs) & set(layers)
        before = len(b.log)
        build(f"{a.host}/from:latest", f"type=image,name={b.host}/to:2,push=true")
        assert not [e for e in b.log[before:] if "uploads" in e["path"]]


def test_memory_is_bounded(llbfs, build, tmp_path, empty):
    big = random.Random(1).randbytes(1 << 20) * 200
    layout = Layout(f"{tmp_path}/big").image([encoded(tar([entry("big", big)]), "tar")])
    with Registry({"from": layout.path}) as a, Registry({"to": empty()}) as b:
        (tmp_path / "d.pb").write_bytes(definition(source(f"docker-image://{a.host}/from:latest")))
        # not from here: what a process inherits before its exec counts as its own
        measure = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
                   "stdout=2); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
        kib = subprocess.run(
            [sys.executable, "-c", measure, llbfs.path, "build", "--output",
             f"type=image,name={b.host}/to:1,push=true", tmp_path / "d.pb"],
            env=llbfs.env, check=True, stdout=subprocess.PIPE).stdout
        assert blobs(b.layouts["to"].path) == blobs(layout.path)
        assert any(e["method"] == "PATCH" for e in b.log)  # so much goes in chunks
        if not os.environ.get("ASAN_OPTIONS"):
            assert int(kib) < 64 << 10, kib


def test_from_a_layout(llbfs, image, empty, tmp_path):
    with open(f"{image.path}/index.json") as f:
        top = json.load(f)["manifests"][0]["digest"]
    app = source(f"oci-layout://local/app@{top}", {"oci.store": "local"})
    (tmp_path / "def.pb").write_bytes(definition(app))
    with Registry({"to": empty()}) as r:
        llbfs("build", "--oci-layout", f"local={image.path}", "--output",
              f"type=image,name={r.host}/to:1,push=true", tmp_path / "def.pb")
        assert blobs(r.layouts["to"].path) == blobs(image.path)


def test_what_cannot_be_written(llbfs, build, image, empty, tmp_path):
    with Registry({"from": image.path, "to": empty()}) as r:
        name = f"{r.host}/from:latest"
        for output, words in {
                f"type=image,name={r.host}/to": "push=true",
                "type=image,push=true": "name=NAME",
                f"type=image,name={r.host}/to@{'sha256:' + '0' * 64},push=true": "digest",
                "type=image,name=A B,push=true": "A B",
                "type=tar,name=x": '"name"',
                "type=local,dest=x,push=true": '"push"',
                "type=image,compression=zstd,name=x,push=true": "compression",
        }.items():
            assert words in llbfs.error(2, "build", "--output", output, tmp_path / "none")
        r.fault(method="POST", status=403, count=-1)
        assert build(name, f"type=image,name={r.host}/to:1,push=true", code=4) == ""
        assert "docker login" in llbfs.stderr
        other = source("local://ctx")
        (tmp_path / "ctx").mkdir()
        (tmp_path / "ctx/f").write_text("f")
        base = source(f"docker-image://{name}")
        (tmp_path / "two.pb").write_bytes(definition(base, other, merge(base, other)))
        llbfs("build", "--local", f"ctx={tmp_path}/ctx", "--output",
              f"type=image,name={r.host}/to:2,push=true", tmp_path / "two.pb", code=8)
        assert "no image as it is" in llbfs.stderr
