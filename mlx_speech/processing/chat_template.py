"""Chat templates: Jinja, as checkpoints ship them, in a sandbox."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InputError
from ..models.config import read_json


def find_chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The template of a checkpoint folder, from the places where it may stand."""
    file = folder / "chat_template.jinja"
    try:
        if file.is_file():
            return file.read_text(encoding="utf-8")
        template = read_json(folder, "chat_template.json", required=False).get("chat_template")
        template = template or tokenizer_config.get("chat_template")
        if isinstance(template, list):  # several named ones
            template = {t["name"]: t["template"] for t in template}.get("default")
    except (TypeError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder}: no readable chat template: {error}") from error
    if not isinstance(template, str | None):
        raise CheckpointError(f"{folder}: chat_template is {template!r}, but must be text")
    return template


def render_chat(template: str, messages: Sequence[dict[str, Any]], **variables: Any) -> str:
    """Render messages whose contents are plain strings.

    Raises:
        InputError: the template refuses the messages.
        CheckpointError: the template itself is broken.
    """
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str):
        raise InputError(f"the chat template refuses these messages: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda x, **kw: json.dumps(x, ensure_ascii=False, **kw)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(messages=messages, **variables)
    except InputError:
        raise
    except Exception as error:  # a template is a program, and may fail in any way
        raise CheckpointError(f"the chat template fails: {error}") from error
