// Adam on one entry, in the same operations wherever it runs: adamw_select over everything equals adamw_project bit for
// bit. The compiler may fuse a product and a sum in one caller and not in the other, so they are fused here.
#pragma once
#include "device.h"

namespace sk {
namespace cuda {

__device__ __forceinline__ float root(float v) { return sqrtf(v); }
__device__ __forceinline__ double root(double v) { return sqrt(v); }

// One over the root of the bias correction of the second moment.
__device__ __forceinline__ double root_correction_at(double beta2, double age) { return 1 / sqrt(1 - pow(beta2, age)); }

// step_size: the learning rate over the bias correction of avg.
template <class T>
__device__ __forceinline__ void adam_update(T& w, T g, T& avg, T& sq, T beta1, T rest1, T beta2, T rest2, T step_size,
                                            T root_correction, T eps) {
  avg = fma(beta1, avg, rest1 * g);
  sq = fma(beta2, sq, rest2 * g * g);
  w -= step_size * avg / fma(root(sq), root_correction, eps);
}

}  // namespace cuda
}  // namespace sk
