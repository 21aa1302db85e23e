"""A reward over HTTP, from the client's side: what is sent, what is believed, how long it tries."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from stub_server import Reply, rewards_by_length, stub

from reward_models import http
from reward_models.http import JsonClient, Limits, check_url, strict_json, token_of
from reward_models.remote import remote
from rlhf_pg.config.rewards import RewardConfig
from rlhf_pg.errors import ConfigError, ModelError, RewardError
from rlhf_pg.rewards import RewardRunner, text_rollout

PROMPTS = ["Say: ", "Say: ", "Do: "]
TEXTS = ["yes", "no way", "it"]
CHAT = [[{"role": "user", "content": "hello"}], [{"role": "user", "content": "bye"}]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACK_OFF", 0.01)


def ask(url: str, prompts: Any = PROMPTS, completions: Any = TEXTS, columns: dict[str, Any] | None = None, **args: Any):
    """One call of a remote reward: its values, and what it logged."""
    logged: dict[str, float] = {}
    call = remote(url, **args)(prompts, completions, log_metric=logged.__setitem__, **(columns or {}))
    return asyncio.run(call), logged


def failures(values: list[Any]) -> list[str]:
    assert all(isinstance(value, RewardError) for value in values)
    return [str(value) for value in values]


# --- the wire format --------------------------------------------------------------------------------------------------


def test_what_openrlhfs_servers_read_is_sent():
    with stub(rewards_by_length) as server:
        values, logged = ask(server.url, columns={"answer": ["1", "2", "3"], "other": [0, 0, 0]}, labels="answer")
    assert values == [8.0, 11.0, 6.0]
    assert server.asked == [
        {
            "query": ["Say: yes", "Say: no way", "Do: it"],
            "prompts": PROMPTS,
            "labels": ["1", "2", "3"],
            "completions": TEXTS,
        }
    ]
    assert logged == {"remote/retries": 0.0}


def test_without_a_label_column_the_labels_are_empty_texts_as_openrlhf_sends_them():
    with stub(rewards_by_length) as server:
        ask(server.url)
    assert server.asked[0]["labels"] == ["", "", ""]


def test_query_end_is_put_after_each_query():
    with stub(rewards_by_length) as server:
        ask(server.url, query_end="</s>")
    assert server.asked[0]["query"][0] == "Say: yes</s>"
    assert server.asked[0]["completions"][0] == "yes"


def test_rows_are_cut_into_batches_and_come_back_in_their_order():
    texts = ["x" * n for n in range(10)]

    def slower_first(body: Any, number: int) -> Reply:
        time.sleep(0.05 * (3 - number))
        return rewards_by_length(body, number)

    with stub(slower_first) as server:
        values, _ = ask(server.url, [""] * 10, texts, batch_rows=4)
    assert values == [float(n) for n in range(10)]
    assert sorted(len(body["query"]) for body in server.asked) == [2, 4, 4]


def test_no_more_requests_at_once_than_concurrency():
    now, most = [0], [0]

    def count(body: Any, number: int) -> Reply:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.03)
        now[0] -= 1
        return rewards_by_length(body, number)

    with stub(count) as server:
        ask(server.url, [""] * 12, ["x"] * 12, batch_rows=1, concurrency=3)
    assert most[0] == 3


def test_null_is_unscorable_and_errors_name_their_rows():
    reply = Reply({"rewards": [0.5, None, None], "errors": {"2": "the function raised KeyError"}})
    with stub(lambda *_: reply) as server:
        values, _ = ask(server.url)
    assert values[:2] == [0.5, None]
    assert failures(values[2:]) == [f"{server.url}: the function raised KeyError"]


def test_the_means_of_extra_logs_are_over_the_rows_of_all_batches():
    def extra(body: Any, _: int) -> Reply:
        rows = len(body["query"])
        logs = {
            "hits": [float(len(q)) for q in body["query"]],
            "flat": rows,
            "odd": ["no", None, True],
            "worse": math.pi,
        }
        return Reply({"rewards": [0.0] * rows, "extra_logs": logs})

    with stub(extra) as server:
        _, logged = ask(server.url, [""] * 3, ["a", "aa", "aaaaaa"], batch_rows=2)
    assert logged == pytest.approx(
        {"remote/retries": 0.0, "remote/hits": 3.0, "remote/flat": 5 / 3, "remote/worse": math.pi}
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"rewards": [1.0]}, "gave 1 rewards for 3 rows"),
        ({"rewards": [1.0] * 4}, "gave 4 rewards for 3 rows"),
        ({"rewards": 1.0}, 'no list "rewards"'),
        ({"reward": [1.0] * 3}, 'no list "rewards"'),
        ([1.0, 2.0, 3.0], 'no list "rewards"'),
        (b'{"rewards": [1.0, NaN, 2.0]}', "NaN is no standard JSON"),
        (b'{"rewards": [1.0, Infinity, 2.0]}', "Infinity is no standard JSON"),
        (b"<html>Welcome</html>", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_an_answer_that_is_none_fails_its_rows_and_is_not_asked_for_again(body: Any, said: str):
    with stub(lambda *_: Reply(body)) as server:
        values, _ = ask(server.url)
    assert all(said in text for text in failures(values))
    assert len(server.asked) == 1


@pytest.mark.parametrize("wrong", ["0.5", True, [0.5], {"score": 1}, 10**400])
def test_a_value_that_is_no_number_fails_its_row_only(wrong: Any):
    with stub(lambda *_: Reply({"rewards": [1.0, wrong, 3.0]})) as server:
        values, _ = ask(server.url)
    assert [values[0], values[2]] == [1.0, 3.0]
    assert "must be a finite number" in failures(values[1:2])[0]


def test_an_overflowing_literal_fails_its_row():
    with stub(lambda *_: Reply(b'{"rewards": [1, 1e999, 3]}')) as server:
        values, _ = ask(server.url)
    assert "finite" in failures(values[1:2])[0]


def test_a_lone_surrogate_arrives_as_it_is():
    with stub(rewards_by_length) as server:
        values, _ = ask(server.url, ["p"], ["a\ud800b"])
    assert server.asked[0]["completions"] == ["a\ud800b"]
    assert values == [4.0]


# --- chat ----------------------------------------------------------------------------------------------------------


class Template:
    chat_template = "..."

    def apply_chat_template(self, messages: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        assert add_generation_prompt
        return "".join(f"<{one['role']}>{one['content']}" for one in messages) + "<assistant>"


REPLIES = [[{"role": "assistant", "content": "hi"}], [{"role": "assistant", "content": "so long"}]]


def test_messages_are_written_by_the_tokenizers_template_and_sent_as_they_are_too():
    with stub(rewards_by_length) as server:
        ask(server.url, CHAT, REPLIES, tokenizer=Template())
    body = server.asked[0]
    assert body["query"] == ["<user>hello<assistant>hi", "<user>bye<assistant>so long"]
    assert body["prompts"] == ["<user>hello<assistant>", "<user>bye<assistant>"]
    assert (body["messages"], body["completions"]) == (CHAT, ["hi", "so long"])


def test_messages_without_a_tokenizer_are_refused_with_both_mends():
    with pytest.raises(RewardError, match=r"args.tokenizer.*args.server=rlhf_pg"):
        ask("http://127.0.0.1:1", CHAT, REPLIES)


def test_our_own_server_is_sent_messages():
    with stub(lambda body, _: Reply({"rewards": [len(one[0]["content"]) for one in body["messages"]]})) as server:
        values, _ = ask(server.url, CHAT, REPLIES, server="rlhf_pg")
    assert values == [5.0, 3.0]


def test_a_tokenizer_that_is_absent_or_has_no_template_is_refused(tmp_path):
    from tiny import tokenizer

    with pytest.raises(ModelError, match="cannot be loaded"):
        remote("http://127.0.0.1:1", tokenizer=str(tmp_path / "none"))
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no chat template"):
        remote("http://127.0.0.1:1", tokenizer=str(tmp_path))


# --- what is asked at all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/get_reward",
        "http://127.0.0.1:5000",
        "http://127.9.9.9/x",
        "http://localhost:1",
        "http://[::1]:5000/",
    ],
)
def test_https_and_this_machine_may_be_asked(url: str):
    check_url(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.org", "in the clear"),
        ("http://10.0.0.1:5000", "in the clear"),
        ("http://localhost.example.org", "in the clear"),
        ("http://127.0.0.1.example.org", "in the clear"),
        ("http://0.0.0.0:5000", "in the clear"),
        ("https://user:secret@example.org", "user or password"),
        ("http://127.0.0.1@example.org/", "user or password"),
        ("ftp://127.0.0.1", "form https://host/path"),
        ("/get_reward", "form https://host/path"),
        ("https://", "form https://host/path"),
        ("http://[::1", "no address"),
    ],
)
def test_nothing_else_may(url: str, said: str):
    with pytest.raises(ConfigError, match=said) as caught:
        check_url(url)
    assert "secret" not in str(caught.value)


def test_redirects_are_not_followed():
    with stub(rewards_by_length) as other:
        reply = Reply(b"", 307, {"Location": other.url})
        with stub(lambda *_: reply) as server:
            values, _ = ask(server.url)
    assert "redirects are not followed" in failures(values)[0]
    assert len(server.asked) == 1
    assert other.asked == []


def test_the_token_comes_from_the_environment_and_is_in_no_error_and_no_log(monkeypatch, caplog):
    monkeypatch.setenv("REWARD_TOKEN", "s3cret-token")
    with caplog.at_level(logging.DEBUG), stub(lambda *_: Reply({"error": "no s3cret-token here"}, 401)) as server:
        values, _ = ask(server.url, token_env="REWARD_TOKEN")
    assert server.headers[0]["Authorization"] == "Bearer s3cret-token"
    assert "status 401" in failures(values)[0]
    assert "s3cret" not in caplog.text + failures(values)[0]


@pytest.mark.parametrize("value", [None, "", "two words", "line\nbreak", "schlüssel"])
def test_a_token_that_cannot_be_is_refused(monkeypatch, value):
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("REWARD_TOKEN", value)
    with pytest.raises(ConfigError, match="REWARD_TOKEN"):
        token_of("REWARD_TOKEN")


def test_proxies_of_the_environment_are_used_only_when_asked_for(monkeypatch):
    with stub(rewards_by_length) as server, stub(lambda *_: Reply({"rewards": [7.0] * 3})) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert ask(server.url)[0] == [8.0, 11.0, 6.0]
        assert ask(server.url, trust_env=True)[0] == [7.0] * 3


@pytest.mark.parametrize(
    "args",
    [
        {"timeout": 0}, {"deadline": -1}, {"retries": -1}, {"concurrency": 0}, {"batch_rows": 0}, {"batch_rows": 2.5},
        {"max_bytes": 0}, {"timeout": "5"}, {"break_after": 0}, {"cool_down": -1}, {"server": "verl"}, {"timeout": math.nan},
        {"retries": 2.5}, {"concurrency": True}, {"deadline": math.inf}, {"cool_down": 0},
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(args: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"args.{next(iter(args))}"):
        remote("http://127.0.0.1:1", **args)


def test_every_limit_can_be_given():
    assert {field.name for field in fields(Limits)} <= set(inspect.signature(remote).parameters)


# --- retries, time, size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_trouble_is_tried_again(status: int):
    with stub(lambda body, n: Reply({}, status) if n < 2 else rewards_by_length(body, n)) as server:
        values, logged = ask(server.url)
    assert values == [8.0, 11.0, 6.0]
    assert logged["remote/retries"] == 2.0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_another_4xx_is_not(status: int):
    with stub(lambda *_: Reply({"error": "the query is odd"}, status)) as server:
        values, _ = ask(server.url)
    assert f'status {status} ({{"error": "the query is odd"}})' in failures(values)[0]
    assert len(server.asked) == 1


def test_a_dropped_connection_is_tried_again():
    with stub(lambda body, n: Reply(drop=True) if n == 0 else rewards_by_length(body, n)) as server:
        assert ask(server.url)[0] == [8.0, 11.0, 6.0]


def test_a_batch_that_never_gets_through_loses_its_rows_only():
    with stub(
        lambda body, n: Reply({}, 500) if "no way" in body["completions"] else rewards_by_length(body, n)
    ) as server:
        values, logged = ask(server.url, batch_rows=1, retries=2)
    assert [values[0], values[2]] == [8.0, 6.0]
    assert "gave no answer in 3 attempts" in failures(values[1:2])[0]
    assert "status 500" in str(values[1])
    assert logged["remote/retries"] == 2.0


def test_nobody_there():
    with stub(rewards_by_length) as server:
        pass
    values, _ = ask(server.url, retries=1)
    assert "ConnectError" in failures(values)[0]


def test_a_request_ends_at_its_timeout_however_slowly_it_is_answered():
    def drip(*_: Any) -> Reply:
        return Reply({"rewards": [0.0] * 3}, pause=0.05)  # each byte comes well within the time

    with stub(drip) as server:
        started = time.monotonic()
        values, _ = ask(server.url, timeout=0.1, retries=1)
    assert time.monotonic() - started < 0.6
    assert "did not answer within 0.1 s" in failures(values)[0]


def test_all_ends_at_the_deadline():
    with stub(lambda *_: Reply({}, 503)) as server:
        started = time.monotonic()
        values, _ = ask(server.url, [""] * 40, ["x"] * 40, batch_rows=1, retries=10**6, deadline=0.3, concurrency=2)
    assert time.monotonic() - started < 0.9
    assert len(failures(values)) == 40


def test_retry_after_is_heeded_up_to_a_bound(monkeypatch):
    replies = [Reply({}, 429, {"Retry-After": "1"})]
    with stub(lambda body, n: replies[n] if n < len(replies) else rewards_by_length(body, n)) as server:
        started = time.monotonic()
        assert ask(server.url)[0] == [8.0, 11.0, 6.0]
        assert 0.95 < time.monotonic() - started < 2.0
    monkeypatch.setattr(http, "LONGEST_ASKED", 0.01)
    with stub(lambda body, n: replies[n] if n < len(replies) else rewards_by_length(body, n)) as server:
        started = time.monotonic()
        assert ask(server.url)[0] == [8.0, 11.0, 6.0]
        assert time.monotonic() - started < 0.9
    assert len(server.asked) == 2


def test_retry_after_as_a_date_and_as_nonsense():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 27 < http._retry_after(soon) <= 30
    assert http._retry_after("soon") is None
    assert http._retry_after("12") == 12.0


def test_an_answer_that_is_too_long_is_not_read_to_its_end():
    with stub(lambda *_: Reply({"rewards": [0.0] * 3, "pad": "x" * 100_000})) as server:
        values, _ = ask(server.url, max_bytes=10_000)
    assert "longer than max_bytes=10000" in failures(values)[0]


def test_a_compressed_answer_is_refused():
    with stub(lambda *_: Reply(b"...", 200, {"Content-Encoding": "gzip"})) as server:
        values, _ = ask(server.url)
    assert server.headers[0]["Accept-Encoding"] == "identity"
    assert "compressed" in failures(values)[0]


# --- the circuit breaker -------------------------------------------------------------------------------------------


def test_a_broken_circuit_fails_at_once_then_one_request_tries():
    well = [False]
    limits = Limits(retries=1, break_after=2, cool_down=0.2)

    def answer(body: Any, number: int) -> Reply:
        time.sleep(0.02)
        return rewards_by_length(body, number) if well[0] else Reply({}, 503)

    async def play(server: Any) -> None:
        client = JsonClient(server.url, None, limits)

        async def post() -> str:
            try:
                await client.post({"query": ["a"]}, time.monotonic() + 5)
            except RewardError as error:
                return str(error)
            return "well"

        assert ["503" in await post() for _ in range(2)] == [True, True]
        assert "was not asked: 2 requests in a row failed" in await post()
        assert len(server.asked) == 4
        await asyncio.sleep(0.22)
        tried = await asyncio.gather(post(), post(), post())  # still down: one tries, and opens it again
        assert sorted("503" in said for said in tried) == [False, False, True]
        assert any("another request is trying it" in said for said in tried)
        assert "was not asked: 3 requests" in await post()
        assert len(server.asked) == 5  # without a retry
        well[0] = True
        await asyncio.sleep(0.22)
        assert await post() == "well"
        assert await asyncio.gather(post(), post()) == ["well", "well"]

    with stub(answer) as server:
        asyncio.run(play(server))


def test_a_refusal_does_not_break_the_circuit():
    with stub(lambda *_: Reply({}, 422)) as server:
        values, _ = ask(server.url, [""] * 6, ["x"] * 6, batch_rows=1, break_after=1, concurrency=1)
    assert len(server.asked) == 6
    assert all("422" in text for text in failures(values))


def test_a_refusal_shows_that_the_server_is_there():
    statuses = [503, 422, 503, 422]
    with stub(lambda _, number: Reply({}, statuses[number])) as server:
        values, _ = ask(server.url, [""] * 4, ["x"] * 4, batch_rows=1, break_after=2, concurrency=1, retries=0)
    assert ["503" in text for text in failures(values)] == [True, False, True, False]
    assert len(server.asked) == 4


# --- in a run ------------------------------------------------------------------------------------------------------


def test_a_run_uses_an_address_as_a_reward():
    with stub(rewards_by_length) as server:
        entry = {"function": f"{server.url}/get_reward", "name": "far", "args": {"labels": "answer", "batch_rows": 2}}
        runner = RewardRunner(RewardConfig.model_validate({"functions": [entry]}))
        rollout = text_rollout(["p"] * 3, TEXTS, {"answer": ["1", "2", "3"]})
        for _ in range(2):  # the connections of the first call are used again
            assert runner(rollout).scores.tolist() == [4.0, 7.0, 3.0]
    assert runner.names == ("far",)


def test_rows_that_fail_stop_a_run_or_count_as_unscorable():
    def answer(body: Any, number: int) -> Reply:
        return Reply({}, 500) if "no way" in body["completions"] else rewards_by_length(body, number)

    with stub(answer) as server:
        entry = {"function": server.url, "args": {"batch_rows": 1, "retries": 0}}
        rollout = text_rollout(["p"] * 3, TEXTS)
        config = {"functions": [entry], "on_error": "unscorable", "max_unscorable": 0.5}
        assert RewardRunner(RewardConfig.model_validate(config))(rollout).valid.tolist() == [True, False, True]
        with pytest.raises(RewardError, match=r"status 500.*no way"):
            RewardRunner(RewardConfig.model_validate({"functions": [entry]}))(rollout)


def test_a_label_column_that_is_absent_is_named():
    with pytest.raises(RewardError, match=r"args.labels='anwser' is no column of the data, which has \['answer'\]"):
        ask("http://127.0.0.1:1", columns={"answer": [1, 2, 3]}, labels="anwser")


def test_a_label_without_a_form_in_json_fails_the_rows():
    values, _ = ask("http://127.0.0.1:1", columns={"answer": [{1}, {2}, {3}]}, labels="answer")
    assert "has no form in JSON" in failures(values)[0]


def test_json_is_read_strictly():
    assert strict_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    for text in (b"NaN", b"-Infinity", b"{", b"", b"[" * 200_000):
        with pytest.raises(ValueError):  # noqa: PT011 -- each has a message of its own
            strict_json(text)
