// Label maps for class_tile_centroids, and its results pixel by pixel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "core/class_tile_centroids.h"
#include "tests/testing.h"

namespace testing {

// Runs of labels, the ignored one and any other among them: contiguous, or with gaps between pixels, rows and images.
// No byte more than the last label needs.
struct TiledMap {
  int64_t batch, height, width;
  int run;
  std::vector<uint8_t> memory;
  hmsa::PlaneView<const uint8_t> view;

  TiledMap(int64_t batch, int64_t height, int64_t width, int run, bool gaps)
      : batch(batch), height(height), width(width), run(run) {
    const int64_t column = gaps ? 2 : 1, row = column * width + (gaps ? 3 : 0), image = row * height + (gaps ? 1 : 0);
    memory.assign(static_cast<size_t>((batch - 1) * image + (height - 1) * row + (width - 1) * column + 1), 1);
    view = {memory.data(), image, row, column};
    std::mt19937 random(7);
    uint8_t label = 0;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t y = 0; y < height; ++y) {
        for (int64_t x = 0; x < width; ++x) {
          if (random() % static_cast<unsigned>(run) == 0) {
            const unsigned chance = random() % 20;
            label = static_cast<uint8_t>(chance == 0 ? 255 : chance == 1 ? random() % 256 : random() % 6);
          }
          memory[static_cast<size_t>(view.at(b, y, x) - memory.data())] = label;
        }
      }
    }
  }

  std::string name() const {
    return std::to_string(batch) + " x " + std::to_string(height) + " x " + std::to_string(width) + ", runs of " +
           std::to_string(run) + ", stride " + std::to_string(view.column);
  }
};

// Results, filled with something else first, and the problem that a kernel is given.
struct TileCentroids {
  hmsa::ClassTileCentroids problem{};
  std::vector<int64_t> counts;
  std::vector<int64_t> centres;  // bits

  TileCentroids(const TiledMap& map, int64_t tile, int classes) {
    problem.labels = map.view;
    problem.batch = map.batch;
    problem.height = map.height;
    problem.width = map.width;
    problem.tile = tile;
    problem.classes = classes;
    counts.assign(static_cast<size_t>(problem.cells()), -7);
    centres.assign(2 * counts.size(), -7);
    problem.counts = counts.data();
    problem.centres = centres.data();
  }
};

inline TileCentroids tile_centroids_by_pixel(const TiledMap& map, int64_t tile, int classes) {
  TileCentroids result(map, tile, classes);
  std::fill(result.counts.begin(), result.counts.end(), 0);
  std::fill(result.centres.begin(), result.centres.end(), 0);
  const int64_t rows = (map.height + tile - 1) / tile, columns = (map.width + tile - 1) / tile;
  for (int64_t b = 0; b < map.batch; ++b) {
    for (int64_t y = 0; y < map.height; ++y) {
      for (int64_t x = 0; x < map.width; ++x) {
        const int label = *map.view.at(b, y, x);
        if (label >= classes) continue;
        const auto cell = static_cast<size_t>(((b * rows + y / tile) * columns + x / tile) * classes + label);
        ++result.counts[cell];
        result.centres[2 * cell] += y;
        result.centres[2 * cell + 1] += x;
      }
    }
  }
  for (size_t cell = 0; cell < result.counts.size(); ++cell) result.problem.finish_cell(static_cast<int64_t>(cell));
  return result;
}

}  // namespace testing
