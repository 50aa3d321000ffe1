// hmsa::fuse_scales and hmsa::_fuse_scales_backward: schemas, argument checks and the way to each back end.
#include <tuple>
#include <vector>

#include "core/check.h"
#include "ops/chain_arguments.h"
#include "ops/cpu/fuse_scales.h"
#if defined(HMSA_WITH_CUDA)
#include "ops/cuda/fuse_scales.h"
#include "ops/cuda/stream.h"
#endif

namespace hmsa {
namespace {

// Allocates the result and hands the problem to launch(problem).
template <typename Launch>
Tensor fuse_scales(const ChainArguments& arguments, const Sizes& size, const Launch& launch) {
  HMSA_CHECK(size.size() == 2, "fuse_scales: size has ", size.size(), " entries; expected (height, width)");
  const Chain chain = checked_chain(arguments, size[0], size[1]);
  const Tensor& unit = arguments.logits[chain.unit];
  Tensor output = empty_in_format_of(unit, {unit.size(0), unit.size(1), size[0], size[1]});
  if (output.numel() == 0) return output;
  dispatch_floating(unit, [&](auto storage) {
    using S = decltype(storage);
    FuseScalesForward<S> problem{};
    set_inputs(problem, chain, arguments);
    problem.output = view<S>(output);
    launch(problem);
  });
  return output;
}

template <typename Launch>
std::tuple<Tensors, Tensors> fuse_scales_backward(const Tensor& grad, const ChainArguments& arguments,
                                                  int64_t wanted_logits, int64_t wanted_attention,
                                                  const Launch& launch) {
  const Tensors& logits = arguments.logits;
  HMSA_CHECK(grad.dim() == 4, "_fuse_scales_backward: grad has shape ", shape_of(grad), "; expected [B, C, H, W]");
  const Chain chain = checked_chain(arguments, grad.size(2), grad.size(3));
  HMSA_CHECK(grad.scalar_type() == logits[0].scalar_type() && grad.device() == logits[0].device() &&
                 grad.size(0) == logits[0].size(0) && grad.size(1) == logits[0].size(1),
             "_fuse_scales_backward: grad is ", dtype_name(grad), " ", shape_of(grad), " on ", device_name(grad),
             "; logits[0] is ", dtype_name(logits[0]), " ", shape_of(logits[0]), " on ", device_name(logits[0]));
  const Gradients gradients(arguments, wanted_logits, wanted_attention);
  if (grad.numel() == 0) return gradients.result();
  dispatch_floating(grad, [&](auto storage) {
    using S = decltype(storage);
    FuseScalesBackward<S> problem{};
    set_inputs(problem, chain, arguments);
    set_gradients(problem, gradients);
    problem.grad_output = const_view<S>(grad);
    launch(problem);
  });
  return gradients.result();
}

Tensor fuse_scales_cpu(const Tensors& logits, const Tensors& attention, const std::vector<double>& scales,
                       const Sizes& size, bool align_corners) {
  return fuse_scales({"fuse_scales", logits, attention, scales, align_corners}, size,
                     [](const auto& problem) { cpu::fuse_scales_forward(problem, torch_threads()); });
}

std::tuple<Tensors, Tensors> fuse_scales_backward_cpu(const Tensor& grad, const Tensors& logits,
                                                      const Tensors& attention, const std::vector<double>& scales,
                                                      bool align_corners, int64_t wanted_logits,
                                                      int64_t wanted_attention) {
  return fuse_scales_backward(grad, {"fuse_scales", logits, attention, scales, align_corners}, wanted_logits,
                              wanted_attention,
                              [](const auto& problem) { cpu::fuse_scales_backward(problem, torch_threads()); });
}

#if defined(HMSA_WITH_CUDA)
Tensor fuse_scales_cuda(const Tensors& logits, const Tensors& attention, const std::vector<double>& scales,
                        const Sizes& size, bool align_corners) {
  return fuse_scales({"fuse_scales", logits, attention, scales, align_corners}, size, [&](const auto& problem) {
    const CudaScope scope(logits[0]);
    cuda::launch_fuse_scales_forward(problem, scope.stream());
  });
}

std::tuple<Tensors, Tensors> fuse_scales_backward_cuda(const Tensor& grad, const Tensors& logits,
                                                       const Tensors& attention, const std::vector<double>& scales,
                                                       bool align_corners, int64_t wanted_logits,
                                                       int64_t wanted_attention) {
  return fuse_scales_backward(grad, {"fuse_scales", logits, attention, scales, align_corners}, wanted_logits,
                              wanted_attention, [&](const auto& problem) {
                                const CudaScope scope(grad);
                                Tensor memory;
                                const auto workspace = [&](int64_t numbers) {
                                  memory = empty_arithmetic(grad, {numbers});
                                  return memory.mutable_data_ptr();
                                };
                                cuda::launch_fuse_scales_backward(problem, workspace, scope.stream());
                              });
}
#endif

}  // namespace
}  // namespace hmsa

STABLE_TORCH_LIBRARY_FRAGMENT(hmsa, m) {
  m.def(
      "fuse_scales(Tensor[] logits, Tensor[] attention, float[] scales, SymInt[2] size, *, bool align_corners=False) "
      "-> Tensor");
  m.def(
      "_fuse_scales_backward(Tensor grad, Tensor[] logits, Tensor[] attention, float[] scales, bool align_corners, "
      "int wanted_logits, int wanted_attention) -> (Tensor[], Tensor[])");
}

STABLE_TORCH_LIBRARY_IMPL(hmsa, CPU, m) {
  m.impl("fuse_scales", TORCH_BOX(&hmsa::fuse_scales_cpu));
  m.impl("_fuse_scales_backward", TORCH_BOX(&hmsa::fuse_scales_backward_cpu));
}

#if defined(HMSA_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(hmsa, CUDA, m) {
  m.impl("fuse_scales", TORCH_BOX(&hmsa::fuse_scales_cuda));
  m.impl("_fuse_scales_backward", TORCH_BOX(&hmsa::fuse_scales_backward_cuda));
}
#endif
