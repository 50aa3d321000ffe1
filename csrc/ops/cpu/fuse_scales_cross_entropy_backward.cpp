// Cross-entropy of fused logits on the CPU, backward: the chain's backward (chain_backward.h). Its source fuses the
// logits once more and computes the gradient from them and from the log-sum-exp of their pixels.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/cpu/chain_backward.h"
#include "ops/cpu/fuse_scales_cross_entropy.h"
#include "ops/cpu/simd/softmax.h"

namespace hmsa {
namespace cpu {
namespace {

constexpr PartLimits kParts{256, 2048, 64, 256, 100000};

// With go = dLoss/d(loss of the pixel), label y, weights w and smoothing e:
//
//     g_c = go ((1 - e) w_y + e / C sum_k w_k) exp(z_c - lse) - go (1 - e) w_y [c = y] - go e / C w_c
template <typename S, typename T>
class SoftmaxGradient {
 public:
  static constexpr bool kReadsFused = true;
  static constexpr bool kPassesLower = true;

  explicit SoftmaxGradient(const FuseScalesCrossEntropyBackward<S>& problem)
      : problem_(problem), target_(problem.target), ops_(softmax_ops<T>()) {
    const auto classes = static_cast<T>(problem.classes);
    share_ = target_.label_smoothing / classes;
    has_one_ = problem.grad_loss.row == 0 && problem.grad_loss.column == 0;
    for (int64_t c = 0; c < problem.classes; ++c) weight_sum_ += weight(c);
  }

  void begin_part(Scratch<T>& scratch, int64_t b, const Tile& output) {
    batch_ = b;
    columns_ = output.columns;
    pitch_ = scratch.pitch(columns_.size());
    for (T** rows : {&grad_, &log_sum_exp_, &label_, &all_of_, &own_, &smooth_}) {
      *rows = scratch.take(kGroupRows * pitch_);
    }
    one_ = of_pixel(b, output.rows.lo, columns_.lo);
    plain_ = has_one_ && target_.weight == nullptr && share_ == T(0) && std::isfinite(one_);
  }

  void begin_channels(int64_t, int64_t) {}
  int32_t group_rows() const { return kGroupRows; }

  void begin_group(Range rows) {
    group_ = rows;
    for (int32_t y = rows.lo; y < rows.hi; ++y) begin_row(y, (y - rows.lo) * pitch_);
  }

  const T* row(int64_t c, int32_t y, const T* fused) {
    const int64_t at = (y - group_.lo) * pitch_;
    CrossEntropyGradientRow<T> row{};
    row.logit = fused;
    row.log_sum_exp = log_sum_exp_ + at;
    row.label = label_ + at;
    row.grad = one_;
    row.all_of = plain_ ? nullptr : all_of_ + at;
    row.own = own_ + at;
    row.smooth = share_ > 0 ? smooth_ + at : nullptr;
    row.channel = static_cast<T>(c);
    row.weight = weight(c);
    ops_.cross_entropy_gradient(grad_ + at, row, columns_.size());
    return grad_ + at;
  }

  bool passes_lower() const { return plain_; }
  const T* pass_lower(int64_t c, int32_t y, const LowerStep<T>& step) {
    const int64_t at = (y - group_.lo) * pitch_;
    const CrossEntropyLowerRow<T> row{step.attention, step.product,      step.before, log_sum_exp_ + at,
                                      label_ + at,    static_cast<T>(c), one_};
    ops_.cross_entropy_backward(step.next, grad_ + at, step.sum, row, columns_.size());
    return grad_ + at;
  }

 private:
  T weight(int64_t c) const { return target_.weight == nullptr ? T(1) : target_.weight[c]; }

  // dLoss/d(loss of the pixel)
  T of_pixel(int64_t b, int32_t y, int32_t x) const {
    const T grad = *problem_.grad_loss.at(b, y, x);
    return problem_.total_weight == nullptr ? grad : grad / *problem_.total_weight;
  }

  // Fills the rows that all channels of row y share.
  void begin_row(int32_t y, int64_t at) {
    const int64_t n = columns_.size();
    const Extent size = problem_.chain.size;
    const T* saved = problem_.log_sum_exp + (batch_ * size.height + y) * size.width + columns_.lo;
    WrongLabels wrong;  // the forward pass has counted them
    load_labels(label_ + at, {target_.labels, batch_, y, columns_, problem_.classes, target_.ignore_index}, wrong);
    if (plain_) {
      // Beside an infinite sum the gradient of an ignored pixel is 0.
      T* log_sum_exp = log_sum_exp_ + at;
      const T* label = label_ + at;
      for (int64_t x = 0; x < n; ++x) log_sum_exp[x] = label[x] < T(0) ? std::numeric_limits<T>::infinity() : saved[x];
      return;
    }
    std::copy(saved, saved + n, log_sum_exp_ + at);
    for (int64_t x = 0; x < n; ++x) {
      const auto label = static_cast<int64_t>(label_[at + x]);
      if (label < 0) {
        all_of_[at + x] = own_[at + x] = smooth_[at + x] = 0;
        continue;
      }
      const T grad = has_one_ ? one_ : of_pixel(batch_, y, columns_.lo + static_cast<int32_t>(x));
      own_[at + x] = grad * (T(1) - target_.label_smoothing) * weight(label);
      smooth_[at + x] = grad * share_;
      all_of_[at + x] = own_[at + x] + (share_ > 0 ? smooth_[at + x] * weight_sum_ : T(0));
    }
  }

  const FuseScalesCrossEntropyBackward<S>& problem_;
  const CrossEntropyTarget<T>& target_;
  const SoftmaxOps<T>& ops_;
  bool has_one_ = false;  // one gradient for all pixels of an image
  T one_ = 0;             // that gradient, or that of the part's first pixel
  bool plain_ =
      false;  // and it is all: no weights, no label smoothing. Finite, so that ignored pixels have 0 times it.
  T share_ = 0;
  T weight_sum_ = 0;
  int64_t batch_ = 0;
  Range columns_{0, 0};
  Range group_{0, 0};
  int64_t pitch_ = 0;
  T* grad_ = nullptr;  // rows of a group, as are the others
  T* log_sum_exp_ = nullptr;
  T* label_ = nullptr;
  T* all_of_ = nullptr;
  T* own_ = nullptr;
  T* smooth_ = nullptr;
};

}  // namespace

template <typename S>
void fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<S>& problem,
                                        const ParallelFor& parallel_for) {
  using T = arithmetic_t<S>;
  chain_backward<S>(problem, problem, kParts, parallel_for, [&] { return SoftmaxGradient<S, T>(problem); });
}

template void fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<float>&, const ParallelFor&);
template void fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<double>&, const ParallelFor&);
template void fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<Half>&, const ParallelFor&);
template void fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<BFloat16>&, const ParallelFor&);

}  // namespace cpu
}  // namespace hmsa
