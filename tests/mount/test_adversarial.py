# SPDX-License-Identifier: Apache-2.0
"""Tars that no decent builder writes, against umoci's unpacking of the same image.

The truth is that of an unpacker with an overlay under it: a layer never follows what lies in lower
layers, and its whiteouts act on lower layers only. umoci unpacks everything into one folder and
differs in places. Each is listed in DIFFERENCES with the case that shows it; random layers avoid
exactly those.
"""
import random
import tarfile

import pytest

import images
import listing
from images import device, entry, hardlink, symlink

SEEDS = range(100)


def image(work, *layers, how="gzip-1", form=tarfile.PAX_FORMAT, name="image"):
    tars = [layer if isinstance(layer, bytes) else images.tar(layer, form) for layer in layers]
    make = images.estargz_layer if how == "estargz" else images.encoded_as(how)
    return images.Layout(f"{work}/{name}").image([make(t) for t in tars])


def tree(llbfs, layout):
    """By mount and by find, which must agree."""
    with llbfs.mount(layout.ref) as m:
        mounted = listing.of_dir(m.path)
    rows = llbfs.run("find", "--sha256", "--format", "json", layout.ref).stdout
    listing.assert_equal(mounted, listing.of_rows(rows))
    return mounted


def unpacked(work, layout):
    return listing.of_dir(images.umoci_unpack(layout.path, f"{work}/unpacked"))


# --- random layers ---

NAMES = [b"a", b"b", b"c", b"caf\xc3\xa9", b"\xff\xfe", b"new\nline", b"tab\t\"quote\"", b"x" * 120,
         b".hidden", b"..dots", b" space ", b"-dash", b"wh", b"long" * 60]


class Maker:
    """One random layer. Keeps track of what is where, to stay clear of umoci's own differences:
    entries below symlinks, whiteouts of what the layer has itself, links to links."""

    def __init__(self, rng, serial, below):
        self.rng, self.serial = rng, serial
        self.below = below  # {path: kind} of the layers below
        self.kinds = {}  # of this layer
        self.others = set()  # paths that were something else than a folder in this layer
        self.entries = []

    def name(self):
        return self.rng.choice(NAMES).decode("utf-8", "surrogateescape")

    def folder(self):
        folders = sorted(p for p, k in self.kinds.items() if k == "dir")
        return self.rng.choice(["", *folders, *folders])

    def attributes(self):
        rng = self.rng
        late = rng.randrange(2**31)
        more = {"mode": rng.choice([0o644, 0o600, 0o4755, 0o2711, 0o1777, 0o7777, 0]),
                "uid": rng.choice([0, 1000, 3_000_000, 2**31 - 1]), "gid": rng.randrange(3),
                "mtime": rng.choice([0, 1, late, late + 0.5, 2**33])}
        if rng.random() < 0.2:
            # "user." is for files and folders, everywhere else the kernel refuses it
            key = "security.k%d" % rng.randrange(3)
            more["xattrs"] = {key: rng.randbytes(rng.randrange(1, 60))}
        return more

    def forget(self, path):
        for p in [p for p in self.kinds if p == path or p.startswith(path + "/")]:
            del self.kinds[p]

    def add(self, path, kind):
        if kind == "dir" and path in self.others and path in self.below:
            kind = "file"
        if kind != "dir":
            self.others.add(path)
        if not (kind == "dir" and self.kinds.get(path) == "dir"):
            self.forget(path)
        self.kinds[path] = kind
        more = self.attributes()
        if kind == "dir":
            self.entries.append(entry(path + "/", **more))
        elif kind == "file":
            size = self.rng.choice([0, 1, 511, 512, 513, 5000, 70_000])
            self.entries.append(entry(path, self.rng.randbytes(size), **more))
        elif kind == "link":
            more.pop("xattrs", None)
            self.entries.append(symlink(path, self.rng.choice(["a", "/b", "../c", "no/where", "."]),
                                        **{**more, "mode": 0o777}))
        elif kind == "device":
            self.entries.append(device(path, 1, self.rng.randrange(3, 9), **more))
        elif kind == "fifo":
            self.entries.append(entry(path, kind=tarfile.FIFOTYPE, **more))

    def step(self):
        rng, folder = self.rng, self.folder()
        path = f"{folder}/{self.name()}" if folder else self.name()
        action = rng.randrange(20)
        if action < 6:
            self.add(path, "dir")
        elif action < 12:
            self.add(path, "file")
        elif action < 14:
            self.add(path, rng.choice(["link", "device", "fifo"]))
        elif action < 16:
            self.hard_link(path)
        elif action < 18:
            self.whiteout(path)
        elif self.kinds:  # once more what is there already, as the same or as something else
            self.add(rng.choice(sorted(self.kinds)), rng.choice(["dir", "file", "file"]))

    def hard_link(self, path):
        files = sorted(p for p, k in self.kinds.items() if k == "file" and p != path
                       and not p.startswith(path + "/"))
        if not files:
            return
        target = self.rng.choice(files)
        self.forget(path)
        self.kinds[path] = "file"
        self.others.add(path)
        info = next(e[0] for e in reversed(self.entries) if e[0].name == target)
        # the link's own attributes would become the file's: give it the same
        more = {k: getattr(info, k) for k in ("mode", "uid", "gid", "mtime")}
        one = hardlink(path, self.rng.choice([target, "./" + target, "/" + target]), **more)
        one[0].pax_headers = dict(info.pax_headers)
        self.entries.append(one)

    def whiteout(self, path):
        name = path.rsplit("/", 1)[-1]
        if path in self.kinds or len(name.encode("utf-8", "surrogateescape")) > 200:
            return
        self.whited = getattr(self, "whited", set()) | {path}
        self.entries.append(entry(path[:len(path) - len(name)] + ".wh." + name))

    def make(self, n):
        for _ in range(n):
            self.step()
            if self.rng.random() < 0.05 and (folder := self.folder()):
                if not self.opaque_would_differ(folder):
                    self.entries.insert(self.index_of(folder) + 1,
                                        entry(folder + "/.wh..wh..opq"))
        whited = getattr(self, "whited", set())
        # a whiteout and the same name in one layer: see the known differences
        keep = {f".wh.{p.rsplit('/', 1)[-1]}" for p in whited if p in self.kinds}
        self.entries = [e for e in self.entries
                        if e[0].name.rsplit("/", 1)[-1] not in keep]
        return self.entries

    def index_of(self, folder):
        return max(i for i, e in enumerate(self.entries) if e[0].name == folder)

    def opaque_would_differ(self, folder):
        return any(p.startswith(folder + "/") for p in self.kinds) or self.index_of(folder) < 0


@pytest.mark.parametrize("seed", SEEDS)
def test_random_layers_equal_umoci(llbfs, work, seed):
    print(f"seed {seed}")
    rng = random.Random(seed)
    below, layers = {}, []
    for serial in range(rng.randrange(1, 4)):
        maker = Maker(rng, serial, below)
        layers.append(maker.make(rng.randrange(5, 50)))
        below.update(maker.kinds)
    form = rng.choice([tarfile.PAX_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    if form == tarfile.GNU_FORMAT:
        for layer in layers:
            for info, _ in layer:
                info.pax_headers, info.mtime = {}, int(info.mtime)
    layout = image(work, *layers, how=rng.choice(["gzip-1", "zstd-1", "tar", "gzip-tiny-members"]),
                   form=form)
    twin = image(work, *layers, form=form, name="twin")
    listing.assert_equal(unpacked(work, twin), tree(llbfs, layout))


# --- cases by hand ---

e, d, s, h = entry, device, symlink, hardlink

SAME = {
    "file, then folder, then file": [[e("a", b"1"), e("a/"), e("a/b", b"2"), e("a", b"3")]],
    "folder twice keeps its content": [[e("a/", mode=0o700), e("a/b", b"x"), e("a/", mode=0o711)]],
    "folder over a lower file": [[e("a", b"1")], [e("a/"), e("a/b", b"2")]],
    "file over a lower folder": [[e("a/"), e("a/b", b"1")], [e("a", b"2")]],
    "link to what is replaced later": [[e("a", b"old"), h("l", "a"), e("a", b"new")]],
    "link to a link": [[e("a", b"x"), h("b", "a"), h("c", "b"), h("d", "c")]],
    "link over its own target's name": [[e("a", b"x"), h("b", "a"), e("b", b"y"), h("c", "a")]],
    "link to a symlink": [[s("a", "nowhere"), h("b", "a")]],
    "link to a device": [[d("a", 1, 5), h("b", "a")]],
    "link replaces a folder": [[e("f", b"x"), e("a/"), e("a/b", b"y"), h("a", "f")]],
    "links over layers": [[e("a", b"x"), h("b", "a")], [e("a", b"y")]],
    "parent is a symlink of the same layer": [[e("real/"), s("l", "real"), e("l/f", b"x")]],
    "parent is an absolute symlink": [[e("real/"), s("l", "/real"), e("l/f", b"x")]],
    "parent is a symlink that climbs out": [[e("real/"), s("l", "../../../real"), e("l/f", b"x")]],
    "parent is a chain of symlinks": [[e("r/"), s("a", "r"), s("b", "a"), e("b/f", b"x")]],
    "names that climb out": [[e("../../up", b"x"), e("a/"), e("a/../b", b"y"), e("/abs", b"z")]],
    "names with dots": [[e("./a/"), e("./a/./b", b"x"), e("a//c", b"y")]],
    "whiteouts of files, folders, links": [
        [e("f", b"x"), e("d/"), e("d/g", b"x"), s("l", "f"), e("keep", b"x")],
        [e(".wh.f"), e(".wh.d"), e(".wh.l"), e(".wh.none")]],
    "whiteout of one of two names": [[e("a", b"x"), h("b", "a")], [e(".wh.a")]],
    "whiteout, and back in a third layer": [[e("a/"), e("a/b", b"1")], [e(".wh.a")],
                                            [e("a/"), e("a/c", b"2")]],
    "opaque folder": [[e("a/"), e("a/b", b"1"), e("a/c/"), e("a/c/d", b"1")],
                      [e("a/"), e("a/.wh..wh..opq"), e("a/e", b"2")]],
    "opaque mark after the content": [[e("a/"), e("a/b", b"1")],
                                      [e("a/"), e("a/e", b"2"), e("a/.wh..wh..opq")]],
    "a whiteout with content": [[e("a", b"1"), e("b", b"1")], [e(".wh.a", b"not empty")]],
    "sticky, setuid and no mode at all": [[e("a", b"", mode=0), e("b", b"", mode=0o7777),
                                           e("c/", mode=0o7000)]],
    "large ids": [[e("a", b"x", uid=2**31, gid=2**32 - 2)]],
    "long names and targets": [[e("n" * 255, b"x"), e("p/" * 30 + "q" * 200, b"y"),
                                s("l", "t" * 4000), h("h", "p/" * 30 + "q" * 200)][1:]],
    "parent that only a lower layer names": [[e("a/", mode=0o710, uid=3)], [e("a/f", b"x")]],
    "empty layers": [[], [e("a", b"x")], []],
}


@pytest.mark.parametrize("case", SAME)
def test_case_equals_umoci(llbfs, work, case):
    layout = image(work, *SAME[case])
    got, expected = tree(llbfs, layout), unpacked(work, layout)
    for path in made_up(SAME[case]):  # of these umoci takes the time of unpacking
        got[path]["mtime"] = expected[path]["mtime"] = 0
    listing.assert_equal(expected, got)


def made_up(layers):
    """Folders that no entry names, but that something lies in."""
    return {"/" + "/".join(info.name.split("/")[:i])
            for layer in layers for info, _ in layer if info.name.startswith("p/")
            for i in range(1, info.name.count("/") + 1)}


# case: (layers, what llbfs shows: {path: type or content}, why umoci differs; None: it does not)
DIFFERENCES = {
    "parent is a symlink of a lower layer": (
        [[e("usr/"), s("lib", "usr")], [e("lib/f", b"x")]],
        {"/usr": "dir", "/lib": "dir", "/lib/f": b"x"},
        "umoci follows the link, as it unpacks into one folder; an overlay's layer cannot see it"),
    "file, then folder, over a lower folder": (
        [[e("a/"), e("a/low", b"1")], [e("a", b"2"), e("a/"), e("a/up", b"2")]],
        {"/a": "dir", "/a/low": b"1", "/a/up": b"2"},
        "umoci's file removes the lower folder; in an overlay it was only ever above it"),
    "whiteout in a folder that is not there": (
        [[e("f", b"x")], [e("a/.wh.b")]],
        {"/f": b"x", "/a": "dir"},
        "an overlay's layer needs the folder to hold the whiteout"),
    "whiteout, then a folder of that name": (
        [[e("a/"), e("a/low", b"1")], [e(".wh.a"), e("a/"), e("a/up", b"2")]],
        {"/a": "dir", "/a/up": b"2"}, None),
    "folder, then a whiteout of that name": (
        [[e("a/"), e("a/low", b"1")], [e("a/"), e("a/up", b"2"), e(".wh.a")]],
        {"/a": "dir", "/a/up": b"2"},
        "umoci removes the lower content in the end, which changes the folder's time"),
    "file and a whiteout of that name": (
        [[e("a", b"1")], [e("a", b"2"), e(".wh.a")]], {"/a": b"2"}, None),
    "housekeeping of another union file system": (
        [[e(".wh..wh.plnk/"), e(".wh..wh.aufs", b""), e("a", b"x")]], {"/a": b"x"}, None),
    "link to a file of a lower layer": (
        [[e("a", b"x")], [e("b", b"y"), h("c", "a")]], None,
        "umoci has it in the same folder; a layer of an overlay has not"),
    "entry below a file": (
        [[e("a", b"x"), e("a/b", b"y")]], None, None),
    "device 0:0": (
        [[d("a", 0, 0), e("b", b"x")]], {"/b": b"x"},
        "to an overlay that device is a whiteout"),
    "name that is too long": (
        [[e("n" * 256, b"x"), e("b", b"x")]], {"/b": b"x"}, "no unpacker can make it: umoci fails"),
    "the root's own entry": (
        [[e("./", mode=0o700, uid=5), e("b", b"x")]], {"/b": b"x"},
        "an overlay's root is not the layers'"),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_known_difference_of_umoci(llbfs, work, case):
    layers, expected, why = DIFFERENCES[case]
    layout = image(work, *layers)
    if expected is None:  # not an image at all
        done = llbfs.run("find", layout.ref, code=6)
        assert not done.stdout and done.stderr.count(b"\n") == 1
        return
    got = tree(llbfs, layout)
    shown = {}
    for path, facts in got.items():
        if path != "/":
            shown[path] = facts["type"]
        if facts["type"] == "reg":
            shown[path] = llbfs.run("cat", layout.ref, path).stdout
    assert shown == expected
    assert got["/"]["mode"] == 0o755 and got["/"]["uid"] == 0
    # and it is a difference indeed: else it belongs into SAME
    try:
        other = unpacked(work, layout)
    except AssertionError:
        other = {}
    assert bool(why) == bool(listing.differences(other, got)), listing.differences(other, got)


def test_link_gives_its_attributes_to_the_inode(llbfs, work):
    """As containerd does, which applies each header to what it has made; umoci ignores them."""
    layout = image(work, [e("a", b"x"), h("b", "a", mode=0o600, uid=7, mtime=5)])
    got = tree(llbfs, layout)
    assert got["/a"] == got["/b"] and (got["/a"]["mode"], got["/a"]["uid"]) == (0o600, 7)
    assert got["/a"]["mtime"] == 5 * listing.SECOND and got["/a"]["group"] == "/a"
