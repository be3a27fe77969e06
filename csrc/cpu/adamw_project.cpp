// adamw_project: Adam in one pass over all matrices, then for each of them the projection, the decay of what it kept,
// and the transposed layout.
#include "sparsekern/adamw_project.h"

#include "adam.h"
#include "dispatch.h"
#include "sparsekern/csr_pattern.h"
#include "sparsekern/topk_project.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int64_t kGrain = 1 << 14;  // entries of a work item: five arrays of them fit in a private cache

template <class T>
struct Step {
  T scale, beta1, rest1, beta2, rest2, step_size, root_correction, eps;  // worked out in double: 1 - 0.999 cancels

  Step(const AdamwProjectArgs& a, double t)
      : scale(T(*a.grad_scale)),
        beta1(T(a.beta1)),
        rest1(T(1 - a.beta1)),
        beta2(T(a.beta2)),
        rest2(T(1 - a.beta2)),
        step_size(T(*a.lr / (1 - __builtin_pow(a.beta1, t)))),
        root_correction(T(__builtin_sqrt(1 - __builtin_pow(a.beta2, t)))),
        eps(T(a.eps)) {}

  inline void run(T* __restrict w, const T* __restrict grad, T* __restrict avg, T* __restrict sq, int64_t n) const {
    for (int64_t i = 0; i < n; ++i)
      adam_update(w[i], grad[i] * scale, avg[i], sq[i], beta1, rest1, beta2, rest2, step_size, root_correction, eps);
  }
};

template <class T>
void adam(const AdamwProjectArgs& a, const AdamwProjectMatrix& m) {
  const Step<T> step(a, *m.step);
  for_each_range(a.parallel, m.rows * m.cols, kGrain, [&](int64_t begin, int64_t end) {
    step.run(static_cast<T*>(m.weight) + begin, static_cast<const T*>(m.grad) + begin,
             static_cast<T*>(m.exp_avg) + begin, static_cast<T*>(m.exp_avg_sq) + begin, end - begin);
  });
}

TopkProjectArgs projection(const AdamwProjectArgs& a, const AdamwProjectMatrix& m) {
  TopkProjectArgs p{};
  p.weight = m.weight;
  p.crow = m.crow;
  p.col = m.col;
  p.rows = m.rows;
  p.cols = m.cols;
  p.k = m.k;
  p.floor = m.floor;
  p.axis = m.axis;
  p.zero_rest = true;
  p.dtype = a.dtype;
  p.index = a.index;
  p.nan_at = m.nan_at;
  p.workspace = a.workspace;
  p.parallel = a.parallel;
  return p;
}

// Decays the entries that were kept.
template <class T, class I>
void decay(const AdamwProjectArgs& a, const AdamwProjectMatrix& m) {
  const T factor = T(1 - *a.lr * a.weight_decay);
  const I *crow = static_cast<const I*>(m.crow), *col = static_cast<const I*>(m.col);
  for_each_range(a.parallel, m.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (I p = crow[r]; p < crow[r + 1]; ++p) static_cast<T*>(m.weight)[r * m.cols + col[p]] *= factor;
  });
}

template <class T, class I>
void run(const AdamwProjectArgs& a) {
  for (int32_t i = 0; i < a.count; ++i) {
    const AdamwProjectMatrix& m = a.matrices[i];
    adam<T>(a, m);
    topk_project(projection(a, m));
    if (*m.nan_at == kNoNan) decay<T, I>(a, m);
  }
  for_each_item(a.parallel, a.count, [&](int64_t, int64_t i) {
    const AdamwProjectMatrix& m = a.matrices[i];
    if (*m.nan_at == kNoNan)
      csr_transpose({{m.crow, m.col, m.rows, m.cols, m.k, a.index}, m.ccol, m.row, m.perm, nullptr, a.parallel});
  });
}

}  // namespace

int64_t adamw_project_workspace(const AdamwProjectArgs& a) {
  int64_t bytes = 0;
  for (int32_t i = 0; i < a.count; ++i) bytes = max_of(bytes, topk_project_workspace(projection(a, a.matrices[i])));
  return bytes;
}

Status adamw_project(const AdamwProjectArgs& a) {
  with_dtype(a.dtype, [&](auto tag) {
    with_index(a.index, [&](auto index) { run<typename decltype(tag)::type, typename decltype(index)::type>(a); });
  });
  return kOk;
}

}  // namespace SK_ISA
}  // namespace sk
