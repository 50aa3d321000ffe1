#include "ops/tensor.h"

#include <torch/csrc/stable/device.h>

#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/integers.h"

namespace hmsa {
namespace {

using torch::headeronly::MemoryFormat;

// The rule of PyTorch's suggest_memory_format for four dimensions: strides ascend in the order C, W, H, N. A map of
// which channels_last cannot be told from contiguous (C = 1, or H = W = 1) counts as contiguous.
bool is_channels_last(const Tensor& tensor) {
  if (tensor.stride(1) == 0) return false;
  int64_t least = 0;
  for (const int d : {1, 3, 2, 0}) {
    if (tensor.size(d) == 0 || tensor.stride(d) < least) return false;
    if (d == 0 && least == tensor.stride(1)) return false;
    least = tensor.stride(d);
    if (tensor.size(d) > 1) least *= tensor.size(d);
  }
  return true;
}

void ask_for_huge_pages(const Tensor& tensor) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t(2) << 20;
  const size_t bytes = tensor.numel() * tensor.element_size();
  if (!tensor.is_cpu() || bytes < 4 * kHuge) return;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t first = round_up(begin, kHuge);
  const uintptr_t last = (begin + bytes) / kHuge * kHuge;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: failure changes no result
#endif
}

std::string text_of(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (const int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

// Uninitialised memory on the device of `like`. The stable ABI's own exception names a call of its own and no reason,
// so this text replaces it.
Tensor allocate(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type, MemoryFormat format) {
  try {
    Tensor tensor = torch::stable::empty(sizes, type, torch::headeronly::Layout::Strided, like.device(),
                                         /*pin_memory=*/std::nullopt, format);
    ask_for_huge_pages(tensor);
    return tensor;
  } catch (const std::exception&) {
    throw std::runtime_error(concat("out of memory: cannot allocate a tensor ", text_of(sizes), " of ",
                                    dtype_name(type), " on ", device_name(like)));
  }
}

// body(begin, end) over parts of [0, count).
void parallel_for(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  // An exception must not cross torch's C interface: the calling thread throws the first one again.
  std::exception_ptr error;
  std::mutex mutex;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    try {
      body(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace

std::string shape_of(const Tensor& tensor) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < tensor.dim(); ++d) sizes.push_back(tensor.size(d));
  return text_of(sizes);
}

std::string dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return concat("dtype number ", static_cast<int>(type));
  }
}

std::string device_name(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return concat(tensor.is_cuda() ? "cuda:" : "device ", tensor.get_device_index());
}

bool is_floating(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return true;
    default:
      return false;
  }
}

Tensor empty_in_format_of(const Tensor& like, const std::vector<int64_t>& sizes) {
  return allocate(like, sizes, like.scalar_type(),
                  is_channels_last(like) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor empty_of(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type, bool channels_last) {
  return allocate(like, sizes, type, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

ScalarType arithmetic_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor empty_arithmetic(const Tensor& like, const std::vector<int64_t>& sizes) {
  return empty_of(like, sizes, arithmetic_type(like));
}

ParallelFor torch_threads() { return {static_cast<int>(torch::stable::get_num_threads()), parallel_for}; }

}  // namespace hmsa
