// Region mutual information: moments of the neighbourhoods, from pooled probabilities and labels (octave_rmi.cuh).
//
// An entry of a covariance is the sum of products of two pooled pixels that lie so and so to each other, over nearly the
// whole plane: which products of the borders belong to it depends on where the two lie in the neighbourhood. So the
// products of every distance are summed once, 51 of them in place of 171, for each of the areas of pooled_areas.cuh. An
// entry then takes nine areas of the 25.
//
// Of two pooled pixels, the one that is called the centre has the area: the lower one, or the one to the right; of a
// probability and a label in one row the probability.
//
// All sums are of integers, and exact. n times the covariance is n sum(a b) - sum(a) sum(b): what double rounds off here
// is 1e-16 of the number of neighbourhoods, 2e-11 for a thousand rows of two thousand pixels.
#pragma once

#include "ops/cuda/block_sum.cuh"
#include "ops/cuda/pooled_areas.cuh"
#include "ops/cuda/workspace.h"

namespace hmsa {
namespace cuda {
namespace fuse {

constexpr int kRowsAbove = kRmiReach;
// Distances from a centre to the rest of its row on the left, itself among it, and to two rows above.
constexpr int kAlike = 1 + kRmiReach + kRowsAbove * kRmiTaps;
// From probabilities to labels: all of the row and two rows above, and from labels to probabilities two rows above.
constexpr int kUnlike = (1 + 2 * kRowsAbove) * kRmiTaps;
constexpr int kRmiSums = 2 * kAlike + kUnlike + 2;

HMSA_HOST_DEVICE constexpr int alike(int rows_above, int columns_right) {
  return rows_above == 0 ? -columns_right : 1 + kRmiReach + (rows_above - 1) * kRmiTaps + columns_right + kRmiReach;
}
HMSA_HOST_DEVICE constexpr int label_above(int rows_above, int columns_right) {
  return rows_above * kRmiTaps + columns_right + kRmiReach;
}
HMSA_HOST_DEVICE constexpr int probability_above(int rows_above, int columns_right) {
  return (kRowsAbove + rows_above) * kRmiTaps + columns_right + kRmiReach;
}

// Sums of products of a lane.
struct RmiProducts {
  uint64_t probabilities[kAlike]{};
  uint64_t mixed[kUnlike]{};
  uint32_t labels[kAlike]{};
  uint64_t probability = 0;
  uint32_t pixels = 0;

  // Adds those of a centre. Of the pooled pixel so many rows above and columns to the right of it, probability_of(dy, dx)
  // and pixels_of(dy, dx).
  template <typename ProbabilityOf, typename PixelsOf>
  HMSA_DEVICE void add(uint32_t p, uint32_t y, const ProbabilityOf& probability_of, const PixelsOf& pixels_of) {
    HMSA_UNROLL
    for (int dy = 0; dy <= kRowsAbove; ++dy) {
      HMSA_UNROLL
      for (int dx = -kRmiReach; dx <= kRmiReach; ++dx) {
        const uint32_t other_p = probability_of(dy, dx), other_y = pixels_of(dy, dx);
        mixed[label_above(dy, dx)] += static_cast<uint64_t>(p) * other_y;
        if (dy == 0 && dx > 0) continue;
        probabilities[alike(dy, dx)] += static_cast<uint64_t>(p) * other_p;
        labels[alike(dy, dx)] += y * other_y;
        if (dy > 0) mixed[probability_above(dy, dx)] += static_cast<uint64_t>(y) * other_p;
      }
    }
  }

  // In the order of all sums of an area.
  HMSA_DEVICE uint64_t sum(int i) const {
    if (i < kAlike) return probabilities[i];
    if (i < 2 * kAlike) return labels[i - kAlike];
    if (i < 2 * kAlike + kUnlike) return mixed[i - 2 * kAlike];
    return i == 2 * kAlike + kUnlike ? probability : i == kRmiSums - 1 ? pixels : 0;
  }
};

struct PooledMoments {
  PooledMaps pooled;
  PooledAreas areas;
  int32_t planes;
  uint64_t* pieces;  // [planes][areas.count][kRmiSums]
};

// A tile of the middle: a lane goes down four columns.
HMSA_DEVICE void add_tile(RmiProducts& products, const PooledMaps& pooled, int32_t plane, const Tile& tile) {
  const int32_t column = tile.columns.lo - kRmiReach + lane() * kQuad;
  const int32_t centres = tile.columns.hi - column - kRmiReach;
  const PooledColumns columns(pooled, plane, column, centres > 0);
  PooledRow above[kRowsAbove];  // the last one is the nearest
  HMSA_UNROLL
  for (int i = 0; i < kRowsAbove; ++i) {
    above[i] = PooledColumns::unpacked(columns.load(tile.rows.lo - kRowsAbove + i));
  }
  PooledColumns::Loaded next = columns.load(tile.rows.lo);
  HMSA_UNROLL_BY(3)
  for (int32_t row = tile.rows.lo; row < tile.rows.hi; ++row) {
    const PooledRow here = PooledColumns::unpacked(next);
    if (row + 1 < tile.rows.hi) next = columns.load(row + 1);
    uint32_t all = 0;
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const uint32_t p = j < centres ? here.probability[j + kRmiReach] : 0;
      const uint32_t y = j < centres ? here.pixels[j + kRmiReach] : 0;
      const auto row_of = [&](int dy) -> const PooledRow& { return dy == 0 ? here : above[kRowsAbove - dy]; };
      products.add(
          p, y, [&](int dy, int dx) { return row_of(dy).probability[j + kRmiReach + dx]; },
          [&](int dy, int dx) { return row_of(dy).pixels[j + kRmiReach + dx]; });
      all += p;
      products.pixels += y;
    }
    products.probability += all;
    HMSA_UNROLL
    for (int i = 0; i + 1 < kRowsAbove; ++i) above[i] = above[i + 1];
    above[kRowsAbove - 1] = here;
  }
}

// A part of a border: a lane takes one pooled pixel after the other. What the plane does not have is 0; no entry that needs
// it takes this area.
HMSA_DEVICE void add_border(RmiProducts& products, const PooledMaps& pooled, int32_t plane, const Tile& tile) {
  const int32_t width = tile.columns.size();
  const int32_t first = plane * pooled.plane();
  HMSA_ROLLED
  for (int32_t i = lane(); i < tile.rows.size() * width; i += kLanes) {
    const int32_t row = tile.rows.lo + i / width, column = tile.columns.lo + i % width;
    const auto at = [&](const auto* map, int dy, int dx) -> uint32_t {
      const bool exists = row - dy >= 0 && column + dx >= 0 && column + dx < pooled.width;
      return exists ? map[first + (row - dy) * pooled.pitch + column + dx] : 0;
    };
    const uint32_t p = at(pooled.probability, 0, 0), y = at(pooled.pixels, 0, 0);
    products.add(
        p, y, [&](int dy, int dx) { return at(pooled.probability, dy, dx); },
        [&](int dy, int dx) { return at(pooled.pixels, dy, dx); });
    products.probability += p;
    products.pixels += y;
  }
}

constexpr int kSumsAtOnce = (kRmiSums + 1) / 2;
static_assert(kSumsAtOnce <= kLanes, "a lane for each");

// The sums of the lanes of a warp.
HMSA_DEVICE void store_sums(const RmiProducts& products, uint64_t* to) {
  HMSA_SHARED(uint64_t, sums, [kWarpsOfPooled][kSumsAtOnce][kLanes + 1]);
  HMSA_UNROLL
  for (int half = 0; half < 2; ++half) {
    HMSA_UNROLL
    for (int i = 0; i < kSumsAtOnce; ++i) sums[warp()][i][lane()] = products.sum(half * kSumsAtOnce + i);
    __syncwarp();
    const int number = half * kSumsAtOnce + lane();
    if (lane() < kSumsAtOnce && number < kRmiSums) {
      uint64_t sum = 0;
      HMSA_UNROLL_BY(8)
      for (int i = 0; i < kLanes; ++i) sum += sums[warp()][lane()][i];
      to[number] = sum;
    }
    __syncwarp();
  }
}

// Block (pieces, plane): a warp for each piece.
static __global__ void __launch_bounds__(kWarpsOfPooled* kLanes, 3)
    rmi_octave_products_kernel(HMSA_PARAMETER PooledMoments problem) {
  const int32_t number = static_cast<int32_t>(blockIdx.x) * kWarpsOfPooled + warp();
  if (number >= problem.areas.count) return;
  const PooledPiece piece = problem.areas.piece(number);
  const bool is_tile = uniform(number < problem.areas.tiles());
  for (int32_t plane = blockIdx.y; plane < problem.planes; plane += gridDim.y) {
    RmiProducts products;
    if (is_tile) {
      add_tile(products, problem.pooled, plane, piece.pixels);
    } else {
      add_border(products, problem.pooled, plane, piece.pixels);
    }
    store_sums(products, problem.pieces + (static_cast<int64_t>(plane) * problem.areas.count + number) * kRmiSums);
  }
}

// ---- moments of a plane ---------------------------------------------------------------------------------------------

struct MomentsResults {
  const PlaneSums* sums;  // [images][blocks][classes]
  int32_t blocks;
  int32_t images, classes;
  int64_t first_image, first_class, all_classes;
  PlaneSums* totals;  // [B, C]
  // Null where the moments are not wanted:
  const uint64_t* pieces;
  PooledAreas areas;
  double* mean;        // [B, C, 18]
  double* covariance;  // [B, C, 18, 18]
};

// Which sum is that of entry (a, b), a <= b, and where in the neighbourhood its centre lies.
struct RmiEntry {
  int32_t sum, row, column;

  HMSA_DEVICE RmiEntry(int32_t a, int32_t b) {
    const int32_t first_row = a % kRmiHalf / kRmiSide, first_column = a % kRmiSide;
    const int32_t second_row = b % kRmiHalf / kRmiSide, second_column = b % kRmiSide;
    const bool is_mixed = a < kRmiHalf && b >= kRmiHalf;
    const int32_t down = second_row - first_row, right = second_column - first_column;
    if (is_mixed && down <= 0) {  // the centre is the probability
      sum = 2 * kAlike + label_above(-down, right);
      row = first_row;
      column = first_column;
      return;
    }
    row = second_row;
    column = second_column;
    sum = is_mixed ? 2 * kAlike + probability_above(down, -right) : alike(down, -right) + (a < kRmiHalf ? 0 : kAlike);
  }
};

// Block (class, image).
static __global__ void __launch_bounds__(kSumThreads) rmi_octave_moments_kernel(HMSA_PARAMETER MomentsResults problem) {
  constexpr int kShares = kSumThreads / kRmiSums;  // of the pieces of an area, added up by a thread each
  HMSA_SHARED(double, areas, [kPlaces][kPlaces][kRmiSums]);
  HMSA_SHARED(double, shares, [kShares][kRmiSums]);
  HMSA_SHARED(double, means, [kRmiVector]);
  const int32_t t = thread();
  for (int32_t image = blockIdx.y; image < problem.images; image += gridDim.y) {
    for (int32_t c = blockIdx.x; c < problem.classes; c += gridDim.x) {
      double sums[2] = {0, 0};
      for (int32_t block = t; block < problem.blocks; block += kSumThreads) {
        const PlaneSums& of =
            problem.sums[(static_cast<int64_t>(image) * problem.blocks + block) * problem.classes + c];
        sums[0] += of.loss;
        sums[1] += of.pixels;
      }
      const double loss = block_sum(sums[0], t);
      const double pixels = block_sum(sums[1], t);
      const int64_t at = (problem.first_image + image) * problem.all_classes + problem.first_class + c;
      if (t == 0) problem.totals[at] = {loss, pixels};
      if (problem.pieces == nullptr) continue;
      const uint64_t* pieces =
          problem.pieces + (static_cast<int64_t>(image) * problem.classes + c) * problem.areas.count * kRmiSums;
      const int32_t i = t % kRmiSums, share = t / kRmiSums;
      const auto sum_of = [&](Range range, int32_t first, int32_t step) {
        double sum = 0;
        HMSA_UNROLL_BY(4)
        for (int32_t n = range.lo + first; n < range.hi; n += step)
          sum += static_cast<double>(pieces[n * kRmiSums + i]);
        return sum;
      };
      if (share < kShares) {
        shares[share][i] = sum_of(problem.areas.pieces(kMiddle, kMiddle), share, kShares);
        for (int32_t n = share; n < kPlaces * kPlaces; n += kShares) {
          const int32_t row = n / kPlaces, column = n % kPlaces;
          if (row != kMiddle || column != kMiddle)
            areas[row][column][i] = sum_of(problem.areas.pieces(row, column), 0, 1);
        }
      }
      __syncthreads();
      if (t < kRmiSums) {
        double sum = 0;
        for (int n = 0; n < kShares; ++n) sum += shares[n][t];
        areas[kMiddle][kMiddle][t] = sum;
      }
      __syncthreads();
      // A neighbourhood's pixel with so many others above it, and to the left, is in three places of the five.
      const auto sum_at = [&](int32_t sum, int32_t row, int32_t column) {
        double all = 0;
        for (int32_t y = row; y < row + kRmiSide; ++y) {
          for (int32_t x = column; x < column + kRmiSide; ++x) all += areas[y][x][sum];
        }
        return all;
      };
      constexpr double kUnits[2] = {1.0 / (1 << kProbabilityBits), 1.0 / kRmiWindow};
      const double count = static_cast<double>(problem.areas.height - (kRmiSide - 1)) *
                           static_cast<double>(problem.areas.width - (kRmiSide - 1));
      // A NaN among the logits is one in the loss; integers cannot carry it.
      const double spoiled = isnan(loss) ? static_cast<double>(NAN) : 0.0;
      if (t < kRmiVector) {
        const double sum = sum_at(2 * kAlike + kUnlike + t / kRmiHalf, t % kRmiHalf / kRmiSide, t % kRmiSide);
        means[t] = sum / count;
        problem.mean[at * kRmiVector + t] = sum / count * kUnits[t / kRmiHalf] + spoiled;
      }
      __syncthreads();
      if (t < kRmiProducts) {
        int32_t a = 0, b = 0;
        rmi_entries(t, a, b);
        const RmiEntry entry(a, b);
        const double sum = sum_at(entry.sum, entry.row, entry.column) - means[a] * means[b] * count;
        const double value = sum * kUnits[a / kRmiHalf] * kUnits[b / kRmiHalf] + spoiled;
        double* covariance = problem.covariance + at * kRmiVector * kRmiVector;
        covariance[a * kRmiVector + b] = value;
        covariance[b * kRmiVector + a] = value;
      }
      __syncthreads();  // before the next class
    }
  }
}

// One block.
static __global__ void rmi_octave_totals_kernel(const PlaneSums* totals, int64_t count, double* bce, double* valid) {
  double sums[2] = {0, 0};
  for (int64_t k = thread(); k < count; k += kSumThreads) {
    sums[0] += totals[k].loss;
    sums[1] += totals[k].pixels;
  }
  const double loss = block_sum(sums[0], thread());
  const double pixels = block_sum(sums[1], thread());
  if (thread() != 0) return;
  *bce = loss;
  *valid = pixels;
}

// ---- the host -------------------------------------------------------------------------------------------------------

struct OctaveMomentsPlan {
  OctavePlan pool;
  PooledMaps pooled;
  PooledAreas areas;
  bool moments;
  int32_t images, classes;                            // at a time
  int64_t totals, sums, probability, pieces, pixels;  // bytes

  int32_t blocks() const { return pool.parts.height * pool.parts.width; }
  int64_t bytes() const { return totals + sums + probability + pieces + pixels; }
};

// How the work is divided; false if the chain is another one, or if not even a class of an image fits the workspace.
template <typename S>
bool plan_octave_moments(const FuseScalesRmiForward<S>& problem, int64_t most, OctaveMomentsPlan& plan) {
  plan = OctaveMomentsPlan{};
  if (!pools_octaves(problem, problem.classes)) return false;
  plan.moments = problem.covariance != nullptr;
  plan.pooled = pooled_maps(problem.chain.size);
  plan.areas = pooled_areas(plan.pooled.height, plan.pooled.width);
  plan.images = static_cast<int32_t>(problem.batch);
  plan.classes = static_cast<int32_t>(problem.classes);
  plan.totals = problem.batch * problem.classes * static_cast<int64_t>(sizeof(PlaneSums));
  while (true) {
    ChainInputs<S> part = problem;
    part.batch = plan.images;
    part.classes = plan.classes;
    if (!plan_pool(part, plan.pool)) return false;
    const int64_t planes = static_cast<int64_t>(plan.images) * plan.classes;
    plan.sums = planes * plan.blocks() * static_cast<int64_t>(sizeof(PlaneSums));
    if (plan.moments) {
      plan.probability = planes * plan.pooled.plane() * static_cast<int64_t>(sizeof(uint32_t));
      plan.pixels = whole_quads(planes * plan.pooled.plane());
      plan.pieces = whole_quads(planes * plan.areas.count * kRmiSums * static_cast<int64_t>(sizeof(uint64_t)));
    }
    if (plan.bytes() <= most) return true;
    if (plan.images == 1 && plan.classes == 1) return false;
    int32_t& several = plan.images > 1 ? plan.images : plan.classes;
    several = divide_up(several, 2);
  }
}

template <typename S>
void launch_octave_moments(const FuseScalesRmiForward<S>& problem, const OctaveMomentsPlan& plan, void* workspace,
                           StreamHandle stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  WorkspaceParts memory(workspace);
  auto* totals = memory.take<PlaneSums>(plan.totals);
  auto* sums = memory.take<PlaneSums>(plan.sums);
  PooledMaps pooled = plan.pooled;
  uint64_t* pieces = nullptr;
  if (plan.moments) {
    pooled.probability = memory.take<uint32_t>(plan.probability);
    pieces = memory.take<uint64_t>(plan.pieces);
    pooled.pixels = memory.take<uint8_t>(plan.pixels);
  }
  const auto grid_side = [](int32_t count) { return static_cast<unsigned>(smaller(count, 65535)); };
  const auto some = [](int32_t lo, int32_t size, int64_t all) {
    return Range{lo, smaller(lo + size, static_cast<int32_t>(all))};
  };
  for (int32_t b = 0; b < problem.batch; b += plan.images) {
    for (int32_t c = 0; c < problem.classes; c += plan.classes) {
      const Range images = some(b, plan.images, problem.batch), classes = some(c, plan.classes, problem.classes);
      const PooledChain<S> part{part_of_inputs<S>(problem, images, classes),
                                problem.labels,
                                problem.ignore_index,
                                b,
                                c,
                                problem.classes,
                                pooled,
                                sums};
      launch_pool(part, plan.pool, stream_handle);
      const int32_t planes = images.size() * classes.size();
      if (plan.moments) {
        const PooledMoments moments{pooled, plan.areas, planes, pieces};
        HMSA_LAUNCH(rmi_octave_products_kernel,
                    dim3(static_cast<unsigned>(divide_up(plan.areas.count, kWarpsOfPooled)), grid_side(planes)),
                    dim3(kWarpsOfPooled * kLanes), 0, stream, moments);
      }
      const MomentsResults results{
          sums,   plan.blocks(), images.size(), classes.size(),    b, c, problem.classes, totals,
          pieces, plan.areas,    problem.mean,  problem.covariance};
      HMSA_LAUNCH(rmi_octave_moments_kernel, dim3(grid_side(classes.size()), grid_side(images.size())),
                  dim3(kSumThreads), 0, stream, results);
    }
  }
  HMSA_LAUNCH(rmi_octave_totals_kernel, dim3(1), dim3(kSumThreads), 0, stream, totals, problem.batch * problem.classes,
              problem.bce, problem.valid);
}

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
