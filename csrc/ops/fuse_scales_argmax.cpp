// hmsa::fuse_scales_argmax: schema, argument checks and the way to each back end.
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

template <typename Launch>
std::tuple<Tensor, Tensor> argmax(const ChainArguments& arguments, const Sizes& size, int64_t views,
                                  const Launch& launch) {
  const char* op = arguments.op;
  HMSA_CHECK(size.size() == 2, op, ": size has ", size.size(), " entries; expected (height, width)");
  HMSA_CHECK(views == 1 || views == 2, op, ": views is ", views, "; expected 1, or 2 with the mirrored images behind");
  const Chain chain = checked_chain(arguments, size[0], size[1]);
  const Tensor& first = arguments.logits[0];
  HMSA_CHECK(first.size(0) % views == 0, op, ": logits[0] has batch size ", first.size(0),
             "; expected an even one with two views, the mirrored images behind the others");
  const std::vector<int64_t> plane{first.size(0) / views, size[0], size[1]};
  Tensor labels = empty_of(first, plane, first.size(1) <= 256 ? ScalarType::Byte : ScalarType::Int);
  Tensor confidence = empty_arithmetic(first, plane);
  if (labels.numel() == 0) return {labels, confidence};
  dispatch_floating(first, [&](auto storage) {
    using S = decltype(storage);
    FuseScalesArgmax<S> problem{};
    set_inputs(problem, chain, arguments);
    problem.batch = plane[0];
    problem.views = static_cast<int>(views);
    problem.labels = labels.mutable_data_ptr();
    problem.confidence = static_cast<arithmetic_t<S>*>(confidence.mutable_data_ptr());
    launch(problem);
  });
  return {labels, confidence};
}

std::tuple<Tensor, Tensor> argmax_cpu(const Tensors& logits, const Tensors& attention,
                                      const std::vector<double>& scales, const Sizes& size, int64_t views,
                                      bool align_corners) {
  return argmax({"fuse_scales_argmax", logits, attention, scales, align_corners}, size, views,
                [](const auto& problem) { cpu::fuse_scales_argmax(problem, torch_threads()); });
}

#if defined(HMSA_WITH_CUDA)
std::tuple<Tensor, Tensor> argmax_cuda(const Tensors& logits, const Tensors& attention,
                                       const std::vector<double>& scales, const Sizes& size, int64_t views,
                                       bool align_corners) {
  return argmax({"fuse_scales_argmax", logits, attention, scales, align_corners}, size, views,
                [&](const auto& problem) {
                  const CudaScope scope(logits[0]);
                  cuda::launch_fuse_scales_argmax(problem, scope.stream());
                });
}
#endif

}  // namespace
}  // namespace hmsa

STABLE_TORCH_LIBRARY_FRAGMENT(hmsa, m) {
  m.def(
      "fuse_scales_argmax(Tensor[] logits, Tensor[] attention, float[] scales, SymInt[2] size, *, int views=1, "
      "bool align_corners=False) -> (Tensor labels, Tensor confidence)");
}

STABLE_TORCH_LIBRARY_IMPL(hmsa, CPU, m) { m.impl("fuse_scales_argmax", TORCH_BOX(&hmsa::argmax_cpu)); }

#if defined(HMSA_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(hmsa, CUDA, m) { m.impl("fuse_scales_argmax", TORCH_BOX(&hmsa::argmax_cuda)); }
#endif
