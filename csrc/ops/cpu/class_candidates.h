// Which classes can be the label of a pixel, block by block: the others need not be fused.
//
// With attention of one channel a fused logit is a sum over the elements of the heads that the pixel reads,
// P_c = sum_e w_e z_c(e), with the same weights for all classes. Attention in [0, 1] makes them weights of a mean: taps of
// a bilinear resize are not negative and add up to 1; at a scale s >= 1 the weights A and 1 - A do so as well; and at
// s < 1, in R(A L) + (1 - R A) P, the taps of R times A add up to R A. So where class d exceeds class c by more than m at
// every element that a block reads, P_d exceeds P_c by more than m at every pixel of the block, and c is no label there.
// This says more than a comparison with the largest logit of each element: the class that exceeds c has to be the same
// one everywhere.
//
// Rounding: all classes go through the same operations with the same rounded weights. On the way of an element to P lie
// at most 32 roundings for each scale, each of which changes the element's share by a factor within 1 +- u, with
// u = 2^-24 for float. A rounded 1 - R A may be negative by some u. So the computed P_d - P_c differs from a mean of
// z_d - z_c by less than 2 * 64 u per scale times the largest |logit| of the block. The margin m is four times as
// large, and a normal number more, for products that underflow. Classes that are nearer than that stay, so ties and
// their order are those of all classes.
//
// All classes stay where this does not hold: attention for each class, attention outside [0, 1] or NaN, logits that are
// NaN, infinite or so large that a sum could overflow.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "core/problem.h"
#include "ops/cpu/simd/rows.h"
#include "ops/cpu/simd/softmax.h"
#include "ops/cpu/workspace.h"

namespace hmsa {
namespace cpu {

template <typename S, typename T>
class ClassCandidates {
 public:
  // Candidates are looked for in blocks of so many rows and columns of the output.
  static constexpr int32_t kRows = 16;
  static constexpr int32_t kColumns = 64;

  ClassCandidates(const ChainInputs<S>& inputs, int views)
      : inputs_(inputs),
        views_(views),
        ops_(softmax_ops<T>()),
        rows_(row_ops<T>()),
        all_(static_cast<size_t>(inputs.classes)) {
    std::iota(all_.begin(), all_.end(), 0);
  }

  // Looks at a tile of the labels of image b. The second view is image b + inputs.batch, and reads the columns opposite.
  void find(Scratch<T>& scratch, int64_t b, const Tile& tile) {
    const auto mark = scratch.mark();
    tile_ = tile;
    bands_ = divide_up(tile.rows.size(), kRows);
    stripes_ = divide_up(tile.columns.size(), kColumns);
    blocks_.resize(static_cast<size_t>(bands_ * stripes_));
    bool pays = begin(scratch, b);
    for (int32_t band = 0; band < bands_; ++band) {
      int64_t left = 0;
      for (int32_t stripe = 0; stripe < stripes_; ++stripe) {
        std::vector<int32_t>& block = blocks_[static_cast<size_t>(band * stripes_ + stripe)];
        if (pays) {
          find_in(band, stripe, block);
        } else {
          block = all_;
        }
        left += static_cast<int64_t>(block.size());
      }
      // Where hardly a class falls, the search would not pay in the rows below either.
      pays = pays && (8 * left < 7 * stripes_ * inputs_.classes || inputs_.classes < 8);
    }
    scratch.rewind(mark);
  }

  int32_t bands() const { return bands_; }
  int32_t stripes() const { return stripes_; }
  Range rows(int32_t band) const { return part(tile_.rows, kRows, band); }
  Range columns(int32_t stripe) const { return part(tile_.columns, kColumns, stripe); }

  // The classes that may be labels in a block, ascending.
  const std::vector<int32_t>& of(int32_t band, int32_t stripe) const {
    return blocks_[static_cast<size_t>(band * stripes_ + stripe)];
  }

 private:
  // What a tile reads of the logits of one scale: rows of numbers, and their bounds in the columns that each stripe reads.
  struct Window {
    MapView<const S> map{};
    int64_t b = 0;
    Tile tile{{0, 0}, {0, 0}};
    std::vector<Range> columns;  // by stripe
    bool direct = false;         // the map itself has rows of T
    T* copy = nullptr;           // [rows][classes][copy_pitch]
    T* pixels = nullptr;         // a row of pixels on its way to T
    int64_t copy_pitch = 0;
    std::vector<char> bounded;  // [rows]: 0 not yet, 1 all are numbers, 2 some are NaN
    std::vector<T> least;       // [rows][stripes][classes]
    std::vector<T> largest;     // [rows][stripes][classes]
  };

  static Range part(Range all, int32_t step, int32_t i) {
    return Range{all.lo + i * step, std::min(all.lo + (i + 1) * step, all.hi)};
  }

  Window& window(int view, int i) { return windows_[view * kMaxScales + i]; }

  Tile in_view(int view, const Tile& tile) const {
    const int32_t width = inputs_.chain.size.width;
    return view == 0 ? tile : Tile{tile.rows, Range{width - tile.columns.hi, width - tile.columns.lo}};
  }

  // False where all classes stay, whatever the logits.
  bool begin(Scratch<T>& scratch, int64_t b) {
    const Chain& chain = inputs_.chain;
    if (chain.class_wise || inputs_.classes == 1) return false;
    for (int view = 0; view < views_; ++view) {
      const int64_t image = b + view * inputs_.batch;
      const ForwardTiles tiles = forward_tiles(chain, in_view(view, tile_));
      for (int i = 1; i < chain.count; ++i) {
        if (!is_share(scratch, inputs_.attention[i], image, tiles.heads[i])) return false;
      }
      for (int i = 0; i < chain.count; ++i) begin_window(scratch, window(view, i), i, image, tiles.heads[i]);
      for (int32_t stripe = 0; stripe < stripes_; ++stripe) {
        const ForwardTiles read = forward_tiles(chain, in_view(view, Tile{tile_.rows, columns(stripe)}));
        for (int i = 0; i < chain.count; ++i) window(view, i).columns.push_back(read.heads[i].columns);
      }
    }
    return true;
  }

  void begin_window(Scratch<T>& scratch, Window& window, int i, int64_t b, const Tile& tile) {
    const int64_t classes = inputs_.classes;
    window.map = inputs_.logits[i];
    window.b = b;
    window.tile = tile;
    window.columns.clear();
    window.bounded.assign(static_cast<size_t>(tile.rows.size()), 0);
    window.least.resize(static_cast<size_t>(tile.rows.size() * stripes_ * classes));
    window.largest.resize(window.least.size());
    window.direct = std::is_same_v<S, T> && window.map.column == 1;
    if (window.direct) return;
    window.copy_pitch = scratch.pitch(tile.columns.size());
    window.copy = scratch.take(tile.rows.size() * classes * window.copy_pitch);
    if (has_pixels(window) && !std::is_same_v<S, T>) window.pixels = scratch.take(classes * tile.columns.size());
  }

  // Whether all of a part of an attention map lies in [0, 1].
  bool is_share(Scratch<T>& scratch, const MapView<const S>& map, int64_t b, const Tile& tile) const {
    const MemoryOps<S, T> memory = memory_ops<S, T>(rows_);
    const auto mark = scratch.mark();
    T* row = scratch.take(tile.columns.size());
    T least = 0, largest = 1;
    bool numbers = true;
    for (int32_t y = tile.rows.lo; y < tile.rows.hi && numbers; ++y) {
      memory.load(row, map.at(b, 0, y, tile.columns.lo), map.column, tile.columns.size());
      numbers = ops_.bound(&least, &largest, row, tile.columns.size());
    }
    scratch.rewind(mark);
    return numbers && least >= T(0) && largest <= T(1);
  }

  // ---- rows of a window -----------------------------------------------------------------------------------------------

  const T* row(const Window& window, int64_t c, int32_t y, Range columns) const {
    if constexpr (std::is_same_v<S, T>) {
      if (window.direct) return window.map.at(window.b, c, y, columns.lo);
    }
    const int64_t at = (y - window.tile.rows.lo) * inputs_.classes + c;
    return window.copy + at * window.copy_pitch + (columns.lo - window.tile.columns.lo);
  }

  bool has_pixels(const Window& window) const {
    return window.map.channel == 1 && window.map.column == inputs_.classes;
  }

  void copy(Window& window, int32_t y) {
    const MemoryOps<S, T> memory = memory_ops<S, T>(rows_);
    const int64_t classes = inputs_.classes, width = window.tile.columns.size();
    T* to = window.copy + (y - window.tile.rows.lo) * classes * window.copy_pitch;
    const S* from = window.map.at(window.b, 0, y, window.tile.columns.lo);
    if (!has_pixels(window)) {
      for (int64_t c = 0; c < classes; ++c) {
        memory.load(to + c * window.copy_pitch, from + c * window.map.channel, window.map.column, width);
      }
      return;
    }
    if constexpr (std::is_same_v<S, T>) {
      rows_.split_pixels(to, window.copy_pitch, from, classes, classes, width);
    } else {
      memory.load(window.pixels, from, 1, classes * width);
      rows_.split_pixels(to, window.copy_pitch, window.pixels, classes, classes, width);
    }
  }

  // The bounds of row y, while the next one is on its way.
  void bound(Window& window, int32_t y) {
    const auto at = static_cast<size_t>(y - window.tile.rows.lo);
    if (!window.direct) copy(window, y);
    bool numbers = true;
    for (int64_t c = 0; c < inputs_.classes; ++c) {
      if (window.direct && y + 1 < window.tile.rows.hi) {
        prefetch_row(row(window, c, y + 1, window.tile.columns), window.tile.columns.size());
      }
      for (int32_t stripe = 0; stripe < stripes_; ++stripe) {
        const size_t k = (at * static_cast<size_t>(stripes_) + static_cast<size_t>(stripe)) * all_.size();
        T* least = window.least.data() + k + c;
        T* largest = window.largest.data() + k + c;
        *least = std::numeric_limits<T>::infinity();
        *largest = -std::numeric_limits<T>::infinity();
        const Range columns = window.columns[static_cast<size_t>(stripe)];
        numbers &= ops_.bound(least, largest, row(window, c, y, columns), columns.size());
      }
    }
    window.bounded[at] = numbers ? 1 : 2;
  }

  // ---- the search -----------------------------------------------------------------------------------------------------

  void find_in(int32_t band, int32_t stripe, std::vector<int32_t>& found) {
    if (!bound_block(band, stripe)) {
      found = all_;
      return;
    }
    found.clear();
    const T floor = *std::max_element(least_.begin(), least_.end()) - margin_;
    for (const int32_t c : all_) {
      if (largest_[c] >= floor) found.push_back(c);
    }
    if (found.size() > 1) drop_exceeded(stripe, found);
  }

  // Least and largest logit of each class in what a block reads, and the margin. False where nothing may be dropped.
  bool bound_block(int32_t band, int32_t stripe) {
    const Chain& chain = inputs_.chain;
    const size_t classes = all_.size();
    least_.assign(classes, std::numeric_limits<T>::infinity());
    largest_.assign(classes, -std::numeric_limits<T>::infinity());
    for (int view = 0; view < views_; ++view) {
      read_[view] = forward_tiles(chain, in_view(view, Tile{rows(band), columns(stripe)}));
      for (int i = 0; i < chain.count; ++i) {
        Window& scale = window(view, i);
        const Range read = read_[view].heads[i].rows;
        for (int32_t y = read.lo; y < read.hi; ++y) {
          const auto at = static_cast<size_t>(y - scale.tile.rows.lo);
          if (scale.bounded[at] == 0) bound(scale, y);
          if (scale.bounded[at] == 2) return false;
          const size_t k = (at * static_cast<size_t>(stripes_) + static_cast<size_t>(stripe)) * classes;
          for (size_t c = 0; c < classes; ++c) {
            least_[c] = std::min(least_[c], scale.least[k + c]);
            largest_[c] = std::max(largest_[c], scale.largest[k + c]);
          }
        }
      }
    }
    const T reach =
        std::max(*std::max_element(largest_.begin(), largest_.end()), -*std::min_element(least_.begin(), least_.end()));
    if (!(reach < std::numeric_limits<T>::max() / 4)) return false;
    margin_ = static_cast<T>(256 * chain.count) * std::numeric_limits<T>::epsilon() * reach;
    margin_ += std::numeric_limits<T>::min();
    return true;
  }

  // Drops the classes that another one exceeds at every element. Only some classes are tried as the larger one, those
  // whose bounds are highest: most others exceed nothing.
  void drop_exceeded(int32_t stripe, std::vector<int32_t>& found) {
    constexpr size_t kTried = 8;
    tried_ = found;
    const size_t count = std::min(kTried, tried_.size());
    std::partial_sort(tried_.begin(), tried_.begin() + static_cast<int64_t>(count), tried_.end(),
                      [&](int32_t c, int32_t d) { return least_[c] + largest_[c] > least_[d] + largest_[d]; });
    const auto is_exceeded = [&](int32_t c) {
      for (size_t k = 0; k < count; ++k) {
        const int32_t d = tried_[k];
        if (largest_[d] > largest_[c] && least_[d] > least_[c] && exceeds_everywhere(d, c, stripe)) return true;
      }
      return false;
    };
    found.erase(std::remove_if(found.begin(), found.end(), is_exceeded), found.end());
  }

  // The smallest scale first: it has the fewest elements.
  bool exceeds_everywhere(int32_t d, int32_t c, int32_t stripe) {
    for (int view = 0; view < views_; ++view) {
      for (int i = inputs_.chain.count - 1; i >= 0; --i) {
        const Window& scale = window(view, i);
        const Range columns = scale.columns[static_cast<size_t>(stripe)];
        const Range read = read_[view].heads[i].rows;
        for (int32_t y = read.lo; y < read.hi; ++y) {
          if (!ops_.exceeds(row(scale, d, y, columns), row(scale, c, y, columns), margin_, columns.size()))
            return false;
        }
      }
    }
    return true;
  }

  const ChainInputs<S>& inputs_;
  const int views_;
  const SoftmaxOps<T>& ops_;
  const RowOps<T>& rows_;
  std::vector<int32_t> all_;
  Tile tile_{{0, 0}, {0, 0}};
  int32_t bands_ = 0;
  int32_t stripes_ = 0;
  std::vector<std::vector<int32_t>> blocks_;  // [bands][stripes]
  Window windows_[2 * kMaxScales];
  ForwardTiles read_[2];    // by the block at hand
  std::vector<T> least_;    // [classes], in the block at hand
  std::vector<T> largest_;  // [classes]
  T margin_ = 0;
  std::vector<int32_t> tried_;
};

}  // namespace cpu
}  // namespace hmsa
