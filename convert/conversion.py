"""Convert a checkpoint module by module: what is in memory is one of them."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_speech.checkpoint.card import write_card
from mlx_speech.checkpoint.hub import resolve_adapter
from mlx_speech.checkpoint.model_files import module_tensors, saved_config, write_json
from mlx_speech.checkpoint.quantization import Quantization, resolve_quantization, skip_reason
from mlx_speech.checkpoint.shards import ShardWriter, TensorSpec, save_tensors
from mlx_speech.checkpoint.weights import ADAPTER_WEIGHTS, check_finite
from mlx_speech.errors import InputError
from mlx_speech.files import clean_up, replacing_folder
from mlx_speech.models.base import PretrainedModel

from .card import model_card
from .methods import check_options
from .plan import Conversion, Learned, Plan, Row
from .source import OpenModel, Source, open_model
from .target import (
    CONVERTED_BY,
    check_replaced,
    check_space,
    check_target,
    converted_by,
    writing,
)


def convert(
    path_or_repo: str | os.PathLike,
    mlx_path: str | os.PathLike = "mlx_model",
    *,
    quantize: bool = False,
    q_bits: int | Sequence[int] | None = None,
    q_group_size: int | None = None,
    q_mode: str = "affine",
    quant_predicate: str | Callable[[str, Any], bool | dict] | None = None,
    dtype: str | None = None,
    dequantize: bool = False,
    fuse_adapter: bool = False,
    adapter: str | os.PathLike | None = None,
    method: str = "rtn",
    calibration: Sequence[str | os.PathLike] = (),
    target_bpw: float | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    progress_callback: Callable[[int, int], None] | None = None,
    learning_callback: Callable[[str], None] = lambda doing: None,
) -> list[Conversion]:
    """Convert a checkpoint to MLX, once or with several numbers of bits in one pass.

    It is read tensor by tensor and written so: in memory is one module at a time. A result appears
    whole or not at all. What is not quantized is written as transformers reads it, too.

    Args:
        path_or_repo: a folder in the Hugging Face layout, or a repository id `owner/name`.
        mlx_path: folder to write. Where `q_bits` are several, their number is added:
            `mlx_model-4bit`, `mlx_model-8bit`.
        quantize: quantize it. Of a speech model with a decoder, `q_bits` are for that.
        q_bits, q_group_size, q_mode: see `mlx_speech.checkpoint.quantization.resolve_quantization`.
        quant_predicate: a name of `mlx_speech.checkpoint.quantization.RECIPES`, or a function that
            gets each module's name and the module: False leaves it alone, True gives it the bits
            asked for, a dict has other `bits`, `group_size` or `mode`.
        dtype: `"bfloat16"`, `"float16"` or `"float32"` for what is not quantized; by default that
            of the checkpoint.
        dequantize: undo the quantization of a quantized checkpoint; with `quantize`, quantize it
            anew.
        fuse_adapter: add the LoRA adapter to the weights, before quantizing. The result transcribes
            as with the adapter; its text decoder alone is not the original's any more.
        adapter: with `fuse_adapter`, folder or repository of an adapter that is put over the
            checkpoint's own, if there is one; its whole modules replace those of the checkpoint.
        method: `"rtn"` rounds to nearest. The others learn from recordings, by mlx-lm, so that the
            decoder of a Granite Speech model loses less: `"awq"`, `"gptq"` and `"dwq"`, see there.
            `"dynamic"` chooses the bits of each layer, `q_bits` or 8, of the whole model.
        calibration: recordings that are learned from; by default the few that come with the
            package. Texts are what the original makes of them.
        target_bpw: most bits a weight that `"dynamic"` may use, over the whole result; by default
            as many as the others use.
        revision: branch, tag or commit of the repository.
        overwrite: replace conversions that are at `mlx_path`; never what something else wrote.
        dry_run: plan only; write nothing, and of a repository's safetensors fetch only headers.
        progress: show a progress bar while downloading, on standard error.
        progress_callback: called with (bytes done, all of them), bytes of the source.
        learning_callback: told what is done next, where the method learns.

    Returns:
        What was converted, in the order of `q_bits`.

    Raises:
        AudioError: a recording to learn from cannot be read, or nobody speaks in it.
        HubError: the repository cannot be had.
        CheckpointError: the source is incomplete, malformed, of an unsupported kind or already
            quantized; or the result cannot be written.
        InputError: the arguments contradict each other or what is there.
        UnsupportedOptionError: no method that learns is for this model.
    """
    check_options(
        method,
        quantize=quantize,
        q_bits=q_bits,
        q_mode=q_mode,
        quant_predicate=quant_predicate,
        calibration=calibration,
        target_bpw=target_bpw,
        dry_run=dry_run,
    )
    several = q_bits if isinstance(q_bits, Sequence) else [q_bits]
    how = several != [None] or q_group_size or q_mode != "affine" or quant_predicate
    if how and not quantize:
        text = "{q_bits}, {q_group_size}, {q_mode} and {quant_predicate} need {quantize}"
        raise InputError.about(text)
    if adapter is not None and not fuse_adapter:
        raise InputError.about("{adapter} goes with {fuse_adapter}, which adds it to the weights")
    if not several or len(set(several)) < len(several):
        raise InputError.must_be("q_bits", list(several), "different numbers")
    mlx_path = Path(os.path.expanduser(mlx_path))
    if not mlx_path.name:
        raise InputError.must_be("mlx_path", str(mlx_path), "the name of a folder")
    targets = [
        mlx_path.with_name(f"{mlx_path.name}-{bits}bit") if len(several) > 1 else mlx_path
        for bits in several
    ]
    if not dry_run:  # which may not be allowed to write there
        with writing(mlx_path):
            for target in (mlx_path, *targets):
                clean_up(target)
    for target in targets:
        check_target(target, path_or_repo, overwrite)
    further = None if adapter is None else resolve_adapter(adapter, progress=progress)
    source = Source.find(path_or_repo, revision, values=not dry_run, progress=progress)
    if method != "rtn":
        from .learned import check_learning, learn

        check_learning(method, source.config, calibration)
    asked: dict[str, Any] = {"group_size": q_group_size, "mode": q_mode, "recipe": quant_predicate}
    with writing(mlx_path, source.folder), ExitStack() as stack:
        stage = stack.enter_context(source.as_safetensors(None if dry_run else mlx_path))
        before = quantize, dequantize, dtype, fuse_adapter, further
        opened = open_model(stage, source.config, *before)
        learned = None
        results = []
        for bits, target in zip(several, targets, strict=True):
            plan = resolve_quantization(opened.model, bits=bits, **asked) if quantize else None
            if method != "rtn" and plan is not None and not dry_run:
                with_what = calibration, target_bpw, further, learning_callback
                plan, learned = learn(method, opened, stage, plan, *with_what)
            results.append(_result(source, opened, target, plan, learned))
        if not dry_run:
            _write(source, opened, results, overwrite, progress_callback)
    return results


def _tensors(
    model: PretrainedModel,
    path: str,
    arrays: dict[str, mx.array],
    settings: dict[str, Any] | None,
    quantized: bool,
) -> dict[str, mx.array]:
    """A module's tensors as they are to be written, by their names; computed when evaluated.

    Args:
        settings: of the module.
        quantized: whether any module of the result is.
    """
    if settings and "scales" not in arrays:
        parts = mx.quantize(arrays["weight"], **settings)
        arrays = {**arrays, **dict(zip(("weight", "scales", "biases"), parts, strict=False))}
    tensors = {f"{path}.{name}": array for name, array in arrays.items()}
    return tensors if quantized else model.to_checkpoint(tensors, model.config)


def _result(
    source: Source,
    opened: OpenModel,
    folder: Path,
    quantization: Quantization | None,
    learned: Learned | None,
) -> Conversion:
    rows = []
    model = opened.model
    quantized = quantization is not None or any("scales" in module for module in model.modules())
    for path, module, names in module_tensors(model):
        settings: dict[str, Any] | None = None
        note, shape = "", module[names[0]].shape
        if "scales" in module:
            settings = {name: getattr(module, name) for name in ("group_size", "bits", "mode")}
            shape = (*shape[:-1], shape[-1] * 32 // module.bits)
        elif quantization is not None:
            chosen = quantization(path, module)
            settings = chosen if isinstance(chosen, dict) else None
            note = _note(path, module, quantization, settings, opened.dtype)
        arrays = {name: module[name] for name in names}
        tensors = _tensors(model, path, arrays, settings, quantized)
        after = sum(array.nbytes for array in tensors.values())
        rows.append(Row(path, shape, settings, opened.dtype, opened.stored[path], after, note))
    default: dict[str, Any] = {}
    if quantization is not None:
        default = quantization.default
    elif found := [row.settings for row in rows if row.settings]:
        default = max(found, key=found.count)
    usual = (default.get("bits"), default.get("group_size"), default.get("mode"))
    recipe = None if quantization is None else quantization.name
    plan, adapter = Plan(tuple(rows)), opened.fused_adapter
    named = recipe, opened.dtype, source.name
    return Conversion(folder, plan, *usual, *named, fused_adapter=adapter, learned=learned)


def _note(path, module, quantization, settings, dtype) -> str:
    """Why a module is not quantized as the recipe says."""
    requested = quantization.requested(path, module)
    if requested is None:
        reason = hasattr(module, "to_quantized") and skip_reason(path, module)
        return f"kept in {dtype}, {reason}" if reason and quantization.predicate is None else ""
    wanted, inputs = requested["group_size"], module.weight.shape[-1]
    if settings is None:
        return f"kept in {dtype}, {inputs} inputs are no multiple of a group"
    if settings["group_size"] != wanted:
        return f"in groups of {settings['group_size']}, {inputs} inputs are no multiple of {wanted}"
    return ""


def _write(
    source: Source,
    opened: OpenModel,
    results: list[Conversion],
    overwrite: bool,
    progress_callback: Callable[[int, int], None] | None,
) -> None:
    """Write all results in one pass over the source."""
    total, done = results[0].plan.before, 0
    with ExitStack() as stack:
        check = check_replaced if overwrite else None
        replaced = [replacing_folder(result.folder, check_replaced=check) for result in results]
        folders = [stack.enter_context(folder) for folder in replaced]
        check_space(folders[0], results)
        settings = [{row.path: row.settings for row in r.plan.rows} for r in results]
        quantized, model = results[0].bits is not None, opened.model
        layout = "mlx" if quantized else "pt"
        writers = []
        for folder, chosen in zip(folders, settings, strict=True):
            specs = [
                TensorSpec.of(name, array)
                for path, module, names in module_tensors(model)
                for name, array in _tensors(
                    model, path, {n: module[n] for n in names}, chosen[path], quantized
                ).items()
            ]
            writer = ShardWriter(folder, specs, layout=layout, separate=model.separate_files)
            writers.append(stack.enter_context(closing(writer)))
        for path, module, names in list(module_tensors(model)):
            # out of the model, so that nothing holds them once they are written
            arrays = {name: module.pop(name) for name in names}
            check_finite([(f"{path}.{name}", a) for name, a in arrays.items()], source.folder)
            outputs = [
                _tensors(model, path, arrays, chosen[path], quantized) for chosen in settings
            ]
            mx.eval(outputs)
            for writer, output in zip(writers, outputs, strict=True):
                for name, array in output.items():
                    writer.write(name, array)
            del arrays, outputs, output, array
            mx.clear_cache()
            done += opened.stored[path]
            if progress_callback is not None:
                progress_callback(done, total)
        for folder, result, writer in zip(folders, results, writers, strict=True):
            writer.finish()
            source.copy_carried(folder, adapter=result.fused_adapter is None)
            if opened.changed_adapter is not None:
                save_tensors(folder / ADAPTER_WEIGHTS, opened.changed_adapter, "pt")
            write_card(folder, model_card(result, source.folder))
            # last: without it, what is there does not load
            config = result_config(source, opened, result) | {CONVERTED_BY: converted_by(folder)}
            write_json(folder / "config.json", config)


def result_config(source: Source, opened: OpenModel, result: Conversion) -> dict[str, Any]:
    """The result's config.json: the source's, and what is different."""
    config = {name: value for name, value in source.config.items() if name != CONVERTED_BY}
    config.setdefault("base_model", result.source)
    if opened.model.tied_head is not None:
        config["tie_word_embeddings"] = opened.model.config.tie_word_embeddings
    if result.fused_adapter is not None:
        config["has_lora_adapter"] = False
        config["fused_adapter"] = result.fused_adapter
    default = {"group_size": result.group_size, "bits": result.bits, "mode": result.mode}
    settings = {row.path: row.settings for row in result.plan.rows}
    return saved_config(config, result.dtype, settings, default if result.bits else None)
