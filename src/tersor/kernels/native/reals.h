// Numbers of 16 or 32 bits, read and written as float32.
#pragma once

#include "halves.h"
#include "job.h"
#include "lanes.h"

namespace tersor::TERSOR_ISA {

inline vf load_reals(const void* data, Real type, int64_t index) {
    if (type == Real::f32) return load((const float*)data + index);
    const uint16_t* halves = (const uint16_t*)data + index;
#if defined(__AVX512F__)
    const __m256i bits = _mm256_loadu_si256((const __m256i*)halves);
    if (type == Real::f16) return (vf)_mm512_cvtph_ps(bits);
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#elif defined(__AVX2__)
    const __m128i bits = _mm_loadu_si128((const __m128i*)halves);
    if (type == Real::f16) return (vf)_mm256_cvtph_ps(bits);
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
#else
    vi bits;
    for (int k = 0; k < W; ++k) bits[k] = halves[k];
    return type == Real::f16 ? float_from_half(bits) : (vf)(bits << 16);
#endif
}

inline float load_real(const void* data, Real type, int64_t index) {
    if (type == Real::f32) return ((const float*)data)[index];
    const uint16_t half = ((const uint16_t*)data)[index];
    return type == Real::f16 ? float_from_half(half) : float_of((uint32_t)half << 16);
}

inline void store_real(void* data, Real type, int64_t index, float value) {
    if (type == Real::f32) ((float*)data)[index] = value;
    else ((uint16_t*)data)[index] = type == Real::f16 ? half_from_float(value) : bfloat_from_float(value);
}

}  // namespace tersor::TERSOR_ISA
