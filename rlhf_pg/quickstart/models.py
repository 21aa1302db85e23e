"""Trains the quickstart's models: a language model on the grammar's reviews, a reward model on noisy preferences."""

from __future__ import annotations

import importlib
import json
import math
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from rlhf_pg.quickstart import grammar
from rlhf_pg.quickstart.build import Sizes

SEED = 20
MAX_NEW_TOKENS = 32
AGREEMENT = 4.0  # annotators prefer a to b with probability sigmoid(AGREEMENT * (liking of a - liking of b))
CUT = 0.1  # share of compared reviews that are cut somewhere, so that the reward model has seen unfinished ones

_WORD = r" ?\w+| ?[^\w\s]"  # a token keeps the space before it: decoding is joining, and gives the text back exactly


def build(folder: Path, sizes: Sizes, say: Callable[[str], object]) -> None:
    """Train both models and save them with their tokenizer in ``folder/policy`` and ``folder/reward``.

    The same sizes give the same weights on the same machine. The global random generators are seeded.

    Args:
        folder: made if absent.
        sizes: of the models and their training data.
        say: takes a line of text at a time.
    """
    start, rng = time.perf_counter(), random.Random(SEED)
    prompts = [row["prompt"] for row in grammar.prompts()]
    corpus = [(prompt, grammar.sample_review(rng, prompt)) for prompt in rng.choices(prompts, k=sizes.reviews)]
    tokenizer = make_tokenizer(rng)
    say(f"Training a language model on {len(corpus)} reviews of a small grammar ...")
    policy = _train_policy(corpus, tokenizer, sizes)
    for saved in (policy, tokenizer):
        saved.save_pretrained(folder / "policy")
    say(f"... and a reward model on {sizes.pairs} noisy preferences between its samples ...")
    pairs = preferences(rng, rng.choices(prompts, k=sizes.pairs), policy, tokenizer)
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1, dtype=torch.float32)
    metrics: dict[str, float] = importlib.import_module("reward_models.training").train_bradley_terry(
        reward,
        tokenizer,
        pairs,
        epochs=sizes.epochs,
        batch_size=sizes.batch,
        learning_rate=sizes.reward_learning_rate,
        seed=SEED,
        cpu=True,
    )
    for saved in (reward, tokenizer):
        saved.save_pretrained(folder / "reward")
    accuracy = metrics["held_out/accuracy"]
    say(f"... which agrees with {accuracy:.0%} of held-out ones. {time.perf_counter() - start:.0f} s; kept for later.")


def make_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each word and mark of the grammar, which puts BOS before a text.

    Padding, BOS, EOS and unknown are four tokens of their own.
    """
    prompts = [row["prompt"] for row in (*grammar.prompts(), *grammar.held_out_prompts())]
    texts = prompts + [grammar.sample_review(rng, rng.choice(prompts)) for _ in range(5000)]
    words = sorted({word for text in texts for word in re.findall(_WORD, text)})
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    ids = {word: number for number, word in enumerate([*special.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "isolated")
    tokenizer.decoder = decoders.Fuse()
    bos = special["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, model_max_length=128, **special
    )


def _train_policy(
    corpus: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, sizes: Sizes
) -> LlamaForCausalLM:
    """A small Llama that continues prompts with reviews and then ends."""
    set_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.hidden,
            intermediate_size=3 * sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=4,
            max_position_embeddings=128,
            initializer_range=0.08,  # the usual 0.02 is for models of ten times this width, and learns slowly here
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    rows = []
    for prompt, review in corpus:
        ids = tokenizer(prompt)["input_ids"]
        continuation = [*tokenizer(review, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append({"input_ids": ids + continuation, "labels": [-100] * len(ids) + continuation})
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=sizes.batch,
            learning_rate=sizes.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            seed=SEED,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model, arguments, DataCollatorForSeq2Seq(tokenizer), train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()


def preferences(
    rng: random.Random, prompts: Sequence[str], policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> list[tuple[str, str]]:
    """Two samples of the policy for each prompt as (chosen, rejected), whole texts, as fallible annotators chose.

    ``P(a is chosen) = sigmoid(4 (l(a) - l(b)))``, with the liking l of ``grammar.hasty_score``. So annotators err at
    random, and they err all in the same direction about long reviews, which a policy can learn to exploit.
    """
    first, second = (
        [_cut(rng, text) for text in sample(policy, tokenizer, prompts, seed=SEED + side)] for side in (1, 2)
    )
    pairs = []
    for prompt, a, b in zip(prompts, first, second, strict=True):
        chance = 1 / (1 + math.exp(-AGREEMENT * (grammar.hasty_score(prompt, a) - grammar.hasty_score(prompt, b))))
        chosen, rejected = (a, b) if rng.random() < chance else (b, a)
        pairs.append((prompt + chosen, prompt + rejected))
    return pairs


def _cut(rng: random.Random, text: str) -> str:
    words = re.findall(_WORD, text)
    return "".join(words[: rng.randrange(1, len(words))]) if len(words) > 1 and rng.random() < CUT else text


@torch.no_grad()
def sample(
    policy: Any, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *, seed: int, batch: int = 500
) -> list[str]:
    """One completion for each prompt, from the whole softmax, of at most ``MAX_NEW_TOKENS`` tokens."""
    texts = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch):
            inputs = tokenizer(
                list(prompts[start : start + batch]), padding=True, padding_side="left", return_tensors="pt"
            )
            out = policy.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                max_new_tokens=MAX_NEW_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
            )
            texts += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


if __name__ == "__main__":
    torch.set_num_threads(1)  # such small products gain little from more, and lose much where the cores are shared
    build(Path(sys.argv[1]), Sizes(**json.loads(sys.argv[2])), lambda line: print(line, flush=True))
