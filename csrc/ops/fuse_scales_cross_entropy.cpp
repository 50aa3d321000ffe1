// hmsa::_fuse_scales_cross_entropy and its backward: schemas, argument checks and the call of each back end. The public
// op is a Python composite over them (hmsa_ext/ops/fuse_scales_cross_entropy.py).
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "ops/chain_arguments.h"
#include "ops/cpu/fuse_scales_cross_entropy.h"
#if defined(HMSA_WITH_CUDA)
#include "ops/cuda/fuse_scales_cross_entropy.h"
#include "ops/cuda/stream.h"
#endif

namespace hmsa {
namespace {

constexpr const char* kName = "fuse_scales_cross_entropy";

struct TargetArguments {
  const Tensor& target;                 // [B, H, W]
  const std::optional<Tensor>& weight;  // [C]
  int64_t ignore_index;
  double label_smoothing;
};

Reduction checked_reduction(const std::string& reduction) {
  HMSA_CHECK(reduction == "none" || reduction == "sum" || reduction == "mean", kName, ": reduction is '", reduction,
             "'; expected 'mean', 'sum' or 'none'");
  return reduction == "none" ? Reduction::kNone : reduction == "sum" ? Reduction::kSum : Reduction::kMean;
}

void check_target(const TargetArguments& arguments, const Tensor& logits) {
  checked_target(kName, arguments.target, logits);
  HMSA_CHECK(arguments.label_smoothing >= 0 && arguments.label_smoothing <= 1, kName, ": label_smoothing is ",
             arguments.label_smoothing, "; expected a number from 0 to 1");
  if (!arguments.weight.has_value()) return;
  const Tensor& weight = *arguments.weight;
  HMSA_CHECK(weight.dim() == 1 && weight.size(0) == logits.size(1), kName, ": weight has shape ", shape_of(weight),
             "; expected [", logits.size(1), "], one factor for each class");
  HMSA_CHECK(weight.scalar_type() == arithmetic_type(logits) && weight.device() == logits.device() &&
                 (weight.size(0) < 2 || weight.stride(0) == 1),
             kName, ": weight is ", dtype_name(weight), " on ", device_name(weight), " with stride ", weight.stride(0),
             "; expected contiguous ", dtype_name(arithmetic_type(logits)), " on ", device_name(logits));
}

template <typename T>
CrossEntropyTarget<T> target_of(const TargetArguments& arguments, const Tensor& logits) {
  CrossEntropyTarget<T> target{};
  target.labels = checked_target(kName, arguments.target, logits);
  if (arguments.weight.has_value()) target.weight = static_cast<const T*>(arguments.weight->const_data_ptr());
  target.ignore_index = arguments.ignore_index;
  target.label_smoothing = static_cast<T>(arguments.label_smoothing);
  return target;
}

void check_chain_and_target(const ChainArguments& chain, const TargetArguments& target) {
  HMSA_CHECK(!chain.logits.empty() && chain.logits[0].dim() == 4, kName, ": logits has ", chain.logits.size(),
             " entries", chain.logits.empty() ? std::string() : ", the first of shape " + shape_of(chain.logits[0]),
             "; expected one [B, C, h, w] for each of scales");
  check_target(target, chain.logits[0]);
}

// The back ends. `like` is a tensor on the device of the problem.
struct OnCpu {
  template <typename S>
  static void forward(const FuseScalesCrossEntropyForward<S>& problem, const Tensor&) {
    const cpu::WrongLabels wrong = cpu::fuse_scales_cross_entropy_forward(problem, torch_threads());
    check_wrong_labels(kName, wrong, problem.classes, problem.target.ignore_index);
  }

  template <typename S>
  static void backward(const FuseScalesCrossEntropyBackward<S>& problem, const Tensor&) {
    cpu::fuse_scales_cross_entropy_backward(problem, torch_threads());
  }
};

#if defined(HMSA_WITH_CUDA)
struct OnCuda {
  template <typename S>
  static void forward(const FuseScalesCrossEntropyForward<S>& problem, const Tensor& like) {
    const CudaScope scope(like);
    Tensor workspace = empty_of(like, {cuda::fuse_scales_cross_entropy_forward_workspace(problem)}, ScalarType::Double);
    cuda::launch_fuse_scales_cross_entropy_forward(problem, workspace.mutable_data_ptr(), scope.stream());
  }

  template <typename S>
  static void backward(const FuseScalesCrossEntropyBackward<S>& problem, const Tensor& like) {
    const CudaScope scope(like);
    Tensor memory;
    const auto workspace = [&](int64_t numbers) {
      memory = empty_arithmetic(like, {numbers});
      return memory.mutable_data_ptr();
    };
    cuda::launch_fuse_scales_cross_entropy_backward(problem, workspace, scope.stream());
  }
};
#endif

template <typename BackEnd>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensors& logits, const Tensors& attention,
                                           const std::vector<double>& scales, const Tensor& target,
                                           const std::optional<Tensor>& weight, int64_t ignore_index,
                                           double label_smoothing, const std::string& reduction_name,
                                           bool align_corners) {
  const ChainArguments arguments{kName, logits, attention, scales, align_corners};
  const TargetArguments target_arguments{target, weight, ignore_index, label_smoothing};
  check_chain_and_target(arguments, target_arguments);
  const Reduction reduction = checked_reduction(reduction_name);
  const int64_t height = target.size(1);
  const int64_t width = target.size(2);
  const Chain chain = checked_chain(arguments, height, width);
  const Tensor& first = logits[0];
  const std::vector<int64_t> plane{first.size(0), height, width};
  Tensor loss = empty_arithmetic(first, reduction == Reduction::kNone ? plane : std::vector<int64_t>());
  Tensor log_sum_exp = empty_arithmetic(first, plane);
  Tensor total_weight = empty_arithmetic(first, {});
  if (first.size(0) == 0) {
    torch::stable::fill_(total_weight, 0.0);
    if (reduction != Reduction::kNone) {
      torch::stable::fill_(loss, reduction == Reduction::kMean ? std::nan("") : 0.0);
    }
    return {loss, log_sum_exp, total_weight};
  }
  dispatch_floating(first, [&](auto storage) {
    using S = decltype(storage);
    using T = arithmetic_t<S>;
    FuseScalesCrossEntropyForward<S> problem{};
    set_inputs(problem, chain, arguments);
    problem.target = target_of<T>(target_arguments, first);
    problem.reduction = reduction;
    problem.loss = static_cast<T*>(loss.mutable_data_ptr());
    problem.log_sum_exp = static_cast<T*>(log_sum_exp.mutable_data_ptr());
    problem.total_weight = static_cast<T*>(total_weight.mutable_data_ptr());
    BackEnd::forward(problem, first);
  });
  return {loss, log_sum_exp, total_weight};
}

template <typename BackEnd>
std::tuple<Tensors, Tensors> backward(const Tensor& grad, const Tensors& logits, const Tensors& attention,
                                      const std::vector<double>& scales, const Tensor& target,
                                      const std::optional<Tensor>& weight, const Tensor& log_sum_exp,
                                      const Tensor& total_weight, int64_t ignore_index, double label_smoothing,
                                      const std::string& reduction_name, bool align_corners, int64_t wanted_logits,
                                      int64_t wanted_attention) {
  const ChainArguments arguments{kName, logits, attention, scales, align_corners};
  const TargetArguments target_arguments{target, weight, ignore_index, label_smoothing};
  check_chain_and_target(arguments, target_arguments);
  const Reduction reduction = checked_reduction(reduction_name);
  const int64_t height = target.size(1);
  const int64_t width = target.size(2);
  const Chain chain = checked_chain(arguments, height, width);
  const Tensor& first = logits[0];
  const bool is_map = reduction == Reduction::kNone;
  const auto fits = [&](const Tensor& tensor, bool map) {
    return tensor.scalar_type() == arithmetic_type(first) && tensor.device() == first.device() &&
           (map ? tensor.dim() == 3 && tensor.size(0) == first.size(0) && tensor.size(1) == height &&
                      tensor.size(2) == width
                : tensor.dim() == 0);
  };
  HMSA_CHECK(fits(grad, is_map), "_fuse_scales_cross_entropy_backward: grad is ", dtype_name(grad), " ", shape_of(grad),
             " on ", device_name(grad), "; expected the dtype, shape and device of the loss");
  HMSA_CHECK(fits(log_sum_exp, true) && log_sum_exp.is_contiguous() && fits(total_weight, false),
             "_fuse_scales_cross_entropy_backward: log_sum_exp ", shape_of(log_sum_exp), " and total_weight ",
             shape_of(total_weight), " are not what the forward op returned");
  const Gradients gradients(arguments, wanted_logits, wanted_attention);
  if (first.size(0) == 0) return gradients.result();
  dispatch_floating(first, [&](auto storage) {
    using S = decltype(storage);
    using T = arithmetic_t<S>;
    FuseScalesCrossEntropyBackward<S> problem{};
    set_inputs(problem, chain, arguments);
    set_gradients(problem, gradients);
    problem.target = target_of<T>(target_arguments, first);
    problem.grad_loss = PlaneView<const T>{static_cast<const T*>(grad.const_data_ptr()), is_map ? grad.stride(0) : 0,
                                           is_map ? grad.stride(1) : 0, is_map ? grad.stride(2) : 0};
    problem.log_sum_exp = static_cast<const T*>(log_sum_exp.const_data_ptr());
    if (reduction == Reduction::kMean) problem.total_weight = static_cast<const T*>(total_weight.const_data_ptr());
    BackEnd::backward(problem, first);
  });
  return gradients.result();
}

}  // namespace
}  // namespace hmsa

STABLE_TORCH_LIBRARY_FRAGMENT(hmsa, m) {
  m.def(
      "_fuse_scales_cross_entropy(Tensor[] logits, Tensor[] attention, float[] scales, Tensor target, Tensor? weight, "
      "int ignore_index, float label_smoothing, str reduction, bool align_corners) "
      "-> (Tensor loss, Tensor log_sum_exp, Tensor total_weight)");
  m.def(
      "_fuse_scales_cross_entropy_backward(Tensor grad, Tensor[] logits, Tensor[] attention, float[] scales, "
      "Tensor target, Tensor? weight, Tensor log_sum_exp, Tensor total_weight, int ignore_index, "
      "float label_smoothing, str reduction, bool align_corners, int wanted_logits, int wanted_attention) "
      "-> (Tensor[], Tensor[])");
}

STABLE_TORCH_LIBRARY_IMPL(hmsa, CPU, m) {
  m.impl("_fuse_scales_cross_entropy", TORCH_BOX(&hmsa::forward<hmsa::OnCpu>));
  m.impl("_fuse_scales_cross_entropy_backward", TORCH_BOX(&hmsa::backward<hmsa::OnCpu>));
}

#if defined(HMSA_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(hmsa, CUDA, m) {
  m.impl("_fuse_scales_cross_entropy", TORCH_BOX(&hmsa::forward<hmsa::OnCuda>));
  m.impl("_fuse_scales_cross_entropy_backward", TORCH_BOX(&hmsa::backward<hmsa::OnCuda>));
}
#endif
