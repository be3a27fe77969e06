// Binding of rms_norm and its backward pass: checks, allocation, registration. On a GPU torch's own is used.
#ifndef SK_CUDA
#include "sparsekern/rms_norm.h"

#include <tuple>

#include "common.h"

namespace sk {
namespace {

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x_in, const Tensor& gain, double eps) {
  constexpr const char* op = "rms_norm";
  SK_CHECK(x_in.dim() >= 1, op, ": x must have at least one dimension");
  const Tensor x = torch::stable::contiguous(x_in);
  RmsNormArgs a{};
  a.dtype = dtype_of(op, "x", x);
  a.rows = leading(x);
  a.width = x.size(x.dim() - 1);
  check_vector(op, "gain", gain, x.scalar_type(), a.width);
  SK_CHECK(eps >= 0, op, ": eps must not be negative, got ", eps);
  Tensor y = torch::stable::new_empty(x, with_last(x, a.width));
  Tensor rstd = torch::stable::new_empty(x, {a.rows});
  a.x = x.const_data_ptr();
  a.gain = gain.const_data_ptr();
  a.y = y.mutable_data_ptr();
  a.rstd = rstd.mutable_data_ptr();
  a.eps = eps;
  a.parallel = Device(x).parallel();
  check_status(op, SK_PICK(rms_norm)(a));
  return {y, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& gain,
                                             const Tensor& rstd, double /* eps: for the gradient of this op */) {
  constexpr const char* op = "rms_norm_backward";
  SK_CHECK(x_in.dim() >= 1, op, ": x must have at least one dimension");
  const Tensor grad = torch::stable::contiguous(grad_in), x = torch::stable::contiguous(x_in);
  RmsNormBackwardArgs a{};
  a.dtype = dtype_of(op, "x", x);
  a.rows = leading(x);
  a.width = x.size(x.dim() - 1);
  SK_CHECK(shape_of(grad) == shape_of(x) && grad.scalar_type() == x.scalar_type(), op,
           ": grad must have the shape and dtype of x, ", shape_of(x), ", got ", shape_of(grad));
  check_vector(op, "gain", gain, x.scalar_type(), a.width);
  check_vector(op, "rstd", rstd, x.scalar_type(), a.rows);
  Tensor dx = torch::stable::new_empty(x, with_last(x, a.width));
  Tensor dgain = torch::stable::new_empty(x, {a.width});
  a.grad = grad.const_data_ptr();
  a.x = x.const_data_ptr();
  a.gain = gain.const_data_ptr();
  a.rstd = rstd.const_data_ptr();
  a.dx = dx.mutable_data_ptr();
  a.dgain = dgain.mutable_data_ptr();
  a.parallel = Device(x).parallel();
  Workspace workspace(x, SK_PICK(rms_norm_backward_workspace)(a));
  a.workspace = workspace.data();
  check_status(op, SK_PICK(rms_norm_backward)(a));
  return {dx, dgain};
}

}  // namespace
}  // namespace sk

SK_LIBRARY_IMPL(m) {
  m.impl("rms_norm", TORCH_BOX(&sk::rms_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&sk::rms_norm_backward));
}
#endif
