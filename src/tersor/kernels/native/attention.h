// One new token attends to those before it: softmax(query · keyᵀ · scaling + mask) · value, all sums in float32.
//
// Keys and values are read once, as they are stored. The tokens of a head of keys are cut into chunks, each a task of
// its own that ends with its largest score, the sum of its weights and the values weighed by them; chunks are put
// together in order, so that threads change no bit. Source of that split: Dao et al. 2023, "Flash-Decoding".
#pragma once

#include <algorithm>

#include "job.h"
#include "lanes.h"
#include "logits.h"
#include "reals.h"

namespace tersor::TERSOR_ISA {

constexpr int TOGETHER = 4;  // queries that share a head of keys and are taken through it at once
constexpr int ACROSS = 4;     // vectors of a value that are summed at once

inline vf multiply_add(vf a, vf b, vf c) {
#if defined(__AVX512F__) || defined(__AVX2__)
    return fused(a, b, c);
#else
    return a * b + c;
#endif
}

// Numbers from `index` of `data` on, `count` at most; behind them zeros.
template <Real TYPE>
inline vf load_up_to(const void* data, int64_t index, int64_t count) {
    if (count >= W) return load_reals(data, TYPE, index);
    vf v = {};
    for (int64_t k = 0; k < count; ++k) v[k] = load_real(data, TYPE, index + k);
    return v;
}

// The sums of 2·D vectors: when D has come down to 1, lane k is that of vector k.
template <int D>
inline vf sums_of(vf* rows) {
    vi first, second;
    for (int k = 0; k < W; ++k) {
        first[k] = k + (k & D ? W : 0);
        second[k] = (k ^ D) + (k & D ? W : 0);
    }
    for (int i = 0; i < D; ++i) rows[i] = __builtin_shuffle(rows[i], rows[i + D], first) + __builtin_shuffle(rows[i], rows[i + D], second);
    if constexpr (D > 1) return sums_of<D / 2>(rows);
    return rows[0];
}

// Scores of `count` ≤ W tokens from place `key` on for N queries [N, padded width]: one vector a query.
template <Real TYPE, int N>
inline void scores(const AttentionJob& job, int64_t key, int64_t count, const float* queries, int64_t padded, vf* out) {
    vf rows[N][W];
    const int64_t whole = job.width / W * W;
    for (int t = 0; t < W; ++t) {
        vf sums[N] = {};
        const int64_t place = key + (t < count ? t : count - 1) * job.key_token;
        const auto add = [&](int64_t c, vf k) {
            for (int n = 0; n < N; ++n) sums[n] = multiply_add(load(queries + n * padded + c), k, sums[n]);
        };
        for (int64_t c = 0; c < whole; c += W) add(c, load_reals(job.key, TYPE, place + c));
        if (whole < job.width) add(whole, load_up_to<TYPE>(job.key, place + whole, job.width - whole));
        for (int n = 0; n < N; ++n) rows[n][t] = sums[n];
    }
    for (int n = 0; n < N; ++n) out[n] = sums_of<W / 2>(rows[n]);
}

// V vectors of the values of `count` tokens weighed: weights [N, CHUNK] → sums of N queries, each partial_size apart.
template <Real TYPE, int N, int V>
inline void weigh_some(const AttentionJob& job, int64_t value, int64_t count, int64_t left, const float* weights, float* sums) {
    vf total[N][V] = {};
    for (int64_t t = 0; t < count; ++t, value += job.value_token)
        for (int j = 0; j < V; ++j) {
            vf v;
            if constexpr (V > 1) v = load_reals(job.value, TYPE, value + j * W);
            else v = load_up_to<TYPE>(job.value, value, left);
            for (int n = 0; n < N; ++n) total[n][j] = multiply_add(splat(weights[n * CHUNK + t]), v, total[n][j]);
        }
    for (int n = 0; n < N; ++n)
        for (int j = 0; j < V; ++j)
            for (int k = 0; k < W && j * W + k < left; ++k) sums[n * job.partial_size + j * W + k] = total[n][j][k];
}

template <Real TYPE, int N>
inline void weigh(const AttentionJob& job, int64_t value, int64_t count, const float* weights, float* sums) {
    for (int64_t first = 0; first < job.value_width;) {
        const int64_t left = job.value_width - first;
        if (left >= ACROSS * W) weigh_some<TYPE, N, ACROSS>(job, value + first, count, left, weights, sums + first), first += ACROSS * W;
        else weigh_some<TYPE, N, 1>(job, value + first, count, left, weights, sums + first), first += W;
    }
}

// e^v for v ≤ 0; NaN, which the bounds of `exponential` would hide, stays.
inline vf share_of(vf v) { return choose(v == v, exponential(v).value, v); }

inline float largest_of(vf v) {
    float largest = v[0];
    for (int k = 1; k < W; ++k) largest = v[k] > largest ? v[k] : largest;
    return largest;
}

// Queries [head, head + N) of a sequence over tokens [first, first + count): their partial results.
template <Real TYPE, int N>
inline void attend_some(const AttentionJob& job, int64_t batch, int64_t head, int64_t first, int64_t count, float* partial) {
    const int64_t group = job.heads / job.key_heads, mine = head / group, padded = (job.width + W - 1) / W * W;
    float queries[N * MOST_WIDTH], weights[N * CHUNK];
    for (int n = 0; n < N; ++n)
        for (int64_t c = 0; c < padded; c += W) {
            const int64_t place = (batch * job.heads + head + n) * job.width + c;
            store(queries + n * padded + c, load_up_to<TYPE>(job.query, place, job.width - c) * job.scaling);
        }
    vf largest[N];
    for (int n = 0; n < N; ++n) largest[n] = splat(NONE);
    const int64_t key = batch * job.key_batch + mine * job.key_head + first * job.key_token;
    for (int64_t t = 0; t < count; t += W) {
        vf found[N];
        scores<TYPE, N>(job, key + t * job.key_token, std::min<int64_t>(W, count - t), queries, padded, found);
        for (int n = 0; n < N; ++n) {
            if (job.mask) {
                const int64_t at = batch * job.mask_batch + (head + n) * job.mask_head + first + t;
                found[n] += load_up_to<Real::f32>(job.mask, at, count - t);
            }
            for (int64_t k = count - t; k < W; ++k) found[n][k] = NONE;
            largest[n] = larger(largest[n], found[n]);
            store(weights + n * CHUNK + t, found[n]);
        }
    }
    for (int n = 0; n < N; ++n) {
        const float top = largest_of(largest[n]), from = top == NONE ? 0.0f : top;  // none is seen: all weights are 0
        vf sum = {};
        for (int64_t t = 0; t < count; t += W) {
            const vf weight = share_of(load(weights + n * CHUNK + t) - from);
            store(weights + n * CHUNK + t, weight);
            sum += weight;
        }
        float total = 0.0f;
        for (int k = 0; k < W; ++k) total += sum[k];
        partial[n * job.partial_size] = top;
        partial[n * job.partial_size + 1] = total;
    }
    const int64_t value = batch * job.value_batch + mine * job.value_head + first * job.value_token;
    weigh<TYPE, N>(job, value, count, weights, partial + 2);
}

// Task `unit` of batch · key heads · chunks.
template <Real TYPE>
inline void attend_typed(const AttentionJob& job, int64_t unit) {
    const int64_t chunks = (job.tokens + CHUNK - 1) / CHUNK, group = job.heads / job.key_heads;
    const int64_t chunk = unit % chunks, mine = unit / chunks % job.key_heads, batch = unit / chunks / job.key_heads;
    const int64_t first = chunk * CHUNK, count = std::min<int64_t>(CHUNK, job.tokens - first);
    for (int64_t n = 0; n < group;) {
        const int64_t head = mine * group + n;
        float* partial = job.partial + ((chunk * job.batch + batch) * job.heads + head) * job.partial_size;
        if (group - n >= TOGETHER) attend_some<TYPE, TOGETHER>(job, batch, head, first, count, partial), n += TOGETHER;
        else if (group - n >= 2) attend_some<TYPE, 2>(job, batch, head, first, count, partial), n += 2;
        else attend_some<TYPE, 1>(job, batch, head, first, count, partial), n += 1;
    }
}

inline void attend_chunk(const AttentionJob& job, int64_t unit) {
    if (job.type == Real::f32) attend_typed<Real::f32>(job, unit);
    else if (job.type == Real::f16) attend_typed<Real::f16>(job, unit);
    else attend_typed<Real::bf16>(job, unit);
}

// Puts the chunks of query `row` of batch · heads together.
inline void attend_merge(const AttentionJob& job, int64_t row) {
    const int64_t chunks = (job.tokens + CHUNK - 1) / CHUNK, apart = job.batch * job.heads * job.partial_size;
    const float* partial = job.partial + row * job.partial_size;
    float top = NONE, total = 0.0f;
    for (int64_t c = 0; c < chunks; ++c) top = std::max(top, partial[c * apart]);
    float shares[W];
    for (int64_t first = 0; first < job.value_width; first += W) {
        vf sum = {};
        total = 0.0f;
        for (int64_t c = 0; c < chunks; ++c) {
            const float* part = partial + c * apart;
            const float share = part[0] == NONE ? 0.0f : share_of(splat(part[0] - top))[0];
            total += share * part[1];
            sum += load_up_to<Real::f32>(part + 2, first, job.value_width - first) * share;
        }
        store(shares, sum / (total == 0.0f ? 1.0f : total));
        for (int64_t k = 0; k < W && first + k < job.value_width; ++k)
            store_real(job.y, job.type, row * job.value_width + first + k, shares[k]);
    }
}

AttentionTable attention() { return {attend_chunk, attend_merge}; }

}  // namespace tersor::TERSOR_ISA
