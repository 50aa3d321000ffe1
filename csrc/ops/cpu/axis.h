// The axes of a chain written out as tables of taps, forward and adjoint.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/chain.h"
#include "ops/cpu/simd/rows.h"

namespace hmsa {

// One axis of a resize, or of two in a row.
template <typename T>
struct Axis {
  static constexpr int kMaxTaps = 4;
  static constexpr int kMaxFan = 6;  // of an adjoint as taps; a longer one is a dot product

  int32_t in = 0;
  int32_t out = 0;
  int taps = 0;                // inputs that an output reads: one for a copy
  std::vector<int32_t> index;  // [taps][out], ascending
  std::vector<T> weight;       // [taps][out]

  Range steady{0, 0};  // see TapTable
  int32_t step = 0;

  // Adjoint by input: input i is read by the outputs from origin[i] on, with the weights from start[i] to start[i + 1].
  std::vector<int32_t> origin;  // [in]
  std::vector<int32_t> start;   // [in + 1]
  std::vector<T> adjoint;
  Range adjoint_steady{0, 0};  // see SumTable
  int32_t adjoint_step = 0;

  // The same as taps of the adjoint, where they are few: [fan][in].
  int fan = 0;
  std::vector<int32_t> fan_index;
  std::vector<T> fan_weight;
  Range fan_steady{0, 0};
  int32_t fan_step = 0;

  // A sum that runs along the outputs keeps slots for the inputs that are not complete; an input's slot.
  int slots = 0;
  std::vector<int32_t> slot;

  explicit Axis(const AxisMap& map) : in(map.in), out(map.out), taps(map.copies ? 1 : 2) {
    allocate_taps();
    for (int32_t o = 0; o < out; ++o) {
      const Taps<T> read = map.taps<T>(o);
      index[o] = read.first;
      weight[o] = T(1) - read.weight;
      if (taps == 1) continue;
      index[out + o] = read.second;
      weight[out + o] = read.weight;
    }
    find_steady(index, weight, taps, out, steady, step);
  }

  explicit Axis(const ComposedMap& map) : in(map.inner.in), out(map.outer.out) {
    for (int32_t o = 0; o < out; ++o) taps = std::max(taps, static_cast<int>(map.taps<T>(o).count));
    allocate_taps();
    for (int32_t o = 0; o < out; ++o) {
      ComposedTaps<T> read = map.taps<T>(o);
      // All outputs get as many taps as the most of them need. A tap is halved for it: one of weight zero on a
      // neighbour would turn the neighbour's inf into NaN.
      for (; read.count < taps; ++read.count) {
        read.weight[read.count - 1] *= T(0.5);
        read.index[read.count] = read.index[read.count - 1];
        read.weight[read.count] = read.weight[read.count - 1];
      }
      for (int k = 0; k < taps; ++k) {
        index[k * out + o] = read.index[k];
        weight[k * out + o] = read.weight[k];
      }
    }
    find_steady(index, weight, taps, out, steady, step);
  }

  // How the outputs, or for the adjoint the inputs, in `columns` read a row.
  TapTable<T> table(Range columns) const { return view(index, weight, taps, out, steady, step, columns.lo); }
  TapTable<T> fan_table(Range columns) const {
    return view(fan_index, fan_weight, fan, in, fan_steady, fan_step, columns.lo);
  }

  SumTable<T> sum_table(Range columns) const {
    const Range steady{adjoint_steady.lo - columns.lo, adjoint_steady.hi - columns.lo};
    return SumTable<T>{origin.data() + columns.lo, start.data() + columns.lo, adjoint.data(), steady, adjoint_step};
  }

  // The outputs that read input i with a weight other than zero.
  Range readers(int32_t i) const { return Range{origin[i], origin[i] + (start[i + 1] - start[i])}; }

  void make_adjoint() {
    std::vector<int32_t> last(in, -1);
    origin.assign(in, 0);
    for_each_tap([&](int32_t o, int32_t i, T) {
      if (last[i] < 0) origin[i] = o;
      last[i] = o;
    });
    start.assign(1, 0);
    for (int32_t i = 0; i < in; ++i) {
      const int32_t readers = last[i] < 0 ? 0 : last[i] - origin[i] + 1;
      start.push_back(start.back() + readers);
      fan = std::max<int32_t>(fan, readers);
    }
    adjoint.assign(start.back(), T(0));
    for_each_tap([&](int32_t o, int32_t i, T w) { adjoint[start[i] + (o - origin[i])] += w; });
    find_steady_sums();
    make_fan();
    make_slots();
  }

 private:
  void allocate_taps() {
    index.resize(static_cast<size_t>(taps) * out);
    weight.resize(index.size());
  }

  template <typename Body>
  void for_each_tap(const Body& body) const {
    for (int32_t o = 0; o < out; ++o) {
      for (int k = 0; k < taps; ++k) {
        if (weight[k * out + o] != T(0)) body(o, index[k * out + o], weight[k * out + o]);
      }
    }
  }

  // Inputs with fewer readers than others halve their last weight, as above; an input without any has no taps to halve.
  void make_fan() {
    for (int32_t i = 0; i < in; ++i) {
      if (start[i] == start[i + 1]) fan = kMaxFan + 1;
    }
    if (fan > kMaxFan) return;
    fan_index.resize(static_cast<size_t>(fan) * in);
    fan_weight.resize(fan_index.size());
    for (int32_t i = 0; i < in; ++i) {
      const int32_t readers = start[i + 1] - start[i];
      T last = adjoint[start[i] + readers - 1];
      for (int32_t k = readers; k < fan; ++k) last *= T(0.5);
      T rest = last;
      for (int32_t k = 0; k < fan; ++k) {
        fan_index[k * in + i] = origin[i] + std::min(k, readers - 1);
        fan_weight[k * in + i] = k < readers - 1 ? adjoint[start[i] + k] : rest;
        if (k >= readers) rest *= T(2);
      }
    }
    find_steady(fan_index, fan_weight, fan, in, fan_steady, fan_step);
  }

  static TapTable<T> view(const std::vector<int32_t>& index, const std::vector<T>& weight, int taps, int32_t pitch,
                          Range steady, int32_t step, int32_t lo) {
    return TapTable<T>{taps, index.data() + lo, weight.data() + lo, pitch, Range{steady.lo - lo, steady.hi - lo}, step};
  }

  // The longest stretch in which each tap is that of kPeriod outputs before, moved by a constant.
  static void find_steady(const std::vector<int32_t>& index, const std::vector<T>& weight, int taps, int32_t pitch,
                          Range& steady, int32_t& step) {
    constexpr int32_t kPeriod = TapTable<T>::kPeriod;
    Range current{0, 0};
    int32_t current_step = 0;
    for (int32_t x = 0; x + kPeriod < pitch; ++x) {
      const int32_t moved = index[x + kPeriod] - index[x];
      bool alike = true;
      for (int k = 0; k < taps; ++k) {
        const int32_t at = k * pitch + x;
        alike = alike && index[at + kPeriod] - index[at] == moved && weight[at + kPeriod] == weight[at];
      }
      if (!alike) {
        current = Range{x + 1, x + 1};
        continue;
      }
      if (current.empty() || moved != current_step) current.lo = x;
      current_step = moved;
      current.hi = x + kPeriod + 1;
      if (current.size() > steady.size()) {
        steady = current;
        step = current_step;
      }
    }
  }

  // The longest stretch of inputs with the same weights, each as far from the one before.
  void find_steady_sums() {
    Range current{0, 1};
    int32_t current_step = 0;
    for (int32_t i = 1; i < in; ++i) {
      const int32_t terms = start[i + 1] - start[i], step = origin[i] - origin[i - 1];
      const bool alike =
          terms == start[i] - start[i - 1] && (current.size() == 1 || step == current_step) &&
          std::equal(adjoint.begin() + start[i], adjoint.begin() + start[i + 1], adjoint.begin() + start[i - 1]);
      if (!alike) current.lo = i;
      current.hi = i + 1;
      current_step = alike ? step : 0;
      if (current.size() > adjoint_steady.size()) {
        adjoint_steady = current;
        adjoint_step = current_step;
      }
    }
  }

  // Inputs become complete in ascending order, so a slot is free again when its last owner's readers have passed.
  void make_slots() {
    slot.assign(in, 0);
    std::vector<int32_t> busy_until;
    for (int32_t i = 0; i < in; ++i) {
      const Range reach = readers(i);
      if (reach.empty()) continue;
      size_t s = 0;
      while (s < busy_until.size() && busy_until[s] > reach.lo) ++s;
      if (s == busy_until.size()) busy_until.push_back(0);
      busy_until[s] = reach.hi;
      slot[i] = static_cast<int32_t>(s);
    }
    slots = static_cast<int>(busy_until.size());
  }
};

template <typename T>
struct ResizeAxes {
  Axis<T> rows;
  Axis<T> columns;

  void make_adjoint() {
    rows.make_adjoint();
    columns.make_adjoint();
  }
};

// The resizes of a chain. Where the largest scale's grid need not exist (Chain::has_composed), up[0] leads from its
// head to the next grid, or to the output, in one step, and across[0] is not used.
template <typename T>
struct ChainAxes {
  std::vector<ResizeAxes<T>> up;      // head -> grid
  std::vector<ResizeAxes<T>> across;  // grid -> next grid, or the output

  ChainAxes(const Chain& chain, bool with_adjoint) {
    for (int i = 0; i < chain.count; ++i) {
      if (i == 0 && chain.has_composed()) {
        up.push_back({Axis<T>(chain.composed_rows()), Axis<T>(chain.composed_columns())});
      } else {
        up.push_back({Axis<T>(chain.up[i].rows), Axis<T>(chain.up[i].columns)});
      }
      across.push_back({Axis<T>(chain.across[i].rows), Axis<T>(chain.across[i].columns)});
      if (!with_adjoint) continue;
      up.back().make_adjoint();
      across.back().make_adjoint();
    }
  }
};

}  // namespace hmsa
