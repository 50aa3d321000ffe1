// The vocabulary of the CUDA kernels of fuse_scales, forward and backward.
//
//     quad      four neighbouring columns of a row, which a thread has in registers
//     run       kRun rows, one below the other, which a thread goes down
//     tap       what one output of a resize reads along an axis: two inputs and their weights, seldom four
//     gather    what one input of a resize is read by, for the adjoint
//     window    the rows or columns of a map that a block needs
//     plane     a map of one channel in shared memory; a block has several at a time
//     band      the rows of the output that a block works on between two barriers
//
// A block's maps lie in dynamic shared memory at offsets in bytes that the host has chosen (Map). Whatever the layout of
// the tensors in global memory, a plane is contiguous and its rows are whole quads.
#pragma once

#include "core/chain.h"
#include "core/half.h"
#include "core/problem.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/multiprocessors.h"

namespace hmsa {
namespace cuda {
namespace fuse {

constexpr int32_t kQuad = 4;
constexpr int32_t kRun = 8;
constexpr int32_t kGridSlots = kMaxScales + 1;

// What follows is a branch, where the compiler would rather select: most warps go past it.
HMSA_DEVICE void not_predicated() {
#if defined(__CUDACC__)
  asm volatile("");
#endif
}

// The same number, from which nothing is worked out ahead of a loop: what seldom comes must not hold registers.
HMSA_DEVICE int32_t only_here(int32_t number) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(number));
#endif
  return number;
}

HMSA_DEVICE int32_t thread() { return static_cast<int32_t>(threadIdx.x); }
HMSA_DEVICE int32_t threads() { return static_cast<int32_t>(blockDim.x); }

HMSA_HOST_DEVICE int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
HMSA_HOST_DEVICE int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
HMSA_HOST_DEVICE int32_t divide_up(int32_t a, int32_t b) { return (a + b - 1) / b; }
HMSA_HOST_DEVICE int32_t round_up(int32_t a, int32_t b) { return divide_up(a, b) * b; }

HMSA_HOST_DEVICE Range intersection(Range a, Range b) {
  const Range both{larger(a.lo, b.lo), smaller(a.hi, b.hi)};
  return both.empty() ? Range{0, 0} : both;
}

// Columns from whole quad to whole quad, or to the end of the map.
HMSA_HOST_DEVICE Range whole_quads(Range range, int32_t size) {
  if (range.empty()) return Range{0, 0};
  return Range{range.lo - range.lo % kQuad, smaller(round_up(range.hi, kQuad), size)};
}

// Quotients of numbers below 2^16 by a fixed one, without the twenty instructions of a division.
struct Division {
  int32_t divisor;
  uint32_t reciprocal;  // ceil(2^32 / divisor), 0 for a divisor of 1

  HMSA_HOST_DEVICE int32_t quotient(int32_t n) const {
    if (reciprocal == 0) return n;
    return static_cast<int32_t>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * reciprocal >> 32);
  }
};

inline Division division_by(int32_t divisor) {
  return Division{divisor, divisor <= 1 ? 0 : UINT32_MAX / static_cast<uint32_t>(divisor) + 1};
}

// ---- shared memory --------------------------------------------------------------------------------------------------

// The block's dynamic shared memory at an offset in bytes. Functions ask for it here: behind a pointer that was handed
// to them the compiler does not know that the memory is shared.
template <typename V>
HMSA_DEVICE V* shared_at(int32_t offset) {
  HMSA_DYNAMIC_SHARED(unsigned char, memory);
  return reinterpret_cast<V*>(memory + offset);
}

// An address in shared memory, some bytes on: pitches are kept in bytes, which saves a multiplication by the size.
template <typename E>
HMSA_DEVICE const E* below(const E* at, int32_t bytes) {
  return reinterpret_cast<const E*>(reinterpret_cast<const unsigned char*>(at) + bytes);
}

// Planes in shared memory; all in bytes. Element (k, row, column) lies at offset + k * plane + row * pitch + its column.
struct Map {
  int32_t offset;
  int32_t plane;
  int32_t pitch;
  int32_t pair;  // from a plane to the one that a thread makes with it

  HMSA_HOST_DEVICE int32_t at(int32_t k, int32_t row) const { return offset + k * plane + row * pitch; }
};

// Hands out shared memory, 16 bytes at a time; more than any device has counts as kTooMuch.
struct Arena {
  static constexpr int32_t kTooMuch = 1 << 28;
  int32_t bytes = 0;

  int32_t take(int64_t size) {
    const int32_t at = bytes;
    const int64_t end = at + (size + 15) / 16 * 16;
    bytes = static_cast<int32_t>(end < kTooMuch ? end : kTooMuch);
    return at;
  }
  template <typename V>
  int32_t take_array(int64_t count) {
    return take(count * static_cast<int64_t>(sizeof(V)));
  }
  // `planes` planes of so many rows of quads, each plane `gap` bytes longer than that.
  template <typename T>
  Map take_map(int64_t planes, int64_t rows, int64_t quads, int32_t gap = 0) {
    const int64_t pitch = quads * kQuad * static_cast<int64_t>(sizeof(T));
    const int64_t plane = rows * pitch + gap;
    const int32_t at = take(planes * plane);
    return bytes >= kTooMuch ? Map{} : Map{at, static_cast<int32_t>(plane), static_cast<int32_t>(pitch), 0};
  }
};

constexpr float kLog2e = 1.44269504f;

// 2^x, to 2^-22; subnormal results are zero.
HMSA_DEVICE float power_of_two(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// exp x, with one rounding more.
HMSA_DEVICE float fast_exponential(float x) { return power_of_two(x * kLog2e); }

// ---- quads ----------------------------------------------------------------------------------------------------------

template <typename T>
struct alignas(16) Quad {
  T of[kQuad];
};

template <typename T>
HMSA_DEVICE Quad<T> quad_at(int32_t offset) {
  return *shared_at<const Quad<T>>(offset);
}
HMSA_DEVICE void put_quad(int32_t offset, const Quad<float>& quad) {
  *shared_at<float4>(offset) = make_float4(quad.of[0], quad.of[1], quad.of[2], quad.of[3]);
}
HMSA_DEVICE void put_quad(int32_t offset, const Quad<double>& quad) { *shared_at<Quad<double>>(offset) = quad; }

// Four stored elements side by side, read and written as one.
template <typename S>
struct alignas(sizeof(S) * kQuad < 16 ? sizeof(S) * kQuad : 16) StoredQuad {
  S of[kQuad];
};

template <typename S>
bool aligned_for_quads(const S* data) {
  return reinterpret_cast<uintptr_t>(data) % alignof(StoredQuad<S>) == 0;
}

// Whether four neighbouring columns lie side by side, at a multiple of their size, wherever a quad begins.
template <typename S>
bool lies_in_quads(const MapView<S>& map, int64_t batch, int64_t channels, Extent size) {
  const auto whole = [](int64_t stride, int64_t count) { return count == 1 || stride % kQuad == 0; };
  return map.column == 1 && size.width % kQuad == 0 && aligned_for_quads(map.data) && whole(map.batch, batch) &&
         whole(map.channel, channels) && whole(map.row, size.height);
}

template <typename S, typename T = arithmetic_t<S>>
HMSA_DEVICE Quad<T> load_whole(const S* from) {
  const StoredQuad<S> stored = *reinterpret_cast<const StoredQuad<S>*>(from);
  Quad<T> quad;
  HMSA_UNROLL
  for (int j = 0; j < kQuad; ++j) quad.of[j] = to_arithmetic(stored.of[j]);
  return quad;
}

HMSA_DEVICE void store_whole(float* to, const Quad<float>& quad) {
  *reinterpret_cast<float4*>(to) = make_float4(quad.of[0], quad.of[1], quad.of[2], quad.of[3]);
}
template <typename S, typename T>
HMSA_DEVICE void store_whole(S* to, const Quad<T>& quad) {
  StoredQuad<S> stored;
  HMSA_UNROLL
  for (int j = 0; j < kQuad; ++j) from_arithmetic(&stored.of[j], quad.of[j]);
  *reinterpret_cast<StoredQuad<S>*>(to) = stored;
}

// Four columns of a map in global memory; `quads` as above, else the first `columns` of them one by one.
template <typename S, typename T>
HMSA_DEVICE void store_quad(S* to, int64_t column, bool quads, int32_t columns, const Quad<T>& quad) {
  if (quads) {
    store_whole(to, quad);
  } else {
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      if (j < columns) from_arithmetic(to + j * column, quad.of[j]);
    }
  }
}

enum class Axis { kRows, kColumns };

// ---- taps -----------------------------------------------------------------------------------------------------------

// What an output reads along an axis: first_weight * first + second_weight * second. Rows count from the first of the
// source's window, columns are bytes from its first column.
template <typename T>
struct alignas(16) Tap {
  int32_t first;
  int32_t second;
  T first_weight;
  T second_weight;
};

// Taps of the two resizes of the largest scale in one step (ComposedMap) may be four: these are the third and fourth, or
// as many of them as `count` says.
template <typename T>
struct alignas(16) MoreTaps {
  int32_t index[2];
  T weight[2];
  int32_t count;
};

template <typename T>
struct AnyTaps {
  Tap<T> tap;
  MoreTaps<T> more;
};

// The second tap is the neighbour of the first, at the borders, too: behind the last element of a map lies a copy of it.
// So that neighbouring quads of columns look alike there is a column before the first, too, a copy of the second: there
// the taps are (-1, 0) with the weights 0 and 1, which is 0 * second + 1 * first, as in PyTorch. Rows do without it:
// their taps never go back. Where the side keeps its size both taps are the same element, and half of it is added to
// itself: exact for all numbers but the subnormal ones, for infinities and NaN.
HMSA_HOST_DEVICE int32_t element_of(int32_t element, int32_t size) {
  return element < 0 ? (size > 1 ? 1 : 0) : smaller(element, size - 1);
}

template <typename T>
HMSA_HOST_DEVICE_CALL AnyTaps<T> taps_of(const AxisMap& map, Axis axis, int32_t o) {
  const Taps<T> taps = map.taps<T>(o);
  AnyTaps<T> any{};
  any.tap = Tap<T>{taps.first, taps.first + 1, T(1) - taps.weight, taps.weight};
  if (map.identity()) any.tap = Tap<T>{taps.first, taps.first, T(0.5), T(0.5)};
  if (axis == Axis::kColumns && map.slope * o + map.offset < 0) any.tap = Tap<T>{-1, 0, T(0), T(1)};
  return any;
}

// For columns at the borders of the middle map, too, where all that is read is the first or the last element.
template <typename T>
HMSA_HOST_DEVICE_CALL AnyTaps<T> taps_of(const ComposedMap& map, Axis axis, int32_t o) {
  const ComposedTaps<T> taps = map.taps<T>(o);
  AnyTaps<T> any{};
  if (taps.count == 1) {
    const bool last = axis == Axis::kColumns && taps.index[0] == map.inner.in - 1 && !map.copies();
    any.tap = Tap<T>{taps.index[0], taps.index[0] + (last ? 1 : 0), T(0.5) * taps.weight[0], T(0.5) * taps.weight[0]};
    return any;
  }
  if (axis == Axis::kColumns && taps.count == 2 && taps.index[0] == 0 && taps.index[1] == 1 && taps.weight[1] == T(0)) {
    any.tap = Tap<T>{-1, 0, T(0), taps.weight[0]};
    return any;
  }
  any.tap = Tap<T>{taps.index[0], taps.index[1], taps.weight[0], taps.weight[1]};
  any.more.count = taps.count - 2;
  for (int k = 0; k < 2; ++k) {
    if (k + 2 < taps.count) {
      any.more.index[k] = taps.index[k + 2];
      any.more.weight[k] = taps.weight[k + 2];
    }
  }
  return any;
}

HMSA_HOST_DEVICE int32_t outputs_of(const AxisMap& map) { return map.out; }
HMSA_HOST_DEVICE int32_t outputs_of(const ComposedMap& map) { return map.outer.out; }

// How the first taps of the columns of a quad lie, counted from the first of them, where the second ones are the neighbours:
// at nearly all quads of a resize by a whole number they are a few neighbouring elements. `Aligned`: at an even one.
enum class QuadKind : int32_t { kAny, k0000, k0011, k0112, k0112Aligned };

struct alignas(8) QuadPlace {
  int32_t first;  // tap of the first column, in bytes
  QuadKind kind;
};

// Tables of taps in shared memory, offsets in bytes. Taps of columns are stored by place in the quad, then by quad, so
// that neighbouring threads read neighbouring taps.
struct LinkTables {
  int32_t rows;
  int32_t more_rows;  // 0 where two taps are enough
  int32_t columns;
  int32_t more_columns;
  int32_t weights;   // of the columns once more: first weights quad by quad, then second ones
  int32_t kinds;     // QuadPlace of each quad
  bool aligned;      // pairs of elements of the source lie at multiples of their size
  bool single_rows;  // the number of rows stays: both taps of one are the same
};

// The taps of rows, too, but where their number stays: there a first row that is zero, times -0, is added to the second.
// That leaves any number as it is, and nobody needs to copy the row.
template <typename T>
HMSA_HOST_DEVICE AnyTaps<T> row_taps_of(const AxisMap& map, int32_t o) {
  AnyTaps<T> any = taps_of<T>(map, Axis::kRows, o);
  if (map.identity()) any.tap = Tap<T>{any.tap.first, any.tap.first, T(-0.0), T(1)};
  return any;
}
template <typename T>
HMSA_HOST_DEVICE AnyTaps<T> row_taps_of(const ComposedMap& map, int32_t o) {
  return taps_of<T>(map, Axis::kRows, o);
}

// Fills the taps of rows `range`, and of kRun more that repeat the last of them, so that whole runs can be read. Returns
// whether any of those that this thread made reads other inputs than two neighbours.
template <typename T, typename AnyMap>
HMSA_DEVICE_CALL bool fill_row_taps(int32_t table, int32_t more, const AnyMap map, Range range, int32_t first_source) {
  bool any_more = false;
  for (int32_t k = thread(); k < range.size() + kRun; k += threads()) {
    AnyTaps<T> any = row_taps_of<T>(map, element_of(smaller(range.lo + k, range.hi - 1), outputs_of(map)));
    any.tap.first -= first_source;
    any.tap.second -= first_source;
    shared_at<Tap<T>>(table)[k] = any.tap;
    if (more == 0) continue;
    for (int32_t& index : any.more.index) index -= first_source;
    shared_at<MoreTaps<T>>(more)[k] = any.more;
    any_more = any_more || any.more.count > 0 || any.tap.second != any.tap.first + 1;
  }
  return any_more;
}

// Fills the taps of the columns of `quads` quads from range.lo on; those beyond the range repeat its last.
template <typename T, typename AnyMap>
HMSA_DEVICE_CALL bool fill_column_taps(int32_t table, int32_t more, const AnyMap map, Range range, int32_t first_source,
                                       int32_t quads) {
  bool any_more = false;
  constexpr int32_t kBytes = static_cast<int32_t>(sizeof(T));
  for (int32_t k = thread(); k < quads * kQuad; k += threads()) {
    const int32_t column = element_of(smaller(range.lo + k % quads * kQuad + k / quads, range.hi - 1), outputs_of(map));
    AnyTaps<T> any = taps_of<T>(map, Axis::kColumns, column);
    any.tap.first = (any.tap.first - first_source) * kBytes;
    any.tap.second = (any.tap.second - first_source) * kBytes;
    shared_at<Tap<T>>(table)[k] = any.tap;
    if (more == 0) continue;
    for (int32_t& index : any.more.index) index = (index - first_source) * kBytes;
    shared_at<MoreTaps<T>>(more)[k] = any.more;
    any_more = any_more || any.more.count > 0;
  }
  return any_more;
}

// The weights of columns whose taps this thread has just filled, once more (LinkTables::weights).
template <typename T>
HMSA_DEVICE void fill_column_weights(const LinkTables& link, int32_t quads) {
  for (int32_t k = thread(); k < quads * kQuad; k += threads()) {
    const Tap<T>& tap = shared_at<const Tap<T>>(link.columns)[k];
    const int32_t place = k % quads * kQuad + k / quads;
    shared_at<T>(link.weights)[place] = tap.first_weight;
    shared_at<T>(link.weights)[quads * kQuad + place] = tap.second_weight;
  }
}

// How the quads lie, after a barrier behind fill_column_taps.
template <typename T>
HMSA_DEVICE_CALL void fill_quad_places(const LinkTables& link, int32_t quads) {
  constexpr int32_t kBytes = static_cast<int32_t>(sizeof(T));
  for (int32_t q = thread(); q < quads; q += threads()) {
    const Tap<T>* const taps = shared_at<const Tap<T>>(link.columns) + q;
    bool neighbours = true;
    int32_t pattern = 0;
    for (int j = 0; j < kQuad; ++j) {
      const Tap<T>& tap = taps[j * quads];
      neighbours = neighbours && tap.second - tap.first == kBytes;
      if (link.more_columns != 0) {
        neighbours = neighbours && shared_at<const MoreTaps<T>>(link.more_columns)[j * quads + q].count == 0;
      }
      pattern = pattern * 16 + (tap.first - taps->first) / kBytes;
    }
    const bool aligned = link.aligned && taps->first % (2 * kBytes) == 0;
    shared_at<QuadPlace>(link.kinds)[q] = {taps->first, !neighbours ? QuadKind::kAny
                                                        : pattern == 0x0112
                                                            ? (aligned ? QuadKind::k0112Aligned : QuadKind::k0112)
                                                        : pattern == 0x0011 ? QuadKind::k0011
                                                        : pattern == 0x0000 ? QuadKind::k0000
                                                                            : QuadKind::kAny};
  }
}

// ---- bounds of windows, for the host --------------------------------------------------------------------------------

// Most inputs, first to last, that n consecutive outputs read, with the copies before and behind.
inline int32_t most_sources(const AxisMap& map, int32_t n) {
  if (n == 0 || map.identity()) return n;
  const int64_t most = ((n - 1) * map.slope + map.den - 1) / map.den + 2;
  return most < map.in + 2 ? static_cast<int32_t>(most) : map.in + 2;
}
inline int32_t most_sources(const ComposedMap& map, int32_t n) {
  if (n == 0) return 0;
  return smaller(most_sources(map.inner, most_sources(map.outer, n)) + 2, map.inner.in + 2);
}

// Most outputs that read any of n consecutive inputs: as many as integers fit an open interval.
inline int32_t most_outputs(const AxisMap& map, int32_t n) {
  if (n == 0 || map.identity()) return n;
  if (map.slope == 0) return map.out;
  const int64_t most = ((n + 1) * map.den + map.slope - 1) / map.slope;
  return most < map.out ? static_cast<int32_t>(most) : map.out;
}
inline int32_t most_outputs(const ComposedMap& map, int32_t n) {
  return most_outputs(map.outer, most_outputs(map.inner, n));
}

HMSA_HOST_DEVICE const AxisMap& axis_of(const Resize& resize, Axis axis) {
  return axis == Axis::kRows ? resize.rows : resize.columns;
}
HMSA_HOST_DEVICE ComposedMap composed_axis(const Chain& chain, Axis axis) {
  return axis == Axis::kRows ? chain.composed_rows() : chain.composed_columns();
}

// ---- slots of the chain ---------------------------------------------------------------------------------------------

// A lone scale's final resize gives the output a place of its own among the grids.
HMSA_HOST_DEVICE int output_slot(const Chain& chain) { return chain.needs_final_resize ? 1 : chain.unit; }
HMSA_HOST_DEVICE int next_slot(const Chain& chain, int i) { return i < chain.unit ? i + 1 : output_slot(chain); }

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
