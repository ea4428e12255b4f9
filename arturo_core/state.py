"""The state tensors of a parameter: one table, used for allocation, loading, byte counts and the documentation.

Every tensor has its parameter's shape, device and memory layout (so it shards with the parameter) and is kept as
``state_dtype`` says (float32 unless asked otherwise, so float32 under bfloat16 weights; float64 under float64 weights;
:mod:`arturo_core.storage.kinds`); the scalars are 0-dimensional float32. Complex parameters are pairs of real ones:
their state has a last dimension of 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from arturo_core.algorithm.compact import Kept
from arturo_core.algorithm.form import StateTensor, scalar_dtype
from arturo_core.algorithm.forms import form_of
from arturo_core.contexts import is_fake, lasting
from arturo_core.distributed.sharding import fits, is_dtensor, real_view, runs, shard, shard_like, shard_of
from arturo_core.options import Options, as_float
from arturo_core.storage.choices import EIGHT_BITS
from arturo_core.storage.codes import BLOCK, MOST
from arturo_core.storage.keeping import CODED_NAMES, to_nearest, values
from arturo_core.storage.kinds import ROWS, Entry, Kind, arithmetic, entries, kind, kind_of, whole_shape

if TYPE_CHECKING:
    from typing import TypeGuard


def table(options: Options) -> tuple[StateTensor, ...]:
    """The rows in use under these options."""
    return form_of(options).rows


def holds(held: Mapping[str, Any] | None, options: Options) -> TypeGuard[Mapping[str, Any]]:
    """Whether a parameter's state has statistics in it; others may keep entries of their own beside them."""
    return held is not None and not _names(options).isdisjoint(held)


def forget(held: dict[str, Any], options: Options) -> None:
    """Take the statistics out of a parameter's state, and leave the entries of others."""
    for name in _names(options) | {row.name for row in table(options)}:
        held.pop(name, None)


def allocate(param: Tensor, options: Options) -> dict[str, Tensor]:
    """The state of one parameter before its first gradient, sharded as the parameter is."""
    with lasting():
        kept = kind(param, options)
        here = real_view(shard(param))
        # Narrow rows begin with the same number everywhere: one block of them says what that is.
        theta = here.to(arithmetic(param, options)) if kept is Kind.WIDE else here.new_zeros(BLOCK, dtype=torch.float32)
        rows = {}
        for row in table(options):
            if row.scalar:
                scalar = torch.zeros((), dtype=scalar_dtype(row, param.device), device=param.device)
                rows[row.name] = row.init(scalar, options)
            else:
                value = row.init(theta, options)
                rows[row.name] = shard_like(param, value) if kept is Kind.WIDE else value
        if kept is Kind.WIDE:
            return rows
        found = {row.name: rows[row.name] for row in table(options) if row.scalar}
        first = to_nearest(Kept(*(rows[name] for name in ROWS)), kept is Kind.CODED)
        for entry, value in zip(entries(ROWS, kept), first, strict=True):
            whole = _empty(param, entry, value.dtype)
            found[entry.name] = _like(param, entry, whole.copy_(value[0].expand_as(whole)))
        return _in_order(found, options)


def _in_order(held: dict[str, Any], options: Options) -> dict[str, Any]:
    """A state with its entries in the table's order, those that it does not name last."""
    names = [row.name for row in table(options) if row.name in held]
    return {name: held[name] for name in [*names, *(name for name in held if name not in names)]}


def restore(saved: Mapping[str, Any], param: Tensor, options: Options) -> dict[str, Any]:
    """Saved statistics with the parameter's device, sharding and memory layout, in the state's own dtype.

    ``torch.optim.Optimizer`` would cast it to the parameter's dtype (float32 statistics of bfloat16 weights
    would lose 16 bits at every resume) and would alias the tensors of the dictionary it was given.
    """
    saved = form_of(options).upgraded(saved)
    restored: dict[str, Any] = {}
    for row in table(options):
        if row.scalar:
            value = saved[row.name]
            restored[row.name] = torch.empty((), dtype=scalar_dtype(row, param.device), device=param.device)
            if isinstance(value, Tensor):
                restored[row.name].copy_(value)
            else:
                restored[row.name].fill_(float(value))
    kept, here = kind_of(saved), kind(param, options)
    rows = _unpacked(saved) if kept is Kind.CODED is not here else saved
    coded = _codes(rows, param) if here is Kind.CODED is not kept else {}
    for entry in _entries(options, here):
        fresh = _empty(param, entry, entry.dtype or arithmetic(param, options))
        if coded:
            fresh.copy_(coded[entry.name].view_as(fresh))
        else:
            fresh.copy_(shard_of(rows[entry.name], param))
        restored[entry.name] = _like(param, entry, fresh)
    return _in_order(restored, options)


def converts(saved: Mapping[str, Any], param: Tensor, options: Options) -> bool:
    """Whether a saved state is kept in another way than this optimizer keeps it."""
    return kind_of(form_of(options).upgraded(saved)) is not kind(param, options)


def _unpacked(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """What saved codes stand for; of the whole parameter, since shards here may cut blocks."""
    return values({entry.name: _whole(saved[entry.name]) for entry in entries(ROWS, Kind.CODED)})


def _codes(rows: Mapping[str, Any], param: Tensor) -> dict[str, Tensor]:
    """This rank's part of saved rows in 8 bits, rounded to the nearest, once; flat."""
    local = (shard_of(rows[name], param).to(param.device, torch.float32).reshape(-1) for name in ROWS)
    return dict(zip(CODED_NAMES, to_nearest(Kept(*local), coded=True), strict=True))


def _whole(value: Any) -> Tensor:
    whole: Tensor = value.full_tensor() if is_dtensor(value) else value
    return whole


def _entries(options: Options, kept: Kind) -> tuple[Entry, ...]:
    """The tensors of the state that are not scalars, in the order of a pass."""
    return entries(tuple(row.name for row in table(options) if not row.scalar), kept)


def _empty(param: Tensor, entry: Entry, dtype: torch.dtype) -> Tensor:
    """A tensor for this rank's part of an entry."""
    like = real_view(shard(param))
    if not entry.scale:
        return torch.empty_like(like, dtype=dtype)
    return like.new_empty(_local_shape(param, entry), dtype=dtype)


def _local_shape(param: Tensor, entry: Entry) -> tuple[int, ...]:
    """Shape of this rank's part of an entry."""
    like = real_view(shard(param))
    if not entry.scale:
        return tuple(like.shape)
    return like.shape[0], math.prod(like.shape[1:]) // BLOCK


def _like(param: Any, entry: Entry, here: Tensor) -> Tensor:
    return shard_like(param, here, whole_shape(param, entry) if entry.scale else None)


def check_saved(saved: Mapping[str, Any], param: Tensor, options: Options) -> None:
    """Refuse a saved state that is not this optimizer's, before anything is changed.

    Raises:
        ValueError: names or shapes differ from the table, or a value is none that a step could have left.
    """
    saved = form_of(options).upgraded(saved)
    kept = kind_of(saved)
    if options.noise == "adaptive" and kept is Kind.CODED and not _is_whole_in_codes(saved):
        kept = Kind.WIDE  # which says what is missing
    of_rows = _entries(options, kept)
    expected = _shapes(param, options, kept)
    local = {entry.name: _local_shape(param, entry) for entry in of_rows}
    missing = sorted(expected.keys() - saved.keys())
    if missing:
        raise ValueError(
            f'Arturo: the state to load lacks {", ".join(missing)} for noise="{options.noise}"; it holds '
            f"{', '.join(sorted(map(str, saved)))}. Build the optimizer with the options it was saved with "
            '(noise="adaptive" and noise="fixed" keep different statistics; other optimizers\' states do not fit).'
        )
    for name, shape in expected.items():
        value = saved[name]
        if shape == () and not isinstance(value, Tensor) and as_float(value) is not None:
            continue  # dictionaries written by hand, or by optimizers of old
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"Arturo: the state to load has {name!r} of {found} where {shape} is expected: the parameters "
                "come in another order or shape than when it was saved."
            )
        if value.layout != torch.strided or value.is_complex() or (value.is_meta and not param.is_meta):
            raise ValueError(
                f"Arturo: the state to load has {name!r} of {value.dtype}, {value.layout}, on {value.device}: it has "
                "to be real, dense and to hold numbers."
            )
        if not fits(value, param, local.get(name, ())):
            raise ValueError(
                f"Arturo: the state to load has a shard of {name!r} with {tuple(shard(value).shape)} elements where "
                f"this rank holds {local.get(name, ())}: it was saved by another rank. Load each rank's own "
                "file, or save and load with torch.distributed.checkpoint, which knows them."
            )
    # Frameworks fill padding up as they like.
    parts = {
        entry.name: [shard(saved[entry.name])] if kept is Kind.CODED else runs(saved[entry.name], param)
        for entry in of_rows
    }
    row_of = {row.name: row for row in table(options)}
    for row in table(options):
        if row.scalar:
            _check_values(row, saved[row.name], scalar_dtype(row, param.device))
    for entry in of_rows:
        row = row_of[entry.row]
        if kept is Kind.CODED and entry.name != entry.row:
            row = replace(
                row, name=entry.name, least=0.0 if entry.scale else -MOST, most=math.inf if entry.scale else MOST
            )
        for part in parts[entry.name]:
            _check_values(row, part, arithmetic(param, options))
    if "cov_gh" in parts:
        for run in zip(parts["cov_gg"], parts["cov_gh"], parts["cov_hh"], strict=True):
            _check_definite(*run)


def check_held(held: Mapping[str, Any], param: Tensor, options: Options, which: Callable[[], str]) -> None:
    """Refuse to step with statistics that are not the parameter's, before anything is changed.

    Args:
        held: the parameter's state, with the entries of others.
        param: the parameter.
        options: of the optimizer.
        which: names the parameter.

    Raises:
        ValueError: names, shapes or devices differ from the table; the message says how to go on.
    """
    kept = kind_of(held)
    shapes, dtypes = _shapes(param, options, kept), _dtypes(param, options, kept)
    for name, shape in shapes.items():
        value = held.get(name)
        fits_in = getattr(value, "dtype", None) in dtypes[name]
        if isinstance(value, Tensor) and value.shape == shape and value.device == param.device and fits_in:
            continue
        again = (
            "Forget what was learned of it, and only that, with `del optimizer.state[param]`, or build the optimizer "
            "after such changes."
        )
        if not isinstance(value, Tensor):
            found = "is missing" if value is None else f"is of type {type(value).__name__}"
            others = ", ".join(repr(one) for one in shapes if one in held and one != name)
            raise ValueError(
                f"Arturo: {name!r} in the state of parameter {which()} {found}, beside {others}. An entry of your own "
                f"needs another name. {again}"
            )
        if value.shape != shape:
            raise ValueError(
                f"Arturo: parameter {which()} has shape {tuple(param.shape)}, and {name!r} in its state "
                f"{tuple(value.shape)}: its data were exchanged since its last step (transposed, resized). {again}"
            )
        raise ValueError(
            f"Arturo: parameter {which()} is of {param.dtype} on {param.device}, and its statistics of {value.dtype} "
            f"on {value.device}: it was moved or converted since its last step. Let them follow with "
            "`optimizer.load_state_dict(optimizer.state_dict())`."
        )


def _shapes(param: Tensor, options: Options, kept: Kind) -> dict[str, tuple[int, ...]]:
    scalars: dict[str, tuple[int, ...]] = {row.name: () for row in table(options) if row.scalar}
    return scalars | {entry.name: whole_shape(param, entry) for entry in _entries(options, kept)}


def _dtypes(param: Tensor, options: Options, kept: Kind) -> dict[str, tuple[torch.dtype, ...]]:
    """Dtypes that statistics may have, by name; none for a storage that the options did not ask for."""
    wide = (torch.float64,) if arithmetic(param, options) == torch.float64 else (torch.float32, torch.float64)
    asked = kept is not Kind.CODED or options.state_dtype == EIGHT_BITS
    asked = asked and (kept is Kind.WIDE or options.state_dtype not in (torch.float32, torch.float64))
    found: dict[str, tuple[torch.dtype, ...]] = {
        row.name: (torch.float32, torch.float64) for row in table(options) if row.scalar
    }
    for entry in _entries(options, kept):
        found[entry.name] = () if not asked else wide if entry.dtype is None else (entry.dtype,)
    return found


def _names(options: Options) -> frozenset[str]:
    """Of everything that keeps statistics, in whatever storage."""
    names = form_of(options).names
    return names | frozenset(CODED_NAMES) if options.noise == "adaptive" else names


def _is_whole_in_codes(saved: Mapping[str, Any]) -> bool:
    return all(name in saved for name in CODED_NAMES)


def check_free(held: Mapping[str, Any] | None, options: Options, which: Callable[[], str]) -> None:
    """Refuse to put statistics where others keep entries under the same names."""
    taken = sorted(({row.name for row in table(options)} | _names(options)) & (held or {}).keys())
    if taken:
        raise ValueError(
            f"Arturo: the state of parameter {which()} holds {', '.join(map(repr, taken))} already, of somebody else: "
            "an Arturo keeps its own under that name. Your own needs another name."
        )


def _check_definite(cov_gg: Tensor, cov_gh: Tensor, cov_hh: Tensor) -> None:
    """Raise ``ValueError`` where a covariance of ĝ and h is larger than their variances allow."""
    if is_fake(cov_gg) or not cov_gg.numel():
        return
    # Narrower dtypes round the parts on their own.
    apart = cov_gh.abs().double() > 1.02 * cov_gg.double().sqrt() * cov_hh.double().sqrt()
    if bool(apart.any()):
        raise ValueError(
            "Arturo: the state to load has covariances in 'cov_gh' that are larger than 'cov_gg' and 'cov_hh' allow, "
            "which no step leaves: the checkpoint is damaged. Load an earlier one."
        )


def _check_values(row: StateTensor, value: Any, dtype: torch.dtype) -> None:
    """Raise ``ValueError`` for values that no step leaves, or that the state's dtype cannot hold."""
    if not isinstance(value, Tensor):
        value = torch.tensor(as_float(value), dtype=torch.float64, device="cpu")
    here = shard(value)
    if is_fake(here) or not here.numel():
        return
    low, high = (float(end) for end in torch.aminmax(here))
    largest = torch.finfo(dtype).max
    # NaN survives aminmax, and fails the comparison.
    if not (max(row.least, -largest) <= low and high <= min(row.most, largest)):
        raise ValueError(
            f"Arturo: the state to load has values from {low:.3g} to {high:.3g} in {row.name!r} ({row.meaning}), which "
            "no step leaves: the checkpoint is damaged, or another optimizer's. Load an earlier one."
        )


def bytes_per_parameter(options: Options) -> float:
    """Bytes of state for each element of a large parameter (scalars left out)."""
    dtype = options.state_dtype
    kept = Kind.WIDE if dtype in (torch.float32, torch.float64) else Kind.NARROW
    found = _entries(options, Kind.CODED if dtype == EIGHT_BITS else kept)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return sum((entry.dtype or wide).itemsize / (BLOCK if entry.scale else 1) for entry in found)
