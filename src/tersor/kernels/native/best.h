// "best": our own searches, the default. They minimise the squared error weighted by importance (plain squared error
// without importance) of what the decoder will really see: scales already rounded as they are stored.
//
// For a super-block with an affine grid, x ≈ d·sc[g]·code - dmin·mn[g]:
//   1. start    each group: try several inverse scales anchored at its minimum, solve scale and minimum by least squares
//               for the codes of each trial, keep the largest gain; then refit twice from the resulting codes
//   2. step     d and dmin from the largest scale and minimum, stored precision; sc and mn by rounding
//   3. polish   each group: neighbours of (sc, mn) on the integer lattice, codes reassigned, true error compared
//   4. refit    d and dmin by least squares over the whole super-block given codes, sc, mn; rounded; then 3 again
// The state with the smallest true error of the whole super-block wins. Symmetric grids do the same with one scale,
// trying both signs. Everything is lane-wise and in a fixed order: the same bytes on every instruction set.
#pragma once

#include "halves.h"

namespace tersor::TERSOR_ISA {

// Weighted product that costs nothing when every weight is 1.
template <bool WEIGHTED>
inline vf weigh(vf w, vf v) {
    if constexpr (WEIGHTED) return w * v;
    return v;
}

struct Sums {
    vf l, l2, lx;  // Σ w·code, Σ w·code², Σ w·code·x
};

template <int N, bool WEIGHTED>
inline vf total_weight(const vf* w) {
    if constexpr (!WEIGHTED) return splat((float)N);
    vf sum = w[0];
    for (int i = 1; i < N; ++i) sum += w[i];
    return sum;
}

template <int N, bool WEIGHTED>
inline vf total_value(const vf* x, const vf* w) {
    vf sum = weigh<WEIGHTED>(w[0], x[0]);
    for (int i = 1; i < N; ++i) sum += weigh<WEIGHTED>(w[i], x[i]);
    return sum;
}

// Sums for the codes round(inverse · (x - anchor)) in [low, high].
template <int N, bool WEIGHTED, bool SHIFTED>
inline Sums code_sums(const vf* x, const vf* w, vf inverse, vf anchor, float low, float high) {
    Sums s{};
    for (int i = 0; i < N; ++i) {
        const vf l = round_clamped(SHIFTED ? inverse * (x[i] - anchor) : inverse * x[i], low, high);
        const vf wl = weigh<WEIGHTED>(w[i], l);
        if constexpr (SHIFTED) s.l += wl;
        s.l2 += wl * l;
        s.lx += wl * x[i];
    }
    return s;
}

// ---------------------------------------------------------------------------------------------- affine groups

struct Trials {
    float from, step;  // inverse scales tried: (levels + from + step·k) / range
    int count, refits;
};

struct Affine {
    vf scale, minimum;  // x ≈ scale · code + minimum, minimum ≤ 0 unless FREE
};

constexpr float ALIKE = 1e-5f;  // of Σ w · Σ w·code²: codes that vary less than that, as they are weighed, fix no minimum

// Least-squares scale and minimum for given codes; where they are all alike, the scale for the minimum `anchor` that they
// were counted from. `gain` is how much of Σ w·x² they explain.
template <bool FREE>
inline vi solve_affine(const Sums& s, vf sum_w, vf sum_x, vf anchor, Affine& fit, vf& gain) {
    const vf determinant = sum_w * s.l2 - s.l * s.l;
    fit.scale = (sum_w * s.lx - sum_x * s.l) / determinant;
    fit.minimum = (s.l2 * sum_x - s.l * s.lx) / determinant;
    if constexpr (!FREE) {
        const vi above = fit.minimum > 0.0f;
        fit.scale = choose(above, s.lx / s.l2, fit.scale);
        fit.minimum = choose(above, vf{}, fit.minimum);
    }
    gain = fit.scale * s.lx + fit.minimum * sum_x;
    const vi varied = determinant > ALIKE * (sum_w * s.l2);
    const vf rest = s.lx - anchor * s.l, anchored = rest / s.l2;
    fit.scale = choose(varied, fit.scale, anchored);
    fit.minimum = choose(varied, fit.minimum, anchor);
    gain = choose(varied, gain, anchored * rest + anchor * (2.0f * sum_x - anchor * sum_w));
    return (s.l2 > 0.0f) & (fit.scale > 0.0f);
}

template <int N, int LEVELS, bool WEIGHTED, bool FREE>
inline Affine start_affine(const vf* x, const vf* w, vf sum_w, vf sum_x, const Trials& trials) {
    vf low = x[0], high = x[0];
    for (int i = 1; i < N; ++i) {
        low = smaller(x[i], low);
        high = larger(x[i], high);
    }
    const vf anchor = FREE ? low : choose(low > 0.0f, vf{}, low);
    const vf range = high - anchor;
    Affine best{vf{}, anchor}, fit;
    vf best_gain = anchor * (2.0f * sum_x - anchor * sum_w), gain;  // every value stored as the minimum
    for (int k = 0; k < trials.count; ++k) {
        const vf inverse = ((float)LEVELS + trials.from + trials.step * (float)k) / range;
        const Sums s = code_sums<N, WEIGHTED, true>(x, w, inverse, anchor, 0.0f, (float)LEVELS);
        const vi better = solve_affine<FREE>(s, sum_w, sum_x, anchor, fit, gain) & (gain > best_gain);
        best = {choose(better, fit.scale, best.scale), choose(better, fit.minimum, best.minimum)};
        best_gain = choose(better, gain, best_gain);
    }
    for (int k = 0; k < trials.refits; ++k) {
        const Sums s = code_sums<N, WEIGHTED, true>(x, w, 1.0f / best.scale, best.minimum, 0.0f, (float)LEVELS);
        const vi better = solve_affine<FREE>(s, sum_w, sum_x, best.minimum, fit, gain) & (gain > best_gain);
        best = {choose(better, fit.scale, best.scale), choose(better, fit.minimum, best.minimum)};
        best_gain = choose(better, gain, best_gain);
    }
    return best;
}

// Σ w·(scale·code + minimum - x)² with the nearest codes.
template <int N, int LEVELS, bool WEIGHTED>
inline vf affine_error(const vf* x, const vf* w, vf scale, vf minimum) {
    const vf inverse = choose(scale != 0.0f, 1.0f / scale, vf{});
    vf error{};
    for (int i = 0; i < N; ++i) {
        const vf v = x[i] - minimum;
        const vf difference = scale * round_clamped(inverse * v, 0.0f, (float)LEVELS) - v;
        error += weigh<WEIGHTED>(w[i], difference * difference);
    }
    return error;
}

template <int G>
struct AffineGrid {
    vf d, dmin, sc[G], mn[G], error;
};

// Step 3: the best of seven neighbours (sc, mn) for every group.
template <int N, int G, int LEVELS, int SUB, bool WEIGHTED>
inline void polish_affine(const vf* x, const vf* w, AffineGrid<G>& grid) {
    static constexpr float moves[7][2] = {{0, 0}, {1, 1}, {-1, -1}, {0, 1}, {0, -1}, {1, 0}, {-1, 0}};
    grid.error = vf{};
    for (int g = 0; g < G; ++g) {
        const vf sc0 = grid.sc[g], mn0 = grid.mn[g];
        vf best{};
        for (int k = 0; k < 7; ++k) {
            const vf sc = smaller(larger(sc0 + moves[k][0], vf{}), splat((float)SUB));
            const vf mn = smaller(larger(mn0 + moves[k][1], vf{}), splat((float)SUB));
            const vf error = affine_error<N, LEVELS, WEIGHTED>(x + g * N, w + g * N, grid.d * sc, -(grid.dmin * mn));
            const vi better = k == 0 ? splat(-1) : error < best;
            best = choose(better, error, best);
            grid.sc[g] = choose(better, sc, grid.sc[g]);
            grid.mn[g] = choose(better, mn, grid.mn[g]);
        }
        grid.error += best;
    }
}

// Step 4: d and dmin by least squares over the super-block; unchanged where the system is singular.
template <int N, int G, int LEVELS, bool WEIGHTED>
inline void refit_affine(const vf* x, const vf* w, const vf* sum_w, const vf* sum_x, AffineGrid<G>& grid) {
    vf aa{}, ab{}, bb{}, ax{}, bx{};
    for (int g = 0; g < G; ++g) {
        const vf scale = grid.d * grid.sc[g], minimum = -(grid.dmin * grid.mn[g]);
        const vf inverse = choose(scale != 0.0f, 1.0f / scale, vf{});
        const Sums s = code_sums<N, WEIGHTED, true>(x + g * N, w + g * N, inverse, minimum, 0.0f, (float)LEVELS);
        aa += grid.sc[g] * grid.sc[g] * s.l2;
        ab += grid.sc[g] * grid.mn[g] * s.l;
        bb += grid.mn[g] * grid.mn[g] * sum_w[g];
        ax += grid.sc[g] * s.lx;
        bx += grid.mn[g] * sum_x[g];
    }
    const vf determinant = aa * bb - ab * ab;
    const vi regular = determinant > 1e-5f * aa * bb;
    const vf d = choose(regular, (bb * ax - ab * bx) / determinant, (ax + grid.dmin * ab) / aa);
    const vf dmin = choose(regular, (ab * ax - aa * bx) / determinant, grid.dmin);
    const vi valid = (aa > 0.0f) & (d > 0.0f) & (dmin >= 0.0f);
    grid.d = choose(valid, float_from_half(half_from_float(d)), grid.d);
    grid.dmin = choose(valid, float_from_half(half_from_float(dmin)), grid.dmin);
}

template <int G>
inline void keep_better(const AffineGrid<G>& trial, AffineGrid<G>& best) {
    const vi better = trial.error < best.error;
    best.d = choose(better, trial.d, best.d);
    best.dmin = choose(better, trial.dmin, best.dmin);
    best.error = choose(better, trial.error, best.error);
    for (int g = 0; g < G; ++g) {
        best.sc[g] = choose(better, trial.sc[g], best.sc[g]);
        best.mn[g] = choose(better, trial.mn[g], best.mn[g]);
    }
}

template <int N, int G, int LEVELS, int SUB, bool WEIGHTED>
inline AffineGrid<G> best_affine(const vf* x, const vf* w, const Trials& trials, int rounds) {
    vf sum_w[G], sum_x[G], scales[G], minima[G], high{}, deep{};
    for (int g = 0; g < G; ++g) {
        sum_w[g] = total_weight<N, WEIGHTED>(w + g * N);
        sum_x[g] = total_value<N, WEIGHTED>(x + g * N, w + g * N);
        const Affine fit =
            start_affine<N, LEVELS, WEIGHTED, false>(x + g * N, w + g * N, sum_w[g], sum_x[g], trials);
        scales[g] = fit.scale;
        minima[g] = -fit.minimum;
        high = larger(scales[g], high);
        deep = larger(minima[g], deep);
    }
    AffineGrid<G> grid;
    grid.d = float_from_half(half_from_float(high / (float)SUB));
    grid.dmin = float_from_half(half_from_float(deep / (float)SUB));
    const vf inverse = choose(grid.d > 0.0f, 1.0f / grid.d, vf{});
    const vf inverse_min = choose(grid.dmin > 0.0f, 1.0f / grid.dmin, vf{});
    for (int g = 0; g < G; ++g) {
        grid.sc[g] = round_clamped(scales[g] * inverse, 0.0f, (float)SUB);
        grid.mn[g] = round_clamped(minima[g] * inverse_min, 0.0f, (float)SUB);
    }
    polish_affine<N, G, LEVELS, SUB, WEIGHTED>(x, w, grid);
    AffineGrid<G> best = grid;
    for (int r = 0; r < rounds; ++r) {
        refit_affine<N, G, LEVELS, WEIGHTED>(x, w, sum_w, sum_x, grid);
        polish_affine<N, G, LEVELS, SUB, WEIGHTED>(x, w, grid);
        keep_better(grid, best);
    }
    return best;
}

// ------------------------------------------------------------------------------------------- symmetric groups

struct SignedTrials {
    float negative, positive, step;  // inverse scales tried: -(negative + step·k)/peak and (positive + step·k)/peak
    int count, refits;
};

// Least-squares scale of one group, codes in [-HALF, HALF - 1]; 0 for a group of zeros.
template <int N, int HALF, bool WEIGHTED>
inline vf start_symmetric(const vf* x, const vf* w, const SignedTrials& trials) {
    vf peak{}, magnitude{};
    for (int i = 0; i < N; ++i) {
        const vf size = absolute(x[i]);
        const vi more = size > magnitude;
        magnitude = choose(more, size, magnitude);
        peak = choose(more, x[i], peak);
    }
    vf best_scale{}, best_gain{};
    for (int k = 0; k < 2 * trials.count + trials.refits; ++k) {
        const int step = k < trials.count ? k : k - trials.count;
        const float top = k < trials.count ? -(trials.negative + trials.step * (float)step)
                                           : trials.positive + trials.step * (float)step;
        const vf inverse = k < 2 * trials.count ? top / peak : 1.0f / best_scale;
        const Sums s = code_sums<N, WEIGHTED, false>(x, w, inverse, vf{}, (float)-HALF, (float)(HALF - 1));
        const vf scale = s.lx / s.l2, gain = scale * s.lx;
        const vi better = (s.l2 > 0.0f) & (gain > best_gain);
        best_scale = choose(better, scale, best_scale);
        best_gain = choose(better, gain, best_gain);
    }
    return best_scale;
}

template <int N, int HALF, bool WEIGHTED>
inline vf symmetric_error(const vf* x, const vf* w, vf scale) {
    const vf inverse = choose(scale != 0.0f, 1.0f / scale, vf{});
    vf error{};
    for (int i = 0; i < N; ++i) {
        const vf l = round_clamped(inverse * x[i], (float)-HALF, (float)(HALF - 1));
        const vf difference = scale * l - x[i];
        error += weigh<WEIGHTED>(w[i], difference * difference);
    }
    return error;
}

template <int G>
struct SymmetricGrid {
    vf d, sc[G], error;
};

template <int N, int G, int HALF, int SUB, bool WEIGHTED>
inline void polish_symmetric(const vf* x, const vf* w, SymmetricGrid<G>& grid) {
    grid.error = vf{};
    for (int g = 0; g < G; ++g) {
        const vf sc0 = grid.sc[g];
        vf best{};
        for (int k = 0; k < 3; ++k) {
            const float move = k == 0 ? 0.0f : k == 1 ? 1.0f : -1.0f;
            const vf sc = smaller(larger(sc0 + move, splat((float)-SUB)), splat((float)(SUB - 1)));
            const vf error = symmetric_error<N, HALF, WEIGHTED>(x + g * N, w + g * N, grid.d * sc);
            const vi better = k == 0 ? splat(-1) : error < best;
            best = choose(better, error, best);
            grid.sc[g] = choose(better, sc, grid.sc[g]);
        }
        grid.error += best;
    }
}

template <int N, int G, int HALF, bool WEIGHTED>
inline void refit_symmetric(const vf* x, const vf* w, SymmetricGrid<G>& grid) {
    vf aa{}, ax{};
    for (int g = 0; g < G; ++g) {
        const vf scale = grid.d * grid.sc[g];
        const vf inverse = choose(scale != 0.0f, 1.0f / scale, vf{});
        const Sums s = code_sums<N, WEIGHTED, false>(x + g * N, w + g * N, inverse, vf{}, (float)-HALF,
                                                     (float)(HALF - 1));
        aa += grid.sc[g] * grid.sc[g] * s.l2;
        ax += grid.sc[g] * s.lx;
    }
    grid.d = choose(aa > 0.0f, float_from_half(half_from_float(ax / aa)), grid.d);
}

template <int G>
inline void keep_better(const SymmetricGrid<G>& trial, SymmetricGrid<G>& best) {
    const vi better = trial.error < best.error;
    best.d = choose(better, trial.d, best.d);
    best.error = choose(better, trial.error, best.error);
    for (int g = 0; g < G; ++g) best.sc[g] = choose(better, trial.sc[g], best.sc[g]);
}

// Sub-scales and step from the scales of the groups: the one of largest magnitude becomes -SUB.
template <int G, int SUB>
inline SymmetricGrid<G> place_scales(const vf* scales) {
    vf peak{}, magnitude{};
    for (int g = 0; g < G; ++g) {
        const vf size = absolute(scales[g]);
        const vi more = size > magnitude;
        magnitude = choose(more, size, magnitude);
        peak = choose(more, scales[g], peak);
    }
    SymmetricGrid<G> grid;
    grid.d = float_from_half(half_from_float(peak / (float)-SUB));
    const vf inverse = choose(grid.d != 0.0f, 1.0f / grid.d, vf{});
    for (int g = 0; g < G; ++g)
        grid.sc[g] = round_clamped(scales[g] * inverse, (float)-SUB, (float)(SUB - 1));
    return grid;
}

template <int N, int G, int HALF, int SUB, bool WEIGHTED>
inline SymmetricGrid<G> best_symmetric(const vf* x, const vf* w, const SignedTrials& trials, int rounds) {
    vf scales[G];
    for (int g = 0; g < G; ++g) scales[g] = start_symmetric<N, HALF, WEIGHTED>(x + g * N, w + g * N, trials);
    SymmetricGrid<G> grid = place_scales<G, SUB>(scales);
    polish_symmetric<N, G, HALF, SUB, WEIGHTED>(x, w, grid);
    SymmetricGrid<G> best = grid;
    for (int r = 0; r < rounds; ++r) {
        refit_symmetric<N, G, HALF, WEIGHTED>(x, w, grid);
        polish_symmetric<N, G, HALF, SUB, WEIGHTED>(x, w, grid);
        keep_better(grid, best);
    }
    return best;
}

}  // namespace tersor::TERSOR_ISA
