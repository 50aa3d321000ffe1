// Region mutual information on the GPU: class_tiles.cuh with the probability of each pixel written, where it is wanted,
// and its binary cross-entropy summed up on the way.
#include "ops/cuda/fuse_scales_rmi_tiles.cuh"

namespace hmsa {
namespace cuda {
namespace forward {
namespace {

template <typename S>
struct RmiSink {
  using T = arithmetic_t<S>;
  static constexpr bool kMirrors = false;
  enum Slot { kLabel, kLoss };
  const RmiPart<S>& problem;
  const ClassLayout& layout;

  HMSA_DEVICE int views() const { return 1; }
  template <typename Block>
  HMSA_DEVICE int32_t* labels(const Block& block) const {
    return slots_of<int32_t>(block, layout, kLabel);
  }
  template <typename Block>
  HMSA_DEVICE T* losses(const Block& block) const {
    return slots_of<T>(block, layout, kLoss);
  }

  template <typename Block>
  HMSA_DEVICE void begin(const Block& block) const {
    for_pixels(block, [&](int32_t slot, int32_t y, int32_t x) {
      labels(block)[slot] = label_at(problem.target, problem.classes, block.b, y, x);
      losses(block)[slot] = T(0);
    });
  }

  template <typename Block>
  HMSA_DEVICE void store(const Block& block, const Job& job, const Item& item,
                         const typename Block::Values* fused) const {
    constexpr int kClasses = sizeof(fused->of) / sizeof(T);
    const auto first = static_cast<int32_t>(job.channel);
    const int32_t x = column_of(block, item);
    for_rows(block, item, [&](int r, int32_t slot, int32_t y) {
      const int32_t label = labels(block)[slot];
      T loss = T(0);
      HMSA_UNROLL
      for (int k = 0; k < kClasses; ++k) {
        if (k >= job.count) break;
        const T z = fused[r].of[k];
        const Sigmoid<T> sigmoid(z);
        if (problem.probability.data != nullptr) {
          *problem.probability.at(block.b, first + k, y, x) = label >= 0 ? sigmoid.of(z) : T(0);
        }
        loss += sigmoid.softplus(label == first + k ? -z : z);
      }
      losses(block)[slot] += loss;
    });
  }

  template <typename Block>
  HMSA_DEVICE void end(const Block& block) const {
    if (problem.sums == nullptr) return;
    double loss = 0;
    double valid = 0;
    for_pixels(block, [&](int32_t slot, int32_t y, int32_t) {
      const int32_t label = labels(block)[slot];
      if (y >= problem.end_row || label == kIgnoredLabel) return;
      loss += label == kWrongLabel ? static_cast<double>(NAN) : static_cast<double>(losses(block)[slot]);
      valid += 1;
    });
    loss = block_sum(loss, thread_index());
    valid = block_sum(valid, thread_index());
    if (thread_index() != 0) return;
    const int64_t image = block.b - layout.part.images.lo;
    double* to = problem.sums + ((image * gridDim.x + blockIdx.x) * gridDim.z + blockIdx.z) * 2;
    to[0] = loss;
    // Blocks that divide the classes, and parts of other classes, have the same pixels.
    to[1] = blockIdx.z == 0 && layout.part.classes.lo == 0 ? valid : 0;
  }
};

template <typename S, int kCount>
__global__ void __launch_bounds__(kBlockThreads, kClassBlocksPerProcessor<arithmetic_t<S>>)
    rmi_probability_kernel(HMSA_PARAMETER RmiPart<S> problem, HMSA_PARAMETER ClassLayout layout) {
  const RmiSink<S> sink{problem, layout};
  go_through_classes<kCount>(problem, layout, sink);
}

}  // namespace

template <typename S>
void launch_probability(const RmiPart<S>& problem, const Part& part, StreamHandle stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const ClassLayout layout = plan_probability(problem, part);
  const auto start = [&](auto kernel) {
    HMSA_LAUNCH(kernel, layout.grid(), layout.block(), layout.bytes, stream, problem, layout);
  };
  constexpr int kMost = sizeof(arithmetic_t<S>) == sizeof(float) ? kClassesAtOnce : 1;
  start(layout.forward.channels == 1 ? rmi_probability_kernel<S, 1> : rmi_probability_kernel<S, kMost>);
}

template void launch_probability(const RmiPart<float>&, const Part&, StreamHandle);
template void launch_probability(const RmiPart<double>&, const Part&, StreamHandle);
template void launch_probability(const RmiPart<Half>&, const Part&, StreamHandle);
template void launch_probability(const RmiPart<BFloat16>&, const Part&, StreamHandle);

}  // namespace forward
}  // namespace cuda
}  // namespace hmsa
