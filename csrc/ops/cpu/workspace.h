// Scratch memory of a thread, and patches of maps in it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/chain.h"
#include "core/integers.h"
#include "ops/cpu/simd/rows.h"

namespace hmsa {

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

// Asks for a row that is read soon. The rows of a map lie pages apart, and no processor guesses the next one.
template <typename S>
void prefetch_row(const S* row, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(S);
  for (int64_t x = 0; x < n; x += kLine) __builtin_prefetch(row + x);
}

// Scratch memory of one thread: hands out aligned pieces, takes all of them back at once, and grows as needed.
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
    count = round_up(count, kAlign);
    while (block_ < blocks_.size() && used_ + count > blocks_[block_].size) {
      ++block_;
      used_ = 0;
    }
    if (block_ == blocks_.size()) {
      const int64_t size = std::max(count, blocks_.empty() ? kFirstBlock : kBlock);
      blocks_.emplace_back(size);
    }
    T* start = blocks_[block_].start() + used_;
    used_ += count;
    return start;
  }

  T* zeros(int64_t count) {
    T* start = take(count);
    std::fill(start, start + count, T(0));
    return start;
  }

  // Elements from one row to the next where rows are `width` wide and aligned. Not a multiple of 4 KiB: such rows would
  // compete for the same few lines of the L1 cache.
  static int64_t pitch(int64_t width) {
    const int64_t aligned = round_up(width, kAlign);
    return aligned * sizeof(T) % 4096 == 0 ? aligned + kAlign : aligned;
  }

  Patch<T> patch(const Tile& tile) {
    const int64_t pitch = Scratch::pitch(tile.columns.size());
    return Patch<T>{take(pitch * tile.rows.size()), tile, pitch};
  }

 private:
  static constexpr int64_t kAlign = 64 / sizeof(T);
  // The first block is enough for little work. More work touches megabytes. Those are in huge pages, since page faults
  // of thousands of small pages, new in every call, took a third of the time of some kernels.
  static constexpr int64_t kFirstBlock = (int64_t(1) << 18) / sizeof(T);
  static constexpr int64_t kBlock = (int64_t(1) << 22) / sizeof(T) - 64;  // two huge pages with its slack

  class Block {
   public:
    explicit Block(int64_t size) : size(size) {
      const size_t bytes = (static_cast<size_t>(size) + kRowSlack) * sizeof(T);
      const bool huge = bytes > kHugePage;
      memory_.reset(static_cast<T*>(std::aligned_alloc(huge ? kHugePage : 64, round_up(bytes, huge ? kHugePage : 64))));
      if (!memory_) throw std::bad_alloc();
#if defined(__linux__)
      // A hint: failure changes no result.
      if (huge) madvise(memory_.get(), round_up(bytes, kHugePage), MADV_HUGEPAGE);
#endif
    }
    T* start() const { return memory_.get(); }

    int64_t size;

   private:
    static constexpr size_t kHugePage = size_t(1) << 21;

    struct Free {
      void operator()(T* memory) const { std::free(memory); }
    };
    std::unique_ptr<T, Free> memory_;  // not cleared
  };

  std::vector<Block> blocks_;
  size_t block_ = 0;
  int64_t used_ = 0;
};

}  // namespace hmsa
