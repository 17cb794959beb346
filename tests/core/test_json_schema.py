"""The published schema says what the reader of Cards holds a file to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tersor.core.card import CARD_SCHEMA, Card
from tersor.core.json_schema import card_schema
from tersor.core.plan import PlannedTensor

PUBLISHED = Path(__file__).parents[2] / "docs" / "reference" / "card.schema.json"


def test_the_published_schema_is_that_of_the_code() -> None:
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == card_schema()


def test_every_field_is_required_and_no_other_is_allowed() -> None:
    schema = card_schema()
    assert schema["required"] == [field.name for field in dataclasses.fields(Card)]
    assert set(schema["properties"]) == {*schema["required"], "summary"}
    assert schema["additionalProperties"] is False
    assert schema["properties"]["schema"]["const"] == CARD_SCHEMA
    tensor = schema["$defs"]["PlannedTensor"]
    assert tensor["required"] == [field.name for field in dataclasses.fields(PlannedTensor)]
    assert tensor["properties"]["shape"]["description"] == "NumPy order: columns last"


def test_it_is_a_schema_and_finds_what_is_wrong() -> None:
    jsonschema: Any = pytest.importorskip("jsonschema", reason="it checks the schema: pip install jsonschema")
    validator = jsonschema.Draft202012Validator(card_schema())
    validator.check_schema(card_schema())
    document = {"schema": CARD_SCHEMA, "source_bytes": "many", "more": 1}
    said = " ".join(error.message for error in validator.iter_errors(document))
    assert "'more' was unexpected" in said
    assert "'many' is not of type 'integer'" in said
    assert "'plan' is a required property" in said
