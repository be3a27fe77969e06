// y[t, n] = sum over the nonzeros p of row n of values[p] * x[t, col p], plus bias[n].
//
// x (tokens, cols), y (tokens, rows), row-major and contiguous; values (nnz), bias (rows, or null).
// Rows without nonzeros give bias (or 0); every element of y is written. A token's result depends neither on the
// other tokens nor on the number of threads.
//
// order (nnz, or null): values are read as values[order[p]]; with the transposed pattern and its permutation this is
// y = x W instead of x W^T.
#pragma once
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {

struct CsrLinearArgs {
  CsrPattern w;
  const void* values;
  const void* order;
  const void* x;
  const void* bias;
  void* y;
  int64_t tokens;
  DType dtype;
  void* workspace;  // csr_linear_workspace bytes, 64-byte aligned
  Parallel parallel;
};

// The gradients of x and of values in one pass over grad (tokens, rows): dx[t, k] = sum over the nonzeros p of column k
// of values[p] * grad[t, row p], dvalues[p] = sum over tokens t of grad[t, row p] * x[t, col p].
struct CsrLinearBackwardArgs {
  CsrPattern wt;       // the transposed pattern (cols, rows)
  const void* perm;    // (nnz)
  const void* values;  // (nnz), in the order of the rows, as is dvalues
  const void* grad;    // (tokens, rows)
  const void* x;       // (tokens, cols)
  void* dx;            // (tokens, cols)
  void* dvalues;       // (nnz)
  int64_t tokens;
  DType dtype;
  void* workspace;  // csr_linear_backward_workspace bytes, 64-byte aligned
  Parallel parallel;
};

SK_KERNEL(int64_t csr_linear_workspace(const CsrLinearArgs&))
SK_KERNEL(Status csr_linear(const CsrLinearArgs&))
SK_KERNEL(int64_t csr_linear_backward_workspace(const CsrLinearBackwardArgs&))
SK_KERNEL(Status csr_linear_backward(const CsrLinearBackwardArgs&))

}  // namespace sk
