// bsr_linear on token panels: x is transposed panel by panel into the private L2, then every row of blocks is a sum of
// products of a block and the panel's rows that it meets, in a tile that stays in the first-level cache until it is
// transposed back. Storage in bf16 is widened block by block.
#include "sparsekern/bsr_linear.h"

#include "dispatch.h"
#include "gemm.h"
#include "panel.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int64_t kBlockPanelBytes = 1 << 20;  // most of a private L2: a block is read once per panel, from far away

// Block sides as the product sees them: rows are features of y, columns features of x.
struct Sides {
  int64_t out, in;
};

Sides sides_of(const BsrLinearArgs& a) {
  return a.transposed ? Sides{a.block_cols, a.block_rows} : Sides{a.block_rows, a.block_cols};
}

// Work is cut into panels of tokens and, when there are fewer of them than threads, into ranges of rows of blocks.
struct Plan {
  int vectors;
  int64_t panels, row_blocks;
  int64_t panel, sums, wide, narrow;  // elements of each part of a worker's scratch, see Scratch
  int64_t scratch;                    // bytes per worker
  bool stream;                        // write y past the caches
};

template <class S>
struct Scratch {
  S* panel;       // of x
  Math<S>* sums;  // a tile of y
  Math<S>* wide;  // rows of the panel, widened
  S* narrow;      // rows of the tile, narrowed

  Scratch(char* at, const Plan& plan) {
    panel = reinterpret_cast<S*>(at);
    sums = reinterpret_cast<Math<S>*>(panel + plan.panel);
    wide = sums + plan.sums;
    narrow = reinterpret_cast<S*>(wide + plan.wide);
  }
};

template <class S>
Plan plan_for(const BsrLinearArgs& a) {
  constexpr bool is_narrow = sizeof(S) < sizeof(Math<S>);
  const Sides block = sides_of(a);
  Plan p;
  p.vectors = panel_vectors<S>(a.in, a.tokens, kBlockPanelBytes);
  const int64_t tokens = p.vectors * kLanes<Math<S>>;
  p.panels = ceil_div(a.tokens, tokens);
  p.row_blocks = p.panels > 0 ? ceil_div(a.parallel.threads, p.panels) : 1;
  p.panel = round_up(a.in, kLanes<S>) * tokens;
  p.sums = block.out * tokens;
  p.wide = is_narrow ? block.in * tokens : 0;
  p.narrow = is_narrow ? kLanes<S> * tokens : 0;
  p.scratch = round_up(int64_t(sizeof(S)) * (p.panel + p.narrow) + int64_t(sizeof(Math<S>)) * (p.sums + p.wide), 64);
  p.stream = is_streamed<S>(a.y, a.tokens, a.out);
  return p;
}

// `features` rows of a panel as numbers to compute with.
template <class S, int V>
inline const Math<S>* widened(const S* panel, int64_t features, Math<S>* wide) {
  if constexpr (sizeof(S) == sizeof(Math<S>)) {
    return panel;
  } else {
    constexpr int width = kPanelTokens<S, V>, L = kLanes<Math<S>>;
    for (int64_t f = 0; f < features; ++f) {
      Vec<Math<S>> row[V];
      load_all<V>(panel + f * width, row);
      for (int v = 0; v < V; ++v) store(wide + f * width + v * L, row[v]);
    }
    return wide;
  }
}

// `features` rows of a tile as they are stored.
template <class S, int V>
inline const S* narrowed(const Math<S>* sums, int64_t features, S* narrow) {
  if constexpr (sizeof(S) == sizeof(Math<S>)) {
    return sums;
  } else {
    constexpr int width = kPanelTokens<S, V>, L = kLanes<Math<S>>;
    for (int64_t f = 0; f < features; ++f) {
      Vec<Math<S>> row[V];
      for (int v = 0; v < V; ++v) row[v] = load(sums + f * width + v * L);
      store_all<V>(narrow + f * width, row);
    }
    return narrow;
  }
}

// sums (block.out, tokens) = bias + the blocks of one row of the grid times the panel.
template <class S, class I, int V>
inline void row_of_blocks(const BsrLinearArgs& a, int64_t row, int64_t features, const Scratch<S>& scratch) {
  using T = Math<S>;
  constexpr int width = kPanelTokens<S, V>, L = kLanes<T>;
  const I *crow = static_cast<const I*>(a.w.crow), *col = static_cast<const I*>(a.w.col);
  const I* order = static_cast<const I*>(a.order);
  const T *values = static_cast<const T*>(a.values), *bias = static_cast<const T*>(a.bias);
  const Sides block = sides_of(a);
  for (int64_t f = 0; f < features; ++f) {
    const Vec<T> start = (bias ? bias[row * block.out + f] : T(0)) - Vec<T>{};
    for (int v = 0; v < V; ++v) store(scratch.sums + f * width + v * L, start);
  }
  for (I p = crow[row]; p < crow[row + 1]; ++p) {
    const T* at = values + int64_t(a.transposed ? order[p] : p) * a.block_rows * a.block_cols;
    const int64_t first = int64_t(col[p]) * block.in, depth = min_of(block.in, a.in - first);
    const T* x = widened<S, V>(scratch.panel + first * width, depth, scratch.wide);
    const Broadcast<T> w = a.transposed ? Broadcast<T>{at, 1, a.block_cols} : Broadcast<T>{at, a.block_cols, 1};
    const I q = p + 1 < a.w.nnz ? p + 1 : p;
    const T* next = values + int64_t(a.transposed ? order[q] : q) * a.block_rows * a.block_cols;
    gemm<true, T, true>(w, Lanes<const T>{x, width}, Lanes<T>{scratch.sums, width}, features, V, depth, next);
  }
}

template <class S, class I, int V>
void panel_block(const BsrLinearArgs& a, const Plan& plan, int64_t item, const Scratch<S>& scratch) {
  constexpr int side = kLanes<S>, width = kPanelTokens<S, V>;
  const int64_t t0 = item / plan.row_blocks * width, tokens = min_of(width, a.tokens - t0);
  const int64_t row_begin = block_begin<I>(a.w, item % plan.row_blocks, plan.row_blocks, 1);
  const int64_t row_end = block_begin<I>(a.w, item % plan.row_blocks + 1, plan.row_blocks, 1);
  const int64_t height = sides_of(a).out;

  pack_panel<S, V>(static_cast<const S*>(a.x) + t0 * a.in, a.in, tokens, a.in, scratch.panel);
  S* y = static_cast<S*>(a.y) + t0 * a.out;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t first = row * height, features = min_of(height, a.out - first);
    row_of_blocks<S, I, V>(a, row, features, scratch);
    for (int64_t f = 0; f < features; f += side) {
      const int64_t some = min_of(side, features - f);
      const S* tile = narrowed<S, V>(scratch.sums + f * width, some, scratch.narrow);
      if (plan.stream && some == side)
        unpack_tile<S, V, true>(tile, tokens, some, y + first + f, a.out);
      else
        unpack_tile<S, V, false>(tile, tokens, some, y + first + f, a.out);
    }
  }
  if (plan.stream) finish_streaming();
}

template <class S, class I>
void run(const BsrLinearArgs& a) {
  const Plan plan = plan_for<S>(a);
  with_vectors<S>(plan.vectors, [&](auto vectors) {
    for_each_item(a.parallel, plan.panels * plan.row_blocks, [&](int64_t worker, int64_t item) {
      panel_block<S, I, vectors()>(a, plan, item, {static_cast<char*>(a.workspace) + worker * plan.scratch, plan});
    });
  });
}

}  // namespace

int64_t bsr_linear_workspace(const BsrLinearArgs& a) {
  int64_t bytes = 0;
  with_activations(a.dtype,
                   [&](auto tag) { bytes = a.parallel.threads * plan_for<typename decltype(tag)::type>(a).scratch; });
  return bytes;
}

Status bsr_linear(const BsrLinearArgs& a) {
  with_activations(a.dtype, [&](auto tag) {
    with_index(a.w.index, [&](auto index) { run<typename decltype(tag)::type, typename decltype(index)::type>(a); });
  });
  return kOk;
}

}  // namespace SK_ISA
}  // namespace sk
