// bsr_sddmm on slabs of tokens: both operands are first cut into strips as wide as a block, so that the tokens of a
// strip lie one after the other; every block is then a product of two strips, a few tokens at a time out of the
// first-level cache. Storage in bf16 is widened on the way.
#include "sparsekern/bsr_sddmm.h"

#include "dispatch.h"
#include "gemm.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int64_t kSlabTokens = 512;  // a slab of one strip fits the L2 beside another
constexpr int64_t kDepth = 64;        // tokens of two strips and a block fit the first-level cache
constexpr int64_t kPackTokens = 16;
constexpr int64_t kBlocks = 8;  // per work item: neighbours share a strip of a

int64_t slab_tokens(const BsrSddmmArgs& a) { return min_of(kSlabTokens, a.tokens); }

// Elements of the workspace for the strips of a matrix with `features`.
template <class T>
int64_t strip_elements(const BsrSddmmArgs& a, int64_t features, int64_t block) {
  return round_up(slab_tokens(a) * round_up(features, block), 64 / sizeof(T));
}

// strips[f / block][t][f % block] = x[t, f] for `tokens` tokens, zeros behind the last feature.
template <class S>
void cut_into_strips(const Parallel& parallel, const S* x, int64_t tokens, int64_t features, int64_t block,
                     Math<S>* strips) {
  using T = Math<S>;
  constexpr int L = kLanes<T>;
  for_each_range(parallel, tokens, kPackTokens, [=](int64_t begin, int64_t end) {
    for (int64_t f = 0; f < features; f += block) {
      const int64_t width = min_of(block, features - f);
      for (int64_t t = begin; t < end; ++t) {
        const S* from = x + t * features + f;
        T* to = strips + f * tokens + t * block;
        int64_t i = 0;
        for (; i + L <= width; i += L) store(to + i, load_wide(from + i));
        for (; i < width; ++i) to[i] = widen(from[i]);
        for (; i < block; ++i) to[i] = 0;
      }
    }
  });
}

template <class I>
int64_t row_of(const CsrPattern& w, int64_t p) {
  const I* crow = static_cast<const I*>(w.crow);
  int64_t low = 0, high = w.rows;  // crow[low] <= p < crow[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (crow[middle] <= p ? low : high) = middle;
  }
  return low;
}

template <class S, class I>
void run(const BsrSddmmArgs& a) {
  using T = Math<S>;
  const int64_t size = a.block_rows * a.block_cols;
  const I *crow = static_cast<const I*>(a.w.crow), *col = static_cast<const I*>(a.w.col);
  T* out = static_cast<T*>(a.out);
  T* left = static_cast<T*>(a.workspace);
  T* right = left + strip_elements<T>(a, a.rows, a.block_rows);
  for_each_range(a.parallel, a.w.nnz, kBlocks, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin * size; i < end * size; ++i) out[i] = 0;
  });
  for (int64_t t0 = 0; t0 < a.tokens; t0 += kSlabTokens) {
    const int64_t tokens = min_of(kSlabTokens, a.tokens - t0);
    cut_into_strips(a.parallel, static_cast<const S*>(a.a) + t0 * a.rows, tokens, a.rows, a.block_rows, left);
    cut_into_strips(a.parallel, static_cast<const S*>(a.b) + t0 * a.cols, tokens, a.cols, a.block_cols, right);
    for_each_range(a.parallel, a.w.nnz, kBlocks, [=](int64_t begin, int64_t end) {
      int64_t row = row_of<I>(a.w, begin);
      for (int64_t p = begin; p < end; ++p) {
        while (crow[row + 1] <= p) ++row;
        const T* l = left + row * a.block_rows * tokens;
        const T* r = right + int64_t(col[p]) * a.block_cols * tokens;
        for (int64_t t = 0; t < tokens; t += kDepth)
          gemm<true>(Broadcast<T>{l + t * a.block_rows, 1, a.block_rows},
                     Lanes<const T>{r + t * a.block_cols, a.block_cols}, Lanes<T>{out + p * size, a.block_cols},
                     a.block_rows, a.block_cols / kLanes<T>, min_of(kDepth, tokens - t));
      }
    });
  }
}

}  // namespace

int64_t bsr_sddmm_workspace(const BsrSddmmArgs& a) {
  int64_t bytes = 0;
  with_activations(a.dtype, [&](auto tag) {
    using T = Math<typename decltype(tag)::type>;
    bytes =
        int64_t(sizeof(T)) * (strip_elements<T>(a, a.rows, a.block_rows) + strip_elements<T>(a, a.cols, a.block_cols));
  });
  return bytes;
}

Status bsr_sddmm(const BsrSddmmArgs& a) {
  with_activations(a.dtype, [&](auto tag) {
    with_index(a.w.index, [&](auto index) { run<typename decltype(tag)::type, typename decltype(index)::type>(a); });
  });
  return kOk;
}

}  // namespace SK_ISA
}  // namespace sk
