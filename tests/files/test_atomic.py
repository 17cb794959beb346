from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tersor.core.errors import FormatError, MissingError
from tersor.files.atomic import atomic_folder, atomic_set, atomic_writer


class Interrupted(BaseException):
    """Stands for Ctrl-C: not an Exception."""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_nothing_has_the_name_until_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    with atomic_writer(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert names(tmp_path) == {"out.gguf"}


@pytest.mark.parametrize("error", [ValueError, Interrupted])
def test_a_failure_leaves_the_older_file_as_it_was_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"older")

    def interrupted_run() -> None:
        with atomic_writer(path) as file:
            file.write(b"newer")
            raise error

    with pytest.raises(error):
        interrupted_run()
    assert path.read_bytes() == b"older"
    assert names(tmp_path) == {"out.gguf"}


def test_a_killed_run_leaves_no_file_of_the_name_and_the_next_run_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    script = (
        "import sys, pathlib, time\n"
        "from tersor.files.atomic import atomic_writer\n"
        "with atomic_writer(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'x' * 100_000); file.flush()\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(FormatError, match="another run is writing"), atomic_writer(path):
            pass
        child.send_signal(signal.SIGKILL)
    assert names(tmp_path) == {".out.gguf.tersor-partial"}
    with atomic_writer(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == {"out.gguf"}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_files_cannot_be_locked_they_are_written_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", refuse)
    with atomic_writer(tmp_path / "one") as file:
        file.write(b"1")
    assert (tmp_path / "one").read_bytes() == b"1"


def fill(place: Path, kind: str) -> None:
    """Write more than a MiB to `place`."""
    if kind == "folder":
        with atomic_folder(place) as folder:
            (folder / "x").write_bytes(bytes(2 << 20))
    else:
        with atomic_set(place.parent) as files:
            *_, last = [files.open(name) for name in (place.name, "second", "third")[: 1 if kind == "file" else 3]]
            last.write(bytes(2 << 20))


@pytest.mark.parametrize(("kind", "named"), [("file", "one"), ("set", "one and 2 more"), ("folder", "one")])
def test_a_file_that_becomes_too_large_is_named_with_the_remedy(kind: str, named: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX's")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 19, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large; raise the limit of this process \(ulimit -f\)") as caught:
            fill(tmp_path / "one", kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / named))
    assert names(tmp_path) == set()


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "make room"), (errno.EDQUOT, "your quota is used up")])
def test_a_disk_without_room_is_told_once_with_the_remedy(number: int, remedy: str, tmp_path: Path) -> None:
    def failing_run() -> None:
        with atomic_folder(tmp_path / "m"), atomic_writer(tmp_path / "one"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=remedy) as caught:
        failing_run()
    assert (str(caught.value).count(remedy), caught.value.filename) == (1, str(tmp_path / "one"))


def test_files_of_a_set_get_their_names_together_the_first_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    plain = Path.replace

    def recording(self: Path, target: Path) -> Path:
        order.append(target.name)
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", recording)
    with atomic_set(tmp_path) as files:
        for name in ("1", "2", "3"):
            files.open(name).write(name.encode())
        assert not order
    assert order == ["3", "2", "1"]
    assert names(tmp_path) == {"1", "2", "3"}


def test_a_failed_set_leaves_nothing(tmp_path: Path) -> None:
    def failing_run() -> None:
        with atomic_set(tmp_path) as files:
            files.open("1").write(b"1")
            raise Interrupted

    with pytest.raises(Interrupted):
        failing_run()
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "."])
def test_a_set_takes_plain_names_only(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="a plain name of its own"), atomic_set(tmp_path) as files:
        files.open(name)


def test_a_folder_of_the_name_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a folder has this name"), atomic_writer(tmp_path):
        pass


def test_a_link_in_place_of_the_hidden_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / ".out.tersor-partial").symlink_to(victim)
    with (
        pytest.raises(MissingError, match=r"\.out\.tersor-partial: cannot be written"),
        atomic_writer(tmp_path / "out"),
    ):
        pass
    assert victim.read_bytes() == b"mine"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such folder"), atomic_writer(tmp_path / "nowhere" / "x"):
        pass


def test_a_folder_appears_whole_and_replaces_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content in ("first", "second"):
        with atomic_folder(path) as partial:
            (partial / "sub").mkdir()
            (partial / "sub" / content).write_text(content)
            assert not (path / "sub" / content).exists()
        assert names(path / "sub") == {content}
    assert names(tmp_path) == {"model"}


def test_a_pipe_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(FormatError, match="pipe: a device, pipe or broken link has this name"), atomic_writer(path):
        pass
    assert path.is_fifo()


def test_a_failed_folder_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()

    def interrupted_run() -> None:
        with atomic_folder(path) as partial:
            (partial / "x").touch()
            raise Interrupted

    with pytest.raises(Interrupted):
        interrupted_run()
    assert names(path) == set()
    assert names(tmp_path) == {"model"}


def test_two_runs_to_one_folder_are_told_apart_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as first:
        (first / "a").write_text("first")
        with pytest.raises(FormatError, match="model: another run is writing this folder; wait for it or end it"):
            atomic_folder(path).__enter__()
        (first / "b").write_text("first")
    assert {file.name: file.read_text() for file in path.iterdir()} == {"a": "first", "b": "first"}
    assert names(tmp_path) == {"model"}


def test_a_killed_run_keeps_nobody_off_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "model"
    script = (
        "import sys, pathlib, time\n"
        "from tersor.files.atomic import atomic_folder\n"
        "with atomic_folder(pathlib.Path(sys.argv[1])):\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(FormatError, match="another run is writing"):
            atomic_folder(path).__enter__()
        child.send_signal(signal.SIGKILL)
    assert names(tmp_path) == {".model.tersor-partial", ".model.lock.tersor-partial"}
    with atomic_folder(path) as partial:
        (partial / "x").touch()
    assert names(tmp_path) == {"model"}
    assert names(path) == {"x"}


def test_leftovers_of_a_killed_folder_run_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "model"
    (tmp_path / ".model.tersor-replaced").mkdir()  # killed between its two renames
    (tmp_path / ".model.tersor-replaced" / "old").touch()
    (tmp_path / ".model.tersor-partial").mkdir()
    (tmp_path / ".model.tersor-partial" / "new").touch()

    def interrupted_run() -> None:
        with atomic_folder(path):
            assert names(path) == {"old"}
            raise Interrupted

    with pytest.raises(Interrupted):
        interrupted_run()
    assert names(tmp_path) == {"model"}
