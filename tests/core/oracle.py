"""An independent implementation of the published algorithm: uncentred, float64, numpy, one flat vector.

Written from the published equations in (r, h), with a plain bisection for the dual; shares no code with the package.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Published:
    theta: np.ndarray
    kl_bound: float
    kappa: float
    lambda0: float
    nu: float
    c0: float
    noise: float
    drift: float
    var_init: float
    h0: float = 0.1
    started: bool = False
    eta: float = 0.0
    active: bool = True
    state: dict[str, np.ndarray] = field(default_factory=dict)

    def step(self, g: np.ndarray) -> None:
        theta, s = self.theta, self.state
        if not self.started:
            s["r"], s["h"] = g.copy(), np.full_like(g, self.h0)
            s["lam"] = np.full_like(g, 1.0 / self.var_init)
            s["p00"], s["p01"], s["p11"] = np.full_like(g, self.c0), np.zeros_like(g), np.full_like(g, self.c0)
            self.started = True
        s["p00"] = s["p00"] + self.drift
        s["p11"] = s["p11"] + self.drift
        k0, k1 = s["p00"] + s["p01"] * theta, s["p01"] + s["p11"] * theta
        total = k0 + k1 * theta + self.noise
        k0, k1 = k0 / total, k1 / total
        error = g - s["h"] * theta - s["r"]
        s["r"], s["h"] = s["r"] + k0 * error, s["h"] + k1 * error
        s["p00"] = s["p00"] - total * k0 * k0
        s["p01"] = s["p01"] - total * k0 * k1
        s["p11"] = s["p11"] - total * k1 * k1
        self.eta = self._dual()
        curvature = s["h"] + self.kappa * self.lambda0
        self.theta = self._primal(self.eta)
        s["lam"] = (curvature + self.nu * s["lam"]) / (self.kappa + self.nu)

    def _primal(self, eta: float) -> np.ndarray:
        s = self.state
        return (eta * s["lam"] * self.theta - s["r"]) / (s["h"] + self.kappa * self.lambda0 + eta * s["lam"])

    def kl(self, eta: float) -> float:
        return float(0.5 * np.sum(self.state["lam"] * (self.theta - self._primal(eta)) ** 2))

    def _dual(self) -> float:
        s = self.state
        low = max(0.0, float(np.max(-(s["h"] + self.kappa * self.lambda0) / s["lam"])))
        if low == 0.0 and self.kl(0.0) <= self.kl_bound:
            self.active = False
            return 0.0
        self.active = True
        width = 1.0
        while self.kl(low + width) > self.kl_bound:
            width *= 2.0
        high = low + width
        for _ in range(200):
            middle = 0.5 * (low + high)
            if middle in (low, high):
                break
            if self.kl(middle) > self.kl_bound:
                low = middle
            else:
                high = middle
        return high
