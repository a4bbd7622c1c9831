"""Conversations -> prompts and their ids, by the chat template of a tokenizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import InputError, UnsupportedOptionError
from .batch import BatchEncoding
from .chat_template import Templates, choose_chat_template, render_chat, render_marked

#: arguments of apply_chat_template in transformers that would be taken for variables
_NOT_SUPPORTED = ("sanitize_control_tokens",)
# after the text to continue, so that what the template puts behind it can be cut off
_END_OF_TEXT = "<|text that goes on|> "


class ChatTokenizer:
    """What a tokenizer does with a chat template; a subclass encodes.

    Attributes:
        chat_template: Jinja source, or several by name; None where there is no template.
    """

    chat_template: Templates
    special_tokens_map: Any
    __call__: Callable[..., BatchEncoding]

    def get_chat_template(
        self, chat_template: str | None = None, tools: Sequence[Any] | None = None
    ) -> str:
        """The Jinja source to use: that of a name, a source itself, or the tokenizer's own.

        Raises:
            InputError: there is none.
        """
        return choose_chat_template(self.chat_template, chat_template, tools)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        documents: Sequence[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        padding: bool | str | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = "mlx",
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """The prompt for a conversation, or the prompts for several.

        Args:
            conversation: messages, `{"role": ..., "content": "text"}`; or several such lists.
            tools: JSON schemas of functions, for a template that knows tools.
            documents: `{"title": ..., "text": ...}`, for one that knows documents.
            chat_template: the name of one of several templates, or Jinja source.
            add_generation_prompt: end with what begins the assistant's answer.
            continue_final_message: end with the text of the last message, for the model to go on
                with; or the name of the field of it that has the text.
            tokenize: encode the prompt; else it is text.
            return_dict: also the mask, as from a call; else the ids alone.
            return_assistant_tokens_mask: also `assistant_masks`, 1 for what the template marks as
                said by the assistant, with `{% generation %}`.
            padding, truncation, max_length, return_tensors, tokenizer_kwargs: as for a call.
            variables: further ones that the template knows.

        Returns:
            What a call returns, or its ids, or text; of several conversations a batch or a list.

        Raises:
            InputError: the checkpoint has no chat template, its template refuses the messages, or
                two arguments contradict each other.
            UnsupportedOptionError: an argument of the same method in transformers.
        """
        if asked := [name for name in _NOT_SUPPORTED if variables.pop(name, None)]:
            raise UnsupportedOptionError(f"apply_chat_template does not support {', '.join(asked)}")
        if continue_final_message and (add_generation_prompt or return_assistant_tokens_mask):
            what = "add_generation_prompt and return_assistant_tokens_mask"
            raise InputError(
                f"continue_final_message ends in a message, and does not go with {what}"
            )
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            what = "tokenize=True and return_dict=True"
            raise InputError(f"return_assistant_tokens_mask is for a batch: it needs {what}")
        template = self.get_chat_template(chat_template, tools)
        variables = {**self.special_tokens_map, **variables, "tools": tools, "documents": documents}
        variables["add_generation_prompt"] = add_generation_prompt
        is_list = isinstance(conversation, list | tuple) and len(conversation) > 0
        several = is_list and isinstance(conversation[0], list | tuple)
        chats = list(conversation) if several else [conversation]
        spans: list[list[tuple[int, int]]] = []
        if continue_final_message:
            texts = [_open_ended(template, c, continue_final_message, variables) for c in chats]
        elif return_assistant_tokens_mask:
            marked = [render_marked(template, chat, **variables) for chat in chats]
            texts, spans = [text for text, _ in marked], [found for _, found in marked]
        else:
            texts = [render_chat(template, chat, **variables) for chat in chats]
        if not tokenize:
            return texts if several else texts[0]
        options = {
            **{"padding": padding, "truncation": truncation, "max_length": max_length},
            **{"return_tensors": return_tensors, "add_special_tokens": False},
        }
        batch = self(texts if several else texts[0], **options, tokenizer_kwargs=tokenizer_kwargs)
        if return_assistant_tokens_mask:
            masks = [_mask(batch, row, found) for row, found in enumerate(spans)]
            is_row = return_tensors is None and not several
            batch["assistant_masks"] = masks[0] if is_row else masks
            batch.convert_to_tensors(return_tensors)
        return batch if return_dict else batch["input_ids"]


def _open_ended(template: str, messages: Any, field: bool | str, variables: dict[str, Any]) -> str:
    """A prompt that ends with the text of the last message."""
    name = field if isinstance(field, str) else "content"
    last = messages[-1] if isinstance(messages, list | tuple) and messages else None
    last = last if isinstance(last, dict) else {}
    text = last.get(name)
    if isinstance(text, list | tuple):  # parts, of which the last with a text is meant
        at = max((i for i, part in enumerate(text) if "text" in part), default=None)
        parts: list[Any] = list(text)
        text = None if at is None else parts[at]["text"]
        if at is not None:
            parts[at] = {**parts[at], "text": f"{text}{_END_OF_TEXT}"}
        changed: Any = parts
    else:
        changed = f"{text}{_END_OF_TEXT}"
    if not isinstance(text, str):
        raise InputError(f"continue_final_message: the last message has no text as its {name}")
    prompt = render_chat(template, [*messages[:-1], {**last, name: changed}], **variables)
    before, found, after = prompt.rpartition(_END_OF_TEXT.strip())
    if not found or text.strip() not in before:
        raise InputError("continue_final_message: the template leaves out the last message's text")
    # where the template has stripped the text, it would have stripped what stood before the end
    return before if after.startswith(" ") else before.rstrip()


def _mask(batch: BatchEncoding, row: int, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Which tokens of a row are of some spans of its text."""
    mask = [0] * len(batch.encodings[row])  # type: ignore[index] # a Tokenizer's batches have them
    for start, end in spans:
        first, last = batch.char_to_token(row, start), batch.char_to_token(row, end - 1)
        if first is None:  # cut off, and so is what follows
            break
        stop = len(mask) if last is None else last + 1
        mask[first:stop] = [1] * (stop - first)
    return mask
