// For tests of the CPU kernels: runs them with the row primitives of every instruction set that the processor has.
//
// Sanitized, the primitives in plain C++ are compiled right here instead, so that the sanitizers see every access.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "ops/cpu/simd/fuse_scales_rmi_rows.h"
#include "ops/cpu/simd/rows.h"
#include "ops/cpu/simd/sample_crop_rows.h"
#include "ops/cpu/simd/softmax.h"
#include "tests/testing.h"

#if defined(__SANITIZE_ADDRESS__)
#define HMSA_SIMD_NAMESPACE generic
#include "ops/cpu/simd/fuse_scales_rmi_rows.cpp"
#include "ops/cpu/simd/rows.cpp"
#include "ops/cpu/simd/sample_crop_rows.cpp"
#include "ops/cpu/simd/softmax.cpp"

namespace hmsa {
template <>
const RowOps<float>& row_ops<float>() {
  return generic::float_rows;
}
template <>
const RowOps<double>& row_ops<double>() {
  return generic::double_rows;
}
template <>
const SoftmaxOps<float>& softmax_ops<float>() {
  return generic::float_softmax;
}
template <>
const SoftmaxOps<double>& softmax_ops<double>() {
  return generic::double_softmax;
}
template <>
const RmiOps<float>& rmi_ops<float>() {
  return generic::float_rmi;
}
template <>
const RmiOps<double>& rmi_ops<double>() {
  return generic::double_rmi;
}
const CropOps& crop_ops() { return generic::crop_rows; }
}  // namespace hmsa
#endif

namespace testing {

#if !defined(__SANITIZE_ADDRESS__) && defined(__x86_64__)
// The choice of an instruction set is made once per process.
template <typename RunAll>
int run_with(const char* level, RunAll run_all) {
  std::printf("HMSA_SIMD=%s\n", level);
  const std::string text = run_in_child([&] {
    setenv("HMSA_SIMD", level, 1);
    hmsa::row_ops<float>();
    if (run_all() != 0) throw std::runtime_error("failed");
  });
  if (contains(text, "this processor has no")) std::printf("skipped: %s\n", text.c_str());
  return contains(text, "exit 0") || contains(text, "this processor has no") ? 0 : 1;
}

template <typename RunAll>
int run_with_each_instruction_set(RunAll run_all) {
  return run_with("v2", run_all) + run_with("v3", run_all) + run_with("v4", run_all);
}
#else
template <typename RunAll>
int run_with_each_instruction_set(RunAll run_all) {
  return run_all();
}
#endif

}  // namespace testing
