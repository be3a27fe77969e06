// A block of CUDA threads: where they are, what they wait for, and how they get past it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "fiber.h"
#include "schedule.h"
#include "vector_types.h"

// CUDA's built-in variables, those of the thread that runs.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emu {

class Mbarrier;
struct Warp;

// Why a thread does not go on.
struct Wait {
  const char* at;  // the function's name
  unsigned mask;   // of a warp operation
  const Mbarrier* barrier;
  unsigned parity;
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Thread {
  Fiber fiber;
  uint3 index;
  int lane;
  Warp* warp;
  bool exited;
  Wait wait;
  std::vector<Copy> copies;    // asynchronous ones that nobody has waited for
  std::vector<size_t> groups;  // how many copies there were at each commit
};

inline Thread* current = nullptr;  // the thread that runs; null between threads

// Throws a std::runtime_error that names the block and the current thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- waiting

void suspend(const Wait& wait);  // leaves the current thread until it is released
void release(Thread* const* threads, size_t n);
// Perhaps lets other threads go first. Called where threads see each other's work without waiting for it.
void interleave();

// ---- __syncthreads

struct Votes {
  int threads, ayes;
};
// Waits until all threads of the block that have not exited are here.
Votes sync_block(const char* name, bool aye);

// ---- warp operations

struct Meeting;
using Combine = void (*)(const Meeting&);  // run once, when all lanes have come: gives each its result

// The lanes that have come to an operation.
struct Meeting {
  const char* name;
  Combine combine;
  unsigned mask;  // as every lane has named it
  unsigned here;
  void* parts[32];  // what the lanes bring and take away; lies on their stacks

  template <class Part>
  Part& part(int lane) const {
    return *static_cast<Part*>(parts[lane]);
  }
  template <class F>
  void for_each_lane(F f) const {
    for (unsigned left = here; left; left &= left - 1) f(__builtin_ctz(left));
  }
};

// Waits until all lanes of `mask` that have not exited have come to the same operation; `part` then holds the result.
void meet(const char* name, Combine combine, unsigned mask, void* part);

// ---- one block

// Forgets the threads of the last launch and prepares those of blocks of this shape.
void prepare_threads(dim3 shape);

// Runs `body` on every thread; throws what the first thread to fail throws, or says who waits for what if nobody can
// go on.
void run_block(const std::function<void()>& body, Order order);

}  // namespace emu
