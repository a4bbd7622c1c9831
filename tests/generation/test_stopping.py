"""Where an answer ends: stop strings, in tokens and in text."""

from __future__ import annotations

import mlx.core as mx
import pytest

import mlx_speech
from mlx_speech import (
    InputError,
)
from mlx_speech.generation.stopping import StopStringFilter
from mlx_speech.generation.text import prompt_ids

COMMAND = "translate to french: please turn on the hall light and play some music"


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class TestStopStrings:
    @pytest.mark.parametrize("num_beams", [1, 2])
    @pytest.mark.parametrize("length", [1, 4, 9])
    def test_stop_strings(self, tiny, length, num_beams):
        """The text ends before the string, wherever it begins and ends within tokens."""
        whole = mlx_speech.generate(*tiny, ask(COMMAND), num_beams=num_beams)
        for start in range(1, len(whole) - length, 5 if num_beams == 1 else 10):
            stop = whole[start : start + length]
            options = {"stop_strings": ["never said", stop], "num_beams": num_beams}
            cut = mlx_speech.generate(*tiny, ask(COMMAND), **options)
            if num_beams == 1:
                assert cut == whole[: whole.index(stop)]
                pieces = mlx_speech.stream_generate(*tiny, ask(COMMAND), **options)
                assert "".join(r.text for r in pieces) == cut
            else:  # another hypothesis may win
                assert stop not in cut

    def test_stop_string_ends_the_tokens(self, tiny):
        """In ids the string stays, and nothing comes after the token that completes it."""
        model, processor = tiny
        tokenizer = processor.tokenizer
        ids = mx.array([prompt_ids(tokenizer, ask(COMMAND))])
        whole = model.generate(ids)[0, ids.shape[1] :].tolist()
        stop = tokenizer.decode(whole)[3:7]
        cut = model.generate(ids, stop_strings=stop, tokenizer=tokenizer)[0, ids.shape[1] :]
        assert stop in tokenizer.decode(cut.tolist(), skip_special_tokens=True)
        assert stop not in tokenizer.decode(cut[:-1].tolist(), skip_special_tokens=True)
        assert cut.tolist() == whole[: cut.size]
        with pytest.raises(InputError, match="stop_strings need the tokenizer"):
            model.generate(ids, stop_strings=stop)

    def test_text_before(self):
        """What may become the string waits, and comes out when it does not."""
        text = StopStringFilter(("END", "E!"))
        assert [text.add(p) for p in ("aE", "N", "Nx", "yE", "!z", "w")] == [
            "a", "", "ENNx", "y", "", ""
        ]  # fmt: skip
        assert text.reached
        unfinished = StopStringFilter(("END",))
        assert unfinished.add("xEN") + unfinished.finish(" ") == "xEN"
        with_space = StopStringFilter((" et ",))
        assert with_space.add("x et") + with_space.finish(" ") == "x"
