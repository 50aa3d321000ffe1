#include "ops/labels.h"

#include "core/check.h"

namespace hmsa {

LabelView checked_labels(const char* op, const char* name, const Tensor& labels) {
  LabelView view{nullptr, LabelType::kUint8, 0, 0, 0};
  switch (labels.scalar_type()) {
    case ScalarType::Byte:
      view.type = LabelType::kUint8;
      break;
    case ScalarType::Short:
      view.type = LabelType::kInt16;
      break;
    case ScalarType::Int:
      view.type = LabelType::kInt32;
      break;
    case ScalarType::Long:
      view.type = LabelType::kInt64;
      break;
    default:
      HMSA_CHECK(false, op, ": ", name, " is ", dtype_name(labels), "; expected uint8, int16, int32 or int64");
  }
  HMSA_CHECK(labels.dim() == 3, op, ": ", name, " has shape ", shape_of(labels), "; expected [B, H, W]");
  view.data = labels.const_data_ptr();
  view.batch = labels.stride(0);
  view.row = labels.stride(1);
  view.column = labels.stride(2);
  return view;
}

void check_wrong_labels(const char* op, const cpu::WrongLabels& wrong, int64_t classes, int64_t ignore_index) {
  HMSA_CHECK(wrong.pixels == 0, op, ": target has labels that are no class in ", wrong.pixels, " pixels, from ",
             wrong.least, " to ", wrong.largest, "; expected 0 to ", classes - 1, ", or ", ignore_index, " (ignored)");
}

}  // namespace hmsa
