// Crops on the GPU. A block makes a tile of one crop: it writes down once what each of its rows and columns reads, and a
// thread then gathers, recolours, normalises and stores a pixel at a time. With a blur the tile and what lies around it is
// made in shared memory first. Everything about a crop is in the parameters of the launch, so that nothing is copied to
// the device and nothing waits; many crops go in several launches. The mean that a change of contrast needs comes from a
// kernel before: each of its blocks writes sums of its own, which every block of the crop adds up.
//
// Colours are from 0 to 1 here, which saturating instructions clamp to.
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
constexpr int kTile = 32;         // columns of a tile
constexpr int kTallTile = 64;     // rows
constexpr int kBlurredTile = 32;  // rows with a blur, whose tile takes a lot of shared memory
constexpr int kItems = 18;        // of a launch

using Sum = unsigned long long;

struct CropBatch {
  CropItem items[kItems];
  CropOutput output;
  const Sum* sums;  // [N, sum_blocks, 3] of the channels; of crops that need no mean anything
  int32_t sum_blocks;
};
static_assert(sizeof(CropBatch) + 64 <= 4096, "parameters of a launch");

HMSA_DEVICE int thread() { return static_cast<int>(threadIdx.x); }

// Pixels side by side, three bytes each.
HMSA_DEVICE bool is_interleaved(const CropImage& image) { return image.column == kChannels && image.channel == 1; }

// ---- sums of the channels -------------------------------------------------------------------------------------------

// Sums of every third byte.
struct ByteSums {
  unsigned of[kChannels];
};

// Adds the bytes of a word, the first of which counts for sum `first`; known to the compiler.
HMSA_DEVICE void add_bytes(ByteSums& sums, unsigned word, int first) {
  constexpr unsigned kBytes[kChannels] = {0x01000001u, 0x00000100u, 0x00010000u};
  HMSA_UNROLL
  for (int k = 0; k < kChannels; ++k) {
    unsigned& sum = sums.of[(first + k) % kChannels];
    sum = __dp4a(word, kBytes[k], sum);
  }
}

// The lane's part of a row of interleaved pixels, added to the sums of the channels. Sums of a row fit 32 bits: there are
// fewer than 2^24 pixels. Whole chunks of 16 bytes are read at once, the bytes in front of and behind them by themselves.
HMSA_DEVICE void add_interleaved(const uint8_t* row, int32_t pixels, Sum* sum /* [3] */) {
  const int lane = thread() % kLanes;
  const int32_t bytes = kChannels * pixels;
  const auto start = static_cast<int32_t>(reinterpret_cast<uintptr_t>(row) % sizeof(uint4));
  const int32_t front = min(start > 0 ? static_cast<int32_t>(sizeof(uint4)) - start : 0, bytes);
  const int32_t chunks = (bytes - front) / static_cast<int32_t>(sizeof(uint4));
  const int32_t behind = front + chunks * static_cast<int32_t>(sizeof(uint4));
  // Lane by lane, and from a lane's chunk to its next, the first byte of a chunk moves on by one and by two channels.
  const auto* from = reinterpret_cast<const uint4*>(row + front);
  ByteSums sums{};
  for (int32_t chunk = lane; chunk < chunks; chunk += kChannels * kLanes) {
    uint4 read[kChannels];
    HMSA_UNROLL
    for (int k = 0; k < kChannels; ++k) {
      read[k] = chunk + k * kLanes < chunks ? __ldg(from + chunk + k * kLanes) : uint4{0, 0, 0, 0};
    }
    HMSA_UNROLL
    for (int k = 0; k < kChannels; ++k) {
      add_bytes(sums, read[k].x, 2 * k);
      add_bytes(sums, read[k].y, 2 * k + 1);
      add_bytes(sums, read[k].z, 2 * k + 2);
      add_bytes(sums, read[k].w, 2 * k + 3);
    }
  }
  const int first = (front + lane) % kChannels;
  HMSA_UNROLL
  for (int c = 0; c < kChannels; ++c) {
    const unsigned here = sums.of[c], before = sums.of[(c + 2) % kChannels], two_before = sums.of[(c + 1) % kChannels];
    sum[c] += first == 0 ? here : first == 1 ? before : two_before;
  }
  // At most 15 bytes on either side.
  const int32_t edge = lane < kLanes / 2 ? lane : behind + lane - kLanes / 2;
  if (edge >= (lane < kLanes / 2 ? front : bytes)) return;
  HMSA_UNROLL
  for (int c = 0; c < kChannels; ++c) sum[c] += edge % kChannels == c ? __ldg(row + edge) : 0;
}

// The lane's part of a row at any strides.
HMSA_DEVICE void add_pixels(const CropImage& image, const uint8_t* row, int32_t pixels, Sum* sum /* [3] */) {
  unsigned part[kChannels] = {0, 0, 0};
  for (int32_t x = thread() % kLanes; x < pixels; x += kLanes) {
    HMSA_UNROLL
    for (int c = 0; c < kChannels; ++c) part[c] += __ldg(row + x * image.column + c * image.channel);
  }
  HMSA_UNROLL
  for (int c = 0; c < kChannels; ++c) sum[c] += part[c];
}

// Adds up the three numbers of all lanes; each lane then has the result.
HMSA_DEVICE void add_lanes(Sum* sum /* [3] */) {
  HMSA_UNROLL
  for (int c = 0; c < kChannels; ++c) {
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], lanes);
  }
}

// The pixels of the boxes, a row for each warp at a time. Sums of integers are the same in any order.
__global__ void __launch_bounds__(kThreads) crop_sums_kernel(HMSA_PARAMETER CropBatch batch, Sum* sums) {
  HMSA_SHARED(Sum, warps, [kWarps][kChannels]);
  const CropItem& item = batch.items[blockIdx.y];
  const CropImage& image = item.image;
  const Range rows = batch.output.rows(item).inside();
  const Range columns = batch.output.columns(item).inside();
  const int warp = thread() / kLanes;
  const bool interleaved = is_interleaved(image);
  Sum sum[kChannels] = {0, 0, 0};
  const int32_t step = static_cast<int32_t>(gridDim.x) * kWarps;
  for (int32_t y = rows.lo + static_cast<int32_t>(blockIdx.x) * kWarps + warp; y < rows.hi; y += step) {
    const uint8_t* row = image.pixels + y * image.row + columns.lo * image.column;
    if (interleaved) {
      add_interleaved(row, columns.size(), sum);
    } else {
      add_pixels(image, row, columns.size(), sum);
    }
  }
  add_lanes(sum);
  if (thread() % kLanes == 0) {
    HMSA_UNROLL
    for (int c = 0; c < kChannels; ++c) warps[warp][c] = sum[c];
  }
  __syncthreads();
  if (thread() >= kChannels) return;
  Sum total = 0;
  for (int k = 0; k < kWarps; ++k) total += warps[k][thread()];
  sums[(item.number * static_cast<int64_t>(gridDim.x) + blockIdx.x) * kChannels + thread()] = total;
}

// The mean luma of a crop's pixels from 0 to 1, found by the lanes of a warp together.
HMSA_DEVICE float mean_of(const CropBatch& batch, const CropItem& item) {
  const Sum* from = batch.sums + item.number * batch.sum_blocks * kChannels;
  Sum sum[kChannels] = {0, 0, 0};
  for (int k = thread() % kLanes; k < batch.sum_blocks; k += kLanes) {
    HMSA_UNROLL
    for (int c = 0; c < kChannels; ++c) sum[c] += __ldg(from + k * kChannels + c);
  }
  add_lanes(sum);
  const Range tall = batch.output.rows(item).inside(), wide = batch.output.columns(item).inside();
  return mean_luma(sum, static_cast<int64_t>(tall.size()) * wide.size()) / 255.0f;
}

// ---- crops ----------------------------------------------------------------------------------------------------------

// What a row or a column of the crop reads: without antialiasing two pixels of the image, near and far, else those that
// the taps tell. Weights of pixels outside of the image are zero.
struct alignas(16) CropPlace {
  int64_t near;  // bytes from the first row or column
  int64_t far;
  float near_weight;
  float far_weight;
  int64_t label;  // likewise in the label map, or -1 outside of the image
  CropTaps taps;
};

struct Colour {
  float value[kChannels];
};

// A tile of a crop, and a border around it of as many pixels as a blur reaches.
struct TileFrame {
  int32_t y0, x0;         // first pixel of the tile
  int32_t height, width;  // of the tile: less at the ends
  int32_t border;

  HMSA_DEVICE int32_t rows() const { return height + 2 * border; }
  HMSA_DEVICE int32_t columns() const { return width + 2 * border; }
};

HMSA_DEVICE TileFrame tile_frame(const CropOutput& output, int32_t tile_rows, int32_t border) {
  const int32_t stripes = (output.width + kTile - 1) / kTile;
  const int32_t band = static_cast<int32_t>(blockIdx.x) / stripes;
  TileFrame frame;
  frame.y0 = band * tile_rows;
  frame.x0 = (static_cast<int32_t>(blockIdx.x) - band * stripes) * kTile;
  frame.height = min(tile_rows, output.height - frame.y0);
  frame.width = min(kTile, output.width - frame.x0);
  frame.border = border;
  return frame;
}

HMSA_DEVICE CropPlace place_of(const CropAxis& axis, int32_t o, int64_t step, int64_t label_step) {
  const CropTaps taps = axis.taps(o);
  const int32_t label = axis.nearest(o);
  CropPlace place;
  place.near = taps.first * step;
  place.far = taps.count > 1 ? place.near + step : place.near;
  place.near_weight = taps.count > 0 ? taps.weight(0) : 0.0f;
  place.far_weight = taps.count > 1 ? taps.weight(1) : 0.0f;
  place.label = label < 0 ? -1 : label * label_step;
  place.taps = taps;
  return place;
}

HMSA_DEVICE_PHASE void find_places(const CropBatch& batch, const CropItem& item, const TileFrame& frame,
                                   CropPlace* rows, CropPlace* columns) {
  const CropOutput& output = batch.output;
  const CropImage& image = item.image;
  for (int k = thread(); k < frame.rows() + frame.columns(); k += kThreads) {
    const bool is_row = k < frame.rows();
    const CropAxis axis = is_row ? output.rows(item) : output.columns(item);
    const int32_t at = is_row ? frame.y0 + k : frame.x0 + k - frame.rows();
    (is_row ? rows + k : columns + k - frame.rows())[0] =
        place_of(axis, reflect(at - frame.border, axis.out), is_row ? image.row : image.column,
                 is_row ? image.label_row : image.label_column);
  }
}

// How the colour of a pixel changes: matrix * v + inside * (share of the pixel that is in the image) + fill, clamped. It
// comes from 0 to 255 and becomes one from 0 to 1. Where nothing is recoloured the matrix leaves it as it is, and nothing
// is there to be clamped but what rounding adds.
struct ColourChange {
  float matrix[kChannels][kChannels];
  float inside[kChannels];
  float fill[kChannels];

  HMSA_DEVICE ColourChange(const CropItem& item, const CropOutput& output, float mean) {
    constexpr float kUnit = 1.0f / 255.0f;
    const float offset = item.recoloured ? item.luma_share * mean : 0.0f;
    HMSA_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      HMSA_UNROLL
      for (int k = 0; k < kChannels; ++k) {
        matrix[c][k] = (item.recoloured ? item.matrix[c][k] : c == k ? 1.0f : 0.0f) * kUnit;
      }
      fill[c] = output.fill[c] * kUnit;
      inside[c] = offset - fill[c];
    }
  }

  HMSA_DEVICE Colour operator()(const Colour& v, float share) const {
    Colour colour;
    HMSA_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      const float* m = matrix[c];
      const float offset = inside[c] * share + fill[c];
      colour.value[c] = __saturatef(m[0] * v.value[0] + (m[1] * v.value[1] + (m[2] * v.value[2] + offset)));
    }
    return colour;
  }
};

// Adds weight * the colour of a pixel.
HMSA_DEVICE void add_pixel(float* sum, const uint8_t* pixel, int64_t channel, float weight) {
  HMSA_UNROLL
  for (int c = 0; c < kChannels; ++c) sum[c] += weight * static_cast<float>(__ldg(pixel + c * channel));
}

// The resampled colour of a row and a column; what lies outside the image is missing in it.
HMSA_DEVICE Colour filtered(const CropImage& image, const CropTaps& row, const CropTaps& column) {
  Colour v{{0.0f, 0.0f, 0.0f}};
  const uint8_t* first = image.pixels + row.first * image.row + column.first * image.column;
  for (int32_t j = 0; j < row.count; ++j) {
    const uint8_t* pixel = first + j * image.row;
    const float weight = row.weight(j);
    for (int32_t i = 0; i < column.count; ++i, pixel += image.column) {
      add_pixel(v.value, pixel, image.channel, weight * column.weight(i));
    }
  }
  return v;
}

// Reads the pixels of a column of interleaved pixels, row by row, without antialiasing. Two pixels side by side are six
// bytes at any address, read as the three words around them; their weights are whole numbers of 16 bits, so that the sum of
// both is exact.
class WordColumn {
 public:
  HMSA_DEVICE WordColumn(const CropImage& image, const CropPlace& column)
      : from_(image.pixels + column.near), scale_(column.taps.scale) {
    const CropTaps& taps = column.taps;
    weights_ = (taps.count > 0 ? static_cast<unsigned>(taps.units(0)) : 0u) |
               (taps.count > 1 ? static_cast<unsigned>(taps.units(1)) : 0u) << 16;
    // The words begin up to three bytes in front of the pixels and end up to six behind: in the last row that may be
    // beyond the memory of the image.
    const bool ends_inside = column.near + 12 <= kChannels * image.width;
    end_ = (ends_inside ? image.height : image.height - 1) * image.row;
  }

  // Whether a crop can be read like this. Words of a pixel in shorter rows could reach behind the last one.
  HMSA_DEVICE static bool takes(const CropImage& image, const CropOutput& output) {
    return !output.antialias && 2 * static_cast<int64_t>(output.width) <= 0xffff && is_interleaved(image) &&
           reinterpret_cast<uintptr_t>(image.pixels) % sizeof(unsigned) == 0 && image.row >= 12;
  }
  HMSA_DEVICE bool takes(const CropPlace& row) const { return row.far < end_; }

  // The resampled colour; what lies outside the image is missing in it.
  HMSA_DEVICE Colour operator()(const CropPlace& row) const {
    unsigned near[kChannels], far[kChannels];
    add_pair(from_ + row.near, near);
    add_pair(from_ + row.far, far);
    const float near_weight = row.near_weight * scale_, far_weight = row.far_weight * scale_;
    Colour v;
    HMSA_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      v.value[c] = near_weight * static_cast<float>(near[c]) + far_weight * static_cast<float>(far[c]);
    }
    return v;
  }

 private:
  HMSA_DEVICE void add_pair(const uint8_t* pixel, unsigned* sums /* [3] */) const {
    const auto address = reinterpret_cast<uintptr_t>(pixel);
    const auto* word = reinterpret_cast<const unsigned*>(address & ~uintptr_t{3});
    const unsigned w0 = __ldg(word), w1 = __ldg(word + 1), w2 = __ldg(word + 2);
    const unsigned shift = 8 * (static_cast<unsigned>(address) & 3u);
    const unsigned low = __funnelshift_r(w0, w1, shift), high = __funnelshift_r(w1, w2, shift);
    const unsigned red_green = __byte_perm(low, high, 0x4130), blue = __byte_perm(low, high, 0x5252);
    sums[0] = __dp2a_lo(weights_, red_green, 0u);
    sums[1] = __dp2a_hi(weights_, red_green, 0u);
    sums[2] = __dp2a_lo(weights_, blue, 0u);
  }

  const uint8_t* from_;
  float scale_;
  unsigned weights_;  // of the first pixel in the low bits
  int64_t end_;       // of the rows that can be read
};

// Reads the pixels of a column, whatever the image and the filter.
class AnyColumn {
 public:
  HMSA_DEVICE AnyColumn(const CropImage& image, bool antialias, const CropPlace& column)
      : image_(image), antialias_(antialias), column_(column) {}

  HMSA_DEVICE Colour operator()(const CropPlace& row) const {
    if (antialias_) return filtered(image_, row.taps, column_.taps);
    Colour v{{0.0f, 0.0f, 0.0f}};
    add_row(v, row.near, row.near_weight);
    add_row(v, row.far, row.far_weight);
    return v;
  }

 private:
  HMSA_DEVICE void add_row(Colour& v, int64_t row, float weight) const {
    const uint8_t* from = image_.pixels + row;
    add_pixel(v.value, from + column_.near, image_.channel, weight * column_.near_weight);
    add_pixel(v.value, from + column_.far, image_.channel, weight * column_.far_weight);
  }

  const CropImage& image_;
  const bool antialias_;
  const CropPlace& column_;
};

// Calls body(colour) for every kWarps-th row of a column, from `y` on.
template <typename Body>
HMSA_DEVICE void for_colours(const CropOutput& output, const CropItem& item, int32_t y, int32_t end,
                             const CropPlace* rows, const CropPlace& column, float mean, Body&& body) {
  const ColourChange change(item, output, mean);
  const float share = column.taps.inside;
  if (WordColumn::takes(item.image, output)) {
    const WordColumn read(item.image, column);
    HMSA_UNROLL_BY(2)
    for (; y < end && read.takes(rows[y]); y += kWarps) body(change(read(rows[y]), rows[y].taps.inside * share));
  }
  const AnyColumn read(item.image, output.antialias, column);
  HMSA_ROLLED
  for (; y < end; y += kWarps) body(change(read(rows[y]), rows[y].taps.inside * share));
}

// Normalises the colours of every kWarps-th row of a column and puts them where they belong: in their place, or as
// channels_last into the tile in shared memory, from which whole rows are then written.
template <typename S, bool kChannelsLast>
class ColumnWriter {
 public:
  HMSA_DEVICE ColumnWriter(const CropOutput& output, const CropItem& item, const TileFrame& frame, int32_t y, int32_t x,
                           float* tile /* [rows][kTile][3] */)
      : step_(static_cast<int64_t>(kWarps) * output.width), tile_(tile + kChannels * (kTile * y + x)) {
    const int64_t plane = static_cast<int64_t>(output.height) * output.width;
    S* const first = static_cast<S*>(output.images) + item.number * kChannels * plane +
                     static_cast<int64_t>(frame.y0 + y) * output.width + (frame.x0 + x);
    HMSA_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      to_[c] = first + c * plane;
      scale_[c] = 255.0f * output.scale[c];
      shift_[c] = output.shift[c];
    }
  }

  // The next one.
  HMSA_DEVICE void operator()(const Colour& colour) {
    HMSA_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      const float value = colour.value[c] * scale_[c] + shift_[c];
      if (kChannelsLast) {
        tile_[c] = value;
      } else {
        from_arithmetic(to_[c], value);
        to_[c] += step_;
      }
    }
    if (kChannelsLast) tile_ += kChannels * kTile * kWarps;
  }

 private:
  int64_t step_;
  float* tile_;
  S* to_[kChannels];
  float scale_[kChannels], shift_[kChannels];
};

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
                                    const CropPlace* rows, const CropPlace* columns) {
  const int32_t x = thread() % kLanes;
  if (x >= frame.width) return;
  const int64_t column = columns[frame.border + x].label;
  const uint8_t* from = item.image.labels + column;
  int32_t y = thread() / kLanes;
  uint8_t* to = output.labels + (item.number * output.height + frame.y0 + y) * output.width + (frame.x0 + x);
  const int64_t step = static_cast<int64_t>(kWarps) * output.width;
  for (; y < frame.height; y += kWarps, to += step) {
    const int64_t row = rows[frame.border + y].label;
    *to = row >= 0 && column >= 0 ? __ldg(from + row) : output.ignore_index;
  }
}

template <typename S, bool kChannelsLast>
HMSA_DEVICE_PHASE void make_pixels(const CropOutput& output, const CropItem& item, const TileFrame& frame,
                                   const CropPlace* rows, const CropPlace* columns, float mean, float* tile) {
  const int32_t x = thread() % kLanes, y = thread() / kLanes;
  if (x >= frame.width) return;
  for_colours(output, item, y, frame.height, rows, columns[x], mean,
              ColumnWriter<S, kChannelsLast>(output, item, frame, y, x, tile));
}

// ---- blur: of `sharp` along the rows into `half`, and from there along the columns ----------------------------------

HMSA_DEVICE_PHASE void make_sharp(const CropOutput& output, const CropItem& item, const TileFrame& frame,
                                  const CropPlace* rows, const CropPlace* columns, float mean, float* sharp) {
  const int32_t pixels = frame.rows() * frame.columns();
  const int32_t y = thread() / kLanes;
  for (int32_t x = thread() % kLanes; x < frame.columns(); x += kLanes) {
    float* to = sharp + y * frame.columns() + x;
    for_colours(output, item, y, frame.rows(), rows, columns[x], mean, [&](const Colour& colour) {
      HMSA_UNROLL
      for (int c = 0; c < kChannels; ++c) to[c * pixels] = colour.value[c];
      to += kWarps * frame.columns();
    });
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

template <typename S, bool kChannelsLast>
HMSA_DEVICE_PHASE void blur_along_columns(const CropOutput& output, const CropItem& item, const TileFrame& frame,
                                          const float* half, float* tile) {
  const int32_t x = thread() % kLanes;
  if (x >= frame.width) return;
  int32_t y = thread() / kLanes;
  ColumnWriter<S, kChannelsLast> write(output, item, frame, y, x, tile);
  for (; y < frame.height; y += kWarps) {
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
    write(colour);
  }
}

// Floats of dynamic shared memory.
int64_t shared_floats(int32_t tile_rows, int32_t radius, bool channels_last) {
  if (radius == 0) return channels_last ? kChannels * tile_rows * kTile : 0;
  // The tile comes to lie where `sharp` was.
  const int64_t tall = tile_rows + 2 * radius, wide = kTile + 2 * radius;
  return kChannels * tall * (wide + kTile);
}

template <bool kBlur>
constexpr int tile_rows() {
  return kBlur ? kBlurredTile : kTallTile;
}

// The last of the steps, with or without a blur.
template <typename S, bool kBlur, bool kChannelsLast>
HMSA_DEVICE void make_tile(const CropOutput& output, const CropItem& item, const TileFrame& frame,
                           const CropPlace* rows, const CropPlace* columns, float mean, const float* half,
                           float* tile) {
  if (kBlur) {
    blur_along_columns<S, kChannelsLast>(output, item, frame, half, tile);
  } else {
    make_pixels<S, kChannelsLast>(output, item, frame, rows, columns, mean, tile);
  }
}

template <typename S, bool kBlur>
__global__ void __launch_bounds__(kThreads) sample_crop_kernel(HMSA_PARAMETER CropBatch batch) {
  constexpr int kBorders = kBlur ? 2 * kLargestRadius : 0;
  HMSA_SHARED(CropPlace, rows, [tile_rows<kBlur>() + kBorders]);
  HMSA_SHARED(CropPlace, columns, [kTile + kBorders]);
  HMSA_SHARED(float, mean, [1]);
  HMSA_DYNAMIC_SHARED(float, shared);
  const CropItem& item = batch.items[blockIdx.y];
  const CropOutput& output = batch.output;
  const TileFrame frame = tile_frame(output, tile_rows<kBlur>(), kBlur ? item.radius : 0);
  find_places(batch, item, frame, rows, columns);
  if (thread() >= kThreads - kLanes) {  // the last warp, which has the fewest places
    const float luma = item.needs_mean() ? mean_of(batch, item) : 0.0f;
    if (thread() == kThreads - kLanes) mean[0] = luma;
  }
  __syncthreads();
  write_labels(output, item, frame, rows, columns);
  float* half = nullptr;
  if (kBlur) {
    // Behind a whole tile and its border, even where the tile at hand is less.
    half = shared + kChannels * (tile_rows<kBlur>() + 2 * frame.border) * (kTile + 2 * frame.border);
    make_sharp(output, item, frame, rows, columns, mean[0], shared);
    __syncthreads();
    blur_along_rows(item, frame, shared, half);
    __syncthreads();
  }
  if (output.channels_last) {
    make_tile<S, kBlur, true>(output, item, frame, rows, columns, mean[0], half, shared);
    __syncthreads();
    write_tile<S>(output, item, frame, shared);
  } else {
    make_tile<S, kBlur, false>(output, item, frame, rows, columns, mean[0], half, shared);
  }
}

// ---- launches -------------------------------------------------------------------------------------------------------

// Blocks that add up the pixels of a crop: a few for each multiprocessor in all.
int32_t sum_blocks(const SampleCrop& problem) {
  const int64_t together = min(problem.count, static_cast<int64_t>(kItems));
  return static_cast<int32_t>(divide_up(2 * static_cast<int64_t>(multiprocessor_count()), together));
}

// Calls launch(batch, items in it) for the items that `wanted` wants, in parts.
template <typename Wanted, typename Launch>
void for_batches(const SampleCrop& problem, const Sum* sums, const Wanted& wanted, const Launch& launch) {
  CropBatch batch{};
  batch.output = problem.output;
  batch.sums = sums;
  batch.sum_blocks = sum_blocks(problem);
  int count = 0;
  for (int64_t n = 0; n < problem.count; ++n) {
    if (wanted(problem.items[n])) batch.items[count++] = problem.items[n];
    if (count == kItems || (count > 0 && n == problem.count - 1)) {
      launch(batch, count);
      count = 0;
    }
  }
}

void launch_sums(const SampleCrop& problem, Sum* sums, cudaStream_t stream) {
  const auto needs_mean = [](const CropItem& item) { return item.needs_mean(); };
  for_batches(problem, sums, needs_mean, [&](const CropBatch& batch, int items) {
    const dim3 grid(static_cast<unsigned>(batch.sum_blocks), static_cast<unsigned>(items));
    HMSA_LAUNCH(crop_sums_kernel, grid, dim3(kThreads), 0, stream, batch, sums);
  });
}

template <typename S, bool kBlur>
void launch_crops(const SampleCrop& problem, const Sum* sums, cudaStream_t stream) {
  const CropOutput& output = problem.output;
  const auto wanted = [](const CropItem& item) { return (item.radius > 0) == kBlur; };
  for_batches(problem, sums, wanted, [&](const CropBatch& batch, int items) {
    constexpr int64_t kRows = tile_rows<kBlur>();
    const int64_t stripes = (output.width + kTile - 1) / kTile, bands = (output.height + kRows - 1) / kRows;
    int32_t radius = 0;
    for (int k = 0; k < items; ++k) radius = max(radius, batch.items[k].radius);
    const dim3 grid(static_cast<unsigned>(stripes * bands), static_cast<unsigned>(items));
    const size_t bytes = sizeof(float) * static_cast<size_t>(shared_floats(kRows, radius, output.channels_last));
    HMSA_LAUNCH(sample_crop_kernel<S, kBlur>, grid, dim3(kThreads), bytes, stream, batch);
  });
}

template <typename S>
void launch_all_crops(const SampleCrop& problem, const Sum* sums, cudaStream_t stream) {
  launch_crops<S, false>(problem, sums, stream);
  launch_crops<S, true>(problem, sums, stream);
}

}  // namespace

int64_t sample_crop_sums(const SampleCrop& problem) {
  for (int64_t n = 0; n < problem.count; ++n) {
    if (problem.items[n].needs_mean()) return kChannels * problem.count * sum_blocks(problem);
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
