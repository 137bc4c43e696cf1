# SPDX-License-Identifier: Apache-2.0
"""mount as a command: where it mounts, when it returns, what it says; mount(8)'s helper."""
import json
import os
import signal
import socket
import subprocess
import time

import pytest
from conftest import DEMO, TESTS

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"),
                                reason="needs root and /dev/fuse")


def mounts_below(path):
    with open("/proc/self/mountinfo") as f:
        points = [line.split()[4] for line in f]
    return [point for point in points if point.startswith(f"{path}/")]


@pytest.fixture(autouse=True)
def cleared(tmp_path):
    yield
    for point in mounts_below(tmp_path):
        subprocess.run(["umount", "-l", point])


@pytest.fixture
def mnt(tmp_path):
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


@pytest.fixture
def helper(llbfs, tmp_path):
    """The program under the name by which mount(8) calls it."""
    path = tmp_path / "mount.fuse.llbfs"
    path.symlink_to(llbfs.path)

    def run(*args, code=0):
        p = subprocess.run([path, *map(str, args)], env=llbfs.env, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, timeout=60)
        assert p.returncode == code, p.stderr
        return p.stderr.decode()

    return run


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().split()[2] == "Z"
    except FileNotFoundError:
        return True


def test_mounts_and_says_nothing(llbfs, mnt):
    assert llbfs("mount", DEMO, mnt) == b"" and llbfs.stderr == ""
    assert (mnt / "etc" / "hostname").read_text() == "demo\n"
    llbfs("umount", mnt)
    assert os.listdir(mnt) == []


def test_makes_its_own_folder_and_prints_it(llbfs, tmp_path):
    first, second = (llbfs.text("mount", DEMO).rstrip("\n") for _ in range(2))
    assert first == f"{llbfs.env['XDG_RUNTIME_DIR']}/llbfs/demo" and second == first + ".2"
    assert os.path.exists(f"{first}/etc/motd") and os.path.exists(f"{second}/etc/motd")
    llbfs("umount", first)
    llbfs("umount", second)
    wait_for(lambda: not os.path.exists(first) and not os.path.exists(second))


def test_its_own_folder_goes_with_the_server(llbfs):
    path = llbfs.text("mount", DEMO).rstrip("\n")
    os.kill(llbfs.json("status", path)[0]["pid"], signal.SIGTERM)
    wait_for(lambda: not os.path.exists(path))


def test_status_and_mounts_agree(llbfs, mnt):
    llbfs("mount", DEMO, mnt)
    (mnt / "etc" / "motd").read_bytes()
    status = json.loads(llbfs("status", mnt))
    assert status["mountpoint"] == str(mnt) and status["ref"] == DEMO and status["rw"] is False
    assert status["prefetch"] == "learned" and status["errors"] == []
    assert status["requests"] == 0 and status["bytes_fetched"] == 0
    assert 0 < status["bytes_read"] < status["bytes_total"]
    assert status["bytes_total"] == sum(layer["size"] for layer in status["layers"])
    assert len(status["layers"]) == 4
    for layer in status["layers"]:
        assert layer["format"] == "estargz" and layer["lazy"] is True and layer["reason"] == ""
    rows = {row["mountpoint"]: row for row in llbfs.json("mounts")}
    assert rows[str(mnt)] == {"mountpoint": str(mnt), "ref": DEMO, "pid": status["pid"],
                              "answers": True}
    assert str(mnt) in llbfs.text("mounts")
    assert str(mnt) in llbfs.text("status", "--format", "table", mnt)
    assert str(mnt) in [json.loads(line)["mountpoint"] for line in llbfs("status").splitlines()]


def test_merges_are_mounted(llbfs, mnt, tree):
    llbfs("mount", "--merge", f"ref={DEMO},trim=/etc,add=/conf", tree, mnt)
    assert (mnt / "conf" / "hostname").read_text() == "demo\n"
    assert (mnt / "a" / "file").read_text() == "hello\n"
    assert " + " in llbfs.json("status", mnt)[0]["ref"]


def test_relative_places_survive_the_background(llbfs, tmp_path, mnt):
    os.symlink(f"{TESTS}/data/demo", tmp_path / "link")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "f").write_text("f")
    llbfs("mount", "oci-layout://link", "./dir", "mnt", cwd=tmp_path)
    assert (mnt / "f").read_text() == "f"
    assert (mnt / "etc" / "hostname").read_text() == "demo\n"


@pytest.mark.parametrize("code, words", [
    (3, [DEMO + ":nosuchtag"]),
    (3, ["/no/where"]),
    (5, ["127.0.0.1:1/app"]),
    (2, ["BAD NAME"]),
])
def test_failures_in_the_background_are_the_commands_own(llbfs, mnt, code, words):
    llbfs.error(code, "mount", *words, mnt)
    llbfs.error(code, "mount", *words)
    assert os.listdir(f"{llbfs.env['XDG_RUNTIME_DIR']}/llbfs") == []
    assert mounts_below(mnt.parent) == []


def test_a_missing_mountpoint_is_not_made(llbfs, tmp_path):
    llbfs.error(3, "mount", DEMO, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    llbfs.error(3, "mount", DEMO, tmp_path / "file")


def test_an_interrupt_before_the_mount_answers_ends_everything(llbfs, mnt):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        p = subprocess.Popen([llbfs.path, "mount", f"127.0.0.1:{silent.getsockname()[1]}/app", mnt],
                             env=llbfs.env, start_new_session=True, stderr=subprocess.DEVNULL)
        connection, _ = silent.accept()
        with open(f"/proc/{p.pid}/task/{p.pid}/children") as f:
            child = int(f.read())
        os.killpg(p.pid, signal.SIGINT)
        assert p.wait(20) != 0
        connection.close()
        wait_for(lambda: gone(child))
    assert mounts_below(mnt.parent) == []


def test_a_dead_server_is_told_and_cleared(llbfs, mnt):
    llbfs("mount", DEMO, mnt)
    pid = llbfs.json("status", mnt)[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: gone(pid))
    assert [row["answers"] for row in llbfs.json("mounts") if row["mountpoint"] == str(mnt)] == [False]
    assert "umount" in llbfs.error(8, "status", mnt)
    llbfs.error(8, "mount", DEMO, mnt)
    llbfs("umount", mnt)
    assert os.listdir(mnt) == []


def test_umount_refuses_while_in_use_unless_lazy(llbfs, mnt):
    llbfs("mount", DEMO, mnt)
    with open(mnt / "etc" / "motd"):
        fd = os.open(mnt, os.O_RDONLY)
        llbfs.error(8, "umount", mnt)
        llbfs("umount", "-l", mnt)
        os.close(fd)
    assert mounts_below(mnt.parent) == []


def test_log_lines_are_kept_when_asked_for(llbfs, mnt):
    llbfs("mount", "--log-level", "debug", DEMO, mnt)
    logs = [name for name in os.listdir(f"{llbfs.env['XDG_RUNTIME_DIR']}/llbfs")
            if name.endswith(".log")]
    assert len(logs) == 1


def test_foreground_tells_systemd(llbfs, mnt, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(20)
        p = subprocess.Popen([llbfs.path, "mount", "-f", DEMO, mnt],
                             env={**llbfs.env, "NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert notify.recv(100) == b"READY=1"
        assert (mnt / "etc" / "hostname").read_text() == "demo\n"
        p.terminate()
        assert p.wait(20) == 0
    assert mounts_below(mnt.parent) == []


# ---------------------------------------------------------------- mount(8)

def test_helper_mounts(helper, llbfs, mnt):
    helper(DEMO, mnt, "-o", "rw,noauto,x-systemd.automount,_netdev,uid=5,gid=6,allow_other")
    st = os.stat(mnt / "etc" / "hostname")
    assert (st.st_uid, st.st_gid) == (5, 6)
    llbfs("umount", mnt)


def test_helper_merges(helper, llbfs, mnt, tree):
    helper("none", mnt, "-o", f'merge="ref={DEMO},trim=/etc,add=/conf",merge=ref={tree}')
    assert (mnt / "conf" / "hostname").read_text() == "demo\n"
    assert (mnt / "a" / "file").read_text() == "hello\n"
    llbfs("umount", mnt)
    helper(DEMO, mnt, "-o", f"merge=ref={tree}\\,trim=/a,offline,prefetch=none,deadline=5s")
    assert (mnt / "file").read_text() == "hello\n"
    assert llbfs.json("status", mnt)[0]["prefetch"] == "none"


def test_helper_has_codes_of_mount(helper, mnt, tmp_path):
    assert len(helper(DEMO, mnt, "-o", "nonsense", code=1).splitlines()) == 1
    helper(DEMO, code=1)
    helper(DEMO + ":nosuchtag", mnt, code=32)
    helper(DEMO, tmp_path / "nowhere", code=32)
    helper(DEMO, mnt, "-f")
    assert mounts_below(mnt.parent) == []


def test_options_of_mount_work_on_the_command_line_too(llbfs, mnt):
    llbfs("mount", "-o", "uid=7,data=open", "-o", "layer=3", DEMO, mnt)
    assert os.stat(mnt / "app" / "hello").st_uid == 7
    assert sorted(os.listdir(mnt)) == ["app", "etc", "usr"]
    assert llbfs.json("status", mnt)[0]["data"] in ("open", "auto")
