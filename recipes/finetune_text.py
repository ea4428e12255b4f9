"""Fine-tune a pretrained transformer on text classification with arTuRO, beside AdamW.

    python -m recipes.finetune_text              # the packaged MiniLM on TREC questions, without any network
    python -m recipes.finetune_text --data mine.csv --text-column body --label-column topic --seeds 0,1,2
    python -m recipes.finetune_text --model distilbert-base-uncased --data nyu-mll/glue --data-config sst2

All a script of yours needs is the line `import arturo_integrations.transformers` and `optim="arturo"` in its
`TrainingArguments`; see `fine_tune`. Every optimizer gets the same data order, initial weights, schedule and
number of steps for a seed. The test part is read once, after training. The output folder receives
metrics.json (after every run: an interruption loses at most one, see --resume), results.md and curves.png.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from recipes import hub
from recipes.arguments import known
from recipes.folders import try_folder
from recipes.text import options as command_line
from recipes.text import packaged, report
from recipes.text.data import TextData, load, majority
from recipes.text.errors import exit_code
from recipes.text.options import Options


def fine_tune(options: Options, optimizer: str, seed: int, data: TextData) -> dict[str, Any]:
    """One run; returns its entry in metrics.json."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        ProgressCallback,
        Trainer,
        set_seed,
    )

    from recipes.text.metrics import compute_metrics, state_bytes
    from recipes.text.progress import ShortProgress
    from recipes.text.record import environment
    from recipes.text.trial import check_length, load_model

    begin, begin_cpu = time.perf_counter(), time.process_time()
    set_seed(seed)  # before the model: the new classification head is drawn here
    tokenizer = load_model(options.model, packaged.MINILM, lambda: AutoTokenizer.from_pretrained(weights(options)))
    model = load_model(
        options.model,
        packaged.MINILM,
        lambda: AutoModelForSequenceClassification.from_pretrained(
            weights(options),
            num_labels=len(data.label_names),
            id2label=dict(enumerate(data.label_names)),
            label2id={name: index for index, name in enumerate(data.label_names)},
            ignore_mismatched_sizes=True,  # a head for another number of classes gives way to a new one
        ),
    )
    if tokenizer.pad_token is None:  # GPT-like models
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id

    def encode(part: str) -> Dataset:
        texts = [text for text, _ in data.parts[part]]
        tokens = tokenizer(texts, truncation=True, max_length=options.max_length)
        check_length("--max-length", options.max_length, max(map(len, tokens["input_ids"])), model.config)
        return Dataset.from_dict({**tokens, "label": data.labels(part)})

    def encode_by_length(part: str) -> Dataset:
        rows = encode(part)  # for scores the order is free, and neighbours of one length need little padding
        return rows.select(sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"])))

    parts = {"train": encode("train")} | {part: encode_by_length(part) for part in ("validation", "test")}
    steps = options.steps(len(data.parts["train"]))
    every = options.eval_steps(steps)
    arguments = training_arguments(options, optimizer, seed, steps)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ShortProgress())
    finished = trainer.train()
    assert trainer.optimizer is not None  # which mypy cannot know
    history = list(trainer.state.log_history)
    evaluation_seconds = sum(entry.get("eval_runtime", 0.0) for entry in history)
    if steps % every:
        trainer.evaluate()
        history = list(trainer.state.log_history)
    last = [entry for entry in history if "eval_loss" in entry][-1]
    test = trainer.evaluate(parts["test"], metric_key_prefix="test")
    return {
        "optimizer": optimizer,
        "trainer_optim": arguments.optim,
        "optim_args": arguments.optim_args,
        "seed": seed,
        "learning_rate": arguments.learning_rate,
        "max_grad_norm": arguments.max_grad_norm,
        "steps": steps,
        "validation": {key: last[f"eval_{key}"] for key in ("loss", "accuracy", "macro_f1")},
        "test": {key: test[f"test_{key}"] for key in ("loss", "accuracy", "macro_f1")},
        "train_seconds": finished.metrics["train_runtime"] - evaluation_seconds,
        "wall_seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - begin_cpu,  # of all threads; unlike the others, blind to other programs
        "state_bytes": state_bytes(trainer.optimizer),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "environment": environment(),
        "history": history,
    }


def weights(options: Options) -> str:
    """The folder of the packaged model, or the name that was given."""
    return packaged.minilm() if options.model == packaged.MINILM else options.model


def training_arguments(options: Options, optimizer: str, seed: int, steps: int) -> Any:
    """What the Trainer is told; `optim="arturo"` is all that is arTuRO's here."""
    from transformers import TrainingArguments

    import arturo_integrations.transformers  # noqa: F401  (importing it is what makes optim="arturo" known)

    return TrainingArguments(
        output_dir=str(options.output),
        optim=command_line.TRAINER_NAMES.get(optimizer, optimizer),
        optim_args=options.optim_args if optimizer == "arturo" else None,
        learning_rate=options.learning_rate(optimizer),
        lr_scheduler_type=options.schedule,
        warmup_steps=round(options.warmup * steps),
        weight_decay=options.weight_decay,
        max_grad_norm=options.clipping(optimizer),
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=64,
        seed=seed,  # the data order too
        eval_strategy="steps",
        eval_steps=options.eval_steps(steps),
        eval_on_start=True,
        logging_steps=max(1, steps // 25),
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
    )


def check(options: Options, data: TextData) -> None:
    """Raise an InputError, before anything is trained, for what a run would stumble over."""
    from transformers import AutoConfig, AutoTokenizer

    import arturo_integrations.transformers  # noqa: F401
    from recipes.text.trial import check_optimizer, check_schedule, check_tokens, load_model, optimizer_names

    names = [*command_line.TRAINER_NAMES, *optimizer_names()]
    steps = options.steps(len(data.parts["train"]))
    check_schedule(options.schedule, steps, round(options.warmup * steps))
    for optimizer in options.optimizers:
        known("--optimizers", optimizer, names)
    for optimizer in options.optimizers:
        named = "--optim-args" if optimizer == "arturo" and options.optim_args else f"--optimizers {optimizer}"
        check_optimizer(named, training_arguments(options, optimizer, options.seeds[0], steps))
    load_model(options.model, packaged.MINILM, lambda: AutoConfig.from_pretrained(weights(options)))
    tokenizer = load_model(options.model, packaged.MINILM, lambda: AutoTokenizer.from_pretrained(weights(options)))
    check_tokens("--max-length", options.max_length, tokenizer)
    try_folder(options.output, files=("metrics.json", "metrics.previous.json", "results.md", "curves.png"))


def compare(options: Options, console: Console) -> None:
    """Do every run that is not done yet, then write and show the results."""
    hub.choose(options.offline)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    from recipes.text.plot import plot_curves
    from recipes.text.record import Record

    with console.status(f"reading {options.data}"):
        data = load(
            options.data,
            text_column=options.text_column,
            label_column=options.label_column,
            config=options.data_config,
            split_seed=options.split_seed,
            validation_size=options.validation_size,
            test_size=options.test_size,
        )
    described = data.summary() | {"majority": {part: majority(data, part) for part in ("validation", "test")}}
    record = Record(options.output, options.settings(), described, options.resume)
    check(options, data)
    for number, (seed, optimizer) in enumerate(options.runs, 1):
        name = f"run {number}/{len(options.runs)}: {optimizer}, seed {seed}"
        if record.has(optimizer, seed):
            console.print(f"{name}: done before")
            continue
        console.rule(f"{name}, learning rate {options.learning_rate(optimizer):.3g}")
        record.add(fine_tune(options, optimizer, seed, data))
    plot_curves(record.content, options.output / "curves.png")
    report.write_markdown(record.content, options.output / "results.md")
    report.print_table(record.content, console)
    for file in ("results.md", "curves.png", "metrics.json"):
        console.print(f"[bold]{options.output / file}[/]")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: compare(command_line.parse(argv), Console()))


if __name__ == "__main__":
    sys.exit(main())
