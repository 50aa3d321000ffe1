// Labels and confidence of fused logits on the CPU: a few rows of all channels are fused in the caches. Only the label
// of each pixel and its probability are written to memory.
#include "ops/cpu/fuse_scales_argmax.h"

#include "ops/cpu/fused_rows.h"
#include "ops/cpu/simd/softmax.h"
#include "ops/cpu/tile_grid.h"

namespace hmsa {
namespace cpu {
namespace {

template <typename S, typename T>
class Argmax {
 public:
  Argmax(const FuseScalesArgmax<S>& problem, const ChainAxes<T>& axes)
      : problem_(problem), fused_(problem, axes), mirrored_(problem, axes), ops_(softmax_ops<T>()) {}

  void run(int64_t b, const Tile& tile) {
    const auto mark = scratch_.mark();
    batch_ = b;
    columns_ = tile.columns;
    confidence_ = scratch_.take(columns_.size() + kRowSlack);
    labels_.resize(columns_.size() + kRowSlack + 1);
    if (problem_.views == 1) {
      fused_.for_groups(scratch_, b, tile, [&](const Planes<T>& planes) { write(planes); });
    } else {
      // The mirrored image has the pixels of this tile in the columns opposite.
      const int32_t width = problem_.chain.size.width;
      const Tile opposite{tile.rows, Range{width - tile.columns.hi, width - tile.columns.lo}};
      const int32_t height = fused_.group_rows(problem_, columns_.size());
      mirrored_.begin(scratch_, b + problem_.batch, opposite, height);
      fused_.for_groups(scratch_, b, tile, [&](const Planes<T>& planes) {
        average(planes, mirrored_.make(planes.rows));
        write(planes);
      });
    }
    scratch_.rewind(mark);
  }

 private:
  void average(const Planes<T>& planes, const Planes<T>& mirrored) {
    for (int64_t c = 0; c < problem_.classes; ++c) {
      for (int32_t y = planes.rows.lo; y < planes.rows.hi; ++y) {
        ops_.average_mirrored(planes.row(c, y), planes.row(c, y), mirrored.row(c, y), columns_.size());
      }
    }
  }

  void write(const Planes<T>& planes) {
    const Extent size = problem_.chain.size;
    const int64_t n = columns_.size();
    for (int32_t y = planes.rows.lo; y < planes.rows.hi; ++y) {
      const int64_t first = (batch_ * size.height + y) * size.width + columns_.lo;
      ops_.argmax(labels_.data(), confidence_, planes.row(0, y), planes.pitch, problem_.classes, n);
      if (problem_.confidence != nullptr) std::copy(confidence_, confidence_ + n, problem_.confidence + first);
      if (problem_.classes <= 256) {
        auto* to = static_cast<uint8_t*>(problem_.labels) + first;
        for (int64_t x = 0; x < n; ++x) to[x] = static_cast<uint8_t>(labels_[x]);
      } else {
        std::copy(labels_.data(), labels_.data() + n, static_cast<int32_t*>(problem_.labels) + first);
      }
    }
  }

  const FuseScalesArgmax<S>& problem_;
  Scratch<T> scratch_;
  FusedRows<S, T> fused_;
  FusedRows<S, T> mirrored_;
  const SoftmaxOps<T>& ops_;
  int64_t batch_ = 0;
  Range columns_{0, 0};
  T* confidence_ = nullptr;
  std::vector<int32_t> labels_;
};

}  // namespace

template <typename S>
void fuse_scales_argmax(const FuseScalesArgmax<S>& problem, const ParallelFor& parallel_for) {
  using T = arithmetic_t<S>;
  const TileGrid tiles = FusedRows<S, T>::tiles(problem);
  const ChainAxes<T> axes(problem.chain, /*with_adjoint=*/false);
  parallel_for.run(tiles.count(), [&](int64_t begin, int64_t end) {
    Argmax<S, T> argmax(problem, axes);
    for (int64_t i = begin; i < end; ++i) argmax.run(tiles.image(i), tiles.tile(i));
  });
}

template void fuse_scales_argmax(const FuseScalesArgmax<float>&, const ParallelFor&);
template void fuse_scales_argmax(const FuseScalesArgmax<double>&, const ParallelFor&);
template void fuse_scales_argmax(const FuseScalesArgmax<Half>&, const ParallelFor&);
template void fuse_scales_argmax(const FuseScalesArgmax<BFloat16>&, const ParallelFor&);

}  // namespace cpu
}  // namespace hmsa
