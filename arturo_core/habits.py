"""Options of other optimizers, given by habit: what each is there, and what stands for it here.

One table for all doors: the constructor, parameter groups, ``optim_args`` and ``TrainingArguments``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from arturo_core.options import as_float, shown

P = ParamSpec("P")

#: The group key that schedulers of momentum write (:class:`arturo_core.Arturo`), and its value where none does.
MOMENTUM, NO_MOMENTUM = "momentum", 0.0

_AVERAGES = (
    "the decay rate of another optimizer's running means. arTuRO has none: its Kalman filter chooses the gain of "
    "every step (process_noise says how fast gradients are forgotten). Leave it out."
)
_DENOMINATOR = "what keeps Adam's denominator above 0. arTuRO has none: its precisions are positive. Leave it out."
_SGD = "how SGD averages gradients. arTuRO has no such option: its Kalman filter averages them. Leave it out."
_KERNELS = (
    "a choice among the kernels of torch's own optimizers. arTuRO has its own passes: compile=True fuses them. "
    "Leave it out."
)
_BOUND = "a bound on another optimizer's steps. arTuRO has none but its trust region, which lr sizes. Leave it out."
_DECAY = "how another optimizer decays weights. arTuRO's weight_decay is always decoupled, as AdamW's. Leave it out."
_SCALE = (
    "how another optimizer scales its steps. arTuRO has no such option: the trust region, which lr sizes, does. "
    "Leave it out."
)
_SCHEDULE = "a schedule of the learning rate. arTuRO has none: use torch.optim.lr_scheduler or the trainer's."
_SEARCH = "an option of LBFGS. arTuRO has none: it takes one step per gradient, without a search. Leave it out."
_CLIPPING = "a bound on gradients, not an option of arTuRO. Clip before the step, or not: its trust region bounds it."
_MEMORY = "a format of another optimizer's state. arTuRO's is float32 or float64 (state_dtype). Leave it out."

#: Other names of our own options. Doors that refuse an option of ours refuse its other names with the same advice.
SYNONYMS = {
    **dict.fromkeys(("learning_rate", "lrate"), "lr"),
    **dict.fromkeys(("wd", "l2", "l2_weight"), "weight_decay"),
}
_SYNONYM = {
    "lr": "another name of lr. Give lr instead (kl_bound to Arturo.paper).",
    "weight_decay": "another name of weight_decay. Give weight_decay instead.",
}

#: What somebody used to another optimizer may give, and one sentence or two about it.
HABITS: dict[str, str] = {
    **dict.fromkeys(("betas", "beta", "beta1", "beta2", "beta3", "beta2_decay", "adam_beta1", "adam_beta2"), _AVERAGES),
    **dict.fromkeys(("rho", "alpha", "decay_rate", "momentum_decay", "sqr_mom", "mom"), _AVERAGES),
    **dict.fromkeys(("eps", "eps2", "epsilon", "adam_epsilon"), _DENOMINATOR),
    **dict.fromkeys((MOMENTUM, "nesterov", "dampening", "use_nesterov"), _SGD),
    **dict.fromkeys(("fused", "foreach"), _KERNELS),
    "capturable": "how torch's optimizers are made fit for CUDA graphs. arTuRO has no such option. Leave it out.",
    "differentiable": "how torch's optimizers let gradients pass through a step. arTuRO's step has none. Leave it out.",
    **dict.fromkeys(("amsgrad", "ams_bound", "trust_coefficient", "max_trust", "clip_threshold", "d"), _BOUND),
    **dict.fromkeys(("decoupled_weight_decay", "decouple_wd", "weight_decouple", "adam_w_mode", "fixed_decay"), _DECAY),
    **dict.fromkeys(("centered", "bias_correction", "correct_bias", "scale_parameter", "relative_step"), _SCALE),
    **dict.fromkeys(("etas", "step_sizes", "initial_accumulator_value", "ns_steps", "ns_coefficients"), _SCALE),
    **dict.fromkeys(("adjust_lr_fn", "rectify", "d0", "d_coef", "growth_rate"), _SCALE),
    **dict.fromkeys(("lr_decay", "lambd", "t0", "warmup", "warmup_steps", "warmup_init", "total_steps"), _SCHEDULE),
    **dict.fromkeys(("max_iter", "max_eval", "history_size", "line_search_fn"), _SEARCH),
    **dict.fromkeys(("tolerance_grad", "tolerance_change"), _SEARCH),
    **dict.fromkeys(("max_grad_norm", "clip_grad", "grad_clip", "max_norm", "percentile_clipping"), _CLIPPING),
    **dict.fromkeys(("optim_bits", "block_wise", "min_8bit_size", "is_paged"), _MEMORY),
    **{name: _SYNONYM[ours] for name, ours in SYNONYMS.items()},
    "minimize": "the reverse of arTuRO's maximize. For minimize=False give maximize=True; otherwise leave it out.",
}


def sentence(name: str, value: Any) -> str:
    """What was given, what it is, what stands for it here; long values are cut."""
    return f"{name}={shown(value)} is {HABITS[name]}"


def explained(init: Callable[P, None]) -> Callable[P, None]:
    """Have a constructor say what stands for the options of other optimizers, and keep its signature.

    Raises:
        TypeError: by the constructor, for a keyword that is not its own and in the table.
    """
    own = inspect.signature(init).parameters

    @functools.wraps(init)
    def constructor(*args: P.args, **kwargs: P.kwargs) -> None:
        found = [sentence(name, value) for name, value in kwargs.items() if name not in own and name in HABITS]
        if found:
            raise TypeError("Arturo: " + " ".join(found))
        init(*args, **kwargs)

    return constructor


def check_group(group: Mapping[str, Any]) -> None:
    """Check a parameter group that is about to be added for options that would silently do nothing.

    Those that are off (None, False; True of ``minimize``) ask for nothing. ``momentum`` is the schedulers' own key: a
    group may bring the value that one has written, as the groups of another ``Arturo`` do.

    Raises:
        ValueError: the group has such an option.
        TypeError: its ``momentum`` is not a number.
    """
    names = [name for name in group if name in HABITS and name != MOMENTUM]
    given = {name: group[name] for name in names if group[name] is not None and group[name] is not (name == "minimize")}
    momentum = as_float(group.get(MOMENTUM, NO_MOMENTUM))
    if momentum is None:
        raise TypeError(f"Arturo: momentum={shown(group[MOMENTUM])} of a parameter group must be a number.")
    if momentum != NO_MOMENTUM and not group.keys() & {"max_momentum", "peak_lr"}:
        given[MOMENTUM] = group[MOMENTUM]
    if given:
        raise ValueError(
            "Arturo: in a parameter group, " + " ".join(sentence(name, value) for name, value in given.items())
        )
