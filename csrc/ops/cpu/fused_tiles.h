// The division of a batch of outputs into tiles, for kernels that read fused rows of all channels. It does not depend on
// the number of threads, so sums by tile are the same for any.
#pragma once

#include <algorithm>

#include "core/problem.h"
#include "ops/cpu/fused_rows.h"

namespace hmsa {
namespace cpu {

template <typename S>
class FusedTiles {
 public:
  explicit FusedTiles(const ChainInputs<S>& inputs)
      : size_(inputs.chain.size), tile_(FusedRows<S, arithmetic_t<S>>::tile_extent(inputs)), batch_(inputs.batch) {}

  int64_t count() const { return batch_ * bands() * stripes(); }
  int64_t image(int64_t i) const { return i / stripes() / bands(); }
  Tile tile(int64_t i) const {
    return Tile{part(size_.height, tile_.height, i / stripes() % bands()),
                part(size_.width, tile_.width, i % stripes())};
  }

 private:
  int64_t bands() const { return (size_.height + tile_.height - 1) / tile_.height; }
  int64_t stripes() const { return (size_.width + tile_.width - 1) / tile_.width; }

  static Range part(int32_t size, int32_t step, int64_t i) {
    const auto lo = static_cast<int32_t>(i * step);
    return Range{lo, std::min(lo + step, size)};
  }

  Extent size_;
  Extent tile_;
  int64_t batch_;
};

}  // namespace cpu
}  // namespace hmsa
