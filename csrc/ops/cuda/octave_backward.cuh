// The backward pass of chains of octaves (octave_chain.cuh).
//
// The work is divided as in fuse_scales_backward.cu: a warp for each plane and one for the attention, bands of four rows.
// Band k ends the rows 2 k and 2 k + 1 of the lower grid and of the head above, row k of scale 1.0's head and, if it is
// even, row k / 2 - 1 of the lower head. What an adjoint gives to elements beyond the borders of a map goes to those at
// the borders.
//
// Where the incoming gradient g comes from is said by a *source*: fuse_scales reads it (StoredGradient below), losses make
// it of the fused logits where it is used, so that it exists in no memory. A source is made of the problem, and has
//
//   Problem                         what the kernel gets: ChainInputs<S>, ChainGradients<S>
//   kMakes                          whether g is made; if it is, also
//   kRegisters                      of a thread
//   kRows                           rows of numbers that the planes share, for each of the four rows of a band
//   ahead(block, k)                 the warp of the attention fills the rows of band k (shared_row), while the planes are
//                                   in band k - 1
//   row<r>(block, k, fused)         g of the lane's quad in row r of band k; all lanes come here, also for rows and
//                                   columns that the output does not have, where g is taken to be zero whatever it is
#pragma once

#include "ops/cuda/octave_chain.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {

// The adjoints: of the elements under the quad.
template <typename T>
HMSA_DEVICE T reduced_by_four(const Quad<T>& quad, const LanePlace& place) {
  const T far = before(quad.of[2]) + behind(quad.of[1]);
  const T near = before(quad.of[3]) + behind(quad.of[0]);
  return T(0.125) * far + T(0.375) * near + (place.leftmost ? T(1) : T(0.625)) * quad.of[0] +
         (place.leftmost ? T(1) : T(0.875)) * quad.of[1] + (place.rightmost ? T(1) : T(0.875)) * quad.of[2] +
         (place.rightmost ? T(1) : T(0.625)) * quad.of[3];
}
template <typename T>
HMSA_DEVICE Pair<T> reduced_by_two(const Quad<T>& quad, const LanePlace& place) {
  const T left = before(quad.of[3]);
  const T right = behind(quad.of[0]);
  return {{T(0.25) * (left + quad.of[2]) + T(0.75) * quad.of[1] + (place.leftmost ? T(1) : T(0.75)) * quad.of[0],
           T(0.25) * (quad.of[1] + right) + T(0.75) * quad.of[2] + (place.rightmost ? T(1) : T(0.75)) * quad.of[3]}};
}

// Pairs of the lower grid: two lanes have the four columns over an element of its head, which goes to the even one.
template <typename T>
HMSA_DEVICE T reduced_pairs(const Pair<T>& pair, const LanePlace& place) {
  const bool odd = lane() % 2 != 0;
  const bool border = odd ? place.rightmost : place.leftmost;
  const T outer = odd ? pair.of[1] : pair.of[0];
  const T inner = odd ? pair.of[0] : pair.of[1];
  const T own = (border ? T(1) : T(0.625)) * outer + (border ? T(1) : T(0.875)) * inner;
  const T beside = T(0.375) * outer + T(0.125) * inner;
  return own + behind(own) + before(beside) + behind(beside, 2);
}

// Sums for the rows k and k + 1 of a map that is enlarged four times. The second is zero between bands.
template <typename T>
struct FourfoldSums {
  Quad<T> first{}, second{};

  template <int r>
  HMSA_DEVICE void add(const Quad<T>& quad) {
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      first.of[j] += T(1 - of_four(r)) * quad.of[j];
      second.of[j] = T(of_four(r)) * quad.of[j] + (r == 0 ? T(0) : second.of[j]);
    }
  }
};

// Sums for the rows 2 k to 2 k + 3 of a map that is enlarged twice.
template <typename T>
struct TwofoldSums {
  Quad<T> of[4]{};

  template <int r>
  HMSA_DEVICE void add(const Quad<T>& quad) {
    constexpr int kFirst = (r + 1) / 2;
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      of[kFirst].of[j] += T(1 - of_two(r)) * quad.of[j];
      // Rows 2 and 3 of the sums begin here.
      const T so_far = kFirst == 0 || r == 2 ? of[kFirst + 1].of[j] : T(0);
      of[kFirst + 1].of[j] = T(of_two(r)) * quad.of[j] + so_far;
    }
  }
};

template <typename T>
HMSA_DEVICE void add_to(Quad<T>& quad, const Quad<T>& other) {
  HMSA_UNROLL
  for (int j = 0; j < kQuad; ++j) quad.of[j] += other.of[j];
}

// ---- a block --------------------------------------------------------------------------------------------------------

// The source of fuse_scales: g lies in memory.
template <typename S>
struct StoredGradient {
  using Problem = FuseScalesBackward<S>;
  static constexpr bool kMakes = false;
  static constexpr int32_t kRows = 0;
  const Problem& problem;
};

template <typename S, bool kUpper, bool kLower, typename Incoming>
struct OctaveBackward : OctaveChain<S, kUpper, kLower> {
  using Octaves = OctaveChain<S, kUpper, kLower>;
  using T = typename Octaves::T;
  using Octaves::chunk;
  using Octaves::column;
  using Octaves::count;
  using Octaves::element;
  using Octaves::factors_of;
  using Octaves::first_class;
  using Octaves::grid_row;
  using Octaves::grid_weight;
  using Octaves::image;
  using Octaves::kBandBytes;
  using Octaves::kLowerPlace;
  using Octaves::kLowerScale;
  using Octaves::kRow;
  using Octaves::kSums;
  using Octaves::kUnitScale;
  using Octaves::lower_source;
  using Octaves::own_source;
  using Octaves::pair_at;
  using Octaves::pair_offset;
  using Octaves::place;
  using Octaves::put_pair;
  using Octaves::quad_offset;
  using Octaves::source;
  using Octaves::unit_columns;
  using Octaves::unit_rows;
  using typename Octaves::Factors;
  using typename Octaves::LowerRows;
  using typename Octaves::OwnRows;
  using typename Octaves::Source;

  using Problem = typename Incoming::Problem;
  static constexpr bool kMakes = Incoming::kMakes;

  // Of a thread. A lone block of 20 warps fits with either number, two of 11 warps with the smaller one.
  static constexpr int kRegisters = kUpper && kLower ? 96 : 88;
  // Bands that a block goes through beyond its own, and the set-up, which is taken to last as long as three.
  static constexpr int32_t kMoreBands = 6;

  static constexpr int32_t kStoredRow = kLineColumns * static_cast<int32_t>(sizeof(S));
  // Products take the place of the rows of g that they are made of, if these have as many bytes.
  static constexpr bool kInPlace = !kMakes && sizeof(S) == sizeof(T);

  // Products: [sums][kOctaveBand] rows, and two rows of pairs on the lower grid; those of all planes together come first.
  static constexpr int32_t kProductBytes = kSums * kBandBytes + (kLower ? kRow : 0);
  static constexpr int32_t kIncoming = Octaves::kShared;  // [2][kOctaveBand][rows of the source]
  static constexpr int32_t kSummed = kIncoming + 2 * Incoming::kRows * kBandBytes;
  static constexpr int32_t kWarps = kSummed + kProductBytes;
  // From the first byte of a warp's memory, which begins with two bands of g where it is read.
  static constexpr int32_t kProducts = kMakes ? 0 : 2 * kOctaveBand * kStoredRow;
  static constexpr int32_t kParked = kProducts + kProductBytes - (kInPlace ? kBandBytes : 0);  // rows that wait
  static constexpr int32_t kParkedGrid = kUpper ? (kLower ? 3 : 2) : 0;  // the first of those of the lower grid
  static constexpr int32_t kWarpBytes = kParked + (kParkedGrid + (kLower && kMakes ? (kUpper ? 3 : 2) : 0)) * kRow;

  // Of the attention's gradients over the chunks, behind the planes: of scale 1.0's, then of the lower scale's.
  HMSA_HOST_DEVICE static int32_t totals(const OctavePlan& plan, int i) {
    const int32_t units = plan.units.height * plan.units.width * static_cast<int32_t>(sizeof(T));
    return kWarps + plan.planes * kWarpBytes + (kUpper && i == kLowerScale ? 4 * units : 0);
  }
  static int32_t bytes(const OctavePlan& plan) {
    const int32_t units = plan.units.height * plan.units.width * static_cast<int32_t>(sizeof(T));
    if (plan.chunks == 1) return kWarps + plan.planes * kWarpBytes;
    return round_up(totals(plan, kLowerScale) + (kLower ? units : 0), 16);
  }

  const Problem& problem;
  const OctavePlan& plan;
  Incoming incoming;

  HMSA_DEVICE OctaveBackward(const Problem& of, const OctavePlan& by, int32_t part, int64_t b, int32_t which_classes)
      : Octaves(of, by, part, b, which_classes), problem(of), plan(by), incoming{of} {}

  // The lane's quad in a row that the planes share.
  HMSA_DEVICE static int32_t shared_row(int32_t k, int r, int which) {
    return kIncoming + (((k & 1) * kOctaveBand + r) * Incoming::kRows + which) * kRow + quad_offset();
  }

  // Bands. Those of a lower scale begin earlier and end later, since its two resizes reach farther.
  HMSA_DEVICE int32_t first_band() const { return larger(2 * unit_rows.lo - (kLower ? 2 : 1), -1); }
  HMSA_DEVICE int32_t end_band() const { return 2 * unit_rows.hi + (kLower ? 1 : 0); }
  // Whether rows that end with band k are the block's: k of scale 1.0's head, 2 k and 2 k + 1 of the one above.
  HMSA_DEVICE bool owns(int32_t k) const {
    return k >= 2 * unit_rows.lo && k < smaller(2 * unit_rows.hi, problem.chain.heads[kUnitScale].height);
  }
  HMSA_DEVICE bool on_grid(int32_t k) const { return k >= 0 && k < problem.chain.heads[kUnitScale].height; }

  HMSA_DEVICE static int32_t memory() { return kWarps + warp() * kWarpBytes; }
  // From the first byte of a warp's memory.
  HMSA_DEVICE int32_t g_of(int32_t k) const { return (k & 1) * kOctaveBand * kStoredRow; }
  HMSA_DEVICE int32_t products_of(int which, int32_t k) const {
    return kInPlace && which == 0 ? g_of(k) : kProducts + (which - (kInPlace ? 1 : 0)) * kBandBytes;
  }
  HMSA_DEVICE int32_t grid_products() const { return products_of(kSums, 0); }

  // The head of the scale above, which its two resizes enlarge twice. The rows 2 k and 2 k + 1 wait in shared memory,
  // since registers are few.
  struct AboveRows {
    Pair<T> next[2];
  };
  HMSA_DEVICE static int32_t parked(int r) { return memory() + kParked + r * kRow + quad_offset(); }
  HMSA_DEVICE void begin(AboveRows& rows, const Source& from, int32_t k) const {
    HMSA_UNROLL
    for (int r = 0; r < 2; ++r) {
      put_quad(parked(r), enlarged_by_two(from.two_from_border(2 * k + r), place));
      rows.next[r] = from.two(2 * k + 2 + r);
    }
  }
  // A plane's rows of the lower head wait, too, if there is a head above.
  HMSA_DEVICE static void park(const LowerRows& rows) {
    if (kUpper) put_quad(parked(2), Quad<T>{{rows.upper.of[0], rows.upper.of[1], rows.lower.of[0], rows.lower.of[1]}});
  }
  HMSA_DEVICE static void unpark(LowerRows& rows) {
    if (!kUpper) return;
    const Quad<T> both = quad_at<T>(parked(2));
    rows.upper = {{both.of[0], both.of[1]}};
    rows.lower = {{both.of[2], both.of[3]}};
  }

  // ---- gradients of the heads -----------------------------------------------------------------------------------------

  // Where the lane's targets in the next row are, for each scale.
  struct Targets {
    int32_t own;
    int32_t above;
    int32_t lower;
  };

  template <bool kAttention>
  HMSA_DEVICE const MapView<S>& gradient(int i) const {
    return kAttention ? problem.grad_attention[i] : problem.grad_logits[i];
  }
  template <bool kAttention>
  HMSA_DEVICE int32_t row_stride(int i) const {
    return static_cast<int32_t>(gradient<kAttention>(i).row);
  }
  template <bool kAttention>
  HMSA_DEVICE Targets targets(int64_t channel) const {
    const auto at = [&](int i, int32_t row, int32_t first) {
      const MapView<S>& map = gradient<kAttention>(i);
      return element({map.data, map.batch, map.channel, map.row, map.column}, image, channel, row, first);
    };
    Targets to{};
    if (kUpper || !kAttention) to.own = at(kUnitScale, 2 * unit_rows.lo, column / 4);
    if (kUpper && !kAttention) to.above = at(0, 4 * unit_rows.lo, column / 2);
    if (kLower) to.lower = at(kLowerScale, unit_rows.lo, unit_columns.lo - 1 + lane() / 2);
    return to;
  }

  // Of the plane or, for the attention, of all planes so far. `target` counts the block's.
  template <bool kAttention>
  HMSA_DEVICE void write(int i, int32_t to, int32_t target, T value) const {
    if (kAttention && plan.chunks > 1) {
      T& total = shared_at<T>(totals(plan, i))[target];
      if (chunk > 0) value += total;
      total = value;
      if (chunk + 1 < plan.chunks) return;
    }
    from_arithmetic(gradient<kAttention>(i).data + to, value);
  }

  // Ends row k of a head of scale 1.0.
  template <bool kAttention>
  HMSA_DEVICE void finish_own(FourfoldSums<T>& sums, int32_t& to, int32_t k) const {
    const int32_t height = problem.chain.heads[kUnitScale].height;
    if (owns(k)) {
      if (k == height - 1) add_to(sums.first, sums.second);
      const T value = reduced_by_four(sums.first, place);
      if (gradient<kAttention>(kUnitScale).data != nullptr) {
        if (place.owned) {
          write<kAttention>(kUnitScale, to, (k - 2 * unit_rows.lo) * 2 * unit_columns.size() + lane() - 2, value);
        }
        to += row_stride<kAttention>(kUnitScale);
      }
    } else if (k < 0) {
      add_to(sums.second, sums.first);
    }
    sums.first = sums.second;
  }

  // Ends a row of the head above.
  HMSA_DEVICE void write_above(const Quad<T>& sums, int32_t& to) const {
    const MapView<S>& map = gradient<false>(0);
    const Pair<T> pair = reduced_by_two(sums, place);
    if (map.data == nullptr) return;
    if (place.owned) {
      from_arithmetic(map.data + to, pair.of[0]);
      from_arithmetic(map.data + to + static_cast<int32_t>(map.column), pair.of[1]);
    }
    to += row_stride<false>(0);
  }
  // What ends with row 0 and row 2 of the band, and what is left for the next one.
  HMSA_DEVICE void add_last(TwofoldSums<T>& sums, int32_t k, int32_t height) const {
    if (2 * k + 1 == height - 1) add_to(sums.of[1], sums.of[2]);
  }
  HMSA_DEVICE void go_on(TwofoldSums<T>& sums, int32_t k) const {
    if (k < 0) add_to(sums.of[2], sums.of[1]);
    sums.of[0] = sums.of[2];
    sums.of[1] = sums.of[3];
  }

  // Sums of pairs for the rows of the lower head around the rows 2 k and 2 k + 1 of its grid.
  struct LowerSums {
    Pair<T> first{}, second{};
    HMSA_DEVICE void add(T weight, const Pair<T>& pair) {
      HMSA_UNROLL
      for (int j = 0; j < 2; ++j) {
        first.of[j] += (T(1) - weight) * pair.of[j];
        second.of[j] += weight * pair.of[j];
      }
    }
  };
  template <bool kAttention>
  HMSA_DEVICE void finish_lower(LowerSums& sums, int32_t& to, int32_t k) const {
    if (k % 2 != 0) return;
    const int32_t m = k / 2 - 1;
    const bool last = m == problem.chain.heads[kLowerScale].height - 1;
    const bool beyond = m < 0;
    HMSA_UNROLL
    for (int j = 0; j < 2; ++j) {
      if (last) sums.first.of[j] += sums.second.of[j];
      if (beyond) sums.second.of[j] += sums.first.of[j];
    }
    if (m >= unit_rows.lo) {
      const T value = reduced_pairs(sums.first, place);
      if (gradient<kAttention>(kLowerScale).data != nullptr) {
        if (place.owned && lane() % 2 == 0) {
          write<kAttention>(kLowerScale, to, (m - unit_rows.lo) * unit_columns.size() + lane() / 2 - 1, value);
        }
        to += row_stride<kAttention>(kLowerScale);
      }
    }
    sums.first = sums.second;
    sums.second = Pair<T>{};
  }

  // A row of dLoss/d(A L) on the grid, or of R^T of the products for the attention.
  HMSA_DEVICE Pair<T> grid_pair(const Quad<T>& sums) const {
    Pair<T> pair = reduced_by_two(sums, place);
    // The columns beyond the borders have had what they give to those at the borders.
    HMSA_UNROLL
    for (int j = 0; j < 2; ++j) pair.of[j] = place.exists ? pair.of[j] : T(0);
    return pair;
  }

  // ---- the incoming gradient ------------------------------------------------------------------------------------------

  // What the output does not have is zero: rows when they are asked for, columns here, once, and so are their products.
  HMSA_DEVICE void clear_beyond() const {
    if (place.exists) return;
    HMSA_ROLLED
    for (int32_t at = 0; at < kProducts; at += kStoredRow) {
      *shared_at<StoredQuad<S>>(memory() + at + lane() * static_cast<int32_t>(sizeof(StoredQuad<S>))) = StoredQuad<S>{};
    }
    HMSA_ROLLED
    for (int32_t at = kProducts; at < kParked; at += kRow) put_quad(memory() + at + quad_offset(), Quad<T>{});
  }

  // Where the lane's quads of a plane lie, band by band.
  HMSA_DEVICE const S* first_quad(int64_t channel) const {
    if constexpr (kMakes) {
      return nullptr;
    } else {
      return problem.grad_output.at(image, channel, 4 * first_band() + 2, column);
    }
  }

  // Asks for the rows of band k.
  HMSA_DEVICE void fetch(int32_t k, const S*& quad) const {
    if constexpr (!kMakes) {
      fetch_from(k, quad);
      quad += kOctaveBand * problem.grad_output.row;
    }
  }
  HMSA_DEVICE void fetch_from(int32_t k, const S* from) const {
    constexpr auto kBytes = static_cast<int32_t>(sizeof(S));
    const MapView<const S>& grad = problem.grad_output;
    const int32_t height = problem.chain.size.height;
    const int32_t row = 4 * k + 2;
    int32_t to = memory() + g_of(k) + lane() * kQuad * kBytes;
    if (place.exists) {
      if (plan.quads && row >= 0 && row + kOctaveBand <= height) {
        HMSA_UNROLL
        for (int r = 0; r < kOctaveBand; ++r, from += grad.row) copy_async<kQuad * kBytes>(to + r * kStoredRow, from);
      } else {
        HMSA_ROLLED
        for (int r = 0; r < kOctaveBand; ++r, from += grad.row, to += kStoredRow) {
          if (row + r < 0 || row + r >= height) {
            *shared_at<StoredQuad<S>>(to) = StoredQuad<S>{};
          } else if (plan.quads) {
            copy_async<kQuad * kBytes>(to, from);
          } else {
            HMSA_UNROLL
            for (int j = 0; j < kQuad; ++j) {
              if constexpr (kBytes >= 4) {
                copy_async<kBytes>(to + j * kBytes, from + j * grad.column);
              } else {
                *shared_at<S>(to + j * kBytes) = from[j * grad.column];
              }
            }
          }
        }
      }
    }
    close_copies();
  }

  // ---- a plane --------------------------------------------------------------------------------------------------------

  struct Plane {
    Source own_from, above_from, lower_from;
    OwnRows own;
    AboveRows above;
    LowerRows lower;
    FourfoldSums<T> own_sums;
    TwofoldSums<T> above_sums;
    TwofoldSums<T> grid_sums;
    LowerSums lower_sums;
    Targets to;
    Pair<T> on_grid[2];  // rows 2 k and 2 k + 1 of L on the lower grid, unless they wait in shared memory
  };

  HMSA_DEVICE_PHASE void start(Plane& plane, int64_t channel) const {
    const int32_t k = first_band();
    plane.own_from = own_source(problem.logits, channel);
    plane.own.begin(plane.own_from, k, place);
    if (kUpper) {
      plane.above_from = source(problem.logits[0], channel, 0, column / 2);
      begin(plane.above, plane.above_from, k);
    }
    if (kLower) {
      plane.lower_from = lower_source(problem.logits, channel);
      plane.lower.begin(plane.lower_from, k, place);
      if (kMakes) plane.lower.move(plane.lower_from, k, place);
      park(plane.lower);
    }
    plane.to = targets<false>(channel);
  }

  // ---- g that is made: P needs A L of the lower grid, two rows farther than R^T is -------------------------------------

  HMSA_DEVICE static int32_t parked_grid(int r) { return parked(kParkedGrid + r); }
  HMSA_DEVICE Quad<T> blended_on_grid(Pair<T> pair, int32_t row) const {
    const Pair<T> a = pair_at(grid_row(row));
    HMSA_UNROLL
    for (int j = 0; j < 2; ++j) pair.of[j] *= a.of[j];
    return enlarged_by_two(pair, place);
  }
  // Rows of L on the lower grid wait until R^T has reached them.
  HMSA_DEVICE static void keep_on_grid(Plane& plane, const Pair<T>& first, const Pair<T>& second) {
    if constexpr (kUpper) {
      put_quad(parked_grid(2), Quad<T>{{first.of[0], first.of[1], second.of[0], second.of[1]}});
    } else {
      plane.on_grid[0] = first;
      plane.on_grid[1] = second;
    }
  }
  template <int r>
  HMSA_DEVICE static Pair<T> kept_on_grid(const Plane& plane) {
    if constexpr (kUpper) return pair_at(parked_grid(2) + r * static_cast<int32_t>(sizeof(Pair<T>)));
    return plane.on_grid[r];
  }
  // The first two rows, when A is there.
  HMSA_DEVICE void begin_grid(Plane& plane) const {
    const int32_t k = first_band();
    unpark(plane.lower);
    keep_on_grid(plane, plane.lower.row(k, 0), plane.lower.row(k, 1));
    HMSA_UNROLL
    for (int r = 0; r < 2; ++r) {
      put_quad(parked_grid(r), blended_on_grid(plane.lower.row_from_border(k, r), 2 * k + r));
    }
  }

  // A row of the band: products for the attention, and sums for the heads.
  template <int r>
  HMSA_DEVICE void go_down(Plane& plane, int32_t k, const Quad<T>& own_lower, const Quad<T> (&above_rows)[4],
                           const Quad<T> (&grid_rows)[4], int32_t g_at, int32_t factors, int32_t products,
                           int32_t last_products) const {
    constexpr int kFirst = (r + 1) / 2;
    Quad<T> so_far;  // P before the lower scale is blended in
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) so_far.of[j] = mixed(T(of_four(r)), plane.own.upper.of[j], own_lower.of[j]);
    Quad<T> a, difference;  // A, and what the blending of scale 1.0 makes of a change of A
    if constexpr (kUpper) {
      a = quad_at<T>(factors + r * kRow);
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        const T above = mixed(T(of_two(r)), above_rows[kFirst].of[j], above_rows[kFirst + 1].of[j]);
        difference.of[j] = so_far.of[j] - above;
        so_far.of[j] = mixed(a.of[j], above, so_far.of[j]);
      }
    }
    Quad<T> keep;
    if constexpr (kLower) keep = quad_at<T>(factors + kLowerPlace * kBandBytes + r * kRow);
    Quad<T> g;
    if constexpr (kMakes) {
      Quad<T> fused = so_far;
      if constexpr (kLower) {
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) {
          fused.of[j] =
              keep.of[j] * fused.of[j] + mixed(T(of_two(r)), grid_rows[kFirst].of[j], grid_rows[kFirst + 1].of[j]);
        }
      }
      g = incoming.template row<r>(*this, k, fused);
      const int32_t row = 4 * k + 2 + r;
      if (!place.exists || row < 0 || row >= problem.chain.size.height) g = Quad<T>{};
    } else {
      g = load_whole(shared_at<const S>(g_at + r * kStoredRow));
    }
    Quad<T> part = g;
    if constexpr (kLower) times(part, keep);
    if constexpr (kUpper) {
      times(difference, g);
      if (place.exists) put_quad(products + r * kRow, difference);
      Quad<T> above_part;
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        above_part.of[j] = (T(1) - a.of[j]) * part.of[j];
        part.of[j] *= a.of[j];
      }
      plane.above_sums.template add<r>(above_part);
    }
    plane.own_sums.template add<r>(part);
    if constexpr (kLower) {
      times(so_far, g);
      if (place.exists) put_quad(last_products + r * kRow, so_far);
      plane.grid_sums.template add<r>(g);
    }
  }

  HMSA_DEVICE void finish_above(Plane& plane, const Quad<T>& sums, int32_t k) const {
    if (owns(k)) write_above(sums, plane.to.above);
  }
  template <int r>
  HMSA_DEVICE void finish_grid(Plane& plane, const Quad<T>& sums, int32_t k) const {
    if (!on_grid(k)) return;
    Pair<T> pair = grid_pair(sums);
    const Pair<T> a = pair_at(grid_row(2 * k + r));
    Pair<T> product;
    if constexpr (kMakes) {
      product = kept_on_grid<r>(plane);
    } else {
      unpark(plane.lower);
      product = plane.lower.row(k, r);
    }
    HMSA_UNROLL
    for (int j = 0; j < 2; ++j) {
      product.of[j] *= pair.of[j];
      pair.of[j] *= a.of[j];
    }
    put_pair(memory() + grid_products() + r * (kRow / 2) + pair_offset(), product);
    plane.lower_sums.add(grid_weight(k, r), pair);
  }

  HMSA_DEVICE_PHASE void plane_band(Plane& plane, int32_t k) const {
    const Quad<T> own_lower = enlarged_by_four(plane.own.next, place);
    plane.own.next = plane.own_from.one(k + 2);
    Quad<T> above_rows[4];
    if constexpr (kUpper) {
      above_rows[0] = quad_at<T>(parked(0));
      above_rows[1] = quad_at<T>(parked(1));
    }
    // Only now: registers are few.
    const auto next_above = [&](int r) {
      above_rows[2 + r] = enlarged_by_two(plane.above.next[r], place);
      put_quad(parked(r), above_rows[2 + r]);
      plane.above.next[r] = plane.above_from.two(2 * k + 4 + r);
    };
    // For the grid's rows of this band or, where P is made, of the next one.
    const int32_t ahead = kMakes ? k + 1 : k;
    if (kLower && ahead % 2 != 0) {
      unpark(plane.lower);
      plane.lower.move(plane.lower_from, ahead, place);
      park(plane.lower);
    }
    Quad<T> grid_rows[4];
    Pair<T> next_on_grid[2];
    if constexpr (kLower && kMakes) {
      grid_rows[0] = quad_at<T>(parked_grid(0));
      grid_rows[1] = quad_at<T>(parked_grid(1));
    }
    const auto next_grid = [&](int r) {
      if constexpr (kLower && kMakes) {
        unpark(plane.lower);
        next_on_grid[r] = plane.lower.row(k + 1, r);
        grid_rows[2 + r] = blended_on_grid(next_on_grid[r], 2 * k + 2 + r);
        put_quad(parked_grid(r), grid_rows[2 + r]);
      }
    };
    const int32_t memory = this->memory();
    const int32_t g_at = memory + g_of(k) + lane() * static_cast<int32_t>(sizeof(StoredQuad<S>));
    const int32_t factors = factors_of(k);
    const int32_t products = memory + products_of(0, k) + quad_offset();
    const int32_t last_products = memory + products_of(kSums - 1, k) + quad_offset();
    const int32_t above_height = kUpper ? problem.chain.heads[0].height : 0;
    const int32_t grid_height = kLower ? problem.chain.grids[kLowerScale].height : 0;
    go_down<0>(plane, k, own_lower, above_rows, grid_rows, g_at, factors, products, last_products);
    if (kUpper) finish_above(plane, plane.above_sums.of[0], k);
    if constexpr (kLower) finish_grid<0>(plane, plane.grid_sums.of[0], k);
    if constexpr (kUpper) next_above(0);
    next_grid(0);
    go_down<1>(plane, k, own_lower, above_rows, grid_rows, g_at, factors, products, last_products);
    go_down<2>(plane, k, own_lower, above_rows, grid_rows, g_at, factors, products, last_products);
    if (kUpper) {
      add_last(plane.above_sums, k, above_height);
      finish_above(plane, plane.above_sums.of[1], k);
    }
    if constexpr (kLower) {
      add_last(plane.grid_sums, k, grid_height);
      finish_grid<1>(plane, plane.grid_sums.of[1], k);
      finish_lower<false>(plane.lower_sums, plane.to.lower, k);
    }
    if constexpr (kUpper) next_above(1);
    next_grid(1);
    go_down<3>(plane, k, own_lower, above_rows, grid_rows, g_at, factors, products, last_products);
    finish_own<false>(plane.own_sums, plane.to.own, k);
    plane.own.upper = own_lower;
    if constexpr (kLower && kMakes) {
      keep_on_grid(plane, next_on_grid[0], next_on_grid[1]);
    }
    if (kUpper) go_on(plane.above_sums, k);
    if (kLower) go_on(plane.grid_sums, k);
  }

  // ---- the attention --------------------------------------------------------------------------------------------------

  struct Attention {
    Factors factors;  // of the bands that come
    // Gradients of those that the planes have been through.
    FourfoldSums<T> own_sums;
    TwofoldSums<T> grid_sums;
    LowerSums lower_sums;
    Targets to;
  };

  template <int r>
  HMSA_DEVICE void go_down(Attention& attention, int32_t k) const {
    const int32_t at = kSummed + quad_offset() + r * kRow;
    if constexpr (kUpper) {
      Quad<T> part = quad_at<T>(at);
      if (kLower) times(part, quad_at<T>(factors_of(k) + kLowerPlace * kBandBytes + r * kRow));
      attention.own_sums.template add<r>(part);
    }
    if constexpr (kLower) attention.grid_sums.template add<r>(quad_at<T>(at + kLowerPlace * kBandBytes));
  }
  template <int r>
  HMSA_DEVICE void finish_grid(Attention& attention, const Quad<T>& sums, int32_t k) const {
    if (!on_grid(k)) return;
    Pair<T> pair = grid_pair(sums);
    const Pair<T> products = pair_at(kSummed + kSums * kBandBytes + r * (kRow / 2) + pair_offset());
    HMSA_UNROLL
    for (int j = 0; j < 2; ++j) pair.of[j] = products.of[j] - pair.of[j];
    attention.lower_sums.add(grid_weight(k, r), pair);
  }

  // The gradients of a band whose products are summed.
  HMSA_DEVICE_PHASE void attention_band(Attention& attention, int32_t k) const {
    go_down<0>(attention, k);
    if constexpr (kLower) finish_grid<0>(attention, attention.grid_sums.of[0], k);
    go_down<1>(attention, k);
    go_down<2>(attention, k);
    if constexpr (kLower) {
      add_last(attention.grid_sums, k, problem.chain.grids[kLowerScale].height);
      finish_grid<1>(attention, attention.grid_sums.of[1], k);
      finish_lower<true>(attention.lower_sums, attention.to.lower, k);
    }
    go_down<3>(attention, k);
    if (kUpper) finish_own<true>(attention.own_sums, attention.to.own, k);
    if (kLower) go_on(attention.grid_sums, k);
  }

  // ---- all together ---------------------------------------------------------------------------------------------------

  // Products of a band summed over the planes: two columns for each thread.
  HMSA_DEVICE_PHASE void sum_products(int32_t k) const {
    constexpr int32_t kPairs = kLineColumns / 2;
    constexpr int32_t kRows = kSums * kOctaveBand + (kLower ? 1 : 0);
    HMSA_ROLLED
    for (int32_t n = thread(); n < kRows * kPairs; n += threads()) {
      const int32_t at = n * static_cast<int32_t>(sizeof(Pair<T>));
      int32_t from = kWarps + at;
      from += at < kBandBytes ? products_of(0, k) : products_of(1, k) - kBandBytes;
      Pair<T> sum{};
      HMSA_UNROLL_BY(4)
      for (int32_t p = 0; p < count; ++p, from += kWarpBytes) {
        const Pair<T> product = pair_at(from);
        sum.of[0] += product.of[0];
        sum.of[1] += product.of[1];
      }
      put_pair(kSummed + at, sum);
    }
  }

  HMSA_DEVICE void run() const {
    if (uniform(warp() < plan.planes)) {
      run_plane();
    } else {
      run_attention();
    }
  }

  HMSA_DEVICE_PHASE void run_plane() const {
    const bool works = uniform(warp() < count);
    const int32_t end = end_band();
    const int64_t channel = first_class + warp();
    const S* from = first_quad(channel);
    Plane plane{};
    if (works) {
      start(plane, channel);
      clear_beyond();
      fetch(first_band(), from);
    }
    meet();
    if (kLower && kMakes && works) begin_grid(plane);
    HMSA_ROLLED
    for (int32_t k = first_band(); k <= end; ++k) {
      if (works && k < end) {
        if constexpr (!kMakes) {
          if (k + 1 < end) {
            fetch(k + 1, from);
          } else {
            close_copies();
          }
          await_copies();
        }
        plane_band(plane, k);
      }
      finish_band(k, k < end);
    }
  }

  HMSA_DEVICE void make_ahead(Factors& factors, int32_t k) const {
    Octaves::make_factors(factors, k);
    if constexpr (kMakes) incoming.ahead(*this, k);
  }

  HMSA_DEVICE_PHASE void run_attention() const {
    const int32_t end = end_band();
    Attention attention{};
    Octaves::start(attention.factors, first_band());
    attention.to = targets<true>(0);
    make_ahead(attention.factors, first_band());
    meet();
    HMSA_ROLLED
    for (int32_t k = first_band(); k <= end; ++k) {
      if (k > first_band()) attention_band(attention, k - 1);
      if (k + 1 < end) make_ahead(attention.factors, k + 1);
      finish_band(k, k < end);
    }
  }

  HMSA_DEVICE void finish_band(int32_t k, bool has_products) const {
    meet();
    if (has_products) {
      sum_products(k);
      meet();
    }
  }
};

// ---- the launch -----------------------------------------------------------------------------------------------------

// A kernel's body; `problem` and `plan` must be its parameters.
template <typename Block>
HMSA_DEVICE void go_back_octaves(const typename Block::Problem& problem, const OctavePlan& plan) {
  for (int64_t b = blockIdx.y; b < problem.batch; b += gridDim.y) {
    for (int32_t chunk = 0; chunk < plan.chunks; ++chunk) {
      // Anew each time: what a block starts with must not be kept in registers meanwhile.
      const Block block(problem, plan, only_here(blockIdx.x), b, chunk);
      block.run();
      __syncthreads();
    }
  }
}

template <typename S, bool kUpper, bool kLower>
__global__ void HMSA_MOST_REGISTERS((OctaveBackward<S, kUpper, kLower, StoredGradient<S>>::kRegisters))
    fuse_scales_octave_backward_kernel(HMSA_PARAMETER FuseScalesBackward<S> problem, HMSA_PARAMETER OctavePlan plan) {
  go_back_octaves<OctaveBackward<S, kUpper, kLower, StoredGradient<S>>>(problem, plan);
}

// Whether elements of heads and gradients can be counted in 32 bits.
template <typename S>
bool has_short_maps(const ChainInputs<S>& inputs, const ChainGradients<S>& gradients) {
  const Chain& chain = inputs.chain;
  if (!has_short_heads(inputs)) return false;
  for (int i = 0; i < chain.count; ++i) {
    if (!is_short(gradients.grad_logits[i], inputs.batch, inputs.classes, chain.heads[i])) return false;
    if (!is_short(gradients.grad_attention[i], inputs.batch, 1, chain.heads[i])) return false;
  }
  return true;
}

// Calls start(kernel, grid, plan). False if the chain is another one.
template <typename S, typename Start>
bool start_octaves(const FuseScalesBackward<S>& problem, const Start& start) {
  if (!is_octave(problem.chain) || !has_short_maps<S>(problem, problem)) return false;
  return by_kind(problem.chain, [&](auto upper, auto lower) {
    constexpr bool kUpper = decltype(upper)::value;
    constexpr bool kLower = decltype(lower)::value;
    return start_planned<OctaveBackward<S, kUpper, kLower, StoredGradient<S>>>(
        problem, lies_in_quads(problem.grad_output, problem.batch, problem.classes, problem.chain.size),
        fuse_scales_octave_backward_kernel<S, kUpper, kLower>, start);
  });
}

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
