// The backward of the chain of scales (core/chain.h): gradients of logits and attention from g = dLoss/dP. A source
// makes the rows of g.
//
// With U^T and R^T the adjoints of U and R, and g the gradient of P behind a scale, from the smallest scale up:
//
//     s <  1   dz = U^T(A * R^T g)    da = U^T(sum_c[L * R^T g] - R^T sum_c[g * P_before])    dP_before = (1 - R A) * g
//     s >= 1   dz = U^T(A * g)        da = U^T(sum_c[g * (L - R P_before)])                   dP_before = R^T((1 - A) * g)
//
// dP_before is the g of the next scale. There is no sum over c where the attention is class-wise. The forward pass
// saved only its inputs, so P_before is computed again.
//
// The elements of the inputs divide the work (`backward_tiles`): a part writes the gradients of the elements that it
// owns, and asks for all rows of g that reach them. A part takes a few of these rows at a time, channel by channel:
// each row is used once, forward and backward, and added to the sums of the head rows (row_adjoint.h) that are not
// complete. Sums run in a fixed order, so the number of threads changes no result, and parts exchange no partial sums.
// The price: neighbouring parts compute the rim of a part again.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "core/problem.h"
#include "ops/cpu/chain_stream.h"
#include "ops/cpu/parallel_for.h"
#include "ops/cpu/row_adjoint.h"

namespace hmsa {
namespace cpu {

// Rows of g taken at a time for each channel. The state that a channel keeps between rows is then fetched from the L2
// cache once for all of them. The maps that all channels share, one row of each for each row of g, stay in the L1
// cache.
constexpr int32_t kGroupRows = 8;

// A source of g has these members. All tiles and rows are of the output.
//
//   static constexpr bool kReadsFused;                           whether row() reads P of the row
//   void begin_part(Scratch<T>&, int64_t b, const Tile& output)  a part begins; memory taken from the scratch holds until
//                                                                its end
//   void begin_channels(int64_t first, int64_t last)             all its rows, of channels first .. last - 1
//   int32_t group_rows() const                                   rows in a group, kGroupRows at most
//   void begin_group(Range rows)                                 rows of the next group, for each of the channels
//   const T* row(int64_t c, int32_t y, const T* fused)           row y of g, columns of the part; holds until the group ends
//   static constexpr bool kPassesLower;                          whether it has
//   bool passes_lower() const                                    whether it can take this step for the part at hand, and
//   const T* pass_lower(int64_t c, int32_t y, const LowerStep<T>& step)      row(), and what the last scale, a lower one,
//                                                                            does before and after it, in one pass

// The step of a lower scale, a row of one channel: P = product + (1 - attention) before on the way down; on the way up
// sum += g before, and next = (1 - attention) g.
template <typename T>
struct LowerStep {
  T* next;
  T* sum;
  const T* attention;
  RowPair<T> product, before;
};

// The state that one channel keeps between rows: the chain before the row, and incomplete sums on the way up.
template <typename T>
struct ChannelState {
  StreamState<T> before;               // P before every scale on the output
  StreamState<T> lower;                // logits of the lower scales, at the rows that are complete
  std::vector<StreamState<T>> levels;  // P before every upper scale between the largest and 1.0, likewise
  RowAdjoint<T> across[kMaxScales];    // R^T: output -> lower grid, or upper grid i + 1 -> i
  RowAdjoint<T> up[kMaxScales];        // U^T: grid -> head; [0] leads from the next grid where the two are composed
};

template <typename S, typename T, typename Source>
class ChainBackward {
 public:
  ChainBackward(const ChainInputs<S>& inputs, const ChainGradients<S>& gradients, const ChainAxes<T>& axes,
                Source& source)
      : inputs_(inputs),
        gradients_(gradients),
        chain_(inputs.chain),
        axes_(axes),
        source_(source),
        stream_(inputs.chain, axes, inputs.logits, inputs.attention),
        ops_(stream_.ops),
        memory_(memory_ops<S, T>(stream_.ops)) {
    for (int i = 1; i < chain_.count; ++i) {
      wants_attention_ = wants_attention_ || wants_attention(i);
      wants_attention_below_unit_ = wants_attention_below_unit_ || (chain_.is_lower(i) && wants_attention(i));
    }
  }

  void run(int64_t b, const BackwardTiles& tiles) {
    if (tiles.output.empty()) return;
    const auto start = scratch_.mark();
    begin(tiles);
    source_.begin_part(scratch_, b, tiles.output);
    if (!chain_.class_wise) {
      run_channels(b, 0, inputs_.classes);
    } else {  // computed as single-channel problems
      for (int64_t c = 0; c < inputs_.classes; ++c) run_channels(b, c, c + 1);
    }
    scratch_.rewind(start);
  }

 private:
  bool wants_attention(int i) const { return i > 0 && gradients_.grad_attention[i].data != nullptr; }
  bool wants_logits(int i) const { return gradients_.grad_logits[i].data != nullptr; }
  bool wanted(int i) const { return wants_logits(i) || wants_attention(i); }
  // The channel of the attention that belongs to channel c.
  int64_t attention_channel(int64_t c) const { return chain_.class_wise ? c : 0; }

  // The largest scale of which a gradient is wanted: g need not go further up.
  int top() const {
    int i = 0;
    while (i < chain_.unit && !wanted(i)) ++i;
    return i;
  }

  void begin(const BackwardTiles& tiles) {
    tiles_ = tiles;
    ForwardTiles work;  // of every grid: what either direction needs
    work.output = tiles.output;
    for (int i = chain_.count - 1; i > chain_.unit; --i) {
      work.grids[i] = hull(chain_.across[i].sources(tiles.output), tiles.grids[i]);
    }
    work.grids[chain_.unit] =
        chain_.needs_final_resize ? chain_.across[chain_.unit].sources(tiles.output) : tiles.output;
    for (int i = chain_.unit - 1; i >= 0; --i) {
      work.grids[i] = hull(chain_.across[i].sources(work.grids[i + 1]), tiles.levels[i]);
    }
    for (int i = 0; i < chain_.count; ++i) work.heads[i] = chain_.up[i].sources(work.grids[i]);
    stream_.begin(scratch_, work);

    int32_t widest = tiles.output.columns.size();
    for (int i = 0; i < chain_.count; ++i) {
      widest = std::max({widest, work.grids[i].columns.size(), tiles.owned[i].columns.size()});
    }
    head_row_ = scratch_.take(widest);
    for (int i = 0; i < chain_.count; ++i) {
      level_row_[i] = scratch_.take(widest);
      product_row_[i] = scratch_.take(widest);
      before_row_[i] = scratch_.take(widest);
    }
    const Tile group{{0, kGroupRows}, tiles.output.columns};
    fused_row_ = scratch_.take(tiles.output.columns.size() + kRowSlack);
    for (int i = 1; i < chain_.count; ++i) {
      if (chain_.is_lower(i)) resized_[i] = scratch_.patch(group);
      if (chain_.is_lower(i)) passed_[i] = scratch_.patch(group);
      if (i >= chain_.unit) sums_[i] = scratch_.patch(group);
      if (i != chain_.unit) grad_grid_[i] = scratch_.patch(tiles.levels[i]);
    }
  }

  // The columns of dLoss/dP, or of R^T g, on the grid of scale i.
  Range source_columns(int i) const { return i == chain_.unit ? tiles_.output.columns : tiles_.levels[i].columns; }

  // The columns from which U^T leads to the head of scale i.
  Range head_sources(int i) const {
    if (i > 0 || !chain_.has_composed()) return source_columns(i);
    return chain_.unit > 0 ? source_columns(1) : tiles_.output.columns;
  }

  void allocate(ChannelState<T>& state) {
    state.levels.resize(chain_.unit);
    if (wants_attention_ || Source::kReadsFused) stream_.allocate(scratch_, state.before);
    for (int i = 0; i < chain_.count; ++i) {
      if (!wanted(i) && i < top()) continue;
      if (wants_logits(i)) {
        state.up[i].allocate(scratch_, axes_.up[i].rows, tiles_.owned[i].rows, head_sources(i).size());
      }
      if (chain_.is_lower(i) && wanted(i)) {
        state.across[i].allocate(scratch_, axes_.across[i].rows, tiles_.grids[i].rows, tiles_.output.columns.size());
        if (wants_attention(i)) stream_.allocate(scratch_, state.lower);
      }
      if (i > 0 && i < chain_.unit) {
        state.across[i].allocate(scratch_, axes_.across[i].rows, tiles_.levels[i].rows, source_columns(i + 1).size());
        if (wants_attention(i)) stream_.allocate(scratch_, state.levels[i]);
      }
    }
  }

  // Channels that share their attention: all, or a single one.
  void run_channels(int64_t b, int64_t first, int64_t last) {
    const auto mark = scratch_.mark();
    batch_ = b;
    attention_channel_ = attention_channel(first);
    stream_.read_attention(scratch_, b, attention_channel_);
    states_.assign(last - first, ChannelState<T>());
    for (int64_t c = first; c < last; ++c) {
      ChannelState<T>& state = states_[c - first];
      allocate(state);
      stream_.start(state.before, b, c);
      stream_.start(state.lower, b, c);
      for (StreamState<T>& level : state.levels) stream_.start(level, b, c);
    }
    begin_attention();
    source_.begin_channels(first, last);

    const Range rows = tiles_.output.rows;
    const int32_t height = source_.group_rows();
    for (int32_t y0 = rows.lo; y0 < rows.hi; y0 += height) {
      const Range group{y0, std::min(y0 + height, rows.hi)};
      begin_group(group);
      source_.begin_group(group);
      for (int64_t c = first; c < last; ++c) group_rows(states_[c - first]);
      end_group(group);
    }
    for (ChannelState<T>& state : states_) finish(state);
    finish_attention();
    scratch_.rewind(mark);
  }

  // ---- a group of rows of the output, one channel ---------------------------------------------------------------------

  void group_rows(ChannelState<T>& state) {
    const int count = group_.size();
    const T* grad[kGroupRows];
    for (int32_t y = group_.lo; y < group_.hi; ++y) {
      RowPair<T> before[kMaxScales + 1];  // P before every lower scale
      if (wants_attention_below_unit_ || Source::kReadsFused) chain_before(before, state, y);
      const T* left = nullptr;
      if (!pass_last(&grad[y - group_.lo], &left, before, state, y)) {
        const T* fused = Source::kReadsFused ? fused_row(before, state, y) : nullptr;
        grad[y - group_.lo] = source_.row(state.before.channel, y, fused);
        left = pass_lower(before, y, chain_.count - 1, grad[y - group_.lo]);
      }
      if (chain_.unit > 0 && holds(tiles_.levels[chain_.unit].rows, y)) upper_row(state, chain_.unit, y, left);
    }
    for (int i = chain_.count - 1; i > chain_.unit; --i) {
      if (state.across[i].in_use()) {
        state.across[i].push(group_.lo, grad, count, ops_, stream_.zeros,
                             [&](int32_t v, const T* sum) { lower_row(state, i, v, sum); });
      }
      for (int k = 0; k < count; ++k) grad[k] = passed_[i].row(k);
    }
    if (chain_.unit == 0 && wants_logits(0)) {
      state.up[0].push(group_.lo, grad, count, ops_, stream_.zeros, head_writer(state, 0));
    }
  }

  static bool holds(Range range, int32_t y) { return range.lo <= y && y < range.hi; }

  // P before every lower scale, row y; before[unit + 1] is P of scale 1.0.
  void chain_before(RowPair<T>* before, ChannelState<T>& state, int32_t y) {
    const int64_t n = tiles_.output.columns.size();
    const int32_t k = y - group_.lo;
    before[chain_.unit + 1] = stream_.upper(state.before, chain_.unit, y);
    for (int i = chain_.unit + 1; i + 1 < chain_.count; ++i) {
      ops_.blend_lower(before_row_[i], resized_[i].row(k), stream_.product(state.before, i, y), before[i], n);
      before[i + 1] = RowPair<T>{before_row_[i], stream_.zeros, T(0)};
    }
  }

  const T* fused_row(const RowPair<T>* before, ChannelState<T>& state, int32_t y) {
    const int64_t n = tiles_.output.columns.size();
    const int end = chain_.count - 1;
    if (end == chain_.unit) {
      ops_.lerp(fused_row_, before[end + 1], n);
    } else {
      ops_.blend_lower(fused_row_, resized_[end].row(y - group_.lo), stream_.product(state.before, end, y), before[end],
                       n);
    }
    return fused_row_;
  }

  // Makes row y of g and takes it past all lower scales, the last of them by the source. False if the source cannot.
  bool pass_last(const T** grad, const T** left, const RowPair<T>* before, ChannelState<T>& state, int32_t y) {
    if constexpr (Source::kPassesLower) {
      const int end = chain_.count - 1;
      if (end == chain_.unit || !wants_attention(end) || !source_.passes_lower()) return false;
      const int32_t k = y - group_.lo;
      const LowerStep<T> step{passed_[end].row(k), sums_[end].row(k), resized_[end].row(k),
                              stream_.product(state.before, end, y), before[end]};
      *grad = source_.pass_lower(state.before.channel, y, step);
      *left = pass_lower(before, y, end - 1, step.next);
      return true;
    }
    return false;
  }

  // Row y of g past the lower scales from `first` on: what is left of it behind each, returned behind the last, and what it adds to the
  // gradients of their attention.
  const T* pass_lower(const RowPair<T>* before, int32_t y, int first, const T* grad) {
    const int64_t n = tiles_.output.columns.size();
    const int32_t k = y - group_.lo;
    for (int i = first; i > chain_.unit; --i) {
      T* next = passed_[i].row(k);
      if (wants_attention(i)) {
        ops_.lower_backward(next, sums_[i].row(k), grad, resized_[i].row(k), before[i], n);
      } else {
        ops_.multiply_complement(next, resized_[i].row(k), grad, n);
      }
      grad = next;
    }
    return grad;
  }

  // R^T g of a lower scale is complete in row v of its grid, columns still those of the output.
  void lower_row(ChannelState<T>& state, int i, int32_t v, const T* sum) {
    const Range columns = tiles_.grids[i].columns;
    T* row = level_row_[i];
    adjoint_columns(row, sum, tiles_.output.columns.lo, axes_.across[i].columns, columns, ops_);
    if (wants_attention(i)) {
      const RowPair<T> logit = stream_.logit(state.lower, i, v);
      const int32_t skip = columns.lo - stream_.tiles().grids[i].columns.lo;
      ops_.lerp_multiply_add(grad_grid_[i].row(v), RowPair<T>{logit.a + skip, logit.b + skip, logit.weight}, row,
                             columns.size());
    }
    if (!wants_logits(i)) return;
    ops_.multiply(row, stream_.attention(i, v, columns.lo), row, columns.size());
    to_head(state, i, v, row);
  }

  // dLoss/dP of upper scale i >= 1 in row v of its grid; for the unit, of the output.
  void upper_row(ChannelState<T>& state, int i, int32_t v, const T* grad) {
    const Range columns = source_columns(i);
    const T* attention = stream_.attention(i, v, columns.lo);
    T* next = level_row_[i];
    T* product = product_row_[i];
    if (wants_attention(i)) {
      StreamState<T>& at = i == chain_.unit ? state.before : state.levels[i];
      const int32_t skip = columns.lo - stream_.tiles().grids[i].columns.lo;
      const RowPair<T> logit = stream_.logit(at, i, v);
      const RowPair<T> before = stream_.before(at, i, v);
      T* sum = i == chain_.unit ? sums_[i].row(v - group_.lo) : grad_grid_[i].row(v);
      ops_.upper_backward(next, product, sum, grad, attention, RowPair<T>{logit.a + skip, logit.b + skip, logit.weight},
                          RowPair<T>{before.a + skip, before.b + skip, before.weight}, columns.size());
      if (i < chain_.unit) mark_complete(i, v);
    } else {
      ops_.multiply(product, attention, grad, columns.size());
      ops_.multiply_complement(next, attention, grad, columns.size());
    }
    if (wants_logits(i)) to_head(state, i, v, product);
    if (i <= top()) return;
    if (i == 1) {
      to_head(state, 0, v, next);  // U^T R^T in one
    } else {
      state.across[i - 1].push(v, &next, 1, ops_, stream_.zeros,
                               [&](int32_t u, const T* sum) { upper_sum(state, i - 1, u, sum); });
    }
  }

  void upper_sum(ChannelState<T>& state, int i, int32_t v, const T* sum) {
    T* row = before_row_[i];
    adjoint_columns(row, sum, source_columns(i + 1).lo, axes_.across[i].columns, source_columns(i), ops_);
    upper_row(state, i, v, row);
  }

  // The last step: U^T of row v, written when a head row is complete.
  void to_head(ChannelState<T>& state, int i, int32_t v, const T* row) {
    state.up[i].push(v, &row, 1, ops_, stream_.zeros, head_writer(state, i));
  }

  auto head_writer(ChannelState<T>& state, int i) {
    return [this, &state, i](int32_t h, const T* sum) {
      write_head(gradients_.grad_logits[i], i, state.before.channel, h, sum);
    };
  }

  void write_head(const MapView<S>& map, int i, int64_t c, int32_t h, const T* sum) {
    const Range owned = tiles_.owned[i].columns;
    adjoint_columns(head_row_, sum, head_sources(i).lo, axes_.up[i].columns, owned, ops_);
    memory_.store(map.at(batch_, c, h, owned.lo), map.column, head_row_, owned.size());
  }

  // Targets behind the last source, level by level on the way up.
  void finish(ChannelState<T>& state) {
    for (int i = chain_.count - 1; i > chain_.unit; --i) {
      if (!state.across[i].in_use()) continue;
      state.across[i].finish(stream_.zeros, [&](int32_t v, const T* sum) { lower_row(state, i, v, sum); });
    }
    for (int i = chain_.unit - 1; i > 0; --i) {
      if (!state.across[i].in_use()) continue;
      state.across[i].finish(stream_.zeros, [&](int32_t v, const T* sum) { upper_sum(state, i, v, sum); });
    }
    for (int i = 0; i < chain_.count; ++i) {
      if (state.up[i].in_use()) state.up[i].finish(stream_.zeros, head_writer(state, i));
    }
  }

  // ---- attention, once for all channels -------------------------------------------------------------------------------

  void begin_attention() {
    for (int i = 1; i < chain_.count; ++i) {
      attention_across_[i] = attention_up_[i] = RowAdjoint<T>();
      if (!wants_attention(i)) continue;
      const Patch<T>& grid = grad_grid_[i];
      if (i != chain_.unit) std::fill_n(grid.data, grid.pitch * grid.tile.rows.size(), T(0));
      if (chain_.is_lower(i)) {
        attention_across_[i].allocate(scratch_, axes_.across[i].rows, tiles_.grids[i].rows,
                                      tiles_.output.columns.size());
      }
      attention_up_[i].allocate(scratch_, axes_.up[i].rows, tiles_.owned[i].rows, source_columns(i).size());
    }
  }

  void begin_group(Range rows) {
    group_ = rows;
    for (int i = 1; i < chain_.count; ++i) {
      for (int32_t y = rows.lo; chain_.is_lower(i) && y < rows.hi; ++y) {
        stream_.resized_attention(resized_[i].row(y - rows.lo), i, y);
      }
      if (i >= chain_.unit && wants_attention(i)) {
        std::fill_n(sums_[i].data, sums_[i].pitch * rows.size(), T(0));
      }
    }
    complete_.clear();
  }

  // Rows of upper grids come in the same order for every channel: they are complete with the last one.
  void mark_complete(int i, int32_t v) {
    const std::pair<int, int32_t> row{i, v};
    if (std::find(complete_.begin(), complete_.end(), row) == complete_.end()) complete_.push_back(row);
  }

  void end_group(Range rows) {
    for (int i = 1; i < chain_.count; ++i) {
      if (!wants_attention(i) || i < chain_.unit) continue;
      for (int32_t y = rows.lo; y < rows.hi; ++y) {
        const T* sum = sums_[i].row(y - rows.lo);
        if (chain_.is_lower(i)) {
          attention_across_[i].push(y, &sum, 1, ops_, stream_.zeros,
                                    [&](int32_t v, const T* complete) { lower_attention_row(i, v, complete); });
        } else if (holds(tiles_.levels[i].rows, y)) {
          attention_to_head(i, y, sum);
        }
      }
    }
    attention_of_complete_rows();
  }

  void attention_of_complete_rows() {
    for (const auto& [i, v] : complete_) attention_to_head(i, v, grad_grid_[i].row(v));
    complete_.clear();
  }

  // sum_c[L * R^T g] - R^T sum_c[g * P_before] in row v.
  void lower_attention_row(int i, int32_t v, const T* sum) {
    const Range columns = tiles_.grids[i].columns;
    adjoint_columns(level_row_[i], sum, tiles_.output.columns.lo, axes_.across[i].columns, columns, ops_);
    ops_.subtract(grad_grid_[i].row(v), level_row_[i], columns.size());
    attention_to_head(i, v, grad_grid_[i].row(v));
  }

  void attention_to_head(int i, int32_t v, const T* row) {
    attention_up_[i].push(v, &row, 1, ops_, stream_.zeros, attention_writer(i));
  }

  auto attention_writer(int i) {
    return
        [this, i](int32_t h, const T* sum) { write_head(gradients_.grad_attention[i], i, attention_channel_, h, sum); };
  }

  void finish_attention() {
    attention_of_complete_rows();
    for (int i = 1; i < chain_.count; ++i) {
      if (attention_across_[i].in_use()) {
        attention_across_[i].finish(stream_.zeros, [&](int32_t v, const T* sum) { lower_attention_row(i, v, sum); });
      }
      if (attention_up_[i].in_use()) attention_up_[i].finish(stream_.zeros, attention_writer(i));
    }
  }

  const ChainInputs<S>& inputs_;
  const ChainGradients<S>& gradients_;
  const Chain& chain_;
  const ChainAxes<T>& axes_;
  Source& source_;
  Scratch<T> scratch_;
  ChainStream<S, T> stream_;
  const RowOps<T>& ops_;
  MemoryOps<S, T> memory_;
  bool wants_attention_ = false;  // of any scale
  bool wants_attention_below_unit_ = false;

  BackwardTiles tiles_;
  Range group_{0, 0};
  int64_t batch_ = 0;
  int64_t attention_channel_ = 0;
  std::vector<ChannelState<T>> states_;
  Patch<T> passed_[kMaxScales];     // what of g is left above a lower scale, a group of rows
  Patch<T> resized_[kMaxScales];    // R A of the lower scales, likewise
  Patch<T> sums_[kMaxScales];       // sum_c[g * P_before] or sum_c[g * (L - R P_before)], likewise
  Patch<T> grad_grid_[kMaxScales];  // da before U^T, on the grid
  RowAdjoint<T> attention_across_[kMaxScales];
  RowAdjoint<T> attention_up_[kMaxScales];
  std::vector<std::pair<int, int32_t>> complete_;  // rows of upper grids, all channels of which are summed up
  T* fused_row_ = nullptr;
  T* head_row_ = nullptr;
  T* level_row_[kMaxScales] = {};
  T* product_row_[kMaxScales] = {};
  T* before_row_[kMaxScales] = {};
};

// The output that a part stands for. Its rim is some 20 wide for a scale of 0.5 at head stride 4, so parts are large.
struct PartLimits {
  int32_t rows;
  int32_t columns;
  int32_t least_rows;
  int32_t least_columns;
  int64_t many_columns;  // columns times channels: parts are narrower where their rows would not stay in the caches
};

// Parts shrink until all threads have work. No sum depends on how the work is divided, so the division may depend on the
// number of threads.
inline Extent parts_of(const Chain& chain, int64_t batch, int64_t classes, int threads, const PartLimits& limits) {
  int32_t rows = limits.rows;
  int32_t columns = limits.columns;
  while (columns > limits.least_columns && columns * classes > limits.many_columns) columns /= 2;
  while (true) {
    const Extent parts{divide_up(chain.size.height, rows), divide_up(chain.size.width, columns)};
    const bool least = rows <= limits.least_rows && columns <= limits.least_columns;
    if (least || threads == 1 || batch * parts.height * parts.width >= 2 * threads) return parts;
    (columns > 2 * rows || rows <= limits.least_rows ? columns : rows) /= 2;
  }
}

// All gradients; make_source() gives each thread its source.
template <typename S, typename MakeSource>
void chain_backward(const ChainInputs<S>& inputs, const ChainGradients<S>& gradients, const PartLimits& limits,
                    const ParallelFor& parallel_for, const MakeSource& make_source) {
  using T = arithmetic_t<S>;
  using Source = decltype(make_source());
  const Chain& chain = inputs.chain;
  const ChainAxes<T> axes(chain, /*with_adjoint=*/true);
  const Extent parts = parts_of(chain, inputs.batch, inputs.classes, parallel_for.threads, limits);
  const int64_t per_image = static_cast<int64_t>(parts.height) * parts.width;
  parallel_for.run(inputs.batch * per_image, [&](int64_t begin, int64_t end) {
    Source source = make_source();
    ChainBackward<S, T, Source> backward(inputs, gradients, axes, source);
    for (int64_t part = begin; part < end; ++part) {
      const auto row = static_cast<int32_t>(part % per_image / parts.width);
      const auto column = static_cast<int32_t>(part % parts.width);
      backward.run(part / per_image, backward_tiles(chain, parts, row, column));
    }
  });
}

}  // namespace cpu
}  // namespace hmsa
