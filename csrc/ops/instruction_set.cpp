// hmsa::_instruction_set: which row primitives the CPU kernels use. For `python -m hmsa_ext.info`.
#include "ops/cpu/instruction_set.h"

#include <torch/csrc/stable/library.h>

#include <string>

namespace hmsa {

// Weak: a test may link the ops to the CUDA kernels alone.
extern const char* instruction_set() __attribute__((weak));

namespace {

std::string name_of_instruction_set() { return instruction_set == nullptr ? "none" : instruction_set(); }

}  // namespace
}  // namespace hmsa

STABLE_TORCH_LIBRARY_FRAGMENT(hmsa, m) { m.def("_instruction_set() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(hmsa, CompositeImplicitAutograd, m) {
  m.impl("_instruction_set", TORCH_BOX(&hmsa::name_of_instruction_set));
}
