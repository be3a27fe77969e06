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
  const size_t count = weights.size();
  SK_CHECK(count > 0, op, ": weights must not be empty");
  check_count(op, "grads", grads, count);
  check_count(op, "exp_avgs", exp_avgs, count);
  check_count(op, "exp_avg_sqs", exp_avg_sqs, count);
  check_count(op, "steps", steps, count);
  check_count(op, "crows", crows, count);
  check_count(op, "cols", cols, count);
  check_count(op, "ccols", ccols, count);
  check_count(op, "rows", rows, count);
  check_count(op, "perms", perms, count);
  check_count(op, "floors", floors, count);
  check_count(op, "axes", axes, count);

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
    SK_CHECK(weight.scalar_type() == weights[0].scalar_type(), op, ": ", nth("weights", i),
             " must have the scalar type of weights[0]");
    check_beside(op, nth("weights", i), weight, weights[0]);
    check_like_weight(op, nth("grads", i), grads[i], weight);
    grads[i] = torch::stable::contiguous(grads[i]);

    AdamwProjectMatrix& m = matrices[i];
    m.rows = weight.size(0);
    m.cols = weight.size(1);
    m.k = cols[i].numel();
    m.floor = floors[i];
    m.axis = int32_t(axes[i]);
    SK_CHECK(axes[i] == 0 || axes[i] == 1, op, ": ", nth("axes", i), " must be 0 (rows) or 1 (columns), got ", axes[i]);
    const int64_t neurons = m.axis == 0 ? m.rows : m.cols;
    SK_CHECK(m.k <= m.rows * m.cols, op, ": ", nth("cols", i), " must have at most ", m.rows * m.cols,
             " elements, got ", m.k);
    SK_CHECK(a.index == IndexType::i64 || m.k <= std::numeric_limits<int32_t>::max(), op, ": ", nth("cols", i),
             " must be int64 for ", m.k, " elements");
    SK_CHECK(m.floor >= 0 && m.floor * neurons <= m.k, op, ": ", nth("floors", i),
             " must be between 0 and what fits into ", m.k, " entries for ", neurons, " neurons, got ", m.floor);
    m.weight = state_pointer(op, nth("weights", i), weight, weight);
    m.grad = grads[i].const_data_ptr();
    m.exp_avg = state_pointer(op, nth("exp_avgs", i), exp_avgs[i], weight);
    m.exp_avg_sq = state_pointer(op, nth("exp_avg_sqs", i), exp_avg_sqs[i], weight);
    m.step = static_cast<const float*>(scalar_pointer(op, nth("steps", i), steps[i], ScalarType::Float, weight));
    m.crow = vector_pointer(op, nth("crows", i), crows[i], index, m.rows + 1, weight);
    m.col = vector_pointer(op, nth("cols", i), cols[i], index, m.k, weight);
    m.ccol = vector_pointer(op, nth("ccols", i), ccols[i], index, m.cols + 1, weight);
    m.row = vector_pointer(op, nth("rows", i), rows[i], index, m.k, weight);
    m.perm = vector_pointer(op, nth("perms", i), perms[i], index, m.k, weight);
    m.nan_at = static_cast<int64_t*>(nan_at.mutable_data_ptr()) + i;
  }
  a.matrices = matrices.data();
  a.lr = static_cast<const double*>(scalar_pointer(op, "lr", lr, ScalarType::Double, weights[0]));
  a.grad_scale =
      static_cast<const double*>(scalar_pointer(op, "grad_scale", grad_scale, ScalarType::Double, weights[0]));
  a.beta1 = beta1;
  a.beta2 = beta2;
  a.eps = eps;
  a.weight_decay = weight_decay;
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
