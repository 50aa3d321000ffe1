// Chooses the table of row primitives once, by what the processor can do.
#include <cstdlib>
#include <string>

#include "core/check.h"
#include "ops/cpu/simd/rows.h"

namespace hmsa {

#if defined(__x86_64__)
namespace v2 {
extern const RowOps<float> float_rows;
extern const RowOps<double> double_rows;
}  // namespace v2
namespace v3 {
extern const RowOps<float> float_rows;
extern const RowOps<double> double_rows;
}  // namespace v3
namespace v4 {
extern const RowOps<float> float_rows;
extern const RowOps<double> double_rows;
}  // namespace v4

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

template <typename T>
const RowOps<T>& choose_table(const RowOps<T>& two, const RowOps<T>& three, const RowOps<T>& four) {
  const int level = choose();
  return level == 4 ? four : level == 3 ? three : two;
}

}  // namespace

template <>
const RowOps<float>& row_ops<float>() {
  static const RowOps<float>& table = choose_table(v2::float_rows, v3::float_rows, v4::float_rows);
  return table;
}

template <>
const RowOps<double>& row_ops<double>() {
  static const RowOps<double>& table = choose_table(v2::double_rows, v3::double_rows, v4::double_rows);
  return table;
}

#else
namespace generic {
extern const RowOps<float> float_rows;
extern const RowOps<double> double_rows;
}  // namespace generic

template <>
const RowOps<float>& row_ops<float>() {
  return generic::float_rows;
}

template <>
const RowOps<double>& row_ops<double>() {
  return generic::double_rows;
}
#endif

}  // namespace hmsa
