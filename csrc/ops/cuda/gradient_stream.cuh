// What a warp of the backward pass of fuse_scales goes down a plane with: rows of the forward direction, sums of rows
// for the adjoint of a resize, and the gathering of columns.
//
// A warp has 128 columns of the output, a quad in each lane, for one plane, and streams down the rows. The adjoint of a
// resize is done in two halves, too: rows first, in registers, since most rows of the target have several rows of the
// source; what is left of them goes through a line of shared memory, from which every lane gathers its columns.
#pragma once

#include "ops/cuda/chain_tile.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {

constexpr int32_t kLanes = 32;
constexpr int32_t kLineColumns = kLanes * kQuad;

HMSA_DEVICE int32_t lane() { return thread() % kLanes; }
HMSA_DEVICE int32_t warp() { return thread() / kLanes; }

// A condition that is the same in all lanes of a warp, which all come here. Told so, the compiler does without the code
// for warps that fall apart.
HMSA_DEVICE bool uniform(bool condition) { return __any_sync(0xffffffffu, condition) != 0; }

// The barrier where warps of planes and that of the attention meet. A call, so that it is one barrier for both.
HMSA_DEVICE_CALL void meet() { __syncthreads(); }

template <typename T>
HMSA_DEVICE void times(Quad<T>& quad, const Quad<T>& by) {
  HMSA_UNROLL
  for (int j = 0; j < kQuad; ++j) quad.of[j] *= by.of[j];
}

// ---- asynchronous copies --------------------------------------------------------------------------------------------

// To shared memory, past the registers: the thread that asked for them may read them behind await_copies.
template <int kBytes>
HMSA_DEVICE void copy_async(int32_t to, const void* from) {
#if defined(__CUDACC__)
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_at<unsigned char>(to)));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(from), "n"(kBytes) : "memory");
#else
  std::memcpy(shared_at<unsigned char>(to), from, kBytes);
#endif
}

HMSA_DEVICE void close_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// All groups of copies but the last one have arrived.
HMSA_DEVICE void await_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
}

// ---- rows -----------------------------------------------------------------------------------------------------------

// The last rows of a map, row r at r & mask.
struct Ring {
  int32_t offset;
  int32_t pitch;
  int32_t mask;

  HMSA_HOST_DEVICE int32_t at(int32_t row) const { return offset + (row & mask) * pitch; }
};

// The rows of a source, stretched along columns, as a lane goes down the rows of a resize. A source has a member row(r),
// which gives its row r as a function of the column, counted from the lane's first tap; rows and columns that the map
// does not have are those that taps_of speaks of.
template <typename T, bool kComposed, typename Source>
struct LaneStream {
  Source source;
  T second_weight[kQuad];
  T first_weight[kComposed ? kQuad : 1];  // 1 - second_weight where taps are two
  Quad<T> a, b;                           // stretched rows: `lower` is that of b, a is the one above
  int32_t upper, lower;
  int32_t kind;

  // Which elements the columns of a quad read: any; or four neighbours, of which the two in the middle have the same pair.
  static constexpr int32_t kAny = 0;
  static constexpr int32_t kFour = 1;
  // Or pairs of three neighbours. In the four bits that come first: which columns have the second pair; in two bits each:
  // how far the second and the third element lie behind the first, plus 1.
  static constexpr int32_t kThree = 256;

  // `columns` says what taps count from and how many columns the source has, with those that stand for others.
  HMSA_DEVICE void begin(const LinkTables& link, int32_t quads, int32_t q, Range columns, const Source& from) {
    constexpr int32_t kBytes = static_cast<int32_t>(sizeof(T));
    source = from;
    lower = shared_at<const Tap<T>>(link.rows)->first - 1;
    upper = lower;
    const int32_t first = columns.lo + shared_at<const Tap<T>>(link.columns)[q].first / kBytes;
    bool pairs = true;
    bool three = true;
    bool four = kComposed;
    bool inside = first >= 0;
    int32_t mask = 0;
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const Tap<T> tap = shared_at<const Tap<T>>(link.columns)[j * quads + q];
      second_weight[j] = tap.second_weight;
      if (kComposed) first_weight[kComposed ? j : 0] = tap.first_weight;
      const int32_t step = columns.lo + tap.first / kBytes - first;
      pairs = pairs && tap.second - tap.first == kBytes;
      inside = inside && columns.lo + tap.second / kBytes < columns.hi;
      three = three && (step == 0 || step == 1);
      four = four && step == (j + 1) / 2;
      mask |= (step & 1) << j;
      if (kComposed && link.more_columns != 0) {
        pairs = pairs && shared_at<const MoreTaps<T>>(link.more_columns)[j * quads + q].count == 0;
      }
    }
    // Nearly all quads have pairs of three neighbours, those at the borders of the map among them: where a neighbour is a
    // copy of another element, the distance says so.
    const int32_t origin = pairs && (three || inside) ? element_of(first, columns.hi) : 0;
    kind = kAny;
    if (pairs && three) {
      kind = kThree + mask + (element_of(first + 1, columns.hi) - origin + 1) * 16 +
             (element_of(first + 2, columns.hi) - origin + 1) * 64;
    } else if (pairs && four && inside) {
      kind = kFour;
    }
    source.begin(kind == kAny ? 0 : origin);
  }

  HMSA_DEVICE T first_of(int j) const { return kComposed ? first_weight[kComposed ? j : 0] : T(1) - second_weight[j]; }

  HMSA_DEVICE void stretch(int32_t row, const LinkTables& link, int32_t quads, int32_t q, Range columns,
                           Quad<T>& to) const {
    const auto from = source.row(row);
    const auto set = [&](int j, T first, T second) { to.of[j] = first_of(j) * first + second_weight[j] * second; };
    if (kind >= kThree) {
      const T x0 = from(0);
      const T x1 = from((kind >> 4 & 3) - 1);
      const T x2 = from((kind >> 6 & 3) - 1);
      if ((kind & 15) == 12) {
        set(0, x0, x1);
        set(1, x0, x1);
        set(2, x1, x2);
        set(3, x1, x2);
      } else {
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) set(j, kind >> j & 1 ? x1 : x0, kind >> j & 1 ? x2 : x1);
      }
    } else if (kComposed && kind == kFour) {
      const T x1 = from(1);
      const T x2 = from(2);
      set(0, from(0), x1);
      set(1, x1, x2);
      set(2, x1, x2);
      set(3, x2, from(3));
    } else {
      // At the borders, and where no whole number is the ratio. Columns count from where the source begins.
      constexpr int32_t kBytes = static_cast<int32_t>(sizeof(T));
      const int32_t origin = source.first();
      const auto column = [&](int32_t tap) { return element_of(columns.lo + tap / kBytes, columns.hi) - origin; };
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        const Tap<T> tap = shared_at<const Tap<T>>(link.columns)[j * quads + q];
        set(j, from(column(tap.first)), from(column(tap.second)));
      }
      if (kComposed && link.more_columns != 0) {
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) {
          const MoreTaps<T>& more = shared_at<const MoreTaps<T>>(link.more_columns)[j * quads + q];
          HMSA_ROLLED
          for (int t = 0; t < more.count; ++t) to.of[j] += more.weight[t] * from(column(more.index[t]));
        }
      }
    }
  }

  // Whether the row of these taps lies between other rows of the source than the one before it.
  HMSA_DEVICE bool moves(const Tap<T>& tap) const {
    return uniform(tap.second != lower || (kComposed && tap.first != upper));
  }
  HMSA_DEVICE void move(const Tap<T>& tap, const LinkTables& link, int32_t quads, int32_t q, Range columns) {
    HMSA_ROLLED
    while (uniform(lower < tap.second)) {
      ++lower;
      a = b;
      stretch(lower, link, quads, q, columns, b);
    }
    // Where the number of rows stays, the first row has no weight: it is zero, and is not read.
    if (uniform(tap.first == tap.second)) a = kComposed ? b : Quad<T>{};
    upper = tap.first;
  }

  HMSA_DEVICE Quad<T> next(const Tap<T>& tap, const MoreTaps<T>* more, const LinkTables& link, int32_t quads, int32_t q,
                           Range columns) {
    if (moves(tap)) move(tap, link, quads, q, columns);
    return value(tap, more, link, quads, q, columns);
  }

  // The row between the two.
  HMSA_DEVICE Quad<T> value(const Tap<T>& tap, const MoreTaps<T>* more, const LinkTables& link, int32_t quads,
                            int32_t q, Range columns) const {
    Quad<T> value;
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) value.of[j] = tap.first_weight * a.of[j] + tap.second_weight * b.of[j];
    if (kComposed && more != nullptr) {
      HMSA_ROLLED
      for (int t = 0; uniform(t < more->count); ++t) {
        Quad<T> other;
        stretch(more->index[t], link, quads, q, columns, other);
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) value.of[j] += more->weight[t] * other.of[j];
      }
    }
    return value;
  }
};

// A plane of a head in global memory.
template <typename S>
struct HeadSource {
  const S* plane;  // row 0, at the first column
  int64_t row_stride;
  int32_t column_stride;
  int32_t height;
  int32_t first_column;

  HMSA_DEVICE void begin(int32_t column) {
    first_column = column;
    plane += static_cast<int64_t>(column) * column_stride;
  }
  HMSA_DEVICE int32_t first() const { return first_column; }
  HMSA_DEVICE auto row(int32_t r) const {
    const S* const from = plane + smaller(r, height - 1) * row_stride;
    const int32_t stride = column_stride;
    return [from, stride](int32_t column) { return to_arithmetic(from[column * stride]); };
  }
};

// Rows in shared memory.
template <typename T>
struct RingSource {
  Ring ring;
  int32_t first_column;

  HMSA_DEVICE void begin(int32_t column) { first_column = column; }
  HMSA_DEVICE int32_t first() const { return first_column; }
  HMSA_DEVICE auto row(int32_t r) const {
    const T* const from = shared_at<const T>(ring.at(r)) + first_column;
    return [from](int32_t column) { return from[column]; };
  }
};

// Sums of the rows of a source for the rows of the target that its taps lead to: `current` and those behind it.
template <typename T, bool kComposed>
struct RowSums {
  static constexpr int kRows = kComposed ? 3 : 2;

  Quad<T> sum[kRows];
  int32_t current;

  HMSA_DEVICE void begin(int32_t row) {
    current = row;
    HMSA_UNROLL
    for (int k = 0; k < kRows; ++k) sum[k] = Quad<T>{};
  }

  // Calls finish(row, sums) for the rows before `until`.
  template <typename Finish>
  HMSA_DEVICE void finish_until(int32_t until, const Finish& finish) {
    HMSA_ROLLED
    for (; uniform(current < until); ++current) {
      finish(current, sum[0]);
      HMSA_UNROLL
      for (int k = 0; k + 1 < kRows; ++k) sum[k] = sum[k + 1];
      sum[kRows - 1] = Quad<T>{};
    }
  }

  // The same up to the end of a window of a map of so many rows: what the taps ascribe to the row behind the last one of
  // the map is the last one's.
  template <typename Finish>
  HMSA_DEVICE void finish_all(int32_t until, int32_t height, const Finish& finish) {
    finish_until(until, [&](int32_t row, const Quad<T>& quad) {
      Quad<T> all = quad;
      if (!kComposed && uniform(row == height - 1)) {
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) all.of[j] += sum[1].of[j];
      }
      finish(row, all);
    });
  }

  HMSA_DEVICE void add_to(int k, T weight, const Quad<T>& quad) {
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) sum[k].of[j] += weight * quad.of[j];
  }

  // A row of the source, whose first tap is the current row. `single`: taps may be the same row.
  HMSA_DEVICE void add(const Tap<T>& tap, const MoreTaps<T>* more, bool single, const Quad<T>& quad) {
    if (single && uniform(tap.second == tap.first)) {
      if (kComposed) add_to(0, tap.first_weight, quad);
      add_to(0, tap.second_weight, quad);
    } else {
      add_to(0, tap.first_weight, quad);
      add_to(1, tap.second_weight, quad);
    }
    if (kComposed && more != nullptr) {
      HMSA_ROLLED
      for (int t = 0; uniform(t < more->count); ++t) {
        const int32_t k = more->index[t] - current;
        if (uniform(k == 0)) {
          add_to(0, more->weight[t], quad);
        } else if (uniform(k == 1)) {
          add_to(1, more->weight[t], quad);
        } else {
          add_to(kRows - 1, more->weight[t], quad);
        }
      }
    }
  }
};

// ---- columns --------------------------------------------------------------------------------------------------------

// How target columns are gathered from the quads of a line. Where a resize enlarges by two or four, a lane has the target
// columns that lie under its quad, and what reaches them is there or in the lanes beside it; else through shared memory.
enum class GatherKind : int32_t {
  kLine,  // any
  kTwo,   // lane l has targets 2 l and 2 l + 1, read by sources 4 l - 1 to 4 l + 2 and 4 l + 1 to 4 l + 4
  kOne,   // lane l has target l, read by sources 4 l - 2 to 4 l + 5
};

// kLine: of each target column the sources [first, first + count) with their weights, by number in that range, then by
// target. kTwo and kOne: of each lane eight weights, as two quads.
struct GatherTable {
  GatherKind kind;
  int32_t gathers;  // offsets in bytes
  int32_t weights;
  int32_t targets;
};

struct Gather {
  int32_t first;
  int32_t count;
};

template <typename T>
HMSA_DEVICE T weight_of(const AxisMap& map, int32_t o, int32_t i) {
  return map.weight<T>(o, i);
}
template <typename T>
HMSA_DEVICE_CALL T weight_of(const ComposedMap& map, int32_t o, int32_t i) {
  const ComposedTaps<T> taps = map.taps<T>(o);
  T weight = T(0);
  for (int k = 0; k < taps.count; ++k) weight += taps.index[k] == i ? taps.weight[k] : T(0);
  return weight;
}
HMSA_DEVICE Range outputs_reading(const AxisMap& map, int32_t i) { return map.outputs(i); }
HMSA_DEVICE Range outputs_reading(const ComposedMap& map, int32_t i) { return map.outputs(Range{i, i + 1}); }
HMSA_HOST_DEVICE int32_t inputs_of(const AxisMap& map) { return map.in; }
HMSA_HOST_DEVICE int32_t inputs_of(const ComposedMap& map) { return map.inner.in; }

// column_of(t) is the column of target t; those outside the map are read by nothing.
template <typename T, typename AnyMap, typename ColumnOf>
HMSA_DEVICE_PHASE void fill_gathers(const GatherTable& table, const AnyMap& map, Range sources, int32_t most,
                                    const ColumnOf& column_of) {
  for (int32_t k = thread(); k < table.targets * most; k += threads()) {
    const int32_t n = k / table.targets;
    const int32_t t = k - n * table.targets;
    const int32_t column = column_of(t);
    Range range{0, 0};
    if (column >= 0 && column < inputs_of(map)) range = intersection(outputs_reading(map, column), sources);
    if (n == 0) shared_at<Gather>(table.gathers)[t] = Gather{range.lo - sources.lo, range.size()};
    if (n < range.size()) shared_at<T>(table.weights)[k] = weight_of<T>(map, range.lo + n, column);
  }
}

// For kTwo and kOne: `first` is the target that lies under source column sources.lo.
template <typename T, typename AnyMap>
HMSA_DEVICE_PHASE void fill_lane_weights(const GatherTable& table, const AnyMap& map, Range sources, int32_t first) {
  const bool two = table.kind == GatherKind::kTwo;
  for (int32_t k = thread(); k < 2 * kLineColumns; k += threads()) {
    const int32_t n = k / kLineColumns * kQuad + k % kQuad;
    const int32_t l = k % kLineColumns / kQuad;
    const int32_t target = first + (two ? 2 * l + n / kQuad : l);
    const int32_t o = sources.lo + kQuad * l + (two ? n - 1 - n / kQuad * 2 : n - 2);
    const bool exists = target >= 0 && target < inputs_of(map) && o >= sources.lo && o < sources.hi;
    shared_at<T>(table.weights)[k] = exists ? weight_of<T>(map, o, target) : T(0);
  }
}

template <typename T>
HMSA_DEVICE T gathered(const GatherTable& table, int32_t line, int32_t t) {
  const Gather gather = shared_at<const Gather>(table.gathers)[t];
  const T* weight = shared_at<const T>(table.weights) + t;
  const T* from = shared_at<const T>(line) + gather.first;
  T sum = T(0);
  HMSA_ROLLED
  for (int32_t n = 0; n < gather.count; ++n, weight += table.targets) sum += *weight * from[n];
  return sum;
}

// The values of the lane before, or behind; zero where there is none.
template <typename T>
HMSA_DEVICE T of_lane_before(T value) {
  const T other = __shfl_up_sync(0xffffffffu, value, 1);
  return lane() == 0 ? T(0) : other;
}
template <typename T>
HMSA_DEVICE T of_lane_behind(T value) {
  const T other = __shfl_down_sync(0xffffffffu, value, 1);
  return lane() == kLanes - 1 ? T(0) : other;
}

template <typename T>
HMSA_DEVICE T weighted(const Quad<T>& weight, T a, T b, T c, T d) {
  return weight.of[0] * a + weight.of[1] * b + weight.of[2] * c + weight.of[3] * d;
}

// The two targets of a lane, and its one.
template <typename T>
HMSA_DEVICE void gathered_two(const GatherTable& table, const Quad<T>& quad, T (&targets)[2]) {
  const int32_t at = table.weights + lane() * static_cast<int32_t>(sizeof(Quad<T>));
  const T before = of_lane_before(quad.of[3]);
  const T behind = of_lane_behind(quad.of[0]);
  targets[0] = weighted(quad_at<T>(at), before, quad.of[0], quad.of[1], quad.of[2]);
  targets[1] = weighted(quad_at<T>(at + kLanes * static_cast<int32_t>(sizeof(Quad<T>))), quad.of[1], quad.of[2],
                        quad.of[3], behind);
}

template <typename T>
HMSA_DEVICE T gathered_one(const GatherTable& table, const Quad<T>& quad) {
  const int32_t at = table.weights + lane() * static_cast<int32_t>(sizeof(Quad<T>));
  const T low =
      weighted(quad_at<T>(at), of_lane_before(quad.of[2]), of_lane_before(quad.of[3]), quad.of[0], quad.of[1]);
  return low + weighted(quad_at<T>(at + kLanes * static_cast<int32_t>(sizeof(Quad<T>))), quad.of[2], quad.of[3],
                        of_lane_behind(quad.of[0]), of_lane_behind(quad.of[1]));
}

// ---- for the host ---------------------------------------------------------------------------------------------------

// Whether moving on by one input moves on by as many outputs as the sides' ratio says: not so with aligned corners.
inline bool is_periodic(const AxisMap& map) { return map.slope * map.out == map.den * map.in; }
inline bool is_periodic(const ComposedMap& map) { return is_periodic(map.inner) && is_periodic(map.outer); }

// An inner element is read by the outputs that lie nearest to it. One of them speaks for all.
template <typename AnyMap>
GatherKind gather_kind(const AnyMap& map) {
  const int32_t in = inputs_of(map);
  const int32_t out = outputs_of(map);
  const int32_t i = in / 2;
  const Range readers = map.outputs(Range{i, i + 1});
  if (!is_periodic(map)) return GatherKind::kLine;
  if (out == 2 * in && readers.lo >= 2 * i - 1 && readers.hi <= 2 * i + 3) return GatherKind::kTwo;
  if (out == 4 * in && readers.lo >= 4 * i - 2 && readers.hi <= 4 * i + 6) return GatherKind::kOne;
  return GatherKind::kLine;
}

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
