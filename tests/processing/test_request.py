"""What is asked about a recording: what contradicts itself is refused."""

from __future__ import annotations

import pytest

from mlx_speech import (
    InputError,
)
from mlx_speech.processing.request import TranscriptionRequest


class TestRequest:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"task": "translate"}, "task 'translate' needs target_language"),
            ({"target_language": "fr"}, "goes with task 'translate'"),
            ({"task": "dance"}, "task is 'dance'"),
            ({"task": "translate", "target_language": 5}, "target_language is 5"),
            ({"language": b"en"}, "language is b'en'"),
            ({"keywords": "MLX"}, "keywords is 'MLX', but must be a list"),
            ({"keywords": {"MLX"}}, "keywords is {'MLX'}, but must be a list"),
            *(
                ({"keywords": ["MLX", word]}, "among the keywords is .*, which is no word or name")
                for word in ("", " ", "a, b", "a\nb", 5)
            ),
            ({"prefix_text": 5}, "prefix_text is 5"),
            (
                {"prefix_text": "well", "task": "translate", "target_language": "fr"},
                "a translation is not",
            ),
            ({"prompt": "do it", "tags": "speakers"}, "not read for tags, which speakers needs"),
            ({"prompt": "do it", "tags": "times"}, "which word_timestamps needs"),
        ],
    )
    def test_what_no_family_can_do(self, options, message):
        with pytest.raises(InputError, match=message):
            TranscriptionRequest(**options)

    def test_a_prompt_takes_the_place_of_keywords(self):
        with pytest.raises(InputError, match=r"the place of .* and keywords"):
            TranscriptionRequest(prompt="do it", keywords=["MLX"])
