// Decoders: bytes of `blocks` blocks to float32, one block at a time in loops that compilers vectorise.
#pragma once

#include "halves.h"

namespace tersor::TERSOR_ISA {

inline uint16_t load16(const uint8_t* p) {
    uint16_t v;
    std::memcpy(&v, p, 2);
    return v;
}
inline float load_half(const uint8_t* p) {
#if defined(__F16C__)
    return _cvtsh_ss(load16(p));
#else
    return float_from_half(load16(p));
#endif
}

inline void decode_f32(const uint8_t* data, int64_t count, float* out) {
    std::memcpy(out, data, (size_t)count * 4);
}

inline void decode_f16(const uint8_t* data, int64_t count, float* out) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= count; i += 16)
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(data + 2 * i))));
#elif defined(__F16C__)
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(data + 2 * i))));
#endif
    for (; i < count; ++i) out[i] = load_half(data + 2 * i);
}

inline void decode_bf16(const uint8_t* data, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = float_of((uint32_t)load16(data + 2 * i) << 16);
}

inline void decode_q8_0(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b, data += 34, out += 32) {
        const float d = load_half(data);
        for (int j = 0; j < 32; ++j) out[j] = (float)(int8_t)data[2 + j] * d;
    }
}

inline void decode_q8_k(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b, data += 292, out += 256) {
        float d;
        std::memcpy(&d, data, 4);
        for (int j = 0; j < 256; ++j) out[j] = d * (float)(int8_t)data[4 + j];
    }
}

inline void decode_q4_0(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b, data += 18, out += 32) {
        const float d = load_half(data);
        for (int j = 0; j < 16; ++j) out[j] = (float)((data[2 + j] & 15) - 8) * d;
        for (int j = 0; j < 16; ++j) out[16 + j] = (float)((data[2 + j] >> 4) - 8) * d;
    }
}

inline void decode_q4_1(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b, data += 20, out += 32) {
        const float d = load_half(data), m = load_half(data + 2);
        for (int j = 0; j < 16; ++j) out[j] = (float)(data[4 + j] & 15) * d + m;
        for (int j = 0; j < 16; ++j) out[16 + j] = (float)(data[4 + j] >> 4) * d + m;
    }
}

// The 32 codes of q5_0 and q5_1.
inline void unpack_fives(const uint8_t* data, int* codes) {
    uint32_t high;
    std::memcpy(&high, data, 4);
    for (int j = 0; j < 16; ++j) {
        codes[j] = (data[4 + j] & 15) | (int)((high >> j & 1) << 4);
        codes[16 + j] = (data[4 + j] >> 4) | (int)((high >> (j + 16) & 1) << 4);
    }
}

inline void decode_q5_0(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b, data += 22, out += 32) {
        int codes[32];
        unpack_fives(data + 2, codes);
        const float d = load_half(data);
        for (int j = 0; j < 32; ++j) out[j] = (float)(codes[j] - 16) * d;
    }
}

inline void decode_q5_1(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b, data += 24, out += 32) {
        int codes[32];
        unpack_fives(data + 4, codes);
        const float d = load_half(data), m = load_half(data + 2);
        for (int j = 0; j < 32; ++j) out[j] = (float)codes[j] * d + m;
    }
}

inline void decode_q2_k(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b, data += 84) {
        const float d = load_half(data + 80), dmin = load_half(data + 82);
        const uint8_t* q = data + 16;
        for (int g = 0; g < 16; ++g, out += 16) {
            const float scale = d * (float)(data[g] & 15), minimum = dmin * (float)(data[g] >> 4);
            const uint8_t* bytes = q + 32 * (g / 8) + 16 * (g % 2);
            const int shift = 2 * (g % 8 / 2);
            for (int i = 0; i < 16; ++i) out[i] = scale * (float)(bytes[i] >> shift & 3) - minimum;
        }
    }
}

// 32 weights of q3_k, two groups: chunk C of the eight.
template <int C>
inline void decode_q3_chunk(const uint8_t* data, float d, float* out) {
    const uint8_t *low = data + 32 + 32 * (C / 4), *packed = data + 96;
    for (int half = 0; half < 2; ++half) {
        const int g = 2 * C + half, nibble = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4;
        const float scale = d * (float)((nibble | (packed[8 + g % 4] >> (2 * (g / 4)) & 3) << 4) - 32);
        for (int i = 16 * half; i < 16 * half + 16; ++i)
            out[i] = scale * (float)((low[i] >> (2 * (C % 4)) & 3) + (data[i] >> C & 1) * 4 - 4);
    }
}

template <int C = 0>
inline void decode_q3_chunks(const uint8_t* data, float d, float* out) {
    decode_q3_chunk<C>(data, d, out + 32 * C);
    if constexpr (C < 7) decode_q3_chunks<C + 1>(data, d, out);
}

inline void decode_q3_k(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b, data += 110, out += 256) decode_q3_chunks(data, load_half(data + 108), out);
}

// Scale and minimum of group g of q4_k and q5_k.
inline void unpack_scale_k4(const uint8_t* s, int g, int& scale, int& minimum) {
    if (g < 4) {
        scale = s[g] & 63;
        minimum = s[g + 4] & 63;
        return;
    }
    scale = (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
    minimum = (s[g + 4] >> 4) | (s[g] >> 6) << 4;
}

template <bool FIVE>
inline void decode_k4(const uint8_t* data, int64_t blocks, float* out) {
    constexpr int CODES = FIVE ? 48 : 16, BYTES = FIVE ? 176 : 144;
    for (int64_t b = 0; b < blocks; ++b, data += BYTES) {
        const float d = load_half(data), dmin = load_half(data + 2);
        for (int g = 0; g < 8; ++g, out += 32) {
            int scale_code, minimum_code;
            unpack_scale_k4(data + 4, g, scale_code, minimum_code);
            const float scale = d * (float)scale_code, minimum = dmin * (float)minimum_code;
            const uint8_t* bytes = data + CODES + 32 * (g / 2);
            const int shift = 4 * (g % 2);
            for (int i = 0; i < 32; ++i) {
                int code = bytes[i] >> shift & 15;
                if constexpr (FIVE) code |= (data[16 + i] >> g & 1) << 4;
                out[i] = scale * (float)code - minimum;
            }
        }
    }
}

// 32 weights of q6_k, two groups: quarter Q of a half.
template <int Q>
inline void decode_q6_quarter(const uint8_t* low, const uint8_t* high, const uint8_t* scales, float d, float* out) {
    const uint8_t* bytes = low + 32 * (Q % 2);
    for (int g = 0; g < 2; ++g) {
        const float scale = d * (float)(int8_t)scales[2 * Q + g];
        for (int i = 16 * g; i < 16 * g + 16; ++i) {
            const int code = (bytes[i] >> (4 * (Q / 2)) & 15) | (high[i] >> (2 * Q) & 3) << 4;
            out[32 * Q + i] = scale * (float)(code - 32);
        }
    }
}

inline void decode_q6_k(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b, data += 210) {
        const float d = load_half(data + 208);
        for (int half = 0; half < 2; ++half, out += 128) {
            const uint8_t *low = data + 64 * half, *high = data + 128 + 32 * half, *scales = data + 192 + 8 * half;
            decode_q6_quarter<0>(low, high, scales, d, out);
            decode_q6_quarter<1>(low, high, scales, d, out);
            decode_q6_quarter<2>(low, high, scales, d, out);
            decode_q6_quarter<3>(low, high, scales, d, out);
        }
    }
}

inline void table_nibbles(const uint8_t* bytes, const float* table, float scale, float* out) {
    for (int j = 0; j < 16; ++j) out[j] = scale * table[bytes[j] & 15];
    for (int j = 0; j < 16; ++j) out[16 + j] = scale * table[bytes[j] >> 4];
}

inline void decode_iq4_nl(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b, data += 18, out += 32) table_nibbles(data + 2, IQ4, load_half(data), out);
}

inline void decode_iq4_xs(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b, data += 136) {
        const float d = load_half(data);
        const uint16_t high = load16(data + 2);
        for (int g = 0; g < 8; ++g, out += 32) {
            const int code = (data[4 + g / 2] >> (4 * (g % 2)) & 15) | (high >> (2 * g) & 3) << 4;
            table_nibbles(data + 8 + 16 * g, IQ4, d * (float)(code - 32), out);
        }
    }
}

inline void decode_mxfp4(const uint8_t* data, int64_t blocks, float* out) {
    constexpr float table[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    for (int64_t b = 0; b < blocks; ++b, data += 17, out += 32) table_nibbles(data + 1, table, power_of_e8m0(data[0]), out);
}

// Trit n of a byte of tq1_0: the byte times 3^n, modulo 256, times 3, divided by 256.
inline void unpack_trits(const uint8_t* bytes, int count, int trits, float d, float* out) {
    int power = 1;
    for (int n = 0; n < trits; ++n, power *= 3, out += count)
        for (int m = 0; m < count; ++m) out[m] = (float)((((bytes[m] * power) & 255) * 3 >> 8) - 1) * d;
}

inline void decode_tq1_0(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b, data += 54, out += 256) {
        const float d = load_half(data + 52);
        unpack_trits(data, 32, 5, d, out);
        unpack_trits(data + 32, 16, 5, d, out + 160);
        unpack_trits(data + 48, 4, 4, d, out + 240);
    }
}

inline void decode_tq2_0(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b, data += 66) {
        const float d = load_half(data + 64);
        for (int half = 0; half < 2; ++half)
            for (int n = 0; n < 4; ++n, out += 32)
                for (int m = 0; m < 32; ++m) out[m] = (float)((data[32 * half + m] >> (2 * n) & 3) - 1) * d;
    }
}

}  // namespace tersor::TERSOR_ISA
