# SPDX-License-Identifier: Apache-2.0
"""ls cat stat find cp tar du diff inspect, on host folders and on the demo image."""
import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile

import pytest
from conftest import DEMO, TESTS

KINDS = {stat.S_IFREG: "reg", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}


def walk(top):
    """What find --format json --sha256 should say of a host folder."""
    found = {}
    for folder, folders, files in os.walk(top):
        for name in [None, *folders, *files]:
            if name is None and folder != str(top):
                continue
            path = os.path.join(folder, name) if name else folder
            st = os.lstat(path)
            row = {
                "path": "/" + os.path.relpath(path, top) if name else "/",
                "type": KINDS[stat.S_IFMT(st.st_mode)],
                "mode": f"{stat.S_IMODE(st.st_mode):04o}",
                "uid": st.st_uid,
                "gid": st.st_gid,
                "mtime": st.st_mtime_ns // 10**9,
                "mtime_ns": st.st_mtime_ns % 10**9,
            }
            if stat.S_ISREG(st.st_mode):
                with open(path, "rb") as f:
                    row["sha256"] = hashlib.sha256(f.read()).hexdigest()
                row["size"] = st.st_size
            if stat.S_ISLNK(st.st_mode):
                row["link"] = os.readlink(path)
            else:
                xattrs = {name: os.getxattr(path, name).hex() for name in os.listxattr(path)}
                if xattrs:
                    row["xattrs"] = xattrs
            found[row["path"]] = row
    return found


def comparable(rows):
    keys = "path type mode uid gid mtime mtime_ns size link sha256 xattrs".split()
    return {row["path"]: {"mtime_ns": 0, **{k: row[k] for k in keys if k in row}} for row in rows}


def without_root(rows):
    return {path: row for path, row in rows.items() if path != "/"}


def test_find_tells_everything(llbfs, tree):
    rows = llbfs.json("find", "--sha256", tree)
    assert without_root(comparable(rows)) == without_root(walk(tree))
    assert rows[0]["path"] == "/"
    inodes = {row["path"]: row["inode"] for row in rows}
    assert inodes["/zlink"] == inodes["/a/file"] != inodes["/empty"]


def test_find_picks_by_name_and_type(llbfs, tree):
    assert llbfs.text("find", tree, "-name", "*e*", "-type", "f").split() == [
        "/a/b/deep", "/a/file", "/empty", "/sparse"]
    assert llbfs.text("find", tree, "/a", "-type", "d").split() == ["/a", "/a/b"]
    assert llbfs.text("find", tree, "-type", "l").split() == ["/absolute", "/dangling", "/soft"]
    assert llbfs.text("find", tree, "-type", "p").split() == ["/pipe"]
    assert llbfs.text("find", tree, "/zlink").split() == ["/zlink"]


def test_ls_lists_a_folder_or_a_file(llbfs, tree):
    assert llbfs.text("ls", tree).split() == sorted(os.listdir(tree))
    assert llbfs.text("ls", tree, "/a").split() == ["b", "file"]
    assert llbfs.text("ls", tree, "a/file").split() == ["a/file"]
    assert llbfs.text("ls", tree, "soft").split() == ["soft"]


def test_ls_long(llbfs, tree):
    rows = {line.split(None, 7)[7]: line for line in llbfs.text("ls", "-l", tree, "/a").splitlines()}
    assert rows["file"].startswith("-rwsr-x--x   2 ")
    assert "2009-02-13 23:31" in llbfs.text("ls", "-l", tree, "/soft")
    assert llbfs.text("ls", "-l", tree, "/soft").rstrip().endswith("/soft -> a/file")
    assert "drwx-----T" in llbfs.text("ls", "-l", tree)


def test_ls_recursive_has_a_heading_for_each_folder(llbfs, tree):
    text = llbfs.text("ls", "-R", tree, "/a")
    assert text == "/a:\nb\nfile\n\n/a/b:\ndeep\n"


def test_names_are_bytes(llbfs, tmp_path):
    names = [b"\xff\xfe", b"tab\there", b"new\nline", "é".encode(), b'quote"\\']
    top = os.fsencode(tmp_path / "odd")
    os.mkdir(top)
    for name in names:
        open(os.path.join(top, name), "w").close()
    rows = llbfs.json("ls", tmp_path / "odd")
    assert sorted(os.fsencode(row["path"][1:]) for row in rows) == sorted(names)
    assert llbfs("ls", tmp_path / "odd").count(b"\n") == len(names) + 1


def test_cat_joins_files_and_follows_links(llbfs, tree):
    assert llbfs("cat", tree, "/a/file", "soft", "/absolute", "empty") == b"hello\n" * 3
    sparse = (tree / "sparse").read_bytes()
    assert llbfs("cat", tree, "/sparse") == sparse


def test_cat_refuses_what_is_no_file(llbfs, tree):
    assert "folder" in llbfs.error(8, "cat", tree, "/a")
    llbfs.error(8, "cat", tree, "/pipe")


def test_stat_shows_one_file(llbfs, tree):
    row = llbfs.json("stat", "--sha256", tree, "/empty")[0]
    assert row["xattrs"] == {"user.note": "00ff3d"}
    assert row["sha256"] == hashlib.sha256(b"").hexdigest()
    assert llbfs.json("stat", tree, "/soft")[0]["link"] == "a/file"
    assert "mtime: 2009-02-13 23:31:30.123456789" in llbfs.text("stat", tree, "/empty")


def test_du_sums_folders_and_counts_hard_links_once(llbfs, tree):
    rows = {row["path"]: row for row in llbfs.json("du", tree)}
    assert rows["/a/b"] == {"path": "/a/b", "size": 1000, "files": 1}
    assert rows["/a"]["size"] == 1006
    assert rows["/"]["size"] == 1006 + (1 << 20)
    assert rows["/"]["files"] == 8
    assert [row["path"] for row in llbfs.json("du", "-s", tree)] == ["/"]
    assert llbfs.json("du", tree, "/a/b/deep") == [{"path": "/a/b/deep", "size": 1000, "files": 1}]


def test_tar_is_the_tree(llbfs, tree, tmp_path):
    out = tmp_path / "untar"
    out.mkdir()
    subprocess.run(["tar", "-xp", "--xattrs", "-C", out], input=llbfs("tar", tree), check=True)
    assert without_root(walk(out)) == without_root(walk(tree))
    assert os.lstat(out / "zlink").st_ino == os.lstat(out / "a" / "file").st_ino


def test_tar_of_a_folder_keeps_the_place(llbfs, tree):
    with tarfile.open(fileobj=io.BytesIO(llbfs("tar", tree, "/a"))) as t:
        assert sorted(t.getnames()) == ["a/b", "a/b/deep", "a/file"] or \
            sorted(t.getnames()) == ["a", "a/b", "a/b/deep", "a/file"]
    llbfs.error(3, "tar", tree, "/a/file")


# ---------------------------------------------------------------- cp

def test_cp_copies_everything(llbfs, tree, tmp_path):
    llbfs("cp", tree, "/", tmp_path / "copy")
    assert without_root(walk(tmp_path / "copy")) == without_root(walk(tree))
    copy = tmp_path / "copy"
    assert os.lstat(copy / "zlink").st_ino == os.lstat(copy / "a" / "file").st_ino
    assert os.lstat(copy / "sparse").st_blocks * 512 < 1 << 20


def test_cp_goes_into_a_folder_or_takes_a_name(llbfs, tree, tmp_path):
    (tmp_path / "dest").mkdir()
    llbfs("cp", tree, "/a", tmp_path / "dest")
    assert (tmp_path / "dest" / "a" / "b" / "deep").stat().st_size == 1000
    llbfs("cp", tree, "/a", tmp_path / "dest" / "other")
    assert (tmp_path / "dest" / "other" / "file").read_text() == "hello\n"
    llbfs("cp", tree, "/a/file", tmp_path / "dest" / "name")
    assert (tmp_path / "dest" / "name").read_text() == "hello\n"
    llbfs("cp", tree, "/a/file", tmp_path / "dest")
    assert (tmp_path / "dest" / "file").read_text() == "hello\n"
    llbfs("cp", tree, "/soft", tmp_path / "dest")
    assert os.readlink(tmp_path / "dest" / "soft") == "a/file"
    llbfs("cp", tree, "/a/.", tmp_path / "dest" / "other")
    assert not (tmp_path / "dest" / "other" / "a").exists()
    llbfs("cp", tree, "/a/file", "relative", cwd=tmp_path)
    assert (tmp_path / "relative").read_text() == "hello\n"
    llbfs.error(3, "cp", tree, "/a/file", tmp_path / "no" / "where")


def test_cp_overwrites_files_and_does_not_follow_links_that_were_there(llbfs, tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("precious")
    dest = tmp_path / "dest"
    (dest / "a").mkdir(parents=True)
    os.symlink(outside / "victim", dest / "a" / "file")
    (dest / "empty").write_text("old")
    llbfs("cp", tree, "/", dest)
    assert (outside / "victim").read_text() == "precious"
    assert (dest / "a" / "file").read_text() == "hello\n"
    assert not (dest / "a" / "file").is_symlink()
    assert (dest / "empty").read_text() == ""
    assert not [name for name in os.listdir(dest) if name.startswith(".llbfs")]


def test_cp_never_leaves_dest_over_a_linked_folder(llbfs, tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    dest = tmp_path / "dest"
    dest.mkdir()
    os.symlink(outside, dest / "a")
    llbfs.error(8, "cp", tree, "/", dest)
    assert os.listdir(outside) == []


def test_cp_of_a_hostile_image_stays_inside(llbfs, tmp_path):
    """A link and, above it, a folder of that name with a file: the file belongs to the folder."""
    import estargz

    def tar(*members):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as t:
            for name, kind, more in members:
                info = tarfile.TarInfo(name)
                info.type = kind
                if kind == tarfile.SYMTYPE:
                    info.linkname = more
                    more = None
                info.size = len(more or b"")
                t.addfile(info, io.BytesIO(more or b""))
        return out.getvalue()

    layout = tmp_path / "layout"
    layout.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    estargz.write_layout(str(layout), [
        tar(("x", tarfile.SYMTYPE, str(outside)), ("y", tarfile.SYMTYPE, "..")),
        tar(("x/evil", tarfile.REGTYPE, b"evil"), ("y/evil", tarfile.REGTYPE, b"evil")),
    ])
    llbfs("cp", f"oci-layout://{layout}", "/", tmp_path / "copy")
    assert os.listdir(outside) == []
    assert sorted(os.listdir(tmp_path)) == ["copy", "layout", "outside", "store"]
    assert (tmp_path / "copy" / "x" / "evil").read_bytes() == b"evil"


# ---------------------------------------------------------------- diff and inspect

def test_diff_answers_no_with_code_1(llbfs, tree, tmp_path):
    other = tmp_path / "other"
    subprocess.run(["cp", "-a", tree, other], check=True)
    assert llbfs("diff", tree, other) == b""
    (other / "new").write_text("new")
    (other / "empty").write_text("changed")
    subprocess.run(["rm", "-r", other / "a" / "b"], check=True)
    lines = llbfs.text("diff", tree, other, code=1).splitlines()
    assert "A /new" in lines and "M /empty" in lines and "D /a/b" in lines
    assert {"kind": "A", "path": "/new"} in llbfs.json("diff", tree, other, code=1)


def test_diff_takes_merged_sides(llbfs, tree):
    merge = ["--merge", f"ref={tree}", "--merge", f"ref={tree},add=/again"]
    assert "A /again\n" in llbfs.text("diff", tree, *merge, code=1)
    assert "D /again\n" in llbfs.text("diff", *merge, tree, code=1)


def test_demo_image_is_what_umoci_unpacks(llbfs, tmp_path):
    subprocess.run(["umoci", "unpack", "--rootless", "--image", f"{TESTS}/data/demo:latest",
                    tmp_path / "bundle"], check=True, stderr=subprocess.DEVNULL)
    want = walk(tmp_path / "bundle" / "rootfs")
    want.pop("/stargz.index.json")
    got = comparable(llbfs.json("find", "--sha256", DEMO))
    for rows in (want, got):
        for row in rows.values():
            row.pop("xattrs", None)  # umoci's own
            if os.geteuid() != 0:
                row.pop("uid"), row.pop("gid")
    assert without_root(got) == without_root(want)


def test_layers_narrow_an_image(llbfs):
    assert llbfs.text("ls", "--layer", "3", DEMO) == "app\netc\nusr\n"
    digest = llbfs.json("inspect", DEMO)[0]["layers"][3]["digest"]
    assert llbfs.text("ls", "--layer", digest, DEMO) == "app\netc\nusr\n"
    assert llbfs.text("ls", "--layer", digest[7:20], DEMO) == "app\netc\nusr\n"
    assert "right" in llbfs.text("ls", "--layer", "0..2", DEMO, "/usr/share/zoneinfo").split()
    assert "right" not in llbfs.text("ls", DEMO, "/usr/share/zoneinfo").split()


def test_inspect_shows_what_a_ref_is_made_of(llbfs, tree):
    image = llbfs.json("inspect", DEMO)[0]
    assert image["kind"] == "image" and image["ref"] == DEMO and image["parts"] == []
    assert image["platform"] == "linux/amd64"
    assert [layer["format"] for layer in image["layers"]] == ["estargz"] * 4
    assert image["config"]["rootfs"]["diff_ids"] == [layer["diff_id"] for layer in image["layers"]]
    assert set(image["layers"][0]) >= {"digest", "diff_id", "media_type", "size", "format"}
    merge = llbfs.json("inspect", "--merge", f"ref={DEMO},trim=/usr,add=/u", "--merge", f"ref={tree}")[0]
    assert merge["kind"] == "merge" and len(merge["layers"]) == 5
    assert merge["parts"][0] == {"ref": DEMO, "trim": "/usr", "add": "/u"}
    assert llbfs.json("inspect", tree)[0]["kind"] == "dir"


def test_inspect_lists_the_vertices_of_a_definition(llbfs):
    row = llbfs.json("inspect", f"llb://{TESTS}/data/llb/merge-2.pb")[0]
    assert row["kind"] == "llb" and "unsolved" not in row
    assert [vertex["op"] for vertex in row["vertices"]] == ["file", "file", "merge"]
    digests = [vertex["digest"] for vertex in row["vertices"]]
    assert row["vertices"][2]["inputs"] == [f"{digest}:0" for digest in digests[:2]]


def test_inspect_shows_buildkits_cache_keys(llbfs):
    with open(f"{TESTS}/data/keys/digests.txt") as f:
        known = set(f.read().split())
    with open(f"{TESTS}/data/llb/diff-nonancestor.cache") as f:
        exported = {line.split()[1] for line in f if line.startswith("record")}
    vertices = llbfs.json("inspect", f"llb://{TESTS}/data/llb/diff-nonancestor.pb")[0]["vertices"]
    for vertex in vertices:
        assert set(vertex["cache_maps"]) <= known and len(vertex["cache_maps"]) == 1
        assert vertex["records"] == [{"output": 0, "digest": vertex["cache_key"]}]
        for what in vertex["ingredients"]:
            text = what["text"].encode()
            assert what["digest"] == "sha256:" + hashlib.sha256(text).hexdigest()
        assert "unknown" not in vertex
    assert {vertex["cache_key"] for vertex in vertices} == exported


def test_inspect_tells_what_of_an_input_is_hashed(llbfs):
    definition = f"llb://{TESTS}/data/llb/copy-include-exclude.pb"
    _, local, copy = llbfs.json("inspect", definition)[0]["vertices"]
    assert local["cache_key"] == local["cache_maps"][0] and local["cache_key"].startswith("random:")
    assert local["records"] == [{"output": 0, "digest": local["cache_key"]}]
    what = {"path": "/", "wildcard": False, "follow": False, "required": [],
            "include": ["src", "docs/*"], "exclude": ["**/*_test.go", "!src/test/lib_test.go"]}
    assert copy["contents"] == [None, [what]]  # the first is changed, so it counts as defined
    assert copy["selectors"] == [None, "sha256:" + hashlib.sha256(b"/").hexdigest()]


def test_inspect_says_why_a_key_is_unknown(llbfs):
    ref = f"llb://{TESTS}/data/llb/src-git.pb"
    branch = llbfs.json("inspect", "--offline", ref)[0]["vertices"][0]
    assert branch["cache_key"] is None and branch["cache_maps"] == []
    assert "offline" in branch["unknown"]


def test_inspect_says_what_cannot_be_solved(llbfs):
    row = llbfs.json("inspect", f"llb://{TESTS}/data/llb/exec-basic.pb")[0]
    assert row["kind"] == "llb" and "exec operations" in row["unsolved"]


def test_inspect_is_json_without_being_asked(llbfs):
    assert json.loads(llbfs("inspect", DEMO))["kind"] == "image"


@pytest.mark.parametrize("mode", ["auto", "plain", "tty", "rawjson", "quiet"])
def test_progress_is_not_on_stdout(llbfs, mode):
    assert llbfs("--progress", mode, "cat", DEMO, "/etc/hostname") == b"demo\n"
    if mode == "rawjson":
        for line in llbfs.stderr.splitlines():
            assert set(json.loads(line)) == {"vertexes", "statuses"}
    else:
        assert llbfs.stderr == ""
