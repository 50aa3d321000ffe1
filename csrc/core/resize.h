// One axis of a bilinear resize, and its adjoint, in exact rational arithmetic.
//
// Output position o reads from the source coordinate
//
//     align_corners=False   src(o) = (o + 1/2) * in / out - 1/2  =  ((2 o + 1) in - out) / (2 out),   clamped below at 0
//     align_corners=True    src(o) = o (in - 1) / (out - 1)
//
// which is the convention of torch.nn.functional.interpolate(mode="bilinear", antialias=False). Both are a fraction
// (slope * o + offset) / den of integers, so the index floor(src) and the weight frac(src) are exact: the weight is
// rounded once, the same on every device, and "which outputs touch input i" has a closed form that cannot disagree
// with the forward direction.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/integers.h"

namespace hmsa {

// Half-open interval of rows or columns.
struct Range {
  int32_t lo;
  int32_t hi;

  HMSA_HOST_DEVICE int32_t size() const { return hi > lo ? hi - lo : 0; }
  HMSA_HOST_DEVICE bool empty() const { return hi <= lo; }
};

// The smallest interval that holds both; an empty interval adds no element.
HMSA_HOST_DEVICE Range hull(Range a, Range b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return Range{a.lo < b.lo ? a.lo : b.lo, a.hi > b.hi ? a.hi : b.hi};
}

// The two inputs that an output reads, and the weight of the second; the first has weight 1 - weight.
template <typename T>
struct Taps {
  int32_t first;
  int32_t second;
  T weight;
};

struct AxisMap {
  int32_t in;
  int32_t out;
  int64_t slope;
  int64_t offset;
  int64_t den;
  bool copies;  // both axes of the resize keep their size: PyTorch copies, where two taps would make inf * 0 = NaN

  HMSA_HOST_DEVICE bool identity() const { return in == out; }

  template <typename T>
  HMSA_HOST_DEVICE Taps<T> taps(int32_t o) const {
    // An equal size is a copy, as in PyTorch: no zero weight may turn a neighbour's inf into NaN.
    if (identity()) return Taps<T>{o, o, T(0)};
    const int64_t numerator = slope * o + offset;
    if (numerator <= 0) return Taps<T>{0, in > 1 ? 1 : 0, T(0)};
    // Almost always everything fits 32 bits, where a GPU divides several times faster.
    const int64_t whole = numerator <= UINT32_MAX && den <= UINT32_MAX
                              ? static_cast<uint32_t>(numerator) / static_cast<uint32_t>(den)
                              : divide(numerator, den);
    const int32_t first = whole < in - 1 ? static_cast<int32_t>(whole) : in - 1;
    const int32_t second = first < in - 1 ? first + 1 : first;
    return Taps<T>{first, second, static_cast<T>(numerator - whole * den) / static_cast<T>(den)};
  }

  // Weight with which output o reads input i: nonzero only for o in outputs(i).
  template <typename T>
  HMSA_HOST_DEVICE_CALL T weight(int32_t o, int32_t i) const {
    const Taps<T> t = taps<T>(o);
    return (t.first == i ? T(1) - t.weight : T(0)) + (t.second == i ? t.weight : T(0));
  }

  // Inputs read by the outputs in `range`.
  HMSA_HOST_DEVICE Range sources(Range range) const {
    if (range.empty()) return Range{0, 0};
    return Range{taps<float>(range.lo).first, taps<float>(range.hi - 1).second + 1};
  }

  // Outputs that may read input i: all o with i - 1 < src(o) < i + 1, and the clamped ones at both ends. When a large
  // reduction skips input i altogether the range is empty.
  HMSA_HOST_DEVICE_CALL Range outputs(int32_t i) const {
    if (identity()) return Range{i, i + 1};
    if (slope == 0) return i == 0 ? Range{0, out} : Range{0, 0};  // one input (or one output): all read input 0
    const int32_t lo = i == 0 ? 0 : clamp_output(divide_down((i - 1) * den - offset, slope) + 1);
    const int32_t hi = i == in - 1 ? out : clamp_output(divide_down((i + 1) * den - offset - 1, slope) + 1);
    return Range{lo, hi};
  }

  // Outputs that may read any input in `range`.
  HMSA_HOST_DEVICE Range outputs(Range range) const {
    if (range.empty()) return Range{0, 0};
    if (!identity() && slope == 0) return outputs(range.lo);
    return Range{outputs(range.lo).lo, outputs(range.hi - 1).hi};
  }

 private:
  HMSA_HOST_DEVICE_CALL static int64_t divide(int64_t a, int64_t b) { return a / b; }
  HMSA_HOST_DEVICE_CALL static int64_t divide_down(int64_t a, int64_t b) { return floor_div(a, b); }
  HMSA_HOST_DEVICE int32_t clamp_output(int64_t o) const { return o < 0 ? 0 : o > out ? out : static_cast<int32_t>(o); }
};

HMSA_HOST_DEVICE AxisMap make_axis_map(int32_t in, int32_t out, bool align_corners) {
  if (align_corners) {
    // One output reads input 0: slope 0 over any denominator.
    return AxisMap{in, out, out > 1 ? in - 1 : 0, 0, out > 1 ? out - 1 : 1, false};
  }
  return AxisMap{in,   out, 2 * static_cast<int64_t>(in), static_cast<int64_t>(in) - out, 2 * static_cast<int64_t>(out),
                 false};
}

// Two resizes in a row as one: in -> middle -> out. Where nothing lies between them (no attention), the map in the middle
// need not exist. An output reads the two inputs of each of its two middle elements.
template <typename T>
struct ComposedTaps {
  int32_t count;     // 1 to 4; an index comes once, or twice where a zero weight must keep its own 0 * inf
  int32_t index[4];  // ascending
  T weight[4];
};

struct ComposedMap {
  AxisMap inner;  // in -> middle
  AxisMap outer;  // middle -> out

  template <typename T>
  HMSA_HOST_DEVICE_CALL ComposedTaps<T> taps(int32_t o) const {
    const Taps<T> middle = outer.taps<T>(o);
    ComposedTaps<T> taps{};
    add_middle(taps, middle.first, T(1) - middle.weight);
    if (!outer.copies) add_middle(taps, middle.second, middle.weight);
    return taps;
  }

  HMSA_HOST_DEVICE bool copies() const { return inner.copies && outer.copies; }

  // Inputs read by the outputs in `range`, and outputs that may read the inputs in `range`.
  HMSA_HOST_DEVICE Range sources(Range range) const { return inner.sources(outer.sources(range)); }
  HMSA_HOST_DEVICE Range outputs(Range range) const { return outer.outputs(inner.outputs(range)); }

 private:
  template <typename T>
  HMSA_HOST_DEVICE void add_middle(ComposedTaps<T>& taps, int32_t m, T weight) const {
    const Taps<T> t = inner.taps<T>(m);
    add(taps, t.first, weight * (T(1) - t.weight));
    if (!inner.copies) add(taps, t.second, weight * t.weight);
  }

  // Weights of one input are added up, but for a zero beside a nonzero one: two resizes turn an inf there into NaN.
  template <typename T>
  static HMSA_HOST_DEVICE void add(ComposedTaps<T>& taps, int32_t index, T weight) {
    int k = 0;
    while (k < taps.count &&
           (taps.index[k] < index || (taps.index[k] == index && (taps.weight[k] == T(0)) != (weight == T(0))))) {
      ++k;
    }
    if (k < taps.count && taps.index[k] == index) {
      taps.weight[k] += weight;
      return;
    }
    for (int j = taps.count; j > k; --j) {
      taps.index[j] = taps.index[j - 1];
      taps.weight[j] = taps.weight[j - 1];
    }
    taps.index[k] = index;
    taps.weight[k] = weight;
    ++taps.count;
  }
};

}  // namespace hmsa
