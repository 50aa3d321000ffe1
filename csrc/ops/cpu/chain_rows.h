// Steps of the fusion on patches of one channel, shared by the forward and the backward CPU kernels.
//
// A bilinear resize is done in two halves. Columns first: each source row is stretched once (`stretch`), and because
// it then serves several output rows, interpolating the rows is a sum of two neighbouring rows in the cache. The
// adjoint runs backwards: rows are summed first, then columns are contracted.
#pragma once

#include "core/view.h"
#include "ops/cpu/simd/rows.h"
#include "ops/cpu/workspace.h"

namespace hmsa {
namespace cpu {

template <typename T>
class ChainRows {
 public:
  ChainRows(const Chain& chain, const ChainTables<T>& tables, Scratch<T>& scratch)
      : chain(chain), tables(tables), ops(row_ops<T>()), scratch(scratch) {}

  const Chain& chain;
  const ChainTables<T>& tables;
  const RowOps<T>& ops;
  Scratch<T>& scratch;

  // One row of a patch of `tile`, columns stretched to `columns` of the target.
  void stretch_row(T* to, const T* from, const Tile& tile, const AxisTable<T>& table, Range columns) const {
    ops.expand(to, from, tile.columns.lo, table.first.data() + columns.lo, table.second.data() + columns.lo,
               table.weight.data() + columns.lo, columns.size());
  }

  // Rows of a head's map [h, w] with the columns stretched to the grid's.
  template <typename S>
  Patch<T> stretch_head(const MapView<const S>& map, int64_t b, int64_t c, const Tile& head, const AxisTable<T>& table,
                        Range columns) const {
    const LoadRow<S, T> load = load_of(ops, static_cast<const S*>(nullptr));
    const Patch<T> stretched = scratch.patch(Tile{head.rows, columns});
    const auto mark = scratch.mark();
    T* row = scratch.take(head.columns.size());
    for (int32_t y = head.rows.lo; y < head.rows.hi; ++y) {
      load(row, map.at(b, c, y, head.columns.lo), map.column, head.columns.size());
      stretch_row(stretched.row(y), row, head, table, columns);
    }
    scratch.rewind(mark);
    return stretched;
  }

  // Row y of the target, columns from `left` on, of a patch whose columns are stretched already.
  void lerp_row(T* to, const Patch<T>& stretched, const AxisTable<T>& table, int32_t y, Range columns) const {
    ops.lerp(to, stretched.row(table.first[y], columns.lo), stretched.row(table.second[y], columns.lo), table.weight[y],
             columns.size());
  }

  // A whole patch of the target, from one whose columns are stretched already.
  Patch<T> lerp_rows(const Patch<T>& stretched, const AxisTable<T>& table, Range rows) const {
    const Patch<T> patch = scratch.patch(Tile{rows, stretched.tile.columns});
    for (int32_t y = rows.lo; y < rows.hi; ++y) lerp_row(patch.row(y), stretched, table, y, patch.tile.columns);
    return patch;
  }

  // Attention of scale i on its grid (`grid`), and for a lower scale also resized to the output (`resized`).
  struct Attention {
    Patch<T> grid;
    Patch<T> resized;
  };

  template <typename S>
  Attention attention(const MapView<const S>& map, int i, int64_t b, int64_t c, const Tile& grid,
                      const Tile& output) const {
    Attention result;
    const Patch<T> stretched = stretch_head(map, b, c, chain.up[i].sources(grid), tables.up[i].columns, grid.columns);
    result.grid = lerp_rows(stretched, tables.up[i].rows, grid.rows);
    if (chain.is_lower(i)) {
      const Tile sources = chain.across[i].sources(output);
      const Patch<T> wide = scratch.patch(Tile{sources.rows, output.columns});
      for (int32_t y = sources.rows.lo; y < sources.rows.hi; ++y) {
        stretch_row(wide.row(y), result.grid.row(y), grid, tables.across[i].columns, output.columns);
      }
      result.resized = lerp_rows(wide, tables.across[i].rows, output.rows);
    }
    return result;
  }

  // A * L of a lower scale on the rows of its grid, columns stretched to the output's.
  Patch<T> stretched_product(int i, const Patch<T>& stretched_logits, const Patch<T>& attention,
                             const Tile& output) const {
    const Tile sources = chain.across[i].sources(output);
    const Patch<T> product = scratch.patch(Tile{sources.rows, output.columns});
    const auto mark = scratch.mark();
    T* row = scratch.take(sources.columns.size());
    for (int32_t y = sources.rows.lo; y < sources.rows.hi; ++y) {
      lerp_row(row, stretched_logits, tables.up[i].rows, y, sources.columns);
      ops.multiply(row, row, attention.row(y, sources.columns.lo), sources.columns.size());
      stretch_row(product.row(y), row, sources, tables.across[i].columns, output.columns);
    }
    scratch.rewind(mark);
    return product;
  }

  // Row y of P on the grid of upper scale i; `before` is P of scale i - 1, columns stretched to this grid.
  void upper_row(T* to, int i, const Patch<T>& stretched_logits, const Patch<T>& attention, const Patch<T>& before,
                 int32_t y, Range columns) const {
    if (i == 0) {
      lerp_row(to, stretched_logits, tables.up[0].rows, y, columns);
      return;
    }
    const AxisTable<T>& up = tables.up[i].rows;
    const AxisTable<T>& across = tables.across[i - 1].rows;
    ops.blend_upper(to, attention.row(y, columns.lo), stretched_logits.row(up.first[y], columns.lo),
                    stretched_logits.row(up.second[y], columns.lo), up.weight[y],
                    before.row(across.first[y], columns.lo), before.row(across.second[y], columns.lo), across.weight[y],
                    columns.size());
  }

  // Row y of P behind lower scale i, from that before it.
  void lower_row(T* to, int i, const Patch<T>& product, const Patch<T>& resized_attention, const T* before, int32_t y,
                 Range columns) const {
    const AxisTable<T>& across = tables.across[i].rows;
    ops.blend_lower(to, resized_attention.row(y, columns.lo), product.row(across.first[y], columns.lo),
                    product.row(across.second[y], columns.lo), across.weight[y], before, columns.size());
  }

  // Row y (columns of `columns`) of the adjoint of a resize applied to `from`; `sums` holds a row of `from`.
  void adjoint_row(T* to, const Patch<T>& from, const ResizeTable<T>& table, int32_t y, Range columns, T* sums) const {
    const int32_t begin = table.rows.start[y];
    const int32_t count = table.rows.start[y + 1] - begin;
    const T* first = count > 0 ? from.row(table.rows.origin[y]) : from.data;
    ops.gather(sums, first, from.pitch, table.rows.adjoint.data() + begin, count, from.width());
    ops.contract(to, sums, from.tile.columns.lo, table.columns.origin.data() + columns.lo,
                 table.columns.start.data() + columns.lo, table.columns.adjoint.data(), columns.size());
  }
};

}  // namespace cpu
}  // namespace hmsa
