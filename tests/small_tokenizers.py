"""Small tokenizers of each kind, as checkpoint folders; and texts that try them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

#: made by make_tokenizer.py
LLAMA_MODEL = Path(__file__).parent / "data" / "tokenizers" / "llama.model"
GOLDEN = LLAMA_MODEL.with_name("golden.json")
LLAMA_SETTINGS = (
    {},
    {"legacy": True, "add_eos_token": True},
    {"add_prefix_space": False, "add_bos_token": False},
    {"pad_token": "<pad>", "bos_token": "<|im_start|>"},
)

CORPUS = """\
The quick brown fox jumps over the lazy dog, and then it sleeps under the old oak tree until noon.
She said: "I'd rather walk home than wait for another hour," but nobody was listening to her.
In 1984 there were 2,753 people in the village; by 2026 only 19 of them still lived there.
    def add(left, right):
        return left + right  # the sum of the two
    for index in range(10):
\tprint(index, add(index, index + 1))
Il était une fois une petite fille qui vivait à l'orée de la forêt avec sa grand-mère.
Où allez-vous cet été ? Nous irons peut-être à la plage, s'il fait beau, ou bien à la montagne.
Le garçon a reçu un œuf, du maïs et une pêche ; ça lui a plu énormément.
كان يا ما كان في قديم الزمان ملك عادل يحب شعبه ويحبه الناس في كل مكان من البلاد.
مرحبا، كيف حالك اليوم؟ أنا بخير والحمد لله، وأنت؟ السلام عليكم ورحمة الله وبركاته.
اللغة العربية هي لغة جميلة وغنية بالكلمات والمعاني، ويتكلم بها الملايين من الناس.
今天天气很好，我们一起去公园散步吧。 日本語の文章も少しだけ入れておきます。
Quand on parle du loup, on en voit la queue; when you speak of the devil, he appears.
What is the weather going to be in Paris tomorrow, and what will it be in London on Friday?
Turn on the light in the kitchen, please, and set a timer for twelve minutes and thirty seconds.
""".splitlines()

GOLDEN_TEXTS = (
    "",
    " ",
    "Hello this is a test",
    " Hello  this\t is\n\na test ",
    "▁Hello▁",
    "the</s>the <s> the<unk>the<pad>the<|im_start|>the",
    "</s>the",
    "de <gap> l'eau<gap>",
    "Où va l'été ? Ça reçoit un œuf, n'est-ce pas",
    "مرحبا، كيف حالك؟ السَّلامُ عليكم",
    "今天天气很好。 日本語",
    "👩\u200d👩\u200d👧 👍🏽 e\u0301 \u202e\x00\x1b[0m\x7f\u0085\u00a0\U0010ffff\ufffd",
    "12345678 3.14 <0x41> \u3000\r\n\t\t\t    return left + right  # sum",
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def save(folder: Path, model_type: str, backend: Backend | None, **config: Any) -> Path:
    """A folder with tokenizer.json, or Llama's tokenizer.model, and settings beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"model_type": model_type})
    write_json(folder / "tokenizer_config.json", config)
    if backend is None:
        shutil.copy(LLAMA_MODEL, folder / "tokenizer.model")
    else:
        backend.save(str(folder / "tokenizer.json"))
    return folder


def llama(folder: Path, **config: Any) -> Path:
    """As Llama 2's: a sentencepiece file alone."""
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}
    return save(folder, "llama", None, **settings | config)


def llama3(folder: Path, **config: Any) -> Path:
    """As Llama 3's: whole words need no merges, and a template puts the bos token."""
    backend = _byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    )
    data = json.loads(backend.to_str())
    data["model"]["ignore_merges"] = True
    backend = Backend.from_str(json.dumps(data))
    names = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id")
    backend.add_special_tokens([f"<|{name}|>" for name in names])
    bos = "<|begin_of_text|>"
    template = processors.TemplateProcessing(
        single=[bos, "$A"], special_tokens=[(bos, backend.token_to_id(bos))]
    )
    backend.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template]
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
    }
    return save(folder, "llama", backend, **settings | config)


def gpt2(folder: Path, model_type: str = "jais2", **config: Any) -> Path:
    """As Jais 2's: byte-level as GPT-2's, with chat tokens and one that keeps its spaces."""
    backend = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    names = ("begin_of_text", "endoftext", "start_header_id", "end_header_id", "eot_id")
    backend.add_special_tokens([f"<|{name}|>" for name in names])
    backend.add_tokens([AddedToken("[INST]"), AddedToken("<gap>", lstrip=True, rstrip=True)])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|endoftext|>",
    }
    return save(folder, model_type, backend, **settings | config)


def _byte_level(pre_tokenizer) -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


_PIECES = (
    *" \t\n\r",
    *("   ", "\n\n\n", "\t\t", " \n ", "\u00a0", "\u3000", "\u200b", "\ufeff"),
    *("\x00", "\x07", "\x1b[0m", "\x7f", "\u0085", "\u2028", "\u202e"),
    *("e\u0301", "a\u0308\u0323", "\u0301", "ﬁ", "Å", "ǅ", "İ", "ß"),
    *("👩\u200d👩\u200d👧", "👍🏽", "🇫🇷", "❤\ufe0f", "𝒳", "𐍈", "\U0010ffff", "\ufffd"),
    *("<s>", "</s>", "<unk>", "<pad>", "<|eot_id|>", "<|begin_of_text|>", "<|endoftext|>"),
    *("[INST]", "<<SYS>>", "<gap>", " <gap> ", "<|audio|>", "<|end_of_text|>", "<|pad|>"),
    *("<0x41>", "<0xFF>", "▁", "▁▁", "Ġ", "Ċ", "##", "{{ x }}", "don't", "1234567", "3.14"),
)


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of words in four scripts, emoji, combining marks, control characters, runs of white
    space, special tokens, and characters from all of Unicode but surrogates."""
    rng = random.Random(seed)
    words = [word for line in CORPUS for word in line.split(" ")]

    def piece() -> str:
        kind = rng.random()
        if kind < 0.45:
            return rng.choice(words) + rng.choice(["", " "])
        if kind < 0.8:
            return rng.choice(_PIECES)
        if kind < 0.9:
            return rng.choice(rng.choice(CORPUS))
        code = rng.randrange(rng.choice([0x80, 0x800, 0x10000, 0x110000]))
        return "" if 0xD800 <= code < 0xE000 else chr(code)

    return ["".join(piece() for _ in range(rng.randrange(0, 25))) for _ in range(count)]


def field(number: int, content: bytes | int) -> bytes:
    """One field of a protocol buffer, shorter than 128 bytes."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    return bytes([number << 3 | 2, len(content)]) + content


def sentencepiece_file(pieces: list[tuple[str, int]], algorithm: int = 2) -> bytes:
    entries = (field(1, text.encode()) + field(3, kind) for text, kind in pieces)
    return b"".join(field(1, entry) for entry in entries) + field(2, field(3, algorithm))
