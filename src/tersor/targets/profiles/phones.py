"""Classes of phones. Makers tell little: what is absent here is not known to us, and not guessed."""

from __future__ import annotations

from tersor.targets.profiles.processors import A720, X4
from tersor.targets.profiles.profile import Cores, Figure, Profile, Support

__all__ = ["PHONES"]

_GEN3 = "Snapdragon 8 Gen 3 as announced, trendgrnd.com and liliputing.com 2023-10-24"
_ELITE = "Snapdragon 8 Elite as announced, xda-developers.com 2024-10-21"
_PIXEL8 = "Google Pixel 8 as announced, phonearena.com 2023-10-03"
_IPHONE16 = "A18 Pro as announced, phonearena.com (id162371)"
_IPHONE16_MEMORY = (
    "8 GB in all of iPhone 16: Johny Srouji of Apple to Geekerwan, as PC Mag has it (aphnetworks.com 29221) and "
    "tech.hindustantimes.com 2024-09-16"
)
_XNNPACK = Support(
    ("int8",), "XNNPACK as ExecuTorch 1.5 uses it: qs8 kernels, weights by channel", ("Conv+Relu", "Conv+Clip")
)
_LLAMA = Support(
    ("q4_0", "q8_0"), "llama.cpp, ggml-cpu/repack.cpp: q4_0 is packed anew for dotprod and i8mm", packs=True
)
_ENGINES = {"xnnpack": _XNNPACK, "llama.cpp": _LLAMA}
_FLAGS = ("asimd", "asimddp", "i8mm")

PHONES = (
    Profile(
        "snapdragon-8-gen-3",
        "phone",
        "Android, Snapdragon 8 Gen 3",
        memory_bytes=Figure(24e9, _GEN3, "at most"),
        read_bytes_per_s=Figure(76.8e9, f"LPDDR5X at 4800 MHz × 64 bits, {_GEN3}; runlocalai.co gives the same"),
        cores=(
            Cores("Cortex-X4", Figure(1, _GEN3), Figure(3.3e9, _GEN3), X4),
            Cores("Cortex-A720", Figure(3, _GEN3), Figure(3.2e9, _GEN3), A720),
            Cores("Cortex-A720", Figure(2, _GEN3), Figure(3.0e9, _GEN3), A720),
            Cores("Cortex-A520", Figure(2, _GEN3), Figure(2.3e9, _GEN3)),
        ),
        flags=_FLAGS,
        engines=_ENGINES,
        notes=("the small cores are not counted in peaks", "phones are sold with 8 to 24 GB"),
    ),
    Profile(
        "snapdragon-8-elite",
        "phone",
        "Android, Snapdragon 8 Elite",
        memory_bytes=Figure(24e9, _ELITE, "at most"),
        read_bytes_per_s=Figure(84.8e9, "LPDDR5X at 5300 MHz, geektopia.es 2024-10-22"),
        cores=(
            Cores("Oryon prime", Figure(2, _ELITE), Figure(4.32e9, _ELITE)),
            Cores("Oryon performance", Figure(6, _ELITE), Figure(3.53e9, _ELITE)),
        ),
        flags=_FLAGS,
        engines=_ENGINES,
        notes=("the memory is what the chip can address; phones are sold with less",),
    ),
    Profile(
        "pixel-8",
        "phone",
        "Google Pixel 8 (Tensor G3)",
        memory_bytes=Figure(8e9, _PIXEL8, "about"),
        cores=(
            Cores("Cortex-X3", Figure(1, _PIXEL8), Figure(2.91e9, _PIXEL8)),
            Cores("Cortex-A715", Figure(4, _PIXEL8), Figure(2.37e9, _PIXEL8)),
            Cores("Cortex-A510", Figure(4, _PIXEL8), Figure(1.7e9, _PIXEL8)),
        ),
        battery_mah=Figure(4575, _PIXEL8),
        flags=_FLAGS,
        engines=_ENGINES,
    ),
    Profile(
        "iphone-16-pro",
        "phone",
        "Apple iPhone 16 Pro (A18 Pro)",
        memory_bytes=Figure(8e9, _IPHONE16_MEMORY, "about"),
        engines={"xnnpack": _XNNPACK, "llama.cpp": Support(("q4_0", "q8_0"), "llama.cpp, ggml-metal")},
        notes=(f"the bandwidth of memory is not told; the neural engine's 35 TOP/s ({_IPHONE16}) are not XNNPACK's",),
    ),
)
