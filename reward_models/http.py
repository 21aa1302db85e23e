"""JSON over HTTP for rewards that are asked elsewhere: what may be asked, how long, how often, and how much is read."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import math
import os
import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from rlhf_pg.errors import ConfigError, RewardError

BACK_OFF, LONGEST_WAIT = 0.5, 15.0  # seconds before the first retry, and at most before any; each doubles
LONGEST_ASKED = 60.0  # seconds that a server may ask us to wait
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: ``localhost``, 127.0.0.0/8 or ::1."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_url(url: str) -> httpx.URL:
    """An address that may be asked: https, or http on this machine, without a user or password in it.

    Raises:
        ConfigError: it is not such a one.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigError(f"{url!r} is no address: {error}; write https://host/path") from None
    shown = shown_url(parsed)
    if parsed.userinfo:
        raise ConfigError(
            f"the address {shown} has a user or password in it, which would be written into the run's files; take it out, "
            "and name an environment variable that holds the token in args.token_env"
        )
    if not parsed.host or parsed.scheme not in ("http", "https"):
        raise ConfigError(f"{shown!r} must be an address of the form https://host/path, or http:// on this machine")
    if parsed.scheme == "http" and not is_loopback(parsed.host):
        raise ConfigError(
            f"{shown} would send texts and the token in the clear; use https, or reach it through a tunnel that ends on this "
            "machine (localhost, 127.0.0.0/8 or ::1)"
        )
    return parsed


def shown_url(url: httpx.URL) -> str:
    """An address as errors name it: nothing secret can be in what is left."""
    return str(url.copy_with(query=None, fragment=None, username=None, password=None))


def token_of(variable: str | None) -> str | None:
    """The token in an environment variable.

    Raises:
        ConfigError: it is not set, or holds what no header can hold.
    """
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigError(f"token_env names the environment variable {variable!r}, which is not set; export it")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(f"the environment variable {variable!r} holds a space or a character that no token can have")
    return token


def strict_json(data: bytes) -> Any:
    """Read JSON as the standard has it: no NaN, no Infinity, no key twice; ValueError where it is not."""
    try:
        return json.loads(data, parse_constant=_refuse, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(pairs) if len(dict(pairs)) == len(pairs) else _refuse("an object with a key twice")


def _refuse(literal: str) -> Any:
    raise ValueError(f"{literal} is no standard JSON")


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient a client is.

    Args:
        timeout: seconds that one request may take, from connecting to the last byte.
        deadline: seconds that a whole call may take, with all its requests and retries.
        retries: further attempts after a connection error, a timeout, or status 408, 425, 429 or 5xx.
        concurrency: requests at once.
        max_bytes: the longest answer that is read.
        break_after: requests that fail one after the other, each with all its retries, until no more are tried.
        cool_down: seconds until then a single request is tried again.
        trust_env: take proxies and certificates from the environment.

    Raises:
        ConfigError: one of them is out of range.
    """

    timeout: float = 60.0
    deadline: float = 300.0
    retries: int = 8
    concurrency: int = 8
    max_bytes: int = 16_000_000
    break_after: int = 5
    cool_down: float = 30.0
    trust_env: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in {"retries": 0, "concurrency": 1, "max_bytes": 1, "break_after": 1}.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"args.{name}={value!r} must be a whole number of at least {least}")
        for name in ("timeout", "deadline", "cool_down"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ConfigError(f"args.{name}={value!r} must be a number of seconds above 0")


class _Again(Exception):
    """An attempt failed in a way that another may not; ``wait`` is what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class JsonClient:
    """Posts JSON to one address and reads JSON, with limits, retries and a circuit breaker.

    Waits ``min(15, 0.5 * 2^k) * U(0.5, 1)`` seconds before retry k, or what ``Retry-After`` says, at most 60. Redirects are not
    followed: the token and the texts go where the user said. Other 4xx are not retried.

    Args:
        url: the address; see :func:`check_url`.
        token: sent as ``Authorization: Bearer``.
        limits: how patient it is.

    Attributes:
        retried: attempts so far that were not the first of their request.
    """

    def __init__(self, url: str, token: str | None = None, limits: Limits | None = None) -> None:
        self.url, self.limits = check_url(url), limits or Limits()
        self.shown, self.retried = shown_url(self.url), 0
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        self._token = token
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._bound: tuple[asyncio.AbstractEventLoop, httpx.AsyncClient, asyncio.Semaphore] | None = None
        self._jitter = random.Random()  # of its own: it decides when, never what
        self._failures, self._opens_at, self._probing = 0, 0.0, False

    async def post(self, body: Any, until: float) -> Any:
        """Post and read.

        Args:
            body: what is sent, as JSON.
            until: when to give up, in seconds of ``time.monotonic()``.

        Raises:
            RewardError: there is no usable answer; says why, and after how many attempts.
        """
        try:
            content = json.dumps(body, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RewardError(f"what {self.shown} is to be asked has no form in JSON: {error}") from None
        client, slots = self._client()
        async with slots:
            if time.monotonic() >= until:
                raise RewardError(f"{self.shown} was not asked: deadline={self.limits.deadline:g} s was over before")
            probing = self._admit()
            try:
                answer = await self._attempts(client, content, until, 0 if probing else self.limits.retries)
            except _Again as error:
                self._failures += 1
                if self._failures >= self.limits.break_after:
                    self._opens_at = time.monotonic() + self.limits.cool_down
                raise RewardError(f"{self.shown} {error}") from None
            finally:
                self._probing = self._probing and not probing
        self._failures = 0
        return answer

    def _client(self) -> tuple[httpx.AsyncClient, asyncio.Semaphore]:
        """The connections, which belong to the event loop that they were opened on."""
        loop = asyncio.get_running_loop()
        if self._bound is None or self._bound[0] is not loop:
            connections = httpx.Limits(max_connections=self.limits.concurrency)
            client = httpx.AsyncClient(
                headers=self._headers, limits=connections, timeout=None, trust_env=self.limits.trust_env
            )
            self._bound = (loop, client, asyncio.Semaphore(self.limits.concurrency))
        return self._bound[1:]

    def _admit(self) -> bool:
        """Whether this request is the one that tries a broken circuit."""
        if self._failures < self.limits.break_after:
            return False
        wait = self._opens_at - time.monotonic()
        if wait > 0 or self._probing:
            when = f"it is tried again in {wait:.0f} s" if wait > 0 else "another request is trying it"
            raise RewardError(f"{self.shown} was not asked: {self._failures} requests in a row failed, and {when}")
        self._probing = True
        return True

    async def _attempts(self, client: httpx.AsyncClient, content: bytes, until: float, retries: int) -> Any:
        """Try, wait, try again."""
        started = time.monotonic()
        for attempt in range(retries + 1):
            self.retried += attempt > 0
            try:
                return await self._attempt(client, content, until)
            except _Again as error:
                wait = min(LONGEST_WAIT, BACK_OFF * 2**attempt) * self._jitter.uniform(0.5, 1.0)
                wait = wait if error.wait is None else min(error.wait, LONGEST_ASKED)
                if attempt == retries or time.monotonic() + wait >= until:
                    tries, spent = f"{attempt + 1} attempt{'s' * (attempt > 0)}", time.monotonic() - started
                    raise _Again(f"gave no answer in {tries} over {spent:.1f} s; the last one: {error}") from None
                logging.getLogger(__name__).warning(
                    "%s: %s; attempt %d follows in %.1f s", self.shown, error, attempt + 2, wait
                )
                await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, client: httpx.AsyncClient, content: bytes, until: float) -> Any:
        """One request."""
        seconds = min(self.limits.timeout, until - time.monotonic())
        try:
            async with asyncio.timeout(seconds):
                request = client.stream("POST", self.url, content=content, follow_redirects=False)
                async with request as response:
                    data = await self._read(response)
        except TimeoutError:
            raise _Again(f"it did not answer within {max(seconds, 0):.3g} s") from None
        except httpx.TransportError as error:
            raise _Again(f"{type(error).__name__}: {error}".rstrip(": ")) from None
        status = response.status_code
        if status in _AGAIN:
            raise _Again(f"status {status}{self._said(data)}", _retry_after(response.headers.get("Retry-After")))
        if status != 200:
            self._failures = 0  # it is there: it does not want this
            moved = "; redirects are not followed: give the address that it moved to" if 300 <= status < 400 else ""
            raise RewardError(f"{self.shown} answered with status {status}{self._said(data)}{moved}")
        try:
            return strict_json(data)
        except ValueError as error:
            raise RewardError(
                f"{self.shown} answered with something that is not JSON: {error}{self._said(data)}"
            ) from None

    async def _read(self, response: httpx.Response) -> bytes:
        """The body, which is given up once it is too long."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise RewardError(f"{self.shown} compressed its answer, which it was asked not to do")
        data = bytearray()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > self.limits.max_bytes:
                raise RewardError(f"the answer of {self.shown} is longer than max_bytes={self.limits.max_bytes}")
        return bytes(data)

    def _said(self, data: bytes) -> str:
        """The beginning of an answer, without control characters and without the token, should it be repeated there."""
        text = data[:4096].decode(errors="replace").replace(self._token or "\0", "...")
        text = "".join(letter if letter.isprintable() else " " for letter in text[:200]).strip()
        return f" ({text})" if text else ""


def _retry_after(value: str | None) -> float | None:
    """Seconds from now, from a header that has seconds or a date."""
    if value is None:
        return None
    try:
        if value.strip().isdigit():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
