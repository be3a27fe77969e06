// adamw_project: the Adam step is the first pass of a selection, and the patterns are transposed at the end.
//
// Bytes per float32 parameter: Adam 28 (read weight, gradient and moments, write weight and moments), the rest of the
// selection 12, 4 more with a floor; the patterns cost only their nonzeros. A fused AdamW alone moves 28.
#include "sparsekern/adamw_project.h"

#include "adam.h"
#include "select.h"
#include "transpose.h"

namespace sk {
namespace cuda {
namespace {

// The tensors beside the weight.
struct AdamwTensors {
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  const float* step;
};

// The first pass's weights: stepped on the way.
template <class T>
struct StepWeights {
  static constexpr int kBatch = 1;

  AdamwTensors at[kTable];
  const double* lr;
  const double* grad_scale;
  double beta1, beta2, eps;

  // What is the same for all entries of a matrix.
  struct Scalars {
    T grad_scale, beta1, rest1, beta2, rest2, step_size, root_correction, eps;
  };

  struct Load {
    Scalars s;
    T* weight;
    const T* grad;
    T* exp_avg;
    T* exp_avg_sq;

    __device__ __forceinline__ Vector<T> operator()(int64_t at, int left) const {
      const Vector<T> g = load_some(grad + at, left);
      Vector<T> w = load_some(weight + at, left), m = load_some(exp_avg + at, left),
                v = load_some(exp_avg_sq + at, left);
#pragma unroll
      for (int e = 0; e < Vector<T>::kSize; ++e)
        adam_update(w.at[e], g.at[e] * s.grad_scale, m.at[e], v.at[e], s.beta1, s.rest1, s.beta2, s.rest2, s.step_size,
                    s.root_correction, s.eps);
      store_some(weight + at, w, left);
      store_some(exp_avg + at, m, left);
      store_some(exp_avg_sq + at, v, left);
      return w;
    }
  };

  // The whole block comes here: one thread works the powers out.
  __device__ __forceinline__ Load of(const SelectMatrix& m, int matrix) const {
    __shared__ Scalars s;
    const AdamwTensors& t = at[matrix];
    if (threadIdx.x == 0) {
      const double step = *t.step;
      s = {T(*grad_scale),
           T(beta1),
           T(1 - beta1),
           T(beta2),
           T(1 - beta2),
           T(*lr / (1 - pow(beta1, step))),
           T(root_correction_at(beta2, step)),
           T(eps)};
    }
    __syncthreads();
    return {s, static_cast<T*>(m.weight), static_cast<const T*>(t.grad), static_cast<T*>(t.exp_avg),
            static_cast<T*>(t.exp_avg_sq)};
  }
};

// The matrices from `first` on that fit into one table.
Selection selection_of(const AdamwProjectArgs& a, int64_t first) {
  Selection s{};
  s.count = int(min_of(kTable, a.count - first));
  for (int i = 0; i < s.count; ++i) {
    const AdamwProjectMatrix& from = a.matrices[first + i];
    SelectMatrix& m = s.table.at[i];
    m.weight = from.weight;
    m.crow = from.crow;
    m.col = from.col;
    m.nan_at = from.nan_at;
    m.rows = from.rows;
    m.cols = from.cols;
    m.k = from.k;
    m.floor = from.floor;
    m.axis = from.axis;
  }
  s.dtype = a.dtype;
  s.index = a.index;
  s.zero_rest = true;
  s.lr = a.lr;
  s.weight_decay = a.weight_decay;
  s.parallel = a.parallel;
  return s;
}

template <class T>
Status step_weights(const AdamwProjectArgs& a, int64_t first, const Selection& s) {
  StepWeights<T> source{{}, a.lr, a.grad_scale, a.beta1, a.beta2, a.eps};
  for (int i = 0; i < s.count; ++i) {
    const AdamwProjectMatrix& m = a.matrices[first + i];
    source.at[i] = {m.grad, m.exp_avg, m.exp_avg_sq, m.step};
  }
  return run_first_pass<T>(s, source);
}

// The patterns of the matrices from `first` on, and how many.
struct Patterns {
  CsrTransposeArgs at[kTable];
};

Patterns patterns_of(const AdamwProjectArgs& a, int64_t first, int count) {
  Patterns patterns{};
  for (int i = 0; i < count; ++i) {
    const AdamwProjectMatrix& m = a.matrices[first + i];
    patterns.at[i].w = {m.crow, m.col, m.rows, m.cols, m.k, a.index};
    patterns.at[i].ccol = m.ccol;
    patterns.at[i].row = m.row;
    patterns.at[i].perm = m.perm;
  }
  return patterns;
}

}  // namespace

// Table after table works in the same memory, and so do the two parts of the work.
int64_t adamw_project_workspace(const AdamwProjectArgs& a) {
  int64_t bytes = 0;
  for (int64_t first = 0; first < a.count; first += kTable) {
    Selection s = selection_of(a, first);
    const Patterns patterns = patterns_of(a, first, s.count);
    bytes = max_of(bytes, max_of(place_workspace(s, nullptr), transpose_workspace(patterns.at, s.count)));
  }
  return bytes;
}

Status adamw_project(const AdamwProjectArgs& a) {
  for (int64_t first = 0; first < a.count; first += kTable) {
    Selection s = selection_of(a, first);
    place_workspace(s, a.workspace);
    SK_TRY(begin_selection(s));
    SK_TRY(
        with_value_dtype(a.dtype, [&](auto tag) { return step_weights<typename decltype(tag)::type>(a, first, s); }));
    SK_TRY(finish_selection(s));
    SK_TRY(transpose(patterns_of(a, first, s.count).at, s.count, a.workspace, a.parallel));
  }
  return kOk;
}

}  // namespace cuda
}  // namespace sk
