// Token panels: `tokens` rows of a row-major matrix, transposed into thread-private memory so that one feature of all
// tokens is contiguous. csr_linear and csr_sddmm stream the rows of a pattern over such a panel.
#pragma once
#include "dispatch.h"
#include "vec.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int64_t kPanelBytes = 512 * 1024;  // leaves room for the rest in a private L2 of 1 MiB
constexpr int kMaxPanelVectors = 4;

// How many vectors of tokens a panel of `features` is wide: 1, 2 or 4. Depends on the shape alone.
template <class T>
inline int panel_vectors(int64_t features, int64_t tokens) {
  int v = kMaxPanelVectors;
  while (v > 1 && (v * kVectorBytes * features > kPanelBytes || (v / 2) * kLanes<T> >= tokens)) v /= 2;
  return v;
}

// Calls f(std::integral_constant<int, vectors>) so that the width is known to the compiler.
template <class F>
inline void with_vectors(int vectors, F&& f) {
  if (vectors == 4)
    f(std::integral_constant<int, 4>{});
  else if (vectors == 2)
    f(std::integral_constant<int, 2>{});
  else
    f(std::integral_constant<int, 1>{});
}

template <class T>
inline void copy_tile(const T* src, int64_t src_stride, T* dst, int64_t dst_stride, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) dst[r * dst_stride + c] = src[r * src_stride + c];
}

// panel[f * V * lanes + t] = src[t * stride + f] for `tokens` <= V * lanes tokens, zeros for the missing ones. Writes
// the features rounded up to a multiple of the lanes.
template <class T, int V>
inline void pack_panel(const T* src, int64_t stride, int64_t tokens, int64_t features, T* panel) {
  constexpr int L = kLanes<T>, width = V * L;
  for (int64_t f = 0; f < features; f += L) {
    for (int v = 0; v < V; ++v) {
      const int64_t rows = tokens - v * L, cols = features - f;
      const T* tile = src + v * L * stride + f;
      T* out = panel + f * width + v * L;
      if (rows >= L && cols >= L) {
        transpose_tile(tile, stride, out, width);
      } else {
        T edge[L * L] = {};
        if (rows > 0) copy_tile(tile, stride, edge, L, rows < L ? rows : L, cols < L ? cols : L);
        transpose_tile(edge, L, out, width);
      }
    }
  }
}

// The way back for one tile of `lanes` features: dst[t * stride + f] = tile[f * V * lanes + t] for the entries that
// exist. Stream: past the caches, where whole aligned lines are written.
template <class T, int V, bool Stream>
inline void unpack_tile(const T* tile, int64_t tokens, int64_t features, T* dst, int64_t stride) {
  constexpr int L = kLanes<T>, width = V * L;
  for (int v = 0; v < V; ++v) {
    const int64_t rows = tokens - v * L;
    if (rows <= 0) return;
    T* out = dst + v * L * stride;
    if (rows >= L && features >= L) {
      transpose_tile<T, Stream>(tile + v * L, width, out, stride);
    } else {
      T edge[L * L];
      transpose_tile(tile + v * L, width, edge, L);
      copy_tile(edge, L, out, stride, rows < L ? rows : L, features < L ? features : L);
    }
  }
}

}  // namespace
}  // namespace SK_ISA
}  // namespace sk
