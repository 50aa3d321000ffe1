// Cross-entropy of fused logits on the CPU, backward: the chain's backward (chain_backward.h). Its source fuses the
// logits once more and computes the gradient from them and from the log-sum-exp of their pixels.
#include <algorithm>

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

  explicit SoftmaxGradient(const FuseScalesCrossEntropyBackward<S>& problem)
      : problem_(problem), target_(problem.target), ops_(softmax_ops<T>()) {
    const auto classes = static_cast<T>(problem.classes);
    share_ = target_.label_smoothing / classes;
    for (int64_t c = 0; c < problem.classes; ++c) weight_sum_ += weight(c);
  }

  void begin_part(Scratch<T>& scratch, int64_t b, const Tile& output) {
    batch_ = b;
    columns_ = output.columns;
    pitch_ = scratch.pitch(columns_.size());
    for (T** rows : {&grad_, &log_sum_exp_, &label_, &all_of_, &own_, &smooth_}) {
      *rows = scratch.take(kGroupRows * pitch_);
    }
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
    row.all_of = all_of_ + at;
    row.own = own_ + at;
    row.smooth = share_ > 0 ? smooth_ + at : nullptr;
    row.channel = static_cast<T>(c);
    row.weight = weight(c);
    ops_.cross_entropy_gradient(grad_ + at, row, columns_.size());
    return grad_ + at;
  }

 private:
  T weight(int64_t c) const { return target_.weight == nullptr ? T(1) : target_.weight[c]; }

  // Fills the rows that all channels of row y share.
  void begin_row(int32_t y, int64_t at) {
    const int64_t n = columns_.size();
    const Extent size = problem_.chain.size;
    const T* saved = problem_.log_sum_exp + (batch_ * size.height + y) * size.width + columns_.lo;
    std::copy(saved, saved + n, log_sum_exp_ + at);
    WrongLabels wrong;  // the forward pass has counted them
    load_labels(label_ + at, {target_.labels, batch_, y, columns_, problem_.classes, target_.ignore_index}, wrong);
    if (problem_.grad_loss.row == 0 && problem_.grad_loss.column == 0 && target_.weight == nullptr) {
      begin_row_of_one(at, *problem_.grad_loss.at(batch_, y, columns_.lo));
      return;
    }
    for (int64_t x = 0; x < n; ++x) {
      const auto label = static_cast<int64_t>(label_[at + x]);
      if (label < 0) {
        all_of_[at + x] = own_[at + x] = smooth_[at + x] = 0;
        continue;
      }
      T grad = *problem_.grad_loss.at(batch_, y, columns_.lo + x);
      if (problem_.total_weight != nullptr) grad /= *problem_.total_weight;
      own_[at + x] = grad * (T(1) - target_.label_smoothing) * weight(label);
      smooth_[at + x] = grad * share_;
      all_of_[at + x] = own_[at + x] + (share_ > 0 ? smooth_[at + x] * weight_sum_ : T(0));
    }
  }

  // The same where one gradient belongs to all pixels and one weight to all classes.
  void begin_row_of_one(int64_t at, T grad) {
    if (problem_.total_weight != nullptr) grad /= *problem_.total_weight;
    const T own = grad * (T(1) - target_.label_smoothing) * weight(0);
    const T smooth = grad * share_;
    const T all_of = own + (share_ > 0 ? smooth * weight_sum_ : T(0));
    const int64_t n = columns_.size();
    for (int64_t x = 0; x < n; ++x) own_[at + x] = label_[at + x] < T(0) ? T(0) : own;
    for (int64_t x = 0; x < n; ++x) all_of_[at + x] = label_[at + x] < T(0) ? T(0) : all_of;
    for (int64_t x = 0; share_ > 0 && x < n; ++x) smooth_[at + x] = label_[at + x] < T(0) ? T(0) : smooth;
  }

  const FuseScalesCrossEntropyBackward<S>& problem_;
  const CrossEntropyTarget<T>& target_;
  const SoftmaxOps<T>& ops_;
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
