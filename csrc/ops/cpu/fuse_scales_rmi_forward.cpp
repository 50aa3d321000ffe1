// Region mutual information on the CPU, forward: binary cross-entropy and the moments of the neighbourhoods of pooled
// pixels (core/fuse_scales_rmi.h), tile by tile and class by class.
//
// For each class the pooled pixels of a tile exist, a sixteenth of its pixels, in double and centred at their mean.
// Entries of the covariance of a neighbourhood are sums of products of two pooled pixels at a fixed distance, over
// shifted rectangles. All 171 of them follow from 51 sums over rows that differ in their ends only. Chan's formula
// merges the tiles: it avoids cancellation however large the image is.
#include <algorithm>
#include <vector>

#include "ops/cpu/fuse_scales_rmi.h"
#include "ops/cpu/fuse_scales_rmi_windows.h"
#include "ops/cpu/tile_grid.h"

namespace hmsa {
namespace cpu {
namespace {

// Windows of a tile. The L2 cache holds its attention and labels, a row for each row of pixels, and the pooled pixels
// of one class. Its neighbours pool two rows and columns of windows behind it again.
constexpr Extent kTile{24, 128};

// Moments of all parts of the batch take no more bytes than this, but for one part of each image.
constexpr int64_t kMomentBytes = int64_t(6) << 20;

// The tiles of an image, and parts of consecutive tiles. Neither depends on the number of threads, nor do sums by part.
class Division {
 public:
  Division(Extent size, int64_t batch, int64_t classes)
      : tiles_(1, Extent{rmi_groups(size.height), rmi_groups(size.width)}, kTile) {
    const int64_t bytes = batch * classes * static_cast<int64_t>(sizeof(RmiMoments));
    parts_ = std::clamp<int64_t>(kMomentBytes / bytes, 1, tiles_.count());
  }

  int64_t parts() const { return parts_; }
  int64_t first_tile(int64_t part) const { return tiles_.count() * part / parts_; }

  // Groups of pixels that tile i owns.
  Tile tile(int64_t i) const { return tiles_.tile(i); }

 private:
  TileGrid tiles_;
  int64_t parts_;
};

struct PartSums {
  double loss = 0;
  int64_t valid = 0;
  WrongLabels wrong;
};

template <typename S, typename T>
class Forward {
 public:
  Forward(const FuseScalesRmiForward<S>& problem, const ChainAxes<T>& axes)
      : problem_(problem),
        size_(problem.chain.size),
        windows_(problem, axes, problem.labels, problem.ignore_index),
        ops_(windows_.ops()),
        wants_moments_(problem.covariance != nullptr) {}

  // Adds the sums of a tile; `moments` has one entry for each class.
  void run(int64_t b, const Tile& owned, PartSums& sums, RmiMoments* moments) {
    const auto start = scratch_.mark();
    const auto start_doubles = doubles_.mark();
    // Neighbourhoods that start in the tile; windows that they need.
    starts_ = Tile{{owned.rows.lo, std::min(owned.rows.hi, rmi_neighbourhoods(size_.height))},
                   {owned.columns.lo, std::min(owned.columns.hi, rmi_neighbourhoods(size_.width))}};
    const bool has_moments = wants_moments_ && !starts_.empty();
    Tile groups = owned;
    if (has_moments) {
      groups.rows.hi = std::max(groups.rows.hi, starts_.rows.hi + kRmiReach);
      groups.columns.hi = std::max(groups.columns.hi, starts_.columns.hi + kRmiReach);
    }
    windows_.begin(scratch_, b, groups);
    count_labels(b, owned, sums);

    pooled_ = Tile{{starts_.rows.lo, starts_.rows.hi + kRmiReach}, groups.columns};
    for (Patch<double>& rows : centred_) {
      if (has_moments) rows = doubles_.patch(pooled_);
    }
    double* loss = doubles_.zeros(windows_.pixels().columns.size());
    for (int64_t c = 0; c < problem_.classes; ++c) {
      windows_.begin_class(scratch_, c);
      for (int32_t k = groups.rows.lo; k < groups.rows.hi; ++k) {
        const bool pools = has_moments && k < pooled_.rows.hi;
        windows_.make_row(pools ? centred_[0].row(k) : nullptr, pools ? centred_[1].row(k) : nullptr,
                          k < owned.rows.hi ? loss : nullptr, k);
      }
      if (has_moments) rmi_merge(moments[c], moments_of_tile());
    }
    sums.loss += ops_.sum(loss, rmi_pixels(owned.columns, size_.width).size());
    doubles_.rewind(start_doubles);
    scratch_.rewind(start);
  }

 private:
  void count_labels(int64_t b, const Tile& owned, PartSums& sums) {
    const Range columns = rmi_pixels(owned.columns, size_.width);
    const Range rows = rmi_pixels(owned.rows, size_.height);
    const int64_t n = columns.size();
    for (int32_t y = rows.lo; y < rows.hi; ++y) {
      T* labels = windows_.labels_row(y);
      load_labels(labels, {problem_.labels, b, y, columns, problem_.classes, problem_.ignore_index}, sums.wrong);
      sums.valid += std::count_if(labels, labels + n, [](T label) { return label >= 0; });
    }
  }

  // Moments of the neighbourhoods that start in the tile, from the pooled pixels in centred_, which are centred first.
  RmiMoments moments_of_tile() {
    RmiMoments moments{};
    moments.count = static_cast<double>(starts_.area());
    const double shift[2] = {centre(centred_[0]), centre(centred_[1])};
    double sums[kRmiVector] = {};
    for (int32_t r = pooled_.rows.lo; r < pooled_.rows.hi;) {
      // Rows that have the same places in the tile's neighbourhoods are added up first.
      int32_t end = r + 1;
      while (end < pooled_.rows.hi && places(end) == places(r)) ++end;
      add_sums(sums, Range{r, end});
      add_products(moments.products, Range{r, end});
      r = end;
    }
    for (int32_t a = 0; a < kRmiVector; ++a) {
      moments.mean[a] = shift[a / kRmiHalf] + sums[a] / moments.count;
      for (int32_t b = a; b < kRmiVector; ++b) {
        moments.products[rmi_product(a, b)] -= sums[a] * sums[b] / moments.count;
      }
    }
    return moments;
  }

  // The columns of pooled pixels that neighbourhoods read, counted from the tile's first.
  int32_t row_width() const { return starts_.columns.size() + kRmiReach; }

  double centre(const Patch<double>& rows) {
    double sum = 0;
    for (int32_t r = pooled_.rows.lo; r < pooled_.rows.hi; ++r) sum += ops_.sum(rows.row(r), row_width());
    const double mean = sum / (static_cast<double>(pooled_.rows.size()) * row_width());
    for (int32_t r = pooled_.rows.lo; r < pooled_.rows.hi; ++r) {
      double* row = rows.row(r);
      for (int32_t x = 0; x < row_width(); ++x) row[x] -= mean;
    }
    return mean;
  }

  // The places of pooled row r in the neighbourhoods of the tile: bit p is set where it is row p of one.
  uint32_t places(int32_t r) const { return rmi_places(r - starts_.rows.lo, starts_.rows.size()); }

  template <typename Body>
  static void for_places(uint32_t places, const Body& body) {
    for (int32_t place = 0; place < kRmiSide; ++place) {
      if ((places >> place & 1u) != 0) body(place);
    }
  }

  void add_sums(double* sums, Range rows) {
    for (int k = 0; k < 2; ++k) {
      for (int32_t column = 0; column < kRmiSide; ++column) {
        double sum = 0;
        for (int32_t r = rows.lo; r < rows.hi; ++r) {
          sum += ops_.sum(centred_[k].row(r) + column, starts_.columns.size());
        }
        for_places(places(rows.lo), [&](int32_t place) { sums[k * kRmiHalf + place * kRmiSide + column] += sum; });
      }
    }
  }

  // Products of some pooled rows, all of the same places, with those that share a neighbourhood with them.
  void add_products(double* products, Range rows) {
    for (int32_t apart = 0; apart <= kRmiReach; ++apart) {
      RowProducts sums{};
      const int32_t end = std::min(rows.hi, pooled_.rows.hi - apart);
      for (int32_t r = rows.lo; r < end; ++r) add_row_products(sums, r, r + apart);
      for_places(places(rows.lo), [&](int32_t place) {
        if (place + apart < kRmiSide) add_to_covariance(products, sums, place, place + apart);
      });
    }
  }

  // [kind of the upper row][kind of the lower row][column in the neighbourhood][column in the neighbourhood]
  struct RowProducts {
    double of[2][2][kRmiSide][kRmiSide];
  };

  // For every pair of columns the sum over the tile's neighbourhoods. They begin in columns 0 .. count - 1, so pooled
  // pixels in columns 2 .. count - 1 come in at every place, and some more at the ends.
  void add_row_products(RowProducts& sums, int32_t upper_row, int32_t lower_row) {
    const int32_t count = starts_.columns.size();
    const int32_t shared_lo = std::min(kRmiReach, count);
    const double* upper[2] = {centred_[0].row(upper_row), centred_[1].row(upper_row)};
    const double* lower[2] = {centred_[0].row(lower_row), centred_[1].row(lower_row)};
    const double* upper_shared[2] = {upper[0] + shared_lo, upper[1] + shared_lo};
    const double* lower_shared[2] = {lower[0] + shared_lo, lower[1] + shared_lo};
    double shared[2][2][kRmiTaps];
    ops_.products(shared, upper_shared, lower_shared, count - shared_lo);
    for (int i = 0; i < 2; ++i) {
      for (int k = 0; k < 2; ++k) {
        for (int32_t first = 0; first < kRmiSide; ++first) {
          for (int32_t second = 0; second < kRmiSide; ++second) {
            const double* other = lower[k] + (second - first);
            double sum = shared[i][k][second - first + kRmiReach];
            for (int32_t x = first; x < shared_lo; ++x) sum += upper[i][x] * other[x];
            for (int32_t x = std::max(count, first); x < count + first; ++x) sum += upper[i][x] * other[x];
            sums.of[i][k][first][second] += sum;
          }
        }
      }
    }
  }

  // The rows that were multiplied are rows `upper` and `lower` of a neighbourhood.
  static void add_to_covariance(double* products, const RowProducts& sums, int32_t upper, int32_t lower) {
    for (int i = 0; i < 2; ++i) {
      for (int k = 0; k < 2; ++k) {
        for (int32_t first = 0; first < kRmiSide; ++first) {
          for (int32_t second = 0; second < kRmiSide; ++second) {
            const int32_t a = i * kRmiHalf + upper * kRmiSide + first;
            const int32_t b = k * kRmiHalf + lower * kRmiSide + second;
            if (a > b && upper == lower) continue;  // within one row both (a, b) and (b, a) come by
            products[rmi_product(std::min(a, b), std::max(a, b))] += sums.of[i][k][first][second];
          }
        }
      }
    }
  }

  const FuseScalesRmiForward<S>& problem_;
  const Extent size_;
  Scratch<T> scratch_;
  Scratch<double> doubles_;
  RmiWindows<S, T> windows_;
  const RmiOps<T>& ops_;
  bool wants_moments_;
  Tile starts_{{0, 0}, {0, 0}};
  Tile pooled_{{0, 0}, {0, 0}};
  Patch<double> centred_[2];  // pooled probabilities and labels
};

template <typename S>
WrongLabels run_forward(const FuseScalesRmiForward<S>& problem, const ParallelFor& parallel_for) {
  using T = arithmetic_t<S>;
  const ChainAxes<T> axes(problem.chain, /*with_adjoint=*/false);
  const Division division(problem.chain.size, problem.batch, problem.classes);
  const int64_t parts = division.parts();
  const int64_t classes = problem.covariance == nullptr ? 0 : problem.classes;
  std::vector<PartSums> sums(problem.batch * parts);
  std::vector<RmiMoments> moments(problem.batch * parts * classes, RmiMoments{});
  parallel_for.run(problem.batch * parts, [&](int64_t begin, int64_t end) {
    Forward<S, T> forward(problem, axes);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t tile = division.first_tile(i % parts); tile < division.first_tile(i % parts + 1); ++tile) {
        forward.run(i / parts, division.tile(tile), sums[i], moments.data() + i * classes);
      }
    }
  });
  PartSums all;
  for (const PartSums& part : sums) {
    all.loss += part.loss;
    all.valid += part.valid;
    all.wrong.add(part.wrong);
  }
  *problem.bce = all.loss;
  *problem.valid = static_cast<double>(all.valid);
  for (int64_t b = 0; b < problem.batch; ++b) {
    for (int64_t c = 0; c < classes; ++c) {
      RmiMoments& whole = moments[b * parts * classes + c];
      for (int64_t part = 1; part < parts; ++part) rmi_merge(whole, moments[(b * parts + part) * classes + c]);
      const int64_t at = b * classes + c;
      rmi_write(whole, problem.mean + at * kRmiVector, problem.covariance + at * kRmiVector * kRmiVector);
    }
  }
  return all.wrong;
}

}  // namespace

template <typename S>
WrongLabels fuse_scales_rmi_forward(const FuseScalesRmiForward<S>& problem, const ParallelFor& parallel_for) {
  return run_forward(problem, parallel_for);
}

template WrongLabels fuse_scales_rmi_forward(const FuseScalesRmiForward<float>&, const ParallelFor&);
template WrongLabels fuse_scales_rmi_forward(const FuseScalesRmiForward<double>&, const ParallelFor&);
template WrongLabels fuse_scales_rmi_forward(const FuseScalesRmiForward<Half>&, const ParallelFor&);
template WrongLabels fuse_scales_rmi_forward(const FuseScalesRmiForward<BFloat16>&, const ParallelFor&);

}  // namespace cpu
}  // namespace hmsa
