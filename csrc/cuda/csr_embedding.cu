// csr_embedding: one warp writes a token's row, zeros 16 bytes at a time and the nonzeros over them while the line is
// in the cache: it moves the output once. Backward sorts the tokens by their row of the table, then one warp per row of
// the table sums over its tokens: it reads the tokens' gradients at the row's columns, 32 bytes of each.
#include "sparsekern/csr_embedding.h"

#include "device.h"
#include "sparsekern/csr_pattern.h"

namespace sk {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// An id that is no row of the table stops the kernel for good, as in torch's own embedding. The message names no
// number: passing one on would give the kernel a stack.
__device__ __forceinline__ int64_t checked(int64_t id, int64_t rows) {
  if (id < 0 || id >= rows) {
    printf("csr_embedding: ids must be rows of the table\n");
    __trap();
  }
  return id;
}

template <class T, class I>
__global__ void write_rows(const I* __restrict__ crow, const I* __restrict__ col, const int64_t* __restrict__ ids,
                           const T* __restrict__ values, T* out, int64_t tokens, int64_t rows, int64_t cols) {
  const int lane = threadIdx.x % kWarp;
  const int64_t t = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (t >= tokens) return;
  const int64_t id = checked(ids[t], rows);
  T* const row = out + t * cols;
  const bool aligned = reinterpret_cast<uintptr_t>(out) % 16 == 0 && cols % Vector<T>::kSize == 0;
  if (aligned) {
    const Vector<T> zeros{};
    for (int64_t j = lane * Vector<T>::kSize; j < cols; j += kWarp * Vector<T>::kSize) store_vector(row + j, zeros);
  } else {
    for (int64_t j = lane; j < cols; j += kWarp) row[j] = 0;
  }
  __syncwarp();
  for (I p = crow[id] + lane; p < crow[id + 1]; p += kWarp) row[col[p]] = values[p];
}

template <class T, class I>
__global__ void sum_tokens(const I* __restrict__ crow, const I* __restrict__ col, const int64_t* __restrict__ start,
                           const int64_t* __restrict__ token, const T* __restrict__ grad, T* out, int64_t rows,
                           int64_t cols) {
  const int lane = threadIdx.x % kWarp;
  const int64_t r = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (r >= rows) return;
  for (I p = crow[r] + lane; p < crow[r + 1]; p += kWarp) {
    T sum = 0;
#pragma unroll 4
    for (int64_t i = start[r]; i < start[r + 1]; ++i) sum += grad[token[i] * cols + col[p]];
    out[p] = sum;
  }
}

// crow of the pattern that has one entry per token.
__global__ void begin_sort(const int64_t* __restrict__ ids, int64_t* crow, int64_t tokens, int64_t rows) {
  const int64_t t = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (t < tokens) checked(ids[t], rows);
  if (t <= tokens) crow[t] = t;
}

// The tokens of each row of the table, ascending: the transpose of the pattern that has ids[t] in row t.
struct TokenSort {
  int64_t *crow, *start, *token, *perm;
  char* workspace;
  CsrTransposeArgs args;

  explicit TokenSort(const CsrEmbeddingBackwardArgs& a) {
    char* next = static_cast<char*>(a.workspace);
    const auto take = [&](int64_t n) {
      int64_t* const taken = reinterpret_cast<int64_t*>(next);
      next += round_up(n * 8, 64);
      return taken;
    };
    crow = take(a.tokens + 1);
    start = take(a.table.rows + 1);
    token = take(a.tokens);
    perm = take(a.tokens);
    workspace = next;
    args = {{crow, a.ids, a.tokens, a.table.rows, a.tokens, IndexType::i64}, start, token, perm, workspace, a.parallel};
  }
};

}  // namespace

Status csr_embedding(const CsrEmbeddingArgs& a) {
  return with_value_dtype(a.dtype, [&](auto tag) {
    return with_index(a.table.index, [&](auto index) {
      using T = typename decltype(tag)::type;
      using I = typename decltype(index)::type;
      return launch(write_rows<T, I>, blocks_for(a.tokens * kWarp, kThreads), kThreads, 0, a.parallel,
                    static_cast<const I*>(a.table.crow), static_cast<const I*>(a.table.col), a.ids,
                    static_cast<const T*>(a.values), static_cast<T*>(a.out), a.tokens, a.table.rows, a.table.cols);
    });
  });
}

int64_t csr_embedding_backward_workspace(const CsrEmbeddingBackwardArgs& a) {
  const TokenSort sort(a);
  return sort.workspace - static_cast<char*>(a.workspace) + csr_transpose_workspace(sort.args);
}

Status csr_embedding_backward(const CsrEmbeddingBackwardArgs& a) {
  const TokenSort sort(a);
  SK_TRY(launch(begin_sort, blocks_for(a.tokens + 1, kThreads), kThreads, 0, a.parallel, a.ids, sort.crow, a.tokens,
                a.table.rows));
  SK_TRY(csr_transpose(sort.args));
  return with_value_dtype(a.dtype, [&](auto tag) {
    return with_index(a.table.index, [&](auto index) {
      using T = typename decltype(tag)::type;
      using I = typename decltype(index)::type;
      return launch(sum_tokens<T, I>, blocks_for(a.table.rows * kWarp, kThreads), kThreads, 0, a.parallel,
                    static_cast<const I*>(a.table.crow), static_cast<const I*>(a.table.col), sort.start, sort.token,
                    static_cast<const T*>(a.grad), static_cast<T*>(a.out), a.table.rows, a.table.cols);
    });
  });
}

}  // namespace cuda
}  // namespace sk
