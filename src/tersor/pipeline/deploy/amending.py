"""A candidate written into the text of a deployment: every other line, and every comment, stays as it was."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.core.errors import SchemeError, TersorError
from tersor.deploy.config import Deployment, read_deployment
from tersor.files.atomic import atomic_writer
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import yaml
else:
    yaml = LazyModule("yaml", "serve")

__all__ = ["amended", "put_candidate"]


def put_candidate(path: Path, model: str, variant: str, entry: Mapping[str, Any], *, primary: str = "") -> None:
    """Have the deployment at `path` name a variant as the candidate of a model; what it was lies beside as `.before`.

    primary  the variant that is the primary from now on; empty: the one that is
    Raises SchemeError where its text cannot be changed so that this, and nothing else, becomes of it.
    """
    before = read_deployment(path)
    primary = primary or before.models[model].primary
    text = amended(path.read_text(encoding="utf-8"), model, variant, entry, primary=primary)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=path.parent, encoding="utf-8") as trial:
        trial.write(text)
        trial.flush()
        try:
            after = read_deployment(Path(trial.name))
        except TersorError as error:
            raise SchemeError(f"{path.name}: cannot name the candidate by itself ({error}); write it in") from error
    wanted = replace(before, models={**before.models, model: replace(before.models[model], primary=primary)})
    if _bare(after, model, variant) != _bare(wanted, model, variant):
        raise SchemeError(f"{path.name}: more than the candidate would change; write it in by hand")
    shutil.copy2(path, path.with_name(f"{path.name}.before"))
    with atomic_writer(path) as file:
        file.write(text.encode())
    shutil.copymode(path.with_name(f"{path.name}.before"), path)


def amended(text: str, model: str, variant: str, entry: Mapping[str, Any], *, primary: str = "") -> str:
    """Return the text with a line for the variant, and the candidate that it is; `primary` in its place, if given.

    >>> print(amended("models:\\n  m:\\n    primary: a\\n    variants:\\n      a: {engine: e}\\n", "m", "b", {"n": 1}))
    models:
      m:
        primary: a
        candidate: b
        variants:
          a: {engine: e}
          b: {"n": 1}
    <BLANKLINE>
    """
    row = _value(_value(yaml.compose(text, Loader=yaml.SafeLoader), "models"), model)
    variants = _value(row, "variants")
    for node in (row, variants):
        if not isinstance(node, yaml.MappingNode) or node.flow_style or not node.value:
            raise SchemeError(f"models.{model}: is written in braces; give each name a line of its own")
    edits: list[tuple[int, int, str]] = []
    if _value(variants, variant) is None:
        key, last = variants.value[-1]
        at = _end_of_line(text, last)
        line = f"{' ' * key.start_mark.column}{variant}: {json.dumps(dict(entry))}\n"
        edits.append((at, at, line if text[:at].endswith("\n") else f"\n{line}"))
    candidate = _value(row, "candidate")
    if candidate is not None:
        edits.append((candidate.start_mark.index, candidate.end_mark.index, variant))
    else:
        key = next(one for one, value in row.value if value is variants)
        at, indent = key.start_mark.index, " " * key.start_mark.column
        edits.append((at, at, f"candidate: {variant}\n{indent}"))
    present = _value(row, "primary")
    if primary and present is not None and present.value != primary:
        edits.append((present.start_mark.index, present.end_mark.index, primary))
    for start, end, piece in sorted(edits, reverse=True):
        text = text[:start] + piece + text[end:]
    return text


def _value(node: Any, name: str) -> Any:
    """The value under a name; None where there is none."""
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if getattr(key, "value", None) == name), None)


def _end_of_line(text: str, node: Any) -> int:
    """Where the line ends that a value ends in."""
    at = len(text[: node.end_mark.index].rstrip())
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1


def _bare(deployment: Deployment, model: str, variant: str) -> Deployment:
    """A deployment without the candidate of a model, and without where it was read."""
    plan = deployment.models[model]
    others = {name: one for name, one in plan.variants.items() if name != variant}
    models = {**deployment.models, model: replace(plan, candidate=None, variants=others)}
    return replace(deployment, models=models, file="", audit="", record="")
