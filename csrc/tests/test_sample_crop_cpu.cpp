// The CPU kernel of sample_crop against crops in doubles: with the row primitives of every instruction set that this
// processor has, any number of threads, images in any layout that end where their memory does.
#include <cstring>

#include "ops/cpu/sample_crop.h"
#include "tests/cpu_cases.h"
#include "tests/instruction_sets.h"
#include "tests/sample_crop_cases.h"

#if defined(__SANITIZE_ADDRESS__)
#include "ops/cpu/sample_crop.cpp"
#endif

namespace {

using namespace testing;
using hmsa::CropType;

void expect_crops(const CropCase& c) {
  for (uint32_t seed = 0; seed < 4; ++seed) {
    const CropSetup setup(c, seed);
    for (const int threads : {1, 3}) {
      setup.expect([&](const hmsa::SampleCrop& problem) { hmsa::cpu::sample_crop(problem, parts(threads)); },
                   kCropTolerance);
    }
  }
}

void boxes_anywhere_match() {
  for (const bool antialias : {false, true}) {
    for (const auto& [height, width] : {std::pair{1, 1}, {7, 1}, {1, 9}, {13, 40}, {35, 67}}) {
      CropCase c{height, width};
      c.antialias = antialias;
      expect_crops(c);
      c.recolour = false;
      expect_crops(c);
    }
  }
}

// Vectors of outputs that read one vector of sources, two, and more.
void reductions_match() {
  for (const bool antialias : {false, true}) {
    for (const int width : {5, 20, 40, 90, 160}) {
      CropCase c{4, width};
      c.tallest = 40;
      c.widest = 160;
      c.antialias = antialias;
      expect_crops(c);
    }
  }
}

void types_formats_and_layouts_match() {
  for (const CropType type : {CropType::kFloat, CropType::kHalf, CropType::kBFloat16}) {
    for (const bool channels_last : {false, true}) {
      for (const int layout : {0, 1, 2}) {
        CropCase c{9, 37};
        c.type = type;
        c.channels_last = channels_last;
        c.layout = layout;
        expect_crops(c);
      }
    }
  }
}

void blur_matches() {
  for (const auto& [height, width] : {std::pair{1, 1}, {3, 5}, {2, 40}, {40, 2}, {70, 37}}) {
    CropCase c{height, width};
    c.blur = true;
    expect_crops(c);
    c.type = CropType::kHalf;
    c.channels_last = true;
    expect_crops(c);
  }
}

void sums_of_long_rows_do_not_overflow() {
  const hmsa::CropOps& ops = hmsa::crop_ops();
  for (const int64_t pixels : {1, 15, 16, 17, 4111, 4113, 9000}) {
    const std::vector<uint8_t> row(static_cast<size_t>(3 * pixels), 255);
    uint64_t sums[3] = {1, 2, 3};
    ops.sum_channels(sums, row.data(), pixels);
    for (int c = 0; c < 3; ++c) EXPECT_EQUAL(sums[c], static_cast<uint64_t>(255 * pixels + c + 1), pixels, " pixels");
  }
}

// A grid that changes nothing has to leave the pixels as they are, to the bit.
void a_copy_is_exact() {
  std::mt19937 random(1);
  const StoredImage image(6, 33, 0, random);
  hmsa::CropItem item{};
  item.image = image.view;
  item.y1 = image.height;
  item.x1 = image.width;
  hmsa::set_colour(item, 1, 1, 1, 0);
  hmsa::set_blur(item, 0);
  std::vector<float> result(3 * 6 * 33);
  std::vector<uint8_t> labels(6 * 33);
  hmsa::CropOutput output{};
  output.images = result.data();
  output.labels = labels.data();
  output.height = image.height;
  output.width = image.width;
  for (float& scale : output.scale) scale = 1;
  hmsa::cpu::sample_crop(hmsa::SampleCrop{&item, 1, output}, parts(1));
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < image.width; ++x) {
      for (int c = 0; c < 3; ++c) {
        EXPECT_EQUAL(result[static_cast<size_t>((c * 6 + y) * 33 + x)], image.colour(y, x, c));
      }
    }
  }
  EXPECT(labels == image.labels);
}

int run_all() {
  RUN_TEST(boxes_anywhere_match);
  RUN_TEST(reductions_match);
  RUN_TEST(types_formats_and_layouts_match);
  RUN_TEST(blur_matches);
  RUN_TEST(sums_of_long_rows_do_not_overflow);
  RUN_TEST(a_copy_is_exact);
  return testing::finish();
}

}  // namespace

int main() { return testing::run_with_each_instruction_set(run_all); }
