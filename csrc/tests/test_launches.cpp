// Every launch is one that a GPU takes: problems of many shapes are planned for GPUs of several kinds by the very host
// code that plans them there, and host_run looks at each launch as the GPU would. Nothing is executed but a small problem
// of each kind at first, from which host_run learns how much static shared memory the kernels have.
#include "host_run/cuda_host.h"
// The kernels are linked: one object for each .cu file.
#include <cmath>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/sample_crop.h"
#include "ops/cuda/class_tile_centroids.h"
#include "ops/cuda/confusion_matrix.h"
#include "ops/cuda/draw_class_uniform_boxes.h"
#include "ops/cuda/fuse_scales.h"
#include "ops/cuda/fuse_scales_argmax.h"
#include "ops/cuda/fuse_scales_cross_entropy.h"
#include "ops/cuda/fuse_scales_rmi.h"
#include "ops/cuda/sample_crop.h"
#include "tests/testing.h"

namespace {

using hmsa::arithmetic_t;
using hmsa::Chain;
using hmsa::concat;
using hmsa::Extent;
using hmsa::MapView;
namespace host_run = hmsa::host_run;

constexpr int kDevices[] = {host_run::kH200, host_run::kA100, host_run::kRtx4090, host_run::kRtx5090};

// ---- memory ---------------------------------------------------------------------------------------------------------

// Zeros for kernels that run; for those that are only planned an address that nobody follows.
class Memory {
 public:
  explicit Memory(bool exists) : exists_(exists) {}

  template <typename T>
  T* numbers(int64_t count) {
    if (!exists_) return reinterpret_cast<T*>(uintptr_t{1} << 40);
    blocks_.push_back(std::make_unique<Block[]>(static_cast<size_t>(count) * sizeof(T) / sizeof(Block) + 1));
    return reinterpret_cast<T*>(blocks_.back().get());
  }
  template <typename S>
  MapView<S> map(int64_t batch, int64_t channels, Extent size, bool channels_last) {
    const int64_t plane = static_cast<int64_t>(size.height) * size.width;
    auto* data = numbers<std::remove_const_t<S>>(batch * channels * plane);
    if (channels_last) return MapView<S>{data, channels * plane, 1, size.width * channels, channels};
    return MapView<S>{data, channels * plane, plane, size.width, 1};
  }
  hmsa::LabelView labels(Extent size) {
    const int64_t plane = static_cast<int64_t>(size.height) * size.width;
    return hmsa::LabelView{numbers<uint8_t>(8 * plane), hmsa::LabelType::kUint8, plane, size.width, 1};
  }

 private:
  struct alignas(16) Block {
    unsigned char bytes[16] = {};
  };
  bool exists_;
  std::vector<std::unique_ptr<Block[]>> blocks_;
};

// ---- problems over a chain of scales --------------------------------------------------------------------------------

struct Problem {
  Extent size;
  std::vector<double> scales;
  int stride;  // of the heads
  int64_t classes;
  int64_t batch = 2;
  bool channels_last = false;
  bool class_wise = false;
  bool align_corners = false;
};

std::string words(const Problem& p) {
  std::string scales;
  for (const double scale : p.scales) scales += concat(scales.empty() ? "(" : ", ", scale);
  return concat(scales, ") ", p.batch, "x", p.classes, "x", p.size.height, "x", p.size.width, " stride ", p.stride,
                p.channels_last ? " channels_last" : "", p.class_wise ? " class-wise" : "",
                p.align_corners ? " align_corners" : "");
}

template <typename S>
class Calls {
 public:
  using T = arithmetic_t<S>;

  Calls(const Problem& p, bool runs) : p_(p), memory_(runs) {
    std::vector<Extent> heads;
    for (const double scale : p.scales) {
      const auto side = [&](int32_t of) {
        const auto grid = static_cast<int32_t>(std::floor(of * scale));
        return std::max(1, (grid + p.stride - 1) / p.stride);
      };
      heads.push_back(Extent{side(p.size.height), side(p.size.width)});
    }
    const auto count = static_cast<int>(p.scales.size());
    inputs_.chain = hmsa::make_chain(count, p.scales.data(), heads.data(), p.size, p.class_wise, p.align_corners);
    inputs_.batch = p.batch;
    inputs_.classes = p.classes;
    for (int i = 0; i < count; ++i) {
      const Extent head = heads[static_cast<size_t>(i)];
      inputs_.logits[i] = memory_.map<const S>(p.batch, p.classes, head, p.channels_last);
      gradients_.grad_logits[i] = memory_.map<S>(p.batch, p.classes, head, p.channels_last);
      if (i == 0) continue;
      const int64_t channels = p.class_wise ? p.classes : 1;
      inputs_.attention[i] = memory_.map<const S>(p.batch, channels, head, p.channels_last);
      gradients_.grad_attention[i] = memory_.map<S>(p.batch, channels, head, p.channels_last);
    }
  }

  void fuse_forward() {
    hmsa::FuseScalesForward<S> problem{inputs_, memory_.map<S>(p_.batch, p_.classes, p_.size, p_.channels_last)};
    hmsa::cuda::launch_fuse_scales_forward(problem, nullptr);
  }
  void fuse_backward() {
    hmsa::FuseScalesBackward<S> problem{
        {inputs_}, {gradients_}, memory_.map<const S>(p_.batch, p_.classes, p_.size, p_.channels_last)};
    const auto workspace = [&](int64_t numbers) { return memory_.numbers<T>(numbers); };
    hmsa::cuda::launch_fuse_scales_backward(problem, workspace, nullptr);
  }
  void fuse_scales_cross_entropy_forward(double smoothing, hmsa::Reduction reduction) {
    hmsa::FuseScalesCrossEntropyForward<S> problem{
        inputs_, target(smoothing), reduction, numbers<T>(pixels()), numbers<T>(pixels()), numbers<T>(1)};
    auto* workspace = numbers<double>(hmsa::cuda::fuse_scales_cross_entropy_forward_workspace(problem));
    hmsa::cuda::launch_fuse_scales_cross_entropy_forward(problem, workspace, nullptr);
  }
  void fuse_scales_cross_entropy_backward(double smoothing) {
    hmsa::FuseScalesCrossEntropyBackward<S> problem{
        {inputs_}, {gradients_}, target(smoothing), {numbers<T>(1), 0, 0, 0}, numbers<T>(pixels()), numbers<T>(1)};
    hmsa::cuda::launch_fuse_scales_cross_entropy_backward(
        problem, [this](int64_t n) -> void* { return numbers<T>(n); }, nullptr);
  }
  void argmax(int views, bool confident) {
    hmsa::FuseScalesArgmax<S> problem{inputs_, views, numbers<int32_t>(pixels()),
                                      confident ? numbers<T>(pixels()) : nullptr};
    problem.batch = p_.batch / views;
    hmsa::cuda::launch_fuse_scales_argmax(problem, nullptr);
  }
  void fuse_scales_rmi_forward(bool moments) {
    const int64_t maps = p_.batch * p_.classes;
    hmsa::FuseScalesRmiForward<S> problem{inputs_,
                                          memory_.labels(p_.size),
                                          255,
                                          numbers<double>(1),
                                          numbers<double>(1),
                                          moments ? numbers<double>(maps * 18) : nullptr,
                                          moments ? numbers<double>(maps * 18 * 18) : nullptr};
    auto* workspace = numbers<unsigned char>(hmsa::cuda::fuse_scales_rmi_forward_workspace(problem));
    hmsa::cuda::launch_fuse_scales_rmi_forward(problem, workspace, nullptr);
  }
  void fuse_scales_rmi_backward(bool moments) {
    const int64_t maps = p_.batch * p_.classes;
    hmsa::FuseScalesRmiBackward<S> problem{{inputs_},
                                           {gradients_},
                                           memory_.labels(p_.size),
                                           255,
                                           numbers<double>(1),
                                           moments ? numbers<double>(maps * 18 * 18) : nullptr,
                                           moments ? numbers<double>(maps * 18) : nullptr};
    auto* workspace = numbers<unsigned char>(hmsa::cuda::fuse_scales_rmi_backward_workspace(problem));
    hmsa::cuda::launch_fuse_scales_rmi_backward(problem, workspace, nullptr);
  }

 private:
  template <typename N>
  N* numbers(int64_t count) {
    return memory_.numbers<N>(count);
  }
  int64_t pixels() const { return p_.batch * p_.size.height * p_.size.width; }
  hmsa::CrossEntropyTarget<T> target(double smoothing) {
    return hmsa::CrossEntropyTarget<T>{memory_.labels(p_.size), nullptr, 255, static_cast<T>(smoothing)};
  }

  const Problem& p_;
  Memory memory_;
  hmsa::ChainInputs<S> inputs_{};
  hmsa::ChainGradients<S> gradients_{};
};

// Runs a call; says what was refused, and for which problem.
int refused_calls = 0;
template <typename Call, typename Describe>
void expect_taken(const Call& call, const Describe& describe) {
  try {
    call();
    EXPECT_EQUAL(cudaPeekAtLastError(), cudaSuccess);
  } catch (const std::exception& error) {
    ++refused_calls;
    EXPECT(false, host_run::device(host_run::machine().device).name, ", ", describe(), ": ", error.what());
  }
}

enum Ops { kPredictions = 1, kGradients = 2, kRmi = 4, kAll = 7 };

template <typename S>
void expect_all_taken(const Problem& p, const char* dtype, int ops, bool runs) {
  Calls<S> calls(p, runs);
  const auto expect = [&](const char* op, const auto& call) {
    expect_taken(call, [&] { return concat(op, " ", words(p), " ", dtype); });
  };
  if (ops & kPredictions) {
    expect("fuse_scales", [&] { calls.fuse_forward(); });
    expect("cross-entropy", [&] { calls.fuse_scales_cross_entropy_forward(0.0, hmsa::Reduction::kMean); });
    expect("cross-entropy with smoothing",
           [&] { calls.fuse_scales_cross_entropy_forward(0.1, hmsa::Reduction::kNone); });
    expect("argmax", [&] { calls.argmax(1, true); });
    expect("labels alone", [&] { calls.argmax(1, false); });
    if (p.batch % 2 == 0) expect("argmax of two views", [&] { calls.argmax(2, true); });
  }
  if (ops & kGradients) {
    expect("fuse_scales backward", [&] { calls.fuse_backward(); });
    expect("cross-entropy backward", [&] { calls.fuse_scales_cross_entropy_backward(0.0); });
    expect("cross-entropy backward with smoothing", [&] { calls.fuse_scales_cross_entropy_backward(0.1); });
  }
  const bool moments = p.size.height >= 8 && p.size.width >= 8;
  if (ops & kRmi) {
    expect("RMI", [&] { calls.fuse_scales_rmi_forward(moments); });
    expect("RMI backward", [&] { calls.fuse_scales_rmi_backward(moments); });
  }
}

void expect_all_taken(const Problem& p, int ops, bool runs, bool other_dtypes) {
  expect_all_taken<float>(p, "float32", ops, runs);
  if (!other_dtypes) return;
  expect_all_taken<double>(p, "float64", ops, runs);
  expect_all_taken<hmsa::Half>(p, "float16", ops, runs);
  expect_all_taken<hmsa::BFloat16>(p, "bfloat16", ops, runs);
}

const std::vector<std::vector<double>> kScales = {{1},
                                                  {0.5},
                                                  {2},
                                                  {1, 0.5},
                                                  {2, 1},
                                                  {1.5, 1},
                                                  {2, 1, 0.5},
                                                  {1, 0.5, 0.25},
                                                  {1.5, 1, 0.5},
                                                  {1, 0.75, 0.5},
                                                  {1.25, 1, 0.75},
                                                  {2, 1.5, 1, 0.5},
                                                  {1.75, 1.5, 1.25, 1, 0.75, 0.5}};

// Every kernel that the plans below start must be among these: with whole quads of columns and classes and without, four
// classes at once and one. A plan says so where a kernel is missing.
void small_problems_run() {
  for (const std::vector<double>& scales : std::vector<std::vector<double>>{{1}, {2, 1, 0.5}}) {
    for (const bool channels_last : {false, true}) {
      expect_all_taken(Problem{{8, 12}, scales, 2, 4, 2, channels_last}, kAll, true, true);
      expect_all_taken(Problem{{8, 11}, scales, 2, 5, 2, channels_last}, kAll, true, true);
    }
  }
  expect_all_taken(Problem{{8, 11}, {2, 1, 0.5}, 2, 2, 2, false, true}, kAll, true, true);
  for (const std::vector<double>& scales : std::vector<std::vector<double>>{{1}, {1, 0.5}, {2, 1}, {2, 1, 0.5}}) {
    expect_all_taken(Problem{{8, 16}, scales, 4, 4, 2}, kPredictions | kGradients, true, true);  // octaves
    expect_all_taken(Problem{{16, 16}, scales, 4, 3, 2}, kRmi, true, true);
  }
  // Chains for which fuse_scales has kernels of their own, or none.
  for (const std::vector<double>& scales :
       std::vector<std::vector<double>>{{2}, {1, 0.5}, {2, 1}, {1, 0.5, 0.25}, {2, 1, 0.5, 0.25}, {2, 1.5, 1, 0.5}}) {
    expect_all_taken(Problem{{8, 12}, scales, 2, 4}, kPredictions | kGradients, true, true);
    expect_all_taken(Problem{{8, 11}, scales, 2, 5}, kPredictions | kGradients, true, true);
  }
}

void predictions_are_taken() {
  const Extent sizes[] = {{1, 1},     {37, 53},    {256, 512},  {360, 480},   {512, 512},   {512, 1024},  {713, 713},
                          {720, 960}, {720, 1280}, {864, 1536}, {1024, 1024}, {1024, 2048}, {1080, 1920}, {2160, 3840}};
  for (const Extent size : sizes) {
    for (const std::vector<double>& scales : kScales) {
      if (std::floor(size.height * scales.back()) < 1) continue;
      for (const int stride : {1, 4, 8, 16}) {
        for (const int64_t classes : {2, 5, 19, 65, 150, 300}) {
          for (const bool channels_last : {false, true}) {
            expect_all_taken(Problem{size, scales, stride, classes, 2, channels_last}, kPredictions, false, false);
          }
        }
      }
    }
  }
}

void gradients_are_taken() {
  for (const Extent size :
       {Extent{1, 1}, Extent{37, 53}, Extent{512, 512}, Extent{720, 960}, Extent{1024, 2048}, Extent{1080, 1920}}) {
    for (const std::vector<double>& scales : kScales) {
      if (std::floor(size.height * scales.back()) < 1) continue;
      for (const int stride : {4, 8, 16}) {
        for (const int64_t classes : {2, 19, 150}) {
          for (const bool channels_last : {false, true}) {
            const int ops = kGradients | (channels_last ? 0 : kRmi);
            expect_all_taken(Problem{size, scales, stride, classes, 1, channels_last}, ops, false, false);
          }
        }
      }
    }
  }
}

void other_dtypes_and_forms_are_taken() {
  for (const Extent size : {Extent{240, 427}, Extent{1024, 2048}}) {
    for (const std::vector<double>& scales : {kScales[0], kScales[2], kScales[3], kScales[6], kScales[11]}) {
      for (const int stride : {4, 8}) {
        for (const bool class_wise : {false, true}) {
          if (class_wise && scales.size() == 1) continue;
          for (const bool channels_last : {false, true}) {
            Problem p{size, scales, stride, 19, 2, channels_last, class_wise, stride == 8};
            expect_all_taken(p, kAll, false, true);
            p.batch = 70000;  // more images than a grid has places
            p.size = Extent{16, 24};
            if (!class_wise) expect_all_taken(p, kPredictions | kGradients, false, false);
          }
        }
      }
    }
  }
}

// ---- labels and crops -----------------------------------------------------------------------------------------------

void expect_labels_taken(int64_t batch, int64_t height, int64_t width, int32_t classes, int64_t tile, bool runs) {
  Memory memory(runs);
  const auto describe = [&] { return concat(batch, "x", height, "x", width, ", ", classes, " classes, tile ", tile); };
  const int64_t pixels = batch * height * width;
  const hmsa::LabelView labels{memory.numbers<uint8_t>(pixels), hmsa::LabelType::kUint8, height * width, width, 1};
  const hmsa::ConfusionMatrix confusion{labels,
                                        labels,
                                        batch,
                                        height,
                                        width,
                                        classes,
                                        255,
                                        memory.numbers<int64_t>(int64_t{classes} * classes),
                                        memory.numbers<int64_t>(1)};
  auto* partials = memory.numbers<uint32_t>(hmsa::cuda::confusion_matrix_partials(confusion));
  expect_taken([&] { hmsa::cuda::launch_confusion_matrix(confusion, partials, nullptr); },
               [&] { return "confusion_matrix " + describe(); });
  if (classes > 256) return;
  hmsa::ClassTileCentroids tiles{{memory.numbers<uint8_t>(pixels), height * width, width, 1},
                                 batch,
                                 height,
                                 width,
                                 tile,
                                 classes,
                                 nullptr,
                                 nullptr};
  tiles.counts = memory.numbers<int64_t>(tiles.cells());
  tiles.centres = memory.numbers<int64_t>(2 * tiles.cells());
  auto* sums = memory.numbers<unsigned long long>(hmsa::cuda::class_tile_centroids_sums(tiles));
  expect_taken([&] { hmsa::cuda::launch_class_tile_centroids(tiles, sums, nullptr); },
               [&] { return "class_tile_centroids " + describe(); });
}

void expect_boxes_taken(int64_t count, bool runs) {
  Memory memory(runs);
  hmsa::DrawClassUniformBoxes problem{};
  problem.centroids = {memory.numbers<int64_t>(4), 0, 4, 1};
  problem.class_items = {memory.numbers<int64_t>(1), 1, 1, 0};
  problem.image_sizes = {memory.numbers<int64_t>(2), 0, 2, 1};
  problem.crop_height = problem.crop_width = 8;
  problem.least_scale = problem.largest_scale = 1;
  problem.count = count;
  problem.boxes = memory.numbers<int64_t>(5 * count);
  problem.classes = memory.numbers<int64_t>(count);
  expect_taken([&] { hmsa::cuda::launch_draw_class_uniform_boxes(problem, nullptr); },
               [&] { return concat("draw_class_uniform_boxes ", count); });
}

void expect_crops_taken(Extent size, int count, double sigma, hmsa::CropType type, bool channels_last, bool runs) {
  Memory memory(runs);
  std::vector<hmsa::CropItem> items(static_cast<size_t>(count));
  const int32_t height = runs ? 20 : 1024, width = 2 * height;
  for (int n = 0; n < count; ++n) {
    hmsa::CropItem& item = items[static_cast<size_t>(n)];
    item = hmsa::CropItem{};
    item.number = n;
    item.image = hmsa::CropImage{memory.numbers<uint8_t>(3 * height * width),
                                 3 * width,
                                 3,
                                 1,
                                 memory.numbers<uint8_t>(height * width),
                                 width,
                                 1,
                                 height,
                                 width};
    item.y1 = height;
    item.x1 = width;
    hmsa::set_colour(item, 1.2, 0.8, 1.1, 0.1);
    hmsa::set_blur(item, sigma);
  }
  hmsa::SampleCrop problem{};
  problem.items = items.data();
  problem.count = count;
  const int64_t pixels = static_cast<int64_t>(size.height) * size.width * count;
  problem.output.images = memory.numbers<float>(3 * pixels);
  problem.output.labels = memory.numbers<uint8_t>(pixels);
  problem.output.type = type;
  problem.output.channels_last = channels_last;
  problem.output.height = size.height;
  problem.output.width = size.width;
  auto* sums = memory.numbers<unsigned long long>(hmsa::cuda::sample_crop_sums(problem));
  expect_taken([&] { hmsa::cuda::launch_sample_crop(problem, sums, nullptr); },
               [&] {
                 return concat("sample_crop ", count, "x", size.height, "x", size.width, " sigma ", sigma, " type ",
                               static_cast<int>(type), channels_last ? " channels_last" : "");
               });
}

constexpr hmsa::CropType kCropTypes[] = {hmsa::CropType::kFloat, hmsa::CropType::kHalf, hmsa::CropType::kBFloat16};

void small_labels_and_crops_run() {
  expect_labels_taken(2, 20, 30, 5, 8, true);
  expect_labels_taken(1, 20, 30, 200, 8, true);
  expect_labels_taken(1, 70, 70, 5, 70, true);  // blocks share a tile
  expect_boxes_taken(3, true);
  for (const hmsa::CropType type : kCropTypes) {
    for (const double sigma : {0.0, 1.0}) expect_crops_taken(Extent{8, 9}, 1, sigma, type, true, true);
  }
}

void labels_and_crops_are_taken() {
  for (const int32_t classes : {1, 19, 110, 111, 256, 4096}) {
    for (const int64_t tile : {1, 64, 1 << 20}) {
      expect_labels_taken(8, 1024, 2048, classes, tile, false);
      expect_labels_taken(1, 1, int64_t{1} << 33, classes, tile, false);
      expect_labels_taken(70000, 3, 5, classes, tile, false);
    }
  }
  for (const int64_t count : {1, 1000, 1 << 30}) expect_boxes_taken(count, false);
  for (const Extent size : {Extent{33, 40}, Extent{224, 224}, Extent{713, 713}, Extent{1024, 2048}}) {
    for (const int count : {1, 40}) {
      for (const hmsa::CropType type : kCropTypes) {
        for (const bool channels_last : {false, true}) {
          // Radii of every size that a blur has.
          for (int radius = 0; radius <= hmsa::kLargestRadius; ++radius) {
            expect_crops_taken(size, count, radius / 3.0, type, channels_last, false);
          }
        }
      }
    }
  }
}

template <typename Test>
void for_devices(const Test& test) {
  host_run::only_plan();
  for (const int device : kDevices) {
    cudaSetDevice(device);
    const uint64_t before = host_run::machine().launches;
    const int refused_before = refused_calls;
    test();
    std::printf("  %s: %llu launches, %d calls refused\n", host_run::device(device).name,
                static_cast<unsigned long long>(host_run::machine().launches - before), refused_calls - refused_before);
  }
  cudaSetDevice(host_run::kSmall);
  host_run::only_plan(false);
}

void predictions_are_taken_by_all_devices() { for_devices(predictions_are_taken); }
void gradients_are_taken_by_all_devices() { for_devices(gradients_are_taken); }
void other_dtypes_and_forms_are_taken_by_all_devices() { for_devices(other_dtypes_and_forms_are_taken); }
void labels_and_crops_are_taken_by_all_devices() { for_devices(labels_and_crops_are_taken); }

}  // namespace

int main() {
  RUN_TEST(small_problems_run);
  RUN_TEST(small_labels_and_crops_run);
  RUN_TEST(predictions_are_taken_by_all_devices);
  RUN_TEST(gradients_are_taken_by_all_devices);
  RUN_TEST(other_dtypes_and_forms_are_taken_by_all_devices);
  RUN_TEST(labels_and_crops_are_taken_by_all_devices);
  return testing::finish();
}
