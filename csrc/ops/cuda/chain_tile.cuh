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
  int32_t pairs;  // half of the planes: plane k goes with plane k + pairs
  Division by_pairs;
  int32_t warp_quads;  // quads side by side of which a warp has all pairs of planes
  Division by_warp_quads;
  Division by_warps_across;  // warps that a row of the output takes
  bool together;             // channels of the output are neighbours in memory
  int32_t windows;           // TileWindows
  int32_t rows[kGridSlots];
  int32_t quads[kGridSlots];
  Division by_quads[kGridSlots];
  int32_t pitch[kGridSlots];  // of a row of a plane, in bytes
  int32_t run[kGridSlots];    // rows of an item
  Division by_run[kGridSlots];
  bool head_quads[kMaxScales];        // windows of heads are whole quads, which lie so in the logits
  bool attention_quads[kMaxScales];   // and in the attention
  Division head_columns[kMaxScales];  // of a window, or quads of a row
  Division head_areas[kMaxScales];    // elements of a window, or quads
  int32_t stage_first[kMaxScales];    // threads that stage each head; all of them if there are none here
  int32_t stage_threads[kMaxScales];
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

// The elements of a window that may be virtual ones: where the element before the first is in it, so is the second.
HMSA_HOST_DEVICE Range elements_of(Range window, int32_t size) {
  return Range{larger(window.lo, 0), smaller(window.lo < 0 ? larger(window.hi, 2) : window.hi, size)};
}

// What a window of outputs reads: both taps of all of them. Windows of sources may contain the elements before the first
// and behind the last that taps_of speaks of.
HMSA_HOST_DEVICE Range tap_sources(const AxisMap& map, Axis axis, Range range) {
  if (range.empty()) return Range{0, 0};
  const Range outputs = elements_of(range, map.out);
  if (map.identity()) return outputs;
  return Range{taps_of<float>(map, axis, outputs.lo).tap.first,
               taps_of<float>(map, axis, outputs.hi - 1).tap.first + 2};
}
HMSA_HOST_DEVICE Range tap_sources(const ComposedMap& map, Axis axis, Range range) {
  if (range.empty()) return Range{0, 0};
  const Range outputs = elements_of(range, map.outer.out);
  const Range sources = map.sources(outputs);
  return Range{axis == Axis::kColumns && sources.lo == 0 ? -1 : sources.lo,
               larger(sources.hi, taps_of<float>(map, axis, outputs.hi - 1).tap.second + 1)};
}

// The windows that a window of the output needs, along one axis.
HMSA_HOST_DEVICE void set_windows(const Chain& chain, Axis axis, Range output, Range* grids, Range* heads) {
  const int last = output_slot(chain);
  grids[last] = output;
  for (int i = chain.unit - 1; i > 0; --i) {
    grids[i] = tap_sources(axis_of(chain.across[i], axis), axis, grids[i + 1]);
  }
  for (int i = chain.unit + 1; i < chain.count; ++i) {
    grids[i] = tap_sources(axis_of(chain.across[i], axis), axis, output);
  }
  for (int i = 0; i < chain.count; ++i) {
    if (is_composed(chain, i)) {
      heads[i] = tap_sources(composed_axis(chain, axis), axis, grids[next_slot(chain, i)]);
    } else {
      heads[i] = tap_sources(axis_of(chain.up[i], axis), axis, grids[i]);
    }
  }
}

// Columns of the windows of heads that are read quad by quad.
HMSA_HOST_DEVICE void widen_to_quads(const Chain& chain, const TileLayout& layout, Range* heads) {
  for (int i = 0; i < chain.count; ++i) {
    if (layout.head_quads[i]) heads[i] = Range{heads[i].lo & -kQuad, (heads[i].hi + kQuad - 1) & -kQuad};
  }
}

// ---- the device -----------------------------------------------------------------------------------------------------

// A quad of a source, stretched along columns, as a thread goes down the rows of a resize: between two rows of the source.
// kComposed: taps are those of two resizes in one step, and may be more than two. kPlanes: planes k and k + pairs, which
// share all but the values.
template <typename T, bool kComposed, int kPlanes = 1>
struct RowStream {
  const T* at;                     // the first tap of the first column, in the row of the source that comes next
  Quad<T> a[kPlanes], b[kPlanes];  // stretched rows: `lower` is that of b, a is the one above
  int32_t upper, lower;            // rows of the last tap
  const Tap<T>* taps;              // of the row that comes next
  const Quad<T>* weights;          // of its columns
  const Tap<T>* columns;           // taps of the quad's first column
  int32_t quads;                   // of a row
  int32_t pitch;
  int32_t pair;      // from plane to plane
  bool single_rows;  // the number of rows stays: `a` stays zero
  QuadKind kind;
  const MoreTaps<T>* more_taps;  // null if no row has more than two
  const MoreTaps<T>* more_columns;

  // From the `row`-th row of the tables on.
  HMSA_DEVICE void begin(const LinkTables& link, int32_t quad_count, int32_t q, const Map& source, int32_t k,
                         int32_t row) {
    quads = quad_count;
    taps = shared_at<const Tap<T>>(link.rows) + row;
    weights = shared_at<const Quad<T>>(link.weights) + q;
    columns = shared_at<const Tap<T>>(link.columns) + q;
    pitch = source.pitch;
    pair = source.pair;
    single_rows = link.single_rows;
    lower = taps->first - 1;
    upper = lower;
    HMSA_UNROLL
    for (int p = 0; p < kPlanes; ++p) a[p] = b[p] = Quad<T>{};
    const QuadPlace place = shared_at<const QuadPlace>(link.kinds)[q];
    at = shared_at<const T>(source.at(k, taps->first) + place.first);
    kind = place.kind;
    if (!kComposed) return;
    more_taps = link.more_rows == 0 ? nullptr : shared_at<const MoreTaps<T>>(link.more_rows) + row;
    more_columns = link.more_columns == 0 ? nullptr : shared_at<const MoreTaps<T>>(link.more_columns) + q;
  }

  // A row of the source at its columns.
  HMSA_DEVICE void stretch(const T* from, Quad<T> (&to)[kPlanes]) const {
    const Quad<T> first_weights = weights[0];
    const Quad<T> second_weights = weights[quads];
    const auto set = [&](int p, int j, T first, T second) {
      to[p].of[j] = first_weights.of[j] * first + second_weights.of[j] * second;
    };
    if (kind == QuadKind::k0112Aligned) {
      struct alignas(2 * sizeof(T)) Pair {
        T of[2];
      };
      HMSA_UNROLL
      for (int p = 0; p < kPlanes; ++p) {
        const Pair low = reinterpret_cast<const Pair*>(below(from, p * pair))[0];
        const Pair high = reinterpret_cast<const Pair*>(below(from, p * pair))[1];
        set(p, 0, low.of[0], low.of[1]);
        set(p, 1, low.of[1], high.of[0]);
        set(p, 2, low.of[1], high.of[0]);
        set(p, 3, high.of[0], high.of[1]);
      }
    } else if (kind == QuadKind::k0011) {
      HMSA_UNROLL
      for (int p = 0; p < kPlanes; ++p) {
        const T* const x = below(from, p * pair);
        set(p, 0, x[0], x[1]);
        set(p, 1, x[0], x[1]);
        set(p, 2, x[1], x[2]);
        set(p, 3, x[1], x[2]);
      }
    } else if (kind == QuadKind::k0112) {
      HMSA_UNROLL
      for (int p = 0; p < kPlanes; ++p) {
        const T* const x = below(from, p * pair);
        set(p, 0, x[0], x[1]);
        set(p, 1, x[1], x[2]);
        set(p, 2, x[1], x[2]);
        set(p, 3, x[2], x[3]);
      }
    } else if (kind == QuadKind::k0000) {
      HMSA_UNROLL
      for (int p = 0; p < kPlanes; ++p) {
        const T* const x = below(from, p * pair);
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) set(p, j, x[0], x[1]);
      }
    } else {
      const T* const start = below(from, -columns->first);
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        const Tap<T>& tap = columns[j * only_here(quads)];
        HMSA_UNROLL
        for (int p = 0; p < kPlanes; ++p) {
          const T* const x = below(start, p * pair);
          set(p, j, *below(x, tap.first), *below(x, tap.second));
        }
        if (!kComposed || more_columns == nullptr) continue;
        const MoreTaps<T>& more = more_columns[j * only_here(quads)];
        HMSA_ROLLED
        for (int t = 0; t < more.count; ++t) {
          HMSA_UNROLL
          for (int p = 0; p < kPlanes; ++p) to[p].of[j] += more.weight[t] * *below(start, p * pair + more.index[t]);
        }
      }
    }
  }

  // On to the next row of the outputs; value() is then what it reads.
  HMSA_DEVICE Tap<T> step() {
    const Tap<T> tap = *taps++;
    if (tap.second != lower || (kComposed && tap.first != upper)) advance(tap);
    return tap;
  }
  HMSA_DEVICE void advance(const Tap<T>& tap) {
    const int32_t rows = tap.second - lower;
    if (rows != 1 && rows != 2) {
      // Rows that no output reads are left out, and the virtual row before the first may read more than the first.
      not_predicated();
      at = below(at, (tap.first - 1 - lower) * pitch);
      lower = tap.first - 1;
    }
    HMSA_ROLLED
    do {
      if (!single_rows) {
        HMSA_UNROLL
        for (int p = 0; p < kPlanes; ++p) a[p] = b[p];
      }
      stretch(at, b);
      at = below(at, pitch);
    } while (++lower < tap.second);
    if (kComposed && tap.first == tap.second && !single_rows) {
      not_predicated();
      HMSA_UNROLL
      for (int p = 0; p < kPlanes; ++p) a[p] = b[p];
    }
    upper = tap.first;
  }
  HMSA_DEVICE Quad<T> value(const Tap<T>& tap, int p) const {
    Quad<T> value;
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) value.of[j] = tap.first_weight * a[p].of[j] + tap.second_weight * b[p].of[j];
    return value;
  }

  // The next row of the outputs, of all planes or of the only one.
  HMSA_DEVICE void next(Quad<T> (&values)[kPlanes]) {
    const Tap<T> tap = step();
    HMSA_UNROLL
    for (int p = 0; p < kPlanes; ++p) values[p] = value(tap, p);
    add_more(values);
  }
  // What the third and the fourth row add to the values.
  HMSA_DEVICE void add_more(Quad<T> (&values)[kPlanes]) {
    if (!kComposed || more_taps == nullptr) return;
    const MoreTaps<T>& more = *more_taps++;
    HMSA_ROLLED
    for (int t = 0; t < more.count; ++t) {
      Quad<T> other[kPlanes];
      stretch(below(at, (more.index[t] - lower - 1) * pitch), other);
      HMSA_UNROLL
      for (int p = 0; p < kPlanes; ++p) {
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) values[p].of[j] += more.weight[t] * other[p].of[j];
      }
    }
  }
  HMSA_DEVICE Quad<T> next() {
    static_assert(kPlanes == 1, "there is one value for each plane");
    Quad<T> values[kPlanes];
    next(values);
    return values[0];
  }
};

// A run of rows of a quad of one plane, as one thread makes it.
struct Item {
  int32_t k;
  int32_t q;
  int32_t row;     // of the grid
  int32_t height;  // of the run
  bool wanted = true;
};

// Threads that do a piece of work together, and which of them this one is.
struct Team {
  int32_t thread;
  int32_t threads;
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
  bool more_rows;   // composed taps of the band, and of the tile, are not all two neighbours
  bool more_columns;

  HMSA_DEVICE TileWindows& windows() const { return *shared_at<TileWindows>(layout.windows); }
  HMSA_DEVICE const Chain& chain() const { return inputs.chain; }

  // Calls body(item) for runs of rows of `planes` planes on a grid, divided among the threads.
  template <typename Body>
  HMSA_DEVICE void for_runs(int slot, Range range, int32_t planes, const Body& body) const {
    const int32_t quads = layout.quads[slot];
    const int32_t length = layout.run[slot];
    const int32_t items = layout.by_run[slot].quotient(range.size() + length - 1) * planes * quads;
    const Division by_planes = planes == layout.pairs ? layout.by_pairs : layout.by_planes;
    HMSA_ROLLED
    for (int32_t item = thread(); item < items; item += threads()) {
      // Where channels are neighbours in memory, threads of neighbouring channels are neighbours, too.
      Item at;
      int32_t rest;
      if (layout.together && planes == by_planes.divisor) {
        rest = by_planes.quotient(item);
        at.k = item - rest * planes;
        const int32_t run = layout.by_quads[slot].quotient(rest);
        at.q = rest - run * quads;
        rest = run;
      } else {
        const int32_t line = layout.by_quads[slot].quotient(item);
        at.q = item - line * quads;
        rest = planes == by_planes.divisor ? by_planes.quotient(line) : planes == 1 ? line : line / planes;
        at.k = line - rest * planes;
      }
      at.row = range.lo + rest * length;
      at.height = smaller(length, range.hi - at.row);
      body(at);
    }
  }

  // The same where channels are neighbours in memory: the lanes of a warp have all pairs of planes, of as many quads side
  // by side as go into a warp. Lanes that are left over repeat another's work, unwanted: the warp stays together.
  template <typename Body>
  HMSA_DEVICE void for_warp_runs(int slot, Range range, const Body& body) const {
    const int32_t quads = layout.quads[slot];
    const int32_t length = layout.run[slot];
    const int32_t runs = layout.by_run[slot].quotient(range.size() + length - 1);
    const int32_t side = layout.by_pairs.quotient(thread() % 32);
    const int32_t across = layout.by_warp_quads.quotient(quads + layout.warp_quads - 1);
    HMSA_ROLLED
    for (int32_t item = thread() / 32; item < across * runs; item += threads() / 32) {
      const int32_t run = layout.by_warps_across.quotient(item);
      const int32_t first = (item - run * across) * layout.warp_quads;
      Item at;
      at.k = thread() % 32 - side * layout.pairs;
      at.q = first + side;
      at.wanted = side < layout.warp_quads && at.q < quads;
      if (!at.wanted) at.q = first;
      at.row = range.lo + run * length;
      at.height = smaller(length, range.hi - at.row);
      body(at);
    }
  }

  // ---- tables ---------------------------------------------------------------------------------------------------------

  // Whether any of the columns that this thread made, or of the rows, reads more than two inputs. There is a barrier in
  // the first of them.
  HMSA_DEVICE_PHASE bool fill_columns() const {
    bool more = false;
    HMSA_ROLLED
    for (int i = 0; i < chain().count; ++i) {
      const int next = next_slot(chain(), i);
      const int slot = is_composed(chain(), i) ? next : i;
      const TileWindows& at = windows();
      const LinkTables& up = layout.up[i];
      const int32_t head = at.head_columns[i].lo;
      if (is_composed(chain(), i)) {
        more = fill_column_taps<T>(up.columns, up.more_columns, chain().composed_columns(), at.columns[slot], head,
                                   layout.quads[slot]);
      } else {
        fill_column_taps<T>(up.columns, 0, chain().up[i].columns, at.columns[slot], head, layout.quads[slot]);
      }
      fill_column_weights<T>(up, layout.quads[slot]);
      if (!has_level(chain(), i)) continue;
      const LinkTables& across = layout.across[i];
      fill_column_taps<T>(across.columns, 0, chain().across[i].columns, at.columns[next], at.columns[i].lo,
                          layout.quads[next]);
      fill_column_weights<T>(across, layout.quads[next]);
    }
    __syncthreads();
    HMSA_ROLLED
    for (int i = 0; i < chain().count; ++i) {
      const int next = next_slot(chain(), i);
      fill_quad_places<T>(layout.up[i], layout.quads[is_composed(chain(), i) ? next : i]);
      if (has_level(chain(), i)) fill_quad_places<T>(layout.across[i], layout.quads[next]);
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

  // What is set under a condition here, and in RowStream::begin, is zero before: unset it would hold its registers from the
  // start of the kernel on, since the compiler cannot know that it is read under the same condition.

  // Copies the window of a head to shared memory, `planes` channels of it: whole quads of it, where it has such. `lies`
  // says whether they lie so in memory. At the borders of the map, and elsewhere, they are put together of elements.
  HMSA_DEVICE void stage_quads(int i, const MapView<const S>& map, bool lies, int64_t first, int32_t planes,
                               const Map& to, const Team& team) const {
    constexpr int kAhead = 5;
    const Range rows = windows().head_rows[i];
    const Range columns = windows().head_columns[i];
    const Division by_quads = layout.head_columns[i];
    const Division by_area = layout.head_areas[i];
    // No more threads share the planes than have several each.
    const int32_t parts = larger(1, smaller(by_area.quotient(team.threads), planes / (kAhead - 1)));
    const int64_t step = parts * map.channel;
    const int32_t place_step = parts * to.plane;
    HMSA_ROLLED
    for (int32_t item = team.thread; item < parts * by_area.divisor; item += team.threads) {
      const int32_t part = by_area.quotient(item);
      const int32_t row = by_quads.quotient(item - part * by_area.divisor);
      const int32_t q = item - part * by_area.divisor - row * by_quads.divisor;
      const int32_t column = columns.lo + q * kQuad;
      if (row >= rows.size() || column >= columns.hi) continue;
      const bool inside = column >= 0 && column < chain().heads[i].width;
      // Of a quad beyond the borders only the element beside them is ever read.
      const int32_t beside = inside ? 0 : column < 0 ? kQuad - 1 : 0;
      const S* from = map.at(b, first + part, source_row(i, rows.lo + row), source_column(i, column + beside));
      int32_t place = to.at(part, row) + q * static_cast<int32_t>(sizeof(Quad<T>));
      if (inside && lies) {
        HMSA_ROLLED
        for (int32_t k = part; k < planes; k += kAhead * parts) {
          StoredQuad<S> values[kAhead];
          HMSA_UNROLL
          for (int n = 0; n < kAhead; ++n, from += step) {
            values[n] = StoredQuad<S>{};
            if (k + n * parts < planes) values[n] = *reinterpret_cast<const StoredQuad<S>*>(from);
          }
          HMSA_UNROLL
          for (int n = 0; n < kAhead; ++n, place += place_step) {
            if (k + n * parts >= planes) continue;
            Quad<T> quad;
            HMSA_UNROLL
            for (int j = 0; j < kQuad; ++j) quad.of[j] = to_arithmetic(values[n].of[j]);
            put_quad(place, quad);
          }
        }
      } else {
        const int32_t elements = inside ? kQuad : 1;
        HMSA_ROLLED
        for (int32_t k = part; k < planes; k += parts, from += step, place += place_step) {
          HMSA_ROLLED
          for (int32_t j = 0; j < elements; ++j) {
            shared_at<T>(place)[beside + j] = to_arithmetic(from[j * map.column]);
          }
        }
      }
    }
  }

  // Copies the window of a head to shared memory, `planes` channels of it. Several elements are read before the first is
  // written: their latencies overlap. A thread keeps to one place in the map and goes through channels, or the other way
  // round where channels are neighbours in memory.
  HMSA_DEVICE void stage(int i, const MapView<const S>& map, int64_t first, int32_t planes, const Map& to,
                         const Team& team) const {
    constexpr int kAhead = 5;
    constexpr int32_t kBytes = static_cast<int32_t>(sizeof(T));
    const Range rows = windows().head_rows[i];
    const Range columns = windows().head_columns[i];
    const Division by_columns = layout.head_columns[i];
    const Division by_area = layout.head_areas[i];
    const S* const corner = map.at(b, first, 0, 0);
    if (map.channel == 1 && planes > 1) {
      HMSA_ROLLED
      for (int32_t item = team.thread; item < columns.size() * layout.planes; item += team.threads) {
        const int32_t column = layout.by_planes.quotient(item);
        const int32_t k = item - column * layout.planes;
        if (k >= planes) continue;
        const S* const from = corner + source_column(i, columns.lo + column) * map.column + k;
        int32_t place = to.at(k, 0) + column * kBytes;
        HMSA_ROLLED
        for (int32_t row = rows.lo; row < rows.hi; row += kAhead) {
          S values[kAhead];
          HMSA_UNROLL
          for (int n = 0; n < kAhead; ++n) {
            values[n] = S{};
            if (row + n < rows.hi) values[n] = from[source_row(i, row + n) * map.row];
          }
          HMSA_UNROLL
          for (int n = 0; n < kAhead; ++n, place += to.pitch) {
            if (row + n < rows.hi) *shared_at<T>(place) = to_arithmetic(values[n]);
          }
        }
      }
      return;
    }
    const int32_t parts = larger(1, by_area.quotient(team.threads));
    const int64_t step = parts * map.channel;
    const int32_t place_step = parts * to.plane;
    HMSA_ROLLED
    for (int32_t item = team.thread; item < parts * by_area.divisor; item += team.threads) {
      const int32_t part = by_area.quotient(item);
      const int32_t pixel = item - part * by_area.divisor;
      const int32_t row = by_columns.quotient(pixel);
      const int32_t column = pixel - row * by_columns.divisor;
      if (row >= rows.size() || column >= columns.size()) continue;
      const S* from = corner + source_row(i, rows.lo + row) * map.row +
                      source_column(i, columns.lo + column) * map.column + part * map.channel;
      int32_t place = to.at(part, 0) + pixel * kBytes;
      HMSA_ROLLED
      for (int32_t k = part; k < planes; k += kAhead * parts) {
        S values[kAhead];
        HMSA_UNROLL
        for (int n = 0; n < kAhead; ++n, from += step) {
          values[n] = S{};
          if (k + n * parts < planes) values[n] = *from;
        }
        HMSA_UNROLL
        for (int n = 0; n < kAhead; ++n, place += place_step) {
          if (k + n * parts < planes) *shared_at<T>(place) = to_arithmetic(values[n]);
        }
      }
    }
  }

  HMSA_DEVICE_PHASE void stage_heads() const {
    HMSA_ROLLED
    for (int n = 0; n < chain().count; ++n) {
      const int i = only_here(n);
      Team team{thread() - layout.stage_first[i], layout.stage_threads[i]};
      if (team.threads == 0) team = Team{thread(), threads()};
      if (team.thread < 0 || team.thread >= team.threads) continue;
      if (layout.head_quads[i]) {
        stage_quads(i, inputs.logits[i], true, channel, count, layout.heads[i], team);
      } else {
        stage(i, inputs.logits[i], channel, count, layout.heads[i], team);
      }
    }
  }

  HMSA_DEVICE_PHASE void stage_attention() const {
    const Team team{thread(), threads()};
    HMSA_ROLLED
    for (int n = 1; n < chain().count; ++n) {
      const int i = only_here(n);
      const int64_t first = chain().class_wise ? channel : 0;
      if (layout.head_quads[i]) {
        stage_quads(i, inputs.attention[i], layout.attention_quads[i], first, 1, layout.attention_heads[i], team);
      } else {
        stage(i, inputs.attention[i], first, 1, layout.attention_heads[i], team);
      }
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

  // kPlanes: plane k goes with plane k + pairs.
  template <After kAfter, int kPlanes = 1>
  HMSA_DEVICE void resample(const Resampling& job) const {
    const int32_t base = windows().rows[job.slot].lo;
    for_runs(job.slot, job.rows, kPlanes > 1 ? layout.pairs : job.planes, [&](const Item& item) {
      if (kPlanes > 1 && item.k >= job.planes) return;
      RowStream<T, false, kPlanes> source;
      source.begin(job.link, layout.quads[job.slot], item.q, job.source, item.k, item.row - base);
      const int32_t column = item.q * static_cast<int32_t>(sizeof(Quad<T>));
      int32_t to = job.target.at(item.k, item.row - job.target_row) + column;
      int32_t factor = job.factor.at(item.k, item.row - job.factor_row) + column;
      const int32_t end = to + item.height * job.target.pitch;
      HMSA_ROLLED
      for (; to != end; to += job.target.pitch, factor += job.factor.pitch) {
        const Tap<T> tap = source.step();
        Quad<T> by{};
        if (kAfter == After::kFactor) by = quad_at<T>(factor);
        HMSA_UNROLL
        for (int p = 0; p < kPlanes; ++p) {
          Quad<T> value = source.value(tap, p);
          HMSA_UNROLL
          for (int j = 0; j < kQuad; ++j) {
            if (kAfter == After::kFactor) value.of[j] *= by.of[j];
            if (kAfter == After::kComplement) value.of[j] = T(1) - value.of[j];
          }
          put_quad(to + p * job.target.pair, value);
        }
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

  // P of an upper scale on rows `range` of its grid; on the output, the lower scales follow. kUpper says whether L of
  // the scale is blended in, kLowers how many lower scales there are, or kAnyLowers. Plane k goes with plane k + pairs if
  // kPlanes is 2. kMore: composed taps may be more than two. The sink gets begin(item), then put<whole>(plane, P) for
  // every plane and next() for every row; `whole` is what it has said of itself.
  template <bool kUpper, int kLowers, int kPlanes, bool kMore, typename Sink>
  HMSA_DEVICE void fuse(int slot, Range range, Sink& sink) const {
    const int32_t base = windows().rows[slot].lo;
    const auto body = [&](const Item& item) {
      if (item.k >= count || !sink.begin(item)) return;
      Streams<kUpper, kLowers, kPlanes, kMore> streams;
      begin_streams(streams, slot, item, item.row - base);
      // Loops of their own for the two ways to store keep the strides of one out of the registers of the other.
      if (Sink::kByWarps || sink.whole) {
        fuse_rows<true>(streams, slot, sink);
      } else if constexpr (!Sink::kByWarps) {
        fuse_rows<false>(streams, slot, sink);
      }
    };
    if constexpr (Sink::kByWarps) {
      for_warp_runs(slot, range, body);
    } else {
      for_runs(slot, range, kPlanes > 1 ? layout.pairs : layout.planes, body);
    }
  }

 private:
  // What the rows of a run are made of.
  template <bool kUpper, int kLowers, int kPlanes, bool kMore>
  struct Streams {
    static constexpr int kCount = kLowers == kAnyLowers ? kMaxScales : kLowers > 0 ? kLowers : 1;
    RowStream<T, kMore, kPlanes> start;
    RowStream<T, false, kPlanes> own;
    RowStream<T, false, kPlanes> products[kCount];
    int32_t factor;  // A of the scale, else 1 - R A of the first lower one; those behind it are whole planes further
    int32_t end;
    int lowers;
  };

  template <bool kUpper, int kLowers, int kPlanes, bool kMore>
  HMSA_DEVICE void begin_streams(Streams<kUpper, kLowers, kPlanes, kMore>& streams, int slot, const Item& item,
                                 int32_t row) const {
    const int32_t quads = layout.quads[slot];
    const int unit = kLowers > 0 ? slot : chain().unit;
    const bool from_head = kLowers > 0 || slot == 0 || is_composed(chain(), slot - 1);
    const int source = slot == 0 ? 0 : slot - 1;
    LinkTables link = from_head ? layout.up[source] : layout.across[source];
    // A branch that no warp takes costs less than loops over no taps.
    if (!more_rows) link.more_rows = 0;
    if (!more_columns) link.more_columns = 0;
    streams.start.begin(link, quads, item.q, from_head ? layout.heads[source] : layout.levels[source], item.k, row);
    if (kUpper) streams.own.begin(layout.up[slot], quads, item.q, layout.heads[slot], item.k, row);
    streams.lowers = slot == output_slot(chain()) ? chain().count - 1 - unit : 0;
    HMSA_UNROLL
    for (int l = 0; l < (kLowers == kAnyLowers ? streams.lowers : kLowers); ++l) {
      const int i = unit + 1 + l;
      streams.products[l].begin(layout.across[i], quads, item.q, layout.levels[i], item.k, row);
    }
    const int32_t pitch = layout.pitch[slot];
    streams.factor = (kUpper ? layout.attention[slot].offset : layout.keep[unit + 1].offset) + row * pitch +
                     item.q * static_cast<int32_t>(sizeof(Quad<T>));
    streams.end = streams.factor + item.height * pitch;
  }

  template <bool kWhole, bool kUpper, int kLowers, int kPlanes, bool kMore, typename Sink>
  HMSA_DEVICE void fuse_rows(Streams<kUpper, kLowers, kPlanes, kMore>& streams, int slot, Sink& sink) const {
    HMSA_ROLLED
    for (; streams.factor != streams.end; streams.factor += layout.pitch[slot]) {
      // All streams go on before any value is made: fewer numbers are held meanwhile.
      constexpr bool kAny = kLowers == kAnyLowers;
      const Tap<T> tap = streams.start.step();
      Tap<T> own_tap;
      if (kUpper) own_tap = streams.own.step();
      Tap<T> lower_taps[kAny || kLowers == 0 ? 1 : kLowers];
      HMSA_UNROLL
      for (int l = 0; l < (kAny ? 0 : kLowers); ++l) lower_taps[l] = streams.products[l].step();
      Quad<T> fused[kPlanes];
      HMSA_UNROLL
      for (int p = 0; p < kPlanes; ++p) fused[p] = streams.start.value(tap, p);
      streams.start.add_more(fused);
      if (kUpper) {
        const Quad<T> a = quad_at<T>(streams.factor);
        HMSA_UNROLL
        for (int p = 0; p < kPlanes; ++p) {
          const Quad<T> logit = streams.own.value(own_tap, p);
          HMSA_UNROLL
          for (int j = 0; j < kQuad; ++j) {
            fused[p].of[j] = a.of[j] * logit.of[j] + (T(1) - a.of[j]) * fused[p].of[j];
          }
        }
      }
      HMSA_UNROLL
      for (int l = 0; l < (kAny ? streams.lowers : kLowers); ++l) {
        auto& product = streams.products[l];
        if (kAny) lower_taps[0] = product.step();
        const Quad<T> keep = quad_at<T>(streams.factor + (l + (kUpper ? 1 : 0)) * layout.factor_plane);
        HMSA_UNROLL
        for (int p = 0; p < kPlanes; ++p) {
          const Quad<T> added = product.value(lower_taps[kAny ? 0 : l], p);
          HMSA_UNROLL
          for (int j = 0; j < kQuad; ++j) fused[p].of[j] = added.of[j] + keep.of[j] * fused[p].of[j];
        }
      }
      HMSA_UNROLL
      for (int p = 0; p < kPlanes; ++p) sink.template put<kWhole>(p, fused[p]);
      sink.next();
    }
  }
};

// ---- the host -------------------------------------------------------------------------------------------------------

// Sizes of the windows, at most: for windows of the output of so many rows and columns.
struct TileSizes {
  Extent grids[kGridSlots];
  Extent heads[kMaxScales];
};

inline TileSizes tile_sizes(const Chain& chain, Extent output) {
  TileSizes sizes{};
  const auto sources = [&](int i, Extent n) {
    return Extent{most_sources(chain.across[i].rows, n.height), most_sources(chain.across[i].columns, n.width)};
  };
  sizes.grids[output_slot(chain)] = output;
  for (int i = chain.unit - 1; i > 0; --i) sizes.grids[i] = sources(i, sizes.grids[i + 1]);
  for (int i = chain.unit + 1; i < chain.count; ++i) sizes.grids[i] = sources(i, output);
  for (int i = 0; i < chain.count; ++i) {
    const Extent grid = sizes.grids[is_composed(chain, i) ? next_slot(chain, i) : i];
    sizes.heads[i] = is_composed(chain, i) ? Extent{most_sources(chain.composed_rows(), grid.height),
                                                    most_sources(chain.composed_columns(), grid.width)}
                                           : Extent{most_sources(chain.up[i].rows, grid.height),
                                                    most_sources(chain.up[i].columns, grid.width)};
  }
  return sizes;
}

// Which heads are read quad by quad. To be said before place_tile; windows then need widen_to_quads.
template <typename S>
void choose_head_quads(const ChainInputs<S>& inputs, TileLayout& layout) {
  for (int i = 0; i < inputs.chain.count; ++i) {
    const Extent size = inputs.chain.heads[i];
    layout.head_quads[i] = lies_in_quads(inputs.logits[i], inputs.batch, inputs.classes, size);
    layout.attention_quads[i] =
        i > 0 && lies_in_quads(inputs.attention[i], inputs.batch, inputs.chain.class_wise ? inputs.classes : 1, size);
  }
}

// Shares the warps of a block among the heads that it stages: the largest share of a warp gets the next one.
inline void share_warps(const Chain& chain, int32_t warps, TileLayout& layout) {
  if (chain.count > warps) return;
  int32_t shares[kMaxScales];
  for (int i = 0; i < chain.count; ++i) shares[i] = 1;
  for (int32_t left = warps - chain.count; left > 0; --left) {
    int most = 0;
    for (int i = 1; i < chain.count; ++i) {
      if (static_cast<int64_t>(layout.head_areas[i].divisor) * shares[most] >
          static_cast<int64_t>(layout.head_areas[most].divisor) * shares[i]) {
        most = i;
      }
    }
    ++shares[most];
  }
  int32_t first = 0;
  for (int i = 0; i < chain.count; ++i) {
    layout.stage_first[i] = first;
    layout.stage_threads[i] = 32 * shares[i];
    first += 32 * shares[i];
  }
}

// Gives the tables and planes their places. `at_once`: planes of a thread.
template <typename T>
void place_tile(const Chain& chain, const TileSizes& sizes, int32_t planes, int at_once, int32_t run_threads,
                Arena& arena, TileLayout& layout) {
  layout.planes = planes;
  layout.by_planes = division_by(planes);
  layout.pairs = divide_up(planes, 2);
  layout.by_pairs = division_by(layout.pairs);
  layout.warp_quads = larger(1, 32 / layout.pairs);
  layout.by_warp_quads = division_by(layout.warp_quads);
  layout.windows = arena.take_array<TileWindows>(1);
  const int32_t lanes = at_once > 1 ? layout.pairs : planes;
  const int32_t places = at_once * lanes;  // a last plane without a second has room for one
  for (int slot = 0; slot < kGridSlots; ++slot) {
    layout.rows[slot] = sizes.grids[slot].height;
    layout.quads[slot] = larger(1, divide_up(sizes.grids[slot].width, kQuad));
    layout.by_quads[slot] = division_by(layout.quads[slot]);
    layout.pitch[slot] = layout.quads[slot] * static_cast<int32_t>(sizeof(Quad<T>));
    // Runs of one length as long as they may be, if every thread has one.
    const int32_t all = smaller(run_threads, 1024) / larger(1, layout.quads[slot] * lanes);
    const int32_t runs = larger(1, smaller(all, layout.rows[slot] / kRun));
    layout.run[slot] = larger(1, divide_up(layout.rows[slot], runs));
    layout.by_run[slot] = division_by(layout.run[slot]);
  }
  layout.by_warps_across = division_by(divide_up(layout.quads[output_slot(chain)], layout.warp_quads));
  const auto tables = [&](int slot, const Map& source, bool composed, bool same_rows) {
    LinkTables link{};
    const int32_t rows = layout.rows[slot] + kRun;
    const int32_t columns = layout.quads[slot] * kQuad;
    link.rows = arena.take_array<Tap<T>>(rows);
    link.columns = arena.take_array<Tap<T>>(columns);
    if (composed) link.more_rows = arena.take_array<MoreTaps<T>>(rows);
    if (composed) link.more_columns = arena.take_array<MoreTaps<T>>(columns);
    link.weights = arena.take_array<T>(2 * columns);
    link.kinds = arena.take_array<QuadPlace>(layout.quads[slot]);
    link.aligned = (source.offset | source.plane | source.pitch) % static_cast<int32_t>(2 * sizeof(T)) == 0;
    link.single_rows = same_rows && !composed;
    return link;
  };
  const auto head_columns = [&](int i) {
    const int32_t columns = larger(1, sizes.heads[i].width);
    return layout.head_quads[i] ? round_up(columns + kQuad - 1, kQuad) : columns;
  };
  // Threads of neighbouring channels find different banks if there is an odd number of elements from plane to plane,
  // threads of neighbouring columns read pairs if it is even.
  const auto head = [&](int i, int32_t count) {
    Map map{};
    const int32_t columns = head_columns(i);
    map.pitch = columns * static_cast<int32_t>(sizeof(T));
    const int32_t elements = columns * larger(1, sizes.heads[i].height);
    const int32_t gap = layout.head_quads[i] || (elements % 2 == 1) == layout.together ? 0 : 1;
    map.plane = (elements + gap) * static_cast<int32_t>(sizeof(T));
    map.pair = layout.pairs * map.plane;
    map.offset = arena.take(static_cast<int64_t>(count) * map.plane);
    return map;
  };
  const int output = output_slot(chain);
  for (int i = 0; i < chain.count; ++i) {
    const int next = next_slot(chain, i);
    const int32_t across = layout.head_quads[i] ? head_columns(i) / kQuad : head_columns(i);
    layout.head_columns[i] = division_by(across);
    layout.head_areas[i] = division_by(across * larger(1, sizes.heads[i].height));
    layout.heads[i] = head(i, places);
    layout.up[i] =
        tables(is_composed(chain, i) ? next : i, layout.heads[i], is_composed(chain, i), chain.up[i].rows.identity());
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
    // Threads of neighbouring channels find different banks: an odd number of quads from plane to plane.
    const bool even = layout.rows[i] * layout.quads[i] % 2 == 0;
    layout.levels[i] = arena.take_map<T>(places, layout.rows[i], layout.quads[i],
                                         layout.together && even ? layout.pitch[i] / layout.quads[i] : 0);
    layout.levels[i].pair = layout.pairs * layout.levels[i].plane;
    layout.across[i] = tables(next, layout.levels[i], false, chain.across[i].rows.identity());
  }
}

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
