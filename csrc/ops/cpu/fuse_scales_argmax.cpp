// Labels and confidence of fused logits on the CPU: a few rows of all channels are fused in the caches. Only the label
// of each pixel and its probability are written to memory. Labels alone take only the classes that can win
// (class_candidates.h), and no chain at all where that is one.
#include "ops/cpu/fuse_scales_argmax.h"

#include "ops/cpu/class_candidates.h"
#include "ops/cpu/fused_rows.h"
#include "ops/cpu/simd/softmax.h"
#include "ops/cpu/tile_grid.h"

namespace hmsa {
namespace cpu {
namespace {

// Of labels alone: candidates are found for all of a tile before it is fused, from logits that the L2 cache then holds.
constexpr int32_t kLabelRows = 32;

template <typename S, typename T>
class Argmax {
 public:
  Argmax(const FuseScalesArgmax<S>& problem, const ChainAxes<T>& axes)
      : problem_(problem),
        fused_(problem, axes),
        mirrored_(problem, axes),
        candidates_(problem, problem.views),
        ops_(softmax_ops<T>()) {}

  static TileGrid tiles(const FuseScalesArgmax<S>& problem) {
    if (problem.confidence != nullptr || problem.chain.class_wise) return FusedRows<S, T>::tiles(problem);
    return TileGrid(problem.batch, problem.chain.size, Extent{kLabelRows, FusedRows<S, T>::tile_columns(problem)});
  }

  void run(int64_t b, const Tile& tile) {
    const auto mark = scratch_.mark();
    batch_ = b;
    confidence_ = scratch_.take(tile.columns.size() + kRowSlack);
    labels_.resize(tile.columns.size() + kRowSlack + 1);
    if (problem_.confidence == nullptr) {
      candidates_.find(scratch_, b, tile);
      label_tile();
    } else {
      begin_chain(tile);
      for_rows(tile.rows, height_, [&](Range rows) { write(make(rows, nullptr, problem_.classes)); });
    }
    scratch_.rewind(mark);
  }

 private:
  template <typename Body>
  static void for_rows(Range rows, int32_t height, const Body& body) {
    for (int32_t y = rows.lo; y < rows.hi; y += height) body(Range{y, std::min(y + height, rows.hi)});
  }

  void begin_chain(const Tile& tile) {
    columns_ = tile.columns;
    height_ = fused_.group_rows(problem_, columns_.size());
    fused_.begin(scratch_, batch_, tile, height_);
    if (problem_.views == 1) return;
    // The mirrored image has the pixels of this tile in the columns opposite.
    const int32_t width = problem_.chain.size.width;
    const Tile opposite{tile.rows, Range{width - columns_.hi, width - columns_.lo}};
    mirrored_.begin(scratch_, batch_ + problem_.batch, opposite, height_);
  }

  // Fused logits of some channels, of both views: see FusedRows::make.
  Planes<T> make(Range rows, const int32_t* names, int64_t count) {
    const Planes<T> planes = fused_.make(rows, names, count);
    if (problem_.views == 2) average(planes, mirrored_.make(rows, names, count), count);
    return planes;
  }

  void average(const Planes<T>& planes, const Planes<T>& mirrored, int64_t count) {
    for (int64_t c = 0; c < count; ++c) {
      for (int32_t y = planes.rows.lo; y < planes.rows.hi; ++y) {
        ops_.average_mirrored(planes.row(c, y), planes.row(c, y), mirrored.row(c, y), columns_.size());
      }
    }
  }

  void write(const Planes<T>& planes) {
    const int64_t n = columns_.size();
    for (int32_t y = planes.rows.lo; y < planes.rows.hi; ++y) {
      ops_.argmax(labels_.data(), confidence_, planes.row(0, y), planes.pitch, problem_.classes, n);
      std::copy(confidence_, confidence_ + n, problem_.confidence + first_of(y));
      write_labels(y);
    }
  }

  // ---- labels alone ---------------------------------------------------------------------------------------------------

  // Stripes of the tile are fused in runs. A short run has few candidates, a long one takes less time for each element:
  // the cheapest division of the tile into runs.
  void label_tile() {
    const int32_t stripes = candidates_.stripes();
    cheapest_.assign(static_cast<size_t>(stripes) + 1, 0);
    begin_.assign(cheapest_.size(), 0);
    for (int32_t end = 1; end <= stripes; ++end) {
      for (int32_t begin = end - 1; begin >= 0; --begin) {
        const int64_t cost = cheapest_[static_cast<size_t>(begin)] + run_cost(Range{begin, end});
        if (begin < end - 1 && cost >= cheapest_[static_cast<size_t>(end)]) continue;
        cheapest_[static_cast<size_t>(end)] = cost;
        begin_[static_cast<size_t>(end)] = begin;
      }
    }
    for (int32_t end = stripes; end > 0; end = begin_[static_cast<size_t>(end)]) {
      label_run(Range{begin_[static_cast<size_t>(end)], end});
    }
  }

  // In elements: what a row costs beside its elements, and the attention beside the classes.
  int64_t run_cost(Range stripes) {
    constexpr int64_t kRow = 96, kAttention = 3;
    int64_t rows = 0;
    for (int32_t band = 0; band < candidates_.bands(); ++band) {
      const auto count = static_cast<int64_t>(candidates_of(band, stripes).size());
      if (count > 1) rows += (count + kAttention) * candidates_.rows(band).size();
    }
    return rows * (columns_of(stripes).size() + kRow);
  }

  Range columns_of(Range stripes) const {
    return Range{candidates_.columns(stripes.lo).lo, candidates_.columns(stripes.hi - 1).hi};
  }

  // The candidates of some blocks of a band, ascending.
  const std::vector<int32_t>& candidates_of(int32_t band, Range stripes) {
    if (stripes.size() == 1) return candidates_.of(band, stripes.lo);
    is_candidate_.assign(static_cast<size_t>(problem_.classes), 0);
    for (int32_t stripe = stripes.lo; stripe < stripes.hi; ++stripe) {
      for (const int32_t c : candidates_.of(band, stripe)) is_candidate_[static_cast<size_t>(c)] = 1;
    }
    names_.clear();
    for (int32_t c = 0; c < problem_.classes; ++c) {
      if (is_candidate_[static_cast<size_t>(c)]) names_.push_back(c);
    }
    return names_;
  }

  void label_run(Range stripes) {
    const auto mark = scratch_.mark();
    columns_ = columns_of(stripes);
    Range fused{0, 0};  // the rows from the first to the last band with several candidates
    for (int32_t band = 0; band < candidates_.bands(); ++band) {
      const std::vector<int32_t>& names = candidates_of(band, stripes);
      if (names.size() > 1) {
        fused = hull(fused, candidates_.rows(band));
      } else {
        std::fill(labels_.begin(), labels_.end(), names[0]);
        for (int32_t y = candidates_.rows(band).lo; y < candidates_.rows(band).hi; ++y) write_labels(y);
      }
    }
    if (!fused.empty()) begin_chain(Tile{fused, columns_});
    for (int32_t band = 0; band < candidates_.bands(); ++band) {
      const std::vector<int32_t>& names = candidates_of(band, stripes);
      if (names.size() > 1) label(candidates_.rows(band), names);
    }
    scratch_.rewind(mark);
  }

  void label(Range rows, const std::vector<int32_t>& names) {
    const auto count = static_cast<int64_t>(names.size());
    // As much memory as all classes of `height_` rows have.
    const auto height = static_cast<int32_t>(std::min<int64_t>(height_ * problem_.classes / count, rows.size()));
    for_rows(rows, height, [&](Range part) {
      const Planes<T> planes = make(part, names.data(), count);
      for (int32_t y = part.lo; y < part.hi; ++y) {
        ops_.label(labels_.data(), planes.row(0, y), planes.pitch, names.data(), count, columns_.size());
        write_labels(y);
      }
    });
  }

  int64_t first_of(int32_t y) const {
    const Extent size = problem_.chain.size;
    return (batch_ * size.height + y) * size.width + columns_.lo;
  }

  void write_labels(int32_t y) {
    const int64_t n = columns_.size();
    if (problem_.classes <= 256) {
      // Bytes may be anything: unless it is told, the compiler takes them for the labels that it reads.
      const int32_t* __restrict__ from = labels_.data();
      auto* __restrict__ to = static_cast<uint8_t*>(problem_.labels) + first_of(y);
      for (int64_t x = 0; x < n; ++x) to[x] = static_cast<uint8_t>(from[x]);
    } else {
      std::copy(labels_.data(), labels_.data() + n, static_cast<int32_t*>(problem_.labels) + first_of(y));
    }
  }

  const FuseScalesArgmax<S>& problem_;
  Scratch<T> scratch_;
  FusedRows<S, T> fused_;
  FusedRows<S, T> mirrored_;
  ClassCandidates<S, T> candidates_;
  const SoftmaxOps<T>& ops_;
  int64_t batch_ = 0;
  Range columns_{0, 0};  // that are fused now
  int32_t height_ = 0;   // rows of all classes that are fused together
  T* confidence_ = nullptr;
  std::vector<int32_t> labels_;
  std::vector<int64_t> cheapest_;   // by stripes: what the best division into runs costs
  std::vector<int32_t> begin_;      // and where its last run begins
  std::vector<char> is_candidate_;  // [classes]
  std::vector<int32_t> names_;
};

}  // namespace

template <typename S>
void fuse_scales_argmax(const FuseScalesArgmax<S>& problem, const ParallelFor& parallel_for) {
  using T = arithmetic_t<S>;
  const TileGrid tiles = Argmax<S, T>::tiles(problem);
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
