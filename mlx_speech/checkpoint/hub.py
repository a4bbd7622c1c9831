"""A checkpoint by folder or by Hugging Face name -> a local folder that holds all it needs.

Downloads live in huggingface_hub's own cache, shared with every other tool that uses it. Only what
loading reads is fetched: first the small files, then the weights that they name, safetensors
wherever there are any.
"""

from __future__ import annotations

import json
import os
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import CheckpointError, HubError
from .folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, NO_WEIGHTS, SMALL_FILES, weight_files


def resolve_checkpoint(
    path_or_repo: str | os.PathLike,
    *,
    revision: str | None = None,
    weights: bool = True,
    also: tuple[str, ...] = (),
    progress: bool = True,
) -> Path:
    """Return the folder of a checkpoint, downloading it from the Hugging Face Hub if need be.

    Args:
        path_or_repo: a folder, or a repository as `owner/name`. An existing folder wins; a
            `Path` is never read as a repository.
        revision: branch, tag or commit of the repository; the default branch if not given.
        weights: fetch the weights too; without, only what configurations and tokenizers read.
        also: patterns of further files to fetch, where there are any.
        progress: show huggingface_hub's progress bars on standard error.

    Returns:
        The folder as given, or the repository's snapshot folder in huggingface_hub's cache; if
        the Hub cannot be reached, the snapshot that the revision meant when it last could be.

    Raises:
        CheckpointError: there is no such folder, it is a file, a revision was asked of a folder,
            or the repository is not a model with weights of safetensors or PyTorch.
        HubError: the repository or revision does not exist, is private or gated, the Hub cannot
            be reached and the cache is incomplete, or the download cannot be finished or stored.
    """
    name = os.fspath(path_or_repo)
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if revision is not None:
            raise CheckpointError(
                f"{name} is a folder, and a folder has no revisions: leave out revision "
                f"{revision!r}, or give a Hub repository as owner/name"
            )
        return Path(path)
    if os.path.exists(path):
        raise CheckpointError(
            f"{name} is a file: give the folder that holds it, {os.path.dirname(path) or '.'}"
        )
    looks_like_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    if looks_like_path or isinstance(path_or_repo, os.PathLike):
        raise CheckpointError(
            f"no such folder: {name} (a Hub repository is given as text, in the form owner/name)"
        )
    _check_repo_id(name)
    folder = _download(name, revision, (*SMALL_FILES, *also), progress)
    if weights:
        _fetch_weights(name, folder, progress)
    return folder


def _check_repo_id(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise CheckpointError(
            f"{name!r} is neither an existing folder nor a Hub repository: a repository is "
            "owner/name, of letters, digits, '-', '_' and '.'"
        ) from error
    if "/" not in name:
        raise CheckpointError(
            f"there is no folder {name!r} here, and a Hub repository needs its owner: "
            f"check the path, or give owner/{name}"
        )


def _fetch_weights(repo_id: str, folder: Path, progress: bool) -> None:
    """Fetch the weights that the small files name, of the same commit."""
    commit = folder.name
    weights = _files_to_fetch(repo_id, folder, _listing(repo_id, commit))
    if _missing(folder, weights):
        _download(repo_id, commit, weights, progress)
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
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, SafetensorsParsingError

    repo_id, commit = os.fspath(path_or_repo), folder.name
    if os.path.isdir(os.path.expanduser(repo_id)):
        return {}
    missing = _missing(folder, _files_to_fetch(repo_id, folder, _listing(repo_id, commit)))
    if any(name.endswith(".bin") for name in missing):
        _fetch_weights(repo_id, folder, progress)
        return {}
    headers = {}
    for name in missing:
        try:
            read = HfApi().parse_safetensors_file_metadata(repo_id, name, revision=commit)
        except SafetensorsParsingError as error:
            raise CheckpointError(f"{repo_id}: {name} is not a safetensors file") from error
        except (HTTPError, OSError) as error:
            raise HubError(_explain(error, repo_id, commit, missing)) from error
        headers[name] = {
            tensor: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
            for tensor, info in read.tensors.items()
        }
    return headers


def _missing(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


def _listing(repo_id: str, revision: str | None) -> set[str] | None:
    """Names of all files in the repository, as kept by its last download, or None if unknown."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path for file in get_cached_repo_tree(repo_id, revision=revision)}
    except CachedRepoTreeNotFoundError:
        return None


def _files_to_fetch(repo_id: str, folder: Path, listing: set[str] | None) -> list[str]:
    """Name the weight files to fetch; without a listing, judge by what the cache holds."""
    held = {file.name for file in folder.iterdir()} if listing is None else listing
    if not held & {"config.json", ADAPTER_CONFIG}:
        if listing is None:
            raise HubError(f"{repo_id}: {_lacks(['config.json'])}: run again with a connection")
        raise CheckpointError(
            f"{repo_id} is not a model that can be loaded: it holds no config.json"
        )
    names = weight_files(repo_id, folder, held)
    if not names and listing is None and "config.json" in held:
        names = ["model.safetensors"]
    if ADAPTER_WEIGHTS in held or (listing is None and ADAPTER_CONFIG in held):
        names.append(ADAPTER_WEIGHTS)

    if not names:
        raise CheckpointError(
            f"{repo_id} ships {NO_WEIGHTS}: choose another repository or revision"
        )
    if listing is not None and (absent := set(names) - listing):
        raise CheckpointError(
            f"{repo_id}: its index of weights names {min(absent)}, which the repository does not "
            "hold: choose another revision, or tell its owner"
        )
    return names


def _download(
    repo_id: str,
    revision: str | None,
    patterns: tuple[str, ...] | list[str],
    progress: bool,
) -> Path:
    """Bring the top-level files that match into the cache, and return the snapshot's folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns="*/*",
                tqdm_class=None if progress else _hidden_bar(),
            )
        )
    # JSON: a proxy's page in place of the Hub's answer. RuntimeError: how Xet reports a failure.
    except (HTTPError, OSError, json.JSONDecodeError, RuntimeError) as error:
        missing = _uncached(repo_id, revision, patterns)
        raise HubError(_explain(error, repo_id, revision, missing)) from error


def _hidden_bar() -> type:
    """A progress bar that never shows; handed to one call, so nothing global is switched off."""
    from huggingface_hub.utils import tqdm

    class HiddenBar(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "disable": True})

    return HiddenBar


def _uncached(
    repo_id: str, revision: str | None, patterns: tuple[str, ...] | list[str]
) -> list[str]:
    """Name the files that match but are not in the cache, as far as that can be known offline."""
    from huggingface_hub import try_to_load_from_cache

    known = _listing(repo_id, revision) or [name for name in patterns if "*" not in name]
    return [
        name
        for name in sorted(known)
        if "/" not in name
        and any(fnmatchcase(name, pattern) for pattern in patterns)
        and not isinstance(try_to_load_from_cache(repo_id, name, revision=revision), str)
    ]


def _lacks(missing: list[str]) -> str:
    if not missing:
        return "the local cache does not hold it"
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return f"the local cache lacks {', '.join(missing[:3])}{more}"


def _explain(error: Exception, repo_id: str, revision: str | None, missing: list[str]) -> str:
    """Say in one line why a download failed, and what to do about it."""
    from huggingface_hub import constants, errors

    reason = error
    if isinstance(error, errors.LocalEntryNotFoundError):  # hides why the Hub was of no help
        reason = error.__cause__ or errors.OfflineModeIsEnabled()
    detail = " ".join(f"{type(reason).__name__}: {reason}".split())[:200]
    status = reason.response.status_code if isinstance(reason, errors.HfHubHTTPError) else 0
    lacks = _lacks(missing)
    answers = {
        401: "the Hub wants an access token, or another one (401): log in with `hf auth login`",
        403: "the Hub forbids access (403): check your access token with `hf auth whoami`",
        429: "too many requests to the Hub (429): wait a few minutes and try again",
    }
    server_fault = f"the Hub has a fault of its own ({status}), and {lacks}: try again later"
    refused = server_fault if status >= 500 else f"the Hub refused the request ({detail})"
    # The first that fits. An HTTPError without an answer is a connection that failed.
    sentences = (
        (
            errors.GatedRepoError,
            f"the repository is gated: accept its terms at https://huggingface.co/{repo_id}, "
            "then log in with `hf auth login`",
        ),
        (
            errors.RepositoryNotFoundError,
            "no such folder here and no such repository on the Hub, or it is private: "
            "check the spelling, or log in with `hf auth login`",
        ),
        (
            errors.RevisionNotFoundError,
            f"there is no revision {revision!r}: give a branch, tag or commit of the repository",
        ),
        (errors.HfHubHTTPError, answers.get(status, refused)),
        (
            errors.OfflineModeIsEnabled,
            f"{lacks}, and downloads are switched off: run once without HF_HUB_OFFLINE",
        ),
        (
            (errors.FileMetadataError, json.JSONDecodeError),
            f"{constants.ENDPOINT} does not answer like a Hub: check HF_ENDPOINT, the proxy, "
            "and whether this network wants a login",
        ),
        (
            errors.HTTPError,
            f"no working connection to {constants.ENDPOINT} ({detail}), and {lacks}: "
            "check the network and try again",
        ),
    )
    for kind, sentence in sentences:
        if isinstance(reason, kind):
            return f"{repo_id}: {sentence}"
    if isinstance(reason, OSError) and reason.errno is not None:
        return (
            f"{repo_id}: cannot write to the cache {constants.HF_HUB_CACHE} ({detail}): "
            "free some space, or set HF_HOME to a folder that can be written"
        )
    return f"{repo_id}: the download broke off ({detail}): run again to complete it"
