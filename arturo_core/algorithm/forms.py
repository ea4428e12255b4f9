"""The forms by the option that chooses them."""

from __future__ import annotations

from functools import partial

from arturo_core.algorithm import compact, published
from arturo_core.algorithm.form import Form
from arturo_core.algorithm.older import of_version_0_1
from arturo_core.options import ADAPTIVE, CURVATURE_RANGE, PAPER, Options

FORMS: dict[str, Form] = {
    "adaptive": Form(
        rows=compact.ROWS,
        defaults=ADAPTIVE,
        sized=True,
        tied=True,
        least_curvature=CURVATURE_RANGE[0],
        precision=compact.precision,
        curvature=compact.curvature,
        upgraded=partial(of_version_0_1, least_deviation=compact.NOISE_FLOOR**0.5),
    ),
    "fixed": Form(
        rows=published.ROWS,
        defaults=PAPER,
        sized=False,
        tied=False,
        least_curvature=0.0,
        precision=published.precision,
        curvature=published.curvature,
        upgraded=lambda saved: saved,
    ),
}


def form_of(options: Options) -> Form:
    """The form that the options choose."""
    return FORMS[options.noise]
