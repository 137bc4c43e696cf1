# SPDX-License-Identifier: Apache-2.0
"""Every layer format shows the same tree: by a mount, by ls and by tar."""
import os
import subprocess
import tarfile

import pytest

import images
import listing

SAMPLES = {
    "estargz-default": "estargz",
    "estargz-chunk64k": "estargz",
    "estargz-minchunk": "estargz",
    "estargz-prefetch": "estargz",
    "estargz-lossless": "gzip",  # has no table that the manifest vouches for in the layer itself
    "gzip-single": "gzip",
    "gzip-multimember": "gzip",
    "gzip-fname": "gzip",
    "zstd-3": "zstd",
    "zstd-multiframe": "zstd",
    "zstd-seekable": "zstd",
    "uncompressed": "tar",
}
# What builders of eStargz put into the tar for readers of eStargz.
LANDMARKS = {"/stargz.index.json", "/.no.prefetch.landmark", "/.prefetch.landmark"}


def without_landmarks(facts):
    return {path: one for path, one in facts.items() if path not in LANDMARKS}


def check_mount(llbfs, ref, expected, alike=listing.whole_seconds):
    with llbfs.mount(ref) as m:
        got = listing.of_dir(m.path)
        status = m.status()
    listing.assert_equal(expected, alike(without_landmarks(got)))
    return status


def check_commands(llbfs, ref, expected, alike=listing.whole_seconds):
    rows = llbfs.run("ls", "-lR", "--sha256", "--format", "json", ref).stdout
    got = alike(without_landmarks(listing.of_rows(rows)))
    got["/"] = alike(listing.of_rows(llbfs.run("stat", "--format", "json", ref, "/").stdout))["/"]
    listing.assert_equal(expected, got)
    got = alike(without_landmarks(listing.of_tar(llbfs.run("tar", ref).stdout)))
    got.setdefault("/", expected["/"])
    listing.assert_equal(expected, got)


@pytest.mark.parametrize("sample", SAMPLES)
def test_sample_mounts_as_expected(llbfs, formats, expected, sample):
    status = check_mount(llbfs, f"oci-layout://{formats(sample)}:v1", expected)
    assert SAMPLES[sample] in {layer["format"] for layer in status["layers"]}
    assert not status["errors"]
    for layer in status["layers"]:
        assert layer["ready"] and layer["lazy"], layer


@pytest.mark.parametrize("sample", SAMPLES)
def test_sample_lists_as_expected_without_a_mount(llbfs, formats, expected, sample):
    check_commands(llbfs, f"oci-layout://{formats(sample)}:v1", expected)


@pytest.fixture(scope="module")
def rich_tar():
    """What encoders and readers may trip over: runs of zeros, noise, text, odd lengths."""
    noise = b"".join(images.digest(b"%d" % i).encode() for i in range(30_000))
    e = images.entry
    return images.tar([
        e("empty"), e("one", b"1"), e("block", b"x" * 512), e("block1", b"x" * 513),
        e("noise", noise), e("zeros", bytes(3_000_000)),
        e("text", b"all work and no play " * 99_999),
        e("d/", mode=0o2750, uid=7, gid=8), e("d/f", b"deep", mode=0o4755, mtime=1.5),
        images.hardlink("d/link", "noise"), images.symlink("sym", "d/f"),
        e("xattrs", b"x", xattrs={"user.a": b"\x00\xff\n=", "user.b": b"v" * 3000}),
        images.device("null", 1, 3, mode=0o666), images.device("loop", 7, 300, tarfile.BLKTYPE),
        e("fifo", kind=tarfile.FIFOTYPE), e("old", b"", mtime=0), e("new", b"", mtime=2**33),
    ])


@pytest.fixture(scope="module")
def rich(rich_tar, shared):
    layout = images.Layout(f"{shared}/rich").image([images.encoded(rich_tar, "gzip-1")])
    return listing.of_dir(images.umoci_unpack(layout.path, f"{shared}/rich-unpacked"))


@pytest.mark.parametrize("how", images.ENCODINGS)
def test_encoding_mounts_as_umoci_unpacks_gzip(llbfs, work, rich_tar, rich, how):
    layout = images.Layout(f"{work}/layout").image([images.encoded(rich_tar, how)])
    status = check_mount(llbfs, layout.ref, rich, alike=dict)
    assert status["layers"][0]["format"] == images.pipe(
        layout.read(layout.layers()[0]["digest"])[:4], "sh", "-c",
        "case $(od -An -tx1 | tr -d ' ') in 1f8b*) printf gzip;; 28b52ffd|5?2a4d18) printf zstd;;"
        " *) printf tar;; esac").decode()
    check_commands(llbfs, layout.ref, rich, alike=dict)


@pytest.mark.parametrize("chunk", [1 << 12, 1 << 20])
def test_own_estargz_mounts_as_umoci_unpacks_gzip(llbfs, work, rich_tar, rich, chunk):
    layout = images.Layout(f"{work}/layout").image([images.estargz_layer(rich_tar, chunk)])
    expected = listing.whole_seconds(rich)
    status = check_mount(llbfs, layout.ref, expected)
    assert status["layers"][0]["format"] == "estargz"
    check_commands(llbfs, layout.ref, expected)


@pytest.mark.parametrize("form, sparse", [
    ("v7", None), ("ustar", None), ("oldgnu", None), ("oldgnu", ""), ("gnu", None), ("gnu", ""),
    ("posix", None), ("posix", "0.0"), ("posix", "0.1"), ("posix", "1.0")])
def test_tar_dialect_mounts_as_the_folder_it_was_made_of(llbfs, work, form, sparse):
    make_folder(f"{work}/src", long_names=form not in ("v7", "ustar"))
    options = ["--sparse", "--hole-detection=seek"] if sparse is not None else []
    if sparse:
        options.append(f"--sparse-version={sparse}")
    tar = images.pipe(b"", "tar", "-C", f"{work}/src", f"--format={form}", "--sort=name", *options,
                      *(["--xattrs"] if form == "posix" else []), "-c", ".")
    layout = images.Layout(f"{work}/layout").image([images.encoded(tar, "gzip-9")])
    alike = dict if form == "posix" else listing.whole_seconds
    expected = alike(listing.of_dir(f"{work}/src"))
    if form != "posix":
        expected = {p: {k: v for k, v in f.items() if k != "xattrs"} for p, f in expected.items()}
    check_mount(llbfs, layout.ref, expected, alike)
    check_commands(llbfs, layout.ref, expected, alike)


def make_folder(path, long_names):
    os.makedirs(f"{path}/d")
    with open(f"{path}/holes", "wb") as f:
        for off in (0, 70_000, 1_000_000, 4_194_304):
            f.seek(off)
            f.write(b"island at %d" % off)
        f.truncate(5_000_001)
    with open(f"{path}/only-a-hole", "wb") as f:
        f.truncate(300_000)
    with open(f"{path}/d/plain", "wb") as f:
        f.write(os.urandom(100_000))
    os.setxattr(f"{path}/d/plain", "user.note", b"a\x00b\n")
    os.link(f"{path}/d/plain", f"{path}/d/same")
    os.symlink("d/plain", f"{path}/s")
    os.chmod(f"{path}/d", 0o3711)
    os.chown(f"{path}/d", 1234, 56789)
    if long_names:
        deep = path + "/n" * 3 + "/" + "long" * 40 + "/" + "name" * 50
        os.makedirs(os.path.dirname(deep))
        with open(deep, "wb") as f:
            f.write(b"far")
        os.symlink("t" * 300, f"{path}/far-link")
    for name in sorted(os.listdir(path)):
        os.utime(f"{path}/{name}", ns=(0, 1_600_000_000_123_456_789), follow_symlinks=False)
    subprocess.run(["find", path, "-type", "d", "-exec", "touch", "-d", "@1234567890", "{}", "+"],
                   check=True)


def test_layer_whose_tar_is_cut_off_is_an_error(llbfs, work, rich_tar):
    layout = images.Layout(f"{work}/layout").image([images.encoded(rich_tar[:2_000_000], "gzip-1")])
    done = llbfs.run("ls", layout.ref, code=None)
    assert done.returncode not in (0, 1) and done.stderr.count(b"\n") == 1, done


@pytest.mark.parametrize("how", ["gzip-1", "zstd-1", "tar", "estargz"])
def test_layer_with_a_flipped_bit_gives_no_wrong_byte(llbfs, work, rich_tar, how):
    make = images.estargz_layer if how == "estargz" else images.encoded_as(how)
    layout = images.Layout(f"{work}/layout").image([make(rich_tar)])
    path = f"{layout.path}/blobs/{layout.layers()[0]['digest'].replace(':', '/')}"
    if how == "estargz":
        first = images.Toc(layout.read(layout.layers()[0]["digest"])).members("noise")[0][0]
    with open(path, "r+b") as f:
        f.seek(first + 5000 if how == "estargz" else os.path.getsize(path) // 3)
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte[0] ^ 0x40]))
    done = llbfs.run("cat", layout.ref, "/noise", code=6)
    assert not done.stdout
    assert done.stderr.count(b"\n") == 1
    if how == "estargz":  # the rest of the layer is not touched by it
        assert llbfs.run("cat", layout.ref, "/one").stdout == b"1"
