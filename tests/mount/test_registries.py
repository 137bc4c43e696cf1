# SPDX-License-Identifier: Apache-2.0
"""Images in registries: the real docker-registry, filled by skopeo, and every way to log in."""
import base64
import json
import os
import subprocess

import pytest

import images
import listing
import servers
from test_formats import check_commands, check_mount


@pytest.fixture(scope="module")
def golden(formats, shared):
    """(layout, what umoci unpacks from it): three gzip layers with everything in them."""
    path = formats("gzip-single")
    return path, listing.of_dir(images.umoci_unpack(path, f"{shared}/golden", "v1"))


def source(formats, shared, form):
    """(FOLDER:TAG, options of skopeo copy) of the image in one form."""
    options = {"docker": ["--format", "v2s2"], "zstd": ["--dest-compress-format", "zstd"]}
    layout = formats("gzip-single")
    if form in ("gzip", "docker"):
        return f"{layout}:v1", options.get(form, [])
    make = images.estargz_layer if form == "estargz" else images.encoded_as("tar")
    target = f"{shared}/{form}-source"
    if not os.path.isdir(target):
        images.convert(images.open_layout(layout), target, make)
    return f"{target}:latest", options.get(form, [])


FORMATS = {"gzip": "gzip", "zstd": "zstd", "docker": "gzip", "estargz": "estargz"}


@pytest.mark.parametrize("form", FORMATS)
def test_pushed_image_equals_what_umoci_unpacks(llbfs, docker_registry, formats, shared, golden,
                                                form):
    layout, options = source(formats, shared, form)
    ref = docker_registry.push(layout, f"golden/{form}:1", *options)
    expected, alike = golden[1], dict
    if form == "estargz":
        expected, alike = listing.whole_seconds(expected), listing.whole_seconds
    status = check_mount(llbfs, ref, expected, alike)
    assert {layer["format"] for layer in status["layers"]} == {FORMATS[form]}
    assert status["bytes_fetched"] > 0 and status["requests"] > 0
    llbfs.new_store()
    check_commands(llbfs, f"docker-image://{ref}", expected, alike)


def test_digest_and_tag_name_the_same_image(llbfs, docker_registry, formats):
    ref = docker_registry.push(f"{formats('uncompressed')}:v1", "golden/pinned:1")
    manifest = json.loads(llbfs.run("inspect", ref).stdout)["manifest"]
    repository = ref.rsplit(":", 1)[0]
    for name in (f"{repository}@{manifest}", f"{ref}@{manifest}", f"docker://{ref}"):
        assert llbfs.run("cat", name, "/etc/hostname", code=None).returncode in (0, 3)
        assert json.loads(llbfs.run("inspect", name).stdout)["manifest"] == manifest
    other = "sha256:" + "0" * 64
    assert llbfs.run("ls", f"{repository}@{other}", code=3).stderr.count(b"\n") == 1


def basic(text):
    return base64.b64encode(text.encode()).decode()


def test_basic_auth_of_docker_registry(llbfs, work, formats):
    with servers.DockerRegistry(f"{work}/closed", is_closed=True) as r:
        ref = r.push(f"{formats('estargz-default')}:v1", "private/image:1")
        done = llbfs.run("ls", ref, code=4)
        assert done.stderr.count(b"\n") == 1 and r.host.encode() in done.stderr
        llbfs.credentials(**{r.host: basic("user:wrong")})
        assert llbfs.run("ls", ref, code=4).stderr.count(b"\n") == 1
        llbfs.credentials(**{r.host: basic("user:secret")})
        with llbfs.mount(ref) as m:
            assert os.path.isdir(m / "bin")
            assert listing.sha256_of(m / "bin/busybox")


@pytest.fixture(scope="module")
def small(shared):
    e = images.entry
    layers = [images.estargz_layer(images.tar([e("a", b"first"), e("d/"), e("d/b", b"second")])),
              images.encoded(images.tar([e("a", b"third"), e("c", b"fourth" * 50_000)]), "gzip-9")]
    return images.Layout(f"{shared}/small").image(layers)


def read_all(llbfs, ref):
    with llbfs.mount(ref) as m:
        for name, content in (("a", b"third"), ("d/b", b"second"), ("c", b"fourth" * 50_000)):
            with open(m / name, "rb") as f:
                assert f.read() == content
        return m.status()


@pytest.mark.parametrize("options", [
    {"auth": "token"},
    {"auth": "token", "anonymous": False},
    {"auth": "token", "anonymous": False, "token_post": False},
    {"auth": "token", "token_field": "access_token"},
    {"auth": "token", "token_ttl": 0.3, "token_says": 60},
    {"auth": "token", "token_says": "absent"},
    {"auth": "basic"},
    {"auth": "basic", "redirect": True},
    {"auth": "token", "redirect": True, "redirect_status": 302},
    {"auth": "none", "redirect": True, "redirect_uses": 1},
], ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_ways_to_log_in(llbfs, serve, small, options):
    r = serve({"team/app": small.path}, **options)
    llbfs.credentials(**{r.host: basic("user:secret")})
    status = read_all(llbfs, f"{r.host}/team/app:latest")
    assert status["errors"] == []
    assert status["requests"] == len(r.log)
    assert status["bytes_fetched"] == sum(e["bytes"] for e in r.log)
    # a redirect's target is another host, to which no secret of this one goes
    assert all(e["auth"] == "none" for e in r.log if e["where"] == "cdn")


def test_identity_token_is_used_by_post(llbfs, serve, small):
    r = serve({"app": small.path}, auth="token", anonymous=False, identity_token="renewable",
              users={})
    with open(f"{llbfs.work}/docker/config.json", "w") as f:
        json.dump({"auths": {r.host: {"auth": basic("<token>:"), "identitytoken": "renewable"}}}, f)
    read_all(llbfs, f"{r.host}/app")
    assert any(e["method"] == "POST" and e["where"] == "token" for e in r.log)


def test_credential_helper_is_asked(llbfs, serve, work, small):
    r = serve({"app": small.path}, auth="basic")
    os.mkdir(f"{work}/bin")
    helper = f"{work}/bin/docker-credential-test"
    with open(helper, "w") as f:
        f.write("#!/bin/sh\nread host\necho \"$1 $host\" >>%s/asked\n"
                "echo '{\"Username\": \"user\", \"Secret\": \"secret\"}'\n"
                % work)
    os.chmod(helper, 0o755)
    with open(f"{work}/docker/config.json", "w") as f:
        json.dump({"credHelpers": {r.host: "test"}}, f)
    llbfs.env["PATH"] = f"{work}/bin:{llbfs.env['PATH']}"
    read_all(llbfs, f"{r.host}/app")
    with open(f"{work}/asked") as f:
        assert set(f.read().splitlines()) == {f"get {r.host}"}


@pytest.mark.parametrize("platform, arch", [(None, "amd64"), ("linux/arm64", "arm64"),
                                            ("linux/arm/v7", "arm v7"), ("linux/s390x", None)])
def test_index_gives_the_wanted_platform(llbfs, serve, work, platform, arch):
    layout = images.Layout(f"{work}/multi")
    manifests = []
    for one in ("arm64", "arm v6", "arm v7", "amd64"):
        tar = images.tar([images.entry("arch", one.encode())])
        name, _, variant = one.partition(" ")
        manifests.append(layout.manifest([images.encoded(tar)], arch=name, variant=variant or None))
    layout.tag(layout.index(manifests))
    r = serve({"multi": layout.path})
    options = ["--platform", platform] if platform else []
    for ref in (f"{r.host}/multi:latest", layout.ref):
        if arch:
            assert llbfs.run("cat", *options, ref, "/arch").stdout.decode() == arch
        else:
            done = llbfs.run("cat", *options, ref, "/arch", code=3)
            assert platform.encode() in done.stderr and done.stderr.count(b"\n") == 1


def test_tag_that_moved_is_seen_by_the_next_command(llbfs, serve, work):
    layout = images.Layout(f"{work}/app")
    layout.image([images.estargz_layer(images.tar([images.entry("v", b"1")]))])
    r = serve({"app": layout.path})
    assert llbfs.run("cat", f"{r.host}/app", "/v").stdout == b"1"
    layout.manifests.clear()
    layout.image([images.estargz_layer(images.tar([images.entry("v", b"2")]))])
    assert llbfs.run("cat", f"{r.host}/app", "/v").stdout == b"2"


def test_store_is_a_layout_that_others_read(llbfs, serve, work):
    tar = images.tar([images.entry("f", b"content" * 9999)])
    layout = images.Layout(f"{work}/app").image([images.encoded(tar, "gzip-9")])
    r = serve({"team/app": layout.path})
    llbfs.run("cat", f"{r.host}/team/app:latest", "/f")
    llbfs.run("inspect", f"{r.host}/team/app:latest")  # fetches the config, too
    r.stop()
    subprocess.run(["skopeo", "copy", "-q", "--insecure-policy",
                    f"oci:{llbfs.store}:{r.host}/team/app:latest", f"oci:{work}/copy:latest"],
                   check=True)
    assert images.open_layout(f"{work}/copy").layers() == layout.layers()
    assert llbfs.run("cat", f"oci-layout://{work}/copy", "/f").stdout == b"content" * 9999


@pytest.mark.parametrize("make", ["oci", "docker"])
def test_archive_is_read_in_place(llbfs, work, formats, golden, make):
    layout = formats("gzip-single")
    archive = f"{work}/image.tar"
    target = f"{make}-archive:{archive}:" + {"oci": "v1", "docker": "app:v1"}[make]
    subprocess.run(["skopeo", "copy", "-q", "--insecure-policy", f"oci:{layout}:v1", target],
                   check=True)
    tag = {"oci": "v1", "docker": "app:v1"}[make]
    check_mount(llbfs, f"{make}-archive://{archive}:{tag}", golden[1], dict)
    assert llbfs.run("stat", f"{make}-archive://{archive}", "/bin").stdout
    # nothing of it was copied into the store, apart from indexes
    held = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(llbfs.store) for f in fs)
    assert held < os.path.getsize(archive) / 2


def test_host_folder_is_live(llbfs, work):
    os.makedirs(f"{work}/folder/sub")
    with open(f"{work}/folder/sub/f", "w") as f:
        f.write("before")
    with llbfs.mount(f"{work}/folder") as m:
        with open(m / "sub/f") as f:
            assert f.read() == "before"
        with open(f"{work}/folder/sub/f", "w") as f:
            f.write("and after")
        os.mkdir(f"{work}/folder/new")
        assert "new" in os.listdir(m.path)
        with open(m / "sub/f") as f:
            assert f.read() == "and after"
        listing.assert_equal(listing.of_dir(f"{work}/folder"), listing.of_dir(m.path))
