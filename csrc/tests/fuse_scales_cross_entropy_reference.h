// Cross-entropy, its gradient, and the prediction, from fused logits, as plain loops in double: the equations in sight.
//
// Written from the definitions of torch.nn.functional.cross_entropy, softmax and argmax, and independent of csrc/core,
// which the kernels that are tested against it use.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/fuse_scales_reference.h"

namespace reference {

// [B, h, w]
struct Labels {
  int batch = 0;
  Size size{0, 0};
  std::vector<int64_t> values;

  Labels() = default;
  Labels(int b, Size s) : batch(b), size(s), values(static_cast<size_t>(b) * s.height * s.width, 0) {}
  int64_t& at(int b, int y, int x) { return values[(static_cast<size_t>(b) * size.height + y) * size.width + x]; }
  int64_t at(int b, int y, int x) const { return const_cast<Labels*>(this)->at(b, y, x); }
};

struct Target {
  Labels labels;
  std::vector<double> weight;  // of the classes
  int64_t ignore_index = 255;
  double label_smoothing = 0;
};

enum class Truth { kClass, kIgnored, kWrong };

inline Truth truth_of(const Target& target, int64_t label) {
  if (label == target.ignore_index) return Truth::kIgnored;
  return label >= 0 && label < static_cast<int64_t>(target.weight.size()) ? Truth::kClass : Truth::kWrong;
}

// Of the logits of a pixel, as torch.logsumexp.
inline double log_sum_exp(const Map& fused, int b, int y, int x) {
  double largest = -INFINITY;
  for (int c = 0; c < fused.channels; ++c) {
    const double z = fused.at(b, c, y, x);
    if (std::isnan(z)) return z;
    largest = std::fmax(largest, z);
  }
  if (std::isinf(largest)) return largest;
  double sum = 0;
  for (int c = 0; c < fused.channels; ++c) sum += std::exp(fused.at(b, c, y, x) - largest);
  return largest + std::log(sum);
}

// log softmax of class c, as torch.log_softmax: where the largest logit is infinite everything is NaN.
inline double log_probability(const Map& fused, double log_sum_exp, int b, int c, int y, int x) {
  return std::isinf(log_sum_exp) ? NAN : fused.at(b, c, y, x) - log_sum_exp;
}

struct CrossEntropy {
  Map loss;         // [B, 1, H, W]; zero at ignored pixels, NaN at wrong labels
  Map log_sum_exp;  // [B, 1, H, W]
  double sum = 0;
  double total_weight = 0;  // of the pixels that are not ignored; those of wrong labels count nothing
};

inline CrossEntropy cross_entropy(const Map& fused, const Target& target) {
  CrossEntropy result;
  result.loss = result.log_sum_exp = Map(fused.batch, 1, fused.size);
  for_all(result.loss, [&](int b, int, int y, int x) {
    const double lse = log_sum_exp(fused, b, y, x);
    result.log_sum_exp.at(b, 0, y, x) = lse;
    const int64_t label = target.labels.at(b, y, x);
    double& loss = result.loss.at(b, 0, y, x);
    const Truth truth = truth_of(target, label);
    if (truth == Truth::kWrong) loss = NAN;
    if (truth == Truth::kClass) {
      const double e = target.label_smoothing;
      const double w = target.weight[static_cast<size_t>(label)];
      loss = -(1 - e) * w * log_probability(fused, lse, b, static_cast<int>(label), y, x);
      for (int c = 0; e > 0 && c < fused.channels; ++c) {
        loss -= e / fused.channels * target.weight[static_cast<size_t>(c)] * log_probability(fused, lse, b, c, y, x);
      }
      result.total_weight += w;
    }
    result.sum += loss;
  });
  return result;
}

// dLoss/d(fused logits), from that of the loss of every pixel, [B, 1, H, W]: for the mean, 1 / total_weight everywhere.
inline Map cross_entropy_gradient(const Map& fused, const Target& target, const Map& grad_loss) {
  Map gradient(fused.batch, fused.channels, fused.size);
  double all_weights = 0;
  for (const double w : target.weight) all_weights += w;
  for_all(gradient, [&](int b, int c, int y, int x) {
    const int64_t label = target.labels.at(b, y, x);
    const Truth truth = truth_of(target, label);
    double& value = gradient.at(b, c, y, x);
    if (truth == Truth::kWrong) value = NAN;
    if (truth != Truth::kClass) return;
    const double p = std::exp(log_probability(fused, log_sum_exp(fused, b, y, x), b, c, y, x));
    const double e = target.label_smoothing;
    const double w = target.weight[static_cast<size_t>(label)];
    const double go = grad_loss.at(b, 0, y, x);
    value = go * ((1 - e) * w * (p - (c == label ? 1.0 : 0.0)) +
                  e / fused.channels * (all_weights * p - target.weight[static_cast<size_t>(c)]));
  });
  return gradient;
}

struct Prediction {
  Labels labels;
  Map confidence;  // [B, 1, H, W]
};

// The first NaN if there is one, else the first of the largest; its softmax probability.
inline Prediction argmax(const Map& fused) {
  Prediction result{Labels(fused.batch, fused.size), Map(fused.batch, 1, fused.size)};
  for_all(result.confidence, [&](int b, int, int y, int x) {
    int best = 0;
    for (int c = 1; c < fused.channels; ++c) {
      const double z = fused.at(b, c, y, x);
      const double largest = fused.at(b, best, y, x);
      if (!std::isnan(largest) && (std::isnan(z) || z > largest)) best = c;
    }
    result.labels.at(b, y, x) = best;
    const double lse = log_sum_exp(fused, b, y, x);
    result.confidence.at(b, 0, y, x) = std::exp(log_probability(fused, lse, b, best, y, x));
  });
  return result;
}

// Fused logits of 2 B images, the second half mirrored: those of both views averaged, unmirrored.
inline Map average_views(const Map& fused) {
  Map average(fused.batch / 2, fused.channels, fused.size);
  for_all(average, [&](int b, int c, int y, int x) {
    const double mirrored = fused.at(b + average.batch, c, y, fused.size.width - 1 - x);
    average.at(b, c, y, x) = (fused.at(b, c, y, x) + mirrored) / 2;
  });
  return average;
}

}  // namespace reference
