"""The options of `python -m mlx_speech.finetune`, and its YAML file; names are `mlx_lm.lora`'s."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from ..errors import InputError, first_few
from ..fields import fitted
from ..training.options import NUM_LAYERS, OPTIMIZERS, FineTuneOptions, FineTuneType
from . import common

_DEFAULTS = FineTuneOptions()
_NAMES = tuple(field.name for field in fields(FineTuneOptions))
#: of a YAML file: types of what is no field of `FineTuneOptions`
_OTHERS: dict[str, Any] = {
    "model": str,
    "data": str,
    "revision": str,
    "dtype": str,
    "overwrite": bool,
}
#: names in `lora_parameters` -> fields of `FineTuneOptions`
_LORA = {name: f"lora_{name}" for name in ("rank", "scale", "dropout", "keys")}
_SIZES = ("clear_cache_threshold", "cache_limit")
#: what a file for `mlx_lm.lora` may say of what there is no option for: it is so in any case, or
#: asks for nothing
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "train": (True,),
    "mask_prompt": (True,),
    "test": (False,),
    "resume_adapter_file": (None,),
    "report_to": (None,),
    "project_name": (None,),
    "trust_remote_code": (False,),
}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Settings:
    """What the command line and the file say together.

    model: folder or repository.
    overwrite: whether an adapter that is there may be replaced.
    """

    data: str
    model: str
    revision: str | None
    dtype: str | None
    overwrite: bool
    options: FineTuneOptions


def build_parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them, so that --help answers at once."""
    parser = common.Parser(
        prog="python -m mlx_speech.finetune",
        usage="%(prog)s [options] --data DATA",
        description="Fine-tune Granite Speech on recordings of your own: their voices, words and "
        "spelling. The result is an adapter of a few megabytes in peft's format, which the other "
        "commands take with --adapter.",
        epilog="The adapter's folder goes to standard output; everything else goes to standard "
        "error. Exit status: 0 if all steps are done, 1 if it failed, 2 for wrong usage, 130 after "
        "Ctrl-C, which saves.",
    )
    add, group = common.add_table, parser.add_argument_group
    text = f"folder or repository (default: $MLX_SPEECH_MODEL, else {common.SPEECH_MODEL})"
    add(parser, {"--model MODEL": text})
    common.add_options(parser, "--revision")
    add(parser, _TOP)
    for title, table in _GROUPS.items():
        add(group(title), {shown: _with_default(shown, given) for shown, given in table.items()})
    common.add_options(parser, "--dtype")
    common.add_console_options(parser)
    common.add_about_options(parser)
    return parser


def _size(given: str) -> int:
    try:
        return parse_size(given)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_size(given: str) -> int:
    """Bytes of `5GB`, `500 MB` or `1000`.

    Raises:
        InputError: it is no size.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([a-z]*)", given.strip(), re.IGNORECASE)
    if match is None or match[2].upper() not in _UNITS:
        raise InputError(f"{given!r} is not a size such as 5GB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _with_default(shown: str, given: Any) -> dict[str, Any]:
    """All that `add_argument` takes of an option, with the library's default in its help."""
    arguments = {"help": given} if isinstance(given, str) else dict(given)
    names = [name for name in shown.split() if name.startswith("--")]
    default = getattr(_DEFAULTS, names[0].removeprefix("--").replace("-", "_"), None)
    if default is False:
        arguments["action"] = "store_true"
    elif default is not None and "default" not in arguments["help"]:
        if isinstance(default, list):
            default = " ".join(default)
        elif names[0].removeprefix("--").replace("-", "_") in _SIZES and default:
            default = f"{default / 1e9:g}GB"
        arguments["help"] += f" (default: {default})"
    # what is not given is left to the file, and then to the library
    return {**arguments, "default": None}


_TOP: dict[str, Any] = {
    "--data DATA": "train.jsonl or train.csv, a folder with that and valid.jsonl, or a data set's "
    "folder; a row has audio, text, and if wanted prompt or language",
    "--adapter-path DIR": {
        "help": f"folder of the result (default: {_DEFAULTS.adapter_path})",
        "type": str,
    },
    "--overwrite": {
        "help": "replace an adapter that is there already",
        "action": "store_true",
        "default": None,
    },
    "--resume": {
        "help": "go on where an earlier run in that folder ended",
        "action": "store_true",
        "default": None,
    },
    "-c --config FILE": "options from a YAML file, as mlx_lm.lora has them; those of the command "
    "line count more",
}
_GROUPS: dict[str, dict[str, Any]] = {
    "what is trained": {
        "--fine-tune-type": {
            "help": "the projector, and in the decoder low-rank terms (lora), nothing (projector) "
            "or the last layers themselves (full)",
            "choices": get_args(FineTuneType),
        },
        "--num-layers N": "the last N layers of the decoder; -1 for all (default: "
        + ", ".join(f"{NUM_LAYERS[kind]} for {kind}" for kind in ("lora", "full"))
        + ")",
        "--lora-keys": {
            "help": "ends of the names of the layers that get low-rank terms",
            "nargs": "+",
            "metavar": "NAME",
        },
        "--lora-rank N": "their rank",
        "--lora-scale X": "factor on them, which is alpha / rank",
        "--lora-dropout P": "dropout before them",
        "--train-ctc-head": "also train the CTC head, on the letters of the texts; the encoder is "
        "then run in each step",
    },
    "how": {
        "--iters N": "steps, each with one batch",
        "--batch-size N": "recordings in a batch, of all ranks of mlx.launch together",
        "--learning-rate X": "size of a step; a schedule is for the YAML file",
        "--optimizer": {"help": "one of MLX", "choices": OPTIMIZERS},
        "--grad-accumulation-steps N": "batches whose gradients make one update",
        "--spec-augment": "mask times and frequencies of the spectrograms at random",
        "--speed-perturbation": "also train on the recordings at 0.9 and 1.1 times their speed",
        "--max-seq-length N": "tokens of prompt, audio and text together; a recording of more is "
        "refused",
        "--skip-bad": "leave out rows that cannot be used",
        "--seed N": "of all that is random",
    },
    "reports": {
        "--steps-per-report N": "steps between lines about the loss",
        "--steps-per-eval N": "steps between validations",
        "--val-batches N": "batches of a validation; -1 for all",
        "--save-every N": "steps between saves",
    },
    "memory": {
        "--grad-checkpoint": "less memory in more time: compute states of layers twice",
        "--clear-cache-threshold": {
            "help": "freed memory that is kept between steps, such as 2GB",
            "metavar": "SIZE",
            "type": _size,
        },
        "--cache-limit": {
            "help": "encoded recordings that are kept on disk",
            "metavar": "SIZE",
            "type": _size,
        },
    },
}


def read_settings(args: argparse.Namespace) -> Settings:
    """What a command line asks for, and where it says nothing its file.

    Raises:
        InputError: no data is named, the file is none, or a value has the wrong type or makes no
            sense.
        OSError: the file cannot be read.
    """
    stored = {} if args.config is None else read_config(args.config)
    given = common.explicit_options(args, (*_NAMES, *_OTHERS))
    merged = stored | given
    optimizer = merged.get("optimizer", _DEFAULTS.optimizer)
    # mlx-lm's files have one for each optimizer
    config = merged.get("optimizer_config")
    if isinstance(config, dict) and optimizer in config:
        merged["optimizer_config"] = config[optimizer] or {}
    others = {name: merged.pop(name, None) for name in _OTHERS}
    others["overwrite"] = bool(others["overwrite"])
    if others["model"] is None:
        others["model"] = os.environ.get("MLX_SPEECH_MODEL") or common.SPEECH_MODEL
    if others["data"] is None:
        raise InputError.about("{data} names the recordings to train on; give it", option="data")
    return Settings(**others, options=FineTuneOptions(**merged))


def read_config(path: Path) -> dict[str, Any]:
    """The options in a YAML file, by our names for them.

    Raises:
        InputError: it is not YAML, or an option is unknown or of the wrong type.
        OSError: it cannot be read.
    """
    import yaml

    try:
        stored = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        reason = getattr(error, "problem", None) or "not a text file"
        raise InputError(f"{path}{where}: not YAML: {reason}") from None
    if stored is None:
        return {}
    if not isinstance(stored, dict):
        raise InputError(f"{path}: must hold options and their values, such as `iters: 600`")
    try:
        return _known(stored)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _known(stored: dict[Any, Any]) -> dict[str, Any]:
    lora = fitted("lora_parameters", stored.pop("lora_parameters", None), dict | None) or {}
    unknown = [f"lora_parameters.{name}" for name in lora if name not in _LORA]
    for name, allowed in _ALLOWED.items():
        if name in stored and (value := stored.pop(name)) not in allowed:
            raise InputError(f"{name} is {value!r}, which there is not here; leave it out")
    stored.pop("test_batches", None)  # of `test`
    unknown += [str(name) for name in stored if name not in _NAMES and name not in _OTHERS]
    if unknown:
        raise InputError(f"unknown: {first_few(unknown)}; --help lists the options")
    merged = stored | {_LORA[name]: value for name, value in lora.items()}
    for name in _SIZES:
        if isinstance(value := merged.get(name), str):
            merged[name] = parse_size(value)
    merged = {name: value for name, value in merged.items() if value is not None}
    for name, kind in _OTHERS.items():
        if name in merged:
            fitted(name, merged[name], kind)
    if merged.get("dtype", common.DTYPES[0]) not in common.DTYPES:
        raise InputError.must_be("dtype", merged["dtype"], f"one of {', '.join(common.DTYPES)}")
    # what is wrong with the values of the file is told with its name
    FineTuneOptions(**{k: v for k, v in merged.items() if k not in (*_OTHERS, "optimizer_config")})
    return merged


def _loader() -> Any:
    """Of YAML 1.2: in 1.1, which PyYAML reads, `1e-5` is text."""
    import yaml

    class Loader(yaml.SafeLoader):
        """With a rule of its own, which is none for others who read YAML."""

    number = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader
