# mypy: disable-error-code="no-untyped-def"
"""Where the Triton kernels' tensors lie, and how their numbers are read, rounded and written; see :mod:`.jit`."""

from __future__ import annotations

import triton
import triton.language as tl

from arturo_core.kernels.triton import tables

#: Numbers of a tensor in the table.
ROW = tl.constexpr(tables.ROW)


@triton.jit
def row_of(table, low, high, block):
    """Where a program's tensor stands in the table: the last row from ``low`` to ``high`` that begins by then."""
    while high - low > 1:
        middle = (low + high) // 2
        begun = tl.load(table + middle * ROW + 7) <= block
        low = tl.where(begun, middle, low)
        high = tl.where(begun, high, middle)
    return table + low * ROW


@triton.jit
def part(row, block, SPAN: tl.constexpr):
    """First element and number of elements of a program's part of a tensor."""
    begin = (block - tl.load(row + 7)) * SPAN
    return begin, tl.minimum(tl.load(row + 6) - begin, SPAN).to(tl.int32)


@triton.jit
def pointer(address, at, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    if KIND == "float32":
        base = address.to(tl.pointer_type(tl.float32)) + at
    elif KIND == "float16":
        base = address.to(tl.pointer_type(tl.float16)) + at
    else:
        base = address.to(tl.pointer_type(tl.uint16)) + at
    if ALIGNED:
        base = tl.multiple_of(base, 16)
    return base


@triton.jit
def value(code, KIND: tl.constexpr):
    """What is stored, as float32."""
    if KIND == "bfloat16":
        return (code.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return code.to(tl.float32)


@triton.jit
def read(address, at, lanes, inside, KIND: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr):
    base = pointer(address, at, KIND, ALIGNED)
    if MASKED:
        return value(tl.load(base + lanes, mask=inside, other=0), KIND)
    else:
        return value(tl.load(base + lanes), KIND)


@triton.jit
def half(bits, x):
    """The upper halves of float32 numbers; of x that is no number, one that is none."""
    return tl.where(x != x, 0x7FC0, bits >> 16).to(tl.uint16)


@triton.jit
def nearest(x, KIND: tl.constexpr):
    """As it is to be stored, rounded to the nearest."""
    if KIND == "bfloat16":
        bits = x.to(tl.uint32, bitcast=True)
        return half(bits + (0x7FFF + ((bits >> 16) & 1)), x)
    elif KIND == "float16":
        return x.to(tl.float16)
    else:
        return x


@triton.jit
def stochastic(x, noise, KIND: tl.constexpr):
    """As it is to be stored, rounded up as often as the 16 random bits say that makes its mean x."""
    if KIND == "bfloat16":
        return half(x.to(tl.uint32, bitcast=True) + (noise & 0xFFFF), x)
    else:
        return x


@triton.jit
def random_bits(key, index):
    """32 bits, a hash of a 32-bit key and the index of an element."""
    x = (index.to(tl.uint32) * 0x9E3779B1) ^ (index >> 32).to(tl.uint32) ^ key
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def displaced(theta, displacement, KIND: tl.constexpr):
    """Displaced weights as they are to be stored, and by how much they move: as far as rounding lets narrow ones."""
    code = nearest(theta + displacement, KIND)
    if KIND == "float32":
        return code, displacement
    else:
        return code, value(code, KIND) - theta
