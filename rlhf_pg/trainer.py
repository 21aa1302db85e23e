"""The only loop: sample, score, reference, advantages, update, log, evaluate, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from rlhf_pg.algorithm import AlgorithmState, advantages, rollout_metrics
from rlhf_pg.config.load import check_complete, load_config
from rlhf_pg.config.tree import Config
from rlhf_pg.data import load_prompts
from rlhf_pg.distributed import make_accelerator
from rlhf_pg.errors import ConfigError
from rlhf_pg.evaluate import Evaluator
from rlhf_pg.experience import Experience, Timer
from rlhf_pg.learner import Learner
from rlhf_pg.loading import context_length, load_models
from rlhf_pg.rewards import RewardRunner
from rlhf_pg.run_files import RunFiles, peak_memory_gb, rollout_columns, sample_rows
from rlhf_pg.tracking import RunLog

RewardFunctions = Sequence[Callable[..., Any] | str]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Where a run is, and the metrics of its last step, the final evaluation's included."""

    run_dir: Path
    metrics: dict[str, float]


def train(
    config: Config, dataset: Any = None, rewards: RewardFunctions | None = None, eval_dataset: Any = None
) -> TrainResult:
    """Fine-tune a policy.

    Args:
        config: from ``load_config`` or ``Config(...)``.
        dataset: prompts from Python: a ``datasets.Dataset``, or a list of strings, message lists or dicts. Replaces
            ``data.source``.
        rewards: reward functions from Python; they replace ``reward.functions``.
        eval_dataset: held-out prompts from Python; replaces ``data.eval_source``.

    Returns:
        The run's folder and last metrics.

    Raises:
        RlhfPgError: the input cannot work; what was done before it stays on disk.
    """
    return Trainer(config, dataset, rewards, eval_dataset).run()


def resume(
    run_dir: Path | str,
    overrides: Sequence[str] = (),
    dataset: Any = None,
    rewards: RewardFunctions | None = None,
    eval_dataset: Any = None,
) -> TrainResult:
    """Go on with a run from its newest whole checkpoint.

    Args:
        run_dir: the run's folder.
        overrides: keys of ``run`` and ``evaluation`` that may change, such as ``run.steps=200``.
        dataset: as it was given to ``train``.
        rewards: as they were given to ``train``.
        eval_dataset: as it was given to ``train``.

    Raises:
        ConfigError: there is no run, or an override would make it another run.
        CheckpointError: there are checkpoints and none is whole, or the models are not the run's.
    """
    path = Path(run_dir) / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"--resume {run_dir}: there is no run there (no config.yaml); give the folder of a run")
    for override in overrides:
        if not override.startswith(
            ("run.steps=", "run.save_every=", "run.keep_last=", "run.samples_every=", "evaluation.")
        ):
            raise ConfigError(
                f"{override} cannot change on --resume; only run.steps, run.save_every, run.keep_last, "
                "run.samples_every and evaluation.* can"
            )
    config = load_config(path, [*overrides, f"run.output_dir={Path(run_dir).resolve().parent}"])
    return Trainer(config, dataset, rewards, eval_dataset, resumed=True).run()


class Trainer:
    """A run: its models, data and rewards, and the loop over them."""

    def __init__(
        self,
        config: Config,
        dataset: Any = None,
        rewards: RewardFunctions | None = None,
        eval_dataset: Any = None,
        resumed: bool = False,
    ) -> None:
        check_complete(config, data_given=dataset is not None, rewards_given=rewards is not None)
        self.config = config
        self.files = RunFiles(config, resumed)
        self.accelerator = make_accelerator(config.run, str(self.files.run_dir))
        self.main = self.accelerator.is_main_process
        prompts, processes = config.rollout.prompts_per_step, self.accelerator.num_processes
        if prompts % processes:
            nearest = max(processes, round(prompts / processes) * processes)
            raise ConfigError(
                f"rollout.prompts_per_step={prompts} does not divide over {processes} processes; the nearest that does is "
                f"{nearest}"
            )
        self.messages: list[str] = []
        self.runner = RewardRunner(config.reward, rewards, device=self.accelerator.device)
        self.messages += self.runner.notes
        with self.accelerator.main_process_first():  # one process builds or downloads what the others then find
            self.models = load_models(config)
        for module in (self.models.policy, self.models.reference.policy, self.models.value):
            if module is not None:
                module.to(self.accelerator.device)
        self.data = load_prompts(
            config.data,
            self.models.tokenizer,
            seed=config.run.seed,
            dataset=dataset,
            eval_dataset=eval_dataset,
            say=self.messages.append,
        )
        self._check_context()
        self.learner = Learner(config, self.models, self.accelerator)
        self.experience = Experience(config, self.models, self.learner, self.runner, self.accelerator)
        held_out = self.data.held_out
        self.evaluator = (
            None if held_out is None else Evaluator(config, held_out, self.models, self.runner, self.accelerator)
        )
        self.state = AlgorithmState(kl_coef=config.kl.coef)
        self.start, self.tokens = 0, 0
        self.best: dict[str, float] | None = None
        self.resumed = resumed

    def run(self) -> TrainResult:
        """All steps that are left."""
        config, metrics = self.config, dict[str, float]()
        alerts = self._prepare()
        trackers = self._trackers()
        with RunLog(
            self.files.run_dir, total_steps=config.run.steps, start_step=self.start, main=self.main, trackers=trackers
        ) as log:
            log.alerts.load(alerts) if alerts else None
            for message in self.messages:
                log.say(message)
            if self.start == 0 and self.evaluator is not None:
                log.step(0, self._evaluate(0, log))
            for step in range(self.start + 1, config.run.steps + 1):
                metrics = self.step(step, log)
                last = step == config.run.steps
                if self.evaluator is not None and (last or _due(step, config.evaluation.every)):
                    metrics |= self._evaluate(step, log)
                log.step(step, metrics)
                if _due(step, config.run.save_every):
                    self._save(step, log)
            self._finish(log, metrics)
        self.runner.close()
        return TrainResult(self.files.run_dir, metrics)

    def step(self, step: int, log: RunLog) -> dict[str, float]:
        """One step: sample completions, score them, apply the algorithm, update the policy."""
        timer = Timer()
        with timer("rollout"):
            prompts = self.data.train.batch(step - 1, self.config.rollout.prompts_per_step)
            mine, greedy = self.experience.sample(prompts, step)
            scoring = self.runner.start(mine)  # in worker processes, while the passes run here
            rollout = self.experience.gathered(mine, prompts)
        with timer("reference"):
            passes = self.experience.passes(rollout, step)
        with timer("reward"):
            logged: dict[str, float] = {}
            scored, shaped, greedy_scores, before = self.experience.scored(
                scoring, greedy, rollout, self.state, logged.__setitem__
            )
        batch, self.state = advantages(self.config, shaped, passes, before, greedy_scores)
        with timer("learn"):
            learned = self.learner.update(batch, step, before.kl_coef)
        self.tokens += int(scored.rollout.lengths.sum()) + int(prompts.prompt_mask.sum()) * scored.rollout.group_size
        log.rollout(step, rollout_columns(scored, passes, batch))
        if _due(step, self.config.run.samples_every):
            log.samples(step, sample_rows(scored, passes, self.data.train))
        return {
            **logged,  # first: no function may overwrite what is measured here
            **rollout_metrics(scored, passes, before),
            **learned,
            "num_tokens": self.tokens,
            **timer.metrics(len(scored.rollout)),
            "memory/peak_gb": peak_memory_gb(self.accelerator.device),
        }

    def _evaluate(self, step: int, log: RunLog) -> dict[str, float]:
        """Measure, keep the samples, and keep the model as ``best/`` if it is."""
        assert self.evaluator is not None
        start = time.perf_counter()
        metrics = self.evaluator()
        log.evaluation(step, self.evaluator.samples)
        limit = self.config.evaluation.max_kl
        allowed = limit is None or metrics["eval/kl/sequence"] <= limit
        reward = metrics.get("eval/reward", -math.inf)
        if allowed and (self.best is None or reward > self.best.get("eval/reward", -math.inf)):
            self.best = {"step": step, **metrics}
            if self.main:
                self.files.save_model("best", self.models, self.best)
        return metrics | {"time/evaluation": time.perf_counter() - start}

    def _prepare(self) -> dict[str, Any]:
        """Begin anew or from the newest checkpoint; the state of the alerts."""
        if not self.resumed:
            if self.main:
                self.files.create()
            return {}
        found = self.files.load(self.learner, self.models, self.messages.append)
        if found is None:
            self.messages.append("There is no checkpoint yet: the run begins anew.")
            return {}
        self.start, self.tokens, self.best = found["step"], found["num_tokens"], found["best"]
        self.state = AlgorithmState(**found["algorithm"])
        if self.main:
            self.files.write_config()
        self.messages.append(f"Resuming after step {self.start}.")
        return cast(dict[str, Any], found["alerts"])

    def _save(self, step: int, log: RunLog) -> None:
        if self.main:
            state = {
                "step": step,
                "num_tokens": self.tokens,
                "best": self.best,
                "algorithm": asdict(self.state),
                "alerts": log.alerts.state(),
            }
            self.files.save(step, self.learner, self.models, state)
        self.accelerator.wait_for_everyone()

    def _finish(self, log: RunLog, metrics: dict[str, float]) -> None:
        if self.main:
            self.files.save_model("final", self.models, metrics)
            figure = self.files.draw()
            log.say(f"The model is in {self.files.run_dir / 'final'}, the figure in {figure}.")
        if self.config.run.trackers:
            self.accelerator.end_training()
        self.accelerator.wait_for_everyone()

    def _trackers(self) -> Callable[[dict[str, float], int], None] | None:
        if not self.config.run.trackers:
            return None
        self.accelerator.init_trackers("rlhf-pg", config=self.files.flat_config())
        return lambda metrics, step: self.accelerator.log(metrics, step=step)

    def _check_context(self) -> None:
        """Prompt and response must fit the positions that the model was made for."""
        most = context_length(self.models.policy)
        longest = max(source.longest for source in (self.data.train, self.data.held_out) if source is not None)
        if most is not None and longest + self.config.rollout.max_new_tokens > most:
            raise ConfigError(
                f"rollout.max_new_tokens={self.config.rollout.max_new_tokens} after a prompt of {longest} tokens passes the "
                f"{most} positions of the policy; lower it, or data.max_prompt_tokens"
            )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
