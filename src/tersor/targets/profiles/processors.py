"""Classes of processors by instruction set, and boards around one: what a cycle of a core does in int8 and in float.

A class of processors has no memory of its own: `tersor doctor` measures bandwidth and peaks of the machine at hand.
"""

from __future__ import annotations

from tersor.targets.profiles.profile import Cores, Figure, Profile, Support

__all__ = ["A720", "BOARDS", "PROCESSORS", "X4"]

_INTEL = (
    "Llama 2 Inference on 4th Gen Intel Xeon Scalable Processor with DeepSpeed, Intel and Microsoft 2023, "
    "www.intel.com/content/www/us/en/developer/articles/technical/xllama-2-on-xeon-scalable-processor-with-deepspeed"
)
_A720 = (
    "Arm Cortex-A720 Core Software Optimization Guide, document 109720 issue 7.0: 2 instructions of 16 bytes a cycle"
)
_X4 = "Arm Cortex-X4 Core Software Optimization Guide, PJDOC1505342170538636: 4 instructions of 16 bytes a cycle"
_MEASURED = "measured on two cores with AVX-512 VNNI, docs/log.md"
_FUSED = ("Conv+Relu", "Conv+Clip")

_LLAMA_X86 = Support(
    ("q4_0", "q8_0", "q4_k", "q6_k", "f16", "bf16"),
    "llama.cpp, ggml-cpu/repack.cpp and arch/x86: rows are packed anew when a model is loaded",
    packs=True,
)
_LLAMA_ARM = Support(
    ("q4_0", "q8_0", "f16"),
    "llama.cpp, ggml-cpu/repack.cpp and arch/arm: q4_0 is packed anew for dotprod and i8mm",
    packs=True,
)
_LLAMA_NEON = Support(("q8_0", "q4_0", "f16"), "llama.cpp, ggml-cpu/arch/arm: plain NEON", packs=True)
_ORT = Support(("int8",), f"activations unsigned: signed ones leave the fast path of x86; {_MEASURED}", _FUSED)
_OPENVINO = Support(
    ("int8",), f"its own low precision transformations, QDQ nets as they are; {_MEASURED}", ("Conv+Relu", "Conv+Add")
)
_XNNPACK = Support(("int8",), "XNNPACK as ExecuTorch 1.5 uses it: qs8 kernels, weights by channel", _FUSED)

A720 = {"int8": Figure(128, f"SMMLA, {_A720}")}
X4 = {"int8": Figure(256, f"SMMLA, {_X4}")}
"""Operations a cycle of a core: SMMLA multiplies 2×8 by 8×2 bytes, 32 multiply-adds."""

PROCESSORS = (
    Profile(
        "x86-avx2",
        "cpu",
        "x86-64 with AVX2, without VNNI",
        flags=("avx2", "fma"),
        engines={
            "llama.cpp": _LLAMA_X86,
            "onnxruntime": Support(
                (), "without VNNI sums of int8 products saturate in int16 or cost three instructions"
            ),
        },
        notes=("int8 may be no faster than float here: measure with `tersor bench --compare engines`",),
    ),
    Profile(
        "x86-avx512-vnni",
        "cpu",
        "x86-64 with AVX-512 VNNI",
        cores=(
            Cores(
                "3rd generation Xeon or like",
                per_cycle={"int8": Figure(256, _INTEL), "float32": Figure(64, _INTEL)},
            ),
        ),
        flags=("avx2", "fma", "avx512f", "avx512_vnni"),
        engines={"llama.cpp": _LLAMA_X86, "onnxruntime": _ORT, "openvino": _OPENVINO},
        notes=("the rates are those of Intel's cores; others with these instructions may do less a cycle",),
    ),
    Profile(
        "x86-amx",
        "cpu",
        "x86-64 with AMX",
        cores=(
            Cores(
                "4th generation Xeon or later",
                per_cycle={
                    "int8": Figure(2048, _INTEL),
                    "bfloat16": Figure(1024, _INTEL),
                    "float32": Figure(64, _INTEL),
                },
            ),
        ),
        flags=("avx2", "fma", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16"),
        engines={"llama.cpp": _LLAMA_X86, "onnxruntime": _ORT, "openvino": _OPENVINO},
        notes=("AMX speeds up prompts and batches; one token after another is bound by memory all the same",),
    ),
    Profile(
        "arm-neon",
        "cpu",
        "AArch64 with NEON, without dot products",
        flags=("asimd",),
        engines={"llama.cpp": _LLAMA_NEON},
    ),
    Profile(
        "arm-dotprod",
        "cpu",
        "AArch64 with dot products of int8 (SDOT)",
        flags=("asimd", "asimddp"),
        engines={"llama.cpp": _LLAMA_ARM, "xnnpack": _XNNPACK},
    ),
    Profile(
        "arm-i8mm",
        "cpu",
        "AArch64 with int8 matrix products (SMMLA)",
        cores=(Cores("Cortex-A720 or like", per_cycle=A720),),
        flags=("asimd", "asimddp", "i8mm"),
        engines={"llama.cpp": _LLAMA_ARM, "xnnpack": _XNNPACK},
    ),
)

_PI5 = "Raspberry Pi 5 product brief as education.raspberrypiaustralia.online/raspberry-pi-5-8gb-model gives it"
_PI4 = "sci-pi.org.uk/bench/stream.html: STREAM Scale, one core, a Pi without a screen"
_ORIN = "NVIDIA Jetson Orin Nano Super Developer Kit data sheet, December 2024"

BOARDS = (
    Profile(
        "raspberry-pi-4",
        "board",
        "Raspberry Pi 4 (Cortex-A72, 4 cores)",
        read_bytes_per_s=Figure(5.56e9, _PI4),
        flags=("asimd",),
        engines={"llama.cpp": _LLAMA_NEON},
        notes=("the bandwidth counts reads and writes of one core, not reads alone",),
    ),
    Profile(
        "raspberry-pi-5-8gb",
        "board",
        "Raspberry Pi 5, 8 GB (Cortex-A76, 4 cores of 2.4 GHz)",
        memory_bytes=Figure(8e9, _PI5, "about"),
        read_bytes_per_s=Figure(17.07e9, f"LPDDR4X-4267 × 32 bits, {_PI5}; circuitdigest.com on the 32 bits"),
        cores=(Cores("Cortex-A76", Figure(4, _PI5), Figure(2.4e9, _PI5)),),
        flags=("asimd", "asimddp"),
        engines={"llama.cpp": _LLAMA_ARM, "xnnpack": _XNNPACK},
        notes=("11.4 GB/s of these were seen in use (hellomatik.com, 2026, four boards)",),
    ),
    Profile(
        "jetson-orin-nano-8gb",
        "board",
        "NVIDIA Jetson Orin Nano, 8 GB, Super mode",
        memory_bytes=Figure(8e9, _ORIN, "about"),
        read_bytes_per_s=Figure(102e9, _ORIN),
        peaks={"int8": Figure(33.5e12, f"half of 67 TOPS with sparsity, {_ORIN}")},
        power_w=Figure(25, _ORIN),
        capability=(8, 7),
        engines={"llama.cpp": Support(("q4_0", "q4_k", "q8_0", "f16"), "llama.cpp, ggml-cuda"),
                 "tensorrt": Support(("int8", "f16"), "TensorRT 10, Working with Quantized Types", ("Conv+Relu",))},
        notes=("memory is shared with the system",),
    ),
)  # fmt: skip
