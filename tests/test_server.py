"""A reward as a server: the wire format, what is refused, and that it scores as the same reward does in process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("starlette", reason="needs the extra serve")

import typer
import uvicorn
from tiny import model_config, tokenizer
from transformers import AutoModelForSequenceClassification

from reward_models.classifier import load_classifier
from reward_models.remote import remote
from reward_models.scorer import Scorer
from reward_models.server import listen, make_app
from reward_models.wire import Refused, Rows, read_rows
from rlhf_pg.config.rewards import RewardConfig
from rlhf_pg.errors import ConfigError, RewardError
from rlhf_pg.reward_cli.serve import reward_section, scorer, serve
from rlhf_pg.rewards import RewardRunner, text_rollout

COMMAND = "import typer; from rlhf_pg.reward_cli.serve import serve; typer.run(serve)"
LIGHT = """
import sys
from reward_models.server import listen, make_app, run
listening = listen("127.0.0.1", int(sys.argv[1]), None)
print("http://127.0.0.1", flush=True)
run(make_app(lambda prompts, completions, labels, ids: [float(len(one)) for one in completions], name="light"), listening)
"""
TEXTS = ["w3 w4 w5", "w6", "w7 w8 w9 w10 w11 w12", "w3", "w20 w21"]


def by_length(prompts: list[Any], completions: list[str], labels: list[Any] | None, ids: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def post(app: Any, body: Any, path: str = "/get_reward", **more: Any) -> httpx.Response:
    return requests(app, (body, path, more))[0]


def requests(app: Any, *wanted: tuple[Any, str, dict[str, Any]]) -> list[httpx.Response]:
    """Post all at once."""

    async def play() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:

            async def one(body: Any, path: str, more: dict[str, Any]) -> httpx.Response:
                content = {"content": body} if isinstance(body, bytes) else {"json": body}
                return await client.post(path, **content, **more)

            return await asyncio.gather(*(one(*each) for each in wanted))

    return asyncio.run(play())


def get(app: Any, path: str, **more: Any) -> httpx.Response:
    async def play() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            return await client.get(path, **more)

    return asyncio.run(play())


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The application on a real port."""
    listening = listen("127.0.0.1", 0, None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(5)


# --- the wire format --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/get_reward"])
def test_a_client_of_openrlhf_is_answered(path: str):
    body = {"query": ["Say: yes", "Do: it"], "prompts": ["Say: ", "Do: "], "labels": ["", ""]}
    response = post(make_app(by_length, name="length"), body, path)
    assert (response.status_code, response.json()) == (200, {"rewards": [3.0, 2.0]})


def test_rows_are_read_as_their_client_means_them():
    chat = [{"role": "user", "content": "hi"}]
    full = {
        "query": ["ab", "b"],
        "prompts": ["a", ""],
        "labels": [1, 2],
        "completions": ["b", "b"],
        "messages": [None, chat],
    }
    assert read_rows(full, 9) == Rows(["a", chat], ["b", "b"], [1, 2])
    assert read_rows({"query": ["abc"], "prompts": ["a"]}, 9) == Rows(["a"], ["bc"], None)
    assert read_rows({"query": ["abc"]}, 9) == Rows([""], ["abc"], None)
    assert read_rows({"query": ["abc</s>"], "prompts": ["a"], "labels": [""]}, 9, "</s>") == Rows(["a"], ["bc"], None)
    assert read_rows({"query": ["a"], "labels": [None]}, 9).labels is None
    assert read_rows({"query": ["a", "a"], "labels": ["", "x"]}, 9).labels == ["", "x"]
    assert read_rows({"query": []}, 9) == Rows([], [], None)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ([], 422, "must be an object"),
        ({}, 422, "must be an object"),
        ({"query": "text"}, 422, '"query" must be a list'),
        ({"query": [1]}, 422, "list of texts"),
        ({"query": ["a"], "prompts": ["a", "b"]}, 422, '"prompts" has 2 entries and "query" 1'),
        ({"query": ["a"], "labels": [1, 2]}, 422, '"labels" has 2 entries'),
        ({"query": ["a"], "completion_ids": [["1"]]}, 422, "lists of whole numbers"),
        ({"query": ["a"], "completion_ids": []}, 422, '"completion_ids" has 0 entries'),
        ({"query": ["a"], "labels": "a"}, 422, '"labels" must be a list'),
        ({"query": ["a"], "completions": ["a", "b"]}, 422, '"completions" has 2'),
        ({"query": ["abc"], "prompts": ["b"]}, 422, 'entry 0 of "query" does not begin with'),
        ({"query": ["a"], "messages": ["hi"]}, 422, "list of messages"),
        ({"query": ["a"], "messages": [[{"role": "user"}]]}, 422, "list of messages"),
        ({"query": ["a"] * 10}, 413, "10 rows are more than the 9"),
    ],
)
def test_another_form_is_refused(body: Any, status: int, said: str):
    with pytest.raises(Refused, match=said) as caught:
        read_rows(body, 9)
    assert caught.value.status == status


def test_none_nan_errors_and_infinities():
    given = [None, float("nan"), RewardError("the row is odd"), float("inf"), 2, torch.tensor(0.5), "x"]
    app = make_app(lambda *_: given, name="odd")
    answer = post(app, {"query": ["a"] * 7}).json()
    assert answer["rewards"] == [None, None, None, None, 2.0, 0.5, None]
    assert set(answer["errors"]) == {"2", "3", "6"}
    assert answer["errors"]["2"] == "the row is odd"
    assert "no finite number" in answer["errors"]["3"]


# --- limits and errors -------------------------------------------------------------------------------------------------


def test_what_is_no_json_or_too_long_is_refused():
    app = make_app(by_length, name="length", max_bytes=100)
    for body, status in [(b"nonsense", 400), (b'{"query": [NaN]}', 400), (b"\xff", 400), (b" " * 101, 413)]:
        response = post(app, body)
        assert response.status_code == status
        assert "error" in response.json()
    assert get(app, "/get_reward").status_code == 405


def test_the_token():
    app = make_app(by_length, name="length", token="s3cret")
    body = {"query": ["a"]}
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "s3cret"},
        {"Authorization": "Bearer s3cre"},
    ):
        response = post(app, body, headers=headers)
        assert response.status_code == 401
        assert "s3cret" not in response.text
        assert get(app, "/metrics", headers=headers).status_code == 401
    right = {"Authorization": "Bearer s3cret"}
    assert post(app, body, headers=right).json() == {"rewards": [1.0]}
    assert get(app, "/metrics", headers=right).status_code == 200
    assert get(app, "/health").status_code == 200


def test_an_exception_is_told_without_its_traceback(caplog):
    def fails(*_: Any) -> list[float]:
        raise KeyError("/home/someone/secret.py")

    response = post(make_app(fails, name="fails"), {"query": ["a"]})
    assert response.status_code == 500
    assert response.json() == {"error": "the reward raised KeyError; the server's log says more"}
    assert "secret.py" in caplog.text


def test_too_few_values_are_an_error():
    response = post(make_app(lambda *_: [1.0], name="few"), {"query": ["a", "b"]})
    assert (response.status_code, response.json()) == (500, {"error": "the reward gave 1 values for 2 rows"})


def test_too_many_requests_are_sent_away():
    free = threading.Event()

    def slow(prompts: Any, completions: list[str], labels: Any, ids: Any) -> list[float]:
        free.wait(5)
        return [0.0] * len(completions)

    app = make_app(slow, name="slow", max_waiting=2)
    threading.Timer(0.3, free.set).start()
    responses = requests(app, *[({"query": ["a"]}, "/", {})] * 5)
    assert sorted(response.status_code for response in responses) == [200, 200, 503, 503, 503]
    assert {r.headers.get("Retry-After") for r in responses if r.status_code == 503} == {"1"}


def test_a_call_that_hangs_is_told_and_health_says_so():
    free = threading.Event()
    app = make_app(lambda *_: [float(free.wait(5))], name="hangs", timeout=0.1)
    response = post(app, {"query": ["a"]})
    assert (response.status_code, response.json()) == (504, {"error": "the reward took longer than 0.1 s"})
    time.sleep(0.05)
    health = get(app, "/health")
    assert (health.status_code, health.json()) == (503, {"ready": False, "name": "hangs"})
    free.set()
    time.sleep(0.05)
    assert get(app, "/health").json() == {"ready": True, "name": "hangs"}


def test_what_a_client_no_longer_waits_for_is_not_scored():
    seen: list[list[str]] = []
    started, free = threading.Event(), threading.Event()

    def score(prompts: Any, completions: list[str], labels: Any, ids: Any) -> list[float]:
        seen.append(completions)
        started.set()
        free.wait(5)
        return [0.0] * len(completions)

    with served(make_app(score, name="slow")) as url:
        first = threading.Thread(target=httpx.post, args=(url,), kwargs={"json": {"query": ["first"]}})
        first.start()
        started.wait(5)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json={"query": ["gone"]}, timeout=0.2)
        time.sleep(0.1)
        free.set()
        first.join()
        assert httpx.post(url, json={"query": ["last"]}).json() == {"rewards": [0.0]}
    assert seen == [["first"], ["last"]]


def test_metrics():
    app = make_app(lambda *_: [1.0, None, RewardError("no")], name="three")
    post(app, {"query": ["a", "b", "c"]})
    post(app, b"nonsense")
    lines = get(app, "/metrics").text.splitlines()
    for line in (
        'rlhf_pg_reward_requests_total{status="200"} 1',
        'rlhf_pg_reward_requests_total{status="400"} 1',
        "rlhf_pg_reward_rows_total 3",
        "rlhf_pg_reward_unscorable_rows_total 1",
        "rlhf_pg_reward_failed_rows_total 1",
        "rlhf_pg_reward_in_flight_requests 0",
        "rlhf_pg_reward_scoring_seconds_count 1",
        "# TYPE rlhf_pg_reward_scoring_seconds summary",
    ):
        assert line in lines


# --- merging ---------------------------------------------------------------------------------------------------------


def merged(score: Callable[..., Any], wanted: list[Rows], max_rows: int = 4) -> list[Any]:
    """What requests get that wait together while a first one is scored."""
    free = threading.Event()

    def held(prompts: Any, completions: list[str], labels: Any, ids: Any) -> Any:
        if completions == ["first"]:
            free.wait(5)
            return [0.0]
        return score(prompts, completions, labels, ids)

    async def play() -> list[Any]:
        scoring = Scorer(held, max_rows)
        first = asyncio.ensure_future(scoring(Rows([""], ["first"], None), 5))
        await asyncio.sleep(0.05)
        rest = [asyncio.ensure_future(scoring(rows, 5)) for rows in wanted]
        await asyncio.sleep(0.05)
        free.set()
        await first
        return await asyncio.gather(*rest, return_exceptions=True)

    return asyncio.run(play())


def test_requests_that_wait_are_scored_in_one_call_each_with_its_own_rows():
    calls: list[list[str]] = []

    def score(prompts: Any, completions: list[str], labels: Any, ids: Any) -> list[float]:
        calls.append(completions)
        return by_length(prompts, completions, labels, ids)

    wanted = [Rows([""] * len(texts), texts, None) for texts in (["a", "aa"], ["aaa"], ["b", "bb", "bbb"], ["c" * 9])]
    assert merged(score, wanted) == [[1.0, 2.0], [3.0], [1.0, 2.0, 3.0], [9.0]]
    assert calls == [["a", "aa", "aaa"], ["b", "bb", "bbb", "c" * 9]]


def test_requests_of_other_kinds_are_not_merged():
    calls: list[Any] = []

    def score(prompts: Any, completions: list[str], labels: Any, ids: Any) -> list[float]:
        calls.append((prompts, labels))
        return [0.0] * len(completions)

    chat = [{"role": "user", "content": "hi"}]
    merged(
        score,
        [Rows(["p"], ["a"], None), Rows(["p"], ["b"], ["1"]), Rows([chat], ["c"], ["2"]), Rows([chat], ["d"], ["3"])],
    )
    assert calls == [(["p"], None), (["p"], ["1"]), ([chat, chat], ["2", "3"])]


def test_a_request_suffers_only_from_its_own_rows():
    def score(prompts: Any, completions: list[str], labels: Any, ids: Any) -> list[float]:
        if "bad" in completions:
            raise ValueError("bad")
        return by_length(prompts, completions, labels, ids)

    values = merged(score, [Rows([""], [text], None) for text in ("a", "bad", "aaa")])
    assert [values[0], values[2]] == [[1.0], [3.0]]
    assert isinstance(values[1], RewardError)


# --- the same scores as in process ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random classifier with a chat template."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = model_config("llama", num_labels=2, id2label={0: "NO", 1: "YES"}, label2id={"NO": 0, "YES": 1})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    own = tokenizer()
    own.chat_template = "{% for m in messages %}{{ m['content'] }} <eos> {% endfor %}"
    own.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
@pytest.mark.parametrize("batch_rows", [2, 64])
def test_a_classifier_scores_the_same_in_process_and_served(classifier: str, chat: bool, batch_rows: int):
    prompts: list[Any] = [f"w{i + 30} " for i in range(len(TEXTS))]
    if chat:
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    config = RewardConfig.model_validate({"functions": [{"function": classifier, "args": {"label": "YES"}}]})
    runner = RewardRunner(config)
    here = runner(text_rollout(prompts, TEXTS)).scores
    with served(make_app(scorer(runner), name="classifier")) as url:
        far = {"function": url, "args": {"server": "rlhf_pg", "batch_rows": batch_rows}}
        there = RewardRunner(RewardConfig.model_validate({"functions": [far]}))(text_rollout(prompts, TEXTS)).scores
    assert len(set(here.tolist())) == len(TEXTS)
    torch.testing.assert_close(there, here, rtol=0, atol=1e-6)
    direct = load_classifier(classifier, label="YES")(prompts=prompts, completions=TEXTS)
    torch.testing.assert_close(there, torch.tensor(direct), rtol=0, atol=1e-6)


def test_labels_are_the_column_that_the_reward_reads():
    entry = {"function": "numeric_answer", "args": {}}
    runner = RewardRunner(RewardConfig.model_validate({"functions": [entry]}))
    app = make_app(scorer(runner, "answer"), name="numeric")
    body = {"query": ["so 4", "so 5"], "prompts": ["", ""], "labels": ["4", "4"]}
    assert post(app, body).json() == {"rewards": [1.0, 0.0]}
    refused = post(app, {**body, "labels": ["", ""]}).json()
    assert refused["rewards"] == [None, None]
    assert "'answer'" in refused["errors"]["0"]
    runner.close()


def test_a_reward_of_the_tokens_is_given_the_clients_or_refuses():
    runner = RewardRunner(reward_section("length", ["target=4"], factory=False))
    rollout = text_rollout(
        ["p"] * 3, ["one", "two words", ""], tokenizer=lambda text, **_: {"input_ids": list(range(len(text)))}
    )
    app = make_app(scorer(runner), name="length")
    with served(app) as url:
        far = RewardConfig.model_validate({"functions": [{"function": url, "args": {"server": "rlhf_pg"}}]})
        there = RewardRunner(far)(rollout).scores.tolist()
        assert there == runner(rollout).scores.tolist() == [-0.25, -1.25, -1.0]
        with pytest.raises(RewardError, match=r"args\.server=rlhf_pg"):
            RewardRunner(RewardConfig.model_validate({"functions": [url]}))(rollout)
    runner.close()


def odd_one(completions: list[str], **_: Any) -> list[float]:
    """Fails on a call with the word bad."""
    if "bad" in completions:
        raise ValueError("it is bad")
    return [float(len(completion)) for completion in completions]


def test_a_row_that_the_reward_fails_on_is_told_and_the_others_are_scored():
    runner = RewardRunner(RewardConfig(), [odd_one])
    answer = post(make_app(scorer(runner), name="odd"), {"query": ["a", "bad", "aaa"]}).json()
    assert answer["rewards"] == [1.0, None, 3.0]
    assert list(answer["errors"]) == ["1"]
    assert "raised ValueError: it is bad" in answer["errors"]["1"]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_section_of_a_single_reward_and_of_a_recipe(tmp_path: Path):
    entry = reward_section("keyword", ['words=["a", "b"]', "absent=c"], factory=False).functions[0]
    assert (entry.function, entry.args) == ("keyword", {"words": ["a", "b"], "absent": "c"})
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "reward: {on_error: unscorable, functions: [vader, {function: length, weight: 2, args: {target: 3}}]}"
    )
    section = reward_section(str(recipe), [], factory=False)
    assert [one.function for one in section.functions] == ["vader", "length"]
    assert section.on_error == "stop"
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        reward_section("keyword", ["words"], factory=False)
    with pytest.raises(ConfigError, match="is a recipe"):
        reward_section(str(recipe), ["a=1"], factory=False)
    recipe.write_text("run: {seed: 1}")
    with pytest.raises(ConfigError, match="nothing to serve"):
        reward_section(str(recipe), [], factory=False)


def test_a_recipe_serves_the_weighted_sum(tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    functions = "{function: keyword, args: {words: cat}}, {function: regex_match, weight: 10, args: {pattern: dog}}"
    recipe.write_text(f"reward: {{functions: [{functions}]}}")
    runner = RewardRunner(reward_section(str(recipe), [], factory=False))
    texts = ["a cat", "a dog", "a cat and a dog", ""]
    assert scorer(runner)([""] * 4, texts, None, None) == [1.0, 10.0, 11.0, 0.0]
    runner.close()


def test_others_can_reach_it_only_with_a_token():
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(ConfigError, match="--token-env"):
            listen(host, 0, None)
    listen("0.0.0.0", 0, "token").close()
    listen("127.0.0.1", 0, None).close()


def test_answers_do_not_wait_for_acknowledgements():
    with listen("127.0.0.1", 0, None) as listening:
        assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot be had"):
        listen("127.0.0.1", taken.getsockname()[1], None)


def test_the_command_refuses_before_it_loads_anything():
    app = typer.Typer()
    app.command()(serve)
    result = CliRunner().invoke(app, ["vader", "--host", "0.0.0.0"])
    assert isinstance(result.exception, ConfigError)
    result = CliRunner().invoke(app, ["vader", "--token-env", "NOT_SET_ANYWHERE"])
    assert "NOT_SET_ANYWHERE" in str(result.exception)


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    """A server in a process of its own, once it has said where."""
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "http://127.0.0.1" in process.stdout.readline()
    return process


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_server_that_is_killed_and_comes_back_costs_time_and_no_row():
    port = free_port()
    far = {"function": f"http://127.0.0.1:{port}", "args": {"batch_rows": 2}}
    runner = RewardRunner(RewardConfig.model_validate({"functions": [far]}))
    rollout = text_rollout(["p"] * 6, [f"word {'x' * i}" for i in range(6)])
    logged: dict[str, float] = {}
    processes = [start(LIGHT, str(port))]
    try:
        before = runner(rollout).scores.tolist()
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        threading.Timer(0.3, lambda: processes.append(start(LIGHT, str(port)))).start()
        after = runner(rollout, logged.__setitem__)
        assert after.valid.all()
        assert after.scores.tolist() == before
        assert logged["remote/retries"] >= 3
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_the_command_serves_with_a_token_and_ends_by_a_signal(monkeypatch):
    monkeypatch.setenv("REWARD_TOKEN", "s3cret")
    port = free_port()
    process = start(COMMAND, "keyword", "--arg", "words=a", "--port", str(port), "--token-env", "REWARD_TOKEN")
    try:
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health").json() == {"ready": True, "name": "keyword"}
        assert httpx.post(url, json={"query": ["a"]}).status_code == 401
        fetch = remote(url, token_env="REWARD_TOKEN")
        values = asyncio.run(fetch([""], ["a b c"]))
        assert values == [1.0]
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
