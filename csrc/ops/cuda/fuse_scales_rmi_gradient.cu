// Region mutual information on the GPU, backward, chains of octaves.
//
//     dLoss/dz = P / 16 * p (1 - p) + g * (p - y)       and 0 at ignored pixels
//
// Pooled probabilities are made once more (octave_rmi.cuh), P of them (octave_rmi_gradient.cuh), and dLoss/dz where it is
// used, in the one pass of octave_backward.cuh. P of a plane takes the place of probabilities that are no longer needed:
// these lie some planes farther on, and as many planes are done at a time.
#include "ops/cuda/block_sum.cuh"
#include "ops/cuda/octave_backward.cuh"
#include "ops/cuda/octave_rmi_backward.cuh"
#include "ops/cuda/octave_rmi_gradient.cuh"
#include "ops/cuda/workspace.h"

namespace hmsa {
namespace cuda {
namespace fuse {
namespace {

// Some images of a problem.
template <typename S>
struct RmiGradient : ChainInputs<S>, ChainGradients<S> {
  LabelView labels;  // of all images
  int64_t ignore_index;
  int64_t first_image;
  const float* grad_bce;     // one number
  PooledMaps pooled;         // the shape of:
  const float* grad_pooled;  // P / 16, [batch, classes] planes; null: 0
};

// dLoss/dz as a source of octave_backward.cuh.
template <typename S>
struct RmiSource {
  using Problem = RmiGradient<S>;
  static constexpr bool kMakes = true;
  static constexpr int32_t kRows = 1;  // of labels
  const Problem& problem;

  template <typename Block>
  HMSA_DEVICE void ahead(const Block& block, int32_t k) const {
    fetch_labels(block, k, problem.labels, problem.first_image + block.image, problem.ignore_index, problem.classes,
                 [&](int r) { return block.shared_row(k, r, 0); });
  }

  template <int r, typename Block>
  HMSA_DEVICE Quad<float> row(const Block& block, int32_t k, const Quad<float>& fused) const {
    const int32_t channel = block.first_class + warp();
    float pooled[2] = {0.0f, 0.0f};  // of the quad's first two columns, and of the others
    if (problem.grad_pooled != nullptr) {
      const PooledMaps& maps = problem.pooled;
      const auto plane = static_cast<int32_t>(block.image * problem.classes) + channel;
      const int32_t window_row = larger(0, smaller(k + 1, maps.height - 1));
      const int32_t window = larger(0, smaller(block.column / kQuad, maps.width - 1));
      pooled[0] = problem.grad_pooled[plane * maps.plane() + window_row * maps.pitch + window];
      pooled[1] = behind(pooled[0]);
    }
    const LabelQuad labels = labels_of_quad(block.shared_row(k, r, 0));
    const LabelQuad differ = difference(labels, twice(channel));
    const float bce = *problem.grad_bce;
    Quad<float> g;
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const float z = fused.of[j];
      const bool is_class = is_zero(differ, j);
      const Probability probability(z);
      const float smaller_one = probability.larger * probability.e;
      // p - y: where the label is the class, -sigmoid(-z).
      const float off = (z > 0.0f) != is_class ? probability.larger : smaller_one;
      g.of[j] = (is_class ? -bce : bce) * off + pooled[j / 2] * (smaller_one * probability.larger);
    }
    if (uniform(labels.any_without_class())) {
      not_predicated();
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        const int32_t label = labels.label(j);
        if (label < 0) g.of[j] = label == kIgnoredLabel ? 0.0f : NAN;
      }
    }
    return g;
  }
};

template <typename S, bool kUpper, bool kLower>
using RmiBackward = OctaveBackward<S, kUpper, kLower, RmiSource<S>>;

template <typename S, bool kUpper, bool kLower>
__global__ void HMSA_MOST_REGISTERS((RmiBackward<S, kUpper, kLower>::kRegisters))
    rmi_octave_backward_kernel(HMSA_PARAMETER RmiGradient<S> problem, HMSA_PARAMETER OctavePlan plan) {
  go_back_octaves<RmiBackward<S, kUpper, kLower>>(problem, plan);
}

// The gradients of some images.
template <typename S>
ChainGradients<S> part_of_gradients(ChainGradients<S> gradients, int64_t first_image) {
  for (int i = 0; i < kMaxScales; ++i) {
    for (MapView<S>* view : {&gradients.grad_logits[i], &gradients.grad_attention[i]}) {
      if (view->data != nullptr) view->data += first_image * view->batch;
    }
  }
  return gradients;
}

constexpr int32_t kMostCorrelations = 16;  // launches for the planes that are made at a time

}  // namespace

template <typename S>
bool plan_octave_gradient(const FuseScalesRmiBackward<S>& problem, int64_t most, OctaveGradientPlan& plan) {
  plan = OctaveGradientPlan{};
  if (!pools_octaves(problem, problem.classes) || !has_short_maps<S>(problem, problem)) return false;
  plan.moments = problem.grad_covariance != nullptr;
  plan.pooled = pooled_maps(problem.chain.size);
  plan.areas = pooled_areas(plan.pooled.height, plan.pooled.width);
  plan.images = static_cast<int32_t>(problem.batch);
  while (true) {
    ChainInputs<S> part = problem;
    part.batch = plan.images;
    const bool planned = by_kind(problem.chain, [&](auto upper, auto lower) {
      using Pass = RmiBackward<S, decltype(upper)::value, decltype(lower)::value>;
      plan.backward = OctavePlan{};
      return plan_octaves<Pass>(part, plan.backward);
    });
    if (!planned || !plan_pool(part, plan.pool)) return false;
    const int64_t planes = plan.images * problem.classes;
    plan.numbers = whole_quads(sizeof(float));
    if (!plan.moments) return true;
    const int64_t plane = plan.pooled.plane();
    plan.weights = planes * static_cast<int64_t>(sizeof(PlaneWeights));
    plan.pixels = whole_quads(planes * plane);
    const int64_t left = most - plan.numbers - plan.weights - plan.pixels;
    const int64_t slots = left / (plane * static_cast<int64_t>(sizeof(uint32_t)));
    if (slots > planes && (slots - planes) * kMostCorrelations >= planes) {
      // As few launches as fit, of equal size.
      const auto all = static_cast<int32_t>(planes);
      const int32_t group = smaller(static_cast<int32_t>(slots - planes), all);
      plan.ahead = divide_up(all, divide_up(all, group));
      plan.probability = (planes + plan.ahead) * plane * static_cast<int64_t>(sizeof(uint32_t));
      return true;
    }
    if (plan.images == 1) return false;
    plan.images = divide_up(plan.images, 2);
  }
}

template <typename S>
void launch_octave_gradient(const FuseScalesRmiBackward<S>& problem, const OctaveGradientPlan& plan, void* workspace,
                            StreamHandle stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  WorkspaceParts memory(workspace);
  auto* grad_bce = memory.take<float>(plan.numbers);
  auto* weights = memory.take<PlaneWeights>(plan.weights);
  auto* probability = memory.take<uint32_t>(plan.probability);
  auto* pixels = memory.take<uint8_t>(plan.pixels);
  const auto classes = static_cast<int32_t>(problem.classes);
  const auto grid_side = [](int32_t count) { return static_cast<unsigned>(smaller(count, 65535)); };
  for (int32_t b = 0; b < problem.batch; b += plan.images) {
    const Range images{b, smaller(b + plan.images, static_cast<int32_t>(problem.batch))};
    const ChainInputs<S> inputs = part_of_inputs<S>(problem, images, Range{0, classes});
    const int32_t planes = plan.moments ? images.size() * classes : 0;
    const int64_t first = static_cast<int64_t>(b) * classes;
    WeightsProblem weighing{problem.grad_bce, grad_bce, planes, nullptr, nullptr, weights};
    if (plan.moments) {
      weighing.grad_covariance = problem.grad_covariance + first * kRmiVector * kRmiVector;
      weighing.mean = problem.mean + first * kRmiVector;
    }
    HMSA_LAUNCH(rmi_octave_weights_kernel, dim3(grid_side(larger(planes, 1))), dim3(kSumThreads), 0, stream, weighing);
    const float* grad_pooled = nullptr;
    if (plan.moments) {
      PooledMaps pooled = plan.pooled;
      pooled.probability = probability + plan.ahead * pooled.plane();
      pooled.pixels = pixels;
      const PooledChain<S> part{inputs, problem.labels, problem.ignore_index, b, 0, problem.classes, pooled, nullptr};
      launch_pool(part, plan.pool, stream_handle);
      auto* to = reinterpret_cast<float*>(probability);
      for (int32_t plane = 0; plane < planes; plane += plan.ahead) {
        const Range some{plane, smaller(plane + plan.ahead, planes)};
        const CorrelationProblem correlation{pooled, plan.areas, some, weights, to};
        HMSA_LAUNCH(rmi_octave_correlate_kernel,
                    dim3(static_cast<unsigned>(divide_up(plan.areas.count, kWarpsOfPooled)), grid_side(some.size())),
                    dim3(kWarpsOfPooled * kLanes), 0, stream, correlation);
      }
      grad_pooled = to;
    }
    const RmiGradient<S> gradient{
        inputs,     part_of_gradients<S>(problem, b), problem.labels, problem.ignore_index, b, grad_bce, plan.pooled,
        grad_pooled};
    const dim3 grid(static_cast<unsigned>(plan.backward.parts.height * plan.backward.parts.width),
                    grid_side(images.size()));
    by_kind(problem.chain, [&](auto upper, auto lower) {
      HMSA_LAUNCH((rmi_octave_backward_kernel<S, decltype(upper)::value, decltype(lower)::value>), grid,
                  dim3((plan.backward.planes + 1) * kLanes), plan.backward.bytes, stream, gradient, plan.backward);
    });
  }
}

HMSA_INSTANTIATE(bool plan_octave_gradient(const FuseScalesRmiBackward<float>&, int64_t, OctaveGradientPlan&));
HMSA_INSTANTIATE(bool plan_octave_gradient(const FuseScalesRmiBackward<Half>&, int64_t, OctaveGradientPlan&));
HMSA_INSTANTIATE(bool plan_octave_gradient(const FuseScalesRmiBackward<BFloat16>&, int64_t, OctaveGradientPlan&));
HMSA_INSTANTIATE(void launch_octave_gradient(const FuseScalesRmiBackward<float>&, const OctaveGradientPlan&, void*,
                                             StreamHandle));
HMSA_INSTANTIATE(void launch_octave_gradient(const FuseScalesRmiBackward<Half>&, const OctaveGradientPlan&, void*,
                                             StreamHandle));
HMSA_INSTANTIATE(void launch_octave_gradient(const FuseScalesRmiBackward<BFloat16>&, const OctaveGradientPlan&, void*,
                                             StreamHandle));

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
