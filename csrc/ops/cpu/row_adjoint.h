// The rows' half of the adjoint of a resize, as a stream: source rows go in, each in its turn, sums for target rows come
// out when they are complete.
//
// Every source row is added to the few targets that it was interpolated from. A target's sum runs over its sources in
// ascending order, whatever part of the map a thread has, so its bits do not depend on how the work was divided.
#pragma once

#include <algorithm>

#include "ops/cpu/axis.h"
#include "ops/cpu/simd/rows.h"
#include "ops/cpu/workspace.h"

namespace hmsa {
namespace cpu {

template <typename T>
class RowAdjoint {
 public:
  // Sums for the targets in `targets`, of rows of `width` elements.
  void allocate(Scratch<T>& scratch, const Axis<T>& axis, Range targets, int64_t width) {
    axis_ = &axis;
    targets_ = targets;
    width_ = width;
    pitch_ = scratch.pitch(width);
    slots_ = scratch.take(pitch_ * axis.slots);
    next_ = targets.lo;
  }

  bool in_use() const { return axis_ != nullptr; }

  // Adds source rows y .. y + count - 1. Calls emit(target, sum) for each target that is complete, in ascending order.
  template <typename Emit>
  void push(int32_t y, const T* const* rows, int count, const RowOps<T>& ops, const T* zeros, const Emit& emit) {
    for (int done = 0; done < count;) {
      const Run run = run_at(y + done, count - done);
      // In a slot there is the sum of an earlier target still where these are the first rows.
      const auto is_fresh = [&](int k) { return y + done == axis_->readers(run.target[k]).lo; };
      for (int k = 0; k < run.targets; k += 2) {
        const int last = std::min(k + 1, run.targets - 1);
        T* const to[2] = {slot(run.target[k]), slot(run.target[last])};
        if (last > k && is_fresh(k)) std::fill_n(to[0], width_, T(0));
        ops.spread(to, last - k + 1, is_fresh(last), rows + done, run.weights + k, run.rows, width_);
      }
      done += run.rows;
      for (int k = 0; k < run.targets; ++k) {
        if (axis_->readers(run.target[k]).hi > y + done) continue;
        skip_to(run.target[k], zeros, emit);
        emit(run.target[k], static_cast<const T*>(slot(run.target[k])));
        ++next_;
      }
    }
  }

  // Emits the targets behind the last one that any source reached.
  template <typename Emit>
  void finish(const T* zeros, const Emit& emit) {
    skip_to(targets_.hi, zeros, emit);
  }

 private:
  // Consecutive source rows that were interpolated from the same targets.
  struct Run {
    int rows = 0;
    int targets = 0;
    int32_t target[Axis<T>::kMaxTaps] = {};
    T weights[Axis<T>::kMaxTaps][4] = {};
  };

  Run run_at(int32_t y, int count) const {
    Run run;
    for (; run.rows < std::min(count, 4); ++run.rows) {
      int k = 0;
      for (int tap = 0; tap < axis_->taps; ++tap) {
        const int32_t target = axis_->index[tap * axis_->out + y + run.rows];
        const T weight = axis_->weight[tap * axis_->out + y + run.rows];
        if (target < targets_.lo || target >= targets_.hi || weight == T(0)) continue;
        if (k > 0 && run.target[k - 1] == target) {  // a halved tap
          run.weights[k - 1][run.rows] += weight;
          continue;
        }
        if (run.rows > 0 && (k == run.targets || run.target[k] != target)) return run;
        run.target[k] = target;
        run.weights[k++][run.rows] = weight;
      }
      if (run.rows > 0 && k != run.targets) return run;
      run.targets = k;
    }
    return run;
  }

  T* slot(int32_t target) const { return slots_ + axis_->slot[target] * pitch_; }

  // A strong reduction skips targets altogether: their sums are zero.
  template <typename Emit>
  void skip_to(int32_t target, const T* zeros, const Emit& emit) {
    while (next_ < target) emit(next_++, zeros);
  }

  const Axis<T>* axis_ = nullptr;
  Range targets_{0, 0};
  int64_t width_ = 0;
  int64_t pitch_ = 0;
  T* slots_ = nullptr;
  int32_t next_ = 0;
};

// The columns' half: targets `columns` of a sum whose first element is column `shift` of the source.
template <typename T>
void adjoint_columns(T* to, const T* sum, int32_t shift, const Axis<T>& axis, Range columns, const RowOps<T>& ops) {
  if (!axis.fan_index.empty()) {
    ops.resample(to, sum, shift, axis.fan_table(columns), columns.size());
  } else {
    ops.contract(to, sum, shift, axis.sum_table(columns), columns.size());
  }
}

}  // namespace cpu
}  // namespace hmsa
