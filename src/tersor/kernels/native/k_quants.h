// Encoders of q2_k, q3_k, q4_k, q5_k, q6_k: super-blocks of 256 weights, one per lane.
#pragma once

#include "best.h"
#include "job.h"
#include "search.h"

namespace tersor::TERSOR_ISA {

// The tile that a K-quant encoder works on: weights and, with importance, what an error at each of them costs.
struct Tile {
    vf x[256], importance[256];
    vi codes[256];
};

inline vf sum_of_squares(const vf* x, int count) {
    vf sum{};
    for (int i = 0; i < count; ++i) sum += x[i] * x[i];
    return sum;
}

// w = importance · sqrt(spread + x²), llama.cpp's cost of an error.
inline void cost(const vf* x, const vf* importance, vf spread, int count, vf* w) {
    for (int i = 0; i < count; ++i) w[i] = importance[i] * square_root(spread + x[i] * x[i]);
}

// ------------------------------------------------------------------------------------------------ affine formats

struct AffineBlock {
    vi d, dmin, sc[16], mn[16];  // binary16 bits and sub-scale codes
};

// Codes for the stored step; groups whose stored step is 0 keep the codes of the search.
template <int N, int LEVELS>
inline void assign_affine(const vf* x, vf d, vf minimum, const AffineFit& fit, vi* codes) {
    const vi kept = d == 0.0f;
    for (int i = 0; i < N; ++i) {
        codes[i] = smaller(larger(nearest_int((x[i] + minimum) / d), splat(0)), splat(LEVELS));
    }
    if (any(kept))
        for (int i = 0; i < N; ++i) codes[i] = choose(kept, to_int(code_of(fit, x[i], LEVELS)), codes[i]);
}

template <int N, int LEVELS, int SUB>
inline void ggml_affine(Tile& t, bool weighted, AffineBlock& block) {
    constexpr int G = 256 / N;
    AffineFit fits[G];
    vf scales[G], minima[G], sums[G], w[N], high{}, deep{};
    const vf squares = weighted ? sum_of_squares(t.x, 256) : vf{};
    const vf spread = (LEVELS == 3 ? squares : 2.0f * squares) / 256.0f;
    for (int g = 0; g < G; ++g) {
        const vf* x = t.x + g * N;
        if (weighted) {
            cost(x, t.importance + g * N, spread, N, w);
            sums[g] = vf{};
            for (int i = 0; i < N; ++i) sums[g] += w[i];
            fits[g] = search_affine<N, LEVELS>(x, w, {-0.9f, 0.05f, 36, false});
        } else if (LEVELS == 3) {
            for (int i = 0; i < N; ++i) w[i] = absolute(x[i]);
            fits[g] = search_affine<N, LEVELS>(x, w, {-0.5f, 0.1f, 15, true});
        } else {
            const vf mean = square_root(sum_of_squares(x, N) / (float)N);
            for (int i = 0; i < N; ++i) w[i] = mean + absolute(x[i]);
            fits[g] = search_affine<N, LEVELS>(
                x, w, LEVELS == 15 ? AffineSearch{-1.0f, 0.1f, 20, false} : AffineSearch{-0.5f, 0.1f, 15, false});
        }
        scales[g] = fits[g].scale;
        minima[g] = fits[g].minimum;
        high = scales[g] > high ? scales[g] : high;
        deep = minima[g] > deep ? minima[g] : deep;
    }
    vf d, dmin;
    if (weighted) {
        vf codes[G];
        d = search_nonnegative<G>(scales, sums, SUB, codes);
        for (int g = 0; g < G; ++g) block.sc[g] = to_int(codes[g]);
        dmin = search_nonnegative<G>(minima, sums, SUB, codes);
        for (int g = 0; g < G; ++g) block.mn[g] = to_int(codes[g]);
    } else {
        const vf inverse = choose(high > 0.0f, (float)SUB / high, vf{});
        const vf inverse_min = choose(deep > 0.0f, (float)SUB / deep, vf{});
        for (int g = 0; g < G; ++g) {
            block.sc[g] = smaller(nearest_int(inverse * scales[g]) & 255, splat(SUB));
            block.mn[g] = smaller(nearest_int(inverse_min * minima[g]) & 255, splat(SUB));
        }
        d = high / (float)SUB;
        dmin = deep / (float)SUB;
    }
    block.d = half_from_float(d);
    block.dmin = half_from_float(dmin);
    d = float_from_half(block.d);
    dmin = float_from_half(block.dmin);
    for (int g = 0; g < G; ++g)
        assign_affine<N, LEVELS>(t.x + g * N, d * to_float(block.sc[g]), dmin * to_float(block.mn[g]), fits[g],
                                 t.codes + g * N);
}

template <int N, int LEVELS, int SUB, bool WEIGHTED>
inline void our_affine(Tile& t, AffineBlock& block) {
    constexpr int G = 256 / N;
    constexpr Trials trials = LEVELS == 3    ? Trials{-0.8f, 0.2f, 14, 2}
                              : LEVELS == 15 ? Trials{-1.0f, 0.25f, 12, 2}
                                             : Trials{-0.75f, 0.25f, 8, 2};
    const AffineGrid<G> grid =
        best_affine<N, G, LEVELS, SUB, WEIGHTED>(t.x, t.importance, trials, LEVELS == 3 ? 3 : 2);
    block.d = half_from_float(grid.d);
    block.dmin = half_from_float(grid.dmin);
    for (int g = 0; g < G; ++g) {
        block.sc[g] = to_int(grid.sc[g]);
        block.mn[g] = to_int(grid.mn[g]);
        const vf scale = grid.d * grid.sc[g], minimum = -(grid.dmin * grid.mn[g]);
        const vf inverse = choose(scale != 0.0f, 1.0f / scale, vf{});
        for (int i = g * N; i < (g + 1) * N; ++i)
            t.codes[i] = to_int(nearest_clamped(inverse * (t.x[i] - minimum), 0, LEVELS));
    }
}

// ---------------------------------------------------------------------------------------------- symmetric formats

struct SymmetricBlock {
    vi d, sc[16];  // binary16 bits; signed sub-scales
};

template <int HALF>
inline void assign_symmetric(const vf* x, vf d, const vf* kept_codes, vi* codes) {
    const vi kept = d == 0.0f;
    for (int i = 0; i < 16; ++i)
        codes[i] = smaller(larger(nearest_int(x[i] / d), splat(-HALF)), splat(HALF - 1)) + HALF;
    if (any(kept))
        for (int i = 0; i < 16; ++i) codes[i] = choose(kept, to_int(kept_codes[i]) + HALF, codes[i]);
}

inline void ggml_q3(Tile& t, bool weighted, SymmetricBlock& block) {
    vf scales[16], kept[256];
    vf d;
    if (weighted) {
        vf w[16], sums[16];
        const vf spread = 2.0f * sum_of_squares(t.x, 256) / 256.0f;
        for (int g = 0; g < 16; ++g) {
            const vf* x = t.x + g * 16;
            cost(x, t.importance + g * 16, spread, 16, w);
            sums[g] = vf{};
            for (int i = 0; i < 16; ++i) sums[g] += w[i];
            const SymmetricFit fit = search_symmetric<16, 4>(x, w);
            scales[g] = fit.scale;
            for (int i = 0; i < 16; ++i) kept[g * 16 + i] = code_of(fit, x[i], 4);
        }
        const SymmetricFit fit = search_symmetric<16, 32>(scales, sums);
        d = fit.scale;
        for (int g = 0; g < 16; ++g) block.sc[g] = to_int(code_of(fit, scales[g], 32));
    } else {
        descend_symmetric<16, 16, 4>(t.x, kept, scales);
        vf peak, magnitude;
        extreme<16>(scales, peak, magnitude);
        const vf inverse = -32.0f / peak;
        const vi flat = peak == 0.0f;
        for (int g = 0; g < 16; ++g) {
            const vi l = (nearest_int(inverse * scales[g]) << 24) >> 24;  // kept in 8 bits there
            block.sc[g] = choose(flat, splat(-32), smaller(larger(l, splat(-32)), splat(31)));
        }
        d = choose(flat, vf{}, 1.0f / inverse);
    }
    block.d = half_from_float(d);
    d = float_from_half(block.d);
    for (int g = 0; g < 16; ++g)
        assign_symmetric<4>(t.x + g * 16, d * to_float(block.sc[g]), kept + g * 16, t.codes + g * 16);
}

inline void ggml_q6(Tile& t, bool weighted, SymmetricBlock& block) {
    vf scales[16], kept[256], w[16];
    for (int g = 0; g < 16; ++g) {
        const vf* x = t.x + g * 16;
        for (int i = 0; i < 16; ++i) w[i] = weighted ? t.importance[g * 16 + i] : x[i] * x[i];
        const SymmetricFit fit = search_symmetric<16, 32>(x, w);
        scales[g] = fit.scale;
        for (int i = 0; i < 16; ++i) kept[g * 16 + i] = code_of(fit, x[i], 32);
    }
    vf peak, magnitude;
    extreme<16>(scales, peak, magnitude);
    const vi flat = magnitude < EMPTY;  // the whole block is zero bytes
    const vf inverse = -128.0f / peak;
    block.d = choose(flat, vi{}, half_from_float(1.0f / inverse));
    const vf d = float_from_half(block.d);
    for (int g = 0; g < 16; ++g) {
        const vi sc = (smaller(nearest_int(inverse * scales[g]), splat(127)) << 24) >> 24;
        block.sc[g] = choose(flat, vi{}, sc);
        assign_symmetric<32>(t.x + g * 16, d * to_float(block.sc[g]), kept + g * 16, t.codes + g * 16);
        for (int i = g * 16; i < (g + 1) * 16; ++i) t.codes[i] = choose(flat, vi{}, t.codes[i]);
    }
}

template <int HALF, int SUB, bool WEIGHTED>
inline void our_symmetric(Tile& t, SymmetricBlock& block) {
    constexpr SignedTrials trials =
        HALF == 4 ? SignedTrials{3.4f, 2.7f, 0.4f, 4, 2} : SignedTrials{30.5f, 29.5f, 0.5f, 6, 1};
    const SymmetricGrid<16> grid = best_symmetric<16, 16, HALF, SUB, WEIGHTED>(t.x, t.importance, trials, HALF == 4 ? 1 : 2);
    block.d = half_from_float(grid.d);
    for (int g = 0; g < 16; ++g) {
        block.sc[g] = to_int(grid.sc[g]);
        const vf scale = grid.d * grid.sc[g];
        const vf inverse = choose(scale != 0.0f, 1.0f / scale, vf{});
        for (int i = g * 16; i < (g + 1) * 16; ++i)
            t.codes[i] = to_int(nearest_clamped(inverse * t.x[i], -HALF, HALF - 1)) + HALF;
    }
}

// -------------------------------------------------------------------------------------------------------- packing

// Eight 6-bit scales and eight 6-bit minima in 12 bytes.
template <int BYTES>
inline void pack_scales_k4(const AffineBlock& b, int at, Packed<BYTES>& out) {
    for (int g = 0; g < 4; ++g) {
        out.put(at + g, b.sc[g] | ((b.sc[g + 4] >> 4) << 6));
        out.put(at + 4 + g, b.mn[g] | ((b.mn[g + 4] >> 4) << 6));
        out.put(at + 8 + g, (b.sc[g + 4] & 15) | ((b.mn[g + 4] & 15) << 4));
    }
}

// Four 2-bit fields to a byte: weights l, l + 32, l + 64, l + 96 of each half.
template <int BYTES>
inline void pack_twos(const vi* codes, int at, int shift, Packed<BYTES>& out) {
    for (int half = 0; half < 2; ++half)
        for (int l = 0; l < 32; ++l) {
            const vi* q = codes + 128 * half + l;
            const vi fields = ((q[0] >> shift) & 3) | (((q[32] >> shift) & 3) << 2) | (((q[64] >> shift) & 3) << 4) |
                              (((q[96] >> shift) & 3) << 6);
            out.put(at + 32 * half + l, fields);
        }
}

template <int BYTES>
inline void pack_nibbles(const vi* codes, int at, Packed<BYTES>& out) {
    for (int chunk = 0; chunk < 4; ++chunk)
        for (int l = 0; l < 32; ++l) {
            const vi* q = codes + 64 * chunk + l;
            out.put(at + 32 * chunk + l, (q[0] & 15) | ((q[32] & 15) << 4));
        }
}

inline void write_q2(const Tile& t, const AffineBlock& b, uint8_t* out, int count) {
    Packed<84> bytes;
    for (int g = 0; g < 16; ++g) bytes.put(g, b.sc[g] | (b.mn[g] << 4));
    pack_twos(t.codes, 16, 0, bytes);
    bytes.put(80, b.d);
    bytes.put(82, b.dmin);
    bytes.store(out, count);
}

inline void write_q4(const Tile& t, const AffineBlock& b, uint8_t* out, int count) {
    Packed<144> bytes;
    bytes.put(0, b.d);
    bytes.put(2, b.dmin);
    pack_scales_k4(b, 4, bytes);
    pack_nibbles(t.codes, 16, bytes);
    bytes.store(out, count);
}

inline void write_q5(const Tile& t, const AffineBlock& b, uint8_t* out, int count) {
    Packed<176> bytes;
    bytes.put(0, b.d);
    bytes.put(2, b.dmin);
    pack_scales_k4(b, 4, bytes);
    for (int l = 0; l < 32; ++l) {
        vi high{};
        for (int g = 0; g < 8; ++g) high |= (t.codes[32 * g + l] >> 4) << g;
        bytes.put(16 + l, high);
    }
    pack_nibbles(t.codes, 48, bytes);
    bytes.store(out, count);
}

inline void write_q3(const Tile& t, const SymmetricBlock& b, uint8_t* out, int count) {
    Packed<110> bytes;
    for (int l = 0; l < 32; ++l) {
        vi high{};
        for (int g = 0; g < 8; ++g) high |= (t.codes[32 * g + l] >> 2) << g;
        bytes.put(l, high);
    }
    pack_twos(t.codes, 32, 0, bytes);
    vi sc[16];
    for (int g = 0; g < 16; ++g) sc[g] = b.sc[g] + 32;
    for (int g = 0; g < 8; ++g) bytes.put(96 + g, (sc[g] & 15) | ((sc[g + 8] & 15) << 4));
    for (int g = 0; g < 4; ++g)
        bytes.put(104 + g,
                  (sc[g] >> 4) | ((sc[g + 4] >> 4) << 2) | ((sc[g + 8] >> 4) << 4) | ((sc[g + 12] >> 4) << 6));
    bytes.put(108, b.d);
    bytes.store(out, count);
}

inline void write_q6(const Tile& t, const SymmetricBlock& b, uint8_t* out, int count) {
    Packed<210> bytes;
    for (int half = 0; half < 2; ++half)
        for (int l = 0; l < 32; ++l) {
            const vi* q = t.codes + 128 * half + l;
            bytes.put(64 * half + l, (q[0] & 15) | ((q[64] & 15) << 4));
            bytes.put(64 * half + 32 + l, (q[32] & 15) | ((q[96] & 15) << 4));
        }
    pack_twos(t.codes, 128, 4, bytes);
    for (int g = 0; g < 16; ++g) bytes.put(192 + g, b.sc[g] & 255);
    bytes.put(208, b.d);
    bytes.store(out, count);
}

// ------------------------------------------------------------------------------------------------------- encoders

template <int N, int LEVELS, int SUB>
inline void encode_affine(const Job& job, int64_t first, int count, uint8_t* out) {
    Tile t;
    AffineBlock block;
    load_blocks<256>(job.x, first, count, t.x);
    if (job.importance) load_importance<256>(job.importance, first, count, job.blocks_per_row, t.importance);
    if (!job.best)
        ggml_affine<N, LEVELS, SUB>(t, job.importance != nullptr, block);
    else if (job.importance)
        our_affine<N, LEVELS, SUB, true>(t, block);
    else
        our_affine<N, LEVELS, SUB, false>(t, block);
    if constexpr (LEVELS == 3) write_q2(t, block, out, count);
    if constexpr (LEVELS == 15) write_q4(t, block, out, count);
    if constexpr (LEVELS == 31) write_q5(t, block, out, count);
}

template <int HALF, int SUB>
inline void encode_symmetric(const Job& job, int64_t first, int count, uint8_t* out) {
    Tile t;
    SymmetricBlock block;
    load_blocks<256>(job.x, first, count, t.x);
    if (job.importance) load_importance<256>(job.importance, first, count, job.blocks_per_row, t.importance);
    if (job.best && job.importance)
        our_symmetric<HALF, SUB, true>(t, block);
    else if (job.best)
        our_symmetric<HALF, SUB, false>(t, block);
    else if constexpr (HALF == 4)
        ggml_q3(t, job.importance != nullptr, block);
    else
        ggml_q6(t, job.importance != nullptr, block);
    if constexpr (HALF == 4)
        write_q3(t, block, out, count);
    else
        write_q6(t, block, out, count);
}

}  // namespace tersor::TERSOR_ISA
