# SPDX-License-Identifier: Apache-2.0
"""Definitions of file operations, diffs and local sources, as the program shows their results."""
import io
import json
import os
import sys
import tarfile
from types import SimpleNamespace

import pytest

from conftest import TESTS

sys.path.insert(0, f"{TESTS}/mount")
from llb import definition, field, merge, op_input, source, varint  # noqa: E402

TIME = 1_700_000_000 * 10**9


def number(n, value):
    """As field, also for negative numbers, which take ten bytes."""
    return varint(n << 3) + varint(value & (1 << 64) - 1) if value else b""


def action(kind, body, input=-1, secondary=-1, output=0):
    return field(2, number(1, input) + number(2, secondary) + number(3, output) + field(kind, body))


def file_op(*actions, inputs=()):
    return b"".join(op_input(op) for op in inputs) + field(4, b"".join(actions))


def owner(user=None, group=None):
    return b"".join(field(n, who) for n, who in ((1, user), (2, group)) if who is not None)


def by_id(n):
    return varint(2 << 3) + varint(n)


def by_name(name, input=0):
    return field(1, field(1, name) + number(2, input))


def mkfile(path, data=b"", mode=0o644, own=b"", **more):
    return action(5, field(1, path) + number(2, mode) + field(3, data)
                  + (field(4, own) if own else b"") + number(5, TIME), **more)


def mkdir(path, mode=0o755, parents=False, own=b"", **more):
    return action(6, field(1, path) + number(2, mode) + number(3, parents)
                  + (field(4, own) if own else b"") + number(5, TIME), **more)


def rm(path, wildcard=False, missing_ok=False, **more):
    return action(7, field(1, path) + number(2, missing_ok) + number(3, wildcard), **more)


def symlink(target, path, own=b"", **more):
    return action(8, field(1, target) + field(2, path) + (field(3, own) if own else b"")
                  + number(4, TIME), **more)


def copy(src, dest, own=b"", mode=-1, contents=False, unpack=False, wildcard=False, empty_ok=False,
         include=(), exclude=(), replace=False, mode_text="", required=(), follow=False, time=-1,
         make=True, input=-1, secondary=0, output=0):
    body = field(1, src) + field(2, dest) + (field(3, own) if own else b"") + number(4, mode)
    body += number(5, follow) + number(6, contents) + number(7, unpack) + number(8, make)
    body += number(9, wildcard) + number(10, empty_ok) + number(11, time)
    body += b"".join(field(12, p) for p in include) + b"".join(field(13, p) for p in exclude)
    body += number(14, replace) + field(15, mode_text) + b"".join(field(16, p) for p in required)
    return action(4, body, input=input, secondary=secondary, output=output)


def diff(lower, upper):
    return op_input(lower) + op_input(upper) + field(7, field(1, b"") + field(2, field(1, 1)))


def local(**attrs):
    return source("local://ctx", {f"local.{k}": v for k, v in attrs.items()})


@pytest.fixture
def ctx(tmp_path):
    top = tmp_path / "ctx"
    (top / "src" / "lib").mkdir(parents=True)
    (top / "docs").mkdir()
    (top / "src" / "main.go").write_text("main")
    (top / "src" / "lib" / "lib.go").write_text("lib")
    (top / "docs" / "one.md").write_text("one")
    (top / "docs" / "two.txt").write_text("two")
    os.link(top / "docs" / "one.md", top / "docs" / "hard.md")
    (top / "link").symlink_to("docs/one.md")
    (top / "passwd").write_text("root:x:0:0::/:\napp:x:1000:1001::/:\n")
    (top / "group").write_text("root:x:0:\nstaff:x:50:app\n")
    return top


@pytest.fixture
def solve(llbfs, tmp_path, ctx):
    """The result of a definition as {path: tar member}; content is in .text."""
    def run(*ops, code=0):
        path = tmp_path / "def.pb"
        path.write_bytes(definition(*ops))
        args = ("tar", "--local", f"ctx={ctx}", f"llb://{path}")
        if code:
            return llbfs.error(code, *args)
        found = {}
        with tarfile.open(fileobj=io.BytesIO(llbfs(*args))) as tar:
            for m in tar:
                text = tar.extractfile(m).read().decode("latin-1") if m.isreg() else m.linkname
                found["/" + m.name.strip("/")] = SimpleNamespace(
                    text=text, mode=m.mode, uid=m.uid, gid=m.gid, mtime=m.mtime, type=m.type)
        found.pop("/.", found.pop("/", None))
        return found
    return run


def test_files_are_made(solve):
    got = solve(file_op(mkdir("/a/b", 0o700, parents=True, output=-1),
                        mkfile("/a/b/f", b"text", 0o600, own=owner(by_id(7)), input=0, output=-1),
                        symlink("b/f", "/a/l", input=1, output=-1),
                        mkfile("/a/l", b"by way of the link", input=2)))
    assert sorted(got) == ["/a", "/a/b", "/a/b/f", "/a/l"]
    f = got["/a/b/f"]
    assert (f.text, f.mode, f.uid, f.gid, f.mtime) == ("by way of the link", 0o600, 7, 7, TIME / 1e9)
    assert got["/a/b"].mode == 0o700 and got["/a/l"].text == "b/f"


def test_what_cannot_be_made_is_refused(solve):
    base = file_op(mkfile("/f", b"1"))
    assert "/no/f" in solve(file_op(mkfile("/no/f")), code=3)
    assert "not a folder" in solve(base, file_op(mkfile("/f/x", input=0), inputs=[base]), code=3)
    assert "exists" in solve(base, file_op(symlink("x", "/f", input=0), inputs=[base]), code=8)
    assert "rm /x" in solve(base, file_op(rm("/x", input=0), inputs=[base]), code=3)
    assert "cannot remove" in solve(base, file_op(rm("/", input=0), inputs=[base]), code=8)
    assert "output" in solve(file_op(mkfile("/f", output=1)), code=6)
    assert "neither an input" in solve(file_op(mkfile("/f", input=0)), code=6)


def test_things_are_removed(solve):
    base = file_op(mkdir("/d", output=-1), mkfile("/d/x1", input=0, output=-1),
                   mkfile("/d/x2", input=1, output=-1), mkfile("/d/y", input=2, output=-1),
                   symlink("y", "/d/l", input=3, output=-1), symlink("/d/y", "/d/abs", input=4))
    below = dict(inputs=[base])
    assert sorted(solve(base, file_op(rm("/d/x*", True, input=0), **below))) == [
        "/d", "/d/abs", "/d/l", "/d/y"]
    assert not solve(base, file_op(rm("/d", input=0), **below))
    assert "/d/l" not in solve(base, file_op(rm("/d/l", input=0), **below))
    solve(base, file_op(rm("/d/abs", input=0), **below), code=3)
    assert "/d/abs" not in solve(base, file_op(rm("/d/abs", missing_ok=True, input=0), **below))


def test_copies_of_folders(solve):
    ctx = local()
    got = solve(ctx, file_op(copy("/docs", "/d"), inputs=[ctx]))
    assert sorted(got) == ["/d", "/d/hard.md", "/d/one.md", "/d/two.txt"]
    assert got["/d/one.md"].type == tarfile.LNKTYPE and got["/d/two.txt"].text == "two"
    there = file_op(mkdir("/d", 0o711))
    got = solve(ctx, there, file_op(copy("/docs", "/d", input=1), inputs=[ctx, there]))
    assert "/d/docs/two.txt" in got and got["/d"].mode == 0o711
    got = solve(ctx, there, file_op(copy("/docs", "/d", contents=True, input=1), inputs=[ctx, there]))
    assert "/d/two.txt" in got and "/d/docs" not in got
    got = solve(ctx, file_op(copy("/", "/x", include=["**/*.go"], exclude=["**/lib"]), inputs=[ctx]))
    assert sorted(got) == ["/x", "/x/src", "/x/src/main.go"]


def test_copies_of_files(solve):
    ctx = local()

    def one(*args, **more):
        return solve(ctx, file_op(copy(*args, **more), inputs=[ctx]))
    assert one("/link", "/l")["/l"].type == tarfile.SYMTYPE
    assert one("/link", "/l", follow=True)["/l"].text == "one"
    assert sorted(one("/docs/*.md", "/m/", wildcard=True)) == ["/m", "/m/hard.md", "/m/one.md"]
    assert one("/no*", "/m", wildcard=True, empty_ok=True) == {}
    f = one("/passwd", "/p", own=owner(by_id(5), by_id(6)), mode_text="u=rwx,go=", time=TIME)["/p"]
    assert (f.uid, f.gid, f.mode, f.mtime) == (5, 6, 0o700, TIME / 1e9)
    for args, more in ((("/no", "/x"), {}), (("/no*", "/x"), {"wildcard": True}),
                       (("/passwd", "/no/x"), {"make": False}),
                       (("/", "/x"), {"include": ["src"], "required": ["/src/no"]})):
        solve(ctx, file_op(copy(*args, **more), inputs=[ctx]), code=3)


def test_types_in_the_way(solve):
    a = file_op(mkfile("/x", b"file"))
    b = file_op(mkdir("/x", output=-1), mkfile("/x/y", b"deep", input=0))
    both = dict(inputs=[a, b])
    assert "non-directory" in solve(a, b, file_op(
        copy("/x", "/x", contents=True, input=0, secondary=1), **both), code=3)
    got = solve(a, b, file_op(copy("/x", "/x", contents=True, replace=True, input=0, secondary=1),
                              **both))
    assert got["/x/y"].text == "deep"


def test_owners_by_name(solve):
    ctx = local()
    etc = file_op(copy("/passwd", "/etc/passwd", output=-1),
                  copy("/group", "/etc/group", input=1), inputs=[ctx])

    def ids(own):
        f = solve(ctx, etc, file_op(mkfile("/f", own=own, input=0), inputs=[etc]))["/f"]
        return f.uid, f.gid
    assert ids(owner(by_name("app"))) == (1000, 1001)
    assert ids(owner(by_name("app"), by_name("staff"))) == (1000, 50)
    assert ids(owner(by_name("nobody"))) == (0, 0)


def test_an_archive_is_unpacked(solve, ctx):
    with tarfile.open(ctx / "a.tar.gz", "w:gz") as tar:
        tar.add(ctx / "docs", "docs")
        tar.add(ctx / "link", "../../up")
    src = local()
    got = solve(src, file_op(copy("/a.tar.gz", "/u/", unpack=True), inputs=[src]))
    assert sorted(got) == ["/u", "/u/docs", "/u/docs/hard.md", "/u/docs/one.md", "/u/docs/two.txt",
                           "/u/up"]
    got = solve(src, file_op(copy("/passwd", "/u/", unpack=True), inputs=[src]))
    assert sorted(got) == ["/u", "/u/passwd"]


def stats(data):
    """The records of .fsutil-metadata: {path: {field: value}}."""
    data, at, found = data.encode("latin-1"), 0, {}

    def number():
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value

    while at < len(data):
        end = at + 4 + int.from_bytes(data[at:at + 4], "little")
        at, record = at + 4, {}
        while at < end:
            key = number()
            value = number()
            if key & 7 == 2:
                at, value = at + value, data[at:at + value]
            record[key >> 3] = value
        found[record.pop(1).decode()] = record
    return found


def test_local_metadata(solve, ctx):
    os.chmod(ctx / "docs" / "two.txt", 0o4640)
    os.utime(ctx / "passwd", ns=(0, TIME + 5))
    (ctx / ".fsutil-metadata").write_text("not this")
    os.mkfifo(ctx / "pipe")
    got = solve(local(metadatatransfer="true"))
    assert sorted(got) == ["/.fsutil-metadata"]
    assert (got["/.fsutil-metadata"].mode, got["/.fsutil-metadata"].uid) == (0o644, 0)
    told = stats(got["/.fsutil-metadata"].text)
    assert [*told] == ["docs", "docs/hard.md", "docs/one.md", "docs/two.txt", "group", "link",
                       "passwd", "pipe", "src", "src/lib", "src/lib/lib.go", "src/main.go"]
    assert told["docs"][2] == 1 << 31 | 0o755 and 5 not in told["docs"]
    assert told["docs/two.txt"][2] == 1 << 23 | 0o640
    assert told["docs/one.md"][7] == b"docs/hard.md" and told["docs/one.md"][5] == 3
    assert 7 not in told["docs/hard.md"]
    assert told["link"][2] == 1 << 27 | 0o777 and told["link"][7] == b"docs/one.md"
    assert told["pipe"][2] & 1 << 25
    assert told["passwd"][6] == TIME + 5 and 3 not in told["passwd"]


def test_local_metadata_exceptions(solve, ctx):
    got = solve(local(metadatatransfer="true", excludepatterns='["docs"]',
                      metadatatransferexclude='["src/**/*.go", "docs"]'))
    assert sorted(got) == ["/.fsutil-metadata", "/src", "/src/lib", "/src/lib/lib.go",
                           "/src/main.go"]
    assert got["/src/lib/lib.go"].text == "lib"
    assert "docs" not in stats(got["/.fsutil-metadata"].text)
    assert "metadatatransferexclude" in solve(local(metadatatransfer="true",
                                                    metadatatransferexclude="x"), code=6)
    assert "/passwd" in solve(local(metadatatransfer="false", metadatatransferexclude='["x"]'))


def test_local_attributes_of_uploads(solve):
    """They are about transfers, of which there are none."""
    plain = {p: m.text for p, m in solve(local()).items()}
    for attrs in ({"differ": "none"}, {"differ": "metadata"}, {"sharedkeyhint": "ctx"},
                  {"unique": "x"}, {"session": "abc"}, {"session": "prefix:abc"}):
        assert {p: m.text for p, m in solve(local(**attrs)).items()} == plain


def test_local_patterns(solve, ctx):
    def left(*patterns):
        return sorted(solve(local(excludepatterns=json.dumps(patterns))))

    rest = ["/group", "/link", "/passwd"]
    src = ["/src", "/src/lib", "/src/lib/lib.go", "/src/main.go"]
    docs = ["/docs", "/docs/hard.md", "/docs/one.md", "/docs/two.txt"]
    assert left("docs/", "src//") == left(" docs ", "src/.") == rest
    assert left("*", "!src") == left("**", "!src/") == src
    assert left("*", "!src", "src/lib") == ["/src", "/src/main.go"]
    assert left("**", "!src/lib/lib.go") == ["/src", "/src/lib", "/src/lib/lib.go"]
    assert left("src", "!src/lib", "src/lib/lib.go", "docs") == [*rest, "/src", "/src/lib"]
    assert left("**/*.go", "docs") == [*rest, "/src", "/src/lib"]
    assert left("**", "!**/*.go") == src
    assert left("src", "docs", "! docs", "!/docs") == rest
    assert left("!docs", "src") == sorted([*docs, *rest])
    assert left("", " ", "src", "*.md") == sorted([*docs, *rest])
    assert left("docs/[a-h]*", "src", "??????") == ["/docs", "/docs/one.md", "/docs/two.txt",
                                                    "/group", "/link"]


def test_local_sources(solve, llbfs, ctx):
    assert sorted(solve(local(includepattern='["src/lib", "link"]'))) == [
        "/link", "/src", "/src/lib", "/src/lib/lib.go"]
    assert "/docs/two.txt" in solve(local(excludepatterns='["docs", "!docs/two.txt"]'))
    assert sorted(solve(local(followpaths='["link"]'))) == ["/docs", "/docs/one.md", "/link"]
    assert all((m.uid, m.gid) == (0, 0) for m in solve(local()).values())
    assert "excludepatterns" in solve(local(excludepatterns="x"), code=6)
    (ctx.parent / "def.pb").write_bytes(definition(local()))
    assert "--local ctx=DIR" in llbfs.error(3, "ls", f"llb://{ctx.parent}/def.pb")


def test_differences(solve):
    base = file_op(mkdir("/d", output=-1), mkfile("/d/a", b"a", input=0, output=-1),
                   mkfile("/d/b", b"b", input=1))
    more = file_op(rm("/d/a", input=0, output=-1), mkfile("/c", b"c", input=1), inputs=[base])
    other = file_op(mkdir("/d", output=-1), mkfile("/d/b", b"B", input=0))
    for upper in (more, other):
        change = diff(base, upper)
        whole = solve(base, upper, change, merge(base, change))
        assert {k: m.text for k, m in whole.items()} == {
            k: m.text for k, m in solve(base, upper).items()}
    assert sorted(solve(base, more, diff(base, more))) == ["/c", "/d"]
    assert sorted(solve(base, other, diff(base, other))) == ["/d", "/d/b"]
    assert solve(base, diff(base, base)) == {}


def test_long_chains(solve):
    ops = [file_op(mkfile("/f0", b"0"))]
    for i in range(1, 1000):
        ops.append(file_op(copy(f"/f{i - 1}", f"/f{i}", input=0), inputs=[ops[-1]]))
    got = solve(*ops)
    assert len(got) == 1000 and {m.text for m in got.values()} == {"0"}


def test_a_file_that_was_changed_since_is_refused(solve, llbfs, ctx, tmp_path):
    """What the mount shows are names and sizes of when it was made."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root and /dev/fuse")
    (tmp_path / "def.pb").write_bytes(definition(local()))
    where = tmp_path / "mnt"
    where.mkdir()
    llbfs("mount", "--local", f"ctx={ctx}", f"llb://{tmp_path}/def.pb", where)
    try:
        assert (where / "src" / "main.go").read_text() == "main"
        (ctx / "docs" / "two.txt").write_text("another")
        with pytest.raises(OSError):
            (where / "docs" / "two.txt").read_text()
    finally:
        llbfs("umount", where)
