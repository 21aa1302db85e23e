"""What is measured: a model in a folder, prompts, and how many tokens to sample."""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = REPOSITORY.parent / "shared" / "models" / "stories260K"
PROMPTS = REPOSITORY.parent / "shared" / "data" / "tinystories" / "prompts_train.jsonl"
PROMPTS_PER_STEP, GROUP = 8, 8
KL_COEF, LEARNING_RATE = 0.05, 1e-4
VOCABULARY = 32_000
_PAD, _EOS, _UNKNOWN = range(3)
_END_PROBABILITY = 1 / 40
_ASIDE = 5.0  # far above what a step of training can change, so that lengths stay as they are during a run


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload.

    Args:
        title: what it is, in words.
        prompt_words: words of each prompt; a word of the random models is a token.
        max_new_tokens: of a completion.
        random_model: build the random Llama shape; otherwise the model is the one of ``--model``.
        ends: the random model ends a completion with probability 1/40 at each token.
    """

    title: str
    prompt_words: int
    max_new_tokens: int
    random_model: bool = True
    ends: bool = False


WORKLOADS = {
    "W1": Workload("story model, 16-word prompts, 48 tokens", 16, 48, random_model=False),
    "W2": Workload("random Llama, vocabulary 32,000, 16-token prompts, 48 tokens", 16, 48),
    "W3": Workload("as W2, 256-token prompts", 256, 48),
    "W4": Workload("as W2, completions end at random, 128 tokens at most", 16, 128, ends=True),
}


def build(args: argparse.Namespace) -> None:
    """Write a workload's ``workload.json`` (and random model) into ``args.folder``."""
    workload, folder = WORKLOADS[args.workload], Path(args.folder)
    number = PROMPTS_PER_STEP * (args.warmup + args.steps)
    words = _words()
    if workload.random_model:
        model = folder / "model"
        _random_model(model, workload, words)
        prompts = _random_prompts(number, workload.prompt_words, words)
    else:
        model = Path(args.model).resolve()
        prompts = _story_prompts(Path(args.prompts), number, workload.prompt_words)
    (folder / "workload.json").write_text(json.dumps({"model": str(model), "prompts": prompts}), encoding="utf-8")


def load(folder: Path) -> dict[str, Any]:
    """What ``build`` wrote: ``model``, a folder, and ``prompts``, in the order in which both sides take them."""
    found: dict[str, Any] = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
    return found


def _words() -> list[str]:
    """As many distinct words as the vocabulary has tokens besides the three special ones: three syllables each."""
    syllables = [consonant + vowel for consonant in "bdfghjklmnprstv" for vowel in "aeiou"]
    base = len(syllables)
    # A stride prime to 75 cubed, so that neighbouring tokens differ in more than the last syllable.
    numbers = (index * 7919 % base**3 for index in range(VOCABULARY - 3))
    return [syllables[n // base**2] + syllables[n // base % base] + syllables[n % base] for n in numbers]


def _random_prompts(number: int, length: int, words: list[str]) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(words, k=length)) for _ in range(number)]


def _story_prompts(path: Path, number: int, length: int) -> list[str]:
    """The first words of stories; where the file is absent, openings made of the stories' commonest words."""
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            found = [" ".join(json.loads(line)["prompt"].split()[:length]) for line in lines if line.strip()]
        return [found[index % len(found)] for index in range(number)]
    draw = random.Random(0)
    common = [
        "the",
        "little",
        "girl",
        "boy",
        "dog",
        "big",
        "red",
        "ball",
        "saw",
        "went",
        "to",
        "and",
        "played",
        "happy",
    ]
    opening = ["Once", "upon", "a", "time", "there", "was", "a"]
    return [" ".join(opening + draw.choices(common, k=length - len(opening))) for _ in range(number)]


def _random_model(folder: Path, workload: Workload, words: list[str]) -> None:
    """A random Llama of 288 x 6 (the shape of stories15M: tied embeddings) and its word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<pad>": _PAD, "</s>": _EOS, "<unk>": _UNKNOWN}
    vocabulary |= {word: index for index, word in enumerate(words, start=len(vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="left"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=288,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=_PAD,
            bos_token_id=None,
            eos_token_id=_EOS,
        )
    )
    if workload.ends:
        _make_it_end(model)
    model.save_pretrained(folder)


def _make_it_end(model: Any) -> None:
    """Give EOS a probability of about 1/40 at every token, without a bias (Llama has none).

    The first coordinate is set aside: all embeddings hold the same number there and no layer writes to it, so the last
    hidden state's is above zero everywhere, and, the head being tied, it adds the same to every logit. EOS alone holds
    more, as much as gives it the probability wanted on average over random contexts.
    """
    import torch

    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings[:, 0] = _ASIDE
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        generator = torch.Generator().manual_seed(1)
        contexts = torch.randint(_UNKNOWN + 1, VOCABULARY, (8, 64), generator=generator)
        hidden = model.model(input_ids=contexts).last_hidden_state[:, 16:].flatten(0, 1)
        logits = hidden @ embeddings.T
        others, aside = logits[:, _UNKNOWN + 1 :].logsumexp(1), hidden[:, 0]
        embeddings[_EOS] = 0
        low, high = 0.0, 100.0
        for _ in range(50):  # the probability rises with the number: halve the interval
            middle = (low + high) / 2
            probability = torch.sigmoid(middle * aside - others).mean()
            low, high = (middle, high) if probability < _END_PROBABILITY else (low, middle)
        embeddings[_EOS, 0] = low
