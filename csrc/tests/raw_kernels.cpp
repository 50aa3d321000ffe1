// hmsa_raw_kernels: a Python module that runs the CUDA kernels on numpy arrays, on the CPU, by csrc/host_run.
//
//     import hmsa_raw_kernels as raw
//     fused = raw.fuse_scales([z2, z1, z05], [a1, a05], [2.0, 1.0, 0.5], (H, W), seed=3)
//     grad_logits, grad_attention = raw.fuse_scales_backward(grad, [z2, z1, z05], [a1, a05], [2.0, 1.0, 0.5])
//
// Arrays are float32, float64, float16, or uint16 with the bits of bfloat16, [B, C, h, w] at any strides. The results
// come from exactly the code that nvcc compiles; seed chooses the order of threads and blocks, and must not matter. No
// sanitizer watches here: that is what the test_*_cuda.cpp programs are for.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "host_run/cuda_host.h"
// GCC unrolls the loops over scales beyond kMaxScales, although chain.count bounds them, and warns of its own doing.
#pragma GCC diagnostic ignored "-Warray-bounds"
// The kernels see CUDA as a .cu file does.
#include "core/check.h"
#define HMSA_NO_INSTANTIATIONS
#include "ops/cuda/fuse_scales_backward.cu"
#include "ops/cuda/fuse_scales_channel_sums.cu"
#include "ops/cuda/fuse_scales_forward.cu"
#include "ops/cuda/gradient_parts.cu"

namespace {

namespace py = pybind11;
using hmsa::Chain;
using hmsa::concat;
using hmsa::Extent;
using hmsa::MapView;

using Arrays = std::vector<py::array>;

// Calls body(S()) with the storage type of the array.
template <typename Body>
auto dispatch(const py::array& array, const Body& body) {
  const std::string dtype = py::str(static_cast<const py::object&>(array.dtype()));
  if (dtype == "float32") return body(float());
  if (dtype == "float64") return body(double());
  if (dtype == "float16") return body(hmsa::Half());
  HMSA_CHECK(dtype == "uint16", "got an array of ", dtype,
             "; expected float32, float64, float16, or uint16 with the bits of bfloat16");
  return body(hmsa::BFloat16());
}

template <typename S>
MapView<S> view_at(void* data, const py::array& array) {
  const auto stride = [&](int axis) {
    HMSA_CHECK(array.strides(axis) % static_cast<py::ssize_t>(sizeof(S)) == 0, "got strides that split elements");
    return static_cast<int64_t>(array.strides(axis) / static_cast<py::ssize_t>(sizeof(S)));
  };
  return MapView<S>{static_cast<S*>(data), stride(0), stride(1), stride(2), stride(3)};
}

template <typename S>
MapView<S> view(py::array& array) {
  return view_at<S>(array.mutable_data(), array);
}

template <typename S>
MapView<const S> const_view(const py::array& array) {
  const MapView<S> v = view_at<S>(const_cast<void*>(array.data()), array);
  return MapView<const S>{v.data, v.batch, v.channel, v.row, v.column};
}

// NaN everywhere, contiguous or channels_last.
py::array nan_array(const py::array& like, py::ssize_t batch, py::ssize_t channels, py::ssize_t height,
                    py::ssize_t width, bool channels_last) {
  const py::ssize_t item = like.itemsize();
  const std::vector<py::ssize_t> strides =
      channels_last
          ? std::vector<py::ssize_t>{height * width * channels * item, item, width * channels * item, channels * item}
          : std::vector<py::ssize_t>{channels * height * width * item, height * width * item, width * item, item};
  py::array array(like.dtype(), {batch, channels, height, width}, strides);
  std::memset(array.mutable_data(), 0xff, static_cast<size_t>(array.nbytes()));
  return array;
}

py::array nan_array_like(const py::array& like, bool channels_last) {
  return nan_array(like, like.shape(0), like.shape(1), like.shape(2), like.shape(3), channels_last);
}

void check_map(const py::array& array, const std::string& name, const py::array& first, py::ssize_t channels) {
  HMSA_CHECK(array.ndim() == 4, name, " has ", array.ndim(), " dimensions; expected [B, C, h, w]");
  HMSA_CHECK(array.dtype().is(first.dtype()) || array.dtype().equal(first.dtype()), name,
             " has another dtype than logits[0]");
  HMSA_CHECK(array.shape(0) == first.shape(0) && array.shape(1) == channels && array.shape(2) > 0 && array.shape(3) > 0,
             name, " has shape (", array.shape(0), ", ", array.shape(1), ", ", array.shape(2), ", ", array.shape(3),
             "); expected (", first.shape(0), ", ", channels, ", h, w)");
}

// What the kernels take for granted; the op itself explains such mistakes in more words.
Chain checked_chain(const Arrays& logits, const Arrays& attention, const std::vector<double>& scales,
                    std::pair<int, int> size, bool align_corners) {
  HMSA_CHECK(!scales.empty() && scales.size() <= static_cast<size_t>(hmsa::kMaxScales), "got ", scales.size(),
             " scales; expected 1 to ", hmsa::kMaxScales);
  HMSA_CHECK(logits.size() == scales.size() && attention.size() + 1 == scales.size(), "got ", logits.size(),
             " logits and ", attention.size(), " attention for ", scales.size(), " scales");
  HMSA_CHECK(logits[0].ndim() == 4 && logits[0].size() > 0, "logits[0] is empty or not [B, C, h, w]");
  HMSA_CHECK(size.first > 0 && size.second > 0, "size is (", size.first, ", ", size.second, ")");
  bool has_unit = scales.size() == 1;
  std::vector<Extent> heads;
  for (size_t i = 0; i < scales.size(); ++i) {
    HMSA_CHECK(scales[i] > 0 && (i == 0 || scales[i] < scales[i - 1]), "scales are not positive and descending");
    has_unit = has_unit || scales[i] == 1.0;
    const Extent grid = hmsa::grid_extent({size.first, size.second}, scales[i]);
    HMSA_CHECK(grid.height > 0 && grid.width > 0, "scales[", i, "] has an empty grid");
    check_map(logits[i], concat("logits[", i, "]"), logits[0], logits[0].shape(1));
    heads.push_back({static_cast<int32_t>(logits[i].shape(2)), static_cast<int32_t>(logits[i].shape(3))});
    if (i == 0) continue;
    const py::array& a = attention[i - 1];
    const py::ssize_t channels = attention[0].ndim() == 4 && attention[0].shape(1) == 1 ? 1 : logits[0].shape(1);
    check_map(a, concat("attention[", i - 1, "]"), logits[0], channels);
    HMSA_CHECK(a.shape(2) == logits[i].shape(2) && a.shape(3) == logits[i].shape(3), "attention[", i - 1,
               "] has another size than logits[", i, "]");
  }
  HMSA_CHECK(has_unit, "several scales without 1.0");
  const bool class_wise = scales.size() > 1 && attention[0].shape(1) != 1;
  return hmsa::make_chain(static_cast<int>(scales.size()), scales.data(), heads.data(), {size.first, size.second},
                          class_wise, align_corners);
}

py::array fuse_scales(const Arrays& logits, const Arrays& attention, const std::vector<double>& scales,
                      std::pair<int, int> size, bool align_corners, bool channels_last, uint64_t seed) {
  const Chain chain = checked_chain(logits, attention, scales, size, align_corners);
  hmsa::host_run::seed() = seed;
  py::array output =
      nan_array(logits[0], logits[0].shape(0), logits[0].shape(1), size.first, size.second, channels_last);
  dispatch(logits[0], [&](auto storage) {
    using S = decltype(storage);
    hmsa::FuseScalesForward<S> problem{};
    problem.chain = chain;
    problem.batch = logits[0].shape(0);
    problem.classes = logits[0].shape(1);
    for (int i = 0; i < chain.count; ++i) {
      problem.logits[i] = const_view<S>(logits[i]);
      if (i > 0) problem.attention[i] = const_view<S>(attention[i - 1]);
    }
    problem.output = view<S>(output);
    hmsa::cuda::launch_fuse_scales_forward(problem, nullptr);
  });
  return output;
}

std::pair<Arrays, Arrays> fuse_scales_backward(const py::array& grad, const Arrays& logits, const Arrays& attention,
                                               const std::vector<double>& scales, bool align_corners,
                                               bool channels_last, uint64_t seed) {
  HMSA_CHECK(!logits.empty() && logits[0].ndim() == 4, "logits[0] is missing or not [B, C, h, w]");
  check_map(grad, "grad", logits[0], logits[0].shape(1));
  const std::pair<int, int> size(static_cast<int>(grad.shape(2)), static_cast<int>(grad.shape(3)));
  const Chain chain = checked_chain(logits, attention, scales, size, align_corners);
  hmsa::host_run::seed() = seed;
  Arrays grad_logits, grad_attention;
  for (const py::array& array : logits) grad_logits.push_back(nan_array_like(array, channels_last));
  for (const py::array& array : attention) grad_attention.push_back(nan_array_like(array, channels_last));
  dispatch(grad, [&](auto storage) {
    using S = decltype(storage);
    hmsa::FuseScalesBackward<S> problem{};
    problem.chain = chain;
    problem.batch = logits[0].shape(0);
    problem.classes = logits[0].shape(1);
    problem.grad_output = const_view<S>(grad);
    for (int i = 0; i < chain.count; ++i) {
      problem.logits[i] = const_view<S>(logits[i]);
      problem.grad_logits[i] = view<S>(grad_logits[i]);
      if (i == 0) continue;
      problem.attention[i] = const_view<S>(attention[i - 1]);
      problem.grad_attention[i] = view<S>(grad_attention[i - 1]);
    }
    std::unique_ptr<hmsa::host_run::PoisonedMemory> memory;
    const auto workspace = [&](int64_t numbers) {
      const size_t bytes = static_cast<size_t>(numbers) * sizeof(hmsa::arithmetic_t<S>);
      memory = std::make_unique<hmsa::host_run::PoisonedMemory>(bytes);
      return memory->data();
    };
    hmsa::cuda::launch_fuse_scales_backward(problem, workspace, nullptr);
    HMSA_CHECK(memory == nullptr || memory->guard_intact(), "the kernels wrote behind their workspace");
  });
  return {grad_logits, grad_attention};
}

}  // namespace

PYBIND11_MODULE(hmsa_raw_kernels, m) {
  m.doc() = "The CUDA kernels of hmsa_ext, run on the CPU over numpy arrays. For tests only.";
  m.def("fuse_scales", &fuse_scales, py::arg("logits"), py::arg("attention"), py::arg("scales"), py::arg("size"),
        py::kw_only(), py::arg("align_corners") = false, py::arg("channels_last") = false, py::arg("seed") = 0,
        "Forward: [B, C, *size], contiguous or channels_last. Scales descend; attention has one entry fewer.");
  m.def("fuse_scales_backward", &fuse_scales_backward, py::arg("grad"), py::arg("logits"), py::arg("attention"),
        py::arg("scales"), py::kw_only(), py::arg("align_corners") = false, py::arg("channels_last") = false,
        py::arg("seed") = 0, "Backward: (gradients of logits, gradients of attention), as lists.");
}
