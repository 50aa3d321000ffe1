// The CPU kernel of confusion_matrix against a loop over pixels: every pair of label types, strides, runs and noise, any
// number of threads.
#include <random>
#include <vector>

#include "ops/cpu/confusion_matrix.h"
#include "tests/cpu_cases.h"

#if defined(__SANITIZE_ADDRESS__)
#include "ops/cpu/confusion_matrix.cpp"
#endif

namespace {

using namespace testing;
using hmsa::LabelType;

// The labels as L: contiguous or with gaps between pixels, rows and images, no byte more than the last needs.
template <typename L>
struct Labels {
  std::vector<L> memory;
  hmsa::LabelView view;

  Labels(const std::vector<int64_t>& values, int64_t batch, int64_t height, int64_t width, bool gaps) {
    const int64_t column = gaps ? 2 : 1, row = column * width + (gaps ? 3 : 0), image = row * height + (gaps ? 1 : 0);
    memory.assign(static_cast<size_t>((batch - 1) * image + (height - 1) * row + (width - 1) * column + 1), L(77));
    size_t k = 0;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t y = 0; y < height; ++y) {
        for (int64_t x = 0; x < width; ++x) {
          memory[static_cast<size_t>(b * image + y * row + x * column)] = static_cast<L>(values[k++]);
        }
      }
    }
    const LabelType type = sizeof(L) == 1   ? LabelType::kUint8
                           : sizeof(L) == 2 ? LabelType::kInt16
                           : sizeof(L) == 4 ? LabelType::kInt32
                                            : LabelType::kInt64;
    view = hmsa::LabelView{memory.data(), type, image, row, column};
  }
};

template <typename P, typename L>
void expect_counts(bool gaps) {
  std::mt19937 random(3);
  for (const int64_t classes : {1, 5, 19, 100}) {
    const int64_t batch = 2, height = 70, width = 37;
    std::vector<int64_t> prediction, target;
    for (int64_t k = 0; k < batch * height * width; ++k) {
      // Runs, with noise now and then; unsigned labels wrap the negative one to their largest.
      const int64_t run = k / 11 % classes;
      const unsigned chance = random() % 20;
      prediction.push_back(chance == 0 ? static_cast<int64_t>(random() % 110) : run);
      target.push_back(chance == 1 ? 120 : chance == 2 ? -1 : chance == 3 ? run / 2 : run);
    }
    std::vector<int64_t> wanted(static_cast<size_t>(classes * classes));
    int64_t wanted_invalid = 0;
    for (size_t k = 0; k < target.size(); ++k) {
      if (target[k] == 120) continue;
      const bool valid = target[k] >= 0 && target[k] < classes && prediction[k] < classes;
      if (valid) ++wanted[static_cast<size_t>(target[k] * classes + prediction[k])];
      wanted_invalid += !valid;
    }
    const Labels<P> predicted(prediction, batch, height, width, gaps);
    const Labels<L> truth(target, batch, height, width, gaps);
    for (const int threads : {1, 3}) {
      std::vector<int64_t> counts(wanted.size(), -5);
      int64_t invalid = -5;
      const hmsa::ConfusionMatrix problem{
          predicted.view, truth.view, batch, height, width, static_cast<int32_t>(classes), 120,
          counts.data(),  &invalid};
      hmsa::cpu::confusion_matrix(problem, parts(threads));
      EXPECT(counts == wanted, "classes ", classes, ", gaps ", gaps, ", threads ", threads);
      EXPECT_EQUAL(invalid, wanted_invalid, "classes ", classes, ", gaps ", gaps);
    }
  }
}

void counts_match_in_every_type() {
  for (const bool gaps : {false, true}) {
    expect_counts<uint8_t, uint8_t>(gaps);
    expect_counts<uint8_t, int64_t>(gaps);
    expect_counts<int32_t, uint8_t>(gaps);
    expect_counts<int16_t, int16_t>(gaps);
    expect_counts<int64_t, int32_t>(gaps);
  }
}

}  // namespace

int main() {
  RUN_TEST(counts_match_in_every_type);
  return testing::finish();
}
