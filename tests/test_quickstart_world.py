"""The quickstart's world: the grammar and its gold score by hand, and the building and keeping of its models."""

from __future__ import annotations

import importlib
import json
import math
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlhf_pg.errors import DataError, ModelError
from rlhf_pg.quickstart import build, grammar
from rlhf_pg.quickstart.build import Sizes, world_folder

SOUP = "Review of the spicy soup:"
TINY = Sizes(hidden=16, layers=1, reviews=256, pairs=40, epochs=1)


def bounded(total: float) -> float:
    return total / math.sqrt(total**2 + 1)


def reviews(count: int) -> list[tuple[str, str]]:
    rng = random.Random(0)
    prompts = [row["prompt"] for row in grammar.prompts()]
    return [(prompt, grammar.sample_review(rng, prompt)) for prompt in rng.choices(prompts, k=count)]


# --- the grammar ----------------------------------------------------------------------------------------------------


def test_prompts_are_many_and_held_out_ones_are_others_made_of_the_same_words():
    trained = [row["prompt"] for row in grammar.prompts()]
    held_out = [row["prompt"] for row in grammar.held_out_prompts()]
    assert len(set(trained)) == len(trained) == 264
    assert len(set(held_out)) == len(held_out) == 66
    assert not set(trained) & set(held_out)
    assert {word for prompt in held_out for word in prompt.split()} <= {w for prompt in trained for w in prompt.split()}
    assert grammar.held_out_prompts()[0] == {"prompt": SOUP, "item": "spicy soup"}


def test_there_are_thousands_of_sentences():
    sentences = {sentence for _, text in reviews(6000) for sentence in text.strip(" .").split(". ")}
    assert len(sentences) > 5000


def test_samples_are_grammatical_neutral_and_never_repeat():
    scores = []
    for prompt, text in reviews(3000):
        total, faults, _ = grammar._read(prompt, text)
        assert faults == 0, text
        assert text.startswith(" ")
        scores.append(bounded(total))
    assert abs(sum(scores) / len(scores)) < 0.1
    assert sum(score > 0.3 for score in scores) > 500
    assert sum(score < -0.3 for score in scores) > 500


def test_the_same_seed_gives_the_same_review_in_any_process():
    code = f"from random import Random; from rlhf_pg.quickstart import grammar as g; print(g.sample_review(Random(5), '{SOUP}'))"
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(grammar.__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] == grammar.sample_review(random.Random(5), SOUP) + "\n"


def test_a_prompt_from_elsewhere_cannot_be_answered():
    with pytest.raises(DataError, match="'Review of the moon:'"):
        grammar.sample_review(random.Random(0), "Review of the moon:")


@pytest.mark.parametrize(
    ("text", "total", "cost"),
    [
        (" The taste was superb.", 1.0, 0),
        (" The taste was very good.", 0.65, 0),  # 0.5 * 1.3
        (" The taste was extremely wonderful.", 1.0, 0),  # 0.95 * 1.5, bounded
        (" The taste was slightly bad.", -0.25, 0),
        (" The taste was not great.", -0.375, 0),  # -0.5 * 0.75
        (" The taste was not very good.", -0.325, 0),  # -0.5 * 0.5 * 1.3
        (" It felt not terrible.", 0.45, 0),
        (" I really enjoyed the sauce.", 0.84, 0),  # 0.7 * 1.2
        (" I did not hate the sauce.", 0.5, 0),
        (" I would never order it again.", -0.8, 0),
        (" My uncle chose it. I tried it on Sunday.", 0.0, 0),
        (" The taste was good, and I loved the sauce.", 1.5, 0),
        (" The taste was good, but the sauce was awful.", 0.5 * 0.5 - 1.5 * 0.75, 0),
        (" The taste was good. The sauce was awful.", 0.5 - 0.75, 0),
        ("the taste was SUPERB .", 1.0, 0),  # neither case nor spaces matter
        (" The taste was superb", 1.0, 0.5),  # never ended
        (" The taste was superb, and the", 1.0, 0.5 + 0.5),  # cut: one of two clauses is whole
        (" The taste was superb. The taste was superb.", 2.0, 2 * 0.15),  # topic and opinion again
        (" I loved the taste, and I did not love the sauce.", 0.5, 0.15),
        (" wonderful wonderful wonderful.", 0.0, 1.0),
        (" The plot was superb.", 0.0, 1.0),  # a soup has none
        (" I would watch it again.", 0.0, 1.0),
        (" The taste was superb..", 1.0, 0.5),  # an empty second sentence
        ("", 0.0, 1.5),
        (".", 0.0, 1.0),
    ],
)
def test_gold_scores_worked_by_hand(text, total, cost):
    assert grammar.gold_score(SOUP, text) == pytest.approx(bounded(total) - cost)
    assert grammar.hasty_score(SOUP, text) == pytest.approx(total / 2 - cost)


def test_any_aspect_is_allowed_after_a_prompt_from_elsewhere():
    assert grammar.gold_score("Tell me:", " The plot was superb, and I would buy it again.") == pytest.approx(
        bounded(1.6)
    )


def test_a_long_review_tires_readers_but_not_annotators():
    short = " The taste was superb, and I loved the sauce, and the smell was great."  # 14 words
    long = short[:-1] + ", and the texture was great. I would recommend it."  # 9 more
    assert grammar.gold_score(SOUP, short) == pytest.approx(bounded(2.75))
    assert grammar.gold_score(SOUP, long) == pytest.approx(bounded(2.75 + 0.75 + 0.6) - 0.15 - 9 * 0.08)
    assert grammar.hasty_score(SOUP, long) > grammar.hasty_score(SOUP, short)


def test_the_gold_score_has_a_floor():
    assert grammar.gold_score(SOUP, "wonderful " * 500) == grammar.LOWEST


def test_the_grammar_needs_no_torch():
    code = "import sys, rlhf_pg.quickstart.grammar, rlhf_pg.quickstart.build; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(Path(grammar.__file__).parents[2])}, check=True)


# --- the models -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, list[str]]:
    """A world of a few steps, and what was said while it was built."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_PG_CACHE", str(tmp_path_factory.mktemp("cache")))
        # A launcher's variables must not make the building process wait for others.
        patch.setenv("WORLD_SIZE", "2")
        patch.setenv("RANK", "0")
        patch.setenv("LOCAL_RANK", "0")
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("MASTER_PORT", "1")
        return world_folder(said.append, TINY), said


def test_both_models_load_and_the_tokenizer_gives_the_text_back(world):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    folder, said = world
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    assert (policy.config.hidden_size, policy.config.num_hidden_layers, reward.config.num_labels) == (16, 1, 1)
    for name in ("policy", "reward"):
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        special = [tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
        assert len({*special}) == 4
        assert policy.config.eos_token_id == tokenizer.eos_token_id
        assert policy.config.pad_token_id == reward.config.pad_token_id == tokenizer.pad_token_id
        for prompt, text in reviews(300):
            ids = tokenizer(prompt)["input_ids"]
            assert ids[0] == tokenizer.bos_token_id
            assert tokenizer.eos_token_id not in ids
            own = tokenizer(text, add_special_tokens=False)["input_ids"]
            # Prompt and completion scored as one text are the tokens that the policy saw and sampled.
            assert tokenizer(prompt + text)["input_ids"] == ids + own
            assert tokenizer.unk_token_id not in ids + own
            assert tokenizer.decode(own) == text
            assert tokenizer.decode(ids, skip_special_tokens=True) == prompt
    assert len(said) == 3
    assert "256 reviews" in said[0]
    assert "40 noisy preferences" in said[1]


def test_a_second_call_builds_nothing(world, monkeypatch):
    folder, _ = world
    monkeypatch.setenv("RLHF_PG_CACHE", str(folder.parents[1]))
    monkeypatch.setattr(build, "_build_apart", lambda *_: pytest.fail("built again"))
    assert world_folder(pytest.fail, TINY) == folder
    assert [path.name for path in folder.parent.iterdir() if path.suffix == ".building"] == []


def test_the_reward_functions_score_rows_by_keyword(world, monkeypatch):
    rewards = importlib.import_module("rlhf_pg.quickstart.rewards")
    monkeypatch.setattr(
        importlib.import_module("rlhf_pg.quickstart.build"), "reward_folder", lambda: world[0] / "reward"
    )
    learned, gold = rewards.reviews_reward(), rewards.reviews_gold()
    prompts, texts = [SOUP, SOUP], [" The taste was superb.", " The taste was superb"]
    assert gold(prompts=prompts, completions=texts, completion_ids=[[1], [2]], item=["a", "b"]) == [
        grammar.gold_score(SOUP, text) for text in texts
    ]
    with_stop, without = learned(prompts=prompts, completions=texts)
    assert with_stop != without  # the reward model sees whether a review ended
    assert learned(prompts=prompts[1:], completions=texts[1:]) == pytest.approx([without], abs=1e-5)


def test_preferences_are_of_one_prompt_and_follow_the_annotators_liking(monkeypatch):
    models = importlib.import_module("rlhf_pg.quickstart.models")
    good, bad = " The taste was superb, and I loved the sauce.", " The taste was dreadful, and I hated the sauce."
    drawn = iter([[good] * 500, [bad] * 500])
    monkeypatch.setattr(models, "sample", lambda *_, **__: next(drawn))
    monkeypatch.setattr(models, "CUT", 0.0)
    monkeypatch.setattr(models, "AGREEMENT", 0.5)
    pairs = models.preferences(random.Random(0), [SOUP] * 500, None, None)
    share = sum(pair == (SOUP + good, SOUP + bad) for pair in pairs) / 500
    # likings 1 and -1: sigmoid(0.5 * 2) = 0.731, and a standard error of 0.02
    assert share == pytest.approx(0.731, abs=0.06)
    assert set(pairs) == {(SOUP + good, SOUP + bad), (SOUP + bad, SOUP + good)}


# --- the cache ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RLHF_PG_CACHE", str(tmp_path))
    return tmp_path / "rlhf_pg"


def make(folder: Path, text: str = "whole") -> None:
    folder.mkdir()
    (folder / "policy").mkdir()
    (folder / "policy" / "text").write_text(text)


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_build_apart", lambda folder, *_: make(folder))
    for name in ("RLHF_PG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert world_folder().parent == tmp_path / "home" / ".cache" / "rlhf_pg"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert world_folder().parent == tmp_path / "xdg" / "rlhf_pg"
    monkeypatch.setenv("RLHF_PG_CACHE", str(tmp_path / "own"))
    assert world_folder().parent == tmp_path / "own" / "rlhf_pg"
    assert build.policy_folder() == world_folder() / "policy"
    assert build.reward_folder() == world_folder() / "reward"
    assert world_folder(sizes=TINY) != world_folder()


def test_a_build_that_fails_leaves_nothing_that_looks_whole(cache, monkeypatch):
    def fail(folder: Path, *_: object) -> None:
        make(folder, "half")
        raise ModelError("no")

    monkeypatch.setattr(build, "_build_apart", fail)
    with pytest.raises(ModelError, match="no"):
        world_folder()
    monkeypatch.setattr(build, "_build_apart", lambda folder, *_: make(folder))
    folder = world_folder()
    assert (folder / "policy" / "text").read_text() == "whole"
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]


def test_of_several_that_ask_at_once_one_builds(cache, monkeypatch):
    built = []

    def slow(folder: Path, *_: object) -> None:
        built.append(folder)
        folder.mkdir()
        time.sleep(0.2)
        make(folder / "inner")

    monkeypatch.setattr(build, "_build_apart", slow)
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append((world_folder() / "inner").is_dir())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
    assert len(built) == 1


def test_a_failing_process_is_shown(cache):
    with pytest.raises(ModelError, match=r"(?s)exit code 1: .*hidden"):
        world_folder(sizes=Sizes(hidden="wide"))  # type: ignore[arg-type]
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLHF_PG_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set RLHF_PG_CACHE"):
        world_folder()


# --- the run --------------------------------------------------------------------------------------------------------


def test_the_quickstart_ends_with_what_changed(world, tmp_path, monkeypatch, capsys):
    pytest.importorskip("rlhf_pg.trainer", reason="the trainer is not there")
    run = importlib.import_module("rlhf_pg.quickstart.run")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "final").symlink_to(world[0] / "policy")
    first = {"step": 0, "eval/reward": 1.0, "eval/reward_stderr": 0.125, "eval/kl/sequence": 0.0}
    last = {"step": 3, "eval/reward": 2.5, "eval/rewards/gold/mean": 0.5, "eval/kl/sequence": 1.5}
    lines = [first, {"step": 1, "reward": 9.0}, last]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen = []

    def train(config):
        seen.append(config)
        return type("Result", (), {"run_dir": folder, "metrics": last})()

    built = []
    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(run, "frontier", lambda _, __, out, *, runs, **___: built.append((out, runs)))
    monkeypatch.setattr(run, "world_folder", lambda say: world[0])
    monkeypatch.setattr(run, "policy_folder", lambda: world[0] / "policy")
    monkeypatch.setenv("COLUMNS", "160")
    run.quickstart(["run.steps=3"])
    said = capsys.readouterr().out
    assert seen[0].run.steps == 3
    assert "before, step 0" in said
    assert "after, step 3" in said
    row = next(line for line in said.splitlines() if "learned reward" in line and "│" in line)
    assert "1.000 ± 0.125" in row
    assert "2.500" in row
    gold = next(line for line in said.splitlines() if "gold score" in line and "│" in line)
    assert "–" in gold
    assert "0.500" in gold
    assert SOUP in said
    assert built == [(folder / "frontier", [folder])]
    assert f"Report: {folder / 'frontier' / 'report.html'}" in said
    assert str(folder / "training.png") in said
