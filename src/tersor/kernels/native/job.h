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

// The loops that measure what the processor can do at most.
struct Roofs {
    int64_t (*read)(const uint8_t* data, int64_t bytes);
    float (*multiply_floats)(int64_t steps);
    int floats_per_step;  // multiply-adds
    int64_t (*multiply_bytes)(int64_t steps);  // null: no instruction for sums of int8 products
    int bytes_per_step;                        // multiply-adds
    int64_t (*multiply_tiles)(int64_t steps) = nullptr;  // null: no unit for products of int8 matrices
    int tiles_per_step = 0;                              // multiply-adds
};

struct CodecTable {
    const Codec* begin;
    int count;
    float (*largest)(const float* x, int64_t count);  // max |x|; NaN if there is one
    Roofs roofs;
};

// What one row of logits, beside another or what was kept of another, says about the next token.
struct PairResult {
    double low, high;  // of the divergence; equal where it is known
    double reference_loss, subject_loss;
    bool same_top;
    int shared;  // of the five likeliest tokens
};

// Where the k likeliest tokens of one row lie, and the sums over all others.
struct Kept {
    int32_t* ids;
    float* log_p;
    double *tail_log_mass, *tail_entropy;
};

// Every function returns false where a logit is NaN or +inf, or all are -inf.
struct LogitTable {
    bool (*compare)(const float* reference, const float* subject, int64_t count, int64_t target, PairResult& out);
    bool (*loss)(const float* x, int64_t count, int64_t target, double& loss);
    bool (*keep)(const float* x, int64_t count, int64_t k, const Kept& out);
    bool (*bound)(const float* x, int64_t count, int64_t k, int64_t target, const Kept& kept, PairResult& out);
};

// Columns that are rounded in order, each one's error moving the targets of those to come; see feedback.h.
struct FeedbackJob {
    int64_t columns, rows;  // rows: a multiple of the tile
    float* target;          // [columns, rows]
    const float* weight;    // [columns, rows]
    float* error;           // [columns, rows], weight - value
    float* change;          // [columns, rows], new error - old error; may be `error` where that is 0
    const float* matrix;    // [columns, columns]: what a change of column k adds to target j
    const int32_t* group;   // [columns], into the next three
    const float *step, *offset, *zero;  // [groups, rows]; affine: code c means step · (c - zero) - offset
    const float* table;     // [levels] or null; table: code c means step · table[c]
    float table_low, table_high;
    int levels;
    uint8_t* codes;         // [columns, rows]
};

// Groups of integers whose scales are searched; see scales.h.
struct ScaleJob {
    const float* x;           // [groups, width]
    const float* importance;  // [per_row, width]: every row shares it
    const float *scale, *zero;  // [groups]
    const float* shrinks;     // [trials]
    int64_t width, per_row;
    int trials, levels;
    float* best;              // [groups]
};

using ScaleSearch = void (*)(const ScaleJob& job, int64_t first, int64_t last);

// Places between the codes of groups, in steps from zero; see places.h.
struct PlaceJob {
    int64_t width;
    float highest;                                // code
    const float *place, *gradient;                // [groups, width]
    const float *step, *offset, *zero;            // [groups]; a level, which is code - zero, means step · level - offset
    float *value, *for_place;                     // [groups, width]
    float *for_step, *for_offset;                 // [groups]
};

struct PlaceTable {
    void (*values)(const PlaceJob& job, int64_t first, int64_t last);
    void (*slopes)(const PlaceJob& job, int64_t first, int64_t last);
};

// How numbers of 16 or 32 bits are stored.
enum class Real { f32, f16, bf16 };

// Tokens times a matrix of integers in groups; see linear.h. Everything is laid out as reference/linear.py says.
struct LinearJob {
    int64_t rows, columns, group;  // group: a multiple of 16 that divides the columns
    int bits;                      // 4 or 8
    const uint8_t* codes;          // [blocks, columns · bits · 2]
    const void* scales;            // [blocks, groups, 16]
    Real scale_type;
    const uint8_t* zeros;          // [blocks, groups, 16]; null: half of the codes everywhere
    const float* bias;             // [rows] or null
    int64_t tokens;
    int digits;                    // bytes of an activation's code: 1 or 2
    bool per_token;                // one scale for all activations of a token
    const void* x;                 // [tokens, columns]
    Real x_type;
    void* y;                       // [tokens, rows]
    Real y_type;
    int8_t* planes;                // [planes, columns]; these three as tiles of tokens lie
    float* steps;                  // [planes / digits, groups]: scales of the activations
    int32_t* sums;                 // [planes, groups]: of codes, times what a zero point of 1 takes off
    int64_t ahead;                 // bytes by which few tokens have the stream of weights fetched ahead; 0: not
};

struct LinearTable {
    // Rounds the activations of tile `tile` of tokens: planes, steps and sums.
    void (*round)(const LinearJob& job, int64_t tile);
    // Every token times rows of blocks [first, last).
    void (*multiply)(const LinearJob& job, int64_t first, int64_t last);
    int64_t (*tiles)(const LinearJob& job);
    int64_t (*planes)(const LinearJob& job);  // for which there has to be room: tokens · digits, or more
};

// One query of each head over all tokens before it; see attention.h. Strides in numbers; within a token they lie together.
struct AttentionJob {
    int64_t batch, heads, key_heads, tokens, width, value_width;  // key_heads divides heads
    Real type;                                                    // of all but mask and partial
    const void* query;                                            // [batch, heads, width]
    const void* key;
    int64_t key_batch, key_head, key_token;
    const void* value;
    int64_t value_batch, value_head, value_token;
    const float* mask;              // what is added to scores, or null
    int64_t mask_batch, mask_head;  // 0: shared
    float scaling;
    float* partial;  // [chunks, batch, heads, partial_size]: largest score, sum of weights, sums of values
    int64_t partial_size;
    void* y;  // [batch, heads, value_width]
};

constexpr int64_t CHUNK = 256;       // tokens of a task: a multiple of all vector widths
constexpr int64_t MOST_WIDTH = 512;  // of a head; `most_width` for Python

struct AttentionTable {
    void (*chunk)(const AttentionJob& job, int64_t unit);  // of batch · key heads · chunks
    void (*merge)(const AttentionJob& job, int64_t row);   // of batch · heads
};

struct FeedbackTable {
    int tile;
    void (*settle)(const FeedbackJob& job, int64_t first, int64_t last, int64_t until, int64_t row, int64_t end);
    void (*propagate)(const FeedbackJob& job, int64_t first, int64_t last, int64_t from, int64_t until, int64_t row, int64_t end);
};

}  // namespace tersor
