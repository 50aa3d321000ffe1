// Region mutual information on the GPU, chains of octaves: from the heads to pooled probabilities and labels, and to the
// binary cross-entropy (octave_rmi.cuh).
#include "ops/cuda/octave_rmi.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {
namespace {

template <typename S, bool kUpper, bool kLower>
__global__ void HMSA_MOST_REGISTERS((PoolBlock<S, kUpper, kLower>::kRegisters))
    rmi_octave_pool_kernel(HMSA_PARAMETER PooledChain<S> problem, HMSA_PARAMETER OctavePlan plan) {
  go_down_octaves<PoolBlock<S, kUpper, kLower>>(problem, plan);
}

}  // namespace

template <typename S>
bool plan_pool(const ChainInputs<S>& inputs, OctavePlan& plan) {
  plan = OctavePlan{};
  return by_kind(inputs.chain, [&](auto upper, auto lower) {
    return plan_octaves<PoolBlock<S, decltype(upper)::value, decltype(lower)::value>>(inputs, plan);
  });
}

template <typename S>
void launch_pool(const PooledChain<S>& problem, const OctavePlan& plan, StreamHandle stream) {
  const dim3 grid(static_cast<unsigned>(plan.parts.height * plan.parts.width),
                  static_cast<unsigned>(problem.batch < 65535 ? problem.batch : 65535));
  by_kind(problem.chain, [&](auto upper, auto lower) {
    HMSA_LAUNCH((rmi_octave_pool_kernel<S, decltype(upper)::value, decltype(lower)::value>), grid,
                dim3((plan.planes + 1) * kLanes), plan.bytes, static_cast<cudaStream_t>(stream), problem, plan);
  });
}

HMSA_INSTANTIATE(bool plan_pool(const ChainInputs<float>&, OctavePlan&));
HMSA_INSTANTIATE(bool plan_pool(const ChainInputs<Half>&, OctavePlan&));
HMSA_INSTANTIATE(bool plan_pool(const ChainInputs<BFloat16>&, OctavePlan&));
HMSA_INSTANTIATE(void launch_pool(const PooledChain<float>&, const OctavePlan&, StreamHandle));
HMSA_INSTANTIATE(void launch_pool(const PooledChain<Half>&, const OctavePlan&, StreamHandle));
HMSA_INSTANTIATE(void launch_pool(const PooledChain<BFloat16>&, const OctavePlan&, StreamHandle));

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
