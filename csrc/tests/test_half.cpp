// float16 and bfloat16: every bit pattern against the definition of the formats, and rounding against a search.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "core/half.h"
#include "tests/testing.h"

namespace {

using hmsa::BFloat16;
using hmsa::Half;

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// A format with `mantissa` bits of fraction and an exponent of 15 - mantissa bits, by its definition.
double decode(uint16_t bits, int mantissa) {
  const int exponent_bits = 15 - mantissa;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> mantissa & ((1 << exponent_bits) - 1);
  const int fraction = bits & ((1 << mantissa) - 1);
  double value;
  if (exponent == (1 << exponent_bits) - 1) {
    value = fraction == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  } else if (exponent == 0) {
    value = std::ldexp(fraction, 1 - bias - mantissa);
  } else {
    value = std::ldexp((1 << mantissa) + fraction, exponent - bias - mantissa);
  }
  return bits & 0x8000 ? -value : value;
}

// The nearest value of the format, the one with an even last bit on a tie, found by bisection over all of them.
uint16_t encode(float value, int mantissa) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(value));
  const int infinity = 0x7fff & ~((1 << mantissa) - 1);
  int low = 0;  // decode(low) <= magnitude
  int high = infinity;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (decode(static_cast<uint16_t>(middle), mantissa) <= magnitude ? low : high) = middle;
  }
  if (std::isinf(magnitude)) return sign | infinity;
  // Infinity stands where the next number would be, were the exponent larger.
  const double above = high == infinity
                           ? 2 * decode(static_cast<uint16_t>(infinity - (1 << (mantissa - 1))), mantissa) / 1.5
                           : decode(static_cast<uint16_t>(high), mantissa);
  const double to_low = magnitude - decode(static_cast<uint16_t>(low), mantissa);
  const double to_high = above - magnitude;
  const int nearest = to_low < to_high ? low : to_low > to_high ? high : (low % 2 == 0 ? low : high);
  return sign | static_cast<uint16_t>(nearest);
}

struct HalfFormat {
  static constexpr int kMantissa = 10;
  static float widen(uint16_t bits) { return hmsa::to_float(Half{bits}); }
  static uint16_t narrow(float value) { return hmsa::to_half(value).bits; }
};

struct BFloat16Format {
  static constexpr int kMantissa = 7;
  static float widen(uint16_t bits) { return hmsa::to_float(BFloat16{bits}); }
  static uint16_t narrow(float value) { return hmsa::to_bfloat16(value).bits; }
};

template <typename Format>
void every_pattern_widens_exactly_and_comes_back() {
  for (int pattern = 0; pattern < 65536; ++pattern) {
    const uint16_t bits = static_cast<uint16_t>(pattern);
    const double wanted = decode(bits, Format::kMantissa);
    const float got = Format::widen(bits);
    const uint16_t back = Format::narrow(got);
    EXPECT_EQUAL(std::signbit(got), (bits & 0x8000) != 0, "pattern ", pattern);
    if (std::isnan(wanted)) {
      const uint16_t quiet = 1 << (Format::kMantissa - 1);
      EXPECT(std::isnan(got) && (bits_of(got) & 0x00400000u), "pattern ", pattern);
      EXPECT_EQUAL(back, bits | quiet, "pattern ", pattern);
    } else {
      EXPECT_EQUAL(static_cast<double>(got), wanted, "pattern ", pattern);
      EXPECT_EQUAL(back, bits, "pattern ", pattern);
    }
  }
}

// Between two neighbours of the format: the exact middle, and one float to either side of it.
template <typename Format>
void ties_round_to_even() {
  const int infinity = 0x7fff & ~((1 << Format::kMantissa) - 1);
  for (int pattern = 0; pattern + 1 < infinity; ++pattern) {
    const double low = decode(static_cast<uint16_t>(pattern), Format::kMantissa);
    const double high = decode(static_cast<uint16_t>(pattern + 1), Format::kMantissa);
    const float middle = static_cast<float>((low + high) / 2);
    if (static_cast<double>(middle) != (low + high) / 2) continue;  // below the smallest float
    const float below = std::nextafter(middle, 0.0f);
    const float above = std::nextafter(middle, std::numeric_limits<float>::infinity());
    const int even = pattern % 2 == 0 ? pattern : pattern + 1;
    EXPECT_EQUAL(Format::narrow(below), pattern, "below the middle of ", low, " and ", high);
    EXPECT_EQUAL(Format::narrow(above), pattern + 1, "above the middle of ", low, " and ", high);
    EXPECT_EQUAL(Format::narrow(middle), even, "the middle of ", low, " and ", high);
    EXPECT_EQUAL(Format::narrow(-middle), even | 0x8000, "minus the middle of ", low, " and ", high);
  }
}

template <typename Format>
void random_floats_round_to_the_nearest() {
  uint64_t state = 1;
  for (int i = 0; i < 400000; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const float value = float_of(static_cast<uint32_t>(state >> 32));
    if (std::isnan(value)) {
      EXPECT(std::isnan(Format::widen(Format::narrow(value))), "bits ", bits_of(value));
    } else {
      EXPECT_EQUAL(Format::narrow(value), encode(value, Format::kMantissa), "value ", value);
    }
  }
}

template <typename Format>
void limits_are_right() {
  const float infinity = std::numeric_limits<float>::infinity();
  const int infinity_bits = 0x7fff & ~((1 << Format::kMantissa) - 1);
  const double largest = decode(static_cast<uint16_t>(infinity_bits - 1), Format::kMantissa);
  const double step = largest - decode(static_cast<uint16_t>(infinity_bits - 2), Format::kMantissa);
  EXPECT_EQUAL(Format::narrow(infinity), infinity_bits);
  EXPECT_EQUAL(Format::narrow(-infinity), infinity_bits | 0x8000);
  EXPECT_EQUAL(Format::narrow(static_cast<float>(largest)), infinity_bits - 1);
  EXPECT_EQUAL(Format::narrow(static_cast<float>(largest + step / 2)), infinity_bits);
  EXPECT_EQUAL(Format::narrow(std::nextafter(static_cast<float>(largest + step / 2), 0.0f)), infinity_bits - 1);
  EXPECT_EQUAL(Format::narrow(std::numeric_limits<float>::max()), infinity_bits);
  EXPECT_EQUAL(Format::narrow(0.0f), 0);
  EXPECT_EQUAL(Format::narrow(-0.0f), 0x8000);
  for (const uint32_t nan : {0x7f800001u, 0x7fc00000u, 0xff800001u, 0x7fffffffu, 0xffffffffu, 0x7f80ffffu}) {
    const float back = Format::widen(Format::narrow(float_of(nan)));
    EXPECT(std::isnan(back), "NaN with bits ", nan);
    EXPECT_EQUAL(std::signbit(back), (nan & 0x80000000u) != 0, "NaN with bits ", nan);
  }
}

// As kernels use them: a loop over an array, which the compiler vectorises, agrees with one element at a time.
void arrays_convert_like_single_elements() {
  std::vector<Half> halves(65536);
  std::vector<BFloat16> brains(65536);
  for (int i = 0; i < 65536; ++i) {
    halves[i].bits = static_cast<uint16_t>(i);
    brains[i].bits = static_cast<uint16_t>(i);
  }
  std::vector<float> from_half(65536), from_brain(65536);
  for (size_t i = 0; i < 65536; ++i) from_half[i] = hmsa::to_arithmetic(halves[i]);
  for (size_t i = 0; i < 65536; ++i) from_brain[i] = hmsa::to_arithmetic(brains[i]);
  std::vector<Half> back_half(65536);
  std::vector<BFloat16> back_brain(65536);
  for (size_t i = 0; i < 65536; ++i) hmsa::from_arithmetic(&back_half[i], from_brain[i]);
  for (size_t i = 0; i < 65536; ++i) hmsa::from_arithmetic(&back_brain[i], from_half[i]);
  for (size_t i = 0; i < 65536; ++i) {
    volatile uint16_t one = static_cast<uint16_t>(i);  // keeps this loop from being vectorised as well
    EXPECT_EQUAL(bits_of(from_half[i]), bits_of(HalfFormat::widen(one)), "pattern ", i);
    EXPECT_EQUAL(bits_of(from_brain[i]), bits_of(BFloat16Format::widen(one)), "pattern ", i);
    EXPECT_EQUAL(back_half[i].bits, HalfFormat::narrow(from_brain[i]), "pattern ", i);
    EXPECT_EQUAL(back_brain[i].bits, BFloat16Format::narrow(from_half[i]), "pattern ", i);
  }
}

}  // namespace

int main() {
  RUN_TEST(every_pattern_widens_exactly_and_comes_back<HalfFormat>);
  RUN_TEST(every_pattern_widens_exactly_and_comes_back<BFloat16Format>);
  RUN_TEST(ties_round_to_even<HalfFormat>);
  RUN_TEST(ties_round_to_even<BFloat16Format>);
  RUN_TEST(random_floats_round_to_the_nearest<HalfFormat>);
  RUN_TEST(random_floats_round_to_the_nearest<BFloat16Format>);
  RUN_TEST(limits_are_right<HalfFormat>);
  RUN_TEST(limits_are_right<BFloat16Format>);
  RUN_TEST(arrays_convert_like_single_elements);
  return testing::finish();
}
