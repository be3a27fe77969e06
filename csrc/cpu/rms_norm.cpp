// rms_norm: each row is read once from memory and a second time from the first-level cache.
#include "sparsekern/rms_norm.h"

#include <cmath>

#include "dispatch.h"
#include "vec.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int64_t kRowsPerItem = 16;
constexpr int64_t kMostSlices = 64;  // of rows, each with a sum of its own for the gradient of the gain

// The sum of f(d), a vector, over the whole vectors of [0, width).
template <class T, class F>
inline T sum_over(int64_t width, F&& f) {
  constexpr int L = kLanes<T>;
  Vec<T> sums[4] = {};  // chains that hide the latency of the FMA
  int64_t d = 0;
  for (; d + 4 * L <= width; d += 4 * L)
    for (int i = 0; i < 4; ++i) sums[i] += f(d + i * L);
  for (; d + L <= width; d += L) sums[0] += f(d);
  return add_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
inline int64_t whole(int64_t width) {
  return width / kLanes<T> * kLanes<T>;
}

// X is what x and its gradient are stored as, Y what y and its gradient are.
template <class X, class Y, class T = Math<X>>
void norm_row(const X* x, const T* gain, int64_t width, T eps, Y* y, T* rstd) {
  const int64_t end = whole<T>(width);
  T squares = sum_over<T>(width, [&](int64_t d) {
    const Vec<T> v = load_wide(x + d);
    return v * v;
  });
  for (int64_t d = end; d < width; ++d) squares += widen(x[d]) * widen(x[d]);
  const T r = *rstd = 1 / std::sqrt(squares / T(width) + eps);
  for (int64_t d = 0; d < end; d += kLanes<T>) store_narrow(y + d, load_wide(x + d) * r * load(gain + d));
  for (int64_t d = end; d < width; ++d) narrow(widen(x[d]) * r * gain[d], y + d);
}

template <class X, class Y, class T = Math<X>>
void run(const RmsNormArgs& a) {
  for_each_range(a.parallel, a.rows, kRowsPerItem, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      norm_row(static_cast<const X*>(a.x) + t * a.width, static_cast<const T*>(a.gain), a.width, T(a.eps),
               static_cast<Y*>(a.y) + t * a.width, static_cast<T*>(a.rstd) + t);
  });
}

// dgain is added to.
template <class X, class Y, class T = Math<X>>
void backward_row(const Y* grad, const X* x, const T* gain, T r, int64_t width, X* dx, T* dgain) {
  const int64_t end = whole<T>(width);
  T dot = sum_over<T>(width, [&](int64_t d) { return load_wide(grad + d) * load(gain + d) * load_wide(x + d); });
  for (int64_t d = end; d < width; ++d) dot += widen(grad[d]) * gain[d] * widen(x[d]);
  const T shift = dot * r * r / T(width);
  for (int64_t d = 0; d < end; d += kLanes<T>) {
    const Vec<T> g = load_wide(grad + d), v = load_wide(x + d);
    store_narrow(dx + d, (g * load(gain + d) - v * shift) * r);
    store(dgain + d, load(dgain + d) + g * v * r);
  }
  for (int64_t d = end; d < width; ++d) {
    const T g = widen(grad[d]), v = widen(x[d]);
    narrow((g * gain[d] - v * shift) * r, dx + d);
    dgain[d] += g * v * r;
  }
}

struct Slices {
  int64_t count, rows;
  explicit Slices(int64_t all) : rows(max_of(kRowsPerItem, ceil_div(all, kMostSlices))) { count = ceil_div(all, rows); }
};

template <class X, class Y, class T = Math<X>>
void run_backward(const RmsNormBackwardArgs& a) {
  const Slices slices(a.rows);
  T *parts = static_cast<T*>(a.workspace), *dgain = static_cast<T*>(a.dgain);
  for_each_item(a.parallel, slices.count, [&](int64_t, int64_t i) {
    T* part = parts + i * a.width;
    for (int64_t d = 0; d < a.width; ++d) part[d] = 0;
    for (int64_t t = i * slices.rows; t < min_of(a.rows, (i + 1) * slices.rows); ++t)
      backward_row(static_cast<const Y*>(a.grad) + t * a.width, static_cast<const X*>(a.x) + t * a.width,
                   static_cast<const T*>(a.gain), static_cast<const T*>(a.rstd)[t], a.width,
                   static_cast<X*>(a.dx) + t * a.width, part);
  });
  for (int64_t d = 0; d < a.width; ++d) dgain[d] = 0;
  for (int64_t i = 0; i < slices.count; ++i)
    for (int64_t d = 0; d < a.width; ++d) dgain[d] += parts[i * a.width + d];
}

// Calls f(tag of x, tag of y).
template <class F>
void with_both(DType x, DType y, F&& f) {
  if (x == DType::f32 && y == DType::bf16)
    f(Tag<float>{}, Tag<bf16>{});
  else
    with_activations(x, [&](auto tag) { f(tag, tag); });
}

}  // namespace

Status rms_norm(const RmsNormArgs& a) {
  with_both(a.dtype, a.y_dtype,
            [&](auto x, auto y) { run<typename decltype(x)::type, typename decltype(y)::type>(a); });
  return kOk;
}

int64_t rms_norm_backward_workspace(const RmsNormBackwardArgs& a) {
  return Slices(a.rows).count * a.width * (a.dtype == DType::f64 ? 8 : 4);
}

Status rms_norm_backward(const RmsNormBackwardArgs& a) {
  with_both(a.dtype, a.y_dtype,
            [&](auto x, auto y) { run_backward<typename decltype(x)::type, typename decltype(y)::type>(a); });
  return kOk;
}

}  // namespace SK_ISA
}  // namespace sk
