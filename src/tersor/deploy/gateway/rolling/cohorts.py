"""Who gets the candidate's answers: the same people at every step, and more of them as its share grows.

Source: highest random weight (rendezvous) hashing, Thaler and Ravishankar 1998, for two places: a caller draws one
number from the rollout and his own name, and is the candidate's where it lies below its share.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

__all__ = ["Caller", "draw"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as it decides who answers.

    key     name of the client's key; empty: none
    cohort  what he said he is; empty: nothing
    request what names this request, over retries as well; empty: nothing
    choice  the variant that he may and does ask for; empty: any
    """

    key: str = ""
    cohort: str = ""
    request: str = ""
    choice: str = ""

    @property
    def name(self) -> str:
        """By which he is assigned. Without any name of his, each request is assigned by itself: a key that many
        people use would otherwise send all of them to one variant."""
        if self.cohort:
            return f"{self.key}\0{self.cohort}"
        return f"{self.key}\0\0{self.request or secrets.token_hex(8)}"


def draw(rollout: str, name: str) -> float:
    """Return the number of a caller in a rollout, 0 … 1, evenly spread.

    >>> draw("a", "ann") == draw("a", "ann"), 0 <= draw("b", "ann") < 1
    (True, True)
    """
    digest = hashlib.blake2b(f"{rollout}\0{name}".encode(errors="surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)
