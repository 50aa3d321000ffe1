// The backward of any chain on the GPU, whole or in parts: for the gradients that a loss makes band by band, and for the
// chains that fuse_scales_backward.cu does not take. The equations stand in ops/cpu/fuse_scales_backward.cpp.
//
// One launch per scale: a block owns a tile of the head's map and gathers, a few channels at a time, what reaches it
// along the path of adjoint resizes from the output to the head (gradient_path.cuh). Everything on the path but the
// incoming gradient lives in shared memory. Sums are taken in a fixed order, nothing is added by two blocks, and there
// are no atomics: the result is the same in every run.
//
// The gradient of attention needs sum_c[g * P_before] (below 1.0) or sum_c[g * (L - R P_before)] (1.0) on the output,
// which does not separate by tiles of a head: fuse_scales_channel_sums.cu makes these maps first, one number per pixel.
// Above 1.0, sum_c[dP * (L - R P_before)] is put together on the grid, within the block.
//
// Class-wise attention leaves every class a chain of its own: it runs as one problem of one channel after the other.
//
// A launch may be for a part of the heads only (gradient_parts.cuh). No sum depends on how the work is divided.
#include "ops/cuda/fuse_scales.h"
#include "ops/cuda/fuse_scales_channel_sums.h"
#include "ops/cuda/gradient_layout.cuh"
#include "ops/cuda/gradient_parts.cuh"

namespace hmsa {
namespace cuda {
namespace {

using namespace backward;

template <typename S, typename G, typename T>
struct GradientBlock {
  const FuseScalesBackward<S, G>& problem;
  const Path& path;
  const GradientLayout& layout;
  const PlaneView<const T>& sums_map;  // [B, H, W] from launch_channel_sums
  int32_t b;

  // ---- what lies where

  static HMSA_DEVICE BlockTiles& tiles() { return *shared_at<BlockTiles>(0); }
  static HMSA_DEVICE T* values(int32_t offset) { return shared_at<T>(offset); }
  HMSA_DEVICE Tile level(int s) const { return Tile{tiles().rows.levels[s], tiles().columns.levels[s]}; }
  HMSA_DEVICE Tile target(int s) const {
    return s + 1 < path.steps ? level(s + 1) : Tile{tiles().rows.owned, tiles().columns.owned};
  }
  HMSA_DEVICE AxisTable<T> row_table(int s) const {
    return {shared_at<Tap<T>>(layout.row_taps[s]), shared_at<Reach>(layout.row_reaches[s]), level(s).rows,
            target(s).rows};
  }
  HMSA_DEVICE AxisTable<T> column_table(int s) const {
    return {shared_at<Tap<T>>(layout.column_taps[s]), shared_at<Reach>(layout.column_reaches[s]), level(s).columns,
            target(s).columns};
  }
  HMSA_DEVICE Factor<T> factor(int s) const {
    return {has_factor(problem.chain, path, s) ? values(layout.factor[s]) : nullptr, factor_row(s)};
  }
  HMSA_DEVICE int32_t factor_row(int s) const { return round_up(level(s).columns.size(), kQuad); }
  HMSA_DEVICE Patch<T> patch(int32_t offset, int s, int32_t inner) const {
    return Patch<T>(values(offset), level(s).rows.size(), level(s).columns.size(), inner);
  }
  HMSA_DEVICE ForwardOperands<T, FuseScalesBackward<S, G>> operands() const {
    return {problem, layout.forward, tiles().forward_rows, tiles().forward_columns, b};
  }
  HMSA_DEVICE bool makes_grid_sums() const { return tiles().makes_attention && has_grid_sums(path); }

  // ---- once per piece

  // Tiles and tables of piece `index`. Begins with a barrier, since the last piece's may be in use, and
  // ends with one.
  HMSA_DEVICE_CALL void start_piece(int index) const {
    const Chain& chain = problem.chain;
    __syncthreads();
    if (thread() == 0) {
      tiles().piece = index;
      tiles().rows =
          piece_ranges(chain, path, Axis::kRows, tiles().full_rows, layout.piece.height, index / layout.pieces.width);
      tiles().columns = piece_ranges(chain, path, Axis::kColumns, tiles().full_columns, layout.piece.width,
                                     index % layout.pieces.width);
      if (has_grid_sums(path)) {
        const Tile grid = level(path.steps - 1);
        tiles().forward_rows = forward_ranges(chain, path.scale, Axis::kRows, grid.rows);
        tiles().forward_columns = forward_ranges(chain, path.scale, Axis::kColumns, grid.columns);
      }
    }
    __syncthreads();
    for (int s = 0; s < path.steps; ++s) {
      with_step(chain, path, s, Axis::kRows, [&](const auto& map) { row_table(s).fill_taps(map); });
      with_step(chain, path, s, Axis::kColumns, [&](const auto& map) { column_table(s).fill_taps(map); });
    }
    if (has_grid_sums(path)) operands().fill_tables();
    __syncthreads();
    for (int s = 0; s < path.steps; ++s) {
      const bool wide = path.composed && s + 1 == path.steps;
      row_table(s).fill_reaches(wide);
      column_table(s).fill_reaches(wide);
    }
    __syncthreads();
  }

  // ---- once per image

  // The factors on all levels, visible to all when it ends.
  HMSA_DEVICE_PHASE void make_factors() const {
    const Chain& chain = problem.chain;
    const int i = path.scale;
    const int32_t scratch = layout.scratch;
    bool first = true;
    const auto multiply = [&](int s, int32_t y, int32_t x, T value) {
      T& at = values(layout.factor[s])[(y - level(s).rows.lo) * factor_row(s) + (x - level(s).columns.lo)];
      at = first ? value : at * value;
    };
    for (int j = larger(chain.unit, i) + 1; j < chain.count; ++j) {
      resized_attention<T>(problem, b, j, level(0), scratch,
                           [&](int32_t y, int32_t x, T attention) { multiply(0, y, x, T(1) - attention); });
      first = false;
    }
    for (int s = 0; s < path.steps; ++s) {
      const int j = s > 0 ? path.across[s - 1] : chain.is_lower(i) ? 0 : chain.unit;
      if (j == 0) continue;  // the largest scale has no attention, and the output of a lower one just `kept`
      if (s > 0) first = true;
      grid_attention<T>(problem, b, j, level(s), scratch, [&](int32_t y, int32_t x, T attention) {
        multiply(s, y, x, j == i ? attention : T(1) - attention);
      });
    }
  }

  // The attention's gradient on the grid before any channel: - R^T of the map, or zero. Ends with a barrier.
  HMSA_DEVICE_PHASE void start_sums() const {
    const Patch<T> sums = patch(layout.sums, path.steps - 1, 1);
    if (problem.chain.is_lower(path.scale)) {
      const RowSums<T> rows = sum_rows_of(map_lines(), Factor<T>{}, 0, Planes{1, 1}, all_rows(0));
      __syncthreads();
      sum_columns<1>(rows, column_table(0), Planes{1, 1},
                     [&](int, int32_t y, int32_t x, int32_t, T value) { sums.at(0, y, x, 0) = -value; });
    } else {
      const Tile grid = level(path.steps - 1);
      for_each(grid, [&](int32_t y, int32_t x) { sums.at(0, y - grid.rows.lo, x - grid.columns.lo, 0) = T(0); });
    }
    __syncthreads();
  }

  HMSA_DEVICE Range all_rows(int s) const { return Range{0, target(s).rows.size()}; }
  // Of this image, the map of channel sums from level 0 on.
  HMSA_DEVICE ApartLines<T> map_lines() const {
    return {sums_map.at(b, level(0).rows.lo, level(0).columns.lo), 0, sums_map.row, 1};
  }
  template <typename From>
  HMSA_DEVICE_PHASE RowSums<T> sum_rows_of(const From& from, const Factor<T>& factor, int s, Planes planes,
                                           Range rows) const {
    return sum_rows(from, factor, row_table(s).part(rows), level(s).columns.size(), planes, values(layout.rows));
  }

  // ---- once per group of channels

  // Channels c .. c + planes.channels() - 1: the gradient of their logits, and their part of the attention's. Ends with
  // a barrier.
  HMSA_DEVICE_PHASE void walk(int32_t c, Planes planes) const {
    if (makes_grid_sums()) operands().make(c, planes.channels());
    for (int s = 0; s < path.steps; ++s) {
      const bool last = s + 1 == path.steps;
      if (last && makes_grid_sums()) add_to_sums(patch(layout.level, s, planes.inner), planes);
      if (last && !tiles().makes_logits) {
        __syncthreads();  // before other threads read the sums, and L is made of other channels
        return;
      }
      // Level 1 is made in bands of rows. Later levels are made of the whole of the last one, in whose place they go.
      const int32_t targets = target(s).rows.size();
      const int32_t band = s == 0 && !last && planes.channels() > 1 ? layout.band : targets;
      for (int32_t lo = 0; lo < targets; lo += band) {
        const Range rows{lo, smaller(lo + band, targets)};
        const RowSums<T> sums = s == 0 ? sum_grad_rows(c, planes, rows) : sum_level_rows(s, planes, rows);
        __syncthreads();
        if (last) {
          write_head<4>(problem.grad_logits[path.scale], sums, c, planes);
        } else {
          make_level(s + 1, sums, lo, planes);
        }
        __syncthreads();  // the level can be read, and the next sums of rows go where these are
      }
    }
  }

  HMSA_DEVICE_PHASE RowSums<T> sum_grad_rows(int32_t c, Planes planes, Range rows) const {
    const MapView<const G>& grad = problem.grad_output;
    const G* first = grad.at(b, c, level(0).rows.lo, level(0).columns.lo);
    if (planes.inner > 1) {
      const TogetherLines<G> from{first, grad.row, static_cast<int32_t>(grad.column), layout.quads};
      return sum_rows_of(from, factor(0), 0, planes, rows);
    }
    if (layout.quads && !layout.together) {
      return sum_rows_of(AlignedLines<G>{first, grad.channel, grad.row}, factor(0), 0, planes, rows);
    }
    return sum_rows_of(ApartLines<G>{first, grad.channel, grad.row, grad.column}, factor(0), 0, planes, rows);
  }

  HMSA_DEVICE_PHASE RowSums<T> sum_level_rows(int s, Planes planes, Range rows) const {
    const Patch<T> from = patch(layout.level, s, planes.inner);
    return planes.inner == 1 ? sum_rows_of(from.aligned_lines(), factor(s), s, planes, rows)
                             : sum_rows_of(from.together_lines(), factor(s), s, planes, rows);
  }

  // Columns of sums that are rows `first` and following of level s.
  HMSA_DEVICE_PHASE void make_level(int s, const RowSums<T>& sums, int32_t first, Planes planes) const {
    const Patch<T> to = patch(layout.level, s, planes.inner);
    sum_columns<4>(sums, column_table(s - 1), planes,
                   [&](int p, int32_t y, int32_t x, int32_t k, T value) { to.at(p, first + y, x, k) = value; });
  }

  // + value * L, or + value * (L - R P_before), channel by channel.
  HMSA_DEVICE_PHASE void add_to_sums(const Patch<T>& value, Planes planes) const {
    const Tile grid = level(path.steps - 1);
    const Patch<T> sums = patch(layout.sums, path.steps - 1, 1);
    const Stretched<T> logit = operands().logit();
    const Stretched<T> before = operands().before();
    const int32_t step = planes.inner == 1 ? value.plane : 1;  // from channel to channel
    for_each(grid, [&](int32_t y, int32_t x) {
      const int32_t row = y - grid.rows.lo;
      const int32_t column = x - grid.columns.lo;
      const T* from = &value.at(0, row, column, 0);
      T sum = sums.at(0, row, column, 0);
      for (int k = 0; k < planes.channels(); ++k) {
        T factor = logit.at(k, y, x);
        if (layout.forward.has_before) factor -= before.at(k, y, x);
        sum += factor * from[k * step];
      }
      sums.at(0, row, column, 0) = sum;
    });
  }

  // U^T of the sums, which are on the grid, or of the map, which is on the output, for scale 1.0.
  HMSA_DEVICE_PHASE void attention_gradient() const {
    const int s = path.steps - 1;
    const Patch<T> sums = patch(layout.sums, s, 1);
    const ApartLines<T> from = has_grid_sums(path) ? ApartLines<T>{sums.data, 0, sums.row, 1} : map_lines();
    const RowSums<T> rows = sum_rows_of(from, Factor<T>{}, s, Planes{1, 1}, all_rows(s));
    __syncthreads();
    write_head<1>(problem.grad_attention[path.scale], rows, 0, Planes{1, 1});
    __syncthreads();  // the next sums of rows go where these are
  }

  // The last half step, to global memory. Ends without a barrier.
  template <int kPlanes>
  HMSA_DEVICE_PHASE void write_head(const MapView<S>& map, const RowSums<T>& rows, int32_t c, Planes planes) const {
    const Tile owned = target(path.steps - 1);
    const int pieces = layout.piece_count();
    const int piece = tiles().piece;
    S* to = map.at(b, c, owned.rows.lo, owned.columns.lo);
    sum_columns<kPlanes>(
        rows, column_table(path.steps - 1), planes, [&](int p, int32_t y, int32_t x, int32_t k, T value) {
          if (pieces > 1) {
            T& total = values(layout.total)[((p + k) * owned.rows.size() + y) * owned.columns.size() + x];
            total = piece > 0 ? total + value : value;
            value = total;
          }
          if (piece + 1 == pieces) write(to + (p + k) * map.channel + y * map.row + x * map.column, value);
        });
  }

  // All of the block's channels, on the piece at hand.
  HMSA_DEVICE_PHASE void run() const {
    make_factors();
    if (makes_grid_sums()) start_sums();
    if (tiles().makes_logits || makes_grid_sums()) {
      const Range channels = tiles().channels;
      for (int32_t c = channels.lo; c < channels.hi; c += layout.planes.channels()) {
        walk(c, planes_of(layout.together, smaller(channels.hi - c, layout.planes.channels())));
      }
    }
    if (tiles().makes_attention) attention_gradient();
  }

  // What the block makes of which tile. With pieces, it is the gradient of one group of channels, or of the attention.
  HMSA_DEVICE void start_block(const Tile& owned, int32_t tile, int32_t stripes, int role) const {
    const Chain& chain = problem.chain;
    BlockTiles& block = tiles();
    block.full_rows = full_ranges(chain, path, Axis::kRows, part_of(owned.rows, layout.tile.height, tile / stripes));
    block.full_columns =
        full_ranges(chain, path, Axis::kColumns, part_of(owned.columns, layout.tile.width, tile % stripes));
    const bool whole = layout.piece_count() == 1;
    const auto classes = static_cast<int32_t>(problem.classes);
    const bool for_attention = whole || role + 1 == layout.roles(classes);
    block.channels = for_attention ? Range{0, classes} : part_of(Range{0, classes}, layout.planes.channels(), role);
    block.makes_logits = problem.grad_logits[path.scale].data != nullptr && (whole || !for_attention);
    block.makes_attention = problem.grad_attention[path.scale].data != nullptr && for_attention;
  }
};

template <typename S, typename G, typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<T>)
    gathered_backward_kernel(HMSA_PARAMETER FuseScalesBackward<S, G> problem, HMSA_PARAMETER Path path,
                             HMSA_PARAMETER GradientLayout layout, HMSA_PARAMETER PlaneView<const T> sums_map,
                             HMSA_PARAMETER Tile owned, int32_t stripes) {
  const int roles = layout.roles(problem.classes);
  if (thread() == 0) {
    const GradientBlock<S, G, T> block{problem, path, layout, sums_map, 0};
    block.start_block(owned, static_cast<int32_t>(blockIdx.x / roles), stripes, static_cast<int>(blockIdx.x % roles));
  }
  for (int32_t b = blockIdx.y; b < problem.batch; b += gridDim.y) {
    const GradientBlock<S, G, T> block{problem, path, layout, sums_map, b};
    for (int piece = 0; piece < layout.piece_count(); ++piece) {
      if (layout.piece_count() > 1 || b == static_cast<int32_t>(blockIdx.y)) block.start_piece(piece);
      block.run();
    }
  }
}

// ---- host -----------------------------------------------------------------------------------------------------------

// Lines of the incoming gradient can be read four elements at a time, wherever a tile begins?
template <typename S, typename G>
bool has_quads(const FuseScalesBackward<S, G>& problem, const GradientLayout& layout, bool padded) {
  const MapView<const G>& grad = problem.grad_output;
  if (!aligned_for_quads(grad.data) || grad.batch % kQuad != 0 || grad.row % kQuad != 0) return false;
  if (!layout.together) {
    return grad.column == 1 && grad.channel % kQuad == 0 && (padded || problem.chain.size.width % kQuad == 0);
  }
  // Tiles begin at whole quads of columns. All channels of a row are one run of memory, or whole quads of channels are.
  if (layout.planes.inner == problem.classes && grad.column == problem.classes) {
    return problem.chain.size.width * problem.classes % kQuad == 0;
  }
  return grad.column % kQuad == 0 && problem.classes % kQuad == 0 && layout.planes.inner % kQuad == 0;
}

template <typename S, typename G>
bool wants_gradient(const FuseScalesBackward<S, G>& problem, int i) {
  return problem.grad_logits[i].data != nullptr || problem.grad_attention[i].data != nullptr;
}

// Class-wise attention has layouts of a single class.
template <typename S, typename G>
GradientPlan plan_gradients(const FuseScalesBackward<S, G>& problem, const Extent* owned, bool padded) {
  GradientPlan plan{};
  const FuseScalesBackward<S, G> planned = problem.chain.class_wise ? problem_of_class(problem, 0) : problem;
  for (int i = 0; i < problem.chain.count; ++i) {
    if (!wants_gradient(problem, i)) continue;
    const bool together = channels_together(planned.grad_output, planned.classes);
    plan.layouts[i] = choose_layout<arithmetic_t<S>>(planned.chain, make_path(planned.chain, i), owned[i],
                                                     planned.batch, planned.classes, together, sizeof(G));
    plan.layouts[i].quads = has_quads(planned, plan.layouts[i], padded);
  }
  return plan;
}

template <typename S, typename G, typename T>
void launch_scale(const FuseScalesBackward<S, G>& problem, int i, const GradientLayout& layout,
                  const PlaneView<const T>& sums_map, const Tile& owned, cudaStream_t stream) {
  const int32_t stripes = divide_up(owned.columns.size(), layout.tile.width);
  const int32_t bands = divide_up(owned.rows.size(), layout.tile.height);
  const int64_t tiles = static_cast<int64_t>(stripes) * bands * layout.roles(problem.classes);
  if (tiles == 0) return;
  const dim3 grid(static_cast<unsigned>(tiles), image_blocks(tiles, problem.batch));
  HMSA_LAUNCH((gathered_backward_kernel<S, G, T>), grid, dim3(kThreads), layout.bytes, stream, problem,
              make_path(problem.chain, i), layout, sums_map, owned, stripes);
}

template <typename S, typename G>
void launch_shared_attention(const FuseScalesBackward<S, G>& problem, const GradientPlan& plan,
                             const GradientPart& part, arithmetic_t<S>* maps, cudaStream_t stream) {
  using T = arithmetic_t<S>;
  const int64_t width = part.output.columns.size();
  const int64_t pixels = part.output.rows.size() * width;
  ChannelSums<T> sums{};
  sums.row = width;
  sums.batch = pixels;
  sums.output = part.output;
  for (int i = 0; i < problem.chain.count; ++i) {
    if (!wants_sums_map(problem, i)) continue;
    sums.maps[i] = maps - (part.output.rows.lo * width + part.output.columns.lo);
    maps += problem.batch * pixels;
    sums.last = i;
  }
  if (sums.last > 0 && pixels > 0) launch_channel_sums(problem, sums, stream);
  for (int i = 0; i < problem.chain.count; ++i) {
    if (!wants_gradient(problem, i)) continue;
    const PlaneView<const T> map{sums.maps[i], sums.batch, sums.row, 1};
    launch_scale(problem, i, plan.layouts[i], map, part.owned[i], stream);
  }
}

}  // namespace

template <typename S, typename G>
GradientPlan plan_gradient_parts(const FuseScalesBackward<S, G>& problem, const Extent* owned, bool padded) {
  return plan_gradients(problem, owned, padded);
}

template <typename S, typename G>
void launch_gradient_part(const FuseScalesBackward<S, G>& problem, const GradientPlan& plan, const GradientPart& part,
                          arithmetic_t<S>* maps, StreamHandle stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (!problem.chain.class_wise) {
    launch_shared_attention(problem, plan, part, maps, stream);
    return;
  }
  for (int64_t c = 0; c < problem.classes; ++c) {
    launch_shared_attention(problem_of_class(problem, c), plan, part, maps, stream);
  }
}

template <typename S>
int64_t gathered_backward_workspace(const FuseScalesBackward<S>& problem) {
  return sums_map_count(problem) * problem.batch * problem.chain.size.height * problem.chain.size.width;
}

template <typename S>
void launch_gathered_backward(const FuseScalesBackward<S>& problem, void* workspace, StreamHandle stream) {
  const Extent size = problem.chain.size;
  GradientPart all{};
  all.output = Tile{{0, size.height}, {0, size.width}};
  for (int i = 0; i < problem.chain.count; ++i) {
    all.owned[i] = Tile{{0, problem.chain.heads[i].height}, {0, problem.chain.heads[i].width}};
  }
  launch_gradient_part(problem, plan_gradients(problem, problem.chain.heads, false), all,
                       static_cast<arithmetic_t<S>*>(workspace), stream);
}

HMSA_INSTANTIATE(int64_t gathered_backward_workspace(const FuseScalesBackward<float>&));
HMSA_INSTANTIATE(int64_t gathered_backward_workspace(const FuseScalesBackward<double>&));
HMSA_INSTANTIATE(int64_t gathered_backward_workspace(const FuseScalesBackward<Half>&));
HMSA_INSTANTIATE(int64_t gathered_backward_workspace(const FuseScalesBackward<BFloat16>&));
HMSA_INSTANTIATE(void launch_gathered_backward(const FuseScalesBackward<float>&, void*, StreamHandle));
HMSA_INSTANTIATE(void launch_gathered_backward(const FuseScalesBackward<double>&, void*, StreamHandle));
HMSA_INSTANTIATE(void launch_gathered_backward(const FuseScalesBackward<Half>&, void*, StreamHandle));
HMSA_INSTANTIATE(void launch_gathered_backward(const FuseScalesBackward<BFloat16>&, void*, StreamHandle));

// For gradients that a loss made: they are of the arithmetic type.
HMSA_INSTANTIATE(GradientPlan plan_gradient_parts(const FuseScalesBackward<float, float>&, const Extent*, bool));
HMSA_INSTANTIATE(GradientPlan plan_gradient_parts(const FuseScalesBackward<double, double>&, const Extent*, bool));
HMSA_INSTANTIATE(GradientPlan plan_gradient_parts(const FuseScalesBackward<Half, float>&, const Extent*, bool));
HMSA_INSTANTIATE(GradientPlan plan_gradient_parts(const FuseScalesBackward<BFloat16, float>&, const Extent*, bool));
HMSA_INSTANTIATE(void launch_gradient_part(const FuseScalesBackward<float, float>&, const GradientPlan&,
                                           const GradientPart&, float*, StreamHandle));
HMSA_INSTANTIATE(void launch_gradient_part(const FuseScalesBackward<double, double>&, const GradientPlan&,
                                           const GradientPart&, double*, StreamHandle));
HMSA_INSTANTIATE(void launch_gradient_part(const FuseScalesBackward<Half, float>&, const GradientPlan&,
                                           const GradientPart&, float*, StreamHandle));
HMSA_INSTANTIATE(void launch_gradient_part(const FuseScalesBackward<BFloat16, float>&, const GradientPlan&,
                                           const GradientPart&, float*, StreamHandle));

}  // namespace cuda
}  // namespace hmsa
