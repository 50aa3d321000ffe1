// Region mutual information on the GPU: probabilities of a part of the output in the workspace, made from the fused
// logits by class_tiles.cuh (fuse_scales_rmi_probability.cu), and their windows pooled in shared memory.
#pragma once

#include "core/fuse_scales_rmi.h"
#include "ops/cuda/block_sum.cuh"
#include "ops/cuda/class_tiles.cuh"
#include "ops/cuda/fuse_scales_rmi.h"
#include "ops/cuda/label_slots.cuh"
#include "ops/cuda/online_softmax.cuh"

namespace hmsa {
namespace cuda {
namespace forward {

HMSA_DEVICE float logarithm_of_one_more(float x) { return log1pf(x); }
HMSA_DEVICE double logarithm_of_one_more(double x) { return log1p(x); }

// With e = exp(-|z|) nothing overflows and nothing cancels.
template <typename T>
struct Sigmoid {
  T e;
  T larger;  // of sigmoid(z) and sigmoid(-z)

  HMSA_DEVICE explicit Sigmoid(T z) : e(exponential(z > T(0) ? -z : z)), larger(T(1) / (T(1) + e)) {}
  HMSA_DEVICE T of(T z) const { return z > T(0) ? larger : larger * e; }
  HMSA_DEVICE T slope() const { return e * larger * larger; }
  HMSA_DEVICE T softplus(T z) const { return (z > T(0) ? z : T(0)) + logarithm_of_one_more(e); }
};

// What the kernels need of a problem: there is no room for all of it among a kernel's parameters.
template <typename S>
struct RmiPart : ChainInputs<S> {
  using T = arithmetic_t<S>;
  CrossEntropyTarget<T> target;
  MapView<T> probability;  // of a part of the output, at ignored pixels 0; null: not wanted
  // Binary cross-entropy and number of valid pixels of each block's tile, [.][2]; null: not wanted. Rows of pixels from
  // `end_row` on are another part's.
  double* sums;
  int32_t end_row;
};

// How fuse_scales_rmi_probability.cu divides a part: it leaves sums of tile_count() tiles for each share of the classes
// and image.
template <typename S>
ClassLayout plan_probability(const ChainInputs<S>& inputs, const Part& part) {
  constexpr int kSlots = 2;  // label and loss
  return plan_classes(inputs, part, kSlots, true);
}

template <typename S>
void launch_probability(const RmiPart<S>& problem, const Part& part, StreamHandle stream);

// Elements of a part where those of the whole map would be: [images, classes, rows, columns] from `memory` on.
template <typename T>
MapView<T> view_of_part(T* memory, const Part& part) {
  const int64_t row = part.output.columns.size();
  const int64_t channel = part.output.rows.size() * row;
  const int64_t batch = part.classes.size() * channel;
  const int64_t first =
      part.images.lo * batch + part.classes.lo * channel + part.output.rows.lo * row + part.output.columns.lo;
  return MapView<T>{memory - first, batch, channel, row, 1};
}

// ---- windows --------------------------------------------------------------------------------------------------------

// The windows that a block of kSumThreads threads has in shared memory: neighbourhoods that start in kTileRows x
// kTileColumns pooled pixels, or gradients of the pooled pixels that these surround.
constexpr int32_t kTileRows = 8;
constexpr int32_t kTileColumns = 32;
constexpr int32_t kMostWindows = (kTileRows + 2 * kRmiReach) * (kTileColumns + 2 * kRmiReach);

// Pooled probabilities and labels of class c of image b: to[kind][row][column] for `windows`, 0 where there are none.
template <typename T>
HMSA_DEVICE void pool_windows(double (*to)[kMostWindows], const MapView<T>& probability,
                              const CrossEntropyTarget<T>& target, int64_t b, int64_t c, Extent size,
                              const Tile& windows) {
  const int32_t width = windows.columns.size();
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < windows.rows.size() * width; i += kSumThreads) {
    const int32_t k = windows.rows.lo + i / width;
    const int32_t l = windows.columns.lo + i % width;
    double sums[2] = {0, 0};
    if (k >= 0 && l >= 0 && k < rmi_windows(size.height) && l < rmi_windows(size.width)) {
      const Range rows = rmi_pixels(Range{k, k + 1}, size.height);
      const Range columns = rmi_pixels(Range{l, l + 1}, size.width);
      for (int32_t y = rows.lo; y < rows.hi; ++y) {
        for (int32_t x = columns.lo; x < columns.hi; ++x) {
          const int64_t label = target.labels.at(b, y, x);
          sums[0] += *probability.at(b, c, y, x) + kRmiFloor;
          sums[1] += label == c && label != target.ignore_index ? 1 : 0;
        }
      }
    }
    to[0][i] = sums[0] / kRmiWindow;
    to[1][i] = sums[1] / kRmiWindow;
  }
}

}  // namespace forward
}  // namespace cuda
}  // namespace hmsa
