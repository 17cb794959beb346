// The integer linear kernels, compiled once for each instruction set, as isa.cpp.
#include <limits>

#include "linear.h"

namespace tersor::TERSOR_ISA {

LinearTable linear() { return {round_tile, multiply, tiles}; }

}  // namespace tersor::TERSOR_ISA
