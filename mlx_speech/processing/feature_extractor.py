"""What feature extractors share: their settings and files, and the padding of features."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypedDict

import mlx.core as mx

from ..checkpoint.folder import read_json
from ..checkpoint.hub import resolve_checkpoint, take_hub_options
from ..errors import CheckpointError, InputError
from ..fields import Range, fit_fields, fitted
from .batch import BatchEncoding, check_tensors
from .recordings import as_array, mono_recordings
from .settings import Settings, read_settings

SamplingRate = Annotated[int, Range(1000, 192_000)]  #: in hertz
FeatureSize = Annotated[int, Range(1, 1024)]
PaddingValue = Annotated[float, Range(-1e6, 1e6)]
PaddingSide = Literal["left", "right"]
_Length = Annotated[int, Range(1)]


class _ProcessorSettings(TypedDict):
    audio_processor: dict | None
    feature_extractor: dict | None


class FeatureExtractor(Settings):
    """Base of the feature extractors, dataclasses whose fields are a checkpoint's settings.

    Every one has these; each has its own order of arguments, as it is documented.

    Args:
        feature_size: numbers in a frame.
        sampling_rate: of the audio, in Hz.
        padding_value: fills the shorter recordings of a batch.
        padding_side: where it does, `"left"` or `"right"`.
        return_attention_mask: whether a batch comes with its mask.

    Raises:
        InputError: a value is of another type, or out of its range.
    """

    feature_size: Any
    sampling_rate: SamplingRate
    padding_value: PaddingValue
    padding_side: PaddingSide
    return_attention_mask: bool

    model_input_names: ClassVar[list[str]]
    #: where processor_config.json has these settings
    key: ClassVar[str]
    #: whether samples of other rates are resampled, and not refused
    _resamples: ClassVar[bool] = False

    def __post_init__(self):
        fit_fields(self)

    @classmethod
    def from_dict(
        cls,
        feature_extractor_dict: dict[str, Any],
        place: str = "preprocessor_config.json: ",
        **options: Any,
    ) -> Self:
        """From the parsed preprocessor_config.json, which may be empty.

        Args:
            place: what is before the names of fields in a message.
            options: arguments of the class that are to differ.

        Raises:
            CheckpointError: a value is of another type, or out of its range.
            InputError: an option is, or there is no such.
        """
        names = cls.setting_names()
        if unknown := ", ".join(sorted(options.keys() - set(names))):
            raise InputError(f"a feature extractor has no option {unknown}, but {', '.join(names)}")
        data = fitted("feature_extractor_dict", feature_extractor_dict, dict)
        settings = {name: value for name, value in cls._flat(data).items() if name in names}
        try:
            extractor = cls(**settings)
        except InputError as error:  # its names are the file's, not options that a user gave
            raise CheckpointError(f"{place}{error}") from None
        return cls(**{**settings, **options}) if options else extractor

    @classmethod
    def setting_names(cls) -> list[str]:
        """Names of the arguments."""
        return [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @classmethod
    def _flat(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Settings by the names of the arguments."""
        return data

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **options: Any
    ) -> Self:
        """Read the feature extractor of a local folder or a Hugging Face repository: from
        processor_config.json, else preprocessor_config.json, else the released models' values. Or
        of one of these files, by its path.

        Args:
            options: see `from_dict`; or of `resolve_checkpoint`, such as `revision`.
        """
        hub = take_hub_options(options)
        given = pretrained_model_name_or_path
        if isinstance(given, str | os.PathLike) and (path := Path(given)).is_file():
            data = read_json(path.parent, path.name)
            return cls.from_dict(data.get(cls.key, data), f"{path}: ", **options)
        folder = resolve_checkpoint(given, weights=False, **hub)
        return cls.from_dict(*cls._read(folder), **options)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Self:
        """From a file as `to_json_file` writes it."""
        path = Path(json_file)
        return cls.from_dict(read_json(path.parent, path.name), f"{path}: ")

    @classmethod
    def _read(cls, folder: Path) -> tuple[dict[str, Any], str]:
        """The settings, and where they stand."""
        file = "processor_config.json"
        if shared := read_settings(folder, file, _ProcessorSettings).get(cls.key):
            return shared, f"{folder / file}: {cls.key}: "
        file = "preprocessor_config.json"
        return read_json(folder, file, required=False), f"{folder / file}: "

    def to_dict(self) -> dict[str, Any]:
        """All settings, as preprocessor_config.json has them."""
        settings = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {**settings, "feature_extractor_type": type(self).__name__}

    def _write_files(self, folder: Path) -> None:  # type: ignore[override]
        self.to_json_file(folder / "preprocessor_config.json")

    def _recordings(self, audio: Any, sampling_rate: int | None) -> list[mx.array]:
        target, resample = self.sampling_rate, self._resamples
        return mono_recordings(audio, sampling_rate, target, resample=resample)

    def pad(
        self,
        processed_features: Mapping[str, Any] | list[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = "mlx",
        *,
        padding_value: float | None = None,
    ) -> BatchEncoding:
        """Make features of several recordings one batch.

        Args:
            processed_features: `input_features`, (frames, feature_size) each, optionally their
                `attention_mask`, and others, which stay as they are; or a list of such
                dictionaries, each of one recording.
            padding: True or `"longest"`: to the longest of them; `"max_length"`: to `max_length`;
                False or `"do_not_pad"`: not at all.
            max_length: in frames.
            truncation: whether what is longer than `max_length` is cut.
            pad_to_multiple_of: rounds both lengths up to a multiple of it.
            return_attention_mask: by default as the setting of this name says.
            return_tensors: `"mlx"`, and the same for `"pt"` and `"np"`; None: lists of arrays, one
                a recording, which may differ in length.

        Returns:
            What was given, with `input_features` (recordings, frames, feature_size) and
            `attention_mask` (recordings, frames), int32, 0 at padding.

        Raises:
            InputError: there are no features, they differ in length though they may not, or an
                argument is none of these.
            UnsupportedOptionError: tensors of another library.
        """
        if return_tensors is not None:
            check_tensors(return_tensors)
        features = _by_name(processed_features)
        name = self.model_input_names[0]
        if name not in features or not len(features[name]):
            raise InputError(f"there is nothing to pad: features need {name}")
        limit = frame_limit(max_length, truncation, pad_to_multiple_of)
        rows = [as_array(row)[:limit] for row in features[name]]
        ones = (mx.ones(len(row), mx.int32) for row in rows)
        masks = [as_array(row)[:limit] for row in features.get("attention_mask", ones)]
        length = _padded_length(padding, max_length, max(map(len, rows)))
        length = _rounded_up(length, pad_to_multiple_of)
        with_mask = fitted("return_attention_mask", return_attention_mask, bool | None)
        if padding_value is None:
            padding_value = self.padding_value
        padded = {name: (rows, fitted("padding_value", padding_value, PaddingValue))}
        if self.return_attention_mask if with_mask is None else with_mask:
            padded["attention_mask"] = (masks, 0)
        result = BatchEncoding(features)
        for name, (arrays, fill) in padded.items():
            filled = [_filled(array, length, fill, self.padding_side) for array in arrays]
            if return_tensors is not None and len({array.shape for array in filled}) > 1:
                raise InputError("the recordings differ in length: an array of them needs padding")
            result[name] = filled if return_tensors is None else mx.stack(filled)
        return result


def frame_limit(
    max_length: int | None, truncation: bool, pad_to_multiple_of: int | None
) -> int | None:
    """Where truncation cuts, if it does. Raises `InputError` if it is not told where."""
    max_length = fitted("max_length", max_length, _Length | None)
    pad_to_multiple_of = fitted("pad_to_multiple_of", pad_to_multiple_of, _Length | None)
    if fitted("truncation", truncation, bool | None) and max_length is None:
        raise InputError.about("{truncation} needs {max_length}, in frames")
    return _rounded_up(max_length, pad_to_multiple_of) if truncation else None


def _padded_length(padding: Any, max_length: int | None, longest: int) -> int | None:
    match padding:
        case True | "longest":
            return longest
        case False | "do_not_pad":
            return None
        case "max_length" if max_length is None:
            raise InputError.about("{padding}='max_length' needs {max_length}, in frames")
        case "max_length":
            return max_length
    rule = "True, False, 'longest', 'max_length' or 'do_not_pad'"
    raise InputError.must_be("padding", padding, rule)


def _rounded_up(length: int | None, multiple: int | None) -> int | None:
    return length if length is None or multiple is None else -(-length // multiple) * multiple


def _filled(array: mx.array, length: int | None, fill: float, side: str) -> mx.array:
    missing = 0 if length is None else length - len(array)
    if missing <= 0:
        return array
    ends = (missing, 0) if side == "left" else (0, missing)
    return mx.pad(array, [ends, *[(0, 0)] * (array.ndim - 1)], constant_values=fill)


def _by_name(features: Any) -> dict[str, Any]:
    try:
        if not isinstance(features, Mapping):
            names = features[0] if len(features) else ()
            features = {name: [each[name] for each in features] for name in names}
        return dict(features)
    except (TypeError, KeyError) as error:
        raise InputError("what is to be padded are features by name, or a list of such") from error
