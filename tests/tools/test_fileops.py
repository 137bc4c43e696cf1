# SPDX-License-Identifier: Apache-2.0
"""File operations, diffs, merges and builds around the cases that tests/golden has from BuildKit.

Nobody recorded these. What is expected follows from what the recorded ones show, and from how
BuildKit's copier resolves paths, matches and sets metadata, which the files solver/op_*.c, copy.c
and file_mode.c tell in words.
"""
import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile

import pytest

from test_llb import (TIME, action, by_id, by_name, copy, ctx, diff, file_op, local,  # noqa: F401
                      merge, mkdir, mkfile, number, owner, rm, solve, symlink)
from llb import definition, field, op_input

SECONDS = TIME / 1e9


def chain(*actions, inputs=()):
    """One op of actions that go on from each other; the first begins with input 0, or scratch."""
    n, last = len(inputs), len(actions) - 1
    made = [make(input=(0 if n else -1) if i == 0 else n + i - 1, output=0 if i == last else -1)
            for i, make in enumerate(actions)]
    return file_op(*made, inputs=inputs)


def do(make, *args, **more):
    return lambda **where: make(*args, **more, **where)


# d/{a,b}, f (suid, sgid), l -> d, abs -> /d, gone -> nowhere, up -> ../../f, loop -> loop
BASE = chain(do(mkdir, "/d"), do(mkfile, "/d/a", b"a"), do(mkfile, "/d/b", b"b", 0o600),
             do(mkfile, "/f", b"f"), do(symlink, "d", "/l"), do(symlink, "/d", "/abs"),
             do(symlink, "nowhere", "/gone"), do(symlink, "../../f", "/up"),
             do(symlink, "loop", "/loop"))
NAMES = ["/abs", "/d", "/d/a", "/d/b", "/f", "/gone", "/l", "/loop", "/up"]

MADE = [  # what is done to BASE, what is new
    ("mkdir through a link", do(mkdir, "/l/x"), ["/d/x"]),
    ("mkdir through an absolute link", do(mkdir, "/abs/x"), ["/d/x"]),
    ("mkdir where a link points to nothing", do(mkdir, "/gone"), ["/nowhere"]),
    ("mkdir above the root", do(mkdir, "/../../x"), ["/x"]),
    ("mkdir without a slash in front", do(mkdir, "x"), ["/x"]),
    ("mkdir of what is there", do(mkdir, "/d"), []),
    ("mkdir where a file is", do(mkdir, "/f"), []),
    ("mkdir -p through a link", do(mkdir, "/l/x/y", parents=True), ["/d/x", "/d/x/y"]),
    ("mkdir -p where a link points to nothing", do(mkdir, "/gone/x", parents=True),
     ["/nowhere", "/nowhere/x"]),
    ("mkdir -p of what is there", do(mkdir, "/l", parents=True), []),
    ("mkfile where a link points to nothing", do(mkfile, "/gone"), ["/nowhere"]),
    ("mkfile through links", do(mkfile, "/abs/../l/x"), ["/d/x"]),
    ("mkfile over what a link above the root means", do(mkfile, "/up", b"f"), []),
    ("symlink through a link", do(symlink, "t", "/l/x"), ["/d/x"]),
    ("symlink where a link points to nothing", do(symlink, "t", "/gone"), ["/nowhere"]),
]


@pytest.mark.parametrize("make,new", [row[1:] for row in MADE], ids=[row[0] for row in MADE])
def test_made(solve, make, new):
    assert sorted(solve(BASE, chain(make, inputs=[BASE]))) == sorted(NAMES + new)


REFUSED = [
    ("mkdir in nothing", do(mkdir, "/no/x"), 3),
    ("mkdir below a file", do(mkdir, "/f/x"), 3),
    ("mkdir -p over a file", do(mkdir, "/f/x", parents=True), 3),
    ("mkdir -p of a file", do(mkdir, "/f", parents=True), 3),
    ("mkdir on a loop", do(mkdir, "/loop/x"), 8),
    ("mkfile on a folder", do(mkfile, "/d"), 8),
    ("mkfile on a folder by a link", do(mkfile, "/l"), 8),
    ("symlink over a file", do(symlink, "t", "/f"), 8),
    ("symlink over a folder", do(symlink, "t", "/d"), 8),
    ("symlink over a link to something", do(symlink, "t", "/l"), 8),
    ("symlink to nothing", do(symlink, "", "/x"), 3),
    ("rm of nothing", do(rm, "/no"), 3),
    ("rm below nothing", do(rm, "/no/x"), 3),
    ("rm below a file", do(rm, "/f/x"), 3),
    ("rm of a link to nothing", do(rm, "/gone"), 3),
    ("rm of a link to an absolute path", do(rm, "/abs"), 3),
    ("rm of the root by dots", do(rm, "/d/.."), 8),
    ("rm of the root, allowed", do(rm, "/", missing_ok=True), 8),
]


@pytest.mark.parametrize("make,code", [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(solve, make, code):
    assert "vertex sha256:" in solve(BASE, chain(make, inputs=[BASE]), code=code)


REMOVED = [
    ("a folder that is not empty", do(rm, "/d"), ["/d", "/d/a", "/d/b"]),
    ("through a link", do(rm, "/l/a"), ["/d/a"]),
    ("through an absolute link", do(rm, "/abs/a"), ["/d/a"]),
    ("a link and not what it means", do(rm, "/l"), ["/l"]),
    ("a link that leads above the root", do(rm, "/up", missing_ok=True), ["/up"]),
    ("a link to nothing, allowed", do(rm, "/gone", missing_ok=True), ["/gone"]),
    ("a link to an absolute path, allowed", do(rm, "/abs", missing_ok=True), ["/abs"]),
    ("a loop, allowed", do(rm, "/loop", missing_ok=True), ["/loop"]),
    ("nothing, allowed", do(rm, "/no/x", missing_ok=True), []),
    ("with dots", do(rm, "/d/./x/../a"), ["/d/a"]),
    ("a slash at the end", do(rm, "/d/"), ["/d", "/d/a", "/d/b"]),
    ("no wildcard in a wildcard", do(rm, "/f", True), ["/f"]),
    ("a wildcard for all in a folder", do(rm, "/d/*", True), ["/d/a", "/d/b"]),
    ("a class", do(rm, "/d/[b-z]", True), ["/d/b"]),
    ("a wildcard behind a link, which is not followed", do(rm, "/l/?", True), []),
    ("dots before a wildcard", do(rm, "/l/../l/../d/?", True), ["/d/a", "/d/b"]),
    ("a wildcard that names a folder", do(rm, "/[d-e]", True), ["/d", "/d/a", "/d/b"]),
    ("a wildcard on two levels", do(rm, "/*/a", True), ["/d/a"]),
    ("a wildcard that matches nothing", do(rm, "/z*", True), []),
    ("an escaped star", do(rm, "/d/\\*", True, True), []),
]


@pytest.mark.parametrize("make,gone", [row[1:] for row in REMOVED], ids=[row[0] for row in REMOVED])
def test_removed(solve, make, gone):
    assert sorted(solve(BASE, chain(make, inputs=[BASE]))) == sorted({*NAMES} - {*gone})


def test_what_was_made_in_the_same_op_can_be_removed_and_made_again(solve):
    got = solve(chain(do(mkdir, "/d"), do(mkfile, "/d/f", b"1"), do(rm, "/d"), do(mkdir, "/d",
        0o700),
                      do(mkfile, "/d/g", b"2")))
    assert sorted(got) == ["/d", "/d/g"] and got["/d"].mode == 0o700
    got = solve(chain(do(mkfile, "/x1"), do(mkfile, "/x2"), do(rm, "/x*", True), do(mkfile, "/y")))
    assert sorted(got) == ["/y"]


def test_writing_keeps_the_mode_and_owner_of_a_file(solve):
    base = chain(do(mkfile, "/f", b"old", 0o640, owner(by_id(7))))
    suid = file_op(copy("/f", "/s", mode=0o6755), inputs=[base])
    f = solve(base, chain(do(mkfile, "/f", b"new", 0o777), inputs=[base]))["/f"]
    assert (f.text, f.mode, f.uid, f.gid) == ("new", 0o640, 7, 7)
    f = solve(base, suid, chain(do(mkfile, "/s", b"new"), inputs=[suid]))["/s"]
    assert (f.mode, f.uid) == (0o6755, 7)
    f = solve(base, suid, chain(do(mkfile, "/s", b"new", 0o600, owner(by_id(0))),
        inputs=[suid]))["/s"]
    assert (f.mode, f.uid, f.gid) == (0o755, 0, 0)


def test_modes_of_what_is_made_have_nine_bits(solve):
    got = solve(chain(do(mkfile, "/f", b"", 0o7777), do(mkdir, "/d", 0o7777)))
    assert (got["/f"].mode, got["/d"].mode) == (0o777, 0o777)


OWNERS = [  # user, group: by id, or by name in the passwd and group files of the base
    (by_id(5), None, (5, 5)),
    (None, by_id(6), (0, 6)),
    (by_id(5), by_id(6), (5, 6)),
    (by_id(0), None, (0, 0)),
    (by_id(4294967294), None, (4294967294, 4294967294)),
    (by_name("app"), None, (1000, 1001)),
    (by_name("app"), by_id(6), (1000, 6)),
    (by_name("app"), by_name("staff"), (1000, 50)),
    (by_name("app"), by_name("none"), (1000, 1001)),
    (by_name("none"), None, (0, 0)),
    (by_name("none"), by_name("staff"), (0, 50)),
    (by_id(5), by_name("staff"), (5, 50)),
    (None, by_name("staff"), (0, 50)),
    (by_name("broken"), None, (0, 0)),
]


@pytest.mark.parametrize("user,group,ids", OWNERS, ids=map(str, range(len(OWNERS))))
def test_owners(solve, user, group, ids):
    etc = chain(do(mkdir, "/etc"), do(mkfile, "/etc/group", b"# none\nstaff:x:50:app"),
                do(mkfile, "/etc/passwd",
                    b"\nbroken:x:y:z\nroot:x:0:0::/:\napp:x:1000:1001::/:/bin/sh"))
    own = owner(user, group)
    made = chain(do(mkdir, "/d/e", parents=True, own=own), do(mkfile, "/f", own=own),
                 do(symlink, "t", "/l", own=own), inputs=[etc])
    got = solve(etc, made)
    assert [(got[p].uid, got[p].gid) for p in ("/d", "/d/e", "/f", "/l")] == [ids] * 4


def test_owners_come_from_the_input_that_is_named(solve):
    one = chain(do(mkdir, "/etc"), do(mkfile, "/etc/passwd", b"u:x:1:2\n"))
    two = chain(do(mkdir, "/etc"), do(mkfile, "/etc/passwd", b"u:x:3:4\n"))
    for which, ids in ((0, (1, 2)), (1, (3, 4))):
        made = file_op(mkfile("/f", own=owner(by_name("u", which)), input=0), inputs=[one, two])
        f = solve(one, two, made)["/f"]
        assert (f.uid, f.gid) == ids
    # ... which may have it behind a link
    linked = chain(do(mkdir, "/etc"), do(mkfile, "/p", b"u:x:5:6"), do(symlink, "/p", "/etc/passwd"))
    f = solve(linked, file_op(mkfile("/f", own=owner(by_name("u")), input=0), inputs=[linked]))["/f"]
    assert (f.uid, f.gid) == (5, 6)
    # ... and is not what an action made, nor one that has no such file but stands for itself alone
    made = file_op(mkdir("/etc", output=-1), mkfile("/f", own=owner(by_name("u", 0)), input=0))
    assert "not one of 0" in solve(made, code=6)
    made = file_op(mkfile("/f", own=owner(by_name("u", 1)), input=0), inputs=[one, SRC])
    assert "/etc/passwd: no such" in solve(one, SRC, made, code=3)
    made = file_op(mkfile("/f", own=owner(by_name("u", 0)), input=0), inputs=[SRC])
    assert solve(SRC, made)["/f"].uid == 0
    nothing = file_op(mkfile("/f", own=owner(by_name("u", -1))))
    assert "no input" in solve(nothing, code=6)
    folder = chain(do(mkdir, "/etc/passwd", parents=True))
    assert "/etc/passwd" in solve(folder, file_op(mkfile("/f", own=owner(by_name("u")), input=0),
                                                  inputs=[folder]), code=6)


SRC = chain(do(mkdir, "/s", 0o711), do(mkfile, "/s/a.go", b"a"), do(mkfile, "/s/b.txt", b"b"),
            do(mkdir, "/s/sub", 0o701), do(mkfile, "/s/sub/c.go", b"c"), do(mkfile,
                "/s/sub/d.txt", b"d"),
            do(symlink, "a.go", "/s/link"), do(symlink, "s", "/dirlink"), do(mkdir, "/t"),
            do(mkfile, "/t/a.go", b"ta"), do(symlink, "s/a.go", "/filelink"), do(mkdir, "/s/empty"))
ALL = ["a.go", "b.txt", "empty", "link", "sub", "sub/c.go", "sub/d.txt"]


def below(top, *names):
    return [top, *(f"{top}/{name}" for name in names)]


COPIES = [  # source, destination, flags, what is there then; the destination begins empty
    ("folder", "/s", "/x", {}, below("/x", *ALL)),
    ("folder to slash", "/s", "/x/", {}, ["/x", *below("/x/s", *ALL)]),
    ("folder with a dot", "/s/.", "/x/", {}, below("/x", *ALL)),
    ("folder deep", "/s", "/x/y", {}, ["/x", *below("/x/y", *ALL)]),
    ("contents", "/s", "/x/y", {"contents": True}, ["/x", *below("/x/y", *ALL)]),
    ("contents to slash", "/s", "/x/", {"contents": True}, below("/x", *ALL)),
    ("contents to root", "/s", "/", {"contents": True}, ["/" + name for name in ALL]),
    ("folder to root", "/s", "/", {}, below("/s", *ALL)),
    ("root", "/", "/x", {"include": ["t"]}, ["/x", "/x/t", "/x/t/a.go"]),
    ("file", "/s/a.go", "/x", {}, ["/x"]),
    ("file to slash", "/s/a.go", "/x/", {}, ["/x", "/x/a.go"]),
    ("file to dot", "/s/a.go", "/x/.", {}, ["/x", "/x/a.go"]),
    ("file to root", "/s/a.go", "/", {}, ["/a.go"]),
    ("file contents", "/s/a.go", "/x", {"contents": True}, ["/x"]),
    ("file through a link", "/dirlink/a.go", "/x", {}, ["/x"]),
    ("link", "/filelink", "/x/", {}, ["/x", "/x/filelink"]),
    ("link to a folder", "/dirlink", "/x", {}, ["/x"]),
    ("link to a folder, followed", "/dirlink", "/x", {"follow": True}, below("/x", *ALL)),
    ("link to a folder, followed, named", "/dirlink", "/x/", {"follow": True},
     ["/x", *below("/x/dirlink", *ALL)]),
    ("wildcard", "/s/*.go", "/x/", {"wildcard": True}, ["/x", "/x/a.go"]),
    ("wildcard of one to a name", "/s/*.go", "/x", {"wildcard": True}, ["/x"]),
    ("wildcard for a folder", "/s/su?", "/x", {"wildcard": True}, below("/x", "c.go", "d.txt")),
    ("wildcard on the way", "/*/a.go", "/x/", {"wildcard": True}, ["/x", "/x/a.go"]),
    ("wildcard behind a link", "/dirlink/b*", "/x/", {"wildcard": True, "code": 3}, None),
    ("wildcard behind a link, followed", "/dirlink/b*", "/x/", {"wildcard": True, "follow": True},
     ["/x", "/x/b.txt"]),
    ("wildcard behind a link on the way", "/dirlink/sub/c*", "/x/", {"wildcard": True},
     ["/x", "/x/c.go"]),
    ("wildcard for contents", "/[st]", "/x", {"wildcard": True, "contents": True}, below("/x",
        *ALL)),
    # the first finds no /x and becomes it, the second finds a folder
    ("wildcard for two folders", "/[st]", "/x", {"wildcard": True},
     below("/x", *ALL) + ["/x/t", "/x/t/a.go"]),
    ("wildcard with a dot file", "/s/*", "/x/", {"wildcard": True, "exclude": ["d.txt"]},
     below("/x", *(name for name in ALL if name != "sub/d.txt"))),
    ("wildcard is no pattern", "/s/**", "/x/", {"wildcard": True}, below("/x", *ALL)),
    ("wildcard, not allowed", "/s/[a].go", "/x", {"code": 3}, None),
    ("wildcard, nothing", "/s/*.c", "/x/", {"wildcard": True, "code": 3}, None),
    ("wildcard, nothing, allowed", "/s/*.c", "/x/", {"wildcard": True, "empty_ok": True}, []),
    ("missing", "/s/no", "/x", {"code": 3}, None),
    ("missing, allowed only for wildcards", "/s/no", "/x", {"wildcard": True, "empty_ok": True,
                                                            "code": 3}, None),
    ("include", "/s", "/x", {"include": ["*.go"]}, ["/x", "/x/a.go"]),
    ("include deep", "/s", "/x", {"include": ["**/*.go"]}, ["/x", "/x/a.go", "/x/sub",
        "/x/sub/c.go"]),
    ("include a folder", "/s", "/x", {"include": ["sub"]}, below("/x", "sub", "sub/c.go",
        "sub/d.txt")),
    ("include, taken back", "/s", "/x", {"include": ["sub", "!sub/c.go"]}, below("/x", "sub",
        "sub/d.txt")),
    ("include nothing", "/s", "/x", {"include": ["no"]}, ["/x"]),
    ("exclude", "/s", "/x", {"exclude": ["**/*.go", "link"]},
     below("/x", "b.txt", "empty", "sub", "sub/d.txt")),
    ("exclude a folder", "/s", "/x", {"exclude": ["sub"]}, below("/x", "a.go", "b.txt", "empty",
        "link")),
    ("exclude, taken back", "/s", "/x", {"exclude": ["*", "!sub/c.go"]}, below("/x", "sub",
        "sub/c.go")),
    ("exclude all", "/s", "/x", {"exclude": ["**"]}, ["/x"]),
    ("exclude wins", "/s", "/x", {"include": ["**/*.go"], "exclude": ["sub"]}, ["/x", "/x/a.go"]),
    ("patterns are not for files", "/s/a.go", "/x", {"include": ["no"], "exclude": ["*"]}, ["/x"]),
    ("required", "/s", "/x", {"include": ["a.go"], "required": ["/s/a.go"]}, ["/x", "/x/a.go"]),
    ("required below", "/s", "/x", {"include": ["sub"], "required": ["/s/sub/c.go"]},
     below("/x", "sub", "sub/c.go", "sub/d.txt")),
    ("required, relative", "/s", "/x", {"include": ["a.go"], "required": ["a.go"], "code": 3},
        None),
    ("required, excluded", "/s", "/x", {"include": ["a.go"], "exclude": ["a.go"],
                                       "required": ["/s/a.go"], "code": 3}, None),
    ("required with a wildcard", "/[st]", "/x", {"wildcard": True, "include": ["a.go"],
                                                "required": ["/t/a.go"]},
     ["/x", "/x/a.go", "/x/t", "/x/t/a.go"]),
    ("no folder for it", "/s", "/y/x", {"make": False, "code": 3}, None),
    ("a folder for it", "/s/a.go", "/x", {"make": False}, ["/x"]),
]


@pytest.mark.parametrize("source,dest,flags,there", [row[1:] for row in COPIES],
                         ids=[row[0] for row in COPIES])
def test_copied(solve, source, dest, flags, there):
    flags = dict(flags)
    code = flags.pop("code", 0)
    got = solve(SRC, file_op(copy(source, dest, **flags), inputs=[SRC]), code=code)
    assert code or sorted(got) == sorted(there)


# What is at the destination before: x (a folder, 0700, with a.go and sub), f (a file), to -> x,
# nowhere -> new, s -> x
DEST = chain(do(mkdir, "/x", 0o700), do(mkfile, "/x/a.go", b"old", 0o600), do(mkdir, "/x/sub",
    0o777),
             do(mkfile, "/x/sub/e", b"e"), do(mkfile, "/f", b"f"), do(symlink, "x", "/to"),
             do(symlink, "new", "/nowhere"), do(symlink, "x", "/s"))
WAS = ["/f", "/nowhere", "/s", "/to", "/x", "/x/a.go", "/x/sub", "/x/sub/e"]

ONTO = [
    ("folder into folder", "/s", "/x", {}, below("/x/s", *ALL)),
    ("contents over folder", "/s", "/x", {"contents": True}, below("/x", *ALL)),
    ("folder by a link", "/s", "/to", {}, below("/x/s", *ALL)),
    ("contents by a link", "/s", "/to", {"contents": True}, below("/x", *ALL)),
    ("file by a link", "/s/b.txt", "/to", {}, ["/x/b.txt"]),
    ("file over a file", "/s/a.go", "/x", {}, []),
    ("file over a file by name", "/s/a.go", "/f", {}, []),
    ("file where a link points to nothing", "/s/a.go", "/nowhere", {}, ["/new"]),
    ("folder where a link points to nothing", "/s", "/nowhere", {}, below("/new", *ALL)),
    ("link over a file", "/filelink", "/f", {}, []),
    ("file over a folder", "/filelink", "/x", {"follow": True}, ["/x/filelink"]),
    ("folder onto a file", "/s", "/f", {"code": 3}, None),
    ("contents onto a file", "/s", "/f", {"contents": True, "code": 3}, None),
    ("contents onto a file, replaced", "/t", "/f", {"contents": True, "replace": True},
        ["/f/a.go"]),
    ("folder onto a link of its name", "/s", "/", {"code": 3}, None),
    ("folder onto a link of its name, replaced", "/s", "/", {"replace": True}, below("/s", *ALL)),
    ("contents below a file", "/s", "/f/y", {"contents": True, "code": 3}, None),
]


@pytest.mark.parametrize("source,dest,flags,new", [row[1:] for row in ONTO],
    ids=[row[0] for row in ONTO])
def test_copied_onto(solve, source, dest, flags, new):
    flags = dict(flags)
    code = flags.pop("code", 0)
    got = solve(SRC, DEST, file_op(copy(source, dest, input=1, **flags), inputs=[SRC, DEST]),
        code=code)
    assert code or sorted(got) == sorted({*WAS, *new})


def test_metadata_of_folders_that_are_there(solve):
    """The uppermost one keeps its own, those below get the source's; with patterns all keep it."""
    both = dict(inputs=[SRC, DEST])
    got = solve(SRC, DEST, file_op(copy("/s", "/x", contents=True, input=1), **both))
    assert (got["/x"].mode, got["/x/sub"].mode, got["/x/a.go"].mode) == (0o700, 0o701, 0o644)
    got = solve(SRC, DEST, file_op(copy("/s", "/x", contents=True, include=["**"], input=1),
        **both))
    assert (got["/x"].mode, got["/x/sub"].mode) == (0o700, 0o777)
    got = solve(SRC, DEST, file_op(copy("/s", "/x", contents=True, exclude=["sub", "!sub/c.go"],
                                        input=1), **both))
    assert (got["/x/sub"].mode, got["/x/sub/c.go"].text) == (0o777, "c")
    got = solve(SRC, DEST, file_op(copy("/s", "/x", contents=True, mode=0o1711, own=owner(by_id(9)),
                                        input=1), **both))
    assert (got["/x"].mode, got["/x"].uid) == (0o700, 0)
    assert (got["/x/sub"].mode, got["/x/sub"].uid) == (0o1711, 9)
    assert (got["/x/sub/e"].mode, got["/x/sub/e"].uid) == (0o644, 0)
    assert (got["/x/link"].mode, got["/x/link"].uid) == (0o777, 9)


def test_metadata_of_folders_on_the_way(solve):
    got = solve(SRC, file_op(copy("/s/a.go", "/p/q/", mode=0o4750, own=owner(by_id(9)),
                                  time=5 * 10**9), inputs=[SRC]))
    assert [(got[p].mode, got[p].uid, got[p].mtime) for p in ("/p", "/p/q")] == [(0o750, 9, 5)] * 2
    assert (got["/p/q/a.go"].mode, got["/p/q/a.go"].mtime) == (0o4750, 5)
    got = solve(SRC, file_op(copy("/s/a.go", "/p/q/", mode_text="u=rwx,go="), inputs=[SRC]))
    assert (got["/p"].mode, got["/p/q/a.go"].mode, got["/p/q/a.go"].mtime) == (0o755, 0o700,
        SECONDS)


def test_times_of_copies(solve):
    got = solve(SRC, file_op(copy("/s", "/x"), inputs=[SRC]))
    assert {got[f"/x/{name}"].mtime for name in ("a.go", "link", "empty")} == {SECONDS}
    got = solve(SRC, file_op(copy("/s", "/x", time=1), inputs=[SRC]))
    assert {m.mtime for m in got.values()} == {1e-9}
    got = solve(SRC, file_op(copy("/s", "/x", time=-10**9 - 1), inputs=[SRC]))
    assert {m.mtime for m in got.values()} == {-1.000000001}


MODES = [  # of a file 0640 and a folder 0751, both sgid
    ("0", 0, 0), ("600", 0o600, 0o600), ("07777", 0o7777, 0o7777), ("000755", 0o755, 0o755),
    ("a=", 0, 0), ("u=rwx", 0o2740, 0o2751), ("go=", 0o600, 0o700), ("+x", 0o2751, 0o2751),
    ("a+x,u-x", 0o2651, 0o2651), ("+X", 0o2640, 0o2751), ("u=rwX,go=rX", 0o644, 0o755),
    ("g=u", 0o2660, 0o2771), ("g=u-w", 0o2640, 0o2751), ("o=g", 0o2644, 0o2755),
    ("u+s", 0o6640, 0o6751), ("g-s", 0o640, 0o751), ("o+s", 0o2640, 0o2751), ("+t", 0o3640, 0o3751),
    ("o+t", 0o2640, 0o2751), ("u=rws", 0o6640, 0o6651), ("g+w-r", 0o2620, 0o2731),
    ("ug=rw,o-x", 0o660, 0o660), ("a-x,+X", 0o2640, 0o2751), ("u-rwx,o+u", 0o2040, 0o2051),
    ("u+", 0o2640, 0o2751), ("=", 0, 0), ("a=rx", 0o555, 0o555),
]


@pytest.mark.parametrize("text,file,folder", MODES, ids=[row[0] for row in MODES])
def test_symbolic_modes(solve, text, file, folder):
    base = chain(do(mkdir, "/s"), do(mkfile, "/s/f", b""))
    sgid = file_op(copy("/s/f", "/s/f", mode=0o2640, input=-1, output=-1),
                   copy("/s", "/s", mode=0o2751, input=1, include=["no"]), inputs=[base])
    got = solve(base, sgid, file_op(copy("/s", "/x", mode_text=text), inputs=[sgid]))
    first = solve(base, sgid)
    assert first["/s/f"].mode == 0o2640
    assert got["/x/f"].mode == file
    sgid = file_op(copy("/s", "/s", mode=0o2751, include=["no"]), inputs=[base])
    got = solve(base, sgid, file_op(copy("/s", "/x", mode_text=text), inputs=[sgid]))
    assert got["/x"].mode == folder


@pytest.mark.parametrize("text", ["8", "17777", "x", "u", "u=q", "u=r,", ",u=r", "u=r;g=r", "0x1",
    "u=8"])
def test_bad_modes(solve, text):
    assert "bad mode" in solve(SRC, file_op(copy("/t", "/x", mode_text=text), inputs=[SRC]), code=6)


def test_special_files_are_copied(solve, ctx):
    os.mkfifo(ctx / "pipe", 0o640)
    src = local()
    got = solve(src, file_op(copy("/pipe", "/p", mode=0o600), inputs=[src]))
    assert (got["/p"].type, got["/p"].mode) == (tarfile.FIFOTYPE, 0o600)


def test_hard_links_are_kept_within_one_source(solve, ctx):
    src = local()
    both = solve(src, file_op(copy("/docs", "/d", include=["*.md"]), inputs=[src]))
    assert sorted(m.type for m in both.values()) == sorted([b"5", b"0", tarfile.LNKTYPE])
    each = solve(src, file_op(copy("/docs/*.md", "/d/", wildcard=True), inputs=[src]))
    assert {each["/d/one.md"].type, each["/d/hard.md"].type} == {tarfile.REGTYPE}
    # one that is written to later, made in the same op, is written under all its names
    whole = solve(src, file_op(copy("/docs", "/d", output=-1), mkfile("/d/one.md", b"new", input=1),
                               inputs=[src]))
    assert whole["/d/hard.md"].text == "new"
    # over what is below, only the name that is written
    copied = file_op(copy("/docs", "/d"), inputs=[src])
    whole = solve(src, copied, file_op(mkfile("/d/one.md", b"new", input=0), inputs=[copied]))
    assert (whole["/d/one.md"].text, whole["/d/hard.md"].text) == ("new", "one")


def archive(how=lambda b: b, **options):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as tar:
        for name, kind, link in (("d", tarfile.DIRTYPE, ""), ("d/f", tarfile.REGTYPE, ""),
                                 ("d/h", tarfile.LNKTYPE, "d/f"), ("d/s", tarfile.SYMTYPE, "f"),
                                 ("d/.wh.x", tarfile.REGTYPE, "")):
            m = tarfile.TarInfo(name)
            m.type, m.linkname, m.uid, m.mtime, m.mode = kind, link, 7, 99, 0o755
            m.size = 3 if name == "d/f" else 0
            tar.addfile(m, io.BytesIO(b"abc"))
    return how(out.getvalue())


def zstd(data):
    return subprocess.run(["zstd", "-c"], input=data, check=True, stdout=subprocess.PIPE).stdout


ARCHIVES = {"tar": {}, "gzip": {"how": gzip.compress}, "bzip2": {"how": bz2.compress},
            "xz": {"how": lzma.compress}, "zstd": {"how": zstd},
            "gnu": {"format": tarfile.GNU_FORMAT}, "ustar": {"format": tarfile.USTAR_FORMAT}}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives(solve, ctx, kind):
    (ctx / "a").write_bytes(archive(**ARCHIVES[kind]))
    (ctx / "alink").symlink_to("a")
    src = local()
    for source in ("/a", "/alink"):  # links are followed to see whether there is an archive
        got = solve(src, file_op(copy(source, "/u", unpack=True, mode=0o600, time=1), inputs=[src]))
        assert sorted(got) == ["/u", "/u/d", "/u/d/.wh.x", "/u/d/f", "/u/d/h", "/u/d/s"]
        f = got["/u/d/f"]
        assert (f.text, f.uid, f.mode, f.mtime) == ("abc", 7, 0o755, 99)
    got = solve(src, file_op(copy("/a", "/u", unpack=True, own=owner(by_id(5))), inputs=[src]))
    assert {got[path].uid for path in ("/u/d", "/u/d/f", "/u/d/s")} == {5}
    assert sorted(solve(src, file_op(copy("/a", "/u"), inputs=[src]))) == ["/u"]


@pytest.mark.parametrize("data", [b"", b"text", b"\0" * 1024, gzip.compress(b"no tar"),
                                  b"\x1f\x8b\x08\0 broken"])
def test_no_archives(solve, ctx, data):
    (ctx / "a").write_bytes(data)
    src = local()
    got = solve(src, file_op(copy("/a", "/u", unpack=True), inputs=[src]))
    assert sorted(got) == ["/u"] and got["/u"].text == data.decode("latin-1")


# ---------------------------------------------------------------------- diff and merge

def scratch_diff(op, is_upper):
    """diff(scratch, op), or diff(op, scratch)"""
    def side(n, i):
        return field(n, number(1, i) or b"")
    return op_input(op) + field(7, side(1, -1 if is_upper else 0) + side(2, 0 if is_upper else -1))


def facts(tree):
    """Without the times that are those of the solve."""
    return {path: (m.text, m.mode, m.uid, m.mtime == SECONDS) for path, m in tree.items()}


ONE = chain(do(mkdir, "/d"), do(mkfile, "/d/a", b"1"), do(mkfile, "/d/b", b"1"), do(symlink, "d",
    "/l"))
CHANGES = {
    "type": [do(rm, "/d"), do(mkfile, "/d", b"file")],
    "type back": [do(rm, "/l"), do(mkdir, "/l"), do(mkfile, "/l/y", b"2")],
    "metadata": [do(copy, "/d", "/d", mode=0o700, contents=True, secondary=0)],
    "opaque": [do(rm, "/d"), do(mkdir, "/d"), do(mkfile, "/d/c", b"2")],
    "deleted": [do(rm, "/d/a")],
    "written": [do(mkfile, "/d/a", b"22")],
    "link": [do(rm, "/l"), do(symlink, "elsewhere", "/l")],
    "nothing": [do(mkdir, "/d")],
}


@pytest.mark.parametrize("name", CHANGES)
def test_diff_and_merge_give_the_upper_one(solve, name):
    upper = chain(*CHANGES[name], inputs=[ONE])
    wanted = facts(solve(ONE, upper))
    change = diff(ONE, upper)
    assert facts(solve(ONE, upper, change, merge(ONE, change))) == wanted
    # not related: the same files by another way
    again = merge(upper, chain(do(mkfile, "/other", b"")))
    other = chain(do(rm, "/other"), inputs=[again])
    ops = [ONE, upper, chain(do(mkfile, "/other", b"")), again, other]
    change = diff(ONE, other)
    assert facts(solve(*ops, change, merge(ONE, change))) == wanted
    assert solve(*ops, diff(upper, other)) == {}


def test_diffs_with_scratch(solve):
    assert facts(solve(ONE, scratch_diff(ONE, True))) == facts(solve(ONE))
    gone = scratch_diff(ONE, False)
    assert solve(ONE, gone) == {}
    rest = chain(do(mkfile, "/keep", b""))
    assert sorted(solve(ONE, gone, rest, merge(ONE, rest, gone))) == ["/keep"]


def test_diff_of_merges(solve):
    two, three = chain(do(mkfile, "/2", b"2")), chain(do(mkfile, "/3", b"3"))
    whole, less = merge(ONE, two, three), merge(ONE, two)
    ops = [ONE, two, three, whole, less]
    assert sorted(solve(*ops, diff(less, whole))) == ["/3"]
    assert sorted(solve(*ops, diff(ONE, whole))) == ["/2", "/3"]
    assert solve(*ops, diff(whole, less)) == {}
    back = diff(whole, less)
    assert sorted(solve(*ops, back, merge(whole, back))) == sorted(solve(*ops, less))
    other = merge(two, ONE)
    assert solve(*ops, other, diff(less, other)) == {}


def test_deletions_inside_an_input_delete_below_it(solve):
    upper = chain(do(rm, "/d/a"), inputs=[ONE])
    other = chain(do(mkdir, "/d"), do(mkfile, "/d/a", b"mine"), do(mkfile, "/d/z", b"z"))
    ops = [ONE, upper, other]
    assert "/d/a" not in solve(*ops, merge(other, upper))
    assert solve(*ops, merge(upper, other))["/d/a"].text == "mine"
    assert "/d/z" in solve(*ops, merge(other, upper))


# ---------------------------------------------------------------------- build, passthrough

def passthrough(*inputs, outputs=(0,), name="group"):
    packed = bytes(outputs)
    return b"".join(op_input(op) for op in inputs) + field(8, field(1, name) + field(2, packed))


def build(op, filename=None, builder=-1, name="buildkit.llb.definition", more=b""):
    attrs = field(4, field(1, "llbbuild.filename") + field(2, filename)) if filename else b""
    return op_input(op) + field(5, number(1, builder) + field(2, field(1, name) + field(2, b""))
                                + attrs + more)


def test_a_passthrough_gives_its_inputs(solve, llbfs, tmp_path):
    one, two = chain(do(mkfile, "/1")), chain(do(mkfile, "/2"))
    group = passthrough(one, two, outputs=(1, 0, 1))
    assert sorted(solve(one, two, group)) == ["/2"]
    ops = [one, two, group]
    second = b"".join(field(1, op) for op in [*ops, op_input(group, 1)])
    (tmp_path / "second.pb").write_bytes(second)
    assert llbfs.text("ls", f"llb://{tmp_path}/second.pb").split() == ["1"]
    assert "output" in solve(*ops, file_op(copy("/2", "/x"), inputs=[group])
                             .replace(op_input(group), op_input(group, 3)), code=6)
    assert "ID" in solve(one, passthrough(one, name=""), code=6)
    # an input that cannot be had fails it, though nobody takes it
    bad = chain(do(rm, "/no"))
    assert "rm /no" in solve(one, bad, passthrough(one, bad), code=3)


def holds(inner, path="/buildkit.llb.definition"):
    return chain(do(mkdir, "/x"), do(mkfile, path, inner))


def test_a_definition_in_an_input_is_built(solve):
    inner = definition(chain(do(mkfile, "/made", b"inside")))
    for path, filename in (("/buildkit.llb.definition", None), ("/x/my.pb", "x/my.pb"),
                           ("/x/my.pb", "/x/../../x/my.pb")):
        file = holds(inner, path)
        assert solve(file, build(file, filename))["/made"].text == "inside"
    # twice, below others, and next to itself
    twice = holds(definition(file_in := holds(inner), build(file_in)))
    outer = build(twice)
    got = solve(twice, outer, file_op(copy("/made", "/copied"), inputs=[outer]))
    assert got["/copied"].text == "inside"


def test_builds_that_fail_say_where(solve):
    bad = definition(chain(do(rm, "/no")))
    file = holds(bad)
    line = solve(file, build(file), code=3)
    assert "(build)" in line and "(rm /no)" in line
    for inner, words in ((b"", "empty"), (b"\xff\xff", "definition")):
        file = holds(inner)
        assert words in solve(file, build(file), code=6)
    file = holds(definition(chain(do(mkfile, "/made"))))
    assert "no-such" in solve(file, build(file, "no-such"), code=3)
    assert "no file" in solve(file, build(file, "x"), code=6)
    assert "builder" in solve(file, build(file, builder=0), code=8)
    assert "no input" in solve(file, build(file, name="other"), code=6)


def test_a_definition_that_builds_itself_ends(solve, ctx):
    src = local()
    (ctx / "buildkit.llb.definition").write_bytes(definition(src, build(src)))
    line = solve(src, build(src), code=8)
    assert line.endswith("a build in more than 16 builds"), line
    # sixteen are fine
    file = chain(do(mkfile, "/made", b"inside"))
    ops = [file]
    for _ in range(16):
        file = holds(definition(*ops))
        ops = [file, build(file)]
    assert "/made" in solve(*ops)
    # seventeen are not, of which none is known from before
    file = chain(do(mkfile, "/other", b"inside"))
    ops = [file]
    for _ in range(17):
        file = holds(definition(*ops))
        ops = [file, build(file)]
    assert "16" in solve(*ops, code=8)


def test_builds_that_multiply_end(solve):
    """Each level builds the level below it eight times under different names: 8^15 in all, of which
    each is made once."""
    ops = [chain(do(mkfile, "/made"))]
    for _ in range(15):
        file = holds(definition(*ops))
        builds = [build(file, more=field(4, field(1, f"x{i}"))) for i in range(8)]
        ops = [file, *builds, merge(*builds)]
    assert "/made" in solve(*ops)


def test_an_exec_is_refused_by_name(solve):
    one = chain(do(mkfile, "/1"))
    meta = field(1, field(1, "true") + field(3, "/"))
    line = solve(one, op_input(one) + field(2, meta + field(2, field(3, "/"))), code=8)
    assert "exec" in line and "vertex sha256:" in line and "(true)" in line
