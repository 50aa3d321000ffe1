// What a warp of the backward pass of fuse_scales goes down a plane with: rows of the forward direction out of a ring, sums
// of rows for the adjoint of a resize, and the gathering of columns.
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

// The rows of a source in a ring at the columns of its outputs: RowStream without a plane of its own.
template <typename T, bool kComposed>
struct RingStream {
  RowStream<T, kComposed> rows;
  int32_t origin;  // of the first tap, in bytes from the start of a row

  HMSA_DEVICE void begin(const LinkTables& link, int32_t quads, int32_t q, const Ring& ring) {
    rows.begin(link, quads, q, Map{ring.offset, 0, ring.pitch}, 0, 0);
    origin = shared_at<const Tap<T>>(link.columns)[q].first;
  }

  HMSA_DEVICE Quad<T> next(const Tap<T>& tap, const MoreTaps<T>* more, const Ring& ring) {
    if (uniform(tap.second != rows.lower || (kComposed && tap.first != rows.upper))) {
      HMSA_ROLLED
      while (uniform(rows.lower < tap.second)) {
        ++rows.lower;
        rows.a = rows.b;
        rows.stretch(shared_at<const T>(ring.at(rows.lower) + origin), rows.b);
      }
      if (uniform(tap.first == tap.second)) rows.a = rows.b;
      rows.upper = tap.first;
    }
    Quad<T> value;
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      value.of[j] = tap.first_weight * rows.a.of[j] + tap.second_weight * rows.b.of[j];
    }
    if (kComposed && more != nullptr) {
      HMSA_ROLLED
      for (int t = 0; uniform(t < more->count); ++t) {
        Quad<T> other;
        rows.stretch(shared_at<const T>(ring.at(more->index[t]) + origin), other);
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) value.of[j] += more->weight[t] * other.of[j];
      }
    }
    return value;
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

  // A row of the source, whose first tap is the current row.
  HMSA_DEVICE void add(const Tap<T>& tap, const MoreTaps<T>* more, const Quad<T>& quad) {
    add_to(0, tap.first_weight, quad);
    if (uniform(tap.second == tap.first)) {
      add_to(0, tap.second_weight, quad);
    } else {
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

// Of each target column the source columns that read it: [first, first + count) of the line, with their weights, which
// lie by number in that range, then by target.
struct GatherTable {
  int32_t gathers;  // offsets in bytes
  int32_t weights;
  int32_t targets;
};

struct Gather {
  int32_t first;
  int32_t count;
};

HMSA_DEVICE int32_t gathered_first(const AxisMap& map, int32_t i) { return map.outputs(i).lo; }

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

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
