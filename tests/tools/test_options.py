# SPDX-License-Identifier: Apache-2.0
"""Options, words, exit codes, one-line errors."""
import shutil
import subprocess

import pytest
from conftest import DEMO, TESTS


def test_no_command_is_a_usage_error(llbfs):
    assert llbfs(code=2) == b""
    assert "Usage:" in llbfs.stderr


@pytest.mark.parametrize("words", [
    ["nonsense"],
    ["ls"],
    ["ls", "--nonsense", "x"],
    ["ls", "x", "/", "/"],
    ["ls", "--format"],
    ["ls", "--format", "yaml", "x"],
    ["ls", "--max-rate", "fast", "x"],
    ["ls", "--deadline", "soon", "x"],
    ["stat", "x"],
    ["cat", "x"],
    ["cp", "x", "/y"],
    ["find", "x", "-type", "file"],
    ["diff", "x"],
    ["diff", "x", "y", "z"],
    ["umount"],
    ["status", "a", "b"],
    ["completion", "tcsh"],
    ["help", "nonsense"],
    ["mount"],
    ["mount", "-o", "nonsense", "x", "/"],
    ["mount", "-o", "uid=root", "x", "/"],
    ["mount", "-o", "data=fast", "x", "/"],
    ["ls", "--platform", "a/b/c/d", DEMO],
    ["ls", "UPPER CASE"],
    ["ls", "--layer", "x..y", DEMO],
    ["ls", "--layer", "2..1", DEMO],
    ["ls", "--layer", "0", "/"],
    ["ls", "--oci-layout", "name", DEMO],
])
def test_usage_errors_are_one_line_and_code_2(llbfs, words):
    llbfs.error(2, *words)


@pytest.mark.parametrize("arg", [
    "trim=/a",
    "ref=",
    "ref=/a,ref=/b",
    "ref=/a,trims=/b",
    "ref=/a,trim",
    'ref=/a"b',
    '"ref=/a',
    '"ref=/a"b',
    "ref=/a,",
    "ref=/,trim=/../x",
])
def test_refuses_a_malformed_merge(llbfs, arg):
    llbfs.error(2, "ls", "--merge", arg, "/")


def test_merge_is_csv(llbfs, tmp_path):
    odd = tmp_path / 'a,"b'
    odd.mkdir()
    (odd / "here").touch()
    quoted = str(odd).replace('"', '""')
    assert llbfs.text("ls", "--merge", f'"ref={quoted}",add=/x', "/x") == "here\n"


def test_merge_and_words_keep_their_order(llbfs, tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert llbfs.text("cat", "--merge", f"ref={a}", "--merge", f"ref={b}", "/who") == "b"
    assert llbfs.text("cat", b, "--merge", f"ref={a}", "/who") == "a"
    assert llbfs.text("cat", "--merge", f"ref={a}", c, "--merge", f"ref={b}", "who") == "b"
    assert llbfs.json("stat", "--sha256", "--merge", f"ref={a}", b, "/who") == \
        llbfs.json("stat", "--sha256", "--merge", f"ref={a}", "--merge", f"ref={b}", "/who")
    assert llbfs.text("ls", "--merge", f"ref={a}", b, "/") == "who\n"


def test_options_go_anywhere(llbfs, tree):
    want = llbfs("--format", "json", "ls", tree)
    assert llbfs("ls", "--format=json", tree) == want
    assert llbfs("ls", tree, "--format", "json") == want
    assert llbfs("ls", "--format", "json", "--", tree) == want


def test_environment_gives_defaults(llbfs, tree, tmp_path):
    llbfs.env["LLBFS_ROOT"] = str(tmp_path / "elsewhere")
    llbfs("ls", tree)
    assert (tmp_path / "elsewhere").is_dir()
    llbfs.env["BUILDKIT_PROGRESS"] = "fancy"
    assert "$BUILDKIT_PROGRESS" in llbfs.error(2, "ls", tree)


def test_root_option_wins_over_the_environment(llbfs, tree, tmp_path):
    llbfs("ls", "--root", tmp_path / "typed", tree)
    assert (tmp_path / "typed").is_dir()


def test_not_found_is_code_3(llbfs, tree):
    llbfs.error(3, "ls", tree, "/nowhere")
    llbfs.error(3, "cat", tree, "/nowhere")
    llbfs.error(3, "cat", tree, "/empty/below")
    llbfs.error(3, "ls", tree / "nowhere")
    llbfs.error(3, "ls", DEMO + ":nosuchtag")
    llbfs.error(3, "ls", "--layer", "99", DEMO)
    llbfs.error(3, "status", tree)
    llbfs.error(3, "umount", tree)


def test_network_is_code_5(llbfs):
    line = llbfs.error(5, "ls", "127.0.0.1:1/app:1")
    assert "127.0.0.1:1" in line
    llbfs.error(5, "ls", "--offline", "127.0.0.1:1/app:1")


def test_bad_content_is_code_6(llbfs, tmp_path):
    shutil.copytree(f"{TESTS}/data/demo", tmp_path / "demo")
    blobs = tmp_path / "demo" / "blobs" / "sha256"
    for blob in blobs.iterdir():
        data = blob.read_bytes()
        if data.startswith(b'{"schemaVersion"'):
            blob.write_bytes(data.replace(b'"size"', b'"sizE"', 1))
    llbfs.error(6, "ls", f"oci-layout://{tmp_path}/demo")


@pytest.mark.parametrize("ref", [
    "cache://type=local,src=x#0123456789",
    "record://0123456789",
    "remote://x",
    "blob://sha256:" + "0" * 64,
])
def test_kinds_that_are_not_there_yet_are_one_clear_line(llbfs, ref):
    assert ref.split("://")[0] in llbfs.error(8, "ls", ref)


def test_a_closed_pipe_is_quiet(llbfs, tree):
    p = subprocess.Popen([llbfs.path, "tar", str(tree)], env=llbfs.env, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
    p.stdout.close()
    assert p.stderr.read() == b""
    assert p.wait(30) != 0


def test_version(llbfs):
    assert llbfs.text("version").startswith("llbfs ")
    assert llbfs.json("version")[0]["version"]
