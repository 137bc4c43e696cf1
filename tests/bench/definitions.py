# SPDX-License-Identifier: Apache-2.0
"""The definition of a long chain, of which llbfs is to find all in its cache."""
import hashlib


def varint(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def field(number, value):
    """A number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value & (1 << 64) - 1)
    return varint(number << 3 | 2) + varint(len(value)) + value


def input_of(op):
    return field(1, field(1, b'sha256:' + hashlib.sha256(op).hexdigest().encode()))


def chain(n):
    """A vertex makes a file upon the one before it."""
    ops, last = [], b''
    for i in range(n):
        file = field(1, b'/f%d' % i) + field(2, 0o644) + field(3, b'%d' % i) + field(5, 0)
        action = field(1, 0 if last else -1) + field(2, -1) + field(5, file)
        last = (input_of(last) if last else b'') + field(4, field(2, action))
        ops.append(field(1, last))
    return b''.join(ops) + field(1, input_of(last))
