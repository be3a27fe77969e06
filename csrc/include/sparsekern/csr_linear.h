// y[t, n] = sum over the nonzeros p of row n of values[p] * x[t, col p], plus bias[n].
//
// x (tokens, cols), y (tokens, rows), row-major and contiguous; values (nnz) and bias (rows, or null) have x's dtype.
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

SK_CPU_KERNEL(int64_t csr_linear_workspace(const CsrLinearArgs&))
SK_CPU_KERNEL(void csr_linear(const CsrLinearArgs&))

}  // namespace sk
