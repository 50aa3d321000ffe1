// Label maps as arguments of ops.
#pragma once

#include <cstdint>

#include "core/view.h"
#include "ops/cpu/labels.h"
#include "ops/tensor.h"

namespace hmsa {

// Checks labels [B, H, W] of uint8, int16, int32 or int64, and returns their view.
LabelView checked_labels(const char* op, const char* name, const Tensor& labels);

// Raises if there were labels that are neither a class nor ignored.
void check_wrong_labels(const char* op, const cpu::WrongLabels& wrong, int64_t classes, int64_t ignore_index);

}  // namespace hmsa
