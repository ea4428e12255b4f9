"""Options of other optimizers, given by habit: what each is there, and what stands for it here.

One table for all doors: the constructor, parameter groups, ``optim_args`` and ``TrainingArguments``. Capitals and
underscores make no difference (``beta_1``, ``Eps``), and an option that is off (``amsgrad=False``) asks for nothing.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from arturo_core.options import as_float, shown

P = ParamSpec("P")
R = TypeVar("R")

#: The group key that schedulers of momentum write (:class:`arturo_core.Arturo`), and its value where none does.
MOMENTUM, NO_MOMENTUM = "momentum", 0.0

_AVERAGES = (
    "the decay rate of another optimizer's running means. arTuRO has none: its Kalman filter chooses the gain of "
    "every step (process_noise says how fast gradients are forgotten). Leave it out."
)
_DENOMINATOR = "what keeps Adam's denominator above 0. arTuRO has none: its precisions are positive. Leave it out."
_SGD = "how SGD averages gradients. arTuRO has no such option: its Kalman filter averages them. Leave it out."
_KERNELS = (
    "a choice among the kernels of torch's own optimizers. arTuRO has its own: fused=True demands it, and compile=True "
    "fuses the passes where there is none. Leave it out."
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
_SHADOW = "an average of weights that another optimizer keeps. arTuRO keeps none: torch.optim.swa_utils does."
_MEMORY = (
    "a format of another optimizer's state. arTuRO's is given by state_dtype: float32, bfloat16, \"8bit\" or float64. "
    "Leave it out."
)

_MINIMIZE = "the reverse of arTuRO's maximize. For minimize=False give maximize=True; otherwise leave it out."

#: Other names of our own options. Doors that refuse an option of ours refuse its other names with the same advice.
SYNONYMS = {
    **dict.fromkeys(("learning_rate", "lrate"), "lr"),
    **dict.fromkeys(("wd", "l2", "l2_weight", "l2_reg", "weight_decay_rate"), "weight_decay"),
}
_SYNONYM = {
    "lr": "another name of lr. Give lr instead (kl_bound to Arturo.paper).",
    "weight_decay": "another name of weight_decay. Give weight_decay instead.",
}

#: What somebody used to another optimizer may give, and one sentence or two about it.
HABITS: dict[str, str] = {
    **dict.fromkeys(("betas", "beta", "beta1", "beta2", "beta3", "beta2_decay", "adam_beta1", "adam_beta2"), _AVERAGES),
    **dict.fromkeys(("b1", "b2", "b3", "adam_betas", "adamw_betas", "mu", "decay_rate", "momentum_decay"), _AVERAGES),
    **dict.fromkeys(("rho", "alpha", "sqr_mom", "mom", "mom_decay", "ema_decay", "shampoo_beta", "nus"), _AVERAGES),
    **dict.fromkeys(("eps", "eps1", "eps2", "epsilon", "eps_root", "adam_eps", "adamw_eps"), _DENOMINATOR),
    **dict.fromkeys(("adam_epsilon", "adamw_epsilon", "opt_eps", "epsilon1", "epsilon2"), _DENOMINATOR),
    **dict.fromkeys((MOMENTUM, "nesterov", "dampening", "use_nesterov", "sgd_momentum", "damp"), _SGD),
    **dict.fromkeys(("momentum_dtype", "mu_dtype", "accumulator_dtype", "master_weights"), _MEMORY),
    **dict.fromkeys(("foreach", "jit_compile", "use_triton"), _KERNELS),
    "capturable": "how torch's optimizers are made fit for CUDA graphs. arTuRO has no such option. Leave it out.",
    "differentiable": "how torch's optimizers let gradients pass through a step. arTuRO's step has none. Leave it out.",
    **dict.fromkeys(("amsgrad", "ams_bound", "trust_coefficient", "max_trust", "clip_threshold", "d"), _BOUND),
    **dict.fromkeys(("trust_clip", "always_adapt", "max_unorm", "update_clip"), _BOUND),
    **dict.fromkeys(("decoupled_weight_decay", "decouple_wd", "weight_decouple", "adam_w_mode", "fixed_decay"), _DECAY),
    **dict.fromkeys(("decouple", "decoupled_decay", "wd_ratio", "use_decoupled_weight_decay"), _DECAY),
    **dict.fromkeys(("centered", "bias_correction", "correct_bias", "scale_parameter", "relative_step"), _SCALE),
    **dict.fromkeys(("use_bias_correction", "grad_averaging", "degenerated_to_sgd", "hessian_power"), _SCALE),
    **dict.fromkeys(("etas", "step_sizes", "initial_accumulator_value", "ns_steps", "ns_coefficients"), _SCALE),
    **dict.fromkeys(("adjust_lr_fn", "rectify", "d0", "d_coef", "growth_rate", "precondition_frequency"), _SCALE),
    **dict.fromkeys(("lr_decay", "lambd", "t0", "warmup", "warmup_steps", "warmup_init", "total_steps"), _SCHEDULE),
    **dict.fromkeys(("decay", "decay_steps", "safeguard_warmup", "warmup_ratio", "num_warmup_steps"), _SCHEDULE),
    **dict.fromkeys(("max_iter", "max_eval", "history_size", "line_search_fn"), _SEARCH),
    **dict.fromkeys(("tolerance_grad", "tolerance_change", "line_search"), _SEARCH),
    **dict.fromkeys(("max_grad_norm", "clip_grad", "grad_clip", "max_norm", "percentile_clipping"), _CLIPPING),
    **dict.fromkeys(("clipnorm", "clipvalue", "global_clipnorm", "clip_norm", "clip_value"), _CLIPPING),
    **dict.fromkeys(("gradient_clip_val", "grad_clip_norm", "grad_norm_clip", "clip_grad_norm"), _CLIPPING),
    **dict.fromkeys(("gradient_clipping", "clip_gradients"), _CLIPPING),
    **dict.fromkeys(("use_ema", "ema_momentum", "ema_overwrite_frequency"), _SHADOW),
    **dict.fromkeys(("optim_bits", "block_wise", "min_8bit_size", "is_paged"), _MEMORY),
    **{name: _SYNONYM[ours] for name, ours in SYNONYMS.items()},
    "minimize": _MINIMIZE,
}

#: Of these 0 is off too, and of those False asks for what is not done here.
_OFF_AT_ZERO = frozenset({_SGD, _KERNELS, _BOUND, _SCHEDULE, _CLIPPING})
_NEVER_OFF = frozenset({_DECAY, *_SYNONYM.values()})

#: What a parameter group may set, and what schedulers that cycle momentum, or a step, have written into one.
_OF_GROUPS = ("lr", "weight_decay", "maximize")
_OF_SAM = {"rho", "adaptive"}
_CYCLED = {"max_momentum", "base_momentum", "initial_lr", "peak_lr"}


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


_PLAIN = {_plain(name): text for name, text in HABITS.items()}
_OURS = {_plain(name): ours for name, ours in SYNONYMS.items()}


def meaning(name: Any, own: Collection[str] = ()) -> str | None:
    """What an option is and what stands for it here, however it is spelled; None if nothing is known of it.

    Args:
        name: of the option.
        own: options of ours, whose other spellings are known too.
    """
    if not isinstance(name, str) or name in own:
        return None
    ours = synonym(name, own)
    other = None if ours is None else f"another spelling of {ours}. Give {ours} instead."
    return _PLAIN.get(_plain(name), other)


def synonym(name: str, own: Collection[str] = ()) -> str | None:
    """The option of ours that another name or spelling means; None if it means none."""
    plain = _plain(name)
    spelled = next((option for option in own if _plain(option) == plain and option != name), None)
    return _OURS.get(plain, spelled)


def is_off(name: str, value: Any) -> bool:
    """Whether a value of another optimizer's option asks for nothing.

    That is None, False, for some options 0, and for ``minimize`` True.
    """
    text = meaning(name)
    if text is None or value is None:
        return text is not None
    if type(value).__name__ in ("bool", "bool_"):  # NumPy's too
        return bool(value) == (text == _MINIMIZE) and text not in _NEVER_OFF
    return text in _OFF_AT_ZERO and as_float(value) == 0.0


def sentence(name: str, value: Any, text: str) -> str:
    """What was given, what it is, what stands for it here; long values are cut."""
    return f"{name}={shown(value)} is {text}"


def explained(init: Callable[P, R]) -> Callable[P, R]:
    """Have a constructor say what stands for the options of other optimizers, and keep its signature.

    Raises:
        TypeError: by the constructor, for a keyword that is not its own and in the table, unless it is off, and for
            options that are not given by name.
    """
    parameters = inspect.signature(init).parameters.values()
    own = [one.name for one in parameters]
    named = [one for one in parameters if one.kind in (one.KEYWORD_ONLY, one.VAR_KEYWORD)]
    most = len(own) - len(named)

    @functools.wraps(init)
    def constructor(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > most:
            raise TypeError(_unnamed(args[most:], own[1:most]))
        foreign = {name: text for name in kwargs if (text := meaning(name, own)) is not None}
        found = [sentence(name, kwargs[name], text) for name, text in foreign.items() if not is_off(name, kwargs[name])]
        if found:
            raise TypeError("Arturo: " + " ".join(found))
        for name in foreign:
            del kwargs[name]
        return init(*args, **kwargs)

    return constructor


def _unnamed(extra: tuple[Any, ...], before: list[str]) -> str:
    """What to say of positional values, where other optimizers have their betas or their momentum."""
    given = ", ".join(map(shown, extra))
    guess = ""
    if isinstance(extra[0], (tuple, list)):
        guess = f" If {shown(extra[0])} are betas, they are {_AVERAGES}"
    elif as_float(extra[0]) is not None:
        guess = f" If {shown(extra[0])} is momentum, it is {_SGD}"
    return (
        f"Arturo: {given} is positional, and only {' and '.join(before)} may be. Name every other option, as in "
        f"weight_decay=0.01.{guess}"
    )


def check_group(
    group: Mapping[str, Any], given: Iterable[str] | None = None, others: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Check a parameter group that is about to be added for options that would silently do nothing.

    Those that are off ask for nothing. ``momentum`` is the schedulers' own key: a group may bring the value that one
    has written, as a copy of an ``Arturo``'s group does. ``rho`` beside ``adaptive`` is SAM's, and ``alpha`` with them
    weighted SAM's, which share their groups with the optimizer that they wrap.

    Args:
        group: that is to be added.
        given: keys that it had before the defaults were filled in; all by default.
        others: groups that the optimizer has.

    Raises:
        ValueError: the group has such an option.
        TypeError: its ``momentum`` is not a number.
    """
    momentum = as_float(group.get(MOMENTUM, NO_MOMENTUM))
    if momentum is None:
        raise TypeError(f"Arturo: momentum={shown(group[MOMENTUM])} of a parameter group must be a number.")
    found = {
        name: sentence(name, value, text)
        for name, value in group.items()
        if (text := meaning(name, _OF_GROUPS)) is not None and not is_off(name, value)
    }
    keys = set(group if given is None else given)
    if keys & _CYCLED or keys >= set(_OF_GROUPS) or any(as_float(other.get(MOMENTUM)) == momentum for other in others):
        found.pop(MOMENTUM, None)
    if keys.issuperset(_OF_SAM):
        for name in ("rho", "alpha"):
            found.pop(name, None)
    if MOMENTUM in found:
        found[MOMENTUM] += " A scheduler that cycles momentum writes it by itself."
    if found:
        raise ValueError("Arturo: in a parameter group, " + " ".join(found.values()))
