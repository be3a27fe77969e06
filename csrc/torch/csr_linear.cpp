// Binding of csr_linear: checks, allocation, registration.
#include "sparsekern/csr_linear.h"

#include "common.h"

namespace sk {
namespace {

// y = x W^T + bias, or with transposed x W, for W given by its values in row order and both layouts of its pattern.
Tensor csr_linear_cpu(const Tensor& x_in, const Tensor& values, const Tensor& crow, const Tensor& col,
                      const Tensor& ccol, const Tensor& row, const Tensor& perm, const std::optional<Tensor>& bias,
                      bool transposed) {
  constexpr const char* op = "csr_linear";
  SK_CHECK(x_in.dim() >= 1, op, ": x must have at least one dimension");
  const Tensor x = torch::stable::contiguous(x_in);
  CsrLinearArgs a{};
  a.dtype = dtype_of(op, "x", x);
  a.w = transposed ? pattern_of(op, ccol, row, crow.numel() - 1) : pattern_of(op, crow, col, ccol.numel() - 1);
  check_vector(op, "values", values, x.scalar_type(), a.w.nnz);
  if (transposed) check_vector(op, "perm", perm, crow.scalar_type(), a.w.nnz);
  SK_CHECK(x.size(x.dim() - 1) == a.w.cols, op, ": x must have ", a.w.cols,
           " features in its last dimension, got shape ", shape_of(x));
  if (bias) check_vector(op, "bias", *bias, x.scalar_type(), a.w.rows);

  Tensor y = torch::stable::new_empty(x, with_last(x, a.w.rows));
  a.values = values.const_data_ptr();
  a.order = transposed ? perm.const_data_ptr() : nullptr;
  a.x = x.const_data_ptr();
  a.bias = bias ? bias->const_data_ptr() : nullptr;
  a.y = y.mutable_data_ptr();
  a.tokens = leading(x);
  a.parallel = cpu_parallel();
  Workspace workspace(x, SK_CPU_PICK(csr_linear_workspace)(a));
  a.workspace = workspace.data();
  SK_CPU_PICK(csr_linear)(a);
  return y;
}

}  // namespace
}  // namespace sk

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("csr_linear", TORCH_BOX(&sk::csr_linear_cpu)); }
