// Keeps the k entries of largest magnitude in each row of x (rows, width) and zeroes the rest; equal magnitudes go to
// the lowest index. NaN counts as larger than infinity, so it stays visible. 0 <= k <= width.
//
// kept (rows, (width + 7) / 8) holds one bit per entry, bit j % 8 of byte j / 8: the backward pass is masked by it,
// because a kept entry may itself be zero. abs_topk_backward writes grad where the bit is set and 0 elsewhere.
#pragma once
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {

struct AbsTopkArgs {
  const void* x;
  void* y;
  uint8_t* kept;
  int64_t rows, width, k;
  int64_t stride;  // from one row of x to the next; on a GPU the width
  DType dtype;
  void* workspace;  // abs_topk_workspace bytes, 64-byte aligned
  Parallel parallel;
};

struct AbsTopkBackwardArgs {
  const void* grad;
  const uint8_t* kept;
  void* out;
  int64_t rows, width;
  DType dtype;
  Parallel parallel;
};

SK_KERNEL(int64_t abs_topk_workspace(const AbsTopkArgs&))
SK_KERNEL(Status abs_topk(const AbsTopkArgs&))
SK_KERNEL(Status abs_topk_backward(const AbsTopkBackwardArgs&))

}  // namespace sk
