// How a kernel gets its parallelism without seeing torch: csrc/torch fills this in.
#pragma once
#include <cstdint>

namespace sk {

using ParallelBody = void (*)(void* arg, int64_t begin, int64_t end);

// On a CPU: torch::stable::parallel_for. On a GPU: context is the current cudaStream_t, the rest is unused.
struct Parallel {
  int32_t threads;
  void* context;
  // Calls body on disjoint ranges that together cover [0, n), at most `threads` at a time; returns when all are done.
  void (*run)(void* context, int64_t n, ParallelBody body, void* arg);
};

}  // namespace sk
