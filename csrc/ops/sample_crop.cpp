// hmsa::_sample_crop: schema, argument checks and the call of each back end. The public op, whose dtype is a
// torch.dtype, wraps it in Python (hmsa_ext/ops/sample_crop.py).
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "core/sample_crop.h"
#include "ops/cpu/sample_crop.h"
#include "ops/tensor.h"
#if defined(HMSA_WITH_CUDA)
#include "ops/cuda/sample_crop.h"
#include "ops/cuda/stream.h"
#endif

namespace hmsa {
namespace {

constexpr const char* kName = "sample_crop";
constexpr int64_t kFarthest = int64_t(1) << 30;  // corner of a box, in pixels
constexpr double kLargestFactor = 100;

using Tensors = std::vector<Tensor>;

// The op's arguments as they came.
struct Arguments {
  const Tensors& images;              // each [H, W, 3]
  const Tensors& labels;              // each [H, W]
  const Tensor& boxes;                // [N, 5]: image, y0, x0, y1, x1
  const Tensor& flip;                 // [N]
  const Tensor& jitter;               // [N, 4]: brightness, contrast, saturation, hue
  const Sizes& size;                  // height, width
  const std::vector<double>& mean;    // [3]
  const std::vector<double>& std;     // [3]
  const std::optional<Tensor>& blur;  // [N]
  int64_t ignore_index;
  bool antialias;
  const std::string& dtype;
  bool channels_last;
};

// A small tensor on the CPU that is read here, [N] or [N, columns].
template <typename T>
class Table {
 public:
  Table(const char* name, const Tensor& tensor, ScalarType type, int64_t rows, int64_t columns,
        const char* expected_shape)
      : columns_(tensor.dim() > 1 ? tensor.stride(1) : 0) {
    HMSA_CHECK(tensor.scalar_type() == type, kName, ": ", name, " is ", dtype_name(tensor), "; expected ",
               dtype_name(type));
    const bool fits = tensor.dim() == (columns > 0 ? 2 : 1) && (rows < 0 || tensor.size(0) == rows) &&
                      (columns == 0 || tensor.size(1) == columns);
    HMSA_CHECK(fits, kName, ": ", name, " has shape ", shape_of(tensor), "; expected ", expected_shape);
    HMSA_CHECK(tensor.is_cpu(), kName, ": ", name, " is on ", device_name(tensor),
               "; expected a CPU tensor wherever the images are: reading it elsewhere would wait for that device");
    data_ = static_cast<const T*>(tensor.const_data_ptr());
    rows_ = tensor.stride(0);
  }
  T at(int64_t row, int64_t column = 0) const { return data_[row * rows_ + column * columns_]; }

 private:
  const T* data_ = nullptr;
  int64_t rows_ = 0;
  int64_t columns_;
};

void check_images(const Arguments& a) {
  HMSA_CHECK(a.images.size() == a.labels.size(), kName, ": images has ", a.images.size(), " entries, labels ",
             a.labels.size(), "; expected a label map for each image");
  for (size_t i = 0; i < a.images.size(); ++i) {
    const Tensor& image = a.images[i];
    const Tensor& labels = a.labels[i];
    HMSA_CHECK(image.scalar_type() == ScalarType::Byte, kName, ": images[", i, "] is ", dtype_name(image),
               "; expected uint8");
    HMSA_CHECK(image.dim() == 3 && image.size(2) == 3 && image.size(0) >= 1 && image.size(1) >= 1, kName, ": images[",
               i, "] has shape ", shape_of(image), "; expected [H, W, 3]");
    HMSA_CHECK(image.size(0) < kMaxSide && image.size(1) < kMaxSide, kName, ": images[", i, "] has shape ",
               shape_of(image), "; expected sides below ", kMaxSide);
    HMSA_CHECK(labels.scalar_type() == ScalarType::Byte, kName, ": labels[", i, "] is ", dtype_name(labels),
               "; expected uint8");
    HMSA_CHECK(labels.dim() == 2 && labels.size(0) == image.size(0) && labels.size(1) == image.size(1), kName,
               ": labels[", i, "] has shape ", shape_of(labels), "; expected [", image.size(0), ", ", image.size(1),
               "] as images[", i, "] has it");
    const Tensor& first = a.images[0];
    HMSA_CHECK(image.device() == first.device(), kName, ": images[", i, "] is on ", device_name(image),
               ", images[0] on ", device_name(first), "; expected one device");
    HMSA_CHECK(labels.device() == first.device(), kName, ": labels[", i, "] is on ", device_name(labels),
               ", images[0] on ", device_name(first), "; expected one device");
  }
}

std::string list_of(const std::vector<double>& values) {
  std::string text = "[";
  for (const double value : values) text += concat(text.size() > 1 ? ", " : "", value);
  return text + "]";
}

// Everything of the output except its memory.
CropOutput checked_output(const Arguments& a) {
  HMSA_CHECK(a.size.size() == 2, kName, ": size has ", a.size.size(), " entries; expected (height, width)");
  for (const int64_t side : a.size) {
    HMSA_CHECK(side >= 1 && side < kMaxSide, kName, ": size is (", a.size[0], ", ", a.size[1],
               "); expected sides from 1 to below ", kMaxSide);
  }
  HMSA_CHECK(a.ignore_index >= 0 && a.ignore_index <= 255, kName, ": ignore_index is ", a.ignore_index,
             "; expected 0 to 255, as labels are uint8");
  CropOutput output{};
  if (a.dtype == "float32") {
    output.type = CropType::kFloat;
  } else if (a.dtype == "float16") {
    output.type = CropType::kHalf;
  } else {
    HMSA_CHECK(a.dtype == "bfloat16", kName, ": dtype is ", a.dtype, "; expected float32, float16 or bfloat16");
    output.type = CropType::kBFloat16;
  }
  output.channels_last = a.channels_last;
  output.antialias = a.antialias;
  output.ignore_index = static_cast<uint8_t>(a.ignore_index);
  output.height = static_cast<int32_t>(a.size[0]);
  output.width = static_cast<int32_t>(a.size[1]);
  HMSA_CHECK(a.mean.size() == 3, kName, ": mean has ", a.mean.size(), " entries; expected one for each of 3 channels");
  HMSA_CHECK(a.std.size() == 3, kName, ": std has ", a.std.size(), " entries; expected one for each of 3 channels");
  for (size_t c = 0; c < 3; ++c) {
    HMSA_CHECK(a.mean[c] >= 0 && a.mean[c] <= 1, kName, ": mean is ", list_of(a.mean),
               "; expected numbers from 0 to 1, of values from 0 to 1");
    HMSA_CHECK(a.std[c] > 0 && std::isfinite(a.std[c]), kName, ": std is ", list_of(a.std),
               "; expected positive numbers, of values from 0 to 1");
    output.fill[c] = static_cast<float>(255 * a.mean[c]);
    output.scale[c] = static_cast<float>(1 / (255 * a.std[c]));
    output.shift[c] = static_cast<float>(-a.mean[c] / a.std[c]);
  }
  return output;
}

CropImage view(const Tensor& image, const Tensor& labels) {
  return CropImage{static_cast<const uint8_t*>(image.const_data_ptr()),
                   image.stride(0),
                   image.stride(1),
                   image.stride(2),
                   static_cast<const uint8_t*>(labels.const_data_ptr()),
                   labels.stride(0),
                   labels.stride(1),
                   static_cast<int32_t>(image.size(0)),
                   static_cast<int32_t>(image.size(1))};
}

void set_box(CropItem& item, const Arguments& a, const Table<int64_t>& boxes, int64_t n) {
  const int64_t image = boxes.at(n, 0);
  const int64_t y0 = boxes.at(n, 1), x0 = boxes.at(n, 2), y1 = boxes.at(n, 3), x1 = boxes.at(n, 4);
  HMSA_CHECK(image >= 0 && image < static_cast<int64_t>(a.images.size()), kName, ": boxes[", n, "] is of image ", image,
             "; expected the index of one of ", a.images.size(), " images");
  const auto near = [](int64_t corner) { return corner >= -kFarthest && corner <= kFarthest; };
  const bool fits =
      near(y0) && near(x0) && near(y1) && near(x1) && y0 < y1 && x0 < x1 && y1 - y0 < kMaxSide && x1 - x0 < kMaxSide;
  HMSA_CHECK(fits, kName, ": boxes[", n, "] is from (", y0, ", ", x0, ") to (", y1, ", ", x1,
             "); expected y0 < y1 and x0 < x1, sides below ", kMaxSide, " and corners within ", kFarthest);
  item.image = view(a.images[static_cast<size_t>(image)], a.labels[static_cast<size_t>(image)]);
  item.y0 = static_cast<int32_t>(y0);
  item.x0 = static_cast<int32_t>(x0);
  item.y1 = static_cast<int32_t>(y1);
  item.x1 = static_cast<int32_t>(x1);
}

void set_jitter(CropItem& item, const Table<float>& jitter, int64_t n) {
  static constexpr const char* kParts[] = {"brightness", "contrast", "saturation"};
  for (int64_t k = 0; k < 3; ++k) {
    const float factor = jitter.at(n, k);
    HMSA_CHECK(factor >= 0 && factor <= kLargestFactor, kName, ": jitter[", n, ", ", k, "] (", kParts[k], ") is ",
               factor, "; expected a factor from 0 to ", kLargestFactor);
  }
  const float turn = jitter.at(n, 3);
  HMSA_CHECK(std::abs(turn) <= kLargestFactor, kName, ": jitter[", n, ", 3] (hue) is ", turn,
             "; expected whole turns from ", -kLargestFactor, " to ", kLargestFactor);
  set_colour(item, jitter.at(n, 0), jitter.at(n, 1), jitter.at(n, 2), turn);
}

std::vector<CropItem> checked_items(const Arguments& a) {
  const Table<int64_t> boxes("boxes", a.boxes, ScalarType::Long, -1, 5, "[N, 5]: image, y0, x0, y1, x1");
  const int64_t count = a.boxes.size(0);
  const std::string of_each = concat("[", count, "], one for each of boxes");
  const Table<bool> flip("flip", a.flip, ScalarType::Bool, count, 0, of_each.c_str());
  const std::string four = concat("[", count, ", 4], for each of boxes brightness, contrast, saturation and hue");
  const Table<float> jitter("jitter", a.jitter, ScalarType::Float, count, 4, four.c_str());
  std::optional<Table<float>> blur;
  if (a.blur.has_value()) blur.emplace("blur", *a.blur, ScalarType::Float, count, 0, of_each.c_str());
  std::vector<CropItem> items(static_cast<size_t>(count));
  for (int64_t n = 0; n < count; ++n) {
    CropItem& item = items[static_cast<size_t>(n)];
    item = CropItem{};
    item.number = n;
    item.flip = flip.at(n);
    set_box(item, a, boxes, n);
    set_jitter(item, jitter, n);
    const float sigma = blur ? blur->at(n) : 0.0f;
    HMSA_CHECK(sigma >= 0 && sigma <= kLargestSigma, kName, ": blur[", n, "] is ", sigma,
               "; expected a sigma from 0 (none) to ", kLargestSigma, " pixels of the crop");
    set_blur(item, sigma);
  }
  return items;
}

// The back ends. `like` is a tensor on the device of the problem.
struct OnCpu {
  static void run(const SampleCrop& problem, const Tensor&) { cpu::sample_crop(problem, torch_threads()); }
};

#if defined(HMSA_WITH_CUDA)
struct OnCuda {
  static void run(const SampleCrop& problem, const Tensor& like) {
    const CudaScope scope(like);
    Tensor sums = empty_of(like, {cuda::sample_crop_sums(problem)}, ScalarType::Long);
    cuda::launch_sample_crop(problem, static_cast<unsigned long long*>(sums.mutable_data_ptr()), scope.stream());
  }
};
#endif

template <typename BackEnd>
std::tuple<Tensor, Tensor> sample_crop(const Tensors& image_list, const Tensors& label_list, const Tensor& boxes,
                                       const Tensor& flip, const Tensor& jitter, const Sizes& size,
                                       const std::vector<double>& mean, const std::vector<double>& std,
                                       const std::optional<Tensor>& blur, int64_t ignore_index, bool antialias,
                                       const std::string& dtype, bool channels_last) {
  const Arguments a{image_list, label_list, boxes,        flip,      jitter, size,         mean,
                    std,        blur,       ignore_index, antialias, dtype,  channels_last};
  check_images(a);
  CropOutput output = checked_output(a);
  const std::vector<CropItem> items = checked_items(a);
  const Tensor& like = a.images.empty() ? a.boxes : a.images[0];
  const int64_t count = static_cast<int64_t>(items.size());
  const ScalarType type = output.type == CropType::kFloat  ? ScalarType::Float
                          : output.type == CropType::kHalf ? ScalarType::Half
                                                           : ScalarType::BFloat16;
  Tensor images = empty_of(like, {count, 3, a.size[0], a.size[1]}, type, a.channels_last);
  Tensor labels = empty_of(like, {count, a.size[0], a.size[1]}, ScalarType::Byte);
  if (count == 0) return {images, labels};
  output.images = images.mutable_data_ptr();
  output.labels = static_cast<uint8_t*>(labels.mutable_data_ptr());
  BackEnd::run(SampleCrop{items.data(), count, output}, like);
  return {images, labels};
}

}  // namespace
}  // namespace hmsa

STABLE_TORCH_LIBRARY_FRAGMENT(hmsa, m) {
  m.def(
      "_sample_crop(Tensor[] images, Tensor[] labels, Tensor boxes, Tensor flip, Tensor jitter, SymInt[2] size, "
      "float[] mean, float[] std, Tensor? blur, int ignore_index, bool antialias, str dtype, bool channels_last) "
      "-> (Tensor images, Tensor labels)");
}

STABLE_TORCH_LIBRARY_IMPL(hmsa, CPU, m) { m.impl("_sample_crop", TORCH_BOX(&hmsa::sample_crop<hmsa::OnCpu>)); }

#if defined(HMSA_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(hmsa, CUDA, m) { m.impl("_sample_crop", TORCH_BOX(&hmsa::sample_crop<hmsa::OnCuda>)); }
#endif
