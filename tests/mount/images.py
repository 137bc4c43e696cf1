# SPDX-License-Identifier: Apache-2.0
"""Tars, their encodings, and OCI layouts of them; and what umoci unpacks from such a layout."""
import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
import zlib

import estargz

TAR = "application/vnd.oci.image.layer.v1.tar"
GZIP = TAR + "+gzip"
ZSTD = TAR + "+zstd"
DOCKER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
INDEX = "application/vnd.oci.image.index.v1+json"
TIME = 1700000000


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


# --- tars ---

def entry(name, data=None, kind=None, mode=None, mtime=TIME, xattrs=None, **more):
    """One member and its data. A name that ends in / is a folder, data makes a file."""
    if kind is None:
        kind = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
    info = tarfile.TarInfo(name.rstrip("/") if kind == tarfile.DIRTYPE else name)
    info.type = kind
    default = {tarfile.DIRTYPE: 0o755, tarfile.SYMTYPE: 0o777}.get(kind, 0o644)
    info.mode = default if mode is None else mode
    info.mtime = mtime
    for key, value in more.items():
        setattr(info, key, value)
    for key, value in (xattrs or {}).items():
        info.pax_headers["SCHILY.xattr." + key] = value.decode("utf-8", "surrogateescape")
    if kind == tarfile.REGTYPE:
        data = data or b""
        info.size = len(data)
    return info, data


def symlink(name, target, **more):
    return entry(name, kind=tarfile.SYMTYPE, linkname=target, **more)


def hardlink(name, target, **more):
    return entry(name, kind=tarfile.LNKTYPE, linkname=target, **more)


def device(name, major, minor, kind=tarfile.CHRTYPE, **more):
    return entry(name, kind=kind, devmajor=major, devminor=minor, **more)


def tar(entries, form=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as t:
        for info, data in entries:
            t.addfile(info, io.BytesIO(data) if data is not None else None)
    return out.getvalue()


# --- encodings of a tar ---

def pipe(data, *command):
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def pieces(data, size):
    return [data[i:i + size] for i in range(0, len(data), size)] or [b""]


def gzip_member(data, level=6, strategy=zlib.Z_DEFAULT_STRATEGY, flush_every=None,
                flush=zlib.Z_FULL_FLUSH):
    c = zlib.compressobj(level, zlib.DEFLATED, 16 + zlib.MAX_WBITS, 8, strategy)
    out = b""
    for piece in pieces(data, flush_every) if flush_every else [data]:
        out += c.compress(piece)
        if flush_every:
            out += c.flush(flush)
    return out + c.flush()


def gzip_decorated(data):
    """Extra field, file name, comment and header checksum before the content."""
    plain = gzip_member(data)
    head = plain[:3] + bytes([0x02 | 0x04 | 0x08 | 0x10]) + plain[4:10]
    head += b"\x04\x00abcd" + b"layer.tar\0" + b"a comment\0"
    return head + zlib.crc32(head).to_bytes(4, "little")[:2] + plain[10:]


def zstd_skippable(size):
    return b"\x50\x2a\x4d\x18" + size.to_bytes(4, "little") + bytes(size)


ENCODINGS = {
    "tar": (TAR, lambda t: t),
    "gzip-1": (GZIP, lambda t: pipe(t, "gzip", "-1")),
    "gzip-9": (GZIP, lambda t: pipe(t, "gzip", "-9")),
    "gzip-stored": (GZIP, lambda t: gzip_member(t, 0)),
    "gzip-huffman": (GZIP, lambda t: gzip_member(t, 6, zlib.Z_HUFFMAN_ONLY)),
    "gzip-fixed": (GZIP, lambda t: gzip_member(t, 6, zlib.Z_FIXED)),
    "gzip-full-flush": (GZIP, lambda t: gzip_member(t, flush_every=100_000)),
    "gzip-sync-flush": (GZIP, lambda t: gzip_member(t, flush_every=131072,
                                                    flush=zlib.Z_SYNC_FLUSH)),
    "gzip-members": (GZIP, lambda t: b"".join(gzip_member(p) for p in pieces(t, 300_001))),
    "gzip-tiny-members": (GZIP, lambda t: b"".join(gzip_member(p) for p in pieces(t, 4099))),
    "gzip-decorated": (GZIP, gzip_decorated),
    "zstd-1": (ZSTD, lambda t: pipe(t, "zstd", "-1")),
    "zstd-19-long": (ZSTD, lambda t: pipe(t, "zstd", "-19", "--long", "-T1")),
    "zstd-no-check": (ZSTD, lambda t: pipe(t, "zstd", "--no-check")),
    "zstd-frames": (ZSTD, lambda t: b"".join(pipe(p, "zstd") for p in pieces(t, 700_001))),
    "zstd-skippable": (ZSTD, lambda t: zstd_skippable(16) + pipe(t, "zstd") + zstd_skippable(0)),
    "pzstd": (ZSTD, lambda t: pipe(t, "pzstd", "-q", "-p", "2")),
    "gzip-called-zstd": (ZSTD, lambda t: pipe(t, "gzip", "-6")),
    "zstd-called-gzip": (GZIP, lambda t: pipe(t, "zstd", "-3")),
    "gzip-called-tar": (TAR, lambda t: pipe(t, "gzip", "-6")),
    "gzip-docker": (DOCKER_GZIP, lambda t: pipe(t, "gzip", "-6")),
}


def encoded(plain, how="gzip-1"):
    """A layer as Layout.image takes it."""
    media_type, encode = ENCODINGS[how]
    return media_type, encode(plain), digest(plain), {}


def encoded_as(how):
    return lambda plain: encoded(plain, how)


def estargz_layer(plain, chunk=estargz.CHUNK, level=6):
    blob, diff_id, toc = estargz.estargz(plain, chunk, level)
    return GZIP, blob, diff_id, {estargz.TOC_ANNOTATION: toc}


# --- layouts ---

class Layout:
    def __init__(self, path):
        self.path = path
        self.manifests = []
        os.makedirs(f"{path}/blobs/sha256", exist_ok=True)
        with open(f"{path}/oci-layout", "w") as f:
            f.write('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, media_type, data, **more):
        name = estargz.add_blob(self.path, data)
        return {"mediaType": media_type, "digest": name, "size": len(data), **more}

    def manifest(self, layers, arch="amd64", config=None, variant=None):
        """The descriptor of an image of (media type, blob, diff ID, annotations) layers."""
        image = {"architecture": arch, "os": "linux", "config": config or {},
                 "rootfs": {"type": "layers", "diff_ids": [layer[2] for layer in layers]}}
        platform = {"architecture": arch, "os": "linux"}
        if variant:
            image["variant"] = platform["variant"] = variant
        descs = []
        for media_type, data, _, annotations in layers:
            more = {"annotations": annotations} if annotations else {}
            descs.append(self.blob(media_type, data, **more))
        doc = {"schemaVersion": 2, "mediaType": estargz.MANIFEST_TYPE,
               "config": self.blob(estargz.CONFIG_TYPE, json.dumps(image).encode()),
               "layers": descs}
        return self.blob(estargz.MANIFEST_TYPE, json.dumps(doc).encode(), platform=platform)

    def index(self, manifests):
        doc = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        return self.blob(INDEX, json.dumps(doc).encode())

    def tag(self, desc, tag="latest"):
        self.manifests.append({**desc, "annotations": {"org.opencontainers.image.ref.name": tag}})
        with open(f"{self.path}/index.json", "w") as f:
            json.dump({"schemaVersion": 2, "manifests": self.manifests}, f)
        return self

    def image(self, layers, tag="latest", **more):
        return self.tag(self.manifest(layers, **more), tag)

    def read(self, name):
        return estargz.read_blob(self.path, name)

    def layers(self, n=0):
        """The descriptors of the layers of the n-th image; of an index, its first."""
        desc = self.manifests[n]
        doc = json.loads(self.read(desc["digest"]))
        while "manifests" in doc:
            doc = json.loads(self.read(doc["manifests"][0]["digest"]))
        return doc["layers"]

    @property
    def ref(self):
        return f"oci-layout://{self.path}"


def open_layout(path):
    layout = Layout(path)
    with open(f"{path}/index.json") as f:
        layout.manifests = json.load(f)["manifests"]
    return layout


class Toc:
    """An eStargz blob's table of contents: where what is."""

    def __init__(self, blob):
        self.size = len(blob)
        self.toc_offset = int(blob[-51:][16:32], 16)
        index = gzip.decompress(blob[self.toc_offset:])
        with tarfile.open(fileobj=io.BytesIO(index)) as t:
            self.entries = json.load(t.extractfile(estargz.TOC_NAME))["entries"]
        self.offsets = sorted({e["offset"] for e in self.entries if e.get("offset")})

    @property
    def toc_bytes(self):
        """Of the table with its footer."""
        return self.size - self.toc_offset

    def members(self, name):
        """[(first, end)] of the members that hold a file's content, at most: up to the next."""
        ranges = []
        for e in self.entries:
            if e["name"] == name and e.get("offset"):
                later = [o for o in self.offsets if o > e["offset"]]
                ranges.append((e["offset"], later[0] if later else self.toc_offset))
        return ranges


def convert(layout, target, make=estargz_layer):
    """The same image as @layout, each layer made anew from its tar. Layers are gzip."""
    out = Layout(target)
    return out.image([make(gzip.decompress(layout.read(d["digest"]))) for d in layout.layers()])


def umoci_unpack(layout, dest, tag="latest"):
    done = subprocess.run(["umoci", "unpack", "--image", f"{layout}:{tag}", dest],
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert done.returncode == 0, f"umoci: {done.stderr.decode()}"
    return f"{dest}/rootfs"
