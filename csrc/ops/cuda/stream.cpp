#include "ops/cuda/stream.h"

#include <dlfcn.h>

#include "core/check.h"

namespace hmsa {
namespace {

// The stable ABI hands out a stream's native handle only from torch 2.13 on. The older C shim for it lives in
// libtorch_cuda, which a library that must load in CPU-only builds of torch, too, cannot be linked to. By the time a
// CUDA tensor exists torch has loaded it, so it is looked up there, once.
using GetCurrentStream = int32_t (*)(int32_t device, void** stream);

GetCurrentStream find_get_current_stream() {
  void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  HMSA_CHECK(torch_cuda != nullptr, "a CUDA tensor came, but libtorch_cuda is not loaded");
  void* symbol = dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream");
  HMSA_CHECK(symbol != nullptr, "libtorch_cuda has no aoti_torch_get_current_cuda_stream");
  return reinterpret_cast<GetCurrentStream>(symbol);
}

}  // namespace

CudaScope::CudaScope(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
  static const GetCurrentStream get_current_stream = find_get_current_stream();
  HMSA_CHECK(get_current_stream(tensor.get_device_index(), &stream_) == 0,
             "torch did not tell the current stream of "
             "cuda:",
             tensor.get_device_index());
}

}  // namespace hmsa
