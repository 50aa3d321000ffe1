// The chain of scales on a tile: what a block computes of the forward direction, in fuse_scales and in its backward.
//
//     s >= 1    P = A * L + (1 - A) * R(P -> grid of s)
//     s <  1    P = R(A * L -> size) + (1 - R(A -> size)) * P         with L = U logits, A = U attention
//
// A resize is done in two halves. A thread goes down a run of output rows with a quad of columns. It holds the two rows of
// the source that it is between, stretched along the columns, so that a row of the source is read once for as many output
// rows as lie between it and the next. Only what lies on a grid between two resizes is in shared memory:
//
//     heads -> A of every scale -> 1 - R A of the lower ones         one plane, for all channels
//     heads -> A * L of the lower scales, P of the upper ones        "levels", on the part of their grids that is needed
//     heads and levels -> P of the output                            in registers, handed to a sink
//
// The largest scale's own grid is skipped: U and R in one step take its head to the next grid (ComposedMap).
#pragma once

#include "ops/cuda/common.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {

// Which rows (of the band at hand) and columns a block needs of every grid, the output being one, and of every head.
struct TileWindows {
  Range rows[kGridSlots];
  Range columns[kGridSlots];
  Range head_rows[kMaxScales];
  Range head_columns[kMaxScales];
};

// Where everything lies in shared memory, and how much of it there is at most.
struct TileLayout {
  int32_t planes;  // channels at a time
  Division by_planes;
  bool together;    // channels of the output are neighbours in memory
  int32_t windows;  // TileWindows
  int32_t rows[kGridSlots];
  int32_t quads[kGridSlots];
  Division by_quads[kGridSlots];
  int32_t pitch[kGridSlots];  // of a row of a plane, in bytes
  int32_t run[kGridSlots];    // rows of an item
  Division by_run[kGridSlots];
  Division head_columns[kMaxScales];
  Division head_areas[kMaxScales];
  LinkTables up[kMaxScales];      // of each head to its grid; of the largest scale's to the next one, if composed
  LinkTables across[kMaxScales];  // of each level to the next grid
  Map heads[kMaxScales];
  Map attention_heads[kMaxScales];
  Map levels[kMaxScales];
  Map attention[kMaxScales];  // on the scale's grid
  Map keep[kMaxScales];       // 1 - R A on the output (lower scales)
  int32_t factor_plane;       // from map to map of A of scale 1.0, if it is there, and 1 - R A of the scales behind it
};

HMSA_HOST_DEVICE bool is_composed(const Chain& chain, int i) { return i == 0 && chain.has_composed(); }

// Whether the scale has values on its own grid that are resized once more.
HMSA_HOST_DEVICE bool has_level(const Chain& chain, int i) { return i > 0 && i != chain.unit; }

// What a window of outputs reads: both taps of all of them. Windows of sources may contain the elements before the first
// and behind the last that taps_of speaks of.
HMSA_HOST_DEVICE Range tap_sources(const AxisMap& map, Axis axis, Range range) {
  if (range.empty()) return Range{0, 0};
  const int32_t first = larger(range.lo, 0);
  const int32_t last = smaller(range.hi, map.out) - 1;
  if (map.identity()) return Range{first, last + 1};
  return Range{taps_of<float>(map, axis, first).tap.first, taps_of<float>(map, axis, last).tap.first + 2};
}

// The windows that a window of the output needs, along one axis. `also` widens those of the grids (the backward pass).
template <typename Also>
HMSA_HOST_DEVICE void set_windows(const Chain& chain, Axis axis, Range output, Range* grids, Range* heads,
                                  const Also& also) {
  const int last = output_slot(chain);
  grids[last] = output;
  for (int i = chain.unit - 1; i > 0; --i) {
    grids[i] = hull(tap_sources(axis_of(chain.across[i], axis), axis, grids[i + 1]), also(i));
  }
  for (int i = chain.unit + 1; i < chain.count; ++i) {
    grids[i] = hull(tap_sources(axis_of(chain.across[i], axis), axis, output), also(i));
  }
  for (int i = 0; i < chain.count; ++i) {
    if (is_composed(chain, i)) {
      const Range outputs = grids[next_slot(chain, i)];
      const ComposedMap map = composed_axis(chain, axis);
      heads[i] = map.sources(Range{larger(outputs.lo, 0), smaller(outputs.hi, map.outer.out)});
    } else {
      heads[i] = tap_sources(axis_of(chain.up[i], axis), axis, grids[i]);
    }
  }
}

// ---- the device -----------------------------------------------------------------------------------------------------

// How the taps of the columns of a quad lie, counted from the first of them: at nearly all quads of a resize by a whole
// number they are a few neighbouring elements.
enum class QuadKind : int32_t { kAny, kPairs0000, kPairs0011, kPairs0112, kSingles0123 };

// A quad of one plane of a source, stretched along columns, as a thread goes down the rows of a resize: between two rows
// of the source. kComposed: taps are those of two resizes in one step, and may be more than two.
template <typename T, bool kComposed>
struct RowStream {
  const T* at;  // the first tap of the first column, in the row of the source that comes next
  T first_weight[kQuad], second_weight[kQuad];
  Quad<T> a, b;           // stretched rows: `lower` is that of b, a is the one above
  int32_t upper, lower;   // rows of the last tap
  const Tap<T>* taps;     // of the row that comes next
  const Tap<T>* columns;  // of the quad's first column
  int32_t quads;          // from column to column of that table
  int32_t pitch;
  QuadKind kind;
  const MoreTaps<T>* more_taps;  // null if no row has more than two
  const MoreTaps<T>* more_columns;

  // From the `row`-th row of the tables on.
  HMSA_DEVICE void begin(const LinkTables& link, int32_t quad_count, int32_t q, const Map& source, int32_t k,
                         int32_t row) {
    taps = shared_at<const Tap<T>>(link.rows) + row;
    columns = shared_at<const Tap<T>>(link.columns) + q;
    quads = quad_count;
    pitch = source.pitch;
    lower = taps->first - 1;
    upper = lower;
    const int32_t origin = columns[0].first;
    at = shared_at<const T>(source.at(k, taps->first) + origin);
    bool pairs = true;
    bool singles = true;
    int32_t pattern = 0;
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const Tap<T> tap = columns[j * quad_count];
      const int32_t width = tap.second - tap.first;
      first_weight[j] = tap.first_weight;
      second_weight[j] = tap.second_weight;
      pairs = pairs && width == static_cast<int32_t>(sizeof(T));
      singles = singles && width == 0;
      pattern = pattern * 16 + (tap.first - origin) / static_cast<int32_t>(sizeof(T));
    }
    if (kComposed) {
      more_taps = link.more_rows == 0 ? nullptr : shared_at<const MoreTaps<T>>(link.more_rows) + row;
      more_columns = link.more_columns == 0 ? nullptr : shared_at<const MoreTaps<T>>(link.more_columns) + q;
      if (more_columns != nullptr) {
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) pairs = pairs && more_columns[j * quad_count].count == 0;
      }
    }
    // Pairs of elements are read as one where they lie at a multiple of their size.
    const bool aligned = ((source.at(k, 0) + origin) | pitch) % static_cast<int32_t>(2 * sizeof(T)) == 0;
    kind = pairs && pattern == 0x0000                   ? QuadKind::kPairs0000
           : pairs && pattern == 0x0011                 ? QuadKind::kPairs0011
           : pairs && aligned && pattern == 0x0112      ? QuadKind::kPairs0112
           : !kComposed && singles && pattern == 0x0123 ? QuadKind::kSingles0123
                                                        : QuadKind::kAny;
  }

  // A row of the source at its columns.
  HMSA_DEVICE void stretch(const T* from, Quad<T>& to) const {
    const auto set = [&](int j, T first, T second) { to.of[j] = first_weight[j] * first + second_weight[j] * second; };
    if (kind == QuadKind::kPairs0112) {
      struct alignas(2 * sizeof(T)) Pair {
        T of[2];
      };
      const Pair low = reinterpret_cast<const Pair*>(from)[0];
      const Pair high = reinterpret_cast<const Pair*>(from)[1];
      set(0, low.of[0], low.of[1]);
      set(1, low.of[1], high.of[0]);
      set(2, low.of[1], high.of[0]);
      set(3, high.of[0], high.of[1]);
    } else if (kind == QuadKind::kPairs0011) {
      const T x0 = from[0];
      const T x1 = from[1];
      const T x2 = from[2];
      set(0, x0, x1);
      set(1, x0, x1);
      set(2, x1, x2);
      set(3, x1, x2);
    } else if (kind == QuadKind::kPairs0000) {
      const T x0 = from[0];
      const T x1 = from[1];
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) set(j, x0, x1);
    } else if (!kComposed && kind == QuadKind::kSingles0123) {
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) to.of[j] = from[j];
    } else {
      const int32_t origin = columns[0].first;
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        const Tap<T> tap = columns[j * quads];
        set(j, *below(from, tap.first - origin), *below(from, tap.second - origin));
      }
      if (kComposed && more_columns != nullptr) {
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) {
          const MoreTaps<T>& more = more_columns[j * quads];
          HMSA_ROLLED
          for (int t = 0; t < more.count; ++t) to.of[j] += more.weight[t] * *below(from, more.index[t] - origin);
        }
      }
    }
  }

  // The next row of the outputs.
  HMSA_DEVICE Quad<T> next() {
    const Tap<T> tap = *taps++;
    if (tap.second != lower || (kComposed && tap.first != upper)) {
      HMSA_ROLLED
      for (; lower < tap.second; ++lower) {
        a = b;
        stretch(at, b);
        at = below(at, pitch);
      }
      if (tap.first == tap.second) {
        not_predicated();
        a = b;
      }
      upper = tap.first;
    }
    Quad<T> value;
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) value.of[j] = tap.first_weight * a.of[j] + tap.second_weight * b.of[j];
    if (kComposed && more_taps != nullptr) {
      const MoreTaps<T>& more = *more_taps++;
      HMSA_ROLLED
      for (int t = 0; t < more.count; ++t) {
        Quad<T> other;
        stretch(below(at, (more.index[t] - lower - 1) * pitch), other);
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) value.of[j] += more.weight[t] * other.of[j];
      }
    }
    return value;
  }
};

// A run of rows of a quad of one plane, as one thread makes it.
struct Item {
  int32_t k;
  int32_t q;
  int32_t row;     // of the grid
  int32_t height;  // of the run
};

constexpr int kAnyLowers = -1;

template <typename S>
struct ChainTile {
  using T = arithmetic_t<S>;

  const ChainInputs<S>& inputs;
  const TileLayout& layout;
  int64_t b;
  int64_t channel;  // the first of those at hand
  int32_t count;    // of channels
  bool more_rows;   // composed taps of the band, and of the tile, are more than two somewhere
  bool more_columns;

  HMSA_DEVICE TileWindows& windows() const { return *shared_at<TileWindows>(layout.windows); }
  HMSA_DEVICE const Chain& chain() const { return inputs.chain; }

  // Calls body(item) for runs of rows of `planes` planes on a grid, divided among the threads.
  template <typename Body>
  HMSA_DEVICE void for_runs(int slot, Range range, int32_t planes, const Body& body) const {
    const int32_t quads = layout.quads[slot];
    const int32_t length = layout.run[slot];
    const int32_t items = layout.by_run[slot].quotient(range.size() + length - 1) * planes * quads;
    const bool many = planes == layout.planes;
    HMSA_ROLLED
    for (int32_t item = thread(); item < items; item += threads()) {
      // Where channels are neighbours in memory, threads of neighbouring channels are neighbours, too.
      Item at;
      int32_t rest;
      if (layout.together && many) {
        rest = layout.by_planes.quotient(item);
        at.k = item - rest * planes;
        const int32_t run = layout.by_quads[slot].quotient(rest);
        at.q = rest - run * quads;
        rest = run;
      } else {
        const int32_t line = layout.by_quads[slot].quotient(item);
        at.q = item - line * quads;
        rest = many ? layout.by_planes.quotient(line) : planes == 1 ? line : line / planes;
        at.k = line - rest * planes;
      }
      at.row = range.lo + rest * length;
      at.height = smaller(length, range.hi - at.row);
      body(at);
    }
  }

  // ---- tables ---------------------------------------------------------------------------------------------------------

  // Whether any of the columns that this thread made, or of the rows, reads more than two inputs.
  HMSA_DEVICE_PHASE bool fill_columns() const {
    bool more = false;
    for (int i = 0; i < chain().count; ++i) {
      const int next = next_slot(chain(), i);
      const TileWindows& at = windows();
      if (is_composed(chain(), i)) {
        more = fill_column_taps<T>(layout.up[i].columns, layout.up[i].more_columns, chain().composed_columns(),
                                   at.columns[next], at.head_columns[i].lo, layout.quads[next]);
      } else {
        fill_column_taps<T>(layout.up[i].columns, 0, chain().up[i].columns, at.columns[i], at.head_columns[i].lo,
                            layout.quads[i]);
      }
      if (has_level(chain(), i)) {
        fill_column_taps<T>(layout.across[i].columns, 0, chain().across[i].columns, at.columns[next], at.columns[i].lo,
                            layout.quads[next]);
      }
    }
    return more;
  }

  HMSA_DEVICE_PHASE bool fill_rows() const {
    bool more = false;
    for (int i = 0; i < chain().count; ++i) {
      const int next = next_slot(chain(), i);
      const TileWindows& at = windows();
      if (is_composed(chain(), i)) {
        more = fill_row_taps<T>(layout.up[i].rows, layout.up[i].more_rows, chain().composed_rows(), at.rows[next],
                                at.head_rows[i].lo);
      } else {
        fill_row_taps<T>(layout.up[i].rows, 0, chain().up[i].rows, at.rows[i], at.head_rows[i].lo);
      }
      if (has_level(chain(), i)) {
        fill_row_taps<T>(layout.across[i].rows, 0, chain().across[i].rows, at.rows[next], at.rows[i].lo);
      }
    }
    return more;
  }

  // ---- heads ----------------------------------------------------------------------------------------------------------

  HMSA_DEVICE int32_t source_row(int i, int32_t row) const { return element_of(row, chain().heads[i].height); }
  HMSA_DEVICE int32_t source_column(int i, int32_t column) const { return element_of(column, chain().heads[i].width); }

  // Copies the window of a head to shared memory, `planes` channels of it. Several elements are read before the first is
  // written: their latencies overlap. A thread keeps to one place in the map and goes through channels, or the other way
  // round where channels are neighbours in memory.
  HMSA_DEVICE void stage(int i, const MapView<const S>& map, int64_t first, int32_t planes, const Map& to) const {
    constexpr int kAhead = 4;
    constexpr int32_t kBytes = static_cast<int32_t>(sizeof(T));
    const Range rows = windows().head_rows[i];
    const Range columns = windows().head_columns[i];
    const Division by_columns = layout.head_columns[i];
    const Division by_area = layout.head_areas[i];
    const S* const corner = map.at(b, first, 0, 0);
    if (map.channel == 1 && planes > 1) {
      const int32_t at_once = layout.by_planes.quotient(threads());
      const int32_t first_pixel = layout.by_planes.quotient(thread());
      const int32_t k = thread() - first_pixel * layout.planes;
      if (k >= planes || first_pixel >= at_once) return;
      const S* const from = corner + k;
      const int32_t place = to.at(k, 0);
      HMSA_ROLLED
      for (int32_t start = first_pixel; start < by_area.divisor; start += kAhead * at_once) {
        T values[kAhead];
        HMSA_UNROLL
        for (int n = 0; n < kAhead; ++n) {
          const int32_t pixel = start + n * at_once;
          const int32_t row = by_columns.quotient(pixel);
          const int32_t column = pixel - row * by_columns.divisor;
          if (row < rows.size() && column < columns.size()) {
            values[n] = to_arithmetic(
                from[source_row(i, rows.lo + row) * map.row + source_column(i, columns.lo + column) * map.column]);
          }
        }
        HMSA_UNROLL
        for (int n = 0; n < kAhead; ++n) {
          const int32_t pixel = start + n * at_once;
          if (pixel < by_area.divisor) *shared_at<T>(place + pixel * kBytes) = values[n];
        }
      }
      return;
    }
    const int32_t parts = larger(1, by_area.quotient(threads()));
    const int64_t step = parts * map.channel;
    const int32_t place_step = parts * to.plane;
    HMSA_ROLLED
    for (int32_t item = thread(); item < parts * by_area.divisor; item += threads()) {
      const int32_t part = by_area.quotient(item);
      const int32_t pixel = item - part * by_area.divisor;
      const int32_t row = by_columns.quotient(pixel);
      const int32_t column = pixel - row * by_columns.divisor;
      if (row >= rows.size() || column >= columns.size()) continue;
      const S* from = corner + source_row(i, rows.lo + row) * map.row +
                      source_column(i, columns.lo + column) * map.column + part * map.channel;
      int32_t place = to.at(part, 0) + pixel * kBytes;
      int32_t left = planes > part ? (planes - part + parts - 1) / parts : 0;
      HMSA_ROLLED
      for (; left >= kAhead; left -= kAhead) {
        S values[kAhead];
        HMSA_UNROLL
        for (int n = 0; n < kAhead; ++n, from += step) values[n] = *from;
        HMSA_UNROLL
        for (int n = 0; n < kAhead; ++n, place += place_step) *shared_at<T>(place) = to_arithmetic(values[n]);
      }
      HMSA_ROLLED
      for (; left > 0; --left, from += step, place += place_step) *shared_at<T>(place) = to_arithmetic(*from);
    }
  }

  HMSA_DEVICE_PHASE void stage_heads() const {
    HMSA_ROLLED
    for (int i = 0; i < chain().count; ++i) stage(i, inputs.logits[i], channel, count, layout.heads[i]);
  }

  HMSA_DEVICE_PHASE void stage_attention() const {
    HMSA_ROLLED
    for (int i = 1; i < chain().count; ++i) {
      stage(i, inputs.attention[i], chain().class_wise ? channel : 0, 1, layout.attention_heads[i]);
    }
  }

  // ---- one resize -----------------------------------------------------------------------------------------------------

  // What becomes of a resized map: nothing, 1 minus it, or it times a factor (of one plane for all, or a plane each).
  enum class After { kNothing, kComplement, kFactor };
  struct Resampling {
    LinkTables link;
    Map source;
    int slot;  // the grid that it leads to
    Range rows;
    int32_t planes;
    Map target;
    int32_t target_row;  // that lies at row 0 of the target
    Map factor;
    int32_t factor_row;
  };

  template <After kAfter>
  HMSA_DEVICE void resample(const Resampling& job) const {
    const int32_t base = windows().rows[job.slot].lo;
    for_runs(job.slot, job.rows, job.planes, [&](const Item& item) {
      RowStream<T, false> source;
      source.begin(job.link, layout.quads[job.slot], item.q, job.source, item.k, item.row - base);
      const int32_t column = item.q * static_cast<int32_t>(sizeof(Quad<T>));
      int32_t to = job.target.at(item.k, item.row - job.target_row) + column;
      int32_t factor = job.factor.at(item.k, item.row - job.factor_row) + column;
      HMSA_ROLLED
      for (int32_t r = 0; r < item.height; ++r, to += job.target.pitch, factor += job.factor.pitch) {
        Quad<T> value = source.next();
        if (kAfter == After::kFactor) {
          const Quad<T> by = quad_at<T>(factor);
          HMSA_UNROLL
          for (int j = 0; j < kQuad; ++j) value.of[j] *= by.of[j];
        }
        if (kAfter == After::kComplement) {
          HMSA_UNROLL
          for (int j = 0; j < kQuad; ++j) value.of[j] = T(1) - value.of[j];
        }
        put_quad(to, value);
      }
    });
  }

  // A of scale i on the window of its grid.
  HMSA_DEVICE Resampling attention_job(int i) const {
    const Range rows = windows().rows[i];
    return {layout.up[i], layout.attention_heads[i], i, rows, 1, layout.attention[i], rows.lo, Map{}, 0};
  }
  // 1 - R A of a lower scale on the output.
  HMSA_DEVICE Resampling keep_job(int i) const {
    const int slot = output_slot(chain());
    const Range rows = windows().rows[slot];
    return {layout.across[i], layout.attention[i], slot, rows, 1, layout.keep[i], rows.lo, Map{}, 0};
  }
  // A * L of a lower scale on its grid.
  HMSA_DEVICE Resampling level_job(int i) const {
    const Range rows = windows().rows[i];
    Map factor = layout.attention[i];
    factor.plane = 0;
    return {layout.up[i], layout.heads[i], i, rows, count, layout.levels[i], rows.lo, factor, rows.lo};
  }

  // ---- the chain ------------------------------------------------------------------------------------------------------

  // P of an upper scale on rows `range` of its grid; on the output, the lower scales follow. kUpper says whether L of the
  // scale is blended in, kLowers how many lower scales there are, or kAnyLowers. The sink gets, row by row,
  //
  //     upper(i, logit, before)   L and R P where they are blended by the attention of scale i
  //     lower(i, before)          P before the product of scale i comes in; false ends the row
  //     result(fused)             P
  //
  // after begin(item), which says whether the item is wanted.
  template <bool kUpper, int kLowers, typename Sink>
  HMSA_DEVICE void fuse(int slot, Range range, Sink& sink) const {
    constexpr int kStreams = kLowers == kAnyLowers ? kMaxScales : kLowers > 0 ? kLowers : 1;
    const int32_t quads = layout.quads[slot];
    const int32_t base = windows().rows[slot].lo;
    const int unit = chain().unit;
    const int lowers = slot == output_slot(chain()) ? chain().count - 1 - unit : 0;
    for_runs(slot, range, count, [&](const Item& item) {
      if (!sink.begin(item)) return;
      const int32_t row = item.row - base;
      const bool from_head = slot == 0 || is_composed(chain(), slot - 1);
      const int source = slot == 0 ? 0 : slot - 1;
      LinkTables link = from_head ? layout.up[source] : layout.across[source];
      // A branch that no warp takes costs less than loops over no taps.
      if (!more_rows) link.more_rows = 0;
      if (!more_columns) link.more_columns = 0;
      RowStream<T, kUpper || kLowers == kAnyLowers> start;
      RowStream<T, false> own;
      RowStream<T, false> products[kStreams];
      start.begin(link, quads, item.q, from_head ? layout.heads[source] : layout.levels[source], item.k, row);
      if (kUpper) own.begin(layout.up[slot], quads, item.q, layout.heads[slot], item.k, row);
      const auto for_lowers = [&](const auto& body) {
        if constexpr (kLowers == kAnyLowers) {
          HMSA_ROLLED
          for (int l = 0; l < lowers; ++l) body(l);
        } else {
          HMSA_UNROLL
          for (int l = 0; l < kLowers; ++l) body(l);
        }
      };
      for_lowers([&](int l) {
        const int i = unit + 1 + l;
        products[l].begin(layout.across[i], quads, item.q, layout.levels[i], item.k, row);
      });
      const int32_t pitch = layout.pitch[slot];
      const int32_t pixel = row * pitch + item.q * static_cast<int32_t>(sizeof(Quad<T>));
      // All single planes of the output lie one behind the other.
      const T* factors =
          shared_at<const T>(kUpper ? layout.attention[slot].offset + pixel : layout.keep[unit + 1].offset + pixel);
      HMSA_ROLLED
      for (int32_t r = 0; r < item.height; ++r) {
        Quad<T> fused = start.next();
        if (kUpper) {
          const Quad<T> logit = own.next();
          const Quad<T> a = *reinterpret_cast<const Quad<T>*>(factors);
          sink.upper(slot, logit, fused);
          HMSA_UNROLL
          for (int j = 0; j < kQuad; ++j) fused.of[j] = a.of[j] * logit.of[j] + (T(1) - a.of[j]) * fused.of[j];
        }
        for_lowers([&](int l) {
          const int i = unit + 1 + l;
          sink.lower(i, fused);
          const Quad<T> product = products[l].next();
          const int32_t plane = (l + (kUpper ? 1 : 0)) * layout.factor_plane;
          const Quad<T> keep = *reinterpret_cast<const Quad<T>*>(below(factors, plane));
          HMSA_UNROLL
          for (int j = 0; j < kQuad; ++j) fused.of[j] = product.of[j] + keep.of[j] * fused.of[j];
        });
        sink.result(fused);
        factors = below(factors, pitch);
      }
    });
  }
};

// ---- the host -------------------------------------------------------------------------------------------------------

// Sizes of the windows, at most: for windows of the output of so many rows and columns. `also` as in set_windows.
struct TileSizes {
  Extent grids[kGridSlots];
  Extent heads[kMaxScales];
};

template <typename Also>
TileSizes tile_sizes(const Chain& chain, Extent output, const Also& also) {
  TileSizes sizes{};
  const auto sources = [&](int i, Extent n) {
    return Extent{most_sources(chain.across[i].rows, n.height), most_sources(chain.across[i].columns, n.width)};
  };
  const auto widened = [&](int i, Extent n) {
    const Extent more = also(i, n);
    return Extent{smaller(larger(n.height, more.height), chain.grids[i].height + 2),
                  smaller(larger(n.width, more.width), chain.grids[i].width + 2)};
  };
  sizes.grids[output_slot(chain)] = output;
  for (int i = chain.unit - 1; i > 0; --i) sizes.grids[i] = widened(i, sources(i, sizes.grids[i + 1]));
  for (int i = chain.unit + 1; i < chain.count; ++i) sizes.grids[i] = widened(i, sources(i, output));
  for (int i = 0; i < chain.count; ++i) {
    const Extent grid = sizes.grids[is_composed(chain, i) ? next_slot(chain, i) : i];
    sizes.heads[i] = is_composed(chain, i) ? Extent{most_sources(chain.composed_rows(), grid.height),
                                                    most_sources(chain.composed_columns(), grid.width)}
                                           : Extent{most_sources(chain.up[i].rows, grid.height),
                                                    most_sources(chain.up[i].columns, grid.width)};
  }
  return sizes;
}

// Gives the tables and planes of the forward direction their places. `levels_to`: of the lower scales before it.
template <typename T>
void place_tile(const Chain& chain, const TileSizes& sizes, int32_t planes, int levels_to, int32_t run_threads,
                Arena& arena, TileLayout& layout) {
  layout.planes = planes;
  layout.by_planes = division_by(planes);
  layout.windows = arena.take_array<TileWindows>(1);
  for (int slot = 0; slot < kGridSlots; ++slot) {
    layout.rows[slot] = sizes.grids[slot].height;
    layout.quads[slot] = larger(1, divide_up(sizes.grids[slot].width, kQuad));
    layout.by_quads[slot] = division_by(layout.quads[slot]);
    layout.pitch[slot] = layout.quads[slot] * static_cast<int32_t>(sizeof(Quad<T>));
    // Runs of one length as long as they may be, if every thread has one.
    const int32_t all = smaller(run_threads, 1024) / larger(1, layout.quads[slot] * planes);
    const int32_t runs = larger(1, smaller(all, layout.rows[slot] / kRun));
    layout.run[slot] = larger(1, divide_up(layout.rows[slot], runs));
    layout.by_run[slot] = division_by(layout.run[slot]);
  }
  const auto tables = [&](int slot, bool composed) {
    LinkTables link{};
    const int32_t rows = layout.rows[slot] + kRun;
    const int32_t columns = layout.quads[slot] * kQuad;
    link.rows = arena.take_array<Tap<T>>(rows);
    link.columns = arena.take_array<Tap<T>>(columns);
    if (composed) link.more_rows = arena.take_array<MoreTaps<T>>(rows);
    if (composed) link.more_columns = arena.take_array<MoreTaps<T>>(columns);
    return link;
  };
  // An odd number of elements from plane to plane: threads of neighbouring channels find different banks.
  const auto head = [&](int i, int32_t count) {
    Map map{};
    const int32_t columns = larger(1, sizes.heads[i].width);
    map.pitch = columns * static_cast<int32_t>(sizeof(T));
    const int32_t elements = columns * larger(1, sizes.heads[i].height);
    map.plane = (elements + (elements % 2 == 0 ? 1 : 0)) * static_cast<int32_t>(sizeof(T));
    map.offset = arena.take(static_cast<int64_t>(count) * map.plane);
    return map;
  };
  const int output = output_slot(chain);
  for (int i = 0; i < chain.count; ++i) {
    const int next = next_slot(chain, i);
    layout.head_columns[i] = division_by(larger(1, sizes.heads[i].width));
    layout.head_areas[i] = division_by(larger(1, sizes.heads[i].width) * larger(1, sizes.heads[i].height));
    layout.up[i] = tables(is_composed(chain, i) ? next : i, is_composed(chain, i));
    layout.heads[i] = head(i, planes);
    if (i > 0) {
      layout.attention_heads[i] = head(i, 1);
      layout.attention[i] = arena.take_map<T>(1, layout.rows[i], layout.quads[i]);
    }
    if (i == chain.unit) {
      layout.factor_plane = layout.rows[output] * layout.pitch[output];
      for (int l = i + 1; l < chain.count; ++l)
        layout.keep[l] = arena.take_map<T>(1, layout.rows[output], layout.quads[output]);
    }
    if (!has_level(chain, i)) continue;
    layout.across[i] = tables(next, false);
    if (i < levels_to) layout.levels[i] = arena.take_map<T>(planes, layout.rows[i], layout.quads[i]);
  }
}

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
