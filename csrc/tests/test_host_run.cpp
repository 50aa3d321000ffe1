// The harness that runs CUDA kernels on the CPU: right for right kernels, and loud for wrong ones.
#include "host_run/cuda_host.h"
// The kernels see CUDA as a .cu file does.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <vector>

#include "ops/cuda/launch.h"
#include "ops/cuda/multiprocessors.h"
#include "tests/testing.h"

namespace {

using testing::contains;
using testing::run_in_child;

constexpr int kSeeds = 5;

// Results of run() for several seeds.
template <typename Run>
auto for_seeds(Run run) {
  std::vector<decltype(run())> results;
  for (int seed = 0; seed < kSeeds; ++seed) {
    hmsa::host_run::seed() = static_cast<uint64_t>(seed);
    results.push_back(run());
  }
  hmsa::host_run::seed() = 0;
  return results;
}

template <typename T>
bool all_same_bits(const std::vector<std::vector<T>>& results) {
  for (const std::vector<T>& result : results) {
    if (result.size() != results[0].size()) return false;
    if (std::memcmp(result.data(), results[0].data(), result.size() * sizeof(T)) != 0) return false;
  }
  return true;
}

// ---- Right kernels --------------------------------------------------------------------------------------------------

// Log-sum-exp of each row by one block: shuffles in the warps, shared memory between them.
template <typename T, int kThreads>
__global__ void log_sum_exp(const T* values, T* results, int columns) {
  HMSA_SHARED(T, partial, [kThreads / 32]);
  HMSA_SHARED(T, total, );
  T sum = 0;
  for (int x = static_cast<int>(threadIdx.x); x < columns; x += kThreads) {
    sum += exp(values[blockIdx.x * columns + x]);
  }
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    total = 0;
    for (int i = 0; i < kThreads / 32; ++i) total += partial[i];
  }
  __syncthreads();
  if (threadIdx.x == kThreads - 1) results[blockIdx.x] = log(total);
}

template <typename T, int kThreads>
void check_log_sum_exp(double tolerance) {
  const int rows = 7;
  const int columns = 333;
  std::vector<T> values(rows * columns);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<T>(std::sin(0.1 * static_cast<double>(i)));
  const auto results = for_seeds([&] {
    std::vector<T> result(rows, T(-1));
    HMSA_LAUNCH(log_sum_exp<T, kThreads>, rows, kThreads, 0, nullptr, values.data(), result.data(), columns);
    return result;
  });
  EXPECT(all_same_bits(results));
  for (int y = 0; y < rows; ++y) {
    double sum = 0;
    for (int x = 0; x < columns; ++x) sum += std::exp(static_cast<double>(values[y * columns + x]));
    EXPECT(std::fabs(results[0][y] - std::log(sum)) < tolerance, "row ", y, ": ", results[0][y]);
  }
}

void block_reduction_is_right() {
  check_log_sum_exp<float, 128>(1e-5);
  check_log_sum_exp<double, 128>(1e-13);
  check_log_sum_exp<double, 32>(1e-13);
  check_log_sum_exp<double, 1024>(1e-13);
}

__global__ void write_coordinates(int* visits, int* wrong) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  ++visits[block * threads + thread];
  const uint3 before = threadIdx;
  const uint3 block_before = blockIdx;
  __syncthreads();
  if (threadIdx.x != before.x || threadIdx.y != before.y || threadIdx.z != before.z) ++*wrong;
  if (blockIdx.x != block_before.x || blockIdx.y != block_before.y || blockIdx.z != block_before.z) ++*wrong;
}

void every_thread_of_a_3d_grid_runs_once() {
  for (const dim3 block : {dim3(5, 3, 2), dim3(1), dim3(1, 1, 7), dim3(32, 2)}) {
    const dim3 grid(2, 3, 4);
    std::vector<int> visits(24 * block.x * block.y * block.z, 0);
    int wrong = 0;
    HMSA_LAUNCH(write_coordinates, grid, block, 0, nullptr, visits.data(), &wrong);
    EXPECT_EQUAL(wrong, 0);
    for (const int visit : visits) EXPECT_EQUAL(visit, 1);
  }
}

__global__ void shuffle_all_ways(int* results, int width, int amount) {
  const int value = 100 + static_cast<int>(threadIdx.x);
  int* mine = results + 4 * threadIdx.x;
  mine[0] = __shfl_sync(0xffffffffu, value, amount, width);
  mine[1] = __shfl_up_sync(0xffffffffu, value, static_cast<unsigned>(amount), width);
  mine[2] = __shfl_down_sync(0xffffffffu, value, static_cast<unsigned>(amount), width);
  mine[3] = __shfl_xor_sync(0xffffffffu, value, amount, width);
}

void shuffles_follow_cudas_rules() {
  for (const int width : {2, 4, 8, 16, 32}) {
    for (int amount = 0; amount < 32; ++amount) {
      std::vector<int> results(64 * 4);
      HMSA_LAUNCH(shuffle_all_ways, 1, 64, 0, nullptr, results.data(), width, amount);
      for (int thread = 0; thread < 64; ++thread) {
        const int warp = thread / 32 * 32;
        const int lane = thread % 32;
        const int start = lane / width * width;
        const int wanted[4] = {start + amount % width, lane - amount >= start ? lane - amount : lane,
                               lane + amount < start + width ? lane + amount : lane,
                               (lane ^ amount) < start + width ? (lane ^ amount) : lane};
        for (int way = 0; way < 4; ++way) {
          EXPECT_EQUAL(results[4 * thread + way], 100 + warp + wanted[way], "width ", width, ", amount ", amount,
                       ", thread ", thread, ", way ", way);
        }
      }
    }
  }
}

__global__ void vote(unsigned* results) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (lane < 8) {  // two groups of lanes take part in operations of their own
    results[threadIdx.x * 3] = __ballot_sync(0xffu, lane % 3 == 0);
  } else {
    results[threadIdx.x * 3] = __ballot_sync(0xffffff00u, lane % 2 == 0);
  }
  results[threadIdx.x * 3 + 1] = __any_sync(0xffffffffu, threadIdx.x == 40);
  results[threadIdx.x * 3 + 2] = __all_sync(0xffffffffu, threadIdx.x != 3);
}

__global__ void vote_in_block(int* results) {
  results[threadIdx.x * 3] = __syncthreads_count(threadIdx.x % 3 == 0);
  results[threadIdx.x * 3 + 1] = __syncthreads_and(threadIdx.x < 50);
  results[threadIdx.x * 3 + 2] = __syncthreads_or(threadIdx.x == 7);
}

void votes_count_their_lanes() {
  std::vector<unsigned> results(64 * 3);
  HMSA_LAUNCH(vote, 1, 64, 0, nullptr, results.data());
  for (unsigned thread = 0; thread < 64; ++thread) {
    EXPECT_EQUAL(results[thread * 3], thread % 32 < 8 ? 0x49u : 0x55555500u);
    EXPECT_EQUAL(results[thread * 3 + 1], thread / 32 == 1 ? 1u : 0u);
    EXPECT_EQUAL(results[thread * 3 + 2], thread / 32 == 0 ? 0u : 1u);
  }
  std::vector<int> counts(50 * 3);
  HMSA_LAUNCH(vote_in_block, 1, 50, 0, nullptr, counts.data());
  for (int thread = 0; thread < 50; ++thread) {
    EXPECT_EQUAL(counts[thread * 3], 17);
    EXPECT_EQUAL(counts[thread * 3 + 1], 1);
    EXPECT_EQUAL(counts[thread * 3 + 2], 1);
  }
}

// Each instantiation and each block has variables of its own; sizes are those of arrays, not of pointers.
template <typename T, int N>
__global__ void use_static_array(T* results) {
  HMSA_SHARED(T, tile, [3][N]);
  static_assert(sizeof(tile) == 3 * N * sizeof(T), "an array");
  for (int y = 0; y < 3; ++y) tile[y][threadIdx.x] = static_cast<T>(100 * y + N + threadIdx.x + 1000 * blockIdx.x);
  __syncthreads();
  T sum = 0;
  for (int y = 0; y < 3; ++y) sum += tile[y][N - 1 - threadIdx.x];
  results[blockIdx.x * N + threadIdx.x] = sum;
}

void templates_have_shared_memory_of_their_own() {
  std::vector<float> narrow(2 * 4);
  std::vector<double> wide(2 * 40);
  HMSA_LAUNCH(use_static_array<float, 4>, 2, 4, 0, nullptr, narrow.data());
  HMSA_LAUNCH(use_static_array<double, 40>, 2, 40, 0, nullptr, wide.data());
  for (int i = 0; i < 8; ++i) EXPECT_EQUAL(narrow[i], 300.0f + 3 * (4 + 3 - i % 4) + 3000 * (i / 4));
  for (int i = 0; i < 80; ++i) EXPECT_EQUAL(wide[i], 300.0 + 3 * (40 + 39 - i % 40) + 3000 * (i / 40));
}

// 100 KiB of dynamic shared memory: HMSA_LAUNCH opts in.
__global__ void reverse(const float* from, float* to, int64_t n) {
  HMSA_DYNAMIC_SHARED(float, row);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) row[i] = from[i];
  __syncthreads();
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) to[i] = row[n - 1 - i];
}

void large_dynamic_shared_memory_is_opted_in() {
  const int n = 25600;
  std::vector<float> from(n), to(n);
  for (int i = 0; i < n; ++i) from[i] = static_cast<float>(i);
  HMSA_LAUNCH(reverse, 1, 64, n * sizeof(float), nullptr, from.data(), to.data(), n);
  for (int i = 0; i < n; ++i) EXPECT_EQUAL(to[i], static_cast<float>(n - 1 - i));
}

// ---- Wrong kernels --------------------------------------------------------------------------------------------------

__global__ void read_unwritten(float* results, bool write_first_block) {
  HMSA_SHARED(float, single, [4]);
  HMSA_SHARED(int, whole, );
  HMSA_DYNAMIC_SHARED(double, row);
  if (write_first_block && blockIdx.x == 0) {
    single[threadIdx.x] = 1;
    row[threadIdx.x] = 1;
    whole = 7;
  }
  results[blockIdx.x * 12 + threadIdx.x] = single[threadIdx.x];
  results[blockIdx.x * 12 + threadIdx.x + 4] = static_cast<float>(row[threadIdx.x]);
  results[blockIdx.x * 12 + threadIdx.x + 8] = static_cast<float>(whole);
}

void unwritten_shared_memory_is_nan_in_every_block() {
  std::vector<float> results(5 * 12, 0.0f);
  HMSA_LAUNCH(read_unwritten, 5, 4, 4 * sizeof(double), nullptr, results.data(), true);
  for (int block = 1; block < 5; ++block) {
    for (int i = 0; i < 8; ++i) EXPECT(std::isnan(results[block * 12 + i]), "block ", block, ", slot ", i);
    for (int i = 8; i < 12; ++i) EXPECT_EQUAL(results[block * 12 + i], -1.0f);
  }
}

template <bool kBarrier>
__global__ void read_neighbour(float* results) {
  HMSA_SHARED(float, tile, [64]);
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kBarrier) __syncthreads();
  results[threadIdx.x] = tile[(threadIdx.x + 1) % 64];
}

void missing_barrier_after_a_write_shows_as_nan() {
  const auto run = [](auto kernel) {
    return for_seeds([&] {
      std::vector<float> results(64);
      HMSA_LAUNCH(kernel, 1, 64, 0, nullptr, results.data());
      return results;
    });
  };
  EXPECT(all_same_bits(run(read_neighbour<true>)));
  const auto wrong = run(read_neighbour<false>);
  EXPECT(!all_same_bits(wrong));
  for (const auto& results : wrong) {
    int nans = 0;
    for (const float value : results) nans += std::isnan(value);
    EXPECT(nans > 0);
  }
}

// Nothing unwritten is read here, but the next round may write before all have read the last one.
template <bool kBarrier>
__global__ void rotate(int* results, int rounds) {
  HMSA_SHARED(int, tile, [64]);
  int value = static_cast<int>(threadIdx.x);
  for (int round = 0; round < rounds; ++round) {
    tile[threadIdx.x] = value;
    __syncthreads();
    value = tile[(threadIdx.x + 1) % 64];
    if (kBarrier) __syncthreads();
  }
  results[threadIdx.x] = value;
}

void missing_barrier_after_a_read_shows_between_seeds() {
  const auto run = [](auto kernel) {
    return for_seeds([&] {
      std::vector<int> results(64);
      HMSA_LAUNCH(kernel, 1, 64, 0, nullptr, results.data(), 5);
      return results;
    });
  };
  const auto right = run(rotate<true>);
  EXPECT(all_same_bits(right));
  for (int i = 0; i < 64; ++i) EXPECT_EQUAL(right[0][i], (i + 5) % 64);
  EXPECT(!all_same_bits(run(rotate<false>)));
}

// One warp hands values to the other, which only __syncthreads would make safe.
__global__ void sync_only_the_warp(float* results) {
  HMSA_SHARED(float, tile, [64]);
  tile[threadIdx.x] = 1;
  __syncwarp();
  results[threadIdx.x] = tile[(threadIdx.x + 32) % 64];
}

__global__ void sync_the_warp(float* results) {
  HMSA_SHARED(float, tile, [64]);
  tile[threadIdx.x] = 1;
  __syncwarp();
  results[threadIdx.x] = tile[threadIdx.x ^ 1];
}

void warp_barrier_orders_a_warp_and_no_more() {
  const auto nans = [](auto kernel) {
    int count = 0;
    for (const auto& results : for_seeds([&] {
           std::vector<float> values(64);
           HMSA_LAUNCH(kernel, 1, 64, 0, nullptr, values.data());
           return values;
         })) {
      for (const float value : results) count += std::isnan(value);
    }
    return count;
  };
  EXPECT_EQUAL(nans(sync_the_warp), 0);
  EXPECT(nans(sync_only_the_warp) > 0);
}

// Groups of two warps, each at a barrier of its own, some more often than others.
__global__ void pass_on_in_groups(int* results) {
  HMSA_SHARED(int, values, [192]);
  const int me = static_cast<int>(threadIdx.x);
  const int group = me / 64;
  const int other = group * 64 + (me + 33) % 64;
  values[me] = me;
  for (int round = 0; round <= group; ++round) {
    hmsa::host_run::barrier_of_some(1 + group, 64, __FILE__, __LINE__);
    const int value = values[other];
    hmsa::host_run::barrier_of_some(1 + group, 64, __FILE__, __LINE__);
    values[me] = value + 1;
  }
  results[me] = values[me];
}

void groups_of_warps_meet_at_barriers_of_their_own() {
  const auto results = for_seeds([] {
    std::vector<int> values(192);
    HMSA_LAUNCH(pass_on_in_groups, 1, 192, 0, nullptr, values.data());
    return values;
  });
  EXPECT(all_same_bits(results));
  for (int t = 0; t < 192; ++t) {
    const int rounds = t / 64 + 1;
    EXPECT_EQUAL(results[0][static_cast<size_t>(t)], t / 64 * 64 + (t + 33 * rounds) % 64 + rounds, "thread ", t);
  }
}

__global__ void wait_for_too_many(int threads) {
  hmsa::host_run::barrier_of_some(1, static_cast<int>(threadIdx.x) < 32 ? 64 : threads, __FILE__, __LINE__);
}

__global__ void depend_on_the_order_of_blocks(int* order, int* next) {
  order[(*next)++] = static_cast<int>(blockIdx.x);
}

void blocks_run_in_an_order_that_the_seed_chooses() {
  const auto orders = for_seeds([] {
    std::vector<int> order(20);
    int next = 0;
    HMSA_LAUNCH(depend_on_the_order_of_blocks, 20, 1, 0, nullptr, order.data(), &next);
    return order;
  });
  EXPECT(!all_same_bits(orders));
  for (const auto& order : orders) EXPECT_EQUAL(std::set<int>(order.begin(), order.end()).size(), size_t{20});
}

__global__ void wait_unless(unsigned absent) {
  if (threadIdx.x != absent) __syncthreads();
}

__global__ void wait_at_two_places() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void wait_often(int per_thread) {
  for (int i = 0; i < per_thread * static_cast<int>(threadIdx.x); ++i) __syncthreads();
}

void divergent_barrier_is_an_error() {
  EXPECT_THROWS(HMSA_LAUNCH(wait_unless, 1, 64, 0, nullptr, 5u), "divergent barrier");
  EXPECT_THROWS(HMSA_LAUNCH(wait_unless, 1, 64, 0, nullptr, 5u), "thread (5, 0, 0) has ended");
  EXPECT_THROWS(HMSA_LAUNCH(wait_unless, 1, 64, 0, nullptr, 5u), "test_host_run: wait_unless: ");
  EXPECT_THROWS(HMSA_LAUNCH(wait_at_two_places, 1, 64, 0, nullptr), "divergent barrier");
  EXPECT_THROWS(HMSA_LAUNCH(wait_often, 1, 3, 0, nullptr, 2), "divergent barrier");
  EXPECT_THROWS(HMSA_LAUNCH(wait_for_too_many, 1, 32, 0, nullptr, 64), "divergent barrier");
  EXPECT_THROWS(HMSA_LAUNCH(wait_for_too_many, 1, 64, 0, nullptr, 32), "divergent barrier");
  EXPECT_THROWS(HMSA_LAUNCH(wait_for_too_many, 1, 64, 0, nullptr, 48), "asks for barrier 1 of 48");
  HMSA_LAUNCH(wait_for_too_many, 1, 64, 0, nullptr, 64);
  HMSA_LAUNCH(wait_unless, 3, 64, 0, nullptr, 64u);  // and the harness still works
}

__global__ void shuffle_without(unsigned absent, unsigned mask, int source) {
  if (threadIdx.x != absent) __shfl_sync(mask, 1, source);
}

__global__ void shuffle_or_wait() {
  if (threadIdx.x % 2 == 0) {
    __shfl_xor_sync(0xffffffffu, 1, 1);
  } else {
    __syncthreads();
  }
}

__global__ void shuffle_in_two_ways() {
  if (threadIdx.x % 2 == 0) {
    __shfl_xor_sync(0xffffffffu, 1, 1);
  } else {
    __shfl_down_sync(0xffffffffu, 1, 1);
  }
}

void divergent_warp_is_an_error() {
  constexpr unsigned kAll = 0xffffffffu;
  EXPECT_THROWS(HMSA_LAUNCH(shuffle_without, 1, 32, 0, nullptr, 9u, kAll, 0), "thread (9, 0, 0) has ended");
  EXPECT_THROWS(HMSA_LAUNCH(shuffle_without, 1, 32, 0, nullptr, 9u, 0xffu, 0), "is not in the mask");
  EXPECT_THROWS(HMSA_LAUNCH(shuffle_without, 1, 8, 0, nullptr, 9u, 0xffu, 12), "reads lane 12 outside the mask");
  EXPECT_THROWS(HMSA_LAUNCH(shuffle_without, 1, 40, 0, nullptr, 50u, kAll, 0), "has only 8 threads");
  EXPECT_THROWS(HMSA_LAUNCH(shuffle_or_wait, 1, 32, 0, nullptr), "divergent warp");
  EXPECT_THROWS(HMSA_LAUNCH(shuffle_in_two_ways, 1, 32, 0, nullptr), "divergent warp");
  HMSA_LAUNCH(shuffle_without, 1, 64, 0, nullptr, 64u, kAll, 0);
}

__global__ void nothing() {}
__global__ void never_run() {}

__global__ void too_much_static() {
  HMSA_SHARED(char, first, [40000]);
  HMSA_SHARED(char, second, [9153]);
  first[0] = second[0] = 0;
}

__global__ void read_static(float* result) {
  HMSA_SHARED(float, row, [100]);
  row[threadIdx.x] = 1;
  result[threadIdx.x] = row[threadIdx.x];
}

void impossible_launches_are_errors() {
  EXPECT_THROWS(HMSA_LAUNCH(nothing, 0, 32, 0, nullptr), "there is no grid (0, 1, 1)");
  EXPECT_THROWS(HMSA_LAUNCH(nothing, dim3(1, 65536), 32, 0, nullptr), "there is no grid (1, 65536, 1)");
  EXPECT_THROWS(HMSA_LAUNCH(nothing, dim3(1, 1, 65536), 32, 0, nullptr), "there is no grid (1, 1, 65536)");
  EXPECT_THROWS(HMSA_LAUNCH(nothing, 1, dim3(33, 32), 0, nullptr), "there is no block (33, 32, 1)");
  EXPECT_THROWS(HMSA_LAUNCH(nothing, 1, dim3(1, 1, 65), 0, nullptr), "there is no block (1, 1, 65)");
  EXPECT_THROWS(HMSA_LAUNCH(nothing, 1, 1025, 0, nullptr), "there is no block (1025, 1, 1)");
  EXPECT_THROWS(HMSA_LAUNCH(too_much_static, 1, 1, 0, nullptr), "49153 of static shared memory");
  HMSA_LAUNCH(nothing, 1, 1024, 227 * 1024, nullptr);
}

void error_names_op_and_kernel_with_their_numbers() {
  EXPECT_THROWS(
      HMSA_LAUNCH(nothing, dim3(2, 65536), dim3(8, 4), 16, nullptr),
      "test_host_run: nothing cannot be launched with grid (2, 65536, 1), block (8, 4, 1), 16 bytes of dynamic "
      "and 0 of static shared memory: invalid configuration argument, there is no grid (2, 65536, 1)");
  const auto name = [](const char* file, const char* arguments) {
    return hmsa::cuda::name_of(hmsa::cuda::LaunchSite{file, arguments});
  };
  EXPECT_EQUAL(name("./csrc/ops/cuda/fuse_scales_argmax.cu", "kernel, layout.grid(), 0"), "fuse_scales_argmax");
  EXPECT_EQUAL(name("a/b.cu", "forward::total_kernel<T>, dim3(1), 0"), "b: total_kernel");
  EXPECT_EQUAL(name("b.cu", "(scale_kernel<S, G>), grid"), "b: scale_kernel");
}

// The next launch, with which nothing is wrong, must not find the error of the last one, nor of somebody else.
void errors_leave_nothing_behind() {
  EXPECT_THROWS(HMSA_LAUNCH(nothing, 0, 32, 0, nullptr), "cannot be launched");
  EXPECT_EQUAL(cudaPeekAtLastError(), cudaSuccess);
  HMSA_LAUNCH(nothing, 1, 32, 0, nullptr);
  EXPECT_EQUAL(cudaSetDevice(99), cudaErrorInvalidValue);
  HMSA_LAUNCH(nothing, 1, 32, 0, nullptr);
  EXPECT_EQUAL(cudaGetLastError(), cudaErrorInvalidValue);  // still there for the caller
  EXPECT_EQUAL(cudaGetLastError(), cudaSuccess);
  EXPECT_THROWS(hmsa::cuda::check(cudaSetDevice(99), "cudaSetDevice"), "cudaSetDevice: invalid argument");
  EXPECT_EQUAL(cudaPeekAtLastError(), cudaSuccess);
}

// kernel<<<>>> without HMSA_LAUNCH, and what the device answers.
template <typename... Parameters>
cudaError_t launch_plainly(void (*kernel)(Parameters...), size_t shared_bytes, Parameters... arguments) {
  return hmsa::host_run::run("plain", kernel, 1, 100, shared_bytes, nullptr, arguments...);
}

void static_bytes_count_as_dynamic_ones_do() {
  namespace host_run = hmsa::host_run;
  std::vector<float> result(100);
  EXPECT_EQUAL(launch_plainly(read_static, 0, result.data()), cudaSuccess);
  cudaFuncAttributes attributes{};
  EXPECT_EQUAL(cudaFuncGetAttributes(&attributes, read_static), cudaSuccess);
  EXPECT_EQUAL(attributes.sharedSizeBytes, size_t{400});
  EXPECT_EQUAL(attributes.maxDynamicSharedSizeBytes, 49152 - 400);

  // Without an opt-in 48 KiB, static bytes among them; with one, as many dynamic bytes as that says.
  EXPECT_EQUAL(launch_plainly(read_static, 48752, result.data()), cudaSuccess);
  EXPECT_EQUAL(launch_plainly(read_static, 48753, result.data()), cudaErrorInvalidValue);
  EXPECT(contains(host_run::machine().refusal, "48753 bytes of dynamic and 400 of static shared memory are more than"));
  EXPECT_EQUAL(cudaFuncSetAttribute(read_static, cudaFuncAttributeMaxDynamicSharedMemorySize, 60000), cudaSuccess);
  EXPECT_EQUAL(launch_plainly(read_static, 60000, result.data()), cudaSuccess);
  EXPECT_EQUAL(launch_plainly(read_static, 60001, result.data()), cudaErrorInvalidValue);
  EXPECT(contains(host_run::machine().refusal, "has opted in to 60000 dynamic ones"));
  cudaGetLastError();

  // An opt-in is one device's; and static bytes are part of its limit.
  const int limits[][2] = {{host_run::kSmall, 232448},   {host_run::kH200, 232448},    {host_run::kA100, 166912},
                           {host_run::kRtx3090, 101376}, {host_run::kRtx4090, 101376}, {host_run::kRtx5090, 101376}};
  for (const auto& [device, limit] : limits) {
    EXPECT_EQUAL(cudaSetDevice(device), cudaSuccess);
    if (device != host_run::kSmall) {
      EXPECT_EQUAL(launch_plainly(read_static, 48753, result.data()), cudaErrorInvalidValue);
    }
    EXPECT_EQUAL(cudaFuncSetAttribute(read_static, cudaFuncAttributeMaxDynamicSharedMemorySize, limit - 399),
                 cudaErrorInvalidValue);
    cudaGetLastError();
    HMSA_LAUNCH(read_static, 1, 100, static_cast<size_t>(limit - 400), nullptr, result.data());
    EXPECT_THROWS(
        HMSA_LAUNCH(read_static, 1, 100, static_cast<size_t>(limit - 399), nullptr, result.data()),
        hmsa::concat(limit - 399, " bytes of dynamic and 400 of static shared memory: a block on this GPU has ", limit,
                     " bytes at most"));
    EXPECT_EQUAL(cudaPeekAtLastError(), cudaSuccess);
  }
  cudaSetDevice(host_run::kSmall);
}

// As much as any launch of the kernel may need, once: what one thread opts in to is not taken from another.
void opt_in_does_not_depend_on_the_launch() {
  const std::vector<float> from(1, 0.0f);
  std::vector<float> to(1);
  for (const size_t bytes : {size_t{4}, size_t{100000}, size_t{4}}) {
    HMSA_LAUNCH(reverse, 1, 64, bytes, nullptr, from.data(), to.data(), 1);
    cudaFuncAttributes attributes{};
    EXPECT_EQUAL(cudaFuncGetAttributes(&attributes, reverse), cudaSuccess);
    EXPECT_EQUAL(attributes.maxDynamicSharedSizeBytes, 232448);
  }
}

void plans_are_checked_and_not_executed() {
  namespace host_run = hmsa::host_run;
  std::vector<float> result(100, 7.0f);
  HMSA_LAUNCH(read_static, 1, 100, 0, nullptr, result.data());
  host_run::only_plan();
  const uint64_t before = host_run::machine().launches;
  HMSA_LAUNCH(read_static, 1 << 30, 100, 0, nullptr, nullptr);
  EXPECT_EQUAL(host_run::machine().launches, before + 1);
  EXPECT_THROWS(HMSA_LAUNCH(read_static, 1, 100, 232448, nullptr, nullptr), "232448 bytes at most");
  EXPECT_THROWS(HMSA_LAUNCH(never_run, 1, 100, 0, nullptr), "the kernel has never run");
  EXPECT_EQUAL(host_run::machine().launches, before + 1);
  host_run::only_plan(false);
}

void devices_answer_as_theirs_do() {
  namespace host_run = hmsa::host_run;
  const auto attribute = [](cudaDeviceAttr name, int device) {
    int value = -1;
    EXPECT_EQUAL(cudaDeviceGetAttribute(&value, name, device), cudaSuccess);
    return value;
  };
  EXPECT_EQUAL(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, host_run::kSmall), 232448);
  EXPECT_EQUAL(attribute(cudaDevAttrMultiProcessorCount, host_run::kSmall), 4);
  EXPECT_EQUAL(attribute(cudaDevAttrMultiProcessorCount, host_run::kH200), 132);
  EXPECT_EQUAL(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, host_run::kH200), 233472);
  EXPECT_EQUAL(attribute(cudaDevAttrMultiProcessorCount, host_run::kA100), 108);
  EXPECT_EQUAL(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, host_run::kA100), 167936);
  EXPECT_EQUAL(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, host_run::kA100), 166912);
  EXPECT_EQUAL(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, host_run::kRtx4090), 102400);
  EXPECT_EQUAL(attribute(cudaDevAttrComputeCapabilityMajor, host_run::kRtx5090), 12);
  int value = 0;
  EXPECT_EQUAL(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, host_run::kDeviceCount),
               cudaErrorInvalidValue);
  EXPECT_EQUAL(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 232449),
               cudaErrorInvalidValue);
  cudaGetLastError();
  cudaSetDevice(host_run::kA100);
  EXPECT_EQUAL(hmsa::cuda::multiprocessor_count(), 108);
  EXPECT_EQUAL(hmsa::cuda::shared_per_block(), 166912);
  // Three blocks with 400 static bytes and 1 KiB of the system's each, in units of 128.
  EXPECT_EQUAL(hmsa::cuda::shared_budget(3, 400), (167936 / 3 / 128 * 128 - 1024 - 400) / 16 * 16);
  EXPECT_EQUAL(hmsa::cuda::shared_budget(1, 400), 166912 - 400);
  cudaSetDevice(host_run::kSmall);
}

// ---- Access outside memory: child processes, since the sanitizers end theirs ----------------------------------------

__global__ void write_dynamic(int index) {
  HMSA_DYNAMIC_SHARED(float, row);
  row[index] = 1;
}

__global__ void write_static(int index) {
  HMSA_SHARED(float, row, [8]);
  float* alias = row;  // hidden from the check of array bounds: this one is for AddressSanitizer
  alias[index] = 1;
}

#if defined(HMSA_HOST_RUN_ASAN)
__global__ void write_own_array(int index, float* result) {
  float own[8] = {};
  float* volatile alias = own;
  alias[index] = 1;
  __syncthreads();  // the other fibers' stacks are visited between the two
  *result = alias[threadIdx.x % 8];
}

__global__ void read_misaligned(const float* from, float4* to) { *to = *reinterpret_cast<const float4*>(from + 1); }
#endif

void writes_outside_shared_memory_are_caught() {
  const auto dynamic = [](int index) { HMSA_LAUNCH(write_dynamic, 1, 1, 20, nullptr, index); };
  const auto fixed = [](int index) { HMSA_LAUNCH(write_static, 1, 1, 20, nullptr, index); };
  EXPECT_EQUAL(run_in_child([&] { dynamic(4); }), "exit 0");
  EXPECT_EQUAL(run_in_child([&] { fixed(7); }), "exit 0");
#if defined(HMSA_HOST_RUN_ASAN)
  EXPECT(contains(run_in_child([&] { dynamic(5); }), "heap-buffer-overflow"));
  EXPECT(contains(run_in_child([&] { dynamic(-1); }), "heap-buffer-overflow"));
  EXPECT(contains(run_in_child([&] { fixed(8); }), "heap-buffer-overflow"));
#else
  EXPECT(contains(run_in_child([&] { dynamic(5); }), "wrote behind its 20 bytes of shared memory"));
  EXPECT(contains(run_in_child([&] { fixed(8); }), "wrote behind its 32 bytes of shared memory"));
#endif
}

void sanitizers_see_through_the_fibers() {
#if defined(HMSA_HOST_RUN_ASAN)
  const auto own = [](int index) {
    float result = 0;
    HMSA_LAUNCH(write_own_array, 2, 64, 0, nullptr, index, &result);
  };
  EXPECT_EQUAL(run_in_child([&] { own(7); }), "exit 0");
#if !defined(HMSA_HOST_RUN_UCONTEXT)
  EXPECT(contains(run_in_child([&] { own(8); }), "stack-buffer-overflow"));
#endif
  alignas(16) float from[8] = {};
  float4 to{};
  EXPECT(contains(run_in_child([&] { HMSA_LAUNCH(read_misaligned, 1, 1, 0, nullptr, from, &to); }), "misaligned"));
#endif
}

__device__ int recurse(int levels) {
  volatile char frame[512];
  frame[levels % 512] = 1;
  return levels == 0 ? 0 : recurse(levels - 1) + frame[levels % 512];
}

__global__ void recurse_deeply(int levels, int* result) { *result = recurse(levels); }

void stack_overflow_ends_the_program() {
  const auto run = [](int levels) {
    return run_in_child([=] {
      int result = 0;
      HMSA_LAUNCH(recurse_deeply, 1, 2, 0, nullptr, levels, &result);
    });
  };
  EXPECT_EQUAL(run(10), "exit 0");
  const std::string text = run(1 << 20);
  EXPECT(contains(text, "signal 11") || contains(text, "stack-overflow"), text.substr(0, 200));
}

}  // namespace

int main() {
  RUN_TEST(block_reduction_is_right);
  RUN_TEST(every_thread_of_a_3d_grid_runs_once);
  RUN_TEST(shuffles_follow_cudas_rules);
  RUN_TEST(votes_count_their_lanes);
  RUN_TEST(templates_have_shared_memory_of_their_own);
  RUN_TEST(large_dynamic_shared_memory_is_opted_in);
  RUN_TEST(unwritten_shared_memory_is_nan_in_every_block);
  RUN_TEST(missing_barrier_after_a_write_shows_as_nan);
  RUN_TEST(missing_barrier_after_a_read_shows_between_seeds);
  RUN_TEST(warp_barrier_orders_a_warp_and_no_more);
  RUN_TEST(blocks_run_in_an_order_that_the_seed_chooses);
  RUN_TEST(groups_of_warps_meet_at_barriers_of_their_own);
  RUN_TEST(divergent_barrier_is_an_error);
  RUN_TEST(divergent_warp_is_an_error);
  RUN_TEST(impossible_launches_are_errors);
  RUN_TEST(error_names_op_and_kernel_with_their_numbers);
  RUN_TEST(errors_leave_nothing_behind);
  RUN_TEST(static_bytes_count_as_dynamic_ones_do);
  RUN_TEST(opt_in_does_not_depend_on_the_launch);
  RUN_TEST(plans_are_checked_and_not_executed);
  RUN_TEST(devices_answer_as_theirs_do);
  RUN_TEST(writes_outside_shared_memory_are_caught);
  RUN_TEST(sanitizers_see_through_the_fibers);
  RUN_TEST(stack_overflow_ends_the_program);
  return testing::finish();
}
