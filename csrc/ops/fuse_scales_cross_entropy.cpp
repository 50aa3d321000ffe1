// hmsa::_fuse_scales_cross_entropy and its backward: schemas, argument checks and the way to each back end. The public op
// is a composite over them, made in Python (hmsa_ext/ops/fuse_scales_cross_entropy.py).
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
  const Tensor& target;
  const std::optional<Tensor>& weight;
  int64_t ignore_index;
  double label_smoothing;
  const std::string& reduction;
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

template <typename Launch>
std::tuple<Tensor, Tensor, Tensor> forward(const ChainArguments& arguments, const TargetArguments& target,
                                           const Launch& launch) {
  check_chain_and_target(arguments, target);
  const Reduction reduction = checked_reduction(target.reduction);
  const int64_t height = target.target.size(1);
  const int64_t width = target.target.size(2);
  const Chain chain = checked_chain(arguments, height, width);
  const Tensor& first = arguments.logits[0];
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
    problem.target = target_of<T>(target, first);
    problem.reduction = reduction;
    problem.loss = static_cast<T*>(loss.mutable_data_ptr());
    problem.log_sum_exp = static_cast<T*>(log_sum_exp.mutable_data_ptr());
    problem.total_weight = static_cast<T*>(total_weight.mutable_data_ptr());
    launch(problem);
  });
  return {loss, log_sum_exp, total_weight};
}

template <typename Launch>
std::tuple<Tensors, Tensors> backward(const Tensor& grad, const ChainArguments& arguments,
                                      const TargetArguments& target, const Tensor& log_sum_exp,
                                      const Tensor& total_weight, int64_t wanted_logits, int64_t wanted_attention,
                                      const Launch& launch) {
  check_chain_and_target(arguments, target);
  const Reduction reduction = checked_reduction(target.reduction);
  const int64_t height = target.target.size(1);
  const int64_t width = target.target.size(2);
  const Chain chain = checked_chain(arguments, height, width);
  const Tensor& first = arguments.logits[0];
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
    problem.target = target_of<T>(target, first);
    problem.grad_loss = PlaneView<const T>{static_cast<const T*>(grad.const_data_ptr()), is_map ? grad.stride(0) : 0,
                                           is_map ? grad.stride(1) : 0, is_map ? grad.stride(2) : 0};
    problem.log_sum_exp = static_cast<const T*>(log_sum_exp.const_data_ptr());
    if (reduction == Reduction::kMean) problem.total_weight = static_cast<const T*>(total_weight.const_data_ptr());
    launch(problem);
  });
  return gradients.result();
}

std::tuple<Tensor, Tensor, Tensor> forward_cpu(const Tensors& logits, const Tensors& attention,
                                               const std::vector<double>& scales, const Tensor& target,
                                               const std::optional<Tensor>& weight, int64_t ignore_index,
                                               double label_smoothing, const std::string& reduction,
                                               bool align_corners) {
  return forward({kName, logits, attention, scales, align_corners},
                 {target, weight, ignore_index, label_smoothing, reduction}, [&](const auto& problem) {
                   const cpu::WrongLabels wrong = cpu::fuse_scales_cross_entropy_forward(problem, torch_threads());
                   check_wrong_labels(kName, wrong, problem.classes, ignore_index);
                 });
}

std::tuple<Tensors, Tensors> backward_cpu(const Tensor& grad, const Tensors& logits, const Tensors& attention,
                                          const std::vector<double>& scales, const Tensor& target,
                                          const std::optional<Tensor>& weight, const Tensor& log_sum_exp,
                                          const Tensor& total_weight, int64_t ignore_index, double label_smoothing,
                                          const std::string& reduction, bool align_corners, int64_t wanted_logits,
                                          int64_t wanted_attention) {
  return backward(grad, {kName, logits, attention, scales, align_corners},
                  {target, weight, ignore_index, label_smoothing, reduction}, log_sum_exp, total_weight, wanted_logits,
                  wanted_attention,
                  [](const auto& problem) { cpu::fuse_scales_cross_entropy_backward(problem, torch_threads()); });
}

#if defined(HMSA_WITH_CUDA)
std::tuple<Tensor, Tensor, Tensor> forward_cuda(const Tensors& logits, const Tensors& attention,
                                                const std::vector<double>& scales, const Tensor& target,
                                                const std::optional<Tensor>& weight, int64_t ignore_index,
                                                double label_smoothing, const std::string& reduction,
                                                bool align_corners) {
  return forward(
      {kName, logits, attention, scales, align_corners}, {target, weight, ignore_index, label_smoothing, reduction},
      [&](const auto& problem) {
        const CudaScope scope(target);
        Tensor workspace =
            empty_of(target, {cuda::fuse_scales_cross_entropy_forward_workspace(problem)}, ScalarType::Double);
        cuda::launch_fuse_scales_cross_entropy_forward(problem, workspace.mutable_data_ptr(), scope.stream());
      });
}

std::tuple<Tensors, Tensors> backward_cuda(const Tensor& grad, const Tensors& logits, const Tensors& attention,
                                           const std::vector<double>& scales, const Tensor& target,
                                           const std::optional<Tensor>& weight, const Tensor& log_sum_exp,
                                           const Tensor& total_weight, int64_t ignore_index, double label_smoothing,
                                           const std::string& reduction, bool align_corners, int64_t wanted_logits,
                                           int64_t wanted_attention) {
  return backward(
      grad, {kName, logits, attention, scales, align_corners},
      {target, weight, ignore_index, label_smoothing, reduction}, log_sum_exp, total_weight, wanted_logits,
      wanted_attention, [&](const auto& problem) {
        const CudaScope scope(target);
        Tensor workspace = empty_arithmetic(log_sum_exp, {cuda::fuse_scales_cross_entropy_backward_workspace(problem)});
        cuda::launch_fuse_scales_cross_entropy_backward(problem, workspace.mutable_data_ptr(), scope.stream());
      });
}
#endif

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
  m.impl("_fuse_scales_cross_entropy", TORCH_BOX(&hmsa::forward_cpu));
  m.impl("_fuse_scales_cross_entropy_backward", TORCH_BOX(&hmsa::backward_cpu));
}

#if defined(HMSA_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(hmsa, CUDA, m) {
  m.impl("_fuse_scales_cross_entropy", TORCH_BOX(&hmsa::forward_cuda));
  m.impl("_fuse_scales_cross_entropy_backward", TORCH_BOX(&hmsa::backward_cuda));
}
#endif
