// Tokens times a matrix of integers in groups: y = x · weightᵀ + bias. reference/linear.py is the definition.
//
// Every lane is a row of the weight, so nothing is summed across lanes. Sums of products of codes within a group are
// integers; groups are added in order, each with a product, a product and a sum that round by themselves. Nothing
// depends on the instruction set, the tile of tokens, or which thread takes which rows.
//
// A plane is one digit of one token: [columns] int8. Planes go by tiles, in which 4 columns of each plane lie side by
// side, so that the loop over columns reads one stream of weights and one of activations.
#pragma once

#include <vector>

#include "job.h"
#include "lanes.h"
#include "reals.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace tersor::TERSOR_ISA {

constexpr int BLOCK = 16, PARTS = BLOCK / W;  // rows of a block; vectors of them
#if defined(__AVX512F__)
constexpr int TILE = 8, WIDE = 2;  // planes of a full tile; blocks that are multiplied with it together
#else
constexpr int TILE = 4, WIDE = 1;
#endif

// ---- four products of bytes in every lane ----

// c + Σ over the 4 bytes of a lane: unsigned bytes of `codes` (below 2^BITS) times the signed bytes of `x`.
template <int BITS>
inline vi dot(vi c, vi codes, vi x) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)c, (__m512i)codes, (__m512i)x);
#elif defined(__AVX512F__)
    if constexpr (BITS == 4) {  // pairs stay below 2^15
        const __m512i pairs = _mm512_maddubs_epi16((__m512i)codes, (__m512i)x);
        return c + (vi)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
    }
    const __m512i low = _mm512_and_si512((__m512i)codes, _mm512_set1_epi16(0xff)), high = _mm512_srli_epi16((__m512i)codes, 8);
    const __m512i x_low = _mm512_srai_epi16(_mm512_slli_epi16((__m512i)x, 8), 8), x_high = _mm512_srai_epi16((__m512i)x, 8);
    return c + (vi)_mm512_madd_epi16(low, x_low) + (vi)_mm512_madd_epi16(high, x_high);
#elif defined(__AVX2__)
    if constexpr (BITS == 4) {
        const __m256i pairs = _mm256_maddubs_epi16((__m256i)codes, (__m256i)x);
        return c + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
    const __m256i low = _mm256_and_si256((__m256i)codes, _mm256_set1_epi16(0xff)), high = _mm256_srli_epi16((__m256i)codes, 8);
    const __m256i x_low = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)x, 8), 8), x_high = _mm256_srai_epi16((__m256i)x, 8);
    return c + (vi)_mm256_madd_epi16(low, x_low) + (vi)_mm256_madd_epi16(high, x_high);
#elif defined(__ARM_FEATURE_DOTPROD)
    if constexpr (BITS == 4) return (vi)vdotq_s32((int32x4_t)c, (int8x16_t)codes, (int8x16_t)x);
    // The instruction wants both signed: Σ code·x = Σ (code - 128)·x + 128·Σ x.
    const int8x16_t bytes = (int8x16_t)x;
    const int32x4_t sum = vdotq_s32(vdupq_n_s32(0), bytes, vdupq_n_s8(1));
    return (vi)vdotq_s32((int32x4_t)c, veorq_s8((int8x16_t)codes, vdupq_n_s8(-128)), bytes) + ((vi)sum << 7);
#else
    for (int shift = 0; shift < 32; shift += 8) c += ((codes >> shift) & 255) * ((x << (24 - shift)) >> 24);
    return c;
#endif
}

inline vi four_columns(const int8_t* x) {
    int32_t bytes;
    std::memcpy(&bytes, x, 4);
    return splat(bytes);
}

// ---- codes as they are stored ----

inline vi load_bytes(const uint8_t* data) {
#if defined(__AVX512F__)
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)data));
#elif defined(__AVX2__)
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)data));
#else
    vi v;
    for (int k = 0; k < W; ++k) v[k] = data[k];
    return v;
#endif
}

// The low bytes of W lanes, 4 at a time, `planes` · 4 bytes apart.
inline void store_bytes(vi v, int8_t* out, int planes) {
    typedef int8_t Bytes __attribute__((vector_size(W)));
    const Bytes bytes = __builtin_convertvector(v, Bytes);
    for (int k = 0; k < W / 4; ++k) std::memcpy(out + k * planes * 4, (const int8_t*)&bytes + 4 * k, 4);
}

// ---- tiles of planes ----

struct Span {
    int64_t first;
    int count;
};

inline int64_t tiles(const LinearJob& job) {
    const int64_t planes = job.tokens * job.digits;
    return planes / TILE + __builtin_popcountll((unsigned long long)(planes % TILE));
}

// Full tiles, then one for every power of two in what is left.
inline Span tile_at(const LinearJob& job, int64_t tile) {
    const int64_t planes = job.tokens * job.digits, full = planes / TILE;
    if (tile < full) return {tile * TILE, TILE};
    int64_t first = full * TILE;
    int size = TILE / 2;
    for (int64_t skip = tile - full;; size /= 2) {
        if (!((planes - first) & size)) continue;
        if (skip-- == 0) return {first, size};
        first += size;
    }
}

// ---- rounding ----

struct Step {
    float scale, inverse;
};

constexpr float SMALLEST = 0x1p-100f, TOPS[] = {0.0f, 127.0f, 127.0f * 257.0f};

inline Step step_of(float largest, int digits) {
    if (!(largest >= SMALLEST && largest < std::numeric_limits<float>::infinity())) return {largest * 0.0f, 0.0f};
    return {largest / TOPS[digits], TOPS[digits] / largest};
}

// The largest magnitude of `count` (a multiple of W) floats; NaN or infinite if one is.
inline float largest_of(const float* x, int64_t count) {
    vi most = splat(0);  // magnitudes are in the order of their bits, NaN above all
    for (int64_t k = 0; k < count; k += W) most = larger(most, bits_of(absolute(load(x + k))));
    int32_t largest = 0;
    for (int lane = 0; lane < W; ++lane) largest = largest < most[lane] ? most[lane] : largest;
    return float_of((uint32_t)largest);
}

// Where the codes of a tile lie: 4 columns of each plane, then the next 4.
struct Lines {
    int8_t* first;
    int spread;  // runs of 4 columns of a plane are so many times 4 bytes apart
    int8_t* at(int64_t column, int plane) const { return first + column * spread + plane * 4; }
};

// Codes of one group of one token, in one or two planes of a tile, from `column` and `plane` on.
template <typename Places>
inline void round_group(const LinearJob& job, const float* x, Step step, const Places& out, int64_t column, int plane, int32_t* low, int32_t* high) {
    vi low_sum = splat(0), high_sum = splat(0);
    for (int64_t k = 0; k < job.group; k += W) {
        const vi code = step.inverse != 0.0f ? to_int(round_even(load(x + k) * step.inverse)) : splat(0);
        const vi digit = job.digits == 2 ? ((code + 128) & 255) - 128 : code;
        const vi rest = (code - digit) >> 8;
        low_sum += digit, high_sum += rest;
        if (job.digits == 2) store_bytes(rest, out.at(column + k, plane), out.spread);
        store_bytes(digit, out.at(column + k, plane + job.digits - 1), out.spread);
    }
    *low = *high = 0;
    for (int lane = 0; lane < W; ++lane) *low += low_sum[lane], *high += high_sum[lane];
}

// Where the scales of a tile's activations lie [groups, planes / digits], and the sums of their codes [groups, planes].
inline float* steps_of(const LinearJob& job, Span span) { return job.steps + span.first / job.digits * (job.columns / job.group); }
inline int32_t* sums_of(const LinearJob& job, Span span) { return job.sums + span.first * (job.columns / job.group); }

// Tokens that have planes in the tile; where it is wider than what is left, the other planes stay as they are.
template <typename Places>
inline void round_span(const LinearJob& job, Span span, const Places& out) {
    const int64_t groups = job.columns / job.group, begin = span.first / job.digits;
    const int tokens = span.count / job.digits, weight = job.zeros ? -1 : -(1 << (job.bits - 1));
    std::vector<float> row((size_t)job.columns);
    for (int t = 0; t < tokens && begin + t < job.tokens; ++t) {
        const int64_t start = (begin + t) * job.columns;
        for (int64_t k = 0; k < job.columns; k += W) store(row.data() + k, load_reals(job.x, job.x_type, start + k));
        const Step shared = job.per_token ? step_of(largest_of(row.data(), job.columns), job.digits) : Step{};
        for (int64_t g = 0; g < groups; ++g) {
            const float* x = row.data() + g * job.group;
            const Step step = job.per_token ? shared : step_of(largest_of(x, job.group), job.digits);
            int32_t low, high, *sums = sums_of(job, span) + g * span.count + t * job.digits;
            round_group(job, x, step, out, g * job.group, t * job.digits, &low, &high);
            steps_of(job, span)[g * tokens + t] = step.scale;
            if (job.digits == 2) *sums++ = weight * high;
            *sums = weight * low;
        }
    }
}

inline void round_tile(const LinearJob& job, int64_t tile) {
    const Span span = tile_at(job, tile);
    round_span(job, span, Lines{job.planes + span.first * job.columns, span.count});
}

inline int64_t planes(const LinearJob& job) { return job.tokens * job.digits; }

// ---- multiplying ----

// One group: Σ (code - zero)·x for B blocks and P planes. CHAINS sums beside each other hide the latency of one.
template <int BITS, int B, int P>
inline void sum_group(const uint8_t* const* codes, int64_t ahead, const int8_t* x, int64_t steps, vi (&sums)[B * PARTS][P]) {
    constexpr int V = B * PARTS, HALVES = BITS == 4 ? 2 : 1, UNROLL = V * P >= 8 ? 1 : 2;
    constexpr int CHAINS = V * P >= 8 ? 1 : UNROLL * HALVES, RUN = 4 * HALVES;  // columns of one load of weights
    vi parts[CHAINS][V][P];
    for (int c = 0; c < CHAINS; ++c)
        for (int v = 0; v < V; ++v)
            for (int p = 0; p < P; ++p) parts[c][v][p] = c == 0 ? sums[v][p] : splat(0);
    for (int64_t i = 0; i < steps; i += UNROLL) {
#pragma GCC unroll 2
        for (int u = 0; u < UNROLL; ++u) {
            vi levels[V][HALVES];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                const uint8_t* here = codes[v / PARTS] + (i + u) * BLOCK * 4 + v % PARTS * W * 4;
                if (v % PARTS == 0 && ahead) __builtin_prefetch(here + ahead, 0, P == TILE ? 3 : 2);
                vi raw;
                std::memcpy(&raw, here, sizeof raw);
                levels[v][0] = BITS == 4 ? raw & 0x0f0f0f0f : raw;
                if constexpr (BITS == 4) levels[v][1] = (raw >> 4) & 0x0f0f0f0f;
            }
#pragma GCC unroll 2
            for (int h = 0; h < HALVES; ++h)
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) {
                    const vi four = four_columns(x + (i + u) * RUN * P + 4 * (h * P + p));
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) {
                        vi& sum = parts[CHAINS == 1 ? 0 : u * HALVES + h][v][p];
                        sum = dot<BITS>(sum, levels[v][h], four);
                    }
                }
        }
    }
    for (int v = 0; v < V; ++v)
        for (int p = 0; p < P; ++p) {
            sums[v][p] = parts[0][v][p];
            for (int c = 1; c < CHAINS; ++c) sums[v][p] += parts[c][v][p];
        }
}

// What the sums of a token's D digits, the high one first, are together.
template <int D>
inline vf product_of(const vi* digits) {
    const vf low = to_float(digits[D - 1]);
    if constexpr (D == 2) return to_float(digits[0]) * 256.0f + low;
    return low;
}

// The results of one token in W rows, of which some may lie beyond the matrix.
inline void store_rows(const LinearJob& job, int64_t token, int64_t row, vf total) {
    for (int lane = 0; lane < W && row + lane < job.rows; ++lane) {
        const float value = job.bias ? total[lane] + job.bias[row + lane] : total[lane];
        store_real(job.y, job.y_type, token * job.rows + row + lane, value);
    }
}

// Tokens of one tile times rows of B blocks.
template <int BITS, int D, int B, int P>
inline void multiply_tile(const LinearJob& job, int64_t block, Span span) {
    constexpr int V = B * PARTS, T = P / D;
    const int64_t groups = job.columns / job.group, block_bytes = job.columns * BITS * 2, group_bytes = job.group * BITS * 2;
    const int8_t* x = job.planes + span.first * job.columns;
    const float* steps = steps_of(job, span);
    const int32_t* offsets = sums_of(job, span);
    vf total[V][T];
    for (int v = 0; v < V; ++v)
        for (int t = 0; t < T; ++t) total[v][t] = splat(0.0f);
    for (int64_t g = 0; g < groups; ++g, x += job.group * P, steps += T, offsets += P) {
        const uint8_t* codes[B];
        for (int b = 0; b < B; ++b) codes[b] = job.codes + (block + b) * block_bytes + g * group_bytes;
        const auto place = [&](int v) { return ((block + v / PARTS) * groups + g) * BLOCK + v % PARTS * W; };
        vi sums[V][P];
        for (int v = 0; v < V; ++v)
            for (int p = 0; p < P; ++p) sums[v][p] = job.zeros ? load_bytes(job.zeros + place(v)) * offsets[p] : splat(offsets[p]);
        // A full tile computes for so long that the rows of the next turn can come meanwhile.
        sum_group<BITS, B, P>(codes, P == TILE ? B * block_bytes : job.ahead, x, group_bytes / (BLOCK * 4), sums);
        for (int v = 0; v < V; ++v) {
            const vf scale = load_reals(job.scales, job.scale_type, place(v));
            for (int t = 0; t < T; ++t) total[v][t] += product_of<D>(&sums[v][D * t]) * (scale * steps[t]);
        }
    }
    for (int v = 0; v < V; ++v) {
        const int64_t row = (block + v / PARTS) * BLOCK + v % PARTS * W;
        for (int t = 0; t < T; ++t) store_rows(job, span.first / D + t, row, total[v][t]);
    }
}

template <int BITS, int D, int B, int P>
inline void multiply_sized(const LinearJob& job, int64_t block, Span span) {
    if constexpr (P >= D) {
        if (span.count == P) return multiply_tile<BITS, D, B, P>(job, block, span);
        multiply_sized<BITS, D, B, P / 2>(job, block, span);
    }
}

template <int BITS, int D>
inline void multiply_rows(const LinearJob& job, int64_t first, int64_t last) {
    const int64_t count = tiles(job);
    const bool few = job.tokens * D < TILE;  // one stream of weights is read fastest
    for (int64_t block = first; block < last;) {
        const bool together = !few && block + WIDE <= last;
        for (int64_t tile = 0; tile < count; ++tile) {
            const Span span = tile_at(job, tile);
            if (together) multiply_sized<BITS, D, WIDE, TILE>(job, block, span);
            else multiply_sized<BITS, D, 1, TILE>(job, block, span);
        }
        block += together ? WIDE : 1;
    }
}

inline void multiply(const LinearJob& job, int64_t first, int64_t last) {
    if (job.bits == 4) return job.digits == 1 ? multiply_rows<4, 1>(job, first, last) : multiply_rows<4, 2>(job, first, last);
    return job.digits == 1 ? multiply_rows<8, 1>(job, first, last) : multiply_rows<8, 2>(job, first, last);
}

}  // namespace tersor::TERSOR_ISA
