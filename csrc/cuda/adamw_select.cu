// adamw_select: the active entries of a matrix are one long row to select from. The Adam step is the first pass, the
// floor gives entries the score of infinity, and what the selection writes as columns are the slots.
//
// Bytes per active entry, float32 with 4-byte indices: Adam 34 (read weight, gradient, moments, joined and flag, write
// weight, moments and flag), the rest of the selection 8, the new weights 9; with a floor 4 for the scores and 4 to
// read the weights again, along columns about 100 for their transposition. Per entry of the support about 120: slots
// and columns, the flags, and its transposition.
#include "sparsekern/adamw_select.h"

#include "adam.h"
#include "select.h"
#include "transpose.h"

namespace sk {
namespace cuda {
namespace {

// ---- Adam

// Ages from which on 1 - beta2^age is 1 in any float.
int64_t ages_of(const AdamwSelectArgs& a) { return a.beta2 > 0 ? 2 + int64_t(60 * log(2.0) / -log(a.beta2)) : 2; }

// The bias corrections of the second moment by age, once for all entries: powers in double precision are slow.
template <class T>
__global__ void __launch_bounds__(kSelectThreads) tabulate_corrections(T* corrections, int64_t ages, double beta2) {
  const int64_t age = int64_t(blockIdx.x) * kSelectThreads + threadIdx.x;
  if (age < ages) corrections[age] = T(root_correction_at(beta2, double(age)));
}

// The tensors of a matrix that only Adam needs, and the weight, from which the scores may be apart.
struct AdamTensors {
  void* weight;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  const void* joined;
  uint8_t* in_support;
  const float* step;
};

// The first pass's weights: stepped on the way. Takes the flags down, which the new support raises again.
template <class T>
struct StepActive {
  static constexpr int kBatch = 1;

  AdamTensors at[kTable];
  const T* corrections;  // (ages)
  int64_t ages;
  const double* lr;
  const double* grad_scale;
  double beta1, candidate_beta1, beta2, eps;

  // What depends on beta1.
  struct Momentum {
    T beta1, rest1, first_step_size;
  };

  // What is the same for all entries of a matrix.
  struct Scalars {
    Momentum of_support, of_candidates;
    T step, grad_scale, beta2, rest2, step_size, eps;
  };

  struct Load {
    const Scalars& s;  // in shared memory: registers are few
    const AdamTensors& t;
    T* scores;
    const T* corrections;
    int64_t ages;

    __device__ __forceinline__ T correction(T joined) const {
      const T age = s.step - joined;
      const int64_t row = age < T(ages) ? int64_t(age) : ages - 1;
      return corrections[max_of(row, 0)];
    }

    __device__ __forceinline__ Vector<T> operator()(int64_t at, int left) const {
      T *const weight = static_cast<T*>(t.weight) + at, *const exp_avg = static_cast<T*>(t.exp_avg) + at,
               *const exp_avg_sq = static_cast<T*>(t.exp_avg_sq) + at;
      uint8_t* const in_support = t.in_support + at;
      const Vector<T> g = load_some(static_cast<const T*>(t.grad) + at, left),
                      joined = load_some(static_cast<const T*>(t.joined) + at, left);
      Vector<T> w = load_some(weight, left), m = load_some(exp_avg, left), v = load_some(exp_avg_sq, left);
#pragma unroll
      for (int e = 0; e < Vector<T>::kSize; ++e) {
        const bool supports = e < left && in_support[e];
        const T beta1 = supports ? s.of_support.beta1 : s.of_candidates.beta1;
        const T rest1 = supports ? s.of_support.rest1 : s.of_candidates.rest1;
        const T first_step_size = supports ? s.of_support.first_step_size : s.of_candidates.first_step_size;
        adam_update(w.at[e], g.at[e] * s.grad_scale, m.at[e], v.at[e], beta1, rest1, s.beta2, s.rest2,
                    joined.at[e] == 0 ? first_step_size : s.step_size, correction(joined.at[e]), s.eps);
      }
#pragma unroll
      for (int e = 0; e < Vector<T>::kSize; ++e)
        if (e < left) in_support[e] = 0;
      store_some(weight, w, left);
      store_some(exp_avg, m, left);
      store_some(exp_avg_sq, v, left);
      if (scores != t.weight) store_some(scores + at, w, left);
      return w;
    }
  };

  __device__ __forceinline__ Momentum momentum(double beta, double step) const {
    return {T(beta), T(1 - beta), T(*lr / (1 - pow(beta, step)))};
  }

  // The whole block comes here: one thread works the powers out.
  __device__ __forceinline__ Load of(const SelectMatrix& m, int matrix) const {
    __shared__ Scalars s;
    const AdamTensors& t = at[matrix];
    if (threadIdx.x == 0) {
      const double step = *t.step;
      s = {momentum(beta1, step),
           momentum(candidate_beta1, step),
           T(step),
           T(*grad_scale),
           T(beta2),
           T(1 - beta2),
           T(*lr),
           T(eps)};
    }
    __syncthreads();
    return {s, t, static_cast<T*>(m.weight), corrections, ages};
  }
};

static_assert(sizeof(Work) + sizeof(SelectTable) + sizeof(StepActive<double>) <= 4 << 10, "see kTable");

// ---- the floor

// A matrix with a floor; the entries of neuron n are order[ends[n]] to order[ends[n + 1] - 1], or without an order
// those positions themselves.
struct FloorMatrix {
  const void* weight;
  const void* ends;
  const void* order;
  void* scores;
  SelectState* state;
  int64_t neurons, floor;
};

struct FloorTable {
  FloorMatrix at[kTable];
};

// The entry is now infinite, also in the histogram of the first digits; a NaN stays, to be seen.
template <class T>
__device__ __forceinline__ void reserve(const FloorMatrix& m, int64_t entry, Key<T> key) {
  constexpr Key<T> kInfinity = KeyOf<T>::kNan - 1;
  if (key > kInfinity) return;
  memcpy(static_cast<T*>(m.scores) + entry, &kInfinity, sizeof(T));
  const int digit = int(key >> kBinShift<T>);
  if (digit) atomicAdd(m.state->histogram + digit, ~0ull);  // minus 1
  atomicAdd(m.state->histogram + (kInfinity >> kBinShift<T>), 1ull);
}

// One warp per neuron, in rounds: each finds the largest entry that comes after the last one reserved.
template <class T, class I>
__global__ void __launch_bounds__(kSelectThreads)
    reserve_floors(__grid_constant__ const Work work, __grid_constant__ const FloorTable table) {
  const Share share = work.share();
  const FloorMatrix& m = table.at[share.matrix];
  const int64_t neuron = share.block * kSelectWarps + threadIdx.x / kWarp;
  if (neuron >= m.neurons) return;
  const T* const weight = static_cast<const T*>(m.weight);
  const I *const ends = static_cast<const I*>(m.ends), *const order = static_cast<const I*>(m.order);
  const auto entry = [=](int64_t i) { return order ? int64_t(order[i]) : i; };
  const int64_t begin = ends[neuron], end = ends[neuron + 1], rounds = min_of(m.floor, end - begin);
  Key<T> last = KeyOf<T>::kMax;
  int64_t last_at = -1;
  for (int64_t round = 0; round < rounds; ++round) {
    Key<T> best = -1;
    int64_t best_at = INT64_MAX;
    for (int64_t i = begin + threadIdx.x % kWarp; i < end; i += kWarp) {
      const Key<T> key = magnitude(weight[entry(i)]);
      if (key > best && (key < last || (key == last && i > last_at))) {
        best = key;
        best_at = i;
      }
    }
    last = warp_max(best);
    last_at = -warp_max(best == last ? -best_at : -INT64_MAX);  // the lowest
    if (threadIdx.x % kWarp == 0) reserve<T>(m, entry(last_at), last);
  }
}

// ---- the new support

struct SupportMatrix {
  void* weight;
  uint8_t* in_support;
  const void* active_crow;
  const void* active_col;
  const void* slots;
  void* crow;
  void* col;
  int64_t rows, active, k;
};

struct SupportTable {
  SupportMatrix at[kTable];
};

// How many of the ascending numbers are below the bound.
template <class I>
__device__ __forceinline__ int64_t count_below(const I* numbers, int64_t count, I bound) {
  int64_t low = 0;
  for (int64_t high = count; low < high;) {
    const int64_t middle = (low + high) / 2;
    if (numbers[middle] < bound)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// The pattern by rows and the flags: one thread per slot and row.
template <class I>
__global__ void __launch_bounds__(kSelectThreads)
    name_support(__grid_constant__ const Work work, __grid_constant__ const SupportTable table) {
  const Share share = work.share();
  const SupportMatrix& m = table.at[share.matrix];
  const int64_t i = share.block * kSelectThreads + threadIdx.x;
  const I* const slots = static_cast<const I*>(m.slots);
  if (i < m.k) {
    static_cast<I*>(m.col)[i] = static_cast<const I*>(m.active_col)[slots[i]];
    m.in_support[slots[i]] = 1;
  }
  if (i <= m.rows) static_cast<I*>(m.crow)[i] = I(count_below(slots, m.k, static_cast<const I*>(m.active_crow)[i]));
}

// Decays what is kept, zeroes the rest: one thread per vector.
template <class T>
__global__ void __launch_bounds__(kSelectThreads)
    settle_weights(__grid_constant__ const Work work, __grid_constant__ const SupportTable table, const double* lr,
                   double weight_decay) {
  const Share share = work.share();
  const SupportMatrix& m = table.at[share.matrix];
  const int64_t at = (share.block * kSelectThreads + threadIdx.x) * Vector<T>::kSize;
  const int left = int(min_of(Vector<T>::kSize, m.active - at));
  if (left <= 0) return;
  const T decay = T(1 - *lr * weight_decay);
  T* const weight = static_cast<T*>(m.weight) + at;
  Vector<T> w = load_some(weight, left);
#pragma unroll
  for (int e = 0; e < Vector<T>::kSize; ++e) w.at[e] = e < left && m.in_support[at + e] ? w.at[e] * decay : T(0);
  store_some(weight, w, left);
}

// ---- host

// The matrices of one launch, and their part of the workspace.
struct Batch {
  Selection selection;
  FloorTable floors;
  SupportTable supports;
  CsrTransposeArgs by_column[kTable];  // the active patterns of those with a floor along columns
  int by_column_count;
  CsrTransposeArgs patterns[kTable];  // of the supports
  void* shared;                       // the selection and the transpositions work here in turn
  int64_t bytes;
};

CsrTransposeArgs transposition(const CsrPattern& w, void* ccol, void* row, void* perm) {
  CsrTransposeArgs t{};
  t.w = w;
  t.ccol = ccol;
  t.row = row;
  t.perm = perm;
  return t;
}

// The matrices from `first` on that fit into one table.
Batch batch_of(const AdamwSelectArgs& a, int64_t first, char* workspace) {
  const int64_t value_bytes = a.dtype == DType::f64 ? 8 : 4, index_bytes = a.index == IndexType::i64 ? 8 : 4;
  char* at = workspace;
  const auto take = [&](int64_t bytes) {
    char* const taken = at;
    at += round_up(bytes, 64);
    return taken;
  };
  Batch b{};
  Selection& s = b.selection;
  s.count = int(min_of(kTable, a.count - first));
  s.dtype = a.dtype;
  s.index = a.index;
  s.parallel = a.parallel;
  for (int i = 0; i < s.count; ++i) {
    const AdamwSelectMatrix& m = a.matrices[first + i];
    SelectMatrix& row = s.table.at[i];
    row.weight = m.floor ? take(m.active * value_bytes) : m.weight;
    row.crow = take(2 * index_bytes);
    row.col = m.slots;
    row.nan_at = m.nan_at;
    row.rows = 1;
    row.cols = m.active;
    row.k = m.k;
    if (m.floor) b.floors.at[i] = {m.weight, m.active_crow, nullptr, row.weight, nullptr, m.rows, m.floor};
    if (m.floor && m.axis == 1) {
      void *const ends = take((m.cols + 1) * index_bytes), *const order = take(m.active * index_bytes);
      b.floors.at[i].ends = ends;
      b.floors.at[i].order = order;
      b.floors.at[i].neurons = m.cols;
      b.by_column[b.by_column_count++] = transposition({m.active_crow, m.active_col, m.rows, m.cols, m.active, a.index},
                                                       ends, take(m.active * index_bytes), order);
    }
    b.supports.at[i] = {m.weight, m.in_support, m.active_crow, m.active_col, m.slots,
                        m.crow,   m.col,        m.rows,        m.active,     m.k};
    b.patterns[i] = transposition({m.crow, m.col, m.rows, m.cols, m.k, a.index}, m.ccol, m.row, m.perm);
  }
  b.shared = at;
  b.bytes = at - workspace +
            max_of(place_workspace(s, at), max_of(transpose_workspace(b.by_column, b.by_column_count),
                                                  transpose_workspace(b.patterns, s.count)));
  for (int i = 0; i < s.count; ++i) b.floors.at[i].state = s.table.at[i].state;
  return b;
}

// The table of corrections stands before what the batches share.
int64_t corrections_bytes(const AdamwSelectArgs& a) {
  return round_up(ages_of(a) * (a.dtype == DType::f64 ? 8 : 4), 64);
}

template <class T>
Status step_weights(const AdamwSelectArgs& a, int64_t first, const Selection& s) {
  StepActive<T> source{
      {},    static_cast<const T*>(a.workspace), ages_of(a), a.lr, a.grad_scale, a.beta1, a.candidate_beta1, a.beta2,
      a.eps,
  };
  for (int i = 0; i < s.count; ++i) {
    const AdamwSelectMatrix& m = a.matrices[first + i];
    source.at[i] = {m.weight, m.grad, m.exp_avg, m.exp_avg_sq, m.joined, m.in_support, m.step};
  }
  return run_first_pass<T>(s, source);
}

template <class T, class I>
Status run_batch(const AdamwSelectArgs& a, int64_t first) {
  const Batch b = batch_of(a, first, static_cast<char*>(a.workspace) + corrections_bytes(a));
  const Selection& s = b.selection;
  const auto neurons = [&](int i) { return ceil_div(b.floors.at[i].neurons, kSelectWarps); };
  const auto slots_and_rows = [&](int i) {
    return ceil_div(max_of(b.supports.at[i].k, b.supports.at[i].rows + 1), kSelectThreads);
  };
  const auto vectors = [&](int i) { return ceil_div(b.supports.at[i].active, kSelectThreads * Vector<T>::kSize); };
  SK_TRY(transpose(b.by_column, b.by_column_count, b.shared, a.parallel));
  SK_TRY(begin_selection(s));
  SK_TRY(step_weights<T>(a, first, s));
  SK_TRY(launch_over(reserve_floors<T, I>, s.count, neurons, kSelectThreads, a.parallel, b.floors));
  SK_TRY(finish_selection(s));
  SK_TRY(launch_over(name_support<I>, s.count, slots_and_rows, kSelectThreads, a.parallel, b.supports));
  SK_TRY(
      launch_over(settle_weights<T>, s.count, vectors, kSelectThreads, a.parallel, b.supports, a.lr, a.weight_decay));
  return transpose(b.patterns, s.count, b.shared, a.parallel);
}

template <class T, class I>
Status run(const AdamwSelectArgs& a) {
  const int64_t ages = ages_of(a);
  SK_TRY(launch(tabulate_corrections<T>, blocks_for(ages, kSelectThreads), dim3(kSelectThreads), 0, a.parallel,
                static_cast<T*>(a.workspace), ages, a.beta2));
  for (int64_t first = 0; first < a.count; first += kTable) SK_TRY((run_batch<T, I>(a, first)));
  return kOk;
}

}  // namespace

int64_t adamw_select_workspace(const AdamwSelectArgs& a) {
  int64_t bytes = 0;
  for (int64_t first = 0; first < a.count; first += kTable) bytes = max_of(bytes, batch_of(a, first, nullptr).bytes);
  return corrections_bytes(a) + bytes;
}

Status adamw_select(const AdamwSelectArgs& a) {
  return with_value_dtype(a.dtype, [&](auto tag) {
    return with_index(a.index,
                      [&](auto index) { return run<typename decltype(tag)::type, typename decltype(index)::type>(a); });
  });
}

}  // namespace cuda
}  // namespace sk
