// fuse_scales on the CPU, forward.
//
// A thread takes a part of the output and streams the rows of one channel after the other through it (chain_stream.h):
// the attention of the part is computed once for all channels, and the full-resolution result is written once. No other
// map of that size exists.
#include <algorithm>
#include <type_traits>

#include "ops/cpu/fuse_scales.h"
#include "ops/cpu/fused_rows.h"
#include "ops/cpu/tile_grid.h"

namespace hmsa {
namespace cpu {
namespace {

// A tile is as wide as most images, since a page of memory should be written in one go. It has few rows, since its
// attention, one row for each of them, should stay in the L2 cache. Only the first rows are computed twice.
constexpr Extent kPlaneTile{32, 2048};

// Elements of an output that no one will find in the caches when it is complete.
constexpr int64_t kLargeOutput = int64_t(1) << 23;

template <typename S, typename T>
class Forward {
 public:
  Forward(const FuseScalesForward<S>& problem, const ChainAxes<T>& axes)
      : problem_(problem),
        size_(problem.chain.size),
        fused_(problem, axes),
        pixels_(problem, axes),
        memory_(memory_ops<S, T>(fused_.stream.ops)),
        past_the_caches_(problem.batch * problem.classes * size_.height * size_.width >= kLargeOutput) {}

  static bool has_pixels(const FuseScalesForward<S>& problem) {
    return problem.output.channel == 1 && problem.output.column != 1;
  }

  void run(int64_t b, const Tile& output) {
    const auto start = scratch_.mark();
    if (has_pixels(problem_)) {
      fuse_pixels(b, output);
    } else {
      fuse_planes(b, output);
    }
    scratch_.rewind(start);
  }

 private:
  // Channel by channel, straight to where the rows belong.
  void fuse_planes(int64_t b, const Tile& output) {
    const bool class_wise = problem_.chain.class_wise;
    fused_.begin(scratch_, output);
    if (!class_wise) fused_.read_attention(scratch_, b, 0);
    T* row = scratch_.take(output.columns.size());
    StreamState<T> state;
    fused_.stream.allocate(scratch_, state);
    const int64_t stride = problem_.output.column;
    for (int64_t c = 0; c < problem_.classes; ++c) {
      if (class_wise) fused_.read_attention(scratch_, b, c);
      fused_.stream.start(state, b, c);
      for (int32_t y = output.rows.lo; y < output.rows.hi; ++y) {
        S* to = problem_.output.at(b, c, y, output.columns.lo);
        if constexpr (std::is_same_v<S, T>) {
          if (stride == 1) {
            fused_.make(to, state, y, past_the_caches_);
            continue;
          }
        }
        fused_.make(row, state, y);
        memory_.store(to, stride, row, output.columns.size());
      }
    }
    fused_.stream.ops.end_streams();
  }

  // A few rows of every channel, then their pixels.
  void fuse_pixels(int64_t b, const Tile& output) {
    T* pixels = take_pixels(output);
    pixels_.for_groups(scratch_, b, output, [&](const Planes<T>& planes) {
      for (int32_t y = planes.rows.lo; y < planes.rows.hi; ++y) {
        write_pixels(problem_.output.at(b, 0, y, output.columns.lo), planes.row(0, y), planes.pitch, pixels,
                     output.columns.size());
      }
    });
  }

  // A row of pixels on its way to another type.
  T* take_pixels(const Tile& output) {
    return std::is_same_v<S, T> ? nullptr : scratch_.take(problem_.classes * output.columns.size());
  }

  void write_pixels(S* to, const T* rows, int64_t pitch, T* pixels, int64_t width) const {
    const int64_t classes = problem_.classes;
    const int64_t stride = problem_.output.column;
    if constexpr (std::is_same_v<S, T>) {
      fused_.stream.ops.join_pixels(to, stride, rows, pitch, classes, width);
    } else {
      fused_.stream.ops.join_pixels(pixels, classes, rows, pitch, classes, width);
      if (stride == classes) {
        memory_.store(to, 1, pixels, width * classes);
      } else {
        for (int64_t x = 0; x < width; ++x) memory_.store(to + x * stride, 1, pixels + x * classes, classes);
      }
    }
  }

  const FuseScalesForward<S>& problem_;
  const Extent size_;
  Scratch<T> scratch_;
  FusedRow<S, T> fused_;
  FusedRows<S, T> pixels_;
  MemoryOps<S, T> memory_;
  bool past_the_caches_;
};

}  // namespace

template <typename S>
void fuse_scales_forward(const FuseScalesForward<S>& problem, const ParallelFor& parallel_for) {
  using T = arithmetic_t<S>;
  const Chain& chain = problem.chain;
  const ChainAxes<T> axes(chain, /*with_adjoint=*/false);
  const TileGrid tiles = Forward<S, T>::has_pixels(problem) ? FusedRows<S, T>::tiles(problem)
                                                            : TileGrid(problem.batch, chain.size, kPlaneTile);
  parallel_for.run(tiles.count(), [&](int64_t begin, int64_t end) {
    Forward<S, T> forward(problem, axes);
    for (int64_t i = begin; i < end; ++i) forward.run(tiles.image(i), tiles.tile(i));
  });
}

template void fuse_scales_forward(const FuseScalesForward<float>&, const ParallelFor&);
template void fuse_scales_forward(const FuseScalesForward<double>&, const ParallelFor&);
template void fuse_scales_forward(const FuseScalesForward<Half>&, const ParallelFor&);
template void fuse_scales_forward(const FuseScalesForward<BFloat16>&, const ParallelFor&);

}  // namespace cpu
}  // namespace hmsa
