# SPDX-License-Identifier: Apache-2.0
"""hash: the digests that BuildKit's cache had of the same paths, on a folder it was sent."""
import hashlib
import os
import subprocess

import pytest
from conftest import DEMO, TESTS

# what BuildKit 0.32 recorded for copies out of data/contenthash/ctx.tar.gz
RECORDED = [
    (["/src"],
     "18fecdfa608a6610ee50d657bf6f705f716bc644739752c1ac4893744871e7fb"),
    (["/docs/*.md", "--wildcard"],
     "1931da1989f17a2a4c747c2d73dfac1eb1eceb3622a621f96dfd451fe7592daa"),
    (["/"],
     "8f7ecb960b26a868ae8a63a1642aeeadaab7ba5712ddbc10c0d7ac43db0f9e8c"),
    (["/run.sh"],
     "2a227c0f5ed1d3ae22736588d3db009ddbfa6874b8e78cac7260ee265819cb3a"),
    (["/docs"],
     "a3bf341025f55551c6ace6ef5ee95d1560ed9a73436c79f33a34b3b03f861d43"),
    (["/", "--exclude", "src", "--exclude", "docs/img"],
     "35be22300e28852b2065c0ca35756f77e3796977087973464d4d721c6754a107"),
    (["/README.md"],
     "5661b7643139f5dcb731ed06955b7e680fe1ec17b180342271bea25551b1ea46"),
    (["/", "--include", "src", "--include", "docs/*", "--exclude", "**/*_test.go", "--exclude", "!src/test/lib_test.go"],
     "93bcc19aa6792048e9fd6b040d573e05ec9d62eb481dd4eb4a90cb9975752491"),
    (["/", "--include", "**/*.go"],
     "0657b5cd0f3ef453b1c56bd0aaacede335af9c73a7e050ab714c37a1435dd9ef"),
    (["/", "--include", "src/**"],
     "7a568c820b36a0ce2ba1afbdb9b6f7a68825aec6dbbb8945e257762f1d883a1c"),
    (["/link-dir", "--follow"],
     "a3bf341025f55551c6ace6ef5ee95d1560ed9a73436c79f33a34b3b03f861d43"),
    (["/link-file", "--follow"],
     "eb724f5fd7b13a543e53fdaf0461cc1854e0f112a4fc1b9c67a439c658f8d248"),
    (["/link-dir/one.md"],
     "ed2c04a1615720d03467be0ff1db18b5668b8f3fd13e8fbd96bfc4daa4f15b74"),
    (["/link-file"],
     "c60ccf6820e05952ebcdd4897567b5150400ae264358b48dd559605d1f1dcf8f"),
    (["/archive/pkg.tar.gz"],
     "20583f0bfc46256e911a1f0a38437a61a2b1470caea889ad595002848e4385b2"),
    (["/zz*", "--wildcard"],
     "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
]
NOTHING = "sha256:" + hashlib.sha256(b"").hexdigest()


@pytest.fixture
def context(tmp_path):
    subprocess.run(["tar", "-xpzf", f"{TESTS}/data/contenthash/ctx.tar.gz", "-C", tmp_path],
                   check=True)
    return tmp_path / "ctx"


@pytest.mark.parametrize("words,want", RECORDED, ids=[" ".join(words) for words, _ in RECORDED])
def test_hash_is_what_buildkit_recorded(llbfs, context, words, want):
    assert llbfs.text("hash", context, *words) == f"sha256:{want}\n"


def test_hash_sees_what_a_copy_sees(llbfs, context):
    """Times do not count, all else does; / is what is hashed when no path is given."""
    was = llbfs.text("hash", context)
    assert was == llbfs.text("hash", context, "/")
    os.utime(context / "src" / "main.go", ns=(1, 1))
    assert llbfs.text("hash", context) == was
    os.chmod(context / "src" / "main.go", 0o755)
    changed = llbfs.text("hash", context)
    assert changed != was
    os.rename(context / "src" / "main.go", context / "src" / "mine.go")
    assert llbfs.text("hash", context) not in (was, changed)


def test_hash_of_a_merge_is_that_of_its_inputs(llbfs, context):
    """Owners are what they are, but for a folder by itself, which a client would upload."""
    merged = ("--merge", f"ref={context},trim=/src,add=/src", "/src")
    same = llbfs.text("hash", *merged) == llbfs.text("hash", context, "/src")
    assert same == (os.stat(context / "src").st_uid == 0 == os.stat(context / "src").st_gid)


def test_hash_of_an_image(llbfs):
    rows = llbfs.json("hash", DEMO, "/")
    assert rows == [{"ref": DEMO, "path": "/", "digest": rows[0]["digest"]}]
    assert llbfs.text("hash", DEMO).strip() == rows[0]["digest"]
    assert llbfs.text("hash", "--wildcard", DEMO, "/no-such*").strip() == NOTHING


def test_hash_of_scratch(llbfs, tmp_path):
    merge = b"\x32\x00"  # an Op with an empty MergeOp
    name = b"sha256:" + hashlib.sha256(merge).hexdigest().encode()
    source = b"\x0a" + bytes([len(name)]) + name
    end = b"\x0a" + bytes([len(source)]) + source
    (tmp_path / "def").write_bytes(b"".join(b"\x0a" + bytes([len(op)]) + op for op in (merge, end)))
    assert llbfs.text("hash", f"llb://{tmp_path}/def").strip() == NOTHING
    assert "/a" in llbfs.error(3, "hash", f"llb://{tmp_path}/def", "/a")


def test_hash_says_why_not(llbfs, context):
    assert "/absent" in llbfs.error(3, "hash", context, "/absent")
    assert "[" in llbfs.error(2, "hash", "--wildcard", context, "/a[")
    assert "!" in llbfs.error(2, "hash", "--include", "!", context)
