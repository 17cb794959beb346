// Encoders of the formats whose codes index a table: iq4_nl, iq4_xs, mxfp4; and of the ternary ones: tq1_0, tq2_0.
#pragma once

#include <cmath>

#include "legacy.h"

namespace tersor::TERSOR_ISA {

// The table of IQ4, and the midpoints where the nearest entry changes (ties go up; midpoints are exact in binary).
constexpr float IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

inline vf nearest_iq4(vf v) {
    vf value = splat(IQ4[0]);
    for (int k = 1; k < 16; ++k) value = v < 0.5f * (IQ4[k - 1] + IQ4[k]) ? value : splat(IQ4[k]);
    return value;
}

inline vi index_iq4(vf v) {
    vi below{};
    for (int k = 1; k < 16; ++k) below += v < 0.5f * (IQ4[k - 1] + IQ4[k]);
    return below + 15;  // NaN is the last entry, as in llama.cpp's search
}

// llama.cpp's scale of one group of 32: sixteen trials around the one that maps the largest magnitude to -127.
inline vf search_iq4(const vf* x, const vf* w) {
    vf peak, magnitude;
    extreme<32>(x, peak, magnitude);
    vf scale{}, best{};
    for (int trial = -8; trial <= 7; ++trial) {
        const vf inverse = trial == -8 ? 1.0f / (-peak / IQ4[0]) : (float)(trial - 127) / peak;
        vf qx{}, q2{};
        for (int i = 0; i < 32; ++i) {
            const vf q = nearest_iq4(inverse * x[i]), wq = w[i] * q;
            qx += wq * x[i];
            q2 += wq * q;
        }
        if (trial == -8) {
            scale = choose(q2 > 0.0f, qx / q2, vf{});
            best = scale * qx;
            continue;
        }
        const vi better = (q2 > 0.0f) & (qx * qx > best * q2);
        const vf fit = qx / q2;
        scale = choose(better, fit, scale);
        best = choose(better, fit * qx, best);
    }
    return choose(magnitude < EMPTY, vf{}, scale);
}

// Least-squares scale over trials that map the largest magnitude near either end of the table.
template <bool WEIGHTED>
inline Sums sums_iq4(const vf* x, const vf* w, vf inverse) {
    Sums s{};
    for (int i = 0; i < 32; ++i) {
        const vf q = nearest_iq4(inverse * x[i]), wq = weigh<WEIGHTED>(w[i], q);
        s.lx += wq * x[i];
        s.l2 += wq * q;
    }
    return s;
}

template <bool WEIGHTED>
inline vf start_iq4(const vf* x, const vf* w) {
    vf peak, magnitude;
    extreme<32>(x, peak, magnitude);
    vf best_scale{}, best_gain{};
    for (int k = 0; k < 20; ++k) {
        const float top = k < 10 ? (float)(-137 + 3 * k) : (float)(96 + 3 * (k - 10));
        const vf inverse = k < 19 ? top / peak : 1.0f / best_scale;
        const Sums s = sums_iq4<WEIGHTED>(x, w, inverse);
        const vf scale = s.lx / s.l2, gain = scale * s.lx;
        const vi better = (s.l2 > 0.0f) & (gain > best_gain);
        best_scale = choose(better, scale, best_scale);
        best_gain = choose(better, gain, best_gain);
    }
    return best_scale;
}

template <bool WEIGHTED>
inline vf error_iq4(const vf* x, const vf* w, vf scale) {
    const vf inverse = choose(scale != 0.0f, 1.0f / scale, vf{});
    vf error{};
    for (int i = 0; i < 32; ++i) {
        const vf difference = scale * nearest_iq4(inverse * x[i]) - x[i];
        error += weigh<WEIGHTED>(w[i], difference * difference);
    }
    return error;
}

template <bool WEIGHTED>
inline vf our_iq4_nl(const Tile32& t) {
    const vf d = float_from_half(half_from_float(start_iq4<WEIGHTED>(t.x, t.importance)));
    const Sums s = sums_iq4<WEIGHTED>(t.x, t.importance, choose(d != 0.0f, 1.0f / d, vf{}));
    const vf refit = choose(s.l2 > 0.0f, float_from_half(half_from_float(s.lx / s.l2)), d);
    const vi better = error_iq4<WEIGHTED>(t.x, t.importance, refit) < error_iq4<WEIGHTED>(t.x, t.importance, d);
    return choose(better, refit, d);
}

inline void encode_iq4_nl(const Job& job, int64_t first, int count, uint8_t* out) {
    Tile32 t;
    load(job, first, count, t);
    vf scale;
    if (job.best) {
        scale = job.importance ? our_iq4_nl<true>(t) : our_iq4_nl<false>(t);
    } else {
        vf w[32], spread{};
        for (int i = 0; i < 32; ++i) spread += t.x[i] * t.x[i];
        spread = spread * (2.0f / 32.0f);
        for (int i = 0; i < 32; ++i) {
            const vf square = t.x[i] * t.x[i];
            w[i] = job.importance ? t.importance[i] * square_root(spread + square) : square;
        }
        scale = search_iq4(t.x, w);
    }
    const vf inverse = choose(scale != 0.0f, 1.0f / scale, vf{});
    for (int i = 0; i < 32; ++i) t.codes[i] = index_iq4(inverse * t.x[i]);
    store_tile<2, 8>(half_from_float(scale), vi{}, t.codes, out, count);
}

struct Iq4Block {
    vf d, sc[8];  // step (its binary16 is stored) and signed sub-scales
};

inline Iq4Block ggml_iq4_xs(const vf* x, const vf* importance) {
    vf spread{}, scales[8], w[32];
    for (int i = 0; i < 256; ++i) spread += x[i] * x[i];
    spread = spread * (2.0f / 256.0f);
    for (int g = 0; g < 8; ++g) {
        for (int i = 0; i < 32; ++i) {
            const vf value = x[32 * g + i], square = value * value;
            w[i] = importance ? importance[32 * g + i] * square_root(spread + square) : square;
        }
        scales[g] = search_iq4(x + 32 * g, w);
    }
    vf peak, magnitude;
    extreme<8>(scales, peak, magnitude);
    Iq4Block block;
    block.d = -peak / 32.0f;
    const vf inverse = choose(block.d != 0.0f, 1.0f / block.d, vf{});
    for (int g = 0; g < 8; ++g) block.sc[g] = nearest_clamped(inverse * scales[g], -32, 31);
    return block;
}

template <bool WEIGHTED>
inline void polish_iq4(const vf* x, const vf* w, SymmetricGrid<8>& grid) {
    grid.error = vf{};
    for (int g = 0; g < 8; ++g) {
        const vf sc0 = grid.sc[g];
        vf best{};
        for (int k = 0; k < 3; ++k) {
            const float move = k == 0 ? 0.0f : k == 1 ? 1.0f : -1.0f;
            const vf sc = smaller(larger(sc0 + move, splat(-32.0f)), splat(31.0f));
            const vf error = error_iq4<WEIGHTED>(x + 32 * g, w + 32 * g, grid.d * sc);
            const vi better = k == 0 ? splat(-1) : error < best;
            best = choose(better, error, best);
            grid.sc[g] = choose(better, sc, grid.sc[g]);
        }
        grid.error += best;
    }
}

template <bool WEIGHTED>
inline Iq4Block our_iq4_xs(const vf* x, const vf* w) {
    vf scales[8];
    for (int g = 0; g < 8; ++g) scales[g] = start_iq4<WEIGHTED>(x + 32 * g, w + 32 * g);
    SymmetricGrid<8> grid = place_scales<8, 32>(scales);
    polish_iq4<WEIGHTED>(x, w, grid);
    SymmetricGrid<8> best = grid;
    vf aa{}, ax{};
    for (int g = 0; g < 8; ++g) {
        const vf scale = grid.d * grid.sc[g];
        const Sums s = sums_iq4<WEIGHTED>(x + 32 * g, w + 32 * g, choose(scale != 0.0f, 1.0f / scale, vf{}));
        aa += grid.sc[g] * grid.sc[g] * s.l2;
        ax += grid.sc[g] * s.lx;
    }
    grid.d = choose(aa > 0.0f, float_from_half(half_from_float(ax / aa)), grid.d);
    polish_iq4<WEIGHTED>(x, w, grid);
    keep_better(grid, best);
    Iq4Block block;
    block.d = best.d;
    for (int g = 0; g < 8; ++g) block.sc[g] = best.sc[g];
    return block;
}

inline void encode_iq4_xs(const Job& job, int64_t first, int count, uint8_t* out) {
    vf x[256], importance[256];
    load_blocks<256>(job.x, first, count, x);
    if (job.importance) load_importance<256>(job.importance, first, count, job.blocks_per_row, importance);
    Iq4Block block;
    if (!job.best)
        block = ggml_iq4_xs(x, job.importance ? importance : nullptr);
    else
        block = job.importance ? our_iq4_xs<true>(x, importance) : our_iq4_xs<false>(x, importance);
    Packed<136> bytes;
    bytes.put(0, half_from_float(block.d));
    vi high{};
    for (int g = 0; g < 8; ++g) {
        const vf scale = block.d * block.sc[g], inverse = choose(scale != 0.0f, 1.0f / scale, vf{});
        const vi l = to_int(block.sc[g]) + 32;
        high |= (l >> 4) << (2 * g);
        bytes.put(4 + g / 2, (l & 15) << (4 * (g % 2)));
        vi codes[32];
        for (int i = 0; i < 32; ++i) codes[i] = index_iq4(inverse * x[32 * g + i]);
        for (int j = 0; j < 16; ++j) bytes.put(8 + 16 * g + j, codes[j] | (codes[j + 16] << 4));
    }
    bytes.put(2, high);
    bytes.store(out, count);
}

// ---------------------------------------------------------------------------------------------------------- mxfp4

// Magnitude code 0 … 7 of v / e (values 0 1 2 3 4 6 8 12, ties to the smaller), e the doubled power of two.
inline vi index_mxfp4(vf magnitude, vf e) {
    constexpr float middles[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f};
    vi index{};
    for (int k = 0; k < 7; ++k) index -= magnitude > middles[k] * e;
    return index;
}

inline vf value_mxfp4(vf magnitude, vf e) {
    constexpr float values[8] = {0, 1, 2, 3, 4, 6, 8, 12}, middles[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f};
    vf value{};
    for (int k = 0; k < 7; ++k) value = magnitude > middles[k] * e ? splat(values[k + 1]) : value;
    return value * e;
}

inline float power_of_e8m0(int e) {  // 2^(e - 128)
    return float_of(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

// llama.cpp's exponent: floor(log2f(largest)) - 2, biased. log2f of a value just below a power of two may round up
// to it, so those few go through the logarithm itself. Clamped at 0 where it would wrap.
inline int exponent_mxfp4(float largest) {
    if (!(largest > 0.0f)) return 0;
    const uint32_t bits = float_bits(largest);
    int exponent = (int)(bits >> 23) - 127;
    if (bits < 0x00800000u || (bits & 0x7fffffu) > 0x7ff000u)
        exponent = (int)std::floor((float)std::log2((double)largest));
    const int e = exponent - 2 + 127;
    return e < 0 ? 0 : e;
}

template <bool WEIGHTED>
inline vf error_mxfp4(const Tile32& t, vf e) {
    vf error{};
    for (int i = 0; i < 32; ++i) {
        const vf size = absolute(t.x[i]), difference = value_mxfp4(size, e) - size;
        error += weigh<WEIGHTED>(t.importance[i], difference * difference);
    }
    return error;
}

template <bool WEIGHTED>
inline vi our_mxfp4(const Tile32& t, vi start) {
    vi best = start;
    vf least{};
    for (int k = 0; k < 3; ++k) {
        const int move = k == 0 ? 0 : k == 1 ? 1 : -1;
        const vi e = smaller(larger(start + move, splat(0)), splat(254));
        vf power;
        for (int lane = 0; lane < W; ++lane) power[lane] = power_of_e8m0(e[lane]);
        const vf error = error_mxfp4<WEIGHTED>(t, power);
        const vi better = k == 0 ? splat(-1) : error < least;
        least = choose(better, error, least);
        best = choose(better, e, best);
    }
    return best;
}

inline void encode_mxfp4(const Job& job, int64_t first, int count, uint8_t* out) {
    Tile32 t;
    load(job, first, count, t);
    vf top{}, power;
    for (int i = 0; i < 32; ++i) top = larger(absolute(t.x[i]), top);
    vi e;
    for (int k = 0; k < W; ++k) e[k] = exponent_mxfp4(top[k]);
    if (job.best) e = job.importance ? our_mxfp4<true>(t, e) : our_mxfp4<false>(t, e);
    for (int k = 0; k < W; ++k) power[k] = power_of_e8m0(e[k]);
    Packed<17> bytes;
    bytes.put(0, e);
    for (int i = 0; i < 32; ++i) {
        const vi index = index_mxfp4(absolute(t.x[i]), power);
        t.codes[i] = index | ((t.x[i] < 0.0f) & (index > 0) & 8);
    }
    for (int j = 0; j < 16; ++j) bytes.put(1 + j, t.codes[j] | (t.codes[j + 16] << 4));
    bytes.store(out, count);
}

// -------------------------------------------------------------------------------------------------------- ternary

// Our step for codes -1, 0, 1: least squares over thresholds that are shares of the largest magnitude.
template <bool WEIGHTED>
inline vf our_ternary(const vf* x, const vf* w, vf top) {
    vf best_scale = top, best_gain{};
    for (int k = 0; k < 10; ++k) {
        const vf inverse = 1.0f / (k < 8 ? top * (1.0f - 0.1f * (float)k) : best_scale);
        const Sums s = code_sums<256, WEIGHTED, false>(x, w, inverse, vf{}, -1.0f, 1.0f);
        const vf scale = s.lx / s.l2, gain = scale * s.lx;
        const vi better = (s.l2 > 0.0f) & (gain > best_gain);
        best_scale = choose(better, scale, best_scale);
        best_gain = choose(better, gain, best_gain);
    }
    return best_scale;
}

inline void ternary_codes(const Job& job, int64_t first, int count, vi& d, vi* codes) {
    vf x[256], top{}, step;
    load_blocks<256>(job.x, first, count, x);
    for (int i = 0; i < 256; ++i) top = larger(absolute(x[i]), top);
    step = top;
    if (job.best && job.importance) {
        vf w[256];
        load_importance<256>(job.importance, first, count, job.blocks_per_row, w);
        step = our_ternary<true>(x, w, top);
    } else if (job.best) {
        step = our_ternary<false>(x, x, top);  // no weights: never looked at
    }
    d = half_from_float(step);
    const vf inverse = choose(step != 0.0f, 1.0f / step, vf{});
    for (int i = 0; i < 256; ++i) {
        vf v = x[i] * inverse;
        v = absolute(v) < 0x1p126f ? v : vf{};
        const vi one = absolute(v) >= 0.5f;  // half away from zero
        codes[i] = 1 + (one & (v < 0.0f ? splat(-1) : splat(1)));
    }
}

inline vi five_trits(const vi* codes, int stride, int count) {
    vi q{};
    for (int n = 0; n < 5; ++n) q = q * 3 + (n < count ? codes[n * stride] : vi{});
    return (q * 256 + 242) / 243;
}

inline void encode_tq1_0(const Job& job, int64_t first, int count, uint8_t* out) {
    vi codes[256], d;
    ternary_codes(job, first, count, d, codes);
    Packed<54> bytes;
    for (int m = 0; m < 32; ++m) bytes.put(m, five_trits(codes + m, 32, 5));
    for (int m = 0; m < 16; ++m) bytes.put(32 + m, five_trits(codes + 160 + m, 16, 5));
    for (int m = 0; m < 4; ++m) bytes.put(48 + m, five_trits(codes + 240 + m, 4, 4));
    bytes.put(52, d);
    bytes.store(out, count);
}

inline void encode_tq2_0(const Job& job, int64_t first, int count, uint8_t* out) {
    vi codes[256], d;
    ternary_codes(job, first, count, d, codes);
    Packed<66> bytes;
    for (int half = 0; half < 2; ++half)
        for (int m = 0; m < 32; ++m) {
            const vi* q = codes + 128 * half + m;
            bytes.put(32 * half + m, q[0] | (q[32] << 2) | (q[64] << 4) | (q[96] << 6));
        }
    bytes.put(64, d);
    bytes.store(out, count);
}

}  // namespace tersor::TERSOR_ISA
