"""``optimizer: arturo`` in a config of Axolotl, by its plugin interface.

    plugins:
      - arturo_integrations.axolotl.ArturoPlugin
    optimizer: arturo
    optim_args: {noise: fixed}   # any option of arturo_core.Arturo, if wanted
    max_grad_norm: 0

Axolotl gives names of optimizers that it does not know to the Hugging Face Trainer, which knows this one once the
plugin is registered. Logs are the Trainer's, with ``arturo/...`` in every record.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin

__all__ = ["ArturoPlugin"]


class ArturoPlugin(BasePlugin):  # type: ignore[misc]
    """Makes ``optim="arturo"`` known before Axolotl builds its training arguments."""

    def register(self, cfg: Any) -> None:
        import arturo_integrations.transformers  # noqa: F401
