"""``rlhf-pg evaluate RUN_OR_MODEL``: the same measurements for a model on disk or a hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_pg.config.load import check_complete, load_config
from rlhf_pg.config.tree import Config
from rlhf_pg.data import load_prompts
from rlhf_pg.distributed import make_accelerator
from rlhf_pg.errors import ConfigError, DataError
from rlhf_pg.evaluate.evaluation import Evaluator
from rlhf_pg.loading import load_models
from rlhf_pg.rewards import RewardRunner


def evaluate_model(
    target: str,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    reference: str | None = None,
    rewards: Sequence[Callable[..., Any] | str] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Measure a model on held-out prompts, as a run measures itself.

    Args:
        target: a run's folder (its ``final/`` is measured, with the run's own config), or a model's folder or hub id.
        recipe: prompts, reward and sampling; a run brings its own.
        overrides: keys to change, ``a.b=c``.
        reference: what the KL is measured against; left out, the config's reference or the policy it started from.
        rewards: functions that replace the config's.
        say: takes what the data says of itself.

    Returns:
        The ``eval/...`` metrics: rewards in reward units, KL in nats.

    Raises:
        ConfigError: there is neither a run nor a recipe, or no held-out prompts are configured.
    """
    run_config = Path(target) / "config.yaml"
    if recipe is None and not run_config.is_file():
        raise ConfigError(f"{target} is no run (it has no config.yaml); give --recipe with its prompts and reward")
    model = str(Path(target) / "final") if run_config.is_file() else target
    if run_config.is_file() and not Path(model).is_dir():
        raise ConfigError(f"{model} does not exist: the run has not ended; name a model's folder, or resume the run")
    config = load_config(str(recipe or run_config), overrides)
    config = _of_model(config, model, reference)
    check_complete(config, rewards_given=rewards is not None)
    accelerator = make_accelerator(config.run, ".")
    models = load_models(config)
    for module in (models.policy, models.reference.policy):
        module.to(accelerator.device)
    data = load_prompts(config.data, models.tokenizer, seed=config.run.seed, say=say)
    if data.held_out is None:
        raise DataError("data.eval_size is 0, so there are no held-out prompts to evaluate on; raise it")
    runner = RewardRunner(config.reward, rewards, device=accelerator.device)
    figures = Evaluator(config, data.held_out, models, runner, accelerator)()
    runner.close()
    return figures


def _of_model(config: Config, model: str, reference: str | None) -> Config:
    """The config with the model as its policy, and its former start as the reference."""
    start = reference or config.reference.model or config.policy.model or None
    if start is None:
        raise ConfigError("--reference is missing, and the recipe names no policy to measure the KL against; give one")
    tree = config.model_dump()
    tree["policy"] |= {"model": model, "lora": None, "revision": None}
    tree["reference"] |= {"model": start}
    # Evaluation needs neither a value model nor the passes of an update.
    tree["advantage"] = {"baseline": "none"}
    tree["value"] = {}
    return Config.model_validate(tree)
