// Binding of causal_attention and its backward pass: checks, allocation, registration. On a GPU torch's own is used.
#ifndef SK_CUDA
#include "sparsekern/causal_attention.h"

#include <cmath>
#include <tuple>

#include "common.h"

namespace sk {
namespace {

// What forward and backward pass share, from contiguous tensors.
CausalAttentionArgs args_of(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                            const std::optional<Tensor>& sink) {
  SK_CHECK(q.dim() == 4, op, ": q must have shape (batch, tokens, heads, width), got ", shape_of(q));
  CausalAttentionArgs a{};
  a.dtype = dtype_of(op, "q", q);
  for (const auto& [name, t] : {std::pair{"k", &k}, std::pair{"v", &v}})
    SK_CHECK(shape_of(*t) == shape_of(q) && t->scalar_type() == q.scalar_type(), op, ": ", name,
             " must have the shape and dtype of q, ", shape_of(q), ", got ", shape_of(*t));
  a.batch = q.size(0);
  a.tokens = q.size(1);
  a.heads = q.size(2);
  a.width = q.size(3);
  SK_CHECK(a.width >= 1, op, ": q must have a width of at least 1, got shape ", shape_of(q));
  if (sink) check_vector(op, "sink", *sink, value_type(a.dtype), a.heads);
  a.q = q.const_data_ptr();
  a.k = k.const_data_ptr();
  a.v = v.const_data_ptr();
  a.sink = sink ? sink->const_data_ptr() : nullptr;
  a.scale = 1 / std::sqrt(double(a.width));
  a.parallel = Device(q).parallel();
  return a;
}

std::tuple<Tensor, Tensor> causal_attention(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                            const std::optional<Tensor>& sink) {
  constexpr const char* op = "causal_attention";
  const Tensor q = torch::stable::contiguous(q_in), k = torch::stable::contiguous(k_in),
               v = torch::stable::contiguous(v_in);
  CausalAttentionArgs a = args_of(op, q, k, v, sink);
  Tensor y = torch::stable::new_empty(q, {a.batch, a.tokens, a.heads, a.width});
  Tensor lse = torch::stable::new_empty(q, {a.batch, a.heads, a.tokens}, value_type(a.dtype));
  a.y = y.mutable_data_ptr();
  a.lse = lse.mutable_data_ptr();
  Workspace workspace(q, SK_PICK(causal_attention_workspace)(a));
  a.workspace = workspace.data();
  check_status(op, SK_PICK(causal_attention)(a));
  return {y, lse};
}

// dsink is empty without a sink.
std::tuple<Tensor, Tensor, Tensor, Tensor> causal_attention_backward(const Tensor& grad_in, const Tensor& q_in,
                                                                     const Tensor& k_in, const Tensor& v_in,
                                                                     const std::optional<Tensor>& sink,
                                                                     const Tensor& y_in, const Tensor& lse_in) {
  constexpr const char* op = "causal_attention_backward";
  const Tensor grad = torch::stable::contiguous(grad_in), q = torch::stable::contiguous(q_in),
               k = torch::stable::contiguous(k_in), v = torch::stable::contiguous(v_in),
               y = torch::stable::contiguous(y_in), lse = torch::stable::contiguous(lse_in);
  CausalAttentionBackwardArgs a{};
  a.forward = args_of(op, q, k, v, sink);
  for (const auto& [name, t] : {std::pair{"grad", &grad}, std::pair{"y", &y}})
    SK_CHECK(shape_of(*t) == shape_of(q) && t->scalar_type() == q.scalar_type(), op, ": ", name,
             " must have the shape and dtype of q, ", shape_of(q), ", got ", shape_of(*t));
  const auto& [batch, tokens, heads] = std::tuple{a.forward.batch, a.forward.tokens, a.forward.heads};
  SK_CHECK(lse.numel() == batch * heads * tokens && lse.scalar_type() == value_type(a.forward.dtype), op,
           ": lse must have shape (", batch, ", ", heads, ", ", tokens, ") and be ",
           torch::headeronly::toString(value_type(a.forward.dtype)), ", got ", shape_of(lse));
  Tensor dq = torch::stable::new_empty(q, {batch, tokens, heads, a.forward.width});
  Tensor dk = torch::stable::new_empty(k, {batch, tokens, heads, a.forward.width});
  Tensor dv = torch::stable::new_empty(v, {batch, tokens, heads, a.forward.width});
  Tensor dsink = torch::stable::new_empty(q, {sink ? batch : 0, heads}, value_type(a.forward.dtype));
  a.forward.y = const_cast<void*>(y.const_data_ptr());
  a.forward.lse = const_cast<void*>(lse.const_data_ptr());
  a.grad = grad.const_data_ptr();
  a.dq = dq.mutable_data_ptr();
  a.dk = dk.mutable_data_ptr();
  a.dv = dv.mutable_data_ptr();
  a.dsink = sink ? dsink.mutable_data_ptr() : nullptr;
  Workspace workspace(q, SK_PICK(causal_attention_backward_workspace)(a.forward));
  a.workspace = workspace.data();
  check_status(op, SK_PICK(causal_attention_backward)(a));
  return {dq, dk, dv, dsink};
}

}  // namespace
}  // namespace sk

SK_LIBRARY_IMPL(m) {
  m.impl("causal_attention", TORCH_BOX(&sk::causal_attention));
  m.impl("causal_attention_backward", TORCH_BOX(&sk::causal_attention_backward));
}
#endif
