// Region mutual information, backward: the gradients of pooled probabilities, from pooled probabilities and labels
// (octave_rmi.cuh).
//
// P / 16 of a pooled pixel is a correlation of the pixels around it (core/fuse_scales_rmi.h). Its 50 weights are those of
// the pixel's area, one of 25 (pooled_areas.cuh). Pooled pixels are counted from integers close to their means, so that
// neither they nor the constant are much larger than what is left of them, and float32 is enough.
#pragma once

#include "ops/cuda/pooled_areas.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {

constexpr int kRmiWeights = 2 * kRmiTaps * kRmiTaps;

struct alignas(16) AreaWeights {
  float of[2][kRmiTaps][kRmiTaps];  // of a unit of pooled probabilities, and of a pixel of the class
  float constant;
  float unused;
};

struct alignas(16) PlaneWeights {
  AreaWeights areas[kPlaces][kPlaces];
  // What pooled pixels count from.
  uint32_t probability;
  uint32_t pixels;
};

// ---- weights --------------------------------------------------------------------------------------------------------

struct WeightsProblem {
  const double* grad_bce;
  float* grad_bce_to;
  int32_t planes;
  const double* grad_covariance;  // [planes, 18, 18]
  const double* mean;             // [planes, 18]
  PlaneWeights* weights;          // [planes]
};

// The places in neighbourhoods that a pooled pixel has along an axis.
HMSA_DEVICE uint32_t rmi_places_of(int32_t place) {
  constexpr uint32_t kAll = (1u << kRmiSide) - 1;
  return place <= kMiddle ? kAll >> (kMiddle - place) : kAll << (place - kMiddle) & kAll;
}

// A block for each plane; one where there are none.
static __global__ void __launch_bounds__(kSumThreads) rmi_octave_weights_kernel(HMSA_PARAMETER WeightsProblem problem) {
  HMSA_SHARED(double, means, [kRmiVector]);
  if (blockIdx.x == 0 && thread() == 0) *problem.grad_bce_to = static_cast<float>(*problem.grad_bce);
  for (int32_t plane = blockIdx.x; plane < problem.planes; plane += gridDim.x) {
    const double* grad = problem.grad_covariance + static_cast<int64_t>(plane) * kRmiVector * kRmiVector;
    const double* mean = problem.mean + static_cast<int64_t>(plane) * kRmiVector;
    PlaneWeights& to = problem.weights[plane];
    constexpr double kUnits[2] = {1.0 / (1 << kProbabilityBits), 1.0 / kRmiWindow};
    const auto centre = [&](int kind) {
      return nearest_integer(static_cast<float>(mean[kind * kRmiHalf + kRmiHalf / 2] / kUnits[kind]));
    };
    if (thread() < kRmiVector)
      means[thread()] = mean[thread()] - centre(thread() / kRmiHalf) * kUnits[thread() / kRmiHalf];
    __syncthreads();
    if (thread() == 0) {
      to.probability = centre(0);
      to.pixels = centre(1);
    }
    for (int32_t i = thread(); i < kPlaces * kPlaces * (kRmiWeights + 1); i += kSumThreads) {
      const int32_t area = i / (kRmiWeights + 1), n = i % (kRmiWeights + 1);
      AreaWeights& weights = to.areas[area / kPlaces][area % kPlaces];
      const uint32_t rows = rmi_places_of(area / kPlaces), columns = rmi_places_of(area % kPlaces);
      if (n == kRmiWeights) {
        weights.constant = static_cast<float>(rmi_constant(grad, means, rows, columns));
      } else {
        const int32_t kind = n / (kRmiTaps * kRmiTaps), dy = n / kRmiTaps % kRmiTaps, dx = n % kRmiTaps;
        weights.of[kind][dy][dx] =
            static_cast<float>(rmi_weight(grad, kind, dy - kRmiReach, dx - kRmiReach, rows, columns) * kUnits[kind]);
      }
    }
    __syncthreads();  // before the next plane
  }
}

// ---- the correlation ------------------------------------------------------------------------------------------------

struct CorrelationProblem {
  PooledMaps pooled;
  PooledAreas areas;
  Range planes;
  const PlaneWeights* weights;
  float* to;  // [planes][height][pitch]; in the place of the probabilities of planes that are done with
};

// A pooled pixel, counted from where its plane counts from. The number of pixels is less than 2^23.
HMSA_DEVICE float probability_from(uint32_t probability, const PlaneWeights& weights) {
  return static_cast<float>(static_cast<int32_t>(probability - weights.probability));
}
HMSA_DEVICE float pixels_from(uint32_t pixels, const PlaneWeights& weights) {
  return static_cast<float>(static_cast<int32_t>(pixels - weights.pixels));
}

// A tile of the middle: a lane goes down four columns, and every row adds to five rows of results.
HMSA_DEVICE void correlate_tile(const CorrelationProblem& problem, const PooledMaps& pooled, int32_t plane,
                                const Tile& tile) {
  const int32_t column = tile.columns.lo - kRmiReach + lane() * kQuad;
  const int32_t results = tile.columns.hi - column - kRmiReach;
  const PooledColumns columns(pooled, plane, column, results > 0);
  const PlaneWeights& all = problem.weights[plane];
  const AreaWeights weights = all.areas[kMiddle][kMiddle];
  Quad<float> sums[kRmiTaps];
  HMSA_UNROLL
  for (auto& sum : sums) sum = Quad<float>{{weights.constant, weights.constant, weights.constant, weights.constant}};
  float* to = problem.to + plane * pooled.plane() + tile.rows.lo * pooled.pitch + column + kRmiReach;
  PooledColumns::Loaded next = columns.load(tile.rows.lo - kRmiReach);
  HMSA_UNROLL_BY(5)
  for (int32_t row = tile.rows.lo - kRmiReach; row < tile.rows.hi + kRmiReach; ++row) {
    const PooledRow stored = PooledColumns::unpacked(next);
    if (row + 1 < tile.rows.hi + kRmiReach) next = columns.load(row + 1);
    float here[2][2 * kQuad];
    HMSA_UNROLL
    for (int j = 0; j < 2 * kQuad; ++j) {
      here[0][j] = probability_from(stored.probability[j], all);
      here[1][j] = pixels_from(stored.pixels[j], all);
    }
    HMSA_UNROLL
    for (int dy = 0; dy < kRmiTaps; ++dy) {
      HMSA_UNROLL
      for (int kind = 0; kind < 2; ++kind) {
        HMSA_UNROLL
        for (int dx = 0; dx < kRmiTaps; ++dx) {
          HMSA_UNROLL
          for (int j = 0; j < kQuad; ++j) {
            sums[kRmiTaps - 1 - dy].of[j] += weights.of[kind][dy][dx] * here[kind][j + dx];
          }
        }
      }
    }
    // The row two rows above has all that reaches it.
    if (row - kRmiReach >= tile.rows.lo) {
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        if (j < results) to[j] = sums[0].of[j];
      }
      to += pooled.pitch;
    }
    HMSA_UNROLL
    for (int i = 0; i + 1 < kRmiTaps; ++i) sums[i] = sums[i + 1];
    sums[kRmiTaps - 1] = Quad<float>{{weights.constant, weights.constant, weights.constant, weights.constant}};
  }
}

// A part of a border. No weight reaches outside.
HMSA_DEVICE void correlate_border(const CorrelationProblem& problem, const PooledMaps& pooled, int32_t plane,
                                  const PooledPiece& piece) {
  const PlaneWeights& all = problem.weights[plane];
  const AreaWeights& weights = all.areas[piece.row_place][piece.column_place];
  const Tile& tile = piece.pixels;
  const int32_t width = tile.columns.size();
  const int32_t first = plane * pooled.plane();
  HMSA_ROLLED
  for (int32_t i = lane(); i < tile.rows.size() * width; i += kLanes) {
    const int32_t row = tile.rows.lo + i / width, column = tile.columns.lo + i % width;
    float sum = weights.constant;
    HMSA_ROLLED
    for (int dy = -kRmiReach; dy <= kRmiReach; ++dy) {
      HMSA_UNROLL
      for (int dx = -kRmiReach; dx <= kRmiReach; ++dx) {
        const int32_t y = row + dy, x = column + dx;
        if (y < 0 || y >= pooled.height || x < 0 || x >= pooled.width) continue;
        const int32_t at = first + y * pooled.pitch + x;
        sum += weights.of[0][dy + kRmiReach][dx + kRmiReach] * probability_from(pooled.probability[at], all);
        sum += weights.of[1][dy + kRmiReach][dx + kRmiReach] * pixels_from(pooled.pixels[at], all);
      }
    }
    problem.to[first + row * pooled.pitch + column] = sum;
  }
}

// Block (pieces, plane): a warp for each piece.
static __global__ void __launch_bounds__(kWarpsOfPooled* kLanes, 4)
    rmi_octave_correlate_kernel(HMSA_PARAMETER CorrelationProblem problem) {
  const int32_t number = static_cast<int32_t>(blockIdx.x) * kWarpsOfPooled + warp();
  if (number >= problem.areas.count) return;
  const PooledPiece piece = problem.areas.piece(number);
  const bool is_tile = uniform(number < problem.areas.tiles());
  for (int32_t plane = problem.planes.lo + blockIdx.y; plane < problem.planes.hi; plane += gridDim.y) {
    if (is_tile) {
      correlate_tile(problem, problem.pooled, plane, piece.pixels);
    } else {
      correlate_border(problem, problem.pooled, plane, piece);
    }
  }
}

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
