"""A folder -> a repository on the Hugging Face Hub, by huggingface_hub's own uploading."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import HubError, InputError
from .folder import APPLE_DOUBLE, BPE_HEAD
from .hub import explained, repo_id_problem

#: what an earlier model in the repository may have had, and would be taken for the new one's
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", BPE_HEAD)


def check_token(token: str | None = None) -> str:
    """Find the access token and have the Hub confirm it; returns the user's name.

    Args:
        token: by default that of `hf auth login` or HF_TOKEN.

    Raises:
        HubError: there is none, it is not valid, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    _need_token(token)
    with explained(None):
        return HfApi(token=token).whoami()["name"]


def _need_token(token: str | None) -> None:
    from huggingface_hub import get_token

    if token is None and get_token() is None:
        raise HubError(
            "uploading needs an access token, and there is none: log in with `hf auth login`, or "
            "set HF_TOKEN to a token that may write (https://huggingface.co/settings/tokens)"
        )


def model_card(repo_id: str, tags: Sequence[str] | None = None, token: str | None = None) -> Any:
    """The card of a repository with further tags, huggingface_hub's `ModelCard`; a new one where
    there is none.

    Raises:
        HubError: the Hub cannot be reached, or forbids it.
    """
    from huggingface_hub import ModelCard, ModelCardData
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    with explained(repo_id):
        try:
            card = ModelCard.load(repo_id, token=token)
        except (EntryNotFoundError, RepositoryNotFoundError):
            card = ModelCard.from_template(ModelCardData(library_name="mlx", tags=["mlx"]))
    held, further = card.data.tags or [], [tags] if isinstance(tags, str) else tags or ()
    card.data.tags = [*held, *(tag for tag in further if tag not in held)]
    return card


def upload(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    replaces: Sequence[str] = WEIGHTS,
    progress: bool = True,
    revision: str | None = None,
    **commit: Any,
) -> Any:
    """Make a folder the newest commit of a repository, which is created if there is none.

    Files that an interrupted upload has finished are not sent again.

    Args:
        folder: what to upload.
        repo_id: `owner/name`.
        private: create the repository as a private one.
        token: access token; by default that of `hf auth login` or HF_TOKEN.
        replaces: patterns of files that the repository loses unless they are in the folder.
        progress: show huggingface_hub's progress bars on standard error.
        revision: the branch, which is created if there is none; by default the main one.
        commit: `commit_message`, `commit_description`, `create_pr`, as `HfApi.upload_folder` has
            them.

    Returns:
        The commit, huggingface_hub's `CommitInfo`; its `repo_url` is the repository's address.

    Raises:
        HubError: there is no access token, or not the right to write there; the Hub cannot be
            reached, or the upload cannot be finished.
        InputError: `repo_id` is no name of a repository, or that of a public one, but is to be
            private.
    """
    from huggingface_hub import HfApi, utils

    if problem := repo_id_problem(repo_id):
        raise InputError(problem)
    _need_token(token)
    api = HfApi(token=token)
    with explained(repo_id, revision), ExitStack() as stack:
        if not progress and not utils.are_progress_bars_disabled():
            utils.disable_progress_bars()
            stack.callback(utils.enable_progress_bars)
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise InputError(
                f"{repo_id} is there already, and public: make it private in its settings, or "
                "upload under another name"
            )
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            revision=revision,
            folder_path=Path(folder),
            delete_patterns=list(replaces),
            ignore_patterns=[APPLE_DOUBLE, f"*/{APPLE_DOUBLE}"],
            **commit,
        )
