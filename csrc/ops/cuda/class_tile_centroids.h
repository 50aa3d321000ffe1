// CUDA kernels of class_tile_centroids: launched over plain device pointers; nothing here knows torch.
#pragma once

#include "core/class_tile_centroids.h"
#include "ops/cuda/stream_handle.h"

namespace hmsa {
namespace cuda {

// How many sums the kernels need besides the result: none where a block does a whole tile.
int64_t class_tile_centroids_sums(const ClassTileCentroids& problem);

void launch_class_tile_centroids(const ClassTileCentroids& problem, unsigned long long* sums, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
