// Region mutual information over chains of octaves (octave_chain.cuh): an ending of octave_forward.cuh that sums the
// binary cross-entropy up and pools probabilities and labels.
//
// Band k has the pixel rows of the windows of row k + 1, and a window's columns are the last two of a quad and the first
// two of the next one. So a lane makes a window from what it has and what the lane before it has.
//
// Pooled probabilities are kept as integers, in units of 2^-24, and pooled labels as numbers of pixels. The products of
// integers and their sums are exact: moments need no float64, and nothing cancels. 2^-24 is what a float32 close to 1 is
// rounded by.
#pragma once

#include "core/fuse_scales_rmi.h"
#include "ops/cuda/label_slots.cuh"
#include "ops/cuda/octave_forward.cuh"
#include "ops/cuda/stream_handle.h"

namespace hmsa {
namespace cuda {
namespace fuse {

constexpr int kProbabilityBits = 24;
// Sums over the pixels of a window to pooled probabilities.
constexpr float kFixedWindow = static_cast<float>(1 << kProbabilityBits) / static_cast<float>(kRmiWindow);
// Labels wait in 16 bits.
constexpr int64_t kMostRmiClasses = INT16_MAX;

// Planes of pooled pixels, rows from quad to quad: [planes][height][pitch].
struct PooledMaps {
  uint32_t* probability;  // null: not wanted
  uint8_t* pixels;        // of the class
  int32_t height, width, pitch;

  HMSA_HOST_DEVICE int32_t plane() const { return height * pitch; }
};

inline PooledMaps pooled_maps(Extent size) {
  const int32_t width = rmi_windows(size.width);
  return PooledMaps{nullptr, nullptr, rmi_windows(size.height), width, round_up(width, kQuad)};
}

// Of a plane, from a block: its binary cross-entropy, and the number of pixels of its class.
struct alignas(16) PlaneSums {
  double loss;
  double pixels;
};

// Some images and classes of a problem: batch and classes of the inputs are those of this part.
template <typename S>
struct PooledChain : ChainInputs<S> {
  LabelView labels;  // of all images
  int64_t ignore_index;
  int64_t first_image, first_class, all_classes;
  PooledMaps pooled;  // [batch, classes] planes
  PlaneSums* sums;    // [batch, blocks, classes]; null: not wanted
};

// ---- arithmetic -----------------------------------------------------------------------------------------------------

// To one unit in the last place.
HMSA_DEVICE float reciprocal(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}
// NaN is 0.
HMSA_DEVICE uint32_t nearest_integer(float x) {
#if defined(__CUDACC__)
  return __float2uint_rn(x);
#else
  return x >= 0.0f ? static_cast<uint32_t>(nearbyintf(x)) : 0;
#endif
}

// sigmoid(z), and the exponential it was made of: nothing overflows and nothing cancels.
struct Probability {
  float e;       // exp(-|z|)
  float larger;  // of sigmoid(z) and sigmoid(-z)

  HMSA_DEVICE explicit Probability(float z) : e(fast_exponential(-fabsf(z))), larger(reciprocal(1.0f + e)) {}
  HMSA_DEVICE float of(float z) const { return z > 0.0f ? larger : larger * e; }
  HMSA_DEVICE float slope() const { return e * larger * larger; }
};

// ---- labels ---------------------------------------------------------------------------------------------------------

// Labels of a lane's quad in 16 bits each: a class, kIgnoredLabel or kWrongLabel. Pixels outside are ignored.
struct alignas(8) LabelQuad {
  uint32_t of[2];

  HMSA_DEVICE bool any_without_class() const { return ((of[0] | of[1]) & 0x80008000u) != 0; }
  HMSA_DEVICE int32_t label(int j) const {
    return static_cast<int16_t>(j % 2 == 0 ? of[j / 2] & 0xffffu : of[j / 2] >> 16);
  }
};

// A class in both halves of a word. Where a label is this class, their difference has a zero.
HMSA_DEVICE uint32_t twice(int32_t c) { return static_cast<uint32_t>(c) * 0x10001u; }
HMSA_DEVICE LabelQuad difference(const LabelQuad& labels, uint32_t twice_class) {
  return {{labels.of[0] ^ twice_class, labels.of[1] ^ twice_class}};
}
HMSA_DEVICE bool is_zero(const LabelQuad& quad, int j) {
  return (quad.of[j / 2] & (j % 2 == 0 ? 0xffffu : 0xffff0000u)) == 0;
}

// The labels of a band, by the warp of the attention, to the lane's place in each row at to(r). Without branches, so that
// the warp is together at the next barrier.
template <typename Block, typename To>
HMSA_DEVICE void fetch_labels(const Block& block, int32_t k, const LabelView& labels, int64_t image,
                              int64_t ignore_index, int64_t classes, const To& to) {
  const Extent size = block.inputs.chain.size;
  const int32_t column = larger(0, smaller(block.column, size.width - kQuad));
  const int64_t at = image * labels.batch + column * labels.column;
  visit_label_type(labels.type, [&](auto type) {
    const auto* from = static_cast<const decltype(type)*>(labels.data) + at;
    HMSA_UNROLL
    for (int r = 0; r < kOctaveBand; ++r) {
      const int32_t y = 4 * k + 2 + r;
      const int64_t row_at = larger(0, smaller(y, size.height - 1)) * labels.row;
      const bool exists = block.place.exists && y >= 0 && y < size.height;
      LabelQuad quad{};
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        const auto label = static_cast<int64_t>(from[row_at + j * labels.column]);
        int32_t code = label >= 0 && label < classes ? static_cast<int32_t>(label) : kWrongLabel;
        code = exists && label != ignore_index ? code : kIgnoredLabel;
        quad.of[j / 2] |= (static_cast<uint32_t>(code) & 0xffffu) << (j % 2 * 16);
      }
      *shared_at<LabelQuad>(to(r)) = quad;
    }
  });
}
HMSA_DEVICE LabelQuad labels_of_quad(int32_t offset) { return *shared_at<const LabelQuad>(offset); }

// ---- the ending -----------------------------------------------------------------------------------------------------

template <typename S, bool kThreeScales>
struct OctavePool {
  using Problem = PooledChain<S>;
  struct Plane {
    uint32_t twice_class;
    int32_t to;  // the lane's window in the next band
    bool has_window;
    // Of a band. With e = exp(-|z|), the sum of log(1 + e) is the logarithm of a product, which is kept less 1: what is
    // added to 1 would lose its digits.
    float product;
    float left, right;  // probabilities of a quad's first and last two columns
    uint32_t pixels;    // of the class, likewise in 16 bits each
    float losses;       // without that logarithm
    // Of the bands so far.
    double loss;
    uint32_t all_pixels;
  };
  static constexpr int kRegisters = kThreeScales ? 96 : 88;  // two blocks of ten or eleven warps fit
  static constexpr int32_t kMoreBands = 3;
  static constexpr int32_t kBandsBefore = 0;
  // Labels of two bands: the warp of the attention fetches one while the planes go through the other.
  static constexpr int32_t kRowBytes = kLanes * static_cast<int32_t>(sizeof(LabelQuad));
  static int32_t bytes(const OctavePlan&) { return 2 * kOctaveBand * kRowBytes; }
  template <typename Block>
  HMSA_DEVICE static int32_t label_row(int32_t k, int r) {
    return Block::kShared + ((k & 1) * kOctaveBand + r) * kRowBytes + lane() * static_cast<int32_t>(sizeof(LabelQuad));
  }

  const Problem& problem;

  template <typename Block>
  HMSA_DEVICE void begin(const Block& block, Plane& plane, int64_t channel) const {
    plane.twice_class = twice(static_cast<int32_t>(problem.first_class + channel));
    // The window behind the last quad is that of a lane whose quad does not exist.
    const bool is_last =
        block.column == problem.chain.size.width && block.unit_columns.hi * kUnit >= problem.chain.size.width;
    plane.has_window = problem.pooled.probability != nullptr && (block.place.owned || is_last);
    const auto number = static_cast<int32_t>(block.image * problem.classes + channel);
    plane.to = number * problem.pooled.plane() + (block.first_band() + 1) * problem.pooled.pitch + block.column / kQuad;
    plane.loss = 0;
    plane.all_pixels = 0;
  }

  template <int r, typename Block>
  HMSA_DEVICE void row(const Block& block, Plane& plane, int32_t k, const Quad<float>& fused) const {
    if (r == 0) {
      plane.product = plane.left = plane.right = plane.losses = 0.0f;
      plane.pixels = 0;
    }
    const LabelQuad labels = labels_of_quad(label_row<Block>(k, r));
    Quad<float> logits = fused;
    if (uniform(labels.any_without_class())) {
      not_predicated();
      // The probability of -infinity is 0, and so is its loss.
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        const int32_t label = labels.label(j);
        if (label < 0) logits.of[j] = label == kIgnoredLabel ? -INFINITY : NAN;
      }
    }
    const LabelQuad differ = difference(labels, plane.twice_class);
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const float z = logits.of[j];
      const bool is_class = is_zero(differ, j);
      const Probability probability(z);
      plane.product = fmaf(plane.product, probability.e, plane.product + probability.e);
      if ((z > 0.0f) != is_class) plane.losses += fabsf(z);
      (j < kQuad / 2 ? plane.left : plane.right) += probability.of(z);
      if (is_class) plane.pixels += j < kQuad / 2 ? 1u : 0x10000u;
    }
    if (r == kOctaveBand - 1) finish_band(block, plane, k);
  }

  template <typename Block>
  HMSA_DEVICE void finish_band(const Block& block, Plane& plane, int32_t k) const {
    plane.loss += plane.losses + log1pf(plane.product);
    plane.all_pixels += (plane.pixels & 0xffffu) + (plane.pixels >> 16);
    if (problem.pooled.probability == nullptr) return;
    const Extent size = problem.chain.size;
    const float beside = before(plane.right);
    const uint32_t pixels = (plane.pixels & 0xffffu) + (before(plane.pixels) >> 16);
    const bool border_row = k < 0 || 4 * k + 2 + kRmiPad >= size.height;
    const bool border_column = block.column == 0 || block.column == size.width;
    const float in_image = (border_row ? 0.5f : 1.0f) * (border_column ? 0.5f : 1.0f);
    const float sum = plane.left + beside + in_image * static_cast<float>(kRmiWindow * kRmiFloor);
    const uint32_t probability = nearest_integer(sum * kFixedWindow);
    if (plane.has_window) {
      problem.pooled.probability[plane.to] = probability;
      problem.pooled.pixels[plane.to] = static_cast<uint8_t>(pixels);
    }
    __syncwarp();
    plane.to += problem.pooled.pitch;
  }

  template <typename Block>
  HMSA_DEVICE void ahead(const Block& block, int32_t k) const {
    fetch_labels(block, k, problem.labels, problem.first_image + block.image, problem.ignore_index, problem.all_classes,
                 [&](int r) { return label_row<Block>(k, r); });
  }
  template <typename Block>
  HMSA_DEVICE void together(const Block&, int32_t) const {}

  template <typename Block>
  HMSA_DEVICE void end(const Block& block, Plane& plane) const {
    if (problem.sums == nullptr) return;
    double loss = block.place.owned ? plane.loss : 0.0;
    uint32_t pixels = block.place.owned ? plane.all_pixels : 0;
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
      loss += __shfl_xor_sync(0xffffffffu, loss, lanes);
      pixels += __shfl_xor_sync(0xffffffffu, pixels, lanes);
    }
    const int64_t channel = block.first_class + warp();
    PlaneSums& to = problem.sums[(block.image * gridDim.x + blockIdx.x) * problem.classes + channel];
    if (lane() == 0) to = {loss, static_cast<double>(pixels)};
  }
};

// ---- the host -------------------------------------------------------------------------------------------------------

constexpr int64_t kRmiBytes = int64_t{16} << 20;  // of workspace, at most

inline int64_t whole_quads(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Whether the pixels of a chain can be pooled so. Maps of at least four windows have a border all around.
template <typename S>
bool pools_octaves(const ChainInputs<S>& inputs, int64_t all_classes) {
  const Extent size = inputs.chain.size;
  return sizeof(arithmetic_t<S>) == sizeof(float) && is_octave(inputs.chain) && has_short_heads(inputs) &&
         all_classes <= kMostRmiClasses && rmi_windows(size.height) >= 4 && rmi_windows(size.width) >= 4;
}

template <typename S, bool kUpper, bool kLower>
using PoolBlock = OctaveForward<S, kUpper, kLower, OctavePool<S, kUpper && kLower>>;

// The inputs of some images and classes.
template <typename S>
ChainInputs<S> part_of_inputs(ChainInputs<S> inputs, Range images, Range classes) {
  const auto move = [&](auto& view, int64_t channel) {
    if (view.data != nullptr) view.data += images.lo * view.batch + channel * view.channel;
  };
  inputs.batch = images.size();
  inputs.classes = classes.size();
  for (int i = 0; i < inputs.chain.count; ++i) {
    move(inputs.logits[i], classes.lo);
    move(inputs.attention[i], 0);
  }
  return inputs;
}

// How the work on a part is divided into blocks; false if nothing fits.
template <typename S>
bool plan_pool(const ChainInputs<S>& inputs, OctavePlan& plan);

// Fills the pooled maps and the sums.
template <typename S>
void launch_pool(const PooledChain<S>& problem, const OctavePlan& plan, StreamHandle stream);

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
