// The arguments that every op on a chain of scales has in common: checks, geometry, and the problem for the kernels.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "core/problem.h"
#include "ops/labels.h"
#include "ops/tensor.h"

namespace hmsa {

using Tensors = std::vector<Tensor>;

struct ChainArguments {
  const char* op;  // for error messages
  const Tensors& logits;
  const Tensors& attention;
  const std::vector<double>& scales;
  bool align_corners;
};

// Checks all arguments against an output of height x width and computes the geometry.
Chain checked_chain(const ChainArguments& arguments, int64_t height, int64_t width);

// Checks that target [B, H, W] fits the logits, and returns its view.
LabelView checked_target(const char* op, const Tensor& target, const Tensor& logits);

template <typename S>
void set_inputs(ChainInputs<S>& inputs, const Chain& chain, const ChainArguments& arguments) {
  inputs.chain = chain;
  inputs.batch = arguments.logits[0].size(0);
  inputs.classes = arguments.logits[0].size(1);
  for (int i = 0; i < chain.count; ++i) {
    inputs.logits[i] = const_view<S>(arguments.logits[i]);
    if (i > 0) inputs.attention[i] = const_view<S>(arguments.attention[i - 1]);
  }
}

// Gradients of the inputs: like them, uninitialised; where none is wanted (bit i of the mask is 0), an empty
// one-dimensional tensor.
struct Gradients {
  Tensors logits;
  Tensors attention;

  Gradients(const ChainArguments& arguments, int64_t wanted_logits, int64_t wanted_attention);

  std::tuple<Tensors, Tensors> result() const { return {logits, attention}; }
};

template <typename S>
void set_gradients(ChainGradients<S>& problem, const Gradients& gradients) {
  for (size_t i = 0; i < gradients.logits.size(); ++i) {
    if (gradients.logits[i].dim() == 4) problem.grad_logits[i] = view<S>(gradients.logits[i]);
  }
  for (size_t i = 0; i < gradients.attention.size(); ++i) {
    if (gradients.attention[i].dim() == 4) problem.grad_attention[i + 1] = view<S>(gradients.attention[i]);
  }
}

}  // namespace hmsa
