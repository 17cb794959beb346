// What this processor can do at most: bytes read per second, multiply-adds per second. Nothing is computed that is used;
// the sums are returned so that no compiler drops the work.
#pragma once

#include "job.h"
#include "lanes.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace tersor::TERSOR_ISA {

constexpr int CHAINS = 12;  // independent sums: more than latency × units of any processor so far

// Reads `bytes` (a multiple of 8 · sizeof(vi)) from an aligned address.
inline int64_t read_all(const uint8_t* data, int64_t bytes) {
    vi sums[8] = {};
    const vi* vectors = (const vi*)data;
    const int64_t count = bytes / (int64_t)sizeof(vi);
    for (int64_t i = 0; i + 8 <= count; i += 8)
        for (int k = 0; k < 8; ++k) sums[k] ^= vectors[i + k];
    int64_t seen = 0;
    for (int k = 0; k < 8; ++k)
        for (int lane = 0; lane < W; ++lane) seen ^= sums[k][lane];
    return seen;
}

#if defined(__AVX512F__)
constexpr int FLOATS = 16;
typedef __m512 Floats;
inline Floats float_step(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
#define TERSOR_FLOAT_TARGET
#elif defined(__AVX2__)
constexpr int FLOATS = 8;
typedef __m256 Floats;
#define TERSOR_FLOAT_TARGET __attribute__((target("fma")))
TERSOR_FLOAT_TARGET inline Floats float_step(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
#elif defined(__aarch64__)
constexpr int FLOATS = 4;
typedef float32x4_t Floats;
inline Floats float_step(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
#define TERSOR_FLOAT_TARGET
#else
constexpr int FLOATS = W;
typedef vf Floats;
inline Floats float_step(Floats a, Floats b, Floats c) { return a * b + c; }
#define TERSOR_FLOAT_TARGET
#endif

// CHAINS · FLOATS multiply-adds a step. The sums converge, so that they stay normal numbers.
TERSOR_FLOAT_TARGET inline float multiply_floats(int64_t steps) {
    Floats sums[CHAINS];
    for (int k = 0; k < CHAINS; ++k) sums[k] = Floats{} + (float)(k + 1);
    const Floats half = Floats{} + 0.5f, one = Floats{} + 1.0f;
    for (int64_t i = 0; i < steps; ++i)
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; ++k) sums[k] = float_step(sums[k], half, one);
    float total = 0.0f;
    for (int k = 0; k < CHAINS; ++k)
        for (int lane = 0; lane < FLOATS; ++lane) total += sums[k][lane];
    return total;
}

// Sums of four int8 products a lane, where the processor has an instruction for that: BYTES · CHAINS products a step.
#if defined(__AVX512F__)
constexpr int BYTES = 64;
__attribute__((target("avx512vnni"))) inline int64_t multiply_bytes(int64_t steps) {
    __m512i sums[CHAINS];
    for (int k = 0; k < CHAINS; ++k) sums[k] = _mm512_set1_epi32(k);
    const __m512i a = _mm512_set1_epi32((int)steps | 0x01010101), b = _mm512_set1_epi32(0x01ff01ff);
    for (int64_t i = 0; i < steps; ++i)
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; ++k) sums[k] = _mm512_dpbusd_epi32(sums[k], a, b);
    int64_t total = 0;
    for (int k = 0; k < CHAINS; ++k)
        for (int lane = 0; lane < W; ++lane) total += ((vi)sums[k])[lane];
    return total;
}
inline bool has_byte_dots() { return __builtin_cpu_supports("avx512vnni"); }
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
constexpr int BYTES = 16;
inline int64_t multiply_bytes(int64_t steps) {
    int32x4_t sums[CHAINS];
    for (int k = 0; k < CHAINS; ++k) sums[k] = vdupq_n_s32(k);
    const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32((int)steps | 0x01010101)), b = vdupq_n_s8(1);
    for (int64_t i = 0; i < steps; ++i)
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; ++k) sums[k] = vdotq_s32(sums[k], a, b);
    int64_t total = 0;
    for (int k = 0; k < CHAINS; ++k) total += vaddvq_s32(sums[k]);
    return total;
}
inline bool has_byte_dots() { return true; }
#else
constexpr int BYTES = 0;
inline int64_t multiply_bytes(int64_t) { return 0; }
inline bool has_byte_dots() { return false; }
#endif

inline Roofs roofs() {
    return {read_all, multiply_floats, CHAINS * FLOATS, has_byte_dots() ? multiply_bytes : nullptr, CHAINS * BYTES};
}

}  // namespace tersor::TERSOR_ISA
