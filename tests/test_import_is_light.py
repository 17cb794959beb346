"""`import tersor` costs nothing, and the verbs that need no torch load none."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tersor

HEAVY = ("torch", "transformers", "tokenizers", "xllamacpp", "huggingface_hub")


def modules_after(program: str) -> set[str]:
    code = f"import sys\n{program}\nsys.stderr.write('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(result.stderr.splitlines())


def test_importing_tersor_loads_nothing_but_itself() -> None:
    loaded = modules_after("import tersor")
    assert {name for name in loaded if name.startswith("tersor")} == {"tersor"}
    assert not {"numpy", "gguf", "typer", "rich", *HEAVY} & loaded


@pytest.mark.parametrize("name", sorted({*tersor.__all__} - {"__version__"}))
def test_no_public_name_loads_an_optional_dependency(name: str) -> None:
    assert not set(HEAVY) & modules_after(f"import tersor; tersor.{name}")


@pytest.mark.parametrize("arguments", [["--help"], ["formats"], ["formats", "--files", "--json"], ["verify", "--help"]])
def test_looking_around_loads_no_optional_dependency(arguments: list[str]) -> None:
    assert not set(HEAVY) & modules_after(f"from tersor.cli.main import main; main({arguments!r})")


def test_help_loads_no_verb() -> None:
    loaded = modules_after("from tersor.cli.main import main; main(['--help'])")
    assert not [name for name in loaded if name.startswith(("tersor.pipeline", "tersor.deploy", "tersor.cli.quantize"))]
    assert "numpy" not in loaded


@pytest.mark.parametrize("verb", ["formats", "inspect", "quantize", "verify"])
def test_a_verb_loads_nothing_of_what_others_serve_with(verb: str) -> None:
    loaded = modules_after(f"from tersor.cli.main import main; main(['{verb}', '--help'])")
    assert f"tersor.cli.{verb}" in loaded
    assert not [name for name in loaded if name.startswith(("tersor.deploy", "tersor.cli.deploy", "starlette"))]
