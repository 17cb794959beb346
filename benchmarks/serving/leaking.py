"""`tersor serve` that keeps a little of every request: what a soak has to find.

python benchmarks/serving/leaking.py DEPLOYMENT --port 0
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tersor.cli.main import main
from tersor.deploy.gateway.models import Served
from tersor.deploy.gateway.watching import Watch

_kept: list[bytes] = []
_watch = Served.watch


def leaking(model: Served, request: Mapping[str, Any]) -> Watch:
    """As it is, but some 50 bytes are kept: a place in a list, and a small object."""
    _kept.append(str(len(_kept)).encode())
    return _watch(model, request)


if __name__ == "__main__":
    Served.watch = leaking  # type: ignore[method-assign,assignment]  # the leak
    sys.argv = ["tersor", "serve", *sys.argv[1:]]
    main()
