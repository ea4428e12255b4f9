"""arTuRO: information-theoretic trust regions for stochastic gradient-based optimization, in PyTorch."""

from arturo_core import _moved
from arturo_core._version import __version__
from arturo_core.optimizer import Arturo

_moved.install()

__all__ = ["Arturo", "__version__"]
