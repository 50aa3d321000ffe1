// The forward pass of chains of octaves (octave_chain.cuh).
//
// A warp goes down a plane band by band. A block owns the bands 2 r to 2 s - 1 for the rows r to s - 1 of units, and the
// first one band -1, too, so that rows have no rim: what a band reads is there from the band before it.
//
// What becomes of the fused logits is an *ending*: fuse_scales writes them out (OctaveStore below), losses and
// predictions have endings of their own. An ending is made of the problem, and has
//
//   Problem                        what the kernel gets; a ChainInputs<S>
//   Plane                          what a warp keeps of its plane between bands
//   kRegisters, kMoreBands         of a thread; bands as long as the set-up, in the estimate of the time
//   kBandsBefore                   bands that a block makes before its own (but for the first block)
//   bytes(plan)                    of shared memory, which begin at Block::kShared
//   begin(block, plane, channel)   a warp begins a plane
//   row<r>(block, plane, k, quad)  the lane's quad in row r of band k; all lanes come here, for all rows and columns,
//                                  also for those that the output does not have
//   ahead(block, k)                the warp of the attention, when it makes the factors of band k
//   together(block, k)             all warps, when all planes have been through band k; the planes of the next band may be
//                                  on their way, those of the band behind it are not
//   end(block, plane)              a warp is at the end of its plane
//
// and, where the warp of the attention shall not come to together(), which saves half of its code: kPlanesTogether, true.
#pragma once

#include "ops/cuda/octave_chain.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {

template <typename Ending, typename = void>
struct PlanesTogether : std::false_type {};
template <typename Ending>
struct PlanesTogether<Ending, std::void_t<decltype(Ending::kPlanesTogether)>>
    : std::bool_constant<Ending::kPlanesTogether> {};

// The ending of fuse_scales itself, where a quad of the output is one store.
template <typename S>
struct OctaveStore {
  using Problem = FuseScalesForward<S>;
  struct Plane {
    S* to;  // the lane's quad in the next band
  };
  static constexpr int kRegisters = 88;  // 20 warps or more fit
  static constexpr int32_t kMoreBands = 3;
  static constexpr int32_t kBandsBefore = 0;
  static int32_t bytes(const OctavePlan&) { return 0; }

  const Problem& problem;

  template <typename Block>
  HMSA_DEVICE void begin(const Block& block, Plane& plane, int64_t channel) const {
    plane.to = problem.output.at(block.image, channel, 4 * block.first_band() + 2, block.column);
  }
  template <int r, typename Block>
  HMSA_DEVICE void row(const Block& block, Plane& plane, int32_t k, const Quad<typename Block::T>& fused) const {
    const int32_t y = 4 * k + 2 + r;
    if (block.place.owned && y >= 0 && y < problem.chain.size.height) {
      store_whole(plane.to + r * problem.output.row, fused);
    }
    if (r == kOctaveBand - 1) plane.to += kOctaveBand * problem.output.row;
  }
  template <typename Block>
  HMSA_DEVICE void ahead(const Block&, int32_t) const {}
  template <typename Block>
  HMSA_DEVICE void together(const Block&, int32_t) const {}
  template <typename Block>
  HMSA_DEVICE void end(const Block&, Plane&) const {}
};

template <typename S, bool kUpper, bool kLower, typename Ending>
struct OctaveForward : OctaveChain<S, kUpper, kLower> {
  using Octaves = OctaveChain<S, kUpper, kLower>;
  using T = typename Octaves::T;
  using Octaves::column;
  using Octaves::count;
  using Octaves::factors_of;
  using Octaves::first_class;
  using Octaves::grid_row;
  using Octaves::image;
  using Octaves::kBandBytes;
  using Octaves::kLowerPlace;
  using Octaves::kRow;
  using Octaves::kUnitScale;
  using Octaves::pair_at;
  using Octaves::place;
  using Octaves::unit_rows;
  using typename Octaves::Factors;
  using typename Octaves::LowerRows;
  using typename Octaves::OwnRows;
  using typename Octaves::Source;

  using Problem = typename Ending::Problem;
  static constexpr int kRegisters = Ending::kRegisters;
  static constexpr int32_t kMoreBands = Ending::kMoreBands + Ending::kBandsBefore;
  static int32_t bytes(const OctavePlan& plan) { return Octaves::kShared + Ending::bytes(plan); }

  const Problem& problem;
  const OctavePlan& plan;
  Ending ending;

  HMSA_DEVICE OctaveForward(const Problem& of, const OctavePlan& by, int32_t part, int64_t b, int32_t which_classes)
      : Octaves(of, by, part, b, which_classes), problem(of), plan(by), ending{of} {}

  HMSA_DEVICE int32_t first_band() const { return unit_rows.lo == 0 ? -1 : 2 * unit_rows.lo - Ending::kBandsBefore; }
  HMSA_DEVICE int32_t end_band() const { return smaller(2 * unit_rows.hi, problem.chain.heads[kUnitScale].height); }

  struct Plane {
    Source own_from, above_from, lower_from;
    OwnRows own;
    Quad<T> above[2];  // rows 2 k and 2 k + 1 of the head above
    Pair<T> next_above[2];
    LowerRows lower;
    Quad<T> grid[2];  // rows 2 k and 2 k + 1 of A L on the lower grid
    typename Ending::Plane end;
  };

  // From band k on.
  HMSA_DEVICE_PHASE void start(Plane& plane, int64_t channel, int32_t k) const {
    plane.own_from = Octaves::own_source(problem.logits, channel);
    plane.own.begin(plane.own_from, k, place);
    if constexpr (kUpper) {
      plane.above_from = Octaves::source(problem.logits[0], channel, 0, column / 2);
      HMSA_UNROLL
      for (int r = 0; r < 2; ++r) {
        plane.above[r] = enlarged_by_two(plane.above_from.two_from_border(2 * k + r), place);
        plane.next_above[r] = plane.above_from.two(2 * k + 2 + r);
      }
    }
    if constexpr (kLower) {
      plane.lower_from = Octaves::lower_source(problem.logits, channel);
      plane.lower.begin(plane.lower_from, k, place);
      plane.lower.move(plane.lower_from, k, place);
    }
    ending.begin(*this, plane.end, channel);
  }

  // Row 2 k + r of A L; kBorder: it may be the one before the first.
  template <bool kBorder>
  HMSA_DEVICE Quad<T> grid_quad(const Plane& plane, int32_t k, int r) const {
    Pair<T> product = kBorder ? plane.lower.row_from_border(k, r) : plane.lower.row(k, r);
    const Pair<T> a = pair_at(grid_row(2 * k + r));
    HMSA_UNROLL
    for (int j = 0; j < 2; ++j) product.of[j] *= a.of[j];
    return enlarged_by_two(product, place);
  }

  template <int r>
  HMSA_DEVICE void go_down(Plane& plane, int32_t k, const Quad<T>& own_lower, const Quad<T> (&above)[4],
                           const Quad<T> (&grid)[4]) const {
    constexpr int kFirst = (r + 1) / 2;
    const int32_t factors = factors_of(k) + r * kRow;
    Quad<T> fused;
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      fused.of[j] = mixed(T(of_four(r)), plane.own.upper.of[j], own_lower.of[j]);
    }
    const T weight = T(of_two(r));
    if constexpr (kUpper) {
      const Quad<T> a = quad_at<T>(factors);
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        fused.of[j] = mixed(a.of[j], mixed(weight, above[kFirst].of[j], above[kFirst + 1].of[j]), fused.of[j]);
      }
    }
    if constexpr (kLower) {
      const Quad<T> keep = quad_at<T>(factors + kLowerPlace * kBandBytes);
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        fused.of[j] = keep.of[j] * fused.of[j] + mixed(weight, grid[kFirst].of[j], grid[kFirst + 1].of[j]);
      }
    }
    ending.template row<r>(*this, plane.end, k, fused);
  }

  HMSA_DEVICE_PHASE void band(Plane& plane, int32_t k) const {
    const Quad<T> own_lower = enlarged_by_four(plane.own.next, place);
    plane.own.next = plane.own_from.one(k + 2);
    Quad<T> above[4]{};
    Quad<T> grid[4]{};
    if constexpr (kUpper) {
      above[0] = plane.above[0];
      above[1] = plane.above[1];
      above[2] = enlarged_by_two(plane.next_above[0], place);
      above[3] = enlarged_by_two(plane.next_above[1], place);
      plane.next_above[0] = plane.above_from.two(2 * k + 4);
      plane.next_above[1] = plane.above_from.two(2 * k + 5);
    }
    if constexpr (kLower) {
      plane.lower.move(plane.lower_from, k + 1, place);
      grid[0] = plane.grid[0];
      grid[1] = plane.grid[1];
      grid[2] = grid_quad<false>(plane, k + 1, 0);
      grid[3] = grid_quad<false>(plane, k + 1, 1);
    }
    go_down<0>(plane, k, own_lower, above, grid);
    go_down<1>(plane, k, own_lower, above, grid);
    go_down<2>(plane, k, own_lower, above, grid);
    go_down<3>(plane, k, own_lower, above, grid);
    plane.own.upper = own_lower;
    if constexpr (kUpper) {
      plane.above[0] = above[2];
      plane.above[1] = above[3];
    }
    if constexpr (kLower) {
      plane.grid[0] = grid[2];
      plane.grid[1] = grid[3];
    }
  }

  HMSA_DEVICE void make_ahead(Factors& factors, int32_t k) const {
    Octaves::make_factors(factors, k);
    ending.ahead(*this, k);
  }

  HMSA_DEVICE void run() const {
    const int32_t end = end_band();
    if (uniform(warp() < plan.planes)) {
      const bool works = uniform(warp() < count);
      Plane plane{};
      if (works) start(plane, first_class + warp(), first_band());
      meet();
      if (kLower && works) {
        plane.grid[0] = grid_quad<true>(plane, first_band(), 0);
        plane.grid[1] = grid_quad<true>(plane, first_band(), 1);
      }
      HMSA_ROLLED
      for (int32_t k = first_band(); k < end; ++k) {
        if (works) band(plane, k);
        meet();
        ending.together(*this, k);
      }
      if (works) ending.end(*this, plane.end);
    } else {
      Factors factors{};
      Octaves::start(factors, first_band());
      make_ahead(factors, first_band());
      meet();
      HMSA_ROLLED
      for (int32_t k = first_band(); k < end; ++k) {
        if (k + 1 < end) make_ahead(factors, k + 1);
        meet();
        if constexpr (!PlanesTogether<Ending>::value) ending.together(*this, k);
      }
    }
  }
};

// One image, by a block of threads; `problem` and `plan` must be the kernel's parameters.
template <typename Block>
HMSA_DEVICE void go_down_image(const typename Block::Problem& problem, const OctavePlan& plan, int64_t b) {
  for (int32_t chunk = 0; chunk < plan.chunks; ++chunk) {
    // Anew each time: what a block starts with must not be kept in registers meanwhile.
    const Block block(problem, plan, only_here(blockIdx.x), b, chunk);
    block.run();
  }
}
// A kernel's body.
template <typename Block>
HMSA_DEVICE void go_down_octaves(const typename Block::Problem& problem, const OctavePlan& plan) {
  for (int64_t b = blockIdx.y; b < problem.batch; b += gridDim.y) go_down_image<Block>(problem, plan, b);
}

template <typename S, bool kUpper, bool kLower>
__global__ void HMSA_MOST_REGISTERS((OctaveStore<S>::kRegisters))
    fuse_scales_octave_forward_kernel(HMSA_PARAMETER FuseScalesForward<S> problem, HMSA_PARAMETER OctavePlan plan) {
  go_down_octaves<OctaveForward<S, kUpper, kLower, OctaveStore<S>>>(problem, plan);
}

// Calls start(kernel, grid, plan). False if the chain is another one, or the output lies otherwise.
template <typename S, typename Start>
bool start_octaves(const FuseScalesForward<S>& problem, const Start& start) {
  const Chain& chain = problem.chain;
  if (!is_octave(chain) || !has_short_heads(problem)) return false;
  if (!lies_in_quads(problem.output, problem.batch, problem.classes, chain.size)) return false;
  return by_kind(chain, [&](auto upper, auto lower) {
    constexpr bool kUpper = decltype(upper)::value;
    constexpr bool kLower = decltype(lower)::value;
    return start_planned<OctaveForward<S, kUpper, kLower, OctaveStore<S>>>(
        problem, true, fuse_scales_octave_forward_kernel<S, kUpper, kLower>, start);
  });
}

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
