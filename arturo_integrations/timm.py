"""``--opt arturo`` for timm; importing this module is all the set-up there is.

    import arturo_integrations.timm  # in train.py, or wherever the optimizer is built

    timm.optim.create_optimizer_v2(model, opt="arturo", lr=1e-3, weight_decay=0.05)

timm builds the parameter groups: without weight decay for biases and norms, by layers with ``layer_decay``. Its
schedulers write ``lr`` and Arturo reads it, a layer's ``lr_scale`` included. Any option of :class:`arturo_core.Arturo`
goes in as a keyword, or after ``--opt-kwargs``: ``--opt-kwargs noise=fixed kl_rtol=1e-4``.

timm sends ``--momentum``, ``--opt-eps`` and ``--opt-betas`` only to optimizers that say they have them. This one does
not.
"""

from timm.optim import OptimInfo
from timm.optim._optim_factory import default_registry

from arturo_core import Arturo

__all__ = ["register"]

OPTIMIZER_NAME = "arturo"


def register() -> None:
    """Puts ``arturo`` into timm's registry of optimizers; importing this module calls it. It can be repeated."""
    if default_registry.list_optimizers(OPTIMIZER_NAME):
        return
    default_registry.register(
        OptimInfo(
            name=OPTIMIZER_NAME,
            opt_class=Arturo,
            description="Diagonal Hessian from gradients by a Kalman filter, every step in a KL trust region",
            has_eps=False,
            has_momentum=False,
            has_betas=False,
        )
    )


register()
