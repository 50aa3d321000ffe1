// The primitives of sample_crop_rows.h, compiled once per instruction set like rows.cpp.
#include "ops/cpu/simd/sample_crop_rows.h"

#include <cstring>

#include "ops/cpu/simd/exponentials.h"
#include "ops/cpu/simd/permute.h"
#include "ops/cpu/simd/rows.h"

#ifndef HMSA_SIMD_NAMESPACE
#define HMSA_SIMD_NAMESPACE generic
#endif

namespace hmsa {
namespace {

constexpr int kChannels = 3;

// ---- pixels side by side <-> a vector per channel -------------------------------------------------------------------

#if defined(__AVX2__)
constexpr int64_t kGroup = kLanes;  // pixels of three vectors

// Element i of channel c is at 3 i + c in three vectors. Since 3 divides no power of two, no two elements of a channel
// have the same lane: the three vectors blend into one per channel, which one permutation puts in order, and back.
constexpr unsigned channel_mask(int64_t vector, int64_t channel) {
  unsigned mask = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    if ((vector * kLanes + lane) % kChannels == channel) mask |= 1u << lane;
  }
  return mask;
}

struct ChannelLanes {
  int32_t split[kChannels][kLanes];  // lane of element i
  int32_t join[kChannels][kLanes];   // element in a lane
};
constexpr ChannelLanes make_channel_lanes() {
  ChannelLanes lanes{};
  for (int c = 0; c < kChannels; ++c) {
    for (int32_t i = 0; i < kLanes; ++i) {
      const int32_t lane = (kChannels * i + c) % static_cast<int32_t>(kLanes);
      lanes.split[c][i] = lane;
      lanes.join[c][lane] = i;
    }
  }
  return lanes;
}
constexpr ChannelLanes kChannelLanes = make_channel_lanes();

#if defined(__AVX512F__)
template <unsigned kMask>
Floats blend(Floats a, Floats b) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>(kMask), a, b);
}
Floats widened(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, bytes));
}
Floats all_floats(float value) { return _mm512_set1_ps(value); }
#else
template <unsigned kMask>
Floats blend(Floats a, Floats b) {
  return _mm256_blend_ps(a, b, kMask);
}
Floats widened(const uint8_t* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
}
Floats all_floats(float value) { return _mm256_set1_ps(value); }
#endif

template <int kChannel>
Floats split_channel(const Floats* v) {
  const Floats two = blend<channel_mask(1, kChannel)>(v[0], v[1]);
  return pick(blend<channel_mask(2, kChannel)>(two, v[2]), lanes_from(kChannelLanes.split[kChannel], 0));
}

void store_channels(float* to, int64_t pitch, const Floats* v) {
  store_floats(to, split_channel<0>(v));
  store_floats(to + pitch, split_channel<1>(v));
  store_floats(to + 2 * pitch, split_channel<2>(v));
}

template <int kVector>
Floats join_vector(const Floats* channels) {
  const Floats two = blend<channel_mask(kVector, 1)>(channels[0], channels[1]);
  return blend<channel_mask(kVector, 2)>(two, channels[2]);
}

// A group of pixels: three vectors of bytes. kCount rows, or `count`.
template <int kCount>
void blend_group(float* to, int64_t pitch, const uint8_t* const* rows, int64_t offset, const float* weights,
                 int count) {
  Floats sums[kChannels];
  const Floats first = all_floats(weights[0]);
  for (int v = 0; v < kChannels; ++v) sums[v] = multiply_floats(first, widened(rows[0] + offset + v * kLanes));
  for (int k = 1; k < (kCount > 0 ? kCount : count); ++k) {
    const Floats weight = all_floats(weights[k]);
    for (int v = 0; v < kChannels; ++v) {
      sums[v] = multiply_add_floats(weight, widened(rows[k] + offset + v * kLanes), sums[v]);
    }
  }
  store_channels(to, pitch, sums);
}

void join_group(float* to, const float* const* from, int64_t x) {
  Floats channels[kChannels];
  for (int c = 0; c < kChannels; ++c) {
    channels[c] = pick(load_floats(from[c] + x), lanes_from(kChannelLanes.join[c], 0));
  }
  store_floats(to, join_vector<0>(channels));
  store_floats(to + kLanes, join_vector<1>(channels));
  store_floats(to + 2 * kLanes, join_vector<2>(channels));
}
#else
constexpr int64_t kGroup = 8;

template <int kCount>
void blend_group(float* __restrict__ to, int64_t pitch, const uint8_t* const* rows, int64_t offset,
                 const float* weights, int count) {
  float sums[kChannels * kGroup] = {};
  for (int k = 0; k < (kCount > 0 ? kCount : count); ++k) {
    for (int64_t i = 0; i < kChannels * kGroup; ++i) sums[i] += weights[k] * static_cast<float>(rows[k][offset + i]);
  }
  for (int c = 0; c < kChannels; ++c) {
    for (int64_t i = 0; i < kGroup; ++i) to[c * pitch + i] = sums[kChannels * i + c];
  }
}

void join_group(float* __restrict__ to, const float* const* from, int64_t x) {
  for (int64_t i = 0; i < kGroup; ++i) {
    for (int c = 0; c < kChannels; ++c) to[kChannels * i + c] = from[c][x + i];
  }
}
#endif

template <int kCount>
void blend_rows_of(float* to, int64_t pitch, const uint8_t* const* rows, const float* weights, int count,
                   int64_t pixels) {
  int64_t x = 0;
  for (; x + kGroup <= pixels; x += kGroup) {
    blend_group<kCount>(to + x, pitch, rows, kChannels * x, weights, count);
  }
  if (x == pixels) return;
  // The last pixels may be the last of the memory: a row at a time is copied to where one may read on.
  float sums[kChannels][kGroup] = {};
  for (int k = 0; k < count; ++k) {
    uint8_t bytes[kChannels * kGroup] = {};
    std::memcpy(bytes, rows[k] + kChannels * x, static_cast<size_t>(kChannels * (pixels - x)));
    const uint8_t* const row = bytes;
    float part[kChannels][kGroup];
    blend_group<1>(part[0], kGroup, &row, 0, weights + k, 1);
    for (int c = 0; c < kChannels; ++c) {
      for (int64_t i = 0; i < kGroup; ++i) sums[c][i] += part[c][i];
    }
  }
  for (int c = 0; c < kChannels; ++c) std::memcpy(to + c * pitch + x, sums[c], sizeof(sums[c]));
}

void blend_rows(float* to, int64_t pitch, const uint8_t* const* rows, const float* weights, int count, int64_t pixels) {
  if (count == 1) return blend_rows_of<1>(to, pitch, rows, weights, count, pixels);
  if (count == 2) return blend_rows_of<2>(to, pitch, rows, weights, count, pixels);
  blend_rows_of<0>(to, pitch, rows, weights, count, pixels);
}

void join_channels(float* to, const float* const* from, int64_t n) {
  int64_t x = 0;
  for (; x + kGroup <= n; x += kGroup) join_group(to + kChannels * x, from, x);
  for (; x < n; ++x) {
    for (int c = 0; c < kChannels; ++c) to[kChannels * x + c] = from[c][x];
  }
}

// ---- columns --------------------------------------------------------------------------------------------------------

#if defined(__AVX2__)
// From four vectors that follow one another.
inline Floats pick_of_four(const float* from, Lanes lanes) {
  const Floats low = pick(load_floats(from), load_floats(from + kLanes), lanes);
  const Floats high = pick(load_floats(from + 2 * kLanes), load_floats(from + 3 * kLanes), lanes);
#if defined(__AVX512F__)
  return _mm512_mask_blend_ps(_mm512_test_epi32_mask(lanes, _mm512_set1_epi32(2 * kLanes)), low, high);
#else
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(lanes, 27)));  // bit 4 to the sign
#endif
}

template <int kVectors, int kTaps>
void resample_vectors_of(float* to, int64_t to_pitch, const float* from, int64_t pitch, const CropColumns& columns,
                         int64_t n) {
  for (int64_t x = 0; x < n; x += kLanes) {
    const Lanes lanes = lanes_from(columns.lane + x, 0);
    const float* source = from + columns.base[x / kLanes];
    Floats sums[kChannels] = {};
    for (int k = 0; k < (kTaps > 0 ? kTaps : columns.taps); ++k) {
      const Floats weight = load_floats(columns.weight + k * columns.pitch + x);
      for (int c = 0; c < kChannels; ++c) {
        const float* at = source + c * pitch + k;
        const Floats value = kVectors == 1   ? pick(load_floats(at), lanes)
                             : kVectors == 2 ? pick(load_floats(at), load_floats(at + kLanes), lanes)
                                             : pick_of_four(at, lanes);
        sums[c] = k == 0 ? multiply_floats(weight, value) : multiply_add_floats(weight, value, sums[c]);
      }
    }
    for (int c = 0; c < kChannels; ++c) store_floats(to + c * to_pitch + x, sums[c]);
  }
}

template <int kVectors>
void resample_vectors_of(float* to, int64_t to_pitch, const float* from, int64_t pitch, const CropColumns& columns,
                         int64_t n) {
  if (columns.taps == 1) return resample_vectors_of<kVectors, 1>(to, to_pitch, from, pitch, columns, n);
  if (columns.taps == 2) return resample_vectors_of<kVectors, 2>(to, to_pitch, from, pitch, columns, n);
  resample_vectors_of<kVectors, 0>(to, to_pitch, from, pitch, columns, n);
}
#endif

void resample_columns(float* __restrict__ to, int64_t to_pitch, const float* __restrict__ from, int64_t pitch,
                      const CropColumns& columns, int64_t n) {
#if defined(__AVX2__)
  if (columns.base != nullptr) {
    if (columns.vectors == 1) return resample_vectors_of<1>(to, to_pitch, from, pitch, columns, n);
    if (columns.vectors == 2) return resample_vectors_of<2>(to, to_pitch, from, pitch, columns, n);
    return resample_vectors_of<4>(to, to_pitch, from, pitch, columns, n);
  }
#endif
  const int32_t* __restrict__ first = columns.lane;
  for (int c = 0; c < kChannels; ++c) {
    float* __restrict__ sum = to + c * to_pitch;
    for (int k = 0; k < columns.taps; ++k) {
      const float* __restrict__ source = from + c * pitch + k;
      const float* __restrict__ weight = columns.weight + k * columns.pitch;
      if (k == 0) {
        for (int64_t x = 0; x < n; ++x) sum[x] = weight[x] * source[first[x]];
      } else {
        for (int64_t x = 0; x < n; ++x) sum[x] += weight[x] * source[first[x]];
      }
    }
  }
}

// ---- colour ---------------------------------------------------------------------------------------------------------

inline float clamped(float value) {
  const float low = value > 0.0f ? value : 0.0f;
  return low < 255.0f ? low : 255.0f;
}

template <bool kMargin>
void scale_row(float* __restrict__ to, const float* __restrict__ v, float scale, float inside,
               const float* __restrict__ inside_columns, float constant, int64_t n) {
  for (int64_t x = 0; x < n; ++x) to[x] = scale * v[x] + (kMargin ? inside * inside_columns[x] + constant : constant);
}

template <bool kMargin>
void mix_row(float* __restrict__ to, const float* __restrict__ r, const float* __restrict__ g,
             const float* __restrict__ b, const float* matrix, float inside, const float* __restrict__ inside_columns,
             float constant, float scale, float shift, int64_t n) {
  const float of_r = matrix[0], of_g = matrix[1], of_b = matrix[2];
  for (int64_t x = 0; x < n; ++x) {
    const float margin = kMargin ? inside * inside_columns[x] + constant : constant;
    to[x] = scale * clamped(of_r * r[x] + (of_g * g[x] + (of_b * b[x] + margin))) + shift;
  }
}

template <bool kMargin>
void recolour_of(float* const* to, const float* from, int64_t pitch, const CropRecolour& how,
                 const float* inside_columns, float inside_rows, int64_t n) {
  for (int c = 0; c < kChannels; ++c) {
    const float inside = how.inside[c] * inside_rows;
    const float constant = how.constant[c] + (kMargin ? 0.0f : inside);
    const float scale = how.scale[c], shift = how.shift[c];
    if (how.recoloured) {
      mix_row<kMargin>(to[c], from, from + pitch, from + 2 * pitch, how.matrix[c], inside, inside_columns, constant,
                       scale, shift, n);
    } else {
      scale_row<kMargin>(to[c], from + c * pitch, scale, scale * inside, inside_columns, scale * constant + shift, n);
    }
  }
}

void recolour(float* const* to, const float* from, int64_t pitch, const CropRecolour& how, const float* inside_columns,
              float inside_rows, int64_t n) {
  if (inside_columns == nullptr) {
    recolour_of<false>(to, from, pitch, how, inside_columns, inside_rows, n);
  } else {
    recolour_of<true>(to, from, pitch, how, inside_columns, inside_rows, n);
  }
}

// ---- blur -----------------------------------------------------------------------------------------------------------

constexpr int64_t kFloats = Vector<float>::kLanes;
constexpr int kBlurVectors = 4;  // sums side by side: each waits for the one before

void blur_columns(float* to, const float* from, const float* weights, int radius, int64_t n) {
  for (int64_t x = 0; x < n; x += kFloats) {
    FloatVector sum = weights[0] * load_vector(from + x);
    for (int k = 1; k <= radius; ++k) sum += weights[k] * (load_vector(from + x - k) + load_vector(from + x + k));
    store_vector(to + x, sum);
  }
}

template <int kVectors>
void blur_rows_at(float* to, const float* const* rows, const float* weights, int radius, float scale, float shift,
                  int64_t x, int64_t count) {
  FloatVector sums[kVectors];
  for (int v = 0; v < kVectors; ++v) sums[v] = weights[0] * load_vector(rows[radius] + x + v * kFloats);
  for (int k = 1; k <= radius; ++k) {
    const float* before = rows[radius - k] + x;
    const float* after = rows[radius + k] + x;
    for (int v = 0; v < kVectors; ++v) {
      sums[v] += weights[k] * (load_vector(before + v * kFloats) + load_vector(after + v * kFloats));
    }
  }
  float last[kVectors * kFloats];
  float* result = count == kVectors * kFloats ? to + x : last;
  for (int v = 0; v < kVectors; ++v)
    store_vector(result + v * kFloats, static_cast<FloatVector>(scale * sums[v] + shift));
  if (result == last) std::memcpy(to + x, last, static_cast<size_t>(count) * sizeof(float));
}

void blur_rows(float* to, const float* const* rows, const float* weights, int radius, float scale, float shift,
               int64_t n) {
  constexpr int64_t kMany = kBlurVectors * kFloats;
  int64_t x = 0;
  for (; x + kMany <= n; x += kMany) {
    blur_rows_at<kBlurVectors>(to, rows, weights, radius, scale, shift, x, kMany);
  }
  for (; x < n; x += kFloats) {
    blur_rows_at<1>(to, rows, weights, radius, scale, shift, x, n - x < kFloats ? n - x : kFloats);
  }
}

// ---- sums -----------------------------------------------------------------------------------------------------------

#if defined(__AVX2__)
constexpr int64_t kWords = 16;
using Words = __m256i;

Words load_words(const uint8_t* from) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
Words add_words(Words a, Words b) { return _mm256_add_epi16(a, b); }
#else
constexpr int64_t kWords = 8;
typedef uint16_t Words __attribute__((vector_size(16)));

Words load_words(const uint8_t* from) {
  typedef uint8_t Bytes __attribute__((vector_size(8)));
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  return __builtin_convertvector(bytes, Words);
}
Words add_words(Words a, Words b) { return a + b; }
#endif

void sum_channels(uint64_t* sums, const uint8_t* row, int64_t pixels) {
  constexpr int64_t kMostBlocks = 257;  // of bytes whose sum fits 16 bits
  int64_t x = 0;
  while (x + kWords <= pixels) {
    const int64_t left = (pixels - x) / kWords;
    const int64_t blocks = left < kMostBlocks ? left : kMostBlocks;
    Words words[kChannels] = {};
    for (int64_t k = 0; k < blocks; ++k) {
      const uint8_t* from = row + kChannels * (x + k * kWords);
      for (int v = 0; v < kChannels; ++v) words[v] = add_words(words[v], load_words(from + v * kWords));
    }
    uint16_t each[kChannels * kWords];
    std::memcpy(each, words, sizeof(each));
    for (int64_t i = 0; i < kChannels * kWords; ++i) sums[i % kChannels] += each[i];
    x += blocks * kWords;
  }
  for (; x < pixels; ++x) {
    for (int c = 0; c < kChannels; ++c) sums[c] += row[kChannels * x + c];
  }
}

constexpr CropOps crop_table() {
  CropOps ops{};
#if defined(__AVX2__)
  ops.lanes = kLanes;
#else
  ops.lanes = 1;
#endif
  ops.blend_rows = blend_rows;
  ops.resample = resample_columns;
  ops.recolour = recolour;
  ops.blur_columns = blur_columns;
  ops.blur_rows = blur_rows;
  ops.join_channels = join_channels;
  ops.sum_channels = sum_channels;
  return ops;
}

}  // namespace

namespace HMSA_SIMD_NAMESPACE {
extern const CropOps crop_rows;
const CropOps crop_rows = crop_table();
}  // namespace HMSA_SIMD_NAMESPACE

}  // namespace hmsa
