"""The parts of `recipes.lightning_image`: data, networks, the published values, module, checkpoints, the report."""
