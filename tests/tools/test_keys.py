# SPDX-License-Identifier: Apache-2.0
"""The keys of content that inspect shows, and whether it finds a result, where no recorded case is.

What is expected is worked out here from the formulas, apart from the program: a leaf is SHA-256 over
its metadata as text and its bytes, a folder over its header and its entries, a key over the digests of
all that is selected, joined by NUL.
"""
import hashlib
import os

import pytest

from test_fileops import chain, do
from test_llb import (by_name, copy, ctx, diff, file_op, local, mkdir, mkfile,  # noqa: F401
                      number, owner, symlink)
from images import digest
from llb import definition, field, op_input, source

S = chain(do(mkdir, "/d"), do(mkfile, "/d/a.go", b"a"), do(mkfile, "/d/b.txt", b"b", 0o600),
          do(mkdir, "/d/sub", 0o700), do(mkfile, "/d/sub/c.go", b"c"), do(mkdir, "/empty"),
          do(symlink, "d", "/l"), do(symlink, "nowhere", "/gone"), do(mkdir, "/etc"),
          do(mkfile, "/etc/passwd", b"u:x:5:6"), do(mkfile, "/etc/group", b"g:x:7:"))
TREE = {"": ("5", 0o755), "/d": ("5", 0o755), "/d/a.go": ("0", 0o644, b"a"),
        "/d/b.txt": ("0", 0o600, b"b"), "/d/sub": ("5", 0o700), "/d/sub/c.go": ("0", 0o644, b"c"),
        "/empty": ("5", 0o755), "/l": ("2", 0o777, b"d"), "/gone": ("2", 0o777, b"nowhere"),
        "/etc": ("5", 0o755), "/etc/passwd": ("0", 0o644, b"u:x:5:6"),
        "/etc/group": ("0", 0o644, b"g:x:7:")}
NOTHING = diff(S, S)


def sha(data):
    return "sha256:" + hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()


def leaf(path, tree=None):
    kind, mode, *data = (tree or TREE)[path]
    data = data[0] if data else b""
    text = f"namemode{mode}uid0gid0size{len(data) if kind == '0' else 0}typeflag{kind}linkname"
    text += f"{data.decode() if kind == '2' else ''}unamegnamedevmajor0devminor0"
    return sha(text.encode() + (data if kind == "0" else b""))


def at(path, tree=None):
    """What a path stands for; "/" is written "" here."""
    tree = tree or TREE
    if tree[path][0] != "5":
        return leaf(path, tree)
    text = "\0" + leaf(path, tree)
    for below in sorted(tree):
        if below.startswith(path + "/") and "/" not in below[len(path) + 1:]:
            text += "\0" + below[len(path) + 1:] + at(below, tree)
    return sha(text)


def listed(prefix, *paths):
    """What patterns took."""
    return sha("".join((p[len(prefix):].replace("/", "\0") or "\0") + leaf(p) for p in paths))


@pytest.fixture
def inspect(llbfs, tmp_path, ctx):  # noqa: F811
    def run(*ops):
        path = tmp_path / "def.pb"
        path.write_bytes(definition(*ops))
        got = llbfs.json("inspect", "--offline", "--local", f"ctx={ctx}", f"llb://{path}")[0]
        found = {v["digest"]: v for v in got["vertices"]}
        return found[digest(ops[-1])]
    return run


def check(vertex, index, selector, digests):
    """@digests: of all that is selected of an input, None = its content does not count."""
    assert vertex["selectors"][index] == (selector and sha(selector))
    if digests is None:
        assert index not in [one["input"] for one in vertex["content_keys"]]
        return
    key = sha("\0".join(digests))
    assert vertex["content_keys"] == [{"input": index, "digest": key, "record": sha(key + "@-1")}]


FILES = [  # actions (all onto scratch), paths of the selector, what is hashed
    ("a folder", [do(copy, "/d", "/x")], "/d", [at("/d")]),
    ("a slash at the end", [do(copy, "/d/", "/x")], "/d/", [at("/d")]),
    ("a slash at the end, patterns", [do(copy, "/d/", "/x", include=["*.go"])], "/d/",
     [listed("/d", "/d", "/d/a.go")]),
    ("an empty folder", [do(copy, "/empty", "/x")], "/empty", [at("/empty")]),
    ("the root", [do(copy, "/d", "/x"), do(copy, "/", "/y")], "/d\0/", [at("")]),
    ("a path without a slash beside the root", [do(copy, "d", "/x"), do(copy, "/", "/y")],
     "d\0/", [at(""), at("/d")]),
    ("what lies below, twice", [do(copy, "/d/a.go", "/x"), do(copy, "/d", "/y"),
                                do(copy, "/d", "/z")], "/d/a.go\0/d\0/d", [at("/d")]),
    ("a link", [do(copy, "/l", "/x")], "/l", [leaf("/l")]),
    ("a link followed", [do(copy, "/l", "/x", follow=True)], "/l", [at("/d")]),
    ("a link to nothing", [do(copy, "/gone", "/x")], "/gone", [leaf("/gone")]),
    ("followed and not", [do(copy, "/l", "/x", follow=True), do(copy, "/d/sub", "/y"),
                          do(copy, "/d", "/z", follow=True)],
     "/l\0/d/sub\0/d", [at("/d"), at("/d/sub"), at("/d")]),
    ("a wildcard", [do(copy, "/d/*.go", "/x/", wildcard=True)], "/d/*.go",
     [listed("/d", "/d/a.go")]),
    ("a wildcard for nothing", [do(copy, "/z*", "/x/", wildcard=True, empty_ok=True)], "/z*",
     [sha("")]),
    ("a wildcard that is none", [do(copy, "/d", "/x", wildcard=True)], "/d", [at("/d")]),
    ("a wildcard and patterns", [do(copy, "/[de]*", "/x/", wildcard=True, include=["**/*.go"],
                                    exclude=["sub"])], "/[de]*", [listed("", "/d", "/d/a.go")]),
    ("patterns and what is required", [do(copy, "/d", "/x", include=["sub"],
                                          required=["/d/sub"])], "/d",
     [listed("/d", "/d", "/d/sub", "/d/sub/c.go")]),
    ("required, but no patterns", [do(copy, "/d", "/x", required=["/none"]),
                                   do(copy, "/d/sub", "/y")], "/d/sub\0/d", [at("/d")]),
    ("owners by name", [do(mkfile, "/x", own=owner(by_name("u"), by_name("g")))],
     "/etc/passwd\0/etc/group", [at("/etc/group"), at("/etc/passwd")]),
    ("a copy and its owner", [do(copy, "/d/a.go", "/x", own=owner(by_name("u")))],
     "/etc/passwd\0/d/a.go", [at("/d/a.go"), at("/etc/passwd")]),
    ("the owner of a link", [do(symlink, "a", "/x", own=owner(by_name("u")))], None, None),
]


def onto_scratch(actions):
    """One op; inputs of its actions are counted behind its one input."""
    last = len(actions) - 1
    return file_op(*(make(input=i if i else -1, output=0 if i == last else -1)
                     for i, make in enumerate(actions)), inputs=[S])


@pytest.mark.parametrize("actions, selector, digests", [c[1:] for c in FILES],
                         ids=[c[0] for c in FILES])
def test_what_a_file_op_takes_of_an_input(inspect, llbfs, tmp_path, actions, selector, digests):
    op = onto_scratch(actions)
    check(inspect(S, op), 0, selector, digests)
    llbfs("tar", f"llb://{tmp_path}/def.pb")


def test_what_is_changed_is_known_by_its_definition(inspect):
    op = file_op(copy("/d", "/x", input=0, secondary=0), inputs=[S])
    check(inspect(S, op), 0, None, None)


MISSING = [copy("/none", "/x"), copy("/gone", "/x", follow=True), copy("/d/a.go/x", "/x")]


@pytest.mark.parametrize("action", MISSING)
def test_what_is_not_there_has_no_key(inspect, action):
    one, = inspect(S, file_op(action, inputs=[S]))["content_keys"]
    assert (one["input"], one["digest"], one["record"]) == (0, None, None)
    assert "no such file" in one["reason"]


def test_nothing_has_a_root_and_no_more(inspect, llbfs, tmp_path):
    check(inspect(S, NOTHING, file_op(copy("/", "/x"), inputs=[NOTHING])), 0, "/", [sha("")])
    for wildcard in False, True:
        action = copy("/x*", "/x/", wildcard=wildcard, empty_ok=True)
        one, = inspect(S, NOTHING, file_op(action, inputs=[NOTHING]))["content_keys"]
        assert one["digest"] is None and "no such file" in one["reason"]
        llbfs.error(3, "tar", f"llb://{tmp_path}/def.pb")


def passed_on(op):
    return op_input(op) + field(8, field(1, "p") + field(2, b"\0"))


def whole(op):
    return op_input(op) + field(7, field(1, number(1, -1)) + field(2, b""))


def test_an_upload_has_no_header_of_its_root_wherever_it_is_passed_on(inspect, ctx):  # noqa: F811
    os.mkdir(ctx.parent / "small")
    up = source("local://ctx", {"local.includepattern": '["passwd"]'})
    text = "namemode%duid0gid0size%dtypeflag0linknameunamegnamedevmajor0devminor0"
    with open(ctx / "passwd", "rb") as f:
        data = f.read()
    mode = os.stat(ctx / "passwd").st_mode & 0o7777
    want = sha("\0" + sha("") + "\0passwd" + sha((text % (mode, len(data))).encode() + data))
    for ops in [up], [up, passed_on(up)], [up, whole(up)], [up, whole(up), passed_on(whole(up))]:
        check(inspect(*ops, file_op(copy("/", "/x"), inputs=[ops[-1]])), 0, "/", [want])


ON, OFF = 1, 2


def mount(which, dest, selector="", output=-1, readonly=False, content=0):
    return field(2, number(1, which) + field(2, selector) + field(3, dest) + number(4, output)
                 + number(5, readonly) + number(24, content))


def exec_op(*mounts):
    meta = field(1, field(1, "true") + field(3, "/"))
    return op_input(NOTHING) + op_input(S) + field(2, meta + b"".join(mounts))


ROOT = mount(0, "/", output=0)
EXECS = [  # mounts of input 1, its selector, what is hashed
    ("readonly", [mount(1, "/m", "/d", output=1, readonly=True)], "/d", [at("/d")]),
    ("no output", [mount(1, "/m", "d/")], "/d", [at("/d")]),
    ("written to", [mount(1, "/m", "/d", output=1)], "/d", None),
    ("the whole, written to", [mount(1, "/m", output=1)], "/", [at("")]),
    ("off", [mount(1, "/m", "/d", content=OFF)], "/d", None),
    ("a link is followed", [mount(1, "/m", "/l")], "/l", [at("/d")]),
    ("mounted twice", [mount(1, "/m", "/l"), mount(1, "/n", "/d/sub/")], "/l\0/d/sub",
     [at("/d/sub"), at("/d")]),
    ("mounted within", [mount(1, "/m", "/d"), mount(1, "/n", "/d/sub")], "/d\0/d/sub", [at("/d")]),
    ("mounted whole, too", [mount(1, "/m"), mount(1, "/n", "/d")], "/\0/d", [at("")]),
    ("the last one decides", [mount(1, "/m"), mount(1, "/n", "/d", content=OFF)], "/\0/d", None),
]


@pytest.mark.parametrize("mounts, selector, digests", [c[1:] for c in EXECS],
                         ids=[c[0] for c in EXECS])
def test_what_a_command_takes_of_an_input(inspect, mounts, selector, digests):
    vertex = inspect(S, NOTHING, exec_op(ROOT, *mounts))
    check(vertex, 1, selector, digests)
    assert vertex["selectors"][0] == sha("/") and not vertex["cached"]


def test_the_content_of_a_root_counts_where_it_is_said(inspect):
    op = op_input(S) + field(2, field(1, field(1, "true") + field(3, "/"))
                             + mount(0, "/", output=0, content=ON))
    check(inspect(S, op), 0, "/", [at("")])
    op = exec_op(ROOT, mount(1, "/m", "/d", output=1, content=ON))
    assert "written to" in inspect(S, NOTHING, op)["unknown"]


def test_what_is_below_a_command_has_a_reason(inspect):
    run = exec_op(ROOT)
    one, = inspect(S, NOTHING, run, file_op(copy("/d", "/x"), inputs=[run]))["content_keys"]
    assert one["digest"] is None and digest(run) in one["reason"]


def test_cached_is_what_the_store_had_before(inspect, llbfs, tmp_path):
    op = file_op(copy("/d", "/x"), inputs=[S])
    assert not inspect(S, op)["cached"]  # and with that it is solved
    assert inspect(S, op)["cached"]
    assert not inspect(S, op, file_op(mkfile("/y", input=0), inputs=[op]))["cached"]
    again = file_op(copy("/d", "/x", output=-1), mkfile("/z", input=1), inputs=[S])
    assert not inspect(S, again)["cached"]
    up = local()
    assert not inspect(up)["cached"] and not inspect(up)["cached"]
