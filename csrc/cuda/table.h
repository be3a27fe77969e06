// One launch over several matrices: their descriptions are kernel parameters, and every block looks up which matrix it
// works on.
#pragma once
#include "device.h"

namespace sk {
namespace cuda {

constexpr int kTable = 24;  // matrices of one launch, so that the parameters stay below 4 KB, what every driver takes

// A block's place: the matrix, and which of the blocks of that matrix it is.
struct Share {
  int matrix;
  int64_t block;
};

struct Work {
  uint32_t first[kTable + 1];  // the block that each matrix begins with; behind the last matrix, the number of blocks

  __device__ __forceinline__ Share share() const {
    int matrix = 0;
    while (blockIdx.x >= first[matrix + 1]) ++matrix;
    return {matrix, int64_t(blockIdx.x - first[matrix])};
  }
};

// Runs kernel(work, args...) with blocks_of(i) blocks for each of the `count` matrices.
template <class BlocksOf, class... Params, class... Args>
Status launch_over(void (*kernel)(Work, Params...), int count, BlocksOf blocks_of, int threads,
                   const Parallel& parallel, const Args&... args) {
  Work work{};
  for (int i = 0; i < kTable; ++i) work.first[i + 1] = work.first[i] + uint32_t(i < count ? blocks_of(i) : 0);
  return launch(kernel, dim3(work.first[kTable]), dim3(unsigned(threads)), 0, parallel, work, args...);
}

// The sum of v over the threads before this one; all kThreads threads of the block take part.
template <int kThreads, class T>
__device__ __forceinline__ T block_exclusive_sum(T v) {
  __shared__ T of_warp[kThreads / kWarp];
  const T before = warp_exclusive_sum(v);
  __syncthreads();  // an earlier call may still be read
  if (threadIdx.x % kWarp == kWarp - 1) of_warp[threadIdx.x / kWarp] = before + v;
  __syncthreads();
  T sum = before;
  for (int w = 0; w < int(threadIdx.x / kWarp); ++w) sum += of_warp[w];
  return sum;
}

}  // namespace cuda
}  // namespace sk
