// Vectors of the width of this instruction set, through the compiler's vector extensions: one source for all sets.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace sk {
namespace SK_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Past the caches, for results that will be read back only after they have been evicted: it saves reading the line
// first. One vector must be one whole cache line, aligned. Finish with finish_streaming before another thread may look.
constexpr bool kCanStream = kVectorBytes == 64;

template <class T>
inline void stream(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#else
  store(p, v);
#endif
}

inline void finish_streaming() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

// Lanes without bit H from a, lanes with it from b; taken from the lower or the upper half of each 2H group.
template <class T, int H, std::size_t... J>
inline Vec<T> lower_halves(Vec<T> a, Vec<T> b, std::index_sequence<J...>) {
  return __builtin_shufflevector(a, b, ((J & H) ? kLanes<T> + J - H : J)...);
}
template <class T, int H, std::size_t... J>
inline Vec<T> upper_halves(Vec<T> a, Vec<T> b, std::index_sequence<J...>) {
  return __builtin_shufflevector(a, b, ((J & H) ? kLanes<T> + J : J + H)...);
}

// One step of an in-register transpose: swaps the off-diagonal H x H blocks of every 2H x 2H block.
template <class T, int H>
inline void transpose_from(Vec<T> (&r)[kLanes<T>]) {
  if constexpr (H < kLanes<T>) {
    constexpr auto lanes = std::make_index_sequence<kLanes<T>>{};
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if (i & H) continue;
      const Vec<T> a = r[i], b = r[i + H];
      r[i] = lower_halves<T, H>(a, b, lanes);
      r[i + H] = upper_halves<T, H>(a, b, lanes);
    }
    transpose_from<T, 2 * H>(r);
  }
}

// dst[c * dst_stride + r] = src[r * src_stride + c] for a tile of kLanes x kLanes.
template <class T, bool Stream = false>
inline void transpose_tile(const T* src, int64_t src_stride, T* dst, int64_t dst_stride) {
  Vec<T> r[kLanes<T>];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) r[i] = load(src + i * src_stride);
  transpose_from<T, 1>(r);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) {
    if constexpr (Stream)
      stream(dst + i * dst_stride, r[i]);
    else
      store(dst + i * dst_stride, r[i]);
  }
}

// Lane i of the result is the sum of the lanes of r[i]. Destroys r.
template <class T, int H = kLanes<T> / 2>
inline Vec<T> sum_lanes(Vec<T> (&r)[kLanes<T>]) {
  constexpr auto lanes = std::make_index_sequence<kLanes<T>>{};
#pragma GCC unroll 8
  for (int i = 0; i < H; ++i)
    r[i] = lower_halves<T, H>(r[i], r[i + H], lanes) + upper_halves<T, H>(r[i], r[i + H], lanes);
  if constexpr (H > 1)
    return sum_lanes<T, H / 2>(r);
  else
    return r[0];
}

// The sum of the lanes.
template <class T, int H = kLanes<T> / 2>
inline T add_lanes(Vec<T> v) {
  constexpr auto lanes = std::make_index_sequence<kLanes<T>>{};
  const Vec<T> folded = v + upper_halves<T, H>(v, v, lanes);
  if constexpr (H > 1)
    return add_lanes<T, H / 2>(folded);
  else
    return folded[0];
}

}  // namespace
}  // namespace SK_ISA
}  // namespace sk
