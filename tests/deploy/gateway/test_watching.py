"""What sentinels are told of answers."""

from __future__ import annotations

import pytest

from tersor.core.errors import EngineError
from tersor.deploy.gateway.watching import TextWatch, shown


def test_a_reply_that_goes_on_after_its_end_is_the_engines_error() -> None:
    watch = TextWatch()
    shown(watch, ({"choices": [{"index": 0, "text": "one two", "finish_reason": "stop"}]}, b""), "far")
    with pytest.raises(EngineError, match="far: an answer that no reply is made of: the reply was closed after 2"):
        shown(watch, ({"choices": [{"index": 0, "text": " three"}]}, b""), "far")
