// The CUDA kernels of sample_crop, run on the CPU by host_run, against crops in doubles.
#include "host_run/cuda_host.h"
// The kernels see CUDA as a .cu file does.
#include "ops/cuda/sample_crop.cu"
#include "tests/sample_crop_cases.h"

namespace {

using namespace testing;
using hmsa::CropType;

constexpr uint64_t kSeeds = 2;  // orders of the threads

// Gives the sums memory of their own, which holds anything.
void run_kernels(const hmsa::SampleCrop& problem) {
  const int64_t count = hmsa::cuda::sample_crop_sums(problem);
  std::vector<unsigned long long> sums(static_cast<size_t>(count), 77);
  hmsa::cuda::launch_sample_crop(problem, sums.data(), nullptr);
}

void expect_crops(const CropCase& c) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    hmsa::host_run::seed() = seed;
    CropSetup(c, static_cast<uint32_t>(seed)).expect(run_kernels, kCropTolerance);
  }
}

// More than one tile along either axis, and parts of one.
void boxes_anywhere_match() {
  for (const bool antialias : {false, true}) {
    for (const auto& [height, width] : {std::pair{1, 1}, {7, 1}, {33, 9}, {13, 40}, {32, 67}}) {
      CropCase c{height, width};
      c.antialias = antialias;
      expect_crops(c);
      c.recolour = false;
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
        c.blur = layout == 1;
        expect_crops(c);
      }
    }
  }
}

void blur_matches() {
  for (const auto& [height, width] : {std::pair{1, 1}, {3, 5}, {2, 40}, {40, 2}, {37, 35}}) {
    CropCase c{height, width};
    c.count = 4;
    c.blur = true;
    expect_crops(c);
    c.channels_last = true;
    expect_crops(c);
  }
}

// In several launches, those with a blur by themselves.
void more_crops_than_a_launch_takes_match() {
  CropCase c{3, 5};
  c.count = 2 * hmsa::cuda::kItems + 3;
  c.blur = true;
  expect_crops(c);
  c.blur = false;
  expect_crops(c);
}

// The mean of many rows by many blocks.
void sums_of_large_boxes_match() {
  CropCase c{2, 2};
  c.count = 3;
  c.tallest = 90;
  c.widest = 600;
  expect_crops(c);
}

}  // namespace

int main() {
  RUN_TEST(boxes_anywhere_match);
  RUN_TEST(types_formats_and_layouts_match);
  RUN_TEST(blur_matches);
  RUN_TEST(more_crops_than_a_launch_takes_match);
  RUN_TEST(sums_of_large_boxes_match);
  return testing::finish();
}
