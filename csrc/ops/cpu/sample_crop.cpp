// Crops on the CPU, row by row: the rows of the image that an output row reads are blended, still with their channels side
// by side, into one row per channel; its columns are resampled, its colours changed, and it is written. With a blur the
// last rows wait in a ring. All that an output row needs fits the L1 and L2 caches.
#include "ops/cpu/sample_crop.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "core/integers.h"
#include "ops/cpu/simd/rows.h"
#include "ops/cpu/simd/sample_crop_rows.h"
#include "ops/cpu/workspace.h"

namespace hmsa {
namespace cpu {
namespace {

constexpr int kChannels = 3;
constexpr int64_t kBandRows = 32;

using Sums = std::vector<unsigned long long>;  // [items][3]

int64_t bands_of(int64_t rows) { return divide_up(rows, kBandRows); }

// Rows of an image with the channels of their pixels side by side: in place, or copied a row at a time.
class PackedRows {
 public:
  // The pixels from column `lo` on, `count` of them.
  void reset(const CropImage& image, int32_t lo, int32_t count) {
    image_ = &image;
    lo_ = lo;
    count_ = count;
  }
  // Rows from `first` on; valid until the next call.
  const uint8_t* const* get(int32_t first, int32_t rows) {
    const bool in_place = image_->channel == 1 && (image_->column == kChannels || count_ == 1);
    const int64_t bytes = kChannels * static_cast<int64_t>(count_);
    if (!in_place) copies_.resize(static_cast<size_t>(rows * bytes));
    rows_.clear();
    for (int32_t k = 0; k < rows; ++k) {
      const uint8_t* row = image_->pixels + (first + k) * image_->row + lo_ * image_->column;
      rows_.push_back(in_place ? row : pack(copies_.data() + k * bytes, row));
    }
    return rows_.data();
  }

 private:
  const uint8_t* pack(uint8_t* to, const uint8_t* from) const {
    for (int c = 0; c < kChannels; ++c) {
      const uint8_t* channel = from + c * image_->channel;
      for (int64_t x = 0; x < count_; ++x) to[kChannels * x + c] = channel[x * image_->column];
    }
    return to;
  }

  const CropImage* image_ = nullptr;
  int32_t lo_ = 0;
  int32_t count_ = 0;
  std::vector<uint8_t> copies_;
  std::vector<const uint8_t*> rows_;
};

// How the columns of a crop are read, as tables.
class ColumnTable {
 public:
  // Pixels of the image that are read; empty where none are.
  Range range() const { return range_; }
  CropColumns view() const {
    return CropColumns{taps_,          vectors_, base_.empty() ? nullptr : base_.data(), lane_.data(),
                       weight_.data(), pitch_,   margin_ ? inside_.data() : nullptr};
  }
  // Some outputs read beyond the image.
  bool margin() const { return margin_; }
  // Every output is the pixel of its own place.
  bool copies() const { return copies_; }
  int taps() const { return taps_; }
  // Label of each output: the column of the image, or -1.
  const int32_t* nearest() const { return nearest_.data(); }

  void reset(const CropAxis& axis, int64_t lanes) {
    const int32_t n = axis.out;
    pitch_ = round_up<int64_t>(n, kRowSlack + 1);
    std::vector<CropTaps>& taps = columns_;
    taps.clear();
    taps_ = 1;
    margin_ = false;
    range_ = Range{0, 0};
    nearest_.resize(n);
    for (int32_t x = 0; x < n; ++x) {
      taps.push_back(axis.taps(x));
      nearest_[x] = axis.nearest(x);
      const CropTaps& t = taps.back();
      taps_ = std::max(taps_, t.count);
      margin_ = margin_ || t.inside != 1.0f;
      if (t.count > 0) range_ = hull(range_, Range{t.first, t.first + t.count});
    }
    copies_ = axis.in == n && !axis.mirrored && range_.size() == n;
    if (range_.empty()) return;
    weight_.assign(static_cast<size_t>(taps_ * pitch_), 0.0f);
    inside_.assign(static_cast<size_t>(pitch_), 0.0f);
    lane_.assign(static_cast<size_t>(pitch_), 0);
    for (int32_t x = 0; x < n; ++x) {
      const CropTaps& t = taps[x];
      inside_[x] = t.inside;
      for (int32_t k = 0; k < t.count; ++k) weight_[k * pitch_ + x] = t.weight(k);
      // An output that reads nothing looks where its neighbours look.
      lane_[x] = t.count > 0 ? t.first - range_.lo : x > 0 ? lane_[x - 1] : axis.mirrored ? range_.size() - 1 : 0;
    }
    for (int64_t x = n; x < pitch_; ++x) lane_[x] = lane_[n - 1];
    group(lanes);
  }

 private:
  // Makes the lanes relative to the first source of each vector of outputs, if four vectors of sources are enough for all.
  void group(int64_t lanes) {
    base_.clear();
    vectors_ = 1;
    if (lanes == 1) return;
    for (int64_t x = 0; x < pitch_; x += lanes) {
      const auto ends = std::minmax_element(lane_.begin() + x, lane_.begin() + x + lanes);
      const int32_t spread = *ends.second - *ends.first + 1;
      vectors_ = std::max(vectors_, spread <= lanes ? 1 : spread <= 2 * lanes ? 2 : 4);
      if (spread > 4 * lanes) {
        base_.clear();
        return;
      }
      base_.push_back(*ends.first);
    }
    for (int64_t x = 0; x < pitch_; ++x) lane_[x] -= base_[x / lanes];
  }

  Range range_{0, 0};
  int taps_ = 1;
  int vectors_ = 1;
  bool margin_ = false;
  bool copies_ = false;
  int64_t pitch_ = 0;
  std::vector<CropTaps> columns_;
  std::vector<int32_t> base_, lane_, nearest_;
  std::vector<float> weight_, inside_;
};

// Makes rows of crops; one for each thread.
class Cropper {
 public:
  Cropper(const SampleCrop& problem, const Sums& sums) : output_(problem.output), items_(problem.items), sums_(sums) {}

  // Rows [begin, end) of an item.
  void make(int64_t index, int32_t begin, int32_t end) {
    start(index);
    write_labels(begin, end);
    if (item_->radius == 0) {
      for (int32_t y = begin; y < end; ++y) write_row(y);
    } else {
      write_blurred(begin, end);
    }
  }

 private:
  void start(int64_t index) {
    if (item_ == items_ + index) return;
    item_ = items_ + index;
    rows_ = output_.rows(*item_);
    table_.reset(output_.columns(*item_), ops_.lanes);
    const Range columns = table_.range();
    source_.reset(item_->image, columns.lo, columns.size());
    scratch_.rewind(Scratch<float>::Mark{0, 0});
    // Sources that are read with a weight of 0 must be finite: behind the columns, and where vectors reach further.
    source_pitch_ = Scratch<float>::pitch(columns.size() + table_.taps() + 2 * (kRowSlack + 1));
    blended_ = scratch_.zeros(kChannels * source_pitch_);
    pitch_ = Scratch<float>::pitch(output_.width + kRowSlack);
    resampled_ = scratch_.take(kChannels * pitch_);
    finished_ = scratch_.take(kChannels * pitch_);
    pixels_ = scratch_.take(kChannels * output_.width);
    set_colour();
    if (item_->radius == 0) return;
    border_pitch_ = Scratch<float>::pitch(output_.width + 2 * kBorder + kRowSlack);
    bordered_ = scratch_.zeros(kChannels * border_pitch_);
    ring_rows_ = std::min(2 * item_->radius + 1, output_.height);
    ring_ = scratch_.take(ring_rows_ * kChannels * pitch_);
  }

  void set_colour() {
    const Range rows = rows_.inside(), columns = output_.columns(*item_).inside();
    const int64_t pixels = static_cast<int64_t>(rows.size()) * columns.size();
    const int64_t index = item_ - items_;
    const float luma = item_->needs_mean() ? mean_luma(sums_.data() + kChannels * index, pixels) : 0.0f;
    const CropOffsets offsets = crop_offsets(*item_, output_, luma);
    colour_.recoloured = item_->recoloured;
    for (int c = 0; c < kChannels; ++c) {
      for (int k = 0; k < kChannels; ++k) colour_.matrix[c][k] = item_->matrix[c][k];
      colour_.inside[c] = offsets.inside[c];
      colour_.constant[c] = offsets.fill[c];
      // A blur is of values that are not normalised yet.
      colour_.scale[c] = item_->radius == 0 ? output_.scale[c] : 1.0f;
      colour_.shift[c] = item_->radius == 0 ? output_.shift[c] : 0.0f;
    }
  }

  // Row y of the crop before the blur, as three rows.
  void make_row(int32_t y, float* const* to) {
    const CropTaps taps = rows_.taps(y);
    const int32_t pixels = table_.range().size();
    const int64_t n = output_.width;
    if (taps.count == 0 || pixels == 0) {
      for (int c = 0; c < kChannels; ++c) {
        std::fill(to[c], to[c] + n, colour_.scale[c] * colour_.constant[c] + colour_.shift[c]);
      }
      return;
    }
    weights_.clear();
    for (int32_t k = 0; k < taps.count; ++k) weights_.push_back(taps.weight(k));
    ops_.blend_rows(blended_, source_pitch_, source_.get(taps.first, taps.count), weights_.data(), taps.count, pixels);
    if (table_.copies()) {
      ops_.recolour(to, blended_, source_pitch_, colour_, nullptr, taps.inside, n);
      return;
    }
    const CropColumns columns = table_.view();
    ops_.resample(resampled_, pitch_, blended_, source_pitch_, columns, n);
    ops_.recolour(to, resampled_, pitch_, colour_, columns.inside, taps.inside, n);
  }

  void write_row(int32_t y) {
    Result result = result_row(y);
    make_row(y, result.rows);
    finish(result, y);
  }

  // ---- blur: columns first, a row at a time, then over the rows of the ring -----------------------------------------

  static constexpr int64_t kBorder = kRowSlack + 1;  // a multiple of every vector

  void write_blurred(int32_t begin, int32_t end) {
    const int32_t radius = item_->radius, height = output_.height;
    int32_t made = std::max(begin - radius, 0);
    std::vector<const float*> window(static_cast<size_t>(2 * radius + 1));
    for (int32_t y = begin; y < end; ++y) {
      for (; made < std::min(y + radius + 1, height); ++made) add_to_ring(made);
      Result result = result_row(y);
      for (int c = 0; c < kChannels; ++c) {
        for (int32_t k = -radius; k <= radius; ++k) {
          window[static_cast<size_t>(radius + k)] = ring_row(reflect(y + k, height), c);
        }
        ops_.blur_rows(result.rows[c], window.data(), item_->blur, radius, output_.scale[c], output_.shift[c],
                       output_.width);
      }
      finish(result, y);
    }
  }

  float* ring_row(int32_t y, int c) const { return ring_ + ((y % ring_rows_) * kChannels + c) * pitch_; }

  void add_to_ring(int32_t y) {
    float* middle[kChannels];
    for (int c = 0; c < kChannels; ++c) middle[c] = bordered_ + c * border_pitch_ + kBorder;
    make_row(y, middle);
    const int32_t n = output_.width;
    for (int c = 0; c < kChannels; ++c) {
      for (int32_t k = 1; k <= item_->radius; ++k) {
        middle[c][-k] = middle[c][reflect(-k, n)];
        middle[c][n - 1 + k] = middle[c][reflect(n - 1 + k, n)];
      }
      ops_.blur_columns(ring_row(y, c), middle[c], item_->blur, item_->radius, n);
    }
  }

  // ---- results ------------------------------------------------------------------------------------------------------

  // Where a finished row is made: in its place if that is three rows of floats, else in scratch.
  struct Result {
    float* rows[kChannels];
  };

  bool in_place() const { return output_.type == CropType::kFloat && !output_.channels_last; }

  // Elements in front of row y, of channel 0 where channels are planes.
  int64_t offset(int32_t y) const {
    return item_->number * kChannels * output_.height * output_.width +
           static_cast<int64_t>(y) * output_.width * (output_.channels_last ? kChannels : 1);
  }

  Result result_row(int32_t y) const {
    Result result;
    const int64_t plane = static_cast<int64_t>(output_.height) * output_.width;
    for (int c = 0; c < kChannels; ++c) {
      result.rows[c] =
          in_place() ? static_cast<float*>(output_.images) + offset(y) + c * plane : finished_ + c * pitch_;
    }
    return result;
  }

  void finish(const Result& result, int32_t y) {
    if (in_place()) return;
    switch (output_.type) {
      case CropType::kFloat:
        ops_.join_channels(static_cast<float*>(output_.images) + offset(y), result.rows, output_.width);
        return;
      case CropType::kHalf:
        return store(result, y, static_cast<Half*>(output_.images), row_ops<float>().store_half);
      case CropType::kBFloat16:
        return store(result, y, static_cast<BFloat16*>(output_.images), row_ops<float>().store_bfloat16);
    }
  }

  template <typename S>
  void store(const Result& result, int32_t y, S* images, StoreRow<S, float> store_row) {
    S* to = images + offset(y);
    const int64_t n = output_.width;
    if (output_.channels_last) {
      ops_.join_channels(pixels_, result.rows, n);
      store_row(to, 1, pixels_, kChannels * n);
      return;
    }
    for (int c = 0; c < kChannels; ++c) store_row(to + c * output_.height * n, 1, result.rows[c], n);
  }

  void write_labels(int32_t begin, int32_t end) {
    const CropImage& image = item_->image;
    const int32_t* column = table_.nearest();
    const int32_t n = output_.width;
    const bool copies = table_.copies() && image.label_column == 1;
    const uint8_t* before = nullptr;  // the row of the image that the last row was made from
    const uint8_t* made = nullptr;    // that row
    for (int32_t y = begin; y < end; ++y) {
      uint8_t* to = output_.labels + (item_->number * output_.height + y) * n;
      const int32_t row = rows_.nearest(y);
      if (row < 0) {
        std::memset(to, output_.ignore_index, static_cast<size_t>(n));
        continue;
      }
      const uint8_t* from = image.labels + row * image.label_row;
      if (from == before) {
        std::memcpy(to, made, static_cast<size_t>(n));
      } else if (copies) {
        std::memcpy(to, from + column[0], static_cast<size_t>(n));
      } else if (!table_.margin()) {
        for (int32_t x = 0; x < n; ++x) to[x] = from[column[x] * image.label_column];
      } else {
        for (int32_t x = 0; x < n; ++x) {
          to[x] = column[x] < 0 ? output_.ignore_index : from[column[x] * image.label_column];
        }
      }
      before = from;
      made = to;
    }
  }

  const CropOutput& output_;
  const CropItem* items_;
  const Sums& sums_;
  const CropOps& ops_ = crop_ops();

  const CropItem* item_ = nullptr;
  CropAxis rows_{};
  ColumnTable table_;
  PackedRows source_;
  CropRecolour colour_{};
  std::vector<float> weights_;

  Scratch<float> scratch_;
  int64_t source_pitch_ = 0, pitch_ = 0, border_pitch_ = 0;
  float* blended_ = nullptr;    // [3] rows of the columns that are read
  float* resampled_ = nullptr;  // [3] rows of the crop
  float* finished_ = nullptr;   // likewise
  float* pixels_ = nullptr;     // one row, channels side by side
  float* bordered_ = nullptr;   // [3] rows with a border on both sides
  float* ring_ = nullptr;       // [ring_rows_][3] rows, blurred along the columns
  int32_t ring_rows_ = 0;
};

// Sums of the channels of the pixels inside the boxes, for the items that need their mean.
Sums channel_sums(const SampleCrop& problem, const ParallelFor& parallel_for) {
  Sums sums(static_cast<size_t>(kChannels * problem.count), 0);
  struct Part {
    int64_t item;
    int32_t begin, end;  // rows of the image
    Range columns;
  };
  std::vector<Part> parts;
  for (int64_t i = 0; i < problem.count; ++i) {
    const CropItem& item = problem.items[i];
    if (!item.needs_mean()) continue;
    const Range rows = problem.output.rows(item).inside(), columns = problem.output.columns(item).inside();
    if (columns.empty()) continue;
    for (int32_t y = rows.lo; y < rows.hi; y += kBandRows) {
      parts.push_back(Part{i, y, std::min<int32_t>(y + kBandRows, rows.hi), columns});
    }
  }
  if (parts.empty()) return sums;
  const CropOps& ops = crop_ops();
  std::mutex mutex;
  parallel_for.run(static_cast<int64_t>(parts.size()), [&](int64_t begin, int64_t end) {
    PackedRows source;
    for (int64_t p = begin; p < end; ++p) {
      const Part& part = parts[static_cast<size_t>(p)];
      uint64_t sum[kChannels] = {};
      source.reset(problem.items[part.item].image, part.columns.lo, part.columns.size());
      for (int32_t y = part.begin; y < part.end; ++y) ops.sum_channels(sum, *source.get(y, 1), part.columns.size());
      const std::lock_guard<std::mutex> lock(mutex);
      for (int c = 0; c < kChannels; ++c) sums[static_cast<size_t>(kChannels * part.item + c)] += sum[c];
    }
  });
  return sums;
}

}  // namespace

void sample_crop(const SampleCrop& problem, const ParallelFor& parallel_for) {
  const Sums sums = channel_sums(problem, parallel_for);
  const int64_t height = problem.output.height;
  const int64_t bands = bands_of(height);
  parallel_for.run(problem.count * bands, [&](int64_t begin, int64_t end) {
    Cropper cropper(problem, sums);
    while (begin < end) {
      // All bands of an item that are this thread's, at once: a blur starts anew where rows are not its own.
      const int64_t item = begin / bands;
      const int64_t stop = std::min(end, (item + 1) * bands);
      cropper.make(item, static_cast<int32_t>((begin - item * bands) * kBandRows),
                   static_cast<int32_t>(std::min((stop - item * bands) * kBandRows, height)));
      begin = stop;
    }
  });
}

}  // namespace cpu
}  // namespace hmsa
