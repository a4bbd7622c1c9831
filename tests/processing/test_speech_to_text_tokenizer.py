"""Speech2Text's tokenizer, against what the reference made of texts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from conftest import DATA, TINY_S2T, edit_json
from tokenizers import AddedToken

from mlx_speech import (
    CheckpointError,
    InputError,
    Speech2TextProcessor,
    Speech2TextTokenizer,
    UnsupportedOptionError,
)
from mlx_speech.generation import StreamingDetokenizer

REFERENCE = json.loads((DATA / "reference" / "tiny_s2t_reference.json").read_text())


@pytest.fixture(scope="module")
def processor() -> Speech2TextProcessor:
    return Speech2TextProcessor.from_pretrained(TINY_S2T)


@pytest.fixture
def tokenizer() -> Speech2TextTokenizer:
    return Speech2TextTokenizer.from_pretrained(TINY_S2T)


class TestTokenizer:
    @pytest.mark.parametrize("name", sorted(REFERENCE["files"]))
    def test_texts_of_the_reference(self, processor, name):
        for answer in REFERENCE["files"][name].values():
            assert processor.decode(answer["ids"], skip_special_tokens=True) == answer["text"]

    def test_ids_of_the_reference(self, tokenizer):
        """Where the model wrote the pieces that the tokenizer would: all but a few."""
        answers = [a for entry in REFERENCE["files"].values() for a in entry.values()]
        french = [a for a in answers if a["ids"][1] == 5]
        same = [tokenizer.encode(a["text"]) == a["ids"][1:] for a in french]
        assert len(french) == 46
        assert sum(same) >= 40

    def test_language_ids(self, tokenizer):
        assert tokenizer.lang_code_to_id == REFERENCE["lang_code_to_id"]
        assert tokenizer.language_id("de") == 11
        assert tokenizer.langs == ["pt", "fr", "ru", "nl", "ro", "it", "es", "de"]

    def test_arguments_by_position(self):
        files = TINY_S2T / "vocab.json", TINY_S2T / "sentencepiece.bpe.model"
        tokens = "<s>", "</s>", "<pad>", "<unk>"
        made = Speech2TextTokenizer(*files, *tokens, True, False, "de", "mustc", None, None)
        assert (made.tgt_lang, made.do_upper_case, made.pad_token) == ("de", True, "<pad>")
        assert (made.vocab_file, made.spm_file) == files
        assert made.sp_model_kwargs == {}

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"vocab_file": None}, "vocab_file is None"),
            ({"spm_file": 3}, "spm_file is 3"),
            ({"lang_codes": ["mustc"]}, r"lang_codes \['mustc'\] is not known"),
            (
                {"additional_special_tokens": 3},
                "additional_special_tokens is 3, but must be a list",
            ),
            ({"extra_special_tokens": "<new>"}, "additional_special_tokens is '<new>', but must"),
        ],
    )
    def test_arguments_of_other_types(self, wrong, message):
        files = {
            "vocab_file": TINY_S2T / "vocab.json",
            "spm_file": TINY_S2T / "sentencepiece.bpe.model",
        }
        with pytest.raises((InputError, CheckpointError), match=message):
            Speech2TextTokenizer(**files | wrong)

    def test_target_language(self, tokenizer):
        assert (tokenizer.tgt_lang, tokenizer.prefix_tokens) == ("fr", [5])
        tokenizer.tgt_lang = "de"
        assert tokenizer.encode("set") == [11, 48, 16, 2]
        other = Speech2TextTokenizer.from_pretrained(TINY_S2T, tgt_lang=None)
        assert other.tgt_lang == "pt"

    def test_unknown_language(self, tokenizer):
        with pytest.raises(UnsupportedOptionError, match=r"'en', but to pt, fr, ru, .*, de$"):
            tokenizer.tgt_lang = "en"
        assert tokenizer.tgt_lang == "fr"
        with pytest.raises(UnsupportedOptionError, match="'en', but to pt"):
            Speech2TextTokenizer.from_pretrained(TINY_S2T, tgt_lang="en")

    def test_one_language(self, s2t_copy):
        edit_json(s2t_copy / "tokenizer_config.json", lang_codes=None, tgt_lang="fr")
        tokenizer = Speech2TextTokenizer.from_pretrained(s2t_copy)
        assert tokenizer.encode("set") == [48, 16, 2]
        assert (tokenizer.tgt_lang, tokenizer.lang_code_to_id) == (None, {})
        with pytest.raises(UnsupportedOptionError, match=r"one language .* 'fr'.*multilingual"):
            tokenizer.language_id("fr")

    def test_unknown_set_of_languages(self, s2t_copy):
        edit_json(s2t_copy / "tokenizer_config.json", lang_codes="covost")
        with pytest.raises(CheckpointError, match="'covost' is not known; known are mustc"):
            Speech2TextTokenizer.from_pretrained(s2t_copy)

    def test_vocabulary_that_differs_about_languages(self, s2t_copy):
        edit_json(s2t_copy / "vocab.json", **{"<lang:fr>": 4, "<lang:pt>": 5})
        with pytest.warns(UserWarning, match=r"vocab.json: .* pt is 4 and 5, fr is 5 and 4; Sent"):
            tokenizer = Speech2TextTokenizer.from_pretrained(s2t_copy)
        assert tokenizer.lang_code_to_id == REFERENCE["lang_code_to_id"]

    def test_ids_come_from_the_vocabulary(self, s2t_copy):
        edit_json(s2t_copy / "vocab.json", **{"▁zero": 34, "▁zéro": 35})
        tokenizer = Speech2TextTokenizer.from_pretrained(s2t_copy)
        assert tokenizer.encode("zero zéro") == [5, 34, 35, 2]
        assert tokenizer.decode([34, 35], skip_special_tokens=True) == "zero zéro"

    @pytest.mark.parametrize("token", [{}, {"content": 5}])
    def test_a_token_without_text(self, s2t_copy, token):
        edit_json(s2t_copy / "tokenizer_config.json", unk_token=token)
        with pytest.raises(CheckpointError, match=r"of tokenizer_config\.json is \{.*, but"):
            Speech2TextTokenizer.from_pretrained(s2t_copy)

    @pytest.mark.parametrize(
        "settings",
        [
            {"extra_special_tokens": [{"content": 5}]},
            {"extra_special_tokens": ["\ud800"]},
            {"added_tokens_decoder": {"1": 5}},
            {"added_tokens_decoder": {"1": {"content": 5}}},
            {"added_tokens_decoder": {"a": {"content": "a"}}},
            {"added_tokens_decoder": {"-1": {"content": "a"}}},
        ],
        ids=ascii,
    )
    def test_malformed_tokens(self, s2t_copy, settings):
        edit_json(s2t_copy / "tokenizer_config.json", **settings)
        with pytest.raises(CheckpointError, match=r"malformed|of tokenizer_config\.json is"):
            Speech2TextTokenizer.from_pretrained(s2t_copy)

    def test_an_id_of_several_pieces(self, s2t_copy):
        edit_json(s2t_copy / "vocab.json", **{"▁zero": 34, "▁zéro": 34})
        with pytest.raises(CheckpointError, match=r"vocab\.json: an id stands there for several"):
            Speech2TextTokenizer.from_pretrained(s2t_copy)

    def test_case(self):
        tokenizer = Speech2TextTokenizer.from_pretrained(
            TINY_S2T, do_lower_case=True, do_upper_case=True
        )
        ids = tokenizer.encode("SET the Kitchen<lang:de> À</s>")
        assert ids == [5, 48, 16, 12, 21, 12, 130, 57, 161, 46, 11, 12, 18, 2, 2]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "SET THE KITCHEN À"
        assert tokenizer.decode(ids, skip_special_tokens=False) == (
            "<lang:fr> SET THE KITCHEN<lang:de> À</s> </s>"
        )

    def test_without_options_case_matters(self, tokenizer):
        assert tokenizer.encode("Set") == [5, 12, 3, 16, 2]
        assert tokenizer.decode([48, 16], skip_special_tokens=True) == "set"

    def test_what_the_vocabulary_lacks(self, tokenizer):
        ids = tokenizer.encode("日 set")
        assert ids == [5, 12, 3, 48, 16, 2]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "set"
        assert tokenizer.decode([13, 99999, 13, -1], skip_special_tokens=True) == "a<unk> a<unk>"

    def test_batches_are_padded_on_the_right(self, tokenizer):
        batch = tokenizer(["set", "set the kitchen"])
        assert batch["input_ids"].tolist() == [
            [5, 48, 16, 2, 1, 1, 1, 1, 1, 1, 1],
            [5, 48, 16, 12, 21, 12, 130, 57, 161, 46, 2],
        ]
        assert batch["attention_mask"].sum(axis=1).tolist() == [4, 11]
        assert batch["attention_mask"][0].tolist() == [1] * 4 + [0] * 7
        assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == [
            "set",
            "set the kitchen",
        ]
        assert tokenizer("set")["input_ids"].tolist() == [[5, 48, 16, 2]]

    def test_half_a_surrogate_pair(self, tokenizer):
        with pytest.raises(InputError, match=r"lone surrogate, '\\ud83d', at position 4"):
            tokenizer.encode("set \ud83d")

    def test_properties(self, tokenizer):
        names = ("bos", "pad", "eos", "unk")
        assert [getattr(tokenizer, f"{name}_token_id") for name in names] == [0, 1, 2, 3]
        assert tokenizer.vocab_size == 320
        assert tokenizer.all_special_ids == [0, 2, 3, 1, *range(4, 12)]

    def test_special_tokens_of_older_checkpoints(self, s2t_copy):
        """special_tokens_map.json counts where the newer field is missing."""
        config = s2t_copy / "tokenizer_config.json"
        edit_json(config, added_tokens_decoder=None, extra_special_tokens=None, eos_token=None)
        special = {"eos_token": {"content": "▁six", "lstrip": False}, "unk_token": "▁un"}
        special["additional_special_tokens"] = ["<x>", {"content": "<x>y"}]
        edit_json(s2t_copy / "special_tokens_map.json", **special)
        edit_json(s2t_copy / "vocab.json", **{"<x>": 320, "<x>y": 321})
        tokenizer = Speech2TextTokenizer.from_pretrained(s2t_copy)
        assert tokenizer.encode("set<x>y<x>日") == [5, 48, 16, 321, 320, 12, 19, 17]
        assert tokenizer.decode([320, 13, 19, 321], skip_special_tokens=True) == "a"

    @pytest.mark.parametrize("file", ["vocab.json", "sentencepiece.bpe.model"])
    def test_missing_file(self, s2t_copy, file):
        (s2t_copy / file).unlink()
        with pytest.raises(CheckpointError, match=f"no {file} here"):
            Speech2TextTokenizer.from_pretrained(s2t_copy)

    @pytest.mark.parametrize("file", ["vocab.json", "sentencepiece.bpe.model"])
    @pytest.mark.parametrize("content", [b"", b"not what it should be"])
    def test_damaged_file(self, s2t_copy, file, content):
        (s2t_copy / file).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{file}: not .*readable") as caught:
            Speech2TextTokenizer.from_pretrained(s2t_copy)
        assert "\n" not in str(caught.value)

    def test_vocabulary_without_a_special_token(self, s2t_copy):
        edit_json(s2t_copy / "vocab.json", **{"<pad>": None})
        edit_json(s2t_copy / "tokenizer_config.json", added_tokens_decoder=None)
        with pytest.raises(CheckpointError, match=r"vocab.json: lacks the special token <pad>"):
            Speech2TextTokenizer.from_pretrained(s2t_copy)


class TestSaving:
    def test_vocabulary_of_no_folder(self, processor, tmp_path):
        tokenizer = processor.tokenizer
        with pytest.raises(InputError, match="save_directory is None, but must be the path"):
            tokenizer.save_vocabulary(None)
        with pytest.raises(CheckpointError, match="none: cannot be written: No such file"):
            tokenizer.save_vocabulary(tmp_path / "none")

    def test_round_trip(self, tokenizer, tmp_path):
        tokenizer.add_special_tokens({"pad_token": AddedToken("<filler>", lstrip=True)})
        tokenizer.add_tokens("<new>")
        tokenizer.tgt_lang = "de"
        files = tokenizer.save_pretrained(tmp_path / "saved")
        names = ["sentencepiece.bpe.model", "tokenizer_config.json", "vocab.json"]
        assert [Path(file).name for file in files] == names
        again = Speech2TextTokenizer.from_pretrained(tmp_path / "saved")
        ids = tokenizer.encode("set <filler>the<new> kitchen")
        assert {320, 321} < set(ids)
        assert again.encode("set <filler>the<new> kitchen") == ids
        assert again.decode(ids, skip_special_tokens=True) == tokenizer.decode(
            ids, skip_special_tokens=True
        )
        assert (again.tgt_lang, again.pad_token_id) == ("de", 320)
        assert again.all_special_tokens == tokenizer.all_special_tokens
        with pytest.raises(UnsupportedOptionError, match="legacy_format=False"):
            tokenizer.save_pretrained(tmp_path / "saved", legacy_format=False)

    def test_vocabulary(self, tokenizer, tmp_path):
        files = tokenizer.save_vocabulary(tmp_path, "my")
        assert [Path(f).name for f in files] == ["my-vocab.json", "my-sentencepiece.bpe.model"]
        again = Speech2TextTokenizer(*files, lang_codes="mustc", tgt_lang="fr")
        assert again.encode("set the kitchen") == tokenizer.encode("set the kitchen")


class TestCalls:
    def test_cut_and_filled_up(self, tokenizer):
        options = {"max_length": 5, "truncation": True, "padding": "max_length"}
        batch = tokenizer(["set", "set the kitchen"], **options)
        assert batch.input_ids.tolist() == [[5, 48, 16, 2, 1], [5, 48, 16, 12, 2]]
        assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1] * 5]
        lists = tokenizer("set", return_tensors=None, return_special_tokens_mask=True)
        assert lists["special_tokens_mask"] == [1, 0, 0, 1]
        options = {"max_length": 5, "return_overflowing_tokens": True, "return_tensors": None}
        cut = tokenizer("set the kitchen", **options)
        assert cut["overflowing_tokens"] == [21, 12, 130, 57, 161, 46]
        assert cut["num_truncated_tokens"] == 6

    def test_pairs(self, tokenizer):
        assert tokenizer.encode("set", "the") == [5, 48, 16, *tokenizer.encode("the")[1:]]
        with pytest.raises(InputError, match="'only_first' or 'only_second'"):
            tokenizer(
                "set", "the", max_length=4, return_overflowing_tokens=True, return_tensors=None
            )

    def test_what_it_does_not_know(self, tokenizer):
        with pytest.raises(UnsupportedOptionError, match="return_offsets_mapping"):
            tokenizer("set", return_offsets_mapping=True)
        with pytest.raises(InputError, match="no option beams, but"):
            Speech2TextTokenizer.from_pretrained(TINY_S2T, beams=5)
        with pytest.raises(InputError, match="padding_side is 'top'"):
            Speech2TextTokenizer.from_pretrained(TINY_S2T, padding_side="top")

    def test_prepared(self, tokenizer):
        row = tokenizer.prepare_for_model([48, 16], return_tensors="mlx", prepend_batch_axis=True)
        assert row.input_ids.tolist() == [[5, 48, 16, 2]]

    def test_cleaned_up(self, tokenizer):
        tokenizer.add_tokens(" !")
        ids = [*tokenizer.encode("set"), tokenizer.convert_tokens_to_ids(" !")]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "set !"
        assert (
            tokenizer.decode(ids, clean_up_tokenization_spaces=True, skip_special_tokens=True)
            == "set!"
        )
        tokenizer.clean_up_tokenization_spaces = True
        assert tokenizer.batch_decode([ids], skip_special_tokens=True) == ["set!"]


def byte_fallback_tokenizer(folder: Path, **options) -> Speech2TextTokenizer:
    """A vocabulary of its own, with bytes for what it lacks."""
    from sentencepiece import SentencePieceTrainer

    lines = (DATA / "reference" / "tiny_s2t_reference.json").read_text().split('"')
    SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in lines if " " in line]),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
    )
    pieces = (folder / "sentencepiece.bpe.vocab").read_text().split("\n")[:-1]
    vocab = {line.split("\t")[0]: i for i, line in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    return Speech2TextTokenizer.from_pretrained(folder, **options)


class TestStreaming:
    @staticmethod
    def compare(tokenizer, ids: list[int]) -> list[str]:
        stream = StreamingDetokenizer(tokenizer)
        pieces = [*(stream.add(i) for i in ids), stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
        return pieces

    @pytest.mark.parametrize("name", sorted(REFERENCE["files"]))
    def test_answers_of_the_reference(self, tokenizer, name):
        for answer in REFERENCE["files"][name].values():
            assert "".join(self.compare(tokenizer, answer["ids"])) == answer["text"]

    def test_words_come_one_by_one(self, tokenizer):
        pieces = self.compare(tokenizer, [2, 5, 48, 16, 12, 21, 13, 2])
        assert pieces == ["", "", "s", "et", "", " the", " a", "", ""]

    @pytest.mark.parametrize("upper", [False, True])
    def test_any_ids_at_all(self, upper):
        """Also unknown ones, special ones in the middle, and nothing but spaces."""
        tokenizer = Speech2TextTokenizer.from_pretrained(TINY_S2T, do_upper_case=upper)
        rng = random.Random(7)
        for _ in range(1500):
            ids = rng.choices([*range(-1, 325), *[12] * 60, *[2, 999] * 20], k=rng.randrange(25))
            self.compare(tokenizer, ids)

    @pytest.mark.parametrize("upper", [False, True])
    def test_bytes(self, tmp_path, upper):
        tokenizer = byte_fallback_tokenizer(tmp_path, do_upper_case=upper)
        text = "set ß日本 👩‍👩‍👧 the ﬁ"
        pieces = self.compare(tokenizer, tokenizer.encode(text))
        whole = "".join(pieces)
        assert "\ufffd" not in whole
        assert ("SET SS日" if upper else "set ß日") in whole
        rng = random.Random(8)
        some_bytes = [tokenizer.encoder[f"<0x{byte:02X}>"] for byte in "é日👩 A".encode()]
        for _ in range(1500):
            pool = rng.choice([range(400), some_bytes, [*some_bytes, *range(390, 400), 2, 12]])
            self.compare(tokenizer, rng.choices(pool, k=rng.randrange(25)))
