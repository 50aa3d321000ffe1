// The chain of scales as a stream of rows: P of one channel, one output row after the other, from the heads' maps.
//
// A resize is done columns first: a source row is stretched once and kept while output rows still read it; the rows are
// then interpolated where they are used. So every level keeps two rows (up to four where two resizes are composed), no
// map of any grid exists, and all of it stays in the L1 cache.
#pragma once

#include "core/problem.h"
#include "ops/cpu/axis.h"
#include "ops/cpu/simd/rows.h"
#include "ops/cpu/workspace.h"

namespace hmsa {
namespace cpu {

// Stretched rows of one level of one channel, by their row in the map. Rows are asked for in ascending order.
template <typename T>
class RowCache {
 public:
  void allocate(Scratch<T>& scratch, int slots, int64_t width) {
    slots_ = slots;
    width_ = width;
    for (int s = 0; s < slots; ++s) rows_[s] = scratch.take(width);
    clear();
  }

  int64_t width() const { return width_; }
  void clear() { std::fill(held_, held_ + Axis<T>::kMaxTaps, -1); }

  // The rows that output `o` of the axis reads; those not held yet are made by fill(row, to).
  template <typename Fill>
  void fetch(const Axis<T>& axis, int32_t o, const T** rows, const Fill& fill) {
    for (int k = 0; k < axis.taps; ++k) {
      const int32_t wanted = axis.index[k * axis.out + o];
      int found = find(wanted);
      if (found < 0) {
        found = oldest();
        held_[found] = wanted;
        fill(wanted, rows_[found]);
      }
      rows[k] = rows_[found];
    }
  }

 private:
  int find(int32_t row) const {
    for (int s = 0; s < slots_; ++s) {
      if (held_[s] == row) return s;
    }
    return -1;
  }

  // Never a row that this output reads: those it has passed are smaller, and there are as many slots as it reads rows.
  int oldest() const {
    int best = 0;
    for (int s = 1; s < slots_; ++s) {
      if (held_[s] < held_[best]) best = s;
    }
    return best;
  }

  int slots_ = 0;
  int64_t width_ = 0;
  T* rows_[Axis<T>::kMaxTaps] = {};
  int32_t held_[Axis<T>::kMaxTaps];
};

// What one channel keeps between rows.
template <typename T>
struct StreamState {
  RowCache<T> heads[kMaxScales];   // head rows, columns stretched to the grid
  RowCache<T> levels[kMaxScales];  // P of an upper scale, or A * L of a lower one, columns stretched to the next grid
  int64_t batch = 0;
  int64_t channel = 0;

  void clear() {
    for (auto& cache : heads) cache.clear();
    for (auto& cache : levels) cache.clear();
  }
};

template <typename S, typename T>
class ChainStream {
 public:
  ChainStream(const Chain& chain, const ChainAxes<T>& axes, const MapView<const S>* logits,
              const MapView<const S>* attention)
      : chain(chain), axes(axes), ops(row_ops<T>()), logits_(logits), attention_(attention) {}

  const Chain& chain;
  const ChainAxes<T>& axes;
  const RowOps<T>& ops;

  // Rows of the output in the columns of `tiles`, whose grids are also the parts that attention is asked for.
  void begin(Scratch<T>& scratch, const ForwardTiles& tiles) {
    tiles_ = tiles;
    int32_t widest = tiles.output.columns.size();
    for (int i = 0; i < chain.count; ++i) {
      widest = std::max({widest, tiles.grids[i].columns.size(), tiles.heads[i].columns.size()});
    }
    zeros = scratch.zeros(widest);
    load_ = scratch.take(widest);
    for (int i = 0; i < chain.count; ++i) {
      blended_[i] = scratch.take(widest);
      summed_head_[i] = scratch.take(widest);
      summed_level_[i] = scratch.take(widest);
      if (i > 0) attention_grid_[i] = scratch.patch(tiles.grids[i]);
      if (i > 0) stretched_attention_[i].allocate(scratch, axes.across[i].rows.taps, widest);
    }
  }

  void allocate(Scratch<T>& scratch, StreamState<T>& state) const {
    for (int i = 0; i < chain.count; ++i) {
      state.heads[i].allocate(scratch, axes.up[i].rows.taps, head_target(i).size());
      if (i != chain.unit) state.levels[i].allocate(scratch, axes.across[i].rows.taps, level_target(i).size());
    }
  }

  void start(StreamState<T>& state, int64_t b, int64_t c) const {
    state.clear();
    state.batch = b;
    state.channel = c;
  }

  // ---- attention ----------------------------------------------------------------------------------------------------

  // A of every scale on its grid, for a channel of the attention.
  void read_attention(Scratch<T>& scratch, int64_t b, int64_t c) {
    for (int i = 1; i < chain.count; ++i) {
      const auto mark = scratch.mark();
      RowCache<T> heads;
      const Patch<T>& grid = attention_grid_[i];
      heads.allocate(scratch, axes.up[i].rows.taps, grid.width());
      for (int32_t v = grid.tile.rows.lo; v < grid.tile.rows.hi; ++v) {
        const RowPair<T> pair = head_pair(attention_[i], i, b, c, heads, v, grid.tile.columns);
        ops.lerp(grid.row(v), pair, grid.width());
      }
      stretched_attention_[i].clear();
      scratch.rewind(mark);
    }
  }

  const T* attention(int i, int32_t v, int32_t column) const { return attention_grid_[i].row(v, column); }

  // R A of a lower scale, a row of the output.
  void resized_attention(T* to, int i, int32_t y) {
    const RowPair<T> pair =
        pair_of(stretched_attention_[i], axes.across[i].rows, y, summed_level_[i], [&](int32_t v, T* row) {
          stretch(row, attention(i, v, tiles_.grids[i].columns.lo), tiles_.grids[i].columns, axes.across[i].columns,
                  tiles_.output.columns);
        });
    ops.lerp(to, pair, tiles_.output.columns.size());
  }

  // ---- rows of the chain. What is returned holds until the next call for the same scale -------------------------------

  // U z of scale i; for the largest one R U z on the next grid, where its own need not exist.
  RowPair<T> logit(StreamState<T>& state, int i, int32_t v) {
    return head_pair(logits_[i], i, state.batch, state.channel, state.heads[i], v, head_target(i));
  }

  // R P of scale i - 1 on the grid of upper scale i.
  RowPair<T> before(StreamState<T>& state, int i, int32_t v) {
    if (i == 1) return logit(state, 0, v);  // composed: there is an upper scale above
    return pair_of(state.levels[i - 1], axes.across[i - 1].rows, v, summed_level_[i - 1], [&](int32_t u, T* row) {
      const RowPair<T> level = upper(state, i - 1, u);  // one row: scale i - 1 is blended
      stretch(row, level.a, tiles_.grids[i - 1].columns, axes.across[i - 1].columns, tiles_.grids[i].columns);
    });
  }

  // P of upper scale i. For scale 1.0 as the largest, or a lone scale, on the output.
  RowPair<T> upper(StreamState<T>& state, int i, int32_t v) {
    if (i == 0) return logit(state, 0, v);
    const Range columns = tiles_.grids[i].columns;
    ops.blend_upper(blended_[i], attention(i, v, columns.lo), logit(state, i, v), before(state, i, v), columns.size());
    return RowPair<T>{blended_[i], zeros, T(0)};
  }

  // R (A L) of a lower scale on the output.
  RowPair<T> product(StreamState<T>& state, int i, int32_t y) {
    return pair_of(state.levels[i], axes.across[i].rows, y, summed_level_[i], [&](int32_t v, T* row) {
      const Range columns = tiles_.grids[i].columns;
      ops.lerp_multiply(blended_[i], logit(state, i, v), attention(i, v, columns.lo), columns.size());
      stretch(row, blended_[i], columns, axes.across[i].columns, tiles_.output.columns);
    });
  }

  const ForwardTiles& tiles() const { return tiles_; }

  T* zeros = nullptr;  // a row of them

 private:
  Range head_target(int i) const {
    if (i > 0 || !chain.has_composed()) return tiles_.grids[i].columns;
    return chain.unit > 0 ? tiles_.grids[1].columns : tiles_.output.columns;
  }
  Range level_target(int i) const { return i < chain.unit ? tiles_.grids[i + 1].columns : tiles_.output.columns; }

  void stretch(T* to, const T* from, Range sources, const Axis<T>& axis, Range columns) const {
    if (axis.taps == 1) {
      std::copy(from + (columns.lo - sources.lo), from + (columns.hi - sources.lo), to);
      return;
    }
    ops.resample(to, from, sources.lo, axis.table(columns), columns.size());
  }

  // An output row of the axis as a pair of rows: two that are held, or their sum where it reads more.
  template <typename Fill>
  RowPair<T> pair_of(RowCache<T>& cache, const Axis<T>& axis, int32_t o, T* sum, const Fill& fill) const {
    const T* rows[Axis<T>::kMaxTaps];
    cache.fetch(axis, o, rows, fill);
    if (axis.taps == 1) return RowPair<T>{rows[0], zeros, T(0)};
    if (axis.taps == 2) return RowPair<T>{rows[0], rows[1], axis.weight[axis.out + o]};
    T weights[Axis<T>::kMaxTaps];
    for (int k = 0; k < axis.taps; ++k) weights[k] = axis.weight[k * axis.out + o];
    ops.sum_rows(sum, rows, weights, axis.taps, cache.width());
    return RowPair<T>{sum, zeros, T(0)};
  }

  RowPair<T> head_pair(const MapView<const S>& map, int i, int64_t b, int64_t c, RowCache<T>& cache, int32_t v,
                       Range columns) const {
    const MemoryOps<S, T> memory = memory_ops<S, T>(ops);
    const Range head = tiles_.heads[i].columns;
    return pair_of(cache, axes.up[i].rows, v, summed_head_[i], [&](int32_t row, T* to) {
      memory.load(load_, map.at(b, c, row, head.lo), map.column, head.size());
      if (map.column == 1 && row + 1 < tiles_.heads[i].rows.hi)
        prefetch_row(map.at(b, c, row + 1, head.lo), head.size());
      stretch(to, load_, head, axes.up[i].columns, columns);
    });
  }

  const MapView<const S>* logits_;
  const MapView<const S>* attention_;
  ForwardTiles tiles_;
  Patch<T> attention_grid_[kMaxScales];
  RowCache<T> stretched_attention_[kMaxScales];
  T* load_ = nullptr;
  T* blended_[kMaxScales] = {};      // P of an upper scale, or A * L of a lower one, on its grid
  T* summed_head_[kMaxScales] = {};  // rows of more than two taps
  T* summed_level_[kMaxScales] = {};
};

}  // namespace cpu
}  // namespace hmsa
