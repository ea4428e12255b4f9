"""The adaptive form against the lines of the core's README, written out in numpy, and what its filter learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from arturo_core import Arturo
from arturo_core.reporting import readings


class Written:
    """``noise="adaptive"``, ``trust_region="rms"``: float64, one flat vector, constants as documented."""

    def __init__(self, theta: np.ndarray) -> None:
        self.theta = theta.copy()
        zeros = np.zeros_like(theta)
        self.g, self.noise, self.s, self.moved = zeros.copy(), zeros.copy(), np.ones_like(theta), zeros.copy()
        self.p, self.steps, self.level, self.peak, self.longest = 1.0, 0, 1.0, 0.0, 0.0
        self.limited = 0  # steps in which weight decay went beyond what the model follows
        self.relative = self.signal = 0  # steps whose radius came from the weights, or from the signal, instead of lr

    def step(self, gradient: np.ndarray, lr: float, decay: float) -> None:
        self.peak = max(self.peak, lr)
        # The first 20 weights are a 4 x 5 matrix.
        relative = 0.16 * np.sqrt((self.theta[:20] ** 2 / 4 + 0.1 / 20).mean())
        self.longest = max(self.longest, min(lr, relative / 0.35))
        ell = 8.0 * self.longest
        shrink = -min(lr * decay, 1.0) * self.theta
        p = self.p + 0.03 * (lr / self.peak) ** 2
        gain = p / (1.0 + p)
        reach = 0.6 * gain
        self.limited += np.abs(self.s * shrink / ell).max() > reach
        self.g += np.sqrt(self.noise + 1e-36) * np.clip(self.s * shrink / ell, -reach, reach)
        self.moved += shrink
        self.theta += shrink
        error = gradient - self.g
        self.noise += max(1.0 / (1.0 + self.steps), 0.003) * (error**2 / (1.0 + p) - self.noise)
        sigma = np.sqrt(self.noise + 1e-36)
        x = self.moved / ell
        rise = np.clip(0.8 * x * (error / sigma) / (1.0 + p + 0.8 * x**2), -0.1, 0.1)
        common = np.log(self.level) * np.minimum(x**2 / 1e-4, 1.0)
        self.s = np.clip(self.s * np.exp(rise - common), 0.1, 10.0)
        self.level = float((self.s * sigma).sum() / sigma.sum())
        self.g += gain * error
        self.moved *= 1.0 - gain
        h = self.s * sigma / ell
        signal = np.sqrt((h * (self.g / (self.s * sigma)) ** 2).sum() / h.sum())
        counts = lr * min(1.0, relative / (0.35 * self.peak))
        radius = min(counts * max(0.35, signal), relative * lr / self.peak)
        self.relative += counts < lr
        self.signal += signal > 0.35
        f = min(1.0 / 3.0, np.sqrt((h * radius**2).sum() / (self.g**2 / h).sum()))
        delta = -f * self.g / h
        self.theta += delta
        self.moved += delta
        self.g += h * delta
        # One number a parameter, kept in float32: the only rounding that a float64 optimizer has of its own.
        self.p, self.steps = float(np.float32(gain)), self.steps + 1


@pytest.mark.parametrize("seed", [0, 2, 3])
@pytest.mark.parametrize(("peak", "always_bound"), [(1e-3, True), (0.1, False)])
@pytest.mark.parametrize("decay", [0.0, 0.1, 20.0])
@pytest.mark.parametrize("spread", [0.05, 2.0])
def test_every_statistic_follows_the_documented_rule(
    seed: int, spread: float, decay: float, peak: float, always_bound: bool
) -> None:
    rng = np.random.default_rng(seed)
    size = 60
    curvature, scale = np.exp(rng.normal(0, 1, size)), np.exp(rng.normal(0, 2, size))
    theta = rng.normal(0, 0.3, size)
    written = Written(theta)
    shapes = [(4, 5), (1,), (39,)]

    def parts(flat: np.ndarray) -> list[torch.Tensor]:
        split = torch.from_numpy(flat.copy()).split([math.prod(shape) for shape in shapes])
        return [part.reshape(shape) for part, shape in zip(split, shapes, strict=True)]

    params = [torch.nn.Parameter(part.clone()) for part in parts(theta)]
    optimizer = Arturo(params, lr=peak, weight_decay=decay)
    inactive = 0
    for step in range(150):
        lr = peak * min(1.0, (step + 1) / 20) * (1.0 - step / 200)
        gradient = scale * (curvature * written.theta + rng.normal(0, spread, size))
        written.step(gradient, lr, decay)
        for param, part in zip(params, parts(gradient), strict=True):
            param.grad = part.clone()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        inactive += not optimizer.diagnostics()["bound_active"]
        expected = {
            "theta": written.theta,
            "gradient": written.g,
            "noise": written.noise,
            "curvature": written.s,
            "displacement": written.moved,
        }
        for name, value in expected.items():
            here = [
                param.detach() if name == "theta" else getattr(readings.belief(optimizer.state[param]), name)
                for param in params
            ]
            found = torch.cat([value.flatten() for value in here])
            tolerance = {"rtol": 1e-9, "atol": 1e-12 + 1e-12 * float(np.abs(value).max())}
            np.testing.assert_allclose(found.numpy(), value, **tolerance, err_msg=f"{name} at {step}")
    assert optimizer.param_groups[0]["peak_lr"] == written.peak
    assert float(optimizer.param_groups[0]["length"]) == pytest.approx(8.0 * written.longest, rel=1e-12)
    if spread < 1.0:  # in much noise Newton's step is short, and so seldom short enough
        assert (inactive == 0) == always_bound
    assert (written.relative == 0) == always_bound
    assert (written.limited > 0) == (decay > 1.0)
    assert written.signal > 0
    if spread > 1.0:
        assert written.signal < 125  # of 150: often lr alone decides


def test_noise_levels_are_found() -> None:
    """White noise of known variance around nothing: R comes out to within the error of its 300-step memory."""
    torch.manual_seed(0)
    levels = torch.tensor([1e-6, 1e-3, 1.0, 1e3]).repeat_interleave(500)
    param = torch.nn.Parameter(torch.zeros(2000))
    optimizer = Arturo([param], lr=1e-4)
    for _ in range(600):
        param.grad = levels * torch.randn(2000)
        optimizer.step()
    found = (optimizer.state[param]["deviation"] / levels).view(4, 500).mean(dim=1)
    torch.testing.assert_close(found, torch.full((4,), found.mean().item()), rtol=0.05, atol=0.0)
    assert 0.8 < found.mean() < 1.1


def test_steeper_coordinates_get_more_curvature() -> None:
    """Equal noise, curvature 1 against 30: the filter tells them apart from gradients alone."""
    torch.manual_seed(0)
    steepness = torch.tensor([1.0, 30.0]).repeat_interleave(300)
    param = torch.nn.Parameter(torch.randn(600))
    optimizer = Arturo([param], lr=2e-2)
    for _ in range(1000):
        param.grad = steepness * param.detach() + torch.randn(600)
        optimizer.step()
    flat, steep = optimizer.state[param]["curvature"].view(2, 300).median(dim=1).values.tolist()
    assert steep > 1.2 * flat
