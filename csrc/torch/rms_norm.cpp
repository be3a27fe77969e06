// Binding of rms_norm and its backward pass: checks, allocation, registration. On a GPU torch's own is used.
#ifndef SK_CUDA
#include "sparsekern/rms_norm.h"

#include <tuple>

#include "common.h"

namespace sk {
namespace {

// What forward and backward pass share, from a contiguous x.
template <class Args>
Args args_of(const char* op, const Tensor& x, const Tensor& gain) {
  SK_CHECK(x.dim() >= 1, op, ": x must have at least one dimension");
  Args a{};
  a.dtype = dtype_of(op, "x", x);
  a.rows = leading(x);
  a.width = x.size(x.dim() - 1);
  check_vector(op, "gain", gain, value_type(a.dtype), a.width);
  a.x = x.const_data_ptr();
  a.gain = gain.const_data_ptr();
  a.parallel = Device(x).parallel();
  return a;
}

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x_in, const Tensor& gain, double eps, bool narrow) {
  constexpr const char* op = "rms_norm";
  const Tensor x = torch::stable::contiguous(x_in);
  RmsNormArgs a = args_of<RmsNormArgs>(op, x, gain);
  SK_CHECK(eps >= 0, op, ": eps must not be negative, got ", eps);
  SK_CHECK(!narrow || a.dtype == DType::f32, op, ": x must be float32 for a result in bfloat16, got ",
           torch::headeronly::toString(x.scalar_type()));
  a.y_dtype = narrow ? DType::bf16 : a.dtype;
  Tensor y = torch::stable::new_empty(x, with_last(x, a.width), narrow ? ScalarType::BFloat16 : x.scalar_type());
  Tensor rstd = torch::stable::new_empty(x, {a.rows}, value_type(a.dtype));
  a.y = y.mutable_data_ptr();
  a.rstd = rstd.mutable_data_ptr();
  a.eps = eps;
  check_status(op, SK_PICK(rms_norm)(a));
  return {y, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& gain,
                                             const Tensor& rstd, double /* eps: for the gradient of this op */) {
  constexpr const char* op = "rms_norm_backward";
  const Tensor grad = torch::stable::contiguous(grad_in), x = torch::stable::contiguous(x_in);
  RmsNormBackwardArgs a = args_of<RmsNormBackwardArgs>(op, x, gain);
  a.y_dtype = dtype_of(op, "grad", grad);
  SK_CHECK(shape_of(grad) == shape_of(x), op, ": grad must have the shape of x, ", shape_of(x), ", got ",
           shape_of(grad));
  SK_CHECK(a.y_dtype == a.dtype || (a.dtype == DType::f32 && a.y_dtype == DType::bf16), op,
           ": grad must have the dtype of x, or be bfloat16 where that is float32, got ",
           torch::headeronly::toString(grad.scalar_type()), " for ", torch::headeronly::toString(x.scalar_type()));
  check_vector(op, "rstd", rstd, value_type(a.dtype), a.rows);
  Tensor dx = torch::stable::new_empty(x, with_last(x, a.width));
  Tensor dgain = torch::stable::new_empty(gain, {a.width});
  a.grad = grad.const_data_ptr();
  a.rstd = rstd.const_data_ptr();
  a.dx = dx.mutable_data_ptr();
  a.dgain = dgain.mutable_data_ptr();
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
