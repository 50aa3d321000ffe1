// Runs a grid of CUDA threads on one CPU thread, for tests only: every thread of a block is a fiber.
//
// Between two barriers the fibers run one after another in a random order that the seed chooses, each until it waits
// for the others or ends; blocks are shuffled as well. Correct kernels give the same bits for every seed. What a GPU
// leaves undefined is an error here (std::runtime_error with kernel, block and thread): a barrier or warp operation
// that not all of its threads reach, a mask with lanes that do not exist, a shuffle from a lane outside the mask.
// Shared memory is allocated per block, exactly as large as asked for, and filled with 0xff bytes: NaN in every
// floating-point type, -1 in the integers. AddressSanitizer therefore sees each access outside it, and is told about
// every change of stack.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "stacks.h"

struct uint3 {
  unsigned int x, y, z;
};

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
};

// The built-in variables of the thread that runs now.
inline uint3 threadIdx;
inline uint3 blockIdx;
inline dim3 blockDim;
inline dim3 gridDim;
constexpr int warpSize = 32;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

namespace hmsa {
namespace host_run {

constexpr std::size_t kParameterLimit = 4096;  // bytes of kernel parameters that every driver takes

// ---- Devices ----------------------------------------------------------------------------------------------------

// Bytes of shared memory that a block may have unless its kernel has opted in to more: static and dynamic together.
// Static ones alone are never more.
constexpr std::size_t kSharedWithoutOptIn = 48 * 1024;
constexpr std::size_t kReservedShared = 1024;  // of each block, the system's

struct Device {
  const char* name;
  int multiprocessors;
  std::size_t shared_per_multiprocessor;
  std::size_t shared_per_block;  // with opt-in
  int threads_per_multiprocessor;
  int l2_bytes;
  int major, minor;
};

// Numbers of devices, for cudaSetDevice. The first has the limits of an H100 but few multiprocessors, so that loops over a
// grid go round on small images.
enum DeviceNumber { kSmall, kH200, kA100, kRtx3090, kRtx4090, kRtx5090, kDeviceCount };

inline const Device& device(int number) {
  constexpr std::size_t kKiB = 1024;
  constexpr int kMiB = 1024 * 1024;
  static const Device devices[kDeviceCount] = {
      {"a small H100", 4, 228 * kKiB, 227 * kKiB, 2048, 50 * kMiB, 9, 0},
      {"H200", 132, 228 * kKiB, 227 * kKiB, 2048, 50 * kMiB, 9, 0},
      {"A100", 108, 164 * kKiB, 163 * kKiB, 2048, 40 * kMiB, 8, 0},
      {"RTX 3090", 82, 100 * kKiB, 99 * kKiB, 1536, 6 * kMiB, 8, 6},
      {"RTX 4090", 128, 100 * kKiB, 99 * kKiB, 1536, 72 * kMiB, 8, 9},
      {"RTX 5090", 170, 100 * kKiB, 99 * kKiB, 1536, 96 * kMiB, 12, 0},
  };
  return devices[number];
}

// Chooses the order of threads and blocks. Starts as the environment variable HMSA_HOST_RUN_SEED, or 0.
inline std::uint64_t& seed() {
  static std::uint64_t value = [] {
    const char* text = std::getenv("HMSA_HOST_RUN_SEED");
    return text ? std::strtoull(text, nullptr, 0) : 0ull;
  }();
  return value;
}

// SplitMix64: any state is a good one.
struct Random {
  std::uint64_t state;

  std::uint64_t next() {
    std::uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(next() % n); }
};

// ---- The machine ------------------------------------------------------------------------------------------------

enum class State { kReady, kAtBarrier, kAtWarp, kDone };
enum class Reduction { kNone, kCount, kAnd, kOr };

// One thread of the block, and what it waits for.
struct Fiber {
  Context context;
  unsigned char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  uint3 index{};
  State state = State::kDone;
  const char* what = nullptr;  // __syncthreads, __shfl_xor_sync ..., at file:line
  const char* file = nullptr;
  int line = 0;
  std::uint32_t mask = 0;   // warp operation: the lanes that take part
  int source = 0;           // warp operation: the lane whose value this one gets
  std::uint64_t value = 0;  // in: what this thread gives; out: what it gets
  Reduction reduction = Reduction::kNone;
  int barrier = 0;          // its number; all but 0 are barriers of some threads
  std::size_t meeting = 0;  // threads that meet at a barrier of some
};

// Memory of exactly `bytes`, filled with 0xff. Without AddressSanitizer 64 bytes behind it tell of stray writes.
class PoisonedMemory {
 public:
  explicit PoisonedMemory(std::size_t bytes) : bytes_(bytes) {
    if (posix_memalign(&data_, 128, bytes + kGuard) != 0) throw std::bad_alloc();
    std::memset(data_, 0xff, bytes + kGuard);
  }
  PoisonedMemory(PoisonedMemory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
  PoisonedMemory(const PoisonedMemory&) = delete;
  PoisonedMemory& operator=(const PoisonedMemory&) = delete;
  ~PoisonedMemory() { std::free(data_); }

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  bool guard_intact() const {
    for (std::size_t i = 0; i < kGuard; ++i) {
      if (static_cast<const unsigned char*>(data_)[bytes_ + i] != 0xff) return false;
    }
    return true;
  }

 private:
#if defined(HMSA_HOST_RUN_ASAN)
  static constexpr std::size_t kGuard = 0;
#else
  static constexpr std::size_t kGuard = 64;
#endif
  void* data_ = nullptr;
  std::size_t bytes_;
};

struct Machine {
  std::vector<Fiber> fibers;
  std::size_t threads = 0;  // of the block; `fibers` keeps the stacks of the largest so far
  Fiber* current = nullptr;
  Context scheduler;
  const void* scheduler_stack = nullptr;
  std::size_t scheduler_stack_bytes = 0;
  const std::function<void()>* body = nullptr;
  std::string failure;                 // set by a fiber, thrown by the scheduler
  std::vector<PoisonedMemory> shared;  // of this block; the first is the dynamic one
  std::uint64_t block_serial = 0;      // differs from block to block
  const void* kernel = nullptr;        // that runs
  bool busy = false;

  // The runtime.
  int device = kSmall;                                          // the current one
  std::map<std::pair<int, const void*>, std::size_t> opted_in;  // device and kernel -> bytes of dynamic shared memory
  std::map<const void*, std::size_t> static_bytes;              // of kernels that have run
  cudaError_t last_error = cudaSuccess;
  std::string refusal;         // what is wrong with the launch that was refused last
  bool only_plans = false;     // see only_plan()
  std::uint64_t launches = 0;  // that were not refused

  ~Machine() {
    for (Fiber& fiber : fibers) delete_stack(fiber.stack);
  }
};

inline Machine& machine() {
  static Machine value;
  return value;
}

inline std::string name(const uint3& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

inline std::string site(const Fiber& fiber) {
  return std::string(" at ") + fiber.what + " (" + fiber.file + ":" + std::to_string(fiber.line) + ")";
}

inline std::string place(const Fiber& fiber) {
  return "thread " + name(fiber.index) + (fiber.state == State::kDone ? " has ended" : " waits" + site(fiber));
}

inline void resume(Fiber& fiber) {
  Machine& m = machine();
  m.current = &fiber;
  threadIdx = fiber.index;
  void* fake_stack = nullptr;
  leave(&fake_stack, fiber.stack, kStackBytes);
  change(m.scheduler, fiber.context);
  arrive(fake_stack, nullptr, nullptr);
}

// Back to the scheduler, until it resumes this fiber.
inline void yield() {
  Machine& m = machine();
  Fiber& fiber = *m.current;
  leave(fiber.state == State::kDone ? nullptr : &fiber.fake_stack, m.scheduler_stack, m.scheduler_stack_bytes);
  change(fiber.context, m.scheduler);
  arrive(fiber.fake_stack, &m.scheduler_stack, &m.scheduler_stack_bytes);
}

inline void fiber_main() {
  Machine& m = machine();
  arrive(nullptr, &m.scheduler_stack, &m.scheduler_stack_bytes);
  (*m.body)();
  m.current->state = State::kDone;
  yield();
}

// Ends the launch from inside a thread; does not return. `describe` makes the text, so that no string is left on the
// stack of the fiber, which is abandoned.
template <typename Describe>
void fail(Describe describe) {
  machine().failure = "thread " + name(machine().current->index) + " " + describe();
  yield();
  std::abort();
}

// ---- What a launch may ask for ------------------------------------------------------------------------------------

// Static shared memory of a kernel, 0 as long as it has not run.
inline std::size_t static_bytes_of(const void* kernel) {
  const auto found = machine().static_bytes.find(kernel);
  return found == machine().static_bytes.end() ? 0 : found->second;
}

// Sets and returns what is wrong with a launch's shared memory; empty: nothing.
inline const char* shared_refusal(const void* kernel, std::size_t dynamic_bytes) {
  Machine& m = machine();
  const Device& on = device(m.device);
  const std::size_t static_bytes = static_bytes_of(kernel);
  const std::size_t both = static_bytes + dynamic_bytes;
  const auto opted_in = m.opted_in.find({m.device, kernel});
  const bool has_opted_in = opted_in != m.opted_in.end();
  const std::string bytes = std::to_string(dynamic_bytes) + " bytes of dynamic and " + std::to_string(static_bytes) +
                            " of static shared memory";
  m.refusal.clear();
  if (static_bytes > kSharedWithoutOptIn) {
    m.refusal = bytes + ", of which 48 KiB may be static";
  } else if (both > on.shared_per_block || both + kReservedShared > on.shared_per_multiprocessor) {
    m.refusal = bytes + "; a block on " + on.name + " has " + std::to_string(on.shared_per_block) + " at most";
  } else if (!has_opted_in && both > kSharedWithoutOptIn) {
    m.refusal = bytes + " are more than 48 KiB, and the kernel has not opted in to more";
  } else if (has_opted_in && dynamic_bytes > opted_in->second) {
    m.refusal = bytes + "; the kernel has opted in to " + std::to_string(opted_in->second) + " dynamic ones";
  }
  return m.refusal.c_str();
}

// ---- What threads call --------------------------------------------------------------------------------------------

// A __shared__ variable: one object per place in the source (and per instantiation of a template), which hands every
// block memory of its own.
class SharedVariable {
 public:
  void* get(std::size_t bytes) {
    Machine& m = machine();
    if (serial_ != m.block_serial) {
      std::size_t total = bytes;
      for (std::size_t i = 1; i < m.shared.size(); ++i) total += m.shared[i].bytes();
      // Known only now where the kernel has not run before; later launches are refused before they start.
      std::size_t& of_kernel = m.static_bytes[m.kernel];
      if (of_kernel < total) of_kernel = total;
      if (shared_refusal(m.kernel, m.shared[0].bytes())[0] != '\0') {
        fail([] { return "has too much shared memory: " + machine().refusal; });
      }
      m.shared.emplace_back(bytes);
      data_ = m.shared.back().data();
      serial_ = m.block_serial;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  std::uint64_t serial_ = 0;
};

inline void* dynamic_shared() { return machine().shared[0].data(); }

// Waits for all threads of the block. Returns `value` reduced over them.
inline int barrier(const char* what, int value, Reduction reduction, const char* file, int line) {
  Fiber& fiber = *machine().current;
  fiber.state = State::kAtBarrier;
  fiber.what = what;
  fiber.file = file;
  fiber.line = line;
  fiber.value = value != 0;
  fiber.reduction = reduction;
  fiber.barrier = 0;
  yield();
  return static_cast<int>(fiber.value);
}

// Waits for so many threads of the block at the barrier of this number, as bar.sync does: 1 to 15, whole warps.
inline void barrier_of_some(int number, int threads, const char* file, int line) {
  Fiber& fiber = *machine().current;
  fiber.what = "barrier of some threads";
  fiber.file = file;
  fiber.line = line;
  if (number < 1 || number > 15 || threads <= 0 || threads % warpSize != 0) {
    fail([&] { return "asks for barrier " + std::to_string(number) + " of " + std::to_string(threads) + site(fiber); });
  }
  fiber.state = State::kAtBarrier;
  fiber.barrier = number;
  fiber.meeting = static_cast<std::size_t>(threads);
  yield();
}

inline int lane_of(const Fiber& fiber) { return static_cast<int>(&fiber - machine().fibers.data()) % warpSize; }

// Waits for the lanes in `mask`. Returns the value that lane `source` gave, or with source < 0 one bit per lane in the
// mask: whether its value was not 0.
inline std::uint64_t exchange(const char* what, std::uint32_t mask, std::uint64_t value, int source, const char* file,
                              int line) {
  Machine& m = machine();
  Fiber& fiber = *m.current;
  const int lane = lane_of(fiber);
  const std::size_t warp_start = static_cast<std::size_t>(&fiber - m.fibers.data()) - lane;
  const std::size_t lanes = m.threads - warp_start < 32 ? m.threads - warp_start : 32;
  fiber.what = what;
  fiber.file = file;
  fiber.line = line;
  if (!(mask >> lane & 1u)) fail([&] { return "is not in the mask it gives" + site(fiber); });
  if (lanes < 32 && mask >> lanes != 0) {
    fail([&] { return "gives lanes of a warp that has only " + std::to_string(lanes) + " threads" + site(fiber); });
  }
  if (source >= 0 && !(mask >> source & 1u)) {
    fail([&] { return "reads lane " + std::to_string(source) + " outside the mask" + site(fiber); });
  }
  fiber.state = State::kAtWarp;
  fiber.mask = mask;
  fiber.value = value;
  fiber.source = source;
  yield();
  return fiber.value;
}

// Segments of `width` lanes, as the shuffles define them.
inline int segment_start(int width) { return lane_of(*machine().current) & ~(width - 1); }

template <typename T>
T shuffle(const char* what, std::uint32_t mask, T value, int source, const char* file, int line) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "as CUDA's shuffles");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(what, mask, bits, source, file, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// ---- The scheduler ----------------------------------------------------------------------------------------------

// Lets the lanes of a warp operation go on once the last of them is there.
inline void try_exchange(Fiber& arrived, std::vector<Fiber*>& ready) {
  Fiber* warp = &arrived - lane_of(arrived);
  std::uint64_t given[32] = {};
  std::uint64_t ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(arrived.mask >> lane & 1u)) continue;
    const Fiber& other = warp[lane];
    if (other.state != State::kAtWarp || other.mask != arrived.mask || std::strcmp(other.what, arrived.what) != 0) {
      return;
    }
    given[lane] = other.value;
    ballot |= static_cast<std::uint64_t>(other.value != 0) << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (!(arrived.mask >> lane & 1u)) continue;
    Fiber& other = warp[lane];
    other.value = other.source < 0 ? ballot : given[other.source];
    other.state = State::kReady;
    ready.push_back(&other);
  }
}

// Lets threads go on that wait at a barrier of some threads, once the last of them is there.
inline void try_barrier_of_some(const Fiber& arrived, std::vector<Fiber*>& ready) {
  Machine& m = machine();
  const auto waits = [&](const Fiber& fiber) {
    return fiber.state == State::kAtBarrier && fiber.barrier == arrived.barrier;
  };
  std::size_t count = 0;
  for (std::size_t i = 0; i < m.threads; ++i) {
    if (!waits(m.fibers[i])) continue;
    if (m.fibers[i].meeting != arrived.meeting) {
      throw std::runtime_error("divergent barrier: " + place(m.fibers[i]) + " for " +
                               std::to_string(m.fibers[i].meeting) + " threads, but " + place(arrived) + " for " +
                               std::to_string(arrived.meeting));
    }
    ++count;
  }
  if (count < arrived.meeting) return;
  for (std::size_t i = 0; i < m.threads; ++i) {
    if (!waits(m.fibers[i])) continue;
    m.fibers[i].state = State::kReady;
    ready.push_back(&m.fibers[i]);
  }
}

// Nobody can run: either all threads are at one barrier and pass it, or the kernel is wrong.
inline void pass_barrier(std::vector<Fiber*>& ready) {
  Machine& m = machine();
  const Fiber* first = nullptr;
  for (std::size_t i = 0; i < m.threads; ++i) {
    if (m.fibers[i].state == State::kAtWarp) {
      const Fiber& fiber = m.fibers[i];
      const Fiber* warp = &fiber - lane_of(fiber);
      for (int lane = 0; lane < 32; ++lane) {
        if (!(fiber.mask >> lane & 1u)) continue;
        const Fiber& other = warp[lane];
        if (other.state != State::kAtWarp || other.mask != fiber.mask || std::strcmp(other.what, fiber.what) != 0) {
          throw std::runtime_error("divergent warp: " + place(fiber) + " for lane " + std::to_string(lane) + ", but " +
                                   place(other));
        }
      }
    } else if (m.fibers[i].state == State::kAtBarrier && !first) {
      first = &m.fibers[i];
    }
  }
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < m.threads; ++i) {
    const Fiber& fiber = m.fibers[i];
    if (fiber.state != State::kAtBarrier || fiber.barrier != 0 || fiber.line != first->line ||
        std::strcmp(fiber.file, first->file) != 0 || std::strcmp(fiber.what, first->what) != 0) {
      throw std::runtime_error("divergent barrier: " + place(*first) + ", but " + place(fiber));
    }
    count += fiber.value;
  }
  for (std::size_t i = 0; i < m.threads; ++i) {
    Fiber& fiber = m.fibers[i];
    fiber.value = fiber.reduction == Reduction::kAnd  ? count == m.threads
                  : fiber.reduction == Reduction::kOr ? count > 0
                                                      : count;
    fiber.state = State::kReady;
    ready.push_back(&fiber);
  }
}

inline void run_block(std::size_t shared_bytes, Random random) {
  Machine& m = machine();
  m.shared.clear();
  m.shared.emplace_back(shared_bytes);
  ++m.block_serial;
  std::vector<Fiber*> ready;
  for (std::size_t i = 0; i < m.threads; ++i) {
    Fiber& fiber = m.fibers[i];
    const unsigned int id = static_cast<unsigned int>(i);
    fiber.index = uint3{id % blockDim.x, id / blockDim.x % blockDim.y, id / blockDim.x / blockDim.y};
    fiber.state = State::kReady;
    forget_frames(fiber.stack, 4096);  // of fiber_main, which ends where it calls yield
    prepare(fiber.context, fiber.stack, fiber_main);
    ready.push_back(&fiber);
  }
  std::size_t done = 0;
  while (done < m.threads) {
    if (ready.empty()) pass_barrier(ready);
    const std::size_t pick = random.below(ready.size());
    Fiber& fiber = *ready[pick];
    ready[pick] = ready.back();
    ready.pop_back();
    resume(fiber);
    if (!m.failure.empty()) throw std::runtime_error(m.failure);
    if (fiber.state == State::kDone) ++done;
    if (fiber.state == State::kAtWarp) try_exchange(fiber, ready);
    if (fiber.state == State::kAtBarrier && fiber.barrier != 0) try_barrier_of_some(fiber, ready);
  }
  for (const PoisonedMemory& memory : m.shared) {
    if (!memory.guard_intact()) {
      throw std::runtime_error("wrote behind its " + std::to_string(memory.bytes()) + " bytes of shared memory");
    }
  }
}

inline void add_fibers(std::size_t threads) {
  Machine& m = machine();
  while (m.fibers.size() < threads) {
    m.fibers.emplace_back();
    m.fibers.back().stack = new_stack();
  }
}

// What a device answers to a launch. Registers are not known here.
inline cudaError_t check_launch(const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes) {
  Machine& m = machine();
  const auto refuse = [&](cudaError_t error, const std::string& text) {
    m.refusal = text;
    return m.last_error = error;
  };
  const auto within = [](const dim3& d, unsigned int x, unsigned int y, unsigned int z) {
    return d.x >= 1 && d.y >= 1 && d.z >= 1 && d.x <= x && d.y <= y && d.z <= z;
  };
  if (!within(grid, 0x7fffffffu, 65535u, 65535u)) {
    return refuse(cudaErrorInvalidConfiguration, "there is no grid " + name(uint3{grid.x, grid.y, grid.z}));
  }
  if (!within(block, 1024u, 1024u, 64u) || block.x * block.y * block.z > 1024u) {
    return refuse(cudaErrorInvalidConfiguration, "there is no block " + name(uint3{block.x, block.y, block.z}));
  }
  if (shared_refusal(kernel, shared_bytes)[0] != '\0') return m.last_error = cudaErrorInvalidValue;
  return cudaSuccess;
}

inline void run_grid(const char* call, const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
                     const std::function<void()>& body) {
  Machine& m = machine();
  try {
    add_fibers(static_cast<std::size_t>(block.x) * block.y * block.z);
    m.busy = true;
    m.threads = static_cast<std::size_t>(block.x) * block.y * block.z;
    m.body = &body;
    m.kernel = kernel;
    m.failure.clear();
    gridDim = grid;
    blockDim = block;
    std::vector<std::uint64_t> order(static_cast<std::size_t>(grid.x) * grid.y * grid.z);
    std::iota(order.begin(), order.end(), std::uint64_t{0});
    Random random{seed()};
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
    for (const std::uint64_t id : order) {
      blockIdx = uint3{static_cast<unsigned int>(id % grid.x), static_cast<unsigned int>(id / grid.x % grid.y),
                       static_cast<unsigned int>(id / grid.x / grid.y)};
      run_block(shared_bytes, Random{random.next()});
    }
  } catch (const std::exception& error) {
    std::string text = std::string(call) + ": " + error.what();
    if (m.busy) text += " [block " + name(blockIdx) + "]";
    for (Fiber& fiber : m.fibers) forget_frames(fiber.stack, kStackBytes);
    m.shared.clear();
    m.busy = false;
    throw std::runtime_error(text);
  }
  m.shared.clear();
  m.busy = false;
}

// From now on launches are checked against the current device but not executed, so that a test can plan many problems and
// needs no memory for them. A kernel must have run once before: only then its static shared memory is known.
inline void only_plan(bool only = true) { machine().only_plans = only; }

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...), finished when it returns. Returns the error of a launch that
// a device refuses; what is wrong with a kernel that runs is thrown.
template <typename Stream, typename... Parameters, typename... Arguments>
cudaError_t run(const char* call, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                Stream, Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable<Parameters>::value && ...), "kernel parameters are copied as bytes");
  static_assert((sizeof(Parameters) + ... + 0) <= kParameterLimit, "more than 4 KiB of kernel parameters");
  Machine& m = machine();
  const auto address = reinterpret_cast<const void*>(kernel);
  if (m.busy) throw std::runtime_error(std::string(call) + ": a launch inside a launch");
  const cudaError_t error = check_launch(address, grid, block, shared_bytes);
  if (error != cudaSuccess) return error;
  if (m.only_plans) {
    if (m.static_bytes.count(address) == 0) {
      throw std::logic_error(std::string(call) +
                             ": only planned, but the kernel has never run: " + __PRETTY_FUNCTION__);
    }
    ++m.launches;
    return cudaSuccess;
  }
  const std::tuple<Parameters...> parameters(std::forward<Arguments>(arguments)...);
  run_grid(call, address, grid, block, shared_bytes, [&] { std::apply(kernel, parameters); });
  m.static_bytes.emplace(address, 0);  // of a kernel that has none
  ++m.launches;
  return cudaSuccess;
}

}  // namespace host_run
}  // namespace hmsa
