"""A checkpoint by folder or by Hugging Face name -> a local folder that holds all it needs.

Downloads live in huggingface_hub's own cache, shared with every other tool that uses it. Only what
loading reads is fetched: first the small files, then the weights that they name, safetensors
wherever there are any.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

from ..errors import (
    CheckpointError,
    HubError,
    MlxSpeechError,
    UnsupportedOptionError,
    first_few,
)
from ..fields import fit_items
from .folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    APPLE_DOUBLE,
    BPE_HEAD,
    NO_WEIGHTS,
    SMALL_FILES,
    is_apple_double,
    weight_files,
)

_LOG_IN = "log in with `hf auth login`"
# by the status of an answer
_ANSWERS = {
    401: f"the Hub wants an access token, or another one (401): {_LOG_IN}",
    403: "the Hub forbids this (403): check the owner's name, and with `hf auth whoami` that the "
    "access token is yours and has the right",
    429: "too many requests to the Hub (429): wait a few minutes and try again",
}


class HubOptions(TypedDict, total=False):
    """How a repository is had, as in transformers' `from_pretrained`.

    revision: branch, tag or commit; the default branch if not given.
    cache_dir: where downloads are kept; by default in huggingface_hub's own cache.
    force_download: download what is in the cache already, too.
    local_files_only: take what the cache has, and ask no Hub.
    token: access token, True for that of `hf auth login`, False for none.
    """

    revision: str | None
    cache_dir: str | os.PathLike | None
    force_download: bool
    local_files_only: bool
    token: str | bool | None


# what transformers' `from_pretrained` takes as well, and what is the case here whatever is said
_WITHOUT_EFFECT = (
    *("disable_mmap", "low_cpu_mem_usage", "offload_buffers", "offload_folder"),
    *("offload_state_dict", "resume_download", "trust_remote_code"),
    *("from_slow", "use_fast", "use_safetensors", "verbose", "weights_only"),
)
_ONE_DEVICE = "there is one device"
_OWN_CODE = "no code but this package's is run"
# what it takes as well, and there is not here, unless it asks for nothing; and what to do instead
_NOT_HERE = {
    "_from_auto": _OWN_CODE,
    "adapter_kwargs": "say adapter",
    "code_revision": _OWN_CODE,
    "device_mesh": _ONE_DEVICE,
    "distributed_config": _ONE_DEVICE,
    "experts_implementation": "no model has experts",
    "fix_mistral_regex": "no model is Mistral's",
    "from_flax": "take a checkpoint in safetensors",
    "from_tf": "take a checkpoint in safetensors",
    "fusion_config": "nothing is to be fused",
    "generation_config": "assign it to model.generation_config",
    "gguf_file": "take a checkpoint in safetensors",
    "kernel_config": "MLX has its own",
    "key_mapping": "tensors have the names of transformers",
    "load_in_4bit": 'say quantization_config={"bits": 4}',
    "load_in_8bit": 'say quantization_config={"bits": 8}',
    "max_memory": _ONE_DEVICE,
    "mirror": "set HF_ENDPOINT",
    "output_loading_info": "what is missing is an error or a warning",
    "proxies": "set HTTPS_PROXY",
    "state_dict": "call model.load_weights",
    "subfolder": "give the folder itself",
    "tokenizer_type": "give the class of the tokenizer",
    "tp_plan": _ONE_DEVICE,
    "tp_size": _ONE_DEVICE,
    "use_auth_token": "say token",
    "use_kernels": "MLX has its own",
    "variant": "give a folder or a revision that has no other weights",
}


def take_hub_options(options: dict[str, Any]) -> HubOptions:
    """Take out of the keywords of a `from_pretrained` those that are for `resolve_checkpoint`.

    What only says how transformers is to work is taken out, too: no code of a repository is ever
    run, and nothing is read before it is needed.

    Raises:
        InputError: one is of another type.
        UnsupportedOptionError: there is no such thing here.
    """
    for name in _WITHOUT_EFFECT:
        options.pop(name, None)
    for name in _NOT_HERE.keys() & options.keys():
        if value := options.pop(name):
            what = f"from_pretrained takes no {name}={value!r} here"
            raise UnsupportedOptionError(f"{what}; leave it out: {_NOT_HERE[name]}")
    given = {name: options.pop(name) for name in HubOptions.__annotations__ if name in options}
    return cast(HubOptions, fit_items(HubOptions, given))


def resolve_checkpoint(
    path_or_repo: str | os.PathLike,
    *,
    weights: bool = True,
    also: tuple[str, ...] = (),
    progress: bool = True,
    **options: Unpack[HubOptions],
) -> Path:
    """Return the folder of a checkpoint, downloading it from the Hugging Face Hub if need be.

    Args:
        path_or_repo: a folder, or a repository as `owner/name`. An existing folder wins; a
            `Path` is never read as a repository.
        weights: fetch the weights too; without, only what configurations and tokenizers read.
        also: patterns of further files to fetch, where there are any.
        progress: show huggingface_hub's progress bars on standard error.
        options: see `HubOptions`.

    Returns:
        The folder as given, or the repository's snapshot folder in huggingface_hub's cache; if
        the Hub cannot be reached, the snapshot that the revision meant when it last could be.

    Raises:
        CheckpointError: there is no such folder, it is a file, a revision was asked of a folder,
            or the repository is not a model with weights of safetensors or PyTorch.
        HubError: the repository or revision does not exist, is private or gated, the Hub cannot
            be reached and the cache is incomplete, or the download cannot be finished or stored.
    """
    name, local = local_folder(path_or_repo, options, "a model")
    if local is not None:
        return local
    folder = _download(name, (*SMALL_FILES, *also), progress, options)
    if weights:
        _fetch_weights(name, folder, progress, options)
    return folder


def resolve_adapter(
    path_or_repo: str | os.PathLike, *, progress: bool = True, **options: Unpack[HubOptions]
) -> Path:
    """Return the folder of an adapter, downloading its two files if need be; arguments as in
    `resolve_checkpoint`, but for the revision, which is that of its model.

    Raises:
        CheckpointError: there is no such folder, or the repository holds no adapter.
        HubError: the repository cannot be had.
    """
    options["revision"] = None
    name, local = local_folder(path_or_repo, options, "an adapter")
    if local is not None:
        return local
    folder = _download(name, (ADAPTER_CONFIG, ADAPTER_WEIGHTS), progress, options)
    if missing := _missing(folder, [ADAPTER_CONFIG, ADAPTER_WEIGHTS]):
        if _listing(name, folder.name, options.get("cache_dir")) is None:
            raise HubError(f"{name}: {_lacks(missing)}: run again with a connection")
        raise CheckpointError(f"{name} is no adapter of peft: it holds no {missing[0]}")
    return folder


def local_folder(
    path_or_repo: str | os.PathLike, options: HubOptions, what: str
) -> tuple[str, Path | None]:
    """What is given as text, and if that is a folder the folder; else it is a repository's name.

    Args:
        what: is given.

    Raises:
        CheckpointError: it is neither, or a folder with a revision.
    """
    if not isinstance(path_or_repo, str | os.PathLike):
        kind = type(path_or_repo).__name__
        raise CheckpointError(f"{what} is named by text or a path, but a {kind} was given")
    name, revision = os.fspath(path_or_repo), options.get("revision")
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if revision not in (None, "main"):  # which is transformers' default, and says nothing
            raise CheckpointError(
                f"{name} is a folder, and a folder has no revisions: leave out revision "
                f"{revision!r}, or give a Hub repository as owner/name"
            )
        return name, Path(path)
    if os.path.exists(path):
        parent = os.path.dirname(path) or "."
        raise CheckpointError(f"{name} is a file: give the folder that holds it, {parent}")
    looks_like_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    if looks_like_path or isinstance(path_or_repo, os.PathLike):
        raise CheckpointError(
            f"no such folder: {name} (a Hub repository is given as text, in the form owner/name)"
        )
    if problem := repo_id_problem(name):
        raise CheckpointError(f"there is no folder {name!r} here, and {problem}")
    return name, None


def repo_id_problem(name: str) -> str | None:
    """What keeps a name from being that of a repository on the Hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return (
            f"{name!r} is not the name of a Hub repository: that is owner/name, of letters, "
            "digits, '-', '_' and '.', with at most 96 characters"
        )
    if "/" not in name:
        return f"a Hub repository needs its owner, a user or an organization: give owner/{name}"
    return None


def _fetch_weights(repo_id: str, folder: Path, progress: bool, options: HubOptions) -> None:
    """Fetch the weights that the small files name, of the same commit."""
    weights = _weights_of(repo_id, folder, options.get("cache_dir"))
    if options.get("force_download") or _missing(folder, weights):
        _download(repo_id, weights, progress, {**options, "revision": folder.name})
    if missing := _missing(folder, weights):
        raise HubError(f"{repo_id}: {_lacks(missing)}: run again with downloads allowed")


def weight_headers(
    path_or_repo: str | os.PathLike, folder: Path, progress: bool
) -> dict[str, dict[str, dict]]:
    """What a repository's weights are, for who does not need their values.

    Args:
        folder: what `resolve_checkpoint` gave without weights.
        progress: as there.

    Returns:
        The headers of safetensors files that are not in the cache, by name: `dtype`, `shape` and
        `data_offsets` of each tensor. PyTorch's files are fetched whole, as they have none.

    Raises:
        CheckpointError, HubError: as `resolve_checkpoint` for weights.
    """
    repo_id, commit = os.fspath(path_or_repo), folder.name
    if os.path.isdir(os.path.expanduser(repo_id)):
        return {}

    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    missing = _missing(folder, _weights_of(repo_id, folder))
    if any(name.endswith(".bin") for name in missing):
        _fetch_weights(repo_id, folder, progress, {})
        return {}
    headers = {}
    for name in missing:
        with explained(repo_id, commit, lambda: missing):
            try:
                read = HfApi().parse_safetensors_file_metadata(repo_id, name, revision=commit)
            except SafetensorsParsingError as error:
                raise CheckpointError(f"{repo_id}: {name} is not a safetensors file") from error
        headers[name] = {
            tensor: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
            for tensor, info in read.tensors.items()
        }
    return headers


def _missing(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


def _listing(repo_id: str, revision: str | None, cache_dir: Any = None) -> set[str] | None:
    """Names of all files in the repository, as kept by its last download, or None if unknown."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    wanted = {"revision": revision, "cache_dir": cache_dir}
    try:
        return {file.path for file in get_cached_repo_tree(repo_id, **wanted)}
    except CachedRepoTreeNotFoundError:
        return None


def _weights_of(repo_id: str, folder: Path, cache_dir: Any = None) -> list[str]:
    """Name the weight files of a snapshot; without a listing, judge by what the cache holds."""
    listing = _listing(repo_id, folder.name, cache_dir)
    held = {file.name for file in folder.iterdir()} if listing is None else listing
    if not held & {"config.json", ADAPTER_CONFIG}:
        if listing is None:
            raise HubError(f"{repo_id}: {_lacks(['config.json'])}: run again with a connection")
        message = f"{repo_id} is not a model that can be loaded: it holds no config.json"
        raise CheckpointError(message)
    names = weight_files(folder, held, repo_id)
    if not names and listing is None and "config.json" in held:
        names = ["model.safetensors"]
    if ADAPTER_WEIGHTS in held or (listing is None and ADAPTER_CONFIG in held):
        names.append(ADAPTER_WEIGHTS)
    if not names:
        message = f"{repo_id} ships {NO_WEIGHTS}: choose another repository or revision"
        raise CheckpointError(message)
    if BPE_HEAD in held:
        names.append(BPE_HEAD)
    if listing is not None and (absent := set(names) - listing):
        raise CheckpointError(
            f"{repo_id}: its index of weights names {min(absent)}, which the repository does not "
            "hold: choose another revision, or tell its owner"
        )
    return names


def _download(repo_id: str, patterns: Sequence[str], progress: bool, options: HubOptions) -> Path:
    """Bring the files that match into the cache, and return the snapshot's folder."""
    from huggingface_hub import snapshot_download

    bar = None if progress else _hidden_bar()
    fetch = partial(snapshot_download, repo_id, tqdm_class=bar, **options)
    revision, cache_dir = options.get("revision"), options.get("cache_dir")
    with explained(repo_id, revision, lambda: _uncached(repo_id, revision, cache_dir, patterns)):
        # to the Hub's patterns, a slash is a letter as any other
        ignored = ["*/*", APPLE_DOUBLE]
        folder = Path(fetch(allow_patterns=list(patterns), ignore_patterns=ignored))
        listing = _listing(repo_id, folder.name, cache_dir) or ()
        nested = [name for name in listing if "/" in name and _matches(name, patterns)]
        if _missing(folder, nested):
            fetch(revision=folder.name, allow_patterns=nested)
    return folder


def _matches(name: str, patterns: Sequence[str]) -> bool:
    if is_apple_double(name):
        return False
    return any(fnmatchcase(name, p) and name.count("/") == p.count("/") for p in patterns)


def _hidden_bar() -> type:
    """A progress bar that never shows; handed to one call, so nothing global is switched off."""
    from huggingface_hub.utils import tqdm

    class HiddenBar(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "disable": True})

    return HiddenBar


def _uncached(
    repo_id: str, revision: str | None, cache_dir: Any, patterns: Sequence[str]
) -> list[str]:
    """Name the files that match but are not in the cache, as far as that can be known offline."""
    from huggingface_hub import try_to_load_from_cache

    listed = _listing(repo_id, revision, cache_dir)
    known = listed or [name for name in patterns if "*" not in name]
    cached = partial(try_to_load_from_cache, repo_id, revision=revision, cache_dir=cache_dir)
    wanted = sorted(name for name in known if _matches(name, patterns))
    return [name for name in wanted if not isinstance(cached(name), str)]


def _lacks(missing: list[str]) -> str:
    if not missing:
        return "the local cache does not hold it, nor is there a folder of that name here"
    return f"the local cache lacks {first_few(missing)}"


@contextmanager
def explained(
    repo_id: str | None, revision: str | None = None, missing: Callable[[], list[str]] | None = None
) -> Iterator[None]:
    """Within it, what goes wrong with the Hub becomes a `HubError` of one line.

    Args:
        repo_id: the repository that is read or written, if any.
        revision: of it.
        missing: of a download, names the files that the cache lacks.
    """
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except MlxSpeechError:
        raise
    # JSON: a proxy's page in place of the Hub's answer. RuntimeError and ValueError: how
    # huggingface_hub and Xet report a failure.
    except (HTTPError, OSError, json.JSONDecodeError, RuntimeError, ValueError) as error:
        sentence = _explain(error, repo_id, revision, missing and _lacks(missing()))
        raise HubError(f"{repo_id}: {sentence}" if repo_id else sentence) from error


def _explain(error: Exception, repo_id: str | None, revision: str | None, lacks: str | None) -> str:
    """Say in one line what failed, and what to do about it."""
    from huggingface_hub import constants, errors

    reason: BaseException = error
    if isinstance(error, errors.LocalEntryNotFoundError):  # hides why the Hub was of no help
        reason = error.__cause__ or errors.OfflineModeIsEnabled()
    elif isinstance(error, RuntimeError) and error.__cause__ is not None:
        reason = error.__cause__  # the file's name is less than why
    detail = " ".join(f"{type(reason).__name__}: {reason}".split())[:200]
    no_folder, lacks = ("no such folder here and ", f", and {lacks}") if lacks else ("", "")
    # an HTTPError without an answer, which comes last of them, is a connection that failed
    match reason:
        case errors.GatedRepoError():
            page = f"https://huggingface.co/{repo_id}"
            return f"the repository is gated: accept its terms at {page}, then {_LOG_IN}"
        case errors.RepositoryNotFoundError():
            absent = f"{no_folder}no such repository on the Hub, or it is private"
            return f"{absent}: check the spelling, or {_LOG_IN}"
        case errors.RevisionNotFoundError():
            return f"there is no revision {revision!r}: give a branch, tag or commit"
        case errors.HfHubHTTPError():
            status = reason.response.status_code
            if status >= 500:
                return f"the Hub has a fault of its own ({status}){lacks}: try again later"
            return _ANSWERS.get(status, f"the Hub refused the request ({detail})")
        case errors.OfflineModeIsEnabled():
            return f"the network is switched off{lacks}: run once without HF_HUB_OFFLINE"
        case errors.FileMetadataError() | json.JSONDecodeError():
            advice = "check HF_ENDPOINT, the proxy, and whether this network wants a login"
            return f"{constants.ENDPOINT} does not answer like a Hub: {advice}"
        case errors.HTTPError():
            failed = f"no working connection to {constants.ENDPOINT} ({detail})"
            return f"{failed}{lacks}: check the network and try again"
        case OSError(errno=int()) if lacks:
            advice = "free some space, or set HF_HOME to a folder that can be written"
            return f"cannot write to the cache {constants.HF_HUB_CACHE} ({detail}): {advice}"
    return f"the transfer broke off ({detail}): run again to complete it"
