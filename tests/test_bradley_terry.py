"""Bradley-Terry training: its loss by hand, that it learns, and what it refuses."""

from __future__ import annotations

import math
import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from reward_models.training import train_bradley_terry
from reward_models.training.fitting import Collator, Example
from reward_models.training.objectives import bradley_terry_losses
from reward_models.training.texts import encode
from rlhf_pg.errors import DataError, ModelError

WORDS = ("<pad>", "</s>", "<s>", "good", "bad", "soup", "film", "the", "was")


def tokenizer(pad: str | None = "<pad>") -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=pad, eos_token="</s>", bos_token="<s>")


def llama(labels: int = 1) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
            num_labels=labels,
        )
    )


def preferences(count: int, wrong: float = 0.0) -> list[tuple[str, str]]:
    """The text with "good" is preferred, but for a share of wrong labels; the lengths differ."""
    rng, pairs = random.Random(1), []
    for _ in range(count):
        good, bad = (
            " ".join([*rng.choices(("the", "soup", "film"), k=rng.randrange(1, 5)), "was", word])
            for word in ("good", "bad")
        )
        pairs.append((bad, good) if rng.random() < wrong else (good, bad))
    return pairs


def score(model: LlamaForSequenceClassification, text: str) -> float:
    ids = tokenizer()(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return float(model(ids).logits[0, 0])


def test_the_loss_is_minus_log_sigmoid_of_the_margin():
    batch = Collator(0)([Example(([3, 4], [1])), Example(([5], [5, 6, 7]))])
    losses = bradley_terry_losses(torch.tensor([[3.0, 1.0], [5.0, 5.0]]), batch)
    assert losses.tolist() == pytest.approx([-math.log(1 / (1 + math.exp(-2))), math.log(2)])
    assert batch["input_ids"].tolist() == [[3, 4, 0], [5, 0, 0], [1, 0, 0], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]]


def test_it_learns_from_noisy_preferences():
    model = llama()
    metrics = train_bradley_terry(
        model, tokenizer(), preferences(300, wrong=0.1), epochs=3, batch_size=16, learning_rate=1e-2, cpu=True
    )
    assert metrics["held_out/accuracy"] > 0.8
    assert metrics["held_out/loss"] < math.log(2)
    assert metrics["loss"] < math.log(2)
    assert not model.training
    assert score(model, "the film was good") > score(model, "the film was bad") + 1


def test_the_seed_decides():
    def trained(seed: int) -> float:
        model = llama()
        train_bradley_terry(
            model, tokenizer(), preferences(40), epochs=1, batch_size=8, learning_rate=1e-2, seed=seed, cpu=True
        )
        return score(model, "the soup was good")

    assert trained(3) == trained(3) != trained(4)


def test_the_score_is_read_at_the_last_token_however_long_the_padding():
    """A short text beside a long one in a batch scores as it does alone."""
    model = llama().eval()
    texts = [7, 5, 8, 3], [7, 5]
    batch = Collator(0)([Example(texts)])
    with torch.no_grad():
        batched = model(batch["input_ids"], batch["attention_mask"]).logits[:, 0]
        alone = [model(torch.tensor([text])).logits[0, 0] for text in texts]
    torch.testing.assert_close(batched, torch.stack(alone))


def test_nothing_held_out_gives_no_held_out_figures():
    metrics = train_bradley_terry(llama(), tokenizer(), preferences(8), batch_size=8, held_out=0, cpu=True)
    assert set(metrics) == {"loss"}


def test_an_encoder_is_trained_too():
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=1,
        )
    )
    metrics = train_bradley_terry(
        model, tokenizer(), preferences(150), epochs=2, batch_size=16, learning_rate=1e-2, cpu=True
    )
    assert metrics["held_out/accuracy"] > 0.8


def test_a_long_text_keeps_its_end_and_its_bos():
    assert encode(tokenizer(), "<s> the ", "soup was good", max_tokens=3, where="") == [2, 8, 3]
    assert encode(tokenizer(), "the ", "soup was good", max_tokens=3, where="") == [5, 8, 3]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": llama(labels=2)}, ModelError, "num_labels=1"),
        ({"tokenizer": tokenizer(pad=None)}, ModelError, "no padding token"),
        (
            {"tokenizer": tokenizer(pad="</s>"), "pairs": [("good </s>", "bad")]},
            ModelError,
            "1 texts end with the token '</s>'",
        ),
        ({"pairs": [("good", "")]}, DataError, "pair 0"),
        ({"pairs": []}, DataError, "none to train on"),
        ({"pairs": [("good", "bad")], "held_out": 1.0}, DataError, "1 of them held out"),
    ],
)
def test_what_cannot_be_trained_is_refused(change, error, says):
    given = {"model": llama(), "tokenizer": tokenizer(), "pairs": preferences(4)} | change
    with pytest.raises(error, match=says):
        train_bradley_terry(**given, cpu=True)
