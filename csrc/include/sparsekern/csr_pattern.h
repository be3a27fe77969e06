// Patterns: validation, transposition, and moving values between a dense matrix and the positions of a pattern.
#pragma once
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {

// What is wrong with a pattern, and where (a row for the crow faults, a position for the col faults).
enum PatternFault : int32_t {
  kPatternOk = 0,
  kCrowStart = 1,       // crow[0] != 0
  kCrowDecreasing = 2,  // crow[at + 1] < crow[at]
  kCrowEnd = 3,         // crow[rows] != nnz
  kColRange = 4,        // col[at] outside [0, cols)
  kColOrder = 5,        // col[at] <= col[at - 1] within a row: unsorted or duplicate
};

// ccol (cols + 1), row (nnz) describe the transpose; its position q holds the value at perm[q] of the original.
struct CsrTransposeArgs {
  CsrPattern w;
  void* ccol;
  void* row;
  void* perm;
  void* workspace;  // csr_transpose_workspace bytes, 64-byte aligned
  Parallel parallel;
};

// to_values: values[p] = dense[row p, col p]; otherwise dense (zeroed by the caller) gets dense[row p, col p] =
// values[p].
struct CsrDenseArgs {
  CsrPattern w;
  void* dense;   // (rows, cols)
  void* values;  // (nnz)
  bool to_values;
  DType dtype;
  Parallel parallel;
};

SK_CPU_KERNEL(PatternFault csr_validate(const CsrPattern&, int64_t* at))
SK_KERNEL(int64_t csr_transpose_workspace(const CsrTransposeArgs&))
SK_KERNEL(Status csr_transpose(const CsrTransposeArgs&))
SK_KERNEL(Status csr_dense(const CsrDenseArgs&))

}  // namespace sk
