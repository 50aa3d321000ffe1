// fuse_scales on the CPU, forward.
//
// A thread takes a part of the output and streams the rows of one channel after the other through it (chain_stream.h):
// the part's attention is computed once for all channels, and the full-resolution result is written once; nothing else
// of that size exists.
#include <algorithm>
#include <type_traits>

#include "ops/cpu/chain_stream.h"
#include "ops/cpu/fuse_scales.h"

namespace hmsa {
namespace cpu {
namespace {

// A part of the output. As wide as the image may be, since a page of memory should be written while it is at hand; few
// rows, since its attention, one row for each of them, should stay in the L2 cache. Only the first rows are made twice.
constexpr int32_t kForwardRows = 32;
constexpr int32_t kForwardColumns = 2048;

// With channels side by side in memory a few rows of all channels, so many bytes, are made before they are written, and
// all that the channels keep between rows has to stay in the caches. With attention for each class the rows of a channel are made together, so all rows of a part wait.
constexpr int32_t kPixelColumns = 256;
constexpr int64_t kPixelBytes = 96 * 1024;
constexpr int32_t kClassWisePixelRows = 16;

// Elements of an output that no one will find in the caches when it is complete.
constexpr int64_t kLargeOutput = int64_t(1) << 23;

template <typename S, typename T>
class Forward {
 public:
  Forward(const FuseScalesForward<S>& problem, const ChainAxes<T>& axes)
      : problem_(problem),
        chain_(problem.chain),
        stream_(problem.chain, axes, problem.logits, problem.attention),
        memory_(memory_ops<S, T>(stream_.ops)),
        past_the_caches_(problem.batch * problem.classes * chain_.size.height * chain_.size.width >= kLargeOutput) {}

  static bool has_pixels(const FuseScalesForward<S>& problem) {
    return problem.output.channel == 1 && problem.output.column != 1;
  }

  void run(int64_t b, const Tile& output) {
    const auto start = scratch_.mark();
    const ForwardTiles tiles = forward_tiles(chain_, output);
    stream_.begin(scratch_, tiles);
    row_ = scratch_.take(output.columns.size());
    for (int i = chain_.unit + 1; i < chain_.count; ++i) resized_[i] = scratch_.patch(output);
    if (!chain_.class_wise) read_attention(b, 0, output);
    if (!has_pixels(problem_)) {
      fuse_planes(b, output);
    } else if (chain_.class_wise) {
      fuse_class_wise_pixels(b, output);
    } else {
      fuse_pixels(b, output);
    }
    scratch_.rewind(start);
  }

 private:
  void read_attention(int64_t b, int64_t c, const Tile& output) {
    stream_.read_attention(scratch_, b, c);
    for (int i = chain_.unit + 1; i < chain_.count; ++i) {
      for (int32_t y = output.rows.lo; y < output.rows.hi; ++y) stream_.resized_attention(resized_[i].row(y), i, y);
    }
  }

  // Channel by channel, straight to where the rows belong.
  void fuse_planes(int64_t b, const Tile& output) {
    StreamState<T> state;
    stream_.allocate(scratch_, state);
    const int64_t stride = problem_.output.column;
    for (int64_t c = 0; c < problem_.classes; ++c) {
      if (chain_.class_wise) read_attention(b, c, output);
      stream_.start(state, b, c);
      for (int32_t y = output.rows.lo; y < output.rows.hi; ++y) {
        S* to = problem_.output.at(b, c, y, output.columns.lo);
        if constexpr (std::is_same_v<S, T>) {
          if (stride == 1) {
            fuse_row(to, state, y, output.columns, past_the_caches_);
            continue;
          }
        }
        fuse_row(row_, state, y, output.columns);
        memory_.store(to, stride, row_, output.columns.size());
      }
    }
    stream_.ops.end_streams();
  }

  // A few rows of every channel, then their pixels.
  void fuse_pixels(int64_t b, const Tile& output) {
    const int64_t classes = problem_.classes;
    const int64_t row_pitch = scratch_.pitch(output.columns.size());
    const auto height = static_cast<int32_t>(
        std::clamp<int64_t>(kPixelBytes / static_cast<int64_t>(classes * row_pitch * sizeof(T)), 1, 8));
    const int64_t pitch = height * row_pitch;
    T* planes = scratch_.take(classes * pitch);
    std::vector<StreamState<T>> states(classes);
    for (int64_t c = 0; c < classes; ++c) {
      stream_.allocate(scratch_, states[c]);
      stream_.start(states[c], b, c);
    }
    T* pixels = take_pixels(output);
    for (int32_t y0 = output.rows.lo; y0 < output.rows.hi; y0 += height) {
      const int32_t end = std::min(y0 + height, output.rows.hi);
      for (int64_t c = 0; c < classes; ++c) {
        for (int32_t y = y0; y < end; ++y) {
          fuse_row(planes + c * pitch + (y - y0) * row_pitch, states[c], y, output.columns);
        }
      }
      for (int32_t y = y0; y < end; ++y) {
        write_pixels(problem_.output.at(b, 0, y, output.columns.lo), planes + (y - y0) * row_pitch, pitch, pixels,
                     output.columns.size());
      }
    }
  }

  void fuse_class_wise_pixels(int64_t b, const Tile& output) {
    const int64_t row_pitch = scratch_.pitch(output.columns.size());
    const int64_t pitch = row_pitch * output.rows.size();
    T* planes = scratch_.take(problem_.classes * pitch);
    StreamState<T> state;
    stream_.allocate(scratch_, state);
    for (int64_t c = 0; c < problem_.classes; ++c) {
      read_attention(b, c, output);
      stream_.start(state, b, c);
      for (int32_t y = output.rows.lo; y < output.rows.hi; ++y) {
        fuse_row(planes + c * pitch + (y - output.rows.lo) * row_pitch, state, y, output.columns);
      }
    }
    T* pixels = take_pixels(output);
    for (int32_t y = output.rows.lo; y < output.rows.hi; ++y) {
      write_pixels(problem_.output.at(b, 0, y, output.columns.lo), planes + (y - output.rows.lo) * row_pitch, pitch,
                   pixels, output.columns.size());
    }
  }

  // A row of pixels on its way to another type.
  T* take_pixels(const Tile& output) {
    return std::is_same_v<S, T> ? nullptr : scratch_.take(problem_.classes * output.columns.size());
  }

  void write_pixels(S* to, const T* rows, int64_t pitch, T* pixels, int64_t width) const {
    const int64_t classes = problem_.classes;
    const int64_t stride = problem_.output.column;
    if constexpr (std::is_same_v<S, T>) {
      stream_.ops.join_pixels(to, stride, rows, pitch, classes, width);
    } else {
      stream_.ops.join_pixels(pixels, classes, rows, pitch, classes, width);
      if (stride == classes) {
        memory_.store(to, 1, pixels, width * classes);
      } else {
        for (int64_t x = 0; x < width; ++x) memory_.store(to + x * stride, 1, pixels + x * classes, classes);
      }
    }
  }

  // One row of one channel; `last` says that no one will read it soon.
  void fuse_row(T* to, StreamState<T>& state, int32_t y, Range columns, bool last = false) {
    const int64_t n = columns.size();
    const RowPair<T> zero{stream_.zeros, stream_.zeros, T(0)};
    RowPair<T> fused = stream_.upper(state, chain_.unit, y);
    const int end = chain_.count - 1;
    for (int i = chain_.unit + 1; i < end; ++i) {
      stream_.ops.blend_lower(row_, resized_[i].row(y), stream_.product(state, i, y), fused, n);
      fused = RowPair<T>{row_, stream_.zeros, T(0)};
    }
    const bool has_lower = end > chain_.unit;
    if (last) {
      stream_.ops.blend_last(to, has_lower ? resized_[end].row(y) : stream_.zeros,
                             has_lower ? stream_.product(state, end, y) : zero, fused, n);
    } else if (has_lower) {
      stream_.ops.blend_lower(to, resized_[end].row(y), stream_.product(state, end, y), fused, n);
    } else {
      stream_.ops.lerp(to, fused, n);
    }
  }

  const FuseScalesForward<S>& problem_;
  const Chain& chain_;
  Scratch<T> scratch_;
  ChainStream<S, T> stream_;
  MemoryOps<S, T> memory_;
  Patch<T> resized_[kMaxScales];  // R A of the lower scales
  bool past_the_caches_;
  T* row_ = nullptr;
};

}  // namespace

template <typename S>
void fuse_scales_forward(const FuseScalesForward<S>& problem, const ParallelFor& parallel_for) {
  using T = arithmetic_t<S>;
  const Chain& chain = problem.chain;
  const ChainAxes<T> axes(chain, /*with_adjoint=*/false);
  const bool pixels = Forward<S, T>::has_pixels(problem);
  const int32_t part_columns = pixels ? kPixelColumns : kForwardColumns;
  const int32_t part_rows = pixels && chain.class_wise ? kClassWisePixelRows : kForwardRows;
  const int64_t bands = (chain.size.height + part_rows - 1) / part_rows;
  const int64_t stripes = (chain.size.width + part_columns - 1) / part_columns;
  parallel_for.run(problem.batch * bands * stripes, [&](int64_t begin, int64_t end) {
    Forward<S, T> forward(problem, axes);
    for (int64_t part = begin; part < end; ++part) {
      const auto stripe = static_cast<int32_t>(part % stripes);
      const auto band = static_cast<int32_t>(part / stripes % bands);
      const Range rows{band * part_rows, std::min((band + 1) * part_rows, chain.size.height)};
      const Range columns{stripe * part_columns, std::min((stripe + 1) * part_columns, chain.size.width)};
      forward.run(part / stripes / bands, Tile{rows, columns});
    }
  });
}

template void fuse_scales_forward(const FuseScalesForward<float>&, const ParallelFor&);
template void fuse_scales_forward(const FuseScalesForward<double>&, const ParallelFor&);
template void fuse_scales_forward(const FuseScalesForward<Half>&, const ParallelFor&);
template void fuse_scales_forward(const FuseScalesForward<BFloat16>&, const ParallelFor&);

}  // namespace cpu
}  // namespace hmsa
