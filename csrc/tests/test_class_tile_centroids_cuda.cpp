// The CUDA kernels of class_tile_centroids, run on the CPU by host_run, against a loop over pixels.
#include "host_run/cuda_host.h"
// The kernels see CUDA as a .cu file does.
#include "ops/cuda/class_tile_centroids.cu"
#include "tests/class_tile_centroids_cases.h"
#include "tests/fuse_scales_cases.h"

namespace {

using namespace testing;

void expect_same_for_all_orders(const TiledMap& map, int64_t tile, int classes) {
  const TileCentroids wanted = tile_centroids_by_pixel(map, tile, classes);
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    hmsa::host_run::seed() = seed;
    TileCentroids got(map, tile, classes);
    // Memory of the blocks' own, which holds anything.
    const auto count = static_cast<size_t>(hmsa::cuda::class_tile_centroids_sums(got.problem));
    std::vector<unsigned long long> sums(count, 77);
    hmsa::cuda::launch_class_tile_centroids(got.problem, sums.data(), nullptr);
    EXPECT(got.counts == wanted.counts, map.name(), ", tile ", tile, ", classes ", classes, ", seed ", seed);
    EXPECT(got.centres == wanted.centres, map.name(), ", tile ", tile, ", classes ", classes, ", seed ", seed);
  }
}

// Parts of tiles, tiles that are parts, the last rows and columns of an image; tiles of one pixel, more parts than blocks.
void centroids_match_a_loop() {
  for (const auto& [height, width] : {std::pair{1, 1}, {15, 19}, {140, 37}, {17, 70}}) {
    for (const int run : {1, 30}) {
      const TiledMap map(2, height, width, run, run == 1);
      for (const int64_t tile : {4, 33, 4000}) expect_same_for_all_orders(map, tile, 5);
    }
  }
  expect_same_for_all_orders(TiledMap(1, 9, 11, 2, false), 1, 5);
}

void any_number_of_classes_is_counted() {
  const TiledMap map(1, 20, 50, 2, false);
  for (const int classes : {1, 6, 256}) expect_same_for_all_orders(map, 32, classes);
}

// Columns of one label down all of a thread's rows, at the end of a tile that is as long as possible.
void runs_down_a_column_are_added_whole() {
  TiledMap map(1, 200, 33, 1, false);
  std::fill(map.memory.begin(), map.memory.end(), uint8_t{3});
  expect_same_for_all_orders(map, hmsa::kMaxTiledSide, 4);
}

}  // namespace

int main() {
  RUN_TEST(centroids_match_a_loop);
  RUN_TEST(any_number_of_classes_is_counted);
  RUN_TEST(runs_down_a_column_are_added_whole);
  return testing::finish();
}
