# SPDX-License-Identifier: Apache-2.0
"""--import-cache: what BuildKit exported is hit, and only documents are fetched for it."""
import base64
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

import pytest

from conftest import TESTS

sys.path.insert(0, f"{TESTS}/mount")
from listing import of_tar  # noqa: E402
from llb import definition, field, op_input, source  # noqa: E402
from registry import Registry  # noqa: E402

DATA = f"{TESTS}/data/cache"
CONFIG = "application/vnd.buildkit.cacheconfig.v0"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
VARIANTS = sorted(set(os.listdir(f"{DATA}/exec-chain3")) - {"def.pb", "cached.json"})


def run(llbfs, *args):
    """(exit code, stdout, stderr)"""
    p = subprocess.run([llbfs.path, *args], env=llbfs.env, stdin=subprocess.DEVNULL,
                       capture_output=True, timeout=60, check=False)
    return p.returncode, p.stdout, p.stderr.decode()


def build(llbfs, path, *options):
    """({digest: is cached} of the vertices that ended, the other lines of stderr)"""
    code, _, err = run(llbfs, "build", "--progress", "rawjson", *options, str(path))
    assert code == 0, err
    cached, rest = {}, []
    for line in err.splitlines():
        if not line.startswith("{"):
            rest.append(line)
            continue
        for vertex in json.loads(line).get("vertexes", []):
            if vertex.get("completed"):
                cached[vertex["digest"]] = bool(vertex.get("cached"))
    return cached, rest


def recorded(case):
    with open(f"{DATA}/{case}/cached.json", encoding="ascii") as f:
        return json.load(f)


def test_there_are_caches_of_every_kind():
    assert {"local-max", "local-min", "max-index", "max-docker", "max-zstd", "max-estargz",
            "inline"} <= set(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_buildkit_exported_is_hit_as_buildkit_does(llbfs, variant):
    cached, rest = build(llbfs, f"{DATA}/exec-chain3/def.pb",
                         "--import-cache", f"type=local,src={DATA}/exec-chain3/{variant}")
    expected = recorded("exec-chain3")
    assert any(expected.values()) and not rest
    assert {digest: cached.get(digest) for digest in expected} == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_registry_is_asked_for_two_documents(llbfs, variant):
    with Registry({"c": f"{DATA}/exec-chain3/{variant}"}) as registry:
        for option in (f"type=registry,ref={registry.host}/c", f"{registry.host}/c:latest"):
            registry.clear()
            llbfs.env["LLBFS_ROOT"] += "x"
            cached, rest = build(llbfs, f"{DATA}/exec-chain3/def.pb", "--import-cache", option)
            expected = recorded("exec-chain3")
            assert {digest: cached.get(digest) for digest in expected} == expected and not rest
            kinds = [one["path"].split("/")[3] for one in registry.log]
            assert kinds == ["manifests", "blobs"], registry.log


def test_content_decides_as_it_did_for_buildkit(llbfs, tmp_path):
    for name, text in (("main.go", "package main\n"), ("lib/lib.go", "package lib\n"),
                       ("test/lib_test.go", "test\n")):
        path = tmp_path / "ctx/src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    for folder in ("src", "src/lib", "src/test"):
        (tmp_path / "ctx" / folder).chmod(0o755)
    case = f"{DATA}/content-selector-src"
    options = ("--local", f"ctx={tmp_path}/ctx", "--import-cache",
               f"type=local,src={case}/local-max")
    cached, _ = build(llbfs, f"{case}/def.pb", *options)
    expected = recorded("content-selector-src")
    assert {digest: cached.get(digest) for digest in expected} == expected
    # And what is found has the right files.
    got = of_tar(llbfs("tar", f"llb://{case}/def.pb", *options))
    assert got["/s/lib/lib.go"]["sha256"] == hashlib.sha256(b"package lib\n").hexdigest()
    assert got["/s"]["mtime"] == 1_700_000_000 * 10**9
    # Another content is another key.
    (tmp_path / "ctx/src/main.go").write_text("package other\n")
    llbfs.env["LLBFS_ROOT"] += "x"
    cached, _ = build(llbfs, f"{case}/def.pb", *options)
    assert not any(cached[digest] for digest in expected)


# --- caches of our own making, with layers that can be read ---


def exec_op(image, *args):
    meta = b"".join(field(1, arg) for arg in args) + field(3, "/")
    mount = field(3, "/")
    return op_input(image) + field(2, field(1, meta) + field(2, mount)) + field(
        10, field(1, "amd64") + field(2, "linux"))


def mkfile(path, on):
    """@on: number of its input, as 64 bits"""
    body = field(1, path) + field(2, 0o644) + field(3, "text")
    return field(4, field(2, field(1, on) + field(2, (1 << 64) - 1) + field(5, body)))


def layer_of(files):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as t:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            t.addfile(member, io.BytesIO(text))
    return tar.getvalue()


class Cache:
    """An image and a command on it, and a cache that says what came of it."""

    def __init__(self, llbfs, tmp_path):
        self.dir = tmp_path / "layout"
        (self.dir / "blobs/sha256").mkdir(parents=True)
        self.definition = tmp_path / "def.pb"
        image = source("docker-image://127.0.0.1:1/none:1@sha256:" + "1" * 64)
        self.definition.write_bytes(definition(image, exec_op(image, "/bin/make", "it")))
        shown = json.loads(llbfs("inspect", "--format", "json", f"llb://{self.definition}"))
        self.root, self.made = shown["vertices"][0], shown["vertices"][1]
        self.tars = [layer_of({"base": b"of the image"}), layer_of({"made": b"by the command"})]
        self.blobs = [self.put(gzip.compress(tar, mtime=0)) for tar in self.tars]

    def put(self, data):
        digest = hashlib.sha256(data).hexdigest()
        (self.dir / "blobs/sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def put_json(self, media_type, doc):
        return {"mediaType": media_type, **self.put(json.dumps(doc).encode())}

    def diff_ids(self):
        return ["sha256:" + hashlib.sha256(tar).hexdigest() for tar in self.tars]

    def layers(self, media_type=LAYER):
        return [{"mediaType": media_type, **blob, "annotations": {"containerd.io/uncompressed": d}}
                for blob, d in zip(self.blobs, self.diff_ids())]

    def records(self):
        selector = self.made["selectors"][0]
        link = {"link": 0, **({"selector": selector} if selector else {})}
        return [{"digest": self.root["records"][0]["digest"]},
                {"digest": self.made["records"][0]["digest"], "inputs": [[link]],
                 "layers": [{"layer": 1, "createdAt": "2024-01-02T03:04:05.678Z"}]}]

    def config(self, records=None):
        layers = [{"blob": blob["digest"], "parent": i - 1} for i, blob in enumerate(self.blobs)]
        return {"layers": layers, "records": self.records() if records is None else records}

    def manifest(self, config=None):
        desc = self.put_json(CONFIG, self.config() if config is None else config)
        return self.put_json(MANIFEST, {"schemaVersion": 2, "mediaType": MANIFEST, "config": desc,
                                        "layers": self.layers()})

    def list(self, media_type, layer_type):
        return self.put_json(media_type, {
            "schemaVersion": 2, "mediaType": media_type,
            "manifests": [*self.layers(layer_type), self.put_json(CONFIG, self.config())]})

    def image(self, diff_ids=None, cache=None, records=None):
        if cache is None:
            cache = base64.b64encode(json.dumps(records or self.records()).encode()).decode()
        config = {"os": "linux", "architecture": "amd64", "moby.buildkit.cache.v0": cache,
                  "rootfs": {"type": "layers", "diff_ids": diff_ids or self.diff_ids()}}
        layers = [{"mediaType": LAYER, **blob} for blob in self.blobs]
        return self.put_json(MANIFEST, {
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": self.put_json(IMAGE_CONFIG, config)})

    def images(self):
        """One of them cannot be used, one is no image at all, and one is good."""
        empty = self.put_json(MANIFEST, {"schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
                                         "config": self.put_json(IMAGE_CONFIG, {})})
        bad = self.image(cache="!")
        gone = {"mediaType": MANIFEST, "digest": "sha256:" + "2" * 64, "size": 7}
        inner = self.put_json(INDEX, {"schemaVersion": 2, "manifests": [empty, self.image()]})
        return self.put_json(INDEX, {"schemaVersion": 2, "manifests": [bad, gone, inner]})

    def tag(self, desc, tag="latest"):
        name = {"org.opencontainers.image.ref.name": tag}
        index = {"schemaVersion": 2, "manifests": [{**desc, "annotations": name}]}
        (self.dir / "index.json").write_text(json.dumps(index))
        return desc["digest"]

    def is_hit(self, llbfs, *options):
        cached, rest = build(llbfs, self.definition, *options)
        assert cached[self.made["digest"]] is True
        return rest == []


@pytest.fixture
def cache(llbfs, tmp_path):
    return Cache(llbfs, tmp_path)


FORMS = {
    "manifest": Cache.manifest,
    "index": lambda c: c.list(INDEX, LAYER),
    "docker": lambda c: c.list(DOCKER_LIST, DOCKER_LAYER),
    "inline": Cache.image,
    "inline of several images": Cache.images,
}


@pytest.mark.parametrize("form", FORMS)
def test_no_layer_is_fetched_before_a_file_is_read(llbfs, cache, form):
    cache.tag(FORMS[form](cache))
    layers = {blob["digest"] for blob in cache.blobs}
    with Registry({"app": str(cache.dir)}) as registry:
        option = ("--import-cache", f"type=registry,ref={registry.host}/app")

        def fetched():
            return {one["path"].split("/")[-1] for one in registry.log} & layers

        assert cache.is_hit(llbfs, *option)
        assert not fetched()
        ref = f"llb://{cache.definition}"
        assert llbfs("cat", ref, "/made", *option) == b"by the command"
        assert llbfs("cat", ref, "/base", *option) == b"of the image"
        assert fetched() == layers


def test_a_layout_by_tag_and_by_digest(llbfs, cache):
    digest = cache.tag(cache.manifest(), "mine")
    here = f"type=local,src={cache.dir}"
    assert cache.is_hit(llbfs, "--import-cache", f"{here},tag=mine")
    llbfs.env["LLBFS_ROOT"] += "x"
    (cache.dir / "index.json").unlink()
    assert cache.is_hit(llbfs, "--import-cache", f'"SRC={cache.dir}",type=local,digest={digest}')


def test_a_hit_stays_in_the_store(llbfs, cache):
    cache.tag(cache.manifest())
    option = ("--import-cache", f"type=local,src={cache.dir}")
    assert cache.is_hit(llbfs, *option)
    assert llbfs("cat", f"llb://{cache.definition}", "/made") == b"by the command"


def test_what_runs_on_a_hit_is_found_again(llbfs, cache):
    image = source("docker-image://127.0.0.1:1/none:1@sha256:" + "1" * 64)
    made = exec_op(image, "/bin/make", "it")
    ops = [image, made]
    for i in range(3):
        ops.append(op_input(ops[-1]) + mkfile(f"/more{i}", 0))
    cache.definition.write_bytes(definition(*ops))
    cache.tag(cache.manifest())
    option = ("--import-cache", f"type=local,src={cache.dir}")
    cached, _ = build(llbfs, cache.definition, *option)
    assert sorted(cached.values()) == [False, False, False, True, True]
    # The cache is no longer asked.
    cached, _ = build(llbfs, cache.definition)
    assert list(cached.values()) == [True] * 5
    assert llbfs("cat", f"llb://{cache.definition}", "/more2") == b"text"


def test_the_newest_result_that_can_be_had(llbfs, cache):
    records = cache.records()
    records[1]["layers"] = [{"layer": 0, "createdAt": "2024-01-01T00:00:00Z"},
                            {"layer": 1, "createdAt": "2023-01-01T00:00:00+02:00"}]
    records[1]["chains"] = [{"layers": [2], "createdAt": "2025-01-01T00:00:00Z"}]
    config = cache.config(records)
    config["layers"].append({"blob": "sha256:" + "3" * 64, "parent": -1})  # nowhere described
    cache.tag(cache.manifest(config))
    files = llbfs("ls", f"llb://{cache.definition}", "--import-cache",
                  f"type=local,src={cache.dir}").decode()
    assert files.split() == ["base"]


def test_without_layers_it_is_nothing(llbfs, cache):
    records = cache.records()
    records[1] = {k: v for k, v in records[1].items() if k != "layers"}
    records[1]["chains"] = [{"layers": None, "createdAt": "0001-01-01T00:00:00Z"}]
    cache.tag(cache.manifest(cache.config(records)))
    assert llbfs("ls", f"llb://{cache.definition}", "--import-cache",
                 f"type=local,src={cache.dir}") == b""


def mkfile_definition(path):
    path.write_bytes(definition(mkfile("/f", (1 << 64) - 1)))
    return path


@pytest.mark.parametrize("make, reason", [
    (lambda c: None, "index.json"),
    (lambda c: c.tag(c.manifest(), "other"), 'nothing that is tagged "latest"'),
    (lambda c: c.tag(c.manifest({"records": [{"digest": "x"}]})), "record 0"),
    (lambda c: c.tag(c.manifest({"records": []})), "no build cache"),
    (lambda c: c.tag(c.image(diff_ids=["sha256:" + "4" * 64])), "1 diff IDs"),
    (lambda c: c.tag(c.image(cache="")), "no build cache"),
    (lambda c: c.tag({**c.blobs[0], "mediaType": MANIFEST}), "not valid JSON"),
])
def test_a_cache_that_cannot_be_had_is_a_warning(llbfs, cache, tmp_path, make, reason):
    make(cache)
    cached, rest = build(llbfs, mkfile_definition(tmp_path / "file.pb"), "--import-cache",
                         f"type=local,src={cache.dir}")
    assert list(cached.values()) == [False]
    assert len(rest) == 1 and " warn " in rest[0] and reason in rest[0], rest


def test_a_registry_without_it_is_a_warning(llbfs, tmp_path):
    os.makedirs(tmp_path / "empty")
    (tmp_path / "empty/index.json").write_text('{"schemaVersion":2,"manifests":[]}')
    with Registry({"app": str(tmp_path / "empty")}) as registry:
        cached, rest = build(llbfs, mkfile_definition(tmp_path / "file.pb"), "--import-cache",
                             f"{registry.host}/app:cache")
    assert list(cached.values()) == [False] and len(rest) == 1, rest


def test_what_is_in_no_cache_is_refused_before_anything_is_asked(llbfs, cache):
    (cache.dir / "index.json").write_text('{"schemaVersion":2,"manifests":[]}')
    with Registry({"app": str(cache.dir)}) as registry:
        image = source(f"docker-image://{registry.host}/app:tag")
        cache.definition.write_bytes(definition(image, exec_op(image, "/bin/other")))
        code, _, err = run(llbfs, "ls", f"llb://{cache.definition}")
        assert code != 0 and "exec operations cannot be solved yet" in err
        assert not registry.log


def test_what_is_in_a_cache_for_other_inputs_is_refused_when_it_would_run(llbfs, cache):
    below = mkfile("/f", (1 << 64) - 1)
    cache.definition.write_bytes(definition(below, exec_op(below, "/bin/make", "it")))
    cache.tag(cache.manifest())  # of the same command on an image
    code, _, err = run(llbfs, "ls", f"llb://{cache.definition}", "--import-cache",
                       f"type=local,src={cache.dir}")
    assert code == 8 and "exec operations cannot be solved yet" in err


def test_several_caches_are_asked_together(llbfs, cache):
    cache.tag(cache.manifest())
    # It has the image and no way from there.
    other = f"type=local,src={DATA}/exec-chain3/local-max"
    here = f"type=local,src={cache.dir}"
    for options in ((other, here), (here, other)):
        llbfs.env["LLBFS_ROOT"] += "x"
        assert cache.is_hit(llbfs, *(word for o in options for word in ("--import-cache", o)))
    # One that is missing is told, and the other one hit.
    llbfs.env["LLBFS_ROOT"] += "x"
    assert not cache.is_hit(llbfs, "--import-cache", "type=local,src=/nowhere", "--import-cache",
                            here)
    code, _, err = run(llbfs, "build", *(["--import-cache", here] * 16), str(cache.definition))
    assert code == 2 and "more than 15" in err


@pytest.mark.parametrize("value, reason", [
    ("type=registry", "needs ref="),
    ("type=local", "needs src="),
    ("type=local,src", "invalid value 'src'"),
    ("type=", "type is required"),
    ("ref=x,mytype=1", "type is required"),
    ("type=gha,scope=x", "unknown type gha"),
    ("type=local,src=x,digest=sha256:12", "digest"),
    ('type=local,sr"c=x', "quote"),
    ("a.b/UPPER", "UPPER"),
    ("type=registry,ref=a/b,registry.insecure=true", "--plain-http"),
])
def test_what_was_typed_wrong(llbfs, tmp_path, value, reason):
    code, _, err = run(llbfs, "build", "--import-cache", value,
                             str(mkfile_definition(tmp_path / "file.pb")))
    assert code == 2 and reason in err and len(err.splitlines()) == 1, err
