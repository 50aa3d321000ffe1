// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): 128 random bits that
// depend on a counter and a key alone.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace hmsa {

struct PhiloxWords {
  uint32_t word[4];

  // Words 2 * i and 2 * i + 1 as one number, the first the upper half.
  HMSA_HOST_DEVICE uint64_t wide(int i) const { return uint64_t(word[2 * i]) << 32 | word[2 * i + 1]; }
};

HMSA_HOST_DEVICE PhiloxWords philox(PhiloxWords counter, uint64_t key) {
  uint32_t low_key = static_cast<uint32_t>(key);
  uint32_t high_key = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t(0xD2511F53) * counter.word[0];
    const uint64_t second = uint64_t(0xCD9E8D57) * counter.word[2];
    counter = {{static_cast<uint32_t>(second >> 32) ^ counter.word[1] ^ low_key, static_cast<uint32_t>(second),
                static_cast<uint32_t>(first >> 32) ^ counter.word[3] ^ high_key, static_cast<uint32_t>(first)}};
    low_key += 0x9E3779B9;
    high_key += 0xBB67AE85;
  }
  return counter;
}

// A number of [0, size), size <= 2^32, from 64 random bits: floor(bits * size / 2^64). No number is more probable than
// another by more than size / 2^64.
HMSA_HOST_DEVICE int64_t random_below(uint64_t bits, uint64_t size) {
  return static_cast<int64_t>(((bits >> 32) * size + ((bits & 0xffffffff) * size >> 32)) >> 32);
}

// A number of [0, 1) in steps of 2^-53.
HMSA_HOST_DEVICE double random_unit(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

}  // namespace hmsa
