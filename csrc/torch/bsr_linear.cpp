// Binding of bsr_linear: checks, allocation, registration. On a GPU it is written in Triton.
#ifndef SK_CUDA
#include "sparsekern/bsr_linear.h"

#include "blocks.h"

namespace sk {
namespace {

// y = x W^T + bias, or with transposed x W, with `out` features.
Tensor bsr_linear(const Tensor& x_in, const Tensor& values_in, const Tensor& crow, const Tensor& col,
                  const Tensor& ccol, const Tensor& row, const Tensor& perm, const std::optional<Tensor>& bias,
                  int64_t out, bool transposed) {
  constexpr const char* op = "bsr_linear";
  SK_CHECK(x_in.dim() >= 1, op, ": x must have at least one dimension");
  const Tensor x = torch::stable::contiguous(x_in), values = torch::stable::contiguous(values_in);
  check_device(op, {{"x", &x},
                    {"values", &values},
                    {"crow_indices", &crow},
                    {"col_indices", &col},
                    {"ccol_indices", &ccol},
                    {"row_indices", &row},
                    {"perm", &perm}});
  BsrLinearArgs a{};
  a.dtype = dtype_of(op, "x", x);
  a.transposed = transposed;
  a.w = transposed ? pattern_of(op, ccol, row, crow.numel() - 1) : pattern_of(op, crow, col, ccol.numel() - 1);
  if (transposed) check_vector(op, "perm", perm, crow.scalar_type(), a.w.nnz);
  check_blocks(op, "values", values, value_type(a.dtype), a.w.nnz);
  a.block_rows = values.size(1);
  a.block_cols = values.size(2);
  a.in = x.size(x.dim() - 1);
  a.out = out;
  check_grid(op, "features of x", a.in, a.w.cols, transposed ? a.block_rows : a.block_cols);
  check_grid(op, "features of y", a.out, a.w.rows, transposed ? a.block_cols : a.block_rows);
  if (bias) {
    check_device(op, {{"x", &x}, {"bias", &*bias}});
    check_vector(op, "bias", *bias, value_type(a.dtype), out);
  }

  const Device device(x);
  Tensor y = torch::stable::new_empty(x, with_last(x, out));
  a.values = values.const_data_ptr();
  a.order = transposed ? perm.const_data_ptr() : nullptr;
  a.x = x.const_data_ptr();
  a.bias = bias ? bias->const_data_ptr() : nullptr;
  a.y = y.mutable_data_ptr();
  a.tokens = leading(x);
  a.parallel = device.parallel();
  Workspace workspace(x, SK_PICK(bsr_linear_workspace)(a));
  a.workspace = workspace.data();
  check_status(op, SK_PICK(bsr_linear)(a));
  return y;
}

}  // namespace
}  // namespace sk

SK_LIBRARY_IMPL(m) { m.impl("bsr_linear", TORCH_BOX(&sk::bsr_linear)); }
#endif
