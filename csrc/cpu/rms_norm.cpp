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

template <class T>
void norm_row(const T* x, const T* gain, int64_t width, T eps, T* y, T* rstd) {
  T squares = sum_over<T>(width, [&](int64_t d) {
    const Vec<T> v = load(x + d);
    return v * v;
  });
  for (int64_t d = whole<T>(width); d < width; ++d) squares += x[d] * x[d];
  const T r = *rstd = 1 / std::sqrt(squares / T(width) + eps);
  for (int64_t d = 0; d < whole<T>(width); d += kLanes<T>) store(y + d, load(x + d) * r * load(gain + d));
  for (int64_t d = whole<T>(width); d < width; ++d) y[d] = x[d] * r * gain[d];
}

template <class T>
void run(const RmsNormArgs& a) {
  for_each_range(a.parallel, a.rows, kRowsPerItem, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      norm_row(static_cast<const T*>(a.x) + t * a.width, static_cast<const T*>(a.gain), a.width, T(a.eps),
               static_cast<T*>(a.y) + t * a.width, static_cast<T*>(a.rstd) + t);
  });
}

// dgain is added to.
template <class T>
void backward_row(const T* grad, const T* x, const T* gain, T r, int64_t width, T* dx, T* dgain) {
  const int64_t end = whole<T>(width);
  T dot = sum_over<T>(width, [&](int64_t d) { return load(grad + d) * load(gain + d) * load(x + d); });
  for (int64_t d = end; d < width; ++d) dot += grad[d] * gain[d] * x[d];
  const T shift = dot * r * r / T(width);
  for (int64_t d = 0; d < end; d += kLanes<T>) {
    const Vec<T> g = load(grad + d), v = load(x + d);
    store(dx + d, (g * load(gain + d) - v * shift) * r);
    store(dgain + d, load(dgain + d) + g * v * r);
  }
  for (int64_t d = end; d < width; ++d) {
    dx[d] = (grad[d] * gain[d] - x[d] * shift) * r;
    dgain[d] += grad[d] * x[d] * r;
  }
}

struct Slices {
  int64_t count, rows;
  explicit Slices(int64_t all) : rows(max_of(kRowsPerItem, ceil_div(all, kMostSlices))) { count = ceil_div(all, rows); }
};

template <class T>
void run_backward(const RmsNormBackwardArgs& a) {
  const Slices slices(a.rows);
  T *parts = static_cast<T*>(a.workspace), *dgain = static_cast<T*>(a.dgain);
  for_each_item(a.parallel, slices.count, [&](int64_t, int64_t i) {
    T* part = parts + i * a.width;
    for (int64_t d = 0; d < a.width; ++d) part[d] = 0;
    for (int64_t t = i * slices.rows; t < min_of(a.rows, (i + 1) * slices.rows); ++t)
      backward_row(static_cast<const T*>(a.grad) + t * a.width, static_cast<const T*>(a.x) + t * a.width,
                   static_cast<const T*>(a.gain), static_cast<const T*>(a.rstd)[t], a.width,
                   static_cast<T*>(a.dx) + t * a.width, part);
  });
  for (int64_t d = 0; d < a.width; ++d) dgain[d] = 0;
  for (int64_t i = 0; i < slices.count; ++i)
    for (int64_t d = 0; d < a.width; ++d) dgain[d] += parts[i * a.width + d];
}

}  // namespace

Status rms_norm(const RmsNormArgs& a) {
  with_dtype(a.dtype, [&](auto tag) { run<typename decltype(tag)::type>(a); });
  return kOk;
}

int64_t rms_norm_backward_workspace(const RmsNormBackwardArgs& a) {
  return Slices(a.rows).count * a.width * (a.dtype == DType::f64 ? 8 : 4);
}

Status rms_norm_backward(const RmsNormBackwardArgs& a) {
  with_dtype(a.dtype, [&](auto tag) { run_backward<typename decltype(tag)::type>(a); });
  return kOk;
}

}  // namespace SK_ISA
}  // namespace sk
