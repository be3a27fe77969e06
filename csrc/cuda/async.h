// Copies from global to shared memory that run beside the threads.
//
// Groups of 16-byte copies (every architecture here). A thread's copies go into groups: async_commit() closes one,
// async_wait<n>() waits until at most the n latest groups of the thread are under way. Other threads see the data
// after the __syncthreads() that follows. Both addresses are 16-byte aligned.
//
// Bulk copies (where kBulkCopies, that is from sm_90 on; elsewhere calling them traps). One thread copies any number
// of bytes, and an mbarrier in shared memory counts them. A phase of an mbarrier ends when all arrivals and all
// expected bytes have come; phases have parity 0, 1, 0, ..., and wait(parity) returns when the phase of that parity has
// ended, so that wait(1) of a new mbarrier returns at once. After it the waiting thread sees the copied data and what
// the arriving threads wrote before. Addresses and bytes are multiples of 16; a phase expects at most 2^20 - 1 bytes.
// A destination must not have been written by the threads themselves (that would take a proxy fence); what threads have
// read there they must have arrived for, at the mbarrier that the copying thread waits for.
#pragma once
#include "cuda.h"

namespace sk {
namespace cuda {

#ifdef SK_EMU

using emu::async_commit;
using emu::async_copy16;
using emu::bulk_copy;
using emu::Mbarrier;

template <int n>
void async_wait() {
  emu::async_wait(n);
}

constexpr bool kBulkCopies = true;

#else

__device__ __forceinline__ unsigned shared_address(const void* at) {
  return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

__device__ __forceinline__ void async_copy16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

__device__ __forceinline__ void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int n>
__device__ __forceinline__ void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

constexpr bool kBulkCopies = true;

class Mbarrier {
 public:
  // By one thread; the others may use it after the next __syncthreads().
  __device__ __forceinline__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }

  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }

  // One arrival, which also makes the phase wait for so many bytes of bulk copies.
  __device__ __forceinline__ void expect_bytes(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                 : "memory");
  }

  __device__ __forceinline__ void wait(unsigned parity) {
    unsigned ended;
    do {
      asm volatile(
          "{\n.reg .pred ended;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
          "selp.u32 %0, 1, 0, ended;\n}"
          : "=r"(ended)
          : "r"(shared_address(this)), "r"(parity)
          : "memory");
    } while (!ended);
  }

 private:
  uint64_t state_;
};

__device__ __forceinline__ void bulk_copy(void* shared, const void* global, uint32_t bytes, Mbarrier& barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(&barrier))
               : "memory");
}

#else

constexpr bool kBulkCopies = false;

class Mbarrier {
 public:
  __device__ void init(int) { trap(); }
  __device__ void arrive() { trap(); }
  __device__ void expect_bytes(uint32_t) { trap(); }
  __device__ void wait(unsigned) { trap(); }

 private:
  __device__ void trap() {
#ifdef __CUDA_ARCH__
    __trap();
#endif
  }

  uint64_t state_;
};

__device__ inline void bulk_copy(void*, const void*, uint32_t, Mbarrier& barrier) { barrier.arrive(); }

#endif

#endif

}  // namespace cuda
}  // namespace sk
