// CUDA's built-in vector types.
#pragma once

namespace emu {

template <class T>
struct alignas(2 * sizeof(T)) Vector2 {
  T x, y;
};
template <class T>
struct alignas(16) Vector4 {
  T x, y, z, w;
};

}  // namespace emu

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using int2 = emu::Vector2<int>;
using uint2 = emu::Vector2<unsigned>;
using longlong2 = emu::Vector2<long long>;
using ulonglong2 = emu::Vector2<unsigned long long>;
using float2 = emu::Vector2<float>;
using double2 = emu::Vector2<double>;
using int4 = emu::Vector4<int>;
using uint4 = emu::Vector4<unsigned>;
using float4 = emu::Vector4<float>;

inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
