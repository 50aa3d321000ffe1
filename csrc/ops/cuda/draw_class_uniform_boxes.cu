// Class-uniform boxes on the GPU: an item for each thread.
#include "ops/cuda/draw_class_uniform_boxes.h"

#include "ops/cuda/launch.h"
#include "ops/cuda/multiprocessors.h"

namespace hmsa {
namespace cuda {
namespace {

constexpr int kThreads = 128;

__global__ void class_uniform_boxes_kernel(HMSA_PARAMETER DrawClassUniformBoxes problem) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < problem.count; i += step) {
    draw_class_uniform_box(problem, i);
  }
}

}  // namespace

void launch_draw_class_uniform_boxes(const DrawClassUniformBoxes& problem, StreamHandle stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const int64_t blocks = min((problem.count + kThreads - 1) / kThreads, 4 * wanted_blocks());
  HMSA_LAUNCH(class_uniform_boxes_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, problem);
}

}  // namespace cuda
}  // namespace hmsa
