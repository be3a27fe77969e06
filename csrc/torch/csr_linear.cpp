// Binding of csr_linear: checks, allocation, registration.
#include "sparsekern/csr_linear.h"

#include <tuple>

#include "common.h"

namespace sk {
namespace {

// y = x W^T + bias, or with transposed x W, for W given by its values in row order and both layouts of its pattern.
Tensor csr_linear(const Tensor& x_in, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& ccol,
                  const Tensor& row, const Tensor& perm, const std::optional<Tensor>& bias, bool transposed) {
  constexpr const char* op = "csr_linear";
  SK_CHECK(x_in.dim() >= 1, op, ": x must have at least one dimension");
  const Tensor x = torch::stable::contiguous(x_in);
  check_device(op, {{"x", &x},
                    {"values", &values},
                    {"crow_indices", &crow},
                    {"col_indices", &col},
                    {"ccol_indices", &ccol},
                    {"row_indices", &row},
                    {"perm", &perm}});
  CsrLinearArgs a{};
  a.dtype = dtype_of(op, "x", x);
  a.w = transposed ? pattern_of(op, ccol, row, crow.numel() - 1) : pattern_of(op, crow, col, ccol.numel() - 1);
  check_vector(op, "values", values, value_type(a.dtype), a.w.nnz);
  if (transposed) check_vector(op, "perm", perm, crow.scalar_type(), a.w.nnz);
  SK_CHECK(x.size(x.dim() - 1) == a.w.cols, op, ": x must have ", a.w.cols,
           " features in its last dimension, got shape ", shape_of(x));
  if (bias) {
    check_device(op, {{"x", &x}, {"bias", &*bias}});
    check_vector(op, "bias", *bias, value_type(a.dtype), a.w.rows);
  }

  const Device device(x);
  Tensor y = torch::stable::new_empty(x, with_last(x, a.w.rows));
  a.values = values.const_data_ptr();
  a.order = transposed ? perm.const_data_ptr() : nullptr;
  a.x = x.const_data_ptr();
  a.bias = bias ? bias->const_data_ptr() : nullptr;
  a.y = y.mutable_data_ptr();
  a.tokens = leading(x);
  a.parallel = device.parallel();
  Workspace workspace(x, SK_PICK(csr_linear_workspace)(a));
  a.workspace = workspace.data();
  check_status(op, SK_PICK(csr_linear)(a));
  return y;
}

// dx and dvalues of y = x W^T.
std::tuple<Tensor, Tensor> csr_linear_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& values,
                                               const Tensor& crow, const Tensor& col, const Tensor& ccol,
                                               const Tensor& row, const Tensor& perm) {
  constexpr const char* op = "csr_linear_backward";
  SK_CHECK(grad_in.dim() >= 1 && x_in.dim() >= 1, op, ": grad and x must have at least one dimension");
  const Tensor grad = torch::stable::contiguous(grad_in), x = torch::stable::contiguous(x_in);
  check_device(op, {{"grad", &grad},
                    {"x", &x},
                    {"values", &values},
                    {"crow_indices", &crow},
                    {"col_indices", &col},
                    {"ccol_indices", &ccol},
                    {"row_indices", &row},
                    {"perm", &perm}});
  CsrLinearBackwardArgs a{};
  a.dtype = dtype_of(op, "grad", grad);
  a.wt = pattern_of(op, ccol, row, crow.numel() - 1);
  a.tokens = leading(grad);
  check_vector(op, "values", values, value_type(a.dtype), a.wt.nnz);
  check_vector(op, "perm", perm, crow.scalar_type(), a.wt.nnz);
  SK_CHECK(x.scalar_type() == grad.scalar_type(), op, ": grad and x must have the same dtype, got ",
           torch::headeronly::toString(grad.scalar_type()), " and ", torch::headeronly::toString(x.scalar_type()));
  SK_CHECK(grad.size(grad.dim() - 1) == a.wt.cols, op, ": grad must have ", a.wt.cols,
           " features in its last dimension, got shape ", shape_of(grad));
  SK_CHECK(x.size(x.dim() - 1) == a.wt.rows && leading(x) == a.tokens, op, ": x must have shape (", a.tokens, ", ",
           a.wt.rows, ") up to its leading dimensions, got ", shape_of(x));

  const Device device(grad);
  Tensor dx = torch::stable::new_empty(x, with_last(x, a.wt.rows));
  Tensor dvalues = torch::stable::new_empty(values, {a.wt.nnz});
  a.perm = perm.const_data_ptr();
  a.values = values.const_data_ptr();
  a.grad = grad.const_data_ptr();
  a.x = x.const_data_ptr();
  a.dx = dx.mutable_data_ptr();
  a.dvalues = dvalues.mutable_data_ptr();
  a.parallel = device.parallel();
  Workspace workspace(grad, SK_PICK(csr_linear_backward_workspace)(a));
  a.workspace = workspace.data();
  check_status(op, SK_PICK(csr_linear_backward)(a));
  return {dx, dvalues};
}

}  // namespace
}  // namespace sk

SK_LIBRARY_IMPL(m) {
  m.impl("csr_linear", TORCH_BOX(&sk::csr_linear));
  m.impl("csr_linear_backward", TORCH_BOX(&sk::csr_linear_backward));
}
