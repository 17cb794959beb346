"""The command of a Card names no folder and no secret, however it was typed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from tersor.cli.screen.published import published_command


def published(*words: str) -> list[str]:
    """What is told of a command line of these words, `tersor` left out."""
    told: list[str] = []
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    def verb(
        context: typer.Context,
        *,
        model: Annotated[str, typer.Argument()],
        output: Annotated[Path | None, typer.Option("--output", "-o")] = None,
        calibration: Annotated[str | None, typer.Option("--calibration", "-c")] = None,
        save: Annotated[list[Path] | None, typer.Option()] = None,
        pattern: Annotated[str, typer.Option()] = "",
        prompt: Annotated[str, typer.Option()] = "",
        header: Annotated[list[str] | None, typer.Option()] = None,
        as_json: Annotated[bool, typer.Option("--json")] = False,
    ) -> None:
        told.append(published_command(context, texts=("--prompt",), secrets=("--header",)))

    run: Any = typer.main.get_command(app)
    run(list(words), obj=list(words), standalone_mode=False)
    (line,) = told
    first, *rest = shlex.split(line)
    assert first == "tersor"
    return rest


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some files, which is the home folder too."""
    folder = tmp_path / "private"
    (folder / "texts").mkdir(parents=True)
    (folder / "model.gguf").write_text("")
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("{}/model.gguf", "model.gguf"),
        ("~/model.gguf", "model.gguf"),
        ("{}/texts/../model.gguf", "model.gguf"),
        ("m -o {}/new.gguf", "m -o new.gguf"),
        ("m -o{}/new.gguf", "m -onew.gguf"),
        ("m --output={}/nowhere/new.gguf", "m --output=new.gguf"),
        ("m -o ~/./new.gguf", "m -o new.gguf"),
        ("m -c {}/texts", "m -c texts"),
        ("m -c{}/texts/", "m -ctexts"),
        ("m --calibration=~/texts", "m --calibration=texts"),
        ("m --calibration {}/not-there.txt", "m --calibration not-there.txt"),
        ("m --save {}/a --save={}/b.dat", "m --save a --save=b.dat"),
        ("m --save no/folder/c.dat", "m --save c.dat"),
        ("org/name", "org/name"),
        ("org/name@main", "org/name@main"),
        ("m -c org/data:config:split", "m -c org/data:config:split"),
        ("m --pattern blk\\..*/x=q8_0", "m --pattern 'blk\\..*/x=q8_0'"),
        ("m --prompt {}/texts --json", "m --prompt {}/texts --json"),
        ("m --header Authorization:secret --header=Key:secret", "m --header Authorization:… --header=Key:…"),
        ("http://me:secret@host:80/v1?key=secret", "http://host:80/v1"),
    ],
)
def test_files_stand_by_their_name_and_secrets_not_at_all(typed: str, shown: str, private: Path) -> None:
    words = [word.replace("{}", str(private)) for word in typed.split()]
    assert published(*words) == shlex.split(shown.replace("{}", str(private)))


def test_what_lies_in_the_current_folder_has_its_names(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(private)
    assert published(".", "-o", "./x.gguf") == ["private", "-o", "x.gguf"]
    assert published("..", "-o", "texts/x.gguf") == [private.parent.name, "-o", "x.gguf"]
    assert published("texts/name") == ["name"]  # no hub id, for the folder is there


def test_a_word_too_long_for_a_name_is_no_file() -> None:
    assert published("m", "--pattern", "a" * 5000) == ["m", "--pattern", "a" * 5000]
