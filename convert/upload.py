"""A converted model -> a repository on the Hugging Face Hub, by huggingface_hub's own uploading."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_speech.errors import HubError, InputError

#: what an earlier model in the repository may have had, and would be taken for this one's
_REPLACED = ["model*.safetensors", "model.safetensors.index.json"]


def check_name(repo_id: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        InputError: it is none, or lacks its owner.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"{repo_id!r} is not the name of a repository: that is owner/name, of letters, digits, "
            "'-', '_' and '.', with at most 96 characters"
        ) from error
    if "/" not in repo_id:
        raise InputError(
            f"{repo_id!r} needs its owner, a user or an organization: give owner/{repo_id}"
        )


def check_token() -> str:
    """Find the access token and have the Hub confirm it; returns the user's name.

    Raises:
        HubError: there is none, it is not valid, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    _need_token()
    with _explained(None):
        return HfApi().whoami()["name"]


def _need_token() -> None:
    from huggingface_hub import get_token

    if get_token() is None:
        raise HubError(
            "uploading needs an access token, and there is none: log in with `hf auth login`, or "
            "set HF_TOKEN to a token that may write (https://huggingface.co/settings/tokens)"
        )


def upload(
    folder: str | os.PathLike, repo_id: str, *, private: bool = False, progress: bool = True
) -> str:
    """Make a folder the newest commit of a repository, which is created if there is none.

    Files that an interrupted upload has finished are not sent again. Weights that the repository
    held before are removed from it.

    Args:
        folder: what `convert` wrote.
        repo_id: `owner/name`.
        private: create the repository as a private one.
        progress: show huggingface_hub's progress bars on standard error.

    Returns:
        The repository's address.

    Raises:
        HubError: there is no access token, or not the right to write there; the Hub cannot be
            reached, or the upload cannot be finished.
        InputError: `repo_id` is no name of a repository, or that of a public one, but is to be
            private.
    """
    from huggingface_hub import HfApi

    check_name(repo_id)
    _need_token()
    api = HfApi()
    with _explained(repo_id), _progress_bars(progress):
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise InputError(
                f"{repo_id} is there already, and public: make it private in its settings, or "
                "upload under another name"
            )
        api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder),
            delete_patterns=_REPLACED,
            commit_message="MLX weights, converted by mlx_speech",
        )
    return str(url)


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Switch huggingface_hub's off, if they are not to be shown and are on."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _explained(repo_id: str | None) -> Iterator[None]:
    """Within it, what goes wrong with the Hub becomes a `HubError` of one line."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except InputError:
        raise
    # JSON: a proxy's page in place of the Hub's answer. RuntimeError and ValueError: how
    # huggingface_hub's uploads and Xet report that a file was refused.
    except (HTTPError, OSError, json.JSONDecodeError, RuntimeError, ValueError) as error:
        raise HubError(_explain(error, repo_id)) from error


def _explain(error: Exception, repo_id: str | None) -> str:
    """Say in one line why an upload failed, and what to do about it."""
    from huggingface_hub import constants, errors

    reason = error
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        reason = error.__cause__  # the file's name is less than why
    detail = " ".join(f"{type(reason).__name__}: {reason}".split())[:300]
    status = reason.response.status_code if isinstance(reason, errors.HfHubHTTPError) else 0
    answers = {
        401: "the Hub does not accept the access token (401): log in again with `hf auth login`",
        403: "no right to write there (403): check the owner's name, and with `hf auth whoami` "
        "that the access token is yours and may write",
        429: "too many requests to the Hub (429): wait a few minutes and try again",
    }
    if status in answers:
        sentence = answers[status]
    elif status >= 500:
        sentence = f"the Hub has a fault of its own ({status}): try again later"
    elif status:
        sentence = f"the Hub refused the upload ({detail})"
    elif isinstance(reason, errors.OfflineModeIsEnabled):
        sentence = "HF_HUB_OFFLINE is set: an upload needs the network"
    elif isinstance(reason, json.JSONDecodeError):
        sentence = (
            f"{constants.ENDPOINT} does not answer like a Hub: check HF_ENDPOINT, the proxy, and "
            "whether this network wants a login"
        )
    elif isinstance(reason, errors.HTTPError):
        sentence = (
            f"no working connection to {constants.ENDPOINT} ({detail}): check the network and try "
            "again"
        )
    else:
        sentence = f"the upload broke off ({detail}): try again to complete it"
    return f"{repo_id}: {sentence}" if repo_id else sentence
