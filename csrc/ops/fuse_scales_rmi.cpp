// hmsa::_fuse_scales_rmi and its backward: schemas, argument checks and the call of each back end. The losses over them
// are in Python (hmsa_ext/losses/rmi.py).
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "core/fuse_scales_rmi.h"
#include "ops/chain_arguments.h"
#include "ops/cpu/fuse_scales_rmi.h"
#if defined(HMSA_WITH_CUDA)
#include "ops/cuda/fuse_scales_rmi.h"
#include "ops/cuda/stream.h"
#endif

namespace hmsa {
namespace {

constexpr const char* kName = "fuse_scales_rmi";
constexpr const char* kBackwardName = "_fuse_scales_rmi_backward";

using Moments = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // bce, valid, mean, covariance

// Checks the arguments of either direction and works out the geometry.
Chain checked_problem(const ChainArguments& arguments, const Tensor& target, bool moments) {
  const Tensors& logits = arguments.logits;
  HMSA_CHECK(!logits.empty() && logits[0].dim() == 4, arguments.op, ": logits has ", logits.size(), " entries",
             logits.empty() ? std::string() : ", the first of shape " + shape_of(logits[0]),
             "; expected one [B, C, h, w] for each of scales");
  checked_target(arguments.op, target, logits[0]);
  const int64_t height = target.size(1);
  const int64_t width = target.size(2);
  HMSA_CHECK(!moments || (height >= kRmiSmallest && width >= kRmiSmallest), arguments.op, ": target has shape ",
             shape_of(target), "; expected at least ", kRmiSmallest, " x ", kRmiSmallest, " pixels");
  return checked_chain(arguments, height, width);
}

// The back ends. `like` is a tensor on the device of the problem.
struct OnCpu {
  template <typename S>
  static void forward(const FuseScalesRmiForward<S>& problem, const Tensor&) {
    const cpu::WrongLabels wrong = cpu::fuse_scales_rmi_forward(problem, torch_threads());
    check_wrong_labels(kName, wrong, problem.classes, problem.ignore_index);
  }

  template <typename S>
  static void backward(const FuseScalesRmiBackward<S>& problem, const Tensor&) {
    cpu::fuse_scales_rmi_backward(problem, torch_threads());
  }
};

#if defined(HMSA_WITH_CUDA)
struct OnCuda {
  template <typename S>
  static void forward(const FuseScalesRmiForward<S>& problem, const Tensor& like) {
    const CudaScope scope(like);
    Tensor workspace = empty_of(like, {cuda::fuse_scales_rmi_forward_workspace(problem)}, ScalarType::Byte);
    cuda::launch_fuse_scales_rmi_forward(problem, workspace.mutable_data_ptr(), scope.stream());
  }

  template <typename S>
  static void backward(const FuseScalesRmiBackward<S>& problem, const Tensor& like) {
    const CudaScope scope(like);
    Tensor workspace = empty_of(like, {cuda::fuse_scales_rmi_backward_workspace(problem)}, ScalarType::Byte);
    cuda::launch_fuse_scales_rmi_backward(problem, workspace.mutable_data_ptr(), scope.stream());
  }
};
#endif

template <typename BackEnd>
Moments forward(const Tensors& logits, const Tensors& attention, const std::vector<double>& scales,
                const Tensor& target, int64_t ignore_index, bool moments, bool align_corners) {
  const ChainArguments arguments{kName, logits, attention, scales, align_corners};
  const Chain chain = checked_problem(arguments, target, moments);
  const Tensor& first = logits[0];
  const int64_t batch = first.size(0);
  const int64_t classes = first.size(1);
  const auto shape = [&](std::vector<int64_t> sizes) { return moments ? sizes : std::vector<int64_t>{0}; };
  Tensor bce = empty_of(first, {}, ScalarType::Double);
  Tensor valid = empty_of(first, {}, ScalarType::Double);
  Tensor mean = empty_of(first, shape({batch, classes, kRmiVector}), ScalarType::Double);
  Tensor covariance = empty_of(first, shape({batch, classes, kRmiVector, kRmiVector}), ScalarType::Double);
  if (batch == 0) {
    torch::stable::fill_(bce, 0.0);
    torch::stable::fill_(valid, 0.0);
    return {bce, valid, mean, covariance};
  }
  dispatch_floating(first, [&](auto storage) {
    using S = decltype(storage);
    FuseScalesRmiForward<S> problem{};
    set_inputs(problem, chain, arguments);
    problem.labels = checked_target(kName, target, first);
    problem.ignore_index = ignore_index;
    problem.bce = static_cast<double*>(bce.mutable_data_ptr());
    problem.valid = static_cast<double*>(valid.mutable_data_ptr());
    if (moments) {
      problem.mean = static_cast<double*>(mean.mutable_data_ptr());
      problem.covariance = static_cast<double*>(covariance.mutable_data_ptr());
    }
    BackEnd::forward(problem, first);
  });
  return {bce, valid, mean, covariance};
}

void check_double(const char* name, const Tensor& tensor, const Tensor& logits, const std::vector<int64_t>& sizes) {
  bool fits = tensor.scalar_type() == ScalarType::Double && tensor.device() == logits.device() &&
              tensor.is_contiguous() && tensor.dim() == static_cast<int64_t>(sizes.size());
  std::string expected;
  for (size_t d = 0; d < sizes.size(); ++d) {
    fits = fits && tensor.size(static_cast<int64_t>(d)) == sizes[d];
    expected += (d > 0 ? ", " : "") + std::to_string(sizes[d]);
  }
  HMSA_CHECK(fits, kBackwardName, ": ", name, " is ", dtype_name(tensor), " ", shape_of(tensor), " on ",
             device_name(tensor), tensor.is_contiguous() ? "" : ", not contiguous", "; expected contiguous float64 [",
             expected, "] on ", device_name(logits));
}

template <typename BackEnd>
std::tuple<Tensors, Tensors> backward(const Tensor& grad_bce, const std::optional<Tensor>& grad_covariance,
                                      const Tensors& logits, const Tensors& attention,
                                      const std::vector<double>& scales, const Tensor& target,
                                      const std::optional<Tensor>& mean, int64_t ignore_index, bool align_corners,
                                      int64_t wanted_logits, int64_t wanted_attention) {
  const ChainArguments arguments{kBackwardName, logits, attention, scales, align_corners};
  const bool moments = grad_covariance.has_value();
  const Chain chain = checked_problem(arguments, target, moments);
  const Tensor& first = logits[0];
  const int64_t batch = first.size(0);
  const int64_t classes = first.size(1);
  check_double("grad_bce", grad_bce, first, {});
  HMSA_CHECK(mean.has_value() == moments, kBackwardName, ": ", moments ? "grad_covariance" : "mean", " is given, ",
             moments ? "mean" : "grad_covariance", " is not; expected both or none");
  if (moments) {
    check_double("grad_covariance", *grad_covariance, first, {batch, classes, kRmiVector, kRmiVector});
    check_double("mean", *mean, first, {batch, classes, kRmiVector});
  }
  const Gradients gradients(arguments, wanted_logits, wanted_attention);
  if (batch == 0) return gradients.result();
  dispatch_floating(first, [&](auto storage) {
    using S = decltype(storage);
    FuseScalesRmiBackward<S> problem{};
    set_inputs(problem, chain, arguments);
    set_gradients(problem, gradients);
    problem.labels = checked_target(kBackwardName, target, first);
    problem.ignore_index = ignore_index;
    problem.grad_bce = static_cast<const double*>(grad_bce.const_data_ptr());
    if (moments) {
      problem.grad_covariance = static_cast<const double*>(grad_covariance->const_data_ptr());
      problem.mean = static_cast<const double*>(mean->const_data_ptr());
    }
    BackEnd::backward(problem, first);
  });
  return gradients.result();
}

}  // namespace
}  // namespace hmsa

STABLE_TORCH_LIBRARY_FRAGMENT(hmsa, m) {
  m.def(
      "_fuse_scales_rmi(Tensor[] logits, Tensor[] attention, float[] scales, Tensor target, int ignore_index, "
      "bool moments, bool align_corners) -> (Tensor bce, Tensor valid, Tensor mean, Tensor covariance)");
  m.def(
      "_fuse_scales_rmi_backward(Tensor grad_bce, Tensor? grad_covariance, Tensor[] logits, Tensor[] attention, "
      "float[] scales, Tensor target, Tensor? mean, int ignore_index, bool align_corners, int wanted_logits, "
      "int wanted_attention) -> (Tensor[], Tensor[])");
}

STABLE_TORCH_LIBRARY_IMPL(hmsa, CPU, m) {
  m.impl("_fuse_scales_rmi", TORCH_BOX(&hmsa::forward<hmsa::OnCpu>));
  m.impl("_fuse_scales_rmi_backward", TORCH_BOX(&hmsa::backward<hmsa::OnCpu>));
}

#if defined(HMSA_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(hmsa, CUDA, m) {
  m.impl("_fuse_scales_rmi", TORCH_BOX(&hmsa::forward<hmsa::OnCuda>));
  m.impl("_fuse_scales_rmi_backward", TORCH_BOX(&hmsa::backward<hmsa::OnCuda>));
}
#endif
