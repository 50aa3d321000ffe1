// fuse_scales on the CPU, backward.
//
// With g = dLoss/dP and T the adjoint of a resize, from the smallest scale up (DESIGN 2):
//
//     s <  1   dz = U^T(A * R^T g)    da = U^T(sum_c[L * R^T g] - R^T sum_c[g * P_before])    dP_before = (1 - R A) * g
//     s >= 1   dz = U^T(A * g)        da = U^T(sum_c[g * (L - R P_before)])                   dP_before = R^T((1 - A) * g)
//
// (no sum over c where the attention is class-wise). Nothing was saved but the inputs: P_before is computed again.
// The work is divided by the elements of the inputs (`backward_tiles`): a part gathers everything that reaches the
// elements it owns, in a fixed order, so the result does not depend on the number of threads, and no partial sums are
// exchanged. The price is that the rim of a part is computed by its neighbours, too.
#include <algorithm>

#include "ops/cpu/chain_rows.h"
#include "ops/cpu/fuse_scales.h"

namespace hmsa {
namespace cpu {
namespace {

// Rows and columns of the output that a part stands for: the rim is some 20 wide for a scale of 0.5 at head stride 4,
// and some three patches of this size per channel should stay in the L2 cache.
constexpr int32_t kPartRows = 64;
constexpr int32_t kPartColumns = 512;

template <typename S, typename T>
class Backward {
 public:
  Backward(const FuseScalesBackward<S>& problem, const ChainTables<T>& tables)
      : problem_(problem), chain_(problem.chain), tables_(tables), rows_(problem.chain, tables, scratch_) {
    for (int i = 0; i < chain_.count; ++i) {
      wants_attention_ = wants_attention_ || problem.grad_attention[i].data != nullptr;
    }
  }

  void run(int64_t b, const BackwardTiles& tiles) {
    if (tiles.output.empty()) return;
    const auto start = scratch_.mark();
    tiles_ = tiles;
    for (int i = chain_.count - 1; i > chain_.unit; --i) {
      work_[i] = hull(chain_.across[i].sources(tiles.output), tiles.grids[i]);
    }
    work_[chain_.unit] = hull(tiles.levels[chain_.unit], tiles.output);
    for (int i = chain_.unit - 1; i >= 0; --i) {
      work_[i] = hull(chain_.across[i].sources(work_[i + 1]), tiles.levels[i]);
    }
    if (!chain_.class_wise) begin_attention(b, 0);
    const auto mark = scratch_.mark();
    for (int64_t c = 0; c < problem_.classes; ++c) {
      if (chain_.class_wise) begin_attention(b, c);
      channel(b, c);
      if (chain_.class_wise) finish_attention(b, c);
      scratch_.rewind(mark);
    }
    if (!chain_.class_wise) finish_attention(b, 0);
    scratch_.rewind(start);
  }

 private:
  void begin_attention(int64_t b, int64_t c) {
    for (int i = 1; i < chain_.count; ++i) {
      attention_[i] = rows_.attention(problem_.attention[i], i, b, c, work_[i], tiles_.output);
      if (problem_.grad_attention[i].data == nullptr || tiles_.grids[i].empty()) continue;
      grad_grid_[i] = scratch_.zero_patch(tiles_.grids[i]);
      if (chain_.is_lower(i)) grad_resized_[i] = scratch_.zero_patch(tiles_.output);
    }
  }

  void channel(int64_t b, int64_t c) {
    const Patch<T> grad = read_grad(b, c);
    if (wants_attention_) recompute(b, c);
    T* row = scratch_.take(widest());
    T* sums = scratch_.take(widest());

    for (int i = chain_.count - 1; i > chain_.unit; --i) {
      lower_scale(i, b, c, grad, row, sums);
      for (int32_t y = grad.tile.rows.lo; y < grad.tile.rows.hi; ++y) {
        rows_.ops.multiply_complement(grad.row(y), attention_[i].resized.row(y), grad.width());
      }
    }

    Patch<T> level = grad;
    if (chain_.needs_final_resize) level = adjoint(grad, tables_.across[0], tiles_.levels[0], sums);
    for (int i = chain_.unit; i >= 0; --i) {
      upper_scale(i, b, c, level, row, sums);
      if (i == 0) break;
      for (int32_t y = level.tile.rows.lo; y < level.tile.rows.hi; ++y) {
        rows_.ops.multiply_complement(level.row(y), attention_[i].grid.row(y, level.tile.columns.lo), level.width());
      }
      level = adjoint(level, tables_.across[i - 1], tiles_.levels[i - 1], sums);
    }
  }

  // P before every scale: for an upper one on the grid above with its columns stretched, for a lower one on the output.
  void recompute(int64_t b, int64_t c) {
    for (int i = 0; i < chain_.count; ++i) {
      logits_[i] = rows_.stretch_head(problem_.logits[i], b, c, chain_.up[i].sources(work_[i]), tables_.up[i].columns,
                                      work_[i].columns);
    }
    const bool any_lower = chain_.unit + 1 < chain_.count;
    for (int i = 0; i < chain_.unit || (i == chain_.unit && any_lower); ++i) {
      const bool last = i == chain_.unit;
      const Tile& grid = last ? tiles_.output : work_[i];
      Patch<T> before = scratch_.patch(last ? grid : Tile{grid.rows, work_[i + 1].columns});
      const auto mark = scratch_.mark();
      T* row = last ? nullptr : scratch_.take(grid.columns.size());
      for (int32_t y = grid.rows.lo; y < grid.rows.hi; ++y) {
        rows_.upper_row(last ? before.row(y) : row, i, logits_[i], attention_[i].grid, before_[i], y, grid.columns);
        if (!last) rows_.stretch_row(before.row(y), row, grid, tables_.across[i].columns, before.tile.columns);
      }
      scratch_.rewind(mark);
      before_[i + 1] = before;
    }
    for (int i = chain_.unit + 1; i + 1 < chain_.count; ++i) {
      before_[i + 1] = scratch_.patch(tiles_.output);
      const auto mark = scratch_.mark();
      const Patch<T> product = rows_.stretched_product(i, logits_[i], attention_[i].grid, tiles_.output);
      for (int32_t y = tiles_.output.rows.lo; y < tiles_.output.rows.hi; ++y) {
        rows_.lower_row(before_[i + 1].row(y), i, product, attention_[i].resized, before_[i].row(y), y,
                        tiles_.output.columns);
      }
      scratch_.rewind(mark);
    }
  }

  void lower_scale(int i, int64_t b, int64_t c, const Patch<T>& grad, T* row, T* sums) {
    const Tile& grid = tiles_.grids[i];
    if (grid.empty()) return;
    const bool for_attention = problem_.grad_attention[i].data != nullptr;
    const bool for_logits = problem_.grad_logits[i].data != nullptr;
    if (for_attention) {
      const Tile reach = chain_.across[i].outputs(grid);
      for (int32_t y = reach.rows.lo; y < reach.rows.hi; ++y) {
        rows_.ops.multiply_add(grad_resized_[i].row(y, reach.columns.lo), grad.row(y, reach.columns.lo),
                               before_[i].row(y, reach.columns.lo), reach.columns.size());
      }
    }
    if (!for_attention && !for_logits) return;

    const auto mark = scratch_.mark();
    const Patch<T> product = scratch_.patch(grid);
    for (int32_t y = grid.rows.lo; y < grid.rows.hi; ++y) {
      T* resized = product.row(y);  // R^T g, then A * R^T g
      rows_.adjoint_row(resized, grad, tables_.across[i], y, grid.columns, sums);
      if (for_attention) {
        rows_.lerp_row(row, logits_[i], tables_.up[i].rows, y, grid.columns);
        rows_.ops.multiply_add(grad_grid_[i].row(y), row, resized, grid.columns.size());
      }
      rows_.ops.multiply(resized, resized, attention_[i].grid.row(y, grid.columns.lo), grid.columns.size());
    }
    if (for_logits) write_head(problem_.grad_logits[i], i, b, c, product, row, sums);
    scratch_.rewind(mark);
  }

  void upper_scale(int i, int64_t b, int64_t c, const Patch<T>& level, T* row, T* sums) {
    const Tile& grid = tiles_.grids[i];
    if (grid.empty()) return;
    if (i == 0) {
      if (problem_.grad_logits[0].data != nullptr) write_head(problem_.grad_logits[0], 0, b, c, level, row, sums);
      return;
    }
    if (problem_.grad_attention[i].data != nullptr) {
      for (int32_t y = grid.rows.lo; y < grid.rows.hi; ++y) {
        rows_.lerp_row(row, logits_[i], tables_.up[i].rows, y, grid.columns);
        rows_.lerp_row(sums, before_[i], tables_.across[i - 1].rows, y, grid.columns);
        rows_.ops.multiply_difference_add(grad_grid_[i].row(y), level.row(y, grid.columns.lo), row, sums,
                                          grid.columns.size());
      }
    }
    if (problem_.grad_logits[i].data != nullptr) {
      const auto mark = scratch_.mark();
      const Patch<T> product = scratch_.patch(grid);
      for (int32_t y = grid.rows.lo; y < grid.rows.hi; ++y) {
        rows_.ops.multiply(product.row(y), level.row(y, grid.columns.lo), attention_[i].grid.row(y, grid.columns.lo),
                           grid.columns.size());
      }
      write_head(problem_.grad_logits[i], i, b, c, product, row, sums);
      scratch_.rewind(mark);
    }
  }

  void finish_attention(int64_t b, int64_t c) {
    if (!wants_attention_) return;
    T* row = scratch_.take(widest());
    T* sums = scratch_.take(widest());
    for (int i = 1; i < chain_.count; ++i) {
      const Tile& grid = tiles_.grids[i];
      if (problem_.grad_attention[i].data == nullptr || grid.empty()) continue;
      if (chain_.is_lower(i)) {
        for (int32_t y = grid.rows.lo; y < grid.rows.hi; ++y) {
          rows_.adjoint_row(row, grad_resized_[i], tables_.across[i], y, grid.columns, sums);
          T* to = grad_grid_[i].row(y);
          for (int32_t x = 0; x < grid.columns.size(); ++x) to[x] -= row[x];
        }
      }
      write_head(problem_.grad_attention[i], i, b, c, grad_grid_[i], row, sums);
    }
  }

  // U^T of a patch of grid i, written to the owned elements of a head's gradient.
  void write_head(const MapView<S>& map, int i, int64_t b, int64_t c, const Patch<T>& grid, T* row, T* sums) {
    const StoreRow<S, T> store = store_of(rows_.ops, static_cast<S*>(nullptr));
    const Tile& owned = tiles_.owned[i];
    for (int32_t y = owned.rows.lo; y < owned.rows.hi; ++y) {
      rows_.adjoint_row(row, grid, tables_.up[i], y, owned.columns, sums);
      store(map.at(b, c, y, owned.columns.lo), map.column, row, owned.columns.size());
    }
  }

  Patch<T> adjoint(const Patch<T>& from, const ResizeTable<T>& table, const Tile& to, T* sums) {
    const Patch<T> result = scratch_.patch(to);
    for (int32_t y = to.rows.lo; y < to.rows.hi; ++y) {
      rows_.adjoint_row(result.row(y), from, table, y, to.columns, sums);
    }
    return result;
  }

  Patch<T> read_grad(int64_t b, int64_t c) {
    const LoadRow<S, T> load = load_of(rows_.ops, static_cast<const S*>(nullptr));
    const Patch<T> grad = scratch_.patch(tiles_.output);
    for (int32_t y = grad.tile.rows.lo; y < grad.tile.rows.hi; ++y) {
      load(grad.row(y), problem_.grad_output.at(b, c, y, grad.tile.columns.lo), problem_.grad_output.column,
           grad.width());
    }
    return grad;
  }

  int32_t widest() const {
    int32_t width = tiles_.output.columns.size();
    for (int i = 0; i < chain_.count; ++i) {
      width = std::max({width, work_[i].columns.size(), tiles_.owned[i].columns.size()});
    }
    return width;
  }

  const FuseScalesBackward<S>& problem_;
  const Chain& chain_;
  const ChainTables<T>& tables_;
  Scratch<T> scratch_;
  ChainRows<T> rows_;
  bool wants_attention_ = false;
  BackwardTiles tiles_;
  Tile work_[kMaxScales];  // of every grid: what either direction needs
  typename ChainRows<T>::Attention attention_[kMaxScales];
  Patch<T> grad_grid_[kMaxScales];     // da before U^T, on the grid
  Patch<T> grad_resized_[kMaxScales];  // sum_c[g * P_before] of a lower scale, on the output
  Patch<T> logits_[kMaxScales];        // head rows, columns stretched to the grid
  Patch<T> before_[kMaxScales];
};

}  // namespace

template <typename S>
void fuse_scales_backward(const FuseScalesBackward<S>& problem, const ParallelFor& parallel_for) {
  using T = arithmetic_t<S>;
  const Chain& chain = problem.chain;
  const ChainTables<T> tables(chain, /*with_adjoint=*/true);
  const Extent parts{(chain.size.height + kPartRows - 1) / kPartRows,
                     (chain.size.width + kPartColumns - 1) / kPartColumns};
  const int64_t per_image = static_cast<int64_t>(parts.height) * parts.width;
  parallel_for(problem.batch * per_image, [&](int64_t begin, int64_t end) {
    Backward<S, T> backward(problem, tables);
    for (int64_t part = begin; part < end; ++part) {
      const auto row = static_cast<int32_t>(part % per_image / parts.width);
      const auto column = static_cast<int32_t>(part % parts.width);
      backward.run(part / per_image, backward_tiles(chain, parts, row, column));
    }
  });
}

template void fuse_scales_backward(const FuseScalesBackward<float>&, const ParallelFor&);
template void fuse_scales_backward(const FuseScalesBackward<double>&, const ParallelFor&);
template void fuse_scales_backward(const FuseScalesBackward<Half>&, const ParallelFor&);
template void fuse_scales_backward(const FuseScalesBackward<BFloat16>&, const ParallelFor&);

}  // namespace cpu
}  // namespace hmsa
