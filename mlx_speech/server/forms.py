"""The fields of a form, `multipart/form-data`, as OpenAI's clients send them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from ..fields import fitted
from .errors import RequestError

# all of which are in memory
_MAX_FIELDS = 1000
_MAX_FIELD_BYTES = 1 << 16


@asynccontextmanager
async def read_form(request: Request) -> AsyncIterator["Form"]:
    """A request's form; its file is gone at the end.

    Raises:
        RequestError: it is no form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise RequestError("the request must be a form: multipart/form-data", 415)
    limits = {"max_files": 1, "max_fields": _MAX_FIELDS, "max_part_size": _MAX_FIELD_BYTES}
    async with request.form(**limits) as data:
        yield Form(data)


class Form:
    """Fields by name, each of which is to be taken.

    Raises:
        RequestError: a field is not what it must be; likewise by all methods.
    """

    def __init__(self, data: FormData):
        self._values: dict[str, list[Any]] = {}
        for name, value in data.multi_items():
            self._values.setdefault(name, []).append(value)

    def file(self, name: str) -> UploadFile:
        """A file.

        Raises:
            RequestError: there is none, or more than one.
        """
        match self._values.pop(name, []):
            case [UploadFile() as file]:
                return file
            case []:
                raise RequestError(f"{name} is missing: send a recording", 400, name)
            case [str()]:
                hint = f"curl takes -F {name}=@ and the name of a file"
                raise RequestError(f"{name} is a text, but must be a file; {hint}", 400, name)
        raise RequestError(f"{name} must be one file", 400, name)

    def text(self, name: str) -> str | None:
        """A text; None where there is none, or it is empty.

        Raises:
            RequestError: there are several.
        """
        values = self._texts(name)
        if len(values) > 1:
            raise RequestError(f"{name} is given {len(values)} times", 400, name)
        return values[0] or None if values else None

    def texts(self, name: str) -> list[str]:
        """Texts, each sent as `name[]`, or as `name`."""
        return [text for text in self._texts(f"{name}[]") + self._texts(name) if text]

    def choices(self, name: str, known: Sequence[str]) -> list[str]:
        """Texts that are among those that are known.

        Raises:
            RequestError: one is not.
        """
        texts = self.texts(name)
        for text in texts:
            if text not in known:
                message = f"{name}[] is {text!r}, but must be {' or '.join(known)}"
                raise RequestError(message, 400, f"{name}[]")
        return texts

    def value(self, name: str, hint: Any) -> Any:
        """A value of another type, see `fitted`; None where there is none."""
        text = self.text(name)
        return None if text is None else fitted(name, _parsed(text), hint)

    def objects(self, name: str) -> dict[str, str]:
        """The members of an object, each sent as `name[member]`."""
        members = [key for key in self._values if key.startswith(f"{name}[") and key[-1] == "]"]
        return {key[len(name) + 1 : -1]: self.text(key) or "" for key in members}

    def refuse(self, reasons: dict[str, str]) -> None:
        """Refuse fields that nobody honours.

        Args:
            reasons: name -> why.
        """
        for name, reason in reasons.items():
            if self.texts(name):
                raise RequestError(f"{name}: {reason}", 400, name, "unsupported_parameter")

    def end(self) -> None:
        """Refuse what nobody has asked for."""
        for name in self._values:
            raise RequestError(f"there is no field {name!r}", 400, name, "unknown_parameter")

    def _texts(self, name: str) -> list[str]:
        values = self._values.pop(name, [])
        if any(isinstance(value, UploadFile) for value in values):
            raise RequestError(f"{name} must be a text, and no file", 400, name)
        return values


def _parsed(text: str) -> Any:
    """A number, or true or false, or else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text
