// Products of small matrices that lie in the first-level cache: one factor is broadcast, the other one gives the lanes.
#pragma once
#include "vec.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int kAccumulators = kVectorBytes == 64 ? 16 : 8;      // of the 32 or 16 registers
constexpr int kMostAccumulators = kVectorBytes == 64 ? 24 : 8;  // pays where each is summed over many products
constexpr int kGemmVectors = kVectorBytes == 64 ? 4 : 2;        // of a block

// Element (m, d) is at[m * row + d * depth].
template <class T>
struct Broadcast {
  const T* at;
  int64_t row, depth;
};

// Element (r, lane) is at[r * row + lane].
template <class T>
struct Lanes {
  T* at;
  int64_t row;
};

// Ahead: `next`, of rows * depth elements, is asked for meanwhile.
template <class T, bool Add, bool Ahead, int M, int V>
inline void gemm_block(Broadcast<T> a, Lanes<const T> b, Lanes<T> c, int64_t depth, const T* next) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[M][V];
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[m][v] = Add ? load(c.at + m * c.row + v * L) : Vec<T>{};
  for (int64_t d = 0; d < depth; ++d) {
    if constexpr (Ahead) __builtin_prefetch(next + d * M, 0, 2);
    Vec<T> x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = load(b.at + d * b.row + v * L);
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
      const T w = a.at[m * a.row + d * a.depth];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] += w * x[v];
    }
  }
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(c.at + m * c.row + v * L, sum[m][v]);
}

template <class T, bool Add, bool Ahead, int M, int V>
inline void gemm_rows(Broadcast<T> a, Lanes<const T> b, Lanes<T> c, int64_t rows, int64_t depth, const T* next) {
  for (; rows >= M; rows -= M, a.at += M * a.row, c.at += M * c.row, next += Ahead ? M * depth : 0)
    gemm_block<T, Add, Ahead, M, V>(a, b, c, depth, next);
  if constexpr (M > 1)
    if (rows > 0) gemm_rows<T, Add, Ahead, (M > 4 ? 4 : M / 2), V>(a, b, c, rows, depth, next);
}

// c (rows, vectors) = a (rows, depth) b (depth, vectors), or with Add c += a b. With Ahead the rows * depth elements at
// `next`, which the caller will need next, are brought closer meanwhile.
template <bool Add, class T, bool Ahead = false>
inline void gemm(Broadcast<T> a, Lanes<const T> b, Lanes<T> c, int64_t rows, int64_t vectors, int64_t depth,
                 const T* next = nullptr) {
  const auto columns = [&](auto width) {
    constexpr int V = decltype(width)::value, M = (Ahead ? kMostAccumulators : kAccumulators) / V;
    for (; vectors >= V; vectors -= V, b.at += V * kLanes<T>, c.at += V * kLanes<T>)
      gemm_rows<T, Add, Ahead, M, V>(a, b, c, rows, depth, next);
  };
  if constexpr (kGemmVectors == 4) {
    columns(std::integral_constant<int, 4>{});
    columns(std::integral_constant<int, 3>{});
  }
  columns(std::integral_constant<int, 2>{});
  columns(std::integral_constant<int, 1>{});
}

}  // namespace
}  // namespace SK_ISA
}  // namespace sk
