// Confusion matrix on the CPU.
//
// Pixels are counted without branches: pixels that are skipped or invalid have rows and a column of their own behind
// the classes. Label maps consist of runs, so neighbouring pixels add to the same cell, and each addition waits for the
// one before. Therefore eight equal pixels are counted at once, and other pixels in four tables by turns.
#include "ops/cpu/confusion_matrix.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "core/integers.h"

namespace hmsa {
namespace cpu {
namespace {

constexpr int64_t kTables = 4;
constexpr int64_t kRowsAtOnce = 64;

class Histogram {
 public:
  explicit Histogram(const ConfusionMatrix& problem)
      : classes_(problem.classes),
        ignore_index_(problem.ignore_index),
        columns_(classes_ + 1),
        // Many classes: one table, so that it stays in the caches.
        last_table_(classes_ <= 64 ? kTables - 1 : 0),
        table_(columns_ * (classes_ + 2)),
        counts_((last_table_ + 1) * table_) {
    for (int64_t label = 0; label < 256; ++label) {
      row_of_byte_[label] = static_cast<int32_t>(row_of(label) * columns_);
      column_of_byte_[label] = static_cast<int32_t>(column_of(label));
    }
  }

  // n pixels, `*_stride` elements apart.
  template <typename P, typename L>
  void add(const P* prediction, int64_t prediction_stride, const L* target, int64_t target_stride, int64_t n) {
    int64_t i = 0;
    if constexpr (sizeof(P) == 1 && sizeof(L) == 1) {
      if (prediction_stride == 1 && target_stride == 1) i = add_bytes(prediction, target, n);
    }
    for (; i < n; ++i) {
      const int64_t row = row_of(target[i * target_stride]);
      ++counts_[(i & last_table_) * table_ + row * columns_ + column_of(prediction[i * prediction_stride])];
    }
  }

  void add_to(int64_t* counts, int64_t* invalid) const {
    for (int64_t k = 0; k < static_cast<int64_t>(counts_.size()); ++k) {
      const int64_t row = k % table_ / columns_;
      const int64_t column = k % columns_;
      if (row == classes_) continue;
      if (row < classes_ && column < classes_) {
        counts[row * classes_ + column] += counts_[k];
      } else {
        *invalid += counts_[k];
      }
    }
  }

 private:
  bool is_class(int64_t label) const { return static_cast<uint64_t>(label) < static_cast<uint64_t>(classes_); }
  int64_t row_of(int64_t truth) const {
    return truth == ignore_index_ ? classes_ : is_class(truth) ? truth : classes_ + 1;
  }
  int64_t column_of(int64_t prediction) const { return is_class(prediction) ? prediction : classes_; }

  // Counts whole groups of eight pixels. Returns how many pixels that are.
  int64_t add_bytes(const uint8_t* prediction, const uint8_t* target, int64_t n) {
    int64_t* tables[8];
    for (int64_t k = 0; k < 8; ++k) tables[k] = counts_.data() + (k & last_table_) * table_;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      uint64_t predictions, targets;
      std::memcpy(&predictions, prediction + i, sizeof(predictions));
      std::memcpy(&targets, target + i, sizeof(targets));
      if (is_run(predictions) && is_run(targets)) {
        tables[0][row_of_byte_[targets & 255] + column_of_byte_[predictions & 255]] += 8;
        continue;
      }
      for (int k = 0; k < 8; ++k) {
        ++tables[k][row_of_byte_[targets >> 8 * k & 255] + column_of_byte_[predictions >> 8 * k & 255]];
      }
    }
    return i;
  }

  static bool is_run(uint64_t eight) { return eight == (eight & 255) * 0x0101010101010101u; }

  int64_t classes_;
  int64_t ignore_index_;
  int64_t columns_;     // classes, and one for predictions that are none
  int64_t last_table_;  // their number is a power of two
  int64_t table_;       // cells: rows are the classes, ignored pixels, and truths that are no class
  std::vector<int64_t> counts_;
  int32_t row_of_byte_[256];
  int32_t column_of_byte_[256];
};

}  // namespace

void confusion_matrix(const ConfusionMatrix& problem, const ParallelFor& parallel_for) {
  std::fill_n(problem.counts, static_cast<int64_t>(problem.classes) * problem.classes, int64_t(0));
  *problem.invalid = 0;
  std::mutex mutex;
  const int64_t rows = problem.batch * problem.height;
  parallel_for.run(divide_up(rows, kRowsAtOnce), [&](int64_t begin, int64_t end) {
    Histogram histogram(problem);
    for (int64_t row = begin * kRowsAtOnce; row < std::min(end * kRowsAtOnce, rows); ++row) {
      const int64_t b = row / problem.height;
      const int64_t y = row % problem.height;
      visit_labels(problem.prediction, b, y, 0, [&](const auto* prediction) {
        visit_labels(problem.target, b, y, 0, [&](const auto* target) {
          histogram.add(prediction, problem.prediction.column, target, problem.target.column, problem.width);
        });
      });
    }
    const std::lock_guard<std::mutex> lock(mutex);
    histogram.add_to(problem.counts, problem.invalid);
  });
}

}  // namespace cpu
}  // namespace hmsa
