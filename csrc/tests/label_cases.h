// Labels for the kernels of losses and predictions: in memory as any type, and problems with them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/problem.h"
#include "core/view.h"
#include "tests/fuse_scales_cases.h"
#include "tests/fuse_scales_cross_entropy_reference.h"

namespace testing {

using hmsa::LabelType;
using hmsa::LabelView;
using reference::Labels;
using reference::Target;

// Labels as a kernel reads them. The memory ends with the last label. With gaps, rows and columns are swapped as well.
class StoredLabels {
 public:
  StoredLabels(const Labels& labels, LabelType type, bool gaps) : labels_(labels) {
    const int64_t step = gaps ? 2 : 1;
    view = LabelView{nullptr, type, 0, 0, 0};
    view.column = gaps ? step * labels.size.height + 1 : 1;
    view.row = gaps ? step : labels.size.width;
    view.batch = gaps ? view.column * labels.size.width + 3 : view.row * labels.size.height;
    const int64_t last =
        (labels.batch - 1) * view.batch + (labels.size.height - 1) * view.row + (labels.size.width - 1) * view.column;
    hmsa::visit_label_type(type, [&](auto label) { fill<decltype(label)>(last + 1); });
  }

  LabelView view;

 private:
  template <typename L>
  void fill(int64_t count) {
    memory_.assign(static_cast<size_t>(count) * sizeof(L), 0xee);
    for (int b = 0; b < labels_.batch; ++b) {
      for (int y = 0; y < labels_.size.height; ++y) {
        for (int x = 0; x < labels_.size.width; ++x) {
          const L value = static_cast<L>(labels_.at(b, y, x));
          const int64_t at = b * view.batch + y * view.row + x * view.column;
          std::memcpy(memory_.data() + at * static_cast<int64_t>(sizeof(L)), &value, sizeof(L));
        }
      }
    }
    view.data = memory_.data();
  }

  const Labels& labels_;
  std::vector<unsigned char> memory_;
};

// Classes at random, a share of the pixels ignored.
inline Labels random_labels(int batch, Size size, int classes, int64_t ignore_index, double ignored, uint32_t seed) {
  std::mt19937 random(seed);
  Labels labels(batch, size);
  for (int64_t& label : labels.values) {
    label = random() / 4294967296.0 < ignored ? ignore_index : static_cast<int64_t>(random() % unsigned(classes));
  }
  return labels;
}

inline Target random_target(const Case& c, bool weights, double label_smoothing) {
  Target target;
  target.labels = random_labels(c.batch, c.size, c.channels, target.ignore_index, 0.2, 77);
  target.label_smoothing = label_smoothing;
  std::mt19937 random(5);
  for (int k = 0; k < c.channels; ++k) target.weight.push_back(weights ? 0.25 + random() / 4294967296.0 : 1.0);
  return target;
}

// The weights as a kernel reads them. The target gets the same, rounded values.
template <typename T>
std::vector<T> stored_weights(Target& target) {
  std::vector<T> stored;
  for (double& w : target.weight) {
    stored.push_back(static_cast<T>(w));
    w = stored.back();
  }
  return stored;
}

template <typename S>
void set_inputs(hmsa::ChainInputs<S>& inputs, const Case& c, const Setup<S>& setup) {
  inputs.chain = setup.chain;
  inputs.batch = c.batch;
  inputs.classes = c.channels;
  for (int i = 0; i < setup.chain.count; ++i) {
    inputs.logits[i] = setup.logits[i]->const_view();
    if (i > 0) inputs.attention[i] = setup.attention[i]->const_view();
  }
}

// Fused logits where infinities matter: the plain chain resizes a lone scale to its own size, too, which multiplies them by
// weights of zero.
inline reference::Map fused_once(const reference::Problem& problem) {
  if (problem.scales != std::vector<double>{1.0}) return reference::fuse_scales(problem);
  return reference::resize(problem.logits[0], problem.size, problem.align_corners);
}

// Logits of all scales with infinities and NaN here and there, nearly all -inf, or too large for exponentials.
template <typename S>
void spoil_logits(Setup<S>& setup, const std::string& what, std::mt19937& random) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double specials[] = {infinity, -infinity, NAN};
  for (size_t i = 0; i < setup.problem.scales.size(); ++i) {
    reference::Map& logits = setup.problem.logits[i];
    for (double& value : logits.values) {
      if (what == "large numbers") value *= 6e37;
      if (what == "mostly -inf" && value < 3.5) value = -infinity;
      if (what == "infinities and NaN" && random() % 29 == 0) value = specials[random() % 3];
    }
    setup.logits[i]->store(logits);
  }
}

// Equal, or both NaN, or within a tolerance.
inline bool near(double got, double wanted, double tolerance) {
  if (std::isnan(wanted)) return std::isnan(got);
  return got == wanted || std::fabs(got - wanted) <= tolerance;
}

}  // namespace testing
