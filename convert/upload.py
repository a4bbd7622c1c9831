"""A converted model -> a repository on the Hugging Face Hub, by huggingface_hub's own uploading."""

import os
from contextlib import ExitStack
from pathlib import Path

from mlx_speech.checkpoint.folder import APPLE_DOUBLE
from mlx_speech.checkpoint.hub import explained, repo_id_problem
from mlx_speech.errors import HubError, InputError

#: what an earlier model in the repository may have had, and would be taken for this one's
_REPLACED = ["model*.safetensors", "model.safetensors.index.json"]


def check_token() -> str:
    """Find the access token and have the Hub confirm it; returns the user's name.

    Raises:
        HubError: there is none, it is not valid, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    _need_token()
    with explained(None):
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
    from huggingface_hub import HfApi, utils

    if problem := repo_id_problem(repo_id):
        raise InputError(problem)
    _need_token()
    api = HfApi()
    with explained(repo_id), ExitStack() as stack:
        if not progress and not utils.are_progress_bars_disabled():
            utils.disable_progress_bars()
            stack.callback(utils.enable_progress_bars)
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
            ignore_patterns=[APPLE_DOUBLE, f"*/{APPLE_DOUBLE}"],
            commit_message="MLX weights, converted by mlx_speech",
        )
    return str(url)
