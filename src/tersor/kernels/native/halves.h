// binary16 and bfloat16, rounded half to even; the same bits as the hardware conversions.
#pragma once

#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace tersor::TERSOR_ISA {

inline uint32_t float_bits(float v) {
    uint32_t u;
    std::memcpy(&u, &v, 4);
    return u;
}
inline float float_of(uint32_t u) {
    float v;
    std::memcpy(&v, &u, 4);
    return v;
}

// float → binary16. Branch-free so that loops of it vectorise: scale into the range where float addition rounds
// exactly where binary16 would, then shift the exponent down.
inline uint16_t half_from_float(float value) {
    const uint32_t bits = float_bits(value), sign = bits & 0x80000000u, magnitude = bits ^ sign;
    const uint32_t subnormal = float_bits(float_of(magnitude) + 0.5f) - 0x3f000000u;  // |value| < 2^-14
    const uint32_t normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // rounds up to infinity
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return (uint16_t)(half | (sign >> 16));
}

inline float float_from_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = half & 0x7fffu;
    const uint32_t subnormal = float_bits((float)rest * 0x1p-24f);
    uint32_t bits = (rest << 13) + 0x38000000u;
    bits = rest < 0x0400u ? subnormal : bits;
    bits = rest >= 0x7c00u ? (rest << 13) | 0x7f800000u : bits;
    bits = rest > 0x7c00u ? bits | 0x00400000u : bits;
    return float_of(bits | sign);
}

inline vi half_from_float(vf v) {
    vi r;
    for (int k = 0; k < W; ++k) r[k] = half_from_float(v[k]);
    return r;
}
inline vf float_from_half(vi v) {
    vf r;
    for (int k = 0; k < W; ++k) r[k] = float_from_half((uint16_t)v[k]);
    return r;
}

inline uint16_t bfloat_from_float(float value) {
    const uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 64u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace tersor::TERSOR_ISA
