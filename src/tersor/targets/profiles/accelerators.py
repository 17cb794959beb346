"""GPUs and Apple's chips: memory, bandwidth, dense peaks. Capabilities are from developer.nvidia.com/cuda-gpus.

Memory of GPUs is what their driver reports, not the label: 80 GB on the box of an H100 are 85.5 · 10⁹ bytes.
"""

from __future__ import annotations

from tersor.targets.profiles.profile import Figure, Profile, Support

__all__ = ["APPLE", "GPUS"]

_DRIVER = "the memory.total that nvidia-smi shows of it in public logs"
_VLLM = "docs.vllm.ai/en/v0.14.0/features/quantization: table of supported hardware"
_TENSORRT = "TensorRT 10, Working with Quantized Types, and its support matrix: FP8 from capability 8.9 on"
_LLAMA = Support(
    ("q4_0", "q4_k", "q5_k", "q6_k", "q8_0", "f16"), "llama.cpp, ggml-cuda: int8 dot products or tensor cores"
)


def _engines(capability: tuple[int, int]) -> dict[str, Support]:
    """What vLLM, TensorRT and llama.cpp run fast on a GPU of that compute capability."""
    formats = ["int4-g128", "int8-channel"] if capability >= (7, 5) else []
    if capability >= (8, 9):
        formats.append("fp8_e4m3")
    if capability >= (10, 0):
        formats.append("nvfp4")
    tensorrt = ("int8", "fp8_e4m3", "f16") if capability >= (8, 9) else ("int8", "f16")
    return {
        "vllm": Support(tuple(formats), _VLLM),
        "tensorrt": Support(tensorrt, _TENSORRT, ("Conv+Relu", "Conv+Add")),
        "llama.cpp": _LLAMA,
    }


def _gpu(
    name: str,
    title: str,
    capability: tuple[int, int],
    source: str,
    *,
    mebibytes: int,
    read: float,
    watts: float,
    peaks: dict[str, float] | None = None,
    notes: tuple[str, ...] = (),
) -> Profile:
    """Return a row whose figures are from one document but for the memory; read in GB/s, peaks in TFLOP/s or TOP/s."""
    return Profile(
        name,
        "gpu",
        title,
        memory_bytes=Figure(mebibytes << 20, f"{mebibytes} MiB, {_DRIVER}"),
        read_bytes_per_s=Figure(read * 1e9, source),
        peaks={dtype: Figure(rate * 1e12, source) for dtype, rate in (peaks or {}).items()},
        power_w=Figure(watts, source),
        capability=capability,
        engines=_engines(capability),
        notes=notes,
    )


_KLOCKWOOD = "after NVIDIA's data sheet and architecture white paper, glennklockwood.com/garden/processors"
_AMPERE = {"bfloat16": 312, "float16": 312, "int8": 624, "int4": 1248, "float32": 19.5}
_WITHOUT_PEAKS = ("peaks were not found in a document we read: prompts cannot be estimated",)

GPUS = (
    _gpu("t4", "NVIDIA T4", (7, 5), "NVIDIA T4 as announced, geektopia.es 2018-09-13; sysrqmts.com/gpus",
         mebibytes=15360, read=320, watts=70, peaks={"float16": 65, "int8": 130, "int4": 260, "float32": 8.1}),
    _gpu("a10", "NVIDIA A10", (8, 6), "sysrqmts.com/gpus: A10 PCIe",
         mebibytes=23028, read=600, watts=150, peaks={"float32": 31.24}, notes=_WITHOUT_PEAKS),
    _gpu("a100-40gb", "NVIDIA A100 SXM, 40 GB", (8, 0), f"A100, {_KLOCKWOOD}/A100",
         mebibytes=40960, read=1555, watts=400, peaks=_AMPERE),
    _gpu("a100-80gb", "NVIDIA A100 SXM, 80 GB", (8, 0), f"A100, {_KLOCKWOOD}/A100",
         mebibytes=81920, read=2039, watts=400, peaks=_AMPERE),
    _gpu("l4", "NVIDIA L4", (8, 9), "NVIDIA L4 as store.sourcecode.com gives it, rates with sparsity halved",
         mebibytes=23034, read=300, watts=72, peaks={"float16": 121, "bfloat16": 121, "float8": 242.5, "int8": 242.5}),
    _gpu("l40s", "NVIDIA L40S", (8, 9), "NVIDIA L40S data sheet as mullet.se gives it, product 355414",
         mebibytes=46068, read=864, watts=350,
         peaks={"float16": 362.05, "bfloat16": 362.05, "float8": 733, "int8": 733, "float32": 91.6}),
    _gpu("h100", "NVIDIA H100 SXM, 80 GB", (9, 0), f"H100, {_KLOCKWOOD}/h100", mebibytes=81559, read=3350, watts=700,
         peaks={"float16": 989.4, "bfloat16": 989.4, "float8": 1978.9, "int8": 1978.9, "float32": 66.9}),
    _gpu("h100-pcie", "NVIDIA H100 PCIe, 80 GB", (9, 0), "NVIDIA H100 PCIe product brief PB-11133-001_v02",
         mebibytes=81559, read=2000, watts=350, notes=_WITHOUT_PEAKS),
    _gpu("h200", "NVIDIA H200 SXM, 141 GB", (9, 0), "itkb.uw.cz/2026/06/nvidia-h200-vs-b300-precisions-cores.html",
         mebibytes=143771, read=4800, watts=700, peaks={"float16": 989, "bfloat16": 989, "float8": 1979}),
    _gpu("b200", "NVIDIA B200, 180 GB", (10, 0), "NVIDIA HGX B200 as zdszero.github.io gives it, halved where sparse",
         mebibytes=183359, read=7700, watts=1000,
         peaks={"float16": 2250, "bfloat16": 2250, "float8": 4500, "int8": 4500, "float4": 9000, "float32": 75}),
    _gpu("rtx-3090", "GeForce RTX 3090", (8, 6), "Tom's Hardware as holynerdvana.blogspot.com 2022-11-01 gives it",
         mebibytes=24576, read=936, watts=350, peaks={"float16": 142, "float32": 35.6},
         notes=("float16 is that with sums in float16",)),
    _gpu("rtx-4090", "GeForce RTX 4090", (8, 9), "waredb.com/processor/nvidia-geforce-rtx-4090",
         mebibytes=24564, read=1008, watts=450, peaks={"float16": 165.15, "bfloat16": 165.15, "float8": 330.3,
                                                        "int8": 660.6, "int4": 1321.2, "float32": 82.58}),
    _gpu("rtx-5090", "GeForce RTX 5090", (12, 0), "Linux Format, May 2025: GeForce RTX 5090",
         mebibytes=32607, read=1792, watts=575, peaks={"float32": 104}, notes=_WITHOUT_PEAKS),
)  # fmt: skip

_M4 = "Apple's announcement of M4 Pro and M4 Max, 2024-10-30, as mactrast.com and macrumors.com give it"
_M1 = "Apple Silicon table of ggml-org/llama.cpp pull request 1642 (physical limit)"
_METAL = {
    "llama.cpp": Support(("q4_0", "q4_k", "q6_k", "q8_0", "f16"), "llama.cpp, ggml-metal"),
    "xnnpack": Support(("int8",), "XNNPACK as ExecuTorch 1.5 uses it, on the processor's cores"),
}


def _apple(name: str, title: str, read: float, source: str, memory: float | None = None) -> Profile:
    return Profile(
        name,
        "cpu",
        title,
        memory_bytes=None if memory is None else Figure(memory * 1e9, source, "at most"),
        read_bytes_per_s=Figure(read * 1e9, source),
        flags=("asimd", "asimddp"),
        engines=_METAL,
        notes=("unified memory: processor and GPU share it; the processor alone reads less",),
    )


APPLE = (
    _apple("apple-m1", "Apple M1", 68.2, _M1),
    _apple("apple-m1-pro", "Apple M1 Pro", 204.8, _M1),
    _apple("apple-m1-max", "Apple M1 Max", 409.6, _M1),
    _apple("apple-m2", "Apple M2", 102.4, _M1),
    _apple("apple-m4", "Apple M4", 120, _M4, 32),
    _apple("apple-m4-pro", "Apple M4 Pro", 273, _M4, 64),
    _apple("apple-m4-max", "Apple M4 Max", 546, _M4, 128),
)
