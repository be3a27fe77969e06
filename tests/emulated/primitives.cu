// Right kernels, one for each part of CUDA that csrc/emu stands in for.
#include "entry.h"

using sk::cuda::kAllLanes;
using sk::cuda::kWarp;

namespace {

// ---- indices

__global__ void number_threads(int* visits, int* order, int* counter) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int i = block * int(blockDim.x * blockDim.y * blockDim.z) + thread;
  atomicAdd(&visits[i], 1);
  order[atomicAdd(counter, 1)] = i;
}

// ---- shared memory

// How many words a block finds that are numbers; it leaves numbers behind.
__global__ void count_numbers(int* numbers, int words) {
  __shared__ float fixed[100];
  SK_DYNAMIC_SHARED(float, dynamic);
  for (int i = threadIdx.x; i < 100; i += blockDim.x)
    if (fixed[i] == fixed[i]) atomicAdd(numbers, 1);
  for (int i = threadIdx.x; i < words; i += blockDim.x)
    if (dynamic[i] == dynamic[i]) atomicAdd(numbers, 1);
  __syncthreads();
  for (int i = threadIdx.x; i < 100; i += blockDim.x) fixed[i] = 0;
  for (int i = threadIdx.x; i < words; i += blockDim.x) dynamic[i] = 0;
}

// ---- blocks

__global__ void block_sum(const int* x, int* sum, int64_t n) {
  __shared__ int of_warp[kWarp];
  const int lane = threadIdx.x % kWarp;
  int own = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x)
    own += x[i];
  for (int d = kWarp / 2; d; d /= 2) own += __shfl_down_sync(kAllLanes, own, d);
  if (lane == 0) of_warp[threadIdx.x / kWarp] = own;
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  own = lane < int(blockDim.x) / kWarp ? of_warp[lane] : 0;
  for (int d = kWarp / 2; d; d /= 2) own += __shfl_down_sync(kAllLanes, own, d);
  if (lane == 0) atomicAdd(sum, own);
}

// Thread 0 leaves early, the others vote three times. Results of thread i at 3 i.
__global__ void block_votes(const int* ayes, int* results) {
  if (threadIdx.x == 0) return;
  int* const mine = results + 3 * threadIdx.x;
  mine[0] = __syncthreads_count(ayes[threadIdx.x]);
  mine[1] = __syncthreads_or(ayes[threadIdx.x]);
  mine[2] = __syncthreads_and(ayes[threadIdx.x]);
}

// ---- warps

// The value of a lane is 100 + lane; results of shuffle s at 32 s.
__global__ void shuffles(int* results, int width) {
  const int lane = threadIdx.x, value = 100 + lane;
  results[lane] = __shfl_sync(kAllLanes, value, 5, width);
  results[32 + lane] = __shfl_up_sync(kAllLanes, value, 3, width);
  results[64 + lane] = __shfl_down_sync(kAllLanes, value, 3, width);
  results[96 + lane] = __shfl_xor_sync(kAllLanes, value, 6, width);
  results[128 + lane] = int(__shfl_xor_sync(kAllLanes, 0.5 * value, 1) * 2);
}

// The last lane leaves, the odd and the even ones go separate ways and meet again. Results of lane i at 10 i.
__global__ void warp_votes(const int* values, int* results) {
  const int lane = threadIdx.x, value = values[lane];
  int* const mine = results + 10 * lane;
  if (lane == 31) return;
  if (lane % 2) {
    constexpr unsigned kOdd = 0xaaaaaaaa;  // the lane that has left does not matter
    mine[0] = int(__ballot_sync(kOdd, value & 1));
    mine[1] = __any_sync(kOdd, value == 2);
    mine[2] = __all_sync(kOdd, value < 4);
    mine[3] = int(__match_any_sync(kOdd, value));
  } else {
    constexpr unsigned kEven = 0x55555555;
    mine[3] = int(__match_any_sync(kEven, value));
    mine[2] = __all_sync(kEven, value < 4);
    mine[1] = __any_sync(kEven, value == 2);
    mine[0] = int(__ballot_sync(kEven, value & 1));
  }
  mine[4] = __reduce_add_sync(kAllLanes, value);
  mine[5] = __reduce_min_sync(kAllLanes, value - 2);
  mine[6] = __reduce_max_sync(kAllLanes, value - 2);
  mine[7] = int(__reduce_and_sync(kAllLanes, unsigned(value | 4)));
  mine[8] = int(__reduce_or_sync(kAllLanes, unsigned(value)));
  mine[9] = int(__reduce_min_sync(kAllLanes, unsigned(value - 2)));
}

// Where x is positive, ascending within each block; blocks take their places as they come.
__global__ void compact(const float* x, int n, int* positions, int* count) {
  __shared__ int of_warp[kWarp];
  __shared__ int first;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const bool keep = i < n && x[i] > 0;
  const unsigned kept = __ballot_sync(kAllLanes, keep);
  if (lane == 0) of_warp[warp] = __popc(kept);
  __syncthreads();
  if (warp == 0) {
    const int own = lane < warps ? of_warp[lane] : 0;
    const int before = sk::cuda::warp_exclusive_sum(own);
    of_warp[lane] = before;
    if (lane == kWarp - 1) first = atomicAdd(count, before + own);
  }
  __syncthreads();
  if (keep) positions[first + of_warp[warp] + __popc(kept & ((1u << lane) - 1))] = i;
}

// ---- atomics: every thread takes part in all of them

__global__ void atomics(const int* x, int* i, unsigned* u, unsigned long long* w, float* f, int* taken) {
  const int v = x[threadIdx.x];
  atomicAdd(&i[0], v);
  atomicSub(&i[1], v);
  atomicMin(&i[2], v);
  atomicMax(&i[3], v);
  atomicAnd(&u[0], unsigned(v));
  atomicOr(&u[1], unsigned(v));
  atomicXor(&u[2], unsigned(v));
  atomicAdd(&w[0], static_cast<unsigned long long>(v) << 32);
  atomicMin(&w[1], static_cast<unsigned long long>(v) << 32);
  taken[atomicAdd(&u[3], 1u)] = v;
  atomicAdd(&f[0], 0.5f);
  for (float seen = f[1]; seen < float(v);) {  // the largest, by compare and swap
    auto* const bits = reinterpret_cast<unsigned*>(&f[1]);
    seen = __uint_as_float(atomicCAS(bits, __float_as_uint(seen), __float_as_uint(float(v))));
  }
  i[5 + threadIdx.x] = atomicExch(&i[4], int(threadIdx.x));
}

// ---- arithmetic

// Results of thread i at 12 i.
__global__ void bits(const int* x, int* results) {
  const int v = x[threadIdx.x];
  int* const mine = results + 12 * threadIdx.x;
  mine[0] = __popc(v);
  mine[1] = __clz(v);
  mine[2] = __ffs(v);
  mine[3] = int(__brev(v));
  mine[4] = int(__byte_perm(v, 0x33221100, 0x4162));
  mine[5] = __dp4a(v, 0x01ff0203, 7);
  mine[6] = __popcll(static_cast<unsigned long long>(v) << 16);
  mine[7] = __clzll(static_cast<long long>(v) & 0xffffffff);
  mine[8] = __ffsll(static_cast<long long>(v) << 20);
  mine[9] = min(v, 5);
  mine[10] = max(v, 5);
  mine[11] = __float_as_int(__int_as_float(v));
}

// All numbers of 16 bits to float, and back.
__global__ void convert16(float* from_bf16, float* from_f16, uint16_t* to_bf16, uint16_t* to_f16) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  from_bf16[i] = __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(i)));
  from_f16[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(i)));
  to_bf16[i] = __bfloat16_as_ushort(__float2bfloat16_rn(from_bf16[i]));
  to_f16[i] = __half_as_ushort(__float2half_rn(from_f16[i]));
}

__global__ void round16(const float* x, uint16_t* to_bf16, uint16_t* to_f16) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  to_bf16[i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
  to_f16[i] = __half_as_ushort(__float2half_rn(x[i]));
}

// a and b are pairs at 2 i, results at 8 i.
template <class Two, class T>
__global__ void arithmetic16(const T* a, const T* b, T* results) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const Two x = reinterpret_cast<const Two*>(a)[i], y = reinterpret_cast<const Two*>(b)[i];
  T* const mine = results + 8 * i;
  mine[0] = x.x + y.x;
  mine[1] = x.x - y.x;
  mine[2] = __hmul2(x, y).y;
  mine[3] = x.y / y.y;
  mine[4] = __hmax(x.x, y.x);
  mine[5] = __hneg2(x).y;
  mine[6] = __habs(x.x);
  mine[7] = __hfma2(x, y, x).y;
}

}  // namespace

ENTRY run_number_threads(int* visits, int* order, int* counter) {
  return run(number_threads, dim3(3, 2, 2), dim3(5, 3, 2), 0, visits, order, counter);
}
ENTRY run_count_numbers(int* numbers, int64_t words) {
  return run(count_numbers, 3, 64, int64_t(sizeof(float)) * words, numbers, words);
}
ENTRY run_block_sum(const int* x, int* sum, int64_t n) { return run(block_sum, 7, 256, 0, x, sum, n); }
ENTRY run_block_votes(const int* ayes, int* results, int64_t threads) {
  return run(block_votes, 1, unsigned(threads), 0, ayes, results);
}
ENTRY run_shuffles(int* results, int64_t width) { return run(shuffles, 1, 32, 0, results, width); }
ENTRY run_warp_votes(const int* values, int* results) { return run(warp_votes, 1, 32, 0, values, results); }
ENTRY run_compact(const float* x, int64_t n, int* positions, int* count) {
  return run(compact, sk::cuda::blocks_for(n, 128), 128, 0, x, n, positions, count);
}
ENTRY run_atomics(const int* x, int64_t threads, int* i, unsigned* u, unsigned long long* w, float* f, int* taken) {
  return run(atomics, 1, unsigned(threads), 0, x, i, u, w, f, taken);
}
ENTRY run_bits(const int* x, int64_t n, int* results) { return run(bits, 1, unsigned(n), 0, x, results); }
ENTRY run_convert16(float* from_bf16, float* from_f16, uint16_t* to_bf16, uint16_t* to_f16) {
  return run(convert16, 256, 256, 0, from_bf16, from_f16, to_bf16, to_f16);
}
ENTRY run_round16(const float* x, int64_t n, uint16_t* to_bf16, uint16_t* to_f16) {
  return run(round16, unsigned(n / 256), 256, 0, x, to_bf16, to_f16);
}
ENTRY run_arithmetic_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, __nv_bfloat16* results, int64_t pairs) {
  return run(arithmetic16<__nv_bfloat162, __nv_bfloat16>, unsigned(pairs / 256), 256, 0, a, b, results);
}
ENTRY run_arithmetic_f16(const __half* a, const __half* b, __half* results, int64_t pairs) {
  return run(arithmetic16<__half2, __half>, unsigned(pairs / 256), 256, 0, a, b, results);
}
