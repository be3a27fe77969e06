// Binding of adamw_select_: checks, allocation, registration.
#include "sparsekern/adamw_select.h"

#include "lists.h"
#include "sparsekern/topk_project.h"

namespace sk {
namespace {

constexpr const char* op = "adamw_select_";

Tensor adamw_select(Tensors weights, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors joined,
                    Tensors steps, Tensors in_supports, Tensors active_crows, Tensors active_cols, Tensors slots,
                    Tensors crows, Tensors cols, Tensors ccols, Tensors rows, Tensors perms, Ints floors, Ints axes,
                    const Tensor& lr, const Tensor& grad_scale, double beta1, double candidate_beta1, double beta2,
                    double eps, double weight_decay) {
  const size_t count = weights.size();
  SK_CHECK(count > 0, op, ": weights must not be empty");
  for (const auto& [name, list] :
       std::initializer_list<std::pair<const char*, const Tensors*>>{{"grads", &grads},
                                                                     {"exp_avgs", &exp_avgs},
                                                                     {"exp_avg_sqs", &exp_avg_sqs},
                                                                     {"joined", &joined},
                                                                     {"steps", &steps},
                                                                     {"in_supports", &in_supports},
                                                                     {"active_crows", &active_crows},
                                                                     {"active_cols", &active_cols},
                                                                     {"slots", &slots},
                                                                     {"crows", &crows},
                                                                     {"cols", &cols},
                                                                     {"ccols", &ccols},
                                                                     {"rows", &rows},
                                                                     {"perms", &perms}})
    check_count(op, name, *list, count);
  check_count(op, "floors", floors, count);
  check_count(op, "axes", axes, count);

  AdamwSelectArgs a{};
  a.count = int32_t(count);
  a.dtype = value_dtype_of(op, "weights[0]", weights[0]);
  a.index = index_of(op, "active_cols[0]", active_cols[0]);
  const ScalarType index = active_cols[0].scalar_type();
  const Device device(weights[0]);
  Tensor nan_at = torch::stable::new_empty(weights[0], {a.count}, ScalarType::Long);
  std::vector<AdamwSelectMatrix> matrices(count);
  for (size_t i = 0; i < count; ++i) {
    const Tensor& weight = weights[i];
    SK_CHECK(weight.dim() == 1, op, ": ", nth("weights", i), " must be a vector, got shape ", shape_of(weight));
    SK_CHECK(weight.scalar_type() == weights[0].scalar_type(), op, ": ", nth("weights", i),
             " must have the scalar type of weights[0]");
    check_beside(op, nth("weights", i), weight, weights[0]);
    check_like_weight(op, nth("grads", i), grads[i], weight);
    grads[i] = torch::stable::contiguous(grads[i]);

    AdamwSelectMatrix& m = matrices[i];
    m.rows = active_crows[i].numel() - 1;
    m.cols = ccols[i].numel() - 1;
    m.active = weight.numel();
    m.k = slots[i].numel();
    m.floor = floors[i];
    m.axis = int32_t(axes[i]);
    SK_CHECK(m.rows >= 0 && m.cols >= 0, op, ": ", nth("active_crows", i), " and ", nth("ccols", i),
             " must not be empty");
    SK_CHECK(m.k <= m.active, op, ": ", nth("slots", i), " must have at most ", m.active, " elements, got ", m.k);
    SK_CHECK(a.index == IndexType::i64 || m.active <= std::numeric_limits<int32_t>::max(), op, ": ",
             nth("active_cols", i), " must be int64 for ", m.active, " elements");
#ifdef SK_CUDA  // selects from the active positions as from one row
    SK_CHECK(m.active <= std::numeric_limits<int32_t>::max(), op, ": ", nth("weights", i),
             " must have fewer than 2^31 elements on a GPU, got ", m.active);
#endif
    SK_CHECK(axes[i] == 0 || axes[i] == 1, op, ": ", nth("axes", i), " must be 0 (rows) or 1 (columns), got ", axes[i]);
    const int64_t neurons = m.axis == 0 ? m.rows : m.cols;
    SK_CHECK(m.floor >= 0 && m.floor * neurons <= m.k, op, ": ", nth("floors", i),
             " must be between 0 and what fits into ", m.k, " entries for ", neurons, " neurons, got ", m.floor);
    m.weight = state_pointer(op, nth("weights", i), weight, weight);
    m.grad = grads[i].const_data_ptr();
    m.exp_avg = state_pointer(op, nth("exp_avgs", i), exp_avgs[i], weight);
    m.exp_avg_sq = state_pointer(op, nth("exp_avg_sqs", i), exp_avg_sqs[i], weight);
    m.joined = state_pointer(op, nth("joined", i), joined[i], weight);
    m.step = static_cast<const float*>(scalar_pointer(op, nth("steps", i), steps[i], ScalarType::Float, weight));
    m.in_support = static_cast<uint8_t*>(
        vector_pointer(op, nth("in_supports", i), in_supports[i], ScalarType::Bool, m.active, weight));
    m.active_crow = vector_pointer(op, nth("active_crows", i), active_crows[i], index, m.rows + 1, weight);
    m.active_col = vector_pointer(op, nth("active_cols", i), active_cols[i], index, m.active, weight);
    m.slots = vector_pointer(op, nth("slots", i), slots[i], index, m.k, weight);
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
  a.candidate_beta1 = candidate_beta1;
  a.beta2 = beta2;
  a.eps = eps;
  a.weight_decay = weight_decay;
  a.parallel = device.parallel();
  Workspace workspace(weights[0], SK_PICK(adamw_select_workspace)(a));
  a.workspace = workspace.data();
  check_status(op, SK_PICK(adamw_select)(a));
#ifndef SK_CUDA  // reading it would wait for the GPU
  for (size_t i = 0; i < count; ++i)
    SK_CHECK(*matrices[i].nan_at == kNoNan, op, ": ", nth("weights", i), " must not contain NaN, found one at [",
             *matrices[i].nan_at, "]");
#endif
  return nan_at;
}

}  // namespace
}  // namespace sk

SK_LIBRARY_IMPL(m) { m.impl("adamw_select_", TORCH_BOX(&sk::adamw_select)); }
