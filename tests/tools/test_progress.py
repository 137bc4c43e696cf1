# SPDX-License-Identifier: Apache-2.0
"""What is shown while a layer comes slowly."""
import gzip
import hashlib
import io
import json
import os
import pty
import random
import subprocess
import tarfile

import estargz
import pytest
from registry import Registry

SIZE = 1 << 20


@pytest.fixture
def slow(tmp_path):
    """A reference to an image of one plain gzip layer of 1 MiB that takes some two seconds."""
    layout = str(tmp_path / "layout")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        info = tarfile.TarInfo("file")
        info.size = SIZE
        t.addfile(info, io.BytesIO(random.Random(1).randbytes(SIZE)))
    layer = gzip.compress(out.getvalue())
    diff_id = "sha256:" + hashlib.sha256(out.getvalue()).hexdigest()
    config = json.dumps({"architecture": "amd64", "os": "linux",
                         "rootfs": {"type": "layers", "diff_ids": [diff_id]}}).encode()
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": estargz.MANIFEST_TYPE,
        "config": {"mediaType": estargz.CONFIG_TYPE, "size": len(config),
                   "digest": estargz.add_blob(layout, config)},
        "layers": [{"mediaType": estargz.LAYER_TYPE, "size": len(layer),
                    "digest": estargz.add_blob(layout, layer)}]}).encode()
    index = {"schemaVersion": 2, "manifests": [{
        "mediaType": estargz.MANIFEST_TYPE, "size": len(manifest),
        "digest": estargz.add_blob(layout, manifest),
        "annotations": {"org.opencontainers.image.ref.name": "latest"}}]}
    with open(f"{layout}/index.json", "w") as f:
        json.dump(index, f)
    with open(f"{layout}/oci-layout", "w") as f:
        f.write('{"imageLayoutVersion": "1.0.0"}')
    with Registry({"app": layout}) as registry:
        registry.fault(match="/blobs/", rate=SIZE // 2, count=-1)
        yield f"{registry.host}/app:latest"


def test_plain_tells_layers_and_the_total(llbfs, slow):
    assert llbfs.text("--progress", "plain", "ls", slow) == "file\n"
    lines = llbfs.stderr.splitlines()
    assert lines[0] == f"#0 llbfs ls {slow}"
    assert lines[1].startswith("#1 sha256:") and lines[1].endswith(" / 1.0MB")
    assert "#1 DONE" in lines
    assert lines[-1].startswith("#0 ") and "requests" in lines[-1]


def test_quiet_is_quiet(llbfs, slow):
    assert llbfs.text("--progress", "quiet", "ls", slow) == "file\n"
    assert llbfs.stderr == ""


def test_rawjson_is_buildkits(llbfs, slow):
    llbfs("--progress", "rawjson", "ls", slow)
    rows = [json.loads(line) for line in llbfs.stderr.splitlines()]
    vertex = rows[0]["vertexes"][0]
    assert vertex["name"] == f"llbfs ls {slow}" and "completed" not in vertex
    assert rows[-1]["vertexes"][0]["completed"] > vertex["started"]
    statuses = [status for row in rows for status in row["statuses"]]
    assert all(status["vertex"] == vertex["digest"] for status in statuses)
    assert statuses[-1]["current"] == statuses[-1]["total"] and "completed" in statuses[-1]


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_a_picture_that_goes(llbfs, slow, no_color):
    master, slave = pty.openpty()
    env = {**llbfs.env, "TERM": "xterm", "NO_COLOR": no_color}
    p = subprocess.run([llbfs.path, "ls", slow], env=env, stderr=slave, stdout=subprocess.PIPE,
                       timeout=60)
    os.close(slave)
    assert p.stdout == b"file\n"
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert f"[+] llbfs ls {slow}" in shown and " => sha256:" in shown
    assert shown.endswith("\033[J")
    assert ("\033[34m" in shown) == (no_color == "")


def test_a_dumb_terminal_gets_lines(llbfs, slow):
    master, slave = pty.openpty()
    subprocess.run([llbfs.path, "ls", slow], env={**llbfs.env, "TERM": "dumb"}, stderr=slave,
                   stdout=subprocess.DEVNULL, timeout=60)
    os.close(slave)
    shown = os.read(master, 1 << 16)
    os.close(master)
    assert shown.startswith(b"#0 ") and b"\033" not in shown
