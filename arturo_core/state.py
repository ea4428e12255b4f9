"""The state tensors of a parameter: one table, used for allocation, loading, byte counts and the documentation.

Every tensor has its parameter's shape, device and memory layout (so it shards with the parameter) and the
optimizer's ``state_dtype`` (float32 unless asked otherwise, so float32 under bfloat16 weights; float64 under
float64 weights); the scalars are 0-dimensional float32. Complex parameters are pairs of real ones: their state
has a last dimension of 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from arturo_core.algorithm.form import StateTensor, scalar_dtype
from arturo_core.algorithm.forms import form_of
from arturo_core.contexts import is_fake, lasting
from arturo_core.distributed.sharding import fits, real_view, runs, shard, shard_like, shard_of
from arturo_core.options import Options, as_float

if TYPE_CHECKING:
    from typing import TypeGuard


def table(options: Options) -> tuple[StateTensor, ...]:
    """The rows in use under these options."""
    return form_of(options).rows


def holds(held: Mapping[str, Any] | None, options: Options) -> TypeGuard[Mapping[str, Any]]:
    """Whether a parameter's state has statistics in it; others may keep entries of their own beside them."""
    return held is not None and not form_of(options).names.isdisjoint(held)


def forget(held: dict[str, Any], options: Options) -> None:
    """Take the statistics out of a parameter's state, and leave the entries of others."""
    for row in table(options):
        held.pop(row.name, None)


def state_dtype(param: Tensor, options: Options) -> torch.dtype:
    """Dtype of a parameter's state and of all arithmetic on it: never narrower than the parameter."""
    return torch.promote_types(param.dtype.to_real(), options.state_dtype)


def allocate(param: Tensor, options: Options) -> dict[str, Tensor]:
    """The state of one parameter before its first gradient, sharded as the parameter is."""
    with lasting():
        theta = real_view(shard(param)).to(state_dtype(param, options))
        found = {}
        for row in table(options):
            if row.scalar:
                scalar = torch.zeros((), dtype=scalar_dtype(row, param.device), device=param.device)
                found[row.name] = row.init(scalar, options)
            else:
                found[row.name] = shard_like(param, row.init(theta, options))
        return found


def restore(saved: Mapping[str, Any], param: Tensor, options: Options) -> dict[str, Any]:
    """Saved statistics with the parameter's device, sharding and memory layout, in the state's own dtype.

    ``torch.optim.Optimizer`` would cast it to the parameter's dtype (float32 statistics of bfloat16 weights
    would lose 16 bits at every resume) and would alias the tensors of the dictionary it was given.
    """
    saved = form_of(options).upgraded(saved)
    like = real_view(shard(param))
    dtype = state_dtype(param, options)
    restored: dict[str, Any] = {}
    for row in table(options):
        value = saved[row.name]
        if row.scalar:
            restored[row.name] = torch.empty((), dtype=scalar_dtype(row, param.device), device=param.device)
            if isinstance(value, Tensor):
                restored[row.name].copy_(value)
            else:
                restored[row.name].fill_(float(value))
        else:
            fresh = torch.empty_like(like, dtype=dtype)
            restored[row.name] = shard_like(param, fresh.copy_(shard_of(value, param)))
    return restored


def check_saved(saved: Mapping[str, Any], param: Tensor, options: Options) -> None:
    """Refuse a saved state that is not this optimizer's, before anything is changed.

    Raises:
        ValueError: names or shapes differ from the table, or a value is none that a step could have left.
    """
    saved = form_of(options).upgraded(saved)
    expected = _shapes(param, options)
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
        if not fits(value, param):
            raise ValueError(
                f"Arturo: the state to load has a shard of {name!r} with {tuple(shard(value).shape)} elements where "
                f"this rank holds {tuple(shard(param).shape)}: it was saved by another rank. Load each rank's own "
                "file, or save and load with torch.distributed.checkpoint, which knows them."
            )
    # Frameworks fill padding up as they like.
    parts = {row.name: [saved[row.name]] if row.scalar else runs(saved[row.name], param) for row in table(options)}
    for row in table(options):
        for part in parts[row.name]:
            dtype = scalar_dtype(row, param.device) if row.scalar else state_dtype(param, options)
            _check_values(row, part, dtype)
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
    whole = (*param.shape, 2) if param.is_complex() else param.shape
    wide = param.dtype in (torch.float64, torch.complex128)
    for row in table(options):
        name, shape, value = row.name, () if row.scalar else whole, held.get(row.name)
        fits_in = row.scalar or not wide or getattr(value, "dtype", None) == torch.float64
        if isinstance(value, Tensor) and value.shape == shape and value.device == param.device and fits_in:
            continue
        again = (
            "Forget what was learned of it, and only that, with `del optimizer.state[param]`, or build the optimizer "
            "after such changes."
        )
        if not isinstance(value, Tensor):
            found = "is missing" if value is None else f"is of type {type(value).__name__}"
            others = ", ".join(repr(one.name) for one in table(options) if one.name in held and one.name != name)
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


def _shapes(param: Tensor, options: Options) -> dict[str, tuple[int, ...]]:
    whole = (*param.shape, 2) if param.is_complex() else tuple(param.shape)
    return {row.name: () if row.scalar else whole for row in table(options)}


def check_free(held: Mapping[str, Any] | None, options: Options, which: Callable[[], str]) -> None:
    """Refuse to put statistics where others keep entries under the same names."""
    taken = sorted({row.name for row in table(options)} & (held or {}).keys())
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


def bytes_per_parameter(options: Options) -> int:
    """Bytes of parameter-shaped state for each element (scalars left out)."""
    return sum(options.state_dtype.itemsize for row in table(options) if not row.scalar)
