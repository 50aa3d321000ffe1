// Crops on the GPU. A block makes a tile of one crop: it writes down once what each of its rows and columns reads, and a
// thread then gathers, recolours, normalises and stores a pixel at a time. With a blur the tile and what lies around it is
// made in shared memory first. Everything about a crop is in the parameters of the launch, so that nothing is copied to
// the device and nothing waits; many crops go in several launches.
#include "ops/cuda/sample_crop.h"

#include "core/half.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/multiprocessors.h"

namespace hmsa {
namespace cuda {
namespace {

constexpr int kChannels = 3;
constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kLanes * kWarps;
constexpr int kTile = 32;  // rows and columns
constexpr int kLargestSide = kTile + 2 * kLargestRadius;
constexpr int kItems = 18;  // of a launch

struct CropBatch {
  CropItem items[kItems];
  CropOutput output;
  const unsigned long long* sums;  // [N, 3] of the channels; of crops that need no mean anything
};
static_assert(sizeof(CropBatch) + 64 <= 4096, "parameters of a launch");

HMSA_DEVICE int thread() { return static_cast<int>(threadIdx.x); }

// ---- sums of the channels -------------------------------------------------------------------------------------------

__global__ void clear_crop_sums_kernel(unsigned long long* sums, int64_t count) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + thread();
  if (k < count) sums[k] = 0;
}

// Rows of the box of an item, a block each. Sums of integers are the same in any order.
__global__ void crop_sums_kernel(HMSA_PARAMETER CropBatch batch, unsigned long long* sums) {
  const CropItem& item = batch.items[blockIdx.y];
  if (!item.needs_mean()) return;
  const CropImage& image = item.image;
  const Range rows = batch.output.rows(item).inside();
  const Range columns = batch.output.columns(item).inside();
  unsigned long long sum[kChannels] = {0, 0, 0};
  for (int32_t y = rows.lo + static_cast<int32_t>(blockIdx.x); y < rows.hi; y += static_cast<int32_t>(gridDim.x)) {
    const uint8_t* row = image.pixels + y * image.row;
    unsigned part[kChannels] = {0, 0, 0};  // of a row: below 2^24 pixels, divided among the threads
    for (int32_t x = columns.lo + thread(); x < columns.hi; x += kThreads) {
      const uint8_t* pixel = row + x * image.column;
      HMSA_UNROLL
      for (int c = 0; c < kChannels; ++c) part[c] += pixel[c * image.channel];
    }
    HMSA_UNROLL
    for (int c = 0; c < kChannels; ++c) sum[c] += part[c];
  }
  HMSA_UNROLL
  for (int c = 0; c < kChannels; ++c) {
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], lanes);
    if (thread() % kLanes == 0 && sum[c] != 0) atomicAdd(sums + kChannels * item.number + c, sum[c]);
  }
}

// ---- crops ----------------------------------------------------------------------------------------------------------

// What a row or a column of the crop reads.
struct Place {
  CropTaps taps;
  int32_t label;  // pixel of the image, or -1
};

struct Colour {
  float value[kChannels];
};

// A tile of a crop, and a border around it of as many pixels as a blur reaches.
struct TileFrame {
  int32_t y0, x0;         // first pixel of the tile
  int32_t height, width;  // of the tile: less than kTile at the ends
  int32_t border;

  HMSA_DEVICE int32_t rows() const { return height + 2 * border; }
  HMSA_DEVICE int32_t columns() const { return width + 2 * border; }
};

HMSA_DEVICE TileFrame tile_frame(const CropOutput& output, int32_t border) {
  const int32_t stripes = (output.width + kTile - 1) / kTile;
  TileFrame frame;
  frame.y0 = static_cast<int32_t>(blockIdx.x) / stripes * kTile;
  frame.x0 = static_cast<int32_t>(blockIdx.x) % stripes * kTile;
  frame.height = min(kTile, output.height - frame.y0);
  frame.width = min(kTile, output.width - frame.x0);
  frame.border = border;
  return frame;
}

HMSA_DEVICE_PHASE void find_places(const CropBatch& batch, const CropItem& item, const TileFrame& frame, Place* rows,
                                   Place* columns) {
  const CropOutput& output = batch.output;
  for (int k = thread(); k < frame.rows() + frame.columns(); k += kThreads) {
    const bool is_row = k < frame.rows();
    const CropAxis axis = is_row ? output.rows(item) : output.columns(item);
    const int32_t at = is_row ? frame.y0 + k : frame.x0 + k - frame.rows();
    const int32_t o = reflect(at - frame.border, axis.out);
    (is_row ? rows + k : columns + k - frame.rows())[0] = Place{axis.taps(o), axis.nearest(o)};
  }
}

// Adds weight * the colour of a pixel.
HMSA_DEVICE void add_pixel(float* sum, const uint8_t* pixel, int64_t channel, float weight) {
  HMSA_UNROLL
  for (int c = 0; c < kChannels; ++c) sum[c] += weight * static_cast<float>(__ldg(pixel + c * channel));
}

// The resampled colour; what lies outside the image is missing in it.
HMSA_DEVICE Colour resampled_at(const CropImage& image, bool antialias, const CropTaps& row, const CropTaps& column) {
  Colour v{{0.0f, 0.0f, 0.0f}};
  if (row.count == 0 || column.count == 0) return v;
  const uint8_t* first = image.pixels + row.first * image.row + column.first * image.column;
  if (!antialias) {
    // Two taps at most: all twelve bytes are asked for at once.
    HMSA_UNROLL
    for (int j = 0; j < 2; ++j) {
      const bool has_row = j < row.count;
      const uint8_t* at = has_row ? first + j * image.row : first;
      const float weight = has_row ? row.weight(j) : 0.0f;
      HMSA_UNROLL
      for (int i = 0; i < 2; ++i) {
        const bool has_column = i < column.count;
        const uint8_t* pixel = has_column ? at + i * image.column : at;
        add_pixel(v.value, pixel, image.channel, has_column ? weight * column.weight(i) : 0.0f);
      }
    }
    return v;
  }
  for (int32_t j = 0; j < row.count; ++j) {
    const uint8_t* pixel = first + j * image.row;
    const float weight = row.weight(j);
    for (int32_t i = 0; i < column.count; ++i, pixel += image.column) {
      add_pixel(v.value, pixel, image.channel, weight * column.weight(i));
    }
  }
  return v;
}

// The colour of a pixel of the crop on 0..255, before the blur.
HMSA_DEVICE Colour colour_at(const CropOutput& output, const CropItem& item, const CropTaps& row,
                             const CropTaps& column, float luma) {
  const Colour v = resampled_at(item.image, output.antialias, row, column);
  const float inside = row.inside * column.inside;
  const CropOffsets offsets = crop_offsets(item, output, luma);
  Colour colour;
  HMSA_UNROLL
  for (int c = 0; c < kChannels; ++c) {
    const float* m = item.matrix[c];
    const float mixed = item.recoloured ? m[0] * v.value[0] + m[1] * v.value[1] + m[2] * v.value[2] : v.value[c];
    const float value = mixed + inside * offsets.inside[c] + offsets.fill[c];
    colour.value[c] = item.recoloured ? min(max(value, 0.0f), 255.0f) : value;
  }
  return colour;
}

// Normalises a colour and puts it where it belongs: in its place, or as channels_last into the tile in shared memory,
// from which whole rows are then written.
template <typename S>
HMSA_DEVICE void finish_pixel(const CropOutput& output, const CropItem& item, const TileFrame& frame, int32_t y,
                              int32_t x, const Colour& colour, float* tile /* [kTile][kTile][3] */) {
  const int64_t plane = static_cast<int64_t>(output.height) * output.width;
  S* to = static_cast<S*>(output.images) + item.number * kChannels * plane +
          static_cast<int64_t>(frame.y0 + y) * output.width + (frame.x0 + x);
  HMSA_UNROLL
  for (int c = 0; c < kChannels; ++c) {
    const float value = colour.value[c] * output.scale[c] + output.shift[c];
    if (output.channels_last) {
      tile[(y * kTile + x) * kChannels + c] = value;
    } else {
      from_arithmetic(to + c * plane, value);
    }
  }
}

template <typename S>
HMSA_DEVICE_PHASE void write_tile(const CropOutput& output, const CropItem& item, const TileFrame& frame,
                                  const float* tile) {
  for (int32_t y = thread() / kLanes; y < frame.height; y += kWarps) {
    const int64_t pixel = (item.number * output.height + frame.y0 + y) * output.width + frame.x0;
    S* to = static_cast<S*>(output.images) + kChannels * pixel;
    for (int32_t k = thread() % kLanes; k < kChannels * frame.width; k += kLanes) {
      from_arithmetic(to + k, tile[y * kTile * kChannels + k]);
    }
  }
}

HMSA_DEVICE_PHASE void write_labels(const CropOutput& output, const CropItem& item, const TileFrame& frame,
                                    const Place* rows, const Place* columns) {
  const CropImage& image = item.image;
  const int32_t x = thread() % kLanes;
  if (x >= frame.width) return;
  const int32_t column = columns[frame.border + x].label;
  for (int32_t y = thread() / kLanes; y < frame.height; y += kWarps) {
    const int32_t row = rows[frame.border + y].label;
    const uint8_t label = row < 0 || column < 0
                              ? output.ignore_index
                              : __ldg(image.labels + row * image.label_row + column * image.label_column);
    output.labels[(item.number * output.height + frame.y0 + y) * output.width + frame.x0 + x] = label;
  }
}

template <typename S>
HMSA_DEVICE_PHASE void make_pixels(const CropOutput& output, const CropItem& item, const TileFrame& frame,
                                   const Place* rows, const Place* columns, float luma, float* tile) {
  const int32_t x = thread() % kLanes;
  if (x >= frame.width) return;
  const CropTaps column = columns[x].taps;
  for (int32_t y = thread() / kLanes; y < frame.height; y += kWarps) {
    finish_pixel<S>(output, item, frame, y, x, colour_at(output, item, rows[y].taps, column, luma), tile);
  }
}

// ---- blur: of `sharp` along the rows into `half`, and from there along the columns ----------------------------------

HMSA_DEVICE_PHASE void make_sharp(const CropOutput& output, const CropItem& item, const TileFrame& frame,
                                  const Place* rows, const Place* columns, float luma, float* sharp) {
  const int32_t pixels = frame.rows() * frame.columns();
  for (int32_t k = thread(); k < pixels; k += kThreads) {
    const Colour colour =
        colour_at(output, item, rows[k / frame.columns()].taps, columns[k % frame.columns()].taps, luma);
    HMSA_UNROLL
    for (int c = 0; c < kChannels; ++c) sharp[c * pixels + k] = colour.value[c];
  }
}

HMSA_DEVICE_PHASE void blur_along_rows(const CropItem& item, const TileFrame& frame, const float* sharp, float* half) {
  const int32_t pitch = frame.columns();
  for (int32_t k = thread(); k < kChannels * frame.rows() * frame.width; k += kThreads) {
    const int32_t row = k / frame.width, x = k % frame.width;
    const float* centre = sharp + row * pitch + x + frame.border;
    float sum = item.blur[0] * centre[0];
    for (int32_t d = 1; d <= frame.border; ++d) sum += item.blur[d] * (centre[-d] + centre[d]);
    half[k] = sum;
  }
}

template <typename S>
HMSA_DEVICE_PHASE void blur_along_columns(const CropOutput& output, const CropItem& item, const TileFrame& frame,
                                          const float* half, float* tile) {
  const int32_t x = thread() % kLanes;
  if (x >= frame.width) return;
  for (int32_t y = thread() / kLanes; y < frame.height; y += kWarps) {
    Colour colour;
    HMSA_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      const float* centre = half + (c * frame.rows() + y + frame.border) * frame.width + x;
      float sum = item.blur[0] * centre[0];
      for (int32_t d = 1; d <= frame.border; ++d) {
        sum += item.blur[d] * (centre[-d * frame.width] + centre[d * frame.width]);
      }
      colour.value[c] = sum;
    }
    finish_pixel<S>(output, item, frame, y, x, colour, tile);
  }
}

// Floats of dynamic shared memory.
int64_t shared_floats(int32_t radius, bool channels_last) {
  constexpr int64_t kTileFloats = kChannels * kTile * kTile;
  const int64_t side = kTile + 2 * radius;
  if (radius == 0) return channels_last ? kTileFloats : 0;
  return kChannels * side * (side + kTile);  // the tile comes to lie where `sharp` was
}

template <typename S, bool kBlur>
__global__ void __launch_bounds__(kThreads) sample_crop_kernel(HMSA_PARAMETER CropBatch batch) {
  HMSA_SHARED(Place, rows, [kLargestSide]);
  HMSA_SHARED(Place, columns, [kLargestSide]);
  HMSA_SHARED(float, luma, [1]);
  HMSA_DYNAMIC_SHARED(float, shared);
  const CropItem& item = batch.items[blockIdx.y];
  const CropOutput& output = batch.output;
  const TileFrame frame = tile_frame(output, kBlur ? item.radius : 0);
  find_places(batch, item, frame, rows, columns);
  if (thread() == 0) {
    const Range tall = output.rows(item).inside(), wide = output.columns(item).inside();
    const int64_t pixels = static_cast<int64_t>(tall.size()) * wide.size();
    luma[0] = item.needs_mean() ? mean_luma(batch.sums + kChannels * item.number, pixels) : 0.0f;
  }
  __syncthreads();
  write_labels(output, item, frame, rows, columns);
  if (kBlur) {
    const int32_t side = kTile + 2 * frame.border;
    float* half = shared + kChannels * side * side;
    make_sharp(output, item, frame, rows, columns, luma[0], shared);
    __syncthreads();
    blur_along_rows(item, frame, shared, half);
    __syncthreads();
    blur_along_columns<S>(output, item, frame, half, shared);
  } else {
    make_pixels<S>(output, item, frame, rows, columns, luma[0], shared);
  }
  if (!output.channels_last) return;
  __syncthreads();
  write_tile<S>(output, item, frame, shared);
}

// ---- launches -------------------------------------------------------------------------------------------------------

// Calls launch(batch, items in it) for the items that `wanted` wants, in parts.
template <typename Wanted, typename Launch>
void for_batches(const SampleCrop& problem, const unsigned long long* sums, const Wanted& wanted,
                 const Launch& launch) {
  CropBatch batch{};
  batch.output = problem.output;
  batch.sums = sums;
  int count = 0;
  for (int64_t n = 0; n < problem.count; ++n) {
    if (wanted(problem.items[n])) batch.items[count++] = problem.items[n];
    if (count == kItems || (count > 0 && n == problem.count - 1)) {
      launch(batch, count);
      count = 0;
    }
  }
}

void launch_sums(const SampleCrop& problem, unsigned long long* sums, cudaStream_t stream) {
  const int64_t count = sample_crop_sums(problem);
  if (count == 0) return;
  HMSA_LAUNCH(clear_crop_sums_kernel, dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)), dim3(kThreads), 0,
              stream, sums, count);
  const auto needs_mean = [](const CropItem& item) { return item.needs_mean(); };
  for_batches(problem, sums, needs_mean, [&](const CropBatch& batch, int items) {
    const dim3 grid(static_cast<unsigned>(2 * wanted_blocks() / items + 1), static_cast<unsigned>(items));
    HMSA_LAUNCH(crop_sums_kernel, grid, dim3(kThreads), 0, stream, batch, sums);
  });
}

template <typename S, bool kBlur>
void launch_crops(const SampleCrop& problem, const unsigned long long* sums, cudaStream_t stream) {
  const CropOutput& output = problem.output;
  const auto wanted = [](const CropItem& item) { return (item.radius > 0) == kBlur; };
  for_batches(problem, sums, wanted, [&](const CropBatch& batch, int items) {
    const int64_t stripes = (output.width + kTile - 1) / kTile, bands = (output.height + kTile - 1) / kTile;
    int32_t radius = 0;
    for (int k = 0; k < items; ++k) radius = max(radius, batch.items[k].radius);
    const dim3 grid(static_cast<unsigned>(stripes * bands), static_cast<unsigned>(items));
    const size_t bytes = sizeof(float) * static_cast<size_t>(shared_floats(radius, output.channels_last));
    HMSA_LAUNCH(sample_crop_kernel<S, kBlur>, grid, dim3(kThreads), bytes, stream, batch);
  });
}

template <typename S>
void launch_all_crops(const SampleCrop& problem, const unsigned long long* sums, cudaStream_t stream) {
  launch_crops<S, false>(problem, sums, stream);
  launch_crops<S, true>(problem, sums, stream);
}

}  // namespace

int64_t sample_crop_sums(const SampleCrop& problem) {
  for (int64_t n = 0; n < problem.count; ++n) {
    if (problem.items[n].needs_mean()) return kChannels * problem.count;
  }
  return 0;
}

void launch_sample_crop(const SampleCrop& problem, unsigned long long* sums, StreamHandle stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  launch_sums(problem, sums, stream);
  switch (problem.output.type) {
    case CropType::kFloat:
      return launch_all_crops<float>(problem, sums, stream);
    case CropType::kHalf:
      return launch_all_crops<Half>(problem, sums, stream);
    case CropType::kBFloat16:
      return launch_all_crops<BFloat16>(problem, sums, stream);
  }
}

}  // namespace cuda
}  // namespace hmsa
