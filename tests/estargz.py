#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes eStargz layers, and OCI layouts of them.

    estargz.py IN_LAYOUT OUT_LAYOUT      the first image of IN_LAYOUT with its layers as eStargz

An eStargz blob is a gzip file of many members, which unzips to a tar as every layer does. A member
holds either tar headers, or the content of one file (a piece of at most CHUNK bytes of it). The last
but one member is a tar entry with the table of contents: for each piece its offset in the blob and
its digest. The last is an empty member, of 51 bytes, whose header tells where the table begins. The
manifest vouches for the table by its digest in an annotation.
"""
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
import time
import zlib
from base64 import b64encode

CHUNK = 4 << 20
TOC_NAME = "stargz.index.json"
TOC_ANNOTATION = "containerd.io/snapshot/stargz/toc.digest"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
XATTR = "SCHILY.xattr."


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def gzip_member(data, level=9):
    deflate = zlib.compressobj(level, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()


def footer(toc_offset):
    """An empty gzip member with an extra field: id "SG", 22 bytes."""
    extra = b"%016xSTARGZ" % toc_offset
    field = b"SG" + len(extra).to_bytes(2, "little") + extra
    header = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff" + len(field).to_bytes(2, "little")
    return header + field + b"\x01\x00\x00\xff\xff" + bytes(8)


def toc_entry(member):
    kinds = {tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink",
             tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block", tarfile.FIFOTYPE: "fifo"}
    kind = kinds.get(member.type, "reg")
    entry = {
        "name": member.name + ("/" if kind == "dir" else ""),
        "type": kind,
        "modtime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(member.mtime))),
        "mode": member.mode,
        "uid": member.uid,
        "gid": member.gid,
    }
    if member.linkname:
        entry["linkName"] = member.linkname
    if kind in ("char", "block"):
        entry["devMajor"], entry["devMinor"] = member.devmajor, member.devminor
    xattrs = {key[len(XATTR):]: b64encode(value.encode("utf-8", "surrogateescape")).decode()
              for key, value in member.pax_headers.items() if key.startswith(XATTR)}
    if xattrs:
        entry["xattrs"] = xattrs
    return entry


class Writer:
    """Collects members; what is pending becomes one when something else must begin."""

    def __init__(self, level):
        self.level = level
        self.out = bytearray()
        self.plain = hashlib.sha256()
        self.pending = bytearray()

    def flush(self):
        if self.pending:
            self.plain.update(self.pending)
            self.out += gzip_member(bytes(self.pending), self.level)
            self.pending.clear()


def estargz(tar, chunk=CHUNK, level=9):
    """(blob, diff_id, digest of the table) for the bytes of a tar."""
    w = Writer(level)
    entries = []
    done = 0  # bytes of the tar that were taken
    with tarfile.open(fileobj=io.BytesIO(tar)) as t:
        for member in t:
            entry = toc_entry(member)
            entries.append(entry)
            w.pending += tar[done:member.offset_data]
            done = member.offset_data
            if entry["type"] != "reg" or member.size == 0:
                continue
            data = tar[done:done + member.size]
            done += member.size
            entry["size"] = len(data)
            entry["digest"] = digest(data)
            for off in range(0, len(data), chunk):
                piece = data[off:off + chunk]
                w.flush()
                if off > 0:
                    entry = {"name": member.name, "type": "chunk", "chunkOffset": off}
                    entries.append(entry)
                if len(data) > chunk:
                    entry["chunkSize"] = len(piece)
                entry["offset"] = len(w.out)
                entry["chunkDigest"] = digest(piece)
                w.pending += piece
            w.flush()
    w.pending += bytes(-done % 512)
    w.flush()

    toc = json.dumps({"version": 1, "entries": entries}, indent="\t").encode()
    toc_offset = len(w.out)
    index = io.BytesIO()
    with tarfile.open(fileobj=index, mode="w", format=tarfile.USTAR_FORMAT) as t:
        info = tarfile.TarInfo(TOC_NAME)
        info.size = len(toc)
        t.addfile(info, io.BytesIO(toc))
    w.pending += index.getvalue()
    w.flush()
    w.out += footer(toc_offset)
    return bytes(w.out), "sha256:" + w.plain.hexdigest(), digest(toc)


def add_blob(layout, data):
    os.makedirs(f"{layout}/blobs/sha256", exist_ok=True)
    name = digest(data)
    with open(f"{layout}/blobs/{name.replace(':', '/')}", "wb") as f:
        f.write(data)
    return name


def write_layout(layout, tars, tag="latest", config=None, chunk=CHUNK, level=9):
    """An OCI layout folder with one linux/amd64 image, its layers the given tars as eStargz."""
    layers, diff_ids = [], []
    for tar in tars:
        blob, diff_id, toc_digest = estargz(tar, chunk, level)
        diff_ids.append(diff_id)
        layers.append({"mediaType": LAYER_TYPE, "digest": add_blob(layout, blob), "size": len(blob),
                       "annotations": {TOC_ANNOTATION: toc_digest}})
    image = {"architecture": "amd64", "os": "linux", "config": config or {},
             "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    image = json.dumps(image).encode()
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE,
                "config": {"mediaType": CONFIG_TYPE, "digest": add_blob(layout, image),
                           "size": len(image)},
                "layers": layers}
    manifest = json.dumps(manifest).encode()
    index = {"schemaVersion": 2, "manifests": [
        {"mediaType": MANIFEST_TYPE, "digest": add_blob(layout, manifest), "size": len(manifest),
         "platform": {"architecture": "amd64", "os": "linux"},
         "annotations": {"org.opencontainers.image.ref.name": tag}}]}
    with open(f"{layout}/index.json", "w") as f:
        json.dump(index, f)
    with open(f"{layout}/oci-layout", "w") as f:
        f.write('{"imageLayoutVersion": "1.0.0"}')


def read_blob(layout, name):
    with open(f"{layout}/blobs/{name.replace(':', '/')}", "rb") as f:
        return f.read()


def convert(source, target):
    with open(f"{source}/index.json") as f:
        manifest = json.load(f)
    while "manifests" in manifest:
        manifest = json.loads(read_blob(source, manifest["manifests"][0]["digest"]))
    config = json.loads(read_blob(source, manifest["config"]["digest"])).get("config")
    tars = []
    for layer in manifest["layers"]:
        data = read_blob(source, layer["digest"])
        tars.append(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    write_layout(target, tars, config=config)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: estargz.py IN_LAYOUT OUT_LAYOUT")
    convert(sys.argv[1], sys.argv[2])
