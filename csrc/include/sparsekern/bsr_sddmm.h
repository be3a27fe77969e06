// The blocks of a^T b at the positions of a pattern: out[p, i, j] = sum over tokens t of a[t, row p * block_rows + i] *
// b[t, col p * block_cols + j], and 0 where a block reaches over the edge of a or b (see bsr_linear.h).
//
// a (tokens, rows), b (tokens, cols), row-major and contiguous, of one dtype; out (positions, block_rows, block_cols).
// tokens = 0 gives zeros. Tokens are added in an order that does not depend on the number of threads.
#pragma once
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {

struct BsrSddmmArgs {
  CsrPattern w;  // over the grid
  int64_t block_rows, block_cols;
  const void* a;
  const void* b;
  void* out;
  int64_t tokens, rows, cols;  // of a and b
  DType dtype;
  void* workspace;  // bsr_sddmm_workspace bytes, 64-byte aligned
  Parallel parallel;
};

SK_CPU_KERNEL(int64_t bsr_sddmm_workspace(const BsrSddmmArgs&))
SK_CPU_KERNEL(Status bsr_sddmm(const BsrSddmmArgs&))

}  // namespace sk
