// The integer linear kernels, compiled once for each instruction set, as isa.cpp.
#include <limits>

#if defined(__AMX_INT8__)
#include "linear_amx.h"
#else
#include "linear.h"
#endif

namespace tersor::TERSOR_ISA {

#if defined(__AMX_INT8__)
LinearTable linear() { return {amx_round, amx_multiply, amx_tiles, amx_planes}; }
Roofs with_tiles(Roofs roofs) {
    roofs.multiply_tiles = multiply_tiles, roofs.tiles_per_step = TILE_PRODUCTS;
    return roofs;
}
#else
LinearTable linear() { return {round_tile, multiply, tiles, planes}; }
#endif

}  // namespace tersor::TERSOR_ISA
