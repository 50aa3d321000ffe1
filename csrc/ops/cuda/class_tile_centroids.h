// CUDA kernel of class_tile_centroids: launched over plain device pointers; nothing here knows torch.
#pragma once

#include "core/class_tile_centroids.h"

namespace hmsa {
namespace cuda {

using StreamHandle = void*;  // cudaStream_t

void launch_class_tile_centroids(const ClassTileCentroids& problem, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
