# SPDX-License-Identifier: Apache-2.0
"""Sources of single files, as the program shows their results: downloads and blobs."""
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time

import pytest

from conftest import TESTS

sys.path.insert(0, f"{TESTS}/mount")
from fileserver import FileServer  # noqa: E402
from llb import definition, field, op_input, source, varint  # noqa: E402
from registry import Registry  # noqa: E402

THEN = "Tue, 02 Jan 2024 03:04:05 GMT"
THEN_S = 1704164645
BIG = bytes(range(256)) * 4096  # 1 MiB


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def quiet(llbfs):
    """What takes a second tells of its progress, beside the line of an error."""
    llbfs.env["BUILDKIT_PROGRESS"] = "quiet"


@pytest.fixture
def web():
    with FileServer() as server:
        yield server


@pytest.fixture
def ref(tmp_path):
    """The name of a definition of these ops."""
    def write(*ops):
        path = tmp_path / f"{hashlib.sha256(b''.join(ops)).hexdigest()[:12]}.pb"
        path.write_bytes(definition(*ops))
        return f"llb://{path}"
    return write


@pytest.fixture
def get(llbfs, ref):
    """The one file of a source: (name, content, tar member); with a code, the error."""
    def run(url, *args, code=0, **attrs):
        name = ref(source(url, {f"http.{k.replace('__', '.')}": v for k, v in attrs.items()}))
        if code:
            return llbfs.error(code, "tar", *args, name)
        with tarfile.open(fileobj=io.BytesIO(llbfs("tar", *args, name))) as tar:
            (m,) = [m for m in tar if m.isreg()]
            return m.name, tar.extractfile(m).read(), m
    return run


def keys(llbfs, name, *args):
    (one,) = json.loads(llbfs.text("inspect", "--format", "json", *args, name))["vertices"]
    return one


def largest(folder):
    """The size of the largest file, while others come and go."""
    sizes = [0]
    with contextlib.suppress(FileNotFoundError):
        for f in folder.iterdir():
            sizes.append(f.stat().st_size)
    return max(sizes)


def content_of(store):
    return sorted(os.listdir(store / "content"))


# ---------------------------------------------------------------- what a download becomes

def test_a_download_is_one_file(get, web):
    web.put("/dir/a%20b.txt?x=/y", b"text", modified=THEN)
    name, text, m = get(web.url("/dir/a%20b.txt?x=/y"))
    assert (name, text) == ("a b.txt", b"text")
    assert (m.mode, m.uid, m.gid, m.mtime) == (0o600, 0, 0, THEN_S)


def test_attributes_win(get, web):
    web.put("/f", b"text", disposition="attachment; filename=server.txt")
    name, _, m = get(web.url("/f"), filename="mine", perm="0755", uid="1000", gid="0x3e9",
                     header__accept="text/plain", header__user_agent="no such header",
                     **{"header__user-agent": "test/1"})
    assert (name, m.mode, m.uid, m.gid, m.mtime) == ("mine", 0o755, 1000, 1001, 0)
    (_, _, headers, _), = web.log
    assert headers["accept"] == "text/plain" and headers["user-agent"] == "test/1"
    assert "authorization" not in headers
    assert get(web.url("/f"))[0] == "server.txt"


def test_an_empty_file(get, web):
    web.put("/empty", b"", etag='"e"')
    assert get(web.url("/empty"))[1] == b""
    assert get(web.url("/empty"))[1] == b""
    assert web.statuses() == [200, 304]


# Recorded from BuildKit: attributes of a download of FILE, and what its key was.
FILE = b'http payload\n'
RECORDED = [
    ({}, "3985a864c79c9470f28a9713aa36d46c17df73ee4278cac8753318de8eb67b91"),
    ({"http.filename": "renamed", "http.perm": "0755", "http.uid": "1000", "http.gid": "1001",
      "http.header.accept": "text/plain", "http.header.user-agent": "llbfs/1"},
     "712feef237bdca0eaa38a2de8b03f3cc15aa1d9593a2a35d188c087dad1c4312"),
    ({"http.checksum": sha256(FILE)},
     "c385566aa2ad198bd0a5b20588541a48989bd9169865c7637b3e421ac6dd7051"),
]


@pytest.mark.parametrize("attrs,want", RECORDED)
def test_keys_are_buildkits(llbfs, ref, web, attrs, want):
    web.put("/file.txt", FILE, modified=THEN)
    first, second = keys(llbfs, ref(source(web.url("/file.txt"), attrs)))["ingredients"][:2]
    assert first["digest"] == f"sha256:{want}", first["text"]
    assert second["text"] == f"buildkit.source.v0:sha256:{want}"


def test_a_time_that_makes_no_sense_is_no_part_of_the_key(llbfs, ref, web):
    web.put("/f", b"text", modified="yesterday")
    assert "LastModTime" not in keys(llbfs, ref(source(web.url("/f"))))["ingredients"][0]["text"]


def test_a_secret_is_known_by_its_name_only(llbfs, ref):
    attrs = {"http.checksum": sha256(FILE), "http.authheadersecret": "TOKEN"}
    text = keys(llbfs, ref(source("http://127.0.0.1:1/f", attrs)))["ingredients"][0]["text"]
    assert text.endswith(',"AuthHeaderSecret":"TOKEN"}')


def test_a_checksum_needs_no_network_for_the_key(llbfs, ref, web):
    wanted = sha256(b"text")
    web.put("/f.txt", b"text", modified=THEN)
    name = ref(source(web.url("/f.txt"), {"http.checksum": wanted}))
    v = keys(llbfs, name, "--offline")
    want = '{"Filename":"f.txt","Perm":0,"UID":0,"GID":0,"Checksum":"%s"}' % wanted
    assert v["ingredients"][0]["text"] == want and web.log == []


# ---------------------------------------------------------------- once

def test_a_second_solve_asks_once_and_downloads_nothing(get, web):
    web.put("/f", BIG, etag='"1"', modified=THEN)
    first = get(web.url("/f"))
    second = get(web.url("/f"))
    assert first[1] == second[1] == BIG and second[2].mtime == THEN_S
    assert web.statuses() == [200, 304]
    assert web.log[1][2]["if-none-match"] == '"1"'
    assert get(web.url("/f"), "--offline")[1] == BIG and len(web.log) == 2


def test_last_modified_alone_will_do(get, web):
    web.put("/f", b"text", modified=THEN)
    assert get(web.url("/f"))[1] == get(web.url("/f"))[1] == b"text"
    assert web.statuses() == [200, 304]


def test_a_change_is_seen(get, web):
    web.put("/f", b"one", etag='"1"')
    assert get(web.url("/f"))[1] == b"one"
    web.put("/f", b"two!", etag='"2"')
    assert get(web.url("/f"))[1] == b"two!"
    web.put("/f", b"three", etag='"3"')
    assert get(web.url("/f"))[1] == b"three"
    assert web.statuses() == [200, 200, 200]


def test_lost_content_is_downloaded_again(get, web, tmp_path):
    web.put("/f", b"text", etag='"1"')
    get(web.url("/f"))
    (hexed,) = content_of(tmp_path / "store")
    (tmp_path / "store" / "content" / hexed).unlink()
    assert get(web.url("/f"))[1] == b"text"
    assert web.statuses() == [200, 200]
    (tmp_path / "store" / "content" / hexed).write_bytes(b"te")
    assert get(web.url("/f"))[1] == b"text"
    assert "if-none-match" not in web.log[2][2]


def test_evicted_content_is_downloaded_again(get, web):
    """Both together are more than the bound."""
    for path in ("/a", "/b", "/a"):
        web.put(path, path.encode() * 150_000, etag='"1"')
        assert get(web.url(path), "--max-used-space", "400kB")[1] == path.encode() * 150_000
    assert web.statuses() == [200, 200, 200]
    assert get(web.url("/a"), "--max-used-space", "400kB") and web.statuses()[3] == 304


def test_a_killed_download_leaves_nothing(llbfs, get, ref, web, tmp_path):
    web.put("/f", BIG, etag='"1"')
    web.fault("/f", stall=300_000)
    p = subprocess.Popen([llbfs.path, "cat", ref(source(web.url("/f"))), "/f"], env=llbfs.env)
    tmp = tmp_path / "store" / "tmp"
    end = time.monotonic() + 30
    while largest(tmp) < 300_000:
        assert p.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    p.kill()
    p.wait()
    assert get(web.url("/f"))[1] == BIG
    assert content_of(tmp_path / "store") == [sha256(BIG)[7:]] and os.listdir(tmp) == []


def test_with_a_checksum_what_is_here_is_not_asked_for(get, web):
    web.put("/f", b"text", etag='"1"', modified=THEN, disposition="attachment; filename=x")
    attrs = {"checksum": sha256(b"text")}
    first, second = get(web.url("/f"), **attrs), get(web.url("/f"), **attrs)
    assert first[:2] == second[:2] == ("x", b"text") and second[2].mtime == THEN_S
    assert web.statuses() == [200]


def test_headers_make_another_download(get, web):
    web.put("/f", b"text", etag='"1"')
    get(web.url("/f"))
    get(web.url("/f"), header__accept="text/plain")
    assert web.statuses() == [200, 200]


# ---------------------------------------------------------------- faults

def test_a_wrong_checksum(get, web, tmp_path):
    web.put("/f", b"text")
    line = get(web.url("/f"), code=6, checksum=sha256(b"other"))
    assert sha256(b"text") in line and sha256(b"other") in line
    assert content_of(tmp_path / "store") == [] and os.listdir(tmp_path / "store" / "tmp") == []


def test_redirects(get, web):
    web.put("/end", b"text", etag='"1"')
    web.fault("/start", status=302, headers={"Location": "/middle"}, count=-1)
    web.fault("/middle", status=308, headers={"Location": web.url("/end")}, count=-1)
    assert get(web.url("/start"))[:2] == ("start", b"text")
    web.fault("/loop", status=301, headers={"Location": "/loop"}, count=-1)
    assert "again and again" in get(web.url("/loop"), code=6)
    web.fault("/away", status=302, headers={"Location": "file:///etc/passwd"})
    assert "not http or https" in get(web.url("/away"), code=6)
    web.fault("/nowhere", status=302)
    assert "where to" in get(web.url("/nowhere"), code=6)


def test_a_cut_download_goes_on(get, web):
    web.put("/f", BIG, etag='"1"')
    web.fault("/f", cut=300_000)
    assert get(web.url("/f"))[1] == BIG
    assert web.statuses() == [200, 206]
    assert web.log[1][2]["if-range"] == '"1"' and web.log[1][3] < len(BIG)


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_a_cut_download_of_unknown_version_begins_again(get, web, etag):
    web.put("/f", BIG, etag=etag)
    web.fault("/f", cut=300_000)
    assert get(web.url("/f"))[1] == BIG
    assert web.statuses() == [200, 200]


def test_a_file_that_changes_in_the_middle(get, web):
    web.put("/f", b"x" * 400_000, etag='"1"')
    web.fault("/f", cut=300_000, headers={"ETag": '"0"'})
    assert get(web.url("/f"))[1] == b"x" * 400_000
    assert web.statuses() == [200, 200]


def test_wrong_ranges_are_refused(get, web, tmp_path):
    web.put("/f", BIG, etag='"1"')
    web.fault("/f", cut=300_000)
    web.fault("/f", shift=7)
    assert "got others" in get(web.url("/f"), code=6)
    assert content_of(tmp_path / "store") == []


def test_a_body_shorter_than_announced(get, web, tmp_path):
    web.put("/f", b"text")
    web.fault("/f", length=10, count=-1)
    get(web.url("/f"), code=5)
    assert len(web.log) == 4 and content_of(tmp_path / "store") == []


def test_a_body_of_unknown_length(get, web, tmp_path):
    web.put("/f", BIG)
    web.fault("/f", no_length=True, count=2)
    assert get(web.url("/f"))[1] == BIG
    web.put("/g", BIG)
    web.fault("/g", no_length=True, cut=1000)
    assert get(web.url("/g"))[1] == BIG


def test_a_stall_ends_at_the_deadline(get, web):
    web.put("/f", BIG, etag='"1"')
    web.fault("/f", stall=300_000, count=-1)
    assert "nothing came" in get(web.url("/f"), "--deadline", "500ms", code=5)
    assert web.statuses() == [200]


def test_errors_of_the_server(get, web):
    assert "404" in get(web.url("/absent"), code=3)
    web.fault("/secret", status=401, count=-1)
    assert "access denied" in get(web.url("/secret"), code=4)
    web.put("/busy", b"text")
    web.fault("/busy", status=503, headers={"Retry-After": "0"}, count=2)
    assert get(web.url("/busy"))[1] == b"text"
    web.fault("/broken", status=500, count=-1)
    assert "HTTP 500" in get(web.url("/broken"), code=5)
    assert web.statuses().count(500) == 4
    web.fault("/teapot", status=418)
    assert "418" in get(web.url("/teapot"), code=6)
    web.fault("/unasked", status=304)
    assert "304" in get(web.url("/unasked"), code=6)


def test_offline_and_nobody_there(get, web):
    web.put("/f", b"text")
    assert "--offline" in get(web.url("/f"), "--offline", code=5)
    get("http://127.0.0.1:1/f", code=5)
    assert web.log == []


def test_what_cannot_be_sent_or_checked(get, web):
    web.put("/f", b"text")
    assert "control character" in get(web.url("/f"), header__accept="a\r\nX-Evil: 1", code=2)
    assert "secret" in get(web.url("/f"), authheadersecret="TOKEN", code=3)
    assert "signatures" in get(web.url("/f"), **{"sig.pubkey": "x"}, code=8)
    assert "http.checksum" in get(web.url("/f"), checksum="md5:1", code=2)
    assert "http.checksum" in get(web.url("/f"), checksum="sha512:" + "0" * 128, code=8)
    assert "http.perm" in get(web.url("/f"), perm="rwx", code=6)
    assert "256 bytes" in get(web.url("/f"), filename="x" * 256, code=8)
    assert all(status == 200 for status in web.statuses())


def test_a_store_without_room(get, web, tmp_path, llbfs):
    web.put("/f", BIG)
    assert "full" in get(web.url("/f"), "--max-used-space", "100kB", code=8)
    web.fault("/f", no_length=True)
    assert "full" in get(web.url("/f"), "--max-used-space", "100kB", code=8)
    assert content_of(tmp_path / "store") == []


# ---------------------------------------------------------------- further on

def test_a_download_is_unpacked_by_a_copy(llbfs, ref, web):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        m = tarfile.TarInfo("inside/f")
        m.size = 4
        tar.addfile(m, io.BytesIO(b"text"))
    web.put("/p.tgz", packed.getvalue(), etag='"1"')
    http = source(web.url("/p.tgz"))
    body = field(1, "/p.tgz") + field(2, "/out") + varint(4 << 3) + varint((1 << 64) - 1)
    body += field(7, 1) + field(8, 1)
    action = field(2, varint(1 << 3) + varint((1 << 64) - 1) + field(4, body))
    copy = op_input(http) + field(4, action)
    assert llbfs.text("cat", ref(http, copy), "/out/inside/f") == "text"


def cat_at_once(llbfs, name, n=4):
    running = [subprocess.Popen([llbfs.path, "cat", name, "/f"], env=llbfs.env,
                                stdout=subprocess.PIPE) for _ in range(n)]
    return [p.communicate(timeout=60)[0] for p in running]


def test_processes_share_one_download(llbfs, ref, web):
    """Who comes second waits, and asks whether it changed."""
    web.put("/f", BIG, etag='"1"')
    assert cat_at_once(llbfs, ref(source(web.url("/f")))) == [BIG] * 4
    assert sorted(web.statuses()) == [200, 304, 304, 304]


# ---------------------------------------------------------------- blobs

@pytest.fixture
def layout(tmp_path):
    folder = tmp_path / "layout" / "blobs" / "sha256"
    folder.mkdir(parents=True)
    (folder / sha256(BIG)[7:]).write_bytes(BIG)
    (folder / sha256(b"right")[7:]).write_bytes(b"wrong")
    (tmp_path / "layout" / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (tmp_path / "layout" / "index.json").write_text('{"schemaVersion":2,"manifests":[]}')
    return tmp_path / "layout"


def test_blobs_of_a_layout(llbfs, ref, layout):
    args = ("--oci-layout", f"box={layout}")
    where = {"oci.store": "box"}
    plain = ref(source(f"oci-layout+blob://any@{sha256(BIG)}", where))
    assert llbfs("cat", *args, plain, sha256(BIG)[7:]) == BIG
    named = ref(source(f"oci-layout+blob://any@{sha256(BIG)}",
                       {**where, "http.filename": "f", "http.perm": "0640", "http.uid": "7"}))
    (row,) = [r for r in llbfs.json("find", *args, named) if r["path"] == "/f"]
    assert (row["mode"], row["uid"], row["gid"], row["mtime"]) == ("0640", 7, 0, 0)
    wrong = ref(source(f"oci-layout+blob://any@{sha256(b'right')}", where))
    line = llbfs.error(6, "cat", *args, wrong, "/x")
    assert sha256(b"wrong") in line and sha256(b"right") in line
    absent = ref(source(f"oci-layout+blob://any@{sha256(b'absent')}", where))
    llbfs.error(3, "ls", *args, absent)
    assert "--oci-layout" in llbfs.error(3, "ls", absent)
    slash = ref(source(f"oci-layout+blob://any@{sha256(BIG)}", {**where, "http.filename": "a/b"}))
    assert "no name" in llbfs.error(2, "ls", *args, slash)


def test_processes_share_one_blob(llbfs, ref, layout):
    with Registry({"app": str(layout)}) as registry:
        url = f"docker-image+blob://{registry.host}/app@{sha256(BIG)}"
        assert cat_at_once(llbfs, ref(source(url, {"http.filename": "f"}))) == [BIG] * 4
        assert len(registry.log) == 1


def test_a_blob_of_a_registry(llbfs, ref, layout):
    with Registry({"app": str(layout)}, redirect=True) as registry:
        url = f"docker-image+blob://{registry.host}/app@{sha256(BIG)}"
        name = ref(source(url, {"http.filename": "f"}))
        registry.fault(match="/blobs/", where="cdn", cut_after=300_000)
        assert llbfs("cat", name, "/f") == BIG
        n = len(registry.log)
        assert llbfs("cat", name, "/f") == BIG and len(registry.log) == n
        wrong = ref(source(f"docker-image+blob://{registry.host}/app@{sha256(b'right')}"))
        assert sha256(b"wrong") in llbfs.error(6, "ls", wrong)
        gone = ref(source(f"docker-image+blob://{registry.host}/app@{sha256(b'absent')}"))
        assert "not found" in llbfs.error(3, "ls", gone)
    assert llbfs("cat", "--offline", name, "/f") == BIG
    untold = ref(source("docker-image+blob://127.0.0.1:1/app:tag"))
    assert "without digest" in llbfs.error(6, "ls", untold)
