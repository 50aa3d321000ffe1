// fuse_scales on the GPU, forward: what a block does with one tile of the output and a group of channels.
//
// What becomes of P is a sink's affair: the op writes it (fuse_scales_forward.cu); losses and predictions take what they
// need of it, class by class (class_tiles.cuh).
#pragma once

#include "core/problem.h"
#include "ops/cuda/forward_layout.cuh"
#include "ops/cuda/forward_rows.cuh"

namespace hmsa {
namespace cuda {
namespace forward {

// What runs through the pipeline: channels of the logits, or of the attention.
struct Job {
  int32_t attention;
  LineKind kind;
  int64_t channel;
  int32_t count;     // of channels
  int32_t mirrored;  // the second view, `batch` images behind: its columns are counted from the right
};

// A run of rows of a few positions in one line of a grid's tile.
struct Item {
  int32_t line;
  int32_t position;
  int32_t row;
};

// Where the channels of a job begin in their maps, for this tile, in elements: 64-bit arithmetic that is done once.
// Offsets and not pointers, of which the compiler would not know that they lead to global memory.
struct JobOffsets {
  int64_t heads[kMaxScales];  // first row that the tile needs, column 0
};

// What the tile needs of one axis of every grid and head. The output's range is that of its grid.
struct AxisRanges {
  Range grids[kGridSlots];
  Range heads[kMaxScales];
};

// kCount positions are made at once; kPixels says whether they may belong to more than one column. More than one
// promise that offsets inside a tile fit 32 bits (those of its corner never need to).
//
// The sink has these members:
//
//   static constexpr bool kMirrors;                                      whether jobs may be mirrored
//   void store(block, job, item, const Pack<T, kCount>* fused) const     P of a run of rows, those above the tile's end
template <typename S, int kCount, bool kPixels, typename Sink>
struct ForwardBlock {
  using T = arithmetic_t<S>;
  using Values = Pack<T, kCount>;
  static constexpr bool kOneLine = kPixels && kCount > 1;
  using Offset = std::conditional_t<kCount == 1, int64_t, int32_t>;

  const ChainInputs<S>& problem;
  const Sink& sink;
  const ForwardLayout& layout;
  AxisRanges& rows;  // shared
  AxisRanges& columns;
  JobOffsets& offsets;
  unsigned char* memory;
  int64_t b;

  // ---- places in shared memory --------------------------------------------------------------------------------------

  template <typename E>
  HMSA_DEVICE E* at(int32_t offset) const {
    return reinterpret_cast<E*>(memory + offset);
  }
  HMSA_DEVICE T* at(const Place& map, int32_t line) const { return at<T>(map.offset + line * map.line); }
  HMSA_DEVICE const Lines& lines(LineKind kind) const { return layout.lines[kind]; }

  // Channels lie beside each other in a line of pixels only.
  HMSA_DEVICE int32_t channels(LineKind kind) const { return kPixels ? lines(kind).channels : 1; }
  HMSA_DEVICE int32_t column_of(LineKind kind, int32_t position) const {
    return kPixels ? lines(kind).by_channels.quotient(position) : position;
  }
  HMSA_DEVICE int32_t positions(LineKind kind, int grid) const { return columns.grids[grid].size() * channels(kind); }

  // ---- tables -------------------------------------------------------------------------------------------------------

  // One thread for each axis of each scale, since all this is latency before the first load. Ends with a barrier.
  HMSA_DEVICE_PHASE void make_ranges(const Tile& output) const {
    const Chain& chain = problem.chain;
    const int32_t thread = thread_index();
    if (thread < 2 * chain.count) {
      const bool along_rows = thread < chain.count;
      const int i = along_rows ? thread : thread - chain.count;
      const auto axis = [&](const Resize& resize) -> const AxisMap& {
        return along_rows ? resize.rows : resize.columns;
      };
      AxisRanges& ranges = along_rows ? rows : columns;
      const Range whole = along_rows ? output.rows : output.columns;
      Range range = whole;
      if (i != chain.unit || chain.needs_final_resize) {
        for (int k = i < chain.unit ? chain.unit - 1 : i; k >= i; --k) range = axis(chain.across[k]).sources(range);
      }
      ranges.grids[i] = range;
      ranges.heads[i] = axis(chain.up[i]).sources(range);
      if (chain.needs_final_resize) ranges.grids[layout.output] = whole;
    }
    __syncthreads();
  }

  // Ends with a barrier.
  HMSA_DEVICE_PHASE void make_tables() const {
    const Chain& chain = problem.chain;
    for (int map = 0; map < 2 * chain.count; ++map) {
      const int i = map / 2;
      const bool across = map % 2 != 0;
      if (across ? !has_level(chain, i) : is_composed(chain, i)) continue;
      const StretchedLayout& to = across ? layout.scales[i].across : layout.scales[i].head;
      const Resize& resize = across ? chain.across[i] : chain.up[i];
      // Columns of a head are counted from its first; all else from the first that the block has.
      fill_column_taps(at<Taps<T>>(to.column_taps), resize.columns, columns.grids[to.grid],
                       across ? columns.grids[i].lo : 0);
      fill_row_steps(at<RowStep<T>>(to.row_taps), resize.rows, rows.grids[to.grid],
                     across ? rows.grids[i].lo : rows.heads[i].lo);
    }
    if (chain.has_composed()) {
      const StretchedLayout& to = layout.scales[0].head;
      fill_composed_taps(at<ComposedTaps<T>>(to.column_taps), chain.composed_columns(), columns.grids[to.grid], 0, 1);
      fill_composed_taps(at<ComposedTaps<T>>(to.row_taps), chain.composed_rows(), rows.grids[to.grid], rows.heads[0].lo,
                         kRun);
    }
    __syncthreads();
  }

  // ---- along columns ------------------------------------------------------------------------------------------------

  // Ends with a barrier.
  HMSA_DEVICE_PHASE void make_offsets(const Job& job) const {
    const int32_t i = thread_index();
    if (i < problem.chain.count && (i > 0 || !job.attention)) {
      const MapView<const S> map = job.attention ? problem.attention[i] : problem.logits[i];
      const bool mirrored = Sink::kMirrors && job.mirrored;
      offsets.heads[i] = map.at(mirrored ? b + problem.batch : b, job.channel, rows.heads[i].lo,
                                mirrored ? problem.chain.heads[i].width - 1 : 0) -
                         map.data;
    }
    __syncthreads();
  }

  // Calls body(grid, line, position, column, channel) for all positions in a grid's columns, divided among the threads.
  template <typename Body>
  HMSA_DEVICE void for_positions(const Job& job, int any_grid, const Body& body) const {
    const int32_t items = lines(job.kind).count * layout.grids[any_grid].pitch[job.kind].divisor;
    for (int32_t start = 0; start < items; start += kBlockThreads) {
      const int32_t item = start + thread_index();
      const int grid = hidden(any_grid);
      const Division by_pitch = layout.grids[grid].pitch[job.kind];
      const int32_t line = kOneLine ? 0 : by_pitch.quotient_by_more(item);
      const int32_t position = item - line * by_pitch.divisor;
      const int32_t column = column_of(job.kind, position);
      const int32_t channel = line + position - column * channels(job.kind);
      if (line < lines(job.kind).count && position < positions(job.kind, grid) && channel < job.count) {
        body(grid, line, position, column, channel);
      }
    }
  }

  HMSA_DEVICE_PHASE void stretch_heads(const Job& job) const {
    for (int i = job.attention ? 1 : 0; i < problem.chain.count; ++i) {
      if (is_composed(problem.chain, i)) {
        stretch_head<ComposedTaps<T>>(job, i);
      } else {
        stretch_head<Taps<T>>(job, i);
      }
    }
  }

  template <typename ColumnTaps>
  HMSA_DEVICE void stretch_head(const Job& job, int i) const {
    const StretchedLayout& to = layout.scales[i].head;
    const MapView<const S> map = job.attention ? problem.attention[i] : problem.logits[i];
    const Range range = rows.heads[i];
    const S* first_row = map.data + offsets.heads[i];
    const auto step = static_cast<Offset>(Sink::kMirrors && job.mirrored ? -map.column : map.column);
    for_positions(job, to.grid, [&](int, int32_t line, int32_t position, int32_t column, int32_t channel) {
      const ColumnTaps& taps = at<ColumnTaps>(to.column_taps)[column];
      const auto source = column_source(first_row + channel * static_cast<Offset>(map.channel), step, taps);
      stretch_column(source, map.row, range.size(), at(to.places[job.kind], line) + position,
                     to.places[job.kind].pitch);
    });
  }

  // From the product or P of a scale, or its attention, on its grid to the columns of the next one.
  HMSA_DEVICE_PHASE void stretch_level(const Job& job, int i) const {
    const StretchedLayout& to = layout.scales[i].across;
    const Place& level = layout.scales[i].levels[job.kind];
    const int32_t height = rows.grids[i].size();
    for_positions(job, to.grid, [&](int, int32_t line, int32_t position, int32_t column, int32_t channel) {
      const Taps<T> taps = at<Taps<T>>(to.column_taps)[column];
      const T* from = at(level, line);
      const int32_t in_pixel = channel - line;
      const int32_t first = taps.first * channels(job.kind) + in_pixel;
      const int32_t second = taps.second * channels(job.kind) + in_pixel;
      stretch_level_column(below(from, first * level.pitch), below(from, second * level.pitch), taps.weight, height,
                           at(to.places[job.kind], line) + position, to.places[job.kind].pitch);
    });
  }

  // ---- along rows ---------------------------------------------------------------------------------------------------

  // Calls body(grid, item) for the runs of kWide positions in a grid's tile, divided among the threads. The grid is
  // hidden from the compiler, or it would keep all that follows from it in registers, of which a run needs every one.
  template <int kWide, typename Body>
  HMSA_DEVICE void for_runs(LineKind kind, int any_grid, const Body& body) const {
    const int32_t items = layout.grids[any_grid].items[kind];
    for (int32_t start = 0; start < items; start += kBlockThreads * kWide) {
      const int32_t item = start + thread_index() * kWide;
      const int grid = hidden(any_grid);
      const Division by_pitch = layout.grids[grid].pitch[kind];
      const int32_t rest = by_pitch.quotient_by_more(item);
      const int32_t run = kOneLine ? rest : lines(kind).by_count.quotient(rest);
      const Item at{kOneLine ? 0 : rest - run * lines(kind).count, item - rest * by_pitch.divisor, run * kRun};
      if (at.row < rows.grids[grid].size() && at.position < positions(kind, grid)) body(grid, at);
    }
  }

  // Attention, or 1 minus it, at the positions of an item. In pixels these belong to one column or two.
  template <int kWide>
  struct AttentionRows {
    const T* at;
    int32_t pitch;
    int32_t split;  // positions that belong to the first column

    HMSA_DEVICE Pack<T, kWide> row(int r) const {
      const T* row = below(at, r * pitch);
      if constexpr (kOneLine) {
        const T first = row[0];
        const T second = row[1];
        Pack<T, kWide> values;
        HMSA_UNROLL
        for (int j = 0; j < kWide; ++j) values.of[j] = j < split ? first : second;
        return values;
      } else {
        return load<kWide>(row);
      }
    }
  };

  template <int kWide>
  HMSA_DEVICE AttentionRows<kWide> attention_rows(LineKind kind, const Item& item, const Place& map) const {
    const T* first = below(at(map, item.line), item.row * map.pitch);
    if constexpr (kOneLine) {
      const int32_t column = column_of(kind, item.position);
      return {first + column, map.pitch, (column + 1) * channels(kind) - item.position};
    } else {
      const bool own = !kPixels || problem.chain.class_wise;
      return {first + (own ? item.position : column_of(kind, item.position)), map.pitch, kWide};
    }
  }

  // Calls use(r, values) with stretched rows interpolated along rows.
  template <int kWide, typename Use>
  HMSA_DEVICE void interpolate(LineKind kind, const Item& item, const StretchedLayout& from, const Use& use) const {
    const Place& place = from.places[kind];
    interpolate_rows<kWide>(at(place, item.line) + item.position, place.pitch, at<RowStep<T>>(from.row_taps) + item.row,
                            use);
  }

  // A of every scale, or A * L of the lower ones, on their grids; or 1 - R A of the lower scales on the output.
  HMSA_DEVICE_PHASE void make_grids(const Job& job, bool keep) const {
    constexpr int kWide = kCount > 1 ? 2 : 1;  // four would meet in the same banks when they store a transposed level
    for (int i = job.attention && !keep ? 1 : problem.chain.unit + 1; i < problem.chain.count; ++i) {
      const ScaleLayout& scale = layout.scales[i];
      const StretchedLayout& from = keep ? scale.across : scale.head;
      for_runs<kWide>(job.kind, from.grid, [&](int grid, const Item& item) {
        const int32_t height = rows.grids[grid].size() - item.row;
        Pack<T, kWide> values[kRun];
        interpolate<kWide>(job.kind, item, from, [&](int r, const Pack<T, kWide>& value) { values[r] = value; });
        if (job.attention) {
          const Place& place = keep ? scale.keep : scale.attention;
          T* to = below(at(place, item.line), item.row * place.pitch) + item.position;
          HMSA_UNROLL
          for (int r = 0; r < kRun; ++r) {
            if (keep) values[r] = complement(values[r]);
          }
          store_rows(values, height, to, place.pitch);
        } else {
          const AttentionRows<kWide> factor = attention_rows<kWide>(job.kind, item, scale.attention);
          multiply(values, [&](int r) { return factor.row(r); });
        }
        if (!keep && has_level(problem.chain, i)) store_level(job.kind, item, i, values);
      });
    }
  }

  // P of an upper scale on its grid, which for the last of them is the output: there the lower scales follow.
  HMSA_DEVICE_PHASE void make_upper(const Job& job, int any_grid) const {
    constexpr LineKind kind = kGroup;  // only logits have levels
    for_runs<kCount>(kind, any_grid, [&](int grid, const Item& item) {
      Values fused[kRun];
      if (grid == 1) {
        const StretchedLayout& from = layout.scales[0].head;
        const Place& place = from.places[kind];
        interpolate_composed_rows<kCount>(at(place, item.line) + item.position, place.pitch,
                                          at<ComposedTaps<T>>(from.row_taps) + item.row,
                                          [&](int r, const Values& value) { fused[r] = value; });
      } else {
        interpolate<kCount>(kind, item, grid == 0 ? layout.scales[0].head : layout.scales[grid - 1].across,
                            [&](int r, const Values& value) { fused[r] = value; });
      }
      if (grid > 0 && !problem.chain.needs_final_resize) {
        // P = A * L + (1 - A) * P, the second product first: together they need more registers than there are.
        const AttentionRows<kCount> attention = attention_rows<kCount>(kind, item, layout.scales[grid].attention);
        multiply(fused, [&](int r) { return complement(attention.row(r)); });
        interpolate<kCount>(kind, item, layout.scales[grid].head, [&](int r, const Values& logit) {
          const Values a = attention.row(r);
          HMSA_UNROLL
          for (int j = 0; j < kCount; ++j) fused[r].of[j] += a.of[j] * logit.of[j];
        });
      }
      if (grid != layout.output) {
        store_level(kind, item, grid, fused);
        return;
      }
      for (int i = problem.chain.unit + 1; i < problem.chain.count; ++i) {
        const AttentionRows<kCount> keep = attention_rows<kCount>(kind, item, layout.scales[i].keep);
        if constexpr (kOneLine) {  // in two passes: there are too few registers for one
          multiply(fused, [&](int r) { return keep.row(r); });
          interpolate<kCount>(kind, item, layout.scales[i].across, [&](int r, const Values& product) {
            HMSA_UNROLL
            for (int j = 0; j < kCount; ++j) fused[r].of[j] += product.of[j];
          });
        } else {
          interpolate<kCount>(kind, item, layout.scales[i].across, [&](int r, const Values& product) {
            const Values k = keep.row(r);
            HMSA_UNROLL
            for (int j = 0; j < kCount; ++j) fused[r].of[j] = product.of[j] + k.of[j] * fused[r].of[j];
          });
        }
      }
      sink.store(*this, job, item, fused);
    });
  }

  template <int kWide>
  HMSA_DEVICE void store_level(LineKind kind, const Item& item, int i, const Pack<T, kWide>* values) const {
    const Place& level = layout.scales[i].levels[kind];
    store_transposed(values, rows.grids[i].size() - item.row,
                     below(at(level, item.line), item.position * level.pitch) + item.row, level.pitch);
  }

  // ---- the pipeline -------------------------------------------------------------------------------------------------

  // Stage 0 works on the grids of the lower scales and the first upper one that is not the largest, further stages on
  // one more upper grid each, the last one on the output. Each function that this calls is inlined, hence called once.
  // Ends with a barrier, since the next job uses the same memory.
  HMSA_DEVICE void run(const Job& job) const {
    make_offsets(job);
    stretch_heads(job);
    __syncthreads();
    const int levels = !job.attention && problem.chain.unit > 1 ? problem.chain.unit - 1 : 0;
    const int last = levels > 1 ? levels : 1;
    for (int stage = problem.chain.count > 1 ? 0 : last; stage <= last; ++stage) {
      const bool finish = stage == last;
      if (stage == 0 || (finish && job.attention)) make_grids(job, finish);
      if (!job.attention && (finish || stage < levels)) make_upper(job, finish ? layout.output : stage + 1);
      __syncthreads();
      if (finish) break;
      for (int i = 1; i < problem.chain.count; ++i) {
        if (i > problem.chain.unit ? stage == 0 : stage < levels && i == stage + 1) stretch_level(job, i);
      }
      __syncthreads();
    }
  }
};

}  // namespace forward
}  // namespace cuda
}  // namespace hmsa
