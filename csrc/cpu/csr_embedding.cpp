// csr_embedding: rows of a sparse table written dense; backward gathers the tokens of each table row in order.
#include "sparsekern/csr_embedding.h"

#include "dispatch.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int64_t kTokensPerItem = 64, kRowsPerItem = 64;

template <class T, class I>
void forward(const CsrEmbeddingArgs& a) {
  const I *crow = static_cast<const I*>(a.table.crow), *col = static_cast<const I*>(a.table.col);
  const T* values = static_cast<const T*>(a.values);
  for_each_range(a.parallel, a.tokens, kTokensPerItem, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      T* out = static_cast<T*>(a.out) + t * a.table.cols;
      for (int64_t j = 0; j < a.table.cols; ++j) out[j] = 0;
      for (I p = crow[a.ids[t]]; p < crow[a.ids[t] + 1]; ++p) out[col[p]] = values[p];
    }
  });
}

// tokens_of[start[r] .. start[r+1]) are the tokens with id r, ascending: a counting sort.
void group_tokens(const CsrEmbeddingBackwardArgs& a, int64_t* start, int64_t* tokens_of) {
  for (int64_t r = 0; r <= a.table.rows; ++r) start[r] = 0;
  for (int64_t t = 0; t < a.tokens; ++t) ++start[a.ids[t]];
  for (int64_t r = 0, sum = 0; r <= a.table.rows; ++r) {
    const int64_t count = start[r];
    start[r] = sum += count;
  }
  for (int64_t t = a.tokens - 1; t >= 0; --t) tokens_of[--start[a.ids[t]]] = t;
}

template <class T, class I>
void backward(const CsrEmbeddingBackwardArgs& a) {
  const I *crow = static_cast<const I*>(a.table.crow), *col = static_cast<const I*>(a.table.col);
  int64_t *start = static_cast<int64_t*>(a.workspace), *tokens_of = start + a.table.rows + 1;
  group_tokens(a, start, tokens_of);
  T* out = static_cast<T*>(a.out);
  for_each_range(a.parallel, a.table.rows, kRowsPerItem, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (I p = crow[r]; p < crow[r + 1]; ++p) out[p] = 0;
      for (int64_t i = start[r]; i < start[r + 1]; ++i) {
        const T* grad = static_cast<const T*>(a.grad) + tokens_of[i] * a.table.cols;
        for (I p = crow[r]; p < crow[r + 1]; ++p) out[p] += grad[col[p]];
      }
    }
  });
}

}  // namespace

Status csr_embedding(const CsrEmbeddingArgs& a) {
  with_dtype(a.dtype, [&](auto tag) {
    with_index(a.table.index,
               [&](auto index) { forward<typename decltype(tag)::type, typename decltype(index)::type>(a); });
  });
  return kOk;
}

int64_t csr_embedding_backward_workspace(const CsrEmbeddingBackwardArgs& a) {
  return int64_t(sizeof(int64_t)) * (a.table.rows + 1 + a.tokens);
}

Status csr_embedding_backward(const CsrEmbeddingBackwardArgs& a) {
  with_dtype(a.dtype, [&](auto tag) {
    with_index(a.table.index,
               [&](auto index) { backward<typename decltype(tag)::type, typename decltype(index)::type>(a); });
  });
  return kOk;
}

}  // namespace SK_ISA
}  // namespace sk
