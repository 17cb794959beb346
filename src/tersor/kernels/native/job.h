// What an encoder is given; shared by all instruction sets.
#pragma once

#include <cstdint>

namespace tersor {

struct Job {
    const float* x;               // [rows, columns], contiguous
    const float* importance;      // [columns] or null
    const float* mean_squares;    // [rows], mean of x² over the row; only for formats with `uses_row` and importance
    int64_t blocks_per_row;
    bool best;                    // our search instead of llama.cpp's
};

// One format on one instruction set.
struct Codec {
    const char* name;
    int weights, bytes;  // per block
    int tile;            // blocks encoded together
    bool uses_row;
    void (*encode)(const Job& job, int64_t first, int count, uint8_t* out);       // `count` ≤ tile blocks from `first`
    void (*decode)(const uint8_t* data, int64_t blocks, float* out);
};

struct CodecTable {
    const Codec* begin;
    int count;
    float (*largest)(const float* x, int64_t count);  // max |x|; NaN if there is one
};

}  // namespace tersor
