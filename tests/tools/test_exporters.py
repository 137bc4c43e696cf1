# SPDX-License-Identifier: Apache-2.0
"""build --output type=oci and type=docker: images of results."""
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading

import pytest
from registry import Registry

from conftest import TESTS
from test_llb import diff, file_op, mkdir, mkfile, rm

sys.path.insert(0, f"{TESTS}/mount")
from llb import definition, merge, source  # noqa: E402

USAGE, NOT_FOUND, BAD_CONTENT, OTHER = 2, 3, 6, 8
EPOCH = 1_600_000_000
DEMO = f"{TESTS}/data/demo"
OCI = "application/vnd.oci.image"
FILE = file_op(mkdir("/d", output=-1), mkfile("/d/f", b"text", 0o640, input=0))


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layout:
    """What was written, as the bytes of its files by name; each blob is checked."""

    def __init__(self, files):
        self.files = files
        assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
        for name, data in files.items():
            if name.startswith("blobs/"):
                assert "blobs/sha256/" + hashlib.sha256(data).hexdigest() == name
        self.index = json.loads(files["index.json"])
        self.desc = self.index["manifests"][-1]
        self.manifest = json.loads(self.blob(self.desc))
        self.config = json.loads(self.blob(self.manifest["config"]))
        self.layers = self.manifest["layers"]
        assert self.config["rootfs"]["diff_ids"] == [sha256(self.tar(i))
                                                     for i in range(len(self.layers))]

    def blob(self, desc):
        data = self.files["blobs/sha256/" + desc["digest"][len("sha256:"):]]
        assert len(data) == desc["size"]
        return data

    def tar(self, i):
        data = self.blob(self.layers[i])
        if self.layers[i]["mediaType"].endswith("gzip"):
            return gzip.decompress(data)
        if self.layers[i]["mediaType"].endswith("zstd"):
            return subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE,
                                  check=True).stdout
        return data

    def members(self, i):
        with tarfile.open(fileobj=io.BytesIO(self.tar(i))) as tar:
            return {m.name: m for m in tar}

    def digests(self):
        return [layer["digest"] for layer in self.layers]


def of_tar(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = tar.getnames()
        assert names == sorted(names) and names[:2] == ["blobs", "blobs/sha256"]
        return Layout({m.name: tar.extractfile(m).read() for m in tar if m.isfile()})


def of_folder(top):
    names = [os.path.relpath(os.path.join(d, n), top) for d, _, files in os.walk(top)
             for n in files]
    return Layout({name: open(f"{top}/{name}", "rb").read() for name in names})


@pytest.fixture
def build(llbfs, tmp_path):
    """Builds the last of @ops with an output; returns stdout."""
    def run(ops, csv, *args, **more):
        path = tmp_path / "def.pb"
        path.write_bytes(definition(*ops))
        return llbfs("build", "--oci-layout", f"store={DEMO}", "--output", csv, *args, path, **more)
    return run


def demo():
    with open(f"{DEMO}/index.json", encoding="ascii") as f:
        desc = json.load(f)["manifests"][0]
    with open(f"{DEMO}/blobs/sha256/{desc['digest'][7:]}", encoding="ascii") as f:
        layers = [layer["digest"] for layer in json.load(f)["layers"]]
    return source(f"oci-layout://store@{desc['digest']}", {"oci.store": "store"}), layers


def test_a_folder(build, tmp_path):
    build([FILE], f"type=oci,tar=false,dest={tmp_path}/out,name=app")
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".llbfs")]
    assert sorted(os.listdir(tmp_path / "out")) == ["blobs", "index.json", "oci-layout"]
    image = of_folder(tmp_path / "out")
    annotations = image.desc["annotations"]
    assert annotations["io.containerd.image.name"] == "docker.io/library/app:latest"
    assert annotations["org.opencontainers.image.ref.name"] == "latest"
    assert annotations["org.opencontainers.image.created"] == image.config["created"]
    assert image.desc["mediaType"] == image.manifest["mediaType"] == f"{OCI}.manifest.v1+json"
    assert [layer["mediaType"] for layer in image.layers] == [f"{OCI}.layer.v1.tar+gzip"]
    assert list(image.config) == ["architecture", "config", "created", "history", "os", "rootfs"]
    assert image.config["history"][0]["created_by"] == "mkdir /d, mkfile /d/f"
    members = image.members(0)
    assert list(members) == ["d", "d/f"] and members["d/f"].mode == 0o640


def test_a_tar_on_stdout_and_in_a_file(build, tmp_path):
    first = build([FILE], "type=oci")
    build([FILE], f"type=oci,dest={tmp_path}/image.tar")
    assert (tmp_path / "image.tar").read_bytes() == first
    image = of_tar(first)
    assert list(image.desc["annotations"]) == ["org.opencontainers.image.created"]
    assert "manifest.json" not in image.files


def test_an_archive_of_dockers(build):
    image = of_tar(build([FILE], 'type=docker,"name=app:1,127.0.0.1:5000/a/b:2"'))
    assert [d["annotations"]["org.opencontainers.image.ref.name"]
            for d in image.index["manifests"]] == ["1", "2"]
    (item,) = json.loads(image.files["manifest.json"])
    assert item == {"Config": f"blobs/sha256/{image.manifest['config']['digest'][7:]}",
                    "RepoTags": ["app:1", "127.0.0.1:5000/a/b:2"],
                    "Layers": [f"blobs/sha256/{d[7:]}" for d in image.digests()]}
    image = of_tar(build([FILE], "type=docker,oci-mediatypes=false"))
    assert image.desc["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert image.layers[0]["mediaType"] == "application/vnd.docker.image.rootfs.diff.tar.gzip"
    assert json.loads(image.files["manifest.json"])[0]["RepoTags"] is None


def test_layers_of_images_stay(build):
    base, layers = demo()
    change = file_op(rm("/none", missing_ok=True, input=0, output=-1),
                     mkfile("/new", b"x", input=1),
                     inputs=[base])
    image = of_tar(build([base, FILE, change, merge(change, FILE, base)], "type=oci"))
    digests = image.digests()
    assert digests[:len(layers)] == layers == digests[-len(layers):]
    assert len(digests) == 2 * len(layers) + 2
    assert list(image.members(len(layers))) == ["new"]
    blobs = [name for name in image.files if name.startswith("blobs/")]
    assert len(blobs) == len(set(digests)) + 2


def test_differences_and_deletions(build):
    base, layers = demo()
    removed = file_op(rm("/app/hello", input=0), inputs=[base])
    image = of_tar(build([base, removed, diff(base, removed)], "type=oci"))
    assert len(image.layers) == 1 and not set(image.digests()) & set(layers)
    members = image.members(0)
    assert list(members) == ["app", "app/.wh.hello"]
    member = members["app/.wh.hello"]
    assert (member.size, member.mode, member.uid, member.mtime) == (0, 0, 0, 0)


def test_a_partition_becomes_one_layer(build):
    base, layers = demo()
    ops = [base, FILE, merge(FILE, (base, "", "/sub"))]
    image = of_tar(build(ops, "type=oci"))
    assert len(image.layers) == 2 and not set(image.digests()) & set(layers)
    assert all(name.startswith("sub/") for name in image.members(1))
    assert build(ops, "type=oci") == build(ops, "type=oci")


def test_equal_bytes_for_one_ref(build, llbfs, tmp_path):
    base, _ = demo()
    ops = [base, FILE, merge(base, FILE)]
    first = build(ops, "type=docker,name=app")
    assert build(ops, "type=docker,name=app") == first
    shutil.rmtree(f"{llbfs.env['LLBFS_ROOT']}/blobs/sha256")
    os.mkdir(f"{llbfs.env['LLBFS_ROOT']}/blobs/sha256")
    assert build(ops, "type=docker,name=app") == first


@pytest.mark.parametrize("compression,suffix", [("zstd", "+zstd"), ("uncompressed", ""),
                                                ("gzip", "+gzip")])
def test_compression(build, compression, suffix):
    base, _ = demo()
    ops = [base, FILE, merge(base, FILE)]
    kept = of_tar(build(ops, "type=oci"))
    image = of_tar(build(ops, f"type=oci,compression={compression}"))
    assert image.digests()[:-1] == kept.digests()[:-1]
    assert image.layers[-1]["mediaType"] == f"{OCI}.layer.v1.tar{suffix}"
    forced = of_tar(build(ops, f"type=oci,compression={compression},force-compression=true"))
    assert {layer["mediaType"] for layer in forced.layers} == {f"{OCI}.layer.v1.tar{suffix}"}
    assert forced.config["rootfs"]["diff_ids"] == kept.config["rootfs"]["diff_ids"]


def test_levels(build):
    many = file_op(mkfile("/f", b"".join(b"%d %d\n" % (i, i * i) for i in range(20000))))
    sizes = [of_tar(build([many], f"type=oci,compression-level={n}")).layers[0]["size"]
             for n in (0, 1, 9)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_times(build, llbfs):
    base, _ = demo()
    new = file_op(mkfile("/new", b"x"))
    llbfs.env["SOURCE_DATE_EPOCH"] = str(EPOCH)
    image = of_tar(build([base, new, merge(base, new)], "type=oci"))
    assert image.config["created"] == "2020-09-13T12:26:40Z"
    assert {entry["created"] for entry in image.config["history"]} == {image.config["created"]}
    assert image.members(len(image.layers) - 1)["new"].mtime > EPOCH
    image = of_tar(build([base, new, merge(base, new)], "type=oci,rewrite-timestamp=true"))
    for i, layer in enumerate(image.layers):
        assert layer["annotations"] == {"buildkit/rewritten-timestamp": str(EPOCH)}
        assert all(member.mtime <= EPOCH for member in image.members(i).values())
    image = of_tar(build([new], "type=oci,source-date-epoch=1"))
    assert image.config["created"] == "1970-01-01T00:00:01Z"


def test_annotations(build):
    image = of_tar(build([FILE], "type=oci,annotation.b=2,annotation-manifest.a=1 & 2,"
                                 "annotation-manifest-descriptor.c=\u00e4"))
    assert list(image.manifest["annotations"].items()) == [("a", "1 & 2"), ("b", "2")]
    assert image.desc["annotations"]["c"] == "\u00e4"
    assert b'"a": "1 \\u0026 2"' in image.blob(image.desc)


def test_metadata(build, tmp_path):
    image = of_tar(build([FILE], "type=oci,name=app", "--metadata-file", tmp_path / "meta"))
    meta = json.loads((tmp_path / "meta").read_text())
    assert list(meta) == ["containerimage.config.digest", "containerimage.descriptor",
                          "containerimage.digest", "image.name", "llbfs.ref"]
    assert meta["containerimage.digest"] == image.desc["digest"]
    assert meta["containerimage.config.digest"] == image.manifest["config"]["digest"]
    assert meta["containerimage.descriptor"]["size"] == image.desc["size"]
    assert meta["image.name"] == "docker.io/library/app:latest"
    text = (tmp_path / "meta").read_text()
    assert text == json.dumps(meta, indent=2) + "\n"


def test_a_folder_keeps_its_other_images(build, tmp_path):
    out = f"type=oci,tar=false,dest={tmp_path}/out"
    other = file_op(mkfile("/other", b"x"))
    build([FILE], f"{out},name=one")
    before = of_folder(tmp_path / "out").desc
    build([other], f"{out},name=two")
    build([other], f"{out},name=two")
    index = of_folder(tmp_path / "out").index
    assert len(index["manifests"]) == 2 and index["manifests"][0] == before
    build([other], f"{out},name=one")
    index = of_folder(tmp_path / "out").index
    assert len({d["digest"] for d in index["manifests"]}) == 1 and len(index["manifests"]) == 2
    (tmp_path / "out" / "index.json").write_text("[]")
    build([other], f"{out},name=one", code=BAD_CONTENT)


def test_writers_at_once_lose_nothing(llbfs, tmp_path):
    path = tmp_path / "def.pb"
    path.write_bytes(definition(FILE))
    (tmp_path / "out").mkdir()

    def write(i):
        llbfs("build", "--output", f"type=oci,tar=false,dest={tmp_path}/out,name=app:{i}", path)
    threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [d["annotations"]["org.opencontainers.image.ref.name"]
             for d in of_folder(tmp_path / "out").index["manifests"]]
    assert sorted(names) == [str(i) for i in range(6)]


def test_a_wrong_blob_leaves_nothing(build, llbfs, tmp_path):
    layout = tmp_path / "layout"
    layout.mkdir()
    shutil.copytree(DEMO, layout, dirs_exist_ok=True)
    _, layers = demo()
    blob = (layout / "blobs" / "sha256" / layers[-1][7:]).read_bytes()
    with Registry({"app": str(layout)}) as registry:
        ops = [source(f"docker-image://{registry.host}/app:latest")]
        registry.fault(match=f"/blobs/{sha256(blob)}", wrong_bytes=1, count=-1)
        (tmp_path / "image.tar").write_text("old")
        build(ops, f"type=oci,dest={tmp_path}/image.tar", code=BAD_CONTENT)
    assert (tmp_path / "image.tar").read_text() == "old"


@pytest.mark.parametrize("csv,says", [
    ("type=oci,dest=x,colour=red", 'no key "colour"'),
    ("type=oci,dest=x,compression=lzma", "want gzip, zstd or uncompressed"),
    ("type=oci,dest=x,force-compression=maybe", "want true or false"),
    ("type=oci,dest=x,compression-level=10", "want 0 to 9 for gzip"),
    ("type=oci,dest=x,compression=uncompressed,compression-level=1", "none for uncompressed"),
    ("type=oci,dest=x,name=UPPER", "name"),
    ("type=oci,dest=x,rewrite-timestamp=true", "SOURCE_DATE_EPOCH"),
    ("type=oci,dest=x,annotation-index.k=v", "no index"),
    ("type=oci,dest=x,annotation.=v", "annotation.KEY"),
    ("type=docker,dest=x,annotation.k=v,oci-mediatypes=false", "OCI's media types"),
    ("type=oci,tar=false", "needs dest=DIR"),
    ("type=oci,output=x", "it is dest"),
    ("type=oci,dest=.", "is a folder"),
    ("type=tar,dest=x,compression=gzip", 'no key "compression"'),
    ("type=oci,dest=x,bare", "no KEY=VALUE"),
])
def test_what_makes_no_sense_is_refused(llbfs, tmp_path, csv, says):
    path = tmp_path / "def.pb"
    path.write_bytes(definition(FILE))
    assert says in llbfs.error(USAGE, "build", "--output", csv, path)


def test_what_is_not_written_is_said(llbfs, tmp_path):
    path = tmp_path / "def.pb"
    path.write_bytes(definition(FILE))
    assert "use gzip or zstd" in llbfs.error(OTHER, "build", "--output",
                                             "type=oci,dest=x,compression=estargz", path)


@pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo")
def test_others_read_it(build, tmp_path):
    base, _ = demo()
    ops = [base, FILE, merge(base, FILE)]
    build(ops, f"type=oci,tar=false,dest={tmp_path}/folder,name=app:1")
    build(ops, f"type=oci,dest={tmp_path}/oci.tar,name=app:1,compression=zstd")
    build(ops, f"type=docker,dest={tmp_path}/docker.tar,name=app:1")
    for i, name in enumerate([f"oci:{tmp_path}/folder:1", f"oci-archive:{tmp_path}/oci.tar:1",
                              f"docker-archive:{tmp_path}/docker.tar:app:1"]):
        subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", name,
                        f"dir:{tmp_path}/copy{i}"], check=True)
