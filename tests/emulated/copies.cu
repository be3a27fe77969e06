// Asynchronous copies: right, and with one mistake each.
#include "entry.h"

using sk::cuda::Mbarrier;

namespace {

constexpr int kThreads = 64;
constexpr int kStages = 3;
constexpr int kTile = 4 * kThreads;  // floats

// Thread i adds up floats 4 i to 4 i + 3, counted from the end of each tile, while later tiles are copied.
__device__ float sum_of(const float* stage, int thread) {
  float sum = 0;
  for (int i = 1; i <= 4; ++i) sum += stage[kTile - 4 * thread - i];
  return sum;
}

__global__ void groups(const float* x, float* sums, int64_t tiles, Mistake mistake) {
  SK_DYNAMIC_SHARED(float, stages);
  const int mine = 4 * threadIdx.x;
  auto copy = [&](int64_t tile) {
    if (tile < tiles) sk::cuda::async_copy16(stages + tile % kStages * kTile + mine, x + tile * kTile + mine);
    if (!mistake.is("no commit")) sk::cuda::async_commit();
  };
  float sum = 0;
  for (int64_t tile = 0; tile < kStages - 1; ++tile) copy(tile);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    if (mistake.is("waits for too little"))
      sk::cuda::async_wait<kStages - 1>();
    else if (!mistake.is("no wait"))
      sk::cuda::async_wait<kStages - 2>();
    if (!mistake.is("no __syncthreads")) __syncthreads();
    copy(tile + kStages - (mistake.is("copies too early") ? 0 : 1));
    sum += sum_of(stages + tile % kStages * kTile, int(threadIdx.x));
  }
  sums[threadIdx.x] = sum;
}

// The same, with a warp of its own for the copies.
__global__ void bulk(float* x, float* sums, int64_t tiles, Mistake mistake) {
  SK_DYNAMIC_SHARED(float, stages);
  __shared__ Mbarrier full[kStages], empty[kStages];
  const int adder = int(threadIdx.x) - sk::cuda::kWarp;
  const unsigned full_parity = mistake.is("wrong parity of full"), empty_parity = !mistake.is("wrong parity of empty");
  if (threadIdx.x == 0 && !mistake.is("no init")) {
    for (Mbarrier& barrier : full) barrier.init(mistake.is("init for two arrivals") ? 2 : 1);
    for (Mbarrier& barrier : empty) barrier.init(kThreads);
    if (mistake.is("init twice")) full[0].init(1);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int s = int(tile % kStages);
      const uint32_t bytes = sizeof(float) * kTile;
      float* const from = x + tile * kTile;
      float* const to = mistake.is("not to shared memory") ? x : stages + s * kTile;
      if (!mistake.is("no wait for empty")) empty[s].wait((unsigned(tile / kStages) & 1) ^ empty_parity);
      if (!mistake.is("expects nothing")) full[s].expect_bytes(mistake.is("expects too much") ? bytes + 16 : bytes);
      sk::cuda::bulk_copy(to, mistake.is("misaligned") ? from + 1 : from, bytes, full[s]);
    }
  } else if (adder >= 0 && !mistake.is("nobody waits")) {
    float sum = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int s = int(tile % kStages);
      if (!mistake.is("no wait for full")) full[s].wait((unsigned(tile / kStages) & 1) ^ full_parity);
      sum += sum_of(stages + s * kTile, adder);
      if (!mistake.is("no arrival")) empty[s].arrive();
      if (mistake.is("two arrivals")) empty[s].arrive();
    }
    sums[adder] = sum;
  }
}

constexpr int64_t kSharedBytes = int64_t(sizeof(float)) * kStages * kTile;

}  // namespace

ENTRY run_groups(const float* x, float* sums, int64_t tiles, const char* mistake) {
  return run(groups, 1, kThreads, kSharedBytes, x, sums, tiles, Mistake{mistake});
}
ENTRY run_bulk(float* x, float* sums, int64_t tiles, const char* mistake) {
  return run(bulk, 1, kThreads + sk::cuda::kWarp, kSharedBytes, x, sums, tiles, Mistake{mistake});
}
