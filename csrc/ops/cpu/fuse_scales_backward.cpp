// fuse_scales on the CPU, backward: the chain's backward (chain_backward.h) with a gradient that is read from memory.
#include <algorithm>
#include <type_traits>

#include "ops/cpu/chain_backward.h"
#include "ops/cpu/fuse_scales.h"

namespace hmsa {
namespace cpu {
namespace {

// Channels side by side in memory that are taken out of their pixels together: a line of the cache of floats.
constexpr int64_t kSplitChannels = 16;

// As wide as the image may be, since a page of memory should be read while it is at hand.
constexpr PartLimits kParts{256, 2048, 64, 256, 400000};

// Rows of a gradient that lies in memory, in any format and type.
template <typename S, typename T>
class ReadGradient {
 public:
  static constexpr bool kReadsFused = false;
  static constexpr bool kPassesLower = false;

  ReadGradient(const FuseScalesBackward<S>& problem)
      : problem_(problem), grad_(problem.grad_output), ops_(row_ops<T>()), memory_(memory_ops<S, T>(ops_)) {}

  void begin_part(Scratch<T>& scratch, int64_t b, const Tile& output) {
    batch_ = b;
    part_ = output;
    width_ = output.columns.size();
    pitch_ = scratch.pitch(width_);
    if (!has_pixels()) {
      rows_ = scratch.take(kGroupRows * pitch_);
      return;
    }
    // With attention for each class the channels come one by one, each with all its rows: some are split together.
    channels_ = problem_.chain.class_wise ? std::min(kSplitChannels, problem_.classes) : problem_.classes;
    height_ = problem_.chain.class_wise ? part_.rows.size() : group_rows();
    rows_ = scratch.take(channels_ * height_ * pitch_);
    pixels_ = std::is_same_v<S, T> ? nullptr : scratch.take(channels_ * width_);
  }

  void begin_channels(int64_t first, int64_t) {
    if (!has_pixels() || !problem_.chain.class_wise || first % kSplitChannels != 0) return;
    split(part_.rows, first, std::min(kSplitChannels, problem_.classes - first));
  }

  int32_t group_rows() const {
    if (!has_pixels() || problem_.chain.class_wise) return kGroupRows;
    constexpr int64_t kBytes = 96 * 1024;
    const int64_t row = width_ * problem_.classes * static_cast<int64_t>(sizeof(T));
    return static_cast<int32_t>(std::clamp<int64_t>(kBytes / row, 1, kGroupRows));
  }

  void begin_group(Range rows) {
    group_ = rows;
    if (has_pixels() && !problem_.chain.class_wise) split(rows, 0, problem_.classes);
  }

  const T* row(int64_t c, int32_t y, const T*) {
    if (has_pixels()) return rows_ + ((c - split_channel_) * height_ + (y - split_rows_.lo)) * pitch_;
    const S* from = grad_.at(batch_, c, y, part_.columns.lo);
    if constexpr (std::is_same_v<S, T>) {
      if (grad_.column == 1) return from;
    }
    T* to = rows_ + (y - group_.lo) * pitch_;
    memory_.load(to, from, grad_.column, width_);
    return to;
  }

 private:
  bool has_pixels() const { return grad_.channel == 1 && grad_.column != 1; }

  // Channels c .. c + count - 1 of some rows of pixels.
  void split(Range rows, int64_t c, int64_t count) {
    split_rows_ = rows;
    split_channel_ = c;
    for (int32_t y = rows.lo; y < rows.hi; ++y) split_row(rows_ + (y - rows.lo) * pitch_, y, c, count);
  }

  void split_row(T* to, int32_t y, int64_t c, int64_t count) const {
    const S* from = grad_.at(batch_, c, y, part_.columns.lo);
    if constexpr (std::is_same_v<S, T>) {
      ops_.split_pixels(to, height_ * pitch_, from, grad_.column, count, width_);
    } else {
      if (grad_.column == count) {
        memory_.load(pixels_, from, 1, width_ * count);
      } else {
        for (int64_t x = 0; x < width_; ++x) memory_.load(pixels_ + x * count, from + x * grad_.column, 1, count);
      }
      ops_.split_pixels(to, height_ * pitch_, pixels_, count, count, width_);
    }
  }

  const FuseScalesBackward<S>& problem_;
  const MapView<const S>& grad_;
  const RowOps<T>& ops_;
  MemoryOps<S, T> memory_;
  int64_t batch_ = 0;
  Tile part_{{0, 0}, {0, 0}};
  int64_t width_ = 0;
  int64_t pitch_ = 0;
  int64_t channels_ = 0;
  int64_t height_ = 0;  // rows of a channel that are split together
  Range group_{0, 0};
  Range split_rows_{0, 0};
  int64_t split_channel_ = 0;
  T* rows_ = nullptr;    // of a group, or [channels][height] where they are split
  T* pixels_ = nullptr;  // a row of pixels on its way from another type
};

}  // namespace

template <typename S>
void fuse_scales_backward(const FuseScalesBackward<S>& problem, const ParallelFor& parallel_for) {
  using T = arithmetic_t<S>;
  chain_backward<S>(problem, problem, kParts, parallel_for, [&] { return ReadGradient<S, T>(problem); });
}

template void fuse_scales_backward(const FuseScalesBackward<float>&, const ParallelFor&);
template void fuse_scales_backward(const FuseScalesBackward<double>&, const ParallelFor&);
template void fuse_scales_backward(const FuseScalesBackward<Half>&, const ParallelFor&);
template void fuse_scales_backward(const FuseScalesBackward<BFloat16>&, const ParallelFor&);

}  // namespace cpu
}  // namespace hmsa
