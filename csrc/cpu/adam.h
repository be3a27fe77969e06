// Adam on one entry, in the same operations wherever it runs: adamw_select over everything equals adamw_project bit for
// bit.
#pragma once

namespace sk {
namespace SK_ISA {
namespace {

// step_size: the learning rate over the bias correction of avg. root_correction: the root of that of sq.
template <class T>
inline void adam_update(T& w, T g, T& avg, T& sq, T beta1, T rest1, T beta2, T rest2, T step_size, T root_correction,
                        T eps) {
  avg = beta1 * avg + rest1 * g;
  sq = beta2 * sq + rest2 * g * g;
  const T root = sizeof(T) == 8 ? T(__builtin_sqrt(sq)) : T(__builtin_sqrtf(sq));
  w -= step_size * avg / (root / root_correction + eps);
}

}  // namespace
}  // namespace SK_ISA
}  // namespace sk
