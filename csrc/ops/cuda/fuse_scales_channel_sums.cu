// sum_c[g * P_before] on the output, for the gradients of attention (see fuse_scales_channel_sums.h).
//
// A block makes a tile of the maps, for all scales that need one in a single pass over the incoming gradient. Per image
// it tabulates the taps and the attention of all scales on the tile; then, a few channels at a time, it stretches the
// columns of what P is made of (gradient_operands.cuh) in shared memory, and each thread interpolates rows, runs along
// the chain for its pixels and adds up g * P_before in the order of the channels.
//
// With channels apart (NCHW) a thread has four neighbouring pixels, or one where rows cannot be read 16 bytes at a time.
// With channels together (channels_last) a chunk of channels passes through shared memory, so that reads are of
// neighbouring elements, and a thread has one pixel.
#include "ops/cuda/fuse_scales_channel_sums.h"

#include "ops/cuda/adjoint_sums.cuh"
#include "ops/cuda/attention_patch.cuh"
#include "ops/cuda/gradient_layout.cuh"
#include "ops/cuda/gradient_operands.cuh"

namespace hmsa {
namespace cuda {
namespace {

using namespace backward;

// Channels at a time, where they lie apart and together.
constexpr int kMaxApart = 4;
constexpr int kMaxTogether = 32;

// Where a block stands: in shared memory, since every thread needs all of it.
struct SumsTiles {
  Tile output;
  ForwardRanges rows;
  ForwardRanges columns;
  Tile grids[kMaxScales];  // of the lower scales
};

struct SumsLayout {
  Extent tile;
  int32_t channels;  // at a time
  bool together;
  int32_t bytes;
  // Offsets in shared memory, in bytes; SumsTiles at 0.
  ForwardLayout forward;  // L of scale 1.0 and R P of the scale above it
  // Of the scales below 1.0.
  struct Lower {
    int32_t resized;  // R A, [tile]
    int32_t up_rows;  // taps of the grid into the head,
    int32_t up_columns;
    int32_t rows;  // of the tile into the grid,
    int32_t columns;
    int32_t product;    // A * L on the grid, [channels, rows, columns],
    int32_t stretched;  // and with its columns stretched to the tile's
  } lowers[kMaxScales];
  int32_t attention;  // A of scale 1.0, [tile]
  int32_t sums;       // [maps, tile], each slot its thread's own
  int32_t grad;       // the incoming gradient of a chunk, [tile, channels], with channels together
  int32_t scratch;    // while attention is made: shared with all that is made per channel
};

// P of the chain is needed up to, not including, the last scale with a map.
HMSA_HOST_DEVICE bool has_product(int j, int last) { return j < last; }

template <typename T>
SumsLayout make_layout(const Chain& chain, int last, int maps, Extent tile, int32_t channels, bool together) {
  SumsLayout layout{};
  layout.tile = tile;
  layout.channels = channels;
  layout.together = together;
  Arena arena{0};
  arena.take<SumsTiles>(1);
  const int64_t area = static_cast<int64_t>(tile.height) * tile.width;
  layout.sums = arena.take<T>(maps * area);
  if (chain.unit > 0) layout.attention = arena.take<T>(area);
  const auto grid_of = [&](int j) {
    return Extent{most_sources(chain.across[j].rows, tile.height), most_sources(chain.across[j].columns, tile.width)};
  };
  int64_t scratch = attention_scratch_bytes<T>(tile, Extent{0, 0});
  for (int j = chain.unit + 1; j < chain.count; ++j) {
    SumsLayout::Lower& lower = layout.lowers[j];
    const Extent grid = grid_of(j);
    scratch = std::max<int64_t>(scratch, attention_scratch_bytes<T>(tile, grid));
    lower.resized = arena.take<T>(area);
    if (!has_product(j, last)) continue;
    lower.up_rows = arena.take<Tap<T>>(grid.height);
    lower.up_columns = arena.take<Tap<T>>(grid.width);
    lower.rows = arena.take<Tap<T>>(tile.height);
    lower.columns = arena.take<Tap<T>>(tile.width);
  }
  layout.scratch = arena.bytes;
  layout.forward = make_forward_layout<T>(
      chain, chain.unit, chain.unit > 0, forward_sizes(chain, chain.unit, Axis::kRows, tile.height),
      forward_sizes(chain, chain.unit, Axis::kColumns, tile.width), channels, arena);
  for (int j = chain.unit + 1; has_product(j, last); ++j) {
    const Extent grid = grid_of(j);
    layout.lowers[j].product = arena.take<T>(static_cast<int64_t>(channels) * grid.height * grid.width);
    layout.lowers[j].stretched =
        arena.take<T>(static_cast<int64_t>(channels) * grid.height * round_up(tile.width, kQuad));
  }
  if (together) layout.grad = arena.take<T>(tile.height * Patch<T>::row_of(tile.width, larger(channels, 2)));
  layout.bytes = std::max<int32_t>(arena.bytes, layout.scratch + static_cast<int32_t>(scratch));
  return layout;
}

template <typename S, typename G, typename T, int kPixels>
struct SumsBlock {
  static constexpr int kInFlight = kPixels == 1 ? 4 : 2;  // channels whose gradients a thread loads at a time

  const FuseScalesBackward<S, G>& problem;
  const ChannelSums<T>& sums;
  const SumsLayout& layout;
  int32_t b;

  static HMSA_DEVICE SumsTiles& tiles() { return *shared_at<SumsTiles>(0); }
  static HMSA_DEVICE T* values(int32_t offset) { return shared_at<T>(offset); }
  static HMSA_DEVICE Tap<T>* taps(int32_t offset) { return shared_at<Tap<T>>(offset); }
  // A patch of the tile's size, [tile.height, tile.width] whatever is cut off.
  HMSA_DEVICE T* pixel(int32_t offset, int32_t y, int32_t x) const {
    return values(offset) + (y - tiles().output.rows.lo) * layout.tile.width + (x - tiles().output.columns.lo);
  }
  HMSA_DEVICE ForwardOperands<T, FuseScalesBackward<S, G>> operands() const {
    return {problem, layout.forward, tiles().rows, tiles().columns, b};
  }
  HMSA_DEVICE Stretched<T> product(int j) const {
    return {values(layout.lowers[j].stretched), taps(layout.lowers[j].rows), tiles().grids[j].rows, tiles().output};
  }
  HMSA_DEVICE T& product_patch(int j, int k, int32_t y, int32_t x) const {
    const Tile grid = tiles().grids[j];
    return values(layout.lowers[j].product)[(k * grid.rows.size() + (y - grid.rows.lo)) * grid.columns.size() +
                                            (x - grid.columns.lo)];
  }

  // Calls body(y, x) for the first of every kPixels pixels of the tile, always by the same thread.
  template <typename Body>
  HMSA_DEVICE void for_pixels(const Body& body) const {
    const int32_t width = tiles().output.columns.size() / kPixels;
    for (int32_t item = thread(); item < tiles().output.rows.size() * width; item += kThreads) {
      body(tiles().output.rows.lo + item / width, tiles().output.columns.lo + item % width * kPixels);
    }
  }

  // ---- once per image

  // Taps, once per block. Ends without a barrier.
  HMSA_DEVICE_CALL void fill_tables() const {
    operands().fill_tables();
    for (int j = problem.chain.unit + 1; has_product(j, sums.last); ++j) {
      const SumsLayout::Lower& lower = layout.lowers[j];
      const Resize& up = problem.chain.up[j];
      const Resize& across = problem.chain.across[j];
      const Tile grid = tiles().grids[j];
      AxisTable<T>{taps(lower.up_rows), nullptr, grid.rows, {}}.fill_taps(up.rows);
      AxisTable<T>{taps(lower.up_columns), nullptr, grid.columns, {}}.fill_taps(up.columns);
      AxisTable<T>{taps(lower.rows), nullptr, tiles().output.rows, {}}.fill_taps(across.rows);
      AxisTable<T>{taps(lower.columns), nullptr, tiles().output.columns, {}}.fill_taps(across.columns);
    }
  }

  // A of scale 1.0 and R A of the lower scales; sums at zero. Ends with a barrier.
  HMSA_DEVICE_CALL void begin() const {
    const Chain& chain = problem.chain;
    const int32_t scratch = layout.scratch;
    if (chain.unit > 0) {
      grid_attention<T>(problem, b, chain.unit, tiles().output, scratch,
                        [&](int32_t y, int32_t x, T value) { *pixel(layout.attention, y, x) = value; });
    }
    for (int j = chain.unit + 1; j < chain.count; ++j) {
      resized_attention<T>(problem, b, j, tiles().output, scratch,
                           [&](int32_t y, int32_t x, T value) { *pixel(layout.lowers[j].resized, y, x) = value; });
    }
    const int32_t slots = layout.tile.height * layout.tile.width;
    int map = 0;
    for (int i = chain.unit; i <= sums.last; ++i) {
      if (sums.maps[i] == nullptr) continue;
      for_pixels([&](int32_t y, int32_t x) {
        const T zero[kPixels] = {};
        store(pixel(layout.sums, y, x) + map * slots, zero);
      });
      ++map;
    }
  }

  // ---- once per group of channels

  // All that P is made of, for channels c .. c + count - 1. Ends with a barrier.
  HMSA_DEVICE_PHASE void make(int32_t c, int count) const {
    operands().make(c, count);
    for (int j = problem.chain.unit + 1; has_product(j, sums.last); ++j) make_product(j, c, count);
    if (layout.together) stage_grad(c, count);
    __syncthreads();
  }

  // Seldom reached: there are two scales below 1.0.
  HMSA_DEVICE_CALL void make_product(int j, int32_t c, int count) const {
    const SumsLayout::Lower& lower = layout.lowers[j];
    const Tile grid = tiles().grids[j];
    for_each(grid, [&](int32_t y, int32_t x) {
      const Tap<T> row = taps(lower.up_rows)[y - grid.rows.lo];
      const Tap<T> column = taps(lower.up_columns)[x - grid.columns.lo];
      const T attention = sample(problem.attention[j], b, 0, row, column);
      for (int k = 0; k < count; ++k) {
        product_patch(j, k, y, x) = attention * sample(problem.logits[j], b, c + k, row, column);
      }
    });
    __syncthreads();  // the stretched map is made from this one
    const int32_t pitch = grid.columns.size();
    product(j).fill(count, taps(lower.columns), values(lower.product), grid.columns.lo, grid.rows.size() * pitch, pitch,
                    1);
  }

  HMSA_DEVICE Patch<T> staged(int count) const {
    return Patch<T>(values(layout.grad), tiles().output.rows.size(), tiles().output.columns.size(), count);
  }
  HMSA_DEVICE void stage_grad(int32_t c, int count) const {
    const MapView<const G>& grad = problem.grad_output;
    const Patch<T> to = staged(count);
    const int32_t length = tiles().output.columns.size() * count;
    for (int32_t y = warp(); y < tiles().output.rows.size(); y += kWarps) {
      const G* line = grad.at(b, c, tiles().output.rows.lo + y, tiles().output.columns.lo);
      for (int32_t e = lane(); e < length; e += kLanes) {
        const int32_t x = e / count;
        const int32_t k = e - x * count;
        to.at(0, y, x, k) = to_arithmetic(line[x * static_cast<int32_t>(grad.column) + k]);
      }
    }
  }

  // kPixels neighbours of g, of a row of a stretched map, or of a patch of the tile's size.
  HMSA_DEVICE void load_grad(T (&to)[kPixels], int32_t c, int k, int count, int32_t y, int32_t x) const {
    if constexpr (kPixels == kQuad) {
      const Quad<G> quad = load_quad(problem.grad_output.at(b, c + k, y, x));
      for (int n = 0; n < kPixels; ++n) to[n] = to_arithmetic(quad.element[n]);
    } else if (layout.together) {
      to[0] = staged(count).at(0, y - tiles().output.rows.lo, x - tiles().output.columns.lo, k);
    } else {
      to[0] = to_arithmetic(*problem.grad_output.at(b, c + k, y, x));
    }
  }
  static HMSA_DEVICE void load_shared(T (&to)[kPixels], const T* from) {
    if constexpr (kPixels == kQuad) {
      const Quad<T> quad = load_quad(from);
      for (int n = 0; n < kPixels; ++n) to[n] = quad.element[n];
    } else {
      to[0] = *from;
    }
  }
  static HMSA_DEVICE void store(T* to, const T (&from)[kPixels]) {
    if constexpr (kPixels == kQuad) {
      store_quad(to, from);
    } else {
      *to = from[0];
    }
  }
  static HMSA_DEVICE void interpolate_rows(T (&to)[kPixels], const Stretched<T>& from, int k, int32_t y, int32_t x) {
    const Tap<T>& tap = from.row_taps[y - from.tile.rows.lo];
    for (int n = 0; n < kPixels; ++n) to[n] = T(0);
    HMSA_UNROLL
    for (int t = 0; t < 3; ++t) {
      const T weight = tap.weight[t];
      if (weight == T(0)) continue;
      T row[kPixels];
      load_shared(row, from.row(k, tap.first + t) + (x - from.tile.columns.lo));
      for (int n = 0; n < kPixels; ++n) to[n] += weight * row[n];
    }
  }

  static HMSA_DEVICE void add_product(T (&to)[kPixels], const T (&a)[kPixels], const T (&b)[kPixels]) {
    for (int n = 0; n < kPixels; ++n) to[n] += a[n] * b[n];
  }
  // The same to sums in shared memory.
  static HMSA_DEVICE void add_product_at(T* to, const T (&a)[kPixels], const T (&b)[kPixels]) {
    T sum[kPixels];
    load_shared(sum, to);
    add_product(sum, a, b);
    store(to, sum);
  }

  // Runs along the chain for channel k of those at hand and adds what the maps need of it. Those of the first map are
  // in `sum`, and for two scales that is all; the others' are at `slot` and behind.
  HMSA_DEVICE_PHASE void add_channel(T (&sum)[kPixels], T* slot, const T (&grad)[kPixels], int k, int32_t y,
                                     int32_t x) const {
    const Chain& chain = problem.chain;
    const int32_t slots = layout.tile.height * layout.tile.width;
    bool first = true;
    const auto add = [&](const T(&factor)[kPixels]) {
      if (first) {
        add_product(sum, grad, factor);
      } else {
        add_product_at(slot, grad, factor);
        slot += slots;
      }
      first = false;
    };
    T fused[kPixels];
    interpolate_rows(fused, operands().logit(), k, y, x);
    if (chain.unit > 0) {
      T before[kPixels];
      T attention[kPixels];
      interpolate_rows(before, operands().before(), k, y, x);
      load_shared(attention, pixel(layout.attention, y, x));
      for (int n = 0; n < kPixels; ++n) {
        const T logit = fused[n];
        fused[n] = blend_upper(attention[n], logit, before[n]);
        before[n] = logit - before[n];
      }
      if (sums.maps[chain.unit] != nullptr) add(before);
    }
    for (int i = chain.unit + 1; i <= sums.last; ++i) {
      if (sums.maps[i] != nullptr) add(fused);
      if (!has_product(i, sums.last)) break;
      T resized[kPixels];
      T lower[kPixels];
      load_shared(resized, pixel(layout.lowers[i].resized, y, x));
      interpolate_rows(lower, product(i), k, y, x);
      for (int n = 0; n < kPixels; ++n) fused[n] = blend_lower(resized[n], lower[n], fused[n]);
    }
  }

  // Adds channels c .. c + count - 1. Ends with a barrier: the next channels use the same memory.
  HMSA_DEVICE_PHASE void add_channels(int32_t c, int count) const {
    make(c, count);
    for_pixels([&](int32_t y, int32_t x) {
      T* slot = pixel(layout.sums, y, x);
      T sum[kPixels];
      load_shared(sum, slot);
      for (int first = 0; first < count; first += kInFlight) {
        T grad[kInFlight][kPixels];
        HMSA_UNROLL
        for (int k = 0; k < kInFlight; ++k) {
          if (first + k < count) load_grad(grad[k], c, first + k, count, y, x);
        }
        HMSA_UNROLL
        for (int k = 0; k < kInFlight; ++k) {
          if (first + k < count) {
            add_channel(sum, slot + layout.tile.height * layout.tile.width, grad[k], first + k, y, x);
          }
        }
      }
      store(slot, sum);
    });
    __syncthreads();
  }

  // ---- at the end

  HMSA_DEVICE_PHASE void finish() const {
    const Chain& chain = problem.chain;
    const int32_t slots = layout.tile.height * layout.tile.width;
    for_pixels([&](int32_t y, int32_t x) {
      T kept[kPixels];
      for (int n = 0; n < kPixels; ++n) kept[n] = T(1);
      int map = -1;
      for (int i = chain.unit; i <= sums.last; ++i) map += sums.maps[i] != nullptr ? 1 : 0;
      for (int i = chain.count - 1; i >= chain.unit; --i) {
        if (sums.maps[i] != nullptr) {
          T* to = sums.at(i, b, y, x);
          const T* from = pixel(layout.sums, y, x) + map * slots;
          T value[kPixels];
          load_shared(value, from);
          for (int n = 0; n < kPixels; ++n) value[n] *= kept[n];
          store(to, value);
          --map;
        }
        if (i == chain.unit) break;
        T resized[kPixels];
        load_shared(resized, pixel(layout.lowers[i].resized, y, x));
        for (int n = 0; n < kPixels; ++n) kept[n] *= T(1) - resized[n];
      }
    });
  }
};

template <typename S, typename G, typename T, int kPixels>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<T>)
    channel_sums_kernel(HMSA_PARAMETER FuseScalesBackward<S, G> problem, HMSA_PARAMETER ChannelSums<T> sums,
                        HMSA_PARAMETER SumsLayout layout, int32_t stripes) {
  const Chain& chain = problem.chain;
  if (thread() == 0) {
    SumsTiles& tiles = SumsBlock<S, G, T, kPixels>::tiles();
    const auto tile = static_cast<int32_t>(blockIdx.x);
    const Tile output{part_of(sums.output.rows, layout.tile.height, tile / stripes),
                      part_of(sums.output.columns, layout.tile.width, tile % stripes)};
    tiles.output = output;
    tiles.rows = forward_ranges(chain, chain.unit, Axis::kRows, output.rows);
    tiles.columns = forward_ranges(chain, chain.unit, Axis::kColumns, output.columns);
    for (int j = chain.unit + 1; j < chain.count; ++j) tiles.grids[j] = chain.across[j].sources(output);
  }
  __syncthreads();
  for (int32_t b = blockIdx.y; b < problem.batch; b += gridDim.y) {
    const SumsBlock<S, G, T, kPixels> block{problem, sums, layout, b};
    block.begin();
    // Behind the attention of the first image: it is made where the tables of the forward pass lie.
    block.fill_tables();
    __syncthreads();
    const auto classes = static_cast<int32_t>(problem.classes);
    for (int32_t c = 0; c < classes; c += layout.channels) block.add_channels(c, smaller(classes - c, layout.channels));
    block.finish();
    __syncthreads();
  }
}

template <typename S, typename G, typename T, int kPixels>
void launch_tiles(const FuseScalesBackward<S, G>& problem, const ChannelSums<T>& sums, cudaStream_t stream) {
  const bool together = kPixels == 1 && channels_together(problem.grad_output, problem.classes);
  int maps = 0;
  for (int i = 0; i <= sums.last; ++i) maps += sums.maps[i] != nullptr ? 1 : 0;
  Extent tile{kWarps, kLanes * kPixels};
  int32_t channels = together ? chunk_of(problem.classes, kMaxTogether)
                              : static_cast<int32_t>(problem.classes < kMaxApart ? problem.classes : kMaxApart);
  SumsLayout layout = make_layout<T>(problem.chain, sums.last, maps, tile, channels, together);
  const int32_t budget = shared_budget(kBlocksPerMultiprocessor<T>);
  while (layout.bytes > budget && (channels > 1 || tile.height * tile.width > kPixels)) {
    if (channels > kMaxApart) {
      channels = chunk_of(problem.classes, channels / 2);
    } else if (tile.height * tile.width > kPixels) {
      const bool tall = tile.height * kPixels * 4 > tile.width && tile.height > 1;
      (tall || tile.width == kPixels ? tile.height : tile.width) /= 2;
    } else {
      channels /= 2;
    }
    layout = make_layout<T>(problem.chain, sums.last, maps, tile, channels, together);
  }
  const int32_t stripes = divide_up(sums.output.columns.size(), tile.width);
  const int64_t tiles = static_cast<int64_t>(stripes) * divide_up(sums.output.rows.size(), tile.height);
  const dim3 grid(static_cast<unsigned>(tiles), image_blocks(tiles, problem.batch));
  HMSA_LAUNCH((channel_sums_kernel<S, G, T, kPixels>), grid, dim3(kThreads), layout.bytes, stream, problem, sums,
              layout, stripes);
}

}  // namespace

template <typename S, typename G>
void launch_channel_sums(const FuseScalesBackward<S, G>& problem, const ChannelSums<arithmetic_t<S>>& sums,
                         void* stream_handle) {
  using T = arithmetic_t<S>;
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const MapView<const G>& grad = problem.grad_output;
  bool quads = grad.column == 1 && problem.chain.size.width % kQuad == 0 && grad.row % kQuad == 0 &&
               grad.channel % kQuad == 0 && grad.batch % kQuad == 0 && aligned_for_quads(grad.data) &&
               sums.row % kQuad == 0 && sums.batch % kQuad == 0;
  for (int i = 0; i <= sums.last; ++i) quads = quads && aligned_for_quads(sums.maps[i]);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (quads) {
      launch_tiles<S, G, T, kQuad>(problem, sums, stream);
      return;
    }
  }
  launch_tiles<S, G, T, 1>(problem, sums, stream);
}

HMSA_INSTANTIATE(void launch_channel_sums(const FuseScalesBackward<float>&, const ChannelSums<float>&, void*));
HMSA_INSTANTIATE(void launch_channel_sums(const FuseScalesBackward<double>&, const ChannelSums<double>&, void*));
HMSA_INSTANTIATE(void launch_channel_sums(const FuseScalesBackward<Half>&, const ChannelSums<float>&, void*));
HMSA_INSTANTIATE(void launch_channel_sums(const FuseScalesBackward<Half, float>&, const ChannelSums<float>&, void*));
HMSA_INSTANTIATE(void launch_channel_sums(const FuseScalesBackward<BFloat16>&, const ChannelSums<float>&, void*));
HMSA_INSTANTIATE(void launch_channel_sums(const FuseScalesBackward<BFloat16, float>&, const ChannelSums<float>&,
                                          void*));

}  // namespace cuda
}  // namespace hmsa
