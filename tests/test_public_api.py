"""The names that `import tersor` promises."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import tersor
from tersor.core import errors


def test_every_public_name_is_there_and_documented() -> None:
    for name in tersor.__all__:
        found = getattr(tersor, name)
        assert found.__doc__, name
    assert set(tersor.__all__) <= set(dir(tersor))


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(tersor.__all__)
    for name in errors.__all__:
        assert getattr(tersor, name) is getattr(errors, name)


def test_verbs_are_functions_even_where_a_module_has_their_name() -> None:
    """In a process of its own: importing tersor.pipeline.quantize must not turn tersor.quantize into a module."""
    program = (
        "import tersor, tersor.pipeline.quantize, tersor.pipeline.evaluate, tersor.cli.main\n"
        "verbs = (tersor.load, tersor.quantize, tersor.verify, tersor.inspect, tersor.doctor, tersor.demo)\n"
        "verbs += (tersor.evaluate, tersor.evaluate_net, tersor.bench, tersor.report)\n"
        "print(all(callable(verb) for verb in verbs), tersor.formats.get('q4_k').bits_per_weight)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.strip() == "True 4.5", result.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'tersor' has no attribute 'nothing'"):
        tersor.nothing  # noqa: B018


def test_the_version_is_that_of_the_package() -> None:
    try:
        assert version("tersor") == tersor.__version__
    except PackageNotFoundError:
        pytest.skip("tersor runs from its source here, it is not installed")


def test_quantize_takes_a_path_as_text_and_plans_without_writing(tmp_path: Path) -> None:
    source = Path(tersor.__file__).parent / "reference_model"
    with pytest.raises(errors.SchemeError, match="text to train on means nothing to rtn"):
        tersor.quantize(source, output=tmp_path / "m.gguf", train="text.txt")
    card = tersor.quantize(str(source), "q4_k_m", output=str(tmp_path / "m.gguf"), dry_run=True)
    again = tersor.quantize(tersor.load(source), output=tmp_path / "m.gguf", dry_run=True)
    assert card.plan == again.plan
    assert list(tmp_path.iterdir()) == []
    assert json.loads(card.to_json())["dry_run"] is True
