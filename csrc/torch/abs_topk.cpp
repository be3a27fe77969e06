// Binding of abs_topk and its backward pass: checks, allocation, registration.
#include "sparsekern/abs_topk.h"

#include <tuple>

#include "common.h"

namespace sk {
namespace {

// x, or a copy of it, and the distance of its rows: on the CPU, slices of the last dimension are taken as they are.
std::pair<Tensor, int64_t> strided_rows(const Tensor& x) {
  const int64_t last = x.dim() - 1;
#ifndef SK_CUDA
  bool regular = last > 0 && x.numel() > 0 && x.stride(last) == 1;
  for (int64_t d = 0; d + 1 < last; ++d) regular = regular && x.stride(d) == x.stride(d + 1) * x.size(d + 1);
  if (regular) return {x, x.stride(last - 1)};
#endif
  return {torch::stable::contiguous(x), x.size(last)};
}

std::tuple<Tensor, Tensor> abs_topk(const Tensor& x_in, int64_t k) {
  constexpr const char* op = "abs_topk";
  SK_CHECK(x_in.dim() >= 1, op, ": x must have at least one dimension");
  const auto [x, stride] = strided_rows(x_in);
  AbsTopkArgs a{};
  a.dtype = dtype_of(op, "x", x);
  a.rows = leading(x);
  a.width = x.size(x.dim() - 1);
  a.k = k;
  a.stride = stride;
  SK_CHECK(k >= 0 && k <= a.width, op, ": k must be between 0 and the last dimension of x, ", a.width, ", got ", k);

  const Device device(x);
  Tensor y = torch::stable::new_empty(x, with_last(x, a.width));
  Tensor kept = torch::stable::new_empty(x, with_last(x, (a.width + 7) / 8), ScalarType::Byte);
  a.x = x.const_data_ptr();
  a.y = y.mutable_data_ptr();
  a.kept = static_cast<uint8_t*>(kept.mutable_data_ptr());
  a.parallel = device.parallel();
  Workspace workspace(x, SK_PICK(abs_topk_workspace)(a));
  a.workspace = workspace.data();
  check_status(op, SK_PICK(abs_topk)(a));
  return {y, kept};
}

Tensor abs_topk_backward(const Tensor& grad_in, const Tensor& kept_in) {
  constexpr const char* op = "abs_topk_backward";
  SK_CHECK(grad_in.dim() >= 1, op, ": grad must have at least one dimension");
  const Tensor grad = torch::stable::contiguous(grad_in), kept = torch::stable::contiguous(kept_in);
  check_device(op, {{"grad", &grad}, {"kept", &kept}});
  AbsTopkBackwardArgs a{};
  a.dtype = dtype_of(op, "grad", grad);
  a.rows = leading(grad);
  a.width = grad.size(grad.dim() - 1);
  SK_CHECK(kept.scalar_type() == ScalarType::Byte && kept.numel() == a.rows * ((a.width + 7) / 8), op,
           ": kept must hold one bit per element of grad, got shape ", shape_of(kept));

  const Device device(grad);
  Tensor out = torch::stable::new_empty(grad, with_last(grad, a.width));
  a.grad = grad.const_data_ptr();
  a.kept = static_cast<const uint8_t*>(kept.const_data_ptr());
  a.out = out.mutable_data_ptr();
  a.parallel = device.parallel();
  check_status(op, SK_PICK(abs_topk_backward)(a));
  return out;
}

}  // namespace
}  // namespace sk

SK_LIBRARY_IMPL(m) {
  m.impl("abs_topk", TORCH_BOX(&sk::abs_topk));
  m.impl("abs_topk_backward", TORCH_BOX(&sk::abs_topk_backward));
}
