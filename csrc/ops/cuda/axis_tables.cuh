// Tables of one axis of a resize in shared memory, which a block of the backward pass fills once and reads per channel.
//
// A tap says what an output reads: up to three consecutive inputs and their weights. Two are enough for a resize, three
// for a resize that enlarges followed by any other (the composed step of the largest scale). Read forwards the table
// interpolates; read backwards, together with the outputs that reach each input, it is the adjoint. Weights of zero are
// skipped in both directions: nothing beyond the tile is read, and a resize that keeps its size is a true copy.
#pragma once

#include "core/chain.h"
#include "core/half.h"
#include "core/problem.h"
#include "ops/cuda/launch.h"

namespace hmsa {
namespace cuda {
namespace backward {

constexpr int kThreads = 256;
constexpr int kLanes = 32;
constexpr int kWarps = kThreads / kLanes;

// Registers of a thread are shared out accordingly: 80 in float, 128 in double.
template <typename T>
constexpr int kBlocksPerMultiprocessor = sizeof(T) == 4 ? 3 : 2;

HMSA_DEVICE int32_t thread() { return static_cast<int32_t>(threadIdx.x); }
HMSA_DEVICE int32_t lane() { return thread() % kLanes; }
HMSA_DEVICE int32_t warp() { return thread() / kLanes; }

HMSA_HOST_DEVICE int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
HMSA_HOST_DEVICE int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
HMSA_HOST_DEVICE int32_t divide_up(int32_t a, int32_t b) { return (a + b - 1) / b; }
HMSA_HOST_DEVICE int32_t round_up(int32_t a, int32_t b) { return divide_up(a, b) * b; }

// The block's dynamic shared memory at an offset in bytes. Functions that are calls ask for it here: behind a pointer
// that was handed to them the compiler does not know that the memory is shared.
template <typename V>
HMSA_DEVICE V* shared_at(int32_t offset) {
  HMSA_DYNAMIC_SHARED(unsigned char, memory);
  return reinterpret_cast<V*>(memory + offset);
}

// Tiles of a range side by side, the last one cut off.
HMSA_HOST_DEVICE Range part_of(Range range, int32_t tile, int32_t k) {
  const int32_t lo = range.lo + k * tile;
  return Range{lo, lo + tile < range.hi ? lo + tile : range.hi};
}

// ---- elements in memory ---------------------------------------------------------------------------------------------

constexpr int kQuad = 4;  // elements that a thread moves at a time

// Four neighbours as one load or store of 8 (half precision), 16 or twice 16 bytes.
template <typename S>
struct alignas(sizeof(S) * kQuad < 16 ? sizeof(S) * kQuad : 16) Quad {
  S element[kQuad];
};

template <typename S>
HMSA_DEVICE Quad<S> load_quad(const S* from) {
  return *reinterpret_cast<const Quad<S>*>(from);
}

template <typename S>
HMSA_DEVICE void store_quad(S* to, const S (&values)[kQuad]) {
  Quad<S> quad;
  for (int j = 0; j < kQuad; ++j) quad.element[j] = values[j];
  *reinterpret_cast<Quad<S>*>(to) = quad;
}

HMSA_HOST_DEVICE void write(float* at, float value) { *at = value; }
HMSA_HOST_DEVICE void write(double* at, double value) { *at = value; }
HMSA_HOST_DEVICE void write(Half* at, float value) { *at = to_half(value); }
HMSA_HOST_DEVICE void write(BFloat16* at, float value) { *at = to_bfloat16(value); }

template <typename S>
bool aligned_for_quads(const S* data) {
  return reinterpret_cast<uintptr_t>(data) % alignof(Quad<S>) == 0;
}

// Channels are neighbours in memory (channels_last), and enough to be worth it? Columns must not lie so far apart that a
// tile exceeds 32 bits.
template <typename S>
bool channels_together(const MapView<S>& map, int64_t classes) {
  return classes >= kQuad && map.channel == 1 && map.column >= classes && map.column < (1 << 15);
}

// ---- tables ---------------------------------------------------------------------------------------------------------

// What an output reads: inputs first, first + 1, first + 2.
template <typename T>
struct alignas(16) Tap {
  int32_t first;
  T weight[3];
};

// The outputs that reach an input i, relative to the table: [at[k], at[k + 1]) read it with weight[2 - k], since their
// `first` is i - 2 + k.
struct alignas(16) Reach {
  int32_t at[4];
};

template <typename T>
HMSA_HOST_DEVICE_CALL Tap<T> tap_of(const AxisMap& map, int32_t o) {
  const Taps<T> taps = map.taps<T>(o);
  if (taps.second == taps.first) return Tap<T>{taps.first, {T(1), T(0), T(0)}};
  return Tap<T>{taps.first, {T(1) - taps.weight, taps.weight, T(0)}};
}

template <typename T>
HMSA_HOST_DEVICE_CALL Tap<T> tap_of(const ComposedMap& map, int32_t o) {
  const ComposedTaps<T> taps = map.taps<T>(o);
  Tap<T> tap{taps.index[0], {T(0), T(0), T(0)}};
  for (int k = 0; k < 4; ++k) {
    if (k >= taps.count) break;
    const int32_t offset = taps.index[k] - tap.first;
    tap.weight[0] += offset == 0 ? taps.weight[k] : T(0);
    tap.weight[1] += offset == 1 ? taps.weight[k] : T(0);
    tap.weight[2] += offset == 2 ? taps.weight[k] : T(0);
  }
  return tap;
}

// Two resizes in a row read at most three consecutive inputs when the first one does not skip any.
HMSA_HOST_DEVICE bool fits_taps(const ComposedMap& map) { return map.inner.slope <= map.inner.den; }

// Taps of consecutive outputs, and which of them reach each of a range of inputs. `reaches` is null where the table is
// only read forwards.
template <typename T>
struct AxisTable {
  Tap<T>* taps;
  Reach* reaches;
  Range outputs;
  Range inputs;

  // The same for some of the inputs, counted from the first.
  HMSA_DEVICE AxisTable part(Range some) const {
    return {taps, reaches + some.lo, outputs, Range{inputs.lo + some.lo, inputs.lo + some.hi}};
  }

  // First entry whose tap begins at `first` or behind.
  HMSA_DEVICE int32_t lower_bound(int32_t first) const {
    int32_t lo = 0;
    int32_t hi = outputs.size();
    while (lo < hi) {
      const int32_t middle = (lo + hi) / 2;
      if (taps[middle].first < first) {
        lo = middle + 1;
      } else {
        hi = middle;
      }
    }
    return lo;
  }

  template <typename Map>
  HMSA_DEVICE void fill_taps(const Map& map) const {
    for (int32_t k = thread(); k < outputs.size(); k += kThreads) taps[k] = tap_of<T>(map, outputs.lo + k);
  }

  // Needs all taps. `wide`: of three inputs, not two.
  HMSA_DEVICE void fill_reaches(bool wide) const {
    for (int32_t k = thread(); k < inputs.size(); k += kThreads) {
      const int32_t i = inputs.lo + k;
      const int32_t begin = lower_bound(i - 1);
      reaches[k] = Reach{{wide ? lower_bound(i - 2) : begin, begin, lower_bound(i), lower_bound(i + 1)}};
    }
  }
};

// Sum of weight * at(input) over what a tap reads.
template <typename T, typename At>
HMSA_DEVICE T interpolate(const Tap<T>& tap, const At& at) {
  T sum = tap.weight[0] * at(tap.first);
  if (tap.weight[1] != T(0)) sum += tap.weight[1] * at(tap.first + 1);
  if (tap.weight[2] != T(0)) sum += tap.weight[2] * at(tap.first + 2);
  return sum;
}

// A map of a head, [h, w] of one image and channel, interpolated straight from global memory.
template <typename S, typename T = arithmetic_t<S>>
HMSA_DEVICE T sample(const MapView<const S>& map, int64_t b, int64_t c, const Tap<T>& row, const Tap<T>& column) {
  const S* plane = map.data + b * map.batch + c * map.channel;
  return interpolate(row, [&](int32_t y) {
    return interpolate(column, [&](int32_t x) { return T(to_arithmetic(plane[y * map.row + x * map.column])); });
  });
}

// Calls body(y, x) for the elements of a tile: a warp along each row.
template <typename Body>
HMSA_DEVICE void for_each(const Tile& tile, const Body& body) {
  for (int32_t y = tile.rows.lo + warp(); y < tile.rows.hi; y += kWarps) {
    for (int32_t x = tile.columns.lo + lane(); x < tile.columns.hi; x += kLanes) body(y, x);
  }
}

}  // namespace backward
}  // namespace cuda
}  // namespace hmsa
