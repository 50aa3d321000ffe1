// Chooses the tables of row primitives once, by the instruction sets that the processor has.
#include <cstdlib>
#include <string>

#include "core/check.h"
#include "ops/cpu/instruction_set.h"
#include "ops/cpu/simd/fuse_scales_rmi_rows.h"
#include "ops/cpu/simd/rows.h"
#include "ops/cpu/simd/sample_crop_rows.h"
#include "ops/cpu/simd/softmax.h"

namespace hmsa {

// Every table by the namespace of its instruction set.
#define HMSA_DECLARE_TABLES(level)                \
  namespace level {                               \
  extern const RowOps<float> float_rows;          \
  extern const RowOps<double> double_rows;        \
  extern const SoftmaxOps<float> float_softmax;   \
  extern const SoftmaxOps<double> double_softmax; \
  extern const RmiOps<float> float_rmi;           \
  extern const RmiOps<double> double_rmi;         \
  extern const CropOps crop_rows;                 \
  }

#if defined(__x86_64__)
HMSA_DECLARE_TABLES(v2)
HMSA_DECLARE_TABLES(v3)
HMSA_DECLARE_TABLES(v4)

namespace {

bool has_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}

bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

int choose() {
  __builtin_cpu_init();
  const int best = has_v4() ? 4 : has_v3() ? 3 : 2;
  const char* wish = std::getenv("HMSA_SIMD");
  if (wish == nullptr || *wish == '\0') return best;
  const std::string name(wish);
  const int wanted = name == "v2" ? 2 : name == "v3" ? 3 : name == "v4" ? 4 : 0;
  HMSA_CHECK(wanted != 0, "HMSA_SIMD: expected v2, v3 or v4, got '", name, "'");
  HMSA_CHECK(wanted <= best, "HMSA_SIMD: this processor has no x86-64-", name, "; it goes up to v", best);
  return wanted;
}

int level() {
  static const int chosen = choose();
  return chosen;
}

template <typename Table>
const Table& choose_table(const Table& two, const Table& three, const Table& four) {
  return level() == 4 ? four : level() == 3 ? three : two;
}

}  // namespace

const char* instruction_set() { return level() == 4 ? "v4" : level() == 3 ? "v3" : "v2"; }

#define HMSA_TABLE(name) choose_table(v2::name, v3::name, v4::name)
#else
HMSA_DECLARE_TABLES(generic)

// There is one set of tables.
const char* instruction_set() {
  const char* wish = std::getenv("HMSA_SIMD");
  const std::string name(wish == nullptr ? "" : wish);
  HMSA_CHECK(name.empty() || name == "generic", "HMSA_SIMD: expected generic, got '", name, "'");
  return "generic";
}

namespace {

template <typename Table>
const Table& checked_table(const Table& table) {
  static const char* const name = instruction_set();  // refuses a wish for another one
  (void)name;
  return table;
}

}  // namespace

#define HMSA_TABLE(name) checked_table(generic::name)
#endif

template <>
const RowOps<float>& row_ops<float>() {
  return HMSA_TABLE(float_rows);
}

template <>
const RowOps<double>& row_ops<double>() {
  return HMSA_TABLE(double_rows);
}

template <>
const SoftmaxOps<float>& softmax_ops<float>() {
  return HMSA_TABLE(float_softmax);
}

template <>
const SoftmaxOps<double>& softmax_ops<double>() {
  return HMSA_TABLE(double_softmax);
}

template <>
const RmiOps<float>& rmi_ops<float>() {
  return HMSA_TABLE(float_rmi);
}

template <>
const RmiOps<double>& rmi_ops<double>() {
  return HMSA_TABLE(double_rmi);
}

const CropOps& crop_ops() { return HMSA_TABLE(crop_rows); }

}  // namespace hmsa
