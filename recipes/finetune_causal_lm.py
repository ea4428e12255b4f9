"""Train or fine-tune a causal language model with arTuRO through Accelerate: one process, DDP, FSDP.

    python -m recipes.finetune_causal_lm                  # a small model from scratch, without any network
    accelerate launch --num_processes 2 -m recipes.finetune_causal_lm --checkpoint-every 100
    accelerate launch --num_processes 2 -m recipes.finetune_causal_lm --checkpoint-every 100 --resume
    python -m recipes.finetune_causal_lm --model gpt2 --data Salesforce/wikitext --data-config wikitext-2-raw-v1
    python -m recipes.finetune_causal_lm --optimizer adamw --output runs/adamw
    python -m recipes.finetune_causal_lm --against runs/adamw

All that is arTuRO's here is `prepare` in place of `accelerator.prepare`, and `arturo_metrics` for the logs. The data
order follows from the seed and the step, so runs on any number of processes see the same batches, and a resumed run
goes on exactly: bit for bit on as many processes as before. The output folder receives metrics.json, curves.png, the
checkpoints and, at the end, the model.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from arturo_integrations.metrics import arturo_metrics
from recipes import hub
from recipes.causal_lm import checkpoints, report
from recipes.causal_lm import options as command_line
from recipes.causal_lm.data import Order
from recipes.causal_lm.options import Options
from recipes.folders import try_folder
from recipes.text.errors import exit_code
from recipes.text.record import environment


def train(options: Options, console: Console) -> None:
    """One run, or the rest of one, from options to report."""
    hub.choose(options.offline)
    import torch
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, set_seed
    from transformers import get_scheduler

    from arturo_integrations.accelerate import prepare
    from recipes.causal_lm import data, model
    from recipes.text.trial import check_schedule, check_tracker

    warmup = round(options.warmup * options.steps)
    check_schedule(options.schedule, options.steps, warmup, by_step=True)
    check_tracker(options.log_with)
    accelerator = Accelerator(
        # Epochs are whole steps already: no short step at their ends.
        gradient_accumulation_plugin=GradientAccumulationPlugin(options.accumulate, sync_with_dataloader=False),
        log_with=options.log_with,
        project_dir=str(options.output),
    )
    micro_batch = options.micro_batch(accelerator.num_processes)
    earlier = [report.read(folder) for folder in options.against]
    checkpoint = checkpoints.find(options.output, options.settings()) if options.resume else None

    tokenizer = model.load_tokenizer(options.model, options.block)
    with accelerator.main_process_first():  # who downloads, if there is something to download
        texts = data.read(options.data, options.text_column, options.data_config)
    blocks = data.blocks(texts, tokenizer, options.block, options.eval_blocks)
    order = data.Order(len(blocks.parts["train"]), options.batch_size, options.seed)
    batches, held_out = data.loaders(blocks, order, micro_batch)
    try_folder(options.output, files=("metrics.json", "curves.png"), folders=("model", "checkpoints"))
    set_seed(options.seed)  # the same new weights on every process
    network = model.load(options.model, options.block)
    parameters = sum(weights.numel() for weights in network.parameters())  # now: FSDP leaves a part

    def groups(module: Any) -> Any:
        return model.decay_groups(module, options.weight_decay)

    if options.optimizer == "arturo":
        network, optimizer, batches, held_out = prepare(
            accelerator, network, batches, held_out, params=groups, lr=options.lr
        )
    else:
        adamw = torch.optim.AdamW(groups(network), lr=options.lr)
        network, optimizer, batches, held_out = accelerator.prepare(network, adamw, batches, held_out)
    # Not prepared: Accelerate would step it once for every process.
    scheduler = get_scheduler(options.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=options.steps)
    progress = checkpoints.Progress()
    accelerator.register_for_checkpointing(scheduler, progress)
    set_seed(options.seed, device_specific=True)  # dropout that differs between processes
    if options.log_with:
        accelerator.init_trackers("finetune_causal_lm", {key: str(value) for key, value in options.settings().items()})
    if checkpoint:
        accelerator.load_state(str(checkpoint))
        accelerator.print(f"resumed from step {progress.step}")
    run = Run(options, accelerator, network, optimizer, scheduler, progress)
    run.train(micro_batches(accelerator, batches, order, progress.step, options.accumulate), held_out)
    if progress.step < options.steps:
        accelerator.print(f"stopped after step {progress.step}; --resume goes on from the newest checkpoint")
        return
    state = accelerator.get_state_dict(network)  # whole weights, which FSDP's processes gather together
    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(network)
        trained.save_pretrained(options.output / "model", state_dict=state)
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(options.output / "model")
        finish(run, blocks.summary(options.data), parameters, earlier, console)


def micro_batches(accelerator: Any, batches: Any, order: Order, step: int, accumulate: int) -> Iterator[Any]:
    """All batches that come after a step, without end: the rest of its epoch, then whole ones."""
    epoch, done = divmod(step, order.steps)
    while True:
        order.epoch = epoch
        yield from accelerator.skip_first_batches(batches, done * accumulate) if done else batches
        epoch, done = epoch + 1, 0


@dataclass
class Run:
    """Everything prepared; `train` is the loop, as in any script that uses Accelerate."""

    options: Options
    accelerator: Any
    network: Any
    optimizer: Any
    scheduler: Any
    progress: checkpoints.Progress

    def train(self, batches: Iterator[Any], held_out: Any) -> None:
        """All steps that are left, or those up to --stop-after."""
        import torch
        from tqdm import tqdm

        accelerator, options, progress = self.accelerator, self.options, self.progress
        if not progress.step:
            self.log({"step": 0, "eval_loss": self.evaluate(held_out)})
        last = min(options.steps, options.stop_after or options.steps)
        shown = accelerator.is_main_process
        bar = tqdm(total=options.steps, initial=progress.step, desc=options.optimizer, unit="step", disable=not shown)
        self.network.train()
        begin, mean = time.perf_counter(), torch.zeros((), device=accelerator.device)
        while progress.step < last:
            with accelerator.accumulate(self.network):
                tokens = next(batches)
                loss = self.network(input_ids=tokens, labels=tokens).loss
                accelerator.backward(loss)
                mean += loss.detach() / options.accumulate
                if accelerator.sync_gradients and options.max_grad_norm:
                    accelerator.clip_grad_norm_(self.network.parameters(), options.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            progress.step += 1
            bar.update()
            entry = {
                "step": progress.step,
                "lr": self.scheduler.get_last_lr()[0],
                "loss": float(accelerator.reduce(mean, "mean")),
            }
            mean.zero_()
            self.scheduler.step()
            if progress.step % options.eval_every == 0 or progress.step == options.steps:
                if options.optimizer == "arturo":
                    entry |= arturo_metrics(self.optimizer)
                entry["eval_loss"] = self.evaluate(held_out)
                if shown:
                    bar.write(line(entry))
            self.log(entry)
            now = time.perf_counter()
            progress.seconds, begin = progress.seconds + now - begin, now
            if options.checkpoint_every and progress.step % options.checkpoint_every == 0:
                checkpoints.save(accelerator, options.output, progress.step, options.settings(), options.keep)
        bar.close()
        if options.log_with:
            accelerator.end_training()

    def evaluate(self, held_out: Any) -> float:
        """Mean loss per token of the validation blocks, of all processes."""
        import torch

        self.network.eval()
        losses = []
        with torch.no_grad():
            for tokens in held_out:
                logits = self.network(input_ids=tokens).logits[:, :-1].float().transpose(1, 2)
                # Block by block: the last batch is filled up with blocks seen before, and these are dropped here.
                each = torch.nn.functional.cross_entropy(logits, tokens[:, 1:], reduction="none").mean(dim=1)
                losses.append(self.accelerator.gather_for_metrics(each))
        self.network.train()
        return float(torch.cat(losses).mean())

    def log(self, entry: dict[str, Any]) -> None:
        self.progress.history.append(entry)
        if self.options.log_with:
            self.accelerator.log(entry, step=entry["step"])


def line(entry: dict[str, Any]) -> str:
    """What an entry says, in one line."""
    forms = {
        "loss": "training loss {:.4f}",
        "eval_loss": "validation loss {:.4f}",
        "arturo/eta": "η {:.3g}",
        "arturo/kl_ratio": "KL/bound {:.3f}",
    }
    return f"step {entry['step']:>5}: " + ", ".join(
        form.format(entry[key]) for key, form in forms.items() if key in entry
    )


def finish(run: Run, described: dict[str, Any], parameters: int, earlier: list[report.Run], console: Console) -> None:
    """metrics.json, the table and the plot."""
    content = {
        "format": checkpoints.FORMAT,
        "settings": run.options.settings(),
        "data": described,
        "parameters": parameters,
        "processes": run.accelerator.num_processes,
        "layout": str(run.accelerator.distributed_type),
        **run.progress.state_dict(),
        "environment": environment(),
    }
    output = run.options.output
    report.write(content, output)
    report.plot([content, *earlier], output / "curves.png")
    report.print_table([content, *earlier], console)
    for file in ("metrics.json", "curves.png", "model"):
        console.print(f"[bold]{output / file}[/]")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: train(command_line.parse(argv), Console()))


if __name__ == "__main__":
    sys.exit(main())
