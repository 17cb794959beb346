"""Tokens are drawn as often as the protocol's words say."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="draws: pip install 'tersor[torch]'")

from tersor.deploy.running.causal.sampling import Draw, Sampling  # noqa: E402 (behind what it needs)

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def shares(sampling: Sampling, count: int = 4000) -> list[float]:
    """How often each token is drawn, each time anew."""
    draw = Draw(sampling, 4)
    made = torch.zeros(4)
    for _ in range(count):
        made[draw.next(LOGITS)] += 1
        draw._counts.zero_()
    return [float(one) / count for one in made]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(seed=1), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(seed=1, temperature=2), [0.379, 0.294, 0.208, 0.120]),
        (Sampling(seed=1, top_p=0.7), [0.625, 0.375, 0, 0]),
        (Sampling(seed=1, top_p=0), [1, 0, 0, 0]),
        (Sampling(seed=1, temperature=0), [1, 0, 0, 0]),
        (Sampling(seed=1, temperature=1e-9), [1, 0, 0, 0]),
        (Sampling(seed=1, bias={0: -100, 3: 1.0986}), [0, 0.5, 0.25, 0.25]),
    ],
)
def test_shares_are_those_of_the_distribution(sampling: Sampling, expected: list[float]) -> None:
    found = shares(sampling)
    assert all(abs(one - other) < 0.03 for one, other in zip(found, expected, strict=True)), found
    assert [one == 0 for one in found] == [one == 0 for one in expected]


def test_what_was_said_becomes_less_likely() -> None:
    once, often = Draw(Sampling(temperature=0, presence=1.0), 4), Draw(Sampling(temperature=0, frequency=0.3), 4)
    assert [once.next(LOGITS) for _ in range(4)] == [0, 1, 0, 0]
    assert [often.next(LOGITS) for _ in range(6)] == [0, 0, 1, 0, 1, 0]


def test_a_seed_gives_the_same_tokens_and_none_gives_others() -> None:
    def drawn(seed: int | None) -> list[int]:
        draw = Draw(Sampling(seed=seed), 4)
        return [draw.next(LOGITS) for _ in range(40)]

    assert drawn(-(1 << 63)) == drawn(-(1 << 63)) != drawn(8)
    assert drawn(None) != drawn(None)
    assert LOGITS.isclose(torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))).all()
