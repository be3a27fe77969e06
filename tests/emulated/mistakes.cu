// Kernels with a mistake, which csrc/emu has to find.
#include "entry.h"

using sk::cuda::kAllLanes;
using sk::cuda::kWarp;

namespace {

// ---- races: y becomes x reversed, twice, unless a barrier is missing

__global__ void reverse(const int* x, int* y, Mistake mistake) {
  __shared__ int tile[64];
  const int i = threadIdx.x, n = blockDim.x;
  tile[i] = x[i];
  if (!mistake.is("reads before it is written")) __syncthreads();
  const int v = tile[n - 1 - i];
  if (!mistake.is("writes before it is read")) __syncthreads();
  tile[i] = v;
  __syncthreads();
  y[i] = tile[n - 1 - i];
}

__global__ void reverse_warps(const int* x, int* y, Mistake mistake) {
  __shared__ int tile[64];
  const int i = threadIdx.x;
  tile[i] = x[i];
  if (!mistake.is("no __syncwarp")) __syncwarp();
  y[i] = tile[i ^ (kWarp - 1)];
}

// Each thread takes a place and fills it; who finds all filled adds them up.
__global__ void gather(const int* x, int* y, Mistake mistake) {
  __shared__ int places[64];
  __shared__ int taken, filled;
  if (threadIdx.x == 0) taken = filled = 0;
  __syncthreads();
  const int place = atomicAdd(&taken, 1);
  places[place] = x[threadIdx.x];
  const bool last = mistake.is("reads what is not filled yet") ? atomicAdd(&taken, 0) == int(blockDim.x)
                                                               : atomicAdd(&filled, 1) == int(blockDim.x) - 1;
  if (!last) return;
  int sum = 0;
  for (int i = 0; i < int(blockDim.x); ++i) sum += places[i];
  atomicMin(y, sum);
}

// Adds up x over the blocks, each of which needs the one before.
__global__ void chain(const int* x, int* y) { y[blockIdx.x + 1] = y[blockIdx.x] + x[blockIdx.x]; }

// ---- what the emulator refuses

__global__ void refused(int* y, Mistake mistake) {
  const int i = threadIdx.x;
  if (mistake.is("barrier for some")) {
    if (i < 48)
      __syncthreads();
    else
      __shfl_sync(kAllLanes, i, 0);
  } else if (mistake.is("barriers of two kinds")) {
    if (i < 48)
      __syncthreads();
    else
      __syncthreads_or(1);
  } else if (mistake.is("not in its mask")) {
    __shfl_sync(0xfffffffe, i, 1);
  } else if (mistake.is("reads outside the mask")) {
    if (i % kWarp < 16) __shfl_sync(0x0000ffff, i, 16);
  } else if (mistake.is("reads a lane that has left")) {
    if (i % kWarp >= 16) return;
    __shfl_down_sync(kAllLanes, i, 1);
  } else if (mistake.is("masks that differ")) {
    __syncwarp(i % kWarp < 16 ? 0xffffffff : 0xffff0000);
  } else if (mistake.is("two operations")) {
    if (i % 2)
      __shfl_sync(kAllLanes, i, 0);
    else
      __ballot_sync(kAllLanes, i);
  } else if (mistake.is("two types")) {
    if (i % 2)
      __shfl_sync(kAllLanes, 1, 0);
    else
      __shfl_sync(kAllLanes, 1.0f, 0);
  } else if (mistake.is("trap")) {
    if (i == 37) __trap();
  }
  __syncthreads();
  y[i] = 1;
}

// ---- what AddressSanitizer and the alignment check report; the comment names the line

__global__ void out_of_bounds(int* x, Mistake mistake) {
  __shared__ int fixed[32];
  SK_DYNAMIC_SHARED(int, dynamic);
  const int i = threadIdx.x;
  fixed[i] = dynamic[i] = i;
  __syncthreads();
  if (mistake.is("global read")) dynamic[i] = x[i + 1];                                              // global read
  if (mistake.is("global write")) x[i + 1] = i;                                                      // global write
  if (mistake.is("static shared")) x[i] = fixed[i + 1];                                              // static shared
  if (mistake.is("dynamic shared")) x[i] = dynamic[i + 1];                                           // dynamic shared
  if (mistake.is("async copy")) sk::cuda::async_copy16(dynamic + 4 * (i / 4), x + 4 * (i / 4 + 1));  // async copy
  if (mistake.is("misaligned")) sk::cuda::store_vector(x, sk::cuda::load_vector(x + 1));             // misaligned
  __syncthreads();
  x[i] += fixed[31 - i] + dynamic[31 - i];
}

}  // namespace

ENTRY run_reverse(const int* x, int* y, const char* mistake) { return run(reverse, 1, 64, 0, x, y, Mistake{mistake}); }
ENTRY run_reverse_warps(const int* x, int* y, const char* mistake) {
  return run(reverse_warps, 1, 64, 0, x, y, Mistake{mistake});
}
ENTRY run_gather(const int* x, int* y, const char* mistake) { return run(gather, 1, 64, 0, x, y, Mistake{mistake}); }
ENTRY run_chain(const int* x, int* y, int64_t n) { return run(chain, unsigned(n), 1, 0, x, y); }
ENTRY run_refused(int* y, const char* mistake) { return run(refused, dim3(1, 2), 64, 0, y, Mistake{mistake}); }
// shape: grid, block, bytes of dynamic shared memory
ENTRY run_shape(int* y, const int64_t* shape) {
  auto dim = [](const int64_t* n) { return dim3(unsigned(n[0]), unsigned(n[1]), unsigned(n[2])); };
  return run(refused, dim(shape), dim(shape + 3), shape[6], y, Mistake{""});
}
// x: 32 ints, allocated here where it is null.
ENTRY run_out_of_bounds(int* x, const char* mistake) {
  std::vector<int> own(32);
  return run(out_of_bounds, 1, 32, 32 * sizeof(int), x ? x : own.data(), Mistake{mistake});
}
