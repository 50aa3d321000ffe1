// csrc/core: the geometry of a resize and of the chain, against brute force over every element.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "core/blend.h"
#include "core/chain.h"
#include "core/check.h"
#include "core/resize.h"
#include "core/view.h"
#include "tests/testing.h"

namespace {

using namespace hmsa;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// ---- one axis -------------------------------------------------------------------------------------------------------

// The source coordinate as torch.nn.functional.interpolate documents it, in long double.
long double source(int64_t in, int64_t out, bool align_corners, int64_t o) {
  if (align_corners) return out > 1 ? static_cast<long double>(o) * (in - 1) / (out - 1) : 0.0L;
  return std::max((o + 0.5L) * in / out - 0.5L, 0.0L);
}

template <typename Check>
void for_all_small_axes(Check check) {
  for (int in = 1; in <= 26; ++in) {
    for (int out = 1; out <= 40; ++out) {
      check(in, out, false);
      check(in, out, true);
    }
  }
  for (const auto& [in, out] : {std::pair{1, 300}, {300, 1}, {2, 257}, {257, 2}, {128, 130}, {255, 64}, {1000, 3}}) {
    check(in, out, false);
    check(in, out, true);
  }
}

void expect_taps_at_the_source(const AxisMap& map, bool align_corners, int32_t o) {
  const long double wanted = source(map.in, map.out, align_corners, o);
  const Taps<double> taps = map.taps<double>(o);
  const auto where = [&] {
    return concat("in ", map.in, ", out ", map.out, ", align_corners ", align_corners, ", output ", o);
  };
  EXPECT(taps.first >= 0 && taps.first < map.in, where());
  EXPECT(taps.second == taps.first || taps.second == taps.first + 1, where());
  EXPECT(taps.second < map.in, where());
  EXPECT(taps.weight >= 0.0 && taps.weight < 1.0, where());
  // Both taps on one input interpolate a constant: the weight says nothing.
  const long double got = taps.first == taps.second ? taps.first : taps.first + static_cast<long double>(taps.weight);
  EXPECT(std::fabs(got - std::min(wanted, map.in - 1.0L)) < 1e-9L, where(), ": ", static_cast<double>(got));
  if (wanted == std::floor(wanted)) EXPECT_EQUAL(taps.weight, 0.0, where());
  EXPECT_EQUAL(map.taps<float>(o).first, taps.first, where());
  // The fraction's integers are floats themselves up to 2^24, so that only the division rounds; above that they round.
  const float tolerance = map.den < (1 << 24) ? 0.0f : 0x1p-22f;
  EXPECT(std::fabs(map.taps<float>(o).weight - static_cast<float>(taps.weight)) <= tolerance, where());
}

void taps_lie_at_the_source_coordinate() {
  for_all_small_axes([](int in, int out, bool align_corners) {
    const AxisMap map = make_axis_map(in, out, align_corners);
    for (int o = 0; o < out; ++o) expect_taps_at_the_source(map, align_corners, o);
  });
}

// At sizes where float arithmetic would choose wrong neighbours: up to 2^24 - 1, the largest that the ops accept.
void taps_are_right_at_the_largest_sizes() {
  std::mt19937 random(1);
  const int32_t largest = (1 << 24) - 1;
  for (int round = 0; round < 20000; ++round) {
    const int32_t in = round % 3 == 0 ? largest - static_cast<int32_t>(random() % 3) : 1 + random() % largest;
    const int32_t out = round % 5 == 0 ? largest - static_cast<int32_t>(random() % 3) : 1 + random() % largest;
    const AxisMap map = make_axis_map(in, out, round % 2 == 0);
    for (const int32_t o : {0, out - 1, static_cast<int32_t>(random() % out)}) {
      expect_taps_at_the_source(map, round % 2 == 0, o);
      const Taps<double> taps = map.taps<double>(o);
      EXPECT(map.outputs(taps.first).lo <= o && o < map.outputs(taps.first).hi, "in ", in, ", out ", out);
    }
  }
}

void equal_sizes_are_copied() {
  for (const bool align_corners : {false, true}) {
    const AxisMap map = make_axis_map(9, 9, align_corners);
    EXPECT(map.identity());
    for (int o = 0; o < 9; ++o) {
      const Taps<float> taps = map.taps<float>(o);
      EXPECT(taps.first == o && taps.second == o && taps.weight == 0.0f);
      EXPECT(map.outputs(o).lo == o && map.outputs(o).hi == o + 1);
    }
  }
  EXPECT(!make_axis_map(9, 10, false).identity());
}

// The heart of a gather backward: outputs(i) are exactly the outputs in whose sum input i stands.
void outputs_are_the_inverse_of_taps() {
  for_all_small_axes([](int in, int out, bool align_corners) {
    const AxisMap map = make_axis_map(in, out, align_corners);
    for (int i = 0; i < in; ++i) {
      const Range got = map.outputs(i);
      int lo = out;
      int hi = 0;
      int readers = 0;
      for (int o = 0; o < out; ++o) {
        const Taps<double> taps = map.taps<double>(o);
        const double weight = (taps.first == i ? 1.0 - taps.weight : 0.0) + (taps.second == i ? taps.weight : 0.0);
        EXPECT_EQUAL(map.weight<double>(o, i), weight);
        if (weight == 0.0) continue;
        lo = std::min(lo, o);
        hi = std::max(hi, o + 1);
        ++readers;
      }
      EXPECT_EQUAL(got.size(), readers, "in ", in, ", out ", out, ", align_corners ", align_corners, ", input ", i);
      if (readers == 0) continue;
      EXPECT_EQUAL(got.lo, lo, "in ", in, ", out ", out, ", align_corners ", align_corners, ", input ", i);
      EXPECT_EQUAL(got.hi, hi, "in ", in, ", out ", out, ", align_corners ", align_corners, ", input ", i);
    }
  });
}

void weights_of_an_output_add_up_to_one() {
  for_all_small_axes([](int in, int out, bool align_corners) {
    const AxisMap map = make_axis_map(in, out, align_corners);
    for (int o = 0; o < out; ++o) {
      double sum = 0.0;
      for (int i = 0; i < in; ++i) sum += map.weight<double>(o, i);
      EXPECT(std::fabs(sum - 1.0) < 1e-15, "in ", in, ", out ", out, ", output ", o);
    }
  });
}

void composed_taps_are_two_resizes_in_a_row() {
  for (const auto& [in, middle, out] : {std::tuple{4, 16, 8},
                                        {16, 8, 32},
                                        {5, 13, 7},
                                        {9, 9, 4},
                                        {7, 3, 3},
                                        {1, 6, 2},
                                        {3, 12, 12},
                                        {40, 6, 25},
                                        {2, 1, 5},
                                        {8, 31, 15}}) {
    for (const bool align_corners : {false, true}) {
      const ComposedMap map{make_axis_map(in, middle, align_corners), make_axis_map(middle, out, align_corners)};
      for (int o = 0; o < out; ++o) {
        std::vector<double> wanted(in, 0.0);
        for (int m = 0; m < middle; ++m) {
          for (int i = 0; i < in; ++i) wanted[i] += map.outer.weight<double>(o, m) * map.inner.weight<double>(m, i);
        }
        const ComposedTaps<double> taps = map.taps<double>(o);
        const Range sources = map.sources(Range{o, o + 1});
        std::vector<double> got(in, 0.0);
        EXPECT(taps.count >= 1 && taps.count <= 4);
        for (int k = 0; k < taps.count; ++k) {
          EXPECT(k == 0 || taps.index[k] >= taps.index[k - 1]);
          EXPECT(sources.lo <= taps.index[k] && taps.index[k] < sources.hi);
          got[taps.index[k]] += taps.weight[k];
        }
        for (int i = 0; i < in; ++i) {
          EXPECT(std::fabs(got[i] - wanted[i]) < 1e-15, "in ", in, ", middle ", middle, ", out ", out, ", output ", o);
          const Range outputs = map.outputs(Range{i, i + 1});
          if (wanted[i] != 0.0) EXPECT(outputs.lo <= o && o < outputs.hi);
        }
      }
    }
  }
}

// Both taps of a middle element that is an input itself: the other one's weight is zero, and 0 * inf must stay NaN.
void composed_taps_keep_zero_weights() {
  const ComposedMap map{make_axis_map(5, 9, true), make_axis_map(9, 17, true)};
  const ComposedTaps<float> taps =
      map.taps<float>(3);  // between middle 1 (inputs 0 and 1) and 2 (input 1, and 0 times 2)
  EXPECT_EQUAL(taps.count, 3);
  EXPECT(taps.index[2] == 2 && taps.weight[2] == 0.0f);
  Resize copy = make_resize(Extent{4, 6}, Extent{4, 6}, false);
  EXPECT(copy.copies());
  EXPECT_EQUAL((ComposedMap{copy.rows, copy.rows}.taps<float>(2).count), 1);
  EXPECT(!make_resize(Extent{4, 6}, Extent{4, 7}, false).copies());
}

void ranges_hold_all_their_elements_need() {
  for_all_small_axes([](int in, int out, bool align_corners) {
    const AxisMap map = make_axis_map(in, out, align_corners);
    for (int lo = 0; lo < out; lo += 1 + out / 7) {
      for (int hi = lo + 1; hi <= out; hi += 1 + out / 7) {
        const Range got = map.sources(Range{lo, hi});
        int first = in;
        int last = -1;
        for (int o = lo; o < hi; ++o) {
          first = std::min(first, map.taps<float>(o).first);
          last = std::max(last, map.taps<float>(o).second);
        }
        EXPECT(got.lo == first && got.hi == last + 1, "sources of [", lo, ", ", hi, "), in ", in, ", out ", out);
      }
    }
    for (int lo = 0; lo < in; lo += 1 + in / 7) {
      for (int hi = lo + 1; hi <= in; hi += 1 + in / 7) {
        const Range got = map.outputs(Range{lo, hi});
        EXPECT(got.empty() || (got.lo >= 0 && got.hi <= out));
        for (int i = lo; i < hi; ++i) {
          const Range one = map.outputs(i);
          EXPECT(one.empty() || (got.lo <= one.lo && one.hi <= got.hi), "outputs of [", lo, ", ", hi, ")");
        }
      }
    }
    EXPECT(map.sources(Range{3, 3}).empty() && map.outputs(Range{2, 1}).empty());
  });
}

void hulls_ignore_empty_ranges() {
  const Range hulled = hull(Range{3, 5}, Range{8, 9});
  EXPECT(hulled.lo == 3 && hulled.hi == 9 && hulled.size() == 6 && !hulled.empty());
  EXPECT(hull(Range{7, 7}, Range{1, 2}).lo == 1 && hull(Range{1, 2}, Range{9, 3}).hi == 2);
  EXPECT_EQUAL((Range{9, 3}.size()), 0);
  const Tile tile = hull(Tile{{0, 2}, {4, 6}}, Tile{{1, 3}, {5, 9}});
  EXPECT(tile.rows.lo == 0 && tile.rows.hi == 3 && tile.columns.lo == 4 && tile.columns.hi == 9);
  EXPECT_EQUAL(tile.area(), int64_t{15});
  const Tile empty{{5, 5}, {0, 100}};
  EXPECT(empty.empty() && empty.area() == 0 && hull(empty, tile).rows.hi == 3 && hull(tile, empty).rows.lo == 0);
}

// ---- the chain ------------------------------------------------------------------------------------------------------

void grids_floor_in_double() {
  EXPECT((grid_extent({17, 23}, 0.5) == Extent{8, 11}));
  EXPECT((grid_extent({17, 23}, 2.0) == Extent{34, 46}));
  EXPECT((grid_extent({17, 23}, 0.25) == Extent{4, 5}));
  EXPECT((grid_extent({17, 23}, 1.0) == Extent{17, 23}));
  EXPECT((grid_extent({100, 10}, 0.29) == Extent{28, 2}));  // 100 * 0.29 is 28.999999999999996 in double
  EXPECT((grid_extent({1, 1}, 0.5) == Extent{0, 0}));
  EXPECT((Extent{3, 4} != Extent{3, 5}) && (Extent{2, 4} != Extent{3, 4}));
}

struct Case {
  std::vector<double> scales;
  Extent size;
  std::vector<Extent> heads;
};

std::vector<Case> cases() {
  std::vector<Case> all = {
      {{1.0}, {7, 9}, {{2, 3}}},
      {{0.5}, {7, 9}, {{2, 3}}},
      {{2.0}, {7, 9}, {{5, 4}}},
      {{1.0, 0.5}, {16, 24}, {{4, 6}, {2, 3}}},
      {{2.0, 1.0, 0.5}, {17, 23}, {{9, 12}, {5, 6}, {3, 3}}},
      {{2.0, 1.5, 1.0}, {11, 6}, {{6, 3}, {4, 9}, {11, 6}}},
      {{1.0, 0.75, 0.5, 0.25}, {12, 13}, {{3, 4}, {3, 3}, {2, 2}, {1, 1}}},
      {{3.0, 2.0, 1.5, 1.0, 0.6, 0.4, 0.3, 0.2},
       {13, 10},
       {{8, 8}, {7, 5}, {5, 4}, {4, 3}, {8, 7}, {1, 1}, {3, 3}, {2, 2}}},
  };
  return all;
}

Chain chain_of(const Case& c, bool align_corners) {
  return make_chain(static_cast<int>(c.scales.size()), c.scales.data(), c.heads.data(), c.size, false, align_corners);
}

void chains_know_their_parts() {
  for (const Case& c : cases()) {
    const Chain chain = chain_of(c, false);
    EXPECT_EQUAL(chain.count, static_cast<int>(c.scales.size()));
    EXPECT(c.scales.size() == 1 || c.scales[chain.unit] == 1.0);
    EXPECT_EQUAL(chain.needs_final_resize, c.scales.size() == 1 && c.scales[0] != 1.0);
    for (int i = 0; i < chain.count; ++i) {
      EXPECT_EQUAL(chain.is_lower(i), i > chain.unit);
      EXPECT(chain.grids[i] == grid_extent(c.size, c.scales[i]));
      EXPECT(chain.heads[i] == c.heads[i]);
      EXPECT(chain.up[i].rows.in == c.heads[i].height && chain.up[i].columns.in == c.heads[i].width);
      EXPECT(chain.up[i].rows.out == chain.grids[i].height && chain.up[i].columns.out == chain.grids[i].width);
      const Extent next = i < chain.unit ? chain.grids[i + 1] : c.size;
      EXPECT(chain.across[i].rows.in == chain.grids[i].height && chain.across[i].rows.out == next.height);
      EXPECT(chain.across[i].columns.in == chain.grids[i].width && chain.across[i].columns.out == next.width);
    }
  }
}

// Which elements of a map matter.
struct Marks {
  Extent extent;
  std::vector<char> marked;

  explicit Marks(Extent e) : extent(e), marked(static_cast<size_t>(e.height) * e.width, 0) {}
  char& at(int y, int x) { return marked[static_cast<size_t>(y) * extent.width + x]; }
};

// Marks every element of `from` that a marked element of `to` reads with a weight other than zero.
void mark_sources(const Resize& resize, Marks& to, Marks& from) {
  for (int y = 0; y < to.extent.height; ++y) {
    for (int x = 0; x < to.extent.width; ++x) {
      if (!to.at(y, x)) continue;
      const Taps<double> rows = resize.rows.taps<double>(y);
      const Taps<double> columns = resize.columns.taps<double>(x);
      for (const int v : {rows.first, rows.second}) {
        for (const int u : {columns.first, columns.second}) {
          if (resize.rows.weight<double>(y, v) * resize.columns.weight<double>(x, u) != 0.0) from.at(v, u) = 1;
        }
      }
    }
  }
}

void mark(Marks& marks, const Tile& tile) {
  for (int y = tile.rows.lo; y < tile.rows.hi; ++y) {
    for (int x = tile.columns.lo; x < tile.columns.hi; ++x) marks.at(y, x) = 1;
  }
}

bool holds(const Tile& tile, Marks& marks) {
  for (int y = 0; y < marks.extent.height; ++y) {
    for (int x = 0; x < marks.extent.width; ++x) {
      const bool inside = y >= tile.rows.lo && y < tile.rows.hi && x >= tile.columns.lo && x < tile.columns.hi;
      if (marks.at(y, x) && !inside) return false;
    }
  }
  return true;
}

bool lies_in(const Tile& tile, Extent extent) {
  return tile.empty() || (tile.rows.lo >= 0 && tile.columns.lo >= 0 && tile.rows.hi <= extent.height &&
                          tile.columns.hi <= extent.width);
}

// The maps that the marked elements of the output depend on: grids first, then heads.
std::pair<std::vector<Marks>, std::vector<Marks>> dependencies(const Chain& chain, Marks output) {
  std::vector<Marks> grids, heads;
  for (int i = 0; i < chain.count; ++i) {
    grids.emplace_back(chain.grids[i]);
    heads.emplace_back(chain.heads[i]);
  }
  for (int i = chain.unit + 1; i < chain.count; ++i) mark_sources(chain.across[i], output, grids[i]);
  mark_sources(chain.across[chain.unit], output, grids[chain.unit]);
  for (int i = chain.unit - 1; i >= 0; --i) mark_sources(chain.across[i], grids[i + 1], grids[i]);
  for (int i = 0; i < chain.count; ++i) mark_sources(chain.up[i], grids[i], heads[i]);
  return {grids, heads};
}

void forward_tiles_hold_what_the_output_depends_on() {
  for (const Case& c : cases()) {
    for (const bool align_corners : {false, true}) {
      const Chain chain = chain_of(c, align_corners);
      for (const Extent part : {Extent{1, 1}, Extent{3, 2}, Extent{5, 100}}) {
        for (int y = 0; y < c.size.height; y += part.height) {
          for (int x = 0; x < c.size.width; x += part.width) {
            const Tile tile{{y, std::min(y + part.height, c.size.height)}, {x, std::min(x + part.width, c.size.width)}};
            const ForwardTiles tiles = forward_tiles(chain, tile);
            Marks output(c.size);
            mark(output, tile);
            auto [grids, heads] = dependencies(chain, output);
            for (int i = 0; i < chain.count; ++i) {
              EXPECT(holds(tiles.grids[i], grids[i]) && lies_in(tiles.grids[i], chain.grids[i]), "grid ", i);
              EXPECT(holds(tiles.heads[i], heads[i]) && lies_in(tiles.heads[i], chain.heads[i]), "head ", i);
            }
          }
        }
      }
    }
  }
}

void backward_tiles_own_each_input_once_and_hold_what_depends_on_it() {
  for (const Case& c : cases()) {
    for (const bool align_corners : {false, true}) {
      const Chain chain = chain_of(c, align_corners);
      // For every element of the output: what it depends on.
      std::vector<std::pair<std::vector<Marks>, std::vector<Marks>>> depends;
      for (int y = 0; y < c.size.height; ++y) {
        for (int x = 0; x < c.size.width; ++x) {
          Marks output(c.size);
          output.at(y, x) = 1;
          depends.push_back(dependencies(chain, output));
        }
      }
      for (const Extent parts : {Extent{1, 1}, Extent{2, 3}, Extent{7, 5}}) {
        std::vector<Marks> owned;
        for (int i = 0; i < chain.count; ++i) owned.emplace_back(chain.heads[i]);
        for (int row = 0; row < parts.height; ++row) {
          for (int column = 0; column < parts.width; ++column) {
            const BackwardTiles tiles = backward_tiles(chain, parts, row, column);
            EXPECT(lies_in(tiles.output, c.size));
            for (int i = 0; i < chain.count; ++i) {
              const Tile& mine = tiles.owned[i];
              EXPECT(lies_in(tiles.grids[i], chain.grids[i]) && lies_in(tiles.levels[i], chain.grids[i]));
              for (int y = mine.rows.lo; y < mine.rows.hi; ++y) {
                for (int x = mine.columns.lo; x < mine.columns.hi; ++x) {
                  ++owned[i].at(y, x);
                  for (size_t o = 0; o < depends.size(); ++o) {
                    if (!depends[o].second[i].at(y, x)) continue;
                    Marks reached(c.size);
                    reached.marked[o] = 1;
                    EXPECT(holds(tiles.output, reached), "head ", i, " at ", y, ", ", x);
                  }
                  Marks one(chain.heads[i]);
                  one.at(y, x) = 1;
                  Marks grid(chain.grids[i]);
                  for (int v = 0; v < grid.extent.height; ++v) {
                    for (int u = 0; u < grid.extent.width; ++u) {
                      grid.at(v, u) =
                          chain.up[i].rows.weight<double>(v, y) * chain.up[i].columns.weight<double>(u, x) != 0;
                    }
                  }
                  EXPECT(holds(tiles.grids[i], grid), "grid ", i);
                  EXPECT(holds(tiles.levels[i], grid), "level ", i);
                }
              }
              // dLoss/dP of a level is passed on to the level before it.
              if (i == 0 || chain.is_lower(i)) continue;
              Marks before(chain.grids[i - 1]);
              mark(before, tiles.levels[i - 1]);
              for (int v = 0; v < chain.grids[i].height; ++v) {
                for (int u = 0; u < chain.grids[i].width; ++u) {
                  Marks reader(chain.grids[i]);
                  reader.at(v, u) = 1;
                  Marks read(chain.grids[i - 1]);
                  mark_sources(chain.across[i - 1], reader, read);
                  bool meets = false;
                  for (size_t k = 0; k < read.marked.size(); ++k) meets |= read.marked[k] && before.marked[k];
                  if (meets) EXPECT(holds(tiles.levels[i], reader), "level ", i);
                }
              }
            }
          }
        }
        for (Marks& marks : owned) {
          for (const char times : marks.marked) EXPECT_EQUAL(static_cast<int>(times), 1);
        }
      }
    }
  }
}

void shares_divide_a_size() {
  for (const int size : {0, 1, 5, 64, (1 << 24) - 1}) {
    for (const int parts : {1, 2, 7, 100, 1 << 14}) {
      int next = 0;
      for (int part = 0; part < parts; ++part) {
        const Range range = share(size, parts, part);
        EXPECT_EQUAL(range.lo, next);
        EXPECT(range.size() <= size / parts + 1);
        next = range.hi;
      }
      EXPECT_EQUAL(next, size);
    }
  }
}

// ---- elements -------------------------------------------------------------------------------------------------------

void blends_follow_their_formulas() {
  EXPECT_EQUAL(lerp(2.0, 6.0, 0.25), 3.0);
  EXPECT_EQUAL(blend_upper(0.25, 8.0, 4.0), 5.0);
  EXPECT_EQUAL(blend_lower(0.25, 8.0, 4.0), 11.0);
  EXPECT_EQUAL(lerp(2.0f, 6.0f, 0.25f), 3.0f);
  EXPECT_EQUAL(lerp(kInfinity, kInfinity, 0.5), kInfinity);
  EXPECT_EQUAL(blend_upper(0.5, kInfinity, kInfinity), kInfinity);
  EXPECT_EQUAL(blend_lower(0.5, -kInfinity, -1.0), -kInfinity);
  EXPECT(std::isnan(lerp(kNaN, 1.0, 0.5)) && std::isnan(lerp(1.0, kNaN, 0.5)));
  EXPECT(std::isnan(blend_upper(kNaN, 1.0, 1.0)) && std::isnan(blend_lower(kNaN, 1.0, 1.0)));
}

void views_follow_their_strides() {
  float data[100] = {};
  const MapView<float> view{data, 50, 1, 20, 4};
  EXPECT_EQUAL(view.at(1, 3, 2, 1) - data, 97);
  EXPECT_EQUAL(view.at(0, 0, 0, 0) - data, 0);
}

void checks_throw_their_text_alone() {
  HMSA_CHECK(1 + 1 == 2, "never");
  EXPECT_THROWS(HMSA_CHECK(1 == 2, "scales has ", 3, " entries; expected ", 1.5), "scales has 3 entries; expected 1.5");
  try {
    HMSA_CHECK(false, "plain");
  } catch (const std::runtime_error& error) {
    EXPECT_EQUAL(std::string(error.what()), "plain");
  }
}

}  // namespace

int main() {
  RUN_TEST(taps_lie_at_the_source_coordinate);
  RUN_TEST(taps_are_right_at_the_largest_sizes);
  RUN_TEST(equal_sizes_are_copied);
  RUN_TEST(outputs_are_the_inverse_of_taps);
  RUN_TEST(weights_of_an_output_add_up_to_one);
  RUN_TEST(composed_taps_are_two_resizes_in_a_row);
  RUN_TEST(composed_taps_keep_zero_weights);
  RUN_TEST(ranges_hold_all_their_elements_need);
  RUN_TEST(hulls_ignore_empty_ranges);
  RUN_TEST(grids_floor_in_double);
  RUN_TEST(chains_know_their_parts);
  RUN_TEST(forward_tiles_hold_what_the_output_depends_on);
  RUN_TEST(backward_tiles_own_each_input_once_and_hold_what_depends_on_it);
  RUN_TEST(shares_divide_a_size);
  RUN_TEST(blends_follow_their_formulas);
  RUN_TEST(views_follow_their_strides);
  RUN_TEST(checks_throw_their_text_alone);
  return testing::finish();
}
