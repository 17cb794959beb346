"""The documentation is true: its code runs, its tables are current, its links lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tersor.containers.hf.table import CONTAINERS
from tersor.formats import FORMATS
from tersor.graph.sensitivity.rebuild import FORMATS as NET_FORMATS
from tersor.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def name_of(path: Path) -> str:
    """The path from the root of the repository, for test ids."""
    return path.relative_to(ROOT).as_posix()


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder`, warnings shown."""
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=folder, timeout=300, check=False
    )


def test_generated_tables_are_current() -> None:
    result = run(str(ROOT / "tools" / "generate_docs.py"), "--check", folder=ROOT)
    assert (result.returncode, result.stdout, result.stderr) == (0, "all generated tables are current\n", ""), (
        "run `make docs`"
    )


def test_the_python_code_of_the_readme_runs(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="it verifies against the source: pip install 'tersor[torch]'")
    (block,) = PYTHON.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    result = run("-W", "error", "-c", block, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    size, verdict = result.stdout.splitlines()
    assert re.fullmatch(r"[\d.]+ times smaller, mean error [\d.]+%", size)
    assert {status for _, status in ast.literal_eval(verdict)} == {"passed"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.card.html",
        "model.card.json",
        "model.card.md",
        "model.gguf",
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_code_of_every_page_is_python(page: Path) -> None:
    for block in PYTHON.findall(page.read_text(encoding="utf-8")):
        if ">>>" not in block:  # examples with results are run as doctests
            compile(block, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_paths_named_in_the_architecture_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|tools|docs|benchmarks)/[\w./-]*)`", text)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert len(text.splitlines()) <= 150


def test_commands_in_the_documentation_use_options_that_exist() -> None:
    """Every `tersor …` line of a code block names a verb of ours and only options that it has."""
    options = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## tersor (\w+)\n(.*?)(?=^## |\Z)", options, re.DOTALL | re.MULTILINE))
    lines = [
        (page, line.split("#")[0])
        for page in PAGES
        for block in re.findall(
            r"^```(?:sh|console)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        for line in block.splitlines()
        if line.startswith("tersor ")
    ]
    assert lines
    for page, line in lines:
        verb, *rest = line.split()[1:]
        assert verb in sections, f"{name_of(page)}: {line}"
        section = sections[verb]
        commands = dict(re.findall(r"^### tersor \w+ (\w+)\n(.*?)(?=^### |\Z)", section, re.DOTALL | re.MULTILINE))
        if commands:
            assert "".join(rest[:1]) in commands, f"{name_of(page)}: {line}"
            section = commands[rest[0]]
        used = re.findall(r"(?<=\s)(--?[a-z][\w-]*)", line)
        assert [word for word in used if f"`{word}`" not in section] == [], f"{name_of(page)}: {line}"


def test_formats_named_in_how_to_pages_exist() -> None:
    for page in sorted((ROOT / "docs" / "how-to").glob("*.md")):
        named = re.findall(r"--tensor-format '[^']*=([\w-]+)'", page.read_text(encoding="utf-8"))
        assert [name for name in named if name not in {**FORMATS, **NET_FORMATS}] == []


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_explained(name: str) -> None:
    """What it is, when not, and whose idea it was."""
    page = (ROOT / "docs" / "explanation" / "methods.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
    assert "*Not*" in section
    assert f"| `{name}` |" in page


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_is_documented(name: str) -> None:
    for page in ("README.md", "docs/how-to/export-for-vllm.md"):
        assert f"| `{name}` |" in (ROOT / page).read_text(encoding="utf-8")


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            todo += sorted(target.glob("*.md")) if target.is_dir() else [target]
    assert [name_of(page) for page in PAGES if page not in reached] == []
