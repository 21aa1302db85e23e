"""``rlhf-pg train --dry-run``: everything but the training, so that mistakes show before hours are spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from rlhf_pg.config.tree import Config
from rlhf_pg.data import PromptSource
from rlhf_pg.forward import plan, total_lengths
from rlhf_pg.ops.sampling import row_uniforms
from rlhf_pg.run_files import sample_rows
from rlhf_pg.tracking import safe_text, samples_table
from rlhf_pg.trainer import Trainer
from rlhf_pg.types import ModelPasses, Rollout

_SHOWN = 3


def dry_run(
    config: Config,
    dataset: Any = None,
    rewards: Sequence[Callable[..., Any] | str] | None = None,
    console: Console | None = None,
) -> None:
    """Read the data, load the models, sample and score a few completions, and do the batch arithmetic.

    Nothing is written to disk and no weight changes.

    Args:
        config: of the run.
        dataset: as for ``train``.
        rewards: as for ``train``.
        console: where to print; standard output by default.

    Raises:
        RlhfPgError: what ``train`` would have raised before or in its first step.
    """
    console = console or Console()
    trainer = Trainer(config, dataset, rewards)

    def say(text: str) -> None:
        console.print(safe_text(text), markup=False, highlight=False, soft_wrap=True)

    for message in trainer.messages:
        say(message)
    train, held_out = trainer.data.train, trainer.data.held_out
    say(f"Training prompts: {len(train)}; held-out prompts: {0 if held_out is None else len(held_out)}.")
    _show_prompts(trainer, train, say)
    prompts = train.batch(0, min(_SHOWN, config.rollout.prompts_per_step))
    group = config.rollout.group_size
    numbers = row_uniforms(
        config.run.seed, "sample", 1, rows=range(len(prompts) * group), columns=config.rollout.max_new_tokens
    )
    rollout = trainer.experience.sampler(trainer.models.policy, prompts, numbers)
    scored = trainer.runner(rollout)
    trainer.runner.close()
    passes = ModelPasses(
        ref_logprobs=trainer.experience.forward.reference(trainer.models.reference, rollout, [range(len(rollout))])
    )
    console.print(samples_table(0, sample_rows(scored, passes, train)))
    known = scored.scores[scored.valid]
    say(
        f"Rewards of {len(rollout)} completions: mean {float(known.mean()) if len(known) else 0.0:.3f}, "
        f"{int((~scored.valid).sum())} unscorable, {int(rollout.truncated.sum())} cut at rollout.max_new_tokens."
    )
    for line in _arithmetic(trainer, rollout):
        say(line)
    say("Dry run: nothing was trained, and nothing was written.")


def _show_prompts(trainer: Trainer, source: PromptSource, say: Callable[[str], None]) -> None:
    """The first prompts as the model will see them, special tokens visible."""
    batch = source.batch(0, _SHOWN)
    tokenizer: Any = trainer.models.tokenizer
    for number, (ids, mask) in enumerate(zip(batch.prompt_ids, batch.prompt_mask, strict=True), 1):
        own = ids[mask].tolist()
        say(f"Prompt {number} ({len(own)} tokens): {tokenizer.decode(own, skip_special_tokens=False)}")


def _arithmetic(trainer: Trainer, rollout: Rollout) -> list[str]:
    """What a step and the run amount to."""
    config = trainer.config
    rows = config.rollout.prompts_per_step * config.rollout.group_size
    update = config.update
    lengths = total_lengths(rollout)
    passes = len(plan(lengths, range(len(rollout)), update.micro_batch_tokens))
    trained = sum(weight.numel() for _, weight in trainer.learner.named_parameters)
    epochs = config.run.steps * config.rollout.prompts_per_step / len(trainer.data.train)
    return [
        f"A step: {config.rollout.prompts_per_step} prompts x {config.rollout.group_size} completions = {rows} rows, "
        f"at most {rows * config.rollout.max_new_tokens} new tokens, {update.epochs} epochs x {update.minibatches} "
        f"minibatches = {update.epochs * update.minibatches} optimizer steps of {rows // update.minibatches} rows.",
        f"Micro-batches: these {len(rollout)} rows of at most {max(lengths)} tokens take {passes} "
        f"(update.micro_batch_tokens={update.micro_batch_tokens}).",
        f"The run: {config.run.steps} steps, {config.run.steps * rows} completions, {epochs:.2f} passes over the training "
        f"prompts; {trained:,} weights are trained.",
    ]
