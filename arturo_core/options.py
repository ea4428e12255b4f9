"""The hyper-parameters: one table of defaults, and the checks every value has to pass.

``PAPER`` holds the published values (arXiv 2310.20574, its CIFAR task with the small CNN) and is the default of
``noise="fixed"`` and of :meth:`Arturo.paper`. ``ADAPTIVE`` holds the defaults of ``noise="adaptive"``, in which
every quantity is dimensionless because the gradient noise supplies the unit. A name missing from a table
has no meaning in that mode, and giving it is an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from arturo_core.contexts import is_fake
from arturo_core.storage.choices import check_rounding, check_state_dtype

TrustRegion = Literal["rms", "kl"]
Noise = Literal["adaptive", "fixed"]

#: The bound ε of the published CIFAR settings, in nats.
PAPER_KL_BOUND = 0.00278750

PAPER: dict[str, float] = {
    "temperature": 0.296786,
    "prior_precision": 0.0015,
    "precision_momentum": 1.3,
    "init_variance": 0.01,
    "init_hessian": 0.1,
    "init_covariance": 5e-5,
    "measurement_noise": 1.21975,
    "process_noise": 0.00245526,
}

ADAPTIVE: dict[str, float] = {
    "temperature": 1.0,
    "prior_precision": 0.0,
    "init_hessian": 1.0,
    "init_covariance": 0.8,
    "process_noise": 0.03,
}

DEFAULTS: dict[str, dict[str, float]] = {"adaptive": ADAPTIVE, "fixed": PAPER}

#: What every number may be, both ends included: far beyond what anyone uses, and short of where float32 gives out.
#: Where zero has a meaning the range begins with it; a rate of zero freezes a group.
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "adaptive": {
        "temperature": (1e-12, 1e6),
        "prior_precision": (0.0, 1e12),
        "init_hessian": (0.1, 10.0),
        "init_covariance": (1e-12, 1e6),
        "process_noise": (0.0, 1.0),  # more takes the noise for signal, and steps many times as long as lr says
        "length_scale": (1e-9, 1e6),
    },
    "fixed": {
        "temperature": (1e-12, 1e6),
        "prior_precision": (0.0, 1e12),
        "precision_momentum": (1e-9, 1e9),
        "init_variance": (1e-12, 1e12),
        "init_hessian": (1e-12, 1e12),
        "init_covariance": (1e-15, 1e9),
        "measurement_noise": (1e-18, 1e18),
        "process_noise": (0.0, 1e9),
    },
}

#: Largest learning rate by trust region: weight units, and nats.
LARGEST_LR: dict[str, float] = {"rms": 1e6, "kl": 1e12}

#: A learning rate below this counts as 0: no weight would move, and its square is hardly a number.
STANDSTILL = 1e-100

#: Largest weight decay. A step takes no more than the whole weight away, however large lr × weight decay is.
LARGEST_DECAY = 1e6

#: Least kl_rtol by the dtype of a parameter's state: sums of that dtype are no better.
LEAST_KL_RTOL = {torch.float32: 1e-6, torch.float64: 1e-12}

#: Trust radius in units of lr ("rms"): AdamW's own steps have an RMS of 0.2 to 0.4 of its learning rate, so
#: this factor makes AdamW's learning rates carry over.
RADIUS_PER_LR = 0.35

#: Trust radius in units of lr × the RMS of ĝ/(sσ), where that is more: gradients that agree are followed farther, as
#: AdamW follows them, whose RMS step is lr × that of m/√v.
RADIUS_PER_SIGNAL = 1.0

#: Least multiplier of the trust region in units of κ, self-calibrating form: no step is longer than 1/(1 + DAMPING) of
#: Newton's, which an ℓ too long (a learning rate too large) would make too long where the bound does not bind.
DAMPING = 2.0

#: Length ℓ of the curvature prior h0 = σ/ℓ, in units of the largest learning rate that the weights' size let count.
LENGTH_PER_LR = 8.0

#: Length ℓ with ``trust_region="kl"``, where lr is in nats and says nothing of lengths: that of lr = 1e-3 otherwise.
KL_LENGTH = 8e-3

#: Least ℓ, whose square and its inverse fit float32.
SHORTEST_LENGTH = 1e-15

#: Gain of the noise estimate once the growing average of the first steps has reached it.
NOISE_GAIN = 0.003

#: Range of the relative curvature h/h0. Its lower end keeps every precision positive.
CURVATURE_RANGE = (0.1, 10.0)

# Options of the whole model besides the numbers of PAPER.
_GLOBAL = (
    "trust_region",
    "noise",
    "kl_rtol",
    "length_scale",
    "state_dtype",
    "compile",
    "fused",
    "process_group",
    "stochastic_rounding",
)

_MEANING = {
    "temperature": "the weight κ of the prior",
    "prior_precision": "the precision λ0 of the prior",
    "precision_momentum": "the weight ν of the old precision",
    "init_variance": "the variance 1/λ of a weight before the first step",
    "init_hessian": "the curvature before the first step",
    "init_covariance": "the filter's covariance before the first step",
    "measurement_noise": "the variance R of a gradient's noise",
    "process_noise": "the variance d by which the model drifts in a step",
    "length_scale": "the length ℓ of the curvature prior, weight units",
}


@dataclass(frozen=True)
class Options:
    """Settings of the whole model: one value each, because one multiplier couples all parameters.

    ``precision_momentum``, ``init_variance`` and ``measurement_noise`` are NaN with ``noise="adaptive"``,
    where the precision is tied to the curvature and the noise is estimated. ``length_scale`` is None where ℓ
    follows the peak learning rate (:data:`LENGTH_PER_LR`).
    """

    trust_region: TrustRegion
    noise: Noise
    kl_rtol: float
    temperature: float
    prior_precision: float
    precision_momentum: float
    init_variance: float
    init_hessian: float
    init_covariance: float
    measurement_noise: float
    process_noise: float
    length_scale: float | None
    state_dtype: torch.dtype | str  # EIGHT_BITS, if it is text
    compile: bool
    fused: bool | None = None  # the default also of pickles that lack it
    stochastic_rounding: bool = False  # likewise

    @property
    def prior(self) -> float:
        """κλ0, what the prior adds to every curvature (gradient units per weight unit)."""
        return self.temperature * self.prior_precision


def make_options(
    *,
    trust_region: str,
    noise: str,
    kl_rtol: float,
    length_scale: float | None,
    state_dtype: torch.dtype | str,
    compile: bool,
    fused: bool | None = None,
    stochastic_rounding: bool = False,
    **given: float | None,
) -> Options:
    """Fill in the defaults of the chosen mode and check every value.

    Raises:
        ValueError: a value is outside its range, or names something the chosen mode does not have.
        TypeError: a value is not a number.
    """
    check_choice("trust_region", trust_region, get_args(TrustRegion))
    check_choice("noise", noise, get_args(Noise))
    kl_rtol = check_number("kl_rtol", kl_rtol, "the relative tolerance of the KL bound")
    if not 0.0 < kl_rtol < 1.0:
        raise ValueError(
            f"Arturo: kl_rtol={kl_rtol} must lie between 0 and 1 (exclusive): it is the relative tolerance to "
            "which the step meets its KL bound, 1e-3 by default."
        )
    state_dtype = check_state_dtype(state_dtype)
    if noise == "fixed" and state_dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f'Arturo: state_dtype={str(state_dtype).removeprefix("torch.")} has no meaning with noise="fixed", whose '
            'state is float32 or float64: leave it out, or use noise="adaptive".'
        )
    if not isinstance(compile, bool):
        raise TypeError(f"Arturo: compile={compile!r} must be True or False.")
    if fused is not None and not isinstance(fused, bool):
        raise TypeError(f"Arturo: fused={fused!r} must be True, False, or None: where there is a kernel.")
    if length_scale is not None:
        if noise == "fixed":
            raise ValueError(
                f'Arturo: length_scale={length_scale} has no meaning with noise="fixed", where the curvature starts at '
                "init_hessian. Leave it out."
            )
        length_scale = _check_range("length_scale", length_scale, noise)
    elif noise == "adaptive" and trust_region == "kl":
        length_scale = KL_LENGTH
    defaults = DEFAULTS[noise]
    values: dict[str, float] = {}
    for name in PAPER:
        value = given.get(name)
        if name not in defaults:
            if value is not None:
                check_number(name, value, _MEANING[name])
                raise ValueError(
                    f'Arturo: {name}={value} has no meaning with noise="{noise}": there {_MEANING[name]} is '
                    f'learned from the gradients. Leave it out, or choose noise="fixed", where it is a constant.'
                )
            values[name] = math.nan
            continue
        values[name] = _check_range(name, defaults[name] if value is None else value, noise)
    return Options(
        trust_region=trust_region,  # type: ignore[arg-type]  # checked above
        noise=noise,  # type: ignore[arg-type]
        kl_rtol=kl_rtol,
        length_scale=length_scale,
        state_dtype=state_dtype,
        compile=compile,
        fused=fused,
        stochastic_rounding=check_rounding(stochastic_rounding, noise),
        **values,
    )


def check_process_group(value: Any) -> None:
    """Raise ``TypeError`` unless it is None, a process group or a device mesh."""
    if value is None:
        return
    if torch.distributed.is_available():
        from torch.distributed import GroupMember, ProcessGroup
        from torch.distributed.device_mesh import DeviceMesh

        if isinstance(value, (ProcessGroup, DeviceMesh)):
            return
        if isinstance(value, int) and value == GroupMember.NON_GROUP_MEMBER:
            raise TypeError(
                "Arturo: process_group is one that this rank does not belong to: give every rank the group that holds "
                "the ranks which its own parameters are split over."
            )
    raise TypeError(
        f"Arturo: process_group={str(value)[:60]!r} is of type {type(value).__name__}: it takes a "
        "torch.distributed.ProcessGroup (torch.distributed.group.WORLD, or one of new_group), a DeviceMesh, or None."
    )


def _check_range(name: str, value: Any, noise: str) -> float:
    checked: float = check_number(name, value, _MEANING[name])
    low, high = RANGES[noise][name]
    if not low <= checked <= high:
        sign = "positive" if low > 0.0 else "non-negative"
        default = DEFAULTS[noise].get(name)
        raise ValueError(
            f"Arturo: {name}={checked} must be {sign} and lie in [{low:g}, {high:g}]: it is {_MEANING[name]} "
            f'({"left out it follows lr" if default is None else f"default {default:g}"} with noise="{noise}").'
        )
    return checked


def check_tolerance(options: Options, dtype: torch.dtype) -> None:
    """Raise ``ValueError`` if ``kl_rtol`` is finer than what sums over a state of ``dtype`` can tell."""
    if options.kl_rtol < LEAST_KL_RTOL[dtype]:
        raise ValueError(
            f"Arturo: kl_rtol={options.kl_rtol} is finer than the sums of a step: it must be at least "
            f"{LEAST_KL_RTOL[dtype]:g} with a state in {dtype}"
            f"{' (1e-12 with state_dtype=torch.float64)' if dtype == torch.float32 else ''}."
        )


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        choices = " or ".join(f'"{choice}"' for choice in allowed)
        raise ValueError(f"Arturo: {name}={value!r} is not known: choose {choices}.")


def check_number(name: str, value: Any, meaning: str) -> float:
    """``value`` as a finite float: any real number does, also a tensor or an array of one element.

    Raises:
        TypeError: not a real number (strings, booleans and complex numbers are not).
        ValueError: NaN, infinite or beyond the range of floats.
    """
    number = as_float(value)
    if number is None:
        raise TypeError(f"Arturo: {name}={shown(value)} must be a number: it is {meaning}.")
    if not math.isfinite(number):
        raise ValueError(f"Arturo: {name}={shown(value)} must be finite: it is {meaning}.")
    return number


def as_float(value: Any) -> float | None:
    """A real number of any type as a float, infinite if it is too large for one; None if it is no real number."""
    if isinstance(value, float):
        return float(value)
    if hasattr(value, "dtype") and hasattr(value, "item"):  # tensors, NumPy's scalars and arrays
        if isinstance(value, Tensor):
            value = (
                value.item() if value.numel() == 1 and value.layout == torch.strided and not is_fake(value) else None
            )
        else:
            # A masked element has no value, whatever its memory says.
            value = value.item() if value.size == 1 and not getattr(value, "mask", False) else None
    if isinstance(value, (bool, str, bytes, bytearray)) or not hasattr(type(value), "__float__"):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except Exception:  # whatever a type of somebody else raises
        return None


def shown(value: Any) -> str:
    """A value as an error message shows it, cut where it is long."""
    try:
        text = str(value) if isinstance(value, (float, int)) and not isinstance(value, bool) else repr(value)
    except ValueError:  # integers of thousands of digits
        return f"<{type(value).__name__} with too many digits>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_tensor_lr(lr: Any, unit: str = "a number") -> None:
    """Refuse a tensor lr that no number can be had from; its value is not read."""
    if isinstance(lr, Tensor) and (
        lr.numel() != 1
        or not (lr.is_floating_point() or lr.dtype in (torch.int32, torch.int64))
        or lr.layout != torch.strided
        or lr.is_meta
    ):
        raise ValueError(
            f"Arturo: Tensor lr must be 1-element, real and dense ({unit}); got shape {tuple(lr.shape)}, {lr.dtype}, "
            f"{lr.layout}, on {lr.device}."
        )


def check_group(group: dict[str, Any], options: Options) -> None:
    """Check what a parameter group may set for itself: ``lr``, ``weight_decay`` and ``maximize``.

    They are kept as plain types; a tensor ``lr`` stays one, for schedulers write into it. The group may repeat the
    optimizer's own options: ``ZeroRedundancyOptimizer`` writes its arguments into every group.

    Raises:
        ValueError, TypeError: naming the key, what was given and what is allowed. Nothing has changed then.
    """
    given = group["lr"]
    unit = "the KL bound in nats" if options.trust_region == "kl" else "a learning rate in AdamW's units"
    check_tensor_lr(given, unit)
    lr = check_number("lr", given, unit)
    if lr < 0.0:
        raise ValueError(f"Arturo: Invalid learning rate: {lr}. lr must be 0 (frozen) or positive: it is {unit}.")
    if lr > LARGEST_LR[options.trust_region]:
        raise ValueError(
            f"Arturo: lr={lr} must be at most {LARGEST_LR[options.trust_region]:g}: it is {unit}. No run survives more."
        )
    decay = check_number("weight_decay", group["weight_decay"], "AdamW's decoupled weight decay")
    if decay < 0.0:
        raise ValueError(f"Arturo: Invalid weight_decay value: {decay}. weight_decay must be 0 (none) or positive.")
    if decay > LARGEST_DECAY:
        raise ValueError(f"Arturo: weight_decay={decay} must be at most {LARGEST_DECAY:g}: lr × weight_decay counts.")
    maximize = group["maximize"]
    if type(maximize).__name__ not in ("bool", "bool_"):  # NumPy's too
        raise TypeError(f"Arturo: maximize={shown(maximize)} must be True or False.")
    for name in (*PAPER, *_GLOBAL):
        repeated = group.get(name)
        if name == "state_dtype" and repeated is not None:
            repeated = check_state_dtype(repeated)
        if name == "fused" and repeated is False:
            continue  # as in groups copied from torch's optimizers, where it asks for nothing
        if repeated not in (None, getattr(options, name, None)):
            raise ValueError(
                f"Arturo: {name} cannot differ between parameter groups, because one multiplier couples all "
                f"parameters: give it to Arturo(..., {name}=...) instead. A group may set lr, weight_decay, maximize."
            )
    group.update(lr=given if isinstance(given, Tensor) else lr, weight_decay=decay, maximize=bool(maximize))
