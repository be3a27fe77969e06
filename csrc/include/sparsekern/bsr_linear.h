// y[t, n] = sum over k of W[n, k] * x[t, k], plus bias[n], for a weight W of dense blocks; transposed: y = x W.
//
// The blocks are positions of a pattern over the grid that cuts W (grid rows times block_rows, grid columns times
// block_cols) into blocks; values (positions, block_rows, block_cols). Where block sides do not divide those of W the
// last blocks reach over its edge: what they hold there is not read. Block sides are 16, 32, 64 or 128.
//
// x (tokens, features in), y (tokens, features out), row-major and contiguous; bias (features out, or null). Every
// element of y is written. A token's result depends neither on the other tokens nor on the number of threads.
#pragma once
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {

struct BsrLinearArgs {
  CsrPattern w;  // over the grid, or if transposed over the transposed one: its rows always give features of y
  bool transposed;
  const void* order;  // (positions), read if transposed: block p of w lies at values[order[p]]
  const void* values;
  int64_t block_rows, block_cols;  // as stored
  const void* x;
  const void* bias;
  void* y;
  int64_t tokens, in, out;  // out: features of y
  DType dtype;
  void* workspace;  // bsr_linear_workspace bytes, 64-byte aligned
  Parallel parallel;
};

SK_CPU_KERNEL(int64_t bsr_linear_workspace(const BsrLinearArgs&))
SK_CPU_KERNEL(Status bsr_linear(const BsrLinearArgs&))

}  // namespace sk
