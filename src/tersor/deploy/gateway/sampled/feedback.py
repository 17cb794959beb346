"""Labels and opinions that come after the answer: which answers are still known, and who gave them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.deploy.gateway.sampled.confidences import Confidences, Held
from tersor.deploy.running.supervised import RequestError

__all__ = ["Feedback"]

BAD_REQUEST, NOT_FOUND = 400, 404
LEAST = 100_000
LONGEST = 128


@dataclass(frozen=True, slots=True)
class _Answer:
    model: str
    variant: str
    sure: float | None
    rollout: str


@dataclass(eq=False)
class Feedback:
    """The last answers by their id, 100 000 and at most twice as many; each is judged once.

    An id is kept as its hash, and all answers that say the same share one value: 100 bytes each, where the texts
    would take 350. That two of so many ids have one hash of 61 bits happens in one process of a hundred million.
    """

    recorder: Recorder
    confidences: Confidences | None = None
    least: int = LEAST
    _recent: dict[int, _Answer] = field(default_factory=dict)
    _older: dict[int, _Answer] = field(default_factory=dict)
    _shared: _Answer | None = None

    def remember(self, number: str, model: str, variant: str, *, held: Held = (), rollout: str = "") -> None:
        """Keep who gave an answer; the oldest half are forgotten where there are too many.

        held     the answer, for nets
        rollout  that had drawn lots for the variant; empty: none
        """
        sure = None if self.confidences is None else self.confidences.of(model, held)
        answer = _Answer(model, variant, sure, rollout)
        if answer == self._shared:
            answer = self._shared
        self._shared = self._recent[hash(number)] = answer
        if len(self._recent) >= self.least:
            self._older, self._recent = self._recent, {}

    def take(self, given: object) -> Mapping[str, str]:
        """Count what somebody says of an answer, and return whose it was.

        given  of JSON: {"id": of the response, "right": true or false}
        Raises RequestError: 400 for anything else, 404 for an answer that is unknown, too old or judged already.
        """
        if not isinstance(given, dict) or set(given) != {"id", "right"} or type(given["right"]) is not bool:
            raise RequestError("an object with 'id', of a response, and 'right', true or false, is wanted", BAD_REQUEST)
        if not isinstance(given["id"], str) or not 0 < len(given["id"]) <= LONGEST:
            raise RequestError(f"'id' must be a text of 1 to {LONGEST} characters", BAD_REQUEST)
        key = hash(given["id"])
        found = self._recent.pop(key, None) or self._older.pop(key, None)
        if found is None:
            raise RequestError("no such answer: it is unknown, too old, or was judged already", NOT_FOUND)
        self.recorder.labelled(found.model, found.variant, is_right=given["right"])
        if found.rollout:
            self.recorder.said(found.rollout, found.variant, is_right=given["right"])
        if self.confidences is not None and found.sure is not None:
            self.confidences.labelled(found.model, found.variant, found.sure, is_right=given["right"])
        return {"model": found.model, "variant": found.variant}
