"""What the logged numbers mean: one unit and one sentence each, the only place that says so."""

from __future__ import annotations

#: Of :meth:`arturo_core.Arturo.diagnostics`, by name without the prefix ``arturo/``: unit ("" has none), meaning.
MEANINGS: dict[str, tuple[str, str]] = {
    "eta": ("", "Multiplier of the trust region: the larger, the more the bound shortens the step."),
    "kl": ("nats", "KL divergence that the step spent, before rounding to the weights' dtype."),
    "kl_bound": ("nats", "Largest KL divergence that the step was allowed to spend."),
    "kl_ratio": ("", "KL divergence spent over its bound: 1 where the bound is active, less where it is not."),
    "bound_active": ("0 or 1", "Whether the bound decided the length of the step."),
    "step_scale": ("", "1, unless the dual was not solved to its tolerance and the step's length was corrected."),
    "step_rms": ("weight units", "Root mean square of the step, without weight decay and before rounding."),
    "step_resolution": (
        "",
        "RMS of the step over the median of half the spacing of neighbouring weights: below 1 rounding swallows steps.",
    ),
    "innovation_ratio": ("", "Squared surprise of the gradients over what the filter expected: 1 if it is consistent."),
    "steps": ("steps", "Steps that were taken."),
    "skipped_steps": ("steps", "Steps skipped because a gradient was not finite."),
    "curvature_q05": ("× prior", "Learned curvature relative to its prior: 5 % of the weights lie below."),
    "curvature_q50": ("× prior", "Learned curvature relative to its prior: median over the weights."),
    "curvature_q95": ("× prior", "Learned curvature relative to its prior: 5 % of the weights lie above."),
    "precision_q05": ("1/weight²", "Precision of the Gaussian over the weights: 5 % of the weights lie below."),
    "precision_q50": ("1/weight²", "Precision of the Gaussian over the weights: median over the weights."),
    "precision_q95": ("1/weight²", "Precision of the Gaussian over the weights: 5 % of the weights lie above."),
}

#: Of a layer, by the last component of ``arturo/layer/<layer name>/<number>``: column title, unit, meaning.
LAYER_MEANINGS: dict[str, tuple[str, str, str]] = {
    "kl_share": (
        "KL share",
        "",
        "Share of the step's KL divergence that this layer spent; all layers together spend 1.",
    ),
    "kl": ("KL", "nats", "KL divergence that this layer spent."),
    "step_rms": ("step RMS", "weight units", "Root mean square of this layer's step."),
    "weight_rms": ("weight RMS", "weight units", "Root mean square of this layer's weights."),
    "curvature": ("curvature", "× prior", "Mean learned curvature relative to its prior: 1 where nothing was learned."),
    "curvature_learned": ("learned", "", "Share of weights whose curvature is more than a tenth away from its prior."),
    "curvature_floored": ("floored", "", "Share of weights whose curvature is at its floor or not positive."),
}
