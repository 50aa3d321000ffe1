// Row primitives of sample_crop: one table of functions per instruction set, as in rows.h.
//
// A colour row is three rows of floats, one per channel, `pitch` elements apart in memory where no three pointers are
// given. Scratch rows are followed by kRowSlack elements that may be read and overwritten; rows that `to` points to in
// recolour(), blur_rows() and join_channels() are results and have no slack.
#pragma once

#include <cstdint>

namespace hmsa {

// How the outputs of a row read three channels: to[x] = sum_k weight[k][x] from[first(x) + k], k < taps, with
// first(x) = lane[x] where `base` is null, else base[x / lanes] + lane[x], and all lanes below vectors * lanes.
// All arrays reach to the next whole vector of outputs, with weights of 0.
struct CropColumns {
  int taps;
  int vectors;          // 1, 2 or 4, of sources that a vector of outputs reads at each tap
  const int32_t* base;  // [n / CropOps::lanes], or null
  const int32_t* lane;  // [n]
  const float* weight;  // [taps][pitch]
  int64_t pitch;
  const float* inside;  // [n] sum of the weights; null: all are 1
};

// Value v of channel c becomes scale[c] * (matrix[c] . v + inside[c] * m + constant[c]) + shift[c], where m is the share
// of the pixel that lies in the image; the bracket is clamped to 0..255. Where it is not recoloured there is no matrix and
// no clamp.
struct CropRecolour {
  bool recoloured;
  float matrix[3][3];
  float inside[3];
  float constant[3];
  float scale[3];
  float shift[3];
};

struct CropOps {
  int64_t lanes;  // floats in a vector; 1: CropColumns::base is not used

  // to[c][x] = sum_k weights[k] rows[k][3 x + c]: bytes of pixels side by side, up to `pixels` of them and not beyond
  void (*blend_rows)(float* to, int64_t pitch, const uint8_t* const* rows, const float* weights, int count,
                     int64_t pixels);
  // `from` is three rows followed by slack, which is finite
  void (*resample)(float* to, int64_t to_pitch, const float* from, int64_t pitch, const CropColumns& columns,
                   int64_t n);
  // m = inside_rows * inside_columns[x]; null: the columns are all inside
  void (*recolour)(float* const* to, const float* from, int64_t pitch, const CropRecolour& recolour,
                   const float* inside_columns, float inside_rows, int64_t n);
  // to[x] = sum over |k| <= radius of weights[|k|] from[x + k]
  void (*blur_columns)(float* to, const float* from, const float* weights, int radius, int64_t n);
  // to = scale * (sum over |k| <= radius of weights[|k|] rows[radius + k]) + shift
  void (*blur_rows)(float* to, const float* const* rows, const float* weights, int radius, float scale, float shift,
                    int64_t n);
  // to[3 x + c] = from[c][x]
  void (*join_channels)(float* to, const float* const* from, int64_t n);
  // sums[c] += sum_x row[3 x + c]
  void (*sum_channels)(uint64_t* sums, const uint8_t* row, int64_t pixels);
};

// The table for the instruction set of row_ops().
const CropOps& crop_ops();

}  // namespace hmsa
