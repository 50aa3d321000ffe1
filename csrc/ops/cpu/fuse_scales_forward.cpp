// fuse_scales on the CPU, forward.
//
// A thread takes a band of output rows and goes through it channel by channel. The attention of the band is computed
// once for all channels; a channel's low-resolution rows are stretched once and then live in the caches, so the
// full-resolution result is written once and nothing else of that size exists.
#include <algorithm>
#include <type_traits>

#include "ops/cpu/chain_rows.h"
#include "ops/cpu/fuse_scales.h"

namespace hmsa {
namespace cpu {
namespace {

// A band's rows: enough that stretching the few rows shared with the next band is cheap, few enough for the L2 cache.
constexpr int32_t kBandRows = 16;
// Columns of a part: a row of floats fills at most half of a 32 KiB L1 cache.
constexpr int32_t kBandColumns = 4096;

template <typename S, typename T>
class Forward {
 public:
  Forward(const FuseScalesForward<S>& problem, const ChainTables<T>& tables)
      : problem_(problem), chain_(problem.chain), rows_(problem.chain, tables, scratch_) {}

  void run(int64_t b, const Tile& output) {
    const auto start = scratch_.mark();
    tiles_ = forward_tiles(chain_, output);
    if (!chain_.class_wise) read_attention(b, 0);
    const auto mark = scratch_.mark();
    for (int64_t c = 0; c < problem_.classes; ++c) {
      if (chain_.class_wise) read_attention(b, c);
      fuse_channel(b, c);
      scratch_.rewind(mark);
    }
    scratch_.rewind(start);
  }

 private:
  using Attention = typename ChainRows<T>::Attention;

  void read_attention(int64_t b, int64_t c) {
    for (int i = 1; i < chain_.count; ++i) {
      attention_[i] = rows_.attention(problem_.attention[i], i, b, c, tiles_.grids[i], tiles_.output);
    }
  }

  void fuse_channel(int64_t b, int64_t c) {
    Patch<T> products[kMaxScales];
    for (int i = chain_.unit + 1; i < chain_.count; ++i) {
      products[i] = rows_.stretched_product(i, read_logits(i, b, c), attention_[i].grid, tiles_.output);
    }

    const StoreRow<S, T> store = store_of(rows_.ops, static_cast<S*>(nullptr));
    T* row = scratch_.take(widest());
    // Row y of P at scale 1.0 is in `row` after write_first(); the lower scales follow, and the last one writes.
    const auto finish = [&](int32_t y, const auto& write_first) {
      const Range columns = tiles_.output.columns;
      S* out = problem_.output.at(b, c, y, columns.lo);
      T* target = row;
      if constexpr (std::is_same_v<S, T>) {
        if (problem_.output.column == 1) target = out;
      }
      const bool any_lower = chain_.unit + 1 < chain_.count;
      write_first(any_lower ? row : target, columns);
      for (int i = chain_.unit + 1; i < chain_.count; ++i) {
        rows_.lower_row(i + 1 < chain_.count ? row : target, i, products[i], attention_[i].resized, row, y, columns);
      }
      if (target == row) store(out, problem_.output.column, row, columns.size());
    };

    Patch<T> before;  // P of the scale above, columns stretched to this grid
    for (int i = 0; i <= chain_.unit; ++i) {
      const Patch<T> logits = read_logits(i, b, c);
      const Tile& grid = tiles_.grids[i];
      if (i == chain_.unit && !chain_.needs_final_resize) {
        for (int32_t y = grid.rows.lo; y < grid.rows.hi; ++y) {
          finish(y,
                 [&](T* to, Range columns) { rows_.upper_row(to, i, logits, attention_[i].grid, before, y, columns); });
        }
      } else {
        const Range next = i < chain_.unit ? tiles_.grids[i + 1].columns : tiles_.output.columns;
        const Patch<T> stretched = scratch_.patch(Tile{grid.rows, next});
        for (int32_t y = grid.rows.lo; y < grid.rows.hi; ++y) {
          rows_.upper_row(row, i, logits, attention_[i].grid, before, y, grid.columns);
          rows_.stretch_row(stretched.row(y), row, grid, rows_.tables.across[i].columns, next);
        }
        before = stretched;
      }
    }
    if (chain_.needs_final_resize) {
      for (int32_t y = tiles_.output.rows.lo; y < tiles_.output.rows.hi; ++y) {
        finish(y, [&](T* to, Range columns) { rows_.lerp_row(to, before, rows_.tables.across[0].rows, y, columns); });
      }
    }
  }

  Patch<T> read_logits(int i, int64_t b, int64_t c) {
    return rows_.stretch_head(problem_.logits[i], b, c, tiles_.heads[i], rows_.tables.up[i].columns,
                              tiles_.grids[i].columns);
  }

  int32_t widest() const {
    int32_t width = tiles_.output.columns.size();
    for (int i = 0; i < chain_.count; ++i) width = std::max(width, tiles_.grids[i].columns.size());
    return width;
  }

  const FuseScalesForward<S>& problem_;
  const Chain& chain_;
  Scratch<T> scratch_;
  ChainRows<T> rows_;
  ForwardTiles tiles_;
  Attention attention_[kMaxScales];
};

}  // namespace

template <typename S>
void fuse_scales_forward(const FuseScalesForward<S>& problem, const ParallelFor& parallel_for) {
  using T = arithmetic_t<S>;
  const Chain& chain = problem.chain;
  const ChainTables<T> tables(chain, /*with_adjoint=*/false);
  const int64_t bands = (chain.size.height + kBandRows - 1) / kBandRows;
  const int64_t stripes = (chain.size.width + kBandColumns - 1) / kBandColumns;
  parallel_for(problem.batch * bands * stripes, [&](int64_t begin, int64_t end) {
    Forward<S, T> forward(problem, tables);
    for (int64_t part = begin; part < end; ++part) {
      const auto stripe = static_cast<int32_t>(part % stripes);
      const auto band = static_cast<int32_t>(part / stripes % bands);
      const Range rows{band * kBandRows, std::min((band + 1) * kBandRows, chain.size.height)};
      const Range columns{stripe * kBandColumns, std::min((stripe + 1) * kBandColumns, chain.size.width)};
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
