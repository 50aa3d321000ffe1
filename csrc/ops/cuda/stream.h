// The current CUDA stream of a tensor's device, in every torch from 2.10 on and without linking libtorch_cuda.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

namespace hmsa {

// Makes the tensor's device current while it lives, and finds the stream that torch has current there. Made once the
// arguments were checked: the tensor must be on a GPU, and wrong arguments end in the same errors as on the CPU.
class CudaScope {
 public:
  explicit CudaScope(const torch::stable::Tensor& tensor);
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace hmsa
