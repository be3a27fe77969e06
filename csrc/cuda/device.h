// Shared by the kernels: dispatch on dtypes, arithmetic types, 16-byte vectors, warp primitives.
#pragma once
#include "cuda.h"

namespace sk {
namespace cuda {

template <class T>
struct Tag {
  using type = T;
};

// Calls f(Tag<T>{}) with the type of activations; f returns a Status.
template <class F>
Status with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(Tag<float>{});
    case DType::f64:
      return f(Tag<double>{});
    case DType::bf16:
      return f(Tag<__nv_bfloat16>{});
    default:
      return f(Tag<__half>{});
  }
}

// The same for weights and values, which are float or double.
template <class F>
Status with_value_dtype(DType dtype, F&& f) {
  return dtype == DType::f64 ? f(Tag<double>{}) : f(Tag<float>{});
}

template <class F>
Status with_index(IndexType index, F&& f) {
  return index == IndexType::i64 ? f(Tag<int64_t>{}) : f(Tag<int32_t>{});
}

template <class A, class B>
__host__ __device__ constexpr int64_t ceil_div(A a, B b) {
  return (int64_t(a) + b - 1) / b;
}
template <class A, class B>
__host__ __device__ constexpr int64_t round_up(A n, B multiple) {
  return ceil_div(n, multiple) * multiple;
}
__host__ __device__ constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
__host__ __device__ constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Activations of type T are multiplied with values of type Acc<T> and summed in it.
template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;

__device__ __forceinline__ float to_acc(float v) { return v; }
__device__ __forceinline__ double to_acc(double v) { return v; }
__device__ __forceinline__ float to_acc(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_acc(__half v) { return __half2float(v); }

template <class T>
__device__ __forceinline__ T from_acc(Acc<T> v);
template <>
__device__ __forceinline__ float from_acc<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ double from_acc<double>(double v) {
  return v;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_acc<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}
template <>
__device__ __forceinline__ __half from_acc<__half>(float v) {
  return __float2half_rn(v);
}

// 16 bytes of T, moved by one instruction; the address must be 16-byte aligned.
template <class T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T at[kSize];
};

template <class T>
__device__ __forceinline__ Vector<T> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}
template <class T>
__device__ __forceinline__ void store_vector(T* to, const Vector<T>& v) {
  *reinterpret_cast<Vector<T>*>(to) = v;
}

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// The sum over the `width` (a power of two) neighbouring lanes, in every one of them; the order is fixed.
template <class T>
__device__ __forceinline__ T warp_sum(T v, int width = kWarp) {
  for (int d = width / 2; d; d /= 2) v += __shfl_xor_sync(kAllLanes, v, d);
  return v;
}

template <class T>
__device__ __forceinline__ T warp_max(T v) {
  for (int d = kWarp / 2; d; d /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, v, d);
    v = other > v ? other : v;
  }
  return v;
}

// The sum over the lanes before this one.
template <class T>
__device__ __forceinline__ T warp_exclusive_sum(T v) {
  const int lane = threadIdx.x % kWarp;
  T sum = v;
  for (int d = 1; d < kWarp; d *= 2) {
    const T below = __shfl_up_sync(kAllLanes, sum, d);
    if (lane >= d) sum += below;
  }
  return sum - v;
}

// The threads of a launch over n items, one per thread.
inline dim3 blocks_for(int64_t n, int threads) { return dim3(unsigned(ceil_div(n, threads))); }

}  // namespace cuda
}  // namespace sk
