"""The parts of `recipes.finetune_causal_lm`: options, text, models, checkpoints, the report."""
