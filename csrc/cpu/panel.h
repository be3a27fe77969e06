// Token panels: `tokens` rows of a row-major matrix, transposed into thread-private memory so that one feature of all
// tokens is contiguous. csr_linear and csr_sddmm stream the rows of a pattern over such a panel.
//
// S is what activations are stored as; a panel is V vectors of Math<S> wide, and tiles of kLanes<S> features and tokens
// are transposed in registers.
#pragma once
#include "bf16.h"
#include "dispatch.h"
#include "vec.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int64_t kPanelBytes = 512 * 1024;  // leaves room for the rest in a private L2 of 1 MiB
constexpr int kMaxPanelVectors = 4;
template <class S>
constexpr int kMinPanelVectors = int(sizeof(Math<S>) / sizeof(S));  // at least one vector in memory

template <class S, int V>
constexpr int kPanelTokens = V * kLanes<Math<S>>;

// How many vectors of tokens a panel of `features` is wide: 1 (not of bfloat16), 2 or 4; `most` bytes if it can be.
// Depends on the shape alone.
template <class S>
inline int panel_vectors(int64_t features, int64_t tokens, int64_t most = kPanelBytes) {
  int v = kMaxPanelVectors;
  const int64_t bytes = kVectorBytes / kMinPanelVectors<S> * features;  // of a panel of one vector
  while (v > kMinPanelVectors<S> && (v * bytes > most || (v / 2) * kLanes<Math<S>> >= tokens)) v /= 2;
  return v;
}

// Calls f(std::integral_constant<int, vectors>) so that the width is known to the compiler.
template <class S, class F>
inline void with_vectors(int vectors, F&& f) {
  if (vectors == 4) return f(std::integral_constant<int, 4>{});
  if constexpr (kMinPanelVectors<S> == 1)
    if (vectors == 1) return f(std::integral_constant<int, 1>{});
  f(std::integral_constant<int, 2>{});
}

template <class S>
inline void copy_tile(const S* src, int64_t src_stride, S* dst, int64_t dst_stride, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) dst[r * dst_stride + c] = src[r * src_stride + c];
}

// panel[f * width + t] = src[t * stride + f] for `tokens` <= width tokens, zeros for the missing ones. Writes the
// features rounded up to whole tiles.
template <class S, int V>
inline void pack_panel(const S* src, int64_t stride, int64_t tokens, int64_t features, S* panel) {
  constexpr int side = kLanes<S>, width = kPanelTokens<S, V>;
  for (int64_t f = 0; f < features; f += side) {
    for (int64_t t = 0; t < width; t += side) {
      const int64_t rows = tokens - t, cols = features - f;
      const S* tile = src + t * stride + f;
      S* out = panel + f * width + t;
      if (rows >= side && cols >= side) {
        transpose_stored(tile, stride, out, width);
      } else {
        S edge[side * side] = {};
        if (rows > 0) copy_tile(tile, stride, edge, side, rows < side ? rows : side, cols < side ? cols : side);
        transpose_stored(edge, side, out, width);
      }
    }
  }
}

// The way back for a tile of at most kLanes<S> features: dst[t * stride + f] = tile[f * width + t] for the entries that
// exist. Stream: past the caches, where whole aligned lines are written.
template <class S, int V, bool Stream>
inline void unpack_tile(const S* tile, int64_t tokens, int64_t features, S* dst, int64_t stride) {
  constexpr int side = kLanes<S>, width = kPanelTokens<S, V>;
  for (int64_t t = 0; t < min_of(width, tokens); t += side) {
    const int64_t rows = tokens - t;
    S* out = dst + t * stride;
    if (rows >= side && features >= side) {
      transpose_stored<S, Stream>(tile + t, width, out, stride);
    } else {
      S edge[side * side];
      transpose_stored(tile + t, width, edge, side);
      copy_tile(edge, side, out, stride, rows < side ? rows : side, features < side ? features : side);
    }
  }
}

constexpr int64_t kStreamBytes = 16 << 20;  // an output of this size leaves the caches before it is read

// Whether y (tokens, features) is best written past the caches, by whole aligned lines.
template <class S>
inline bool is_streamed(const void* y, int64_t tokens, int64_t features) {
  return kCanStream && tokens * features * int64_t(sizeof(S)) >= kStreamBytes && features % kLanes<S> == 0 &&
         reinterpret_cast<uintptr_t>(y) % kVectorBytes == 0;
}

constexpr int64_t kRowCost = 8;  // what a row costs besides its positions, in positions

// Where block i of `blocks` of rows begins: the blocks cost about the same, and begin at multiples of `multiple`.
template <class I>
int64_t block_begin(const CsrPattern& w, int64_t i, int64_t blocks, int64_t multiple) {
  if (i == blocks) return w.rows;
  const I* crow = static_cast<const I*>(w.crow);
  const double target = (double(w.nnz) + double(kRowCost * w.rows)) * double(i) / double(blocks);
  int64_t low = 0, high = w.rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (double(crow[middle]) + double(kRowCost * middle) < target)
      low = middle + 1;
    else
      high = middle;
  }
  return min_of(w.rows, round_up(low, multiple));
}

}  // namespace
}  // namespace SK_ISA
}  // namespace sk
