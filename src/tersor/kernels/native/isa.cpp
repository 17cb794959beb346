// Every codec, compiled once for each instruction set: TERSOR_ISA names the namespace, TERSOR_LANES the vector width.
#include "feedback.h"
#include "k_quants.h"
#include "places.h"
#include "roofs.h"
#include "scales.h"
#include "tables.h"
// after tables.h: uses IQ4 and power_of_e8m0
#include "decode.h"
#include "logits.h"
// after logits.h: uses its exponential
#include "attention.h"

namespace tersor::TERSOR_ISA {

constexpr int MANY = 4096;  // weights or blocks handled by one call where nothing is laid out in lanes

static const Codec CODECS[] = {
    {"f32", 1, 4, MANY, false, encode_f32, decode_f32},
    {"f16", 1, 2, MANY, false, encode_f16, decode_f16},
    {"bf16", 1, 2, MANY, false, encode_bf16, decode_bf16},
    {"q8_0", 32, 34, W, false, encode_q8_0, decode_q8_0},
    {"q4_0", 32, 18, W, true, encode_symmetric_32<8>, decode_q4_0},
    {"q4_1", 32, 20, W, true, encode_affine_32<15>, decode_q4_1},
    {"q5_0", 32, 22, W, true, encode_symmetric_32<16>, decode_q5_0},
    {"q5_1", 32, 24, W, true, encode_affine_32<31>, decode_q5_1},
    {"q2_k", 256, 84, W, false, encode_affine<16, 3, 15>, decode_q2_k},
    {"q3_k", 256, 110, W, false, encode_symmetric<4, 32>, decode_q3_k},
    {"q4_k", 256, 144, W, false, encode_affine<32, 15, 63>, decode_k4<false>},
    {"q5_k", 256, 176, W, false, encode_affine<32, 31, 63>, decode_k4<true>},
    {"q6_k", 256, 210, W, false, encode_symmetric<32, 128>, decode_q6_k},
    {"q8_k", 256, 292, W, false, encode_q8_k, decode_q8_k},
    {"iq4_nl", 32, 18, W, false, encode_iq4_nl, decode_iq4_nl},
    {"iq4_xs", 256, 136, W, false, encode_iq4_xs, decode_iq4_xs},
    {"mxfp4", 32, 17, W, false, encode_mxfp4, decode_mxfp4},
    {"tq1_0", 256, 54, W, false, encode_tq1_0, decode_tq1_0},
    {"tq2_0", 256, 66, W, false, encode_tq2_0, decode_tq2_0},
};

CodecTable codecs() { return {CODECS, (int)(sizeof(CODECS) / sizeof(CODECS[0])), largest_magnitude, roofs()}; }

ScaleSearch scale_search() { return search_scales; }

PlaceTable places() { return {place_values, place_slopes}; }

}  // namespace tersor::TERSOR_ISA
