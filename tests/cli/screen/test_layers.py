from __future__ import annotations

import io

from rich.console import Console

from tersor.cli.screen.layers import print_layers
from tersor.core.evaluation import LayerError


def test_faults_are_marked_and_told_and_growth_is_put_in_words() -> None:
    rows = (
        LayerError("blk.0.attn_q.weight", "attn_q", 0, 21.04, 0.9961, 0.51, 0.0123, 25.5, 24.0),
        LayerError("blk.0.attn_norm.weight", "norm", 0, None, 1.0, 0.0),
        LayerError("blk.1.attn_q.weight", "attn_q", 1, 3.0, 0.5, 9.0, 0.2, 2.5, 2.0, ("row 3, columns 0 … 31: zero",)),
        LayerError("blk.2.attn_q.weight", "attn_q", 2, None, None, None, findings=("is missing",)),
        LayerError("blk.0", "block", 0, 30.0, 0.999, 0.1, arriving_db=30.0),
        LayerError("blk.1", "block", 1, 12.0, 0.9, 0.4, arriving_db=12.0),
    )
    file = io.StringIO()
    print_layers(Console(file=file, width=110, markup=False, soft_wrap=True), rows)
    text = file.getvalue()
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert lines["blk.0.attn_q.weight"] == ["21.0", "0.99610", "0.51", "1.23%", "25.5", "24.0"]
    assert lines["blk.0.attn_norm.weight"] == ["∞", "1.00000", "0"]
    assert lines["blk.1.attn_q.weight"][0] == "!"
    assert lines["blk.2.attn_q.weight"] == ["!"]
    assert "blk.1.attn_q.weight: row 3, columns 0 … 31: zero" in text
    assert "most error enters at blk.1.attn_q.weight: 2.5 dB" in text
    assert "it grows from 30.0 dB after blk.0 to 12.0 dB after blk.1" in text
