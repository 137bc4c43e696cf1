#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One image in twelve encodings; expected.jsonl is what each of them unpacks to.

A folder here is an OCI layout without its layers. They are in pool/, once each, and named in
blobs.txt; uncompressed ones are not kept, as the gzip ones of gzip-single decompress to them.

    complete.py LAYOUT DEST     makes the folder DEST a complete layout
"""
import gzip
import hashlib
import os
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def pool_file(name):
    return os.path.join(HERE, "pool", "sha256", name)


def uncompressed(name):
    """The content of a blob that only a compressed one of gzip-single gives."""
    with open(os.path.join(HERE, "gzip-single", "blobs.txt")) as names:
        for twin in names.read().split():
            with gzip.open(pool_file(twin)) as f:
                content = f.read()
            if hashlib.sha256(content).hexdigest() == name:
                return content
    sys.exit(f"no blob {name} in the pool")


def complete(layout, dest):
    shutil.copytree(os.path.join(HERE, layout), dest, dirs_exist_ok=True)
    with open(os.path.join(HERE, layout, "blobs.txt")) as names:
        for name in names.read().split():
            path = os.path.join(dest, "blobs", "sha256", name)
            if os.path.exists(pool_file(name)):
                shutil.copy(pool_file(name), path)
            else:
                with open(path, "wb") as f:
                    f.write(uncompressed(name))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    complete(sys.argv[1], sys.argv[2])
