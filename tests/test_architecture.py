"""The shape of the source: a one-way street of layers, small modules and functions, and what must be absent."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tersor"
MODULES = sorted(SOURCE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PROGRAMS = [*MODULES, *TESTS, *sorted((ROOT / "tools").glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
LAYERED = [path for path in MODULES if path.parent != SOURCE]

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MODULES_IN_FOLDER = 12
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "misc", "shared"}
OPTIONAL = {"torch", "transformers", "tokenizers", "safetensors", "sentencepiece", "xllamacpp", "huggingface_hub"}


def name_of(path: Path) -> str:
    """The path from the root of the repository, for test ids."""
    return path.relative_to(ROOT).as_posix()


def layers() -> dict[str, set[str]]:
    """Folder → folders that it may import, as the codemap of ARCHITECTURE.md says.

    "+ x" means what the row before may import, that row itself, and x.
    """
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \|.*\| ([^|]+) \|$", text, re.MULTILINE)
    allowed: dict[str, set[str]] = {}
    for folder, rule in rows:
        names = set(re.findall(r"[a-z_]+", rule))
        before = list(allowed)
        if rule == "nothing of ours":
            allowed[folder] = set()
        elif rule == "all above":
            allowed[folder] = set(before)
        elif rule.startswith("+ "):
            allowed[folder] = allowed[before[-1]] | {before[-1]} | names
        else:
            allowed[folder] = names
    return allowed


ALLOWED = layers()


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every import of ours; relative imports are resolved."""
    package = path.relative_to(SOURCE.parent).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "tersor")
        elif isinstance(node, ast.ImportFrom):
            stem = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*stem, *(node.module or "").split(".")]).rstrip(".")
            if module == "tersor":
                yield from ((node.lineno, f"tersor.{alias.name}") for alias in node.names)
            elif module.startswith("tersor."):
                yield node.lineno, module


def test_the_codemap_lists_every_folder_and_no_other() -> None:
    folders = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    assert set(ALLOWED) == folders


def test_the_codemap_is_a_one_way_street() -> None:
    order = list(ALLOWED)
    for folder, others in ALLOWED.items():
        assert others <= set(order[: order.index(folder)]), f"{folder} may import {others}, not all of them above it"


@pytest.mark.parametrize("path", LAYERED, ids=name_of)
def test_imports_go_down_the_street(path: Path) -> None:
    layer = path.relative_to(SOURCE).parts[0]
    wrong = []
    for line, module in own_imports(path):
        target = module.split(".")[1]
        if target in ALLOWED and target != layer and target not in ALLOWED[layer]:
            wrong.append(f"line {line}: {layer} imports {module}; it may import {sorted(ALLOWED[layer]) or 'nothing'}")
    assert wrong == []


TOGETHER = {("deploy/gateway/operating", "deploy/gateway/rolling"), ("graph/writing", "graph/training")}
"""Folders that import one another: orders move rollouts, and each move is in the log of orders; a module of torch
is written by way of training's, and training converts into a graph that is written."""


def test_folders_beside_one_another_form_no_cycle() -> None:
    """A folder stands for all that lies in it; two that import one another, by way of others too, are one."""
    after: dict[str, set[str]] = {}
    for path in LAYERED:
        here = path.relative_to(SOURCE).parts[:-1]
        for _, module in own_imports(path):
            there = tuple(module.split(".")[1:])
            shared = next((n for n, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), None)
            if shared is not None and (SOURCE / Path(*there[: shared + 1])).is_dir():
                one, other = ("/".join(names[: shared + 1]) for names in (here, there))
                after.setdefault(one, set()).add(other)
    for one, other in TOGETHER:
        assert (other in after[one], one in after[other]) == (True, True), f"{one} and {other} are no cycle any more"
        after[one].discard(other)
    left = set(after)
    while free := {folder for folder in left if not after[folder] & left}:
        left -= free
    assert {folder: sorted(after[folder] & left) for folder in left} == {}


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_modules_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    long = [f"{len(text.splitlines())} lines"] if len(text.splitlines()) > MAX_MODULE_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            # The signature of a verb is the table of its options, with their help.
            start = node.body[0].lineno if "cli" in path.parts else node.lineno
            lines = (node.end_lineno or start) - start + 1
            if lines > MAX_FUNCTION_LINES:
                long.append(f"{node.name} has {lines} lines")
    assert long == []


def test_folders_stay_small() -> None:
    counts: dict[Path, int] = {}
    for path in MODULES:
        if path.name != "__init__.py":
            counts[path.parent] = counts.get(path.parent, 0) + 1
    assert {name_of(folder): n for folder, n in counts.items() if n > MAX_MODULES_IN_FOLDER} == {}


def test_modules_are_named_for_a_noun() -> None:
    paths = [*PROGRAMS, *{path.parent for path in MODULES}]
    assert [name_of(path) for path in paths if path.stem.removeprefix("test_") in FORBIDDEN_NAMES] == []


@pytest.mark.parametrize("path", [path for path in LAYERED if "cli" not in path.parts], ids=name_of)
def test_nothing_below_the_command_line_prints(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    assert [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"] == []


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported: not in functions, not under `if TYPE_CHECKING`."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            guarded = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            yield from at_import([*([] if guarded else node.body), *node.orelse])
        elif isinstance(node, ast.Try):
            yield from at_import([*node.body, *node.orelse, *node.finalbody])
            for handler in node.handlers:
                yield from at_import(handler.body)
        elif isinstance(node, (ast.ClassDef, ast.With)):
            yield from at_import(node.body)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_optional_dependencies_are_imported_where_they_are_used(path: Path) -> None:
    found = []
    for node in at_import(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module or "")
    assert [name for name in found if name.split(".")[0] in OPTIONAL] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_our_own_modules_are_never_imported_lazily(path: Path) -> None:
    """A lazy import of our own code marks a cycle."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    inner = (node for function in functions for node in ast.walk(function))
    lines = {node.lineno for node in inner if isinstance(node, (ast.Import, ast.ImportFrom))}
    assert [(line, module) for line, module in own_imports(path) if line in lines] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_errors_are_never_caught_without_a_name(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type is None] == []


def test_importing_every_module_loads_no_optional_dependency() -> None:
    names = []
    for path in MODULES:
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    runnable = [name for name in names if not name.endswith("__main__")]
    program = (
        "import importlib, sys\n"
        f"for name in {runnable!r}: importlib.import_module(name)\n"
        f"print(sorted({OPTIONAL - {'sentencepiece'}!r} & set(sys.modules)))"  # which gguf imports where it is there
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "[]", "")
