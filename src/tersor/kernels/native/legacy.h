// Encoders of f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q8_k.
//
// Without a search (llama.cpp's plain rounding) one block at a time, in loops that compilers vectorise; with
// importance or our search, one block per lane.
#pragma once

#include "best.h"
#include "job.h"
#include "search.h"

namespace tersor::TERSOR_ISA {

inline void store16(uint8_t* out, uint16_t value) { std::memcpy(out, &value, 2); }

// Finite or 0: what a conversion to a small integer gives in llama.cpp on x86 for values that overflow it.
inline float tame(float v) { return __builtin_fabsf(v) < 0x1p30f ? v : 0.0f; }

// Half away from zero, |v| < 2^22.
inline int round_away(float v) {
    const float half = float_of(0x3effffffu | (float_bits(v) & 0x80000000u));  // ±(0.5 - 2^-25)
    return (int)(v + half);
}

// Largest magnitude, and the first value that has it. Integer comparison of the bits vectorises; for magnitudes it is the
// order of the floats, with NaN last.
inline float largest_magnitude(const float* x, int64_t count) {
    int32_t top = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t size = (int32_t)(float_bits(x[i]) & 0x7fffffffu);
        top = size > top ? size : top;
    }
    return float_of((uint32_t)top);
}

inline float first_extreme(const float* x, int count) {
    const uint32_t size = float_bits(largest_magnitude(x, count));
    int positive = 0, negative = 0;
    for (int i = 0; i < count; ++i) {
        positive |= float_bits(x[i]) == size;
        negative |= float_bits(x[i]) == (size | 0x80000000u);
    }
    if (size == 0) return 0.0f;
    if (positive && negative)
        for (int i = 0; i < count; ++i)
            if ((float_bits(x[i]) & 0x7fffffffu) == size) return x[i];
    return float_of(negative ? size | 0x80000000u : size);
}

// Smallest and largest value; of zeros of both signs the first, as a loop of comparisons keeps it.
inline void bounds(const float* x, float& low, float& high) {
    int32_t least = 0x7fffffff, most = -0x7fffffff - 1;
    for (int i = 0; i < 32; ++i) {
        const int32_t bits = (int32_t)float_bits(x[i]), key = bits ^ ((bits >> 31) & 0x7fffffff);
        least = key < least ? key : least;
        most = key > most ? key : most;
    }
    low = float_of((uint32_t)(least ^ ((least >> 31) & 0x7fffffff)));
    high = float_of((uint32_t)(most ^ ((most >> 31) & 0x7fffffff)));
    if (low != 0.0f && high != 0.0f) return;
    low = high = x[0];
    for (int i = 1; i < 32; ++i) {
        if (x[i] < low) low = x[i];
        if (x[i] > high) high = x[i];
    }
}

template <int HALF>
inline void pack_codes(const int* codes, uint8_t* out) {
    if constexpr (HALF > 8) {
        uint32_t high = 0;
        for (int j = 0; j < 32; ++j) high |= (uint32_t)(codes[j] >> 4 & 1) << j;
        std::memcpy(out, &high, 4);
        out += 4;
    }
    for (int j = 0; j < 16; ++j) out[j] = (uint8_t)((codes[j] & 15) | (codes[j + 16] & 15) << 4);
}

// q4_0, q5_0.
template <int HALF>
inline void plain_symmetric(const float* x, uint8_t* out) {
    const float d = first_extreme(x, 32) / (float)-HALF, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    store16(out, half_from_float(d));
    int codes[32];
    for (int j = 0; j < 32; ++j) {
        const int l = (int)tame(x[j] * inverse + ((float)HALF + 0.5f));
        codes[j] = l < 2 * HALF - 1 ? l : 2 * HALF - 1;
    }
    pack_codes<HALF>(codes, out + 2);
}

// q4_1, q5_1.
template <int LEVELS>
inline void plain_affine(const float* x, uint8_t* out) {
    float low, high;
    bounds(x, low, high);
    const float d = (high - low) / (float)LEVELS, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    store16(out, half_from_float(d));
    store16(out + 2, half_from_float(low));
    int codes[32];
    for (int j = 0; j < 32; ++j) {
        const int l = (int)tame((x[j] - low) * inverse + 0.5f);
        codes[j] = l < LEVELS ? l : LEVELS;
    }
    pack_codes<(LEVELS + 1) / 2>(codes, out + 4);
}

inline void plain_q8(const float* x, uint8_t* out) {
    const float d = largest_magnitude(x, 32) / 127.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    store16(out, half_from_float(d));
    for (int j = 0; j < 32; ++j) out[2 + j] = (uint8_t)round_away(tame(x[j] * inverse));
}

inline void encode_q8_k(const Job& job, int64_t first, int count, uint8_t* out) {
    for (int b = 0; b < count; ++b, out += 292) {
        const float* x = job.x + (first + b) * 256;
        const float peak = first_extreme(x, 256);
        std::memset(out, 0, 292);
        if (peak == 0.0f) continue;
        const float inverse = -127.0f / peak, d = 1.0f / inverse;
        std::memcpy(out, &d, 4);
        int16_t sums[16] = {};
        for (int i = 0; i < 256; ++i) {
            const int v = (int)((float_bits(inverse * x[i] + MAGIC) & 0x7fffff) - 0x400000);
            const int8_t q = (int8_t)(v < 127 ? v : 127);
            out[4 + i] = (uint8_t)q;
            sums[i / 16] = (int16_t)(sums[i / 16] + q);
        }
        std::memcpy(out + 260, sums, 32);
    }
}

// --------------------------------------------------------------------------------------------- one block per lane

struct Tile32 {
    vf x[32], importance[32];
    vi codes[32];
};

inline void load(const Job& job, int64_t first, int count, Tile32& t) {
    load_blocks<32>(job.x, first, count, t.x);
    if (job.importance) load_importance<32>(job.importance, first, count, job.blocks_per_row, t.importance);
}

// llama.cpp's weights of these formats: importance · sqrt(mean square of the row + x²).
inline void row_cost(const Job& job, int64_t first, int count, const Tile32& t, vf* w) {
    vf mean;
    for (int k = 0; k < W; ++k) mean[k] = job.mean_squares[(first + (k < count ? k : count - 1)) / job.blocks_per_row];
    for (int i = 0; i < 32; ++i) w[i] = t.importance[i] * square_root(mean + t.x[i] * t.x[i]);
}

template <int HEAD, int HALF>
inline void store_tile(vi d, vi minimum, const vi* codes, uint8_t* out, int count) {
    constexpr int HIGH = HALF > 8 ? 4 : 0;
    Packed<HEAD + HIGH + 16> bytes;
    bytes.put(0, d);
    if constexpr (HEAD == 4) bytes.put(2, minimum);
    if constexpr (HIGH == 4) {
        for (int byte = 0; byte < 4; ++byte) {
            vi high{};
            for (int bit = 0; bit < 8; ++bit) high |= ((codes[8 * byte + bit] >> 4) & 1) << bit;
            bytes.put(HEAD + byte, high);
        }
    }
    for (int j = 0; j < 16; ++j) bytes.put(HEAD + HIGH + j, (codes[j] & 15) | ((codes[j + 16] & 15) << 4));
    bytes.store(out, count);
}

// Our search with one symmetric scale: least squares over trials of both signs, then once more for the stored scale.
template <int HALF, bool WEIGHTED>
inline vi our_single_symmetric(Tile32& t) {
    constexpr SignedTrials trials = HALF == 8 ? SignedTrials{6.8f, 5.8f, 0.2f, 10, 1} : SignedTrials{14.6f, 13.6f, 0.3f, 8, 1};
    const vf d = float_from_half(half_from_float(start_symmetric<32, HALF, WEIGHTED>(t.x, t.importance, trials)));
    const vf inverse = choose(d != 0.0f, 1.0f / d, vf{});
    const Sums s = code_sums<32, WEIGHTED, false>(t.x, t.importance, inverse, vf{}, (float)-HALF, (float)(HALF - 1));
    const vf refit = choose(s.l2 > 0.0f, float_from_half(half_from_float(s.lx / s.l2)), d);
    const vi better = symmetric_error<32, HALF, WEIGHTED>(t.x, t.importance, refit) <
                      symmetric_error<32, HALF, WEIGHTED>(t.x, t.importance, d);
    const vf chosen = choose(better, refit, d);
    const vf by = choose(chosen != 0.0f, 1.0f / chosen, vf{});
    for (int i = 0; i < 32; ++i) t.codes[i] = to_int(nearest_clamped(by * t.x[i], -HALF, HALF - 1)) + HALF;
    return half_from_float(chosen);
}

template <int HALF>
inline void encode_symmetric_32(const Job& job, int64_t first, int count, uint8_t* out) {
    constexpr int BYTES = HALF > 8 ? 22 : 18;
    if (!job.best && !job.importance) {
        for (int b = 0; b < count; ++b) plain_symmetric<HALF>(job.x + (first + b) * 32, out + b * BYTES);
        return;
    }
    Tile32 t;
    load(job, first, count, t);
    vi d;
    if (!job.best) {
        vf w[32];
        row_cost(job, first, count, t, w);
        const SymmetricFit fit = search_symmetric<32, HALF>(t.x, w);
        d = half_from_float(fit.scale);
        for (int i = 0; i < 32; ++i) t.codes[i] = to_int(code_of(fit, t.x[i], HALF)) + HALF;
    } else {
        d = job.importance ? our_single_symmetric<HALF, true>(t) : our_single_symmetric<HALF, false>(t);
    }
    store_tile<2, HALF>(d, vi{}, t.codes, out, count);
}

// Our search with scale and minimum, both stored as binary16.
template <int LEVELS, bool WEIGHTED>
inline void our_single_affine(Tile32& t, vi& d, vi& minimum) {
    constexpr Trials trials = LEVELS == 15 ? Trials{-1.0f, 0.2f, 14, 2} : Trials{-1.2f, 0.2f, 14, 3};
    const vf sum_w = total_weight<32, WEIGHTED>(t.importance), sum_x = total_value<32, WEIGHTED>(t.x, t.importance);
    Affine fit = start_affine<32, LEVELS, WEIGHTED, true>(t.x, t.importance, sum_w, sum_x, trials), again;
    fit = {float_from_half(half_from_float(fit.scale)), float_from_half(half_from_float(fit.minimum))};
    const vf inverse = choose(fit.scale != 0.0f, 1.0f / fit.scale, vf{});
    const Sums s = code_sums<32, WEIGHTED, true>(t.x, t.importance, inverse, fit.minimum, 0.0f, (float)LEVELS);
    vf gain;
    const vi solved = solve_affine<true>(s, sum_w, sum_x, fit.minimum, again, gain);
    again = {float_from_half(half_from_float(again.scale)), float_from_half(half_from_float(again.minimum))};
    const vi better = solved & (affine_error<32, LEVELS, WEIGHTED>(t.x, t.importance, again.scale, again.minimum) <
                                affine_error<32, LEVELS, WEIGHTED>(t.x, t.importance, fit.scale, fit.minimum));
    fit = {choose(better, again.scale, fit.scale), choose(better, again.minimum, fit.minimum)};
    const vf by = choose(fit.scale != 0.0f, 1.0f / fit.scale, vf{});
    for (int i = 0; i < 32; ++i) t.codes[i] = to_int(nearest_clamped(by * (t.x[i] - fit.minimum), 0, LEVELS));
    d = half_from_float(fit.scale);
    minimum = half_from_float(fit.minimum);
}

template <int LEVELS>
inline void encode_affine_32(const Job& job, int64_t first, int count, uint8_t* out) {
    constexpr int BYTES = LEVELS > 15 ? 24 : 20;
    if (!job.best && !job.importance) {
        for (int b = 0; b < count; ++b) plain_affine<LEVELS>(job.x + (first + b) * 32, out + b * BYTES);
        return;
    }
    Tile32 t;
    load(job, first, count, t);
    vi d, minimum;
    if (!job.best) {
        vf w[32];
        row_cost(job, first, count, t, w);
        const AffineFit fit = search_affine<32, LEVELS>(t.x, w, {-0.9f, 0.05f, 36, false});
        d = half_from_float(fit.scale);
        minimum = half_from_float(-fit.minimum);
        for (int i = 0; i < 32; ++i) t.codes[i] = to_int(code_of(fit, t.x[i], LEVELS));
    } else if (job.importance) {
        our_single_affine<LEVELS, true>(t, d, minimum);
    } else {
        our_single_affine<LEVELS, false>(t, d, minimum);
    }
    store_tile<4, (LEVELS + 1) / 2>(d, minimum, t.codes, out, count);
}

// Our search for q8_0: the plain scale against its least-squares refit.
template <bool WEIGHTED>
inline void our_q8(Tile32& t, uint8_t* out, int count) {
    vf top{};
    for (int i = 0; i < 32; ++i) top = larger(absolute(t.x[i]), top);
    const vf plain = float_from_half(half_from_float(top / 127.0f));
    vf scales[2] = {plain, plain}, errors[2];
    for (int k = 0; k < 2; ++k) {
        const vf inverse = choose(scales[k] != 0.0f, 1.0f / scales[k], vf{});
        vf lx{}, l2{}, error{};
        for (int i = 0; i < 32; ++i) {
            const vf l = round_clamped(inverse * t.x[i], -127.0f, 127.0f), difference = scales[k] * l - t.x[i];
            const vf wl = weigh<WEIGHTED>(t.importance[i], l);
            lx += wl * t.x[i];
            l2 += wl * l;
            error += weigh<WEIGHTED>(t.importance[i], difference * difference);
        }
        errors[k] = error;
        if (k == 0) scales[1] = choose(l2 > 0.0f, float_from_half(half_from_float(lx / l2)), plain);
    }
    const vf d = choose(errors[1] < errors[0], scales[1], scales[0]);
    const vf inverse = choose(d != 0.0f, 1.0f / d, vf{});
    Packed<34> bytes;
    bytes.put(0, half_from_float(d));
    for (int i = 0; i < 32; ++i) bytes.put(2 + i, to_int(nearest_clamped(inverse * t.x[i], -127, 127)) & 255);
    bytes.store(out, count);
}

inline void encode_q8_0(const Job& job, int64_t first, int count, uint8_t* out) {
    if (!job.best) {
        for (int b = 0; b < count; ++b) plain_q8(job.x + (first + b) * 32, out + b * 34);
        return;
    }
    Tile32 t;
    load(job, first, count, t);
    if (job.importance)
        our_q8<true>(t, out, count);
    else
        our_q8<false>(t, out, count);
}

// ---------------------------------------------------------------------------------------------------- plain floats

inline void encode_f32(const Job& job, int64_t first, int count, uint8_t* out) {
    std::memcpy(out, job.x + first, (size_t)count * 4);
}

inline void encode_f16(const Job& job, int64_t first, int count, uint8_t* out) {
    const float* x = job.x + first;
    int i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= count; i += 16)
        _mm256_storeu_si256((__m256i*)(out + 2 * i), _mm512_cvtps_ph(_mm512_loadu_ps(x + i), 0));
#elif defined(__F16C__)
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((__m128i*)(out + 2 * i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
#endif
    for (; i < count; ++i) store16(out + 2 * i, half_from_float(x[i]));
}

inline void encode_bf16(const Job& job, int64_t first, int count, uint8_t* out) {
    const float* x = job.x + first;
    for (int i = 0; i < count; ++i) store16(out + 2 * i, bfloat_from_float(x[i]));
}

}  // namespace tersor::TERSOR_ISA
