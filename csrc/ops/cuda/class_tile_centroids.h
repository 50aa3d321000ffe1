// CUDA kernel of class_tile_centroids: launched over plain device pointers; nothing here knows torch.
#pragma once

#include "core/class_tile_centroids.h"
#include "ops/cuda/stream_handle.h"

namespace hmsa {
namespace cuda {

void launch_class_tile_centroids(const ClassTileCentroids& problem, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
