// Class-uniform sampling: which image and which box of it an item of an epoch is.
//
// Every random number is Philox of the seed (the key) and of a counter that says what the number is for:
//
//     word 0                   word 1   word 2        word 3: the stream     used for
//     half | round << 16       epoch    0             kItemOrder             the order of the epoch's items
//     half | round << 16       epoch    repetition    kImageOrder            the order of the images
//     half | round << 16       epoch    repetition    kClassOrder + class    the order of the centroids of a class
//     item                     epoch    attempt       kBoxScale              words 0, 1: the scale
//     item                     epoch    attempt       kBoxStart              words 0, 1: y; words 2, 3: x
//
// `half` and `round` are those of core/permutation.h; `repetition` says how often all images, or all centroids of the
// class, have been used before.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"
#include "core/permutation.h"
#include "core/philox.h"

namespace hmsa {

constexpr int64_t kMostBoxSide = int64_t(1) << 30;  // of images and boxes: their differences fit 32 bits
constexpr int64_t kMostSampledClasses = int64_t(1) << 16;
constexpr int64_t kRandomImages = -1;  // in place of a class

enum SamplingStream : uint32_t { kItemOrder, kBoxScale, kBoxStart, kImageOrder, kClassOrder };

// A table of integers at any strides.
struct IntegerTable {
  const int64_t* data;
  int64_t rows;
  int64_t row_stride;
  int64_t column_stride;

  HMSA_HOST_DEVICE int64_t at(int64_t row, int64_t column) const {
    return data[row * row_stride + column * column_stride];
  }
};

struct DrawClassUniformBoxes {
  IntegerTable centroids;    // [M, 4]: class, image, y, x; sorted by class
  IntegerTable class_items;  // [1 + K, 1]: items of the epoch from random images, and of each class
  IntegerTable image_sizes;  // [I, 2]: height, width
  int64_t crop_height;
  int64_t crop_width;
  double least_scale;
  double largest_scale;
  int64_t uniform_images;  // the random ones are drawn from the first so many
  uint64_t seed;
  uint32_t epoch;
  uint32_t attempt;
  int64_t long_edge;  // 0: scales are those of the images as they are
  int64_t first;      // item
  int64_t count;
  int64_t* boxes;    // [count, 5]: image, y0, x0, y1, x1
  int64_t* classes;  // [count]
};

// An image, and the point of it that the box must contain, unless any box will do.
struct SampledPlace {
  int64_t image;
  int64_t y;
  int64_t x;
  bool any_box;
};

// Items of the epoch; 0 where numbers are negative or too large.
HMSA_HOST_DEVICE int64_t epoch_length(const IntegerTable& class_items) {
  int64_t total = 0;
  for (int64_t entry = 0; entry < class_items.rows; ++entry) {
    const int64_t items = class_items.at(entry, 0);
    if (items < 0 || items > kMostPermuted - total) return 0;
    total += items;
  }
  return total;
}

// The first row of a class >= c, between 0 and M whatever the table holds.
HMSA_HOST_DEVICE int64_t first_of_class(const IntegerTable& centroids, int64_t c) {
  int64_t low = 0;
  int64_t high = centroids.rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (centroids.at(middle, 0) < c) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Which of `members` the k-th item of a stream is: each once, in a random order, before any comes twice. Further
// attempts go on along the order.
HMSA_HOST_DEVICE int64_t chosen_member(const DrawClassUniformBoxes& problem, int64_t k, int64_t members,
                                       uint32_t stream) {
  const int64_t place = (k % members + problem.attempt) % members;
  const auto repetition = static_cast<uint32_t>(k / members);
  return permuted(place, members, {problem.seed, problem.epoch, repetition, stream});
}

// Finds the place of item n and its class. False where the tables do not hold what they ought to.
HMSA_HOST_DEVICE bool find_place(const DrawClassUniformBoxes& problem, int64_t n, SampledPlace& place,
                                 int64_t& item_class) {
  const int64_t length = epoch_length(problem.class_items);
  if (n >= length) return false;
  int64_t k = permuted(n, length, {problem.seed, problem.epoch, 0, kItemOrder});
  int64_t entry = 0;
  for (; k >= problem.class_items.at(entry, 0); ++entry) k -= problem.class_items.at(entry, 0);
  place = SampledPlace{0, 0, 0, entry == 0};
  item_class = entry == 0 ? kRandomImages : entry - 1;
  if (entry == 0) {
    if (problem.uniform_images <= 0) return false;
    place.image = chosen_member(problem, k, problem.uniform_images, kImageOrder);
    return true;
  }
  const int64_t begin = first_of_class(problem.centroids, item_class);
  const int64_t members = first_of_class(problem.centroids, item_class + 1) - begin;
  if (members <= 0) return false;
  const auto stream = static_cast<uint32_t>(kClassOrder + item_class);
  const int64_t row = begin + chosen_member(problem, k, members, stream);
  place.image = problem.centroids.at(row, 1);
  place.y = problem.centroids.at(row, 2);
  place.x = problem.centroids.at(row, 3);
  return problem.centroids.at(row, 0) == item_class;
}

// Pixels of an image that become `crop` pixels at a scale.
HMSA_HOST_DEVICE int64_t box_side(int64_t crop, double scale) {
  const double side = std::floor(static_cast<double>(crop) / scale + 0.5);
  if (side < 1.0) return 1;
  return side > static_cast<double>(kMostBoxSide) ? kMostBoxSide : static_cast<int64_t>(side);
}

// Where a box of `side` pixels begins along an axis of `length` pixels: inside if it fits, around the image if not, and
// such that it contains `point` unless any box will do.
//
// There is always such a start, for 0 <= point < length and side >= 1. A start must be at least L = min(0, length - side)
// and P = point - side + 1, at most U = max(0, length - side) and `point`. L <= U and P <= point are plain; L <= 0 <=
// point; and P <= U since point + 1 <= length. A number that is not below L and P and not above U and `point` exists when
// each lower bound is at most each upper one.
HMSA_HOST_DEVICE int64_t box_start(int64_t length, int64_t side, int64_t point, bool any_box, uint64_t bits) {
  const int64_t spare = length - side;
  int64_t low = spare < 0 ? spare : 0;
  int64_t high = spare < 0 ? 0 : spare;
  if (!any_box) {
    if (low < point - side + 1) low = point - side + 1;
    if (high > point) high = point;
  }
  return low + random_below(bits, static_cast<uint64_t>(high - low + 1));
}

// Draws item `first + i` into row i. A row of -1 where the tables do not hold what they ought to: nothing outside them
// is read.
HMSA_HOST_DEVICE void draw_class_uniform_box(const DrawClassUniformBoxes& problem, int64_t i) {
  int64_t* const box = problem.boxes + 5 * i;
  for (int k = 0; k < 5; ++k) box[k] = -1;
  problem.classes[i] = -1;
  const int64_t n = problem.first + i;
  SampledPlace place{};
  int64_t item_class = kRandomImages;
  if (!find_place(problem, n, place, item_class)) return;
  if (place.image < 0 || place.image >= problem.image_sizes.rows) return;
  const int64_t height = problem.image_sizes.at(place.image, 0);
  const int64_t width = problem.image_sizes.at(place.image, 1);
  if (height < 1 || height > kMostBoxSide || width < 1 || width > kMostBoxSide) return;
  if (place.y < 0 || place.y >= height || place.x < 0 || place.x >= width) return;

  const auto item = static_cast<uint32_t>(n);
  const PhiloxWords for_scale = philox({{item, problem.epoch, problem.attempt, kBoxScale}}, problem.seed);
  const PhiloxWords for_start = philox({{item, problem.epoch, problem.attempt, kBoxStart}}, problem.seed);
  // In these few operations no product is added but by fma, so that every compiler rounds alike.
  double scale =
      std::fma(random_unit(for_scale.wide(0)), problem.largest_scale - problem.least_scale, problem.least_scale);
  if (problem.long_edge > 0) {
    scale *= static_cast<double>(problem.long_edge) / static_cast<double>(height > width ? height : width);
  }
  const int64_t box_height = box_side(problem.crop_height, scale);
  const int64_t box_width = box_side(problem.crop_width, scale);
  box[0] = place.image;
  box[1] = box_start(height, box_height, place.y, place.any_box, for_start.wide(0));
  box[2] = box_start(width, box_width, place.x, place.any_box, for_start.wide(1));
  box[3] = box[1] + box_height;
  box[4] = box[2] + box_width;
  problem.classes[i] = item_class;
}

}  // namespace hmsa
