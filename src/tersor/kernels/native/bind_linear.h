// The integer linear kernels as Python sees them: memory by address, which kernels/linear has checked. Part of module.cpp.
#pragma once

constexpr int64_t PAIRS = 2;  // blocks of rows go to threads by twos: with many tokens two are multiplied together

// With few tokens weights are read as fast as memory gives them. AMD's processors foresee a stream better than they can
// be told; Intel's look no further than a page, and with codes of 4 bits to take apart too little is under way at once.
int64_t fetched_ahead(int bits) {
#if defined(TERSOR_X86)
    static const int64_t bytes = (__builtin_cpu_init(), __builtin_cpu_is("intel")) ? 8192 : 0;
    return bits == 4 ? bytes : 0;
#else
    (void)bits;
    return 0;
#endif
}

// y [tokens, rows] = x [tokens, columns] · weightᵀ + bias. Every address is that of a contiguous array as LinearJob
// says; 0: there is none. Kinds of numbers: 0 float32, 1 float16, 2 bfloat16.
void linear(int64_t rows, int64_t columns, int64_t group, int bits, uintptr_t codes, uintptr_t scales, int scale_type,
            uintptr_t zeros, uintptr_t bias, int64_t tokens, int digits, bool per_token, uintptr_t x, int x_type, uintptr_t y,
            int y_type, int threads) {
    if (rows < 1 || columns < 1 || tokens < 1 || group < 1 || group % 16 || columns % group || (bits != 4 && bits != 8) ||
        (digits != 1 && digits != 2))
        throw std::invalid_argument("no kernel for such a matrix");
    nb::gil_scoped_release release;
    if (threads <= 0) threads = (int)std::max(1u, std::thread::hardware_concurrency());
    LinearJob job{rows, columns, group, bits, (const uint8_t*)codes, (const void*)scales, (Real)scale_type,
                  (const uint8_t*)zeros, (const float*)bias, tokens, digits, per_token, (const void*)x, (Real)x_type,
                  (void*)y, (Real)y_type, nullptr, nullptr, nullptr, fetched_ahead(bits)};
    const LinearTable table = chosen()->linear;
    const int64_t planes = table.planes(job), groups = columns / group, blocks = (rows + 15) / 16;
    const auto rounded = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
    thread_local std::vector<uint8_t> memory;
    const int64_t plane_bytes = rounded(planes * columns), step_bytes = rounded(planes / digits * groups * 4);
    const Scratch<uint8_t> scratch(memory, (size_t)(plane_bytes + step_bytes + planes * groups * 4 + 64));
    uint8_t* place = memory.data() + (64 - (uintptr_t)memory.data() % 64) % 64;
    job.planes = (int8_t*)place, job.steps = (float*)(place + plane_bytes);
    job.sums = (int32_t*)(place + plane_bytes + step_bytes);
    take_turns(table.tiles(job), 1, threads, [&](int64_t first, int64_t last) {
        for (; first < last; ++first) table.round(job, first);
    });
    take_turns(blocks, PAIRS, threads, [&](int64_t first, int64_t last) { table.multiply(job, first, last); });
}
