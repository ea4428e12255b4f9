"""Input that cannot be optimised is refused where it is given: the key, the value and what is allowed are named."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch
from problems import assert_identical, every_mode, every_noise, parameters, snapshot, trained
from torch.nn import Parameter

from arturo_core import Arturo


def refused(error: type[Exception], mentions: list[str], *args, **kwargs) -> str:
    """The message of an error raised by the constructor; it has to mention everything in ``mentions``."""
    with pytest.raises(error) as caught:
        Arturo(*args, **kwargs)
    message = str(caught.value)
    for mention in mentions:
        assert mention in message, f"{mention!r} is not in: {message}"
    return message


def weight() -> list[Parameter]:
    return [Parameter(torch.ones(3))]


# -- learning rate, weight decay, maximize -----------------------------------------------------------------------------

LEARNING_RATES = {
    "negative": (-0.1, ValueError, ["lr", "learning rate", "-0.1", "positive"]),
    "negative tensor": (torch.tensor(-0.5), ValueError, ["lr", "-0.5", "positive"]),
    "nan": (math.nan, ValueError, ["lr", "nan", "finite"]),
    "nan tensor": (torch.tensor(math.nan), ValueError, ["lr", "nan", "finite"]),
    "infinite": (math.inf, ValueError, ["lr", "inf", "finite"]),
    "string": ("1e-3", TypeError, ["lr", "'1e-3'", "number"]),
    "bool": (True, TypeError, ["lr", "True", "number"]),
    "none": (None, TypeError, ["lr", "None", "number"]),
    "vector": (torch.ones(2), ValueError, ["lr", "(2,)", "1-element"]),
    "complex tensor": (torch.tensor(1j), ValueError, ["lr", "complex64", "real"]),
    "bool tensor": (torch.tensor(True), ValueError, ["lr", "bool", "real"]),
}


@pytest.mark.parametrize(("lr", "error", "mentions"), LEARNING_RATES.values(), ids=LEARNING_RATES.keys())
@pytest.mark.parametrize("trust_region", ["rms", "kl"])
@pytest.mark.parametrize("where", ["constructor", "group", "late group"])
def test_learning_rate(lr, error, mentions, trust_region, where):
    if where == "constructor":
        refused(error, mentions, weight(), lr, trust_region=trust_region)
        return
    group = {"params": weight(), "lr": lr}
    if where == "group":
        refused(error, mentions, [group], trust_region=trust_region)
        return
    optimizer = Arturo(weight(), trust_region=trust_region)
    with pytest.raises(error) as caught:
        optimizer.add_param_group(group)
    assert all(mention in str(caught.value) for mention in mentions)
    assert len(optimizer.param_groups) == 1


def test_the_message_says_what_lr_is():
    assert "AdamW" in refused(ValueError, [], weight(), -1.0)
    assert "nats" in refused(ValueError, [], weight(), -1.0, trust_region="kl")


@pytest.mark.parametrize("where", ["constructor", "group"])
@pytest.mark.parametrize(
    ("decay", "error", "mentions"),
    [
        (-0.5, ValueError, ["weight_decay", "-0.5", "positive"]),
        (math.nan, ValueError, ["weight_decay", "nan", "finite"]),
        (math.inf, ValueError, ["weight_decay", "inf", "finite"]),
        ("0.1", TypeError, ["weight_decay", "'0.1'", "number"]),
        (False, TypeError, ["weight_decay", "False", "number"]),
    ],
)
def test_weight_decay(decay, error, mentions, where):
    if where == "constructor":
        refused(error, mentions, weight(), weight_decay=decay)
    else:
        refused(error, mentions, [{"params": weight(), "weight_decay": decay}])


@pytest.mark.parametrize("value", [1, "yes", None])
def test_maximize(value):
    refused(TypeError, ["maximize", repr(value), "True or False"], weight(), maximize=value)
    refused(TypeError, ["maximize", repr(value), "True or False"], [{"params": weight(), "maximize": value}])


# -- options of the whole optimizer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trust_region", "noise"])
@pytest.mark.parametrize("value", ["KL", "", "none", None, 1, ["kl"]])
def test_choices(name, value):
    allowed = {"trust_region": ['"rms"', '"kl"'], "noise": ['"adaptive"', '"fixed"']}[name]
    refused(ValueError, [name, repr(value), *allowed], weight(), **{name: value})


@pytest.mark.parametrize("value", [0.0, -1e-3, 1.0, 2.0])
def test_kl_rtol_out_of_range(value):
    refused(ValueError, ["kl_rtol", str(value), "between 0 and 1"], weight(), kl_rtol=value)


@pytest.mark.parametrize("value", ["1e-3", True, None])
def test_kl_rtol_is_a_number(value):
    refused(TypeError, ["kl_rtol", repr(value), "number"], weight(), kl_rtol=value)


POSITIVE = {
    "adaptive": ["temperature", "init_hessian", "init_covariance", "length_scale"],
    "fixed": [
        "temperature",
        "precision_momentum",
        "init_variance",
        "init_hessian",
        "init_covariance",
        "measurement_noise",
    ],
}
NON_NEGATIVE = ["prior_precision", "process_noise"]
SCALES = [(noise, name) for noise, names in POSITIVE.items() for name in (*names, *NON_NEGATIVE)]


@pytest.mark.parametrize(("noise", "name"), SCALES)
def test_scales_out_of_range(noise, name):
    refused(ValueError, [name, "-1", "non-negative" if name in NON_NEGATIVE else "positive"],
            weight(), noise=noise, **{name: -1.0})  # fmt: skip
    for value in (math.nan, math.inf):
        refused(ValueError, [name, str(value), "finite"], weight(), noise=noise, **{name: value})
    for value in ("0.1", True):
        refused(TypeError, [name, repr(value), "number"], weight(), noise=noise, **{name: value})
    if name in NON_NEGATIVE:
        Arturo(weight(), noise=noise, **{name: 0})
    else:
        refused(ValueError, [name, "0", "positive"], weight(), noise=noise, **{name: 0})


@pytest.mark.parametrize("name", ["precision_momentum", "init_variance", "measurement_noise"])
def test_constants_have_no_meaning_where_they_are_learned(name):
    refused(ValueError, [f"{name}=0.5", "adaptive", 'noise="fixed"'], weight(), **{name: 0.5})
    Arturo(weight(), noise="fixed", **{name: 0.5})


def test_length_scale_has_no_meaning_with_fixed_noise():
    refused(ValueError, ["length_scale=0.1", 'noise="fixed"', "init_hessian"], weight(), noise="fixed",
            length_scale=0.1)  # fmt: skip


REFUSED_DTYPES = [
    torch.float16,
    torch.int64,
    torch.complex64,
    "8",
    "8bits",
    "4bit",
    "torch.int8",
    "float33",
    "nn",
]
REFUSED_DTYPES += ["", "Tensor", None, 32, float, [torch.float32]]


@pytest.mark.parametrize("dtype", REFUSED_DTYPES)
def test_state_dtype(dtype):
    refused(ValueError, ["state_dtype", str(dtype), "torch.float32", "torch.float64"], weight(), state_dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "8bit", " 8BIT "])
def test_the_published_form_has_no_narrow_state(dtype):
    refused(
        ValueError, ["state_dtype", 'noise="fixed"', 'noise="adaptive"'], weight(), state_dtype=dtype, noise="fixed"
    )
    Arturo(weight(), state_dtype=dtype)


@pytest.mark.parametrize("name", ["float32", "torch.float32", "float", "float64", "torch.float64", " double "])
@every_noise
def test_the_name_of_a_dtype_is_the_dtype(name, options):
    wanted = getattr(torch, name.strip().removeprefix("torch."))
    for optimizer in (
        Arturo(weight(), state_dtype=name, **options),
        Arturo([{"params": weight(), "state_dtype": name}], state_dtype=wanted, **options),
    ):
        (param,) = optimizer.param_groups[0]["params"]
        param.grad = torch.ones_like(param)
        optimizer.step()
        assert {value.dtype for value in optimizer.state[param].values() if value.dim()} == {wanted}
    refused(ValueError, ["state_dtype cannot differ"], [{"params": weight(), "state_dtype": torch.float64}])


@pytest.mark.parametrize(
    "value", ["x", 0, True, object(), [0, 1], torch.ones(2)], ids=lambda value: type(value).__name__
)
def test_a_process_group_is_one(value):
    refused(TypeError, ["process_group", "ProcessGroup", "DeviceMesh", "None"], weight(), process_group=value)
    optimizer = Arturo(weight())
    with pytest.raises(TypeError, match="process_group"):
        optimizer.split_over(value)
    assert optimizer.process_group is None


def test_a_process_group_is_one_that_the_rank_belongs_to():
    refused(
        TypeError, ["rank does not belong to"], weight(), process_group=torch.distributed.GroupMember.NON_GROUP_MEMBER
    )


@pytest.mark.parametrize("value", [1, "default", None])
def test_compile(value):
    refused(TypeError, ["compile", repr(value), "True or False"], weight(), compile=value)


def test_options_are_keyword_only_and_known():
    with pytest.raises(TypeError, match="positional"):
        Arturo(weight(), 1e-3, 0.0)
    with pytest.raises(TypeError, match="betas"):
        Arturo(weight(), betas=(0.9, 0.999))
    with pytest.raises(TypeError, match="betas"):
        Arturo.paper(weight(), betas=(0.9, 0.999))


def test_paper_checks_its_options_too():
    with pytest.raises(ValueError, match=r"-1.*nats"):
        Arturo.paper(weight(), -1.0)
    with pytest.raises(ValueError, match=r"temperature=0.*positive"):
        Arturo.paper(weight(), temperature=0.0)


GLOBAL = [
    "temperature",
    "prior_precision",
    "precision_momentum",
    "init_variance",
    "init_hessian",
    "init_covariance",
    "measurement_noise",
    "process_noise",
    "kl_rtol",
    "trust_region",
    "noise",
    "state_dtype",
    "length_scale",
    "compile",
    "process_group",
]


@pytest.mark.parametrize("name", GLOBAL)
def test_global_options_in_a_group(name):
    """One multiplier couples all parameters: silently ignoring the option would be the worst answer."""
    value = {"trust_region": "kl", "noise": "fixed", "state_dtype": torch.float64, "compile": True}.get(name, 0.5)
    refused(ValueError, [name, "group", f"Arturo(..., {name}=", "lr, weight_decay"],
            [{"params": weight(), name: value}])  # fmt: skip


def test_global_options_repeated_in_a_group():
    """As ``ZeroRedundancyOptimizer`` does with every argument it was given."""
    given = {"trust_region": "kl", "kl_rtol": 1e-2, "temperature": 2.0, "length_scale": None, "compile": False}
    optimizer = Arturo([{"params": weight(), **given}], **given)
    chosen = optimizer.options
    assert {key: getattr(chosen, key) for key in given if key != "length_scale"} == {
        key: value for key, value in given.items() if key != "length_scale"
    }
    assert optimizer.param_groups[0]["trust_region"] == "kl"


# -- parameters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [[], (), iter([]), {}.values()], ids=["list", "tuple", "iterator", "view"])
def test_no_parameters(empty):
    refused(ValueError, ["empty parameter list"], empty)


def test_a_consumed_generator():
    model = torch.nn.Linear(2, 2)
    generator = model.parameters()
    assert len(list(generator)) == 2
    refused(ValueError, ["empty parameter list"], generator)
    assert len(Arturo(model.parameters()).param_groups[0]["params"]) == 2


def test_a_single_tensor():
    refused(TypeError, ["iterable of Tensors or dicts"], Parameter(torch.ones(2)))


def test_things_that_are_not_parameters():
    refused(TypeError, ["Tensors", "str"], ["weight"])
    refused(TypeError, ["ordered"], [{"params": {Parameter(torch.ones(2))}}])


def test_duplicates_in_a_group():
    param = Parameter(torch.ones(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(ValueError, ["twice", "tied weights"], [param, Parameter(torch.ones(2)), param])


def test_duplicates_across_groups():
    param = Parameter(torch.ones(2))
    refused(ValueError, ["more than one parameter group"], [{"params": [param]}, {"params": [param]}])


def test_sparse_parameters():
    refused(TypeError, ["sparse", "dense"], [torch.eye(3).to_sparse().requires_grad_()])


def test_non_leaf_parameters():
    refused(ValueError, ["non-leaf"], [2.0 * Parameter(torch.ones(2))])


# -- what only a step can see ------------------------------------------------------------------------------------------


@every_noise
def test_sparse_gradients(options):
    params, optimizer = trained(options, steps=2)
    table = torch.nn.Embedding(5, 3, sparse=True)
    optimizer.add_param_group({"params": table.parameters()})
    table(torch.tensor([1, 3])).sum().backward()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"sparse gradients.*sparse=False") as caught:
        optimizer.step()
    assert "Embedding" in str(caught.value) or "embedding" in str(caught.value)
    assert_identical(snapshot(optimizer), before)
    assert all(torch.isfinite(param).all() for param in params)


@pytest.mark.parametrize("noise", ["adaptive", "fixed"])
def test_groups_of_different_lr_with_one_bound(noise):
    params = parameters()
    groups = [{"params": params[:1], "lr": 0.1}, {"params": params[1:], "lr": 0.2}]
    optimizer = Arturo(groups, noise=noise, trust_region="kl")
    for param in params:
        param.grad = torch.ones_like(param)
    weights = [param.detach().clone() for param in params]
    with pytest.raises(ValueError, match=re.escape("0.1, 0.2")) as caught:
        optimizer.step()
    for mention in ("lr", 'trust_region="kl"', 'trust_region="rms"', "one value"):
        assert mention in str(caught.value)
    assert_identical([param.detach() for param in params], weights)
    assert [group["calls"] for group in optimizer.param_groups] == [0, 0]
    # A group that stands still takes no part, so it may.
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(params[0], weights[0])
    assert not torch.equal(params[1], weights[1])


@every_mode
def test_precision_before_the_first_step(options):
    params = parameters()
    optimizer = Arturo(params, **options)
    with pytest.raises(KeyError, match="no state yet"):
        optimizer.precision(params[0])
    numbers = optimizer.diagnostics()
    assert (numbers["steps"], numbers["skipped_steps"]) == (0, 0)
