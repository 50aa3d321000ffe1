// The plain loops that the kernels are tested against: golden values, and gradients against differences.
#include "tests/fuse_scales_cases.h"

namespace {

using namespace testing;

// Values of the published system for logits and attention given by formulas (reference code run in float64).
void reference_gives_the_published_values() {
  const auto fused = [](Size size, std::vector<double> scales) {
    Problem p;
    p.size = size;
    p.scales = std::move(scales);
    for (size_t i = 0; i < p.scales.size(); ++i) {
      const Size grid = p.grid(i);
      const Size head{(grid.height + 3) / 4, (grid.width + 3) / 4};
      Map logits(1, 3, head);
      Map attention(1, 1, head);
      reference::for_all(logits, [&](int, int c, int y, int x) {
        logits.at(0, c, y, x) = std::sin(0.5 * (c + 1) * y + 0.3 * x + 0.1 * grid.height);
        attention.at(0, 0, y, x) = 1.0 / (1.0 + std::exp(-std::cos(0.4 * y - 0.2 * x + 0.05 * grid.width)));
      });
      p.logits.push_back(logits);
      p.attention.push_back(attention);
    }
    return reference::fuse_scales(p);
  };
  const auto expect = [](const Map& map, double sum, double first, double middle, double last) {
    double total = 0;
    for (const double value : map.values) total += value;
    EXPECT(std::fabs(total - sum) < 2e-9, total, " instead of ", sum);
    EXPECT(std::fabs(map.at(0, 0, 0, 0) - first) < 1e-10, map.at(0, 0, 0, 0));
    EXPECT(std::fabs(map.at(0, 1, 7, 11) - middle) < 1e-10, map.at(0, 1, 7, 11));
    const double corner = map.at(0, 2, map.size.height - 1, map.size.width - 1);
    EXPECT(std::fabs(corner - last) < 1e-10, corner);
  };
  expect(fused({16, 24}, {1.0, 0.5}), 610.4238242184, 0.8033286416, 0.4673758899, 0.4612258023);
  expect(fused({16, 24}, {2.0, 1.0, 0.5}), 636.4651906280, 0.6710664488, 0.6442896329, 0.1922735468);
  expect(fused({16, 24}, {2.0, 1.0, 0.5, 0.25}), 607.0640803836, 0.4676638134, 0.5441171719, 0.5222267577);
  expect(fused({16, 24}, {2.0, 1.5, 1.0, 0.5}), 622.8756501399, 0.7109196924, 0.5742823929, 0.2288301278);
  expect(fused({16, 24}, {1.0}), -108.8872761344, 0.9995736030, -0.4467579632, 0.9679196720);
  expect(fused({17, 23}, {2.0, 1.0, 0.5}), 654.0707550085, 0.6505005592, 0.5822026130, 0.1738396432);
  expect(fused({17, 23}, {2.0, 1.0, 0.5, 0.25}), 619.5528231732, 0.4612413638, 0.5346119277, 0.5175979358);
}

// The loss sum(g * P) is linear in the logits and bilinear in each attention, so a central difference is exact but for
// rounding.
void reference_gradients_are_differences() {
  for (const Case& c : cases()) {
    Setup<double> setup(c, Layout::kContiguous);
    Problem& p = setup.problem;
    const Map g = random_map(c.batch, c.channels, c.size, -1, 1, 99);
    const reference::Gradients gradients = reference::fuse_scales_backward(p, g);
    const auto loss = [&] {
      const Map fused = reference::fuse_scales(p);
      double sum = 0;
      for (size_t i = 0; i < fused.values.size(); ++i) sum += g.values[i] * fused.values[i];
      return sum;
    };
    const auto expect_difference = [&](Map& input, const Map& gradient) {
      const size_t k = input.values.size() / 2;
      const double kept = input.values[k];
      input.values[k] = kept + 0.5;
      const double above = loss();
      input.values[k] = kept - 0.5;
      const double difference = above - loss();
      input.values[k] = kept;
      EXPECT(std::fabs(difference - gradient.values[k]) < 1e-9, text_of(c), ": ", difference, ", ", gradient.values[k]);
    };
    for (size_t i = 0; i < c.scales.size(); ++i) {
      expect_difference(p.logits[i], gradients.logits[i]);
      if (i > 0) expect_difference(p.attention[i], gradients.attention[i]);
    }
  }
}

}  // namespace

int main() {
  RUN_TEST(reference_gives_the_published_values);
  RUN_TEST(reference_gradients_are_differences);
  return testing::finish();
}
