// Magnitudes as integers: the bits of a float without its sign order like its absolute value, NaN above infinity.
#pragma once
#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "bf16.h"

namespace sk {
namespace SK_ISA {
namespace {

template <class T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = int32_t;
  static constexpr int32_t kInfinity = 0x7f800000;
};
template <>
struct KeyOf<double> {
  using type = int64_t;
  static constexpr int64_t kInfinity = 0x7ff0000000000000;
};
template <>
struct KeyOf<bf16> {
  using type = int16_t;
  static constexpr int16_t kInfinity = 0x7f80;
};
template <class T>
using Key = typename KeyOf<T>::type;
template <class T>
constexpr int kKeyBits = 8 * int(sizeof(T)) - 1;
template <class T>
constexpr Key<T> kMaxKey = Key<T>(~(uint64_t(1) << (8 * sizeof(T) - 1)) & (~uint64_t(0) >> (64 - 8 * sizeof(T))));

template <class T>
inline Key<T> magnitude(T x) {
  Key<T> bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits & kMaxKey<T>;
}

// Bit i of the result is set when the magnitude of x[i] is above `key`, for 8 consecutive entries.
// AVX2 comparisons also under AVX-512: g++ 12 spills the narrow result of a mask comparison and reads it back wider.
inline uint32_t above8(const float* x, int32_t key) {
#if defined(__AVX2__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i m = _mm256_and_si256(bits, _mm256_set1_epi32(kMaxKey<float>));
  return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(m, _mm256_set1_epi32(key)))));
#else
  uint32_t bits = 0;
  for (int i = 0; i < 8; ++i) bits |= uint32_t(magnitude(x[i]) > key) << i;
  return bits;
#endif
}

inline uint32_t above8(const double* x, int64_t key) {
  uint32_t bits = 0;
#if defined(__AVX2__)
  for (int i = 0; i < 8; i += 4) {
    const __m256i m = _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i)),
                                       _mm256_set1_epi64x(kMaxKey<double>));
    bits |= uint32_t(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(m, _mm256_set1_epi64x(key))))) << i;
  }
#else
  for (int i = 0; i < 8; ++i) bits |= uint32_t(magnitude(x[i]) > key) << i;
#endif
  return bits;
}

inline uint32_t above8(const bf16* x, int16_t key) {
#if defined(__AVX2__)
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  const __m128i above = _mm_cmpgt_epi16(_mm_and_si128(bits, _mm_set1_epi16(kMaxKey<bf16>)), _mm_set1_epi16(key));
  return uint32_t(_mm_movemask_epi8(_mm_packs_epi16(above, _mm_setzero_si128())));
#else
  uint32_t bits = 0;
  for (int i = 0; i < 8; ++i) bits |= uint32_t(magnitude(x[i]) > key) << i;
  return bits;
#endif
}

// The same with a key of its own for every entry.
template <class T>
inline uint32_t above8(const T* x, const Key<T>* keys) {
  typedef Key<T> Keys8 __attribute__((vector_size(8 * sizeof(T))));
  Keys8 m, k;
  __builtin_memcpy(&m, x, sizeof m);
  __builtin_memcpy(&k, keys, sizeof k);
  const Keys8 above = (m & kMaxKey<T>) > k;
  alignas(64) T signs[8];  // the comparison's -1 and 0 as numbers above and not above 0
  const Keys8 ones = above & magnitude(T(1));
  __builtin_memcpy(signs, &ones, sizeof ones);
  return above8(signs, Key<T>(0));
}

// Writes 8 entries: x[i] where bit i is set, 0 elsewhere.
inline void keep8(const float* x, uint32_t bits, float* y) {
#if defined(__AVX512VL__)
  _mm256_storeu_ps(y, _mm256_maskz_loadu_ps(__mmask8(bits), x));
#else
  for (int i = 0; i < 8; ++i) y[i] = bits >> i & 1 ? x[i] : 0.0f;
#endif
}

inline void keep8(const double* x, uint32_t bits, double* y) {
#if defined(__AVX512F__)
  _mm512_storeu_pd(y, _mm512_maskz_loadu_pd(__mmask8(bits), x));
#else
  for (int i = 0; i < 8; ++i) y[i] = bits >> i & 1 ? x[i] : 0.0;
#endif
}

inline void keep8(const bf16* x, uint32_t bits, bf16* y) {
#if defined(__AVX512VL__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm_maskz_loadu_epi16(__mmask8(bits), x));
#else
  for (int i = 0; i < 8; ++i) y[i] = bits >> i & 1 ? x[i] : bf16{};
#endif
}

// The same for the first `count` <= 8 entries.
template <class T>
inline void keep(const T* x, uint32_t bits, int64_t count, T* y) {
  if (count == 8) return keep8(x, bits, y);
  for (int64_t i = 0; i < count; ++i) y[i] = bits >> i & 1 ? x[i] : T{};
}

}  // namespace
}  // namespace SK_ISA
}  // namespace sk
