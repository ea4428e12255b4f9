"""Learning-rate range tests: an lr that rises geometrically, far beyond any that one trains with.

Finders (Lightning's, fastai's, ignite's, hand-made ones) raise lr by a constant factor and look where the loss turns.
With arTuRO it hardly turns, so they suggest rates that are far too large. An exponential warm-up rises in the same way,
and only where it ends tells the two apart: a sweep is told of once it has passed every rate that one trains with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from arturo_core.options import as_float
from arturo_core.step import learning_rate

if TYPE_CHECKING:
    from arturo_core.optimizer import Arturo

#: Total growth of a sweep, and how many times lr has risen at least.
GROWTH, RISES = 1e3, 3

#: The lr, by trust region, from which a rise may be a sweep, and beyond which it is taken for one. Warm-ups to SGD's
#: rates end at 0.1 to 0.5; finders end at 1 or 10 unless told otherwise.
UNUSUAL, BEYOND = {"rms": 0.05, "kl": 1.0}, {"rms": 0.5, "kl": 1.0}

#: Steps at one rate after which a rise has ended.
HELD = 10

#: A geometric rise makes half of its growth (in logarithms) in the second half of its steps, a linear one a tenth or
#: less; and no single step makes most of it.
LATE, SINGLE = 0.25, 0.5

#: Rates that are kept; of longer rises every second, fourth ... one.
KEPT = 1024


class Rise:
    """The learning rates of steps since lr last fell, each different one once, at even distances."""

    def __init__(self) -> None:
        self.told = self.seen = False
        self._begin()

    def _begin(self) -> None:
        self.first = self.last = 0.0
        self._kept: list[float] = []
        self._rates, self._every, self.held = 0, 1, 0

    def see(self, lr: float) -> bool:
        """A step at lr, and whether that is another lr than before; steps at 0 say nothing."""
        self.held += 1
        if lr <= 0.0 or not math.isfinite(lr) or lr == self.last:
            return False
        if lr < self.last:
            self._begin()
        self.first, self.last, self.held = self.first or lr, lr, 1
        if self._rates % self._every == 0:
            self._kept.append(lr)
        self._rates += 1
        if len(self._kept) > KEPT:
            del self._kept[1::2]
            self._every *= 2
        return True

    def is_sweep(self, beyond: float) -> bool:
        """Whether the rates rise as a range test's do and have passed ``beyond``."""
        if self._rates <= RISES or self.last <= beyond:
            return False
        rates = self._kept if self._kept[-1] == self.last else [*self._kept, self.last]
        total = math.log(self.last / self.first)
        late = math.log(self.last / rates[len(rates) // 2])
        single = max(math.log(after / before) for before, after in itertools.pairwise(rates))
        return total >= 0.999 * math.log(GROWTH) and late >= LATE * total and single <= SINGLE * total


_rises: WeakKeyDictionary[Arturo, Rise] = WeakKeyDictionary()


def notice(optimizer: Arturo) -> str | None:
    """What to say if the step about to be taken is one of a sweep, once for every optimizer."""
    lr = _largest(optimizer.param_groups)
    if lr is None:
        return None
    rise = _rises.get(optimizer)
    if rise is None:
        rise = _rises[optimizer] = Rise()
    region = optimizer.options.trust_region
    if not rise.see(lr) or rise.told or not rise.is_sweep(UNUSUAL[region]):
        return None
    rise.seen = True
    if lr <= BEYOND[region]:
        return None
    rise.told = True
    return (
        f"lr has risen from {rise.first:.3g} to {lr:.3g} by a factor a step, as in a learning-rate range test. If it "
        "is one, do not use what it suggests: a trust region keeps the loss from diverging where another optimizer's "
        "would, so the curve turns late or never. Begin with AdamW's lr, compare it in short runs with three and ten "
        "times as much by validation loss, and build a new optimizer for each run (arturo_core/TUNING.md)."
    )


def seen(optimizer: Arturo) -> bool:
    """Whether lr has risen as in a sweep, told of or not."""
    rise = _rises.get(optimizer)
    return rise is not None and rise.seen


def under_way(optimizer: Arturo) -> bool:
    """Whether the last step was one of what may be a sweep."""
    rise = _rises.get(optimizer)
    return rise is not None and rise.held <= HELD and rise.is_sweep(UNUSUAL[optimizer.options.trust_region])


def _largest(groups: Sequence[Mapping[str, Any]]) -> float | None:
    """The largest lr that can be read without waiting for a device."""
    rates = [as_float(group["lr"]) for group in groups if learning_rate.known(group["lr"])]
    return max((rate for rate in rates if rate is not None), default=None)  # the step says what is wrong with others
