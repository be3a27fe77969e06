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
  const AdamLists lists{op,   weights, grads, exp_avgs, exp_avg_sqs, steps, crows,
                        cols, ccols,   rows,  perms,    floors,      axes};
  lists.check();
  const size_t count = weights.size();
  check_count(op, "joined", joined, count);
  check_count(op, "in_supports", in_supports, count);
  check_count(op, "active_crows", active_crows, count);
  check_count(op, "active_cols", active_cols, count);
  check_count(op, "slots", slots, count);

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
    lists.check_weight(i);
    grads[i] = torch::stable::contiguous(grads[i]);

    AdamwSelectMatrix& m = matrices[i];
    m.rows = active_crows[i].numel() - 1;
    m.cols = ccols[i].numel() - 1;
    m.active = weight.numel();
    m.k = slots[i].numel();
    SK_CHECK(m.rows >= 0 && m.cols >= 0, op, ": ", nth("active_crows", i), " and ", nth("ccols", i),
             " must not be empty");
    SK_CHECK(m.k <= m.active, op, ": ", nth("slots", i), " must have at most ", m.active, " elements, got ", m.k);
    SK_CHECK(a.index == IndexType::i64 || m.active <= std::numeric_limits<int32_t>::max(), op, ": ",
             nth("active_cols", i), " must be int64 for ", m.active, " elements");
#ifdef SK_CUDA  // selects from the active positions as from one row
    SK_CHECK(m.active <= std::numeric_limits<int32_t>::max(), op, ": ", nth("weights", i),
             " must have fewer than 2^31 elements on a GPU, got ", m.active);
#endif
    lists.describe(i, m, index, nan_at);
    m.joined = state_pointer(op, nth("joined", i), joined[i], weight);
    m.in_support = static_cast<uint8_t*>(
        vector_pointer(op, nth("in_supports", i), in_supports[i], ScalarType::Bool, m.active, weight));
    m.active_crow = vector_pointer(op, nth("active_crows", i), active_crows[i], index, m.rows + 1, weight);
    m.active_col = vector_pointer(op, nth("active_cols", i), active_cols[i], index, m.active, weight);
    m.slots = vector_pointer(op, nth("slots", i), slots[i], index, m.k, weight);
  }
  a.matrices = matrices.data();
  lists.set_constants(a, lr, grad_scale, beta1, beta2, eps, weight_decay);
  a.candidate_beta1 = candidate_beta1;
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
