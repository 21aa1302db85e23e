"""Rewards with members: sums, ensembles, products, gates; clipping and normalisation of single ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch

from rlhf_pg.algorithm import AlgorithmState
from rlhf_pg.config.load import load_config
from rlhf_pg.config.rewards import RewardConfig, RewardFunctionConfig
from rlhf_pg.errors import ConfigError, RewardError
from rlhf_pg.ops.running import NONE, mean_and_deviation, merge
from rlhf_pg.rewards import RewardRunner, text_rollout
from rlhf_pg.rewards.combine import Normaliser, Reward, combine

NAN = math.nan


def leaf(name: str, **settings: Any) -> Reward:
    return Reward(name, **settings)


def made(combine_by: str, *members: Reward, **settings: Any) -> Reward:
    return Reward("m", members=members, combine=combine_by, **settings)


def of(reward: Reward, scale: Any = None, **leaves: list[float]):
    return combine(
        [reward], {name: torch.tensor(values, dtype=torch.float64) for name, values in leaves.items()}, scale
    )


def same(found: torch.Tensor, wanted: list[float]) -> bool:
    return torch.allclose(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12, equal_nan=True)


A, B, C = leaf("a"), leaf("b"), leaf("c")


@pytest.mark.parametrize(
    ("reward", "wanted"),
    [
        (made("sum", A, replace(B, weight=0.5)), [2.0, 5.0, 3.0, NAN]),
        (made("mean", A, B), [1.5, 4.5, 6.0, NAN]),
        (made("min", A, B), [1.0, 4.0, 6.0, NAN]),
        (made("mean_minus_std", A, B), [1.0, 4.0, 6.0, NAN]),  # the deviation by n of two values is half their distance
        (made("mean_minus_std", A, B, std_coef=0.2), [1.4, 4.4, 6.0, NAN]),
        (made("product", A, B), [2.0, 20.0, NAN, NAN]),
        (made("min", A, replace(B, weight=-1.0)), [-2.0, -5.0, -6.0, NAN]),
        (made("mean", A, replace(B, weight=0.0), C), [0.0, 4.0, 7.0, 7.0]),
    ],
)
def test_by_hand(reward, wanted):
    a, b, c = [1.0, 4.0, NAN, NAN], [2.0, 5.0, 6.0, NAN], [-1.0, 4.0, 7.0, 7.0]
    if reward.combine == "sum":
        a, b = [1.0, 2.5, NAN, NAN], [2.0, 5.0, 6.0, NAN]
    found = of(reward, a=a, b=b, c=c)
    assert same(found.components["m"], wanted)
    assert found.valid.tolist() == [not math.isnan(x) for x in wanted]
    assert same(found.scores, [0.0 if math.isnan(x) else x for x in wanted])


def test_disagreement_is_the_members_deviation_by_n():
    found = of(made("mean", A, B, C), a=[1.0, 1.0, NAN], b=[2.0, 1.0, NAN], c=[6.0, NAN, NAN])
    assert same(found.components["m/disagreement"], [float(numpy.std([1, 2, 6])), 0.0, NAN])
    assert "m/disagreement" not in of(made("product", A, B), a=[1.0], b=[2.0]).components


@pytest.mark.parametrize(
    ("a", "b", "c", "wanted"),
    [
        (1.0, 0.5, 3.0, 3.0),
        (1.0, 0.0, 3.0, -7.0),
        (-1.0, 1.0, 3.0, -7.0),
        (1.0, 1.0, NAN, NAN),  # open, and the last one cannot say
        (0.0, 1.0, NAN, -7.0),  # closed: nobody asks the last one
        (NAN, 1.0, 3.0, NAN),  # a gate that cannot be judged
        (NAN, 0.0, 3.0, -7.0),  # unless another one is closed anyway
    ],
)
def test_a_gate(a, b, c, wanted):
    assert same(of(made("gate", A, B, C, otherwise=-7.0), a=[a], b=[b], c=[c]).components["m"], [wanted])


def test_members_may_have_members():
    inner = Reward("i", members=(A, B), combine="sum", weight=2.0)
    found = of(made("product", inner, C, weight=10.0), a=[1.0], b=[2.0], c=[5.0])
    assert found.components["i"].tolist() == [3.0]
    assert found.components["m"].tolist() == [30.0]
    assert found.scores.tolist() == [300.0]


def test_clipping_comes_before_the_weight_and_before_the_others_see_it():
    found = of(
        made("product", replace(A, clip=(-1.0, 1.0)), B, clip=(0.0, 3.0), weight=2.0), a=[9.0, -9.0], b=[2.0, 2.0]
    )
    assert found.components["m"].tolist() == [2.0, -2.0]
    assert found.scores.tolist() == [4.0, 0.0]


# --- normalisation --------------------------------------------------------------------------------------------------


def test_over_the_batch():
    values = [1.0, 2.0, NAN, 6.0]
    normaliser = Normaliser({})
    found = of(leaf("a", normalize="batch", weight=3.0), normaliser, a=values)
    known = numpy.array([1.0, 2.0, 6.0])
    wanted = 3 * (known - known.mean()) / known.std()
    assert same(found.scores, [wanted[0], wanted[1], 0.0, wanted[2]])
    assert normaliser.state == {}
    # Another table by the same mean and deviation.
    again = of(leaf("a", normalize="batch"), normaliser.again, a=[3.0])
    assert same(again.scores, [(3 - known.mean()) / known.std()])
    assert same(of(leaf("a", normalize="batch"), None, a=values).scores, [1.0, 2.0, 0.0, 6.0])


def test_over_the_run_so_far_is_the_same_as_over_all_at_once():
    generator = numpy.random.default_rng(0)
    parts = [generator.normal(5, 3, size) for size in (4, 1, 7, 1, 30)]
    state: dict[str, Any] = {}
    for number, part in enumerate(parts, 1):
        normaliser = Normaliser(state)
        found = of(leaf("a", normalize="running"), normaliser, a=part.tolist())
        seen = numpy.concatenate(parts[:number])
        assert same(found.scores, ((part - seen.mean()) / seen.std()).tolist())
        state = normaliser.state
    assert state["a"][0] == 43


def test_a_constant_reward_divides_by_one_and_no_value_at_all_changes_nothing():
    assert of(leaf("a", normalize="batch"), Normaliser({}), a=[2.0, 2.0]).scores.tolist() == [0.0, 0.0]
    assert of(leaf("a", normalize="running"), Normaliser({}), a=[NAN]).valid.tolist() == [False]
    assert mean_and_deviation(merge(NONE, torch.zeros(0))) == (0.0, 1.0)


# --- in the runner --------------------------------------------------------------------------------------------------


@pytest.fixture
def rewards(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def words(completions): return [float(len(t.split())) for t in completions]\n"
        "def good(completions): return [float('good' in t) for t in completions]\n"
        "def tokens(completion_ids): return [[1.0] * len(ids) for ids in completion_ids]\n"
    )
    return lambda name, **settings: {"function": f"{path}:{name}", **settings}


def runner_of(*entries: dict[str, Any]) -> RewardRunner:
    return RewardRunner(RewardConfig.model_validate({"functions": entries}))


ROLLOUT = text_rollout(["p", "q"], ["good a b", "bad", "good", "x y"], group_size=2)


def test_the_runner_combines_names_and_keeps_all_components(rewards):
    gate = {"members": [rewards("good"), rewards("words")], "combine": "gate", "otherwise": -1.0}
    runner = runner_of(gate, {"members": [rewards("words"), rewards("good")], "combine": "min", "weight": 10})
    assert runner.names == ("gate", "good", "words", "min", "words_2", "good_2")
    scored = runner(ROLLOUT)
    assert scored.components["gate"].tolist() == [3.0, -1.0, 1.0, -1.0]
    assert scored.components["min"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert scored.components["min/disagreement"].tolist() == [1.0, 0.5, 0.0, 1.0]
    assert scored.scores.tolist() == [13.0, -1.0, 11.0, -1.0]


def test_rewards_per_token_are_for_the_whole_sum_only(rewards):
    assert runner_of(rewards("tokens", weight=2.0))(ROLLOUT).totals.tolist() == [6.0, 2.0, 2.0, 4.0]
    with pytest.raises(RewardError, match="'tokens' gave rewards per token, and a member must give one"):
        runner_of({"members": [rewards("tokens")]})(ROLLOUT)
    with pytest.raises(RewardError, match="'tokens' gave rewards per token, which clip and normalize cannot"):
        runner_of(rewards("tokens", normalize="batch"))(ROLLOUT)


def test_normalised_in_training_only(rewards):
    runner = runner_of(rewards("words", normalize="batch"), rewards("good"), rewards("tokens"))
    assert runner.normalises
    raw = replace(runner(ROLLOUT), extras={"why": ["a", "b", "c", "d"]})
    assert raw.scores.tolist() == [4.0, 1.0, 2.0, 2.0]
    scored = runner.normalised(raw, Normaliser({}))
    words = numpy.array([3.0, 1.0, 1.0, 2.0])
    wanted = (words - words.mean()) / words.std() + numpy.array([1.0, 0.0, 1.0, 0.0])
    assert scored.scores.tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
    assert scored.components["words"].tolist() == words.tolist()
    assert torch.equal(scored.token_rewards, raw.token_rewards)
    assert scored.extras == raw.extras
    assert not runner_of(rewards("words"))(ROLLOUT).components.keys() - {"words"}


def test_the_state_survives_a_checkpoint_s_json():
    import json
    from dataclasses import asdict

    state = AlgorithmState(0.1, rewards=Normaliser({"a": merge(NONE, torch.tensor([1.0, 2.0]))}).state)
    back = AlgorithmState(**json.loads(json.dumps(asdict(state))))
    normaliser = Normaliser(back.rewards)
    of(leaf("a", normalize="running"), normaliser, a=[6.0])
    assert normaliser.used["a"] == pytest.approx((3.0, numpy.std([1, 2, 6])))


# --- the configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{members: [], combine: mean}", "either function: NAME or members"),
        ("{function: a, members: [b]}", "either function: NAME or members"),
        ("{members: [a, b], args: {x: 1}}", "args belongs to a function; write it at the members"),
        ("{members: [a, b], timeout: 3}", "timeout belongs to a function"),
        ("{function: a, combine: mean}", "combine belongs to a reward that has members"),
        ("{function: a, otherwise: 1}", "otherwise belongs to a reward that has members"),
        ("{members: [a, b], combine: mean, std_coef: 2}", "std_coef belongs to combine: mean_minus_std"),
        ("{members: [a, b], combine: mean, otherwise: 2}", "otherwise belongs to combine: gate"),
        ("{members: [a], combine: gate}", "gate needs at least two members with a weight other than 0, got 1"),
        ("{members: [a, {function: b, weight: 0}], combine: min}", "min needs at least two members"),
        ("{members: [{function: a, weight: 0}]}", "sum needs at least one member"),
        (
            "{members: [a, {function: b, wieght: 0}]}",
            r"functions\[0\].members\[1\].wieght=0: unknown key; did you mean",
        ),
        ("{function: a, clip: [1, 1]}", r"\[low, high\] needs low < high"),
        ("{function: a, weight: true}", "weight=true: must be a number"),
        ("{members: [a, {function: b, weight: true}]}", "weight=true: must be a number"),
    ],
)
def test_what_cannot_be_meant_is_refused(entry, message):
    with pytest.raises(ConfigError, match=message):
        load_config("rloo", [f"reward.functions=[{entry}]"])


def test_a_tree_is_read_shown_and_read_again():
    from rlhf_pg.config.load import to_yaml
    from rlhf_pg.config.show import show

    entry = "{members: [a.py:f, {members: [b, c], combine: product}], combine: gate, otherwise: -1, name: both}"
    config = load_config("rloo", [f"reward.functions=[{entry}]"])
    root = config.reward.functions[0]
    assert root.members[1].members == (RewardFunctionConfig(function="b"), RewardFunctionConfig(function="c"))
    assert "otherwise: -1.0" in show(config)
    import yaml

    assert load_config("rloo", [f"reward.functions={yaml.safe_load(to_yaml(config))['reward']['functions']}"]) == config
