"""What is read by `from_pretrained` is written by `save_pretrained`, and uploaded by
`push_to_hub`."""

import inspect
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

from ..errors import CheckpointError, InputError, UnsupportedOptionError
from ..files import adding_files, replacing
from .hub import repo_id_problem
from .upload import check_token, model_card, upload

#: arguments of `push_to_hub` that are not also those of `save_pretrained`
_PUSHED = (
    *("repo_id", "private", "token", "revision", "create_pr", "tags"),
    *("commit_message", "commit_description"),
)
#: what transformers' `save_pretrained` takes as well, and what is the case here
_FIXED = {
    "is_main_process": True,
    "safe_serialization": True,
    "save_function": None,
    "save_original_format": True,
    "save_peft_format": True,
    "state_dict": None,
    "variant": None,
}


def folder_path(folder: Any) -> Path:
    """A folder to write to, `~` being the user's.

    Raises:
        InputError: it is no path.
    """
    if not isinstance(folder, str | os.PathLike):
        raise InputError.must_be("save_directory", folder, "the path of a folder")
    return Path(os.path.expanduser(folder))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, what is written: a file or folder that cannot be is the user's to know.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path}: cannot be written: {reason}") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a file, whole or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """
    with writing(Path(path)), replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


class Saveable:
    """Base of what has `from_pretrained`; a subclass writes its files in `_write_files`.

    Attributes:
        replaced_files: patterns of files that an earlier one of the same kind may have had, and
            that would be taken for this one's.
    """

    replaced_files: ClassVar[Sequence[str]] = ()
    _write_files: Callable[..., None]  #: (folder, options): what `from_pretrained` reads, and all

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, push_to_hub: bool = False, **options: Any
    ) -> list[str]:
        """Write to a folder what `from_pretrained` reads, there and in transformers.

        Files of the same names are replaced once all are written, and what an earlier save left,
        such as further shards, goes; others in the folder stay.

        Args:
            save_directory: the folder, which is made if there is none.
            push_to_hub: also upload it; then `options` may be those of `push_to_hub`, with a
                `repo_id` that is by default the folder's name.

        Returns:
            Paths of the files.

        Raises:
            CheckpointError: the folder cannot be written to.
            InputError: it is a file or no path, or there is no such option.
            UnsupportedOptionError: weights are not to be as they always are, all in safetensors.
        """
        for name, value in _FIXED.items():
            if options.pop(name, value) is not value:
                raise UnsupportedOptionError(f"{name} can only be {value} here; leave it out")
        known = (*list(inspect.signature(self._write_files).parameters)[1:], *_PUSHED)
        if unknown := options.keys() - {*known}:
            raise InputError(
                f"save_pretrained has no option {min(unknown)}, but {', '.join(known)}"
            )
        hub = {name: options.pop(name) for name in _PUSHED if name in options}
        folder = folder_path(save_directory)
        with writing(folder):
            with adding_files(folder) as temporary:
                self._write_files(temporary, **options)
                files = {f.relative_to(temporary) for f in temporary.rglob("*") if f.is_file()}
            for file in folder.iterdir():
                stale = any(fnmatchcase(file.name, pattern) for pattern in self.replaced_files)
                if stale and file.relative_to(folder) not in files:
                    file.unlink()
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", folder.name), **hub, **options)
        return [str(folder / file) for file in sorted(files)]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: Sequence[str] | None = None,
        **options: Any,
    ) -> Any:
        """Upload what `save_pretrained` writes, as one commit.

        Args:
            repo_id: `owner/name`, or a name that the user of the token owns.
            token: access token; by default, and with True, that of `hf auth login` or HF_TOKEN.
            tags: for the model card; without one, the repository gets a simple one.
            options: of `save_pretrained`; the others are as in `HfApi.upload_folder`.

        Returns:
            The commit, huggingface_hub's `CommitInfo`.

        Raises:
            HubError: it cannot be uploaded; see `upload`.
            InputError: `repo_id` is no name of a repository.
        """
        token = token if isinstance(token, str) else None
        if not isinstance(repo_id, str):
            raise InputError.must_be("repo_id", repo_id, "owner/name, or a name")
        if "/" not in repo_id:
            repo_id = f"{check_token(token)}/{repo_id}"
        if problem := repo_id_problem(repo_id):
            raise InputError(problem)
        taken = inspect.signature(self._write_files).parameters
        for name in ("max_shard_size", "use_temp_dir"):  # transformers has them for all
            if name not in taken:
                options.pop(name, None)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **options)
            card = model_card(repo_id, tags, token)
            card.save(Path(folder) / "README.md")
            return upload(
                folder,
                repo_id,
                private=bool(private),
                token=token,
                replaces=self.replaced_files,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )
