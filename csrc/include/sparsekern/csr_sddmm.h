// v[p] = sum over tokens t of a[t, row p] * b[t, col p], for every position p of the pattern. On the CPU also, where
// asked for, sums[n] = sum over tokens t of a[t, n], and what csr_linear makes of b: product[t, n] = sum over the
// positions p of row n of values[p] * b[t, col p].
//
// a (tokens, rows), b (tokens, cols), row-major and contiguous, of one dtype; out (nnz). tokens = 0 gives zeros. The
// sums are cut into slices by shape, so the result does not depend on the number of threads.
#pragma once
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {

struct CsrSddmmArgs {
  CsrPattern w;
  const void* a;
  const void* b;
  void* out;
  void* sums;          // (rows), like out, or null
  const void* values;  // (nnz), like out, or null
  void* product;       // (tokens, rows), like a; null without values
  int64_t tokens;
  DType dtype;
  void* workspace;  // csr_sddmm_workspace bytes, 64-byte aligned
  Parallel parallel;
};

SK_KERNEL(int64_t csr_sddmm_workspace(const CsrSddmmArgs&))
SK_KERNEL(Status csr_sddmm(const CsrSddmmArgs&))

}  // namespace sk
