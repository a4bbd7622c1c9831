"""Text in, text out: `generate` and `stream_generate`."""

from __future__ import annotations

import mlx.core as mx
import pytest
from conftest import ROOT, edit_json, random_decoder

import mlx_speech
from mlx_speech import (
    ChatSession,
    ContextLengthError,
    GenerationConfig,
    InputError,
    UnsupportedOptionError,
)
from mlx_speech.generation.text import generate_response, prompt_ids

COMMAND = "translate to french: please turn on the hall light and play some music"


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class TestGenerate:
    def test_reference_replies(self, tiny, reference):
        """The text of all the reference's replies, at once and streamed, beams too."""
        for entry in reference["text_only"]:
            expected = entry["reply"]
            assert mlx_speech.generate(*tiny, ask(entry["prompt"])) == expected
            pieces = [r.text for r in mlx_speech.stream_generate(*tiny, ask(entry["prompt"]))]
            assert "".join(pieces) == expected

    @pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 1.0, "seed": 3}])
    def test_streamed_equals_whole(self, tiny, options):
        whole = mlx_speech.generate(*tiny, ask(COMMAND), **options)
        if "num_beams" in options:
            with pytest.raises(InputError, match="cannot stream"):
                mlx_speech.stream_generate(*tiny, ask(COMMAND), **options)
            return
        responses = list(mlx_speech.stream_generate(*tiny, ask(COMMAND), **options))
        assert "".join(r.text for r in responses) == whole

    def test_responses(self, tiny):
        model, processor = tiny
        ids = prompt_ids(processor.tokenizer, ask(COMMAND))
        responses = list(mlx_speech.stream_generate(*tiny, ids))
        assert [r.generation_tokens for r in responses] == list(range(1, len(responses) + 1))
        assert {r.prompt_tokens for r in responses} == {len(ids)}
        assert [r.finish_reason for r in responses[:-1]] == [None] * (len(responses) - 1)
        assert responses[-1].finish_reason == "stop"
        assert responses[-1].token in model.generation_config.eos_token_ids
        assert responses[-1].prompt_tps > 0
        assert responses[-1].generation_tps > 0
        expected = model.generate(mx.array([ids]))[0, len(ids) :].tolist()
        assert [r.token for r in responses] == expected
        short = list(mlx_speech.stream_generate(*tiny, ids, max_new_tokens=2))
        assert [r.finish_reason for r in short] == [None, "length"]

    @pytest.mark.parametrize("options", [{}, {"max_new_tokens": 2}, {"num_beams": 3}], ids=str)
    def test_whole_response(self, tiny, options):
        """The numbers of a stream's last response, also where there is no stream."""
        whole = generate_response(*tiny, ask(COMMAND), **options)
        assert whole.text == mlx_speech.generate(*tiny, ask(COMMAND), **options)
        assert whole.prompt_tps > 0
        assert whole.generation_tps > 0
        assert whole.peak_memory > 0
        if "num_beams" not in options:
            *_, last = mlx_speech.stream_generate(*tiny, ask(COMMAND), **options)
            for name in ("token", "logprob", "prompt_tokens", "generation_tokens"):
                assert getattr(whole, name) == pytest.approx(getattr(last, name))
            assert whole.finish_reason == last.finish_reason

    def test_models_that_take_no_text(self):
        loaded = mlx_speech.load(ROOT / "examples" / "tiny-s2t")
        with pytest.raises(UnsupportedOptionError, match="speech_to_text model answers recordings"):
            mlx_speech.generate(*loaded, "hello")

    def test_models_without_a_head(self, tiny):
        """Refused where they are used, and not by an attribute that is missing."""
        model, processor = tiny
        headless = model.language_model.model
        for use in (
            lambda: mlx_speech.generate(headless, processor, ask(COMMAND)),
            lambda: mlx_speech.stream_generate(headless, processor, ask(COMMAND)),
            lambda: ChatSession(headless, processor),
        ):
            with pytest.raises(UnsupportedOptionError, match="a GraniteModel generates no text"):
                use()

    def test_kinds_of_prompts(self, tiny):
        """A text as it is, messages through the template, ids."""
        _, processor = tiny
        text = processor.tokenizer.apply_chat_template(
            ask(COMMAND), add_generation_prompt=True, tokenize=False
        )
        expected = mlx_speech.generate(*tiny, ask(COMMAND))
        assert mlx_speech.generate(*tiny, text) == expected
        ids = processor.tokenizer.encode(text)
        assert mlx_speech.generate(*tiny, ids) == expected
        for empty in ("", []):
            with pytest.raises(InputError, match="the prompt is empty"):
                mlx_speech.generate(*tiny, empty)


class TestOptions:
    def test_logits_processors(self):
        """They see all tokens so far and come after the options' own, whatever the strategy."""
        model, prompt = random_decoder(), mx.array([[7, 8, 9]])
        seen = []

        def no_even(tokens, scores):
            seen.append(tokens.tolist()[0])
            return mx.where(mx.arange(61) % 2 == 0, -mx.inf, scores)

        options = {"max_new_tokens": 12, "logits_processor": [no_even], "eos_token_id": []}
        answer = model.generate(prompt, **options)[0].tolist()
        assert all(token % 2 for token in answer[3:])
        assert seen == [answer[:end] for end in range(3, 15)]
        beams = model.generate(prompt, num_beams=3, **options)[0, 3:].tolist()
        assert all(token % 2 for token in beams)
        drafted = model.generate(prompt, draft_model=random_decoder(seed=2), **options)
        assert drafted[0].tolist() == answer

    def test_max_length_counts_the_prompt(self):
        model, prompt = random_decoder(), mx.array([[7, 8, 9]])
        assert model.generate(prompt, max_length=10, eos_token_id=[]).shape == (1, 10)
        with pytest.raises(InputError, match="max_length is 3, but the prompt alone has 3"):
            model.generate(prompt, max_length=3)

    def test_context_is_never_exceeded_silently(self):
        model = random_decoder(max_position_embeddings=20)
        prompt = mx.array([[7, 8, 9]])
        with pytest.raises(
            ContextLengthError, match="and 18 new ones exceed the model's context of 20"
        ):
            model.generate(prompt, max_new_tokens=18)
        assert model.generate(prompt, max_new_tokens=17, eos_token_id=[]).shape == (1, 20)
        assert model.generate(prompt, eos_token_id=[]).shape == (1, 20)  # nobody asked for more
        rotating = model.generate(prompt, max_new_tokens=40, max_kv_size=10, eos_token_id=[])
        assert rotating.shape == (1, 43)

    def test_configuration_of_ones_own_keeps_the_checkpoints_ids(self, tiny):
        model, processor = tiny
        ids = mx.array([prompt_ids(processor.tokenizer, ask(COMMAND))])
        own = model.generate(ids, generation_config=GenerationConfig(max_new_tokens=60))
        assert own.tolist() == model.generate(ids, max_new_tokens=60).tolist()
        assert own.shape[1] < ids.shape[1] + 60

    def test_beams_of_the_checkpoint_give_way(self, tiny_copy):
        """To streaming and sampling, which nobody who asked for them wanted beams for."""
        edit_json(tiny_copy / "generation_config.json", num_beams=2)
        loaded = mlx_speech.load(tiny_copy)
        assert "".join(r.text for r in mlx_speech.stream_generate(*loaded, ask(COMMAND)))
        assert mlx_speech.generate(*loaded, ask(COMMAND), temperature=0.5, seed=1)
        with pytest.raises(InputError, match="cannot stream"):
            mlx_speech.stream_generate(*loaded, ask(COMMAND), num_beams=2)

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            ([[5, 6]], "input_ids are list"),
            (mx.array([5, 6]), r"input_ids are \(2,\)"),
            (mx.zeros((1, 0), mx.int32), r"input_ids are \(1, 0\)"),
            (mx.array([[5.0]]), "must be integers"),
            (mx.array([[5, 61]]), "hold 61, the model knows 0 to 60.*resize_token_embeddings"),
            (mx.array([[-1, 6]]), "hold -1"),
        ],
    )
    def test_what_are_no_ids(self, ids, message):
        with pytest.raises(InputError, match=message):
            random_decoder().generate(ids)

    @pytest.mark.parametrize("prompt", [None, ["a", "b"], mx.array([0.5]), 5, [2**80]])
    def test_what_is_no_prompt(self, tiny, prompt):
        with pytest.raises(InputError, match="a prompt is a text"):
            mlx_speech.generate(*tiny, prompt)

    def test_a_cache_of_ones_own(self):
        """Padding that it does not know of is refused; beams leave it as it was."""
        model, prompt = random_decoder(), mx.array([[0, 0, 5, 9], [5, 9, 11, 3]])
        mask = mx.array([[0, 0, 1, 1], [1, 1, 1, 1]])
        options = {"attention_mask": mask, "max_new_tokens": 5}
        with pytest.raises(InputError, match="without the left_padding"):
            model.generate(prompt, past_key_values=model.make_cache(), **options)
        padded = model.generate(prompt, past_key_values=model.make_cache([2, 0]), **options)
        assert padded.tolist() == model.generate(prompt, **options).tolist()
        cache = model.make_cache()
        model(prompt[1:, :2], past_key_values=cache)
        for num_beams in (3, 1):
            options = {"num_beams": num_beams, "max_new_tokens": 5}
            answer = model.generate(prompt[1:], past_key_values=cache, **options)
            assert answer.tolist() == model.generate(prompt[1:], **options).tolist()

    @pytest.mark.parametrize(
        "options",
        [{"num_return_sequences": 2, "num_beams": 2}, {"return_dict_in_generate": True}],
        ids=str,
    )
    def test_what_texts_are_not(self, tiny, options):
        with pytest.raises(InputError, match=r"is for model\.generate"):
            mlx_speech.generate(*tiny, "hi", **options)
        with pytest.raises(InputError, match=r"is for model\.generate"):
            mlx_speech.transcribe(mx.zeros(16000), model=tiny, **options)

    @pytest.mark.parametrize("name", ["labels", "max_new_token", "negative_prompt_ids"])
    def test_unknown_arguments(self, name):
        with pytest.raises(InputError, match=f"generate has no argument {name}"):
            random_decoder().generate(mx.array([[7]]), **{name: 1})
