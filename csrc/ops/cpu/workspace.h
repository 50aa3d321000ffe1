// What the CPU kernels share: tables of a chain's axes, and scratch memory of a thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/chain.h"
#include "ops/cpu/simd/rows.h"

namespace hmsa {

// The weights of one axis written out: forward by output, adjoint by input.
template <typename T>
struct AxisTable {
  std::vector<int32_t> first, second;  // [out] inputs that an output reads
  std::vector<T> weight;               // [out] weight of the second
  std::vector<int32_t> origin;         // [in] first output that reads an input
  std::vector<int32_t> start;          // [in + 1] where the input's weights begin in `adjoint`
  std::vector<T> adjoint;

  explicit AxisTable(const AxisMap& map, bool with_adjoint) {
    first.resize(map.out);
    second.resize(map.out);
    weight.resize(map.out);
    for (int32_t o = 0; o < map.out; ++o) {
      const Taps<T> taps = map.taps<T>(o);
      first[o] = taps.first;
      second[o] = taps.second;
      weight[o] = taps.weight;
    }
    if (!with_adjoint) return;
    origin.resize(map.in);
    start.assign(1, 0);
    for (int32_t i = 0; i < map.in; ++i) {
      const Range outputs = map.outputs(i);
      origin[i] = outputs.lo;
      for (int32_t o = outputs.lo; o < outputs.hi; ++o) {
        adjoint.push_back((first[o] == i ? T(1) - weight[o] : T(0)) + (second[o] == i ? weight[o] : T(0)));
      }
      start.push_back(static_cast<int32_t>(adjoint.size()));
    }
  }
};

template <typename T>
struct ResizeTable {
  AxisTable<T> rows;
  AxisTable<T> columns;

  ResizeTable(const Resize& resize, bool with_adjoint)
      : rows(resize.rows, with_adjoint), columns(resize.columns, with_adjoint) {}
};

template <typename T>
struct ChainTables {
  std::vector<ResizeTable<T>> up;      // head -> grid
  std::vector<ResizeTable<T>> across;  // grid -> next grid, or the output

  ChainTables(const Chain& chain, bool with_adjoint) {
    for (int i = 0; i < chain.count; ++i) {
      up.emplace_back(chain.up[i], with_adjoint);
      across.emplace_back(chain.across[i], with_adjoint);
    }
  }
};

// A tile of one channel in scratch memory. Rows and columns are counted in the map, not in the tile.
template <typename T>
struct Patch {
  T* data = nullptr;
  Tile tile{{0, 0}, {0, 0}};
  int64_t pitch = 0;

  T* row(int32_t y) const { return data + (y - tile.rows.lo) * pitch; }
  // Row y from column x on.
  T* row(int32_t y, int32_t x) const { return row(y) + (x - tile.columns.lo); }
  int32_t width() const { return tile.columns.size(); }
};

// Scratch memory of one thread: hands out aligned pieces, takes them all back at once, and grows to what is needed.
template <typename T>
class Scratch {
 public:
  struct Mark {
    size_t block;
    int64_t used;
  };

  // Everything taken after mark() is given back by rewind().
  Mark mark() const { return Mark{block_, used_}; }
  void rewind(Mark mark) {
    block_ = mark.block;
    used_ = mark.used;
  }

  T* take(int64_t count) {
    count = (count + kAlign - 1) / kAlign * kAlign;
    while (block_ < blocks_.size() && used_ + count > blocks_[block_].size) {
      ++block_;
      used_ = 0;
    }
    if (block_ == blocks_.size()) {
      const int64_t size = std::max(count, kBlock);
      blocks_.push_back(Block{std::unique_ptr<T[]>(new T[size + kAlign + kRowSlack]), size});
    }
    T* start = blocks_[block_].aligned() + used_;
    used_ += count;
    return start;
  }

  T* zeros(int64_t count) {
    T* start = take(count);
    std::fill(start, start + count, T(0));
    return start;
  }

  Patch<T> patch(const Tile& tile) {
    const int64_t pitch = (tile.columns.size() + kAlign - 1) / kAlign * kAlign;
    return Patch<T>{take(pitch * tile.rows.size()), tile, pitch};
  }

  Patch<T> zero_patch(const Tile& tile) {
    Patch<T> patch = this->patch(tile);
    std::fill(patch.data, patch.data + patch.pitch * tile.rows.size(), T(0));
    return patch;
  }

 private:
  static constexpr int64_t kAlign = 64 / sizeof(T);
  static constexpr int64_t kBlock = (int64_t(1) << 18) / sizeof(T);

  struct Block {
    std::unique_ptr<T[]> memory;  // new[] without (): not cleared
    int64_t size;

    T* aligned() const {
      const auto address = reinterpret_cast<uintptr_t>(memory.get());
      return memory.get() + ((64 - address % 64) % 64) / sizeof(T);
    }
  };

  std::vector<Block> blocks_;
  size_t block_ = 0;
  int64_t used_ = 0;
};

}  // namespace hmsa
