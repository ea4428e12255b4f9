"""The diagnostics as every framework logs them."""

from __future__ import annotations

import gc
import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch

from arturo_core import Arturo
from arturo_core.reporting.advice import ArturoAdvice
from arturo_core.reporting.layers import LayerWatch
from arturo_integrations.metrics import arturo_metrics


def after_a_step() -> Arturo:
    weights = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = Arturo([weights])
    weights.grad = torch.arange(6.0).view(2, 3)
    optimizer.step()
    return optimizer


def test_metrics_are_the_diagnostics_under_prefixed_names():
    optimizer = after_a_step()
    metrics = arturo_metrics(SimpleNamespace(optimizer=optimizer))
    assert metrics == {f"arturo/{name}": pytest.approx(float(value)) for name, value in optimizer.diagnostics().items()}
    assert {"arturo/eta", "arturo/kl_ratio", "arturo/bound_active", "arturo/curvature_q50"} <= metrics.keys()
    assert all(type(value) in (int, float) for value in metrics.values())


def test_before_the_first_step_there_are_the_counters():
    optimizer = Arturo([torch.nn.Parameter(torch.ones(2))])
    assert arturo_metrics(optimizer) == {"arturo/steps": 0, "arturo/skipped_steps": 0}


def test_another_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"Arturo: no Arturo inside an optimizer of type SGD\. Pass the optimizer"):
        arturo_metrics(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1))


def test_metrics_take_layers_and_give_advice_once():
    weights = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = Arturo([("weights", weights)], lr=0.5)
    watch = LayerWatch(optimizer)
    weights.grad = torch.arange(6.0).view(2, 3)
    watch.arm()
    optimizer.step()
    with pytest.warns(ArturoAdvice, match="lr=0.5 looks like"):
        metrics = arturo_metrics(optimizer, layers=watch)
    assert metrics["arturo/layer/weights/kl"] == pytest.approx(metrics["arturo/kl"])
    assert metrics["arturo/layer/weights/kl_share"] == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", ArturoAdvice)
        arturo_metrics(optimizer)
        arturo_metrics(after_a_step(), advice=False)


def test_metrics_keep_no_optimizer_alive():
    optimizer = after_a_step()
    arturo_metrics(optimizer)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
