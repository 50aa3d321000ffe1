// Chains of octaves: scales 1 and 0.5, 2 and 1, or 2, 1 and 0.5, with heads at a quarter of their grids. These are what
// the networks are trained with, and nearly all that they are run with.
//
// Every resize then is by two or by four, so that there is no table of taps: weights are constants, and which element
// reads which follows from the number of the lane and of the row. A warp has 128 columns of a plane and goes down its
// rows, as in gradient_stream.cuh; one more warp makes what the attention gives to all planes: A and 1 - R A.
//
// At the first row and column of a map PyTorch adds nothing but 0 times the second element to the first, which matters if
// that is infinite. So the element before the first is the first and 0 times the second here. At the other end PyTorch
// reads the last element twice, and so does this.
//
// Band k has the rows 4 k + 2 to 4 k + 5 of the output. All of them lie between the rows k and k + 1 of a head of scale
// 1.0, and between the rows 2 k and 2 k + 3 of the lower grid and of the head above.
#pragma once

#include <type_traits>

#include "ops/cuda/gradient_stream.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {

// A block has 16 units of 8 x 8 outputs side by side, of which the first and the last are rim, and some of them one below
// the other. A unit has one element of the head of scale 0.5.
constexpr int32_t kUnit = 8;
constexpr int32_t kOwnedUnits = kLineColumns / kUnit - 2;
constexpr int32_t kOctaveBand = 4;      // rows between barriers
constexpr int32_t kOctaveBuffers = 4;   // bands whose factors are kept: of the one ahead, this one and the one behind
constexpr int32_t kOctaveGridRows = 8;  // rows of A that are kept on the lower grid

// Two neighbouring columns of a row of the lower grid, or of the head above.
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T of[2];
};

// Where a lane is among the columns of the output.
struct LanePlace {
  bool exists;
  bool leftmost, rightmost;
  bool owned;  // what it makes is the block's to write
};

// ---- resizes by two and by four -------------------------------------------------------------------------------------

// Weight of row k + 1 in row r of band k, and of the second of two elements of a head in the grid four times its size.
HMSA_DEVICE constexpr float of_four(int r) { return 0.125f + 0.25f * static_cast<float>(r); }

template <typename T>
HMSA_DEVICE T before(T value) {
  return __shfl_up_sync(0xffffffffu, value, 1);
}
template <typename T>
HMSA_DEVICE T behind(T value, int lanes = 1) {
  return __shfl_down_sync(0xffffffffu, value, lanes);
}

template <typename T>
HMSA_DEVICE T mixed(T weight, T first, T second) {
  return (T(1) - weight) * first + weight * second;
}

// What stands before the first of two elements at a border.
template <typename T>
HMSA_DEVICE T before_border(T first, T second) {
  return first + T(0) * second;
}

// A lane's quad from the element under it and those beside it.
template <typename T>
HMSA_DEVICE Quad<T> enlarged_by_four(T element, const LanePlace& place) {
  const T right = behind(element);
  const T one_before = before(element);
  const T left = place.leftmost ? before_border(element, right) : one_before;
  return {{mixed(T(0.625), left, element), mixed(T(0.875), left, element), mixed(T(0.125), element, right),
           mixed(T(0.375), element, right)}};
}

// From the two elements under it.
template <typename T>
HMSA_DEVICE Quad<T> enlarged_by_two(const Pair<T>& pair, const LanePlace& place) {
  const T right = behind(pair.of[0]);
  const T one_before = before(pair.of[1]);
  const T left = place.leftmost ? before_border(pair.of[0], pair.of[1]) : one_before;
  return {{mixed(T(0.75), left, pair.of[0]), mixed(T(0.25), pair.of[0], pair.of[1]),
           mixed(T(0.75), pair.of[0], pair.of[1]), mixed(T(0.25), pair.of[1], right)}};
}

// Weight of the second of the two rows around row r of a band, of a map that is enlarged twice.
HMSA_DEVICE constexpr float of_two(int r) { return r % 2 == 0 ? 0.75f : 0.25f; }

// ---- what the passes share ------------------------------------------------------------------------------------------

struct OctavePlan {
  Extent parts;
  Extent units;  // of a part
  int32_t planes;
  int32_t chunks;  // of the classes, one after the other
  bool quads;      // a quad of the incoming gradient is one load
  int32_t bytes;
  int32_t blocks;  // that a multiprocessor is to hold
  int32_t crews;   // of octave_labels.cuh
};

template <typename S, bool kUpper, bool kLower>
struct OctaveChain {
  using T = arithmetic_t<S>;
  static constexpr int kSums = (kUpper ? 1 : 0) + (kLower ? 1 : 0);
  static constexpr int kUnitScale = kUpper ? 1 : 0;
  static constexpr int kLowerScale = kUnitScale + 1;
  static constexpr int kLowerPlace = kUpper ? 1 : 0;  // among factors, and among sums of the backward pass
  static constexpr int32_t kRow = kLineColumns * static_cast<int32_t>(sizeof(T));
  static constexpr int32_t kBandBytes = kOctaveBand * kRow;

  // Where what lies in shared memory.
  static constexpr int32_t kFactors = 0;  // [kOctaveBuffers][sums][kOctaveBand] rows: A of scale 1.0, 1 - R A
  static constexpr int32_t kGrid = kFactors + kOctaveBuffers * kSums * kBandBytes;  // rows of A on the lower grid
  static constexpr int32_t kShared = kGrid + (kLower ? kOctaveGridRows * kRow / 2 : 0);

  const ChainInputs<S>& inputs;
  Range unit_rows, unit_columns;  // of the block
  LanePlace place;
  int32_t column;  // of the lane's quad in the output
  int64_t image;
  int32_t chunk, first_class, count;
  int32_t factors_at = 0;  // what lies in shared memory, lies so many bytes on

  HMSA_DEVICE OctaveChain(const ChainInputs<S>& of, const OctavePlan& plan, int32_t part, int64_t b,
                          int32_t which_classes)
      : inputs(of), image(b), chunk(which_classes) {
    first_class = chunk * plan.planes;
    count = smaller(plan.planes, static_cast<int32_t>(inputs.classes) - first_class);
    const Extent size = inputs.chain.size;
    const auto units = [](int32_t n, int32_t each, int32_t side) {
      return Range{n * each, smaller((n + 1) * each, divide_up(side, kUnit))};
    };
    unit_rows = units(part / plan.parts.width, plan.units.height, size.height);
    unit_columns = units(part % plan.parts.width, plan.units.width, size.width);
    column = (unit_columns.lo - 1) * kUnit + lane() * kQuad;
    place.exists = column >= 0 && column < size.width;
    place.leftmost = column == 0;
    place.rightmost = column + kQuad == size.width;
    place.owned = place.exists && lane() >= 2 && lane() < 2 + 2 * unit_columns.size();
  }

  HMSA_DEVICE static int32_t quad_offset() { return lane() * static_cast<int32_t>(sizeof(Quad<T>)); }
  HMSA_DEVICE static int32_t pair_offset() { return lane() * static_cast<int32_t>(sizeof(Pair<T>)); }
  HMSA_DEVICE int32_t factors_of(int32_t k) const {
    return factors_at + kFactors + (k & (kOctaveBuffers - 1)) * kSums * kBandBytes + quad_offset();
  }
  HMSA_DEVICE int32_t grid_row(int32_t row) const {
    return factors_at + kGrid + (row & (kOctaveGridRows - 1)) * (kRow / 2) + pair_offset();
  }
  HMSA_DEVICE static Pair<T> pair_at(int32_t offset) { return *shared_at<const Pair<T>>(offset); }
  HMSA_DEVICE static void put_pair(int32_t offset, const Pair<T>& pair) { *shared_at<Pair<T>>(offset) = pair; }

  // ---- maps of the heads, as a lane reads them ------------------------------------------------------------------------

  // Elements count from the first of the tensor, in 32 bits: registers are few.
  HMSA_DEVICE static int32_t element(const MapView<const S>& map, int64_t image, int64_t channel, int64_t row,
                                     int64_t c) {
    return static_cast<int32_t>(image * map.batch + channel * map.channel + row * map.row + c * map.column);
  }

  // Two columns of a head.
  struct Source {
    const S* data;
    int32_t first;  // row 0 of the first column
    int32_t step;   // to the second column
    int32_t row_stride;
    int32_t last;  // row

    HMSA_DEVICE int32_t row(int32_t r) const { return first + larger(0, smaller(r, last)) * row_stride; }
    HMSA_DEVICE T one(int32_t r) const { return to_arithmetic(data[row(r)]); }
    HMSA_DEVICE Pair<T> two(int32_t r) const {
      const int32_t at = row(r);
      return {{to_arithmetic(data[at]), to_arithmetic(data[at + step])}};
    }
    // The same where the row may be the one before the first.
    HMSA_DEVICE T one_from_border(int32_t r) const { return r < 0 ? before_border(one(0), one(1)) : one(r); }
    HMSA_DEVICE Pair<T> two_from_border(int32_t r) const {
      Pair<T> pair = two(r);
      if (r < 0) {
        const Pair<T> second = two(1);
        HMSA_UNROLL
        for (int j = 0; j < 2; ++j) pair.of[j] = before_border(pair.of[j], second.of[j]);
      }
      return pair;
    }
  };
  // The column before the first one is the second: see LowerRows, nothing else reads it.
  HMSA_DEVICE Source source(const MapView<const S>& map, int64_t channel, int i, int32_t first) const {
    const Extent head = inputs.chain.heads[i];
    const auto inside = [&](int32_t c) { return smaller(c < 0 ? 1 : c, head.width - 1); };
    return {map.data, element(map, image, channel, 0, inside(first)),
            (inside(first + 1) - inside(first)) * static_cast<int32_t>(map.column), static_cast<int32_t>(map.row),
            head.height - 1};
  }
  HMSA_DEVICE Source own_source(const MapView<const S>* maps, int64_t channel) const {
    return source(maps[kUnitScale], channel, kUnitScale, column / 4);
  }
  // An even lane's pair lies between the element under it and the one before, an odd lane's between it and the next.
  HMSA_DEVICE Source lower_source(const MapView<const S>* maps, int64_t channel) const {
    return source(maps[kLowerScale], channel, kLowerScale, unit_columns.lo - 2 + (lane() + 1) / 2);
  }

  // A head of scale 1.0, row by row: what a band needs next is on its way meanwhile.
  struct OwnRows {
    Quad<T> upper;
    T next;
    HMSA_DEVICE void begin(const Source& from, int32_t k, const LanePlace& place) {
      upper = enlarged_by_four(from.one_from_border(k), place);
      next = from.one(k + 1);
    }
  };
  // The head of the lower scale on its grid: the rows 2 k and 2 k + 1 lie between `upper` and `lower`.
  struct LowerRows {
    Pair<T> upper, lower, next;

    HMSA_DEVICE static Pair<T> stretched(const Pair<T>& pair, const LanePlace& place) {
      const T first = place.leftmost ? before_border(pair.of[1], pair.of[0]) : pair.of[0];
      const T weight = lane() % 2 == 0 ? T(0.625) : T(0.125);
      return {{mixed(weight, first, pair.of[1]), mixed(weight + T(0.25), first, pair.of[1])}};
    }
    HMSA_DEVICE void begin(const Source& from, int32_t k, const LanePlace& place) {
      const int32_t m = k >> 1;
      upper = stretched(from.two_from_border(m - 1), place);
      lower = stretched(from.two_from_border(m), place);
      next = from.two(m + 1);
    }
    HMSA_DEVICE void move(const Source& from, int32_t k, const LanePlace& place) {
      if (k % 2 == 0) return;
      upper = lower;
      lower = stretched(next, place);
      next = from.two((k >> 1) + 2);
    }
    // Row 2 k + r of the grid.
    HMSA_DEVICE Pair<T> row(int32_t k, int r) const {
      const T weight = grid_weight(k, r);
      return {{mixed(weight, upper.of[0], lower.of[0]), mixed(weight, upper.of[1], lower.of[1])}};
    }
    // The same where it may be the one before the first, which looks like the first two.
    HMSA_DEVICE Pair<T> row_from_border(int32_t k, int r) const {
      Pair<T> pair = row(k, r);
      if (k < 0) pair = {{before_border(pair.of[0], pair.of[0]), before_border(pair.of[1], pair.of[1])}};
      return pair;
    }
  };
  // Of `lower` in that row.
  HMSA_DEVICE static T grid_weight(int32_t k, int r) { return (k % 2 == 0 ? T(0.625) : T(0.125)) + T(0.25) * r; }

  // ---- the attention, for all planes ----------------------------------------------------------------------------------

  struct Factors {
    Source own_from, lower_from;
    OwnRows own;
    LowerRows lower;
    Quad<T> grid_rows[2];  // 2 k and 2 k + 1 of A
  };

  HMSA_DEVICE_PHASE void start(Factors& made, int32_t k) const {
    if (kUpper) {
      made.own_from = own_source(inputs.attention, 0);
      made.own.begin(made.own_from, k, place);
    }
    if (kLower) {
      made.lower_from = lower_source(inputs.attention, 0);
      made.lower.begin(made.lower_from, k, place);
      made.lower.move(made.lower_from, k, place);
      make_grid_rows(made, k, made.grid_rows);
    }
  }

  // Rows 2 k and 2 k + 1 of A on the lower grid, for the planes and stretched along columns.
  HMSA_DEVICE void make_grid_rows(Factors& made, int32_t k, Quad<T> (&rows)[2]) const {
    HMSA_UNROLL
    for (int r = 0; r < 2; ++r) {
      const Pair<T> a = made.lower.row_from_border(k, r);
      put_pair(grid_row(2 * k + r), a);
      rows[r] = enlarged_by_two(a, place);
    }
  }

  template <int r>
  HMSA_DEVICE void put_keep(int32_t k, const Quad<T>& first, const Quad<T>& second) const {
    Quad<T> keep;
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) keep.of[j] = T(1) - mixed(T(of_two(r)), first.of[j], second.of[j]);
    put_quad(factors_of(k) + kLowerPlace * kBandBytes + r * kRow, keep);
  }

  // A and 1 - R A of the rows of a band.
  HMSA_DEVICE_PHASE void make_factors(Factors& made, int32_t k) const {
    const int32_t factors = factors_of(k);
    if constexpr (kUpper) {
      const Quad<T> lower = enlarged_by_four(made.own.next, place);
      made.own.next = made.own_from.one(k + 2);
      HMSA_UNROLL
      for (int r = 0; r < kOctaveBand; ++r) {
        Quad<T> a;
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) a.of[j] = mixed(T(of_four(r)), made.own.upper.of[j], lower.of[j]);
        put_quad(factors + r * kRow, a);
      }
      made.own.upper = lower;
    }
    if constexpr (kLower) {
      Quad<T> next[2];
      made.lower.move(made.lower_from, k + 1, place);
      make_grid_rows(made, k + 1, next);
      put_keep<0>(k, made.grid_rows[0], made.grid_rows[1]);
      put_keep<1>(k, made.grid_rows[1], next[0]);
      put_keep<2>(k, made.grid_rows[1], next[0]);
      put_keep<3>(k, next[0], next[1]);
      made.grid_rows[0] = next[0];
      made.grid_rows[1] = next[1];
    }
  }
};

// ---- the host -------------------------------------------------------------------------------------------------------

// Enlarges so many times, with corners that are not aligned.
inline bool enlarges(const Resize& resize, int32_t times) {
  const auto one = [&](const AxisMap& map) {
    return map.out == map.in * times && map.slope * map.out == map.den * map.in;
  };
  return one(resize.rows) && one(resize.columns);
}

// Whether the chain is one of octaves.
inline bool is_octave(const Chain& chain) {
  if (chain.class_wise || chain.count < 2 || chain.unit > 1 || chain.count > chain.unit + 2) return false;
  for (int i = 0; i < chain.count; ++i) {
    if (!enlarges(chain.up[i], 4)) return false;
  }
  const Extent size = chain.size;
  if (chain.unit > 0 && chain.grids[0] != Extent{2 * size.height, 2 * size.width}) return false;
  return chain.count == chain.unit + 1 || enlarges(chain.across[chain.unit + 1], 2);
}

// Elements of tensors of a head are counted in 32 bits; somewhat more of them, since rims reach beyond the borders.
template <typename S>
bool is_short(const MapView<S>& map, int64_t batch, int64_t classes, Extent size) {
  const auto reach = [](int64_t stride, int64_t count) { return (stride < 0 ? -stride : stride) * count; };
  return reach(map.batch, batch) + reach(map.channel, classes) + reach(map.row, size.height + 2 * kUnit) +
             reach(map.column, size.width + 2 * kLineColumns) <=
         INT32_MAX;
}

template <typename S>
bool has_short_heads(const ChainInputs<S>& inputs) {
  for (int i = 0; i < inputs.chain.count; ++i) {
    const Extent head = inputs.chain.heads[i];
    if (!is_short(inputs.logits[i], inputs.batch, inputs.classes, head)) return false;
    if (i > 0 && !is_short(inputs.attention[i], inputs.batch, 1, head)) return false;
  }
  return true;
}

// The division of the work of a pass that takes the least time, with one or two blocks on a multiprocessor; false if
// nothing fits. `most_height`: of a part, in units; `most_chunks`: of the classes.
template <typename Pass, typename S>
bool plan_octaves(const ChainInputs<S>& inputs, OctavePlan& plan, int32_t most_height = INT32_MAX,
                  int32_t most_chunks = INT32_MAX) {
  const Chain& chain = inputs.chain;
  const auto classes = static_cast<int32_t>(inputs.classes);
  const Extent units{divide_up(chain.size.height, kUnit), divide_up(chain.size.width, kUnit)};
  OctavePlan base = plan;
  base.units.width = divide_up(units.width, divide_up(units.width, kOwnedUnits));
  base.parts.width = divide_up(units.width, base.units.width);
  const auto multiprocessors = multiprocessor_count();
  double least = 0;
  for (int32_t blocks = 2; blocks >= 1; --blocks) {
    const int32_t most_planes = smaller(65536 / (kLanes * Pass::kRegisters) / blocks, 32) - 1;
    const int32_t budget = shared_budget(blocks);
    for (int32_t height = 1; height <= smaller(units.height, most_height); ++height) {
      OctavePlan candidate = base;
      candidate.blocks = blocks;
      candidate.units.height = height;
      candidate.parts.height = divide_up(units.height, height);
      // As many planes at a time as registers and shared memory hold.
      for (candidate.chunks = divide_up(classes, most_planes); candidate.chunks <= classes; ++candidate.chunks) {
        candidate.planes = divide_up(classes, candidate.chunks);
        candidate.bytes = Pass::bytes(candidate);
        if (candidate.bytes <= budget) break;
      }
      if (candidate.chunks > smaller(classes, most_chunks)) continue;
      const int64_t all = inputs.batch * candidate.parts.width * candidate.parts.height;
      const int64_t rounds = (all + blocks * multiprocessors - 1) / (blocks * multiprocessors);
      const double bands = 2 * height + Pass::kMoreBands;
      // Assumed, for want of a measurement: a warp alone starts 0.13 instructions a cycle, all of them three at most.
      const int32_t warps = blocks * (candidate.planes + 1);
      const double rate = 0.13 * warps < 3 ? 0.13 * warps : 3;
      const double cost = static_cast<double>(rounds) * bands * candidate.chunks * warps / rate;
      if (least > 0 && cost >= least) continue;
      least = cost;
      plan = candidate;
    }
  }
  return least > 0;
}

inline dim3 grid_of(const OctavePlan& plan, int64_t batch) {
  return dim3(static_cast<unsigned>(plan.parts.height * plan.parts.width),
              static_cast<unsigned>(batch < 65535 ? batch : 65535));
}

// Calls start(kernel, grid, plan). False if nothing fits.
template <typename Pass, typename S, typename Kernel, typename Start>
bool start_planned(const ChainInputs<S>& inputs, bool quads, Kernel kernel, const Start& start) {
  OctavePlan plan{};
  plan.quads = quads;
  if (!plan_octaves<Pass>(inputs, plan)) return false;
  start(kernel, grid_of(plan, inputs.batch), plan);
  return true;
}

// Calls with_kind(upper, lower) with the kind of the chain as constants.
template <typename WithKind>
auto by_kind(const Chain& chain, const WithKind& with_kind) {
  if (chain.unit == 0) return with_kind(std::false_type{}, std::true_type{});
  if (chain.count == 2) return with_kind(std::true_type{}, std::false_type{});
  return with_kind(std::true_type{}, std::true_type{});
}

// Losses and predictions take a lone scale, too, whose head is a quarter of the output.
inline bool is_lone_quarter(const Chain& chain) {
  return chain.count == 1 && !chain.needs_final_resize && enlarges(chain.up[0], 4);
}
inline bool is_octave_of_end(const Chain& chain) { return is_lone_quarter(chain) || is_octave(chain); }

template <typename WithKind>
auto by_kind_of_end(const Chain& chain, const WithKind& with_kind) {
  if (chain.count == 1) return with_kind(std::false_type{}, std::false_type{});
  return by_kind(chain, with_kind);
}

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
