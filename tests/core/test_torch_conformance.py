"""What torch asks of its own optimizers, asked of Arturo through torch's own description of an optimizer.

The behaviours are those of pytorch's ``test_optim.py``; the inputs are an ``OptimizerInfo``, as there.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from problems import (
    GROUP_KEYS,
    SCALARS,
    adaptive_bound,
    assert_identical,
    every_mode,
    every_noise,
    parameters,
    snapshot,
    train,
    trained,
)
from torch.nn import Parameter
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
    get_error_inputs_for_all_optims,
)

from arturo_core import Arturo

#: What a parameter group may set for itself; everything else holds for the whole optimizer.
GROUP_OPTIONS = {"lr", "weight_decay", "maximize"}


def optim_inputs(device: str, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
    settings = {
        "default": {},
        "non-default lr": {"lr": 0.01},
        "tensor lr": {"lr": torch.tensor(0.01)},
        "weight_decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True},
        "maximize, weight_decay": {"maximize": True, "weight_decay": 0.1},
        "kl": {"trust_region": "kl", "lr": 0.01},
        "fixed": {"noise": "fixed", "lr": 0.01},
        "fixed, weight_decay": {"noise": "fixed", "lr": 0.01, "weight_decay": 0.1},
        "fixed, kl": {"noise": "fixed", "trust_region": "kl", "lr": 0.01},
        "fixed, maximize": {"noise": "fixed", "lr": 0.01, "maximize": True},
        "no compile": {"compile": False},
        "wide state": {"state_dtype": torch.float64},
    }
    return [OptimizerInput(params=None, kwargs=kwargs, desc=desc) for desc, kwargs in settings.items()]


def optim_error_inputs(device: str, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    ours = [
        ({"lr": -1}, "Invalid learning rate: -1"),
        ({"weight_decay": -1}, "Invalid weight_decay value: -1"),
        ({"kl_rtol": 0.0}, "kl_rtol=0"),
        ({"noise": "white"}, "noise='white'"),
    ]
    return [
        *get_error_inputs_for_all_optims(device, dtype),
        *(
            ErrorOptimizerInput(
                OptimizerInput(params=None, kwargs=kwargs, desc=str(kwargs)), error_type=ValueError, error_regex=regex
            )
            for kwargs, regex in ours
        ),
    ]


INFO = OptimizerInfo(
    Arturo,
    optim_inputs_func=optim_inputs,
    optim_error_inputs_func=optim_error_inputs,
    scheduler_inputs=(
        [lambda opt: lr_scheduler.StepLR(opt, gamma=0.9, step_size=10)],
        [lambda opt: lr_scheduler.LinearLR(opt, start_factor=0.4, total_iters=4)],
        [
            lambda opt: lr_scheduler.StepLR(opt, gamma=0.9, step_size=10),
            lambda opt: lr_scheduler.ReduceLROnPlateau(opt),
        ],
        [
            lambda opt: lr_scheduler.ConstantLR(opt, factor=0.4, total_iters=4),
            lambda opt: lr_scheduler.ExponentialLR(opt, gamma=0.99),
            lambda opt: lr_scheduler.PolynomialLR(opt, power=0.9, total_iters=200),
        ],
    ),
    supported_impls=(),
    not_og_supported_flags=("maximize",),
    supports_sparse=False,
    supports_complex=True,
)

INPUTS = {
    entry.desc: entry.kwargs for entry in _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, INFO)
}
#: Those that are also run with every scheduler.
SCHEDULED = ["default", "tensor lr", "maximize, weight_decay", "kl", "fixed, kl"]
every_input = pytest.mark.parametrize("kwargs", INPUTS.values(), ids=INPUTS.keys())
ERRORS = {error.optimizer_error_input.desc: error for error in optim_error_inputs("cpu", torch.float32)}


def regression(contiguous: bool = True) -> tuple[Parameter, Parameter, torch.Tensor]:
    weight, bias = torch.randn(10, 5, 2), torch.randn(10, 2)
    weight, bias = weight[..., 0], bias[..., 0]
    if contiguous:
        weight, bias = weight.contiguous(), bias.contiguous()
    return Parameter(weight), Parameter(bias), torch.randn(5)


def squares(weight: Parameter, bias: Parameter, data: torch.Tensor, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    optimizer.zero_grad()
    loss = (weight.mv(data) + bias).pow(2).sum()
    loss.backward()
    return loss


def went_right(start: float, end: float, kwargs: dict[str, Any]) -> bool:
    return end > start if kwargs.get("maximize", False) else end < start


# -- construction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_errors_of_torch(error):
    given = error.optimizer_error_input
    params = [Parameter(torch.randn(1, 1))] if given.params is None else given.params
    kwargs = given.kwargs
    assert error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    if issubclass(error.error_type, Warning):
        # torch warns of duplicates in a group and announces an error; one multiplier over all weights needs it now.
        with pytest.warns(error.error_type, match=error.error_regex), pytest.raises(ValueError, match="twice"):
            Arturo(params, **kwargs)
    else:
        with pytest.raises(error.error_type, match=error.error_regex):
            Arturo(params, **kwargs)


@every_input
def test_can_be_printed(kwargs):
    text = repr(Arturo([Parameter(torch.randn(2))], **kwargs))
    assert text.startswith("Arturo (\nParameter Group 0\n")
    assert "lr: " in text
    assert "weight_decay: " in text


@every_input
def test_implementation_flags_are_absent(kwargs):
    """``foreach=True`` and the like in a group change what torch does around a step; none is honoured here."""
    weight = Parameter(torch.randn(3))
    optimizer = Arturo([weight], **kwargs)
    weight.grad = torch.ones(3)
    optimizer.step()
    fresh = Arturo([Parameter(weight.detach().clone())], **kwargs)
    fresh.load_state_dict(optimizer.state_dict())
    for which in (optimizer, fresh, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        for group in which.param_groups:
            assert set(group) == GROUP_KEYS


@every_input
def test_flags_of_other_implementations_are_refused(kwargs):
    for flag in ("foreach", "fused", "differentiable", "capturable"):
        with pytest.raises(TypeError, match=flag):
            Arturo([Parameter(torch.randn(2))], **kwargs, **{flag: False})


def test_defaults_reach_every_group():
    first, second = Parameter(torch.randn(2)), Parameter(torch.randn(2))
    optimizer = Arturo([{"params": [first]}, {"params": [second], "lr": 0.5, "weight_decay": 0.2}], lr=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.2]


def test_named_parameters():
    model = torch.nn.Linear(3, 2)
    optimizer = Arturo(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert all(isinstance(param, Parameter) for param in optimizer.param_groups[0]["params"])
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


# -- the step goes the right way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
@every_input
def test_forloop_goes_right_direction(kwargs, contiguous):
    weight, bias, data = regression(contiguous)
    optimizer = Arturo([weight, bias], **kwargs)
    closure = functools.partial(squares, weight, bias, data, optimizer)
    start = closure().item()
    for _ in range(10):
        assert isinstance(optimizer.step(closure), torch.Tensor)
    assert went_right(start, closure().item(), kwargs)


@pytest.mark.parametrize("schedulers", INFO.scheduler_inputs, ids=["step", "linear", "plateau", "chain"])
@pytest.mark.parametrize("kwargs", [INPUTS[key] for key in SCHEDULED], ids=SCHEDULED)
def test_forloop_goes_right_direction_with_schedulers(kwargs, schedulers):
    weight, bias, data = regression()
    kwargs = copy.deepcopy(kwargs)
    optimizer = Arturo([weight, bias], **kwargs)
    built = [make(optimizer) for make in schedulers]
    closure = functools.partial(squares, weight, bias, data, optimizer)
    start = closure().item()
    for _ in range(10):
        loss = optimizer.step(closure)
        for scheduler in built:
            if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step(loss)
            else:
                scheduler.step()
    assert went_right(start, closure().item(), kwargs)


@pytest.mark.parametrize("schedulers", INFO.scheduler_inputs, ids=["step", "linear", "plateau", "chain"])
def test_param_groups_with_schedulers(schedulers):
    weight, bias, data = regression()
    optimizer = Arturo([{"params": [weight]}, {"params": [bias], "lr": 0.01}], lr=1e-3)
    built = [make(optimizer) for make in schedulers]
    closure = functools.partial(squares, weight, bias, data, optimizer)
    start = closure().item()
    for _ in range(10):
        loss = optimizer.step(closure)
        for scheduler in built:
            scheduler.step(*([loss] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    assert closure().item() < start


@every_mode
def test_reaches_the_minimum_of_a_convex_problem(options):
    torch.manual_seed(2)
    data, truth = torch.randn(64, 6), torch.randn(6)
    target = data @ truth
    weight = Parameter(torch.zeros(6))
    # Lengths of the size of the problem: steps of 0.35·lr, or those that half a nat allows.
    sizes = {"lr": 0.3} if options["trust_region"] == "rms" else {"lr": 0.5}
    if options["trust_region"] == "kl" and options["noise"] == "adaptive":
        sizes["length_scale"] = 1.0
    optimizer = Arturo([weight], **{**options, **sizes})
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 150)

    def closure():
        optimizer.zero_grad()
        loss = (data @ weight - target).square().mean()
        loss.backward()
        return loss

    start = closure().item()
    for _ in range(150):
        optimizer.step(closure)
        scheduler.step()
    assert closure().item() < 0.02 * start


# -- learning rates and groups -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-dim", "1-dim"])
@every_input
def test_tensor_lr_equals_float_lr(kwargs, shape):
    options = {key: value for key, value in kwargs.items() if key != "lr"}
    lr = float(kwargs.get("lr", 1e-3))
    runs = []
    for rate in (lr, torch.full(shape, lr, dtype=torch.float64)):
        params = [Parameter(torch.linspace(-1, 1, 12).view(4, 3)), Parameter(torch.tensor(0.5))]
        optimizer = Arturo(params, rate, **options)
        schedulers = [lr_scheduler.ExponentialLR(optimizer, 0.9)]
        for step in range(5):
            train(optimizer, params, [step])
            schedulers[0].step()
        assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == isinstance(rate, torch.Tensor)
        runs.append((params, optimizer))
    (params_f, opt_f), (params_t, opt_t) = runs
    for one, other in zip(params_f, params_t, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0.0)
    assert opt_t.diagnostics()["kl_bound"] == pytest.approx(opt_f.diagnostics()["kl_bound"], rel=1e-6)


@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-dim", "1-dim"])
@every_mode
def test_precision_with_tensor_lr(options, shape):
    runs = []
    for rate in (options["lr"], torch.full(shape, options["lr"], dtype=torch.float64)):
        params = parameters()
        optimizer = Arturo(params, **{**options, "lr": rate})
        train(optimizer, params, range(2))
        runs.append([optimizer.precision(param) for param in params])
    for param, one, other in zip(params, *runs, strict=True):
        assert one.shape == other.shape == param.shape
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0.0)


@every_noise
def test_equal_tensor_lrs_of_two_groups_are_one_value(options):
    """With "kl" lr must be one VALUE for all groups; two tensors of that value are what a checkpoint restores."""
    results = []
    for rates in ((0.01, 0.01), (torch.tensor(0.01), torch.tensor(0.01))):
        params = [Parameter(torch.linspace(-1, 1, 4)), Parameter(torch.linspace(1, 2, 4))]
        groups = [{"params": [param], "lr": lr} for param, lr in zip(params, rates, strict=True)]
        train(Arturo(groups, noise=options["noise"], trust_region="kl"), params, range(3))
        results.append([param.detach() for param in params])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@every_input
def test_param_group_with_weight_decay_shrinks(kwargs):
    own = {key: value for key, value in kwargs.items() if key in GROUP_OPTIONS - {"weight_decay"}}
    if "lr" in own and kwargs.get("trust_region") == "kl":
        own.pop("lr")
    shared = {key: value for key, value in kwargs.items() if key not in GROUP_OPTIONS}
    lr = kwargs.get("lr", 1e-3)
    weight, bias = Parameter(torch.full((10, 5), 3.0)), Parameter(torch.randn(10))
    optimizer = Arturo([{"params": [weight], "weight_decay": 0.9, **own}, {"params": [bias], **own}], lr, **shared)
    plain = [Parameter(weight.detach().clone()), Parameter(bias.detach().clone())]
    undecayed = Arturo([{"params": [plain[0]], **own}, {"params": [plain[1]], **own}], lr, **shared)
    for _ in range(10):
        for params, which in (([weight, bias], optimizer), (plain, undecayed)):
            for param in params:
                param.grad = torch.zeros_like(param)
            which.step()
    assert weight.norm() < plain[0].norm()
    torch.testing.assert_close(bias, plain[1], rtol=1e-2, atol=1e-4)


@every_input
def test_param_group_with_vanishing_lr_stays(kwargs):
    if kwargs.get("trust_region") == "kl":
        pytest.skip("lr is one bound for all groups")
    own = {"lr": 1e-2, **{key: value for key, value in kwargs.items() if key in GROUP_OPTIONS}}
    shared = {key: value for key, value in kwargs.items() if key not in GROUP_OPTIONS}
    weight, bias, data = regression()
    irrelevant = Parameter(torch.randn(2))
    before = irrelevant.detach().clone()
    optimizer = Arturo([{"params": [weight, bias], **own}, {"params": [irrelevant]}], lr=1e-28, **shared)
    start = squares(weight, bias, data, optimizer).item()
    for _ in range(10):
        squares(weight, bias, data, optimizer)
        irrelevant.grad = torch.rand_like(irrelevant)
        optimizer.step()
    assert went_right(start, squares(weight, bias, data, optimizer).item(), own)
    assert torch.equal(irrelevant, before)


def test_maximize_is_the_mirror_of_minimize():
    for options in ({}, {"noise": "fixed"}):
        up, down = Parameter(torch.linspace(-1, 1, 6)), Parameter(torch.linspace(-1, 1, 6))
        ascend, descend = Arturo([up], maximize=True, **options), Arturo([down], **options)
        for step in range(5):
            grad = torch.randn(6, generator=torch.Generator().manual_seed(step))
            up.grad, down.grad = -grad, grad
            ascend.step()
            descend.step()
        assert torch.equal(up, down)
        assert not torch.equal(down, torch.linspace(-1, 1, 6))


# -- gradients that are missing, zero, frozen, late --------------------------------------------------------------------


@every_input
def test_step_without_any_grad_does_nothing(kwargs):
    weight = Parameter(torch.randn(5, 1))
    before = weight.detach().clone()
    optimizer = Arturo([weight], **kwargs)
    assert optimizer.step(lambda: torch.ones(1)) == 1
    assert torch.equal(weight, before)
    assert optimizer.diagnostics()["skipped_steps"] == 0


@every_input
def test_step_with_zero_grads_does_nothing(kwargs):
    if kwargs.get("weight_decay", 0) != 0 or kwargs.get("noise") == "fixed":
        pytest.skip("weight decay and the published prior pull without a gradient")
    weight = Parameter(torch.randn(5, 1))
    before = weight.detach().clone()
    optimizer = Arturo([weight], **kwargs)
    for _ in range(3):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert torch.equal(weight, before)


@every_input
def test_empty_parameters_and_groups(kwargs):
    empty, weight = Parameter(torch.empty(0, 5)), Parameter(torch.randn(5))
    optimizer = Arturo([{"params": [empty]}, {"params": []}, {"params": [weight]}], **kwargs)
    alone = Parameter(weight.detach().clone())
    reference = Arturo([alone], **kwargs)
    for step in range(3):
        empty.grad = torch.zeros_like(empty)
        train(optimizer, [weight], [step])
        train(reference, [alone], [step])
    assert torch.equal(weight, alone)
    assert optimizer.diagnostics()["skipped_steps"] == 0
    only = Arturo([Parameter(torch.empty(0))], **kwargs)
    only.param_groups[0]["params"][0].grad = torch.empty(0)
    only.step()
    only.diagnostics()


@every_noise
def test_parameters_without_grad_keep_still_and_have_state(options):
    params, optimizer = trained(options, steps=0)
    for step in range(3):
        train(optimizer, params[:2], [step])
    assert set(optimizer.state[params[2]]) == set(optimizer.state[params[0]])
    assert float(optimizer.state[params[2]]["step"]) == 0.0
    before = snapshot(optimizer)
    params[0].grad = params[1].grad = None
    params[2].grad = torch.tensor(0.3)
    optimizer.step()
    after = snapshot(optimizer)
    assert_identical(after["weights"][:2], before["weights"][:2])
    assert_identical(after["state"][:2], before["state"][:2])
    assert not torch.equal(after["weights"][2], before["weights"][2])


@every_noise
def test_frozen_parameters_are_left_alone_and_may_be_unfrozen(options):
    weight, frozen = Parameter(torch.ones(3)), Parameter(torch.ones(3), requires_grad=False)
    optimizer = Arturo([weight, frozen], **options)
    for step in range(3):
        train(optimizer, [weight], [step])
    assert frozen not in optimizer.state or not optimizer.state[frozen]
    assert torch.equal(frozen, torch.ones(3))
    frozen.requires_grad_(True)
    for step in range(3, 6):
        train(optimizer, [weight, frozen], [step])
    assert not torch.equal(frozen, torch.ones(3))
    assert float(optimizer.state[frozen]["step"]) == 3.0
    assert optimizer.diagnostics()["skipped_steps"] == 0


def test_a_late_parameter_steps_as_far_as_the_others():
    """Noise of a new parameter must be estimated from its own first gradients, however old the optimizer is."""
    old, late = Parameter(torch.zeros(200)), Parameter(torch.zeros(200))
    optimizer = Arturo([old], lr=1e-2)
    source = torch.Generator().manual_seed(0)
    for _ in range(100):
        old.grad = torch.randn(200, generator=source)
        optimizer.step()
    optimizer.add_param_group({"params": [late], "lr": 1e-2})
    for _ in range(3):
        before = old.detach().clone(), late.detach().clone()
        old.grad, late.grad = torch.randn(200, generator=source), torch.randn(200, generator=source)
        optimizer.step()
        lengths = [(param - start).norm().item() for param, start in zip((old, late), before, strict=True)]
        assert 0.25 < lengths[1] / lengths[0] < 4.0


@every_noise
def test_add_param_group_in_training(options):
    params, optimizer = trained(options, steps=3)
    extra = Parameter(torch.ones(4))
    optimizer.add_param_group({"params": [extra]})
    group = optimizer.param_groups[-1]
    assert (group["lr"], group["weight_decay"], group["maximize"]) == (options["lr"], 0.0, False)
    assert group["calls"] == 3
    train(optimizer, [*params, extra], range(3, 6))
    assert not torch.equal(extra, torch.ones(4))
    assert optimizer.diagnostics()["skipped_steps"] == 0
    assert optimizer.diagnostics()["steps"] == 6


def test_a_refused_group_is_not_added():
    params = [Parameter(torch.ones(2))]
    optimizer = Arturo(params)
    for group in (
        {"params": params},
        {"params": [Parameter(torch.ones(2))], "lr": -1.0},
        {"params": [torch.ones(2, dtype=torch.int64)]},
        {"params": [Parameter(torch.ones(2))], "temperature": 2.0},
    ):
        with pytest.raises((ValueError, TypeError)):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    weight = Parameter(torch.ones(2))
    optimizer = Arturo([weight])
    weight.grad = torch.ones(2)
    optimizer.zero_grad(set_to_none=set_to_none)
    assert weight.grad is None if set_to_none else torch.equal(weight.grad, torch.zeros(2))


@every_noise
def test_gradients_are_not_changed(options):
    params, optimizer = trained(options, steps=2)
    for param in params:
        param.grad = torch.randn_like(param)
    before = [param.grad.clone() for param in params]
    optimizer.step()
    assert all(torch.equal(param.grad, grad) for param, grad in zip(params, before, strict=True))


# -- closures ----------------------------------------------------------------------------------------------------------


@every_mode
def test_closure_is_called_once_with_gradients_enabled(options):
    weight = Parameter(torch.ones(3))
    optimizer = Arturo([weight], **options)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert calls == [True]
    assert loss.item() == 3.0
    assert weight.square().sum() < 3.0
    assert optimizer.step() is None
    assert optimizer.step(closure=lambda: 7.5) == 7.5
    assert weight.requires_grad
    assert weight.is_leaf


def test_closure_runs_and_its_value_returns_where_nothing_moves():
    weight = Parameter(torch.ones(3))
    optimizer = Arturo([weight], lr=0.0)
    called = []
    assert optimizer.step(lambda: called.append(1) or 2.5) == 2.5
    assert called == [1]
    assert torch.equal(weight, torch.ones(3))


# -- kinds of parameters -----------------------------------------------------------------------------------------------


@every_input
def test_complex_parameter_is_its_real_view(kwargs):
    complex_param = Parameter(torch.randn(5, 5, dtype=torch.complex64))
    real_param = Parameter(torch.view_as_real(complex_param.detach()).clone())
    complex_opt, real_opt = Arturo([complex_param], **kwargs), Arturo([real_param], **kwargs)
    for _ in range(3):
        complex_param.grad = torch.randn_like(complex_param)
        real_param.grad = torch.view_as_real(complex_param.grad).clone()
        complex_opt.step()
        real_opt.step()
        assert torch.equal(torch.view_as_real(complex_param.detach()), real_param)
    assert_identical(snapshot(complex_opt)["state"], snapshot(real_opt)["state"])
    assert complex_opt.diagnostics()["kl"] == real_opt.diagnostics()["kl"]


@every_input
def test_complex_parameter_is_two_real_ones(kwargs):
    def rosenbrock(point):
        x, y = point
        return ((1 - x) ** 2 + 100 * (y - x**2) ** 2).abs()

    one = Parameter(torch.randn(2, dtype=torch.complex64))
    real, imag = Parameter(one.detach().real.clone()), Parameter(one.detach().imag.clone())
    joint, split = Arturo([one], **kwargs), Arturo([real, imag], **kwargs)
    for _ in range(5):
        joint.zero_grad()
        split.zero_grad()
        rosenbrock(one).backward()
        rosenbrock(torch.complex(real, imag)).backward()
        joint.step()
        split.step()
        torch.testing.assert_close(one.detach().real, real.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.detach().imag, imag.detach(), rtol=1e-4, atol=1e-5)


@every_mode
def test_mixed_dtypes_in_one_optimizer(options):
    params = [Parameter(torch.linspace(-1, 1, 6, dtype=dtype)) for dtype in (torch.float64, torch.float32)]
    params.append(Parameter(torch.linspace(-1, 1, 6).to(torch.bfloat16)))
    optimizer = Arturo(params, **{**options, "lr": 10 * options["lr"]})
    before = [param.detach().clone() for param in params]
    for step in range(4):
        grad = torch.randn(6, generator=torch.Generator().manual_seed(step)).to(torch.bfloat16)
        for param in params:
            param.grad = grad.to(param.dtype)
        optimizer.step()
    for param, start in zip(params, before, strict=True):
        assert param.dtype == start.dtype
        assert not torch.equal(param, start)
        wide = torch.float64 if param.dtype == torch.float64 else torch.float32
        assert {value.dtype for name, value in optimizer.state[param].items() if name not in SCALARS} == {wide}
    torch.testing.assert_close(params[0].detach().float(), params[1].detach(), rtol=1e-3, atol=1e-4)
    assert optimizer.diagnostics()["skipped_steps"] == 0


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "strided", "expanded gradient"])
@every_mode
def test_memory_layout_does_not_matter(options, layout):
    values = torch.randn(6, 4, 3, 3)
    plain = Parameter(values.clone())
    if layout == "channels_last":
        laid_out = Parameter(values.clone().to(memory_format=torch.channels_last))
    elif layout == "transposed":
        laid_out = Parameter(values.clone().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0))
    elif layout == "strided":
        laid_out = Parameter(torch.stack([values, values], dim=-1)[..., 0])
    else:
        laid_out = Parameter(values.clone())
    stride = laid_out.stride()
    one, other = Arturo([plain], **options), Arturo([laid_out], **options)
    for step in range(4):
        source = torch.Generator().manual_seed(step)
        if layout == "expanded gradient":
            grad = torch.randn(6, 1, 3, 3, generator=source)
            laid_out.grad, plain.grad = grad.expand(6, 4, 3, 3), grad.repeat(1, 4, 1, 1)
        else:
            plain.grad = torch.randn(6, 4, 3, 3, generator=source)
            laid_out.grad = plain.grad.clone()
        one.step()
        other.step()
    assert laid_out.stride() == stride
    torch.testing.assert_close(plain, laid_out, rtol=1e-5, atol=1e-7)
    assert not torch.equal(plain, values)
    if layout == "channels_last":
        for name, value in other.state[laid_out].items():
            assert name in SCALARS or value.is_contiguous(memory_format=torch.channels_last)


@every_noise
def test_large_tensors_in_any_layout(options):
    """Above a chunk a tensor is worked on in slices of its own memory, where layout decides the order."""
    values = torch.randn(8, 64, 16, 16)
    plain = Parameter(values.clone())
    layouts = {
        "channels_last": Parameter(values.clone().to(memory_format=torch.channels_last)),
        "strided": Parameter(torch.stack([values, values], dim=-1)[..., 0]),
    }
    reference = Arturo([plain], **options)
    train(reference, [plain], range(3))
    for param in layouts.values():
        train(Arturo([param], **options), [param], range(3))
        torch.testing.assert_close(param.detach(), plain.detach(), rtol=1e-5, atol=1e-6)


# -- hooks -------------------------------------------------------------------------------------------------------------


def test_step_hooks():
    weight = Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = Arturo([weight])
    seen: list[str] = []

    def log(name):
        return lambda which, args, kwargs: seen.append(name)

    handles = [
        optimizer.register_step_pre_hook(log("pre")),
        optimizer.register_step_post_hook(log("post")),
        register_optimizer_step_pre_hook(log("global pre")),
        register_optimizer_step_post_hook(log("global post")),
    ]
    try:
        optimizer.step()
        assert seen == ["global pre", "pre", "post", "global post"]
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert len(seen) == 4


def test_step_pre_hook_may_replace_the_closure():
    weight = Parameter(torch.ones(2))
    optimizer = Arturo([weight])
    optimizer.register_step_pre_hook(lambda which, args, kwargs: ((which, lambda: 4.0), {}))
    assert optimizer.step(lambda: 3.0) == 4.0


def test_state_dict_hooks():
    optimizer = Arturo([Parameter(torch.ones(2))])
    order: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda which: order.append("pre"))

    def post(which, state_dict):
        order.append("post")
        state_dict["extra"] = 1

    optimizer.register_state_dict_post_hook(post)
    optimizer.register_state_dict_post_hook(lambda which, state_dict: {**state_dict, "replaced": True})
    state_dict = optimizer.state_dict()
    assert order == ["pre", "post"]
    assert state_dict["extra"] == 1
    assert state_dict["replaced"]


@every_noise
def test_load_state_dict_hooks(options):
    _, source = trained(options)
    params, optimizer = trained(options, steps=0)
    order: list[str] = []

    def in_place(which, state_dict):
        order.append("first")
        state_dict["param_groups"][0]["lr"] = 0.002

    def replacing(which, state_dict):
        order.append("second")
        doubled = copy.deepcopy(state_dict)
        for state in doubled["state"].values():
            state["gradient"] = 2.0 * state["gradient"]
        return doubled

    def post(which):
        order.append("post")
        which.state["post"] = True

    optimizer.register_load_state_dict_pre_hook(replacing)
    optimizer.register_load_state_dict_pre_hook(in_place, prepend=True)
    optimizer.register_load_state_dict_post_hook(post)
    saved = copy.deepcopy(source.state_dict())
    optimizer.load_state_dict(saved)
    assert order == ["first", "second", "post"]
    assert optimizer.param_groups[0]["lr"] == 0.002
    for index, param in enumerate(params):
        assert torch.equal(optimizer.state[param]["gradient"], 2.0 * saved["state"][index]["gradient"])
    assert optimizer.state["post"]
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 2


# -- state dicts and copies --------------------------------------------------------------------------------------------


def _twin(optimizer_kwargs, named, weight, bias, lr=None):
    kwargs = dict(optimizer_kwargs)
    if lr is not None:
        kwargs["lr"] = lr
    return Arturo([("weight", weight), ("bias", bias)] if named else [weight, bias], **kwargs)


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
@every_input
def test_state_dict_is_deterministic(kwargs, named):
    weight, bias, data = regression()
    optimizer = _twin(kwargs, named, weight, bias)
    for _ in range(3):
        optimizer.step(functools.partial(squares, weight, bias, data, optimizer))
    weight_c, bias_c = Parameter(weight.detach().clone()), Parameter(bias.detach().clone())
    twin = _twin(kwargs, named, weight_c, bias_c)
    state_dict = copy.deepcopy(optimizer.state_dict())
    twin.load_state_dict(state_dict)
    assert_identical(twin.state_dict(), optimizer.state_dict())
    for _ in range(3):
        optimizer.step(functools.partial(squares, weight, bias, data, optimizer))
        twin.step(functools.partial(squares, weight_c, bias_c, data, twin))
        assert torch.equal(weight, weight_c)
        assert torch.equal(bias, bias_c)
    assert_identical(twin.state_dict(), optimizer.state_dict())
    assert_identical(copy.deepcopy(optimizer).state_dict(), optimizer.state_dict())
    # Repeated parameters have one representation.
    twin.param_groups.extend(twin.param_groups)
    assert_identical(twin.state_dict()["param_groups"][-1], optimizer.state_dict()["param_groups"][-1])
    # A state saved with a float lr loads into an optimizer built with a tensor lr, and training goes on.
    tensor_lr = _twin(kwargs, named, weight_c, bias_c, lr=torch.tensor(1e-3))
    tensor_lr.load_state_dict(state_dict)
    tensor_lr.step(functools.partial(squares, weight_c, bias_c, data, tensor_lr))
    float_lr = _twin(kwargs, named, weight_c, bias_c, lr=1e-3)
    for group in state_dict["param_groups"]:
        group["lr"] = torch.tensor(float(group["lr"]))
    float_lr.load_state_dict(state_dict)
    float_lr.step(functools.partial(squares, weight_c, bias_c, data, float_lr))
    assert isinstance(float_lr.param_groups[0]["lr"], torch.Tensor)


@every_input
def test_state_dict_without_later_flags_loads(kwargs):
    weight, bias, data = regression()
    optimizer = Arturo([weight, bias], **kwargs)
    closure = functools.partial(squares, weight, bias, data, optimizer)
    optimizer.step(closure)
    state_dict = copy.deepcopy(optimizer.state_dict())
    for group in state_dict["param_groups"]:
        for flag in INFO.not_og_supported_flags:
            del group[flag]
    optimizer.load_state_dict(state_dict)
    optimizer.step(closure)
    assert set(optimizer.param_groups[0]) == GROUP_KEYS


@pytest.mark.parametrize("saved_named", [False, True])
@pytest.mark.parametrize("loaded_named", [False, True])
def test_state_of_named_and_unnamed_parameters_is_exchangeable(saved_named, loaded_named):
    weight, bias, data = regression()
    optimizer = _twin({}, saved_named, weight, bias)
    optimizer.step(functools.partial(squares, weight, bias, data, optimizer))
    twin = _twin({}, loaded_named, Parameter(weight.detach().clone()), Parameter(bias.detach().clone()))
    twin.load_state_dict(optimizer.state_dict())
    assert_identical(twin.state_dict()["state"], optimizer.state_dict()["state"])
    assert ("param_names" in twin.param_groups[0]) == (saved_named or loaded_named)


@every_input
def test_saved_with_weights_only_loads_equal(kwargs):
    weight, bias, data = regression()
    optimizer = Arturo([weight, bias], **kwargs)
    for _ in range(2):
        optimizer.step(functools.partial(squares, weight, bias, data, optimizer))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    twin = Arturo([Parameter(weight.detach().clone()), Parameter(bias.detach().clone())], **kwargs)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert_identical(twin.state_dict(), optimizer.state_dict())


@every_noise
def test_a_step_counter_saved_as_a_number_loads(options):
    params, optimizer = trained(options)
    expected = snapshot(optimizer)
    state_dict = copy.deepcopy(optimizer.state_dict())
    for state in state_dict["state"].values():
        state["step"] = state["step"].item()
    optimizer.load_state_dict(state_dict)
    assert_identical(snapshot(optimizer)["state"], expected["state"])
    train(optimizer, params, [5])


@every_input
def test_state_is_not_empty(kwargs):
    weight = Parameter(torch.randn(2, 3))
    optimizer = Arturo([weight], **kwargs)
    weight.grad = torch.randn(2, 3)
    optimizer.step()
    assert weight in optimizer.state
    for value in optimizer.state[weight].values():
        assert isinstance(value, torch.Tensor)
        assert value.numel() > 0


@every_input
def test_deepcopy_and_pickle_keep_everything_public(kwargs):
    weight, bias, data = regression()
    optimizer = Arturo([weight, bias], **kwargs)
    for _ in range(2):
        optimizer.step(functools.partial(squares, weight, bias, data, optimizer))
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert {name for name in vars(copied) if not name.startswith("_")} == public
        assert_identical(copied.state_dict(), optimizer.state_dict())
        params = copied.param_groups[0]["params"]
        assert params[0] is not weight
        reference = copy.deepcopy(optimizer)
        for which in (copied, reference):
            for index, param in enumerate(which.param_groups[0]["params"]):
                param.grad = torch.full_like(param, 0.1 * (index + 1))
            which.step()
        assert_identical(snapshot(copied), snapshot(reference))
        assert repr(copied)
        assert copied.diagnostics()["steps"] == 3


def test_copies_keep_the_options():
    weight = Parameter(torch.ones(3))
    optimizer = Arturo.paper([weight], 0.1, temperature=0.5)
    copied = copy.deepcopy(optimizer)
    assert copied._options == optimizer._options
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copied.add_param_group({"params": [Parameter(torch.ones(2))]})


# -- schedulers and scalers --------------------------------------------------------------------------------------------

SCHEDULERS = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: min(1.0, step / 3)),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda step: 0.9),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 4]),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 6),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 1e-3, 1e-2, step_size_up=2, cycle_momentum=False),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=8, cycle_momentum=False),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, 0.1, total_iters=2), lr_scheduler.ExponentialLR(opt, 0.9)], milestones=[2]
    ),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.5, 2), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
@pytest.mark.parametrize("tensor", [False, True], ids=["float lr", "tensor lr"])
def test_schedulers_set_the_length_of_the_step(make, tensor):
    """The step's weighted RMS is the radius that lr asks for where the bound is active, whatever moved lr."""
    weight = Parameter(torch.linspace(1, 2, 20))
    optimizer = Arturo([weight], lr=torch.tensor(1e-2) if tensor else 1e-2)
    scheduler = make(optimizer)
    active = 0
    for step in range(7):
        lr = float(optimizer.param_groups[0]["lr"])
        before = weight.detach().clone()
        train(optimizer, [weight], [step])
        numbers = optimizer.diagnostics()
        if lr == 0.0:
            assert torch.equal(weight, before)
        elif numbers["bound_active"]:
            active += 1
            precision = optimizer.precision(weight)
            mean = (precision * (weight.detach() - before).square()).sum() / precision.sum()
            radius = 2.0 * adaptive_bound(optimizer, [before], [weight.detach() - before]) / precision.sum()
            assert mean.item() == pytest.approx(radius.item(), rel=2e-3)
            assert mean.sqrt().item() >= 0.35 * lr * 0.999
        scheduler.step()
    assert active >= 3
    assert optimizer.diagnostics()["skipped_steps"] == 0


def test_gradient_scaler_leaves_an_overflowed_step_out():
    weight = Parameter(torch.ones(3))
    optimizer = Arturo([weight], lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for loss in (weight.sum(), (weight * torch.tensor([1.0, torch.inf, 1.0])).sum(), (2.0 * weight).sum()):
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        before = weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(weight, before) == (not torch.isfinite(loss).item())
    assert optimizer.diagnostics()["steps"] == 2
    assert optimizer.diagnostics()["skipped_steps"] == 0
