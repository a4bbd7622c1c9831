"""`POST /v1/chat/completions`."""

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..generation.text import GenerationResponse
from .answers import token_logprob
from .chat_audio import decode_recordings
from .chat_prompt import ChatCaches, ChatPrompt, answer, make_prompt
from .chat_request import ChatRequest
from .event_stream import EventStream
from .json_body import read_json
from .work import in_thread, working

#: of a request, all of which is in memory, with recordings in base64
MAX_BODY_BYTES = 64_000_000


class Chat:
    """Answers conversations, the latest of which it keeps."""

    def __init__(self) -> None:
        self._caches = ChatCaches()

    async def completions(self, request: Request) -> Response:
        """The answer, whole or as it comes."""
        async with AsyncExitStack() as stack:
            engine = await stack.enter_async_context(working(request))
            asked = ChatRequest.from_body(await read_json(request, MAX_BODY_BYTES))
            name = engine.models.resolve(asked.model or engine.models.names[0])
            conversation = await in_thread(partial(decode_recordings, asked.messages))
            lease = await stack.enter_async_context(engine.lease(name))
            prompt = await lease.call(partial(make_prompt, name, conversation))
            reply = await lease.steps(partial(answer, prompt, asked, self._caches))
            completion = _Completion(name, asked, prompt)
            if asked.stream:
                return EventStream(completion.events(reply), stack.pop_all(), end="[DONE]")
            return JSONResponse(completion.whole([response async for response in reply]))


class _Completion:
    """What is said of an answer."""

    def __init__(self, name: str, asked: ChatRequest, prompt: ChatPrompt):
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": name,
        }
        self._asked, self._prompt = asked, prompt

    def whole(self, responses: list[GenerationResponse]) -> dict[str, Any]:
        """The object of an answer in one piece."""
        message = {"role": "assistant", "content": "".join(r.text for r in responses)}
        choice = {"index": 0, "message": {**message, "refusal": None}}
        choice |= {"finish_reason": responses[-1].finish_reason}
        choice |= {"logprobs": self._logprobs(responses)}
        return self._object("chat.completion", choices=[choice], usage=self._usage(responses))

    async def events(self, reply: AsyncIterator[GenerationResponse]) -> AsyncIterator[dict]:
        """The same in pieces."""
        options = self._asked.stream_options
        usage: dict[str, Any] = {"usage": None} if options and options.include_usage else {}
        chunk = partial(self._object, "chat.completion.chunk", **usage)

        def choice(delta: dict, logprobs: dict | None = None, reason: str | None = None) -> list:
            rest = {"logprobs": logprobs, "finish_reason": reason}
            return [{"index": 0, "delta": delta, **rest}]

        yield chunk(choices=choice({"role": "assistant", "content": ""}))
        responses: list[GenerationResponse] = []
        told = 0
        async for response in reply:
            responses.append(response)
            if response.text:
                logprobs = self._logprobs(responses[told:])
                yield chunk(choices=choice({"content": response.text}, logprobs))
                told = len(responses)
        logprobs = self._logprobs(responses[told:])
        yield chunk(choices=choice({}, logprobs, responses[-1].finish_reason))
        if usage:
            yield chunk(choices=[], usage=self._usage(responses))

    def _object(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"object": kind, **self._head, **fields}

    def _usage(self, responses: list[GenerationResponse]) -> dict[str, Any]:
        prompt, answered = len(self._prompt.ids), len(responses)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answered,
            "total_tokens": prompt + answered,
            "prompt_tokens_details": {
                "cached_tokens": prompt - responses[0].prompt_tokens,
                "audio_tokens": self._prompt.audio_tokens,
            },
        }

    def _logprobs(self, responses: list[GenerationResponse]) -> dict[str, Any] | None:
        """Of the tokens that make some text; one that only ends it is left out."""
        if not self._asked.logprobs:
            return None
        ends = self._prompt.end_ids
        content = [
            {**token_logprob(r.token, r.logprob, self._prompt.tokenizer), "top_logprobs": []}
            for r in responses
            if r.token not in ends
        ]
        return {"content": content, "refusal": None}
