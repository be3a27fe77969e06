// One step of exact mode on several matrices: Adam, projection to k entries by topk_project's rule, weight decay of
// what is kept, and the new pattern in both layouts (Gao et al. 2025, appendix A.2, whose step order this is).
//
// With g = grad * grad_scale and t = step, the number of this step counted from 1:
//   exp_avg    = beta1 * exp_avg + (1 - beta1) * g
//   exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
//   weight    -= lr / (1 - beta1^t) * exp_avg / (sqrt(exp_avg_sq) / sqrt(1 - beta2^t) + eps)
//   weight     = its k entries of topk_project's choice times (1 - lr * weight_decay), 0 elsewhere
// lr, grad_scale and the steps lie beside the weights, so that a captured CUDA graph follows them. NaN is treated as in
// topk_project.h; on a CPU the other matrices of the call may then have been changed already.
#pragma once
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {

struct AdamwProjectMatrix {
  void* weight;  // this and the next three: (rows, cols)
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  const float* step;
  void* crow;       // out (rows + 1)
  void* col;        // out (k)
  void* ccol;       // out (cols + 1)
  void* row;        // out (k)
  void* perm;       // out (k)
  int64_t* nan_at;  // out: flat index of the first NaN, or kNoNan
  int64_t rows, cols, k, floor;
  int32_t axis;
};

struct AdamwProjectArgs {
  const AdamwProjectMatrix* matrices;  // (count), in host memory
  int32_t count;
  const double* lr;
  const double* grad_scale;
  double beta1, beta2, eps, weight_decay;
  DType dtype;      // f32 or f64, of all matrices
  IndexType index;  // of all patterns
  void* workspace;  // adamw_project_workspace bytes, 64-byte aligned
  Parallel parallel;
};

SK_KERNEL(int64_t adamw_project_workspace(const AdamwProjectArgs&))
SK_KERNEL(Status adamw_project(const AdamwProjectArgs&))

}  // namespace sk
