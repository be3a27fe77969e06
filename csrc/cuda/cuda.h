// What the kernels take from CUDA, whether nvcc compiles them or csrc/emu runs them on the CPU.
#pragma once
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

#ifdef SK_EMU
#include "emu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdio>

// The launch's dynamic shared memory, as an array of T, 16-byte aligned.
#define SK_DYNAMIC_SHARED(T, name)                                          \
  extern __shared__ __align__(16) unsigned char sk_dynamic_shared_memory[]; \
  T* const name = reinterpret_cast<T*>(sk_dynamic_shared_memory)
#endif

// Returns from a launcher at the first error.
#define SK_TRY(expression)                        \
  do {                                            \
    const ::sk::Status sk_status = (expression);  \
    if (sk_status != ::sk::kOk) return sk_status; \
  } while (false)

namespace sk {
namespace cuda {

// What a launcher may know of the device.
struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;  // of dynamic shared memory that one block can have
};

#ifdef SK_EMU

inline DeviceLimits device_limits() { return {4, 227 << 10}; }

template <class... Params, class... Args>
Status launch(void (*kernel)(Params...), dim3 grid, dim3 block, int64_t shared_bytes, const Parallel&, Args... args) {
  if (grid.x && grid.y && grid.z) emu::run(grid, block, size_t(shared_bytes), [&] { kernel(Params(args)...); });
  return kOk;
}

inline Status fill_zero(void* to, int64_t bytes, const Parallel&) {
  memset(to, 0, size_t(bytes));
  return kOk;
}

#else

inline DeviceLimits device_limits() {
  int device = 0;
  DeviceLimits limits{};
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return limits;
}

// Runs kernel(args...) on the stream of `parallel`; an empty grid is no work.
template <class... Params, class... Args>
Status launch(void (*kernel)(Params...), dim3 grid, dim3 block, int64_t shared_bytes, const Parallel& parallel,
              Args... args) {
  if (!(grid.x && grid.y && grid.z)) return kOk;
  if (shared_bytes > 48 << 10) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return Status(error);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = static_cast<cudaStream_t>(parallel.context);
  return Status(cudaLaunchKernelEx(&config, kernel, Params(args)...));
}

inline Status fill_zero(void* to, int64_t bytes, const Parallel& parallel) {
  return bytes ? Status(cudaMemsetAsync(to, 0, size_t(bytes), static_cast<cudaStream_t>(parallel.context))) : kOk;
}

#endif

}  // namespace cuda
}  // namespace sk
