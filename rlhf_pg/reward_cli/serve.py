"""``rlhf-pg reward serve``: a reward as an HTTP server."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_pg.errors import ConfigError, RewardError

if TYPE_CHECKING:
    from rlhf_pg.config.rewards import RewardConfig
    from rlhf_pg.rewards import RewardRunner
    from rlhf_pg.types import Prompt

    Labels = list[Any] | None
    Ids = list[list[int]] | None
    Score = Callable[[list[Prompt], list[str], Labels, Ids], list[float | RewardError | None]]


def serve(
    reward: Annotated[
        str,
        typer.Argument(
            metavar="REWARD", help="What reward.functions takes, or a recipe's .yaml file for its section reward."
        ),
    ],
    args: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="NAME=VALUE", help="An argument of the reward; VALUE is JSON, or else text."),
    ] = None,
    factory: Annotated[
        bool, typer.Option("--factory", help="The name is called with the arguments and returns it.")
    ] = False,
    label_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column that the reward reads the clients' labels as.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; others than this machine's need --token-env.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 5000,
    token_env: Annotated[
        str | None,
        typer.Option(metavar="VARIABLE", help="The environment variable with the token that clients must send."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where reward models run.")] = "cpu",
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that a request may take.")] = 300.0,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of a request.")] = 4096,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Megabytes of a request.")] = 64.0,
    merge_rows: Annotated[
        int, typer.Option(min=1, help="Waiting requests are scored together up to so many rows.")
    ] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may be there at once.")] = 64,
    query_end: Annotated[
        str, typer.Option(metavar="TEXT", help="Taken off the end of queries, such as an end-of-sequence token.")
    ] = "",
) -> None:
    """Serve a reward over HTTP, in the wire format of OpenRLHF's reward servers.

    POST / and /get_reward score; GET /health says whether it is ready, GET /metrics counts. A recipe's rewards are
    weighted and added up; what it says of the sum (clip, normalize, missing_eos_penalty) is left to the run that asks.
    """
    import importlib

    from rlhf_pg.rewards import RewardRunner

    config = reward_section(reward, args or (), factory=factory)
    # By name: the packages of rewards stand beside this one, not below it.
    token = importlib.import_module("reward_models.http").token_of(token_env)
    try:
        server = importlib.import_module("reward_models.server")
    except ImportError as error:
        raise ConfigError(str(error)) from error
    listening = server.listen(host, port, token)
    runner = RewardRunner(config, device=device)
    app = server.make_app(
        scorer(runner, label_column),
        name=reward,
        token=token,
        max_rows=max_rows,
        max_bytes=int(max_mb * 1e6),
        merge_rows=merge_rows,
        max_waiting=max_waiting,
        timeout=timeout,
        query_end=query_end,
    )
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"{reward} is served at http://{shown}:{listening.getsockname()[1]}/get_reward; Ctrl-C ends it")
    try:
        server.run(app, listening)
    finally:
        runner.close()


def reward_section(reward: str, args: Sequence[str], *, factory: bool) -> RewardConfig:
    """The section ``reward`` of a recipe's file, or one with a single function; a failing row is told, never hidden.

    Args:
        reward: a path that ends in .yaml or .yml, or what ``reward.functions`` takes.
        args: ``NAME=VALUE``, arguments of the function.
        factory: the function is a factory.

    Raises:
        ConfigError: an argument has another form, or there is nothing to serve.
    """
    from rlhf_pg.config.load import config_from_dict, load_config

    if not reward.endswith((".yaml", ".yml")):
        entry = {"function": reward, "args": dict(map(_argument, args)), "factory": factory}
        return config_from_dict({"reward": {"functions": [entry]}}).reward
    if args or factory:
        raise ConfigError(f"--arg and --factory belong to a single reward; {reward} is a recipe: write them there")
    section = load_config(reward).reward
    if not section.functions:
        raise ConfigError(f"{reward}: reward.functions is empty, so there is nothing to serve")
    return section.model_copy(update={"on_error": "stop"})


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--arg {text!r} is not of the form NAME=VALUE, such as label=POSITIVE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def scorer(runner: RewardRunner, label_column: str | None = None) -> Score:
    """What scores the rows of a request, in the way a run does.

    Args:
        runner: of a configuration with ``on_error: stop``, so that it says why a row fails.
        label_column: the column that the labels are given as; without one they are not read.

    Returns:
        ``score(prompts, completions, labels, ids)``, which gives each row's total, None where nothing could score it, or
        the error; a call that fails is repeated row by row, so that only the rows are lost that are to blame.
    """
    from rlhf_pg.rewards import text_rollout

    reads_ids = runner.reads("completion_ids")

    def score_rows(prompts: list[Prompt], completions: list[str], labels: Labels, ids: Ids) -> list[float | None]:
        if reads_ids and ids is None:
            raise RewardError(
                "the reward reads completion_ids, and the request has none; ask with args.server=rlhf_pg, which sends them"
            )
        columns = {} if label_column is None or labels is None else {label_column: labels}
        rollout = text_rollout(prompts, completions, columns, completion_ids=ids)
        scored = runner(rollout)
        totals, valid = scored.totals.tolist(), scored.valid.tolist()
        return [total if known else None for total, known in zip(totals, valid, strict=True)]

    def score(
        prompts: list[Prompt], completions: list[str], labels: Labels, ids: Ids
    ) -> list[float | RewardError | None]:
        values: list[float | RewardError | None] = []
        try:
            values += score_rows(prompts, completions, labels, ids)
        except RewardError as error:
            if len(prompts) == 1:
                return [error]
            for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
                values += score([prompt], [completion], labels and [labels[row]], ids and [ids[row]])
        return values

    return score
