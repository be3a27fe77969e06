// __nv_bfloat16, __half and their pairs. Arithmetic is that of CUDA: computed exactly, rounded once.
#pragma once
#include "arithmetic.h"
#include "vector_types.h"

namespace emu {

// Rounds so that a second rounding, to a narrower type, gives what one rounding would have given.
inline float round_to_odd(double v) {
  float f = float(v);
  if (std::isnan(v) || std::isinf(f) || double(f) == v) return f;
  if (std::fabs(double(f)) > std::fabs(v)) f = std::nextafter(f, 0.0f);
  return bit_cast<float>(bit_cast<uint32_t>(f) | 1);
}

inline uint16_t bfloat16_bits(float v) {
  const auto bits = bit_cast<uint32_t>(v);
  if (std::isnan(v)) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t half_bits(float v) {
  if (std::isnan(v)) return 0x7fff;
  const float magnitude = std::fabs(v);
  uint32_t bits = 0x7c00;      // infinity
  if (magnitude < 0x1p-14f) {  // subnormal: a multiple of 2^-24
    bits = uint32_t(std::nearbyint(magnitude * 0x1p24f));
  } else if (magnitude < 65520) {
    bits = bit_cast<uint32_t>(magnitude);
    bits = ((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10);
  }
  return uint16_t(bits | (std::signbit(v) ? 0x8000 : 0));
}

inline float half_value(uint16_t bits) {
  float magnitude = bit_cast<float>(uint32_t(bits & 0x7fff) << 13) * 0x1p112f;  // exact, for subnormals too
  if ((bits & 0x7c00) == 0x7c00) magnitude = bit_cast<float>(bit_cast<uint32_t>(magnitude) | 0x7f800000);
  return bits & 0x8000 ? -magnitude : magnitude;
}

}  // namespace emu

struct __nv_bfloat16 {
  __nv_bfloat16() = default;
  __nv_bfloat16(float v) : bits(emu::bfloat16_bits(v)) {}
  operator float() const { return emu::bit_cast<float>(uint32_t(bits) << 16); }

  uint16_t bits;
};

struct __half {
  __half() = default;
  __half(float v) : bits(emu::half_bits(v)) {}
  operator float() const { return emu::half_value(bits); }

  uint16_t bits;
};

namespace emu {

template <class T>
struct alignas(4) Pair {
  Pair() = default;
  Pair(T x, T y) : x(x), y(y) {}

  T x, y;
};

template <class T, class Result = T>
using IfNarrow = std::enable_if_t<std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>, Result>;

template <class F, class T>
inline Pair<T> each(F f, Pair<T> a) {
  return {f(a.x), f(a.y)};
}
template <class F, class T>
inline Pair<T> each(F f, Pair<T> a, Pair<T> b) {
  return {f(a.x, b.x), f(a.y, b.y)};
}

}  // namespace emu

using __nv_bfloat162 = emu::Pair<__nv_bfloat16>;
using __half2 = emu::Pair<__half>;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
using half = __half;
using half2 = __half2;

// ---- conversions

inline __nv_bfloat16 __float2bfloat16(float v) { return v; }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return v; }
inline __nv_bfloat16 __double2bfloat16(double v) { return emu::round_to_odd(v); }
inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline __half __float2half(float v) { return v; }
inline __half __float2half_rn(float v) { return v; }
inline __half __double2half(double v) { return emu::round_to_odd(v); }
inline float __half2float(__half v) { return v; }

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __float2bfloat162_rn(float v) { return {v, v}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 v) { return {v, v}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline __half2 __float2half2_rn(float v) { return {v, v}; }
inline __half2 __half2half2(__half v) { return {v, v}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
template <class T>
inline float __low2float(emu::Pair<T> v) {
  return v.x;
}
template <class T>
inline float __high2float(emu::Pair<T> v) {
  return v.y;
}

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) { return emu::bit_cast<__nv_bfloat16>(v); }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }
inline __half __ushort_as_half(unsigned short v) { return emu::bit_cast<__half>(v); }

// ---- arithmetic; comparisons of two of a kind go through float by themselves

template <class T>
inline emu::IfNarrow<T> __hadd(T a, T b) {
  return float(a) + float(b);
}
template <class T>
inline emu::IfNarrow<T> __hsub(T a, T b) {
  return float(a) - float(b);
}
template <class T>
inline emu::IfNarrow<T> __hmul(T a, T b) {
  return float(a) * float(b);
}
template <class T>
inline emu::IfNarrow<T> __hdiv(T a, T b) {
  return float(a) / float(b);
}
template <class T>
inline emu::IfNarrow<T> __hfma(T a, T b, T c) {
  return emu::round_to_odd(double(float(a)) * double(float(b)) + double(float(c)));
}
template <class T>
inline emu::IfNarrow<T> __hneg(T v) {
  v.bits ^= 0x8000;
  return v;
}
template <class T>
inline emu::IfNarrow<T> __habs(T v) {
  v.bits &= 0x7fff;
  return v;
}
template <class T>
inline emu::IfNarrow<T> __hmin(T a, T b) {
  return fminf(a, b);
}
template <class T>
inline emu::IfNarrow<T> __hmax(T a, T b) {
  return fmaxf(a, b);
}
template <class T>
inline emu::IfNarrow<T, bool> __hisnan(T v) {
  return std::isnan(float(v));
}

template <class T>
inline emu::IfNarrow<T> operator+(T a, T b) {
  return __hadd(a, b);
}
template <class T>
inline emu::IfNarrow<T> operator-(T a, T b) {
  return __hsub(a, b);
}
template <class T>
inline emu::IfNarrow<T> operator*(T a, T b) {
  return __hmul(a, b);
}
template <class T>
inline emu::IfNarrow<T> operator/(T a, T b) {
  return __hdiv(a, b);
}
template <class T>
inline emu::IfNarrow<T> operator-(T v) {
  return __hneg(v);
}
template <class T>
inline emu::IfNarrow<T, T&> operator+=(T& a, T b) {
  return a = a + b;
}

template <class T>
inline emu::Pair<T> __hadd2(emu::Pair<T> a, emu::Pair<T> b) {
  return emu::each(__hadd<T>, a, b);
}
template <class T>
inline emu::Pair<T> __hsub2(emu::Pair<T> a, emu::Pair<T> b) {
  return emu::each(__hsub<T>, a, b);
}
template <class T>
inline emu::Pair<T> __hmul2(emu::Pair<T> a, emu::Pair<T> b) {
  return emu::each(__hmul<T>, a, b);
}
template <class T>
inline emu::Pair<T> __hfma2(emu::Pair<T> a, emu::Pair<T> b, emu::Pair<T> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <class T>
inline emu::Pair<T> __hneg2(emu::Pair<T> v) {
  return emu::each(__hneg<T>, v);
}
template <class T>
inline emu::Pair<T> __habs2(emu::Pair<T> v) {
  return emu::each(__habs<T>, v);
}
template <class T>
inline emu::Pair<T> __hmin2(emu::Pair<T> a, emu::Pair<T> b) {
  return emu::each(__hmin<T>, a, b);
}
template <class T>
inline emu::Pair<T> __hmax2(emu::Pair<T> a, emu::Pair<T> b) {
  return emu::each(__hmax<T>, a, b);
}
template <class T>
inline emu::Pair<T> operator+(emu::Pair<T> a, emu::Pair<T> b) {
  return __hadd2(a, b);
}
template <class T>
inline emu::Pair<T> operator-(emu::Pair<T> a, emu::Pair<T> b) {
  return __hsub2(a, b);
}
template <class T>
inline emu::Pair<T> operator*(emu::Pair<T> a, emu::Pair<T> b) {
  return __hmul2(a, b);
}
