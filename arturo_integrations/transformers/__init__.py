"""``optim="arturo"`` for the Hugging Face Trainer; importing this module is all the set-up there is.

    import arturo_integrations.transformers  # before TrainingArguments or HfArgumentParser is used

    args = TrainingArguments(..., optim="arturo", learning_rate=5e-5, max_grad_norm=0)
    Trainer(model, args, train_dataset=...).train()

An unmodified script gets the same from ``python -m arturo_integrations.launch script.py --optim arturo``.

Options
    ``optim_args="kl_rtol=1e-3,noise=fixed"`` sets any option of :class:`arturo_core.Arturo` that can be
    written as text, with the types of its constructor. ``learning_rate`` and ``weight_decay`` come from
    ``TrainingArguments``; the Trainer's exemption of biases and normalisation layers from weight decay holds.
    ``optim_args="kl_bound=0.003"`` selects the published trust region in nats: it stands for
    ``trust_region=kl`` and takes the place of ``learning_rate``, so the schedule scales the bound.

    Options without a text form go in through the Trainer, which then ignores ``optim`` and ``optim_args``::

        Trainer(..., optimizer_cls_and_kwargs=(Arturo, {"lr": 5e-5, "process_group": group}))

Gradient clipping
    The Trainer clips to ``max_grad_norm=1.0`` unless told otherwise. That rescales the gradients of some
    steps and not of others, while the optimizer fits a model to them. The trust region already bounds every
    step, so ``max_grad_norm=0`` will do. Whether clipping helps depends on the task: at norm 1 it was within noise in
    three short runs, and one fine-tuning was better without it. With clipping on, the logger of
    ``arturo_integrations.transformers`` says once what it does, at level INFO.

Habits
    ``adam_beta1``, ``adam_beta2`` and ``adam_epsilon`` have no effect, which a warning says where they are not the
    defaults. ``betas``, ``eps``, ``momentum``, ``fused`` ... in ``optim_args`` are refused with what stands for them.

Diagnostics
    Every training record holds ``arturo/eta``, ``arturo/kl_ratio`` and all else that
    ``optimizer.diagnostics()`` reports: in ``trainer.state.log_history`` and in every reporter (TensorBoard, Weights &
    Biases ...); the console shows a few. Records of trainers that rename the loss are known by what else they are. Runs
    with another optimizer are left alone. ``ARTURO_MONITOR=0`` in the environment (or false, no, off) turns numbers
    and advice off.
    ``log_layers(trainer)`` adds what each layer does. Where the numbers speak against a setting, a warning says
    once what to change (:mod:`arturo_core.reporting.advice`).

Several processes
    DDP, FSDP1 and FSDP2 (through ``fsdp_config`` or ``DistributedConfig(fsdp_size=...)``) need nothing else. For models
    that ``DistributedConfig`` shards, the Trainer itself refuses to save any optimizer: ``save_strategy="no"`` or
    ``save_only_model=True``.

Limits
    * Every Trainer checkpoint has a ``training_args.bin``. One written with ``optim="arturo"`` can be read
      only where this package is installed, because the pickle names it (no import is needed beforehand: the
      unpickling does it). Resuming does not read the file.
    * A parser built before this import does not know ``--optim arturo``.
    * Under DeepSpeed ZeRO see ``arturo_integrations.deepspeed``: steps are exact, optimizer offload needs
      ``"zero_force_ds_cpu_optimizer": false``, and a checkpoint is resumed by as many ranks as saved it.
"""

from arturo_integrations.transformers.callback import ArturoDiagnosticsCallback, log_layers
from arturo_integrations.transformers.options import arturo_kwargs
from arturo_integrations.transformers.registry import register

__all__ = ["ArturoDiagnosticsCallback", "arturo_kwargs", "log_layers", "register"]

register()
