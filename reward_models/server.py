"""A reward as an HTTP server, in the wire format of OpenRLHF's reward servers; needs the extra ``serve``."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
import socket
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from typing import Any

from reward_models.http import is_loopback, strict_json
from reward_models.scorer import Score, Scorer, Values
from reward_models.wire import Refused, read_rows
from rlhf_pg.errors import ConfigError, RewardError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise ImportError(
        "serving a reward needs the packages starlette and uvicorn; install the extra: pip install 'rlhf-pg[serve]'"
    ) from error


def make_app(
    score: Score,
    *,
    name: str,
    token: str | None = None,
    max_rows: int = 4096,
    max_bytes: int = 64_000_000,
    merge_rows: int = 64,
    max_waiting: int = 64,
    timeout: float = 300.0,
    query_end: str = "",
) -> Starlette:
    """An application that answers ``POST /`` and ``/get_reward``, and ``GET /health`` and ``/metrics``.

    Args:
        score: called with prompts (strings or messages), completions, labels (or None) and the completions' token ids (or
            None), in one thread, one call at a time; gives a value per row: a number, None, or the error it failed with.
        name: what ``/health`` says is served.
        token: what clients must send as ``Authorization: Bearer``; ``/health`` is open.
        max_rows: rows of a request.
        max_bytes: bytes of a request.
        merge_rows: waiting requests are scored in one call up to so many rows.
        max_waiting: requests that may be here at once; further ones get 503.
        timeout: seconds that a request may take, its wait included.
        query_end: taken off the end of queries that come without ``completions``, such as an end-of-sequence token.
    """
    scorer, numbers, expected = Scorer(score, merge_rows), Counter[str](), f"Bearer {token}".encode()

    def check_token(request: Request) -> None:
        given = request.headers.get("Authorization", "").encode()
        if token is not None and not hmac.compare_digest(given, expected):
            raise Refused(401, "the token is missing or wrong; send it as Authorization: Bearer TOKEN")

    async def get_reward(request: Request) -> Response:
        check_token(request)
        if max(numbers["in_flight"], scorer.waiting) > max_waiting:
            raise Refused(503, "too many requests wait for the reward; ask again later")
        rows = read_rows(await _body(request, max_bytes, timeout), max_rows, query_end)
        values = [_checked(value) for value in (await _unless_gone(request, scorer(rows, timeout)))]
        errors = {str(row): str(value) for row, value in enumerate(values) if isinstance(value, RewardError)}
        rewards = [None if isinstance(value, RewardError) else value for value in values]
        numbers.update(rows=len(rows), failed=len(errors), unscorable=rewards.count(None) - len(errors))
        return JSONResponse({"rewards": rewards} | ({"errors": errors} if errors else {}))

    async def answered(request: Request) -> Response:
        numbers["in_flight"] += 1
        try:
            response = await get_reward(request)
        except Refused as error:
            response = JSONResponse({"error": str(error)}, error.status)
        except ClientDisconnect:
            response = JSONResponse({"error": "the client has gone"}, 400)
        except RewardError as error:
            response = JSONResponse({"error": str(error)}, 500)
        finally:
            numbers["in_flight"] -= 1
        if response.status_code in (503, 504):
            response.headers["Retry-After"] = "1"
        numbers[f"status {response.status_code}"] += 1
        return response

    async def health(_: Request) -> Response:
        stuck = scorer.busy_since is not None and time.monotonic() - scorer.busy_since > timeout
        return JSONResponse({"ready": not stuck, "name": name}, 503 if stuck else 200)

    async def metrics(request: Request) -> Response:
        try:
            check_token(request)
        except Refused as error:
            return JSONResponse({"error": str(error)}, error.status)
        return PlainTextResponse(_exposition(numbers, scorer), media_type="text/plain; version=0.0.4")

    posts = [Route(path, answered, methods=["POST"]) for path in ("/", "/get_reward")]
    return Starlette(routes=[*posts, Route("/health", health), Route("/metrics", metrics)])


async def _unless_gone(request: Request, scoring: Coroutine[Any, Any, Values]) -> Values:
    """Wait for the values; give up where the client does, which may be asking again already."""
    values, gone = asyncio.ensure_future(scoring), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((values, gone), return_when=asyncio.FIRST_COMPLETED)
        if not values.done():
            raise ClientDisconnect
        return values.result()
    finally:
        values.cancel()
        gone.cancel()


async def _body(request: Request, max_bytes: int, timeout: float) -> Any:
    """The JSON of a request, of which no more is read than may be."""
    data = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for chunk in request.stream():
                data += chunk
                if len(data) > max_bytes:
                    raise Refused(
                        413,
                        f"the request is longer than the {max_bytes} bytes that it may have; send fewer rows at a time",
                    )
        return strict_json(bytes(data))
    except TimeoutError:
        raise Refused(408, f"the request did not arrive within {timeout:g} s") from None
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from None


def _checked(value: Any) -> float | RewardError | None:
    """A value that JSON can hold: NaN is unscorable, and what is no finite number an error."""
    if value is None or isinstance(value, RewardError):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if math.isinf(number):
        return RewardError(f"the reward gave {str(value)[:100]}, which is no finite number")
    return None if math.isnan(number) else number


def _exposition(numbers: Mapping[str, int], scorer: Scorer) -> str:
    """The metrics in Prometheus' text format."""
    answers = {f'{{status="{key.split()[1]}"}}': n for key, n in sorted(numbers.items()) if key.startswith("status ")}
    families: list[tuple[str, str, str, Mapping[str, float]]] = [
        ("requests_total", "counter", "Requests for rewards, by the status of the answer.", answers),
        ("rows_total", "counter", "Rows that were scored.", {"": numbers["rows"]}),
        ("unscorable_rows_total", "counter", "Rows that the reward could not score.", {"": numbers["unscorable"]}),
        ("failed_rows_total", "counter", "Rows that the reward failed on.", {"": numbers["failed"]}),
        ("in_flight_requests", "gauge", "Requests that are being answered.", {"": numbers["in_flight"]}),
        ("scoring_seconds", "summary", "Time of the reward's calls.", {"_sum": scorer.seconds, "_count": scorer.calls}),
    ]
    lines = []
    for name, kind, meaning, values in families:
        lines += [f"# HELP rlhf_pg_reward_{name} {meaning}", f"# TYPE rlhf_pg_reward_{name} {kind}"]
        lines += [f"rlhf_pg_reward_{name}{label} {value}" for label, value in values.items()]
    return "\n".join(lines) + "\n"


def listen(host: str, port: int, token: str | None) -> socket.socket:
    """Take a port; 0 takes a free one.

    Raises:
        ConfigError: others could reach it and there is no token, or it cannot be had.
    """
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} would let everyone who can reach this machine ask for rewards; name an environment variable that "
            "holds a token in --token-env, or leave --host at 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--host {host} --port {port} cannot be had: {error}; choose another, or --port 0 for a free one"
        ) from None
    # Connections inherit it. asyncio sets it only on sockets that it made itself, and without it an answer waits some 40 ms
    # between its headers and its body, for the client's delayed acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def run(app: Starlette, listening: socket.socket) -> None:
    """Answer requests until a signal ends it."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
