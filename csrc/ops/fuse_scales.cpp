// hmsa::fuse_scales and hmsa::_fuse_scales_backward: schemas, argument checks and the way to each back end.
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "core/problem.h"
#include "ops/cpu/fuse_scales.h"
#include "ops/tensor.h"
#if defined(HMSA_WITH_CUDA)
#include "ops/cuda/fuse_scales.h"
#include "ops/cuda/stream.h"
#endif

namespace hmsa {
namespace {

using Tensors = std::vector<Tensor>;

ParallelFor torch_threads() { return ParallelFor{torch_thread_count(), torch_parallel_for}; }

std::string name_of(const char* list, size_t i) { return concat(list, "[", i, "]"); }

void check_like(const Tensor& tensor, const std::string& name, const Tensor& first) {
  HMSA_CHECK(tensor.dim() == 4, "fuse_scales: ", name, " has shape ", shape_of(tensor),
             "; expected four dimensions [B, C, h, w]");
  HMSA_CHECK(tensor.scalar_type() == first.scalar_type(), "fuse_scales: ", name, " is ", dtype_name(tensor),
             ", but logits[0] is ", dtype_name(first), "; expected one dtype for all");
  HMSA_CHECK(tensor.device() == first.device(), "fuse_scales: ", name, " is on ", device_name(tensor),
             ", but logits[0] is on ", device_name(first), "; expected one device for all");
  HMSA_CHECK(tensor.size(0) == first.size(0), "fuse_scales: ", name, " has batch size ", tensor.size(0),
             ", but logits[0] has ", first.size(0));
  HMSA_CHECK(tensor.size(2) > 0 && tensor.size(3) > 0 && tensor.size(2) < kMaxSide && tensor.size(3) < kMaxSide,
             "fuse_scales: ", name, " has a map of ", tensor.size(2), " x ", tensor.size(3), "; expected 1 to ",
             kMaxSide - 1, " in height and width");
}

// Checks every argument and works out the geometry.
Chain checked_chain(const Tensors& logits, const Tensors& attention, const std::vector<double>& scales, int64_t height,
                    int64_t width, bool align_corners) {
  const size_t count = scales.size();
  HMSA_CHECK(count >= 1 && count <= kMaxScales, "fuse_scales: scales has ", count, " entries; expected 1 to ",
             kMaxScales);
  HMSA_CHECK(logits.size() == count, "fuse_scales: logits has ", logits.size(), " entries; expected ", count,
             ", one for each of scales");
  HMSA_CHECK(attention.size() + 1 == count, "fuse_scales: attention has ", attention.size(), " entries; expected ",
             count - 1, ", one for each scale but the largest");
  HMSA_CHECK(height > 0 && width > 0 && height < kMaxSide && width < kMaxSide, "fuse_scales: size is (", height, ", ",
             width, "); expected 1 to ", kMaxSide - 1, " in height and width");

  bool has_unit = false;
  for (size_t i = 0; i < count; ++i) {
    HMSA_CHECK(std::isfinite(scales[i]) && scales[i] > 0, "fuse_scales: scales[", i, "] is ", scales[i],
               "; expected a positive number");
    HMSA_CHECK(i == 0 || scales[i] < scales[i - 1], "fuse_scales: scales[", i, "] is ", scales[i], " after ",
               scales[i > 0 ? i - 1 : 0], "; expected strictly descending scales");
    has_unit = has_unit || scales[i] == 1.0;
    const double rows = std::floor(static_cast<double>(height) * scales[i]);
    const double columns = std::floor(static_cast<double>(width) * scales[i]);
    HMSA_CHECK(rows >= 1 && columns >= 1 && rows < kMaxSide && columns < kMaxSide, "fuse_scales: scales[", i, "] is ",
               scales[i], ", which gives a grid of ", rows, " x ", columns, " for size (", height, ", ", width,
               "); expected 1 to ", kMaxSide - 1, " in height and width");
  }
  HMSA_CHECK(has_unit || count == 1, "fuse_scales: scales has ", count,
             " entries without 1.0; expected 1.0 among them");

  const Tensor& first = logits[0];
  HMSA_CHECK(is_floating(first), "fuse_scales: logits[0] is ", dtype_name(first),
             "; expected float32, float16, bfloat16 or float64");
  Extent heads[kMaxScales];
  for (size_t i = 0; i < count; ++i) {
    const std::string name = name_of("logits", i);
    check_like(logits[i], name, first);
    HMSA_CHECK(logits[i].size(1) == first.size(1) && first.size(1) > 0, "fuse_scales: ", name, " has ",
               logits[i].size(1), " channels, logits[0] has ", first.size(1), "; expected the same, at least 1");
    heads[i] = Extent{static_cast<int32_t>(logits[i].size(2)), static_cast<int32_t>(logits[i].size(3))};
  }
  for (size_t i = 0; i + 1 < count; ++i) {
    const Tensor& entry = attention[i];
    const std::string name = name_of("attention", i);
    check_like(entry, name, first);
    HMSA_CHECK(entry.size(1) == attention[0].size(1) && (entry.size(1) == 1 || entry.size(1) == first.size(1)),
               "fuse_scales: ", name, " has ", entry.size(1), " channels; expected 1, or ", first.size(1),
               " as the logits have, the same in every entry");
    HMSA_CHECK(entry.size(2) == heads[i + 1].height && entry.size(3) == heads[i + 1].width, "fuse_scales: ", name,
               " has a map of ", entry.size(2), " x ", entry.size(3), "; expected ", heads[i + 1].height, " x ",
               heads[i + 1].width, ", the map of logits[", i + 1, "], which belongs to the same scale");
  }
  const bool class_wise = count > 1 && attention[0].size(1) != 1;
  return make_chain(static_cast<int>(count), scales.data(), heads,
                    Extent{static_cast<int32_t>(height), static_cast<int32_t>(width)}, class_wise, align_corners);
}

// Runs forward(problem) for the storage type of the tensors.
template <typename S, typename Launch>
void forward_as(const Chain& chain, const Tensors& logits, const Tensors& attention, Tensor& output,
                const Launch& launch) {
  FuseScalesForward<S> problem{};
  problem.chain = chain;
  problem.batch = logits[0].size(0);
  problem.classes = logits[0].size(1);
  for (int i = 0; i < chain.count; ++i) {
    problem.logits[i] = const_view<S>(logits[i]);
    if (i > 0) problem.attention[i] = const_view<S>(attention[i - 1]);
  }
  problem.output = view<S>(output);
  launch(problem);
}

template <typename S, typename Launch>
void backward_as(const Chain& chain, const Tensor& grad, const Tensors& logits, const Tensors& attention,
                 Tensors& grad_logits, Tensors& grad_attention, const Launch& launch) {
  FuseScalesBackward<S> problem{};
  problem.chain = chain;
  problem.batch = logits[0].size(0);
  problem.classes = logits[0].size(1);
  problem.grad_output = const_view<S>(grad);
  for (int i = 0; i < chain.count; ++i) {
    problem.logits[i] = const_view<S>(logits[i]);
    if (grad_logits[i].dim() == 4) problem.grad_logits[i] = view<S>(grad_logits[i]);
    if (i == 0) continue;
    problem.attention[i] = const_view<S>(attention[i - 1]);
    if (grad_attention[i - 1].dim() == 4) problem.grad_attention[i] = view<S>(grad_attention[i - 1]);
  }
  launch(problem);
}

// Allocates the result and hands the problem to launch(problem).
template <typename Launch>
Tensor fuse_scales(const Tensors& logits, const Tensors& attention, const std::vector<double>& scales,
                   const Sizes& size, bool align_corners, const Launch& launch) {
  HMSA_CHECK(size.size() == 2, "fuse_scales: size has ", size.size(), " entries; expected (height, width)");
  const Chain chain = checked_chain(logits, attention, scales, size[0], size[1], align_corners);
  const Tensor& unit = logits[chain.unit];
  Tensor output = empty_in_format_of(unit, {unit.size(0), unit.size(1), size[0], size[1]});
  if (output.numel() == 0) return output;
  dispatch_floating(unit,
                    [&](auto storage) { forward_as<decltype(storage)>(chain, logits, attention, output, launch); });
  return output;
}

// A gradient that is not wanted comes back as an empty one-dimensional tensor.
template <typename Launch>
std::tuple<Tensors, Tensors> fuse_scales_backward(const Tensor& grad, const Tensors& logits, const Tensors& attention,
                                                  const std::vector<double>& scales, bool align_corners,
                                                  int64_t wanted_logits, int64_t wanted_attention,
                                                  const Launch& launch) {
  HMSA_CHECK(grad.dim() == 4 && !logits.empty(), "_fuse_scales_backward: grad has shape ", shape_of(grad),
             "; expected [B, C, H, W]");
  const Chain chain = checked_chain(logits, attention, scales, grad.size(2), grad.size(3), align_corners);
  HMSA_CHECK(grad.scalar_type() == logits[0].scalar_type() && grad.device() == logits[0].device() &&
                 grad.size(0) == logits[0].size(0) && grad.size(1) == logits[0].size(1),
             "_fuse_scales_backward: grad is ", dtype_name(grad), " ", shape_of(grad), " on ", device_name(grad),
             "; logits[0] is ", dtype_name(logits[0]), " ", shape_of(logits[0]), " on ", device_name(logits[0]));
  const auto allocate = [](const Tensor& like, bool wanted) {
    return wanted ? empty_in_format_of(like, {like.size(0), like.size(1), like.size(2), like.size(3)})
                  : torch::stable::new_empty(like, {0});
  };
  Tensors grad_logits;
  Tensors grad_attention;
  for (size_t i = 0; i < logits.size(); ++i) {
    grad_logits.push_back(allocate(logits[i], (wanted_logits >> i & 1) != 0));
  }
  for (size_t i = 0; i < attention.size(); ++i) {
    grad_attention.push_back(allocate(attention[i], (wanted_attention >> i & 1) != 0));
  }
  if (grad.numel() != 0) {
    dispatch_floating(grad, [&](auto storage) {
      backward_as<decltype(storage)>(chain, grad, logits, attention, grad_logits, grad_attention, launch);
    });
  }
  return {grad_logits, grad_attention};
}

Tensor fuse_scales_cpu(const Tensors& logits, const Tensors& attention, const std::vector<double>& scales,
                       const Sizes& size, bool align_corners) {
  return fuse_scales(logits, attention, scales, size, align_corners,
                     [](const auto& problem) { cpu::fuse_scales_forward(problem, torch_threads()); });
}

std::tuple<Tensors, Tensors> fuse_scales_backward_cpu(const Tensor& grad, const Tensors& logits,
                                                      const Tensors& attention, const std::vector<double>& scales,
                                                      bool align_corners, int64_t wanted_logits,
                                                      int64_t wanted_attention) {
  return fuse_scales_backward(grad, logits, attention, scales, align_corners, wanted_logits, wanted_attention,
                              [](const auto& problem) { cpu::fuse_scales_backward(problem, torch_threads()); });
}

#if defined(HMSA_WITH_CUDA)
Tensor fuse_scales_cuda(const Tensors& logits, const Tensors& attention, const std::vector<double>& scales,
                        const Sizes& size, bool align_corners) {
  const CudaScope scope(logits[0]);
  return fuse_scales(logits, attention, scales, size, align_corners,
                     [&](const auto& problem) { cuda::launch_fuse_scales_forward(problem, scope.stream()); });
}

std::tuple<Tensors, Tensors> fuse_scales_backward_cuda(const Tensor& grad, const Tensors& logits,
                                                       const Tensors& attention, const std::vector<double>& scales,
                                                       bool align_corners, int64_t wanted_logits,
                                                       int64_t wanted_attention) {
  const CudaScope scope(grad);
  return fuse_scales_backward(
      grad, logits, attention, scales, align_corners, wanted_logits, wanted_attention, [&](const auto& problem) {
        // sum_c[g * P_before] of every scale but the largest: one number per pixel of its level
        const int64_t floats = cuda::fuse_scales_backward_workspace(problem);
        Tensor workspace = workspace_like(grad, floats);
        cuda::launch_fuse_scales_backward(problem, workspace.mutable_data_ptr(), scope.stream());
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
