"""Faults planted in a real quantized file: its replies are garbage under a good status, and the guard sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.deploy.guard import SENTINELS, Ladder, Progress, ReplyWatch
from tersor.deploy.guard.repetition import LoopDetector
from tersor.deploy.guard.sentinels import FinishReason
from tersor.models import load

from .garbled_replies import VOCABULARY, Reply, broken, quantized, replies, text, watched

pytest.importorskip("torch")
pytest.importorskip("tokenizers")

CAUGHT = ("zeroed scale", "zero point lost", "zero point off by one", "swapped group order")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model in 4 bits with zero points."""
    return quantized(tmp_path_factory.mktemp("guard"))


def served(answers: list[Reply]) -> tuple[Ladder, list[str]]:
    """Stream the replies through a ladder, and say what was done about each."""
    ladder, actions = Ladder(), []
    for number, reply in enumerate(answers):
        now, sent = number / 10, 0
        case, watch = ladder.admit(now, is_streaming=True), ReplyWatch(vocabulary=VOCABULARY)
        decision = case.decision
        if case.permit is not None:
            for token in reply.tokens:
                watch.add(token)
                progress = Progress(watch.tokens, sent, findings=watch.findings)
                decision = ladder.judge(case, progress, now)
                if decision.action not in ("wait", "quantized"):
                    break
                sent = watch.tokens if decision.action == "quantized" else 0
            ended: FinishReason = "length" if decision.action == "quantized" else "cancelled"
            ladder.finish(case, progress, decision, ended, now)
        actions.append(decision.action)
    return ladder, list(map(str, actions))


def test_sound_replies_raise_no_fault(sound: Path) -> None:
    """The page has the rate over 200 replies of each of three variants: 0, at most 1.2 %."""
    answers = replies(load(sound), 20, 24)
    watches = [watched(reply) for reply in answers]
    assert [f for watch in watches for f in watch.findings if f.severity == "fault"] == []
    assert sum(bool(watch.findings) for watch in watches) <= 4
    ladder, actions = served(answers)
    assert set(actions) <= {"quantized", "full precision"}
    assert ladder.breaker.openings == 0


def test_sound_text_holds_no_loop() -> None:
    detector = LoopDetector(longest=64, rounds=3, length=24)
    assert not any(detector.add(token) for token in text()[0].tolist())


@pytest.mark.parametrize("fault", CAUGHT)
def test_replies_of_a_broken_file_are_caught_and_the_variant_taken_out(sound: Path, fault: str) -> None:
    answers = replies(load(broken(sound, fault)), 12, 24)
    findings = [[f for f in watched(reply).findings if f.severity == "fault"] for reply in answers]
    assert sum(map(bool, findings)) >= 9
    for finding in (finding for found in findings for finding in found):
        is_below = finding.value < finding.limit
        assert is_below == SENTINELS[finding.sentinel].is_least or finding.value == finding.limit
    ladder, actions = served(answers)
    assert ladder.breaker.openings == 1
    assert actions[-1] == "full precision"
    # Nearly every fault shows within the hold-back, so that hardly a stream breaks off before the client's eyes.
    assert actions.count("end") <= 2


def test_a_fluent_reply_that_is_wrong_is_not_seen(sound: Path) -> None:
    """What the page says that no sentinel can see: here a model a little worse, whose replies read the same."""
    answers = replies(load(broken(sound, "swapped scales")), 10, 24)
    assert sum(any(f.severity == "fault" for f in watched(reply).findings) for reply in answers) <= 2
