// The structs that ops on a chain of scales hand to their kernels, the same on CPU and CUDA.
#pragma once

#include <cstdint>

#include "core/chain.h"
#include "core/half.h"
#include "core/view.h"

namespace hmsa {

template <typename S>
struct ChainInputs {
  Chain chain;
  int64_t batch;
  int64_t classes;
  MapView<const S> logits[kMaxScales];     // [B, C, h_i, w_i]
  MapView<const S> attention[kMaxScales];  // [B, 1 or C, h_i, w_i], from 1 on: scale 0 has none
};

// Like the inputs; data is null where no gradient is wanted.
template <typename S>
struct ChainGradients {
  MapView<S> grad_logits[kMaxScales];
  MapView<S> grad_attention[kMaxScales];
};

template <typename S>
struct FuseScalesForward : ChainInputs<S> {
  MapView<S> output;  // [B, C, H, W]
};

template <typename S, typename G = S>
struct FuseScalesBackward : ChainInputs<S>, ChainGradients<S> {
  MapView<const G> grad_output;  // [B, C, H, W]
};

// ---- cross-entropy ----------------------------------------------------------------------------------------------------

// Cross-entropy of the fused logits z of a pixel of label y, with weights w of the classes and smoothing e:
//
//     (1 - e) w_y (lse - z_y) + e / C sum_c w_c (lse - z_c),   lse = log sum_c exp z_c
//
// and zero at ignored pixels. The mean is over the sum of w_y.
template <typename T>
struct CrossEntropyTarget {
  LabelView labels;  // [B, H, W]
  const T* weight;   // [C]; null: all one
  int64_t ignore_index;
  T label_smoothing;
};

enum class Reduction : int32_t { kNone, kSum, kMean };

template <typename S>
struct FuseScalesCrossEntropyForward : ChainInputs<S> {
  using T = arithmetic_t<S>;
  CrossEntropyTarget<T> target;
  Reduction reduction;
  T* loss;          // [B, H, W] for kNone, else one number
  T* log_sum_exp;   // [B, H, W]
  T* total_weight;  // one number: sum of w_y over the pixels that are not ignored
};

template <typename S>
struct FuseScalesCrossEntropyBackward : ChainInputs<S>, ChainGradients<S> {
  using T = arithmetic_t<S>;
  CrossEntropyTarget<T> target;
  PlaneView<const T> grad_loss;  // [B, H, W]; all strides zero where the loss is one number
  const T* log_sum_exp;          // [B, H, W]
  const T* total_weight;         // what the gradient is divided by; null but for kMean
};

// ---- region mutual information ----------------------------------------------------------------------------------------

constexpr int kRmiVector = 18;  // a neighbourhood: 9 pooled probabilities, then 9 pooled labels

template <typename S>
struct FuseScalesRmiForward : ChainInputs<S> {
  LabelView labels;  // [B, H, W]
  int64_t ignore_index;
  double* bce;         // one number: binary cross-entropy, summed over valid pixels and classes
  double* valid;       // one number: valid pixels
  double* mean;        // [B, C, 18] of the neighbourhoods
  double* covariance;  // [B, C, 18, 18], not normalised: sum of (v - mean) (v - mean)^T
};

template <typename S>
struct FuseScalesRmiBackward : ChainInputs<S>, ChainGradients<S> {
  LabelView labels;
  int64_t ignore_index;
  const double* grad_bce;         // one number
  const double* grad_covariance;  // [B, C, 18, 18]
  const double* mean;             // [B, C, 18]
};

// ---- prediction -------------------------------------------------------------------------------------------------------

// The first class of the largest fused logit, and its softmax probability. With two views the inputs hold 2 B images: the
// second half are outputs for the mirrored images, still mirrored; the fused logits of both are averaged.
template <typename S>
struct FuseScalesArgmax : ChainInputs<S> {  // batch: that of the labels
  using T = arithmetic_t<S>;
  int views;
  void* labels;   // [B, H, W], uint8 up to 256 classes, else int32
  T* confidence;  // [B, H, W]; null: labels alone
};

}  // namespace hmsa
