// Region mutual information on the CPU, backward: the chain's backward (chain_backward.h). Its source fuses the logits
// once more and computes the gradient from them.
//
// With P the gradient of the pooled probability of a pixel's window and g that of the binary cross-entropy,
//
//     dLoss/dz = P / 16 * p (1 - p) + g * (p - y)       and 0 at pixels that do not count
//
// A part first pools all its windows again, and two more on each side. P / 16 is a correlation of these (RmiKernel).
// The part keeps it in memory: one number for sixteen pixels.
#include <algorithm>

#include "ops/cpu/chain_backward.h"
#include "ops/cpu/fuse_scales_rmi.h"
#include "ops/cpu/fuse_scales_rmi_windows.h"

namespace hmsa {
namespace cpu {
namespace {

constexpr PartLimits kParts{256, 512, 64, 128, 10000};

template <typename S, typename T>
class RmiGradient {
 public:
  static constexpr bool kReadsFused = true;
  static constexpr bool kPassesLower = false;

  RmiGradient(const FuseScalesRmiBackward<S>& problem, const ChainAxes<T>& axes)
      : problem_(problem),
        windows_(problem, axes, problem.labels, problem.ignore_index),
        ops_(windows_.ops()),
        grad_bce_(static_cast<T>(*problem.grad_bce)) {}

  void begin_part(Scratch<T>& scratch, int64_t b, const Tile& output) {
    batch_ = b;
    columns_ = output.columns;
    pitch_ = scratch.pitch(columns_.size() + kRowSlack);
    grad_ = scratch.take(kGroupRows * pitch_);
    labels_ = scratch.take(kGroupRows * pitch_);
    spread_ = scratch.take(pitch_);
    if (problem_.grad_covariance != nullptr) pool(scratch, b, output);
  }

  void begin_channels(int64_t, int64_t) { spread_channel_ = -1; }
  int32_t group_rows() const { return kGroupRows; }

  void begin_group(Range rows) {
    group_ = rows;
    WrongLabels wrong;  // the forward pass has counted them
    for (int32_t y = rows.lo; y < rows.hi; ++y) {
      load_labels(labels_ + (y - rows.lo) * pitch_,
                  {problem_.labels, batch_, y, columns_, problem_.classes, problem_.ignore_index}, wrong);
    }
  }

  const T* row(int64_t c, int32_t y, const T* fused) {
    const int64_t at = (y - group_.lo) * pitch_;
    const T* pooled = problem_.grad_covariance == nullptr ? nullptr : spread(c, rmi_group_of(y));
    ops_.gradient(grad_ + at, fused, labels_ + at, pooled, grad_bce_, static_cast<T>(c), columns_.size());
    return grad_ + at;
  }

 private:
  // P / 16 of all windows that the part's pixels lie in.
  void pool(Scratch<T>& scratch, int64_t b, const Tile& output) {
    const Extent size = problem_.chain.size;
    const Extent all{rmi_windows(size.height), rmi_windows(size.width)};
    pooled_ = Tile{{rmi_group_of(output.rows.lo), std::min(rmi_group_of(output.rows.hi - 1) + 1, all.height)},
                   {rmi_group_of(output.columns.lo), std::min(rmi_group_of(output.columns.hi - 1) + 1, all.width)}};
    if (pooled_.empty()) return;  // nothing but a last pixel behind all windows
    const int64_t row_pitch = scratch.pitch(pooled_.columns.size());
    class_pitch_ = row_pitch * pooled_.rows.size();
    grad_pooled_ = Patch<T>{scratch.take(class_pitch_ * problem_.classes), pooled_, row_pitch};

    const auto mark = scratch.mark();
    const auto mark_doubles = doubles_.mark();
    const Tile groups{reach(pooled_.rows, all.height), reach(pooled_.columns, all.width)};
    windows_.begin(scratch, b, groups);
    // A correlation reads two columns of zeros, which no weight reaches, on each side.
    Patch<double> rows[2];
    for (Patch<double>& patch : rows) {
      patch = doubles_.patch(Tile{groups.rows, {groups.columns.lo - kRmiReach, groups.columns.hi + kRmiReach}});
      std::fill_n(patch.data, patch.pitch * groups.rows.size(), 0.0);
    }
    for (int64_t c = 0; c < problem_.classes; ++c) {
      windows_.begin_class(scratch, c);
      for (int32_t k = groups.rows.lo; k < groups.rows.hi; ++k) {
        windows_.make_row(rows[0].row(k, groups.columns.lo), rows[1].row(k, groups.columns.lo), nullptr, k);
      }
      correlate(c, rows);
    }
    doubles_.rewind(mark_doubles);
    scratch.rewind(mark);
  }

  static Range reach(Range windows, int32_t all) {
    return Range{std::max(windows.lo - kRmiReach, 0), std::min(windows.hi + kRmiReach, all)};
  }

  void correlate(int64_t c, const Patch<double>* rows) {
    const Extent size = problem_.chain.size;
    const Range held = rows[0].tile.rows;
    const int64_t at = batch_ * problem_.classes + c;
    const double* grad_covariance = problem_.grad_covariance + at * kRmiVector * kRmiVector;
    const double* mean = problem_.mean + at * kRmiVector;
    for (int32_t l = pooled_.columns.lo; l < pooled_.columns.hi;) {
      const uint32_t column_places = rmi_places(l, rmi_neighbourhoods(size.width));
      int32_t end = l + 1;
      while (end < pooled_.columns.hi && rmi_places(end, rmi_neighbourhoods(size.width)) == column_places) ++end;
      RmiKernel kernel{};
      uint32_t kernel_places = 0;
      for (int32_t k = pooled_.rows.lo; k < pooled_.rows.hi; ++k) {
        const uint32_t row_places = rmi_places(k, rmi_neighbourhoods(size.height));
        if (row_places != kernel_places) kernel = rmi_kernel(grad_covariance, mean, row_places, column_places);
        kernel_places = row_places;
        const double* sources[2 * kRmiTaps];
        for (int i = 0; i < 2 * kRmiTaps; ++i) {
          // Rows that do not exist have no weight either.
          const int32_t source = std::clamp(k + i % kRmiTaps - kRmiReach, held.lo, held.hi - 1);
          sources[i] = rows[i / kRmiTaps].row(source, l);
        }
        ops_.correlate(grad_pooled_.row(k, l) + c * class_pitch_, sources, kernel.weight[0], kernel.constant, end - l);
      }
      l = end;
    }
  }

  // P / 16 for the pixels of a row in group k; rows of a group come one after the other.
  const T* spread(int64_t c, int32_t k) {
    if (pooled_.empty() || k >= pooled_.rows.hi) return nullptr;
    if (c == spread_channel_ && k == spread_row_) return spread_;
    spread_channel_ = c;
    spread_row_ = k;
    const T* from = grad_pooled_.row(k) + c * class_pitch_;
    T* to = spread_;
    for (int32_t l = pooled_.columns.lo; l < pooled_.columns.hi; ++l) {
      const Range pixels = rmi_pixels(Range{l, l + 1}, columns_.hi);
      const int32_t count = pixels.hi - std::max(pixels.lo, columns_.lo);
      const T value = from[l - pooled_.columns.lo];
      if (count == kRmiPool) {
        for (int32_t x = 0; x < kRmiPool; ++x) to[x] = value;
      } else {
        for (int32_t x = 0; x < count; ++x) to[x] = value;
      }
      to += count;
    }
    std::fill(to, spread_ + columns_.size(), T(0));  // a last pixel behind all windows
    return spread_;
  }

  const FuseScalesRmiBackward<S>& problem_;
  RmiWindows<S, T> windows_;
  const RmiOps<T>& ops_;
  const T grad_bce_;
  Scratch<double> doubles_;
  int64_t batch_ = 0;
  Range columns_{0, 0};
  Range group_{0, 0};
  int64_t pitch_ = 0;
  T* grad_ = nullptr;    // rows of a group
  T* labels_ = nullptr;  // likewise
  T* spread_ = nullptr;  // P / 16 for the pixels of a row ...
  int64_t spread_channel_ = -1;
  int32_t spread_row_ = 0;
  Tile pooled_{{0, 0}, {0, 0}};
  Patch<T> grad_pooled_;  // ... and for the windows of the part, of class 0
  int64_t class_pitch_ = 0;
};

}  // namespace

template <typename S>
void fuse_scales_rmi_backward(const FuseScalesRmiBackward<S>& problem, const ParallelFor& parallel_for) {
  using T = arithmetic_t<S>;
  const ChainAxes<T> axes(problem.chain, /*with_adjoint=*/false);
  chain_backward<S>(problem, problem, kParts, parallel_for, [&] { return RmiGradient<S, T>(problem, axes); });
}

template void fuse_scales_rmi_backward(const FuseScalesRmiBackward<float>&, const ParallelFor&);
template void fuse_scales_rmi_backward(const FuseScalesRmiBackward<double>&, const ParallelFor&);
template void fuse_scales_rmi_backward(const FuseScalesRmiBackward<Half>&, const ParallelFor&);
template void fuse_scales_rmi_backward(const FuseScalesRmiBackward<BFloat16>&, const ParallelFor&);

}  // namespace cpu
}  // namespace hmsa
