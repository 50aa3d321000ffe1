// Labels alone from chains of octaves: classes that cannot win anywhere in a block's part of the image are not fused.
//
// The rule and why it holds: ops/cpu/class_candidates.h. Class c cannot win where another class exceeds it by a margin at
// every element that the part reads. What is different here:
//
//   - An element passes through less than 32 roundings for each scale on its way to a fused logit. A resize along an axis
//     has two, or three where nothing is contracted (its weights are exact); there are four of them at most, and three
//     roundings where maps meet. A and 1 - R A are rounded, too, but are the same numbers for all classes.
//   - At the first row and column 0 times an element is added, which changes nothing, since all elements are finite.
//   - Half types are float in the arithmetic.
//   - Classes that stay all go through the same instructions, and are compared in the same order: ties, and near ties
//     within the margin, end as ever.
//
// All classes stay if there is attention outside of [0, 1], NaN, or a logit that is infinite or so large that a sum could
// overflow; and if the classes are taken in several chunks.
//
// A block first looks at a sample: the elements that its warps have just read for their first band. Where more classes
// than a few could win by these, as among random logits, nothing more is looked for, and next to nothing is lost. Else
// each warp takes the bounds of its plane over all of the part; a plane whose largest element lies below another's least
// is out. Then the planes that are left are compared, element by element, with the two among them that are highest.
//
// With few classes left, most warps would be idle, and the others would take as long as ever. So the warps of a block
// are divided into *crews*: each has a warp for each class that is left and one for the attention, and goes down some of
// the bands of the part, with factors, planes and a barrier of its own. Where one class is left, it is written out.
#pragma once

#include <cfloat>

#include "ops/cuda/octave_argmax.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {

constexpr int32_t kLabelUnits = 12;  // rows of units of a part at most: in larger parts fewer classes fall
constexpr int32_t kMostCrews = 10;   // hardware has 15 barriers beside that of the block
constexpr int32_t kTried = 2;        // planes that others are compared with, element by element
constexpr int32_t kRowsAtOnce = 4;   // in these comparisons, before the next look at what they have shown

#if defined(HMSA_HOST_RUN)
// What tests look at: planes that blocks had, planes that they fused, and the most crews that a block had.
struct FusedPlanes {
  int64_t all = 0, fused = 0;
  int32_t crews = 0;
};
inline FusedPlanes& fused_planes() {
  static FusedPlanes planes;
  return planes;
}
#endif
HMSA_DEVICE void note_planes(int32_t all, int32_t fused, int32_t crews) {
#if defined(HMSA_HOST_RUN)
  FusedPlanes& so_far = fused_planes();
  if (thread() == 0) so_far = {so_far.all + all, so_far.fused + fused, larger(so_far.crews, crews)};
#else
  (void)all, (void)fused, (void)crews;
#endif
}

// A barrier of some warps of a block.
HMSA_DEVICE void meet_some(int32_t number, int32_t warps) {
#if defined(__CUDACC__)
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(warps * kLanes) : "memory");
#else
  host_run::barrier_of_some(number, warps * kLanes, __FILE__, __LINE__);
#endif
}

// NaN if one of them is.
HMSA_DEVICE float smallest_of(float a, float b) {
#if defined(__CUDACC__)
  float c;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
#else
  return isnan(a) || a < b ? a : b;
#endif
}

// Of the numbers of all lanes.
HMSA_DEVICE_CALL float largest_in_warp(float number) {
  HMSA_UNROLL
  for (int bits = kLanes / 2; bits > 0; bits /= 2) {
    number = largest_of(number, __shfl_xor_sync(0xffffffffu, number, bits));
  }
  return number;
}
HMSA_DEVICE int32_t bits_of(uint32_t mask) {
#if defined(__CUDACC__)
  return __popc(mask);
#else
  return __builtin_popcount(mask);
#endif
}

// The number of a bit that is set in `mask`, of which `place` are below it.
HMSA_DEVICE_CALL int32_t bit_at(uint32_t mask, int32_t place) {
  const bool here = (mask >> lane() & 1u) != 0 && bits_of(mask & ((1u << lane()) - 1u)) == place;
  return bits_of(__ballot_sync(0xffffffffu, here) - 1u);
}

// Warps that go down some bands together, with planes of their own.
struct Crew {
  int32_t number;
  int32_t planes;
  int32_t place;  // of the warp: less than `planes` with a plane, `planes` with the attention, more if it has no work
  Range bands;
};

// Least and largest number.
struct alignas(8) Bounds {
  float least = INFINITY, largest = -INFINITY;

  HMSA_DEVICE void take(float number) {
    least = smallest_of(least, number);
    largest = largest_of(largest, number);
  }
  // Of all lanes.
  HMSA_DEVICE Bounds together() const { return {-largest_in_warp(-least), largest_in_warp(largest)}; }
};

// Where a lane finds one column of a head, or two: `count` rows.
struct Column {
  int32_t at;    // element
  int32_t step;  // to the second column
  int32_t row;
  int32_t count;
};

// What follows are calls, since it would else cost registers where it is not needed.
template <typename S, bool kPairs>
HMSA_DEVICE_CALL Bounds bounds_of(const S* data, Column column) {
  Bounds bounds;
  HMSA_UNROLL_BY(8)
  for (int32_t r = 0; r < column.count; ++r) {
    const S* const at = data + column.at;
    bounds.take(to_arithmetic(*at));
    if (kPairs) bounds.take(to_arithmetic(at[column.step]));
    column.at += column.row;
  }
  return bounds;
}

// Whether the elements so far behind these are not all larger by more than the margin, for one distance and another: bits 0
// and 1, the same in all lanes. Goes on from what is known already, and no further than it has to.
template <typename S, bool kPairs>
HMSA_DEVICE_CALL uint32_t reached_in(const S* data, Column column, bool reads, int32_t to_first, int32_t to_second,
                                     float margin, uint32_t reached) {
  bool first = (reached & 1) != 0, second = (reached & 2) != 0;
  float by_first = INFINITY, by_second = INFINITY;  // how far they are exceeded at least
  const auto look = [&](const S* at) {
    const float logit = to_arithmetic(*at);
    by_first = fminf(by_first, to_arithmetic(at[to_first]) - logit);
    by_second = fminf(by_second, to_arithmetic(at[to_second]) - logit);
  };
  const auto next_row = [&] {
    const S* const at = data + column.at;
    look(at);
    if (kPairs) look(at + column.step);
    column.at += column.row;
  };
  for (int32_t left = column.count; left > 0; left -= kRowsAtOnce) {
    if (left >= kRowsAtOnce) {
      HMSA_UNROLL
      for (int i = 0; i < kRowsAtOnce; ++i) next_row();
    } else {
      HMSA_ROLLED
      for (int i = 0; i < left; ++i) next_row();
    }
    first = uniform(first || (reads && !(by_first > margin)));
    second = uniform(second || (reads && !(by_second > margin)));
    if (first && second) break;
  }
  return (first ? 1 : 0) + (second ? 2 : 0);
}

template <typename S>
struct OctaveLabels : PixelEnding<1> {
  using Pixels = PixelEnding<1>;
  using Problem = FuseScalesArgmax<S>;
  const Problem& problem;
  Crew crew{};
  explicit HMSA_DEVICE OctaveLabels(const Problem& of) : problem(of) {}

  template <typename Block>
  HMSA_DEVICE int32_t planes_of(const Block& block, int32_t k) const {
    return Pixels::buffer_of(block, k) + crew.number * crew.planes * PlanesAt::kPlane;
  }
  template <int r, typename Block, typename Plane>
  HMSA_DEVICE void row(const Block& block, Plane&, int32_t k, const Quad<float>& fused) const {
    put_quad(planes_of(block, k) + crew.place * PlanesAt::kPlane + r * Block::kRow + Block::quad_offset(), fused);
  }

  // ---- what is kept beside the planes ---------------------------------------------------------------------------------

  // Offsets of arrays of kLanes, one entry for each plane.
  static constexpr int32_t kSample = 0;                     // Bounds
  static constexpr int32_t kBounds = kSample + kLanes * 8;  // Bounds; behind those of the planes, that of the attention
  static constexpr int32_t kReached =
      kBounds + kLanes * 8;  // bit i: the i-th that is tried does not exceed it somewhere
  static constexpr int32_t kNames = kReached + kLanes * 4;  // the classes of planes
  static constexpr int32_t kSearchBytes = kNames + kLanes * 4;

  HMSA_HOST_DEVICE static int32_t bytes(const OctavePlan& plan) { return Pixels::bytes(plan) + kSearchBytes; }
  template <typename V, typename Block>
  HMSA_DEVICE static V* kept(const Block& block, int32_t what) {
    return shared_at<V>(Block::kShared + Pixels::bytes(block.plan) + what);
  }
  template <typename Block>
  HMSA_DEVICE static int32_t* names(const Block& block) {
    return kept<int32_t>(block, kNames);
  }

  template <typename Block>
  HMSA_DEVICE_PHASE void together(const Block& block, int32_t k) const {
    const PlanesAt all{planes_of(block, k), crew.planes};
    const auto label = [&](const Pixels::Place& place, const PlanesAt& planes) {
      const Extent size = problem.chain.size;
      const int64_t at = (block.image * size.height + place.y) * size.width + place.x;
      Pair<float> before{{-INFINITY, -INFINITY}}, largest;
      if (block.chunk > 0) before = Pixels::kept_at(block.plan, place, 0);
      int32_t winner[2];
      find_largest(planes, block.chunk == 0, before, largest, winner);
      if (crew.planes < block.count) {
        HMSA_UNROLL
        for (int j = 0; j < 2; ++j) winner[j] = names(block)[crew.number * crew.planes + winner[j]];
      }
      put_labels(problem, at, block.chunk == 0, block.first_class, winner);
      if (block.chunk + 1 < block.plan.chunks) Pixels::kept_at(block.plan, place, 0) = largest;
    };
    Pixels::for_pixels(block, k, all, crew.place * kLanes + lane(), crew.planes * kLanes, label);
  }
};

template <typename S, bool kUpper, bool kLower>
struct OctaveLabelling : OctaveForward<S, kUpper, kLower, OctaveLabels<S>> {
  using Forward = OctaveForward<S, kUpper, kLower, OctaveLabels<S>>;
  using Octaves = OctaveChain<S, kUpper, kLower>;
  using Ending = OctaveLabels<S>;
  using T = typename Octaves::T;
  using Forward::column;
  using Forward::count;
  using Forward::end_band;
  using Forward::ending;
  using Forward::factors_at;
  using Forward::first_band;
  using Forward::first_class;
  using Forward::image;
  using Forward::kUnitScale;
  using Forward::plan;
  using Forward::problem;
  using Forward::unit_columns;
  using Octaves::kLowerScale;
  using typename Forward::Factors;
  using typename Forward::Plane;
  using typename Forward::Problem;
  using typename Forward::Source;

  HMSA_DEVICE OctaveLabelling(const Problem& of, const OctavePlan& by, int32_t part, int64_t b, int32_t which_classes)
      : Forward(of, by, part, b, which_classes) {}

  // More crews than one have their factors behind everything else.
  static int32_t bytes(const OctavePlan& plan) {
    return Forward::bytes(plan) + (larger(plan.crews, 1) - 1) * Octaves::kShared;
  }
  HMSA_DEVICE int32_t factors_of_crew(int32_t number) const {
    return number == 0 ? 0 : Octaves::kShared + Ending::bytes(plan) + (number - 1) * Octaves::kShared;
  }

  HMSA_DEVICE Range bands() const { return Range{first_band(), end_band()}; }

  // ---- the sample -----------------------------------------------------------------------------------------------------

  // Elements of a plane in the middle of the part and at its end. Those at its beginning are read for the first band.
  struct Sample {
    T own[2], above[2], lower[2];
  };
  HMSA_DEVICE Sample read_sample(int64_t channel) const {
    const Range k = bands();
    const int32_t middle = (k.lo + k.hi) >> 1;
    Sample sample{};
    const Source own = Octaves::own_source(problem.logits, channel);
    sample.own[0] = own.one(middle);
    sample.own[1] = own.one(k.hi);
    const auto read = [](T(&to)[2], const Pair<T>& pair) {
      HMSA_UNROLL
      for (int j = 0; j < 2; ++j) to[j] = pair.of[j];
    };
    if constexpr (kUpper)
      read(sample.above, Octaves::source(problem.logits[0], channel, 0, column / 2).two(2 * middle));
    if constexpr (kLower) read(sample.lower, Octaves::lower_source(problem.logits, channel).two(middle >> 1));
    return sample;
  }

  HMSA_DEVICE void put_sample(const Sample& sample, const Plane& plane) const {
    Bounds bounds;
    bounds.take(plane.own.next);
    HMSA_UNROLL
    for (int j = 0; j < 2; ++j) {
      bounds.take(sample.own[j]);
      if (kUpper) bounds.take(plane.next_above[0].of[j]);
      if (kUpper) bounds.take(sample.above[j]);
      if (kLower) bounds.take(plane.lower.next.of[j]);
      if (kLower) bounds.take(sample.lower[j]);
    }
    bounds = bounds.together();
    if (lane() == 0) Ending::template kept<Bounds>(*this, Ending::kSample)[warp()] = bounds;
  }

  HMSA_DEVICE Bounds bounds_at(int32_t what) const {
    Bounds bounds{-INFINITY, -INFINITY};
    if (lane() < count) bounds = Ending::template kept<const Bounds>(*this, what)[lane()];
    return bounds;
  }

  // Whether the sample leaves so few classes that a block would have two crews, so that a search may pay.
  HMSA_DEVICE bool is_promising() const {
    const Bounds sample = bounds_at(Ending::kSample);
    const uint32_t left = __ballot_sync(0xffffffffu, sample.largest >= largest_in_warp(sample.least));
    return 2 * bits_of(left) < count;
  }

  // ---- the search -----------------------------------------------------------------------------------------------------

  // Whether what the lane reads matters to pixels that the block owns: its own ones, or those beside it.
  HMSA_DEVICE bool is_read() const { return lane() >= 1 && lane() <= 2 + 2 * unit_columns.size(); }

  // Calls body(map, data, column) for the heads of a plane, or of the attention: what the lane reads of them for the part,
  // every so many rows of it.
  template <typename Body>
  HMSA_DEVICE void for_heads(const MapView<const S>* maps, int64_t channel, bool attention, int32_t share,
                             int32_t shares, const Body& body) const {
    const Range k = bands();
    const auto of_head = [&](int i, const Source& source, Range rows, auto pairs) {
      const int32_t first = larger(rows.lo, 0) + share;
      const int32_t count = smaller(rows.hi, source.last + 1) - first;
      if (count <= 0) return;
      const Column read{source.first + first * source.row_stride, source.step, source.row_stride * shares,
                        shares == 1 ? count : divide_up(count, shares)};
      body(maps[i], source.data, read, pairs);
    };
    // The smallest first.
    if constexpr (kLower) {
      of_head(kLowerScale, Octaves::lower_source(maps, channel), Range{(k.lo >> 1) - 1, (k.hi >> 1) + 2},
              std::true_type{});
    }
    if (kUpper || !attention) {
      of_head(kUnitScale, Octaves::own_source(maps, channel), Range{k.lo, k.hi + 1}, std::false_type{});
    }
    if (kUpper && !attention) {
      of_head(0, Octaves::source(maps[0], channel, 0, column / 2), Range{2 * k.lo, 2 * k.hi + 2}, std::true_type{});
    }
  }

  HMSA_DEVICE_PHASE void put_bounds() const {
    const bool attention = warp() == count;
    Bounds bounds;
    for_heads(attention ? problem.attention : problem.logits, attention ? 0 : warp(), attention, 0, 1,
              [&](const MapView<const S>&, const S* data, const Column& read, auto pairs) {
                const Bounds more = bounds_of<S, decltype(pairs)::value>(data, read);
                bounds = {smallest_of(bounds.least, more.least), largest_of(bounds.largest, more.largest)};
              });
    if (!is_read()) bounds = Bounds{};
    bounds = bounds.together();
    if (lane() == 0) {
      Ending::template kept<Bounds>(*this, Ending::kBounds)[warp()] = bounds;
      Ending::template kept<uint32_t>(*this, Ending::kReached)[warp()] = 0;
    }
  }

  struct Candidates {
    uint32_t planes;  // bit by bit
    float margin;
    int32_t tried[kTried];
  };

  HMSA_DEVICE Candidates by_bounds() const {
    const Bounds bounds = bounds_at(Ending::kBounds);
    Candidates found{};
    found.planes = __ballot_sync(0xffffffffu, lane() < count);
    const float reach = largest_in_warp(lane() < count ? largest_of(bounds.largest, -bounds.least) : 0.0f);
    bool holds = reach < FLT_MAX / 4;
    if (problem.chain.count > 1) {
      const Bounds attention = Ending::template kept<const Bounds>(*this, Ending::kBounds)[count];
      holds = holds && attention.least >= 0.0f && attention.largest <= 1.0f;
    }
    if (!holds) return found;
    found.margin = static_cast<float>(256 * problem.chain.count) * FLT_EPSILON * reach + FLT_MIN;
    const float floor = largest_in_warp(bounds.least) - found.margin;
    found.planes = __ballot_sync(0xffffffffu, bounds.largest >= floor);
    float height = (found.planes >> lane() & 1u) != 0 ? bounds.least + bounds.largest : -INFINITY;
    HMSA_UNROLL
    for (int i = 0; i < kTried; ++i) {
      const uint32_t highest = __ballot_sync(0xffffffffu, height == largest_in_warp(height));
      found.tried[i] = bits_of((highest & (0u - highest)) - 1u);
      if (lane() == found.tried[i]) height = -INFINITY;
    }
    return found;
  }

  // All warps look at a share of the rows of a candidate, and note which of those that are tried exceed it there.
  HMSA_DEVICE_PHASE void compare(const Candidates& found) const {
    const int32_t candidates = bits_of(found.planes);
    const int32_t shares = (plan.planes + 1) / candidates;
    const int32_t share = warp() / candidates;
    if (uniform(share >= shares)) return;
    const int32_t c = bit_at(found.planes, warp() % candidates);
    uint32_t reached = 0;
    for_heads(problem.logits, c, false, share, shares,
              [&](const MapView<const S>& map, const S* data, const Column& read, auto pairs) {
                if (reached == 3) return;
                const auto to = [&](int32_t other) { return (other - c) * static_cast<int32_t>(map.channel); };
                reached = reached_in<S, decltype(pairs)::value>(data, read, is_read(), to(found.tried[0]),
                                                                to(found.tried[1]), found.margin, reached);
              });
    if (lane() == 0) atomicOr(Ending::template kept<uint32_t>(*this, Ending::kReached) + c, reached);
  }

  // The planes that can win somewhere, bit by bit. All warps come here.
  HMSA_DEVICE_PHASE uint32_t search() const {
    if (warp() < count || problem.chain.count > 1) put_bounds();
    meet();
    const Candidates found = by_bounds();
    const int32_t left = bits_of(found.planes);
    if (uniform(left == 1)) return found.planes;
    if (uniform(3 * left > 2 * count)) return (1u << count) - 1u;  // a comparison would take longer than it saves
    compare(found);
    meet();
    uint32_t reached = 0;
    if (lane() < count) reached = Ending::template kept<const uint32_t>(*this, Ending::kReached)[lane()];
    return found.planes & __ballot_sync(0xffffffffu, reached == (1u << kTried) - 1u);
  }

  // ---- the part -------------------------------------------------------------------------------------------------------

  HMSA_DEVICE void form_crews(uint32_t planes) {
    Crew& crew = ending.crew;
    crew.planes = bits_of(planes);
    const int32_t warps = crew.planes + 1;
    const int32_t crews = larger(1, smaller(plan.crews, (plan.planes + 1) / warps));
    note_planes(count, crew.planes, crews);
    const Range all = bands();
    const int32_t each = divide_up(all.size(), crews);
    crew.number = warp() / warps;
    crew.bands.lo = all.lo + crew.number * each;
    crew.bands.hi = smaller(crew.bands.lo + each, all.hi);
    const bool works = crew.number < crews && crew.bands.lo < all.hi;
    crew.place = works ? warp() % warps : warps;
    factors_at = factors_of_crew(works ? crew.number : 0);
  }

  // Every pixel of the part has this label.
  HMSA_DEVICE_PHASE void fill(int32_t label) const {
    const Extent size = problem.chain.size;
    const Range k = bands();
    const Range rows{larger(0, 4 * k.lo + 2), smaller(4 * k.hi + 2, size.height)};
    const Range columns{unit_columns.lo * kUnit, smaller(unit_columns.hi * kUnit, size.width)};
    const int32_t labels[2] = {label, label};
    for (int32_t y = rows.lo + warp(); y < rows.hi; y += plan.planes + 1) {
      for (int32_t x = columns.lo + 2 * lane(); x < columns.hi; x += 2 * kLanes) {
        put_labels(problem, (image * size.height + y) * size.width + x, true, 0, labels);
      }
    }
  }

  // With all classes. False if a search may pay: nothing has been done then.
  HMSA_DEVICE bool go_down_with_all() {
    const bool searches = plan.chunks == 1;
    ending.crew = Crew{0, count, warp(), bands()};
    const auto meet_all = [&] { meet_some(1, plan.planes + 1); };
    if (uniform(warp() < plan.planes)) {
      const bool works = uniform(warp() < count);
      Plane plane{};
      Sample sample{};
      if (searches) sample = read_sample(warp());
      if (works) Forward::start(plane, first_class + warp(), first_band());
      if (searches) put_sample(sample, plane);
      meet_all();
      if (uniform(searches && is_promising())) return false;
      note_planes(count, count, 1);
      go_down(plane, works, meet_all);
    } else {
      Factors factors{};
      Octaves::start(factors, first_band());
      Forward::make_ahead(factors, first_band());
      meet_all();
      if (uniform(searches && is_promising())) return false;
      go_ahead(factors, meet_all);
    }
    return true;
  }

  HMSA_DEVICE void go_down_in_crews(uint32_t planes) {
    form_crews(planes);
    const Crew& crew = ending.crew;
    const auto meet_crew = [&] { meet_some(1 + crew.number, crew.planes + 1); };
    if (uniform(crew.place < crew.planes)) {
      const int32_t name = bit_at(planes, crew.place);
      if (lane() == 0) Ending::names(*this)[crew.number * crew.planes + crew.place] = name;
      Plane plane{};
      Forward::start(plane, name, crew.bands.lo);
      meet_crew();
      go_down(plane, true, meet_crew);
    } else if (uniform(crew.place == crew.planes)) {
      Factors factors{};
      Octaves::start(factors, crew.bands.lo);
      Forward::make_ahead(factors, crew.bands.lo);
      meet_crew();
      go_ahead(factors, meet_crew);
    }
  }

  // The bands of a crew; by the warp of a plane, and by that of the attention.
  template <typename Meet>
  HMSA_DEVICE void go_down(Plane& plane, bool works, const Meet& meet_crew) const {
    const Range bands = ending.crew.bands;
    if (kLower && works) {
      plane.grid[0] = Forward::template grid_quad<true>(plane, bands.lo, 0);
      plane.grid[1] = Forward::template grid_quad<true>(plane, bands.lo, 1);
    }
    HMSA_ROLLED
    for (int32_t k = bands.lo; k < bands.hi; ++k) {
      if (works) Forward::band(plane, k);
      meet_crew();
      if (works) ending.together(*this, k);
    }
  }
  template <typename Meet>
  HMSA_DEVICE void go_ahead(Factors& factors, const Meet& meet_crew) const {
    const Range bands = ending.crew.bands;
    HMSA_ROLLED
    for (int32_t k = bands.lo; k < bands.hi; ++k) {
      if (k + 1 < bands.hi) Forward::make_ahead(factors, k + 1);
      meet_crew();
    }
  }

  // With those that can win.
  HMSA_DEVICE void go_down_with_few() {
    const uint32_t planes = search();
    if (uniform(bits_of(planes) == 1)) {
      note_planes(count, 0, 0);
      fill(bit_at(planes, 0));
    } else {
      go_down_in_crews(planes);
    }
  }
};

// One image. Blocks are made anew where they are used: what one path needs must not be kept in registers on the other.
template <typename Block>
HMSA_DEVICE void label_image(const typename Block::Problem& problem, const OctavePlan& plan, int64_t b) {
  for (int32_t chunk = 0; chunk < plan.chunks; ++chunk) {
    bool done;
    {
      Block block(problem, plan, only_here(blockIdx.x), b, chunk);
      done = uniform(block.go_down_with_all());
    }
    if (done) continue;
    Block block(problem, plan, only_here(blockIdx.x), only_here(static_cast<int32_t>(b)), chunk);
    block.go_down_with_few();
    meet();
  }
}

template <typename S, bool kUpper, bool kLower>
__global__ void HMSA_MOST_REGISTERS((OctaveLabels<S>::kRegisters))
    labels_octave_kernel(HMSA_PARAMETER FuseScalesArgmax<S> problem, HMSA_PARAMETER OctavePlan plan) {
  for (int64_t b = blockIdx.y; b < problem.batch; b += gridDim.y) {
    label_image<OctaveLabelling<S, kUpper, kLower>>(problem, plan, b);
  }
}

// Calls start(kernel, grid, plan). False if nothing fits.
template <typename S, typename Start>
bool start_labels(const FuseScalesArgmax<S>& problem, const Start& start) {
  return by_kind_of_end(problem.chain, [&](auto upper, auto lower) {
    constexpr bool kUpper = decltype(upper)::value;
    constexpr bool kLower = decltype(lower)::value;
    using Block = OctaveLabelling<S, kUpper, kLower>;
    OctavePlan plan{};
    if (!plan_octaves<Block>(problem, plan, kLabelUnits, 1) && !plan_octaves<Block>(problem, plan)) return false;
    // As many crews as shared memory is left for; of two classes at least.
    const int32_t most = plan.chunks > 1 ? 1 : smaller((plan.planes + 1) / 3, kMostCrews);
    plan.crews = 1;
    while (plan.crews < most && plan.bytes + Block::kShared <= shared_budget(plan.blocks)) {
      ++plan.crews;
      plan.bytes += Block::kShared;
    }
    start(labels_octave_kernel<S, kUpper, kLower>, grid_of(plan, problem.batch), plan);
    return true;
  });
}

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
