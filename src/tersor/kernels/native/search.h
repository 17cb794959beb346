// The searches of llama.cpp's encoders, lane by lane in its order of operations: the bytes must be equal.
// Facts: ggml-quants.c, functions make_qkx2/qkx3, make_qx, make_q3, make_qp. Definition: kernels/reference/search.py.
#pragma once

#include "halves.h"

namespace tersor::TERSOR_ISA {

constexpr float EMPTY = 1e-15f;  // groups whose largest magnitude is below are stored as zeros

struct AffineSearch {
    float from, step;  // first candidate and distance, in codes, relative to the largest code
    int steps;
    bool absolute_error;
};

// One group of an affine format per lane: x ≈ scale · code - minimum.
struct AffineFit {
    vf scale, minimum;
    vf inverse, anchor;  // the codes that the search ended with are round(inverse · (x - anchor)), 0 in empty groups
    vi empty;
};

template <bool EXACT>
inline vf affine_code(vf x, vf inverse, vf anchor, int levels) {
    const vf v = inverse * (x - anchor);
    return EXACT ? nearest_clamped(v, 0, levels) : round_clamped(v, 0.0f, (float)levels);
}

template <int N, int LEVELS, bool EXACT>
inline void affine_trial(const vf* x, const vf* w, vf inverse, vf sum_w, vf sum_x, bool absolute_error, AffineFit& fit,
                         vf& best, vf& anchor) {
    vf codes[N], sum_l{}, sum_l2{}, sum_xl{};
    for (int i = 0; i < N; ++i) {
        const vf l = affine_code<EXACT>(x[i], inverse, anchor, LEVELS), wl = w[i] * l;
        codes[i] = l;
        sum_l += wl;
        sum_l2 += wl * l;
        sum_xl += wl * x[i];
    }
    const vf determinant = sum_w * sum_l2 - sum_l * sum_l;
    vf scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    vf minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    const vi above = minimum > 0.0f;
    scale = choose(above, sum_xl / sum_l2, scale);
    minimum = choose(above, vf{}, minimum);
    vf error{};
    if (absolute_error)
        for (int i = 0; i < N; ++i) error += w[i] * absolute(scale * codes[i] + minimum - x[i]);
    else
        for (int i = 0; i < N; ++i) {
            const vf difference = scale * codes[i] + minimum - x[i];
            error += w[i] * (difference * difference);
        }
    const vi better = (determinant > 0.0f) & (error < best);
    best = choose(better, error, best);
    fit.scale = choose(better, scale, fit.scale);
    fit.inverse = choose(better, inverse, fit.inverse);
    fit.anchor = choose(better, anchor, fit.anchor);
    anchor = choose(better, minimum, anchor);
}

template <int N, int LEVELS>
inline AffineFit search_affine(const vf* x, const vf* w, const AffineSearch& search) {
    AffineFit fit;
    vf low = x[0], high = x[0], sum_w = w[0], sum_x = sum_w * x[0];
    for (int i = 1; i < N; ++i) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    const vf lowest = low;
    vf anchor = choose(low > 0.0f, vf{}, low);
    fit.empty = high <= anchor;
    fit.inverse = (float)LEVELS / (high - anchor);
    fit.anchor = anchor;
    fit.scale = 1.0f / fit.inverse;
    vf best{};
    for (int i = 0; i < N; ++i) {
        const vf l = affine_code<true>(x[i], fit.inverse, anchor, LEVELS);
        const vf difference = fit.scale * l + anchor - x[i];
        best += w[i] * (search.absolute_error ? absolute(difference) : difference * difference);
    }
    for (int s = 0; s <= search.steps; ++s) {
        const vf inverse = (search.from + search.step * (float)s + (float)LEVELS) / (high - anchor);
        // x ↦ inverse · (x - anchor) is monotone: if its ends are in range, so is the rest, and rounding may be quick.
        const vf top = absolute(inverse * (high - anchor)), bottom = absolute(inverse * (lowest - anchor));
        const vi ordinary = (top < 0x1p21f) & (bottom < 0x1p21f);
        if (any(~(ordinary | fit.empty)))
            affine_trial<N, LEVELS, true>(x, w, inverse, sum_w, sum_x, search.absolute_error, fit, best, anchor);
        else
            affine_trial<N, LEVELS, false>(x, w, inverse, sum_w, sum_x, search.absolute_error, fit, best, anchor);
    }
    const vf first = choose(lowest > 0.0f, vf{}, lowest);
    fit.minimum = -choose(fit.empty, first, anchor);
    fit.scale = choose(fit.empty, vf{}, fit.scale);
    return fit;
}

inline vf code_of(const AffineFit& fit, vf x, int levels) {
    return choose(fit.empty, vf{}, affine_code<true>(x, fit.inverse, fit.anchor, levels));
}

// One group of a symmetric format per lane: x ≈ scale · code, code in [-HALF, HALF - 1].
struct SymmetricFit {
    vf scale;
    vf inverse;  // codes are round(inverse · x)
    vi empty;
};

// The first value with the largest magnitude, NaN passed over; 0 where all are zero.
template <int N>
inline void extreme(const vf* x, vf& value, vf& magnitude) {
    vf low{}, high{};
    for (int i = 0; i < N; ++i) {
        low = smaller(x[i], low);
        high = larger(x[i], high);
    }
    magnitude = larger(high, -low);
    value = choose(high > -low, high, low);
    if (!any((high == -low) & (high != 0.0f))) return;
    vf size{};  // some group has its largest magnitude with both signs: the order decides
    value = vf{};
    for (int i = 0; i < N; ++i) {
        const vi more = absolute(x[i]) > size;
        size = choose(more, absolute(x[i]), size);
        value = choose(more, x[i], value);
    }
}

template <int N, int HALF>
inline SymmetricFit search_symmetric(const vf* x, const vf* w) {
    SymmetricFit fit;
    vf peak, magnitude, wx[N];
    extreme<N>(x, peak, magnitude);
    fit.empty = magnitude < EMPTY;
    for (int i = 0; i < N; ++i) wx[i] = w[i] * x[i];
    fit.inverse = (float)-HALF / peak;
    vf best{};
    fit.scale = vf{};
    for (int s = 0; s < 19; ++s) {
        const int shift = s == 0 ? 0 : s <= 9 ? s - 10 : s - 9;  // 0, then -9 … -1, 1 … 9
        const vf inverse = s == 0 ? fit.inverse : -((float)HALF + 0.1f * (float)shift) / peak;
        vf sum_lx{}, sum_l2{};
        for (int i = 0; i < N; ++i) {
            const vf l = round_clamped(inverse * x[i], (float)-HALF, (float)(HALF - 1));
            sum_lx += wx[i] * l;
            sum_l2 += w[i] * l * l;
        }
        if (s == 0) {
            fit.scale = choose(sum_l2 != 0.0f, sum_lx / sum_l2, vf{});
            best = fit.scale * sum_lx;
            continue;
        }
        const vi better = (sum_l2 > 0.0f) & (sum_lx * sum_lx > best * sum_l2);
        const vf scale = sum_lx / sum_l2;
        fit.scale = choose(better, scale, fit.scale);
        fit.inverse = choose(better, inverse, fit.inverse);
        best = choose(better, scale * sum_lx, best);
    }
    fit.scale = choose(fit.empty, vf{}, fit.scale);
    return fit;
}

// Codes -half … half - 1; empty groups have -half, which is stored as 0.
inline vf code_of(const SymmetricFit& fit, vf x, int half) {
    return choose(fit.empty, splat((float)-half), round_clamped(fit.inverse * x, (float)-half, (float)(half - 1)));
}

// Coordinate descent of llama.cpp's q3_k: one sweep over the codes of C groups per lane, given Σ w·code·x and
// Σ w·code² with w = x². `active` becomes the lanes where a code changed: one without change never changes again.
// Several independent groups at once hide the latency of the division.
template <int N, int HALF, int C>
inline void descend(const vf* x, vf* codes, vf* sum_lx, vf* sum_l2, vi* active) {
    vi changed[C] = {};
    vf square[C];
    for (int c = 0; c < C; ++c) square[c] = sum_lx[c] * sum_lx[c];
    for (int i = 0; i < N; ++i)
        for (int c = 0; c < C; ++c) {
            const vf value = x[c * N + i], w = value * value, wx = w * value, old = codes[c * N + i];
            vf lx = sum_lx[c] - wx * old, l2 = sum_l2[c] - w * old * old;
            const vf l = nearest_clamped(value * l2 / lx, -HALF, HALF - 1);
            const vi moved = active[c] & (lx > 0.0f) & (l != old);
            lx += wx * l;
            l2 += w * l * l;
            const vf squared = lx * lx;
            const vi better = moved & (l2 > 0.0f) & (squared * sum_l2[c] > square[c] * l2);
            square[c] = choose(better, squared, square[c]);
            codes[c * N + i] = choose(better, l, old);
            sum_lx[c] = choose(better, lx, sum_lx[c]);
            sum_l2[c] = choose(better, l2, sum_l2[c]);
            changed[c] |= better;
        }
    for (int c = 0; c < C; ++c) active[c] = changed[c];
}

// A group that is still moving after two sweeps, and where it came from.
struct Mover {
    int16_t group, lane;
};

// Sweeps 3 to 5 for the few groups that need them, gathered so that all lanes have work.
template <int N, int HALF, int C>
inline void descend_further(const vf* x, vf* codes, vf* sum_lx, vf* sum_l2, const Mover* movers, int count) {
    for (int first = 0; first < count; first += C * W) {
        vf some_x[C * N], some_codes[C * N], lx[C], l2[C];
        vi active[C];
        for (int k = 0; k < C * W; ++k) {
            const Mover m = movers[first + k < count ? first + k : count - 1];
            const int c = k / W, lane = k % W;
            for (int i = 0; i < N; ++i) {
                some_x[c * N + i][lane] = x[m.group * N + i][m.lane];
                some_codes[c * N + i][lane] = codes[m.group * N + i][m.lane];
            }
            lx[c][lane] = sum_lx[m.group][m.lane];
            l2[c][lane] = sum_l2[m.group][m.lane];
            active[c][lane] = first + k < count ? -1 : 0;
        }
        for (int sweep = 2; sweep < 5; ++sweep) descend<N, HALF, C>(some_x, some_codes, lx, l2, active);
        for (int k = 0; k < C * W && first + k < count; ++k) {
            const Mover m = movers[first + k];
            const int c = k / W, lane = k % W;
            for (int i = 0; i < N; ++i) codes[m.group * N + i][m.lane] = some_codes[c * N + i][lane];
            sum_lx[m.group][m.lane] = lx[c][lane];
            sum_l2[m.group][m.lane] = l2[c][lane];
        }
    }
}

// Codes (-HALF in empty groups) and scales of G groups per lane.
template <int N, int G, int HALF>
inline void descend_symmetric(const vf* x, vf* codes, vf* scales) {
    constexpr int C = 4;
    vf sum_lx[G], sum_l2[G];
    vi full[G], active[G];
    Mover movers[G * W];
    int count = 0;
    for (int g = 0; g < G; ++g) {
        const vf* values = x + g * N;
        vf peak, magnitude, lx{}, l2{};
        extreme<N>(values, peak, magnitude);
        full[g] = ~(magnitude < EMPTY);
        const bool is_full = !any(magnitude < EMPTY);
        const vf inverse = (float)-HALF / peak;
        for (int i = 0; i < N; ++i) {
            const vf l = round_clamped(inverse * values[i], (float)-HALF, (float)(HALF - 1));
            const vf w = values[i] * values[i];
            codes[g * N + i] = is_full ? l : choose(full[g], l, vf{});
            lx += w * values[i] * l;
            l2 += w * l * l;
        }
        sum_lx[g] = choose(full[g], lx, vf{});
        sum_l2[g] = choose(full[g], l2, vf{});
        active[g] = full[g];
    }
    for (int g = 0; g < G; g += C)
        for (int sweep = 0; sweep < 2; ++sweep)
            descend<N, HALF, C>(x + g * N, codes + g * N, sum_lx + g, sum_l2 + g, active + g);
    for (int g = 0; g < G; ++g)
        for (int k = 0; k < W; ++k)
            if (active[g][k]) movers[count++] = {(int16_t)g, (int16_t)k};
    descend_further<N, HALF, 2>(x, codes, sum_lx, sum_l2, movers, count);
    for (int g = 0; g < G; ++g) {
        scales[g] = choose((sum_l2[g] > 0.0f) & full[g], sum_lx[g] / sum_l2[g], vf{});
        if (any(~full[g]))
            for (int i = g * N; i < (g + 1) * N; ++i) codes[i] = choose(full[g], codes[i], splat((float)-HALF));
    }
}

// Codes 0 … levels and a common step for the non-negative sub-scales (or sub-minima) of a super-block.
template <int N>
inline vf search_nonnegative(const vf* x, const vf* w, int levels, vf* codes) {
    vf high{};
    for (int i = 0; i < N; ++i) high = high > x[i] ? high : x[i];
    const vi empty = high < EMPTY;
    vf inverse = (float)levels / high, best{};
    const vf plain = 1.0f / inverse;
    for (int i = 0; i < N; ++i) {
        const vf difference = x[i] - plain * to_float(nearest_int(inverse * x[i]) & 255);
        best += w[i] * difference * difference;
    }
    for (int s = -4; s <= 4; ++s) {
        if (s == 0) continue;
        const vf trial = (0.1f * (float)s + (float)levels) / high, scale = 1.0f / trial;
        vf error{};
        for (int i = 0; i < N; ++i) {
            const vf l = to_float(smaller(nearest_int(trial * x[i]), splat(levels)));
            const vf difference = x[i] - scale * l;
            error += w[i] * difference * difference;
        }
        const vi better = error < best;
        best = choose(better, error, best);
        inverse = choose(better, trial, inverse);
    }
    vf sum_lx{}, sum_l2{};
    for (int i = 0; i < N; ++i) {
        const vi l = smaller(nearest_int(inverse * x[i]), splat(levels));
        const vf lf = to_float(l);
        codes[i] = to_float(l & 255);
        sum_lx += w[i] * x[i] * lf;
        sum_l2 += w[i] * lf * lf;
    }
    for (int sweep = 0; sweep < 5; ++sweep) {
        vi changed{};
        for (int i = 0; i < N; ++i) {
            vf lx = sum_lx - w[i] * x[i] * codes[i], l2 = sum_l2 - w[i] * codes[i] * codes[i];
            const vi l = smaller(nearest_int(x[i] * l2 / lx), splat(levels));
            const vf lf = to_float(l);
            const vi moved = (lx > 0.0f) & (l2 > 0.0f) & (lf != codes[i]);
            lx += w[i] * x[i] * lf;
            l2 += w[i] * lf * lf;
            const vi better = moved & (lx * lx * sum_l2 > sum_lx * sum_lx * l2);
            codes[i] = choose(better, to_float(l & 255), codes[i]);
            sum_lx = choose(better, lx, sum_lx);
            sum_l2 = choose(better, l2, sum_l2);
            changed |= better & ~empty;
        }
        if (!any(changed)) break;
    }
    for (int i = 0; i < N; ++i) codes[i] = choose(empty, vf{}, codes[i]);
    return choose((sum_l2 > 0.0f) & ~empty, sum_lx / sum_l2, vf{});
}

}  // namespace tersor::TERSOR_ISA
