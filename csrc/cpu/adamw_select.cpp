// adamw_select: matrix after matrix, each by one thread. Adam makes the weights and their scores, which are the weights
// but infinity where the floor reserves a position; topk_project then takes the k best scores as one long row.
#include "sparsekern/adamw_select.h"

#include "adam.h"
#include "best.h"
#include "dispatch.h"
#include "sparsekern/csr_pattern.h"
#include "sparsekern/topk_project.h"

namespace sk {
namespace SK_ISA {
namespace {

// Of one thread, carved out of the workspace.
struct Workspace {
  void* scores;       // (active)
  void* corrections;  // (ages) of the second moment, by age
  uint8_t* best;      // the floor of the neurons at hand
  void* ends;         // (2): the row pointers of the one long row
  void* selection;    // topk_project's
  int64_t bytes;
};

// Ages of positions: none is above the step, and beyond some age 1 - beta2^age is 1 in any float.
int64_t ages_of(const AdamwSelectArgs& a, const AdamwSelectMatrix& m) {
  const double enough = a.beta2 > 0 ? 60 * __builtin_log(2) / -__builtin_log(a.beta2) : 1;
  return 2 + int64_t(enough < *m.step ? enough : *m.step);
}

int64_t neurons_at_hand(const AdamwSelectMatrix& m) { return m.axis == 0 ? 1 : m.cols; }

TopkProjectArgs selection_of(const AdamwSelectArgs& a, const AdamwSelectMatrix& m, const Workspace& w) {
  TopkProjectArgs p{};
  p.weight = w.scores;
  p.crow = w.ends;
  p.col = m.slots;
  p.rows = 1;
  p.cols = m.active;
  p.k = m.k;
  p.dtype = a.dtype;
  p.index = a.index;
  p.nan_at = m.nan_at;
  p.workspace = w.selection;
  p.parallel = one_thread();
  return p;
}

template <class T>
Workspace carve(const AdamwSelectArgs& a, const AdamwSelectMatrix& m, uint8_t* base) {
  Workspace w{};
  const auto take = [&](int64_t bytes) {
    uint8_t* p = base + w.bytes;
    w.bytes += round_up(bytes, 64);
    return p;
  };
  w.scores = take(m.active * int64_t(sizeof(T)));
  w.corrections = take(ages_of(a, m) * int64_t(sizeof(T)));
  w.best = take(Best<T>::bytes(neurons_at_hand(m), m.floor));
  w.ends = take(16);
  w.selection = base + w.bytes;
  w.bytes += topk_project_workspace(selection_of(a, m, w));
  return w;
}

template <class T>
void adam(const AdamwSelectArgs& a, const AdamwSelectMatrix& m, const Workspace& w) {
  struct Group {
    T beta1, rest1, first_step_size;
  };
  const double t = *m.step;
  const auto group = [&](double beta1) {
    return Group{T(beta1), T(1 - beta1), T(*a.lr / (1 - __builtin_pow(beta1, t)))};
  };
  const Group groups[2] = {group(a.candidate_beta1), group(a.beta1)};  // by in_support
  const T scale = T(*a.grad_scale), beta2 = T(a.beta2), rest2 = T(1 - a.beta2), eps = T(a.eps), lr = T(*a.lr);
  T *weight = static_cast<T*>(m.weight), *avg = static_cast<T*>(m.exp_avg), *sq = static_cast<T*>(m.exp_avg_sq);
  const T *grad = static_cast<const T*>(m.grad), *joined = static_cast<const T*>(m.joined);
  T *scores = static_cast<T*>(w.scores), *corrections = static_cast<T*>(w.corrections);
  const int64_t ages = ages_of(a, m);
  for (int64_t i = 0; i < ages; ++i) corrections[i] = 0;  // worked out when first asked for
  for (int64_t p = 0; p < m.active; ++p) {
    const Group& g = groups[m.in_support[p]];
    const int64_t age = max_of(1, min_of(int64_t(t - double(joined[p])), ages - 1));
    if (corrections[age] == 0) corrections[age] = T(__builtin_sqrt(1 - __builtin_pow(a.beta2, double(age))));
    const T step_size = joined[p] == 0 ? g.first_step_size : lr;
    adam_update(weight[p], grad[p] * scale, avg[p], sq[p], g.beta1, g.rest1, beta2, rest2, step_size, corrections[age],
                eps);
    scores[p] = weight[p];
  }
}

// Gives the `floor` largest weights of every neuron the score of infinity; a NaN stays, to be found.
template <class T, class I>
void reserve_floor(const AdamwSelectMatrix& m, const Workspace& w) {
  const T* weight = static_cast<const T*>(m.weight);
  const I *crow = static_cast<const I*>(m.active_crow), *col = static_cast<const I*>(m.active_col);
  const int64_t neurons = neurons_at_hand(m);
  const auto reserve = [&](const Best<T>& best) {
    for (int64_t i = 0; i < neurons * m.floor; ++i)
      if (best.keys[i] >= 0 && best.keys[i] <= KeyOf<T>::kInfinity)
        static_cast<T*>(w.scores)[best.index[i]] = T(__builtin_inf());
  };
  Best<T> best(w.best, neurons, m.floor);
  for (int64_t r = 0; r < m.rows; ++r) {
    for (I p = crow[r]; p < crow[r + 1]; ++p) {
      const int64_t neuron = m.axis == 0 ? 0 : int64_t(col[p]);
      if (magnitude(weight[p]) > best.lowest[neuron]) best.insert(neuron, m.floor, magnitude(weight[p]), p);
    }
    if (m.axis == 0) {
      reserve(best);
      best = Best<T>(w.best, neurons, m.floor);
    }
  }
  if (m.axis == 1) reserve(best);
}

// What the chosen positions say: weights, flags, and the pattern of the support.
template <class T, class I>
void apply(const AdamwSelectArgs& a, const AdamwSelectMatrix& m) {
  T* weight = static_cast<T*>(m.weight);
  const T factor = T(1 - *a.lr * a.weight_decay);
  const I *active_crow = static_cast<const I*>(m.active_crow), *active_col = static_cast<const I*>(m.active_col);
  const I* slots = static_cast<const I*>(m.slots);
  I *crow = static_cast<I*>(m.crow), *col = static_cast<I*>(m.col);
  int64_t p = 0, kept = 0;
  crow[0] = 0;
  for (int64_t r = 0; r < m.rows; ++r) {
    for (; p < active_crow[r + 1]; ++p) {
      m.in_support[p] = kept < m.k && slots[kept] == p;
      if (m.in_support[p]) {
        weight[p] *= factor;
        col[kept++] = active_col[p];
      } else {
        weight[p] = 0;
      }
    }
    crow[r + 1] = I(kept);
  }
}

template <class T, class I>
void step(const AdamwSelectArgs& a, const AdamwSelectMatrix& m, uint8_t* memory) {
  const Workspace w = carve<T>(a, m, memory);
  adam<T>(a, m, w);
  if (m.floor > 0) reserve_floor<T, I>(m, w);
  topk_project(selection_of(a, m, w));
  if (*m.nan_at != kNoNan) return;
  apply<T, I>(a, m);
  csr_transpose({{m.crow, m.col, m.rows, m.cols, m.k, a.index}, m.ccol, m.row, m.perm, nullptr, one_thread()});
}

// Bytes of one thread: enough for any of the matrices.
template <class T>
int64_t thread_bytes(const AdamwSelectArgs& a) {
  int64_t bytes = 0;
  for (int32_t i = 0; i < a.count; ++i) bytes = max_of(bytes, round_up(carve<T>(a, a.matrices[i], nullptr).bytes, 64));
  return bytes;
}

template <class T, class I>
void run(const AdamwSelectArgs& a) {
  const int64_t bytes = thread_bytes<T>(a);
  uint8_t* const memory = static_cast<uint8_t*>(a.workspace);
  for_each_item(a.parallel, a.count,
                [&](int64_t worker, int64_t i) { step<T, I>(a, a.matrices[i], memory + worker * bytes); });
}

}  // namespace

int64_t adamw_select_workspace(const AdamwSelectArgs& a) {
  int64_t bytes = 0;
  with_dtype(a.dtype, [&](auto tag) { bytes = thread_bytes<typename decltype(tag)::type>(a); });
  return bytes * min_of(a.parallel.threads, a.count);
}

Status adamw_select(const AdamwSelectArgs& a) {
  with_dtype(a.dtype, [&](auto tag) {
    with_index(a.index, [&](auto index) { run<typename decltype(tag)::type, typename decltype(index)::type>(a); });
  });
  return kOk;
}

}  // namespace SK_ISA
}  // namespace sk
