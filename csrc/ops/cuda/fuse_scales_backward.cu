// fuse_scales on the GPU, backward: one pass over the incoming gradient g, one launch. The equations are in
// ops/cpu/chain_backward.h.
//
// A block owns a part of every head and takes the part of the output that reaches it, 128 columns wide, several planes at a
// time. Each of its warps goes down one plane, row by row, with everything in registers (gradient_stream.cuh):
//
//     g, P before it is blended  ->  products for the gradient of attention, which are summed over the planes
//     g times its factors        ->  U^T: rows of the gradient of scale 1.0's logits
//                                ->  (R U)^T: of those of the scale above, whose two resizes are one
//                                ->  R^T: rows on the grid of the scale below 1.0; times L: products; times A, U^T: its logits
//
// One more warp does the same for the attention: it makes A and 1 - R A of the rows that come next, and takes the sums over
// the planes through the same adjoints as the planes. Planes meet at two barriers for every band of rows.
//
// What reaches an element is all in its block, rows in their order, then columns in theirs: no sum depends on how the work
// is divided. The tiles overlap by what their rims need of g, which comes from the L2 cache.
//
// Chains of octaves have a pass of their own, octave_backward.cuh: the same idea without tables of taps. Chains that
// neither takes (more than one scale above or below 1.0, double, windows that are too wide) are gathered by
// gradient_parts.cu.
#include "ops/cuda/fuse_scales.h"
#include "ops/cuda/gradient_parts.cuh"
#include "ops/cuda/gradient_stream.cuh"
#include "ops/cuda/octave_backward.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {
namespace {

constexpr int32_t kBand = 4;  // rows between barriers

// Two blocks share a multiprocessor, but for chains on both sides of 1.0: these need more memory than half of it.
template <bool kUpper, bool kLower>
constexpr int kRegisters = kUpper && kLower ? 168 : 88;
constexpr int32_t blocks_with(bool upper, bool lower) { return upper && lower ? 1 : 2; }
// Warps for which a multiprocessor has the registers.
constexpr int32_t most_warps(bool upper, bool lower) {
  return 65536 / (kLanes * (upper && lower ? kRegisters<true, true> : kRegisters<false, true>));
}
constexpr int32_t kParked = 5;  // rows of the grid that wait; odd, so that the lanes' quads lie in different banks
// Rows of A on a lower grid: those ahead of the output and those that R^T has reached.
constexpr int32_t kGridRing = 16;

// What a block owns and needs.
struct GradientWindows {
  Range output_rows;
  Range output_columns;
  Range grid_rows;  // of the lower scale's grid
  Range grid_columns;
  Range head_columns[kMaxScales];  // for the forward direction
  Tile owned[kMaxScales];
  Range targets[kMaxScales];  // `lo`: the first target of lane 0 among the owned columns, `hi`: how many are owned
  int32_t grid_finished;      // rows of the grid that the band has finished
};

// Where a warp's memory lies, from its first byte.
struct WarpLayout {
  int32_t g;         // [2][kBand] rows of the incoming gradient, as they are stored
  int32_t products;  // [sums][kBand] rows; the first of them in the place of g where it is stored in as many bytes
  int32_t grid_products;
  int32_t line;
  int32_t parked;     // kParked rows of the grid, a lane's quads side by side
  int32_t stretched;  // [2] rows of scale 1.0's logits, and of those above
  int32_t bytes;
};

struct BackwardPlan {
  Extent parts;
  int32_t planes;
  int32_t chunks;                                // of the classes, one after the other
  bool quads;                                    // a quad of g is one load
  bool sums;                                     // a gradient of attention is wanted
  bool single_own, single_across, single_lower;  // taps of rows are the same row
  int32_t windows;
  LinkTables own, above, across, lower;  // U of scale 1.0, R U of the scale above, R and U of the one below
  GatherTable gather_own, gather_above, gather_across, gather_lower;
  int32_t most_own, most_above, most_across, most_lower;  // sources of a target column
  int32_t grid_quads;
  int32_t grid_slots;  // rows of the lower grid that a band finishes, at most
  int32_t factors;     // [3][kUpper + kLower][kBand] rows: A of scale 1.0, 1 - R A
  Ring grid;           // A of the lower scale on its grid
  int32_t summed;      // [sums][kBand] rows
  int32_t grid_summed;
  int32_t totals[kMaxScales];  // of the attention's gradients over the chunks
  int32_t warps;
  WarpLayout warp;
  int32_t bytes;
};

template <typename T>
constexpr int32_t kRowBytes = kLineColumns * static_cast<int32_t>(sizeof(T));

template <typename S, bool kUpper, bool kLower>
struct BackwardBlock {
  using T = arithmetic_t<S>;
  static constexpr int kSums =
      (kUpper ? 1 : 0) + (kLower ? 1 : 0);  // products on the output: of scale 1.0, of the lower
  static constexpr int kFactors = kSums;
  static constexpr int kLowerPlace = kUpper ? 1 : 0;  // of the lower scale among sums and factors

  const FuseScalesBackward<S>& problem;
  const BackwardPlan& plan;
  int64_t b;
  int32_t first_class;
  int32_t count;
  int32_t chunk;
  int32_t own_memory;  // of the warp
  int32_t own_quad;    // of the lane in a row, in bytes
  int32_t own_parked;  // where the lane's quads of rows of the grid wait

  // ---- places ---------------------------------------------------------------------------------------------------------

  HMSA_DEVICE const Chain& chain() const { return problem.chain; }
  HMSA_DEVICE int unit() const { return kUpper ? 1 : 0; }
  HMSA_DEVICE int below_unit() const { return unit() + 1; }
  HMSA_DEVICE GradientWindows& windows() const { return *shared_at<GradientWindows>(plan.windows); }
  HMSA_DEVICE int32_t memory_of(int32_t w) const { return plan.warps + w * plan.warp.bytes; }
  HMSA_DEVICE int32_t memory() const { return own_memory; }
  HMSA_DEVICE int32_t line() const { return memory() + plan.warp.line; }
  HMSA_DEVICE int32_t quad_offset() const { return own_quad; }
  HMSA_DEVICE int32_t factor_at(int32_t band, int which, int32_t r) const {
    return plan.factors + ((band % 3 * kFactors + which) * kBand + r) * kRowBytes<T> + quad_offset();
  }
  // Products take the place of the rows of g that they are made of, if these have as many bytes.
  static constexpr bool kInPlace = sizeof(S) == sizeof(T);
  HMSA_DEVICE int32_t product_at(int32_t w, int which, int32_t band) const {
    const int32_t place = kInPlace && which == 0
                              ? plan.warp.g + band % 2 * kBand * kRowBytes<T>
                              : plan.warp.products + (which - (kInPlace ? 1 : 0)) * kBand * kRowBytes<T>;
    return memory_of(w) + place + quad_offset();
  }
  HMSA_DEVICE int32_t summed_at(int which, int32_t r) const {
    return plan.summed + (which * kBand + r) * kRowBytes<T> + quad_offset();
  }
  HMSA_DEVICE int32_t grid_product_at(int32_t w, int32_t slot) const {
    return memory_of(w) + plan.warp.grid_products + slot * plan.grid.pitch + quad_offset();
  }
  HMSA_DEVICE int32_t grid_summed_at(int32_t slot) const {
    return plan.grid_summed + slot * plan.grid.pitch + quad_offset();
  }
  HMSA_DEVICE bool on_grid() const { return lane() < plan.grid_quads; }
  HMSA_DEVICE int32_t grid_quad() const { return smaller(lane(), plan.grid_quads - 1); }

  HMSA_DEVICE static const Tap<T>& row_tap(const LinkTables& link, int32_t row) {
    return shared_at<const Tap<T>>(link.rows)[row];
  }

  // How columns of a head's gradient are gathered.
  HMSA_DEVICE const GatherTable& gather_of(int i) const {
    return i == unit() ? plan.gather_own : i < unit() ? plan.gather_above : plan.gather_lower;
  }

  // ---- once for a block -----------------------------------------------------------------------------------------------

  // Ends with a barrier.
  HMSA_DEVICE_PHASE void begin() const {
    if (thread() == 0) {
      const auto index = static_cast<int32_t>(blockIdx.x);
      const BackwardTiles tiles =
          backward_tiles(chain(), plan.parts, index / plan.parts.width, index % plan.parts.width);
      GradientWindows& at = windows();
      at.output_rows = tiles.output.rows;
      at.output_columns = whole_quads(tiles.output.columns, chain().size.width);
      if (kLower) {
        at.grid_rows = tap_sources(chain().across[below_unit()].rows, Axis::kRows, at.output_rows);
        at.grid_columns = tap_sources(chain().across[below_unit()].columns, Axis::kColumns, at.output_columns);
      }
      for (int i = 0; i < chain().count; ++i) {
        at.owned[i] = tiles.owned[i];
        const Range owned = at.owned[i].columns;
        const GatherKind kind = gather_of(i).kind;
        const int32_t under = kind == GatherKind::kOne ? 4 : 2;  // columns of the output for a target
        at.targets[i] = {kind == GatherKind::kLine ? 0 : at.output_columns.lo / under - owned.lo, owned.size()};
        if (kUpper && i == 0) {
          at.head_columns[i] = chain().composed_columns().sources(at.output_columns);
        } else {
          at.head_columns[i] = tap_sources(chain().up[i].columns, Axis::kColumns,
                                           kLower && i == below_unit() ? at.grid_columns : at.output_columns);
        }
      }
    }
    __syncthreads();
    const GradientWindows& at = windows();
    const Resize& own = chain().up[unit()];
    fill_row_taps<T>(plan.own.rows, 0, own.rows, at.output_rows, 0);
    // All lanes go on like the others behind the window: heads are read where they lie.
    const Range line{at.output_columns.lo, at.output_columns.lo + kLineColumns};
    fill_column_taps<T>(plan.own.columns, 0, own.columns, line, at.head_columns[unit()].lo, kLanes);
    const auto owned_column = [&](int i) { return [&, i](int32_t t) { return at.owned[i].columns.lo + t; }; };
    fill_gather(plan.gather_own, own.columns, plan.most_own, owned_column(unit()));
    if (kUpper) {
      fill_row_taps<T>(plan.above.rows, plan.above.more_rows, chain().composed_rows(), at.output_rows, 0);
      fill_column_taps<T>(plan.above.columns, plan.above.more_columns, chain().composed_columns(), line,
                          at.head_columns[0].lo, kLanes);
      fill_gather(plan.gather_above, chain().composed_columns(), plan.most_above, owned_column(0));
    }
    if (kLower) {
      const int i = below_unit();
      const Resize& across = chain().across[i];
      const int32_t quads = plan.grid_quads;
      fill_row_taps<T>(plan.across.rows, 0, across.rows, at.output_rows, 0);
      fill_column_taps<T>(plan.across.columns, 0, across.columns, at.output_columns, at.grid_columns.lo, kLanes);
      fill_gather(plan.gather_across, across.columns, plan.most_across,
                  [&](int32_t t) { return at.grid_columns.lo + t % quads * kQuad + t / quads; });
      fill_row_taps<T>(plan.lower.rows, 0, chain().up[i].rows, at.grid_rows, 0);
      const Range grid_line{at.grid_columns.lo, at.grid_columns.lo + quads * kQuad};
      fill_column_taps<T>(plan.lower.columns, 0, chain().up[i].columns, grid_line, at.head_columns[i].lo, quads);
      fill_gathers<T>(plan.gather_lower, chain().up[i].columns, at.grid_columns, plan.most_lower, owned_column(i));
    }
    __syncthreads();
  }

  // From the columns of the output.
  template <typename AnyMap, typename ColumnOf>
  HMSA_DEVICE void fill_gather(const GatherTable& table, const AnyMap& map, int32_t most,
                               const ColumnOf& column_of) const {
    const Range sources = windows().output_columns;
    if (table.kind == GatherKind::kLine) {
      fill_gathers<T>(table, map, sources, most, column_of);
    } else {
      fill_lane_weights<T>(table, map, sources, sources.lo / (table.kind == GatherKind::kTwo ? 2 : 4));
    }
  }

  // ---- what a warp goes down a plane with -----------------------------------------------------------------------------

  using OwnStream = LaneStream<T, false, HeadSource<S>>;

  struct State {
    OwnStream own;
    LaneStream<T, true, HeadSource<S>> above;
    OwnStream lower;
    RowSums<T, false> own_sums;
    RowSums<T, true> above_sums;
    RowSums<T, false> grid_sums;   // R^T
    RowSums<T, false> lower_sums;  // U^T behind it
    int32_t grid_start;            // the first row of the grid that the band finishes
    int32_t lower_tap;             // where the taps of the grid's next row are
    // Where the lane's first target of the next owned row is: pointers that go on by a row spare 64-bit products.
    S* own_to;
    S* above_to;
    S* lower_to;
  };

  HMSA_DEVICE S* first_target(int i, bool attention, int64_t channel) const {
    const MapView<S>& map = gradient(i, attention);
    if (map.data == nullptr) return nullptr;
    const GradientWindows& at = windows();
    const int32_t target = at.targets[i].lo + lane() * (gather_of(i).kind == GatherKind::kTwo ? 2 : 1);
    return map.at(b, channel, at.owned[i].rows.lo, at.owned[i].columns.lo + target);
  }

  // Stretched rows of the plane, which change with every few rows: kept in shared memory, since registers are few.
  HMSA_DEVICE int32_t stretched_at(int which) const {
    return memory() + plan.warp.stretched + which * kRowBytes<T> + quad_offset();
  }
  template <typename Stream>
  HMSA_DEVICE Quad<T> next_stretched(Stream& stream, int which, const Tap<T>& tap, const MoreTaps<T>* more,
                                     const LinkTables& link, int i) const {
    stream.a = quad_at<T>(stretched_at(which));
    stream.b = quad_at<T>(stretched_at(which + 1));
    if (stream.moves(tap)) {
      stream.move(tap, link, kLanes, lane(), columns_of(i));
      put_quad(stretched_at(which), stream.a);
      put_quad(stretched_at(which + 1), stream.b);
    }
    return stream.value(tap, more, link, kLanes, lane(), columns_of(i));
  }

  // Rows of the grid are few: what goes down them waits in shared memory meanwhile.
  HMSA_DEVICE int32_t parked_at(int which) const { return own_parked + which * static_cast<int32_t>(sizeof(Quad<T>)); }
  HMSA_DEVICE void park_sums(const State& state) const {
    if (!on_grid()) return;
    put_quad(parked_at(0), state.lower_sums.sum[0]);
    put_quad(parked_at(1), state.lower_sums.sum[1]);
  }
  HMSA_DEVICE void unpark_sums(State& state) const {
    state.lower_sums.sum[0] = quad_at<T>(parked_at(0));
    state.lower_sums.sum[1] = quad_at<T>(parked_at(1));
  }
  HMSA_DEVICE void park_stream(const State& state) const {
    if (!on_grid()) return;
    put_quad(parked_at(2), state.lower.a);
    put_quad(parked_at(3), state.lower.b);
  }
  HMSA_DEVICE Quad<T> next_parked(State& state, const Tap<T>& tap) const {
    state.lower.a = quad_at<T>(parked_at(2));
    state.lower.b = quad_at<T>(parked_at(3));
    const Range columns = columns_of(below_unit());
    if (state.lower.moves(tap)) {
      const Quad<T> weight = quad_at<T>(parked_at(4));
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) state.lower.second_weight[j] = weight.of[j];
      state.lower.move(tap, plan.lower, plan.grid_quads, grid_quad(), columns);
      park_stream(state);
    }
    return state.lower.value(tap, nullptr, plan.lower, plan.grid_quads, grid_quad(), columns);
  }

  HMSA_DEVICE HeadSource<S> source(const MapView<const S>& map, int64_t channel, int i) const {
    return {map.at(b, channel, 0, 0), map.row, static_cast<int32_t>(map.column), chain().heads[i].height, 0};
  }
  // What column taps count from, and where the map ends.
  HMSA_DEVICE Range columns_of(int i) const { return Range{windows().head_columns[i].lo, chain().heads[i].width}; }

  HMSA_DEVICE Quad<T> next_own(OwnStream& stream, const Tap<T>& tap) const {
    return stream.next(tap, nullptr, plan.own, kLanes, lane(), columns_of(unit()));
  }
  HMSA_DEVICE Quad<T> next_lower(OwnStream& stream, const Tap<T>& tap) const {
    return stream.next(tap, nullptr, plan.lower, plan.grid_quads, grid_quad(), columns_of(below_unit()));
  }

  HMSA_DEVICE_PHASE void start(State& state, bool attention, int64_t channel) const {
    const GradientWindows& at = windows();
    // Rows that nothing reads come before the first tap, or behind the last: their gradients are zero.
    state.own_sums.begin(smaller(row_tap(plan.own, 0).first, at.owned[unit()].rows.lo));
    if (kUpper || !attention) state.own_to = first_target(unit(), attention, channel);
    if (kUpper && !attention) state.above_to = first_target(0, attention, channel);
    if (kLower) state.lower_to = first_target(below_unit(), attention, channel);
    if (!attention) {
      state.own.begin(plan.own, kLanes, lane(), columns_of(unit()), source(problem.logits[unit()], channel, unit()));
    }
    if (kUpper) {
      state.above_sums.begin(smaller(row_tap(plan.above, 0).first, at.owned[0].rows.lo));
      if (!attention) {
        state.above.begin(plan.above, kLanes, lane(), columns_of(0), source(problem.logits[0], channel, 0));
      }
    }
    if (kLower) {
      const int i = below_unit();
      const int32_t grid_row = row_tap(plan.across, 0).first - at.grid_rows.lo;
      const int32_t first = row_tap(plan.lower, grid_row).first;
      state.lower_tap = plan.lower.rows + grid_row * static_cast<int32_t>(sizeof(Tap<T>));
      state.grid_sums.begin(row_tap(plan.across, 0).first);
      state.lower_sums.begin(smaller(first, at.owned[i].rows.lo));
      if (!attention) {
        state.lower.begin(plan.lower, plan.grid_quads, grid_quad(), columns_of(i),
                          source(problem.logits[i], channel, i));
        Quad<T> weight;
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) weight.of[j] = state.lower.second_weight[j];
        if (on_grid()) put_quad(parked_at(4), weight);
        park_stream(state);
      }
      park_sums(state);
      __syncwarp();
    }
  }

  HMSA_DEVICE int32_t bands() const { return larger(1, divide_up(windows().output_rows.size(), kBand)); }
  HMSA_DEVICE Range band_rows(int32_t band) const {
    const Range rows = windows().output_rows;
    return Range{rows.lo + band * kBand, smaller(rows.lo + (band + 1) * kBand, rows.hi)};
  }

  // ---- rows of the heads' gradients -----------------------------------------------------------------------------------

  // Columns of a finished row of a head's gradient, of the plane or, for the attention, of all planes so far.
  template <bool kAttention>
  HMSA_DEVICE void write_row(int i, S*& to, const GatherTable& table, int32_t row, const Quad<T>& quad) const {
    const MapView<S>& map = gradient(i, kAttention);
    const Range rows = windows().owned[i].rows;
    if (map.data == nullptr || uniform(row < rows.lo || row >= rows.hi)) return;
    const Range targets = windows().targets[i];
    const auto write = [&](int32_t t, S* at, T value) {
      if (static_cast<uint32_t>(t) >= static_cast<uint32_t>(targets.hi)) return;
      if (kAttention && plan.chunks > 1) {
        T& total = shared_at<T>(plan.totals[i])[(row - rows.lo) * targets.hi + t];
        if (chunk > 0) value += total;
        total = value;
      }
      if (!kAttention || chunk + 1 == plan.chunks) from_arithmetic(at, value);
    };
    if (table.kind == GatherKind::kOne) {
      write(targets.lo + lane(), to, gathered_one(table, quad));
    } else if (table.kind == GatherKind::kTwo) {
      T two[2];
      gathered_two(table, quad, two);
      const int32_t t = targets.lo + 2 * lane();
      write(t, to, two[0]);
      write(t + 1, to + map.column, two[1]);
    } else {
      put_quad(line() + quad_offset(), quad);
      __syncwarp();
      S* at = to;
      HMSA_ROLLED
      for (int32_t t = lane(); uniform(t < targets.hi); t += kLanes, at += kLanes * map.column) {
        if (t < targets.hi) write(t, at, gathered<T>(table, line(), t));
      }
      __syncwarp();
    }
    to += map.row;
  }

  HMSA_DEVICE const MapView<S>& gradient(int i, bool attention) const {
    return attention ? problem.grad_attention[i] : problem.grad_logits[i];
  }

  // A finished row on the grid of the lower scale: of dLoss/d(A L), or of R^T of the products for the attention.
  template <bool kAttention>
  HMSA_DEVICE void grid_row(State& state, int32_t row, const Quad<T>& quad) const {
    const int i = below_unit();
    Quad<T> grid{};
    if (plan.gather_across.kind == GatherKind::kTwo) {
      // Column 0 of the window is the second target of the lane before lane 0.
      T targets[2];
      gathered_two(plan.gather_across, quad, targets);
      const int l = 2 * lane();
      const T before = __shfl_sync(0xffffffffu, targets[1], l - 1);
      grid.of[0] = l == 0 ? T(0) : before;
      grid.of[1] = __shfl_sync(0xffffffffu, targets[0], l);
      grid.of[2] = __shfl_sync(0xffffffffu, targets[1], l);
      grid.of[3] = __shfl_sync(0xffffffffu, targets[0], l + 1);
    } else {
      put_quad(line() + quad_offset(), quad);
      __syncwarp();
      if (on_grid()) {
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) {
          grid.of[j] = gathered<T>(plan.gather_across, line(), j * plan.grid_quads + lane());
        }
      }
      __syncwarp();
    }
    const Tap<T> tap = *shared_at<const Tap<T>>(state.lower_tap);
    state.lower_tap += static_cast<int32_t>(sizeof(Tap<T>));
    const int32_t slot = row - state.grid_start;
    if (kAttention) {
      if (on_grid()) {
        const Quad<T> products = quad_at<T>(grid_summed_at(slot));
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) grid.of[j] = products.of[j] - grid.of[j];
      }
    } else {
      if (plan.sums) {
        Quad<T> product = next_parked(state, tap);
        times(product, grid);
        if (on_grid()) put_quad(own_memory + plan.warp.grid_products + slot * plan.grid.pitch + quad_offset(), product);
      }
      // Lanes behind the grid go along with its last quad: nothing is done with what they make.
      times(grid, quad_at<T>(plan.grid.at(row) + grid_quad() * static_cast<int32_t>(sizeof(Quad<T>))));
    }
    unpark_sums(state);
    state.lower_sums.finish_until(tap.first, [&](int32_t head_row, const Quad<T>& sums) {
      write_row<kAttention>(i, state.lower_to, plan.gather_lower, head_row, sums);
    });
    state.lower_sums.add(tap, nullptr, plan.single_lower, grid);
    park_sums(state);
  }

  // ---- bands ----------------------------------------------------------------------------------------------------------

  // Columns of the line that the output does not have hold zeros.
  HMSA_DEVICE_PHASE void clear_line() const {
    const int32_t columns = windows().output_columns.size() - lane() * kQuad;
    if (columns >= kQuad) return;
    for (int32_t r = 0; r < 2 * kBand; ++r) {
      for (int32_t j = larger(columns, 0); j < kQuad; ++j) {
        from_arithmetic(shared_at<S>(memory() + plan.warp.g) + (r * kLanes + lane()) * kQuad + j, T(0));
      }
    }
  }

  // Asks for the rows of g of a band; `from` is the lane's quad in the first of them.
  HMSA_DEVICE void fetch(int32_t band, const S* from) const {
    constexpr int kBytes = static_cast<int>(sizeof(S));
    const int32_t rows = windows().output_rows.size() - band * kBand;
    const int32_t columns = windows().output_columns.size() - lane() * kQuad;
    if (columns > 0) {
      const MapView<const S>& grad = problem.grad_output;
      int32_t to = memory() + plan.warp.g + (band % 2 * kBand * kLanes + lane()) * kQuad * kBytes;
      if (plan.quads && rows >= kBand) {
        HMSA_UNROLL
        for (int r = 0; r < kBand; ++r, from += grad.row) {
          copy_async<kQuad * kBytes>(to + r * kLanes * kQuad * kBytes, from);
        }
      } else if (plan.quads) {
        HMSA_ROLLED
        for (int r = 0; r < rows; ++r, from += grad.row, to += kLanes * kQuad * kBytes) {
          copy_async<kQuad * kBytes>(to, from);
        }
      } else {
        HMSA_ROLLED
        for (int r = 0; r < smaller(rows, kBand); ++r, from += grad.row, to += kLanes * kQuad * kBytes) {
          HMSA_UNROLL
          for (int j = 0; j < kQuad; ++j) {
            if (j >= columns) break;
            if constexpr (kBytes >= 4) {
              copy_async<kBytes>(to + j * kBytes, from + j * grad.column);
            } else {
              *shared_at<S>(to + j * kBytes) = from[j * grad.column];
            }
          }
        }
      }
    }
    close_copies();
  }

  // Rows of g of a plane, or, for the attention, of its products summed over the planes.
  template <bool kAttention>
  HMSA_DEVICE_PHASE void go_down(State& state, int32_t band) const {
    const Range rows = band_rows(band);
    const auto finish_own = [&](int32_t row, const Quad<T>& sums) {
      write_row<kAttention>(unit(), state.own_to, plan.gather_own, row, sums);
    };
    const auto finish_above = [&](int32_t row, const Quad<T>& sums) {
      write_row<false>(0, state.above_to, plan.gather_above, row, sums);
    };
    const auto finish_grid = [&](int32_t row, const Quad<T>& sums) { grid_row<kAttention>(state, row, sums); };
    if (kLower) state.grid_start = state.grid_sums.current;
    constexpr int32_t kTapBytes = static_cast<int32_t>(sizeof(Tap<T>));
    int32_t taps = (rows.lo - windows().output_rows.lo) * kTapBytes;
    int32_t g_at =
        memory() + plan.warp.g + (band % 2 * kBand * kLanes + lane()) * kQuad * static_cast<int32_t>(sizeof(S));
    const int32_t factors = factor_at(band, 0, 0);
    const int32_t products = kAttention ? summed_at(0, 0) : product_at(warp(), 0, band);
    const int32_t last_products = kAttention ? summed_at(kSums - 1, 0) : product_at(warp(), kSums - 1, band);
    constexpr int32_t kPlace = kBand * kRowBytes<T>;  // from factor to factor, and from product to product
    HMSA_ROLLED
    for (int32_t at = 0; uniform(at < rows.size() * kRowBytes<T>); at += kRowBytes<T>, taps += kTapBytes) {
      const Tap<T> own_tap = *shared_at<const Tap<T>>(plan.own.rows + taps);
      Quad<T> own_part{};   // what goes to the logits of scale 1.0, or to its attention
      Quad<T> grid_part{};  // to the lower grid
      if constexpr (kAttention) {
        if (kUpper) own_part = quad_at<T>(products + at);
        if (kUpper && kLower) times(own_part, quad_at<T>(factors + at + kLowerPlace * kPlace));
        if (kLower) grid_part = quad_at<T>(last_products + at);
      } else {
        const Quad<T> g = load_whole(shared_at<const S>(g_at));
        g_at += kLanes * kQuad * static_cast<int32_t>(sizeof(S));
        own_part = g;
        grid_part = g;
        if (kLower) times(own_part, quad_at<T>(factors + at + kLowerPlace * kPlace));
        Quad<T> before{};
        if (plan.sums && kSums > 0) {
          before = next_stretched(state.own, 0, own_tap, nullptr, plan.own, unit());
        }
        if constexpr (kUpper) {
          const Quad<T> a = quad_at<T>(factors + at);
          const Tap<T> above_tap = *shared_at<const Tap<T>>(plan.above.rows + taps);
          const MoreTaps<T>* more = plan.above.more_rows == 0
                                        ? nullptr
                                        : shared_at<const MoreTaps<T>>(plan.above.more_rows) + taps / kTapBytes;
          if (plan.sums) {
            const Quad<T> logit = before;
            before = next_stretched(state.above, 2, above_tap, more, plan.above, 0);
            Quad<T> product;
            HMSA_UNROLL
            for (int j = 0; j < kQuad; ++j) {
              product.of[j] = g.of[j] * (logit.of[j] - before.of[j]);
              before.of[j] = a.of[j] * logit.of[j] + (T(1) - a.of[j]) * before.of[j];
            }
            put_quad(products + at, product);
          }
          Quad<T> above_part;
          HMSA_UNROLL
          for (int j = 0; j < kQuad; ++j) {
            above_part.of[j] = (T(1) - a.of[j]) * own_part.of[j];
            own_part.of[j] *= a.of[j];
          }
          state.above_sums.finish_until(above_tap.first, finish_above);
          state.above_sums.add(above_tap, more, true, above_part);
        }
        if (kLower && plan.sums) {
          times(before, g);
          put_quad(last_products + at, before);
        }
      }
      if (!kAttention || kUpper) {
        state.own_sums.finish_until(own_tap.first, finish_own);
        state.own_sums.add(own_tap, nullptr, plan.single_own, own_part);
      }
      if constexpr (kLower) {
        const Tap<T> across_tap = *shared_at<const Tap<T>>(plan.across.rows + taps);
        state.grid_sums.finish_until(across_tap.first, finish_grid);
        state.grid_sums.add(across_tap, nullptr, plan.single_across, grid_part);
      }
    }
    if (uniform(band + 1 == bands())) {
      const GradientWindows& at = windows();
      if (!kAttention || kUpper) {
        state.own_sums.finish_all(at.owned[unit()].rows.hi, chain().heads[unit()].height, finish_own);
      }
      if (kUpper && !kAttention) {
        state.above_sums.finish_all(at.owned[0].rows.hi, chain().heads[0].height, finish_above);
      }
      if constexpr (kLower) {
        const int i = below_unit();
        state.grid_sums.finish_all(smaller(at.grid_rows.hi, chain().grids[i].height), chain().grids[i].height,
                                   finish_grid);
        unpark_sums(state);
        state.lower_sums.finish_all(at.owned[i].rows.hi, chain().heads[i].height,
                                    [&](int32_t row, const Quad<T>& sums) {
                                      write_row<kAttention>(i, state.lower_to, plan.gather_lower, row, sums);
                                    });
      }
    }
    if (kLower && !kAttention && thread() == 0) windows().grid_finished = state.grid_sums.current - state.grid_start;
  }

  // The streams that make the factors of the rows that come next: A of scale 1.0, and 1 - R A of the lower one.
  struct Factors {
    OwnStream own;
    OwnStream lower;
    LaneStream<T, false, RingSource<T>> keep;
    int32_t grid_row;  // the next one of A on the lower grid
  };

  HMSA_DEVICE_PHASE void start(Factors& factors, int64_t channel) const {
    if (kUpper) {
      factors.own.begin(plan.own, kLanes, lane(), columns_of(unit()),
                        source(problem.attention[unit()], channel, unit()));
    }
    if (kLower) {
      const int i = below_unit();
      factors.lower.begin(plan.lower, plan.grid_quads, grid_quad(), columns_of(i),
                          source(problem.attention[i], channel, i));
      // Every column of the grid is there, so that all of them count as inside.
      const Range columns{0, INT32_MAX};
      factors.keep.begin(plan.across, kLanes, lane(), columns, RingSource<T>{plan.grid, 0});
      factors.grid_row = windows().grid_rows.lo;
    }
  }

  HMSA_DEVICE_PHASE void make_factors(Factors& factors, int32_t band) const {
    const Range rows = band_rows(band);
    if (uniform(rows.empty())) return;
    const int32_t first = windows().output_rows.lo;
    const int32_t last = rows.hi - 1 - first;
    if constexpr (kLower) {
      const int32_t until = row_tap(plan.across, last).second + 1;
      const int32_t grid_first = windows().grid_rows.lo;
      HMSA_ROLLED
      for (; uniform(factors.grid_row < until); ++factors.grid_row) {
        const Quad<T> a = next_lower(factors.lower, row_tap(plan.lower, factors.grid_row - grid_first));
        if (on_grid()) put_quad(plan.grid.at(factors.grid_row) + quad_offset(), a);
      }
      __syncwarp();
    }
    HMSA_ROLLED
    for (int32_t r = 0; uniform(r < rows.size()); ++r) {
      const int32_t row = rows.lo + r - first;
      if (kUpper) put_quad(factor_at(band, 0, r), next_own(factors.own, row_tap(plan.own, row)));
      if constexpr (kLower) {
        Quad<T> keep =
            factors.keep.next(row_tap(plan.across, row), nullptr, plan.across, kLanes, lane(), Range{0, INT32_MAX});
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) keep.of[j] = T(1) - keep.of[j];
        put_quad(factor_at(band, kLowerPlace, r), keep);
      }
    }
  }

  // Products of a band summed over the planes: a row for each warp.
  HMSA_DEVICE_PHASE void sum_products(int32_t band) const {
    const int32_t slots = kLower ? windows().grid_finished : 0;
    HMSA_ROLLED
    for (int32_t n = warp(); uniform(n < kSums * kBand + slots); n += threads() / kLanes) {
      const int32_t slot = n - kSums * kBand;
      if (slot >= 0 && !on_grid()) continue;
      const int which = kSums > 1 && n >= kBand ? 1 : 0;
      int32_t from =
          slot < 0 ? product_at(0, which, band) + (n - which * kBand) * kRowBytes<T> : grid_product_at(0, slot);
      // A count, since a bound of the addresses would be divided by what lies between them.
      Quad<T> sum{};
      HMSA_UNROLL_BY(4)
      for (int32_t k = 0; k < count; ++k, from += plan.warp.bytes) {
        const Quad<T> product = quad_at<T>(from);
        HMSA_UNROLL
        for (int j = 0; j < kQuad; ++j) sum.of[j] += product.of[j];
      }
      put_quad(slot < 0 ? summed_at(0, n) : grid_summed_at(slot), sum);
    }
  }

  // All of a chunk's planes, from the first row to the last. The warps of the planes and that of the attention meet at the
  // same barriers.
  HMSA_DEVICE void run() const {
    if (uniform(warp() < plan.planes)) {
      run_plane();
    } else {
      run_attention();
    }
  }

  HMSA_DEVICE_PHASE void run_plane() const {
    const int32_t all = bands();
    const bool works = uniform(warp() < count);
    const int64_t channel = first_class + warp();
    const GradientWindows& at = windows();
    const S* from = problem.grad_output.at(b, channel, at.output_rows.lo, at.output_columns.lo + lane() * kQuad);
    State state;
    if (works) {
      start(state, false, channel);
      clear_line();
      fetch(0, from);
    }
    meet();
    HMSA_ROLLED
    for (int32_t band = 0; uniform(band <= all); ++band) {
      if (works && uniform(band < all)) {
        from += kBand * problem.grad_output.row;
        fetch(band + 1, from);
        await_copies();
        go_down<false>(state, band);
      }
      finish_band(band, band < all);
    }
  }

  HMSA_DEVICE_PHASE void run_attention() const {
    const int32_t all = bands();
    const int64_t channel = chain().class_wise ? first_class : 0;
    State state;
    Factors factors;
    if (kFactors > 0) {
      start(state, true, channel);
      start(factors, channel);
      make_factors(factors, 0);
    }
    meet();
    HMSA_ROLLED
    for (int32_t band = 0; uniform(band <= all); ++band) {
      if (kFactors > 0) {
        if (plan.sums && uniform(band > 0)) go_down<true>(state, band - 1);
        make_factors(factors, band + 1);
      }
      finish_band(band, band < all);
    }
  }

  HMSA_DEVICE void finish_band(int32_t band, bool has_products) const {
    meet();
    if (plan.sums && kSums > 0 && uniform(has_products)) {
      sum_products(band);
      meet();
    }
  }
};

template <typename S, bool kUpper, bool kLower>
__global__ void HMSA_MOST_REGISTERS((kRegisters<kUpper, kLower>))
    fuse_scales_backward_kernel(HMSA_PARAMETER FuseScalesBackward<S> problem, HMSA_PARAMETER BackwardPlan plan) {
  using Block = BackwardBlock<S, kUpper, kLower>;
  constexpr auto kQuadBytes = static_cast<int32_t>(sizeof(Quad<arithmetic_t<S>>));
  const int32_t memory = plan.warps + warp() * plan.warp.bytes;
  const int32_t parked = memory + plan.warp.parked + smaller(lane(), plan.grid_quads - 1) * kParked * kQuadBytes;
  Block block{problem, plan, 0, 0, 0, 0, memory, lane() * kQuadBytes, parked};
  block.begin();
  const auto classes = static_cast<int32_t>(problem.classes);
  for (block.b = blockIdx.y; block.b < problem.batch; block.b += gridDim.y) {
    if (problem.chain.class_wise) {
      block.count = 1;
      for (block.first_class = blockIdx.z; block.first_class < classes; block.first_class += gridDim.z) block.run();
      continue;
    }
    for (block.chunk = 0; block.chunk < plan.chunks; ++block.chunk) {
      block.first_class = block.chunk * plan.planes;
      block.count = smaller(plan.planes, classes - block.first_class);
      block.run();
    }
  }
}

// ---- the launch -----------------------------------------------------------------------------------------------------

// Whether the kernel takes the chain at all.
bool is_streamed(const Chain& chain) {
  if (chain.unit > 1 || chain.count > chain.unit + 2 || chain.needs_final_resize) return false;
  if (chain.unit == 0) return true;
  const auto fits = [](const ComposedMap& map) { return map.inner.slope <= map.inner.den; };
  return fits(chain.composed_rows()) && fits(chain.composed_columns());
}

// The fewest divisions of the columns with which every window is at most a line wide; 0 if there is none.
int32_t divide_columns(const Chain& chain) {
  const int lower = chain.unit + 1;
  const auto fits = [&](int32_t parts) {
    for (int32_t k = 0; k < parts; ++k) {
      const BackwardTiles tiles = backward_tiles(chain, Extent{1, parts}, 0, k);
      const Range output = whole_quads(tiles.output.columns, chain.size.width);
      if (output.size() > kLineColumns) return false;
      if (lower < chain.count && tap_sources(chain.across[lower].columns, Axis::kColumns, output).size() > kLineColumns)
        return false;
    }
    return true;
  };
  int32_t coarsest = chain.heads[0].width;
  for (int i = 1; i < chain.count; ++i) coarsest = smaller(coarsest, chain.heads[i].width);
  for (int32_t parts = divide_up(chain.size.width, kLineColumns); parts <= coarsest; ++parts) {
    if (fits(parts)) return parts;
  }
  return 0;
}

template <typename S>
void place_backward(const FuseScalesBackward<S>& problem, Extent rows_and_columns, BackwardPlan& plan) {
  using T = arithmetic_t<S>;
  const Chain& chain = problem.chain;
  const bool upper = chain.unit > 0;
  const bool lower = chain.count > chain.unit + 1;
  const int i = chain.unit + 1;
  const int sums = (upper ? 1 : 0) + (lower ? 1 : 0);
  const int32_t rows = rows_and_columns.height;
  const int32_t columns = smaller(rows_and_columns.width, kLineColumns);
  Arena arena;
  plan.windows = arena.take_array<GradientWindows>(1);
  // Where a resize doubles a side, every output reads two inputs.
  const bool more_rows = upper && gather_kind(chain.composed_rows()) != GatherKind::kTwo;
  const bool more_columns = upper && gather_kind(chain.composed_columns()) != GatherKind::kTwo;
  const auto tables = [&](int32_t height, int32_t quads, bool composed) {
    LinkTables link{};
    link.rows = arena.take_array<Tap<T>>(height + kRun);
    link.columns = arena.take_array<Tap<T>>(quads * kQuad);
    if (composed && more_rows) link.more_rows = arena.take_array<MoreTaps<T>>(height + kRun);
    if (composed && more_columns) link.more_columns = arena.take_array<MoreTaps<T>>(quads * kQuad);
    return link;
  };
  const auto gathers = [&](GatherKind kind, int32_t targets, int32_t most) {
    GatherTable table{kind, 0, 0, targets};
    if (kind == GatherKind::kLine) {
      table.gathers = arena.take_array<Gather>(targets);
      table.weights = arena.take_array<T>(static_cast<int64_t>(targets) * most);
    } else {
      table.weights = arena.take_array<T>(2 * kLineColumns);
    }
    return table;
  };
  const auto share_of = [&](int scale) { return divide_up(chain.heads[scale].width, plan.parts.width); };
  const Resize& own = chain.up[chain.unit];
  plan.own = tables(rows, kLanes, false);
  plan.most_own = most_outputs(own.columns, 1);
  plan.gather_own = gathers(gather_kind(own.columns), share_of(chain.unit), plan.most_own);
  plan.single_own = own.rows.identity();
  if (upper) {
    plan.above = tables(rows, kLanes, true);
    plan.most_above = most_outputs(chain.composed_columns(), 1);
    plan.gather_above = gathers(gather_kind(chain.composed_columns()), share_of(0), plan.most_above);
  }
  if (lower) {
    const Resize& across = chain.across[i];
    const int32_t grid_rows = most_sources(across.rows, rows);
    const int32_t grid_columns = smaller(most_sources(across.columns, columns), kLineColumns);
    const int32_t band_rows = most_sources(across.rows, kBand);
    plan.grid_quads = divide_up(grid_columns, kQuad);
    // Those whose outputs end in the band, and at the end of the window two more.
    plan.grid_slots = smaller(band_rows - 1, kBand) + 2;
    plan.across = tables(rows, kLanes, false);
    plan.most_across = most_outputs(across.columns, 1);
    plan.gather_across = gathers(gather_kind(across.columns), plan.grid_quads * kQuad, plan.most_across);
    plan.lower = tables(grid_rows, plan.grid_quads, false);
    plan.most_lower = most_outputs(chain.up[i].columns, 1);
    plan.gather_lower = gathers(GatherKind::kLine, share_of(i), plan.most_lower);
    plan.single_across = across.rows.identity();
    plan.single_lower = chain.up[i].rows.identity();
    plan.grid = Ring{0, plan.grid_quads * static_cast<int32_t>(sizeof(Quad<T>)), kGridRing - 1};
    plan.grid.offset = arena.take(static_cast<int64_t>(kGridRing) * plan.grid.pitch);
    plan.grid_summed = arena.take(static_cast<int64_t>(plan.grid_slots) * plan.grid.pitch);
  }
  plan.factors = arena.take(static_cast<int64_t>(3) * sums * kBand * kRowBytes<T>);
  plan.summed = arena.take(static_cast<int64_t>(sums) * kBand * kRowBytes<T>);
  if (plan.chunks > 1) {
    for (int scale = 1; scale < chain.count; ++scale) {
      const int32_t height = divide_up(chain.heads[scale].height, plan.parts.height);
      plan.totals[scale] = arena.take_array<T>(static_cast<int64_t>(height) * share_of(scale));
    }
  }
  Arena warp;
  plan.warp.line = warp.take(kRowBytes<T>);
  plan.warp.parked = warp.take(static_cast<int64_t>(kParked) * plan.grid.pitch);
  const int32_t of_attention = warp.bytes;
  plan.warp.stretched = warp.take(static_cast<int64_t>(sums > 0 ? upper ? 4 : 2 : 0) * kRowBytes<T>);
  plan.warp.g = warp.take(static_cast<int64_t>(2) * kBand * kLineColumns * static_cast<int64_t>(sizeof(S)));
  const int separate = sums - (sizeof(S) == sizeof(T) ? 1 : 0);
  plan.warp.products = warp.take(static_cast<int64_t>(separate > 0 ? separate : 0) * kBand * kRowBytes<T>);
  plan.warp.grid_products = warp.take(static_cast<int64_t>(plan.grid_slots) * plan.grid.pitch);
  plan.warp.bytes = warp.bytes;
  plan.warps = arena.take(static_cast<int64_t>(plan.planes) * warp.bytes + of_attention);
  plan.bytes = arena.bytes;
}

// False if there is no plan.
template <typename S>
bool plan_backward(const FuseScalesBackward<S>& problem, BackwardPlan& plan) {
  const Chain& chain = problem.chain;
  if (sizeof(arithmetic_t<S>) != sizeof(float) || !is_streamed(chain)) return false;
  plan = BackwardPlan{};
  plan.parts.width = divide_columns(chain);
  if (plan.parts.width == 0) return false;
  const auto classes = static_cast<int32_t>(problem.classes);
  for (int i = 0; i < chain.count; ++i) {
    const auto is_narrow = [&](const MapView<const S>& map) {
      const int64_t stride = map.column < 0 ? -map.column : map.column;
      return stride * chain.heads[i].width <= INT32_MAX;
    };
    if (!is_narrow(problem.logits[i]) || (i > 0 && !is_narrow(problem.attention[i]))) return false;
  }
  for (int i = 1; i < chain.count; ++i) plan.sums = plan.sums || problem.grad_attention[i].data != nullptr;
  plan.quads = lies_in_quads(problem.grad_output, problem.batch, problem.classes, chain.size);

  int32_t coarsest = chain.heads[0].height;
  int32_t rim = 0;
  for (int i = 1; i < chain.count; ++i) coarsest = smaller(coarsest, chain.heads[i].height);
  const auto rows_with = [&](int32_t parts) {
    int32_t most = 0;
    for (const int32_t k : {0, parts / 2, parts - 1}) {
      most = larger(most, backward_tiles(chain, Extent{parts, 1}, k, 0).output.rows.size());
    }
    return most;
  };
  rim = rows_with(coarsest) - divide_up(chain.size.height, coarsest);
  const int64_t images = problem.batch * (chain.class_wise ? problem.classes : 1);
  const auto multiprocessors = multiprocessor_count();
  // Blocks on a multiprocessor: fewer of them with more planes each make their factors and rims less often, more of them
  // keep it busy while some wait for others.
  BackwardPlan best_plan{};
  double best_cost = 0;
  for (int32_t blocks = blocks_with(chain.unit > 0, chain.count > chain.unit + 1); blocks >= 1; --blocks) {
    const int64_t slots = blocks * multiprocessors;
    int64_t best = INT64_MAX;
    BackwardPlan divided = plan;
    for (int32_t parts = 1; parts <= smaller(coarsest, 64); ++parts) {
      const int64_t all = images * plan.parts.width * parts;
      const int64_t rows = divide_up(chain.size.height, parts) + rim + 8;  // as many as the set-up takes
      if (rows > 1024 && parts < coarsest) continue;
      const int64_t cost = (all + slots - 1) / slots * rows;
      if (cost >= best) continue;
      best = cost;
      divided.parts.height = parts;
    }
    if (divided.parts.height == 0) continue;
    int32_t rows = 0;
    for (int32_t k = 0; k < divided.parts.height; ++k) {
      rows = larger(rows, backward_tiles(chain, Extent{divided.parts.height, 1}, k, 0).output.rows.size());
    }
    const int32_t most_planes = most_warps(chain.unit > 0, chain.count > chain.unit + 1) / blocks - 1;
    for (int32_t most = chain.class_wise ? 1 : most_planes; most >= 1; --most) {
      BackwardPlan candidate = divided;
      candidate.chunks = chain.class_wise ? 1 : divide_up(classes, most);
      candidate.planes = chain.class_wise ? 1 : divide_up(classes, candidate.chunks);
      if (candidate.planes < most && most > 1) continue;
      place_backward(problem, Extent{rows, chain.size.width}, candidate);
      if (candidate.bytes > shared_budget(blocks)) continue;
      // Assumed, for want of a measurement: up to 24 warps take the same time for a row, and a lone block, whose warps
      // wait for each other, takes 15 % longer.
      const int32_t warps = blocks * (candidate.planes + 1);
      const double waits = blocks == 1 ? 1.15 : 1.0;
      const double cost = waits * static_cast<double>(best) * candidate.chunks * warps / smaller(warps, 24);
      if (best_cost > 0 && cost >= best_cost) continue;
      best_cost = cost;
      best_plan = candidate;
    }
  }
  plan = best_plan;
  return best_cost > 0;
}

}  // namespace
}  // namespace fuse

template <typename S>
void launch_fuse_scales_backward(const FuseScalesBackward<S>& problem, const Workspace& workspace,
                                 StreamHandle stream) {
  if constexpr (sizeof(arithmetic_t<S>) == sizeof(float)) {
    const auto start = [&](auto kernel, dim3 grid, const fuse::OctavePlan& plan) {
      HMSA_LAUNCH(kernel, grid, dim3((plan.planes + 1) * fuse::kLanes), plan.bytes, static_cast<cudaStream_t>(stream),
                  problem, plan);
    };
    if (fuse::start_octaves(problem, start)) return;
    fuse::BackwardPlan plan;
    if (fuse::plan_backward(problem, plan)) {
      const Chain& chain = problem.chain;
      const auto at_most = [](int64_t n) { return static_cast<unsigned>(n < 65535 ? n : 65535); };
      const dim3 grid(static_cast<unsigned>(plan.parts.height * plan.parts.width), at_most(problem.batch),
                      at_most(chain.class_wise ? problem.classes : 1));
      const auto start = [&](auto kernel) {
        HMSA_LAUNCH(kernel, grid, dim3((plan.planes + 1) * fuse::kLanes), plan.bytes, static_cast<cudaStream_t>(stream),
                    problem, plan);
      };
      const bool lower = chain.count > chain.unit + 1;
      using fuse::fuse_scales_backward_kernel;
      if (chain.unit > 0) {
        return start(lower ? fuse_scales_backward_kernel<S, true, true> : fuse_scales_backward_kernel<S, true, false>);
      }
      return start(lower ? fuse_scales_backward_kernel<S, false, true> : fuse_scales_backward_kernel<S, false, false>);
    }
  }
  launch_gathered_backward(problem, workspace(gathered_backward_workspace(problem)), stream);
}

HMSA_INSTANTIATE(void launch_fuse_scales_backward(const FuseScalesBackward<float>&, const Workspace&, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_backward(const FuseScalesBackward<double>&, const Workspace&, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_backward(const FuseScalesBackward<Half>&, const Workspace&, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_backward(const FuseScalesBackward<BFloat16>&, const Workspace&, StreamHandle));

}  // namespace cuda
}  // namespace hmsa
