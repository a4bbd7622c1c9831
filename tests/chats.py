"""Conversations for the tests of chat completions, and what the model says without a server."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from pathlib import Path

from conftest import DATA, TRANSCRIBE
from openai.types.chat import ChatCompletion

import mlx_speech

AUDIO = DATA / "audio"
LIGHT = "turn on the kitchen light"
COMMAND = "translate to french: please turn on the hall light and play some music"
PATH = "/v1/chat/completions"


def say(text, role="user"):
    return {"role": role, "content": text}


def recording(source, form="flac"):
    """A part with a file, or with its bytes."""
    data = source.read_bytes() if isinstance(source, Path) else source
    audio = {"data": base64.b64encode(data).decode(), "format": form}
    return {"type": "input_audio", "input_audio": audio}


def about(*sources, text=TRANSCRIBE):
    """A message about recordings."""
    return say([*map(recording, sources), {"type": "text", "text": text}])


def create(client, messages, model="tiny", **asked):
    """An answer, of the type that the client has for it."""
    answer = client.chat.completions.create(model=model, messages=messages, **asked)
    return ChatCompletion.model_validate(answer.model_dump(exclude_unset=True), strict=True)


def text_of(answer):
    return answer.choices[0].message.content


def alone(loaded, messages, **options):
    """What a model answers to the same messages, without a server and without a cache."""
    model, processor = loaded
    options = {"max_new_tokens": 512} | options
    if all(isinstance(message["content"], str) for message in messages):
        return mlx_speech.generate(model, processor, messages, **options)
    messages = [{**m, "content": _read(m["content"])} for m in messages]
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    ids = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(ids, skip_special_tokens=True).strip()


def _read(content):
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if part["type"] == "input_audio":
            data = base64.b64decode(part["input_audio"]["data"])
            path = next(p for p in AUDIO.iterdir() if p.read_bytes() == data)
            part = {"type": "audio", "audio": str(path)}
        parts.append(part)
    return parts


def post(url, body):
    """Status and error object, or answer, of a request whose body may be anything."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + PATH, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["error"]
