"""The configuration: recipes, extends, overrides, the rules, and what an error says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rlhf_pg.config import Config, config_from_dict, load_config
from rlhf_pg.config.load import check_complete, dump_yaml, find_recipe, recipe_names, to_yaml
from rlhf_pg.config.show import config_keys, json_schema, show
from rlhf_pg.errors import ConfigError, RlhfPgError

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
COMPLETE = ("policy.model=m", "data.source=d", "reward.functions=[f.py:g]")


def problems(*overrides: str, tree: dict[str, Any] | None = None) -> list[str]:
    """The lines of the error that these overrides of the defaults get."""
    with pytest.raises(ConfigError) as caught:
        config_from_dict(tree or {}, overrides)
    return str(caught.value).splitlines()


def one_problem(*overrides: str, tree: dict[str, Any] | None = None) -> str:
    (line,) = problems(*overrides, tree=tree)
    return line


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


# Overrides


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("update.learning_rate=5e-6", "update", "learning_rate", 5e-6),
        ("update.learning_rate=1E-4", "update", "learning_rate", 1e-4),
        ("update.learning_rate='5e-6'", "update", "learning_rate", 5e-6),
        ("kl.coef=1", "kl", "coef", 1.0),
        ("kl.coef=.5", "kl", "coef", 0.5),
        ("run.steps=8.0", "run", "steps", 8),
        ("run.steps='8'", "run", "steps", 8),
        ("run.steps=1_000", "run", "steps", 1000),
        ("run.seed=010", "run", "seed", 10),
        ("run.mixed_precision=no", "run", "mixed_precision", "no"),
        ("run.trackers=[]", "run", "trackers", ()),
        ("run.trackers=[wandb, tensorboard]", "run", "trackers", ("wandb", "tensorboard")),
        ("rollout.stop=['\\n', \"\\n\\n\"]", "rollout", "stop", ("\\n", "\n\n")),
        ("update.betas=[0.9, 0.95]", "update", "betas", (0.9, 0.95)),
        ("reward.clip=[-1, 1]", "reward", "clip", (-1.0, 1.0)),
        ("value.clip=null", "value", "clip", None),
        ("reference.model=None", "reference", "model", None),
        ("reference.model=", "reference", "model", None),
        ("policy.model=", "policy", "model", ""),
        ("policy.revision=1e5", "policy", "revision", "1e5"),
        ("run.name=2024-01-01", "run", "name", "2024-01-01"),
        ("run.name=7", "run", "name", "7"),
        ("data.system_prompt=Answer: yes # or no", "data", "system_prompt", "Answer: yes # or no"),
        ("data.system_prompt='null'", "data", "system_prompt", "null"),
        ("data.source=a=b.jsonl", "data", "source", "a=b.jsonl"),
        ("data.chat=no", "data", "chat", False),
        ("data.chat=true", "data", "chat", True),
    ],
)
def test_an_override_is_read_as_its_key_needs_it(override: str, section: str, name: str, value: object) -> None:
    extra = ["advantage.baseline=value"] if section == "value" else []
    read = getattr(getattr(config_from_dict({}, [override, *extra]), section), name)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "functions"),
    [
        ("[../x/y.py:vader]", ["../x/y.py:vader"]),
        ("[a.py:f, b.py:g]", ["a.py:f", "b.py:g"]),
        ("[package.module:name]", ["package.module:name"]),
        ("[/abs/with-dash_1.py:f]", ["/abs/with-dash_1.py:f"]),
        ("[lvwerra/distilbert-imdb, 'c:d']", ["lvwerra/distilbert-imdb", "c:d"]),
        ("[builtin:reviews_gold]", ["builtin:reviews_gold"]),
    ],
)
def test_reward_functions_are_a_list_of_text(text: str, functions: list[str]) -> None:
    config = config_from_dict({}, [f"reward.functions={text}"])
    assert [each.function for each in config.reward.functions] == functions
    assert all(each.weight == 1.0 and each.args == {} for each in config.reward.functions)


def test_a_reward_function_with_its_arguments() -> None:
    text = "reward.functions=[{function: numeric_answer, weight: 2, args: {column: answer, marker: '####'}}]"
    (function,) = config_from_dict({}, [text]).reward.functions
    assert function.weight == 2.0
    assert function.args == {"column": "answer", "marker": "####"}


def test_the_later_override_wins() -> None:
    assert config_from_dict({}, ["kl.coef=1", "kl.coef=2"]).kl.coef == 2.0


def test_overrides_below_a_null_section_create_it() -> None:
    assert config_from_dict({}).policy.lora is None
    lora = config_from_dict({}, ["policy.lora.r=8"]).policy.lora
    assert lora is not None
    assert (lora.r, lora.alpha) == (8, 32.0)
    assert config_from_dict({"policy": {"lora": None}}, ["policy.lora={}"]).policy.lora is not None
    assert config_from_dict({}, ["policy.lora.r=8", "policy.lora=null"]).policy.lora is None


def test_a_mapping_is_merged_and_a_list_is_replaced() -> None:
    tree = {"policy": {"lora": {"r": 8, "targets": ["q"]}}}
    lora = config_from_dict(tree, ["policy.lora={alpha: 4}", "policy.lora.targets=[v]"]).policy.lora
    assert lora is not None
    assert (lora.r, lora.alpha, lora.targets) == (8, 4.0, ("v",))
    assert tree == {"policy": {"lora": {"r": 8, "targets": ["q"]}}}, "the caller's tree was changed"


@pytest.mark.parametrize("text", ["kl.coef", "=1", ".coef=1", "kl.=1", "--kl.coef=1x"])
def test_a_malformed_override(text: str) -> None:
    assert text.removesuffix("x").split("=")[0] in one_problem(text)


def test_an_override_that_is_no_yaml() -> None:
    assert one_problem("reward.functions=[a").startswith("override reward.functions=[a, line 1: not valid YAML")


# Recipes


def test_a_recipe_is_found_as_a_path_then_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_recipe("rloo") == ROOT / "recipes" / "rloo.yaml"
    monkeypatch.chdir(tmp_path)
    written(tmp_path, mine="kl: {coef: 3}")
    assert load_config("mine.yaml").kl.coef == 3.0
    (tmp_path / "rloo").write_text("kl: {coef: 4}")
    assert load_config("rloo").kl.coef == 4.0


def test_the_packaged_folder_comes_before_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = tmp_path / "_recipes"
    packaged.mkdir()
    (packaged / "rloo.yaml").write_text("kl: {coef: 7}")
    monkeypatch.setattr("rlhf_pg.config.load._FOLDERS", (packaged, ROOT / "recipes"))
    assert load_config("rloo").kl.coef == 7.0
    assert find_recipe("ppo") == ROOT / "recipes" / "ppo.yaml"


def test_an_unknown_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'rlo'.*did you mean rloo"):
        load_config("rlo")
    with pytest.raises(ConfigError, match="the recipes are grpo, ppo, "):
        load_config("zzzz.yaml")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"a run's folder.*--resume"):
        load_config(tmp_path)


def test_a_child_is_merged_over_what_it_extends(tmp_path: Path) -> None:
    written(
        tmp_path,
        base="kl: {coef: 1, target: 3}\nrollout: {stop: [a, b]}\n",
        middle="extends: base\nkl: {coef: 2}\nrollout: {stop: [c]}\n",
        leaf="extends: ./middle.yaml\nrun: {steps: 5}\nkl:\n",
    )
    config = load_config(tmp_path / "leaf.yaml", ["kl.target=4"])
    assert (config.kl.coef, config.kl.target, config.rollout.stop, config.run.steps) == (2.0, 4.0, ("c",), 5)


def test_extends_takes_a_packaged_name_even_one_s_own(tmp_path: Path) -> None:
    written(tmp_path, rloo="extends: rloo\nrun: {steps: 5}\n")
    config = load_config(tmp_path / "rloo.yaml")
    assert (config.run.name, config.run.steps) == ("rloo", 5)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "extends: b", "b": "extends: a"}, r"extends goes in a circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"),
        ({"a": "extends: ./a.yaml"}, r"circle: .*a\.yaml -> .*a\.yaml"),
        ({"a": "extends: nowhere"}, "no recipe 'nowhere'"),
        ({"a": "extends: [b, c]"}, "must be one recipe's name or path"),
        ({"a": "kl: {coef: 1}\nkl: {target: 2}"}, "line 2: kl stands there twice"),
        ({"a": "kl:\n  coef: 1\n  coef: 2"}, "line 3: coef stands there twice"),
        ({"a": "reward: {functions: [{function: f, args: {x: 1, x: 2}}]}"}, "x stands there twice"),
        ({"a": "kl: [1"}, "a.yaml, line 1: not valid YAML"),
        ({"a": "- 1"}, "holds a list, and a recipe is a mapping"),
        ({"a": "kl: !!python/object/apply:os.getcwd []"}, "not valid YAML"),
        ({"a": "kl: {coef: \x07}"}, "a.yaml: not valid YAML"),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    written(tmp_path, **files)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "a.yaml")


def test_scalars_in_a_file(tmp_path: Path) -> None:
    text = "update: {learning_rate: 5e-6, eps: 1e-8}\nrun: {mixed_precision: no, name: 1:30}\ndata: {chat: off}\n"
    config = load_config(written(tmp_path, a=text) / "a.yaml")
    assert (config.update.learning_rate, config.update.eps) == (5e-6, 1e-8)
    assert (config.run.mixed_precision, config.run.name, config.data.chat) == ("no", "1:30", False)


def test_an_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, a="# nothing\n") / "a.yaml") == Config()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_loads_and_says_what_it_is(path: Path) -> None:
    config = load_config(path)
    header = path.read_text().split("\n\n")[0].splitlines()
    assert header[0] == "# yaml-language-server: $schema=../schema.json"
    assert all(line.startswith("#") for line in header)
    for word in ("# Does: ", "# Needs: ", "# Costs: ", "# Expect: "):
        assert sum(line.startswith(word) for line in header) == 1, word
    command = f"rlhf-pg {'' if path.stem == 'quickstart' else 'train '}{path.stem}"
    assert any(line.strip("# ").startswith(command) for line in header)
    assert config.run.name == path.stem
    assert max(len(line) for line in path.read_text().splitlines()) <= 120


def test_the_recipes_are_those_promised() -> None:
    assert recipe_names() == [path.stem for path in RECIPES]
    assert {"reinforce", "rloo", "grpo", "remax", "ppo", "quickstart"} < set(recipe_names())


@pytest.mark.parametrize(
    ("name", "baseline", "normalize", "policy", "estimator", "placement"),
    [
        ("reinforce", "moving_average", "none", "reinforce", "k1", "reward"),
        ("rloo", "leave_one_out", "none", "reinforce", "k1", "reward"),
        ("grpo", "group_mean", "group_std", "ppo_clip", "k3", "loss"),
        ("remax", "greedy", "none", "reinforce", "k1", "reward"),
        ("ppo", "value", "none", "ppo_clip", "k1", "reward"),
    ],
)
def test_the_recipes_are_the_algorithms(
    name: str, baseline: str, normalize: str, policy: str, estimator: str, placement: str
) -> None:
    c = load_config(name)
    assert (c.advantage.baseline, c.advantage.normalize, c.loss.policy) == (baseline, normalize, policy)
    assert (c.kl.estimator, c.kl.placement) == (estimator, placement)
    with pytest.raises(ConfigError, match=r"policy\.model is not set"):
        check_complete(c)
    check_complete(load_config(name, COMPLETE))


# Combinations that cannot work: each rule of the tree


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.group_size=1"], "advantage.baseline=leave_one_out compares the completions of a prompt and needs"),
        (["rollout.group_size=1", "advantage.baseline=group_mean"], "advantage.baseline=group_mean compares"),
        (["rollout.group_size=1", "advantage.baseline=optimal"], "advantage.baseline=optimal compares"),
        (["rollout.group_size=1", "advantage.baseline=optimal_length"], "advantage.baseline=optimal_length compares"),
        (
            ["rollout.group_size=1", "advantage.baseline=none", "advantage.normalize=group_std"],
            "advantage.normalize=group_std needs rollout.group_size >= 2, got 1",
        ),
        (
            ["update.minibatches=7", "loss.policy=ppo_clip"],
            "update.minibatches=7 does not divide the 64 rows of a step (rollout.prompts_per_step x "
            "rollout.group_size); the nearest that does is 8",
        ),
        (
            ["kl.placement=loss"],
            "kl.estimator=k1 with kl.placement=loss: k1 in the loss has no gradient in expectation",
        ),
        (["kl.estimator=k2"], "kl.estimator=k2 with kl.placement=reward: k2 in the reward has not the gradient"),
        (["kl.estimator=k3"], "kl.estimator=k3 with kl.placement=reward: k3 in the reward has not the gradient"),
        (["kl.estimator=k3", "kl.placement=both"], "kl.estimator=k3 with kl.placement=both"),
        (["kl.estimator=exact"], "either alone is wrong; set kl.placement=both"),
        (["update.epochs=2"], "update.epochs x update.minibatches is 2; set both to 1, or take loss.policy=ppo_clip"),
        (["loss.dual_clip=3"], "loss.dual_clip belongs to loss.policy=ppo_clip, and loss.policy is reinforce"),
        (["loss.ratio=sequence"], "loss.ratio=sequence has no meaning for loss.policy=reinforce"),
        (["advantage.lam=0.9"], "advantage.lam=0.9 needs a learned value: set advantage.baseline=value"),
        (["advantage.constant=1"], "advantage.constant=1.0 is used by advantage.baseline=constant alone"),
        (["value.coef=1"], "value.* is used by advantage.baseline=value alone, and it is leave_one_out"),
        (["kl.controller=adaptive", "kl.coef=0"], "kl.controller=adaptive multiplies kl.coef, and 0 stays 0"),
        (["update.target_kl=0.1"], "update.target_kl ends the passes early, and there is one only"),
        (["update.warmup_steps=100"], "update.warmup_steps=100 must be below run.steps=100"),
        (["policy.dtype=float16"], "policy.dtype=float16 underflows in AdamW when all weights are trained"),
    ],
)
def test_combinations_that_cannot_work(overrides: list[str], message: str) -> None:
    line = one_problem(*overrides)
    assert message in line
    assert "Value error" not in line


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout.group_size=1", "advantage.baseline=moving_average"],
        ["kl.estimator=k3", "kl.placement=loss"],
        ["kl.estimator=k2", "kl.placement=loss"],
        ["kl.estimator=exact", "kl.placement=both"],
        ["update.epochs=2", "loss.policy=importance_weighted", "loss.ratio=sequence"],
        ["update.epochs=2", "update.target_kl=0.1", "loss.policy=ppo_clip", "loss.dual_clip=3"],
        ["advantage.baseline=value", "advantage.lam=0", "value.coef=1"],
        ["advantage.baseline=constant", "advantage.constant=1"],
        ["policy.dtype=float16", "policy.lora={}"],
        ["update.warmup_steps=99"],
    ],
)
def test_their_mends_work(overrides: list[str]) -> None:
    config_from_dict({}, overrides)


def test_several_combinations_are_told_together() -> None:
    lines = problems("rollout.group_size=1", "update.epochs=2", "loss.dual_clip=3")
    assert [line.split("=")[0].split()[0] for line in lines] == [
        "advantage.baseline",
        "loss.policy",
        "loss.dual_clip",
    ]


# Single keys


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("update.epochs=0", "update.epochs=0: must be at least 1 (default: 1)"),
        ("update.epochs=1.5", "update.epochs=1.5: must be a whole number (default: 1)"),
        ("update.epochs=many", "update.epochs=many: must be a whole number (default: 1)"),
        ("rollout.temperature=0", "rollout.temperature=0: must be more than 0.0 (default: 1.0)"),
        ("evaluation.top_p=1.5", "evaluation.top_p=1.5: must be at most 1.0 (default: 1.0)"),
        ("advantage.decay=1", "advantage.decay=1: must be less than 1.0 (default: 0.9)"),
        ("kl.coef=x", "kl.coef=x: must be a number (default: 0.05)"),
        ("kl.coef=.nan", "kl.coef=NaN: must be finite (default: 0.05)"),
        ("kl.coef=1e999", "kl.coef=Infinity: must be finite (default: 0.05)"),
        ("kl.coef=true", "kl.coef=true: must be a number"),
        ("run.steps=true", "run.steps=true: must be a whole number (default: 100)"),
        ("value.clip=false", "value.clip=false: must be a number"),
        ("update.betas=[true, 0.9]", "update.betas[0]=true: must be a number"),
        ("kl.estimator=k4", "kl.estimator=k4: must be 'k1', 'k2', 'k3' or 'exact' (default: k1)"),
        ("kl=5", "kl=5: is a section; set the keys below it"),
        ("data.shuffle=maybe", "data.shuffle=maybe: must be true or false (default: true)"),
        (
            "run.name=a/b",
            "run.name=a/b: must be one path component, without '/' or '\\'; folders go into run.output_dir",
        ),
        ("run.name=..", "run.name=..: must be one path component"),
        ("run.name=", "run.name=: must not be empty (default: run)"),
        ("rollout.stop=['']", 'rollout.stop=[""]: an empty stop string would end every completion at once'),
        ("rollout.stop=[3]", "rollout.stop[0]=3: must be text; put it in quotes"),
        ("run.trackers=wandb", "run.trackers=wandb: must be a list, written [wandb] (default: [])"),
        ("reward.functions=a.py:f", "reward.functions=a.py:f: must be a list, written [a.py:f] (default: [])"),
        (
            "reward.functions=[{weight: 2}]",
            'reward.functions[0]={"weight": 2}: a reward is either function: NAME or members',
        ),
        ("reward.clip=[1, 0]", "reward.clip=[1, 0]: [low, high] needs low < high, got [1.0, 0.0] (default: null)"),
        ("reward.clip=[1, 2, 3]", "reward.clip=[1, 2, 3]: has 3 items; give 2 (default: null)"),
        ("update.betas=[0.9]", "update.betas[1]: is missing; give it"),
        ("update.betas=[0.9, 1]", "update.betas=[0.9, 1]: both must be in [0, 1), got [0.9, 1.0]"),
    ],
)
def test_a_bad_value(override: str, line: str) -> None:
    assert one_problem(override).startswith(line)


def test_problems_are_told_together_and_without_pydantic_s_own_words() -> None:
    lines = problems("update.epochs=0", "kl.coeff=1", "run.seed=true")
    assert len(lines) == 3
    assert not any(word in line for line in lines for word in ("pydantic", "Value error", "[type="))


def test_a_config_error_is_also_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"kl\.coef=-1"):
        config_from_dict({}, ["kl.coef=-1"])
    assert issubclass(ConfigError, RlhfPgError)


# Unknown keys


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("kl.coeff=1", "kl.coeff=1: unknown key; did you mean kl.coef?"),
        ("learning_rate=1", "learning_rate=1: unknown key; did you mean update.learning_rate or value.learning_rate?"),
        ("rollout.learning_rate=1", "did you mean update.learning_rate or value.learning_rate?"),
        ("lerning_rate=1", "did you mean update.learning_rate"),
        ("value.learnign_rate=1", "did you mean value.learning_rate?"),
        ("group_size=4", "did you mean rollout.group_size?"),
        ("rolout.group_size=4", "rolout.group_size=4: unknown key; did you mean rollout.group_size?"),
        ("updates.learning_rate=1", "did you mean update.learning_rate?"),
        ("temperature=1", "did you mean rollout.temperature or evaluation.temperature?"),
        ("loss.clip=1", "did you mean loss.clip_low or loss.clip_high?"),
        ("data.sorce=x", "did you mean data.source?"),
        ("value.lam=1", "did you mean advantage.lam?"),
        ("policy.lora.rank=1", "the keys of policy.lora are r, alpha, targets"),
        ("kl.zzz=1", "the keys of kl are coef, placement, estimator, controller, target, horizon"),
        ("zzz.qqq=1", "the sections are run, policy, reference, data,"),
        ("reward.functions=[{function: f, wieght: 2}]", "did you mean reward.functions[].weight?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(override: str, hint: str) -> None:
    assert hint in one_problem(override)


def test_each_key_is_the_nearest_to_itself_with_a_letter_missing() -> None:
    for name in config_keys():
        leaf = name.rpartition(".")[2]
        if "[]" in name or len(leaf) < 6 or "." not in name:
            continue
        typo = name[:-2] + name[-1]
        assert f"did you mean {name}" in one_problem(f"{typo}=1"), typo


def test_a_dotted_key_in_a_mapping() -> None:
    assert one_problem(tree={"kl.coef": 1}) == "kl.coef=1: unknown key; write it nested: kl: {coef: ...}"


# Written out


def test_a_config_is_frozen() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.kl.coef = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.run = config.run  # type: ignore[misc]


@pytest.mark.parametrize("name", [path.stem for path in RECIPES])
def test_a_resolved_recipe_reads_back_equal(name: str, tmp_path: Path) -> None:
    config = load_config(name, ["policy.lora.r=4", "run.mixed_precision=no", "update.learning_rate=5e-6"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config
    (tmp_path / "shown.yaml").write_text(show(config))
    assert load_config(tmp_path / "shown.yaml") == config


TEXT = st.one_of(
    st.sampled_from(
        ["None", "null", "~", "", "no", "true", "1e5", "010", "1:30", "2024-01-01", "<<", "=", "#x", "a: b", "####"]
    ),
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=12),
)
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.one_of(st.none(), TEXT),
    source=TEXT,
    args=st.dictionaries(TEXT, VALUE, max_size=3),
    rate=st.floats(min_value=0, allow_infinity=False),
    stop=st.lists(TEXT.filter(bool), max_size=3),
)
def test_any_config_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    prompt: str | None,
    source: str,
    args: dict[str, Any],
    rate: float,
    stop: list[str],
) -> None:
    tree = {
        "data": {"system_prompt": prompt, "source": source},
        "reward": {"functions": [{"function": "f.py:g", "args": args}]},
        "update": {"learning_rate": rate},
        "rollout": {"stop": stop},
    }
    config = config_from_dict(tree)
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(to_yaml(config), encoding="utf-8", newline="")
    assert load_config(path) == config


def test_the_written_yaml_is_plain() -> None:
    text = to_yaml(config_from_dict({}, ["update.learning_rate=5e-6"]))
    assert "  learning_rate: 5e-06\n" in text
    assert "!!" not in text
    assert set(yaml.safe_load(text)) == set(Config.model_fields)
    with pytest.raises(ConfigError, match="no form in YAML"):
        dump_yaml({"f": test_the_written_yaml_is_plain})


def test_show_explains_every_key_and_marks_changes() -> None:
    text = show(config_from_dict({}, ["kl.coef=0.5", "policy.lora={}"]))
    marked = [line.split() for line in text.splitlines() if "(default:" in line]
    assert [words[:6] for words in marked] == [
        ["lora:", "#", "(default:", "null)", "Train", "low-rank"],
        ["coef:", "0.5", "#", "(default:", "0.05)", "beta:"],
    ]
    columns = {line.index("  # ") + 2 for line in text.splitlines()}
    assert len(columns) == 1
    for name, field in config_keys().items():
        if "[]" not in name:
            assert (field.description or "?") in text, name


def test_the_schema_knows_every_key() -> None:
    schema = json_schema()
    json.dumps(schema)
    assert list(schema["properties"]) == ["extends", *Config.model_fields]
    assert schema["additionalProperties"] is False
    learning_rate = schema["$defs"]["UpdateConfig"]["properties"]["learning_rate"]
    assert (learning_rate["type"], learning_rate["minimum"]) == ("number", 0)
    assert {"type": "string"} in schema["$defs"]["RewardConfig"]["properties"]["functions"]["items"]["anyOf"]


# What has no default


def test_what_has_no_default_must_be_given() -> None:
    with pytest.raises(ConfigError) as caught:
        check_complete(Config())
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        "policy.model",
        "data.source",
        "reward.functions",
    ]
    assert "rlhf-pg train RECIPE policy.model=..." in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        check_complete(Config(), data_given=True, rewards_given=True)
    assert str(caught.value).startswith("policy.model")
    assert "\n" not in str(caught.value)
    check_complete(config_from_dict({}, ["policy.model=m"]), data_given=True, rewards_given=True)
    check_complete(config_from_dict({}, COMPLETE))
