// The gradients of the chain for a part of the heads: what a loss needs whose gradient exists only for a while, a band of
// the output at a time (band_backward.cuh).
#pragma once

#include "core/problem.h"
#include "ops/cuda/fuse_scales.h"
#include "ops/cuda/gradient_layout.cuh"

namespace hmsa {
namespace cuda {

// Elements of the heads whose gradients are made, and the part of the output that reaches them: all that is read of the
// incoming gradient. Its columns begin and end at whole quads, or with the output.
struct GradientPart {
  Tile owned[kMaxScales];
  Tile output;
};

// How blocks divide the work of a part, by scale. Chosen once for parts of about one size: the search takes the host as
// long as the device needs for a small part. No sum depends on it.
struct GradientPlan {
  backward::GradientLayout layouts[kMaxScales];
};

// `owned`: of each head, at most. `padded`: rows of the incoming gradient can be read up to the next whole quad.
template <typename S, typename G>
GradientPlan plan_gradient_parts(const FuseScalesBackward<S, G>& problem, const Extent* owned, bool padded);

// `maps`: workspace for sums_map_count(problem) numbers for each pixel of the part, all images.
template <typename S, typename G>
void launch_gradient_part(const FuseScalesBackward<S, G>& problem, const GradientPlan& plan, const GradientPart& part,
                          arithmetic_t<S>* maps, StreamHandle stream);

// All of the gradients. Numbers of the arithmetic type that this needs as workspace: one for each pixel of the output and
// each scale of 1 and below (but the largest) whose attention gets a gradient.
template <typename S>
int64_t gathered_backward_workspace(const FuseScalesBackward<S>& problem);
template <typename S>
void launch_gathered_backward(const FuseScalesBackward<S>& problem, void* workspace, StreamHandle stream);

// Whether the gradient of the attention of scale i needs a map of channel sums (fuse_scales_channel_sums.h).
template <typename S>
bool wants_sums_map(const ChainInputs<S>& inputs, const ChainGradients<S>& gradients, int i) {
  return i > 0 && i >= inputs.chain.unit && gradients.grad_attention[i].data != nullptr;
}
template <typename S, typename G>
bool wants_sums_map(const FuseScalesBackward<S, G>& problem, int i) {
  return wants_sums_map<S>(problem, problem, i);
}

template <typename S>
int sums_map_count(const ChainInputs<S>& inputs, const ChainGradients<S>& gradients) {
  int count = 0;
  for (int i = 0; i < inputs.chain.count; ++i) count += wants_sums_map(inputs, gradients, i) ? 1 : 0;
  return count;
}
template <typename S, typename G>
int sums_map_count(const FuseScalesBackward<S, G>& problem) {
  return sums_map_count<S>(problem, problem);
}

// ---- parts of a problem as problems ---------------------------------------------------------------------------------

// Some images and classes of it.
template <typename S, typename G>
FuseScalesBackward<S, G> part_of_problem(FuseScalesBackward<S, G> problem, Range images, Range classes) {
  const auto move = [&](auto& view, int64_t channel) {
    if (view.data != nullptr) view.data += images.lo * view.batch + channel * view.channel;
  };
  // Attention that serves all classes has one channel.
  const int64_t attention_channel = problem.chain.class_wise ? classes.lo : 0;
  problem.batch = images.size();
  problem.classes = classes.size();
  move(problem.grad_output, classes.lo);
  for (int i = 0; i < problem.chain.count; ++i) {
    move(problem.logits[i], classes.lo);
    move(problem.grad_logits[i], classes.lo);
    move(problem.attention[i], attention_channel);
    move(problem.grad_attention[i], attention_channel);
  }
  return problem;
}

// The chain of class c on its own, where attention is class-wise.
template <typename S, typename G>
FuseScalesBackward<S, G> problem_of_class(const FuseScalesBackward<S, G>& problem, int64_t c) {
  const auto channel = static_cast<int32_t>(c);
  FuseScalesBackward<S, G> one =
      part_of_problem(problem, Range{0, static_cast<int32_t>(problem.batch)}, Range{channel, channel + 1});
  one.chain.class_wise = false;
  return one;
}

}  // namespace cuda
}  // namespace hmsa
