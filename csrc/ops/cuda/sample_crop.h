// CUDA kernels of sample_crop: launched over plain device pointers; nothing here knows torch.
#pragma once

#include "core/sample_crop.h"
#include "ops/cuda/stream_handle.h"

namespace hmsa {
namespace cuda {

// How many sums the kernels need: three for each crop and each block that adds up its pixels, if the mean of one is needed.
int64_t sample_crop_sums(const SampleCrop& problem);

// `problem.items` is memory of the host; what it points to is the device's.
void launch_sample_crop(const SampleCrop& problem, unsigned long long* sums, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
