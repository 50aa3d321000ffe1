// Tables for draw_class_uniform_boxes.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "core/draw_class_uniform_boxes.h"
#include "tests/testing.h"

namespace testing {

// A problem with its tables and results, whose rows lie `gap` elements further apart than they need. `change` what is to
// be wrong before run().
struct SampledTables {
  int64_t gap;
  std::vector<int64_t> centroids, class_items, image_sizes;  // as stored
  std::vector<int64_t> boxes, classes;
  hmsa::DrawClassUniformBoxes problem{};

  SampledTables(int64_t classes_count, int64_t rows, int64_t images, int64_t gap, uint32_t seed) : gap(gap) {
    std::mt19937 random(seed);
    const auto below = [&](int64_t most) { return static_cast<int64_t>(random() % static_cast<uint32_t>(most)); };
    for (int64_t i = 0; i < images; ++i) add_row(image_sizes, {1 + below(300), 1 + below(300)});
    std::vector<int64_t> rows_of(static_cast<size_t>(classes_count));
    for (int64_t i = 0; i < rows; ++i) ++rows_of[static_cast<size_t>(below(classes_count))];
    add_row(class_items, {below(20)});
    for (int64_t c = 0; c < classes_count; ++c) {
      for (int64_t i = 0; i < rows_of[static_cast<size_t>(c)]; ++i) {
        const int64_t image = below(images);
        const int64_t* size = image_sizes.data() + image * (2 + gap);
        add_row(centroids, {c, image, below(size[0]), below(size[1])});
      }
      add_row(class_items, {rows_of[static_cast<size_t>(c)] > 0 ? below(20) : 0});
    }
    problem.centroids = {nullptr, rows, 4 + gap, 1};
    problem.class_items = {nullptr, 1 + classes_count, 1 + gap, 1};
    problem.image_sizes = {nullptr, images, 2 + gap, 1};
    problem.crop_height = 64;
    problem.crop_width = 96;
    problem.least_scale = 0.5;
    problem.largest_scale = 2.0;
    problem.uniform_images = images;
    problem.seed = 0x123456789abcdefu + seed;
    problem.epoch = seed;
    problem.long_edge = seed % 2 == 0 ? 0 : 500;
    point_to_tables();
    problem.count = hmsa::epoch_length(problem.class_items);
  }

  // Draws with results that were something else before.
  template <typename Draw>
  void run(const Draw& draw) {
    boxes.assign(static_cast<size_t>(5 * problem.count), -7);
    classes.assign(static_cast<size_t>(problem.count), -7);
    point_to_tables();
    problem.boxes = boxes.data();
    problem.classes = classes.data();
    draw(problem);
  }

  int64_t& centroid(int64_t row, int64_t column) { return centroids[static_cast<size_t>(row * (4 + gap) + column)]; }
  int64_t& items(int64_t entry) { return class_items[static_cast<size_t>(entry * (1 + gap))]; }
  int64_t& side(int64_t image, int64_t axis) { return image_sizes[static_cast<size_t>(image * (2 + gap) + axis)]; }

  // Rows of -1 are whole, and each other box is of an image that there is.
  int64_t missing() const {
    int64_t count = 0;
    for (size_t i = 0; i < classes.size(); ++i) {
      const int64_t* box = boxes.data() + 5 * i;
      bool all = classes[i] == -1;
      for (int k = 0; k < 5; ++k) all = all && box[k] == -1;
      EXPECT(all || (box[0] >= 0 && box[0] < problem.image_sizes.rows && box[1] < box[3] && box[2] < box[4]));
      count += all;
    }
    return count;
  }

 private:
  void add_row(std::vector<int64_t>& table, std::initializer_list<int64_t> row) {
    if (!table.empty()) table.insert(table.end(), static_cast<size_t>(gap), -9);
    table.insert(table.end(), row);
  }
  void point_to_tables() {
    problem.centroids.data = centroids.data();
    problem.class_items.data = class_items.data();
    problem.image_sizes.data = image_sizes.data();
  }
};

// Tables that hold what they must not, as only a GPU gets them: run(tables) draws; nothing outside them may be read, and
// whatever has no place becomes a row of -1.
template <typename Run>
void expect_rows_of_minus_one(const Run& run) {
  const auto missing = [&](const auto& change) {
    SampledTables tables(3, 40, 5, 0, 8);
    for (int64_t entry = 0; entry < 4; ++entry) tables.items(entry) = 3;
    tables.problem.count = 12;
    change(tables);
    run(tables);
    return tables.missing();
  };
  using Tables = SampledTables&;
  EXPECT_EQUAL(missing([](Tables) {}), 0);
  EXPECT_EQUAL(missing([](Tables t) { t.problem.count = 15; }), 3);  // past the epoch's end
  EXPECT_EQUAL(missing([](Tables t) { t.items(2) = -1; }), 12);
  EXPECT_EQUAL(missing([](Tables t) { t.items(2) = INT64_MAX; }), 12);
  EXPECT_EQUAL(missing([](Tables t) { t.problem.uniform_images = 0; }), 3);
  EXPECT_EQUAL(missing([](Tables t) { t.problem.centroids.rows = 0; }), 9);
  for (const int64_t wrong : {int64_t(-1), int64_t(5), INT64_MAX, INT64_MIN}) {
    EXPECT_EQUAL(missing([&](Tables t) {
                   for (int i = 0; i < 40; ++i) t.centroid(i, 1) = wrong;
                 }),
                 9);
  }
  for (const int64_t wrong : {int64_t(-1), int64_t(300), INT64_MAX, INT64_MIN}) {
    EXPECT_EQUAL(missing([&](Tables t) {
                   for (int i = 0; i < 40; ++i) t.centroid(i, 3) = wrong;
                 }),
                 9);
  }
  for (const int64_t wrong : {int64_t(0), int64_t(-5), INT64_MAX}) {
    EXPECT_EQUAL(missing([&](Tables t) {
                   for (int i = 0; i < 5; ++i) t.side(i, 0) = wrong;
                 }),
                 12);
  }
  // Classes in any order and of any value: only memory and whole rows matter.
  missing([](Tables t) {
    for (int i = 0; i < 40; ++i) t.centroid(i, 0) = 2 - t.centroid(i, 0);
  });
  missing([](Tables t) {
    for (int i = 0; i < 40; ++i) t.centroid(i, 0) = i % 2 == 0 ? INT64_MIN : INT64_MAX;
  });
}

}  // namespace testing
