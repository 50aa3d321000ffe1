// What the fusion kernels share on the GPU: taps of a tile's axes in shared memory, and reading maps.
#pragma once

#include "core/blend.h"
#include "core/half.h"
#include "core/view.h"
#include "ops/cuda/launch.h"

namespace hmsa {
namespace cuda {

// All kernels of the fusion run blocks of 32 x 8 threads: x along columns, so that a warp reads along a row.
constexpr int kBlockColumns = 32;
constexpr int kBlockRows = 8;
constexpr int kBlockThreads = kBlockColumns * kBlockRows;

template <typename S>
HMSA_HOST_DEVICE arithmetic_t<S> read(const S* at) {
  if constexpr (std::is_same_v<S, arithmetic_t<S>>) {
    return *at;
  } else {
    return to_float(*at);
  }
}

HMSA_HOST_DEVICE void write(float* at, float value) { *at = value; }
HMSA_HOST_DEVICE void write(double* at, double value) { *at = value; }
HMSA_HOST_DEVICE void write(Half* at, float value) { *at = to_half(value); }
HMSA_HOST_DEVICE void write(BFloat16* at, float value) { *at = to_bfloat16(value); }

// Both axes' taps of one output element.
template <typename T>
struct PointTaps {
  Taps<T> row;
  Taps<T> column;
};

template <typename T>
HMSA_HOST_DEVICE_CALL PointTaps<T> point_taps(const Resize& resize, int32_t y, int32_t x) {
  return PointTaps<T>{resize.rows.taps<T>(y), resize.columns.taps<T>(x)};
}

// Rows first, then columns: the same order of roundings as everywhere in this package is not promised, the same
// result for the same launch is.
template <typename T, typename At>
HMSA_HOST_DEVICE T bilinear(const Taps<T>& row, const Taps<T>& column, const At& at) {
  return lerp(lerp(at(row.first, column.first), at(row.first, column.second), column.weight),
              lerp(at(row.second, column.first), at(row.second, column.second), column.weight), row.weight);
}

// A map of a head, [h, w] of one image and channel, interpolated.
template <typename S, typename T = arithmetic_t<S>>
HMSA_HOST_DEVICE T sample(const MapView<const S>& map, int64_t b, int64_t c, const Taps<T>& row,
                          const Taps<T>& column) {
  const S* plane = map.data + b * map.batch + c * map.channel;
  return bilinear(row, column, [&](int32_t y, int32_t x) { return read(plane + y * map.row + x * map.column); });
}

// Taps of consecutive outputs of one axis, in shared memory.
template <typename T>
struct AxisTaps {
  Taps<T>* taps;
  int32_t lo;

  HMSA_HOST_DEVICE const Taps<T>& at(int32_t o) const { return taps[o - lo]; }
};

// A tile of one channel in shared memory. Rows and columns are counted in the map, not in the tile.
template <typename T>
struct SharedPatch {
  T* data;
  Tile tile;

  HMSA_HOST_DEVICE T& at(int32_t y, int32_t x) const {
    return data[(y - tile.rows.lo) * tile.columns.size() + (x - tile.columns.lo)];
  }
};

template <typename T>
HMSA_HOST_DEVICE T sample(const SharedPatch<T>& patch, const Taps<T>& row, const Taps<T>& column) {
  return bilinear(row, column, [&](int32_t y, int32_t x) { return patch.at(y, x); });
}

#if defined(__CUDACC__)
#define HMSA_DEVICE __device__ __forceinline__
#define HMSA_DEVICE_CALL __device__ __noinline__
#else
#define HMSA_DEVICE inline
#define HMSA_DEVICE_CALL inline
#endif

// Calls body(y, x) for the elements of a tile, divided among the threads of the block.
template <typename Body>
HMSA_DEVICE void for_each(const Tile& tile, const Body& body) {
  for (int32_t y = tile.rows.lo + static_cast<int32_t>(threadIdx.y); y < tile.rows.hi; y += kBlockRows) {
    for (int32_t x = tile.columns.lo + static_cast<int32_t>(threadIdx.x); x < tile.columns.hi; x += kBlockColumns) {
      body(y, x);
    }
  }
}

HMSA_DEVICE int32_t thread_index() { return static_cast<int32_t>(threadIdx.y) * kBlockColumns + threadIdx.x; }

// Fills the taps of the outputs in `range`.
template <typename T>
HMSA_DEVICE AxisTaps<T> fill_taps(Taps<T>* memory, const AxisMap& map, Range range) {
  for (int32_t k = thread_index(); k < range.size(); k += kBlockThreads) memory[k] = map.taps<T>(range.lo + k);
  return AxisTaps<T>{memory, range.lo};
}

}  // namespace cuda
}  // namespace hmsa
