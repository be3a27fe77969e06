// Runtime dtype and index type -> template arguments, and the loop that shares work items among threads.
#pragma once
#include "bf16.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {
namespace SK_ISA {
namespace {

template <class T>
struct Tag {
  using type = T;
};

template <class F>
inline void with_dtype(DType dtype, F&& f) {
  if (dtype == DType::f64)
    f(Tag<double>{});
  else
    f(Tag<float>{});
}

// The same for activations, which may also be stored as bf16.
template <class F>
inline void with_activations(DType dtype, F&& f) {
  if (dtype == DType::bf16)
    f(Tag<bf16>{});
  else
    with_dtype(dtype, f);
}

template <class F>
inline void with_index(IndexType index, F&& f) {
  if (index == IndexType::i64)
    f(Tag<int64_t>{});
  else
    f(Tag<int32_t>{});
}

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

// For a kernel that runs inside of a work item.
inline Parallel one_thread() {
  return {1, nullptr, [](void*, int64_t n, ParallelBody body, void* arg) { body(arg, 0, n); }};
}

// Calls fn(worker, item) for every item; workers (at most parallel.threads, numbered from 0) take the next item when
// they are free, so uneven items balance. A worker number is in use by one thread at a time: it names scratch memory.
template <class Fn>
inline void for_each_item(const Parallel& parallel, int64_t items, Fn fn) {
  struct Shared {
    Fn* fn;
    int64_t items, next;
  } shared{&fn, items, 0};
  parallel.run(
      parallel.context, min_of(parallel.threads, items),
      [](void* arg, int64_t begin, int64_t end) {
        auto& s = *static_cast<Shared*>(arg);
        for (int64_t worker = begin; worker < end; ++worker)
          for (int64_t i; (i = __atomic_fetch_add(&s.next, 1, __ATOMIC_RELAXED)) < s.items;) (*s.fn)(worker, i);
      },
      &shared);
}

// Calls fn(begin, end) on ranges of about `grain` that cover [0, n).
template <class Fn>
inline void for_each_range(const Parallel& parallel, int64_t n, int64_t grain, Fn fn) {
  for_each_item(parallel, ceil_div(n, grain), [&](int64_t, int64_t i) { fn(i * grain, min_of(n, (i + 1) * grain)); });
}

}  // namespace
}  // namespace SK_ISA
}  // namespace sk
