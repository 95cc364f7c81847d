"""Download one address to one file, with retries; go on where a broken or killed download was.

This module never looks into the file, and never decides whether it is the right one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from hpo.errors import HpoError
from trainer.config.settings import ConfigError

Progress = Callable[[int, int | None], None]  # bytes received, and the total where it is known

_ATTEMPTS = 5
_FIRST_WAIT_SECONDS = 1.0  # twice as long before each next attempt
_SILENCE_SECONDS = 60.0  # a server that is silent for longer counts as gone
_CHUNK_BYTES = 2**18
_AGENT = "layerdrop-hpo"  # WikiText's server refuses the name that Python gives itself
_TRY_AGAIN = {408, 429, 500, 502, 503, 504}
_NOTHING_LEFT = 416  # the HTTP status for a range that begins past the end


class _Broken(HpoError):
    """The network failed; another attempt may do."""


def download(url: str, prefix: Path, progress: Progress) -> Path:
    """Fetch `url` into a file whose name begins with `prefix` and ends with `.part`; return it.

    Each address has a file name of its own. The file stays until the caller removes it, so that a
    call after a kill fetches only what is missing. Raises ConfigError when `url` cannot be fetched,
    and OSError when the file cannot be written.
    """
    name = hashlib.sha256(url.encode()).hexdigest()[:8]
    part = prefix.with_name(f"{prefix.name}-{name}.part")
    attempts = Retrying(
        retry=retry_if_exception_type(_Broken),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential(_FIRST_WAIT_SECONDS),
        reraise=True,
    )
    try:
        attempts(_attempt, url, part, progress)
    except _Broken as error:
        raise ConfigError(
            f"{url}: cannot be fetched: {error}; try again, which goes on from what has come, "
            "or give another source with --url"
        ) from None
    return part


def _attempt(url: str, part: Path, progress: Progress) -> None:
    there = part.stat().st_size if part.exists() else 0
    answer = _ask(url, there)
    if answer is None:
        # The server has nothing left to send: the file is complete, or too long.
        return
    body, status, headers = answer
    with body:
        if status != 206:
            there = 0  # the server sends it all again
        length = headers["Content-Length"]
        total = there + int(length) if length else None
        with part.open("ab" if there else "wb") as file:
            for chunk in _chunks(body):
                file.write(chunk)
                there += len(chunk)
                progress(there, total)
    if total is not None and there < total:
        raise _Broken(f"the server stopped after {there:,} of {total:,} bytes")


def _ask(url: str, there: int) -> tuple[IO[bytes], int | None, HTTPMessage] | None:
    headers = {"User-Agent": _AGENT}
    if there:
        headers["Range"] = f"bytes={there}-"
    try:
        request = Request(url, headers=headers)  # noqa: S310 - a file is as good a source
        answer = urlopen(request, timeout=_SILENCE_SECONDS)  # noqa: S310
    except HTTPError as error:
        error.close()
        if error.code == _NOTHING_LEFT and there:
            return None
        reason = f"{error.code} {error.reason}"
        if error.code in _TRY_AGAIN:
            raise _Broken(reason) from None
        raise ConfigError(f"{url}: the server says {reason}; give another --url") from None
    except (OSError, HTTPException) as error:
        raise _Broken(str(getattr(error, "reason", error))) from None
    except ValueError as error:
        raise ConfigError(f"{url}: {error}; give an address such as https://...") from None
    return answer, answer.status, answer.headers


def _chunks(body: IO[bytes]) -> Iterator[bytes]:
    while True:
        try:
            chunk = body.read(_CHUNK_BYTES)
        except (OSError, HTTPException) as error:
            raise _Broken(str(error)) from None
        if not chunk:
            return
        yield chunk
