// Binding of adamw_project_: checks, allocation, registration.
#include "sparsekern/adamw_project.h"

#include <limits>

#include "lists.h"
#include "sparsekern/topk_project.h"

namespace sk {
namespace {

constexpr const char* op = "adamw_project_";

Tensor adamw_project(Tensors weights, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors steps,
                     Tensors crows, Tensors cols, Tensors ccols, Tensors rows, Tensors perms, Ints floors, Ints axes,
                     const Tensor& lr, const Tensor& grad_scale, double beta1, double beta2, double eps,
                     double weight_decay) {
  const AdamLists lists{op,   weights, grads, exp_avgs, exp_avg_sqs, steps, crows,
                        cols, ccols,   rows,  perms,    floors,      axes};
  lists.check();
  const size_t count = weights.size();

  AdamwProjectArgs a{};
  a.count = int32_t(count);
  a.dtype = value_dtype_of(op, "weights[0]", weights[0]);
  a.index = index_of(op, "cols[0]", cols[0]);
  const ScalarType index = cols[0].scalar_type();
  const Device device(weights[0]);
  Tensor nan_at = torch::stable::new_empty(weights[0], {a.count}, ScalarType::Long);
  std::vector<AdamwProjectMatrix> matrices(count);
  for (size_t i = 0; i < count; ++i) {
    const Tensor& weight = weights[i];
    SK_CHECK(weight.dim() == 2, op, ": ", nth("weights", i), " must be a matrix, got shape ", shape_of(weight));
    check_sides(op, nth("weights", i).c_str(), weight);
    lists.check_weight(i);
    grads[i] = torch::stable::contiguous(grads[i]);

    AdamwProjectMatrix& m = matrices[i];
    m.rows = weight.size(0);
    m.cols = weight.size(1);
    m.k = cols[i].numel();
    SK_CHECK(m.k <= m.rows * m.cols, op, ": ", nth("cols", i), " must have at most ", m.rows * m.cols,
             " elements, got ", m.k);
    SK_CHECK(a.index == IndexType::i64 || m.k <= std::numeric_limits<int32_t>::max(), op, ": ", nth("cols", i),
             " must be int64 for ", m.k, " elements");
    lists.describe(i, m, index, nan_at);
  }
  a.matrices = matrices.data();
  lists.set_constants(a, lr, grad_scale, beta1, beta2, eps, weight_decay);
  a.parallel = device.parallel();
  Workspace workspace(weights[0], SK_PICK(adamw_project_workspace)(a));
  a.workspace = workspace.data();
  check_status(op, SK_PICK(adamw_project)(a));
#ifndef SK_CUDA  // reading it would wait for the GPU
  for (size_t i = 0; i < count; ++i) {
    const AdamwProjectMatrix& m = matrices[i];
    SK_CHECK(*m.nan_at == kNoNan, op, ": ", nth("weights", i), " must not contain NaN, found one at [",
             *m.nan_at / m.cols, ", ", *m.nan_at % m.cols, "]");
  }
#endif
  return nan_at;
}

}  // namespace
}  // namespace sk

SK_LIBRARY_IMPL(m) { m.impl("adamw_project_", TORCH_BOX(&sk::adamw_project)); }
