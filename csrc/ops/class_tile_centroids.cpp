// hmsa::class_tile_centroids: schema, argument checks and the call of each back end.
#include <algorithm>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "core/class_tile_centroids.h"
#include "ops/cpu/class_tile_centroids.h"
#include "ops/tensor.h"
#if defined(HMSA_WITH_CUDA)
#include "ops/cuda/class_tile_centroids.h"
#include "ops/cuda/stream.h"
#endif

namespace hmsa {
namespace {

constexpr const char* kName = "class_tile_centroids";

// The back ends. `like` is a tensor on the device of the problem.
struct OnCpu {
  static void run(const ClassTileCentroids& problem, const Tensor&) {
    cpu::class_tile_centroids(problem, torch_threads());
  }
};

#if defined(HMSA_WITH_CUDA)
struct OnCuda {
  static void run(const ClassTileCentroids& problem, const Tensor& like) {
    const CudaScope scope(like);
    Tensor sums = empty_of(like, {cuda::class_tile_centroids_sums(problem)}, ScalarType::Long);
    cuda::launch_class_tile_centroids(problem, static_cast<unsigned long long*>(sums.mutable_data_ptr()),
                                      scope.stream());
  }
};
#endif

template <typename BackEnd>
std::tuple<Tensor, Tensor> class_tile_centroids(const Tensor& labels, int64_t tile, int64_t num_classes) {
  HMSA_CHECK(labels.scalar_type() == ScalarType::Byte, kName, ": labels is ", dtype_name(labels), "; expected uint8");
  HMSA_CHECK(labels.dim() == 3, kName, ": labels has shape ", shape_of(labels), "; expected [B, H, W]");
  HMSA_CHECK(labels.size(1) <= kMaxTiledSide && labels.size(2) <= kMaxTiledSide, kName, ": labels has shape ",
             shape_of(labels), "; expected sides of at most ", kMaxTiledSide);
  HMSA_CHECK(tile >= 1, kName, ": tile is ", tile, "; expected at least 1");
  HMSA_CHECK(num_classes >= 1 && num_classes <= 256, kName, ": num_classes is ", num_classes, "; expected 1 to 256");
  ClassTileCentroids problem{};
  problem.labels = PlaneView<const uint8_t>{static_cast<const uint8_t*>(labels.const_data_ptr()), labels.stride(0),
                                            labels.stride(1), labels.stride(2)};
  problem.batch = labels.size(0);
  problem.height = labels.size(1);
  problem.width = labels.size(2);
  problem.tile = std::min(tile, kMaxTiledSide);  // larger than any image
  problem.classes = static_cast<int32_t>(num_classes);
  const std::vector<int64_t> cells{problem.batch, problem.tile_rows(), problem.tile_columns(), num_classes};
  Tensor counts = empty_of(labels, cells, ScalarType::Long);
  Tensor centres = empty_of(labels, {cells[0], cells[1], cells[2], cells[3], 2}, ScalarType::Double);
  problem.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  problem.centres = static_cast<int64_t*>(centres.mutable_data_ptr());
  if (problem.cells() > 0) BackEnd::run(problem, labels);
  return {counts, centres};
}

}  // namespace
}  // namespace hmsa

STABLE_TORCH_LIBRARY_FRAGMENT(hmsa, m) {
  m.def("class_tile_centroids(Tensor labels, int tile, int num_classes) -> (Tensor counts, Tensor centres)");
}

STABLE_TORCH_LIBRARY_IMPL(hmsa, CPU, m) {
  m.impl("class_tile_centroids", TORCH_BOX(&hmsa::class_tile_centroids<hmsa::OnCpu>));
}

#if defined(HMSA_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(hmsa, CUDA, m) {
  m.impl("class_tile_centroids", TORCH_BOX(&hmsa::class_tile_centroids<hmsa::OnCuda>));
}
#endif
