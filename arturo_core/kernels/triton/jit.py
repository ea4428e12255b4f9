# mypy: disable-error-code="no-untyped-def"
"""The Triton kernels of the default form; imported only where Triton is there (the package launches them).

A launch covers many tensors. Its programs, one for each ``SPAN`` elements of a tensor, find their tensor in a table of
int64 numbers, ROW for each: the addresses of θ, the gradient, u, σ, s and D, the number of elements, the number
of its first program, and its place in the caller's list. A program works in blocks of ``BLOCK`` elements. Each lane
adds up in float32, the lanes are added at the end of a program, and programs in float64, in their order.

Arithmetic is float32 and follows :func:`arturo_core.algorithm.compact.compact_update`, with the chip's quick divisions
and roots, good to two roundings. bfloat16 is rounded here, bit by bit: Triton's interpreter rounds it in another way
than chips do.

Names in capitals are compile-time constants. THETA, GRAD, STATE and KIND are dtypes ("float32", "bfloat16", "float16");
ALIGNED says that all addresses are multiples of 16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from arturo_core.algorithm import compact
from arturo_core.kernels.triton.elements import (
    ROW,
    displaced,
    nearest,
    part,
    pointer,
    random_bits,
    read,
    row_of,
    stochastic,
    value,
)
from arturo_core.numerics import NEGLIGIBLE
from arturo_core.options import CURVATURE_RANGE

#: Numbers that :func:`write` takes at once.
WRITTEN = 128

#: Added to what :func:`write` takes.
LARGE = 1 << 62

#: The largest float32 below 1e18: larger gradients are unusable (arturo_core.distributed.reductions.LARGEST_GRADIENT).
LARGEST_GRADIENT = 9.99999984306749e17

#: Of the key, for the second time in a step that u is rounded.
SECOND = 0x55555555

# What changes from call to call, for which Triton would compile kernels of their own.
_VARYING = ["low", "high", "first", "rows", "columns"]
_SCALARS = ["gains", "ok", "decay", "length", "factor", "seeds"]

_LARGE = tl.constexpr(LARGE)
_LARGEST_GRADIENT = tl.constexpr(LARGEST_GRADIENT)
_SECOND = tl.constexpr(SECOND)
_NOISE_FLOOR = tl.constexpr(compact.NOISE_FLOOR)
_LARGEST_DIRECTION = tl.constexpr(compact.LARGEST_DIRECTION)
_DECAY_REACH = tl.constexpr(compact.DECAY_REACH)
_CURVATURE_STEP = tl.constexpr(compact.CURVATURE_STEP)
_MOVED = tl.constexpr(compact.MOVED)
_LEAST_CURVATURE = tl.constexpr(CURVATURE_RANGE[0])
_MOST_CURVATURE = tl.constexpr(CURVATURE_RANGE[1])
_NEGLIGIBLE = tl.constexpr(NEGLIGIBLE)
_WRITTEN = tl.constexpr(WRITTEN)


@triton.jit
def write(table, values):
    """Write numbers to a table that are arguments of the launch, and so part of a captured graph.

    Args:
        table: int64.
        values: :data:`WRITTEN` numbers, each shifted by 4 bits, plus 1, plus :data:`LARGE`. So coded none is small or a
            multiple of 16, for which Triton would compile a kernel of its own.
    """
    for place in tl.static_range(_WRITTEN):
        tl.store(table + place, (values[place] - _LARGE) >> 4)


@triton.jit
def _between(x, least, most):
    return tl.clamp(x, least, most, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _everywhere(x, BLOCK: tl.constexpr):
    """Whether a scalar is not 0, in every lane. From an integer: so Triton sees that lanes agree, and stores widely."""
    return tl.full([BLOCK], (x != 0.0).to(tl.int32), tl.int32) != 0


@triton.jit
def _flushed(x):
    return tl.where(tl.abs(x) <= _NEGLIGIBLE, 0.0, x)


@triton.jit
def _survey_block(
    theta_at, grad_at, at, count, bad, squares,
    THETA: tl.constexpr, GRAD: tl.constexpr, ALIGNED: tl.constexpr, SQUARES: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    lanes = tl.arange(0, BLOCK)
    inside = lanes < count
    grad = read(grad_at, at, lanes, inside, GRAD, ALIGNED, MASKED)
    bad = tl.where(tl.abs(grad) <= _LARGEST_GRADIENT, bad, 1.0)
    if SQUARES:
        theta = read(theta_at, at, lanes, inside, THETA, ALIGNED, MASKED)
        squares += theta * theta
    return bad, squares


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_SCALARS)
def survey(
    table, low, high, first, sums, rows,
    THETA: tl.constexpr, GRAD: tl.constexpr, ALIGNED: tl.constexpr, SQUARES: tl.constexpr,
    BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Whether a gradient is unusable, and Σθ² if that is asked for.

    Args:
        table: of tensors, int64.
        low: the first row of this launch.
        high: the first row that is not of it.
        first: the number of its first program.
        sums: float64, ``rows`` entries for each sum, one a program.
        rows: programs of all launches.
    """
    block = first + tl.program_id(0)
    row = row_of(table, low, high, block)
    begin, count = part(row, block, SPAN)
    theta, grad = tl.load(row), tl.load(row + 1)
    bad = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    whole = count // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        bad, squares = _survey_block(
            theta, grad, begin + start, BLOCK, bad, squares, THETA, GRAD, ALIGNED, SQUARES, BLOCK, False
        )
    if whole < count:
        bad, squares = _survey_block(
            theta, grad, begin + whole, count - whole, bad, squares, THETA, GRAD, ALIGNED, SQUARES, BLOCK, True
        )
    tl.store(sums + block, tl.max(bad, 0).to(tl.float64))
    if SQUARES:
        tl.store(sums + rows + block, tl.sum(squares, 0).to(tl.float64))


@triton.jit
def _gains(table):
    """The scalars of a tensor, float32; the columns of its row in the order of the table."""
    k, alpha, v = tl.load(table), tl.load(table + 1), tl.load(table + 2)
    p, level = tl.load(table + 3), tl.load(table + 4)
    pending, moved = tl.load(table + 5), tl.load(table + 6)
    return (
        k.to(tl.float32), alpha.to(tl.float32), v.to(tl.float32), p.to(tl.float32), level.to(tl.float32),
        pending.to(tl.float32), moved.to(tl.float32),
    )  # fmt: skip


@triton.jit
def _observe_block(
    addresses, at, count, gains, terms, random, decrement, stiffness, spread, surprise, squared,
    THETA: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr, ALIGNED: tl.constexpr, MAXIMIZE: tl.constexpr,
    DECAY: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The update of a block, and its share of the sums."""
    theta_at, grad_at, u_at, sigma_at, s_at, moved_at = addresses
    k, alpha, v, p, level, pending, moved = gains
    ok, decay, length = terms
    live = _everywhere(ok, BLOCK)
    lanes = tl.arange(0, BLOCK)
    inside = lanes < count
    writes = live
    if MASKED:
        writes = inside & live
    u_before = read(u_at, at, lanes, inside, STATE, ALIGNED, MASKED)
    sigma_before = read(sigma_at, at, lanes, inside, STATE, ALIGNED, MASKED)
    s_before = read(s_at, at, lanes, inside, STATE, ALIGNED, MASKED)
    moved_before = read(moved_at, at, lanes, inside, STATE, ALIGNED, MASKED)
    observed = read(grad_at, at, lanes, inside, GRAD, ALIGNED, MASKED)
    if MAXIMIZE:
        observed = -observed

    # Re-centred, as far as the last step and the decay of this one ask for.
    displacement = moved_before - moved * u_before
    gradient = (1.0 - pending) * u_before * s_before * sigma_before
    if DECAY:
        theta = read(theta_at, at, lanes, inside, THETA, ALIGNED, MASKED)
        code, shrunk = displaced(theta, -decay * theta, THETA)
        tl.store(pointer(theta_at, at, THETA, ALIGNED) + lanes, code, mask=writes)
        reach = _DECAY_REACH * k
        shift = _between(s_before * shrunk / length, -reach, reach)
        gradient += shift * sigma_before
        displacement += shrunk

    innovation = observed - gradient
    noise = sigma_before * sigma_before
    outside = 1.0 + p
    noise += alpha * (innovation * innovation * (1.0 / outside) - noise)
    sigma = tl.sqrt(tl.maximum(noise, _NOISE_FLOOR, propagate_nan=tl.PropagateNan.ALL))
    x = displacement / length
    variance = outside + v * x * x
    ratio = innovation / sigma
    scaled = ratio / variance
    growth = _between(v * x * scaled, -_CURVATURE_STEP, _CURVATURE_STEP)
    common = level * tl.minimum(x * x * (1.0 / _MOVED), 1.0)
    s = _between(s_before * tl.exp(growth - common), _LEAST_CURVATURE, _MOST_CURVATURE)
    displacement = _flushed((1.0 - k) * displacement)
    gradient = _flushed(gradient + k * innovation)
    u = _between(gradient / (s * sigma), -_LARGEST_DIRECTION, _LARGEST_DIRECTION)

    # What is kept counts: as it is stored, and as it was where the step is skipped.
    noise_bits = tl.zeros([BLOCK], tl.uint32)
    if STATE == "bfloat16":
        key, index = random
        noise_bits = random_bits(key, index + at + lanes)
    u_code = stochastic(u, noise_bits, STATE)
    sigma_code = stochastic(sigma, noise_bits >> 16, STATE)
    s_code = nearest(s, STATE)
    tl.store(pointer(u_at, at, STATE, ALIGNED) + lanes, u_code, mask=writes)
    tl.store(pointer(sigma_at, at, STATE, ALIGNED) + lanes, sigma_code, mask=writes)
    tl.store(pointer(s_at, at, STATE, ALIGNED) + lanes, s_code, mask=writes)
    tl.store(pointer(moved_at, at, STATE, ALIGNED) + lanes, nearest(displacement, STATE), mask=writes)
    u = tl.where(live, value(u_code, STATE), u_before)
    sigma = tl.where(live, value(sigma_code, STATE), sigma_before)
    stiff = tl.where(live, value(s_code, STATE), s_before) * sigma
    counted = tl.where(live, ratio * scaled, 0.0)
    if MASKED:
        # The other terms are zero there.
        stiff = tl.where(inside, stiff, 0.0)
        sigma = tl.where(inside, sigma, 0.0)
    newton = u * length
    return (
        decrement + newton * (u * stiff), stiffness + stiff, spread + sigma, surprise + counted,
        squared + newton * newton,
    )  # fmt: skip


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_SCALARS)
def observe(
    table, low, high, first, gains, ok, decay, length, seeds, sums, rows,
    THETA: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr, ALIGNED: tl.constexpr, MAXIMIZE: tl.constexpr,
    DECAY: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Re-centre what is pending, decay, update with a gradient, and sum what the dual needs.

    Args:
        table: as for :func:`survey`, with ``low``, ``high``, ``first``, ``sums`` and ``rows``.
        gains: 7 columns, a row a tensor.
        ok: 1, or 0 if the step is skipped.
        decay: lr × weight decay; read if DECAY.
        length: ℓ.
        seeds: int64, a key and the index of the first element for each tensor; read if STATE is "bfloat16".
    """
    block = first + tl.program_id(0)
    row = row_of(table, low, high, block)
    begin, count = part(row, block, SPAN)
    number = tl.load(row + 8)
    addresses = (
        tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4), tl.load(row + 5),
    )  # fmt: skip
    scalars = _gains(gains + 7 * number)
    amount = 0.0
    if DECAY:
        amount = tl.load(decay).to(tl.float32)
    terms = (tl.maximum(tl.load(ok).to(tl.float32), 0.0), amount, tl.load(length).to(tl.float32))
    random = (0, 0)
    if STATE == "bfloat16":
        random = (tl.load(seeds + 2 * number).to(tl.uint32), tl.load(seeds + 2 * number + 1))
    decrement = tl.zeros([BLOCK], tl.float32)
    stiffness = tl.zeros([BLOCK], tl.float32)
    spread = tl.zeros([BLOCK], tl.float32)
    surprise = tl.zeros([BLOCK], tl.float32)
    squared = tl.zeros([BLOCK], tl.float32)
    whole = count // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        decrement, stiffness, spread, surprise, squared = _observe_block(
            addresses, begin + start, BLOCK, scalars, terms, random,
            decrement, stiffness, spread, surprise, squared,
            THETA, GRAD, STATE, ALIGNED, MAXIMIZE, DECAY, BLOCK, False,
        )  # fmt: skip
    if whole < count:
        decrement, stiffness, spread, surprise, squared = _observe_block(
            addresses, begin + whole, count - whole, scalars, terms, random,
            decrement, stiffness, spread, surprise, squared,
            THETA, GRAD, STATE, ALIGNED, MAXIMIZE, DECAY, BLOCK, True,
        )  # fmt: skip
    tl.store(sums + block, tl.sum(decrement, 0).to(tl.float64))
    tl.store(sums + rows + block, tl.sum(stiffness, 0).to(tl.float64))
    tl.store(sums + 2 * rows + block, tl.sum(spread, 0).to(tl.float64))
    tl.store(sums + 3 * rows + block, tl.sum(surprise, 0).to(tl.float64))
    tl.store(sums + 4 * rows + block, tl.sum(squared, 0).to(tl.float64))


@triton.jit
def _apply_block(
    addresses, at, count, terms, random, squares,
    THETA: tl.constexpr, STATE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    theta_at, u_at, moved_at = addresses
    moved, length = terms
    live = _everywhere(moved, BLOCK)
    lanes = tl.arange(0, BLOCK)
    inside = lanes < count
    writes = live
    if MASKED:
        writes = inside & live
    theta = read(theta_at, at, lanes, inside, THETA, ALIGNED, MASKED)
    u = read(u_at, at, lanes, inside, STATE, ALIGNED, MASKED)
    code, displacement = displaced(theta, -moved * u, THETA)
    tl.store(pointer(theta_at, at, THETA, ALIGNED) + lanes, code, mask=writes)
    if THETA != "float32":
        noise_bits = tl.zeros([BLOCK], tl.uint32)
        if STATE == "bfloat16":
            key, index = random
            noise_bits = random_bits(key ^ _SECOND, index + at + lanes)
        u_code = stochastic(u + displacement / length, noise_bits, STATE)
        total = read(moved_at, at, lanes, inside, STATE, ALIGNED, MASKED) + displacement
        tl.store(pointer(u_at, at, STATE, ALIGNED) + lanes, u_code, mask=writes)
        tl.store(pointer(moved_at, at, STATE, ALIGNED) + lanes, nearest(total, STATE), mask=writes)
    theta = tl.where(live, value(code, THETA), theta)
    return squares + theta * theta


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_SCALARS)
def apply(
    table, low, high, first, factor, length, seeds, sums, rows,
    THETA: tl.constexpr, STATE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Take the step θ − fℓu, re-centre at once where weights are narrow, and sum θ².

    Args:
        table: as for :func:`survey`, with ``low``, ``high``, ``first``, ``sums`` and ``rows``.
        factor: f; nothing is written where it is 0.
        length: ℓ.
        seeds: as for :func:`observe`; read if weights are narrow and STATE is "bfloat16".
    """
    block = first + tl.program_id(0)
    row = row_of(table, low, high, block)
    begin, count = part(row, block, SPAN)
    addresses = (tl.load(row), tl.load(row + 2), tl.load(row + 5))
    unit = tl.load(length).to(tl.float32)
    terms = (tl.load(factor).to(tl.float32) * unit, unit)
    random = (0, 0)
    if STATE == "bfloat16" and THETA != "float32":
        number = tl.load(row + 8)
        random = (tl.load(seeds + 2 * number).to(tl.uint32), tl.load(seeds + 2 * number + 1))
    squares = tl.zeros([BLOCK], tl.float32)
    whole = count // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        squares = _apply_block(
            addresses, begin + start, BLOCK, terms, random, squares, THETA, STATE, ALIGNED, BLOCK, False
        )
    if whole < count:
        squares = _apply_block(
            addresses, begin + whole, count - whole, terms, random, squares, THETA, STATE, ALIGNED, BLOCK, True
        )
    tl.store(sums + block, tl.sum(squares, 0).to(tl.float64))


@triton.jit(do_not_specialize=_VARYING)
def total(table, sums, rows, out, columns, BLOCK: tl.constexpr, SPAN: tl.constexpr):
    """Add up the programs' sums of a tensor; a program for each row of the table and each column of sums.

    Args:
        table: of the tensors, int64.
        sums: float64, ``rows`` entries for each column.
        rows: programs of all launches.
        out: float64, a row of ``columns`` entries for each tensor, in the caller's order.
        columns: of sums.
    """
    row = table + tl.program_id(0) * ROW
    column = tl.program_id(1)
    begin = sums + column * rows + tl.load(row + 7)
    count = (tl.load(row + 6) + (SPAN - 1)) // SPAN
    lanes = tl.arange(0, BLOCK)
    found = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        found += tl.load(begin + start + lanes, mask=lanes < count - start, other=0.0)
    tl.store(out + tl.load(row + 8) * columns + column, tl.sum(found, 0))


#: Whether Triton's interpreter runs these, on tensors of the CPU (TRITON_INTERPRET=1 when Triton was imported).
INTERPRETED = not isinstance(write, triton.runtime.JITFunction)
