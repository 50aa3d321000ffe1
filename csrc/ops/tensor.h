// The part of torch that the ops use: tensors as views, allocation in a memory format, and words for error messages.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/half.h"
#include "core/problem.h"
#include "ops/cpu/parallel_for.h"

namespace hmsa {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// Heights and widths stay below this, so that twice a side times another fits 64 bits with room to spare.
constexpr int64_t kMaxSide = int64_t(1) << 24;

std::string shape_of(const Tensor& tensor);
std::string dtype_name(ScalarType type);
inline std::string dtype_name(const Tensor& tensor) { return dtype_name(tensor.scalar_type()); }
std::string device_name(const Tensor& tensor);
bool is_floating(const Tensor& tensor);  // one of the four dtypes that the ops take

// Uninitialised, with the dtype and device of `like`, channels_last if `like` is, else contiguous. Large CPU tensors
// are allocated in huge pages: touching 160 MB in pages of 4 KiB takes longer than computing them. Throws
// std::runtime_error with shape, dtype and device where the memory is not available.
Tensor empty_in_format_of(const Tensor& like, const std::vector<int64_t>& sizes);

// Uninitialised, contiguous or channels_last, on the device of `like`; large CPU tensors likewise.
Tensor empty_of(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type, bool channels_last = false);

// The type in which the kernels compute: float64 for float64, else float32.
ScalarType arithmetic_type(const Tensor& tensor);
Tensor empty_arithmetic(const Tensor& like, const std::vector<int64_t>& sizes);

// Torch's threads, as CPU kernels are given them.
ParallelFor torch_threads();

template <typename S>
MapView<S> view(const Tensor& tensor) {
  return MapView<S>{static_cast<S*>(tensor.mutable_data_ptr()), tensor.stride(0), tensor.stride(1), tensor.stride(2),
                    tensor.stride(3)};
}

template <typename S>
MapView<const S> const_view(const Tensor& tensor) {
  return MapView<const S>{static_cast<const S*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1),
                          tensor.stride(2), tensor.stride(3)};
}

// Calls body(S()) with the storage type of the tensor.
template <typename Body>
void dispatch_floating(const Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(float());
    case ScalarType::Double:
      return body(double());
    case ScalarType::Half:
      return body(Half());
    default:
      return body(BFloat16());
  }
}

}  // namespace hmsa
