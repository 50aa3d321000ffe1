// hmsa::fuse_scales and hmsa::_fuse_scales_backward: schemas, argument checks and the call of each back end.
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

// The back ends. `like` is a tensor on the device of the problem.
struct OnCpu {
  template <typename S>
  static void forward(const FuseScalesForward<S>& problem, const Tensor&) {
    cpu::fuse_scales_forward(problem, torch_threads());
  }

  template <typename S>
  static void backward(const FuseScalesBackward<S>& problem, const Tensor&) {
    cpu::fuse_scales_backward(problem, torch_threads());
  }
};

#if defined(HMSA_WITH_CUDA)
struct OnCuda {
  template <typename S>
  static void forward(const FuseScalesForward<S>& problem, const Tensor& like) {
    const CudaScope scope(like);
    cuda::launch_fuse_scales_forward(problem, scope.stream());
  }

  template <typename S>
  static void backward(const FuseScalesBackward<S>& problem, const Tensor& like) {
    const CudaScope scope(like);
    Tensor memory;
    const auto workspace = [&](int64_t numbers) {
      memory = empty_arithmetic(like, {numbers});
      return memory.mutable_data_ptr();
    };
    cuda::launch_fuse_scales_backward(problem, workspace, scope.stream());
  }
};
#endif

template <typename BackEnd>
Tensor fuse_scales(const Tensors& logits, const Tensors& attention, const std::vector<double>& scales,
                   const Sizes& size, bool align_corners) {
  const ChainArguments arguments{"fuse_scales", logits, attention, scales, align_corners};
  HMSA_CHECK(size.size() == 2, "fuse_scales: size has ", size.size(), " entries; expected (height, width)");
  const Chain chain = checked_chain(arguments, size[0], size[1]);
  const Tensor& unit = logits[chain.unit];
  Tensor output = empty_in_format_of(unit, {unit.size(0), unit.size(1), size[0], size[1]});
  if (output.numel() == 0) return output;
  dispatch_floating(unit, [&](auto storage) {
    using S = decltype(storage);
    FuseScalesForward<S> problem{};
    set_inputs(problem, chain, arguments);
    problem.output = view<S>(output);
    BackEnd::forward(problem, unit);
  });
  return output;
}

template <typename BackEnd>
std::tuple<Tensors, Tensors> fuse_scales_backward(const Tensor& grad, const Tensors& logits, const Tensors& attention,
                                                  const std::vector<double>& scales, bool align_corners,
                                                  int64_t wanted_logits, int64_t wanted_attention) {
  const ChainArguments arguments{"fuse_scales", logits, attention, scales, align_corners};
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
    BackEnd::backward(problem, grad);
  });
  return gradients.result();
}

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
  m.impl("fuse_scales", TORCH_BOX(&hmsa::fuse_scales<hmsa::OnCpu>));
  m.impl("_fuse_scales_backward", TORCH_BOX(&hmsa::fuse_scales_backward<hmsa::OnCpu>));
}

#if defined(HMSA_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(hmsa, CUDA, m) {
  m.impl("fuse_scales", TORCH_BOX(&hmsa::fuse_scales<hmsa::OnCuda>));
  m.impl("_fuse_scales_backward", TORCH_BOX(&hmsa::fuse_scales_backward<hmsa::OnCuda>));
}
#endif
