"""Chat templates: Jinja, as checkpoints ship them, in a sandbox."""

import datetime
import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.folder import is_apple_double, read_json
from ..errors import CheckpointError, InputError
from ..fields import fitted

_MAX_TIME_FORMAT = 200  #: characters
_MARKS = ("\ufdd0", "\ufdd1")  # characters that Unicode keeps out of texts, for uses like this

Templates = str | dict[str, str] | None  #: Jinja source, or several by name


def find_chat_templates(folder: Path, tokenizer_config: dict[str, Any]) -> Templates:
    """The template of a checkpoint folder, from the places where it may stand; several by name.

    Raises:
        CheckpointError: a file is not text, or a list of templates is malformed.
    """
    further = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    files = {file.stem: file for file in further if not is_apple_double(file.name)}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    try:
        templates = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
        if not templates:
            found = read_json(folder, "chat_template.json", required=False).get("chat_template")
            found = found or tokenizer_config.get("chat_template")
            if not isinstance(found, list):
                found = [] if found is None else [{"name": "default", "template": found}]
            templates = {named["name"]: named["template"] for named in found}
    except (TypeError, KeyError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{folder}: no readable chat template: {error!r}") from error
    for value in (*templates, *templates.values()):
        if not isinstance(value, str):
            shown = f"chat_template is or has {reprlib.repr(value)}"
            raise CheckpointError(f"{folder}: {shown}, but must be text")
    return templates["default"] if templates.keys() == {"default"} else templates or None


def write_chat_templates(folder: Path, templates: Templates, prefix: str = "") -> None:
    """Write to a folder what `find_chat_templates` finds there.

    Raises:
        InputError: a template's name cannot be that of a file.
    """
    named = {"default": templates} if isinstance(templates, str) else templates or {}
    further = folder / f"{prefix}additional_chat_templates"
    for name, template in named.items():
        file = folder / f"{prefix}chat_template.jinja"
        if name != "default":
            if Path(name).name != name:
                raise InputError(f"a chat template cannot be saved by the name {name!r}")
            further.mkdir(exist_ok=True)
            file = further / f"{name}.jinja"
        file.write_text(template, encoding="utf-8")


def template_settings(templates: Templates) -> Any:
    """Templates as tokenizer_config.json has them."""
    if not isinstance(templates, dict):
        return templates
    return [{"name": name, "template": template} for name, template in templates.items()]


def choose_chat_template(templates: Templates, wanted: str | None, tools: Any) -> str:
    """The one to use: `wanted`, the source of a template or the name of one; or else the one for
    tools where there are tools; or else the default.

    Raises:
        InputError: there is none, or it is no text.
    """
    if isinstance(templates, dict):
        if wanted is None:
            wanted = "tool_use" if tools is not None and "tool_use" in templates else "default"
            if wanted not in templates:
                what = "this checkpoint has several chat templates, and none is the default"
                names = ", ".join(sorted(templates))
                raise InputError(f"{what}: choose with chat_template one of {names}")
        return fitted("chat_template", templates.get(wanted, wanted), str)
    found = templates if wanted is None else wanted
    if found is None:
        raise InputError("this checkpoint has no chat template; give the prompt as plain text")
    return fitted("chat_template", found, str)


def render_chat(template: str, messages: Sequence[dict[str, Any]], **variables: Any) -> str:
    """Render messages.

    Args:
        template: Jinja source.
        messages: as the template wants them, mostly `{"role": ..., "content": "text"}`; keys whose
            value is None are left out.
        variables: what else the template may use.

    Raises:
        InputError: the messages or variables are not plain data, or the template refuses them.
        CheckpointError: the template itself is broken, or takes too much; see `template_limits`.
    """
    return _rendered(template, messages, variables)


def render_marked(
    template: str, messages: Sequence[dict[str, Any]], **variables: Any
) -> tuple[str, list[tuple[int, int]]]:
    """As `render_chat`, and where in it stands what the assistant says, as the template marks it
    with `{% generation %}`: start and end in characters."""
    text, spans = "", []
    for part in _rendered(template, messages, variables, marked=True).split(_MARKS[0]):
        said, end, rest = part.rpartition(_MARKS[1])
        if end:
            spans.append((len(text), len(text) + len(said)))
        text += said + rest
    return text, spans


def _rendered(
    template: str, messages: Any, variables: dict[str, Any], *, marked: bool = False
) -> str:
    is_list = isinstance(messages, list | tuple)
    if not is_list or not messages or not all(isinstance(each, dict) for each in messages):
        raise InputError("a chat is one or more messages, each a dictionary with role and content")
    messages = [{k: v for k, v in message.items() if v is not None} for message in messages]
    try:
        # a copy of plain data: a template is not to be trusted with methods of the caller's objects
        data = json.loads(json.dumps({**variables, "messages": messages}))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"a chat template takes plain data only: {error}") from error
    try:
        return _environment(data, marked).render(template)
    except (InputError, CheckpointError):
        raise
    except Exception as error:  # a template is a program, and may fail in any way
        raise CheckpointError(f"the chat template fails: {error}") from error


def _environment(data: dict[str, Any], marked: bool):
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols

    from .template_limits import BoundedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant says, for training; it renders as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            scope = nodes.Scope(body, lineno=line)
            if not marked:
                return scope
            begin, end = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in _MARKS)
            return [begin, scope, end]

    def raise_exception(message: str):
        raise InputError(f"the chat template refuses these messages: {message}")

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        options = {"separators": separators, "sort_keys": sort_keys}
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, **options)
        if indent is None:
            return encoder.encode(value)
        return environment.joined(encoder.iterencode(value))

    environment = BoundedEnvironment(
        data,
        filters={"tojson": tojson},
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, loopcontrols],
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _strftime_now(form: str) -> str:
    if len(form) > _MAX_TIME_FORMAT:
        raise ValueError(f"a format of {len(form)} characters for a date")
    return datetime.datetime.now().strftime(form)
