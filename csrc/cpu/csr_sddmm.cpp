// csr_sddmm on token panels: b is transposed panel by panel into the private L2, a in tiles of a few rows; each
// position is then a dot product of two contiguous vectors. The lane sums of a group of positions are taken together.
// What is read from the panel for it may serve csr_linear, too.
#include "sparsekern/csr_sddmm.h"

#include "dispatch.h"
#include "panel.h"

namespace sk {
namespace SK_ISA {
namespace {

// Slices of tokens are summed apart and then added in order; blocks of rows are independent. Neither depends on the
// number of threads, so the sum is always the same.
struct Plan {
  int vectors;
  int64_t panel_tokens, panels, slices, slice_panels, row_blocks;
  int64_t scratch;  // elements per worker: the panel of b, and a tile of a and of the product
  bool stream;      // write the product past the caches
};

constexpr int64_t kItems = 16;             // enough to keep a machine of the size that runs this busy
constexpr int64_t kReuse = 32;             // positions per feature that make packing a panel once more worth it
constexpr int64_t kMaxPartials = 1 << 24;  // elements of partial sums

template <class S>
Plan plan_for(const CsrSddmmArgs& a) {
  Plan p;
  p.vectors = panel_vectors<S>(a.w.cols, a.tokens);
  p.panel_tokens = p.vectors * kLanes<Math<S>>;
  p.panels = ceil_div(a.tokens, p.panel_tokens);
  const int64_t blocks = max_of(1, min_of(kItems, a.w.nnz / (kReuse * max_of(1, a.w.cols))));
  const int64_t affordable = max_of(1, kMaxPartials / max_of(1, a.w.nnz));
  p.row_blocks = min_of(blocks, ceil_div(a.w.rows, kLanes<S>));
  const int64_t slices = max_of(1, min_of(min_of(p.panels, affordable), ceil_div(kItems, max_of(1, p.row_blocks))));
  p.slice_panels = ceil_div(p.panels, slices);
  p.slices = p.panels > 0 ? ceil_div(p.panels, p.slice_panels) : 1;
  p.scratch = (round_up(a.w.cols, kLanes<S>) + 2 * kLanes<S>)*p.panel_tokens;
  p.stream = a.values && is_streamed<S>(a.product, a.tokens, a.w.rows);
  return p;
}

// Of one slice: the positions, then the rows where their sums are wanted.
int64_t slice_elements(const CsrSddmmArgs& a) { return a.w.nnz + (a.sums ? a.w.rows : 0); }

template <class T>
int64_t partial_elements(const CsrSddmmArgs& a, const Plan& p) {
  return p.slices > 1 ? round_up(p.slices * slice_elements(a), 64 / int64_t(sizeof(T))) : 0;
}

// Products of consecutive positions, whose lane sums are added to sums[] one full vector at a time.
template <class T>
struct PendingSums {
  Vec<T> products[kLanes<T>];
  int count = 0;
  T* sums;

  explicit PendingSums(T* sums) : sums(sums) {}

  inline void push(Vec<T> product) {
    products[count++] = product;
    if (count < kLanes<T>) return;
    store(sums, load(sums) + sum_lanes<T>(products));
    sums += kLanes<T>;
    count = 0;
  }

  inline void flush() {
    for (int i = count; i < kLanes<T>; ++i) products[i] = Vec<T>{};
    const Vec<T> s = sum_lanes<T>(products);
    for (int i = 0; i < count; ++i) sums[i] += s[i];
  }
};

template <class S, class I, int V, bool Product>
void slice_block(const CsrSddmmArgs& a, const Plan& plan, int64_t item, Math<S>* partials, S* scratch) {
  using T = Math<S>;
  constexpr int side = kLanes<S>, width = kPanelTokens<S, V>;
  const I *crow = static_cast<const I*>(a.w.crow), *col = static_cast<const I*>(a.w.col);
  const T* values = static_cast<const T*>(a.values);
  const int64_t slice = item / plan.row_blocks;
  const int64_t row_begin = block_begin<I>(a.w, item % plan.row_blocks, plan.row_blocks, side);
  const int64_t row_end = block_begin<I>(a.w, item % plan.row_blocks + 1, plan.row_blocks, side);
  const int64_t first = slice * plan.slice_panels, last = min_of(plan.panels, first + plan.slice_panels);
  S *panel = scratch, *tile = scratch + round_up(a.w.cols, side) * width, *product = tile + side * width;
  T* sums = plan.slices > 1 ? partials + slice * slice_elements(a) : static_cast<T*>(a.out);
  T* row_sums = plan.slices > 1 ? sums + a.w.nnz : static_cast<T*>(a.sums);
  for (int64_t p = crow[row_begin]; p < crow[row_end]; ++p) sums[p] = 0;
  for (int64_t n = row_begin; a.sums && n < row_end; ++n) row_sums[n] = 0;

  for (int64_t t0 = first * width; t0 < last * width; t0 += width) {
    const int64_t tokens = min_of(width, a.tokens - t0);
    pack_panel<S, V>(static_cast<const S*>(a.b) + t0 * a.w.cols, a.w.cols, tokens, a.w.cols, panel);
    PendingSums<T> pending(sums + crow[row_begin]), pending_rows(a.sums ? row_sums + row_begin : nullptr);
    for (int64_t n = row_begin; n < row_end; n += side) {
      const int64_t rows = min_of(side, row_end - n);
      if (crow[n] == crow[n + rows] && !a.sums && !Product) continue;
      pack_panel<S, V>(static_cast<const S*>(a.a) + t0 * a.w.rows + n, a.w.rows, tokens, rows, tile);
      for (int64_t i = 0; i < rows; ++i) {
        Vec<T> g[V], x[V], even[V] = {}, odd[V] = {};  // the chains of csr_linear
        load_all<V>(tile + i * width, g);
        if (a.sums) {
          Vec<T> sum = g[0];
          for (int v = 1; v < V; ++v) sum += g[v];
          pending_rows.push(sum);
        }
        const auto visit = [&](I p, Vec<T>(&chain)[V]) {
          load_all<V>(panel + int64_t(col[p]) * width, x);
          Vec<T> dot = g[0] * x[0];
          for (int v = 1; v < V; ++v) dot += g[v] * x[v];
          pending.push(dot);
          for (int v = 0; Product && v < V; ++v) chain[v] += values[p] * x[v];
        };
        const I end = crow[n + i + 1];
        I p = crow[n + i];
        for (; p + 1 < end; p += 2) {
          visit(p, even);
          visit(p + 1, odd);
        }
        if (p < end) visit(p, even);
        for (int v = 0; Product && v < V; ++v) even[v] += odd[v];
        if constexpr (Product) store_all<V>(product + i * width, even);
      }
      if constexpr (Product) {
        S* y = static_cast<S*>(a.product) + t0 * a.w.rows + n;
        if (plan.stream)
          unpack_tile<S, V, true>(product, tokens, rows, y, a.w.rows);
        else
          unpack_tile<S, V, false>(product, tokens, rows, y, a.w.rows);
      }
    }
    pending.flush();
    pending_rows.flush();
  }
  if (plan.stream) finish_streaming();
}

// out[i] = the sum over the slices of their element i.
template <class T>
void add_slices(const CsrSddmmArgs& a, const Plan& plan, const T* partials, int64_t n, T* out) {
  const int64_t stride = slice_elements(a), slices = plan.slices;
  for_each_range(a.parallel, n, 1 << 14, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = partials[i];
    for (int64_t s = 1; s < slices; ++s)
      for (int64_t i = begin; i < end; ++i) out[i] += partials[s * stride + i];
  });
}

template <class S, class I>
void run(const CsrSddmmArgs& a) {
  using T = Math<S>;
  const Plan plan = plan_for<S>(a);
  T* workspace = static_cast<T*>(a.workspace);
  S* scratch = reinterpret_cast<S*>(workspace + partial_elements<T>(a, plan));
  with_vectors<S>(plan.vectors, [&](auto vectors) {
    for_each_item(a.parallel, plan.slices * plan.row_blocks, [&](int64_t worker, int64_t item) {
      if (a.values)
        slice_block<S, I, vectors(), true>(a, plan, item, workspace, scratch + worker * plan.scratch);
      else
        slice_block<S, I, vectors(), false>(a, plan, item, workspace, scratch + worker * plan.scratch);
    });
  });
  if (plan.slices == 1) return;
  add_slices<T>(a, plan, workspace, a.w.nnz, static_cast<T*>(a.out));
  if (a.sums) add_slices<T>(a, plan, workspace + a.w.nnz, a.w.rows, static_cast<T*>(a.sums));
}

}  // namespace

int64_t csr_sddmm_workspace(const CsrSddmmArgs& a) {
  int64_t bytes = 0;
  with_activations(a.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    const Plan plan = plan_for<S>(a);
    bytes = int64_t(sizeof(Math<S>)) * partial_elements<Math<S>>(a, plan) +
            int64_t(sizeof(S)) * a.parallel.threads * plan.scratch;
  });
  return bytes;
}

Status csr_sddmm(const CsrSddmmArgs& a) {
  with_activations(a.dtype, [&](auto tag) {
    with_index(a.w.index, [&](auto index) { run<typename decltype(tag)::type, typename decltype(index)::type>(a); });
  });
  return kOk;
}

}  // namespace SK_ISA
}  // namespace sk
