// The same products by the processor's matrix unit (Intel AMX), where there are tokens enough to fill its tiles.
//
// A register tile holds 16 planes times 64 columns of activations, as many columns times the 16 rows of a block of weights, in the very order in which they are stored, or the 16 x 16 sums of both. Sums are integers, so their bits are
// those of linear.h; what is done with them is done in the same order. Planes are laid out as such tiles, the last one
// filled up with planes of zeros.
#pragma once

#include "linear.h"

namespace tersor::TERSOR_ISA {

constexpr int SIDE = 16, DEPTH = 64, PAIR = 2;  // of a register tile; tiles of planes, and blocks, multiplied together
constexpr int64_t FETCHED = 4096;               // bytes ahead in a stream of weights

inline bool fills_tiles(const LinearJob& job) { return planes(job) >= SIDE && job.group % DEPTH == 0; }
inline int64_t amx_planes(const LinearJob& job) { return fills_tiles(job) ? (planes(job) + SIDE - 1) / SIDE * SIDE : planes(job); }
inline int64_t amx_tiles(const LinearJob& job) { return fills_tiles(job) ? amx_planes(job) / SIDE : tiles(job); }

struct Squares {
    int8_t* first;
    static constexpr int spread = 1;
    int8_t* at(int64_t column, int plane) const { return first + column / DEPTH * DEPTH * SIDE + plane * DEPTH + column % DEPTH; }
};

inline void amx_round(const LinearJob& job, int64_t tile) {
    if (!fills_tiles(job)) return round_tile(job, tile);
    const Span span{tile * SIDE, SIDE};
    int8_t* codes = job.planes + span.first * job.columns;
    if (span.first + SIDE > planes(job)) {
        const int64_t groups = job.columns / job.group;
        std::memset(codes, 0, (size_t)(SIDE * job.columns));
        std::memset(sums_of(job, span), 0, (size_t)(SIDE * groups) * 4);
        std::memset(steps_of(job, span), 0, (size_t)(SIDE / job.digits * groups) * 4);
    }
    round_span(job, span, Squares{codes});
}

// Register tiles: 0 to 3 sums [tile of planes, block], 4 and 5 activations, 6 and 7 weights.
struct TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
    TileConfig() {
        for (int k = 0; k < 8; ++k) row_bytes[k] = 64, rows[k] = SIDE;
    }
};

// The weights of a register tile: 4-bit codes are taken apart into `room`.
template <int BITS>
inline const uint8_t* weights_of(const uint8_t* codes, uint8_t* room) {
    for (int line = 0; line < DEPTH * BITS * 2; line += 64) __builtin_prefetch(codes + FETCHED + line);
    if constexpr (BITS == 8) return codes;
    for (int k = 0; k < DEPTH / 8; ++k) {
        vi raw;
        std::memcpy(&raw, codes + k * 64, 64);
        const vi low = raw & 0x0f0f0f0f, high = (raw >> 4) & 0x0f0f0f0f;
        std::memcpy(room + k * 128, &low, 64);
        std::memcpy(room + k * 128 + 64, &high, 64);
    }
    asm volatile("" ::: "memory");  // compilers are not told that a register tile is loaded from memory
    return room;
}

// One group of T tiles of planes times B blocks, into sums [T, B, plane, row].
template <int BITS, int T, int B>
inline void square_group(const int8_t* const* x, const uint8_t* const* codes, int64_t group, int32_t* sums) {
    alignas(64) uint8_t room[2][B][DEPTH * SIDE];  // one is filled while the other is still read
    _tile_zero(0);
    if constexpr (B == 2) _tile_zero(1);
    if constexpr (T == 2) _tile_zero(2);
    if constexpr (T == 2 && B == 2) _tile_zero(3);
    for (int64_t k = 0, turn = 0; k < group; k += DEPTH, turn ^= 1) {
        _tile_loadd(6, weights_of<BITS>(codes[0] + k * BITS * 2, room[turn][0]), 64);
        if constexpr (B == 2) _tile_loadd(7, weights_of<BITS>(codes[1] + k * BITS * 2, room[turn][1]), 64);
        _tile_loadd(4, x[0] + k * SIDE, DEPTH);
        _tile_dpbsud(0, 4, 6);
        if constexpr (B == 2) _tile_dpbsud(1, 4, 7);
        if constexpr (T == 2) {
            _tile_loadd(5, x[1] + k * SIDE, DEPTH);
            _tile_dpbsud(2, 5, 6);
            if constexpr (B == 2) _tile_dpbsud(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 64);
    if constexpr (B == 2) _tile_stored(1, sums + SIDE * SIDE, 64);
    if constexpr (T == 2) _tile_stored(2, sums + B * SIDE * SIDE, 64);
    if constexpr (T == 2 && B == 2) _tile_stored(3, sums + 3 * SIDE * SIDE, 64);
}

// Adds a group's sums of one tile and block to the products so far.
template <int D>
inline void add_group(const LinearJob& job, const int32_t* sums, const int32_t* offsets, const float* steps, int64_t place, vf* total) {
    const vf scale = load_reals(job.scales, job.scale_type, place);
    const auto add = [&](auto offset_of) {
        for (int t = 0; t < SIDE / D; ++t) {
            vi digits[D];
            for (int d = 0; d < D; ++d) {
                std::memcpy(&digits[d], sums + (t * D + d) * SIDE, 64);
                digits[d] += offset_of(offsets[t * D + d]);
            }
            total[t] += product_of<D>(digits) * (scale * steps[t]);
        }
    };
    if (!job.zeros) return add([](int32_t offset) { return splat(offset); });
    const vi zeros = load_bytes(job.zeros + place);
    add([&](int32_t offset) { return zeros * offset; });
}

template <int BITS, int D, int T, int B>
inline void multiply_square(const LinearJob& job, int64_t block, int64_t tile) {
    const int64_t groups = job.columns / job.group, block_bytes = job.columns * BITS * 2, group_bytes = job.group * BITS * 2;
    alignas(64) int32_t sums[T * B * SIDE * SIDE];
    vf total[T][B][SIDE / D];
    for (auto& of_tile : total)
        for (auto& of_block : of_tile)
            for (vf& one : of_block) one = splat(0.0f);
    for (int64_t g = 0; g < groups; ++g) {
        const int8_t* x[T];
        const uint8_t* codes[B];
        for (int t = 0; t < T; ++t) x[t] = job.planes + (tile + t) * SIDE * job.columns + g * job.group * SIDE;
        for (int b = 0; b < B; ++b) codes[b] = job.codes + (block + b) * block_bytes + g * group_bytes;
        square_group<BITS, T, B>(x, codes, job.group, sums);
        for (int t = 0; t < T; ++t)
            for (int b = 0; b < B; ++b) {
                const Span span{(tile + t) * SIDE, SIDE};
                add_group<D>(job, sums + (t * B + b) * SIDE * SIDE, sums_of(job, span) + g * SIDE,
                             steps_of(job, span) + g * (SIDE / D), ((block + b) * groups + g) * BLOCK, total[t][b]);
            }
    }
    for (int t = 0; t < T; ++t)
        for (int b = 0; b < B; ++b) {
            const int64_t row = (block + b) * BLOCK, first = (tile + t) * SIDE / D;
            for (int k = 0; k < SIDE / D && first + k < job.tokens; ++k) store_rows(job, first + k, row, total[t][b][k]);
        }
}

template <int BITS, int D>
inline void multiply_squares(const LinearJob& job, int64_t first, int64_t last) {
    const int64_t count = amx_tiles(job);
    for (int64_t block = first; block < last; block += PAIR)
        for (int64_t tile = 0; tile < count; tile += PAIR) {
            const bool wide = block + PAIR <= last, tall = tile + PAIR <= count;
            if (wide && tall) multiply_square<BITS, D, 2, 2>(job, block, tile);
            else if (wide) multiply_square<BITS, D, 1, 2>(job, block, tile);
            else if (tall) multiply_square<BITS, D, 2, 1>(job, block, tile);
            else multiply_square<BITS, D, 1, 1>(job, block, tile);
        }
}

// What the unit can do at most: four products of register tiles a step, all operands held.
constexpr int TILE_PRODUCTS = 4 * SIDE * SIDE * DEPTH;
inline int64_t multiply_tiles(int64_t steps) {
    const TileConfig config;
    _tile_loadconfig(&config);
    alignas(64) int8_t ones[SIDE * DEPTH];
    std::memset(ones, 1, sizeof ones);
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    _tile_loadd(4, ones, DEPTH); _tile_loadd(5, ones, DEPTH); _tile_loadd(6, ones, DEPTH); _tile_loadd(7, ones, DEPTH);
    for (int64_t i = 0; i < steps; ++i) {
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
    alignas(64) int32_t sums[SIDE * SIDE];
    _tile_stored(0, sums, 64);
    const int64_t seen = sums[0];
    _tile_stored(3, sums, 64);
    _tile_release();
    return seen + sums[0];
}

inline void amx_multiply(const LinearJob& job, int64_t first, int64_t last) {
    if (!fills_tiles(job)) return multiply(job, first, last);
    const TileConfig config;
    _tile_loadconfig(&config);
    if (job.bits == 4) {
        if (job.digits == 1) multiply_squares<4, 1>(job, first, last);
        else multiply_squares<4, 2>(job, first, last);
    } else if (job.digits == 1) multiply_squares<8, 1>(job, first, last);
    else multiply_squares<8, 2>(job, first, last);
    _tile_release();
}

}  // namespace tersor::TERSOR_ISA
