// Philox, permutations and the boxes of class-uniform sampling on the CPU. That boxes equal those of plain Python is
// tested in Python.
#include <algorithm>
#include <vector>

#include "core/draw_class_uniform_boxes.h"
#include "ops/cpu/draw_class_uniform_boxes.h"
#include "tests/cpu_cases.h"
#include "tests/draw_class_uniform_boxes_cases.h"

#if defined(__SANITIZE_ADDRESS__)
#include "ops/cpu/draw_class_uniform_boxes.cpp"
#endif

namespace {

using namespace testing;
using namespace hmsa;

void expect_philox(const PhiloxWords& counter, uint64_t key, const PhiloxWords& wanted) {
  const PhiloxWords got = philox(counter, key);
  for (int i = 0; i < 4; ++i) EXPECT_EQUAL(got.word[i], wanted.word[i], "word ", i);
}

// The known answers of Random123, the authors' library.
void philox_gives_the_known_answers() {
  expect_philox({{0, 0, 0, 0}}, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  expect_philox({{~0u, ~0u, ~0u, ~0u}}, ~uint64_t(0), {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect_philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0x299f31d0a4093822,
                {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

void random_below_is_a_floor() {
  for (const uint64_t bits : {uint64_t(0), uint64_t(1) << 63, ~uint64_t(0), uint64_t(0x123456789abcdef0)}) {
    for (const uint64_t size : {uint64_t(1), uint64_t(3), uint64_t(1000), uint64_t(1) << 32}) {
      const auto wanted = static_cast<int64_t>(static_cast<unsigned __int128>(bits) * size >> 64);
      EXPECT_EQUAL(random_below(bits, size), wanted, "bits ", bits, ", size ", size);
    }
  }
  EXPECT(random_unit(~uint64_t(0)) < 1.0);
  EXPECT_EQUAL(random_unit(uint64_t(1) << 63), 0.5);
}

void permutations_are_bijections() {
  for (int64_t size = 1; size <= 300; ++size) {
    for (uint32_t turn = 0; turn < 3; ++turn) {
      std::vector<int64_t> images;
      for (int64_t place = 0; place < size; ++place) images.push_back(permuted(place, size, {5, 1, turn, 2}));
      std::sort(images.begin(), images.end());
      for (int64_t place = 0; place < size; ++place) EXPECT_EQUAL(images[static_cast<size_t>(place)], place);
    }
  }
}

// The largest sizes: still within bounds, and different places have different images.
void large_permutations_have_different_elements() {
  for (const int64_t size : {kMostPermuted, kMostPermuted - 1, kMostPermuted / 4 + 1}) {
    std::vector<int64_t> images;
    for (int64_t k = 0; k < 1000; ++k) images.push_back(permuted(k % 2 == 0 ? k : size - k, size, {5, 1, 0, 2}));
    std::sort(images.begin(), images.end());
    EXPECT(images.front() >= 0 && images.back() < size, "size ", size);
    EXPECT(std::adjacent_find(images.begin(), images.end()) == images.end(), "size ", size);
  }
}

// Every length, side and point: as many starts as the definition allows, all of them reached by some bits, no other.
void starts_are_those_of_the_definition() {
  for (int64_t length = 1; length <= 9; ++length) {
    for (int64_t side = 1; side <= 12; ++side) {
      for (int64_t point = -1; point < length; ++point) {
        std::vector<int64_t> wanted;
        for (int64_t start = -20; start <= 20; ++start) {
          const bool in_range =
              std::min<int64_t>(0, length - side) <= start && start <= std::max<int64_t>(0, length - side);
          if (in_range && (point < 0 || (start <= point && point < start + side))) wanted.push_back(start);
        }
        EXPECT(!wanted.empty());
        const auto choices = static_cast<int64_t>(wanted.size());
        for (int64_t k = 0; k < choices; ++k) {
          // The middle of the k-th part of all 64-bit numbers.
          const uint64_t bits = ~uint64_t(0) / static_cast<uint64_t>(2 * choices) * static_cast<uint64_t>(2 * k + 1);
          EXPECT_EQUAL(box_start(length, side, point, point < 0, bits), wanted[static_cast<size_t>(k)], "length ",
                       length, ", side ", side, ", point ", point);
        }
      }
    }
  }
}

void sides_are_rounded_and_bounded() {
  EXPECT_EQUAL(box_side(10, 1.0), 10);
  EXPECT_EQUAL(box_side(10, 4.0), 3);  // 2.5
  EXPECT_EQUAL(box_side(10, 4.1), 2);
  EXPECT_EQUAL(box_side(1, 1e300), 1);
  EXPECT_EQUAL(box_side(1, 1e-300), kMostBoxSide);
  EXPECT_EQUAL(box_side(1, 0.0), kMostBoxSide);
}

void any_part_by_any_threads_is_that_of_the_whole() {
  for (uint32_t seed = 0; seed < 4; ++seed) {
    SampledTables whole(5, 40, 7, 0, seed);
    whole.run([](const auto& problem) { cpu::draw_class_uniform_boxes(problem, parts(1)); });
    EXPECT_EQUAL(whole.missing(), 0);
    for (const int64_t first : {int64_t(0), whole.problem.count / 3}) {
      SampledTables part(5, 40, 7, 2, seed);
      part.problem.first = first;
      part.problem.count -= first;
      part.run([](const auto& problem) { cpu::draw_class_uniform_boxes(problem, parts(3)); });
      EXPECT(std::equal(part.boxes.begin(), part.boxes.end(), whole.boxes.begin() + 5 * first, whole.boxes.end()));
      EXPECT(std::equal(part.classes.begin(), part.classes.end(), whole.classes.begin() + first, whole.classes.end()));
    }
  }
}

void wrong_tables_give_rows_of_minus_one() {
  expect_rows_of_minus_one([](SampledTables& tables) {
    tables.run([](const auto& problem) { cpu::draw_class_uniform_boxes(problem, parts(2)); });
  });
}

}  // namespace

int main() {
  RUN_TEST(philox_gives_the_known_answers);
  RUN_TEST(random_below_is_a_floor);
  RUN_TEST(permutations_are_bijections);
  RUN_TEST(large_permutations_have_different_elements);
  RUN_TEST(starts_are_those_of_the_definition);
  RUN_TEST(sides_are_rounded_and_bounded);
  RUN_TEST(any_part_by_any_threads_is_that_of_the_whole);
  RUN_TEST(wrong_tables_give_rows_of_minus_one);
  return testing::finish();
}
