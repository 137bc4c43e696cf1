# SPDX-License-Identifier: Apache-2.0
"""An image as it is goes to the real docker-registry, where skopeo and llbfs find the same one."""
import base64
import json
import os
import subprocess

import pytest

import images
import servers
from llb import definition, source


@pytest.fixture
def image(work):
    content = os.urandom(5 << 20)
    layers = [images.encoded(images.tar([images.entry("f", content)]), "gzip-1"),
              images.encoded(images.tar([images.entry("g", b"two")]))]
    return images.Layout(f"{work}/image").image(layers)


def copy(llbfs, work, ref, output):
    with open(f"{work}/def.pb", "wb") as f:
        f.write(definition(source(f"docker-image://{ref}")))
    llbfs.run("build", "--output", output, f"{work}/def.pb")


def layers_here(llbfs, image):
    names = {d.split(":")[1] for d in digests(image)}
    return names & set(os.listdir(f"{llbfs.store}/blobs/sha256"))


def digests(image):
    with open(f"{image.path}/index.json") as f:
        top = json.load(f)["manifests"][0]["digest"]
    return [one["digest"] for one in json.loads(image.read(top))["layers"]]


def raw_manifest(ref):
    return subprocess.run(["skopeo", "inspect", "--raw", "--tls-verify=false", "--creds",
                           "user:secret", f"docker://{ref}"], check=True,
                          stdout=subprocess.PIPE).stdout


def test_another_repository_of_docker_registry(llbfs, work, image, docker_registry):
    ref = docker_registry.push(f"{image.path}:latest", "team/app:1")
    copy(llbfs, work, ref, f"type=image,name={docker_registry.host}/other/place:2,push=true")
    new = f"{docker_registry.host}/other/place:2"
    assert raw_manifest(new) == raw_manifest(ref)
    assert not layers_here(llbfs, image)
    llbfs.new_store()
    assert llbfs.run("cat", new, "/g").stdout == b"two"


def test_from_registry_to_registry(llbfs, work, image, serve):
    with servers.DockerRegistry(f"{work}/closed", is_closed=True) as to:
        llbfs.credentials(**{to.host: base64.b64encode(b"user:secret").decode()})
        r = serve({"app": image.path})
        copy(llbfs, work, f"{r.host}/app:latest", f"type=image,name={to.host}/app:1,push=true")
        assert not layers_here(llbfs, image)
        assert sum(e["method"] == "GET" and "/blobs/" in e["path"] for e in r.log) == 3
        new = f"{to.host}/app:1"
        subprocess.run(["skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false",
                        "--src-creds", "user:secret", f"docker://{new}",
                        f"oci:{work}/copy:latest"], check=True)
        assert images.open_layout(f"{work}/copy").layers() == image.layers()


def test_a_layout_that_others_read(llbfs, work, image, serve):
    r = serve({"app": image.path})
    copy(llbfs, work, f"{r.host}/app:latest", f"type=oci,dest={work}/out,tar=false")
    subprocess.run(["umoci", "unpack", "--rootless", "--image", f"{work}/out:latest",
                    f"{work}/bundle"], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    with open(f"{work}/bundle/rootfs/g", "rb") as f:
        assert f.read() == b"two"
