"""A sequence classifier as a reward: its score depends on the row, and on neither padding nor the batch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    CTRLConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
)

from reward_models.classifier import load_classifier
from rlhf_pg.config.rewards import RewardConfig
from rlhf_pg.errors import ConfigError, ModelError
from rlhf_pg.rewards import RewardRunner
from rlhf_pg.types import PromptBatch, Rollout

WORDS = ["<unk>", "<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "user:", "assistant:", ".", "text"]
PAD, BOS, EOS = 1, 2, 3
V = len(WORDS)
LLAMA_LIKE = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
DECODERS = {
    "gpt2": lambda **more: GPT2Config(
        vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=BOS, eos_token_id=EOS, **more
    ),
    "llama": lambda **more: LlamaConfig(**LLAMA_LIKE, bos_token_id=BOS, eos_token_id=EOS, **more),
    "qwen2": lambda **more: Qwen2Config(
        **LLAMA_LIKE, num_key_value_heads=2, bos_token_id=BOS, eos_token_id=EOS, **more
    ),
    "gemma2": lambda **more: Gemma2Config(
        **LLAMA_LIKE, head_dim=8, num_key_value_heads=2, sliding_window=4, bos_token_id=BOS, eos_token_id=EOS, **more
    ),
    "ctrl": lambda **more: CTRLConfig(vocab_size=V, n_embd=32, n_layer=2, n_head=4, dff=64, n_positions=64, **more),
}
ENCODERS = {
    "bert": lambda **more: BertConfig(**LLAMA_LIKE, **more),
    "roberta": lambda **more: RobertaConfig(**{**LLAMA_LIKE, "max_position_embeddings": 70}, **more),
    "modernbert": lambda **more: ModernBertConfig(
        **LLAMA_LIKE, local_attention=4, cls_token_id=BOS, sep_token_id=EOS, bos_token_id=BOS, eos_token_id=EOS, **more
    ),
    "bart": lambda **more: BartConfig(
        vocab_size=V,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        **more,
    ),
}
FAMILIES = [*DECODERS, *ENCODERS]
PROMPTS = ["a b c", "d", "e f g h i j", "k l", "m"]
COMPLETIONS = [" n o p </s>", " q", " r s t u v w x y z a b", " c </s> d </s>", " e f g"]


def tokenizer(*, pad: str | None, wrap: bool) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if wrap:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    tokens = {"cls_token": "<s>", "sep_token": "</s>"} if wrap else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token=pad, **tokens
    )


@pytest.fixture
def save(tmp_path):
    """Saves a tiny random classifier with its tokenizer; weights large enough for scores that tell rows apart."""

    def write(family: str, *, labels: int = 1, pad: str | None = "</s>", template: str | None = None, **more) -> str:
        torch.manual_seed(0)
        encoder = family in ENCODERS
        pad = "<pad>" if encoder else pad
        pad_id = None if pad is None else WORDS.index(pad)
        config = (ENCODERS | DECODERS)[family](num_labels=labels, pad_token_id=pad_id, **more)
        model = AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        own = tokenizer(pad=pad, wrap=encoder)
        own.chat_template = template
        folder = tmp_path / family
        model.save_pretrained(folder)
        own.save_pretrained(folder)
        return str(folder)

    return write


def own_forward(folder: str, ids: list[int]) -> torch.Tensor:
    """The checkpoint's own logits for one row without padding, pooled at its very last token."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


# --- trap 16 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_trap_16_scores_depend_on_neither_padding_nor_batch(save, family):
    """Rows end with EOS, which is also the padding token of the decoders."""
    reward = load_classifier(save(family))
    together = reward(PROMPTS, COMPLETIONS)
    alone = [reward([prompt], [text])[0] for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)]
    backwards = reward(PROMPTS[::-1], COMPLETIONS[::-1])[::-1]
    reward.batch_tokens = 20
    in_parts = reward(PROMPTS, COMPLETIONS)
    for other in (alone, backwards, in_parts):
        assert together == pytest.approx(other, abs=1e-5)
    assert len({round(score, 4) for score in together}) == len(together)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gemma2", "bert", "roberta", "modernbert"])
def test_trap_16_scores_are_the_checkpoints_own_without_padding(save, family):
    folder = save(family)
    reward = load_classifier(folder)
    scores = reward(PROMPTS, COMPLETIONS)
    for prompt, text, score in zip(PROMPTS, COMPLETIONS, scores, strict=True):
        assert score == pytest.approx(own_forward(folder, reward.encode(prompt, text)).item(), abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_trap_16_left_and_right_padding_give_what_no_padding_gives(save, family):
    """transformers' own pooling, on left and on right padding, where no text has the padding token in it."""
    folder = save(family, pad="<pad>")
    reward = load_classifier(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    own = tokenizer(pad="<pad>", wrap=False)
    texts = [prompt + text for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)]
    scores = reward(PROMPTS, COMPLETIONS)
    for side in ("left", "right"):
        batch = own(texts, padding=True, padding_side=side, return_tensors="pt", return_token_type_ids=False)
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(0)
        with torch.no_grad():
            logits = model(**batch, position_ids=positions).logits[:, 0]
        assert scores == pytest.approx(logits.tolist(), abs=1e-5)


def test_trap_16_the_defect_is_real(save):
    """What this guards against: with pad == EOS transformers pools the token before the EOS."""
    folder = save("gpt2")
    reward = load_classifier(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.tensor([reward.encode("a b", " c </s>")])
    with torch.no_grad():
        pooled_before = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.item()
    assert reward(["a b"], [" c </s>"])[0] != pytest.approx(pooled_before, abs=1e-2)
    assert reward(["a b"], [" c"])[0] == pytest.approx(pooled_before, abs=1e-5)


def test_no_padding_token_at_all(save):
    reward = load_classifier(save("llama", pad=None))
    together = reward(PROMPTS, COMPLETIONS)
    alone = [reward([prompt], [text])[0] for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_append_eos_ends_every_text_once(save):
    folder = save("gpt2")
    reward = load_classifier(folder, append_eos=True)
    assert reward.encode("a", " b")[-2:] == [WORDS.index("b"), EOS]
    assert reward.encode("a", " b </s>") == reward.encode("a", " b")
    assert reward(["a"], [" b"]) == pytest.approx(load_classifier(folder)(["a"], [" b </s>"]), abs=1e-6)


# --- the text -------------------------------------------------------------------------------------------------------


def test_strings_are_joined_and_get_the_tokenizers_special_tokens(save):
    reward = load_classifier(save("bert"))
    assert [WORDS[index] for index in reward.encode("a b", " c")] == ["<s>", "a", "b", "c", "</s>"]


TEMPLATE = "<s> {% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
CHAT = [{"role": "user", "content": "a b"}]
REPLY = [{"role": "assistant", "content": "c"}]


def test_messages_go_through_the_template_with_one_bos(save):
    reward = load_classifier(save("bert", template=TEMPLATE))
    expected = ["<s>", "user:", "a", "b", "assistant:", "c"]
    assert [WORDS[index] for index in reward.encode(CHAT, REPLY)] == expected
    assert [WORDS[index] for index in reward.encode(CHAT, "c")] == expected


def test_messages_without_a_template_are_refused_with_both_ways_out(save):
    folder = save("llama")
    with pytest.raises(ModelError, match=r"no chat template.*args.chat_template.*args.prompt_too"):
        load_classifier(folder)([CHAT], [REPLY])
    assert load_classifier(folder, chat_template=TEMPLATE).encode(CHAT, REPLY)[:2] == [BOS, WORDS.index("user:")]
    assert load_classifier(folder, prompt_too=False).encode(CHAT, REPLY) == [WORDS.index("c")]


def test_without_the_prompt_only_the_completion_counts(save):
    reward = load_classifier(save("llama"), prompt_too=False)
    scores = reward(["a", "b c d"], ["e f", "e f"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.parametrize(("family", "first"), [("gpt2", []), ("bert", ["<s>"])])
def test_an_over_long_text_keeps_its_end_and_is_counted(save, family, first):
    reward = load_classifier(save(family), max_tokens=4)
    ids = [WORDS[index] for index in reward.encode("a b c d e f", " g")]
    assert ids == (["d", "e", "f", "g"] if not first else ["<s>", "f", "g", "</s>"])
    heard = {}
    reward(["a b c d e f", "a"], [" g", ""], log_metric=heard.__setitem__)
    assert heard == {"classifier/truncated": 0.5}
    assert reward.truncated == 2


def test_the_models_own_limit_holds(save):
    reward = load_classifier(save("gpt2"))
    assert reward.max_tokens == 64
    assert math.isfinite(reward(["a " * 200], ["b"])[0])
    assert load_classifier(save("gpt2"), max_tokens=1000).max_tokens == 64
    with pytest.raises(ModelError, match="at least 1, got 0"):
        load_classifier(save("gpt2"), max_tokens=0)


def test_a_text_without_tokens_cannot_be_scored(save):
    reward = load_classifier(save("gpt2"))
    scores = reward(["", "a"], ["", " b"])
    assert scores[0] is None
    assert scores[1] == pytest.approx(reward(["a"], [" b"])[0], abs=1e-6)
    assert reward([""], [""]) == [None]


# --- labels ---------------------------------------------------------------------------------------------------------

THREE = {"id2label": {0: "bad", 1: "so-so", 2: "good"}, "label2id": {"bad": 0, "so-so": 1, "good": 2}}


def test_a_label_by_log_odds_probability_and_logit(save):
    folder = save("llama", labels=3, **THREE)
    logits = own_forward(folder, load_classifier(folder, label="good").encode("a b", " c")).double()
    p = logits.softmax(0)[2].item()
    for output, expected in (("log_odds", math.log(p / (1 - p))), ("probability", p), ("logit", logits[2].item())):
        reward = load_classifier(folder, label="good", output=output)
        assert reward(["a b"], [" c"]) == pytest.approx([expected], abs=1e-5)
    assert load_classifier(folder, label="good")(["a b"], [" c"]) == pytest.approx([math.log(p / (1 - p))], abs=1e-5)


def test_labels_that_do_not_exclude_each_other_have_odds_of_their_own(save):
    folder = save("llama", labels=3, problem_type="multi_label_classification", **THREE)
    logit = own_forward(folder, load_classifier(folder, label="good").encode("a b", " c"))[2].item()
    assert load_classifier(folder, label="good")(["a b"], [" c"]) == pytest.approx([logit], abs=1e-5)


def test_one_label_gives_its_logit_or_its_sigmoid(save):
    folder = save("llama")
    logit = load_classifier(folder, output="logit")(["a"], [" b"])[0]
    assert load_classifier(folder)(["a"], [" b"])[0] == logit
    assert load_classifier(folder, output="probability")(["a"], [" b"])[0] == pytest.approx(1 / (1 + math.exp(-logit)))


def test_several_labels_need_a_name(save):
    folder = save("llama", labels=3, **THREE)
    with pytest.raises(ModelError, match=r"args.label is not set.*'bad'.*'so-so'.*'good'"):
        load_classifier(folder)
    with pytest.raises(ModelError, match=r"no label 'great'.*'good'"):
        load_classifier(folder, label="great")


# --- loading --------------------------------------------------------------------------------------------------------


def test_a_pickle_is_refused(save):
    folder = Path(save("gpt2"))
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights are not loaded"):
        load_classifier(str(folder))


def test_a_language_model_without_a_classification_head_is_refused(tmp_path):
    config = LlamaConfig(**LLAMA_LIKE, bos_token_id=BOS, eos_token_id=EOS, num_labels=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer(pad=None, wrap=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks the weights \['score.weight'\], which would be random"):
        load_classifier(str(tmp_path))


def test_a_folder_that_is_no_model_says_what_is_wrong(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing-known"}))
    with pytest.raises(ModelError, match="cannot be loaded as a sequence classifier"):
        load_classifier(str(tmp_path))


def test_the_model_is_frozen_and_its_dtype_is_its_own(save):
    reward = load_classifier(save("llama"), dtype="float64")
    assert not reward.model.training
    assert all(p.dtype == torch.float64 and not p.requires_grad for p in reward.model.parameters())
    half = load_classifier(save("llama"), dtype="bfloat16")
    assert half(PROMPTS, COMPLETIONS) == pytest.approx(reward(PROMPTS, COMPLETIONS), abs=0.2)


def test_half_precision_scores_do_not_depend_on_the_batch_beyond_its_rounding(save):
    """bfloat16 has 8 bits: a kernel that sums in another order may round its last one otherwise."""
    reward = load_classifier(save("llama"), dtype="bfloat16")
    together = reward(PROMPTS, COMPLETIONS)
    alone = [reward([prompt], [text])[0] for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)]
    size = max(map(abs, together))
    assert together == pytest.approx(alone, abs=4 * size * 2**-8)


@pytest.fixture
def moves(monkeypatch):
    """The devices that models are asked to go to, in order; none goes anywhere."""
    heard: list[str] = []
    to = torch.nn.Module.to

    def record(module, *args, **more):
        if args and str(args[0]) in ("cpu", "cuda"):
            heard.append(str(args[0]))
            return module
        return to(module, *args, **more)

    monkeypatch.setattr("transformers.modeling_utils.PreTrainedModel.to", record)
    return heard


def test_an_offloaded_model_is_on_its_device_only_while_it_scores(save, moves, monkeypatch):
    folder = save("llama")
    expected = load_classifier(folder)(PROMPTS, COMPLETIONS)
    moves.clear()
    reward = load_classifier(folder, device="cuda", offload=True)
    assert moves == ["cuda", "cpu"]
    assert reward(PROMPTS, COMPLETIONS) == expected
    assert moves == ["cuda", "cpu"] * 2
    monkeypatch.setattr(reward, "_logits", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reward(PROMPTS, COMPLETIONS)
    assert moves == ["cuda", "cpu"] * 3


def test_without_offload_or_on_the_cpu_nothing_is_moved_away(save, moves):
    folder = save("llama")
    load_classifier(folder, device="cuda")(PROMPTS, COMPLETIONS)
    assert "cpu" not in moves
    moves.clear()
    load_classifier(folder, offload=True)(PROMPTS, COMPLETIONS)
    assert moves == ["cpu", "cpu"]  # where it is already: before probing and before scoring


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offloading_frees_the_device(save):
    folder = save("llama")
    expected = load_classifier(folder)(PROMPTS, COMPLETIONS)
    reward = load_classifier(folder, device="cuda", offload=True)
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-4)
    assert {weight.device.type for weight in reward.model.parameters()} == {"cpu"}


def test_a_head_of_another_number_of_labels_than_the_configuration_is_refused(save):
    folder = save("llama", labels=3)
    config = Path(folder) / "config.json"
    tree = json.loads(config.read_text())
    for name in ("id2label", "label2id", "num_labels"):
        tree.pop(name, None)
    config.write_text(json.dumps({**tree, "id2label": {"0": "good"}, "label2id": {"good": 0}}))
    with pytest.raises(ModelError, match=r"score\.weight|size mismatch|mismatched"):
        load_classifier(folder)


# --- a centre -------------------------------------------------------------------------------------------------------


def test_the_checkpoints_centre_is_subtracted_and_can_be_replaced(save):
    plain = load_classifier(save("llama"))(["a"], [" b"])[0]
    folder = save("llama", reward_center=0.75)
    assert load_classifier(folder)(["a"], [" b"]) == pytest.approx([plain - 0.75], abs=1e-9)
    assert load_classifier(folder, output="logit")(["a"], [" b"]) == pytest.approx([plain - 0.75], abs=1e-9)
    odds = 1 / (1 + math.exp(-(plain - 0.75)))
    assert load_classifier(folder, output="probability")(["a"], [" b"]) == pytest.approx([odds], abs=1e-9)
    assert load_classifier(folder, center=0)(["a"], [" b"]) == [plain]
    assert load_classifier(folder, center=-2.0)(["a"], [" b"]) == pytest.approx([plain + 2], abs=1e-9)


@pytest.mark.parametrize("center", ["0.5", math.nan, True])
def test_a_centre_must_be_a_number(save, center):
    folder = save("llama")
    with pytest.raises(ModelError, match=r"args\.center must be a finite number"):
        load_classifier(folder, center=center)
    config = Path(folder) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "reward_center": center}))
    with pytest.raises(ModelError, match=r"reward_center in its config\.json must be a finite number"):
        load_classifier(folder)


# --- adapters -------------------------------------------------------------------------------------------------------


def spread(model: torch.nn.Module) -> None:
    """What is trained tells rows apart, adapters' second factors included, which start at 0."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)


@pytest.fixture
def adapt(save, tmp_path):
    """Saves an adapter of a tiny classifier; gives its folder and the adapted model."""

    def write(
        family: str = "llama", *, labels: int = 1, base: str = "", config: bool = False, **settings
    ) -> tuple[str, torch.nn.Module]:
        base = base or save(family, labels=labels)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
        defaults = {"r": 4, "target_modules": "all-linear", "modules_to_save": ["score"], "task_type": "SEQ_CLS"}
        adapted = get_peft_model(model, LoraConfig(**{**defaults, **settings}))
        spread(adapted)
        folder = tmp_path / "adapter"
        adapted.save_pretrained(folder)
        if config:
            adapted.config.save_pretrained(folder)
        return str(folder), adapted.eval()

    return write


def own_logits(model: torch.nn.Module, rows: list[list[int]]) -> list[float]:
    model.config.pad_token_id = None
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits[0, 0].item() for ids in rows]


@pytest.mark.parametrize("base_is", ["a classifier", "a causal LM"])
def test_an_adapter_scores_as_it_did_before_it_was_saved(adapt, tmp_path, base_is):
    base = ""
    if base_is == "a causal LM":
        causal = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA_LIKE, bos_token_id=BOS, eos_token_id=EOS))
        spread(causal)
        base = str(tmp_path / "causal")
        causal.save_pretrained(base)
        tokenizer(pad=None, wrap=False).save_pretrained(base)
    folder, adapted = adapt(base=base)
    reward = load_classifier(folder)
    rows = [reward.encode(prompt, text) for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = own_logits(adapted, rows)
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=2e-5)
    if not base:
        assert load_classifier(str(tmp_path / "llama"))(PROMPTS, COMPLETIONS) != pytest.approx(expected, abs=1e-2)
    assert not [name for name, _ in reward.model.named_parameters() if "lora" in name]


def test_an_adapter_brings_labels_and_centre_in_a_config_beside_it(adapt, tmp_path):
    folder, _ = adapt(config=True)
    config = Path(folder) / "config.json"
    tree = json.loads(config.read_text())
    plain = load_classifier(folder)(["a"], [" b"])[0]
    config.write_text(json.dumps({**tree, "id2label": {"0": "good"}, "reward_center": 0.5}))
    assert load_classifier(folder, label="good")(["a"], [" b"]) == pytest.approx([plain - 0.5], abs=1e-6)


def test_an_adapters_own_tokenizer_is_used_where_it_has_one(adapt):
    folder, _ = adapt()
    assert load_classifier(folder).tokenizer.chat_template is None
    own = tokenizer(pad="</s>", wrap=False)
    own.chat_template = TEMPLATE
    own.save_pretrained(folder)
    assert load_classifier(folder).tokenizer.chat_template == TEMPLATE


def test_an_adapters_base_can_be_elsewhere(adapt, tmp_path):
    folder, adapted = adapt()
    moved = str(tmp_path / "moved")
    (tmp_path / "llama").rename(moved)
    with pytest.raises(ModelError, match=r"is an adapter on .*llama.*args\.base names the base model elsewhere"):
        load_classifier(folder)
    reward = load_classifier(folder, base=moved)
    rows = [reward.encode(prompt, text) for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(own_logits(adapted, rows), abs=2e-5)
    with pytest.raises(ModelError, match="is no adapter; leave it out"):
        load_classifier(moved, base=moved)


def test_an_adapter_on_another_model_than_its_own_is_refused(adapt, save):
    folder, _ = adapt()
    with pytest.raises(ModelError, match=r"does not fit its base|cannot be loaded"):
        load_classifier(folder, base=save("gpt2"))


def test_an_adapter_without_a_head_is_refused(adapt, tmp_path):
    causal = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA_LIKE, bos_token_id=BOS, eos_token_id=EOS))
    causal.save_pretrained(tmp_path / "causal")
    folder, _ = adapt(base=str(tmp_path / "causal"))
    file = Path(folder) / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "score" not in key}, file)
    with pytest.raises(ModelError, match=r"neither has the weights \['score.weight'\].*modules_to_save"):
        load_classifier(folder)


def test_an_adapter_of_a_language_model_is_refused(tmp_path):
    causal = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA_LIKE, bos_token_id=BOS, eos_token_id=EOS))
    get_peft_model(causal, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"adapter of task type CAUSAL_LM.*task type SEQ_CLS"):
        load_classifier(str(tmp_path))


def test_an_adapter_that_cannot_be_merged_is_refused(save, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(save("llama"))
    settings = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"PROMPT_TUNING, which cannot be merged"):
        load_classifier(str(tmp_path / "adapter"))


def test_an_adapter_other_than_lora_is_merged_too(save, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(save("llama"))
    settings = IA3Config(task_type="SEQ_CLS", target_modules=["k_proj", "v_proj"], feedforward_modules=[])
    adapted = get_peft_model(model, settings)
    spread(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    reward = load_classifier(str(tmp_path / "adapter"))
    # What is saved is the adapter and the head: the base's weights are those on disk.
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    head = next(value for key, value in saved.items() if "score" in key)
    assert torch.equal(reward.model.score.weight, head)
    assert math.isfinite(reward(["a"], [" b"])[0])


def test_a_pickled_adapter_is_refused(adapt):
    folder, _ = adapt()
    (Path(folder) / "adapter_model.safetensors").unlink()
    torch.save({}, Path(folder) / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"without adapter_model.safetensors, and pickled weights are not loaded"):
        load_classifier(folder)


# --- a head on a causal LM ------------------------------------------------------------------------------------------


@pytest.fixture
def causal(tmp_path):
    """The folder of a tiny causal LM."""

    def write(family: str = "llama") -> str:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(DECODERS[family](pad_token_id=EOS))
        spread(model)
        model.save_pretrained(tmp_path / "causal")
        tokenizer(pad="</s>", wrap=False).save_pretrained(tmp_path / "causal")
        return str(tmp_path / "causal")

    return write


def head_file(folder: Path, **tensors: torch.Tensor) -> str:
    save_file(
        {name.replace("__", "."): tensor.clone() for name, tensor in tensors.items()}, folder / "head.safetensors"
    )
    return str(folder / "head.safetensors")


WEIGHT = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
BIAS = torch.tensor([0.5])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("name", ["v_head__summary", "score", "value_head"])
def test_a_head_on_a_causal_lm_reads_the_last_token(causal, tmp_path, family, name):
    folder = causal(family)
    file = head_file(tmp_path, **{f"{name}__weight": WEIGHT, f"{name}__bias": BIAS})
    reward = load_classifier(folder, head=file)
    scores = reward(PROMPTS, COMPLETIONS)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt, text, score in zip(PROMPTS, COMPLETIONS, scores, strict=True):
        ids = torch.tensor([reward.encode(prompt, text)])
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
        assert score == pytest.approx((WEIGHT @ hidden + BIAS).item(), abs=2e-5)
    alone = [reward([prompt], [text])[0] for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert scores == pytest.approx(alone, abs=1e-5)
    rows = [reward.encode(prompt, text) for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    with torch.no_grad():
        assert reward.model(ids, mask).logits[:, 0].tolist() == pytest.approx(scores, abs=1e-5)


def test_a_head_without_a_bias_among_other_weights(causal, tmp_path):
    """As TRL saves one: in the same file as the model."""
    folder = causal()
    plain = load_classifier(folder, head=head_file(tmp_path, weight=WEIGHT))(PROMPTS, COMPLETIONS)
    others = {"model__norm__weight": torch.ones(32), "v_head__summary__weight": WEIGHT}
    assert load_classifier(folder, head=head_file(tmp_path, **others))(PROMPTS, COMPLETIONS) == plain


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"score__weight": WEIGHT, "value_head__weight": WEIGHT}, r"has 2 that may be the head.*value_head.weight"),
        ({"a__weight": WEIGHT, "b__weight": WEIGHT}, r"none that is called like a head.*'a.weight', 'b.weight'"),
        ({"score__weight": torch.ones(2, 32)}, r"score.weight has the shape \[2, 32\].*\[1, 32\]"),
        ({"score__weight": torch.ones(1, 31)}, r"has the shape \[1, 31\]"),
    ],
)
def test_a_head_that_may_be_another_is_refused(causal, tmp_path, tensors, problem):
    with pytest.raises(ModelError, match=problem):
        load_classifier(causal(), head=head_file(tmp_path, **tensors))


def test_a_head_must_be_in_safetensors(causal, tmp_path):
    folder = causal()
    torch.save({"weight": WEIGHT}, tmp_path / "head.bin")
    (tmp_path / "head.safetensors").write_bytes(b"no tensors")
    for name, problem in (("head.bin", "must be a safetensors file"), ("head.safetensors", "is no safetensors file")):
        with pytest.raises(ModelError, match=problem):
            load_classifier(folder, head=str(tmp_path / name))


@pytest.mark.parametrize("chat", [False, True])
def test_a_runner_finds_it_by_its_folder(save, chat):
    folder = save("llama", labels=3, template=TEMPLATE, **THREE)
    prompts = ([{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]) if chat else ("a", "b")
    batch = PromptBatch(
        torch.arange(2), prompts, torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool)
    )
    ones = torch.ones(2, 1, dtype=torch.long)
    rollout = Rollout(batch, 1, ones, ones.bool(), torch.zeros(2, 1), ("eos", "eos"), (" c d", " e"))
    heard: dict[str, float] = {}
    entry = {"function": folder, "args": {"label": "good", "output": "logit"}}
    scored = RewardRunner(RewardConfig(functions=(entry,)))(rollout, heard.__setitem__)
    reward = load_classifier(folder, label="good", output="logit")
    assert scored.scores.tolist() == pytest.approx(reward(prompts, [" c d", " e"]), abs=1e-5)
    assert list(scored.components) == ["llama"]
    assert heard["classifier/truncated"] == 0.0
    with pytest.raises(ConfigError, match=r"no argument 'lable' \(nearest: label\)"):
        RewardRunner(RewardConfig(functions=({"function": folder, "args": {"lable": "good"}},)))
