"""`generate` against transformers: arguments, options, outputs, over random small models.

Ids and indices of beams are the same; logits, scores and sums of them are within 1e-4 (float32,
logits of size 1 to 30). Scores of minus infinity are so in both.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    Speech2TextConfig,
    Speech2TextForConditionalGeneration,
    TextStreamer,
)

import mlx_speech

from .generators import (
    DECODERS,
    ENDS,
    FAMILIES,
    NEW,
    TOLERANCE,
    Generator,
    answer_lengths,
    compare_scores,
)
from .random_models import (
    AUDIO,
    PAD,
    Pair,
    features,
    field_names,
    randomize,
    save_decoder,
    speech_ids,
    tensor,
    text_ids,
)
from .test_speech_to_text import GENERATORS, SMALL

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers.generation.utils")


@pytest.fixture(scope="module")
def generators(speech_pair, tmp_path_factory):
    made: dict[str, Generator] = {}

    def make(family: str) -> Generator:
        folder = tmp_path_factory.mktemp(family)
        if family in DECODERS:
            pair = Pair.load(save_decoder(folder, 31, DECODERS[family]), folder)
            return Generator(pair, {"input_ids": text_ids(2, 6)})
        if family == "granite-speech":
            pair = speech_pair("two-layers-untied-lora")
            inputs = {"input_ids": speech_ids(2, 3, seed=3), "input_features": features(2, 15, 24)}
            return Generator(pair, inputs)
        case = GENERATORS["generates-untied"]
        reference = Speech2TextForConditionalGeneration(Speech2TextConfig(**SMALL | case.config))
        randomize(reference.eval(), case.seed)
        reference.lm_head.weight.data *= case.head
        reference.save_pretrained(folder)
        inputs = {
            "input_features": 2 * features(2, 33, 12),
            "attention_mask": np.ones((2, 33), int),
        }
        return Generator(Pair.load(reference, folder), inputs)

    def get(family: str) -> Generator:
        if family not in made:
            made[family] = make(family)
        return made[family]

    return get


@pytest.fixture(params=FAMILIES)
def generator(request, generators) -> Generator:
    return generators(request.param)


@pytest.fixture
def llama(generators) -> Generator:
    return generators("llama")


OPTIONS = {
    "min_new_tokens": {"min_new_tokens": 12, "eos_token_id": ENDS},
    "min_length": {"min_length": 17, "eos_token_id": ENDS},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2, "max_new_tokens": 40},
    "no_repeat_token": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[i] for i in range(0, 60, 2)] + [[7, 9], [21, 23, 25]]},
    "suppress_tokens": {"suppress_tokens": list(range(2, 40))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(2, 40))},
    "forced_eos_token_id": {"forced_eos_token_id": 17, "max_new_tokens": 7, "eos_token_id": None},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "renormalize_logits": {"renormalize_logits": True, "suppress_tokens": list(range(2, 40))},
    "several": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 5}
    | {"suppress_tokens": [5, 6, 7], "eos_token_id": ENDS},
}


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(generator, name, num_beams):
    """The same ids, with beams too."""
    options = OPTIONS[name] | {"num_beams": num_beams}
    assert generator.ours(**options).tolist() == generator.theirs(**options).tolist()


@pytest.mark.parametrize("name", OPTIONS)
def test_options_matter(generators, name):
    """That each changes what some model says."""
    plain = {"eos_token_id", "max_new_tokens", "num_beams"}
    without = {k: v for k, v in OPTIONS[name].items() if k in plain}
    changed = []
    for family in FAMILIES:
        for num_beams in (1, 3):
            beams = {"num_beams": num_beams}
            answers = [generators(family).ours(**o | beams) for o in (OPTIONS[name], without)]
            changed.append(answers[0].tolist() != answers[1].tolist())
    assert any(changed) if name == "renormalize_logits" else sum(changed) >= 5


def test_output_of_greedy_search(generator):
    """Class, fields, ids, scores, logits and the length of the cache."""
    options = {"return_dict_in_generate": True, "eos_token_id": ENDS, "repetition_penalty": 1.2}
    options |= {"output_scores": True, "output_logits": True}
    ours, theirs = generator.ours(**options), generator.theirs(**options)
    assert type(ours).__name__ == type(theirs).__name__
    assert list(ours) == field_names(theirs)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    prompt = ours.sequences.shape[1] - len(ours.scores)
    lengths = answer_lengths(np.array(ours.sequences), prompt, ENDS)
    assert len(set(lengths)) > 1 or lengths[0] == NEW
    compare_scores(ours.scores, theirs.scores, lengths)
    compare_scores(ours.logits, theirs.logits, lengths)
    assert ours.past_key_values[0].length == theirs.past_key_values.get_seq_length()
    for name in ("output_scores", "output_logits"):
        fewer = {k: v for k, v in options.items() if k != name}
        assert list(generator.ours(**fewer)) == field_names(generator.theirs(**fewer))
    without = options | {"use_cache": False}
    assert generator.ours(**without).sequences.tolist() == theirs.sequences.tolist()
    assert "past_key_values" not in generator.ours(**without)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_output_of_beam_search(generator, count):
    """Class, fields, ids, indices of beams, sums and scores of each step, which count as long as a
    prompt's search goes on: here to the limit."""
    options = {"num_beams": 4, "num_return_sequences": count, "return_dict_in_generate": True}
    options |= {"output_scores": True, "output_logits": True, "length_penalty": 1.4}
    options |= {"eos_token_id": None}
    ours, theirs = generator.ours(**options), generator.theirs(**options)
    assert type(ours).__name__ == type(theirs).__name__
    assert list(ours) == field_names(theirs)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert ours.beam_indices.tolist() == theirs.beam_indices.tolist()
    assert len({tuple(row) for row in ours.sequences.tolist()}) == 2 * count
    difference = np.abs(np.array(ours.sequences_scores) - theirs.sequences_scores.numpy())
    assert difference.max() <= TOLERANCE
    compare_scores(ours.scores, theirs.scores, [NEW, NEW], rows_each=4)
    compare_scores(ours.logits, theirs.logits, [NEW, NEW], rows_each=4)
    assert generator.ours(**options | {"return_dict_in_generate": False}).tolist() == (
        theirs.sequences.tolist()
    )


def test_beams_that_end(generator):
    """Answers of different lengths: ids, sums, and indices that are -1 behind an end."""
    options = {"num_beams": 4, "num_return_sequences": 3, "return_dict_in_generate": True}
    options |= {"output_scores": True, "eos_token_id": ENDS}
    ours, theirs = generator.ours(**options), generator.theirs(**options)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert ours.beam_indices.tolist() == theirs.beam_indices.tolist()
    difference = np.abs(np.array(ours.sequences_scores) - theirs.sequences_scores.numpy())
    assert difference.max() <= TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_k": 9},
        {"top_p": 0.8, "top_k": 0},
        {"typical_p": 0.6, "top_k": 0},
        {"min_p": 0.1, "top_k": 0, "repetition_penalty": 1.5},
        {"temperature": 1.5, "top_k": 20, "renormalize_logits": True},
    ],
    ids=str,
)
def test_scores_of_sampling(generator, options):
    """What is sampled from at the first step; a sample is among it."""
    options = options | {"do_sample": True, "return_dict_in_generate": True, "output_scores": True}
    options |= {"max_new_tokens": 1}
    ours, theirs = generator.ours(**options, seed=1), generator.theirs(**options)
    compare_scores(ours.scores, theirs.scores, [1, 1])
    kept = np.isfinite(np.array(ours.scores[0]))
    assert kept.sum() < kept.size
    assert kept[np.arange(2), np.array(ours.sequences[:, -1])].all()


def only_sevens(width: int):
    """A processor for both: multiples of seven are likelier by far."""
    bonus = np.where(np.arange(width) % 7 == 0, 50.0, 0.0).astype(np.float32)
    return (
        lambda ids, scores: scores + mx.array(bonus),
        lambda ids, scores: scores + torch.from_numpy(bonus),
    )


@pytest.mark.parametrize("num_beams", [1, 3])
def test_functions_of_the_caller(generator, num_beams):
    """Processors, criteria and allowed tokens get the same ids and change the same."""
    ours, theirs = only_sevens(61)
    common = {"num_beams": num_beams, "eos_token_id": 60}
    found = generator.ours(logits_processor=[ours], **common)
    assert found.tolist() == generator.theirs(logits_processor=[theirs], **common).tolist()
    assert found.tolist() != generator.ours(**common).tolist()

    start = found.shape[1] - NEW

    def stop(ids, scores):
        return (ids[:, -1] % 3 == 0) & (ids.shape[1] > start + 4)

    found = generator.ours(stopping_criteria=[stop], **common)
    assert found.tolist() == generator.theirs(stopping_criteria=[stop], **common).tolist()
    if num_beams == 1:
        assert found.tolist() != generator.ours(**common).tolist()

    def allowed(prompt, ids):
        return [10 + prompt, 20 + prompt, 30 + int(ids[-1]) % 7]

    found = generator.ours(prefix_allowed_tokens_fn=allowed, **common)
    expected = generator.theirs(prefix_allowed_tokens_fn=allowed, **common)
    assert found.tolist() == expected.tolist()


def test_processors_see_padding(llama):
    """As transformers passes it: ids of a padded batch as they were given."""
    ids = text_ids(2, 6)
    ids[0, :3] = PAD
    seen: list[list] = [[], []]

    def spy(place):
        return lambda tokens, scores: (seen[place].append(tokens.tolist()), scores)[1]

    common = {"max_new_tokens": 4, "pad_token_id": PAD, "eos_token_id": None}
    expected = llama.pair.reference.generate(
        tensor(ids), attention_mask=tensor((ids != PAD) * 1), logits_processor=[spy(0)], **common
    )
    mask = mx.array(ids) != PAD
    found = llama.pair.ours.generate(
        mx.array(ids), attention_mask=mask, logits_processor=[spy(1)], **common
    )
    assert found.tolist() == expected.tolist()
    assert seen[1] == seen[0]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", DECODERS)
def test_padding_without_a_mask(generators, family, num_beams):
    """It is told by the padding token, unless that ends answers; penalties do not see it."""
    pair = generators(family).pair
    ids = text_ids(2, 7)
    ids[0, :4] = PAD
    for options in (
        {},
        {"repetition_penalty": 1.6},
        {"no_repeat_ngram_size": 2},
        {"eos_token_id": PAD},
    ):
        common = {"max_new_tokens": 12, "num_beams": num_beams, "pad_token_id": PAD} | options
        expected = pair.reference.generate(tensor(ids), do_sample=False, **common)
        assert pair.ours.generate(mx.array(ids), **common).tolist() == expected.tolist()


@pytest.mark.parametrize("family", DECODERS)
def test_embeddings(generators, family):
    """Alone only what is new comes back, and with ids the ids too; all limits count alike."""
    pair = generators(family).pair
    ids = text_ids(2, 6)
    embeds = pair.reference.get_input_embeddings()(tensor(ids)).detach()
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    for options in (
        {"max_new_tokens": 9},
        {"max_length": 14},
        {"max_new_tokens": 9, "num_beams": 3},
        {"max_new_tokens": 9, "min_length": 12, "eos_token_id": ENDS},
        {"max_new_tokens": 9, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 9, "attention_mask": mask},
    ):
        for extra in ({}, {"input_ids": ids}):
            arrays = {k: v for k, v in (options | extra).items() if isinstance(v, np.ndarray)}
            plain = {k: v for k, v in options.items() if k not in arrays} | {"pad_token_id": PAD}
            given = {k: tensor(v) for k, v in arrays.items()}
            expected = pair.reference.generate(
                inputs_embeds=embeds, do_sample=False, **given, **plain
            )
            given = {k: mx.array(v) for k, v in arrays.items()}
            found = pair.ours.generate(inputs_embeds=mx.array(embeds.numpy()), **given, **plain)
            assert found.shape == tuple(expected.shape)
            assert found.tolist() == expected.tolist()


def test_main_input(generators):
    """The first argument and `inputs`, for each kind of model; nothing at all begins with BOS."""
    for family in ("llama", "granite-speech", "speech-to-text"):
        generator = generators(family)
        expected = generator.theirs().tolist()
        main = generator.pair.ours.main_input_name
        others = {k: mx.array(v) for k, v in generator.inputs.items() if k != main}
        value = mx.array(generator.inputs[main])
        common = {"max_new_tokens": NEW, "pad_token_id": PAD}
        assert generator.pair.ours.generate(value, **others, **common).tolist() == expected
        assert generator.pair.ours.generate(inputs=value, **others, **common).tolist() == expected
        named = others | {main: value}
        assert generator.pair.ours.generate(**named, **common).tolist() == expected
    llama = generators("llama").pair
    options = {"max_new_tokens": 5, "bos_token_id": 9, "pad_token_id": PAD}
    expected = llama.reference.generate(do_sample=False, **options)
    assert llama.ours.generate(**options).tolist() == expected.tolist()


def test_starts_of_speech_to_text(generators):
    """A starting token for each recording, and ids given as `input_ids`."""
    generator = generators("speech-to-text")
    for options in (
        {"decoder_start_token_id": [7, 9]},
        {"input_ids": np.array([[2, 8], [2, 9]])},
        {"decoder_input_ids": np.array([[8], [9]]), "num_beams": 3},
    ):
        assert generator.ours(**options).tolist() == generator.theirs(**options).tolist()


def test_generation_config(generators):
    """One of a call is filled up from the model's, and single options go before it."""
    generator = generators("speech-to-text")
    theirs, ours = generator.pair.reference, generator.pair.ours
    kept = theirs.generation_config.num_beams, ours.generation_config.num_beams
    try:
        theirs.generation_config.num_beams = ours.generation_config.num_beams = 4
        for options in ({}, {"num_beams": 1}, {"length_penalty": -0.5, "eos_token_id": ENDS}):
            expected = generator.theirs(generation_config=GenerationConfig(**options))
            own = mlx_speech.GenerationConfig(**options)
            assert generator.ours(generation_config=own).tolist() == expected.tolist()
        single = {"num_beams": 2, "forced_bos_token_id": 9}
        expected = generator.theirs(generation_config=GenerationConfig(num_beams=1), **single)
        own = mlx_speech.GenerationConfig(num_beams=1)
        assert generator.ours(generation_config=own, **single).tolist() == expected.tolist()
    finally:
        theirs.generation_config.num_beams, ours.generation_config.num_beams = kept


def test_every_option_is_known():
    """All that a GenerationConfig of transformers has, by name; its defaults are accepted."""
    theirs = GenerationConfig()
    names = {name for name in theirs.to_dict() if not name.startswith("_")}
    names -= {"continuous_batching_config"}  # deprecated there
    ours = mlx_speech.GenerationConfig().to_dict()
    assert names <= ours.keys()
    defaults = GenerationConfig._get_default_generation_params()
    neutral = {k: v for k, v in defaults.items() if k not in ("top_k", "num_assistant_tokens")}
    mlx_speech.GenerationConfig(
        **neutral
        | {"assistant_confidence_threshold": None}
        | {"assistant_lookbehind": None, "target_lookbehind": None}
    )


class Words:
    """What a streamer decodes with."""

    def decode(self, ids, **options):
        return " ".join(map(str, ids))


@pytest.mark.parametrize("skip_prompt", [False, True])
def test_streamer_of_transformers(llama, skip_prompt, capsys):
    """It prints the same."""
    ids = text_ids(1, 5)
    options = {"max_new_tokens": 8, "pad_token_id": PAD}
    printed = []
    for run in (
        lambda s: llama.pair.reference.generate(
            tensor(ids), do_sample=False, streamer=s, **options
        ),
        lambda s: llama.pair.ours.generate(mx.array(ids), streamer=s, **options),
    ):
        run(TextStreamer(Words(), skip_prompt=skip_prompt))
        printed.append(capsys.readouterr().out)
    assert printed[1] == printed[0] != ""


def test_assistant_model(llama, tmp_path):
    """The ids of greedy search, which are transformers'; and what it records."""
    helper = Pair.load(save_decoder(tmp_path, 32, LlamaForCausalLM), tmp_path).ours
    ids = text_ids(1, 6)
    options = {"max_new_tokens": 20, "eos_token_id": None, "return_dict_in_generate": True}
    options |= {"output_logits": True, "output_scores": True, "suppress_tokens": [5, 6]}
    expected = llama.pair.reference.generate(tensor(ids), do_sample=False, **options)
    found = llama.pair.ours.generate(mx.array(ids), assistant_model=helper, **options)
    assert found.sequences.tolist() == expected.sequences.tolist()
    compare_scores(found.logits, expected.logits, [20])
    compare_scores(found.scores, expected.scores, [20])
    assert found.past_key_values[0].length == expected.past_key_values.get_seq_length()


def test_returned_cache_goes_on(llama):
    """It serves the next call: the same ids as without."""
    ids = mx.array(text_ids(1, 6))
    options = {"eos_token_id": [], "return_dict_in_generate": True}
    first = llama.pair.ours.generate(ids, max_new_tokens=5, **options)
    whole = llama.pair.ours.generate(ids, max_new_tokens=12, **options).sequences
    cache = first.past_key_values
    rest = llama.pair.ours.generate(
        first.sequences, past_key_values=cache, max_new_tokens=7, **options
    )
    assert rest.sequences.tolist() == whole.tolist()


def test_granite_speech_of_its_card(generators):
    """All that the released models' cards pass."""
    generator = generators("granite-speech")
    assert (generator.inputs["input_ids"] == AUDIO).any()
    options = {"num_beams": 4, "min_length": 1, "top_p": 1.0, "repetition_penalty": 3.0}
    options |= {"length_penalty": 1.0, "temperature": 1.0, "bos_token_id": 0, "eos_token_id": 0}
    found = generator.ours(do_sample=False, **options)
    assert found.tolist() == generator.theirs(**options).tolist()
