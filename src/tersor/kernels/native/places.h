// Places between codes: what they round to, and the slopes of that. reference/places.py is the definition.
//
// One pass through memory each way; training on a grid does both in every step. Values are the definition's, bit for
// bit. Sums over a group are taken lane by lane, so that they differ in their last bits from one width to another.
#pragma once

#include "job.h"
#include "lanes.h"

namespace tersor::TERSOR_ISA {

// `count` ≤ W numbers, zeros behind them.
inline vf load_first(const float* from, int64_t count) {
    if (count >= W) return load(from);
    vf v = {};
    std::memcpy(&v, from, (size_t)count * sizeof(float));
    return v;
}

inline void store_first(float* to, vf v, int64_t count) { std::memcpy(to, &v, (size_t)(count >= W ? W : count) * sizeof(float)); }

template <int D = W / 2>
inline float sum_of(vf v) {
    vi across;
    for (int k = 0; k < W; ++k) across[k] = k ^ D;
    v += __builtin_shuffle(v, across);
    if constexpr (D > 1) return sum_of<D / 2>(v);
    return v[0];
}

// The level that a place rounds to; bounds are whole numbers, so clamping first changes nothing. NaN stays.
inline vf level_of(vf place, vf low, vf high) {
    const vf above = choose(place < low, low, place);
    return round_even(choose(above > high, high, above));
}

inline void place_values(const PlaceJob& job, int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g) {
        const float* place = job.place + g * job.width;
        float* value = job.value + g * job.width;
        const vf step = splat(job.step[g]), offset = splat(job.offset[g]);
        const vf low = splat(-job.zero[g]), high = splat(job.highest - job.zero[g]);
        for (int64_t j = 0; j < job.width; j += W)
            store_first(value + j, level_of(load_first(place + j, job.width - j), low, high) * step - offset, job.width - j);
    }
}

inline void place_slopes(const PlaceJob& job, int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g) {
        const float *place = job.place + g * job.width, *gradient = job.gradient + g * job.width;
        float* for_place = job.for_place + g * job.width;
        const vf step = splat(job.step[g]), low = splat(-job.zero[g]), high = splat(job.highest - job.zero[g]);
        vf levels = {}, all = {};
        for (int64_t j = 0; j < job.width; j += W) {
            const vf at = load_first(place + j, job.width - j), slope = load_first(gradient + j, job.width - j);
            const vi inside = (at > low - 0.5f) & (at < high + 0.5f);
            store_first(for_place + j, choose(inside, slope * step, vf{}), job.width - j);
            levels += slope * level_of(at, low, high);
            all += slope;
        }
        job.for_step[g] = sum_of(levels);
        job.for_offset[g] = -sum_of(all);
    }
}

}  // namespace tersor::TERSOR_ISA
