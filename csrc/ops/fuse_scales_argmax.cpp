// hmsa::fuse_scales_argmax: schema, argument checks and the call of each back end.
#include <tuple>
#include <vector>

#include "core/check.h"
#include "ops/chain_arguments.h"
#include "ops/cpu/fuse_scales_argmax.h"
#if defined(HMSA_WITH_CUDA)
#include "ops/cuda/fuse_scales_argmax.h"
#include "ops/cuda/stream.h"
#endif

namespace hmsa {
namespace {

constexpr const char* kName = "fuse_scales_argmax";

// The back ends. `like` is a tensor on the device of the problem.
struct OnCpu {
  template <typename S>
  static void run(const FuseScalesArgmax<S>& problem, const Tensor&) {
    cpu::fuse_scales_argmax(problem, torch_threads());
  }
};

#if defined(HMSA_WITH_CUDA)
struct OnCuda {
  template <typename S>
  static void run(const FuseScalesArgmax<S>& problem, const Tensor& like) {
    const CudaScope scope(like);
    cuda::launch_fuse_scales_argmax(problem, scope.stream());
  }
};
#endif

template <typename BackEnd>
std::tuple<Tensor, Tensor> fuse_scales_argmax(const Tensors& logits, const Tensors& attention,
                                              const std::vector<double>& scales, const Sizes& size, int64_t views,
                                              bool align_corners, bool with_confidence) {
  const ChainArguments arguments{kName, logits, attention, scales, align_corners};
  HMSA_CHECK(size.size() == 2, kName, ": size has ", size.size(), " entries; expected (height, width)");
  HMSA_CHECK(views == 1 || views == 2, kName, ": views is ", views,
             "; expected 1, or 2 with the mirrored images behind");
  const Chain chain = checked_chain(arguments, size[0], size[1]);
  const Tensor& first = logits[0];
  HMSA_CHECK(first.size(0) % views == 0, kName, ": logits[0] has batch size ", first.size(0),
             "; expected an even one with two views, the mirrored images behind the others");
  const std::vector<int64_t> plane{first.size(0) / views, size[0], size[1]};
  Tensor labels = empty_of(first, plane, first.size(1) <= 256 ? ScalarType::Byte : ScalarType::Int);
  Tensor confidence = empty_arithmetic(first, with_confidence ? plane : std::vector<int64_t>{0});
  if (labels.numel() == 0) return {labels, confidence};
  dispatch_floating(first, [&](auto storage) {
    using S = decltype(storage);
    FuseScalesArgmax<S> problem{};
    set_inputs(problem, chain, arguments);
    problem.batch = plane[0];
    problem.views = static_cast<int>(views);
    problem.labels = labels.mutable_data_ptr();
    if (with_confidence) problem.confidence = static_cast<arithmetic_t<S>*>(confidence.mutable_data_ptr());
    BackEnd::run(problem, first);
  });
  return {labels, confidence};
}

}  // namespace
}  // namespace hmsa

STABLE_TORCH_LIBRARY_FRAGMENT(hmsa, m) {
  m.def(
      "fuse_scales_argmax(Tensor[] logits, Tensor[] attention, float[] scales, SymInt[2] size, *, int views=1, "
      "bool align_corners=False, bool confidence=True) -> (Tensor labels, Tensor confidence)");
}

STABLE_TORCH_LIBRARY_IMPL(hmsa, CPU, m) {
  m.impl("fuse_scales_argmax", TORCH_BOX(&hmsa::fuse_scales_argmax<hmsa::OnCpu>));
}

#if defined(HMSA_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(hmsa, CUDA, m) {
  m.impl("fuse_scales_argmax", TORCH_BOX(&hmsa::fuse_scales_argmax<hmsa::OnCuda>));
}
#endif
