// Region mutual information: pooling windows, neighbourhoods of pooled pixels and their moments.
//
// Probabilities p = sigmoid(z) (0 at ignored pixels; 1e-6 more everywhere) and one-hot labels y are average-pooled:
// windows of 4 x 4 at stride 4, where two rows and columns of zeros surround the image. A neighbourhood is a 3 x 3
// square of pooled pixels, taken wherever it lies inside: a vector v of 9 pooled probabilities, then 9 pooled labels,
// row by row. Per image and class,
//
//     mean = sum v / n,   covariance = sum (v - mean) (v - mean)^T,
//
// and with G the gradient of the covariance, that of entry a of a neighbourhood is ((G + G^T) (v - mean))_a.
#pragma once

#include <cstdint>

#include "core/chain.h"
#include "core/host_device.h"
#include "core/integers.h"
#include "core/problem.h"

namespace hmsa {

constexpr int32_t kRmiPool = 4;        // side and stride of a window
constexpr int32_t kRmiPad = 2;         // rows and columns of zeros around the image
constexpr int32_t kRmiSide = 3;        // side of a neighbourhood
constexpr int32_t kRmiHalf = 9;        // pooled pixels of a neighbourhood
constexpr int32_t kRmiReach = 2;       // pooled pixels at most so far from one another share a neighbourhood
constexpr double kRmiWindow = 16;      // pixels of a window, those of the padding among them
constexpr double kRmiFloor = 1e-6;     // added to the probability of every pixel of the image
constexpr int32_t kRmiSmallest = 8;    // side of the smallest image that has a neighbourhood
constexpr int32_t kRmiProducts = 171;  // different entries of a covariance

static_assert(kRmiVector == 2 * kRmiHalf, "probabilities and labels");

// ---- along one axis -----------------------------------------------------------------------------------------------

// Windows, and neighbourhoods by the first of their pooled pixels.
HMSA_HOST_DEVICE int32_t rmi_windows(int32_t side) { return side / kRmiPool + 1; }
HMSA_HOST_DEVICE int32_t rmi_neighbourhoods(int32_t side) {
  const int32_t count = rmi_windows(side) - (kRmiSide - 1);
  return count > 0 ? count : 0;
}

// All pixels in groups of a window; where 4 divides side + 1, the last pixel is a group of its own and in no window.
HMSA_HOST_DEVICE int32_t rmi_groups(int32_t side) { return divide_up(side + kRmiPad, kRmiPool); }
HMSA_HOST_DEVICE int32_t rmi_group_of(int32_t pixel) { return (pixel + kRmiPad) / kRmiPool; }

// Pixels of the image in groups lo .. hi - 1.
HMSA_HOST_DEVICE Range rmi_pixels(Range groups, int32_t side) {
  const int32_t lo = groups.lo * kRmiPool - kRmiPad, hi = groups.hi * kRmiPool - kRmiPad;
  return Range{lo > 0 ? lo : 0, hi < side ? hi : side};
}

// The places that pooled pixel k has in neighbourhoods: bit d is set where one starts at k - d.
HMSA_HOST_DEVICE uint32_t rmi_places(int32_t k, int32_t neighbourhoods) {
  uint32_t places = 0;
  for (int32_t d = 0; d < kRmiSide; ++d) {
    if (k - d >= 0 && k - d < neighbourhoods) places |= 1u << d;
  }
  return places;
}

// ---- moments ------------------------------------------------------------------------------------------------------

// The index of the covariance of entries a <= b in RmiMoments::products.
HMSA_HOST_DEVICE int32_t rmi_product(int32_t a, int32_t b) { return a * kRmiVector - a * (a + 1) / 2 + b; }
// And the entries of an index.
HMSA_HOST_DEVICE void rmi_entries(int32_t product, int32_t& a, int32_t& b) {
  a = 0;
  while (product >= kRmiVector - a) product -= kRmiVector - a++;
  b = a + product;
}

// Moments of some neighbourhoods of an image and class.
struct RmiMoments {
  double count;
  double mean[kRmiVector];
  double products[kRmiProducts];  // centred at the mean
};

// Adds the neighbourhoods of `other` by Chan's formula, which avoids cancellation.
HMSA_HOST_DEVICE void rmi_merge(RmiMoments& all, const RmiMoments& other) {
  if (other.count == 0) return;
  const double count = all.count + other.count;
  const double share = other.count / count;
  double apart[kRmiVector];
  for (int32_t a = 0; a < kRmiVector; ++a) {
    apart[a] = other.mean[a] - all.mean[a];
    all.mean[a] += apart[a] * share;
  }
  const double weight = all.count * share;
  int32_t k = 0;
  for (int32_t a = 0; a < kRmiVector; ++a) {
    for (int32_t b = a; b < kRmiVector; ++b, ++k) {
      all.products[k] += other.products[k] + apart[a] * apart[b] * weight;
    }
  }
  all.count = count;
}

HMSA_HOST_DEVICE void rmi_write(const RmiMoments& moments, double* mean, double* covariance) {
  for (int32_t a = 0; a < kRmiVector; ++a) {
    mean[a] = moments.mean[a];
    for (int32_t b = a; b < kRmiVector; ++b) {
      covariance[a * kRmiVector + b] = covariance[b * kRmiVector + a] = moments.products[rmi_product(a, b)];
    }
  }
}

// ---- gradient -----------------------------------------------------------------------------------------------------

constexpr int32_t kRmiTaps = 2 * kRmiReach + 1;

// The gradient of pooled probability (k, l), divided by the number of pixels of a window, is a correlation of the
// pooled probabilities [0] and labels [1] around it: constant + sum over (dy, dx) of weight[.][dy + 2][dx + 2] *
// pooled(k + dy, l + dx).
struct RmiKernel {
  double weight[2][kRmiTaps][kRmiTaps];
  double constant;
};

// The weight of probabilities (kind 0) or labels (1) so many rows and columns away, for pooled pixels that have these
// places in neighbourhoods along rows and columns. No weight reaches outside.
HMSA_HOST_DEVICE_CALL double rmi_weight(const double* grad_covariance, int32_t kind, int32_t dy, int32_t dx,
                                        uint32_t row_places, uint32_t column_places) {
  double weight = 0;
  for (int32_t a = 0; a < kRmiHalf; ++a) {
    const int32_t row = a / kRmiSide, column = a % kRmiSide;
    const bool has_place = (row_places >> row & 1u) != 0 && (column_places >> column & 1u) != 0;
    const int32_t other_row = row + dy, other_column = column + dx;
    if (!has_place || other_row < 0 || other_row >= kRmiSide || other_column < 0 || other_column >= kRmiSide) {
      continue;
    }
    const int32_t b = kind * kRmiHalf + other_row * kRmiSide + other_column;
    weight += grad_covariance[a * kRmiVector + b] + grad_covariance[b * kRmiVector + a];
  }
  return weight / kRmiWindow;
}

HMSA_HOST_DEVICE_CALL double rmi_constant(const double* grad_covariance, const double* mean, uint32_t row_places,
                                          uint32_t column_places) {
  double sum = 0;
  for (int32_t a = 0; a < kRmiHalf; ++a) {
    const int32_t row = a / kRmiSide, column = a % kRmiSide;
    if ((row_places >> row & 1u) == 0 || (column_places >> column & 1u) == 0) continue;
    for (int32_t b = 0; b < kRmiVector; ++b) {
      sum -= (grad_covariance[a * kRmiVector + b] + grad_covariance[b * kRmiVector + a]) * mean[b];
    }
  }
  return sum / kRmiWindow;
}

inline RmiKernel rmi_kernel(const double* grad_covariance, const double* mean, uint32_t row_places,
                            uint32_t column_places) {
  RmiKernel kernel{};
  for (int32_t kind = 0; kind < 2; ++kind) {
    for (int32_t dy = -kRmiReach; dy <= kRmiReach; ++dy) {
      for (int32_t dx = -kRmiReach; dx <= kRmiReach; ++dx) {
        kernel.weight[kind][dy + kRmiReach][dx + kRmiReach] =
            rmi_weight(grad_covariance, kind, dy, dx, row_places, column_places);
      }
    }
  }
  kernel.constant = rmi_constant(grad_covariance, mean, row_places, column_places);
  return kernel;
}

}  // namespace hmsa
