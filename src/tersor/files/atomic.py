"""Writing that appears whole or not at all: hidden file beside, fsync, rename.

A killed run leaves only hidden `.NAME.tersor-partial` entries, and for a folder the file `.NAME.lock.tersor-partial`;
the next run to the same name takes them over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.files.closing import Closing

try:
    import fcntl
except ImportError:  # Windows has no advisory locks; two runs to one name are then not told apart
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "AtomicSet",
    "Claim",
    "atomic_folder",
    "atomic_set",
    "atomic_writer",
    "check_file",
    "check_folder",
    "foreign_name",
    "replace_folder",
    "telling_remedy",
]

_REMEDIES = {
    errno.ENOSPC: "make room there, or name an output elsewhere",
    errno.EDQUOT: "your quota is used up: make room, or name an output elsewhere",
    errno.EFBIG: "raise the limit of this process (ulimit -f), or name an output where files may be so large",
}


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends well, and vanishes when it does not.

    Raises MissingError when the folder does not exist and FormatError when another run is writing the same name.
    """
    with atomic_set(path.parent) as files:
        yield files.open(path.name)


class AtomicSet:
    """Files of one folder that appear together: each is complete before the first of them gets its name."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise MissingError(f"{folder}: no such folder; create it first")
        self.folder = folder
        self._open: dict[str, BinaryIO] = {}

    def open(self, name: str) -> BinaryIO:
        """Return a new binary file that will be called `name`; it can be read back and sought in."""
        if Path(name).name != name or name in ("", "..") or name in self._open:
            raise FormatError(f"{name!r}: each file needs a plain name of its own")
        if (self.folder / name).is_dir():
            raise FormatError(f"{self.folder / name}: a folder has this name; choose another")
        if os.path.lexists(self.folder / name) and not (self.folder / name).is_file():
            raise FormatError(f"{self.folder / name}: a device, pipe or broken link has this name; choose another")
        path = self.folder / _partial(name)
        file = _open_locked(path, f"{path}: another run is writing this file; wait for it or end it")
        self._open[name] = file
        return file

    def commit(self) -> None:
        """Give every file its name. The first one opened comes last: whoever sees it sees the others too."""
        for file in self._open.values():
            file.flush()
            os.fsync(file.fileno())
        for name in reversed(self._open):
            (self.folder / _partial(name)).replace(self.folder / name)
        _sync_folder(self.folder)
        self._close()

    def discard(self) -> None:
        """Remove what was written so far."""
        for name in self._open:
            with contextlib.suppress(FileNotFoundError):
                (self.folder / _partial(name)).unlink()
        self._close()

    def place(self) -> str:
        """Return the path of the first file, and how many there are besides: for messages."""
        first, *others = self._open or [""]
        return str(self.folder / first) + (f" and {len(others)} more" if others else "")

    def _close(self) -> None:
        for file in self._open.values():
            with contextlib.suppress(OSError):
                file.close()
        self._open.clear()


@contextlib.contextmanager
def atomic_set(folder: Path) -> Iterator[AtomicSet]:
    """Yield a set of files in `folder` that get their names together when the block ends well."""
    files = AtomicSet(folder)
    try:
        with telling_remedy(files.place):
            yield files
            files.commit()
    finally:
        files.discard()


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty hidden folder that becomes `path` when the block ends well; an older `path` is replaced.

    Raises MissingError when its parent does not exist and FormatError when another run is writing the same name.
    """
    if not path.parent.is_dir():
        raise MissingError(f"{path.parent}: no such folder; create it first")
    partial = path.parent / _partial(path.name)
    with Claim(path):
        _settled(path)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            with telling_remedy(lambda: str(path)):
                yield partial
                replace_folder(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


class Claim(Closing):
    """A folder, there or yet to be made, that no other run writes until this is closed, forgotten, or the process ends.

    Raises MissingError when its parent does not exist and FormatError when another run has claimed the same name. Where
    files cannot be locked, nobody is kept out.
    """

    def __init__(self, folder: Path) -> None:
        # A file beside it, for network file systems do not lock folders, and this one may be renamed meanwhile.
        path = folder.parent / _partial(f"{folder.name}.lock")
        file = _open_locked(path, f"{folder}: another run is writing this folder; wait for it or end it")
        self._finalizer = weakref.finalize(self, _let_go, file, path)

    def close(self) -> None:
        """Let others have the folder. Closing twice is harmless."""
        self._finalizer()


def check_folder(path: Path) -> None:
    """Refuse, before any work, a folder that could not be made: MissingError for its parent, FormatError for a file."""
    if not path.parent.is_dir():
        raise MissingError(f"{path.parent}: no such folder; create it first")
    if path.exists() and not path.is_dir():
        raise FormatError(f"{path}: a file has this name, and a folder is needed; choose another")


def foreign_name(folder: Path, is_ours: Callable[[str], bool], sign: str) -> str | None:
    """Return the first name in a folder that may not be replaced with it: of a file that is not ours, or of a folder.

    sign  the file that all of ours have: without it nothing there is
    """
    paths = sorted(folder.iterdir())
    odd = next((path.name for path in paths if not path.is_file() or not is_ours(path.name)), None)
    if odd is not None or not paths or (folder / sign).is_file():
        return odd
    return paths[0].name


def check_file(path: Path, sources: Iterable[Path], example: str = "model.gguf") -> None:
    """Refuse, before any work, a file that could not be made, or would be one of `sources`: SchemeError says which.

    Raises MissingError where its folder does not exist. `example` is what a file in a folder would be called.
    """
    if not path.parent.is_dir():
        raise MissingError(f"{path.parent}: no such folder; create it first, or give another output")
    if path.is_dir():
        raise SchemeError(f"{path} is a folder; the output must be a file, for example {path / example}")
    if os.path.lexists(path) and not path.is_file():
        raise SchemeError(f"{path} exists and is no regular file (a device, pipe or broken link); name another")
    if path.resolve() in {source.resolve() for source in sources}:
        raise SchemeError(f"{path} is a file of the model itself; give another output")


def replace_folder(complete: Path, path: Path) -> None:
    """Give the folder `complete` the name `path`, beside it; an older `path` is gone only when this one is there."""
    older = _settled(path)
    for file in sorted(complete.rglob("*")):
        if file.is_file():
            _sync(file)
    if path.exists():
        path.rename(older)
    complete.rename(path)
    _sync_folder(path.parent)
    shutil.rmtree(older, ignore_errors=True)


@contextlib.contextmanager
def telling_remedy(place: Callable[[], str]) -> Iterator[None]:
    """Say where there was no room for more and what to do, which the system does not say of a file that is open."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        told = str(error.strerror)
        if remedy is None or remedy in told:
            raise
        raise OSError(error.errno, f"{told}; {remedy}", error.filename or place()) from error


def _settled(path: Path) -> Path:
    """Undo what a run left that was killed between its two renames; return where an older folder waits meanwhile."""
    older = path.parent / f".{path.name}.tersor-replaced"
    if older.exists():
        if path.exists():
            shutil.rmtree(older)
        else:
            older.rename(path)
    return older


def _partial(name: str) -> str:
    return f".{name}.tersor-partial"


def _open_locked(path: Path, refusal: str) -> BinaryIO:
    """Open `path` empty, with a lock that ends with the process, so that leftovers are told from runs at work."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            reason = error.strerror or error
            raise MissingError(f"{path}: cannot be written ({reason}); give another folder") from error
        file = os.fdopen(descriptor, "r+b")
        if not _locked(file):
            file.close()
            raise FormatError(refusal)
        # Between open and lock the other run may have renamed the file: then it is the finished result, not ours.
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            file.truncate(0)
            return file
        file.close()


def _locked(file: BinaryIO) -> bool:
    """Lock a file as far as its file system can; False: another run has done so."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # ENOSYS, EOPNOTSUPP, ENOLCK: no locks there, so runs are not told apart, as on Windows
        return True
    return True


def _let_go(file: BinaryIO, path: Path) -> None:
    """Remove a lock, and only then unlock it: by then the name could be another run's."""
    with contextlib.suppress(OSError):
        path.unlink()
    file.close()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
