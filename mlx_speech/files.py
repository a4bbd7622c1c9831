"""Files and folders that are written whole or not at all."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import InputError

# the beginning of the names of what is being written, and the end of that of a folder that one is
# to replace; short, since a name that is as long as the file system allows must be writable, too
HIDDEN = ".mlx-speech-"
_REPLACED = ".old"
# where the system does not tell: bytes of a name, and of a path with its end
_LIMITS = {"PC_NAME_MAX": 255, "PC_PATH_MAX": 1024}


def check_name(path: Path) -> None:
    """Refuse a path that the file system would, to be known before any work is done for it.

    Raises:
        InputError: a name in it, or the whole of it, is too long.
    """
    folder = path.absolute().parent
    while not os.path.isdir(folder):
        folder = folder.parent
    longest = max(map(len, map(os.fsencode, path.parts)), default=0)
    # a path ends with a NUL
    lengths = {"PC_NAME_MAX": longest, "PC_PATH_MAX": len(os.fsencode(path)) + 1}
    for kind, length in lengths.items():
        if length > (limit := _limit(folder, kind)):
            what = "the name" if kind == "PC_NAME_MAX" else "the path"
            raise InputError(f"{path}: {what} is too long, {length} bytes of {limit}; shorten it")


def _limit(folder: Path, kind: str) -> int:
    try:
        limit = os.pathconf(folder, kind)
    except (AttributeError, OSError, ValueError):  # there is none on Windows, or not for this
        limit = -1
    return limit if limit > 0 else _LIMITS[kind]


def why_no_folder(path: Path) -> str:
    """Why a path can be none of a folder, as it is a file or below one; nothing if it can."""
    place = Path(os.path.realpath(path))
    there = next(each for each in (place, *place.parents) if os.path.lexists(each))
    if there.is_dir():
        return ""
    return "is a file" if there == place else f"is to be below the file {there}"


def already_exists(path: Path) -> InputError:
    """What is said where a file or folder may not be replaced."""
    return InputError.about("{path} exists already; {overwrite} replaces it", path=path)


@contextmanager
def replacing(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Within it, write to the path that it gives; at the end that becomes `path`, at once.

    If anything fails, `path` is as it was. Where it is a link, what that leads to is replaced.

    Args:
        overwrite: whether a file that is at `path` may be replaced. Else one of several processes
            that write the same file gets it.

    Raises:
        InputError: there is a file, which may not be replaced.
        OSError: the folder cannot be written to, or the disk is full; it names `path`.
    """
    with replacing_all([path], overwrite=overwrite) as (temporary,), errors_about(path):
        yield temporary


@contextmanager
def replacing_all(paths: Sequence[Path], *, overwrite: bool = True) -> Iterator[list[Path]]:
    """The same for several files, which appear together: all of them, or with `overwrite` unset
    none."""
    targets = [Path(os.path.realpath(path)) if overwrite else path for path in paths]
    with ExitStack() as stack:
        temporaries = []
        for path, target in zip(paths, targets, strict=True):
            with errors_about(path):
                handle, name = tempfile.mkstemp(dir=target.parent, prefix=HIDDEN)
                os.close(handle)
                temporaries.append(Path(name))
                stack.callback(temporaries[-1].unlink, missing_ok=True)
        yield temporaries
        with ExitStack() as undo:
            # in an order that is the same for all who write them, so that one of these gets all
            for path, target, temporary in sorted(zip(paths, targets, temporaries, strict=True)):
                with errors_about(path):
                    # mkstemp's files are private; give this one the permissions of any new file
                    temporary.chmod(0o666 & ~_umask())
                    if overwrite:
                        temporary.replace(target)
                    else:
                        _move_to_free_name(temporary, target)
                        undo.callback(target.unlink)
            undo.pop_all()


def _move_to_free_name(temporary: Path, path: Path) -> None:
    """Rename, which replaces nothing."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise already_exists(path) from error
    except OSError:  # no hard links on this file system: claim the name first
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError as error:
            raise already_exists(path) from error
        with ExitStack() as claim:
            claim.callback(path.unlink)
            temporary.replace(path)
            claim.pop_all()
    else:
        temporary.unlink()


@contextmanager
def errors_about(path: Path) -> Iterator[None]:
    """Within it, an `OSError` that names no file, or only a temporary one, names `path`."""
    try:
        yield
    except OSError as error:
        named = error.filename is not None and HIDDEN not in os.path.basename(str(error.filename))
        if named or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replacing_folder(
    path: Path, *, check_replaced: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """Within it, fill the folder that it gives; at the end that becomes `path`, at once.

    If anything fails, what was at `path` is as it was, and nothing is left behind; if the process
    is killed, `clean_up` makes it so. Where `path` is a link, what that leads to is replaced.

    Args:
        check_replaced: called with a folder that is to be replaced at the end; raises what speaks
            against that. Without it, none that has anything in it is replaced.

    Raises:
        InputError: there is a folder, which may not be replaced.
        OSError: the folder cannot be written to, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    with hidden_folder(path) as temporary:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        replaced = temporary.with_name(f"{temporary.name}{_REPLACED}")
        with ExitStack() as stack:
            _lock(stack, target.parent)
            if check_replaced is not None and target.exists():
                check_replaced(target)
                target.rename(replaced)
            try:
                temporary.rename(target)
            except BaseException as error:
                if replaced.exists():
                    replaced.rename(target)
                if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise already_exists(path) from error
                raise
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def adding_files(folder: Path) -> Iterator[Path]:
    """Within it, write files to the folder that it gives; at the end they are moved into `folder`,
    in the place of those of the same names. What else is there stays.

    Raises:
        InputError: `folder` is a file.
        OSError: the folder cannot be written to, or the disk is full.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give the name of a folder")
    with hidden_folder(folder / "files") as temporary:
        yield temporary
        for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)


@contextmanager
def hidden_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, which is gone at the end; locked, so that it is seen to be used.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with ExitStack() as making:
            _lock(making, path.parent)  # before it has a lock itself, it looks like a dead one
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_hidden_prefix(path)))
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            _lock(stack, temporary, wait=False)
        yield temporary


def clean_up(path: Path) -> None:
    """Remove the hidden folders of killed processes beside `path`; what they had moved out of its
    way comes back.

    Raises:
        OSError: it cannot come back.
    """
    path = Path(os.path.realpath(path))
    with ExitStack() as cleaning:
        _lock(cleaning, path.parent)
        # a folder comes before what it was to replace
        for left in sorted(path.parent.glob(f"{_hidden_prefix(path)}*")):
            folder = left.with_name(left.name.removesuffix(_REPLACED))
            with ExitStack() as stack:
                used = folder.exists() and not _lock(stack, folder, wait=False)
                if used or left.lstat().st_uid != os.getuid():
                    continue
                if folder != left and not path.exists():
                    left.rename(path)
                shutil.rmtree(left, ignore_errors=True)


def _hidden_prefix(path: Path) -> str:
    """The same for all that is hidden beside a path, and short however long its name is."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()
    return f"{HIDDEN}{digest[:12]}-"


def _lock(stack: ExitStack, folder: Path, *, wait: bool = True) -> bool:
    """Lock a folder for as long as the stack lasts; returns whether that could be done.

    The system lets go of it when the process ends, however it does.
    """
    import fcntl  # there is none on Windows, which needs the rest of this module

    try:
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # used by another process, gone, or on a file system without locks
        return False
    return True


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
