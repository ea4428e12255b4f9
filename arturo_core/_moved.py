"""Old import paths: modules of version 0.1 under the names that its pickles, and scripts written for it, know.

Nothing is imported until somebody asks for an old path.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: Old name, below this package: the modules that now hold what was in it, the first that has a name counts.
MOVED: dict[str, tuple[str, ...]] = {
    **{name: (f"step.{name}",) for name in ("bookkeeping", "gathering", "weight_scale")},
    **{name: (f"distributed.{name}",) for name in ("agreement", "flat", "fsdp1", "reductions", "sharding")},
    **{name: (f"reporting.{name}",) for name in ("advice", "diagnostics", "layers", "readings")},
    "learning_rate": ("step.learning_rate",),
    "layouts": ("distributed.refusals", "surroundings"),
    "trust_region": ("algorithm.trust_region", "numerics"),
    "curvature": ("algorithm.compact", "algorithm.published", "numerics"),
    "gaussian": ("algorithm.published", "algorithm.compact"),
    "stepping": ("step.work", "step.learning_rate", "step.compact", "step.published"),
    "kernels.chunks": ("step.chunks",),
}

_PACKAGE = __name__.rpartition(".")[0]


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        old = name.removeprefix(f"{_PACKAGE}.")
        return ModuleSpec(name, self) if old != name and old in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__.removeprefix(f"{_PACKAGE}.")
        sources = [importlib.import_module(f"{_PACKAGE}.{new}") for new in MOVED[old]]
        module.__doc__ = f"Moved to {', '.join(source.__name__ for source in sources)}."

        def found(name: str) -> Any:
            for source in sources:
                if hasattr(source, name):
                    return getattr(source, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = found  # type: ignore[method-assign]


def install() -> None:
    """Make the old paths importable; once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
