// Region mutual information from fused logits, as plain loops in double: every neighbourhood a vector of its own.
//
// Written from the definition (one-hot labels, sigmoid, average pooling, unfolding, covariance), and independent of
// csrc/core, which the kernels that are tested against it use.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/fuse_scales_cross_entropy_reference.h"

namespace reference {

using RmiVector = std::array<double, 18>;

struct RmiClass {
  RmiVector mean{};
  std::array<RmiVector, 18> covariance{};
};

struct Rmi {
  double bce = 0;
  double valid = 0;
  std::vector<RmiClass> classes;  // [B, C]
};

inline double sigmoid(double z) { return z > 0 ? 1 / (1 + std::exp(-z)) : std::exp(z) / (1 + std::exp(z)); }
inline double softplus(double z) { return std::fmax(z, 0.0) + std::log1p(std::exp(-std::fabs(z))); }

// Average pooling with windows of 4 x 4 at stride 4, two zeros around: body(k, l, y, x) for the pixels of each window.
template <typename Body>
void for_windows(Size size, Body body) {
  for (int k = 0; k < size.height / 4 + 1; ++k) {
    for (int l = 0; l < size.width / 4 + 1; ++l) {
      for (int y = 4 * k - 2; y < 4 * k + 2; ++y) {
        for (int x = 4 * l - 2; x < 4 * l + 2; ++x) {
          if (y >= 0 && y < size.height && x >= 0 && x < size.width) body(k, l, y, x);
        }
      }
    }
  }
}

inline bool is_valid(const Target& target, int b, int y, int x) {
  return target.labels.at(b, y, x) != target.ignore_index;
}

// [B, 2 C, H / 4 + 1, W / 4 + 1]: pooled probabilities of all classes, then pooled labels.
inline Map rmi_pooled(const Map& fused, const Target& target) {
  Map pooled(fused.batch, 2 * fused.channels, Size{fused.size.height / 4 + 1, fused.size.width / 4 + 1});
  for (int b = 0; b < fused.batch; ++b) {
    for (int c = 0; c < fused.channels; ++c) {
      for_windows(fused.size, [&](int k, int l, int y, int x) {
        const bool valid = is_valid(target, b, y, x);
        pooled.at(b, c, k, l) += ((valid ? sigmoid(fused.at(b, c, y, x)) : 0.0) + 1e-6) / 16;
        pooled.at(b, fused.channels + c, k, l) += valid && target.labels.at(b, y, x) == c ? 1.0 / 16 : 0.0;
      });
    }
  }
  return pooled;
}

// Calls body(vector, k, l) for the neighbourhoods of a class.
template <typename Body>
void for_neighbourhoods(const Map& pooled, int b, int c, Body body) {
  for (int k = 0; k + 2 < pooled.size.height; ++k) {
    for (int l = 0; l + 2 < pooled.size.width; ++l) {
      RmiVector v;
      for (int i = 0; i < 9; ++i) {
        v[i] = pooled.at(b, c, k + i / 3, l + i % 3);
        v[9 + i] = pooled.at(b, pooled.channels / 2 + c, k + i / 3, l + i % 3);
      }
      body(v, k, l);
    }
  }
}

inline Rmi rmi(const Map& fused, const Target& target) {
  Rmi result;
  for (int b = 0; b < fused.batch; ++b) {
    for (int y = 0; y < fused.size.height; ++y) {
      for (int x = 0; x < fused.size.width; ++x) {
        if (!is_valid(target, b, y, x)) continue;
        result.valid += 1;
        for (int c = 0; c < fused.channels; ++c) {
          const double z = fused.at(b, c, y, x);
          result.bce += softplus(target.labels.at(b, y, x) == c ? -z : z);
        }
      }
    }
  }
  const Map pooled = rmi_pooled(fused, target);
  for (int b = 0; b < fused.batch; ++b) {
    for (int c = 0; c < fused.channels; ++c) {
      RmiClass entry;
      double count = 0;
      for_neighbourhoods(pooled, b, c, [&](const RmiVector& v, int, int) {
        for (int i = 0; i < 18; ++i) entry.mean[i] += v[i];
        count += 1;
      });
      for (double& mean : entry.mean) mean /= count;
      for_neighbourhoods(pooled, b, c, [&](const RmiVector& v, int, int) {
        for (int i = 0; i < 18; ++i) {
          for (int j = 0; j < 18; ++j) entry.covariance[i][j] += (v[i] - entry.mean[i]) * (v[j] - entry.mean[j]);
        }
      });
      result.classes.push_back(entry);
    }
  }
  return result;
}

// Gradient of the fused logits, from that of the binary cross-entropy and those of the covariances [B, C, 18, 18]
// (empty: none).
inline Map rmi_gradient(const Map& fused, const Target& target, const Rmi& forward, double grad_bce,
                        const std::vector<double>& grad_covariance) {
  Map grad(fused.batch, fused.channels, fused.size);
  const Map pooled = rmi_pooled(fused, target);
  Map grad_pooled(fused.batch, fused.channels, pooled.size);
  for (int b = 0; b < fused.batch; ++b) {
    for (int c = 0; c < fused.channels; ++c) {
      const size_t at = static_cast<size_t>(b) * fused.channels + c;
      if (!grad_covariance.empty()) {
        const double* g = grad_covariance.data() + at * 18 * 18;
        for_neighbourhoods(pooled, b, c, [&](const RmiVector& v, int k, int l) {
          for (int i = 0; i < 9; ++i) {
            double sum = 0;
            for (int j = 0; j < 18; ++j) sum += (g[i * 18 + j] + g[j * 18 + i]) * (v[j] - forward.classes[at].mean[j]);
            grad_pooled.at(b, c, k + i / 3, l + i % 3) += sum;
          }
        });
      }
      for_windows(fused.size, [&](int k, int l, int y, int x) {
        const double p = sigmoid(fused.at(b, c, y, x));
        if (is_valid(target, b, y, x)) grad.at(b, c, y, x) += grad_pooled.at(b, c, k, l) / 16 * p * (1 - p);
      });
    }
  }
  for_all(grad, [&](int b, int c, int y, int x) {
    if (!is_valid(target, b, y, x)) return;
    grad.at(b, c, y, x) += grad_bce * (sigmoid(fused.at(b, c, y, x)) - (target.labels.at(b, y, x) == c ? 1.0 : 0.0));
  });
  return grad;
}

}  // namespace reference
