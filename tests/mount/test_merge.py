# SPDX-License-Identifier: Apache-2.0
"""Merges: from the command line and from LLB definitions, with partitions, and very many.

What a merge must show is what umoci unpacks from one image that has the layers of all inputs, those
of a partition with their names rewritten.
"""
import io
import json
import os
import random
import tarfile
import time

import pytest

import images
import listing
import llb
from program import SLOW


def rewritten(plain, trim, add):
    """The tar of a layer as a partition sees it: trim first, then add. The trimmed folder itself
    becomes the folder where its content lands."""
    out = []
    with tarfile.open(fileobj=io.BytesIO(plain)) as t:
        for member in t:
            data = t.extractfile(member).read() if member.isreg() else None
            member.name = moved(member.name, trim.strip("/"), add.strip("/"))
            if member.name is None:
                continue
            if member.islnk():
                member.linkname = moved(member.linkname, trim.strip("/"), add.strip("/"))
            out.append((member, data))
    return images.tar(out)


def moved(name, trim, add):
    if trim and name != trim and not name.startswith(trim + "/"):
        return None
    name = name[len(trim):].lstrip("/") if trim else name
    return "/".join(part for part in (add, name) if part) or "."


class Input:
    """An image in a layout of its own, its tars kept."""

    def __init__(self, path, *layers):
        self.tars = [images.tar(entries) for entries in layers]
        self.layout = images.Layout(path).image([images.encoded(t) for t in self.tars])
        self.ref = self.layout.ref

    def merge_arg(self, trim="", add=""):
        arg = f"ref={self.ref}"
        return arg + (f",trim={trim}" if trim else "") + (f",add={add}" if add else "")


def oracle(work, *parts):
    """What a merge of (input, trim, add) must show. Made-up parents are the lowest layer: they
    override nothing. (So @add must not be the path of an input's file.)"""
    name = f"{work}/oracle-{len(os.listdir(work))}"
    made_up = [images.entry(f"{add[:i].strip('/')}/", mtime=0)
               for _, _, add in parts for i in range(1, len(add) + 1)
               if i == len(add) or add[i] == "/"]
    tars = [images.tar([e for e in made_up if e[0].name])] if made_up else []
    for one, trim, add in parts:
        tars += [rewritten(t, trim, add) for t in one.tars]
    layout = images.Layout(name).image([images.encoded(t) for t in tars])
    return listing.of_dir(images.umoci_unpack(layout.path, f"{name}-unpacked"))


@pytest.fixture
def pair(work):
    e, s, h = images.entry, images.symlink, images.hardlink
    a = Input(f"{work}/a",
              [e("etc/"), e("etc/passwd", b"root"), e("opt/", mode=0o700), e("opt/mine", b"A"),
               e("opt/gone", b"A"), e("opt/doc/"), e("opt/doc/old", b"A"), e("opt/man/"),
               e("opt/man/old", b"A"), e("usr/"), e("usr/share/"), e("usr/share/a", b"A")])
    b = Input(f"{work}/b",
              [e("etc/"), e("usr/"), e("usr/bin/"), e("usr/bin/tool", b"B"),
               e("usr/share/", mode=0o711),
               e("usr/share/doc/", uid=3), e("usr/share/doc/new", b"B"), e("usr/share/x", b"1"),
               h("usr/share/y", "usr/share/x"), s("usr/share/l", "doc"), e("usr/share/man/")],
              [e("usr/share/x", b"2"), e("usr/share/.wh.gone"), e("etc/.wh.passwd"),
               e("usr/share/man/"), e("usr/share/man/.wh..wh..opq"),
               e("usr/share/man/new", b"B", xattrs={"user.k": b"v"})])
    return a, b


def test_trim_and_add_show_exactly_that(llbfs, work, pair):
    a, b = pair
    args = ["--merge", a.merge_arg(), "--merge", b.merge_arg("/usr/share", "/opt")]
    expected = oracle(work, (a, "", ""), (b, "/usr/share", "/opt"))
    with llbfs.mount(*args) as m:
        got = listing.of_dir(m.path)
    listing.assert_equal(expected, got)
    assert got["/opt"]["mode"] == 0o711  # that of /usr/share, which is /opt now
    assert sorted(p for p in got if p.startswith("/opt/")) == [
        "/opt/doc", "/opt/doc/new", "/opt/doc/old", "/opt/l", "/opt/man", "/opt/man/new",
        "/opt/mine", "/opt/x", "/opt/y"]
    assert "/etc/passwd" in got and "/usr/bin" not in got
    listing.assert_equal(
        expected, listing.of_rows(llbfs.run("find", "--sha256", "--format", "json", *args).stdout))
    tar = listing.of_tar(llbfs.run("tar", *args).stdout)
    tar.setdefault("/", expected["/"])
    listing.assert_equal(expected, tar)


@pytest.mark.parametrize("trim, add", [
    ("", "/deep/er/place"), ("/usr", ""), ("/usr/share/", "/"), ("/usr/share", "/usr"),
    ("//usr//share/.", "/opt/./")])
def test_partitions(llbfs, work, pair, trim, add):
    a, b = pair
    clean_trim, clean_add = os.path.normpath(f"/./{trim}"), os.path.normpath(f"/./{add}")
    for parts in ((a, b), (b,)):
        args = ["--merge", a.merge_arg()] if len(parts) == 2 else []
        args += ["--merge", b.merge_arg(trim, add)]
        expected = oracle(work, *[(a, "", "")] * (len(parts) - 1),
                          (b, clean_trim.strip("/"), clean_add.rstrip("/")))
        with llbfs.mount(*args) as m:
            listing.assert_equal(expected, listing.of_dir(m.path))


def test_made_up_parents_are_plain(llbfs, work, pair):
    with llbfs.mount("--merge", pair[0].merge_arg(add="/x/y")) as m:
        for path in ("x", "x/y"):
            assert listing.of_file(m / path)[0] == {"type": "dir", "mode": 0o755, "uid": 0,
                                                    "gid": 0, "mtime": 0}


@pytest.mark.parametrize("arg, code, word", [
    ("trim=/usr/missing", 3, "/usr/missing"), ("trim=/usr/share/x", 3, "/usr/share/x"),
    ("trim=usr", 2, "absolute"), ("trim=/usr/../etc", 2, ".."), ("add=/a/../../b", 2, ".."),
    ("add=/a,add=/b", 2, "twice"),
    ("colour=red", 2, "colour")])
def test_partition_that_makes_no_sense(llbfs, pair, arg, code, word):
    done = llbfs.run("ls", "--merge", f"ref={pair[1].ref},{arg}", code=code)
    assert done.stderr.count(b"\n") == 1 and word.encode() in done.stderr and not done.stdout
    m = llbfs.start_mount("--merge", f"ref={pair[1].ref},{arg}")
    assert not m.wait_ready() and m.join() == code


def test_trim_follows_symlinks_inside_the_input(llbfs, work):
    one = Input(f"{work}/i", [images.entry("real/"), images.entry("real/f", b"x"),
                              images.symlink("abs", "/real"), images.symlink("up", "../../abs")])
    for trim in ("/abs", "/up"):
        assert llbfs.run("cat", "--merge", one.merge_arg(trim, "/q"), "/q/f").stdout == b"x"


def test_words_merge_in_the_order_typed(llbfs, work):
    refs = [Input(f"{work}/{i}", [images.entry("who", b"%d" % i)]).ref for i in range(3)]
    orders = {b"2": [refs[0], refs[1], refs[2]],
              b"0": ["--merge", f"ref={refs[2]}", refs[1], "--merge", f"ref={refs[0]}"],
              b"1": ["--merge", f"ref={refs[0]}", "--merge", f"ref={refs[1]}"]}
    for wins, words in orders.items():
        with llbfs.mount(*words) as m:
            with open(m / "who", "rb") as f:
                assert f.read() == wins


def test_quotes_as_in_csv(llbfs, work):
    one = Input(f"{work}/with,comma", [images.entry("f", b"x")])
    assert llbfs.run("cat", "--merge", f'"ref={one.ref}",add=/p', "/p/f").stdout == b"x"


def test_whiteouts_of_an_image_hide_what_a_folder_has(llbfs, work):
    os.makedirs(f"{work}/host/d")
    for name in ("a", "b", "d/c"):
        with open(f"{work}/host/{name}", "w") as f:
            f.write("host")
    e = images.entry
    image = Input(f"{work}/i", [e(".wh.a"), e("d/"), e("d/.wh..wh..opq"), e("d/new", b"image")])
    with llbfs.mount(f"{work}/host", "--merge", image.merge_arg()) as m:
        assert sorted(os.listdir(m.path)) == ["b", "d"]
        assert os.listdir(m / "d") == ["new"]
        with open(f"{work}/host/later", "w") as f:
            f.write("host")
        assert os.path.exists(m / "later")


# --- random ---

NAMES = ["a", "b", "c", "dir"]


def random_layer(rng, serial):
    """Sane layers, as builders write them: parents first, nothing twice."""
    entries, folders = {}, [""]
    for _ in range(rng.randrange(4, 14)):
        folder = rng.choice(folders)
        path = folder + rng.choice(NAMES)
        if path in entries:
            continue
        kind = rng.randrange(10)
        if kind < 4:
            entries[path] = images.entry(path + "/", mode=rng.choice([0o755, 0o700, 0o1777]),
                                         uid=rng.randrange(3), mtime=rng.randrange(2**31))
            folders.append(path + "/")
        elif kind < 7:
            entries[path] = images.entry(path, b"%d %d" % (serial, rng.randrange(99)),
                                         xattrs={"user.n": b"%d" % serial})
        elif kind < 8:
            entries[path] = images.symlink(path, rng.choice(NAMES))
        elif kind < 9:
            whiteout = f"{folder}.wh.{rng.choice(NAMES)}"
            if whiteout.replace(".wh.", "") not in entries:
                entries[whiteout.replace(".wh.", "")] = images.entry(whiteout)
        elif folder and folder + ".wh..wh..opq" not in entries:
            entries[folder + ".wh..wh..opq"] = images.entry(folder + ".wh..wh..opq")
    return list(entries.values())


@pytest.mark.parametrize("seed", range(12))
def test_random_merge_equals_one_image_of_all_layers(llbfs, work, seed):
    print(f"seed {seed}")
    rng = random.Random(seed)
    parts = []
    for i in range(rng.randrange(2, 5)):
        layers = [[images.entry("dir/"), *(e for e in random_layer(rng, 10 * i + k)
                                           if e[0].name != "dir" and e[0].name != ".wh.dir")]
                  for k in range(rng.randrange(1, 4))]
        one = Input(f"{work}/{i}", *layers)
        parts.append((one, rng.choice(["", "", "/dir"]), rng.choice(["", "", "/put", "/put/in"])))
    args = [w for one, trim, add in parts for w in ("--merge", one.merge_arg(trim, add))]
    expected = oracle(work, *parts)
    with llbfs.mount(*args) as m:
        listing.assert_equal(expected, listing.of_dir(m.path))


# --- definitions ---

def test_definition_with_partitions_equals_the_command_line(llbfs, work, serve, pair):
    a, b = pair
    r = serve({"a": a.layout.path, "b": b.layout.path})
    ops = [llb.source(f"docker-image://{r.host}/{name}:latest") for name in "ab"]
    merged = llb.merge(ops[0], (ops[1], "/usr/share", "/opt"))
    with open(f"{work}/def.pb", "wb") as f:
        f.write(llb.definition(*ops, merged))
    expected = oracle(work, (a, "", ""), (b, "/usr/share", "/opt"))
    ref = f"llb://{work}/def.pb"
    with llbfs.mount(ref) as m:
        listing.assert_equal(expected, listing.of_dir(m.path))
    # one vertex of it, by a prefix of its digest; and by its number of output
    digest = images.digest(ops[1])
    for name in (f"{ref}#{digest}", f"{ref}#{digest[7:13]}", f"{ref}#{digest}:0"):
        assert llbfs.run("cat", name, "/usr/bin/tool").stdout == b"B"
    assert llbfs.run("ls", f"{ref}#ffffffff", code=3).stderr.count(b"\n") == 1
    vertices = json.loads(llbfs.run("inspect", ref).stdout)["vertices"]
    assert [v["op"] for v in vertices[:3]] == ["source", "source", "merge"]
    assert vertices[2]["digest"] == images.digest(merged)
    assert vertices[2]["inputs"] == [f"{images.digest(op)}:0" for op in ops]
    with open(f"{work}/def.pb", "rb") as f:
        assert llbfs.run("cat", "llb://-", "/opt/x", stdin=f.read()).stdout == b"2"


def test_merges_of_merges_are_one(llbfs, work, serve):
    """Whiteouts of an inner merge hide what lies below the outer one."""
    e = images.entry
    inputs = [Input(f"{work}/{i}", entries) for i, entries in enumerate((
        [e("d/"), e("d/low", b"0"), e("gone", b"0"), e("f", b"0")],
        [e("d/"), e("d/mid", b"1"), e("f", b"1")],
        [e(".wh.gone"), e("d/"), e("d/.wh..wh..opq"), e("d/top", b"2")]))]
    r = serve({str(i): one.layout.path for i, one in enumerate(inputs)})
    ops = [llb.source(f"docker-image://{r.host}/{i}:latest") for i in range(3)]
    inner_right, inner_left = llb.merge(ops[1], ops[2]), llb.merge(ops[0], ops[1])
    trees = []
    for last in (llb.merge(*ops), llb.merge(ops[0], inner_right), llb.merge(inner_left, ops[2])):
        with open(f"{work}/def.pb", "wb") as f:
            f.write(llb.definition(*ops, inner_left, inner_right, last))
        rows = llbfs.run("find", "--sha256", "--format", "json", f"llb://{work}/def.pb").stdout
        trees.append(listing.of_rows(rows))
    expected = oracle(work, *((one, "", "") for one in inputs))
    for got in trees:
        listing.assert_equal(expected, got)


def test_layout_source_of_a_definition(llbfs, work, pair):
    digest = pair[0].layout.manifests[0]["digest"]
    op = llb.source(f"oci-layout://not/real@{digest}", {"oci.store": "mine"})
    with open(f"{work}/def.pb", "wb") as f:
        f.write(llb.definition(op))
    args = ["--oci-layout", f"mine={pair[0].layout.path}", f"llb://{work}/def.pb"]
    done = llbfs.run("ls", args[2], code=None)
    assert done.returncode > 1 and b"mine" in done.stderr and done.stderr.count(b"\n") == 1
    assert llbfs.run("cat", *args, "/etc/passwd").stdout == b"root"
    # What the digest names is kept: where it came from need not be said again.
    assert llbfs.run("ls", args[2]).stdout == b"etc\nopt\nusr\n"


def test_definition_that_was_changed_is_refused(llbfs, work):
    op = llb.source("docker-image://127.0.0.1:1/a:latest")
    good = llb.definition(op, llb.merge(op, op))
    for name, data, code in (("cut", good[:-3], 6), ("text", b"hello", 6),
                             ("digest", good.replace(b"127.0.0.1", b"127.0.0.2"), 6)):
        with open(f"{work}/{name}", "wb") as f:
            f.write(data)
        done = llbfs.run("ls", f"llb://{work}/{name}", code=code)
        assert done.stderr.count(b"\n") == 1


# --- many ---

def test_ten_thousand_folders(llbfs, work):
    n = 10_000
    args = []
    for i in range(n):
        os.makedirs(f"{work}/in/{i}/shared")
        for name in (f"shared/f{i}", f"own{i}", "top"):
            with open(f"{work}/in/{i}/{name}", "w") as f:
                f.write(str(i))
        args += ["--merge", f"ref={work}/in/{i}"]
    llbfs.run("ls", f"{work}/in/0")  # makes the store
    start = time.monotonic()
    with llbfs.mount(*args) as m:
        seconds = time.monotonic() - start
        names = os.listdir(m.path)
        listed = time.monotonic() - start
        print(f"{n} folders: mounted in {seconds:.3f} s, listed after {listed:.3f} s")
        assert sorted(names) == sorted([f"own{i}" for i in range(n)] + ["shared", "top"])
        assert sorted(os.listdir(m / "shared")) == sorted(f"f{i}" for i in range(n))
        with open(m / "top") as f:
            assert f.read() == str(n - 1)
        for i in random.Random(1).sample(range(n), 100):
            for name in (f"own{i}", f"shared/f{i}"):
                with open(m / name) as f:
                    assert f.read() == str(i)
        assert not os.path.exists(m / "shared/none")
        assert m.status()["errors"] == []
    assert seconds < 1 * SLOW


def test_more_images_than_the_kernels_overlay_can_stack(llbfs, work):
    layout = images.Layout(f"{work}/many")
    n = 600
    for i in range(n):
        layout.image([images.estargz_layer(images.tar([
            images.entry("d/"), images.entry(f"d/f{i}", b"%d" % i), images.entry("top", b"%d" % i),
            images.entry(f"d/.wh.f{i - 1}" if i % 100 == 50 else f"x{i}")]))], f"t{i}")
    args = [f"{layout.ref}:t{i}" for i in range(n)]
    with llbfs.mount(*args) as m:
        left = {f"f{i}" for i in range(n)} - {f"f{i - 1}" for i in range(n) if i % 100 == 50}
        assert set(os.listdir(m / "d")) == left
        with open(m / "top", "rb") as f:
            assert f.read() == b"%d" % (n - 1)
