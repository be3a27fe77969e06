// bfloat16: the upper half of a float. Activations are stored so; everything is computed in float.
#pragma once
#include "vec.h"

namespace sk {
namespace SK_ISA {
namespace {

struct bf16 {
  uint16_t bits;
};

inline const uint16_t* bits_of(const bf16* x) { return reinterpret_cast<const uint16_t*>(x); }
inline uint16_t* bits_of(bf16* x) { return reinterpret_cast<uint16_t*>(x); }

// What numbers stored as S are computed in.
template <class S>
struct MathOf {
  using type = S;
};
template <>
struct MathOf<bf16> {
  using type = float;
};
template <class S>
using Math = typename MathOf<S>::type;

inline float widen(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  __builtin_memcpy(&y, &bits, sizeof y);
  return y;
}
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

// The nearest bfloat16 of every lane, ties to even, in the upper half of its bits; the lower half is undefined.
inline Vec<uint32_t> rounded(Vec<float> x) {
  const Vec<uint32_t> bits = (Vec<uint32_t>)x;
  const Vec<uint32_t> nearest = bits + 0x7fff + (bits >> 16 & 1), quiet = bits | 0x400000;
  const Vec<uint32_t> is_nan = (Vec<uint32_t>)(x != x);
  return (is_nan & quiet) | (~is_nan & nearest);
}

inline void narrow(float x, bf16* y) {
  Vec<float> v = {};
  v[0] = x;
  y->bits = uint16_t(rounded(v)[0] >> 16);
}
inline void narrow(float x, float* y) { *y = x; }
inline void narrow(double x, double* y) { *y = x; }

template <class S>
inline S one() {
  S x;
  narrow(Math<S>(1), &x);
  return x;
}

// V vectors of numbers from memory and back. Of bfloat16, of which a vector in memory has twice as many, every other
// one goes to the first of two vectors and the rest to the second.
template <int V, class S>
inline void load_all(const S* from, Vec<Math<S>> (&to)[V]) {
  if constexpr (sizeof(S) == sizeof(Math<S>)) {
    for (int v = 0; v < V; ++v) to[v] = load(from + v * kLanes<S>);
  } else {
    static_assert(V % 2 == 0);
    for (int v = 0; v < V; v += 2) {
      const Vec<uint32_t> pairs = (Vec<uint32_t>)load(bits_of(from) + v / 2 * kLanes<S>);
      to[v] = (Vec<float>)(pairs << 16);
      to[v + 1] = (Vec<float>)(pairs & 0xffff0000);
    }
  }
}

template <int V, class S>
inline void store_all(S* to, const Vec<Math<S>> (&from)[V]) {
  if constexpr (sizeof(S) == sizeof(Math<S>)) {
    for (int v = 0; v < V; ++v) store(to + v * kLanes<S>, from[v]);
  } else {
    static_assert(V % 2 == 0);
    for (int v = 0; v < V; v += 2) {
      const Vec<uint32_t> pairs = rounded(from[v]) >> 16 | (rounded(from[v + 1]) & 0xffff0000);
      store(bits_of(to) + v / 2 * kLanes<S>, (Vec<uint16_t>)pairs);
    }
  }
}

// One vector of numbers from as many consecutive ones in memory, and back.
template <class S>
inline Vec<Math<S>> load_wide(const S* from) {
  if constexpr (sizeof(S) == sizeof(Math<S>)) {
    return load(from);
  } else {
    typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
    Half bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    return (Vec<float>)(__builtin_convertvector(bits, Vec<uint32_t>) << 16);
  }
}

template <class S>
inline void store_narrow(S* to, Vec<Math<S>> x) {
  if constexpr (sizeof(S) == sizeof(Math<S>)) {
    store(to, x);
  } else {
    typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
    const Half bits = __builtin_convertvector(rounded(x) >> 16, Half);
    __builtin_memcpy(to, &bits, sizeof bits);
  }
}

// Entries `Odd`, Odd + 2 .. of row 2i, each beside that of row 2i + 1 in one lane of rows[i], transposed and written to
// the rows of that parity. A function of its own for each parity: the lanes of both would not fit the registers.
template <int Odd, bool Stream>
inline void transpose_pairs(const bf16* src, int64_t src_stride, bf16* dst, int64_t dst_stride) {
  constexpr int L = kLanes<float>;
  Vec<uint32_t> rows[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    const Vec<uint32_t> a = (Vec<uint32_t>)load(bits_of(src) + 2 * i * src_stride);
    const Vec<uint32_t> b = (Vec<uint32_t>)load(bits_of(src) + (2 * i + 1) * src_stride);
    rows[i] = Odd ? (a >> 16 | (b & 0xffff0000)) : ((a & 0xffff) | b << 16);
  }
  transpose_from<uint32_t, 1>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    uint16_t* out = bits_of(dst) + (2 * i + Odd) * dst_stride;
    if constexpr (Stream)
      stream(out, (Vec<uint16_t>)rows[i]);
    else
      store(out, (Vec<uint16_t>)rows[i]);
  }
}

// transpose_tile for what is stored: a tile has kLanes<S> rows and columns.
template <class S, bool Stream = false>
inline void transpose_stored(const S* src, int64_t src_stride, S* dst, int64_t dst_stride) {
  if constexpr (sizeof(S) == sizeof(Math<S>)) {
    transpose_tile<S, Stream>(src, src_stride, dst, dst_stride);
  } else {
    transpose_pairs<0, Stream>(src, src_stride, dst, dst_stride);
    transpose_pairs<1, Stream>(src, src_stride, dst, dst_stride);
  }
}

}  // namespace
}  // namespace SK_ISA
}  // namespace sk
