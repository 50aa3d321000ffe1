// The CPU kernel of class_tile_centroids against a loop over pixels: strides, runs and noise, any number of threads.
#include "ops/cpu/class_tile_centroids.h"
#include "tests/class_tile_centroids_cases.h"
#include "tests/cpu_cases.h"

#if defined(__SANITIZE_ADDRESS__)
#include "ops/cpu/class_tile_centroids.cpp"
#endif

namespace {

using namespace testing;

void expect_same_for_all_threads(const TiledMap& map, int64_t tile, int classes) {
  const TileCentroids wanted = tile_centroids_by_pixel(map, tile, classes);
  for (const int threads : {1, 3}) {
    TileCentroids got(map, tile, classes);
    hmsa::cpu::class_tile_centroids(got.problem, parts(threads));
    EXPECT(got.counts == wanted.counts, map.name(), ", tile ", tile, ", classes ", classes, ", threads ", threads);
    EXPECT(got.centres == wanted.centres, map.name(), ", tile ", tile, ", classes ", classes, ", threads ", threads);
  }
}

void centroids_match_a_loop() {
  for (const auto& [height, width] : {std::pair{1, 1}, {9, 17}, {70, 37}, {150, 8}}) {
    for (const int run : {1, 3, 40}) {
      for (const bool gaps : {false, true}) {
        const TiledMap map(2, height, width, run, gaps);
        for (const int64_t tile : {1, 2, 8, 13, 100, 4000}) expect_same_for_all_threads(map, tile, 5);
      }
    }
  }
}

void any_number_of_classes_is_counted() {
  const TiledMap map(1, 20, 50, 2, false);
  for (const int classes : {1, 6, 255, 256}) expect_same_for_all_threads(map, 32, classes);
}

}  // namespace

int main() {
  RUN_TEST(centroids_match_a_loop);
  RUN_TEST(any_number_of_classes_is_counted);
  return testing::finish();
}
