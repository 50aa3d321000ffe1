// The backward of the chain where dLoss/dP comes from a loss: no map of the size of the fused logits exists. The loss makes
// g of a band of the output, for some images and classes, in a workspace of at most 16 MB, which stays in the L2 cache;
// the gradients of the elements of the heads that the band completes are gathered from there (gradient_parts.cuh).
//
//     band_backward(inputs, gradients, kBandBytes, workspace, stream, [&](const Part& part, const MapView<T>& grad) {
//       // launches a kernel that writes grad.at(b, c, y, x) for all b, c, y, x of the part
//     });
//
// Bands are rows of heads, and columns where a row is too much; what reaches an element of a head is all in its band, so
// that the rims of bands are made twice and every sum is taken in one piece: results do not depend on the bands. Where no
// sum runs over the classes (attention that has one channel for all classes, and wants a gradient) they are classes first,
// which have no rims.
#pragma once

#include "ops/cuda/class_tiles.cuh"
#include "ops/cuda/gradient_parts.cuh"

namespace hmsa {
namespace cuda {

using forward::Part;

constexpr int64_t kBandBytes = int64_t{16} << 20;

struct BandPlan {
  Extent parts;              // of every head, down and across
  Extent owned[kMaxScales];  // of each head in one of them, at most
  int64_t pixels;            // of the output in one of them, at most, rows of whole quads
  int32_t images, classes;   // at a time
  int maps;                  // of channel sums

  int64_t grad_numbers() const { return pixels * images * classes; }
  int64_t numbers() const { return grad_numbers() + pixels * images * maps; }
};

// Gradients that nothing is asked of have no bands.
template <typename S>
bool wants_gradients(const ChainInputs<S>& inputs, const ChainGradients<S>& gradients) {
  bool wants = false;
  for (int i = 0; i < inputs.chain.count; ++i) {
    wants = wants || gradients.grad_logits[i].data != nullptr || gradients.grad_attention[i].data != nullptr;
  }
  return wants && inputs.batch > 0 && inputs.classes > 0;
}

// What the gradients of a part of the heads need of the output, from whole quad to whole quad.
inline GradientPart gradient_part(const Chain& chain, Extent parts, int32_t row, int32_t column) {
  const BackwardTiles tiles = backward_tiles(chain, parts, row, column);
  GradientPart part{};
  for (int i = 0; i < chain.count; ++i) part.owned[i] = tiles.owned[i];
  // Elements that nothing reads still have a gradient, of zeros.
  if (tiles.output.empty()) return part;
  part.output = tiles.output;
  Range& columns = part.output.columns;
  columns.lo -= columns.lo % backward::kQuad;
  columns.hi = backward::smaller(backward::round_up(columns.hi, backward::kQuad), chain.size.width);
  return part;
}

inline int64_t pitch_of(const Tile& output) { return backward::round_up(output.columns.size(), backward::kQuad); }

// Pixels of a part of the output, at most: the two axes do not depend on each other.
inline int64_t most_pixels(const Chain& chain, Extent parts) {
  int64_t rows = 0;
  int64_t columns = 0;
  for (int32_t k = 0; k < parts.height; ++k) {
    rows = std::max<int64_t>(rows, gradient_part(chain, Extent{parts.height, 1}, k, 0).output.rows.size());
  }
  for (int32_t k = 0; k < parts.width; ++k) {
    columns = std::max(columns, pitch_of(gradient_part(chain, Extent{1, parts.width}, 0, k).output));
  }
  return rows * columns;
}

inline Extent finest_division(const Chain& chain) {
  Extent finest{1, 1};
  for (int i = 0; i < chain.count; ++i) {
    finest = Extent{std::max(finest.height, chain.heads[i].height), std::max(finest.width, chain.heads[i].width)};
  }
  return finest;
}

// The division with the smallest rims in which `planes` numbers for each pixel of a part are at most `numbers`. Where not
// even single elements of the heads are so little, parts of half as much again, or there would be thousands.
inline Extent divide_heads(const Chain& chain, int64_t planes, int64_t numbers) {
  const Extent finest = finest_division(chain);
  const int64_t least = planes * most_pixels(chain, finest);
  if (least > numbers) numbers = least + least / 2;
  Extent best = finest;
  double lowest = 0;
  for (int32_t across = 1; across <= finest.width; across *= 2) {
    for (int32_t down = 1; down <= finest.height; down += std::max(1, down / 8)) {
      const int64_t pixels = most_pixels(chain, Extent{down, across});
      if (planes * pixels > numbers) continue;
      const double made = static_cast<double>(pixels) * down * across;
      if (lowest == 0 || made < lowest) {
        lowest = made;
        best = Extent{down, across};
      }
      break;
    }
    // Columns are only divided where rows were not enough, or rims become larger than what they surround.
    if (across == 1 && best.height < finest.height / 2) break;
  }
  return best;
}

template <typename S>
BandPlan plan_bands(const ChainInputs<S>& inputs, const ChainGradients<S>& gradients, int64_t bytes) {
  const int64_t most = bytes / static_cast<int64_t>(sizeof(arithmetic_t<S>));
  const Chain& chain = inputs.chain;
  bool sums_over_classes = false;
  for (int i = 1; i < chain.count && !chain.class_wise; ++i) {
    sums_over_classes = sums_over_classes || gradients.grad_attention[i].data != nullptr;
  }
  BandPlan plan{};
  // Classes are made four at a time wherever that is possible.
  const int64_t classes = inputs.classes;
  const int64_t group = chain.class_wise ? 1 : forward::kClassesAtOnce;
  const int64_t least = sums_over_classes ? classes : std::min(classes, group);
  plan.maps = sums_map_count(inputs, gradients);
  plan.parts = divide_heads(chain, least + plan.maps, most);
  plan.pixels = most_pixels(chain, plan.parts);
  for (int i = 0; i < chain.count; ++i) {
    plan.owned[i] = Extent{backward::divide_up(chain.heads[i].height, plan.parts.height),
                           backward::divide_up(chain.heads[i].width, plan.parts.width)};
  }
  const int64_t planes = std::max(least, std::min(classes, most / plan.pixels - plan.maps));
  const int64_t chunks = (classes + planes - 1) / planes;
  // Equal chunks of whole groups, as long as that is not more than fits.
  const int64_t equal = ((classes + chunks - 1) / chunks + group - 1) / group * group;
  plan.classes = static_cast<int32_t>(chunks == 1 ? classes : equal <= planes ? equal : planes / group * group);
  const int64_t images = most / (plan.pixels * (plan.classes + plan.maps));
  plan.images = static_cast<int32_t>(std::max<int64_t>(1, std::min(images, inputs.batch)));
  return plan;
}

// Numbers of the arithmetic type that band_backward needs as workspace: `bytes` at most, unless a single element of the
// heads reaches too much of the output.
template <typename S>
int64_t band_backward_workspace(const ChainInputs<S>& inputs, const ChainGradients<S>& gradients, int64_t bytes) {
  return wants_gradients(inputs, gradients) ? plan_bands(inputs, gradients, bytes).numbers() : 0;
}

template <typename S, typename Produce>
void band_backward(const ChainInputs<S>& inputs, const ChainGradients<S>& gradients, int64_t bytes, void* workspace,
                   StreamHandle stream, const Produce& produce) {
  using T = arithmetic_t<S>;
  if (!wants_gradients(inputs, gradients)) return;
  const BandPlan bands = plan_bands(inputs, gradients, bytes);
  const auto memory = static_cast<T*>(workspace);
  FuseScalesBackward<S, T> problem{};
  static_cast<ChainInputs<S>&>(problem) = inputs;
  static_cast<ChainGradients<S>&>(problem) = gradients;

  // g of a part, its elements where those of the whole map would be.
  const auto grad_of = [&](const Part& part) {
    const int64_t row = pitch_of(part.output);
    const int64_t channel = part.output.rows.size() * row;
    const int64_t batch = part.classes.size() * channel;
    const int64_t first =
        part.images.lo * batch + part.classes.lo * channel + part.output.rows.lo * row + part.output.columns.lo;
    return MapView<T>{memory - first, batch, channel, row, 1};
  };
  const auto problem_of = [&](const Part& part) {
    const MapView<T> grad = grad_of(part);
    problem.grad_output = {grad.data, grad.batch, grad.channel, grad.row, grad.column};
    return part_of_problem(problem, part.images, part.classes);
  };
  const auto size = [](int64_t all, int64_t at_a_time, int64_t k) {
    return Range{static_cast<int32_t>(k), static_cast<int32_t>(std::min(k + at_a_time, all))};
  };

  const Part first{size(inputs.batch, bands.images, 0), size(inputs.classes, bands.classes, 0),
                   gradient_part(inputs.chain, bands.parts, 0, 0).output};
  const GradientPlan plan = plan_gradient_parts(problem_of(first), bands.owned, true);
  for (int64_t b = 0; b < inputs.batch; b += bands.images) {
    for (int32_t band = 0; band < bands.parts.height * bands.parts.width; ++band) {
      const GradientPart owned =
          gradient_part(inputs.chain, bands.parts, band / bands.parts.width, band % bands.parts.width);
      for (int64_t c = 0; c < inputs.classes; c += bands.classes) {
        const Part part{size(inputs.batch, bands.images, b), size(inputs.classes, bands.classes, c), owned.output};
        if (!part.output.empty()) produce(part, grad_of(part));
        launch_gradient_part(problem_of(part), plan, owned, memory + bands.grad_numbers(), stream);
      }
    }
  }
}

}  // namespace cuda
}  // namespace hmsa
