// Rows of the fused logits of all channels, a few at a time, in scratch memory. A loss or a prediction reads them
// instead of a map of logits.
#pragma once

#include <algorithm>
#include <vector>

#include "core/problem.h"
#include "ops/cpu/chain_stream.h"
#include "ops/cpu/tile_grid.h"

namespace hmsa {
namespace cpu {

// Some rows of every channel.
template <typename T>
struct Planes {
  T* data;
  int64_t pitch;      // from one channel to the next
  int64_t row_pitch;  // from one row to the next
  Range rows;

  T* row(int64_t c, int32_t y) const { return data + c * pitch + (y - rows.lo) * row_pitch; }
};

// One row of one channel after the other: the chain over a tile of the output.
template <typename S, typename T>
class FusedRow {
 public:
  FusedRow(const ChainInputs<S>& inputs, const ChainAxes<T>& axes)
      : stream(inputs.chain, axes, inputs.logits, inputs.attention), chain_(inputs.chain) {}

  ChainStream<S, T> stream;

  void begin(Scratch<T>& scratch, const Tile& output) {
    tile_ = output;
    stream.begin(scratch, forward_tiles(chain_, output));
    row_ = scratch.take(output.columns.size());
    for (int i = chain_.unit + 1; i < chain_.count; ++i) resized_[i] = scratch.patch(output);
  }

  // A of all scales, for a channel of the attention.
  void read_attention(Scratch<T>& scratch, int64_t b, int64_t c) {
    stream.read_attention(scratch, b, c);
    for (int i = chain_.unit + 1; i < chain_.count; ++i) {
      for (int32_t y = tile_.rows.lo; y < tile_.rows.hi; ++y) stream.resized_attention(resized_[i].row(y), i, y);
    }
  }

  // Row y of the channel that the state was started with; `last` says that no one will read it soon.
  void make(T* to, StreamState<T>& state, int32_t y, bool last = false) {
    const int64_t n = tile_.columns.size();
    const RowPair<T> zero{stream.zeros, stream.zeros, T(0)};
    RowPair<T> fused = stream.upper(state, chain_.unit, y);
    const int end = chain_.count - 1;
    for (int i = chain_.unit + 1; i < end; ++i) {
      stream.ops.blend_lower(row_, resized_[i].row(y), stream.product(state, i, y), fused, n);
      fused = RowPair<T>{row_, stream.zeros, T(0)};
    }
    const bool has_lower = end > chain_.unit;
    if (last) {
      stream.ops.blend_last(to, has_lower ? resized_[end].row(y) : stream.zeros,
                            has_lower ? stream.product(state, end, y) : zero, fused, n);
    } else if (has_lower) {
      stream.ops.blend_lower(to, resized_[end].row(y), stream.product(state, end, y), fused, n);
    } else {
      stream.ops.lerp(to, fused, n);
    }
  }

 private:
  const Chain& chain_;
  Tile tile_{{0, 0}, {0, 0}};
  T* row_ = nullptr;
  Patch<T> resized_[kMaxScales];  // R A of the lower scales
};

template <typename S, typename T>
class FusedRows {
 public:
  FusedRows(const ChainInputs<S>& inputs, const ChainAxes<T>& axes) : inputs_(inputs), fused_(inputs, axes) {}

  // The outputs of a batch, in tiles. A tile has so few columns that the L2 cache holds what all channels keep between
  // rows, and so many rows that little is computed twice. With attention for each class all rows of a channel are fused
  // together, so all rows of a tile wait in memory: the tile has fewer.
  static TileGrid tiles(const ChainInputs<S>& inputs) {
    return TileGrid(inputs.batch, inputs.chain.size, Extent{inputs.chain.class_wise ? 16 : 64, tile_columns(inputs)});
  }

  static int32_t tile_columns(const ChainInputs<S>& inputs) {
    int32_t columns = 256;
    while (columns > 64 && columns * inputs.classes > 16384) columns /= 2;
    return columns;
  }

  // Rows that are fused together: few enough for the L1 and L2 caches.
  static int32_t group_rows(const ChainInputs<S>& inputs, int32_t columns) {
    constexpr int64_t kBytes = 96 * 1024;
    const int64_t row = inputs.classes * Scratch<T>::pitch(columns) * static_cast<int64_t>(sizeof(T));
    return static_cast<int32_t>(std::clamp<int64_t>(kBytes / row, 1, 8));
  }

  // Rows of image b in a tile of the output, `height` at most at a time.
  void begin(Scratch<T>& scratch, int64_t b, const Tile& tile, int32_t height) {
    fused_.begin(scratch, tile);
    const bool class_wise = inputs_.chain.class_wise;
    const int32_t rows = class_wise ? tile.rows.size() : height;
    planes_.row_pitch = scratch.pitch(tile.columns.size());
    planes_.pitch = planes_.row_pitch * rows;
    planes_.data = scratch.take(inputs_.classes * planes_.pitch + kRowSlack);
    states_.assign(class_wise ? 1 : inputs_.classes, StreamState<T>());
    if (!class_wise) fused_.read_attention(scratch, b, 0);
    for (StreamState<T>& state : states_) {
      fused_.stream.allocate(scratch, state);
      fused_.stream.start(state, b, &state - states_.data());
    }
    if (!class_wise) return;
    planes_.rows = tile.rows;
    for (int64_t c = 0; c < inputs_.classes; ++c) {
      fused_.read_attention(scratch, b, c);
      fused_.stream.start(states_[0], b, c);
      for (int32_t y = tile.rows.lo; y < tile.rows.hi; ++y) fused_.make(planes_.row(c, y), states_[0], y);
    }
  }

  // The next rows of all channels. They hold until the next call.
  Planes<T> make(Range rows) { return make(rows, nullptr, inputs_.classes); }

  // The next rows of `count` channels, plane k of which is channel `names[k]`; null: of all. Attention has one channel.
  Planes<T> make(Range rows, const int32_t* names, int64_t count) {
    if (inputs_.chain.class_wise) {
      Planes<T> part = planes_;
      part.data = planes_.row(0, rows.lo);
      part.rows = rows;
      return part;
    }
    planes_.rows = rows;
    planes_.pitch = planes_.row_pitch * rows.size();
    for (int64_t k = 0; k < count; ++k) {
      StreamState<T>& state = states_[names == nullptr ? k : names[k]];
      for (int32_t y = rows.lo; y < rows.hi; ++y) fused_.make(planes_.row(k, y), state, y);
    }
    return planes_;
  }

  // All rows of a tile, as many at a time as suit the caches: visit(planes).
  template <typename Visit>
  void for_groups(Scratch<T>& scratch, int64_t b, const Tile& tile, const Visit& visit) {
    const int32_t height = group_rows(inputs_, tile.columns.size());
    begin(scratch, b, tile, height);
    for (int32_t y = tile.rows.lo; y < tile.rows.hi; y += height) {
      visit(make(Range{y, std::min(y + height, tile.rows.hi)}));
    }
  }

 private:
  const ChainInputs<S>& inputs_;
  FusedRow<S, T> fused_;
  std::vector<StreamState<T>> states_;
  Planes<T> planes_{};
};

}  // namespace cpu
}  // namespace hmsa
