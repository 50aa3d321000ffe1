// Parts of the backward pass that work point by point (see fuse_scales_points.h).
#include "ops/cuda/fuse_scales_points.h"

#include "ops/cuda/chain_points.cuh"

namespace hmsa {
namespace cuda {
namespace {

// ---- sums over the channels -----------------------------------------------------------------------------------------

template <typename S, typename T>
__global__ void __launch_bounds__(kBlockThreads, 2)
    channel_sums_kernel(HMSA_PARAMETER FuseScalesBackward<S> problem, int i, T* to /* [B, H, W] */) {
  const Chain& chain = problem.chain;
  const int32_t x = static_cast<int32_t>(blockIdx.x) * kBlockColumns + static_cast<int32_t>(threadIdx.x);
  if (x >= chain.size.width) return;
  const int64_t rows = problem.batch * chain.size.height;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * kBlockRows + threadIdx.y; row < rows;
       row += static_cast<int64_t>(gridDim.y) * kBlockRows) {
    const auto y = static_cast<int32_t>(row % chain.size.height);
    ChainPoints<S, T> points{problem, row / chain.size.height, 0};
    const T kept = points.kept(i, y, x);
    T sum = 0;
    if (i == 1 && chain.unit == 0) {  // two scales, or the first lower one: P_before is one interpolation
      const PointTaps<T> taps = point_taps<T>(chain.up[0], y, x);
      for (; points.c < problem.classes; ++points.c) {
        sum += points.grad_output(y, x) * sample(problem.logits[0], points.b, points.c, taps.row, taps.column);
      }
    } else {
      for (; points.c < problem.classes; ++points.c) {
        const T before = points.before(i, y, x);
        sum += points.grad_output(y, x) * (chain.is_lower(i) ? before : points.logit(i, y, x) - before);
      }
    }
    to[row * chain.size.width + x] = kept * sum;
  }
}

// ---- gradients of a scale whose head is tiny ------------------------------------------------------------------------

// Where a single element of the head reaches more of the grid than shared memory holds (a map of a few elements blown
// up to a whole image): a block per element walks over all it reaches and evaluates every factor from the heads. Slow,
// simple, and needed by few elements by its very nature.
template <typename S, typename T>
__global__ void __launch_bounds__(kBlockThreads, 2)
    fuse_scales_backward_element_kernel(HMSA_PARAMETER FuseScalesBackward<S> problem, int i) {
  HMSA_SHARED(T, partial, [kBlockThreads]);
  const Chain& chain = problem.chain;
  const auto k = static_cast<int32_t>(blockIdx.x / chain.heads[i].width);
  const auto l = static_cast<int32_t>(blockIdx.x % chain.heads[i].width);
  const Tile reach = chain.up[i].outputs(Tile{{k, k + 1}, {l, l + 1}});

  // Sum over the reach of weight * value(y, x): each thread in its order, then the threads in theirs.
  const auto gather = [&](const auto& value) {
    T sum = 0;
    for_each(reach, [&](int32_t y, int32_t x) {
      sum += chain.up[i].rows.weight<T>(y, k) * chain.up[i].columns.weight<T>(x, l) * value(y, x);
    });
    partial[thread_index()] = sum;
    __syncthreads();
    sum = 0;
    if (thread_index() == 0) {
      for (int t = 0; t < kBlockThreads; ++t) sum += partial[t];
    }
    __syncthreads();
    return sum;
  };

  for (int64_t b = blockIdx.y; b < problem.batch; b += gridDim.y) {
    T shared_sum = 0;
    for (int64_t c = 0; c < problem.classes; ++c) {
      const ChainPoints<S, T> points{problem, b, c};
      if (problem.grad_logits[i].data != nullptr) {
        const T sum = gather([&](int32_t y, int32_t x) {
          return points.arriving(i, y, x) * (i > 0 ? points.attention(i, y, x) : T(1));
        });
        if (thread_index() == 0) write(problem.grad_logits[i].at(b, c, k, l), sum);
      }
      if (problem.grad_attention[i].data == nullptr) continue;
      const T sum = gather([&](int32_t y, int32_t x) { return points.attention_gradient(i, y, x); });
      shared_sum = chain.class_wise ? sum : shared_sum + sum;
      const bool complete = chain.class_wise || c + 1 == problem.classes;
      if (complete && thread_index() == 0) {
        write(problem.grad_attention[i].at(b, chain.class_wise ? c : 0, k, l), shared_sum);
      }
    }
  }
}

}  // namespace

template <typename S>
void launch_channel_sums(const FuseScalesBackward<S>& problem, int i, arithmetic_t<S>* to, void* stream) {
  using T = arithmetic_t<S>;
  const Extent size = problem.chain.size;
  const int64_t bands = (problem.batch * size.height + kBlockRows - 1) / kBlockRows;
  const dim3 grid((size.width + kBlockColumns - 1) / kBlockColumns, bands < 65535 ? bands : 65535);
  HMSA_LAUNCH((channel_sums_kernel<S, T>), grid, dim3(kBlockColumns, kBlockRows), 0, static_cast<cudaStream_t>(stream),
              problem, i, to);
}

template <typename S>
void launch_element_gradients(const FuseScalesBackward<S>& problem, int i, void* stream) {
  using T = arithmetic_t<S>;
  const Extent head = problem.chain.heads[i];
  const dim3 grid(static_cast<unsigned>(head.height) * head.width, problem.batch < 65535 ? problem.batch : 65535);
  HMSA_LAUNCH((fuse_scales_backward_element_kernel<S, T>), grid, dim3(kBlockColumns, kBlockRows), 0,
              static_cast<cudaStream_t>(stream), problem, i);
}

template void launch_channel_sums(const FuseScalesBackward<float>&, int, arithmetic_t<float>*, void*);
template void launch_channel_sums(const FuseScalesBackward<double>&, int, arithmetic_t<double>*, void*);
template void launch_channel_sums(const FuseScalesBackward<Half>&, int, arithmetic_t<Half>*, void*);
template void launch_channel_sums(const FuseScalesBackward<BFloat16>&, int, arithmetic_t<BFloat16>*, void*);
template void launch_element_gradients(const FuseScalesBackward<float>&, int, void*);
template void launch_element_gradients(const FuseScalesBackward<double>&, int, void*);
template void launch_element_gradients(const FuseScalesBackward<Half>&, int, void*);
template void launch_element_gradients(const FuseScalesBackward<BFloat16>&, int, void*);

}  // namespace cuda
}  // namespace hmsa
