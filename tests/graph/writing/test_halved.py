"""Weights in 16 bits: half of the bytes, and what float16 weights compute."""

from __future__ import annotations

import numpy as np

from tersor.graph.net import Net, constant
from tersor.graph.sessions import Session
from tersor.graph.writing.halved import LEAST_WEIGHTS, halved

from ..conftest import encoder, sentences


def test_half_of_the_bytes_compute_what_rounded_weights_do() -> None:
    net = encoder().net()
    made = halved(net)
    assert made.weight_bytes < 0.55 * net.weight_bytes
    again = Net.parse(made.to_bytes(), "again.onnx")
    rounded = net.copy()
    for name, value in list(rounded.graph.initializers.items()):
        numbers = constant(value)
        if numbers is not None and numbers.dtype == np.float32 and numbers.size >= LEAST_WEIGHTS:
            rounded.set_constant(name, numbers.astype(np.float16).astype(np.float32))
    for feeds in sentences(4, batches=2):
        np.testing.assert_array_equal(Session(again).first(feeds), Session(rounded).first(feeds))
        assert (Session(again).first(feeds) != Session(net).first(feeds)).any()


def test_what_16_bits_cannot_hold_stays() -> None:
    net = encoder().net()
    name, numbers = next(
        (name, found)
        for name, value in net.graph.initializers.items()
        if (found := constant(value)) is not None and found.dtype == np.float32 and found.size >= LEAST_WEIGHTS
    )
    wide = numbers.copy()
    wide.flat[0] = 1e5
    net.set_constant(name, wide)
    made = halved(net)
    kept = constant(made.graph.initializers[name])
    assert kept is not None
    np.testing.assert_array_equal(kept, wide)
    assert constant(net.graph.initializers[name]) is not None  # the net that was given is as it was
