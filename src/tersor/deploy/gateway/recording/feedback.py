"""Labels and opinions that come after the answer: which answers are still known, and who gave them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.deploy.running.supervised import RequestError

__all__ = ["Feedback"]

BAD_REQUEST, NOT_FOUND = 400, 404
MOST = 100_000
LONGEST = 128


@dataclass(eq=False)
class Feedback:
    """The last answers by their id, at most 100 000; each is judged once."""

    recorder: Recorder
    most: int = MOST
    _answers: OrderedDict[str, tuple[str, str]] = field(default_factory=OrderedDict)

    def remember(self, number: str, model: str, variant: str) -> None:
        """Keep who gave an answer; the oldest is forgotten where there are too many."""
        self._answers[number] = model, variant
        if len(self._answers) > self.most:
            self._answers.popitem(last=False)

    def take(self, given: object) -> Mapping[str, str]:
        """Count what somebody says of an answer, and return whose it was.

        given  of JSON: {"id": of the response, "right": true or false}
        Raises RequestError: 400 for anything else, 404 for an answer that is unknown, too old or judged already.
        """
        if not isinstance(given, dict) or set(given) != {"id", "right"} or type(given["right"]) is not bool:
            raise RequestError("an object with 'id', of a response, and 'right', true or false, is wanted", BAD_REQUEST)
        if not isinstance(given["id"], str) or not 0 < len(given["id"]) <= LONGEST:
            raise RequestError(f"'id' must be a text of 1 to {LONGEST} characters", BAD_REQUEST)
        found = self._answers.pop(given["id"], None)
        if found is None:
            raise RequestError("no such answer: it is unknown, too old, or was judged already", NOT_FOUND)
        model, variant = found
        self.recorder.labelled(model, variant, is_right=given["right"])
        return {"model": model, "variant": variant}
