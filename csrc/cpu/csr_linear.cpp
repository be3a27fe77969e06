// csr_linear on token panels: x is transposed panel by panel into the private L2, then every row of W streams over the
// panel with one broadcast and a few FMAs per nonzero. The output row lives in registers until its tile is transposed
// back. A single token, which would leave most of a panel empty, is read where it lies. The backward pass reads the
// gradient once for dx and dvalues.
#include "sparsekern/csr_linear.h"

#include "sparsekern/csr_sddmm.h"

#include "dispatch.h"
#include "panel.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int kShortRow = 32, kAhead = 12;  // positions
constexpr int64_t kLoneRow = 64;            // positions
constexpr int64_t kWorthAThread = 1 << 15;  // positions
constexpr int64_t kRange = 1 << 15;         // positions that a worker gathers or scatters at a time

// Work is cut into panels of tokens and, when there are fewer of them than threads, into blocks of rows.
struct Plan {
  int vectors;
  int64_t panel_tokens, panels, row_blocks;
  int64_t scratch;  // elements per worker: the panel and one tile of output
  bool stream;      // write y past the caches
};

template <class S>
Plan plan_for(const CsrLinearArgs& a) {
  Plan p;
  p.vectors = panel_vectors<S>(a.w.cols, a.tokens);
  p.panel_tokens = p.vectors * kLanes<Math<S>>;
  p.panels = ceil_div(a.tokens, p.panel_tokens);
  p.row_blocks = p.panels > 0 ? ceil_div(a.parallel.threads, p.panels) : 1;
  p.scratch = (round_up(a.w.cols, kLanes<S>) + kLanes<S>)*p.panel_tokens;
  p.stream = is_streamed<S>(a.y, a.tokens, a.w.rows);
  return p;
}

template <class T, class I>
void gather(const Parallel& parallel, const T* values, const void* order, int64_t nnz, T* gathered) {
  const I* from = static_cast<const I*>(order);
  for_each_range(parallel, nnz, kRange, [=](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) gathered[p] = values[from[p]];
  });
}

template <class T, class I>
void scatter(const Parallel& parallel, const T* values, const void* order, int64_t nnz, T* scattered) {
  const I* to = static_cast<const I*>(order);
  for_each_range(parallel, nnz, kRange, [=](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) scattered[to[p]] = values[p];
  });
}

// The `order`ed values are gathered once, before the panels that read them all.
template <class T>
int64_t gathered_elements(const CsrLinearArgs& a) {
  return a.order ? round_up(a.w.nnz, 64 / sizeof(T)) : 0;
}

// Ahead: ask for the operands of positions further on, across rows. A short row ends in a mispredicted branch, which
// would otherwise leave the loads of the next one waiting.
template <class S, class I, int V, bool Ahead>
inline void row_times_panel(const Math<S>* values, const I* col, I begin, I end, const S* panel, Math<S> bias, S* out) {
  using T = Math<S>;
  constexpr int width = kPanelTokens<S, V>;
  Vec<T> even[V] = {}, odd[V] = {}, x[V];  // two chains hide the latency of the FMA
  I p = begin;
  for (; p + 1 < end; p += 2) {
    if constexpr (Ahead)
      for (I q = p + kAhead; q < p + kAhead + 2; ++q)
        for (int t = 0; t < width; t += kLanes<S>) __builtin_prefetch(panel + int64_t(col[q]) * width + t);
    const T w0 = values[p], w1 = values[p + 1];
    load_all<V>(panel + int64_t(col[p]) * width, x);
    for (int v = 0; v < V; ++v) even[v] += w0 * x[v];
    load_all<V>(panel + int64_t(col[p + 1]) * width, x);
    for (int v = 0; v < V; ++v) odd[v] += w1 * x[v];
  }
  if (p < end) {
    const T w0 = values[p];
    load_all<V>(panel + int64_t(col[p]) * width, x);
    for (int v = 0; v < V; ++v) even[v] += w0 * x[v];
  }
  for (int v = 0; v < V; ++v) even[v] = (even[v] + odd[v]) + bias;
  store_all<V>(out, even);
}

template <class S, class I, int V>
void panel_block(const CsrLinearArgs& a, const Plan& plan, const Math<S>* values, int64_t item, S* scratch) {
  constexpr int side = kLanes<S>, width = kPanelTokens<S, V>;
  const I *crow = static_cast<const I*>(a.w.crow), *col = static_cast<const I*>(a.w.col);
  const Math<S>* bias = static_cast<const Math<S>*>(a.bias);
  const int64_t t0 = item / plan.row_blocks * width, tokens = min_of(width, a.tokens - t0);
  const int64_t row_begin = block_begin<I>(a.w, item % plan.row_blocks, plan.row_blocks, side);
  const int64_t row_end = block_begin<I>(a.w, item % plan.row_blocks + 1, plan.row_blocks, side);
  S *panel = scratch, *tile = scratch + round_up(a.w.cols, side) * width;

  pack_panel<S, V>(static_cast<const S*>(a.x) + t0 * a.w.cols, a.w.cols, tokens, a.w.cols, panel);
  S* y = static_cast<S*>(a.y) + t0 * a.w.rows;
  for (int64_t n = row_begin; n < row_end; n += side) {
    const int64_t rows = min_of(side, row_end - n);
    for (int64_t i = 0; i < rows; ++i) {
      const I begin = crow[n + i], end = crow[n + i + 1];
      const Math<S> b = bias ? bias[n + i] : Math<S>(0);
      if (end - begin <= kShortRow && end + kAhead < a.w.nnz)
        row_times_panel<S, I, V, true>(values, col, begin, end, panel, b, tile + i * width);
      else
        row_times_panel<S, I, V, false>(values, col, begin, end, panel, b, tile + i * width);
    }
    if (plan.stream)
      unpack_tile<S, V, true>(tile, tokens, rows, y + n, a.w.rows);
    else
      unpack_tile<S, V, false>(tile, tokens, rows, y + n, a.w.rows);
  }
  if (plan.stream) finish_streaming();
}

template <class T, class I>
const T* ordered_values(const CsrLinearArgs& a, T* gathered) {
  const T* values = static_cast<const T*>(a.values);
  if (!a.order) return values;
  gather<T, I>(a.parallel, values, a.order, a.w.nnz, gathered);
  return gathered;
}

// Whether one token is better read where it lies: with longer rows the panel's fewer instructions per position count.
bool is_lone_token(const CsrLinearArgs& a) { return a.tokens == 1 && a.w.nnz <= kLoneRow * a.w.rows; }

// The rows of one token, summed in the order of row_times_panel: a vector of products would not give fused
// multiply-adds.
template <class S, class I>
__attribute__((optimize("no-tree-vectorize"))) void lone_token(const CsrLinearArgs& a, const Math<S>* values,
                                                               int64_t row_begin, int64_t row_end) {
  using T = Math<S>;
  const I *crow = static_cast<const I*>(a.w.crow), *col = static_cast<const I*>(a.w.col);
  const T* bias = static_cast<const T*>(a.bias);
  const S* x = static_cast<const S*>(a.x);
  for (int64_t n = row_begin; n < row_end; ++n) {
    const I end = crow[n + 1];
    T even = 0, odd = 0;
    I p = crow[n];
    for (; p + 1 < end; p += 2) {
      even += values[p] * widen(x[col[p]]);
      odd += values[p + 1] * widen(x[col[p + 1]]);
    }
    if (p < end) even += values[p] * widen(x[col[p]]);
    narrow((even + odd) + (bias ? bias[n] : T(0)), static_cast<S*>(a.y) + n);
  }
}

template <class S, class I>
void run_lone_token(const CsrLinearArgs& a, const Math<S>* values) {
  const int64_t blocks = a.w.nnz + kRowCost * a.w.rows < kWorthAThread ? 1 : a.parallel.threads;
  for_each_item(a.parallel, blocks, [&](int64_t, int64_t i) {
    lone_token<S, I>(a, values, block_begin<I>(a.w, i, blocks, 1), block_begin<I>(a.w, i + 1, blocks, 1));
  });
}

template <class S, class I>
void run(const CsrLinearArgs& a) {
  Math<S>* gathered = static_cast<Math<S>*>(a.workspace);
  const Math<S>* values = ordered_values<Math<S>, I>(a, gathered);
  if (is_lone_token(a)) return run_lone_token<S, I>(a, values);
  const Plan plan = plan_for<S>(a);
  S* scratch = reinterpret_cast<S*>(gathered + gathered_elements<Math<S>>(a));
  with_vectors<S>(plan.vectors, [&](auto vectors) {
    for_each_item(a.parallel, plan.panels * plan.row_blocks, [&](int64_t worker, int64_t item) {
      panel_block<S, I, vectors()>(a, plan, values, item, scratch + worker * plan.scratch);
    });
  });
}

// The backward pass is a csr_sddmm over the transposed pattern that computes dx on the way.
CsrSddmmArgs sampled(const CsrLinearBackwardArgs& a) {
  CsrSddmmArgs s{};
  s.w = a.wt;
  s.a = a.x;
  s.b = a.grad;
  s.product = a.dx;
  s.tokens = a.tokens;
  s.dtype = a.dtype;
  s.parallel = a.parallel;
  return s;
}

// Elements of the workspace for numbers in the order of the transposed pattern.
template <class T>
int64_t transposed_elements(const CsrLinearBackwardArgs& a) {
  return round_up(a.wt.nnz, 64 / sizeof(T));
}

template <class T, class I>
void run_backward(const CsrLinearBackwardArgs& a) {
  T *values = static_cast<T*>(a.workspace), *dvalues = values + transposed_elements<T>(a);
  CsrSddmmArgs s = sampled(a);
  s.values = values;
  s.out = dvalues;
  s.workspace = dvalues + transposed_elements<T>(a);
  gather<T, I>(a.parallel, static_cast<const T*>(a.values), a.perm, a.wt.nnz, values);
  csr_sddmm(s);
  scatter<T, I>(a.parallel, dvalues, a.perm, a.wt.nnz, static_cast<T*>(a.dvalues));
}

}  // namespace

int64_t csr_linear_workspace(const CsrLinearArgs& a) {
  int64_t bytes = 0;
  with_activations(a.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    bytes = int64_t(sizeof(Math<S>)) * gathered_elements<Math<S>>(a) +
            int64_t(sizeof(S)) * a.parallel.threads * plan_for<S>(a).scratch;
  });
  return bytes;
}

Status csr_linear(const CsrLinearArgs& a) {
  with_activations(a.dtype, [&](auto tag) {
    with_index(a.w.index, [&](auto index) { run<typename decltype(tag)::type, typename decltype(index)::type>(a); });
  });
  return kOk;
}

int64_t csr_linear_backward_workspace(const CsrLinearBackwardArgs& a) {
  int64_t bytes = 0;
  with_activations(a.dtype, [&](auto tag) {
    using T = Math<typename decltype(tag)::type>;
    bytes = 2 * int64_t(sizeof(T)) * transposed_elements<T>(a) + csr_sddmm_workspace(sampled(a));
  });
  return bytes;
}

Status csr_linear_backward(const CsrLinearBackwardArgs& a) {
  with_activations(a.dtype, [&](auto tag) {
    with_index(a.wt.index, [&](auto index) {
      run_backward<Math<typename decltype(tag)::type>, typename decltype(index)::type>(a);
    });
  });
  return kOk;
}

}  // namespace SK_ISA
}  // namespace sk
