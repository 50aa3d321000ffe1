// CPU kernel of class_tile_centroids.
#pragma once

#include "core/class_tile_centroids.h"
#include "ops/cpu/parallel_for.h"

namespace hmsa {
namespace cpu {

void class_tile_centroids(const ClassTileCentroids& problem, const ParallelFor& parallel_for);

}  // namespace cpu
}  // namespace hmsa
