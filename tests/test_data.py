"""Prompt sources: what is recognised, how it is tokenised, what is refused, and an order that only the seed decides."""

import json
import sys
import types
from pathlib import Path

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf_pg.config.sections import DataConfig
from rlhf_pg.data import PromptData, load_prompts, pad_prompts
from rlhf_pg.errors import DataError
from rlhf_pg.sources import read_table

SHARED = Path(__file__).parents[2] / "shared"
WORDS = ["<unk>", "<s>", "</s>", "<pad>", "user", "assistant", "system", ":", *"abcdefgh"]
BOS, EOS, PAD = 1, 2, 3
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def real(path: str) -> Path:
    """A file of the shared folder, or a skipped test."""
    if not (SHARED / path).exists():
        pytest.skip(f"../shared/{path} is not here")
    return SHARED / path


def words(template: str | None = None, single: str = "<s> $A", **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one token a word, whose additions to a string are `single`."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    given = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | special
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **given)
    tokenizer.chat_template = template
    return tokenizer


def silent(_: str) -> None:
    pass


def load(dataset=None, tokenizer=None, seed=0, say=silent, eval_dataset=None, **keys) -> PromptData:
    config = DataConfig(**{"eval_size": 0} | keys)
    tokenizer = tokenizer or words()
    return load_prompts(config, tokenizer, seed=seed, dataset=dataset, eval_dataset=eval_dataset, say=say)


def refused(*parts: str, **arguments) -> str:
    """Loading is refused with a message that contains all the parts."""
    with pytest.raises(DataError) as caught:
        load(**arguments)
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


def write(path: Path, rows: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def user(content: str) -> dict:
    return {"role": "user", "content": content}


# --- order --------------------------------------------------------------------------------------------------------


def test_an_epoch_holds_each_row_once_and_steps_can_be_asked_in_any_order():
    train = load([f"a {i}" for i in range(10)], seed=3).train
    # 6 steps of 5 rows are 3 epochs of 10.
    forward = [train.batch(step, 5).indices for step in range(6)]
    again = load([f"a {i}" for i in range(10)], seed=3).train
    backward = [again.batch(step, 5).indices for step in reversed(range(6))][::-1]
    assert all(torch.equal(one, other) for one, other in zip(forward, backward, strict=True))
    epochs = torch.cat(forward).view(3, 10)
    assert all(epoch.sort().values.tolist() == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_order_does_not_depend_on_the_batch_size_or_the_global_generator():
    train = load([f"a {i}" for i in range(7)]).train
    torch.manual_seed(1)
    wide = train.batch(0, 21).indices
    torch.manual_seed(2)
    assert torch.equal(torch.cat([train.batch(step, 3).indices for step in range(7)]), wide)


def test_order_depends_on_the_seed():
    prompts = [f"a {i}" for i in range(20)]
    assert not torch.equal(
        load(prompts, seed=0).train.batch(0, 20).indices, load(prompts, seed=1).train.batch(0, 20).indices
    )


def test_without_shuffle_the_files_order_repeats_and_a_step_may_need_more_than_an_epoch():
    train = load(["a", "b", "c"], shuffle=False).train
    assert train.batch(0, 7).prompts == ("a", "b", "c", "a", "b", "c", "a")
    assert train.batch(1, 2).prompts == ("c", "a")
    assert train.batch(1, 2).indices.tolist() == [2, 0]


def test_rows_are_in_order_and_cut_at_the_end():
    train = load(["a", "b c", "d"]).train
    assert train.rows(1, 9).prompts == ("b c", "d")
    assert len(train.rows(3, 5)) == 0


# --- padding ------------------------------------------------------------------------------------------------------


def test_padding_is_on_the_left():
    ids, mask = pad_prompts([[5, 6, 7], [8]], 9)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert [table.shape for table in pad_prompts([], 0)] == [(0, 0), (0, 0)]


def test_a_mask_comes_from_lengths_and_not_from_the_pad_id():
    tokenizer = words(pad_token="<s>")  # pad == bos, which begins every prompt
    batch = load(["a", "b c"], tokenizer, shuffle=False).train.batch(0, 2)
    assert batch.prompt_ids.tolist() == [[BOS, BOS, 8], [BOS, 9, 10]]
    assert batch.prompt_mask.tolist() == [[False, True, True], [True, True, True]]


@pytest.mark.parametrize(
    ("names", "pad"), [({}, PAD), ({"pad_token": None}, EOS), ({"pad_token": None, "eos_token": None}, 0)]
)
def test_the_pad_id_is_the_tokenizers_else_eos_else_0(names, pad):
    assert load(["a", "b c"], words(**names), shuffle=False).train.batch(0, 2).prompt_ids[0, 0] == pad


# --- special tokens -----------------------------------------------------------------------------------------------


def first_ids(prompt, tokenizer, **keys) -> list[int]:
    return list(load([prompt], tokenizer, **keys).train.ids[0])


def test_a_bos_that_the_text_brings_along_is_not_doubled():
    assert first_ids("<s> a b", words()) == [BOS, 8, 9]
    assert first_ids("a b", words()) == [BOS, 8, 9]


def test_no_bos_is_added_where_the_tokenizer_adds_none():
    assert first_ids("a b", words(single="$A")) == [8, 9]


def test_an_eos_that_the_tokenizer_appends_is_removed():
    assert first_ids("a b", words(single="<s> $A </s>")) == [BOS, 8, 9]
    assert first_ids("a b", words(single="$A </s>")) == [8, 9]
    # One that the user wrote stays.
    assert first_ids("a </s>", words(single="<s> $A </s>")) == [BOS, 8, EOS]
    # BOS and EOS the same token, put at both ends.
    assert first_ids("a b", words(single="<s> $A <s>", eos_token="<s>")) == [BOS, 8, 9]
    assert first_ids("", words(single="<s> $A <s>", eos_token="<s>")) == [BOS]


def test_an_empty_prompt_is_bos_or_an_error_with_the_row():
    assert first_ids("", words()) == [BOS]
    assert first_ids("", words(single="$A")) == [BOS]
    refused("row 1", "empty prompt", dataset=["a", ""], tokenizer=words(single="$A", bos_token=None))
    refused("row 1", "empty prompt", dataset=["a", ""], tokenizer=words(single="$A </s>", bos_token=None))


@pytest.mark.parametrize("single", ["<s> $A", "$A", "<s> $A </s>"])
def test_a_chat_prompt_has_exactly_one_bos_where_the_template_writes_one(single):
    ids = first_ids([user("a b")], words(TEMPLATE, single))
    assert ids == [BOS, 4, 7, 8, 9, 5, 7]  # <s> user : a b assistant :


def test_a_chat_prompt_gets_the_bos_that_its_template_leaves_to_the_tokenizer():
    bare = TEMPLATE.removeprefix("{{ bos_token }}")
    assert first_ids([user("a")], words(bare)) == [BOS, 4, 7, 8, 5, 7]
    assert first_ids([user("a")], words(bare, "$A")) == [4, 7, 8, 5, 7]


def test_a_template_that_doubles_the_bos_still_gives_one():
    assert first_ids([user("a")], words("{{ bos_token }} " + TEMPLATE)).count(BOS) == 1


# --- real tokenizers and data -------------------------------------------------------------------------------------


def test_stories_prompts_begin_with_their_one_bos():
    tokenizer = AutoTokenizer.from_pretrained(real("models/stories260K"))
    data = load(
        tokenizer=tokenizer,
        source=str(real("data/tinystories/prompts_train.jsonl")),
        eval_source=str(real("data/tinystories/prompts_eval.jsonl")),
        eval_size=200,
    )
    assert data.held_out is not None
    assert len(data.held_out) == 200
    assert not set(data.train.texts) & set(data.held_out.texts)
    assert all(row[0] == 1 and 1 not in row[1:] for row in data.train.ids)
    assert data.train.pad_id == 0
    lines = real("data/tinystories/prompts_train.jsonl").read_text().splitlines()
    assert list(data.train.prompts) == [json.loads(line)["prompt"] for line in lines]
    assert tokenizer.decode(data.train.ids[5], skip_special_tokens=True) == data.train.texts[5]


def test_stories_empty_prompt_keeps_its_bos_which_is_also_its_eos():
    tokenizer = AutoTokenizer.from_pretrained(real("models/stories260K"))
    assert first_ids("", tokenizer) == [1]
    assert first_ids("Hello there", tokenizer) == [1, 346, 306, 414, 383]


def test_gsm8k_with_a_tokenizer_that_has_no_pad_and_adds_no_bos():
    tokenizer = AutoTokenizer.from_pretrained(real("tokenizers/gpt2"))
    said: list[str] = []
    train = load(tokenizer=tokenizer, source=str(real("data/gsm8k/test.jsonl")), shuffle=False, say=said.append).train
    assert len(train) == 1319
    assert "'question'" in said[0]
    batch = train.batch(0, 3)
    assert list(batch.columns) == ["question", "answer"]
    assert batch.columns["answer"][0].endswith("#### 18")
    assert batch.columns["question"][0] == batch.prompts[0]
    assert train.pad_id == 50256
    assert not (batch.prompt_ids[batch.prompt_mask] == 50256).any()
    assert tokenizer.decode(batch.prompt_ids[1][batch.prompt_mask[1]]) == batch.prompts[1]
    assert first_ids("", tokenizer) == [50256]


def test_self_instruct_has_instructions_and_nested_columns():
    tokenizer = AutoTokenizer.from_pretrained(real("tokenizers/gpt2"))
    train = load(tokenizer=tokenizer, source=str(real("data/self-instruct/seed_tasks.jsonl")), shuffle=False).train
    batch = train.batch(0, 2)
    assert len(train) == 175
    assert batch.prompts[1] == "What is the relation between the given pairs?"
    assert batch.columns["instances"][1][0]["input"] == "Night : Day :: Right : Left"


def test_a_folder_gives_the_files_that_are_named_by_the_split():
    tokenizer = AutoTokenizer.from_pretrained(real("tokenizers/gpt2"))
    folder = str(real("data/tinystories"))
    assert (
        load(tokenizer=tokenizer, source=folder, split="eval").train.texts
        == load(tokenizer=tokenizer, source=str(SHARED / "data/tinystories/prompts_eval.jsonl")).train.texts
    )


# --- shapes -------------------------------------------------------------------------------------------------------


def test_a_prompt_column_is_not_among_the_reward_columns_but_all_others_are():
    train = load([{"prompt": "a", "answer": 1, "other": None}, {"prompt": "b", "answer": 2}], shuffle=False).train
    assert train.batch(0, 2).columns == {"answer": [1, 2], "other": [None, None]}


def test_instruction_and_input_are_joined_by_a_blank_line():
    said: list[str] = []
    rows = [{"instruction": "a", "input": "b"}, {"instruction": "c", "input": ""}, {"instruction": "d", "input": None}]
    train = load(rows, shuffle=False, say=said.append).train
    assert train.prompts == ("a\n\nb", "c", "d")
    assert train.batch(0, 3).columns["input"] == ["b", "", None]
    assert len(said) == 1
    assert "'instruction' and 'input'" in said[0]


def test_an_explicit_column_wins_over_the_usual_ones():
    train = load([{"prompt": "a", "text": "b"}], prompt_column="text").train
    assert train.prompts == ("b",)
    assert train.columns == {"prompt": ["a"], "text": ["b"]}


def test_messages_lose_their_closing_answer_and_the_column_keeps_it():
    said: list[str] = []
    talk = [user("a"), {"role": "assistant", "content": "b"}, user("c"), {"role": "assistant", "content": "d"}]
    train = load([{"messages": talk}], words(TEMPLATE), say=said.append).train
    assert train.chat
    assert train.prompts == (talk[:3],)
    assert train.columns["messages"] == [talk]
    assert train.texts == ("<s>user : a assistant : b user : c assistant :",)
    assert "'messages'" in said[0]
    assert "closing assistant turns of 1" in said[0]


def test_conversations_in_from_and_value_form():
    talk = [{"from": "system", "value": "h"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    train = load([{"conversations": talk}], words(TEMPLATE)).train
    assert train.prompts == ([{"role": "system", "content": "h"}, user("a")],)


def test_messages_through_arrow_have_no_filled_in_keys():
    rows = datasets.Dataset.from_list([{"prompt": [user("a"), {"role": "user", "content": "b", "name": "x"}]}])
    assert load(rows, words(TEMPLATE)).train.prompts == ([user("a"), {"role": "user", "content": "b", "name": "x"}],)


def test_chat_true_wraps_strings_and_the_system_prompt_goes_first_where_there_is_none():
    train = load(["a", "b"], words(TEMPLATE), chat=True, system_prompt="h").train
    system = {"role": "system", "content": "h"}
    assert train.prompts == ([system, user("a")], [system, user("b")])
    assert train.texts[0] == "<s>system : h user : a assistant :"
    own = [{"role": "system", "content": "g"}, user("a")]
    assert load([own, [user("b")]], words(TEMPLATE), system_prompt="h").train.prompts == (own, [system, user("b")])
    assert own == [{"role": "system", "content": "g"}, user("a")]


def test_strings_are_not_chat_by_themselves():
    train = load(["a"], words(TEMPLATE)).train
    assert not train.chat
    assert train.ids == ((BOS, 8),)


# --- sources ------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_rows_in_order(tmp_path):
    rows = [{"prompt": p, "n": n} for n, p in enumerate("cabd")]
    frame = datasets.Dataset.from_list(rows)
    (tmp_path / "x.json").write_text(json.dumps(rows))
    (tmp_path / "x.csv").write_text("prompt,n\nc,0\na,1\nb,2\nd,3\n")
    frame.to_parquet(tmp_path / "x.parquet")
    frame.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=frame, test=frame.select([0])).save_to_disk(tmp_path / "both")
    write(tmp_path / "x.jsonl", rows)
    for name in ("x.json", "x.csv", "x.parquet", "x.jsonl", "saved", "both"):
        train = load(source=str(tmp_path / name)).train
        assert (name, train.prompts) == (name, ("c", "a", "b", "d"))
        assert train.columns == {"n": [0, 1, 2, 3]}
    assert load(source=str(tmp_path / "both"), split="test").train.prompts == ("c",)
    refused("data.split=dev", "train, test", source=str(tmp_path / "both"), split="dev")


def test_a_text_file_has_a_prompt_a_line_and_blank_lines_are_skipped_aloud(tmp_path):
    said: list[str] = []
    (tmp_path / "x.txt").write_text("b a\n\n  \n c\n")
    train = load(source=str(tmp_path / "x.txt"), say=said.append).train
    assert train.prompts == ("b a", " c")
    assert train.columns == {}
    assert "2 blank lines" in said[0]


def test_a_folder_without_split_names_gives_all_its_files(tmp_path):
    write(tmp_path / "two.jsonl", [{"prompt": "b"}])
    write(tmp_path / "one.jsonl", [{"prompt": "a"}])
    write(tmp_path / "none.jsonl", [])
    write(tmp_path / ".hidden.jsonl", [{"prompt": "c"}])
    (tmp_path / "LICENSE").write_text("words")
    assert load(source=str(tmp_path)).train.prompts == ("a", "b")


def test_a_folder_with_split_names(tmp_path):
    write(tmp_path / "data" / "train-00001-of-00002.jsonl", [{"prompt": "b"}])
    write(tmp_path / "data" / "train-00000-of-00002.jsonl", [{"prompt": "a"}])
    write(tmp_path / "data" / "test-00000-of-00001.jsonl", [{"prompt": "c"}])
    assert load(source=str(tmp_path)).train.prompts == ("a", "b")
    assert load(source=str(tmp_path), split="test").train.prompts == ("c",)
    refused("data.split=validation", "test, train", source=str(tmp_path), split="validation")


def test_folders_that_cannot_be_read(tmp_path):
    refused("no file that ends in", source=str(tmp_path))
    write(tmp_path / "a.jsonl", [{"prompt": "a"}])
    (tmp_path / "b.csv").write_text("prompt\nb\n")
    refused(".csv, .jsonl", "several kinds", source=str(tmp_path))


def test_the_builtin_prompts(monkeypatch):
    grammar = types.ModuleType("rlhf_pg.quickstart.grammar")
    grammar.prompts = lambda: [{"prompt": "a", "kind": 1}, {"prompt": "b", "kind": 2}]
    grammar.held_out_prompts = lambda: [{"prompt": "c", "kind": 3}]
    monkeypatch.setitem(sys.modules, grammar.__name__, grammar)
    data = load(source="builtin:reviews", eval_source="builtin:reviews", eval_size=5)
    assert data.train.prompts == ("a", "b")
    assert data.train.columns == {"kind": [1, 2]}
    assert data.held_out is not None
    assert data.held_out.prompts == ("c",)
    refused("builtin:review", "builtin:reviews", source="builtin:review")


# --- reasoning-gym ------------------------------------------------------------------------------------------------


@pytest.fixture
def gym():
    return pytest.importorskip("reasoning_gym", reason="the extra gym is not installed")


def questions(source: str) -> dict[str, list]:
    return read_table(source, "train", "data.source", silent).columns


def test_reasoning_gym_prompts_are_the_tasks_questions(gym):
    columns = questions("reasoning_gym:chain_sum?size=6&seed=7&max_terms=3")
    dataset = gym.create_dataset("chain_sum", size=6, seed=7, max_terms=3)
    assert columns["prompt"] == [dataset[i]["question"] for i in range(6)]
    assert columns["answer"] == [dataset[i]["answer"] for i in range(6)]
    assert len(questions("reasoning_gym:chain_sum")["prompt"]) == 500
    assert questions("reasoning_gym:chain_sum?size=2") == questions("reasoning_gym:chain_sum?size=2&seed=0")


def test_reasoning_gym_options_are_json_or_text(gym):
    columns = questions('reasoning_gym:basic_arithmetic?size=3&operators=["%2B"]&format_style=natural&max_terms=2')
    config = json.loads(columns["entry"][0])["config"]
    assert config == {"size": 3, "seed": 0, "operators": ["+"], "format_style": "natural", "max_terms": 2}
    assert not any(sign in prompt for prompt in columns["prompt"] for sign in "*/")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("reasoning_gym:chain_sums", ["'chain_sums' is no task", "nearest: chain_sum"]),
        ("reasoning_gym:chain_sum?terms=3", ["cannot be generated", "'terms'", "options are", "max_terms"]),
        ("reasoning_gym:chain_sum?min_terms=0", ["min_terms must be positive"]),
        ("reasoning_gym:chain_sum?size", ["'size' is no option; write name=value"]),
    ],
)
def test_reasoning_gym_sources_that_cannot_be(gym, source, parts):
    refused(f"data.source={source}", *parts, source=source)


def test_reasoning_gym_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    refused("data.source=reasoning_gym:chain_sum", "rlhf-pg[gym]", source="reasoning_gym:chain_sum")


def test_reasoning_gym_prompts_reach_the_model_and_their_columns_the_reward(gym):
    train = load(source="reasoning_gym:gcd?size=3", shuffle=False, max_prompt_tokens=500).train
    assert list(train.prompts) == questions("reasoning_gym:gcd?size=3")["prompt"]
    assert set(train.columns) == {"answer", "entry"}


@pytest.mark.parametrize(
    ("source", "called"),
    [
        ("owner/name", (("owner/name",), "train")),
        ("owner/name:main", (("owner/name", "main"), "train")),
        ("owner/name:main:test", (("owner/name", "main"), "test")),
        ("owner/name::test", (("owner/name",), "test")),
    ],
)
def test_a_hub_dataset(monkeypatch, source, called):
    calls = []

    def fake(*names, split):
        calls.append((names, split))
        return datasets.Dataset.from_list([{"prompt": "a"}])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert load(source=source).train.prompts == ("a",)
    assert calls == [called]


def test_a_hub_dataset_that_cannot_be_had(monkeypatch):
    def fake(*names, split):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fake)
    refused("data.source=owner/name", "no file or folder", "hub", "no route", source="owner/name")


@pytest.mark.parametrize(
    "source", ["x.jsonl", "./owner/name", "../name", "/no/such", "~/no-such", "a/b/c", "owner/x.parquet"]
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(monkeypatch, tmp_path, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the hub"))
    refused(f"data.source={source}", "looks like a path", source=source)


def test_python_objects():
    frame = datasets.Dataset.from_dict({"prompt": ["a", "b"], "n": [1, 2]})
    assert load(frame.with_format("torch")).train.columns == {"n": [1, 2]}
    assert load(datasets.DatasetDict(train=frame)).train.prompts == ("a", "b")
    assert load([[user("a")]], words(TEMPLATE)).train.prompts == ([user("a")],)
    assert load(("a",)).train.prompts == ("a",)
    refused("dataset is a str", "list of strings", dataset="a")
    refused("row 1", "str among dicts", dataset=[{"prompt": "a"}, "b"])


# --- bad input ----------------------------------------------------------------------------------------------------


def test_an_empty_dataset(tmp_path):
    refused("no rows", dataset=[])
    refused("no rows", dataset=datasets.Dataset.from_dict({"prompt": []}))
    for name, text in (("x.jsonl", ""), ("x.csv", "prompt,n\n"), ("x.txt", "\n\n"), ("y.txt", ""), ("x.json", "[]")):
        (tmp_path / name).write_text(text)
        assert str(tmp_path / name) in refused("no rows", source=str(tmp_path / name))
    refused("data.source is empty")


def test_a_missing_column_lists_the_columns():
    refused("data.prompt_column", "text, label", dataset=[{"text": "a", "label": 1}])
    refused("data.prompt_column=body", "text, label", dataset=[{"text": "a", "label": 1}], prompt_column="body")


@pytest.mark.parametrize("name", ["prompts", "completions", "completion_ids"])
def test_a_reserved_column_is_to_be_renamed(name):
    refused(repr(name), "rename", dataset=[{"prompt": "a", name: 1}])


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "no prompt"),
        (float("nan"), "no prompt"),
        (5, "type int"),
        ({"role": "user"}, "type dict"),
        ([], "no message"),
        (["hello"], "message 0, is a str"),
        ([{"content": "a"}], "message 0, has no role"),
        ([{"role": "user", "content": None}], "message 0, has no text"),
        ([{"role": "assistant", "content": "a"}], "no message before"),
        ("a \ud800", "no valid text"),
    ],
)
def test_a_prompt_that_is_none_names_its_row(value, what):
    refused("row 2", what, dataset=[{"prompt": "a"}, {"prompt": "b"}, {"prompt": value}])


def test_a_damaged_file_says_where(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    refused("data.source=", "x.jsonl", "could not be read", "row 1", source=str(tmp_path / "x.jsonl"))
    (tmp_path / "x.xlsx").write_text("a")
    refused("x.xlsx", ".jsonl", source=str(tmp_path / "x.xlsx"))


def test_chat_combinations_that_cannot_work():
    refused("no chat template", "data.chat=false", dataset=["a"], chat=True)
    refused("no chat template", dataset=[[user("a")]])
    refused("row 0", "list of messages", dataset=[[user("a")]], tokenizer=words(TEMPLATE), chat=False)
    refused("row 1", "string", "data.chat=true", dataset=[[user("a")], "b"], tokenizer=words(TEMPLATE))
    refused("row 1", "list of messages", dataset=["b", [user("a")]], tokenizer=words(TEMPLATE))
    refused("data.system_prompt", "data.chat=true", dataset=["a"], system_prompt="h")
    mixed = load([[user("a")], "b"], words(TEMPLATE), chat=True).train
    assert mixed.prompts == ([user("a")], [user("b")])


def test_a_template_that_refuses_names_the_row():
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    rows = [[user("a")], [{"role": "system", "content": "h"}, user("a")]]
    refused("row 1", "no system role", dataset=rows, tokenizer=words(template))


def test_over_long_prompts_are_left_out_and_counted():
    said: list[str] = []
    # 1 + n tokens with the BOS: 2, 4, 5, 3.
    rows = [{"prompt": p, "n": i} for i, p in enumerate(["a", "a b c", "a b c d", "a b"])]
    train = load(rows, max_prompt_tokens=3, say=said.append).train
    assert train.prompts == ("a", "a b")
    assert train.rows(0, 2).indices.tolist() == [0, 3]
    assert train.columns == {"n": [0, 3]}
    assert train.longest == 3
    assert len(said) == 2
    assert said[1].startswith("2 of 4 prompts")
    assert "data.max_prompt_tokens=3" in said[1]
    assert "5 tokens" in said[1]
    refused("data.max_prompt_tokens=1", "shortest has 2", "longest 5", dataset=rows, max_prompt_tokens=1)


# --- held out -----------------------------------------------------------------------------------------------------


def test_held_out_rows_are_the_same_for_every_seed_and_never_trained_on():
    said: list[str] = []
    prompts = [f"{i % 40}" for i in range(50)]  # ten prompts stand twice
    one, other = (load(prompts, seed=seed, eval_size=15, say=said.append) for seed in (0, 1))
    assert one.held_out is not None
    assert other.held_out is not None
    assert one.held_out.texts == other.held_out.texts
    assert len(one.held_out) == 15
    assert list(one.held_out.indices) == sorted(one.held_out.indices)
    assert not set(one.train.texts) & set(one.held_out.texts)
    # Each row is in training, or held out, or a copy of a held-out one.
    copies = [i for i in range(50) if prompts[i] in one.held_out.texts and i not in one.held_out.indices]
    assert copies
    assert sorted([*one.train.indices, *one.held_out.indices, *copies]) == list(range(50))
    assert f"15 of 50 prompts of dataset are held out for evaluation; {len(copies)} more rows" in said[1]


def test_nothing_is_held_out_with_eval_size_0():
    assert load(["a"]).held_out is None
    assert load(["a"], eval_dataset=["b"]).held_out is None


def test_holding_out_too_much():
    refused("data.eval_size=3", "3 prompts", "data.eval_source", dataset=["a", "b", "c"], eval_size=3)
    refused("none is left to train on", dataset=["a", "a", "a"], eval_size=1)
    assert len(load(["a", "b", "c"], eval_size=2).train) == 1


def test_held_out_prompts_of_their_own_lose_those_that_are_trained_on(tmp_path):
    said: list[str] = []
    evals = ["c", "a", "d", "a b c d", "e"]
    data = load(["a", "b"], eval_dataset=evals, eval_size=2, max_prompt_tokens=3, say=said.append)
    assert data.train.prompts == ("a", "b")
    assert data.held_out is not None
    assert data.held_out.prompts == ("c", "d")
    assert data.held_out.indices == (0, 2)
    assert "1 of 4 held-out prompts also stand in the training data" in said[-1]
    file = write(tmp_path / "x.jsonl", [{"prompt": "b"}])
    refused("data.eval_source", "all 1 prompts", dataset=["a", "b"], eval_source=file, eval_size=1)
    refused("data.eval_source=none.jsonl", dataset=["a"], eval_source="none.jsonl", eval_size=1)


def test_held_out_prompts_take_the_form_of_the_training_prompts():
    data = load([[user("a")]], words(TEMPLATE), eval_dataset=["a", "b"], eval_size=5)
    assert data.held_out is not None
    assert data.held_out.prompts == ([user("b")],)
