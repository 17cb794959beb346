// Multiplies made-up matrices by made-up tokens and prints a hash of every product; the same everywhere.
#include <cstdio>
#include <limits>

#include "linear.h"

using namespace tersor;
using namespace tersor::TERSOR_ISA;

static uint64_t state = 1;
static uint32_t drawn() {  // Knuth's MMIX generator
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 33);
}

static uint64_t hash(const LinearJob& job) {
    for (int64_t tile = 0; tile < tiles(job); ++tile) round_tile(job, tile);
    multiply(job, 0, (job.rows + 15) / 16);
    uint64_t value = 1469598103934665603ull;  // FNV-1a
    const uint8_t* bytes = (const uint8_t*)job.y;
    for (int64_t k = 0; k < job.tokens * job.rows * 4; ++k) value = (value ^ bytes[k]) * 1099511628211ull;
    return value;
}

int main() {
    for (int bits : {4, 8})
        for (int digits : {1, 2})
            for (int zero : {0, 1})
                for (int64_t tokens : {1, 3, 14}) {
                    const int64_t rows = 37, columns = 96, group = 48, groups = columns / group, blocks = 3;
                    std::vector<uint8_t> codes((size_t)(blocks * columns * bits * 2)), zeros((size_t)(blocks * groups * 16));
                    std::vector<float> scales(zeros.size()), x((size_t)(tokens * columns)), y((size_t)(tokens * rows)), bias(rows);
                    for (auto& code : codes) code = (uint8_t)drawn();
                    for (auto& point : zeros) point = (uint8_t)(drawn() % (1u << bits));
                    for (auto& scale : scales) scale = (float)(drawn() % 1000) / 1000;
                    for (auto& value : x) value = (float)(int32_t)(drawn() % 2001) / 500 - 2;
                    for (auto& value : bias) value = (float)(drawn() % 7);
                    std::vector<int8_t> planes((size_t)(tokens * digits * columns));
                    std::vector<float> steps((size_t)(tokens * groups));
                    std::vector<int32_t> sums((size_t)(tokens * digits * groups));
                    const LinearJob job{rows, columns, group, bits, codes.data(), scales.data(), Real::f32,
                                        zero ? zeros.data() : nullptr, bias.data(), tokens, digits, false, x.data(), Real::f32,
                                        y.data(), Real::f32, planes.data(), steps.data(), sums.data(), 0};
                    std::printf("%d bits, %d digits, %d, %d tokens: %016llx\n", bits, digits, zero, (int)tokens,
                                (unsigned long long)hash(job));
                }
}
