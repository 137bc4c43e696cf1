# SPDX-License-Identifier: Apache-2.0
"""Writes LLB definitions (pb.Definition), as far as tests of sources and merges need them.

A definition is the marshalled ops, inputs before their users, the last one a bare terminal that
names the result; an op refers to its inputs by the digest of their bytes.
"""
from images import digest


def varint(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def field(number, value):
    """A string, bytes or a message; numbers as varints (0 is left out, as proto3 does)."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value) if value else b""
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def source(identifier, attrs=None, platform=("amd64", "linux")):
    entries = b"".join(field(2, field(1, k) + field(2, v)) for k, v in (attrs or {}).items())
    arch_os = field(1, platform[0]) + field(2, platform[1])
    return field(3, field(1, identifier) + entries) + field(10, arch_os)


def op_input(op, index=0):
    return field(1, field(1, digest(op)) + field(2, index))


def merge(*inputs):
    """Each input is an op, or (op, trim, add)."""
    inputs = [one if isinstance(one, tuple) else (one, "", "") for one in inputs]
    merged = b""
    for i, (_, trim, add) in enumerate(inputs):
        merged += field(1, field(1, i) + (field(2, add) if add else b"")
                        + (field(3, trim) if trim else b""))
    return b"".join(op_input(op) for op, _, _ in inputs) + field(6, merged)


def definition(*ops):
    """@ops: all of them, inputs before their users; the last is the result."""
    ops = [*dict.fromkeys(ops)]
    ops.append(op_input(ops[-1]))
    return b"".join(field(1, op) for op in ops)
