// hmsa::draw_class_uniform_boxes: schema, argument checks and the call of each back end.
#include <cmath>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "core/draw_class_uniform_boxes.h"
#include "ops/cpu/draw_class_uniform_boxes.h"
#include "ops/tensor.h"
#if defined(HMSA_WITH_CUDA)
#include "ops/cuda/draw_class_uniform_boxes.h"
#include "ops/cuda/stream.h"
#endif

namespace hmsa {
namespace {

constexpr const char* kName = "draw_class_uniform_boxes";

// The op's arguments as they came.
struct Arguments {
  const Tensor& centroids;    // [M, 4]: class, image, y, x
  const Tensor& class_items;  // [1 + K]
  const Tensor& image_sizes;  // [I, 2]: height, width
  const Sizes& crop;
  const std::vector<double>& scale;
  int64_t uniform_images;
  int64_t seed;
  int64_t epoch;
  int64_t first;
  int64_t count;
  int64_t attempt;
  int64_t long_edge;
};

IntegerTable checked_table(const char* name, const Tensor& tensor, const Tensor& first, int64_t columns,
                           const char* expected) {
  HMSA_CHECK(tensor.scalar_type() == ScalarType::Long, kName, ": ", name, " is ", dtype_name(tensor),
             "; expected int64");
  const bool is_list = columns == 1;
  HMSA_CHECK(tensor.dim() == (is_list ? 1 : 2) && (is_list || tensor.size(1) == columns), kName, ": ", name,
             " has shape ", shape_of(tensor), "; expected ", expected);
  HMSA_CHECK(tensor.size(0) <= kMostPermuted, kName, ": ", name, " has shape ", shape_of(tensor), "; expected at most ",
             kMostPermuted, " rows");
  HMSA_CHECK(tensor.device() == first.device(), kName, ": centroids is on ", device_name(first), ", ", name, " on ",
             device_name(tensor), "; expected one device");
  return IntegerTable{static_cast<const int64_t*>(tensor.const_data_ptr()), tensor.size(0), tensor.stride(0),
                      is_list ? 0 : tensor.stride(1)};
}

// Checks the numbers that the host has, on every device.
void check_numbers(const Arguments& arguments, int64_t images) {
  const Sizes& crop = arguments.crop;
  HMSA_CHECK(crop.size() == 2, kName, ": crop has ", crop.size(), " entries; expected (height, width)");
  for (const int64_t side : crop) {
    HMSA_CHECK(side >= 1 && side <= kMostBoxSide, kName, ": crop is ", crop[0], "x", crop[1],
               "; expected sides of 1 to ", kMostBoxSide);
  }
  const std::vector<double>& scale = arguments.scale;
  HMSA_CHECK(scale.size() == 2, kName, ": scale has ", scale.size(), " entries; expected (least, largest)");
  HMSA_CHECK(0.0 < scale[0] && scale[0] <= scale[1] && std::isfinite(scale[1]), kName, ": scale is ", scale[0], " to ",
             scale[1], "; expected 0 < least <= largest, both finite");
  HMSA_CHECK(arguments.uniform_images >= 0 && arguments.uniform_images <= images, kName, ": uniform_images is ",
             arguments.uniform_images, "; expected 0 to ", images, ", the number of images");
  const auto check_range = [](const char* name, int64_t value, int64_t largest) {
    HMSA_CHECK(value >= 0 && value <= largest, kName, ": ", name, " is ", value, "; expected 0 to ", largest);
  };
  constexpr int64_t kLargest = INT64_MAX;
  check_range("seed", arguments.seed, kLargest);
  check_range("epoch", arguments.epoch, UINT32_MAX);
  check_range("attempt", arguments.attempt, UINT32_MAX);
  check_range("long_edge", arguments.long_edge, kLargest);
  check_range("first", arguments.first, kMostPermuted);
  check_range("count", arguments.count, kMostPermuted);
}

// Checks the contents of the tables: on the CPU only, where reading them does not wait for a device.
void check_tables(const DrawClassUniformBoxes& problem) {
  const int64_t classes = problem.class_items.rows - 1;
  int64_t length = 0;
  for (int64_t entry = 0; entry <= classes; ++entry) {
    const int64_t items = problem.class_items.at(entry, 0);
    HMSA_CHECK(items >= 0, kName, ": class_items[", entry, "] is ", items, "; expected 0 or more");
    HMSA_CHECK(items <= kMostPermuted - length, kName, ": class_items has a sum of more than ", kMostPermuted,
               "; expected a shorter epoch");
    length += items;
  }
  HMSA_CHECK(problem.first <= length - problem.count, kName, ": first is ", problem.first, " and count ", problem.count,
             "; expected a part of the epoch's ", length, " items");
  HMSA_CHECK(problem.class_items.at(0, 0) == 0 || problem.uniform_images > 0, kName, ": class_items[0] is ",
             problem.class_items.at(0, 0), ", but uniform_images is 0; expected images to draw them from");
  for (int64_t i = 0; i < problem.image_sizes.rows; ++i) {
    const int64_t height = problem.image_sizes.at(i, 0), width = problem.image_sizes.at(i, 1);
    HMSA_CHECK(height >= 1 && height <= kMostBoxSide && width >= 1 && width <= kMostBoxSide, kName, ": image_sizes[", i,
               "] is ", height, "x", width, "; expected sides of 1 to ", kMostBoxSide);
  }
  int64_t before = 0;  // class of the row before
  for (int64_t i = 0; i < problem.centroids.rows; ++i) {
    const int64_t c = problem.centroids.at(i, 0), image = problem.centroids.at(i, 1);
    const int64_t y = problem.centroids.at(i, 2), x = problem.centroids.at(i, 3);
    HMSA_CHECK(c >= 0 && c < classes, kName, ": centroids[", i, "] has class ", c, "; expected 0 to ", classes - 1);
    HMSA_CHECK(c >= before, kName, ": centroids[", i, "] has class ", c, " after class ", before,
               "; expected rows sorted by class");
    HMSA_CHECK(image >= 0 && image < problem.image_sizes.rows, kName, ": centroids[", i, "] has image ", image,
               "; expected 0 to ", problem.image_sizes.rows - 1);
    const int64_t height = problem.image_sizes.at(image, 0), width = problem.image_sizes.at(image, 1);
    HMSA_CHECK(y >= 0 && y < height && x >= 0 && x < width, kName, ": centroids[", i, "] has y, x = ", y, ", ", x,
               "; expected a pixel of image ", image, ", which is ", height, "x", width);
    before = c;
  }
  for (int64_t c = 0; c < classes; ++c) {
    const int64_t items = problem.class_items.at(1 + c, 0);
    const bool is_there = first_of_class(problem.centroids, c) < first_of_class(problem.centroids, c + 1);
    HMSA_CHECK(items == 0 || is_there, kName, ": class_items[", 1 + c, "] is ", items,
               ", but centroids has none of class ", c, "; expected no items of it, or a centroid");
  }
}

// Everything but the results.
DrawClassUniformBoxes checked_problem(const Arguments& arguments) {
  const Tensor& centroids = arguments.centroids;
  DrawClassUniformBoxes problem{};
  problem.centroids = checked_table("centroids", centroids, centroids, 4, "[M, 4]: class, image, y, x");
  problem.class_items = checked_table("class_items", arguments.class_items, centroids, 1, "[1 + K]");
  problem.image_sizes = checked_table("image_sizes", arguments.image_sizes, centroids, 2, "[I, 2]: height, width");
  HMSA_CHECK(problem.class_items.rows >= 1 && problem.class_items.rows <= 1 + kMostSampledClasses, kName,
             ": class_items has shape ", shape_of(arguments.class_items), "; expected [1 + K] with K of at most ",
             kMostSampledClasses);
  check_numbers(arguments, problem.image_sizes.rows);
  problem.crop_height = arguments.crop[0];
  problem.crop_width = arguments.crop[1];
  problem.least_scale = arguments.scale[0];
  problem.largest_scale = arguments.scale[1];
  problem.uniform_images = arguments.uniform_images;
  problem.seed = static_cast<uint64_t>(arguments.seed);
  problem.epoch = static_cast<uint32_t>(arguments.epoch);
  problem.attempt = static_cast<uint32_t>(arguments.attempt);
  problem.long_edge = arguments.long_edge;
  problem.first = arguments.first;
  problem.count = arguments.count;
  if (centroids.is_cpu()) check_tables(problem);
  return problem;
}

// The back ends. `like` is a tensor on the device of the problem.
struct OnCpu {
  static void run(const DrawClassUniformBoxes& problem, const Tensor&) {
    cpu::draw_class_uniform_boxes(problem, torch_threads());
  }
};

#if defined(HMSA_WITH_CUDA)
struct OnCuda {
  static void run(const DrawClassUniformBoxes& problem, const Tensor& like) {
    const CudaScope scope(like);
    cuda::launch_draw_class_uniform_boxes(problem, scope.stream());
  }
};
#endif

template <typename BackEnd>
std::tuple<Tensor, Tensor> draw_class_uniform_boxes(const Tensor& centroids, const Tensor& class_items,
                                                    const Tensor& image_sizes, const Sizes& crop,
                                                    const std::vector<double>& scale, int64_t uniform_images,
                                                    int64_t seed, int64_t epoch, int64_t first, int64_t count,
                                                    int64_t attempt, int64_t long_edge) {
  DrawClassUniformBoxes problem = checked_problem({centroids, class_items, image_sizes, crop, scale, uniform_images,
                                                   seed, epoch, first, count, attempt, long_edge});
  Tensor boxes = empty_of(centroids, {problem.count, 5}, ScalarType::Long);
  Tensor classes = empty_of(centroids, {problem.count}, ScalarType::Long);
  problem.boxes = static_cast<int64_t*>(boxes.mutable_data_ptr());
  problem.classes = static_cast<int64_t*>(classes.mutable_data_ptr());
  if (problem.count > 0) BackEnd::run(problem, centroids);
  return {boxes, classes};
}

}  // namespace
}  // namespace hmsa

STABLE_TORCH_LIBRARY_FRAGMENT(hmsa, m) {
  m.def(
      "draw_class_uniform_boxes(Tensor centroids, Tensor class_items, Tensor image_sizes, SymInt[2] crop, *, "
      "float[] scale, int uniform_images, int seed, int epoch, int first, int count, int attempt=0, int long_edge=0) "
      "-> (Tensor boxes, Tensor classes)");
}

STABLE_TORCH_LIBRARY_IMPL(hmsa, CPU, m) {
  m.impl("draw_class_uniform_boxes", TORCH_BOX(&hmsa::draw_class_uniform_boxes<hmsa::OnCpu>));
}

#if defined(HMSA_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(hmsa, CUDA, m) {
  m.impl("draw_class_uniform_boxes", TORCH_BOX(&hmsa::draw_class_uniform_boxes<hmsa::OnCuda>));
}
#endif
