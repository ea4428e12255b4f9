"""From the logs of a training run to one HTML page with figures: ``python -m arturo_integrations.report RUN_DIR``.

Reads what Hugging Face Trainer, Lightning's CSVLogger, TensorBoard or a JSON lines file hold of losses, learning rates,
``arturo/<name>`` (:func:`arturo_integrations.metrics.arturo_metrics`) and ``arturo/layer/<layer name>/<number>``.
Needs matplotlib and rich, and tensorboard for event files: ``pip install "arturo-optim[report]"``.

From Python: ``build.write_report(find.load(path), path / "arturo_report.html")``.
"""
