"""Policy, reference and value model: what they compute, what they share, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from rlhf_pg.errors import ModelError
from rlhf_pg.forward import pack
from rlhf_pg.loading import context_length, load_models
from rlhf_pg.models import Policy, Reference
from rlhf_pg.types import Rollout

CPU = torch.device("cpu")
PROMPTS = tiny.random_ids(1, 3, 9, 5)
RESPONSES = tiny.random_ids(2, 7, 1, 4)
ROLLOUT = tiny.rollout(PROMPTS, RESPONSES)
LORA: dict[str, Any] = {"r": 2, "alpha": 4.0}


def run(policy: Policy, temperature: float = 1.0, reference: Reference | None = None) -> list[Tensor]:
    """(N,) each, over the three right-padded rows of different lengths."""
    batch = pack(ROLLOUT, range(3), CPU)
    found = policy(batch.input_ids, batch.positions, batch.targets, temperature, reference)
    return [x for x in found if x is not None]


def frozen_logprobs(reference: Reference, rollout: Rollout = ROLLOUT) -> Tensor:
    batch = pack(rollout, range(len(rollout)), CPU)
    return reference.logprobs(batch.input_ids, batch.positions, batch.targets, 1.0)


def long_way(policy: Policy, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies (N,), each row by itself through the model's own forward."""
    pairs = list(zip(PROMPTS, RESPONSES, strict=True))
    logprobs = [tiny.response_logprobs(policy, p, r, temperature) for p, r in pairs]
    logp = torch.cat([dense(policy, p, r, temperature) for p, r in pairs])
    return torch.cat(logprobs), -(logp.exp() * logp).sum(1)


def dense(policy: Policy, prompt: Sequence[int], response: Sequence[int], temperature: float) -> Tensor:
    """(len(response), V) log-probabilities of the states in which the response's tokens are taken."""
    logits = tiny.full_logits(policy, [*prompt, *response])[len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(1)


def gradients(policy: Policy, objective: Tensor) -> list[Tensor]:
    weights = [p for p in policy.parameters() if p.requires_grad]
    found = torch.autograd.grad(objective, weights, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(weights, found, strict=True)]


def assert_equal(ours: Sequence[Tensor], theirs: Sequence[Tensor], atol: float = 1e-10) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def stir(module: nn.Module, part: str = "", seed: int = 0) -> None:
    """Change the weights whose name contains ``part``."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if part in name:
                weight += 0.2 * torch.randn(weight.shape, generator=source, dtype=torch.float64).to(weight.dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapter(folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained adapter with dropout of its own, and no tokenizer beside it."""
    base = AutoModelForCausalLM.from_pretrained(folder)
    settings = LoraConfig(
        r=2, lora_alpha=4, lora_dropout=0.5, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, settings)
    stir(model, "lora_B")
    place = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(place)
    return str(place)


# What the policy computes.


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logprobs_are_those_of_the_models_own_logits(family: str) -> None:
    """Right-padded rows against each row alone: soft caps, scales and sliding windows (of 4) included."""
    policy = tiny.policy(family)
    assert policy.from_hidden == (family not in tiny.SCALED)
    for temperature in (1.0, 0.7):
        assert_equal(run(policy, temperature), long_way(policy, temperature))


@pytest.mark.parametrize("family", tiny.SCALED)
def test_the_head_alone_would_be_wrong(family: str) -> None:
    policy = tiny.policy(family)
    hidden = tiny.backbone(policy)(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).last_hidden_state
    wrong = policy.model.get_output_embeddings()(hidden)[0]
    assert (wrong - tiny.full_logits(policy, [5, 6, 7])).abs().max() > 0.3


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_the_sliding_window_matters_here(family: str) -> None:
    """Otherwise the comparison with it would prove nothing."""
    wide = tiny.policy(family, sliding_window=64)
    assert (run(tiny.policy(family))[0] - run(wide)[0]).abs().max() > 0.01


def test_padding_holds_anything() -> None:
    policy = tiny.policy("gpt2")
    batch = pack(ROLLOUT, range(3), CPU)
    lengths = torch.tensor([len(p) + len(r) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    outside = torch.arange(batch.input_ids.shape[1]) >= lengths[:, None]
    assert outside.any()
    other = torch.where(outside, 42, batch.input_ids)
    again = policy(other, batch.positions, batch.targets, 1.0)
    assert_equal(run(policy), [again[0], again[1]], atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient_is_that_of_the_long_way(family: str, temperature: float) -> None:
    policy = tiny.policy(family)
    ours, exact = run(policy, temperature), long_way(policy, temperature)
    weights = torch.linspace(-1, 1, len(ours[0]), dtype=torch.float64)
    for one, other in zip(ours, exact, strict=True):
        assert_equal(gradients(policy, (one * weights).sum()), gradients(policy, (other * weights).sum()), 1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_exact_kl_and_its_gradient(family: str) -> None:
    policy, other = tiny.policy(family), tiny.policy(family, seed=1)
    reference = Reference(other)
    found = run(policy, 0.7, reference)[2]
    pairs = list(zip(PROMPTS, RESPONSES, strict=True))
    ours = torch.cat([dense(policy, p, r, 0.7) for p, r in pairs])
    theirs = torch.cat([dense(other, p, r, 0.7) for p, r in pairs])
    exact = (ours.exp() * (ours - theirs)).sum(1)
    assert float(exact.detach().min()) > 0.01
    assert_equal([found], [exact])
    assert_equal(gradients(policy, found.sum()), gradients(policy, exact.sum()), 1e-6)
    assert all(p.grad is None and not p.requires_grad for p in other.parameters())


def test_exact_kl_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, reference = tiny.policy("llama"), Reference(tiny.policy("llama", seed=1))
    whole = run(policy, 0.7, reference)[2]
    expected = gradients(policy, whole.sum())
    monkeypatch.setattr("rlhf_pg.ops.logprobs._CHUNK_ELEMENTS", 5 * tiny.V)
    parts = run(policy, 0.7, reference)[2]
    assert_equal([parts], [whole], 1e-12)
    assert_equal(gradients(policy, parts.sum()), expected)


# Dropout.


def test_dropout_is_off_and_the_model_in_training_mode(tmp_path: Path) -> None:
    """GPT-2's three kinds of dropout at .5: two runs are equal, and equal to those without."""
    place = tiny.save(tmp_path, "gpt2", attn_pdrop=0.5, embd_pdrop=0.5, resid_pdrop=0.5)
    value = {"advantage": {"baseline": "value"}}
    models = load_models(tiny.config(place, **value))
    assert models.policy.training
    assert models.policy.model.training
    assert models.value is not None
    assert models.value.training
    for module in (models.policy, models.value):
        assert {m.p for m in module.modules() if isinstance(m, nn.Dropout)} == {0.0}
    first = run(models.policy, 1.0, models.reference)
    assert_equal(first, run(models.policy, 1.0, models.reference), 0.0)
    assert not first[2].any(), "the reference has dropout"
    weights = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64).eval()
    assert_equal(first[:2], long_way(Policy(weights)))


def test_attention_dropout_kept_as_a_number_is_off(tmp_path: Path) -> None:
    models = load_models(tiny.config(tiny.save(tmp_path, "llama", attention_dropout=0.5)))
    assert_equal(run(models.policy), run(models.policy), 0.0)
    assert not run(models.policy, 1.0, models.reference)[2].any()


def test_an_adapters_own_dropout_is_off(adapter: str) -> None:
    models = load_models(tiny.config(adapter))
    assert_equal(run(models.policy), run(models.policy), 0.0)
    assert {m.p for m in models.policy.modules() if isinstance(m, nn.Dropout)} <= {0.0}


# LoRA and the reference.


def test_lora_starts_at_its_reference(folder: str) -> None:
    models = load_models(tiny.config(folder, policy={"lora": LORA}))
    trained = [name for name, p in models.policy.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert not run(models.policy, 1.0, models.reference)[2].any()
    assert models.reference.policy is models.policy


def test_lora_reference_is_the_base_to_the_bit(folder: str) -> None:
    models = load_models(tiny.config(folder, policy={"lora": LORA}))
    stir(models.policy, "lora_")
    base = Policy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64))
    with torch.no_grad():
        assert torch.equal(frozen_logprobs(models.reference), run(base)[0])
        logprobs, _, kl = run(models.policy, 1.0, models.reference)
    assert (logprobs - run(base)[0]).abs().max() > 0.01
    assert kl.min() > 0
    ours = {name for name, _ in models.reference.weights()}
    assert ours
    assert not any("lora_" in name for name in ours)


def test_lora_exact_kl_has_the_adapters_gradient(folder: str) -> None:
    """The backward pass computes chunks again: with the adapters on for the policy, off for the reference."""
    models = load_models(tiny.config(folder, policy={"lora": LORA}))
    stir(models.policy, "lora_")
    kl = run(models.policy, 0.7, models.reference)[2]
    base = Policy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64))
    exact = run(models.policy, 0.7, Reference(base))[2]
    assert_equal([kl], [exact])
    ours = gradients(models.policy, kl.sum())
    assert any(g.any() for g in ours)
    assert_equal(ours, gradients(models.policy, exact.sum()))


def test_lora_is_the_same_for_the_same_seed(folder: str) -> None:
    def weights(seed: int) -> list[Tensor]:
        models = load_models(tiny.config(folder, policy={"lora": LORA}, run={"seed": seed}))
        return [p for n, p in models.policy.named_parameters() if "lora_A" in n]

    torch.manual_seed(0)
    first = weights(3)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert_equal(first, weights(3), 0.0)
    assert not torch.equal(first[0], weights(4)[0])
    torch.set_rng_state(state)


def test_a_trained_adapter_gets_a_copy_as_reference(adapter: str, folder: str) -> None:
    """Adapters off would be another model: the KL at the start would not be 0."""
    models = load_models(tiny.config(adapter))
    assert isinstance(models.policy.model, PeftModel)
    trained = [name for name, p in models.policy.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert not run(models.policy, 1.0, models.reference)[2].any()
    base = Policy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64))
    assert (run(models.policy)[0] - run(base)[0]).abs().max() > 0.01, "the adapter was not trained"
    before = frozen_logprobs(models.reference)
    stir(models.policy, "lora_")
    assert torch.equal(frozen_logprobs(models.reference), before)
    assert run(models.policy, 1.0, models.reference)[2].min() > 0


def test_an_adapter_on_an_adapter_is_refused(adapter: str) -> None:
    with pytest.raises(ModelError, match=r"policy\.lora"):
        load_models(tiny.config(adapter, policy={"lora": LORA}))


def test_a_pickled_adapter_is_refused(adapter: str, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickle is refused"):
        load_models(tiny.config(tmp_path))


def test_lora_targets_that_are_not_there_are_refused(folder: str) -> None:
    with pytest.raises(ModelError, match=r"policy\.lora\.targets"):
        load_models(tiny.config(folder, policy={"lora": {**LORA, "targets": ("no_such_layer",)}}))


def test_the_reference_is_a_copy_of_the_weights(folder: str) -> None:
    models = load_models(tiny.config(folder))
    assert not run(models.policy, 1.0, models.reference)[2].any()
    before = frozen_logprobs(models.reference)
    stir(models.policy)
    assert torch.equal(frozen_logprobs(models.reference), before)
    assert all(p.requires_grad for p in models.policy.parameters())
    assert not any(p.requires_grad for _, p in models.reference.weights())


def test_a_named_reference_is_that_model(folder: str, tmp_path: Path) -> None:
    other = tiny.save(tmp_path, "llama", seed=5)
    models = load_models(tiny.config(folder, reference={"model": other}))
    expected = Policy(AutoModelForCausalLM.from_pretrained(other, dtype=torch.float64))
    with torch.no_grad():
        assert torch.equal(frozen_logprobs(models.reference), run(expected)[0])


# Saving, and what is refused.


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tied_embeddings_are_saved_once_and_still_shared(family: str, tmp_path: Path) -> None:
    models = load_models(tiny.config(tiny.save(tmp_path / "a", family, tie_word_embeddings=True)))
    stir(models.policy)
    causal: Any = models.policy.model
    assert causal.get_input_embeddings().weight is causal.get_output_embeddings().weight
    causal.save_pretrained(tmp_path / "b")
    models.tokenizer.save_pretrained(tmp_path / "b")
    saved = load_file(tmp_path / "b" / "model.safetensors")
    assert len([x for x in saved.values() if x.shape == (tiny.V, 16)]) == 1
    again = load_models(tiny.config(tmp_path / "b"))
    causal = again.policy.model
    assert causal.get_input_embeddings().weight is causal.get_output_embeddings().weight
    assert_equal(run(again.policy), run(models.policy), 0.0)
    frozen: Any = again.reference.policy.model
    assert frozen.get_input_embeddings().weight is frozen.get_output_embeddings().weight


def test_another_vocabulary_is_refused(folder: str, tmp_path: Path) -> None:
    other = tiny.save(tmp_path / "wide", "llama", vocab_size=tiny.V + 3)
    with pytest.raises(ModelError, match=r"reference\.model=.*vocabulary of 64 and the policy of 61"):
        load_models(tiny.config(folder, reference={"model": other}))
    with pytest.raises(ModelError, match=r"value\.model=.*reads 64 tokens and the policy 61"):
        load_models(tiny.config(folder, advantage={"baseline": "value"}, value={"model": other}))


def test_a_tokenizer_that_does_not_fit_is_refused(folder: str, tmp_path: Path) -> None:
    small = tiny.save(tmp_path / "small", "llama", vocab_size=tiny.V - 3)
    with pytest.raises(ModelError, match="61 tokens and its output layer 58"):
        load_models(tiny.config(small))
    other = tiny.save(tmp_path / "other", "llama", seed=1)
    words = json.loads((Path(other) / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["w9"], vocabulary["w10"] = vocabulary["w10"], vocabulary["w9"]
    (Path(other) / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ModelError, match="another tokenizer"):
        load_models(tiny.config(folder, reference={"model": other}))


def test_no_end_of_sequence_is_refused_unless_ignored(tmp_path: Path) -> None:
    tiny.causal_lm("llama", torch.float32, eos_token_id=None).save_pretrained(tmp_path)
    tiny.tokenizer(eos=None).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"end-of-sequence.*rollout\.ignore_eos"):
        load_models(tiny.config(tmp_path))
    assert load_models(tiny.config(tmp_path, rollout={"ignore_eos": True})).eos_ids == ()


def test_every_end_of_sequence_id_is_found(tmp_path: Path) -> None:
    """The generation config names 1 and 5, the model's config 7, the tokenizer 1."""
    tiny.save(tmp_path, "llama", eos_token_id=7)
    GenerationConfig(eos_token_id=[tiny.EOS, 5]).save_pretrained(tmp_path)
    assert load_models(tiny.config(tmp_path)).eos_ids == (1, 5, 7)
    assert load_models(tiny.config(tmp_path, rollout={"ignore_eos": True})).eos_ids == ()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"policy\.model=.*nowhere"):
        load_models(tiny.config(tmp_path / "nowhere"))


def test_a_missing_reference_folder_is_named(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"reference\.model=.*nowhere.*no such folder"):
        load_models(tiny.config(folder, reference={"model": str(tmp_path / "nowhere")}))


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    place = Path(tiny.save(tmp_path))
    weights = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    torch.save(weights, place / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_models(tiny.config(place))


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    place = Path(tiny.save(tmp_path))
    weights = load_file(place / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the weights.*layers\.1\.self_attn\.q_proj"):
        load_models(tiny.config(place))


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    place = Path(tiny.save(tmp_path / "model"))
    marker = tmp_path / "was_run"
    (place / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    settings = json.loads((place / "config.json").read_text())
    settings["model_type"] = "evil"
    settings["auto_map"] = {
        "AutoConfig": "modeling_evil.EvilConfig",
        "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
    }
    (place / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"policy\.model"):
        load_models(tiny.config(place))
    assert not marker.exists()
    assert tiny.config(place).policy.trust_remote_code is False


def test_eager_attention_in_float64_is_refused(folder: str) -> None:
    """Beside a longer prompt it would give NaN."""
    with pytest.raises(ModelError, match=r"policy\.dtype=float64.*eager"):
        load_models(tiny.config(folder, policy={"attn_implementation": "eager"}))
    load_models(tiny.config(folder, "float32", policy={"attn_implementation": "eager"}))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_dtypes(folder: str, dtype: str) -> None:
    models = load_models(tiny.config(folder, dtype, advantage={"baseline": "value"}))
    assert models.value is not None
    kind = getattr(torch, dtype)
    weights = [*models.policy.parameters(), *models.reference.policy.parameters(), *models.value.parameters()]
    assert {p.dtype for p in weights} == {kind}
    wide = torch.float64 if dtype == "float64" else torch.float32
    batch = pack(ROLLOUT, range(3), CPU)
    outputs = [*run(models.policy, 0.7, models.reference), models.value(batch.input_ids, batch.positions)]
    assert {x.dtype for x in outputs} == {wide}


def test_float64_lora_is_float64(folder: str) -> None:
    models = load_models(tiny.config(folder, policy={"lora": LORA}))
    assert {p.dtype for p in models.policy.parameters()} == {torch.float64}


# The value model.


def test_value_starts_at_zero_with_the_policys_weights(folder: str) -> None:
    models = load_models(tiny.config(folder, advantage={"baseline": "value"}))
    assert models.value is not None
    batch = pack(ROLLOUT, range(3), CPU)
    values = models.value(batch.input_ids, batch.positions)
    assert values.shape == (12,)
    assert torch.equal(values, torch.zeros(12, dtype=torch.float64))
    assert_equal(list(models.value.backbone.parameters()), list(tiny.backbone(models.policy).parameters()), 0.0)
    before = [p.detach().clone() for p in models.value.parameters()]
    stir(models.policy)
    assert_equal(list(models.value.parameters()), before, 0.0)
    assert all(p.requires_grad for p in models.value.parameters())
    values.sum().backward()
    assert models.value.head.weight.grad is not None
    assert models.value.head.weight.grad.any()


def test_value_is_head_of_hidden(folder: str) -> None:
    models = load_models(tiny.config(folder, advantage={"baseline": "value"}))
    assert models.value is not None
    stir(models.value.head)
    batch = pack(ROLLOUT, range(3), CPU)
    found = models.value(batch.input_ids, batch.positions)
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        ids = torch.tensor([[*prompt, *response]])
        hidden = models.value.backbone(input_ids=ids).last_hidden_state[0]
        expected.append(models.value.head(hidden)[len(prompt) - 1 : -1, 0])
    assert_equal([found], [torch.cat(expected)])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_value_from_a_reward_model(family: str, tmp_path: Path) -> None:
    place = tiny.save(tmp_path / "policy", family)
    torch.manual_seed(3)
    classifier = AutoModelForSequenceClassification.from_config(tiny.model_config(family, num_labels=1))
    classifier.save_pretrained(tmp_path / "reward")
    settings = {"advantage": {"baseline": "value"}, "value": {"model": str(tmp_path / "reward")}}
    models = load_models(tiny.config(place, **settings))
    assert models.value is not None
    expected = [p.double() for p in classifier.base_model.parameters()]
    assert_equal(list(models.value.backbone.parameters()), expected, 0.0)
    assert not models.value.head.weight.any()


def test_value_from_a_trained_adapter_has_its_weights_merged(adapter: str) -> None:
    models = load_models(tiny.config(adapter, advantage={"baseline": "value"}))
    assert models.value is not None
    ids = torch.tensor([PROMPTS[1]])
    ours = models.value.backbone(input_ids=ids).last_hidden_state
    theirs = tiny.backbone(models.policy)(input_ids=ids).last_hidden_state
    assert_equal([ours], [theirs])
    assert all(p.requires_grad for p in models.value.parameters())


def test_value_with_lora_trains_adapters_and_head(folder: str) -> None:
    models = load_models(tiny.config(folder, policy={"lora": LORA}, advantage={"baseline": "value"}))
    assert models.value is not None
    trained = {name for name, p in models.value.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} < trained
    assert all("lora_" in name for name in trained if not name.startswith("head."))


def test_value_folder_without_backbone_weights_is_refused(folder: str, tmp_path: Path) -> None:
    AutoModel.from_config(tiny.model_config("llama")).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"value\.model=.*lacks 1"):
        load_models(tiny.config(folder, advantage={"baseline": "value"}, value={"model": str(tmp_path)}))


# Gradient checkpointing, and the rest.


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_memory_alone(family: str, lora: dict[str, Any] | None, tmp_path: Path) -> None:
    place = tiny.save(tmp_path, family)
    found = []
    for on in (False, True):
        models = load_models(tiny.config(place, policy={"gradient_checkpointing": on, "lora": lora}))
        stir(models.policy, "lora_")
        calls: list[int] = []
        layer: Any = next(m for m in models.policy.modules() if isinstance(m, nn.ModuleList))[0]
        attention = next(m for n, m in layer.named_modules() if n in ("self_attn", "attn"))
        attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        found.append(gradients(models.policy, run(models.policy)[0].sum()))
        assert len(calls) == (2 if on else 1), "each layer is computed again in the backward pass"
    assert any(g.any() for g in found[0])
    assert_equal(found[1], found[0])


def test_context_length() -> None:
    assert context_length(tiny.policy("llama")) == context_length(tiny.policy("gpt2")) == tiny.T_MAX


def test_parameters_appear_once() -> None:
    policy = tiny.policy("gpt2")
    names = [name for name, _ in policy.named_parameters()]
    assert all(name.startswith("model.") for name in names)
    assert sum(p.numel() for p in policy.parameters()) == policy.model.num_parameters()


def test_the_real_model(stories: str) -> None:
    """Its logits through the policy, and its own end of sequence, which is also its beginning."""
    models = load_models(tiny.config(stories, "float64"))
    assert models.eos_ids == (1,)
    ids = models.tokenizer("Once upon a time, there was a little girl")["input_ids"]
    rollout = tiny.rollout([ids[:4]], [ids[4:]])
    batch = pack(rollout, [0], CPU)
    logprobs = models.policy(batch.input_ids, batch.positions, batch.targets, 1.0)[0]
    assert_equal([logprobs], [tiny.response_logprobs(models.policy, ids[:4], ids[4:])])
    assert float(logprobs.detach().mean()) > -2.0, "it speaks"
