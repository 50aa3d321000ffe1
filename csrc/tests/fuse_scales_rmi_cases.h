// Problems for the kernels of the region mutual information loss, and what is expected of their results.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "core/fuse_scales_rmi.h"
#include "tests/fuse_scales_rmi_reference.h"
#include "tests/label_cases.h"

namespace testing {

// A case with labels, gradients that come from above, and all that the plain loops make of them.
template <typename S>
struct RmiSetup {
  using T = hmsa::arithmetic_t<S>;
  const Case& c;
  Layout layout;
  bool moments;
  Setup<S> chain;
  Target target;
  StoredLabels labels;
  std::vector<double> grad_covariance;
  double grad_bce = 0.3;
  reference::Rmi wanted;
  reference::Gradients gradients;
  double largest = 0;  // element of the gradient of the fused logits

  // `edit` may change logits and labels, which are random.
  using Edit = std::function<void(Problem&, Labels&)>;

  RmiSetup(const Case& problem, Layout in_layout, LabelType type, const Edit& edit = nullptr)
      : c(problem),
        layout(in_layout),
        moments(c.size.height >= hmsa::kRmiSmallest && c.size.width >= hmsa::kRmiSmallest),
        chain(c, layout),
        target(edited(edit)),
        labels(target.labels, type, layout == Layout::kGaps) {
    const Map fused = reference::fuse_scales(chain.problem);
    wanted = reference::rmi(fused, target);
    std::mt19937 random(3);
    for (int k = 0; moments && k < c.batch * c.channels * 18 * 18; ++k) {
      grad_covariance.push_back(random() / 2147483648.0 - 1);
    }
    const Map grad = reference::rmi_gradient(fused, target, wanted, grad_bce, grad_covariance);
    for (const double value : grad.values) largest = std::fmax(largest, std::fabs(value));
    gradients = reference::fuse_scales_backward(chain.problem, grad);
  }

  double largest_logit() const {
    double largest_of_all = 0;
    for (const Map& map : chain.problem.logits) {
      for (const double value : map.values) largest_of_all = std::fmax(largest_of_all, std::fabs(value));
    }
    return largest_of_all;
  }

 private:
  Target edited(const Edit& edit) {
    Target edited_target = random_target(c, false, 0);
    if (!edit) return edited_target;
    edit(chain.problem, edited_target.labels);
    for (size_t i = 0; i < chain.logits.size(); ++i) chain.logits[i]->store(chain.problem.logits[i]);
    return edited_target;
  }
};

struct RmiResults {
  double bce = -1, valid = -1;
  std::vector<double> mean, covariance;

  bool operator==(const RmiResults& other) const {
    return bce == other.bce && valid == other.valid && mean == other.mean && covariance == other.covariance;
  }
};

template <typename S>
hmsa::FuseScalesRmiForward<S> rmi_forward_problem(const RmiSetup<S>& setup, RmiResults& results) {
  const auto vectors = static_cast<size_t>(setup.c.batch * setup.c.channels) * 18;
  results.mean.assign(setup.moments ? vectors : 0, -7);
  results.covariance.assign(setup.moments ? vectors * 18 : 0, -7);
  hmsa::FuseScalesRmiForward<S> problem{};
  set_inputs(problem, setup.c, setup.chain);
  problem.labels = setup.labels.view;
  problem.ignore_index = setup.target.ignore_index;
  problem.bce = &results.bce;
  problem.valid = &results.valid;
  problem.mean = setup.moments ? results.mean.data() : nullptr;
  problem.covariance = setup.moments ? results.covariance.data() : nullptr;
  return problem;
}

template <typename S>
void expect_rmi(const RmiSetup<S>& setup, const RmiResults& got, const std::string& what) {
  const double exact = Precision<hmsa::arithmetic_t<S>>::calculated;
  const reference::Rmi& wanted = setup.wanted;
  EXPECT(near(got.bce, wanted.bce, 4 * exact * std::fabs(wanted.bce)), what, ": ", got.bce, " instead of ", wanted.bce);
  EXPECT(got.valid == wanted.valid, what);
  const double count = static_cast<double>(setup.c.size.height) * setup.c.size.width / 16;
  for (size_t k = 0; setup.moments && k < wanted.classes.size(); ++k) {
    for (size_t i = 0; i < 18; ++i) {
      EXPECT(near(got.mean[k * 18 + i], wanted.classes[k].mean[i], 2 * exact), what, ", mean ", i, " of class ", k,
             ": ", got.mean[k * 18 + i], " instead of ", wanted.classes[k].mean[i]);
      for (size_t j = 0; j < 18; ++j) {
        const double value = got.covariance[(k * 18 + i) * 18 + j];
        EXPECT(near(value, wanted.classes[k].covariance[i][j], 2 * exact * count), what, ", covariance ", i, ", ", j,
               " of class ", k, ": ", value, " instead of ", wanted.classes[k].covariance[i][j]);
      }
    }
  }
}

// log(det(M)) / 2 of the loss over a covariance [18, 18]: of the lower right block of the Cholesky factor of it and the
// ridge. NaN if it is not positive definite.
inline double half_log_det(const double* covariance) {
  constexpr int kSide = 18;
  double factor[kSide][kSide] = {};
  double sum = 0;
  for (int i = 0; i < kSide; ++i) {
    for (int j = 0; j <= i; ++j) {
      double rest = covariance[i * kSide + j] + (i == j ? 5e-4 : 0.0);
      for (int k = 0; k < j; ++k) rest -= factor[i][k] * factor[j][k];
      factor[i][j] = i == j ? std::sqrt(rest) : rest / factor[j][j];
    }
    if (i >= kSide / 2) sum += std::log(factor[i][i]);
  }
  return sum;
}

template <typename S>
using StoredMaps = std::vector<std::unique_ptr<Stored<S>>>;  // of logits and attention in turn; [1] is not used

template <typename S>
hmsa::FuseScalesRmiBackward<S> rmi_backward_problem(const RmiSetup<S>& setup, const std::vector<double>& mean,
                                                    StoredMaps<S>& maps) {
  hmsa::FuseScalesRmiBackward<S> problem{};
  set_inputs(problem, setup.c, setup.chain);
  problem.labels = setup.labels.view;
  problem.ignore_index = setup.target.ignore_index;
  problem.grad_bce = &setup.grad_bce;
  problem.grad_covariance = setup.moments ? setup.grad_covariance.data() : nullptr;
  problem.mean = setup.moments ? mean.data() : nullptr;
  maps.clear();
  for (int i = 0; i < setup.chain.chain.count; ++i) {
    const Stored<S>& z = *setup.chain.logits[i];
    const Stored<S>& a = *setup.chain.attention[i];
    maps.push_back(std::make_unique<Stored<S>>(setup.c.batch, z.channels, z.size, setup.layout));
    problem.grad_logits[i] = maps.back()->view;
    maps.push_back(std::make_unique<Stored<S>>(setup.c.batch, a.channels, a.size, setup.layout));
    if (i > 0) problem.grad_attention[i] = maps.back()->view;
  }
  return problem;
}

template <typename S>
void expect_rmi_gradients(const RmiSetup<S>& setup, const StoredMaps<S>& maps, const std::string& what) {
  for (size_t m = 0; m < maps.size(); ++m) {
    if (m == 1) continue;
    const std::string which = what + (m % 2 == 0 ? ", logits " : ", attention ") + std::to_string(m / 2);
    EXPECT(maps[m]->gaps_untouched(), which);
    const Map& wanted = m % 2 == 0 ? setup.gradients.logits[m / 2] : setup.gradients.attention[m / 2];
    const Map got = maps[m]->load();
    // Rounding adds up over what an element reaches; the largest gradients say how large the terms are.
    double scale = setup.largest;
    for (const double value : wanted.values) scale = std::fmax(scale, std::fabs(value));
    // Those of the attention are sums of products with logits, which cancel where all logits of a pixel are the same.
    if (m % 2 != 0) scale = std::fmax(scale, setup.largest * setup.largest_logit());
    for (size_t k = 0; k < wanted.values.size(); ++k) {
      // In the plain loops, sigmoid(z) - 1 loses what is less than double's rounding of 1.
      const double tolerance = 8 * Precision<hmsa::arithmetic_t<S>>::calculated * scale +
                               Precision<S>::stored * std::fabs(wanted.values[k]) + 1e-15;
      EXPECT(near(got.values[k], wanted.values[k], tolerance), which, ", element ", k, ": ", got.values[k],
             " instead of ", wanted.values[k]);
    }
  }
}

// Sides around those that pool evenly, more than a tile has, and single neighbourhoods.
inline std::vector<Case> rmi_cases() {
  return {
      {{1.0, 0.5}, {8, 8}, {{2, 2}, {1, 1}}, 2, 3, false, false},
      {{1.0}, {9, 15}, {{9, 15}}, 1, 2, false, false},
      {{1.0, 0.5}, {11, 14}, {{3, 4}, {2, 2}}, 1, 5, true, false},
      {{2.0, 1.0, 0.5}, {38, 29}, {{19, 15}, {10, 8}, {5, 4}}, 2, 6, false, false},
      {{0.5}, {23, 141}, {{3, 18}}, 1, 4, false, false},
      {{2.0, 1.5, 1.0}, {47, 19}, {{12, 5}, {9, 4}, {6, 3}}, 1, 3, false, true},
      {{1.0, 0.02}, {100, 60}, {{3, 2}, {1, 1}}, 1, 2, false, false},
  };
}

// Chains of octaves that pool in the lanes of a warp: the smallest, those of several blocks side by side, one of which ends
// with half a unit, more rows than a tile has, more classes than a block has warps.
inline std::vector<Case> rmi_octave_cases() {
  return {
      {{1.0, 0.5}, {16, 24}, {{4, 6}, {2, 3}}, 2, 3, false, false},
      {{2.0, 1.0}, {12, 116}, {{6, 58}, {3, 29}}, 1, 2, false, false},
      {{2.0, 1.0, 0.5}, {40, 232}, {{20, 116}, {10, 58}, {5, 29}}, 1, 2, false, false},
      {{1.0, 0.5}, {88, 16}, {{22, 4}, {11, 2}}, 3, 2, false, false},
      {{1.0, 0.5}, {16, 16}, {{4, 4}, {2, 2}}, 1, 37, false, false},
  };
}

}  // namespace testing
