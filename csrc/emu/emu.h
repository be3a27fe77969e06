// CUDA C++ kernels on the CPU, for tests: see README.md. A kernel's source includes this in place of CUDA's headers.
#pragma once
#include <algorithm>
#include <cstdio>
#include <functional>

#include "arithmetic.h"
#include "async_copy.h"
#include "atomics.h"
#include "block.h"
#include "float16.h"
#include "shared_memory.h"
#include "vector_types.h"
#include "warp.h"

#define __global__ static  // internal linkage, which __shared__ asks for
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline __attribute__((always_inline))

// The launch's dynamic shared memory, as an array of T.
#define SK_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::emu::dynamic_shared())

using cudaStream_t = void*;

inline void __syncthreads() { emu::sync_block("__syncthreads", false); }
inline int __syncthreads_count(int aye) { return emu::sync_block("__syncthreads_count", aye).ayes; }
inline int __syncthreads_or(int aye) { return emu::sync_block("__syncthreads_or", aye).ayes != 0; }
inline int __syncthreads_and(int aye) {
  const emu::Votes votes = emu::sync_block("__syncthreads_and", aye);
  return votes.ayes == votes.threads;
}

[[noreturn]] inline void __trap() { emu::fail("__trap()"); }

namespace emu {

// Launches a kernel: calls `body` once per thread, and returns when all are done. Throws std::runtime_error where the
// kernel is at fault, and what `body` throws.
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

}  // namespace emu
