// Crops of images: which pixels an output pixel reads, and how their colour changes.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"
#include "core/integers.h"
#include "core/resize.h"

namespace hmsa {

// The taps of an output along one axis: pixels of the image from `first` on; weight(k) belongs to tap k.
struct CropTaps {
  int32_t first;
  int32_t count;  // 0 where everything lies outside the image
  int32_t reach;  // weights are triangles over whole numbers: reach - |start + k * step|, times `scale`
  int32_t start;
  int32_t step;
  float scale;
  float inside;  // sum of the weights: what lies outside the image is missing in it

  // The weight as a whole number, from 0 to `reach`: a weight is that times `scale`.
  HMSA_HOST_DEVICE int32_t units(int32_t k) const {
    const int32_t from_centre = start + k * step;
    return reach - (from_centre < 0 ? -from_centre : from_centre);
  }
  HMSA_HOST_DEVICE float weight(int32_t k) const { return static_cast<float>(units(k)) * scale; }
};

// One axis of a crop: `out` outputs over a box of `in` pixels that starts at pixel `origin` of an image of `length`. The
// box is resized by itself: with the centre of output o at (2 o + 1) in, and that of pixel j of the box at (2 j + 1) out,
//
//     weight of j  ~  reach - |(2 j + 1) out - (2 o + 1) in|,   normalised over the pixels of the box
//
// With reach = 2 out that is torch's bilinear interpolation (align_corners=False), clamped edges included; with
// reach = 2 max(in, out) the same with antialias=True. All are whole numbers, so only the result is rounded.
struct CropAxis {
  int32_t in;
  int32_t out;
  int32_t origin;
  int32_t length;
  bool antialias;
  bool mirrored;

  // The pixels of the image that lie in the box.
  HMSA_HOST_DEVICE Range inside() const {
    const int32_t end = origin + in;
    return Range{origin > 0 ? origin : 0, end < length ? end : length};
  }

  HMSA_HOST_DEVICE CropTaps taps(int32_t o) const {
    const int64_t position = centre(o);
    const int64_t reach = 2 * static_cast<int64_t>(antialias && in > out ? in : out);
    const int64_t step = 2 * static_cast<int64_t>(out);
    int64_t lo = floor_div(position - reach - out, step) + 1;
    int64_t hi = floor_div(position + reach - out - 1, step) + 1;
    lo = lo > 0 ? lo : 0;
    hi = hi < in ? hi : in;
    const Range image = inside();
    int64_t total = 0, total_inside = 0;
    int32_t first = 0, count = 0;
    for (int64_t j = lo; j < hi; ++j) {
      const int64_t distance = (2 * j + 1) * out - position;
      const int64_t weight = reach - (distance < 0 ? -distance : distance);
      total += weight;
      const int64_t pixel = origin + j;
      if (pixel < image.lo || pixel >= image.hi) continue;
      if (count == 0) first = static_cast<int32_t>(pixel);
      ++count;
      total_inside += weight;
    }
    const float scale = static_cast<float>(1.0 / static_cast<double>(total));
    const int64_t start = (2 * (static_cast<int64_t>(first) - origin) + 1) * out - position;
    return CropTaps{first,
                    count,
                    static_cast<int32_t>(reach),
                    count > 0 ? static_cast<int32_t>(start) : 0,
                    static_cast<int32_t>(step),
                    scale,
                    total_inside == total
                        ? 1.0f
                        : static_cast<float>(static_cast<double>(total_inside) / static_cast<double>(total))};
  }

  // The pixel of the image under the centre of an output, or -1 outside.
  HMSA_HOST_DEVICE int32_t nearest(int32_t o) const {
    const int64_t pixel = origin + centre(o) / (2 * static_cast<int64_t>(out));
    return pixel >= 0 && pixel < length ? static_cast<int32_t>(pixel) : -1;
  }

 private:
  HMSA_HOST_DEVICE int64_t centre(int32_t o) const {
    return (2 * static_cast<int64_t>(mirrored ? out - 1 - o : o) + 1) * in;
  }
};

// Position p of an axis that continues as its mirror image beyond both ends. The ends are not repeated.
HMSA_HOST_DEVICE int32_t reflect(int32_t p, int32_t length) {
  if (p >= 0 && p < length) return p;
  if (length == 1) return 0;
  const int32_t period = 2 * (length - 1);
  p %= period;
  if (p < 0) p += period;
  return p < length ? p : period - p;
}

// ---- what a kernel is given -----------------------------------------------------------------------------------------

constexpr float kLargestSigma = 4.0f;
constexpr int kLargestRadius = 12;

// An image and its label map; strides in bytes.
struct CropImage {
  const uint8_t* pixels;  // [height, width, 3]
  int64_t row;
  int64_t column;
  int64_t channel;
  const uint8_t* labels;  // [height, width]
  int64_t label_row;
  int64_t label_column;
  int32_t height;
  int32_t width;
};

struct CropItem {
  CropImage image;
  int64_t number;  // of the crop in the result
  int32_t y0, x0, y1, x1;
  // The colour v becomes matrix v + luma_share * (mean luma of the pixels inside), clamped to 0..255; where it is not
  // recoloured it stays as it is.
  float matrix[3][3];
  float luma_share;
  float blur[kLargestRadius + 1];  // weight of the pixels at each distance
  int32_t radius;                  // 0: no blur
  bool flip;
  bool recoloured;

  HMSA_HOST_DEVICE bool needs_mean() const { return recoloured && luma_share != 0.0f; }
};

enum class CropType : int32_t { kFloat, kHalf, kBFloat16 };

struct CropOutput {
  void* images;  // [N, 3, height, width]
  CropType type;
  bool channels_last;  // in memory, else contiguous
  bool antialias;
  uint8_t ignore_index;
  int32_t height;
  int32_t width;
  uint8_t* labels;  // [N, height, width]
  // Of each channel: the colour outside of images, on 0..255, and the normalisation of a value on 0..255.
  float fill[3];
  float scale[3];
  float shift[3];

  HMSA_HOST_DEVICE CropAxis rows(const CropItem& item) const {
    return CropAxis{item.y1 - item.y0, height, item.y0, item.image.height, antialias, false};
  }
  HMSA_HOST_DEVICE CropAxis columns(const CropItem& item) const {
    return CropAxis{item.x1 - item.x0, width, item.x0, item.image.width, antialias, item.flip};
  }
};

struct SampleCrop {
  const CropItem* items;
  int64_t count;
  CropOutput output;
};

// ---- colour ---------------------------------------------------------------------------------------------------------

// Luma and the two chroma axes of YIQ.
constexpr double kYiq[3][3] = {{0.299, 0.587, 0.114}, {0.5959, -0.2746, -0.3213}, {0.2115, -0.5227, 0.3112}};

// The colour change of an item: with Y the matrix of YIQ and T a turn of its chroma plane, scaled by the saturation,
//
//     brightness * (contrast * Y^-1 T Y v + (1 - contrast) * mean luma)
//
// which is what the four changes are one after the other, in any order.
inline void set_colour(CropItem& item, double brightness, double contrast, double saturation, double turn) {
  item.recoloured = !(brightness == 1 && contrast == 1 && saturation == 1 && turn == 0);
  const double angle = 2 * 3.14159265358979323846 * turn;
  const double cosine = saturation * std::cos(angle), sine = saturation * std::sin(angle);
  const double turned[3][3] = {{1, 0, 0}, {0, cosine, -sine}, {0, sine, cosine}};
  const auto& y = kYiq;
  double inverse[3][3];  // times the determinant
  for (int i = 0; i < 3; ++i) {
    const int i1 = (i + 1) % 3, i2 = (i + 2) % 3;
    for (int j = 0; j < 3; ++j) {
      const int j1 = (j + 1) % 3, j2 = (j + 2) % 3;
      inverse[j][i] = y[i1][j1] * y[i2][j2] - y[i1][j2] * y[i2][j1];
    }
  }
  const double determinant = y[0][0] * inverse[0][0] + y[0][1] * inverse[1][0] + y[0][2] * inverse[2][0];
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      double sum = 0;
      for (int k = 0; k < 3; ++k) {
        for (int l = 0; l < 3; ++l) sum += inverse[i][k] * turned[k][l] * y[l][j];
      }
      item.matrix[i][j] = static_cast<float>(brightness * contrast * sum / determinant);
    }
  }
  item.luma_share = static_cast<float>(brightness * (1 - contrast));
}

// Mean luma of `pixels` pixels with these sums of their channels.
HMSA_HOST_DEVICE float mean_luma(const unsigned long long* sums, int64_t pixels) {
  if (pixels == 0) return 0.0f;
  const double sum = 0.299 * static_cast<double>(sums[0]) + 0.587 * static_cast<double>(sums[1]) +
                     0.114 * static_cast<double>(sums[2]);
  return static_cast<float>(sum / static_cast<double>(pixels));
}

// What is added to the colour of a pixel of which a share `inside` lies in the image:
// inside * (offset - fill) + fill.
struct CropOffsets {
  float inside[3];
  float fill[3];
};

HMSA_HOST_DEVICE CropOffsets crop_offsets(const CropItem& item, const CropOutput& output, float luma) {
  const float offset = item.recoloured ? item.luma_share * luma : 0.0f;
  CropOffsets offsets;
  for (int c = 0; c < 3; ++c) {
    offsets.inside[c] = offset - output.fill[c];
    offsets.fill[c] = output.fill[c];
  }
  return offsets;
}

// The weights of a Gaussian blur out to three sigma, and its radius.
inline void set_blur(CropItem& item, double sigma) {
  item.radius = sigma > 0 ? static_cast<int32_t>(std::ceil(3 * sigma)) : 0;
  double total = 0;
  double weights[kLargestRadius + 1] = {};
  for (int k = 0; k <= item.radius; ++k) {
    weights[k] = k == 0 ? 1.0 : std::exp(-k * k / (2 * sigma * sigma));
    total += k == 0 ? weights[k] : 2 * weights[k];
  }
  for (int k = 0; k <= kLargestRadius; ++k) item.blur[k] = static_cast<float>(weights[k] / total);
}

}  // namespace hmsa
