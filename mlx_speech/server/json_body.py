"""Bodies of requests that are JSON, from clients that nobody knows."""

import asyncio
import json
import re
from typing import Any, NoReturn

from starlette.requests import Request

from .errors import RequestError

_DEEPEST = 16  #: lists and objects in each other; what is asked for needs five
_SURROGATE = re.compile("[\ud800-\udfff]")


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """The object that a body is; of its fields those that are not null.

    Raises:
        RequestError: it is none, is no valid JSON or text, or larger than `max_bytes`.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            message = f"a request of JSON may have {max_bytes} bytes at most"
            raise RequestError(message, 413, code="request_too_large")
    return await asyncio.to_thread(parse_json, bytes(body))


def parse_json(text: bytes | str) -> dict[str, Any]:
    """As `read_json`, of what was read; raises what that does."""
    try:
        text = text if isinstance(text, str) else text.decode()
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise RequestError(f"the request is no valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise RequestError("the request must be a JSON object")
    _check(data, _DEEPEST)
    return {name: value for name, value in data.items() if value is not None}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _check(value: Any, levels: int) -> None:
    """Refuse what would fail only later, where it is shown or encoded."""
    if levels < 0:
        raise RequestError(f"the request has more than {_DEEPEST} lists or objects in each other")
    match value:
        case str():
            if not value.isascii() and _SURROGATE.search(value):
                raise RequestError("the request has a lone surrogate: it is not valid Unicode")
        case list():
            for item in value:
                _check(item, levels - 1)
        case dict():
            for name, item in value.items():
                _check(name, levels - 1)
                _check(item, levels - 1)
