"""The forms by the option that chooses them."""

from __future__ import annotations

from arturo_core.algorithm import compact, published
from arturo_core.algorithm.form import Form
from arturo_core.options import Options

FORMS: dict[str, Form] = {"adaptive": compact.FORM, "fixed": published.FORM}


def form_of(options: Options) -> Form:
    """The form that the options choose."""
    return FORMS[options.noise]
