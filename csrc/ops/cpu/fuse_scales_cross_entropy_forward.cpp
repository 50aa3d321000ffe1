// Cross-entropy of fused logits on the CPU, forward: a few rows of all channels are fused in the caches. Only one loss
// and one log-sum-exp for each pixel are written to memory.
#include <algorithm>
#include <vector>

#include "ops/cpu/fuse_scales_cross_entropy.h"
#include "ops/cpu/fused_rows.h"
#include "ops/cpu/simd/softmax.h"
#include "ops/cpu/tile_grid.h"

namespace hmsa {
namespace cpu {
namespace {

// The sums of a tile. Tiles do not depend on the number of threads, and neither do their sums.
struct TileSums {
  double loss = 0;
  double weight = 0;
  WrongLabels wrong;
};

template <typename S, typename T>
class CrossEntropyRows {
 public:
  explicit CrossEntropyRows(const FuseScalesCrossEntropyForward<S>& problem)
      : problem_(problem), target_(problem.target), ops_(softmax_ops<T>()) {
    for (int64_t c = 0; c < problem.classes; ++c) {
      weight_sum_ += target_.weight == nullptr ? T(1) : target_.weight[c];
    }
  }

  void begin(Scratch<T>& scratch, int64_t b, const Tile& tile) {
    batch_ = b;
    tile_ = tile;
    const int64_t n = tile.columns.size() + kRowSlack;
    for (T** row : {&largest_, &log_rest_, &weighted_, &label_, &own_, &weight_, &loss_}) *row = scratch.take(n);
  }

  void add(const Planes<T>& planes, TileSums& sums) {
    for (int32_t y = planes.rows.lo; y < planes.rows.hi; ++y) add_row(planes.row(0, y), planes.pitch, y, sums);
  }

 private:
  void add_row(const T* planes, int64_t pitch, int32_t y, TileSums& sums) {
    const int64_t n = tile_.columns.size();
    const int64_t classes = problem_.classes;
    load_labels(label_, {target_.labels, batch_, y, tile_.columns, classes, target_.ignore_index}, sums.wrong);
    ops_.log_sum(largest_, log_rest_, planes, pitch, classes, n);
    if (target_.label_smoothing > 0) ops_.weighted_sum(weighted_, planes, pitch, target_.weight, classes, n);

    ops_.pick(own_, planes, pitch, label_, n);
    if (target_.weight == nullptr) {
      std::fill(weight_, weight_ + n, T(1));
    } else {
      for (int64_t x = 0; x < n; ++x) weight_[x] = target_.weight[std::max(static_cast<int32_t>(label_[x]), 0)];
    }
    const int64_t first = (batch_ * problem_.chain.size.height + y) * problem_.chain.size.width + tile_.columns.lo;
    T* log_sum_exp = problem_.log_sum_exp + first;
    T* loss = problem_.reduction == Reduction::kNone ? problem_.loss + first : loss_;
    const T e = target_.label_smoothing;
    ops_.cross_entropy_loss(loss, log_sum_exp, weight_, {largest_, log_rest_, own_, label_, T(1) - e}, n);
    for (int64_t x = 0; e > 0 && x < n; ++x) {
      if (label_[x] >= T(0)) {
        loss[x] += e / static_cast<T>(classes) * (weight_sum_ * log_sum_exp[x] - weighted_[x]);
      }
    }
    sums.loss += ops_.sum(loss, n);
    sums.weight += ops_.sum(weight_, n);
  }

  const FuseScalesCrossEntropyForward<S>& problem_;
  const CrossEntropyTarget<T>& target_;
  const SoftmaxOps<T>& ops_;
  T weight_sum_ = 0;
  int64_t batch_ = 0;
  Tile tile_{{0, 0}, {0, 0}};
  T* largest_ = nullptr;
  T* log_rest_ = nullptr;
  T* weighted_ = nullptr;
  T* label_ = nullptr;
  T* own_ = nullptr;
  T* weight_ = nullptr;
  T* loss_ = nullptr;
};

template <typename S>
WrongLabels forward(const FuseScalesCrossEntropyForward<S>& problem, const ParallelFor& parallel_for) {
  using T = arithmetic_t<S>;
  const TileGrid tiles = FusedRows<S, T>::tiles(problem);
  const ChainAxes<T> axes(problem.chain, /*with_adjoint=*/false);
  std::vector<TileSums> sums(tiles.count());
  parallel_for.run(tiles.count(), [&](int64_t begin, int64_t end) {
    Scratch<T> scratch;
    FusedRows<S, T> fused(problem, axes);
    CrossEntropyRows<S, T> rows(problem);
    for (int64_t i = begin; i < end; ++i) {
      const auto mark = scratch.mark();
      rows.begin(scratch, tiles.image(i), tiles.tile(i));
      fused.for_groups(scratch, tiles.image(i), tiles.tile(i),
                       [&](const Planes<T>& planes) { rows.add(planes, sums[i]); });
      scratch.rewind(mark);
    }
  });
  TileSums all;
  for (const TileSums& tile : sums) {
    all.loss += tile.loss;
    all.weight += tile.weight;
    all.wrong.add(tile.wrong);
  }
  *problem.total_weight = static_cast<T>(all.weight);
  if (problem.reduction == Reduction::kSum) *problem.loss = static_cast<T>(all.loss);
  if (problem.reduction == Reduction::kMean) *problem.loss = static_cast<T>(all.loss / all.weight);
  return all.wrong;
}

}  // namespace

template <typename S>
WrongLabels fuse_scales_cross_entropy_forward(const FuseScalesCrossEntropyForward<S>& problem,
                                              const ParallelFor& parallel_for) {
  return forward(problem, parallel_for);
}

template WrongLabels fuse_scales_cross_entropy_forward(const FuseScalesCrossEntropyForward<float>&, const ParallelFor&);
template WrongLabels fuse_scales_cross_entropy_forward(const FuseScalesCrossEntropyForward<double>&,
                                                       const ParallelFor&);
template WrongLabels fuse_scales_cross_entropy_forward(const FuseScalesCrossEntropyForward<Half>&, const ParallelFor&);
template WrongLabels fuse_scales_cross_entropy_forward(const FuseScalesCrossEntropyForward<BFloat16>&,
                                                       const ParallelFor&);

}  // namespace cpu
}  // namespace hmsa
