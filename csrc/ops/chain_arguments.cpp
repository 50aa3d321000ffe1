#include "ops/chain_arguments.h"

#include <cmath>
#include <ostream>

#include "core/check.h"

namespace hmsa {
namespace {

// An entry of a list in an error message, which is put together only where there is an error.
struct Entry {
  const char* list;
  size_t i;

  friend std::ostream& operator<<(std::ostream& text, const Entry& entry) {
    return text << entry.list << "[" << entry.i << "]";
  }
};

void check_like(const char* op, const Tensor& tensor, const Entry& name, const Tensor& first) {
  HMSA_CHECK(tensor.dim() == 4, op, ": ", name, " has shape ", shape_of(tensor),
             "; expected four dimensions [B, C, h, w]");
  HMSA_CHECK(tensor.scalar_type() == first.scalar_type(), op, ": ", name, " is ", dtype_name(tensor),
             ", but logits[0] is ", dtype_name(first), "; expected one dtype for all");
  HMSA_CHECK(tensor.device() == first.device(), op, ": ", name, " is on ", device_name(tensor),
             ", but logits[0] is on ", device_name(first), "; expected one device for all");
  HMSA_CHECK(tensor.size(0) == first.size(0), op, ": ", name, " has batch size ", tensor.size(0),
             ", but logits[0] has ", first.size(0));
  HMSA_CHECK(tensor.size(2) > 0 && tensor.size(3) > 0 && tensor.size(2) < kMaxSide && tensor.size(3) < kMaxSide, op,
             ": ", name, " has a map of ", tensor.size(2), " x ", tensor.size(3), "; expected 1 to ", kMaxSide - 1,
             " in height and width");
}

}  // namespace

Chain checked_chain(const ChainArguments& arguments, int64_t height, int64_t width) {
  const auto& [op, logits, attention, scales, align_corners] = arguments;
  const size_t count = scales.size();
  HMSA_CHECK(count >= 1 && count <= kMaxScales, op, ": scales has ", count, " entries; expected 1 to ", kMaxScales);
  HMSA_CHECK(logits.size() == count, op, ": logits has ", logits.size(), " entries; expected ", count,
             ", one for each of scales");
  HMSA_CHECK(attention.size() + 1 == count, op, ": attention has ", attention.size(), " entries; expected ", count - 1,
             ", one for each scale but the largest");
  HMSA_CHECK(height > 0 && width > 0 && height < kMaxSide && width < kMaxSide, op, ": size is (", height, ", ", width,
             "); expected 1 to ", kMaxSide - 1, " in height and width");

  bool has_unit = false;
  for (size_t i = 0; i < count; ++i) {
    HMSA_CHECK(std::isfinite(scales[i]) && scales[i] > 0, op, ": scales[", i, "] is ", scales[i],
               "; expected a positive number");
    HMSA_CHECK(i == 0 || scales[i] < scales[i - 1], op, ": scales[", i, "] is ", scales[i], " after ",
               scales[i > 0 ? i - 1 : 0], "; expected strictly descending scales");
    has_unit = has_unit || scales[i] == 1.0;
    const double rows = std::floor(static_cast<double>(height) * scales[i]);
    const double columns = std::floor(static_cast<double>(width) * scales[i]);
    HMSA_CHECK(rows >= 1 && columns >= 1 && rows < kMaxSide && columns < kMaxSide, op, ": scales[", i, "] is ",
               scales[i], ", which gives a grid of ", rows, " x ", columns, " for size (", height, ", ", width,
               "); expected 1 to ", kMaxSide - 1, " in height and width");
  }
  HMSA_CHECK(has_unit || count == 1, op, ": scales has ", count, " entries without 1.0; expected 1.0 among them");

  const Tensor& first = logits[0];
  HMSA_CHECK(is_floating(first), op, ": logits[0] is ", dtype_name(first),
             "; expected float32, float16, bfloat16 or float64");
  Extent heads[kMaxScales];
  for (size_t i = 0; i < count; ++i) {
    const Entry name{"logits", i};
    check_like(op, logits[i], name, first);
    HMSA_CHECK(logits[i].size(1) == first.size(1) && first.size(1) > 0, op, ": ", name, " has ", logits[i].size(1),
               " channels, logits[0] has ", first.size(1), "; expected the same, at least 1");
    heads[i] = Extent{static_cast<int32_t>(logits[i].size(2)), static_cast<int32_t>(logits[i].size(3))};
  }
  for (size_t i = 0; i + 1 < count; ++i) {
    const Tensor& entry = attention[i];
    const Entry name{"attention", i};
    check_like(op, entry, name, first);
    HMSA_CHECK(entry.size(1) == attention[0].size(1) && (entry.size(1) == 1 || entry.size(1) == first.size(1)), op,
               ": ", name, " has ", entry.size(1), " channels; expected 1, or ", first.size(1),
               " as the logits have, the same in every entry");
    HMSA_CHECK(entry.size(2) == heads[i + 1].height && entry.size(3) == heads[i + 1].width, op, ": ", name,
               " has a map of ", entry.size(2), " x ", entry.size(3), "; expected ", heads[i + 1].height, " x ",
               heads[i + 1].width, ", the map of logits[", i + 1, "], which belongs to the same scale");
  }
  const bool class_wise = count > 1 && attention[0].size(1) != 1;
  return make_chain(static_cast<int>(count), scales.data(), heads,
                    Extent{static_cast<int32_t>(height), static_cast<int32_t>(width)}, class_wise, align_corners);
}

LabelView checked_target(const char* op, const Tensor& target, const Tensor& logits) {
  const LabelView view = checked_labels(op, "target", target);
  HMSA_CHECK(target.size(0) == logits.size(0), op, ": target has shape ", shape_of(target), "; expected [",
             logits.size(0), ", H, W], a plane for each image of the logits ", shape_of(logits));
  HMSA_CHECK(target.device() == logits.device(), op, ": target is on ", device_name(target), ", but the logits are on ",
             device_name(logits), "; expected one device for all");
  return view;
}

Gradients::Gradients(const ChainArguments& arguments, int64_t wanted_logits, int64_t wanted_attention) {
  const auto allocate = [](const Tensors& inputs, int64_t wanted) {
    Tensors gradients;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Tensor& like = inputs[i];
      const bool is_wanted = (wanted >> i & 1) != 0;
      gradients.push_back(is_wanted ? empty_in_format_of(like, {like.size(0), like.size(1), like.size(2), like.size(3)})
                                    : torch::stable::new_empty(like, {0}));
    }
    return gradients;
  };
  logits = allocate(arguments.logits, wanted_logits);
  attention = allocate(arguments.attention, wanted_attention);
}

}  // namespace hmsa
