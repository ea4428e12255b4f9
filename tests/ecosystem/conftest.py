"""What tests of other packages need: that of the integrations, and a torchvision that imports."""

import torchvision_operators  # noqa: F401  (before any package imports torchvision)
from isolation import environment_is_restored, one_thread  # noqa: F401  (fixtures of every test here)
