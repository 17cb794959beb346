"""What the tables list is documented, tested and used."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from tersor.cli.main import app
from tersor.containers.mixture_rules import FILE_TYPES, RULES
from tersor.core import errors
from tersor.formats import FORMATS
from tersor.models.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tersor"
ERRORS = [name for name in errors.__all__ if name != "TersorError"]


def text(path: str) -> str:
    """A file of the repository."""
    return (ROOT / path).read_text(encoding="utf-8")


def verbs() -> list[str]:
    """The verbs of the command line."""
    group: Any = typer.main.get_command(app)
    return list(group.commands)


def group_commands() -> list[tuple[str, str]]:
    """The verbs that are groups, with each of their commands."""
    group: Any = typer.main.get_command(app)
    return [(verb, command) for verb in group.commands for command in getattr(group.commands[verb], "commands", {})]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_row_in_the_reference(name: str) -> None:
    page = text("docs/reference/formats.md")
    assert len(re.findall(rf"^\| `{re.escape(name)}` \|", page, re.MULTILINE)) == 2


@pytest.mark.parametrize("name", sorted({entry.family for entry in FORMATS.values()} - {"float"}))
def test_every_family_of_formats_is_explained(name: str) -> None:
    families = text("docs/explanation/number-formats.md").split("## Families")[1].split("\n\n**")[0]
    assert f"\n| {name}" in families.lower()


@pytest.mark.parametrize("name", [name for name in FILE_TYPES if not name.endswith("_pure")])
def test_every_file_type_has_a_row(name: str) -> None:
    assert f"| `{name}` |" in text("docs/reference/file-types.md")
    assert f"| `{name}` |" in text("README.md")


def test_every_format_of_a_file_type_can_stand_in_a_gguf() -> None:
    used = {kind.default for kind in FILE_TYPES.values()} | {rule.format for rule in RULES}
    fallbacks = {FORMATS[name].fallback for name in used} - {None}
    assert [name for name in sorted(used | {str(name) for name in fallbacks}) if FORMATS[name].ggml_type is None] == []


@pytest.mark.parametrize("name", [name for row in ARCHITECTURES for name in row.classes])
def test_every_architecture_is_documented_and_tested_against_its_source(name: str) -> None:
    assert f"`{name}`" in text("docs/reference/models.md")
    tested = text("tests/models/test_parity.py") + text("tests/models/conftest.py")
    stem = name.removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration")
    assert stem.lower() in tested.lower()


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_is_documented_and_tested(verb: str) -> None:
    assert f"`tersor {verb}`" in text("README.md")
    assert f"\n## tersor {verb}\n" in text("docs/reference/command-line.md")
    assert [path.name for path in (SOURCE / "cli").rglob(f"{verb}.py")] == [f"{verb}.py"]
    tests = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests" / "cli").glob("*.py")))
    assert f'"{verb}"' in tests or f"'{verb}'" in tests


@pytest.mark.parametrize(("verb", "command"), group_commands())
def test_every_command_of_a_group_is_documented_and_tested(verb: str, command: str) -> None:
    assert f"\n### tersor {verb} {command}\n" in text("docs/reference/command-line.md")
    tests = text(f"tests/cli/test_{verb}.py")
    assert f'"{command}"' in tests


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_drawn_raised_and_tested(name: str) -> None:
    assert f"── {name} " in (errors.__doc__ or "")
    sources = [path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py") if path.name != "errors.py"]
    assert any(f"raise {name}(" in source for source in sources)
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert any(f"raises({name}, match=" in source for source in tests)


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_one_of_ours(name: str) -> None:
    error = getattr(errors, name)
    assert inspect.isclass(error)
    assert issubclass(error, errors.TersorError)
    assert error.__doc__
