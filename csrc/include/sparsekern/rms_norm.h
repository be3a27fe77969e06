// y[t, d] = x[t, d] * rstd[t] * gain[d], rstd[t] = 1 / sqrt(eps + mean over d of x[t, d]^2).
//
// x, y (rows, width), contiguous; gain (width) and rstd (rows), like values beside activations (types.h). The backward
// pass writes the gradients dx (rows, width) and dgain (width); results do not depend on the number of threads.
#pragma once
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {

struct RmsNormArgs {
  const void *x, *gain;
  void *y, *rstd;
  int64_t rows, width;
  double eps;
  DType dtype, y_dtype;  // of x, of y: the same, or f32 and bf16
  Parallel parallel;
};

struct RmsNormBackwardArgs {
  const void *grad, *x, *gain, *rstd;
  void *dx, *dgain;
  int64_t rows, width;
  DType dtype, y_dtype;  // of x and dx, of grad
  void* workspace;       // rms_norm_backward_workspace bytes, 64-byte aligned
  Parallel parallel;
};

SK_CPU_KERNEL(Status rms_norm(const RmsNormArgs&))
SK_CPU_KERNEL(int64_t rms_norm_backward_workspace(const RmsNormBackwardArgs&))
SK_CPU_KERNEL(Status rms_norm_backward(const RmsNormBackwardArgs&))

}  // namespace sk
