"""Labels and opinions that come after the answer: which answers are still known, and who gave them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.deploy.gateway.sampled.confidences import Confidences, Held
from tersor.deploy.running.supervised import RequestError

__all__ = ["Feedback"]

BAD_REQUEST, NOT_FOUND = 400, 404
MOST = 100_000
LONGEST = 128


@dataclass(frozen=True, slots=True)
class _Answer:
    model: str
    variant: str
    sure: float | None
    rollout: str


@dataclass(eq=False)
class Feedback:
    """The last answers by their id, at most 100 000; each is judged once."""

    recorder: Recorder
    confidences: Confidences | None = None
    most: int = MOST
    _answers: OrderedDict[str, _Answer] = field(default_factory=OrderedDict)

    def remember(self, number: str, model: str, variant: str, *, held: Held = (), rollout: str = "") -> None:
        """Keep who gave an answer; the oldest is forgotten where there are too many.

        held     the answer, for nets
        rollout  that had drawn lots for the variant; empty: none
        """
        sure = None if self.confidences is None else self.confidences.of(model, held)
        self._answers[number] = _Answer(model, variant, sure, rollout)
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
        self.recorder.labelled(found.model, found.variant, is_right=given["right"])
        if found.rollout:
            self.recorder.said(found.rollout, found.variant, is_right=given["right"])
        if self.confidences is not None and found.sure is not None:
            self.confidences.labelled(found.model, found.variant, found.sure, is_right=given["right"])
        return {"model": found.model, "variant": found.variant}
