// What fuse_scales_rmi_backward.cu calls for chains of octaves (fuse_scales_rmi_gradient.cu).
#pragma once

#include "ops/cuda/pooled_areas.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {

struct OctaveGradientPlan {
  OctavePlan pool, backward;
  PooledMaps pooled;
  PooledAreas areas;
  bool moments;
  int32_t images;                                 // at a time
  int32_t ahead;                                  // so many planes farther on than P the probabilities lie
  int64_t numbers, weights, probability, pixels;  // bytes

  int64_t bytes() const { return numbers + weights + probability + pixels; }
};

// How the work is divided; false if the chain is another one, or if the pooled pixels of an image do not fit the workspace.
template <typename S>
bool plan_octave_gradient(const FuseScalesRmiBackward<S>& problem, int64_t most, OctaveGradientPlan& plan);

template <typename S>
void launch_octave_gradient(const FuseScalesRmiBackward<S>& problem, const OctaveGradientPlan& plan, void* workspace,
                            StreamHandle stream);

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
