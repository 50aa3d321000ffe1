// The chain evaluated at single points, straight from the heads' maps.
//
// P_before of any scale, the factors that gradients pass on their way up, and the gradients themselves, for one
// element and without any shared memory. Cheap where few levels lie in between, which is the common case (two scales:
// four reads), and right in every case: level i of the upper part reads 4^i elements of the top one. These are calls, not
// inlined: the kernels use them to fill tables, once for all channels.
#pragma once

#include "ops/cuda/chain_blocks.cuh"

namespace hmsa {
namespace cuda {

template <typename S, typename T>
struct ChainPoints {
  const FuseScalesBackward<S>& problem;
  int64_t b;
  int64_t c;

  HMSA_DEVICE int64_t attention_channel() const { return problem.chain.class_wise ? c : 0; }

  // Logits and attention of scale i at an element of its grid.
  HMSA_DEVICE_CALL T logit(int i, int32_t y, int32_t x) const {
    const PointTaps<T> taps = point_taps<T>(problem.chain.up[i], y, x);
    return sample(problem.logits[i], b, c, taps.row, taps.column);
  }
  HMSA_DEVICE_CALL T attention(int i, int32_t y, int32_t x) const {
    const PointTaps<T> taps = point_taps<T>(problem.chain.up[i], y, x);
    return sample(problem.attention[i], b, attention_channel(), taps.row, taps.column);
  }

  // R A and R (A * L) of a lower scale at an element of the output.
  HMSA_DEVICE_CALL T resized_attention(int i, int32_t y, int32_t x) const {
    const PointTaps<T> taps = point_taps<T>(problem.chain.across[i], y, x);
    return bilinear(taps.row, taps.column, [&](int32_t v, int32_t u) { return attention(i, v, u); });
  }
  HMSA_DEVICE_CALL T resized_product(int i, int32_t y, int32_t x) const {
    const PointTaps<T> taps = point_taps<T>(problem.chain.across[i], y, x);
    return bilinear(taps.row, taps.column, [&](int32_t v, int32_t u) { return attention(i, v, u) * logit(i, v, u); });
  }

  // P of upper scale kLevel at an element of its grid: one function per level, so that the depth of the stack is known.
  template <int kLevel>
  HMSA_DEVICE_CALL T upper_at(int32_t y, int32_t x) const {
    if constexpr (kLevel == 0) {
      return logit(0, y, x);
    } else {
      return blend_upper(attention(kLevel, y, x), logit(kLevel, y, x), resized_upper_at<kLevel - 1>(y, x));
    }
  }

  // P of upper scale kLevel resized to an element of the next grid.
  template <int kLevel>
  HMSA_DEVICE_CALL T resized_upper_at(int32_t y, int32_t x) const {
    const PointTaps<T> taps = point_taps<T>(problem.chain.across[kLevel], y, x);
    return bilinear(taps.row, taps.column, [&](int32_t v, int32_t u) { return upper_at<kLevel>(v, u); });
  }

  HMSA_DEVICE_CALL T upper(int i, int32_t y, int32_t x) const {
    switch (i) {
      case 0:
        return upper_at<0>(y, x);
      case 1:
        return upper_at<1>(y, x);
      case 2:
        return upper_at<2>(y, x);
      case 3:
        return upper_at<3>(y, x);
      case 4:
        return upper_at<4>(y, x);
      case 5:
        return upper_at<5>(y, x);
      case 6:
        return upper_at<6>(y, x);
      default:
        return upper_at<7>(y, x);
    }
  }

  // P before scale i >= 1: of an upper scale on its grid, of a lower one on the output.
  HMSA_DEVICE_CALL T before(int i, int32_t y, int32_t x) const {
    const Chain& chain = problem.chain;
    if (!chain.is_lower(i)) {
      const PointTaps<T> taps = point_taps<T>(chain.across[i - 1], y, x);
      return bilinear(taps.row, taps.column, [&](int32_t v, int32_t u) { return upper(i - 1, v, u); });
    }
    T fused = upper(chain.unit, y, x);
    for (int j = chain.unit + 1; j < i; ++j) {
      fused = blend_lower(resized_attention(j, y, x), resized_product(j, y, x), fused);
    }
    return fused;
  }

  // What is left of dLoss/dP behind the last scale when it comes to scale i (or the unit): product of 1 - R A.
  HMSA_DEVICE_CALL T kept(int i, int32_t y, int32_t x) const {
    const Chain& chain = problem.chain;
    T product = 1;
    for (int j = chain.count - 1; j > chain.unit && j > i; --j) product *= T(1) - resized_attention(j, y, x);
    return product;
  }

  HMSA_DEVICE T grad_output(int32_t y, int32_t x) const { return read(problem.grad_output.at(b, c, y, x)); }

  // Sum over the outputs (y, x) of a resize that read its input (v, u): weight * value(y, x).
  template <typename Value>
  static HMSA_DEVICE T adjoint_at(const Resize& resize, int32_t v, int32_t u, const Value& value) {
    const Range rows = resize.rows.outputs(v);
    const Range columns = resize.columns.outputs(u);
    T sum = 0;
    for (int32_t y = rows.lo; y < rows.hi; ++y) {
      T line = 0;
      for (int32_t x = columns.lo; x < columns.hi; ++x) line += resize.columns.template weight<T>(x, u) * value(y, x);
      sum += resize.rows.template weight<T>(y, v) * line;
    }
    return sum;
  }

  // dLoss/dP of upper scale kLevel at an element of its grid.
  template <int kLevel>
  HMSA_DEVICE_CALL T upper_gradient_at(int32_t y, int32_t x) const {
    const Chain& chain = problem.chain;
    if (kLevel == chain.unit) {
      if (!chain.needs_final_resize) return kept(kLevel, y, x) * grad_output(y, x);
      return adjoint_at(chain.across[kLevel], y, x, [&](int32_t v, int32_t u) { return grad_output(v, u); });
    }
    if constexpr (kLevel + 1 < kMaxScales) {
      return adjoint_at(chain.across[kLevel], y, x, [&](int32_t v, int32_t u) {
        return (T(1) - attention(kLevel + 1, v, u)) * upper_gradient_at<kLevel + 1>(v, u);
      });
    } else {
      return T(0);  // not reached: the unit is the last upper scale
    }
  }

  // What is multiplied with scale i on its grid: R^T g of a lower scale, dLoss/dP of an upper one.
  HMSA_DEVICE_CALL T arriving(int i, int32_t y, int32_t x) const {
    const Chain& chain = problem.chain;
    if (chain.is_lower(i)) {
      return adjoint_at(chain.across[i], y, x, [&](int32_t v, int32_t u) { return kept(i, v, u) * grad_output(v, u); });
    }
    switch (i) {
      case 0:
        return upper_gradient_at<0>(y, x);
      case 1:
        return upper_gradient_at<1>(y, x);
      case 2:
        return upper_gradient_at<2>(y, x);
      case 3:
        return upper_gradient_at<3>(y, x);
      case 4:
        return upper_gradient_at<4>(y, x);
      case 5:
        return upper_gradient_at<5>(y, x);
      case 6:
        return upper_gradient_at<6>(y, x);
      default:
        return upper_gradient_at<7>(y, x);
    }
  }

  // A channel's contribution to the gradient of the attention of scale i >= 1 at an element of its grid.
  HMSA_DEVICE_CALL T attention_gradient(int i, int32_t y, int32_t x) const {
    const Chain& chain = problem.chain;
    if (!chain.is_lower(i)) return arriving(i, y, x) * (logit(i, y, x) - before(i, y, x));
    return arriving(i, y, x) * logit(i, y, x) - adjoint_at(chain.across[i], y, x, [&](int32_t v, int32_t u) {
             return kept(i, v, u) * grad_output(v, u) * before(i, v, u);
           });
  }
};

}  // namespace cuda
}  // namespace hmsa
