from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tersor.core.errors import MissingError, SchemeError
from tersor.pipeline.nets import evaluate_net_command, is_net_name, load_net

torch = pytest.importorskip("torch", reason="nets are torch modules: pip install 'tersor[torch]'")
PROGRAM = """
import torch

def full():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))

def rounded():
    net = full()
    net[1].weight.data = (net[1].weight.data * 8).round() / 8
    return net

class Shelf:
    net = full()
    number = 3

def broken():
    return 5
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"nets_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", images=np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3)), labels=np.arange(40) % 3)
    return name


def test_nets_are_found_in_the_current_folder_and_compared(program: str) -> None:
    before = list(sys.path)
    found, layers = evaluate_net_command(f"{program}:rounded", against=f"{program}:full", data=Path("data.npz"))
    assert sys.path == before
    assert (found.subject, found.reference) == (f"{program}:rounded", f"{program}:full")
    assert found.data == "data.npz"
    assert len(found.data_sha256) == 64
    assert found.metric("accuracy_drop") is not None
    assert [row.name for row in layers] == ["0", "1"]
    assert layers[1].entering_db is not None
    assert (
        evaluate_net_command(f"{program}:Shelf.net", against=f"{program}:full", data=Path("data.npz"), layers=False)[1]
        == ()
    )


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("absent_module_xyz:net", MissingError, "absent_module_xyz cannot be imported"),
        ("{}:absent", MissingError, "has no absent"),
        ("{}:Shelf.number", SchemeError, "is a int; a function that returns a net is needed"),
        ("{}:broken", SchemeError, r"broken\(\) returned a int"),
        ("no name", SchemeError, "is not package.module:factory"),
    ],
)
def test_names_that_lead_to_no_net_are_refused(program: str, name: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        load_net(name.format(program))


def test_names_of_nets_are_told_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_net_name("a.b:c")
    assert is_net_name("a:b.c")
    assert not is_net_name("a.gguf")
    assert not is_net_name("a/b:c")
    assert not is_net_name("a:b:c")
    Path("a:b").touch()
    assert not is_net_name("a:b")
