// One step of sparse mode on several matrices. A matrix is known at its active positions only, a CSR pattern: those of
// its support, which hold the weights, and candidates, whose weight is 0. Adam runs on all of them, then the k largest
// magnitudes become the support.
//
// With g = grad * grad_scale, t = step, counted from 1, and for each position its joined, the step after which it
// became active (0: it was there from the beginning; below t), beta1' = beta1 in the support and candidate_beta1
// outside:
//   exp_avg    = beta1' * exp_avg + (1 - beta1') * g
//   exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
//   weight    -= lr / c * exp_avg / (sqrt(exp_avg_sq) / sqrt(1 - beta2^(t - joined)) + eps)
//   support    = k positions: the `floor` largest |weight| of every row (axis 0) or column (axis 1), then the largest
//                of the others; equal magnitudes go to the lowest position
//   weight     = weight * (1 - lr * weight_decay) in the support, 0 outside
// where c is 1 - beta1'^t for joined = 0 and 1 otherwise: the momentum of a new candidate starts at 0 and is not
// corrected, so that a few gradients of one sign do not look like a steady one. With every position active from the
// beginning and candidate_beta1 = beta1 this is adamw_project. A neuron with fewer active positions than the floor
// keeps them all; floor * neurons <= k <= active is required.
//
// A NaN is treated as in topk_project.h: on a CPU such a matrix keeps its support; the others go on.
// On a GPU active must be below 2^31.
#pragma once
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {

struct AdamwSelectMatrix {
  void* weight;  // this and the next four: (active)
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  const void* joined;
  const float* step;
  uint8_t* in_support;      // (active), 0 or 1: read, then written
  const void* active_crow;  // (rows + 1)
  const void* active_col;   // (active)
  void* slots;              // out (k): the support's positions among the active ones, ascending
  void* crow;               // out (rows + 1): the support's pattern
  void* col;                // out (k)
  void* ccol;               // out (cols + 1)
  void* row;                // out (k)
  void* perm;               // out (k)
  int64_t* nan_at;          // out: active position of the first NaN, or kNoNan
  int64_t rows, cols, active, k, floor;
  int32_t axis;
};

struct AdamwSelectArgs {
  const AdamwSelectMatrix* matrices;  // (count), in host memory
  int32_t count;
  const double* lr;
  const double* grad_scale;
  double beta1, candidate_beta1, beta2, eps, weight_decay;
  DType dtype;      // f32 or f64, of all matrices
  IndexType index;  // of all patterns
  void* workspace;  // adamw_select_workspace bytes, 64-byte aligned
  Parallel parallel;
};

SK_KERNEL(int64_t adamw_select_workspace(const AdamwSelectArgs&))
SK_KERNEL(Status adamw_select(const AdamwSelectArgs&))

}  // namespace sk
