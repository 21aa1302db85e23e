"""Sampling completions: masks, reasons, and rows whose tokens depend on nothing but themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from rlhf_pg.forward import Forward
from rlhf_pg.loading import load_models
from rlhf_pg.models import Policy
from rlhf_pg.ops.sampling import row_uniforms
from rlhf_pg.rollout import Sampler
from rlhf_pg.rollout.cache import ReservedLayer, new_cache
from rlhf_pg.types import Rollout

CPU = torch.device("cpu")
TOKENIZER = tiny.tokenizer()
PROMPTS = tiny.random_ids(1, 2, 11, 5, 8)
P, G, T = len(PROMPTS), 3, 10
ENDS = (tiny.EOS, 5, 9, 14, 20, 33, 41)  # several, so that some rows end early and at different times


def sampler(**changes: Any) -> Sampler:
    return Sampler(**{"tokenizer": TOKENIZER, "eos_ids": ENDS, "max_new_tokens": T, "temperature": 0.7, **changes})


def sampled_policy(family: str) -> tuple[Policy, float]:
    """A policy and how near its numbers come. Soft-capped attention is eager, which in float64 gives NaN in padding."""
    return (tiny.policy(family, torch.float32), 1e-4) if family == "gemma2" else (tiny.policy(family), 1e-10)


def uniforms(rows: int = P * G, columns: int = T, seed: int = 0) -> Tensor:
    return row_uniforms(seed, "sample", rows=range(rows), columns=columns)


def sample(policy: Policy, prompts: Sequence[Sequence[int]] = PROMPTS, **changes: Any) -> Rollout:
    return sampler(**changes)(policy, tiny.prompt_batch(prompts), uniforms(len(prompts) * G))


def row(rollout: Rollout, index: int) -> tuple[list[int], Tensor]:
    """A response's tokens and logprobs."""
    inside = rollout.response_mask[index]
    return rollout.response_ids[index][inside].tolist(), rollout.logprobs[index][inside]


def assert_same_row(ours: Rollout, i: int, theirs: Rollout, j: int, atol: float = 1e-10) -> None:
    assert row(ours, i)[0] == row(theirs, j)[0]
    torch.testing.assert_close(row(ours, i)[1], row(theirs, j)[1], rtol=0, atol=atol)
    assert ours.finish_reason[i] == theirs.finish_reason[j]


def assert_identical(ours: Rollout, theirs: Rollout) -> None:
    for name in ("response_ids", "response_mask", "logprobs"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.finish_reason == theirs.finish_reason
    assert ours.texts == theirs.texts


def assert_near(ours: Rollout, theirs: Rollout) -> None:
    """The same tokens, from weights that were loaded twice."""
    assert len(ours) == len(theirs)
    for i in range(len(ours)):
        assert_same_row(ours, i, theirs, i)


def forced(following: dict[int, int]) -> Policy:
    """A model that always follows a token with the one the table names, whatever is drawn."""
    policy = tiny.policy("llama")
    table = torch.zeros(tiny.V, dtype=torch.int64)
    for token, then in following.items():
        table[token] = then

    def replace(_: Any, args: Any, given: dict[str, Any], out: Any) -> Any:
        out.logits = torch.full_like(out.logits, -100.0)
        out.logits[:, -1].scatter_(1, table[given["input_ids"][:, -1:]], 100.0)
        return out

    policy.model.register_forward_hook(replace, with_kwargs=True)
    return policy


def watch(policy: Policy) -> list[tuple[int, ...]]:
    """The shapes of the ids that the model is given, call by call."""
    seen: list[tuple[int, ...]] = []
    policy.model.register_forward_hook(
        lambda _, args, given, out: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    return seen


# Masks and reasons.


def test_the_mask_includes_the_end_and_nothing_after() -> None:
    """4 -> 5, 6, EOS; 10 -> 11, 12, 13, 14, 15 and is cut; 20 -> EOS at once."""
    follow = {4: 5, 5: 6, 6: tiny.EOS, 10: 11, 11: 12, 12: 13, 13: 14, 14: 15, 20: tiny.EOS}
    found = sampler(eos_ids=(tiny.EOS,), max_new_tokens=5)(
        forced(follow), tiny.prompt_batch([[4], [9, 9, 10], [20]]), uniforms(3)
    )
    assert found.response_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert [row(found, i)[0] for i in range(3)] == [[5, 6, tiny.EOS], [11, 12, 13, 14, 15], [tiny.EOS]]
    assert found.finish_reason == ("eos", "length", "eos")
    assert found.truncated.tolist() == [False, True, False]
    assert found.lengths.tolist() == [3, 5, 1]
    assert found.texts == ("w5 w6", "w11 w12 w13 w14 w15", "")


def test_the_mask_where_the_pad_token_is_the_end() -> None:
    found = sampler(eos_ids=(tiny.PAD,), max_new_tokens=5)(
        forced({4: 5, 5: 6, 6: tiny.PAD, 10: 11, 11: 10}), tiny.prompt_batch([[4], [0, 0, 10]]), uniforms(2)
    )
    assert found.response_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert found.finish_reason == ("eos", "length")


def test_any_of_several_ends_ends() -> None:
    found = sampler(eos_ids=(tiny.EOS, 30, 31), max_new_tokens=4)(
        forced({4: 30, 5: 31, 6: tiny.EOS, 7: 8, 8: 7}), tiny.prompt_batch([[4], [5], [6], [7]]), uniforms(4)
    )
    assert found.lengths.tolist() == [1, 1, 1, 4]
    assert found.finish_reason == ("eos", "eos", "eos", "length")


def test_an_end_at_the_limit_is_an_end() -> None:
    found = sampler(eos_ids=(tiny.EOS,), max_new_tokens=2)(
        forced({4: 5, 5: tiny.EOS}), tiny.prompt_batch([[4]]), uniforms(1)
    )
    assert found.finish_reason == ("eos",)
    assert found.lengths.tolist() == [2]


def test_without_ends_every_response_has_the_limits_length() -> None:
    found = sample(tiny.policy("llama"), eos_ids=())
    assert found.response_mask.all()
    assert found.response_ids.shape == (P * G, T)
    assert set(found.finish_reason) == {"length"}


def test_stop_strings_end_a_response_with_the_token_that_completes_them() -> None:
    found = sampler(eos_ids=(tiny.EOS,), max_new_tokens=6, stop=("w6 w7", "w40"))(
        forced({4: 5, 5: 6, 6: 7, 7: 8, 10: 11, 11: 40, 40: 41, 20: 21, 21: tiny.EOS, 30: 31, 31: 30}),
        tiny.prompt_batch([[4], [10], [20], [30], [6, 7, 30]]),
        uniforms(5),
    )
    assert [row(found, i)[0] for i in range(3)] == [[5, 6, 7], [11, 40], [21, tiny.EOS]]
    assert found.finish_reason == ("stop", "stop", "eos", "length", "length"), "a stop string in the prompt is none"
    assert found.truncated.tolist() == [False, False, False, True, True]
    assert found.texts[0] == "w5 w6 w7"


def test_special_tokens_stay_in_the_text_where_asked() -> None:
    found = sampler(eos_ids=(tiny.EOS,), skip_special_tokens=False)(
        forced({4: 5, 5: tiny.EOS}), tiny.prompt_batch([[4]]), uniforms(1)
    )
    assert found.texts == ("w5 <eos>",)


# What is sampled.


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_whole_distribution_is_sampled(temperature: float) -> None:
    """A grid of 5,000 numbers: each of the 61 tokens has its share to one point of the grid, no top-k of 50."""
    policy, n = tiny.policy("gpt2", initializer_range=0.1), 5000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    found = sampler(temperature=temperature, max_new_tokens=1)(policy, tiny.prompt_batch([[3, 4, 5]]), grid[:, None])
    p = (tiny.full_logits(policy, [3, 4, 5])[-1] / temperature).softmax(0)
    share = torch.bincount(found.response_ids[:, 0], minlength=tiny.V) / n
    assert (share > 0).all()
    assert (share - p).abs().max() <= 1 / n + 1e-9


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_sampled_logprobs_are_the_policys(family: str) -> None:
    """Cache, left padding and positions against one pass over right-padded rows."""
    policy, near = sampled_policy(family)
    found = sample(policy)
    assert len(set(found.lengths.tolist())) > 1
    again = Forward(CPU, 100, 0.7).policy(policy, found, [range(len(found))])[0]
    difference = torch.where(found.response_mask, found.logprobs - again, 0.0)
    assert found.logprobs.dtype == again.dtype
    assert float(difference.abs().max()) < near


def test_leaving_the_temperature_out_would_show() -> None:
    policy = tiny.policy("llama")
    found = sample(policy)
    wrong = Forward(CPU, 1000, 1.0).policy(policy, found, [range(len(found))])[0]
    assert torch.where(found.response_mask, found.logprobs - wrong, 0.0).abs().max() > 0.5


def test_the_g_copies_differ() -> None:
    found = sample(tiny.policy("gpt2"), eos_ids=())
    for p in range(P):
        assert len({tuple(row(found, p * G + g)[0]) for g in range(G)}) == G


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2"])
def test_a_row_alone_and_beside_longer_prompts(family: str) -> None:
    """Left padding, other rows that leave, and the group's size change nothing."""
    policy, near = sampled_policy(family)
    whole = sample(policy)
    numbers = uniforms()
    for p in range(P):
        for g in range(G):
            i = p * G + g
            alone = sampler()(policy, tiny.prompt_batch([PROMPTS[p]]), numbers[i : i + 1])
            assert_same_row(whole, i, alone, 0, near)
            assert alone.group_size == 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_more_padding_changes_nothing(family: str) -> None:
    policy = tiny.policy(family)
    wide = sampler()(policy, tiny.prompt_batch(PROMPTS, width=20, padding=42), uniforms())
    assert_identical(
        Rollout(tiny.prompt_batch(PROMPTS), G, *[getattr(wide, x) for x in Rollout.__slots__[2:]]), sample(policy)
    )


@pytest.mark.parametrize("rows", [1, G, 2 * G, 2 * G + 1, 1000])
def test_chunks_of_rows_change_nothing(rows: int) -> None:
    policy = tiny.policy("gpt2")
    whole, parts = sample(policy), sample(policy, batch_rows=rows)
    for i in range(P * G):
        assert_same_row(parts, i, whole, i)
    assert parts.texts == whole.texts


def test_batch_rows_bounds_the_rows_decoded_at_once() -> None:
    policy = tiny.policy("llama")
    seen = watch(policy)
    sample(policy, batch_rows=2 * G)
    assert max(shape[0] for shape in seen) == 2 * G


def test_the_others_ends_change_nothing() -> None:
    """Row 0 lasts; whether the rest leaves early or stays makes no difference to it."""
    policy = tiny.policy("gpt2")
    stay = sample(policy, eos_ids=())
    own = row(stay, 0)[0]
    ends = tuple(sorted(set(range(tiny.V)) - set(own)))
    leave = sample(policy, eos_ids=ends)
    assert min(leave.lengths.tolist()) < T
    assert_same_row(leave, 0, stay, 0)


def test_generation_config_does_not_leak() -> None:
    policy = tiny.policy("gpt2")
    clean = sample(policy)
    poison: dict[str, Any] = {
        "do_sample": False,
        "temperature": 0.01,
        "top_k": 1,
        "top_p": 0.01,
        "min_p": 0.9,
        "typical_p": 0.01,
        "epsilon_cutoff": 0.5,
        "eta_cutoff": 0.5,
        "repetition_penalty": 50.0,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": list(range(3, 60)),
        "begin_suppress_tokens": list(range(3, 60)),
        "bad_words_ids": [[i] for i in range(3, 60)],
        "num_beams": 4,
        "max_new_tokens": 1,
        "forced_eos_token_id": tiny.EOS,
        "use_cache": False,
    }
    for name, value in poison.items():
        setattr(policy.model.generation_config, name, value)
    assert_identical(sample(policy), clean)


def test_a_poisoned_generation_config_in_the_folder_does_not_leak(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, "llama")
    clean = sample(load_models(tiny.config(folder)).policy)
    poison = (
        '{"do_sample": true, "top_k": 1, "temperature": 0.01, "repetition_penalty": 50.0, "suppress_tokens": [7, 8]}'
    )
    (tmp_path / "generation_config.json").write_text(poison)
    models = load_models(tiny.config(folder))
    assert models.policy.model.generation_config.top_k == 1
    assert_near(sample(models.policy), clean)


def test_the_global_generator_neither_matters_nor_moves() -> None:
    policy = tiny.policy("llama")
    torch.manual_seed(0)
    first = sample(policy)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert_identical(sample(policy), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_greedy_rows_are_argmax_and_leave_the_sampled_ones_alone() -> None:
    policy = tiny.policy("gpt2")
    batch = tiny.prompt_batch(PROMPTS)
    sampled, greedy = sampler().with_greedy(policy, batch, uniforms())
    plain = sample(policy)
    assert sampled.group_size == G
    assert greedy.group_size == 1
    assert len(greedy) == P
    for i in range(P * G):
        assert_same_row(sampled, i, plain, i, atol=1e-12)
    assert sampled.texts == plain.texts
    for p, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        while len(ids) - len(prompt) < T and (len(ids) == len(prompt) or ids[-1] not in ENDS):
            ids.append(int(tiny.full_logits(policy, ids)[-1].argmax()))
        response = ids[len(prompt) :]
        assert row(greedy, p)[0] == response
        exact = tiny.response_logprobs(policy, prompt, response, 0.7).detach()
        torch.testing.assert_close(row(greedy, p)[1], exact, rtol=0, atol=1e-10)


def test_greedy_shares_the_prefill() -> None:
    policy = tiny.policy("llama")
    seen = watch(policy)
    sampler().with_greedy(policy, tiny.prompt_batch(PROMPTS), uniforms())
    assert seen[0] == (P, 11)
    assert seen[1][0] <= P * (G + 1)
    assert all(shape[1] == 1 for shape in seen[1:])


@pytest.mark.parametrize("top_p", [0.3, 0.8])
def test_top_p_takes_tokens_of_the_nucleus(top_p: float) -> None:
    policy = tiny.policy("gpt2", initializer_range=0.1)
    found = sample(policy, top_p=top_p, eos_ids=())
    for i in range(P * G):
        ids = row(found, i)[0]
        prompt = PROMPTS[i // G]
        p = (tiny.full_logits(policy, [*prompt, *ids])[len(prompt) - 1 : -1] / 0.7).softmax(1)
        own = p.gather(1, torch.tensor(ids)[:, None])
        more_likely = torch.where(p > own, p, 0.0).sum(1)
        assert (more_likely < top_p).all()
    tiniest = sample(policy, top_p=1e-9, eos_ids=())
    assert len({tuple(row(tiniest, g)[0]) for g in range(G)}) == 1, "the nucleus of one token is greedy"


# Speed: prefill once, rows leave.


def test_a_prompt_is_prefilled_once_for_its_completions() -> None:
    policy = tiny.policy("llama")
    seen = watch(policy)
    sample(policy, eos_ids=())
    assert seen == [(P, 11)] + [(P * G, 1)] * (T - 1)


def test_finished_rows_leave_the_batch() -> None:
    """One row runs to the limit and nine end at their first token: the model then sees one row."""
    policy = forced({4: tiny.EOS, 10: 11, 11: 10})
    seen = watch(policy)
    prompts = [[4]] * 9 + [[10]]
    found = sampler(eos_ids=(tiny.EOS,), max_new_tokens=6)(policy, tiny.prompt_batch(prompts), uniforms(10))
    assert found.lengths.tolist() == [1] * 9 + [6]
    assert seen == [(10, 1)] + [(1, 1)] * 5


def test_sampling_ends_with_the_last_row() -> None:
    policy = forced({4: 5, 5: tiny.EOS})
    seen = watch(policy)
    found = sampler(eos_ids=(tiny.EOS,), max_new_tokens=50)(policy, tiny.prompt_batch([[4], [5]]), uniforms(2, 50))
    assert found.response_ids.shape == (2, 2)
    assert len(seen) == 2


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2"])
def test_the_reserved_cache_gives_what_transformers_own_does(family: str) -> None:
    """With left padding, copies of each row, and rows that leave; past the sliding window of 4."""
    policy, near = sampled_policy(family)
    model: Any = policy.model.eval()
    batch = tiny.prompt_batch(PROMPTS)
    words = torch.tensor(tiny.random_ids(9, *[8] * 4))
    outputs = []
    for cache in (new_cache(model.config, 11 + 8), DynamicCache()):
        mask = batch.prompt_mask
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)

        def step(ids: Tensor, mask: Tensor, positions: Tensor, cache: Any = cache) -> Tensor:
            with torch.no_grad():
                out = model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
                )
            return out.logits[:, -1]

        found = [step(batch.prompt_ids, mask, positions)]
        cache.batch_repeat_interleave(2)
        mask, last, tokens = (x.repeat_interleave(2, 0) for x in (mask, positions[:, -1:], words))
        for t in range(8):
            if t == 3:
                stay = torch.tensor([0, 3, 6])
                cache.batch_select_indices(stay)
                mask, last, tokens = mask[stay], last[stay], tokens[stay]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            last = last + 1
            found.append(step(tokens[:, t : t + 1], mask, last))
        outputs.append(found)
        assert cache.get_seq_length() == 19
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=near)


def test_the_reserved_cache_is_used() -> None:
    for family in ("gpt2", "llama", "mistral"):
        cache = new_cache(tiny.policy(family).config, 5)
        assert {type(layer) for layer in cache.layers} == {ReservedLayer}


# The model afterwards.


def test_sampling_gives_the_training_mode_back() -> None:
    policy = tiny.policy("gpt2")
    modes: list[bool] = []
    policy.model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    sample(policy)
    assert policy.model.training
    assert not any(modes)
    policy.model.eval()
    sample(policy)
    assert not policy.model.training


def test_sampling_with_gradient_checkpointing(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, "llama")
    plain = load_models(tiny.config(folder)).policy
    saving = load_models(tiny.config(folder, policy={"gradient_checkpointing": True})).policy
    assert_near(sample(saving), sample(plain))
    assert saving.model.is_gradient_checkpointing
    assert saving.model.training


def test_sampling_leaves_no_gradient_and_no_change() -> None:
    policy = tiny.policy("llama")
    before = [p.detach().clone() for p in policy.parameters()]
    found = sample(policy)
    assert not found.logprobs.requires_grad
    assert all(torch.equal(p, b) for p, b in zip(policy.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_models_give_float32_logprobs(dtype: torch.dtype) -> None:
    found = sample(tiny.policy("llama", dtype))
    assert found.logprobs.dtype == torch.float32
    assert torch.isfinite(found.logprobs).all()
    assert (found.logprobs <= 0).all()


def test_lora_policies_sample(tmp_path: Path) -> None:
    """At the start an adapter changes nothing; then it does, and the logprobs follow."""
    folder = tiny.save(tmp_path, "llama")
    plain = sample(load_models(tiny.config(folder)).policy)
    policy = load_models(tiny.config(folder, policy={"lora": {"r": 2}})).policy
    assert_near(sample(policy), plain)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight += 0.1
    found = sample(policy)
    again = Forward(CPU, 100, 0.7).policy(policy, found, [range(len(found))])[0]
    assert torch.where(found.response_mask, found.logprobs - again, 0.0).abs().max() < 1e-10
    assert not torch.equal(found.logprobs, plain.logprobs)


def test_the_real_model_tells_a_story(stories: str) -> None:
    models = load_models(tiny.config(stories))
    texts = ["Once upon a time", "The dog and the cat"]
    ids = [models.tokenizer(text)["input_ids"] for text in texts]
    run = Sampler(models.tokenizer, models.eos_ids, 20)
    found = run(models.policy, tiny.prompt_batch(ids), uniforms(4, 20))
    again = Forward(CPU, 1000, 1.0).policy(models.policy, found, [range(4)])[0]
    assert torch.where(found.response_mask, found.logprobs - again, 0.0).abs().max() < 1e-10
    assert found.logprobs[found.response_mask].mean() > -2.5
    assert all(text.strip() for text in found.texts)
