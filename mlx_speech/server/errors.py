"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

import errno
import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response

from ..distributed.group import tells_loss
from ..errors import (
    AudioError,
    CheckpointError,
    DistributedError,
    HubError,
    MlxSpeechError,
    one_line,
)
from .engine import BusyError
from .models import UnknownModelError
from .reply import StoppedError

logger = logging.getLogger(__name__)

#: names of the library's -> what the API calls them
_FIELDS = {
    "speakers": "response_format",
    "word_timestamps": "timestamp_granularities[]",
    "min_silence": "chunking_strategy[silence_duration_ms]",
    "vad_threshold": "chunking_strategy[threshold]",
    "max_new_tokens": "max_tokens",
    "stop_strings": "stop",
}
#: status -> what is wrong, in more words than the protocol's
_ADDRESSES = {404: "there is nothing at this address", 405: "this address takes other methods"}

RETRY_SECONDS = 1  #: after which a client may ask again, where there was no room for it


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        status: of the HTTP answer. Clients retry 408, 409, 429 and 500 or more by themselves, so
            what fails alike each time is another.
        param: name of the field that is wrong.
        code: what programs tell it by.
    """

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, code: str | None = None
    ):
        super().__init__(one_line(message))
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"message": str(self), "type": kind, "param": self.param, "code": self.code}

    @property
    def headers(self) -> dict[str, str]:
        """Whether, and when, a client is to try again."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if self.status in (500, 504):  # the same would happen again
            return {"x-should-retry": "false"}
        if self.status in (429, 503, 507):
            return {"Retry-After": str(RETRY_SECONDS)}
        return {}


def as_request_error(error: BaseException, **fields: str) -> RequestError:
    """What a client is told about an error. What is nobody's fault but the server's goes to its
    log.

    Args:
        fields: names of the library's, and what the request calls them.
    """
    match error:
        case RequestError():
            return error
        case UnknownModelError():
            return RequestError(str(error), 404, "model", "model_not_found")
        case CheckpointError():
            logger.error("a model cannot be loaded: %s", error)  # it may name files of ours
            message = "the model cannot be loaded; the server's log says why"
            status = 503 if isinstance(error, HubError) else 500
            return RequestError(message, status, "model", "model_not_loaded")
        case AudioError(__context__=OSError(errno=errno.ENOSPC | errno.EDQUOT) as full):
            return as_request_error(full)
        case AudioError():
            return RequestError(str(error), 400, "file", "invalid_audio")
        case DistributedError():
            return as_request_error(StoppedError())  # the log says why, as the server ends
        case MlxSpeechError():
            named: list[str] = []
            names = {**_FIELDS, **fields}

            def spell(name: str) -> str:
                named.append(names.get(name, name))
                return named[-1]

            message = error.spelled(spell)  # the option that it is about comes first
            return RequestError(message, 400, next(filter(None, named), None), "invalid_value")
        case BusyError():
            message = "the server is busy: try again"
            return RequestError(message, 429, code="rate_limit_exceeded")
        case RuntimeError() if tells_loss(error):
            return as_request_error(StoppedError())
        case StoppedError():
            return RequestError("the server is shutting down", 503, code="shutting_down")
        case TimeoutError():
            message = "the request took longer than the server allows"
            return RequestError(message, 504, code="timeout")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            message = "the server's disk is full: try again later, or send less"
            return RequestError(message, 507, "file", "disk_full")
        case HTTPException(status_code=status):
            return RequestError(_ADDRESSES.get(status, error.detail), status)
    logger.error("a request failed", exc_info=error)
    return RequestError("the server failed; its log says how", 500, code="internal_error")


async def error_response(connection: HTTPConnection, error: Exception) -> Response:
    """The answer that tells an error."""
    wrong = as_request_error(error)
    headers = {**(getattr(error, "headers", None) or {}), **wrong.headers}
    return JSONResponse({"error": wrong.body}, wrong.status, headers)
