// hmsa::confusion_matrix: schema, argument checks and the call of each back end.
#include <tuple>

#include "core/check.h"
#include "core/confusion_matrix.h"
#include "ops/cpu/confusion_matrix.h"
#include "ops/labels.h"
#include "ops/tensor.h"
#if defined(HMSA_WITH_CUDA)
#include "ops/cuda/confusion_matrix.h"
#include "ops/cuda/stream.h"
#endif

namespace hmsa {
namespace {

constexpr const char* kName = "confusion_matrix";
constexpr int64_t kMostClasses = 4096;  // 128 MB of counts

// The back ends. `like` is a tensor on the device of the problem.
struct OnCpu {
  static void run(const ConfusionMatrix& problem, const Tensor&) { cpu::confusion_matrix(problem, torch_threads()); }
};

#if defined(HMSA_WITH_CUDA)
struct OnCuda {
  static void run(const ConfusionMatrix& problem, const Tensor& like) {
    const CudaScope scope(like);
    Tensor partials = empty_of(like, {cuda::confusion_matrix_partials(problem)}, ScalarType::Int);
    cuda::launch_confusion_matrix(problem, static_cast<uint32_t*>(partials.mutable_data_ptr()), scope.stream());
  }
};
#endif

template <typename BackEnd>
std::tuple<Tensor, Tensor> confusion_matrix(const Tensor& prediction, const Tensor& target, int64_t num_classes,
                                            int64_t ignore_index) {
  HMSA_CHECK(num_classes >= 1 && num_classes <= kMostClasses, kName, ": num_classes is ", num_classes,
             "; expected 1 to ", kMostClasses);
  ConfusionMatrix problem{};
  problem.prediction = checked_labels(kName, "prediction", prediction);
  problem.target = checked_labels(kName, "target", target);
  HMSA_CHECK(prediction.size(0) == target.size(0) && prediction.size(1) == target.size(1) &&
                 prediction.size(2) == target.size(2),
             kName, ": prediction has shape ", shape_of(prediction), ", target ", shape_of(target),
             "; expected the same");
  HMSA_CHECK(prediction.device() == target.device(), kName, ": prediction is on ", device_name(prediction),
             ", target on ", device_name(target), "; expected one device");
  problem.batch = target.size(0);
  problem.height = target.size(1);
  problem.width = target.size(2);
  problem.classes = static_cast<int32_t>(num_classes);
  problem.ignore_index = ignore_index;
  Tensor counts = empty_of(target, {num_classes, num_classes}, ScalarType::Long);
  Tensor invalid = empty_of(target, {}, ScalarType::Long);
  problem.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  problem.invalid = static_cast<int64_t*>(invalid.mutable_data_ptr());
  BackEnd::run(problem, target);
  return {counts, invalid};
}

}  // namespace
}  // namespace hmsa

STABLE_TORCH_LIBRARY_FRAGMENT(hmsa, m) {
  m.def(
      "confusion_matrix(Tensor prediction, Tensor target, int num_classes, *, int ignore_index=255) "
      "-> (Tensor counts, Tensor invalid)");
}

STABLE_TORCH_LIBRARY_IMPL(hmsa, CPU, m) { m.impl("confusion_matrix", TORCH_BOX(&hmsa::confusion_matrix<hmsa::OnCpu>)); }

#if defined(HMSA_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(hmsa, CUDA, m) {
  m.impl("confusion_matrix", TORCH_BOX(&hmsa::confusion_matrix<hmsa::OnCuda>));
}
#endif
