"""What torch asks of its own optimizers, after pytorch's ``test_optim.py``.

Complex and mixed parameters, memory layouts.
"""

from __future__ import annotations

import pytest
import torch
from problems import (
    SCALARS,
    assert_identical,
    every_mode,
    every_noise,
    snapshot,
    train,
)
from torch.nn import Parameter
from torch_inputs import every_input

from arturo_core import Arturo


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
