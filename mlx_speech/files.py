"""Files that are written whole or not at all."""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

# in the names of hidden folders, and at the end of that of a folder that one is to replace
_HIDDEN = ".mlx-speech-"
_REPLACED = ".old"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Within it, write to the path that it gives; at the end that becomes `path`, at once.

    If anything fails, `path` is as it was.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp's files are private; give this one the permissions of any new file
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Within it, fill the folder that it gives; at the end that becomes `path`, at once.

    If anything fails, what was at `path` is as it was, and nothing is left behind; if the process
    is killed, `clean_up` makes it so.

    Args:
        overwrite: at the end, remove a folder that is at `path`.

    Raises:
        OSError: the folder cannot be written to, the disk is full, or `path` exists.
    """
    with hidden_folder(path) as temporary:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        replaced = temporary.with_name(f"{temporary.name}{_REPLACED}")
        try:
            if overwrite and path.exists():
                path.rename(replaced)
            temporary.rename(path)
        except BaseException:
            if replaced.exists():
                replaced.rename(path)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def hidden_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, which is gone at the end; locked, so that it is seen to be used.

    Raises:
        OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with ExitStack() as making:
            _lock(making, path.parent)  # before it has a lock itself, it looks like a dead one
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}{_HIDDEN}"))
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            _lock(stack, temporary, wait=False)
        yield temporary


def clean_up(path: Path) -> None:
    """Remove the hidden folders of killed processes beside `path`; what they had moved out of its
    way comes back.

    Raises:
        OSError: it cannot come back.
    """
    with ExitStack() as cleaning:
        _lock(cleaning, path.parent)
        # a folder comes before what it was to replace
        for left in sorted(path.parent.glob(f".{glob.escape(path.name)}{_HIDDEN}*")):
            folder = left.with_name(left.name.removesuffix(_REPLACED))
            with ExitStack() as stack:
                used = folder.exists() and not _lock(stack, folder, wait=False)
                if used or left.lstat().st_uid != os.getuid():
                    continue
                if folder != left and not path.exists():
                    left.rename(path)
                shutil.rmtree(left, ignore_errors=True)


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
