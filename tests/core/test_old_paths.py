"""Import paths of version 0.1: scripts and pickles of it go on working."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest
from limits import HANGS

from arturo_core._moved import MOVED

#: What integrations, recipes and tests of version 0.1 took from where.
TAKEN = {
    "advice": ["Advisor", "ArturoAdvice", "advise"],
    "agreement": ["agree"],
    "bookkeeping": ["KEYS", "first"],
    "curvature": ["CompactBelief", "FullBelief", "Gains", "compact_update", "predict", "recentre", "riccati", "update"],
    "diagnostics": ["Report", "summarize"],
    "flat": ["declare"],
    "fsdp1": ["is_shard"],
    "gathering": ["gather", "survey"],
    "gaussian": ["precision_floor", "tied_precision", "updated_precision"],
    "kernels.chunks": ["Chunk", "Source", "chunks"],
    "layers": ["LayerWatch"],
    "layouts": ["check_caller", "check_layout", "check_step"],
    "learning_rate": ["rates", "length"],
    "readings": ["precision", "sample"],
    "reductions": ["LARGEST_GRADIENT", "Reduction", "totals"],
    "sharding": ["parts", "shard", "takes_part"],
    "stepping": ["GroupRates", "Outcome", "Step"],
    "trust_region": ["Multiplier", "Spectrum", "tied_multiplier", "wide_dtype", "wide_sum"],
    "weight_scale": ["RADIUS_PER_WEIGHT", "radius", "sums"],
}


def test_every_old_path_is_known() -> None:
    assert TAKEN.keys() == MOVED.keys()


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_leads_to_the_same_objects(old: str) -> None:
    module = importlib.import_module(f"arturo_core.{old}")
    new = [importlib.import_module(f"arturo_core.{one}") for one in MOVED[old]]
    for name in TAKEN[old]:
        assert getattr(module, name) is next(getattr(one, name) for one in new if hasattr(one, name))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = module.nonsense
    with pytest.raises(ImportError):
        importlib.import_module(f"arturo_core.{old}.nonsense")


def test_a_pickle_that_names_old_paths_loads() -> None:
    """Protocol 0 spells the names out."""
    from arturo_core.algorithm.trust_region import Multiplier
    from arturo_core.reporting.diagnostics import Report
    from arturo_core.step.learning_rate import GroupRates

    for old, expected in (("diagnostics", Report), ("trust_region", Multiplier), ("stepping", GroupRates)):
        assert pickle.loads(f"carturo_core.{old}\n{expected.__name__}\n.".encode()) is expected


def test_old_paths_cost_nothing_until_they_are_asked_for() -> None:
    said = f"import sys, arturo_core; print([n for n in {[f'arturo_core.{old}' for old in MOVED]} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True, timeout=HANGS)
    assert done.stdout.strip() == "[]"
