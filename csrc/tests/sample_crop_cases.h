// Crops for the tests of either back end: random images and boxes in memory that ends with them, and the crops again in
// doubles, written without a look at core/sample_crop.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "core/sample_crop.h"
#include "tests/testing.h"

namespace testing {

struct CropCase {
  int height, width;  // of the crops
  int count = 5;
  int tallest = 30, widest = 40;  // image
  bool antialias = false;
  bool channels_last = false;
  hmsa::CropType type = hmsa::CropType::kFloat;
  bool blur = false;
  bool recolour = true;
  int layout = 0;  // of images: 0 pixels side by side, 1 with gaps, 2 planes
};

inline std::string words(const CropCase& c) {
  return "crops " + std::to_string(c.height) + " x " + std::to_string(c.width) + " of up to " +
         std::to_string(c.tallest) + " x " + std::to_string(c.widest) + (c.antialias ? ", antialias" : "") +
         (c.channels_last ? ", channels_last" : "") + (c.blur ? ", blur" : "") + (c.recolour ? ", recolour" : "") +
         ", type " + std::to_string(static_cast<int>(c.type)) + ", layout " + std::to_string(c.layout);
}

// An image as a kernel gets it, and as numbers.
struct StoredImage {
  int height, width;
  std::vector<uint8_t> memory, labels;
  hmsa::CropImage view{};

  StoredImage(int height, int width, int layout, std::mt19937& random) : height(height), width(width) {
    view.height = height;
    view.width = width;
    view.channel = layout == 2 ? static_cast<int64_t>(height) * width : 1;
    view.column = layout == 0 ? 3 : layout == 1 ? 4 : 1;
    view.row = view.column * width + (layout == 1 ? 5 : 0);
    view.label_column = layout == 1 ? 2 : 1;
    view.label_row = view.label_column * width;
    memory.resize(static_cast<size_t>((height - 1) * view.row + (width - 1) * view.column + 2 * view.channel + 1));
    labels.resize(static_cast<size_t>((height - 1) * view.label_row + (width - 1) * view.label_column + 1));
    for (uint8_t& byte : memory) byte = static_cast<uint8_t>(random());
    for (uint8_t& byte : labels) byte = static_cast<uint8_t>(random() % 200);
    view.pixels = memory.data();
    view.labels = labels.data();
  }
  bool inside(int64_t y, int64_t x) const { return y >= 0 && y < height && x >= 0 && x < width; }
  double colour(int64_t y, int64_t x, int c) const {
    return view.pixels[y * view.row + x * view.column + c * view.channel];
  }
};

class CropSetup {
 public:
  CropSetup(const CropCase& c, uint32_t seed) : case_(c) {
    std::mt19937 random(seed);
    const auto between = [&](int low, int high) { return low + static_cast<int>(random() % unsigned(high - low + 1)); };
    const auto real = [&](double low, double high) { return low + (high - low) * (random() / 4294967296.0); };
    for (int i = 0; i < 3; ++i) {
      images_.emplace_back(i == 0 ? 1 : between(1, c.tallest), i == 0 ? 1 : between(1, c.widest), c.layout, random);
    }
    for (int n = 0; n < c.count; ++n) {
      const size_t image = random() % images_.size();
      const StoredImage& from = images_[image];
      hmsa::CropItem item{};
      item.image = from.view;
      item.number = n;
      const int tall = between(1, 2 * from.height + 2), wide = between(1, 2 * from.width + 2);
      item.y0 = between(-tall - 1, from.height + 1);
      item.x0 = between(-wide - 1, from.width + 1);
      if (n == 1) item.y0 = item.x0 = 0;
      item.y1 = n == 1 ? from.height : item.y0 + tall;
      item.x1 = n == 1 ? from.width : item.x0 + wide;
      item.flip = random() % 2 == 0;
      const std::vector<double> jitter =
          c.recolour && n % 4 != 3
              ? std::vector<double>{real(0.5, 1.5), n % 4 == 2 ? 1.0 : real(0.5, 1.5), real(0.0, 1.5), real(-0.5, 0.5)}
              : std::vector<double>{1, 1, 1, 0};
      hmsa::set_colour(item, jitter[0], jitter[1], jitter[2], jitter[3]);
      const double sigma = c.blur && n % 3 != 2 ? real(0.1, 4.0) : 0.0;
      hmsa::set_blur(item, sigma);
      items.push_back(item);
      image_of_.push_back(image);
      jitter_.push_back(jitter);
      sigma_.push_back(sigma);
    }
  }

  // What kernel(problem) makes against the crops in doubles.
  void expect(const std::function<void(const hmsa::SampleCrop&)>& kernel, double tolerance) const {
    const size_t pixels = static_cast<size_t>(case_.height) * static_cast<size_t>(case_.width);
    const size_t count = static_cast<size_t>(case_.count);
    const size_t bytes = case_.type == hmsa::CropType::kFloat ? 4 : 2;
    std::vector<uint8_t> memory(count * 3 * pixels * bytes, 0xff);
    std::vector<uint8_t> labels(count * pixels, 0xee);
    hmsa::SampleCrop problem{};
    problem.items = items.data();
    problem.count = case_.count;
    problem.output.images = memory.data();
    problem.output.labels = labels.data();
    problem.output.type = case_.type;
    problem.output.channels_last = case_.channels_last;
    problem.output.antialias = case_.antialias;
    problem.output.ignore_index = 255;
    problem.output.height = case_.height;
    problem.output.width = case_.width;
    for (int c = 0; c < 3; ++c) {
      problem.output.fill[c] = static_cast<float>(255 * kMean[c]);
      problem.output.scale[c] = static_cast<float>(1 / (255 * kStd[c]));
      problem.output.shift[c] = static_cast<float>(-kMean[c] / kStd[c]);
    }
    kernel(problem);
    for (size_t n = 0; n < count; ++n) {
      std::vector<uint8_t> wanted_labels;
      const std::vector<double> wanted = crop(n, wanted_labels);
      double worst = 0;
      for (size_t k = 0; k < 3 * pixels; ++k) {
        const size_t c = k / pixels, p = k % pixels;
        const size_t at = n * 3 * pixels + (case_.channels_last ? 3 * p + c : k);
        // Rounding to half precision is half an ulp of what is stored.
        const double ulp = case_.type == hmsa::CropType::kFloat  ? 0.0
                           : case_.type == hmsa::CropType::kHalf ? 0x1p-11
                                                                 : 0x1p-8;
        const double error = std::fabs(number(memory, at) - wanted[k]) - ulp * std::fabs(wanted[k]);
        worst = error > worst || std::isnan(error) ? error : worst;
      }
      EXPECT(worst <= tolerance, words(case_), ", item ", n, " is wrong by ", worst);
      size_t wrong = 0;
      for (size_t p = 0; p < pixels; ++p) wrong += labels[n * pixels + p] != wanted_labels[p];
      EXPECT(wrong == 0, words(case_), ", item ", n, ": ", wrong, " labels are wrong");
    }
  }

  std::vector<hmsa::CropItem> items;

 private:
  static constexpr double kMean[3] = {0.485, 0.456, 0.406};
  static constexpr double kStd[3] = {0.229, 0.224, 0.225};

  double number(const std::vector<uint8_t>& memory, size_t at) const {
    if (case_.type == hmsa::CropType::kFloat) return reinterpret_cast<const float*>(memory.data())[at];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(memory.data())[at];
    return case_.type == hmsa::CropType::kHalf ? hmsa::to_float(hmsa::Half{bits})
                                               : hmsa::to_float(hmsa::BFloat16{bits});
  }

  // Weights of the `in` pixels of a box in output o of `out`.
  std::vector<double> weights(int in, int out, int o) const {
    std::vector<double> result(static_cast<size_t>(in));
    const double ratio = static_cast<double>(in) / out;
    if (case_.antialias && ratio > 1) {
      double sum = 0;
      for (int j = 0; j < in; ++j) {
        const double distance = std::fabs(j + 0.5 - (o + 0.5) * ratio) / ratio;
        sum += result[static_cast<size_t>(j)] = distance < 1 ? 1 - distance : 0;
      }
      for (double& w : result) w /= sum;
      return result;
    }
    const double at = std::fmax((o + 0.5) * ratio - 0.5, 0.0);
    const int first = std::min(static_cast<int>(at), in - 1), second = std::min(first + 1, in - 1);
    result[static_cast<size_t>(first)] += 1 - (at - first);
    result[static_cast<size_t>(second)] += at - first;
    return result;
  }

  // Item n as [3, height, width], and its labels.
  std::vector<double> crop(size_t n, std::vector<uint8_t>& labels) const {
    const hmsa::CropItem& item = items[n];
    const StoredImage& image = images_[image_of_[n]];
    const int tall = item.y1 - item.y0, wide = item.x1 - item.x0;
    const int height = case_.height, width = case_.width;
    double mean[3] = {}, counted = 0;
    for (int y = item.y0; y < item.y1; ++y) {
      for (int x = item.x0; x < item.x1; ++x) {
        if (!image.inside(y, x)) continue;
        ++counted;
        for (int c = 0; c < 3; ++c) mean[c] += image.colour(y, x, c);
      }
    }
    const double luma = counted > 0 ? luma_of(mean[0], mean[1], mean[2]) / counted : 0.0;
    std::vector<double> result(static_cast<size_t>(3 * height * width));
    labels.assign(static_cast<size_t>(height * width), 0);
    for (int y = 0; y < height; ++y) {
      const std::vector<double> down = weights(tall, height, y);
      for (int x = 0; x < width; ++x) {
        const int o = item.flip ? width - 1 - x : x;
        const std::vector<double> across = weights(wide, width, o);
        double v[3] = {}, share = 0;
        for (int j = 0; j < tall; ++j) {
          for (int i = 0; i < wide && down[static_cast<size_t>(j)] > 0; ++i) {
            const double w = down[static_cast<size_t>(j)] * across[static_cast<size_t>(i)];
            if (w == 0 || !image.inside(item.y0 + j, item.x0 + i)) continue;
            share += w;
            for (int c = 0; c < 3; ++c) v[c] += w * image.colour(item.y0 + j, item.x0 + i, c);
          }
        }
        change(v, share, luma, n);
        for (int c = 0; c < 3; ++c) {
          const double value = v[c] + (1 - share) * 255 * kMean[c];
          result[at(c, y, x)] = jitter_[n] == kNothing ? value : std::fmin(std::fmax(value, 0.0), 255.0);
        }
        const int row = item.y0 + static_cast<int>(std::floor((y + 0.5) * tall / height));
        const int column = item.x0 + static_cast<int>(std::floor((o + 0.5) * wide / width));
        labels[static_cast<size_t>(y * width + x)] =
            image.inside(row, column) ? image.view.labels[row * image.view.label_row + column * image.view.label_column]
                                      : uint8_t(255);
      }
    }
    if (sigma_[n] > 0) blur(result, sigma_[n]);
    for (int c = 0; c < 3; ++c) {
      for (int p = 0; p < height * width; ++p) {
        double& value = result[static_cast<size_t>(c * height * width + p)];
        value = (value / 255 - kMean[c]) / kStd[c];
      }
    }
    return result;
  }

  static double luma_of(double r, double g, double b) { return 0.299 * r + 0.587 * g + 0.114 * b; }

  // One change after the other; `share` of the pixel is there to be changed.
  void change(double* v, double share, double luma, size_t n) const {
    if (jitter_[n] == kNothing) return;
    const double brightness = jitter_[n][0], contrast = jitter_[n][1], saturation = jitter_[n][2], turn = jitter_[n][3];
    for (int c = 0; c < 3; ++c) v[c] *= brightness;
    for (int c = 0; c < 3; ++c) v[c] = contrast * v[c] + (1 - contrast) * brightness * luma * share;
    const double grey = luma_of(v[0], v[1], v[2]);
    for (int c = 0; c < 3; ++c) v[c] = saturation * v[c] + (1 - saturation) * grey;
    // Hue: the two chroma coordinates turn, and the colour is what has these coordinates and the same luma.
    const double y = luma_of(v[0], v[1], v[2]);
    const double i = 0.5959 * v[0] - 0.2746 * v[1] - 0.3213 * v[2], q = 0.2115 * v[0] - 0.5227 * v[1] + 0.3112 * v[2];
    const double angle = 2 * std::acos(-1.0) * turn;
    double rows[3][4] = {{0.299, 0.587, 0.114, y},
                         {0.5959, -0.2746, -0.3213, std::cos(angle) * i - std::sin(angle) * q},
                         {0.2115, -0.5227, 0.3112, std::sin(angle) * i + std::cos(angle) * q}};
    for (int k = 0; k < 3; ++k) {
      for (int r = 0; r < 3; ++r) {
        if (r == k) continue;
        const double factor = rows[r][k] / rows[k][k];
        for (int e = 0; e < 4; ++e) rows[r][e] -= factor * rows[k][e];
      }
    }
    for (int k = 0; k < 3; ++k) v[k] = rows[k][3] / rows[k][k];
  }

  void blur(std::vector<double>& image, double sigma) const {
    const int radius = static_cast<int>(std::ceil(3 * sigma));
    double total = 0;
    for (int k = -radius; k <= radius; ++k) total += std::exp(-k * k / (2 * sigma * sigma));
    const auto mirrored = [](int p, int length) {
      while (length > 1 && (p < 0 || p >= length)) p = p < 0 ? -p : 2 * (length - 1) - p;
      return length > 1 ? p : 0;
    };
    for (const bool rows : {false, true}) {
      const std::vector<double> from = image;
      for (int c = 0; c < 3; ++c) {
        for (int y = 0; y < case_.height; ++y) {
          for (int x = 0; x < case_.width; ++x) {
            double sum = 0;
            for (int k = -radius; k <= radius; ++k) {
              const int y1 = rows ? mirrored(y + k, case_.height) : y, x1 = rows ? x : mirrored(x + k, case_.width);
              sum += std::exp(-k * k / (2 * sigma * sigma)) * from[at(c, y1, x1)];
            }
            image[at(c, y, x)] = sum / total;
          }
        }
      }
    }
  }

  size_t at(int c, int y, int x) const { return static_cast<size_t>((c * case_.height + y) * case_.width + x); }

  const std::vector<double> kNothing{1, 1, 1, 0};
  CropCase case_;
  std::vector<StoredImage> images_;
  std::vector<size_t> image_of_;
  std::vector<std::vector<double>> jitter_;
  std::vector<double> sigma_;
};

// float32 on 0..255 has half an ulp of 7.6e-6; a few dozen roundings, divided by 255 * std.
constexpr double kCropTolerance = 4e-6;

}  // namespace testing
