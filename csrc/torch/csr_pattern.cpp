// Bindings of the operations on patterns: validation, transposition, gather and scatter.
#include "sparsekern/csr_pattern.h"

#include <tuple>

#include "common.h"

namespace sk {
namespace {

#ifndef SK_CUDA  // a pattern is checked once, on the CPU
void csr_validate(const Tensor& crow, const Tensor& col, int64_t cols) {
  constexpr const char* op = "CSR";
  const CsrPattern w = pattern_of(op, crow, col, cols);
  int64_t at = 0;
  const PatternFault fault = SK_PICK(csr_validate)(w, &at);
  SK_CHECK(fault != kCrowStart, op, ": crow_indices must begin with 0");
  SK_CHECK(fault != kCrowDecreasing, op, ": crow_indices must not decrease, but does after row ", at);
  SK_CHECK(fault != kCrowEnd, op, ": the last of crow_indices must be the number of col_indices, ", w.nnz);
  SK_CHECK(fault != kColRange, op, ": col_indices must be between 0 and ", cols - 1, ", but are not at position ", at);
  SK_CHECK(fault != kColOrder, op, ": col_indices must ascend within a row without duplicates, but do not at position ",
           at);
}
#endif

std::tuple<Tensor, Tensor, Tensor> csr_transpose(const Tensor& crow, const Tensor& col, int64_t cols) {
  constexpr const char* op = "csr_transpose";
  check_device(op, {{"crow_indices", &crow}, {"col_indices", &col}});
  CsrTransposeArgs a{};
  a.w = pattern_of(op, crow, col, cols);
  const Device device(crow);
  Tensor ccol = torch::stable::new_empty(crow, {cols + 1});
  Tensor row = torch::stable::new_empty(crow, {a.w.nnz}), perm = torch::stable::new_empty(crow, {a.w.nnz});
  a.ccol = ccol.mutable_data_ptr();
  a.row = row.mutable_data_ptr();
  a.perm = perm.mutable_data_ptr();
  a.parallel = device.parallel();
  Workspace workspace(crow, SK_PICK(csr_transpose_workspace)(a));
  a.workspace = workspace.data();
  check_status(op, SK_PICK(csr_transpose)(a));
  return {ccol, row, perm};
}

Tensor csr_gather(const Tensor& dense_in, const Tensor& crow, const Tensor& col) {
  constexpr const char* op = "csr_gather";
  const Tensor dense = torch::stable::contiguous(dense_in);
  check_device(op, {{"dense", &dense}, {"crow_indices", &crow}, {"col_indices", &col}});
  CsrDenseArgs a{};
  a.dtype = value_dtype_of(op, "dense", dense);
  SK_CHECK(dense.dim() == 2 && dense.size(0) == crow.numel() - 1, op, ": dense must be a matrix of ", crow.numel() - 1,
           " rows, got shape ", shape_of(dense));
  a.w = pattern_of(op, crow, col, dense.size(1));
  const Device device(dense);
  Tensor values = torch::stable::new_empty(dense, {a.w.nnz});
  a.dense = const_cast<void*>(dense.const_data_ptr());  // only read, because to_values
  a.values = values.mutable_data_ptr();
  a.to_values = true;
  a.parallel = device.parallel();
  check_status(op, SK_PICK(csr_dense)(a));
  return values;
}

Tensor csr_scatter(const Tensor& values, const Tensor& crow, const Tensor& col, int64_t cols) {
  constexpr const char* op = "csr_scatter";
  check_device(op, {{"values", &values}, {"crow_indices", &crow}, {"col_indices", &col}});
  CsrDenseArgs a{};
  a.dtype = value_dtype_of(op, "values", values);
  a.w = pattern_of(op, crow, col, cols);
  check_vector(op, "values", values, values.scalar_type(), a.w.nnz);
  const Device device(values);
  Tensor dense = torch::stable::new_zeros(values, {a.w.rows, cols});
  a.dense = dense.mutable_data_ptr();
  a.values = const_cast<void*>(values.const_data_ptr());  // only read, because not to_values
  a.to_values = false;
  a.parallel = device.parallel();
  check_status(op, SK_PICK(csr_dense)(a));
  return dense;
}

}  // namespace
}  // namespace sk

SK_LIBRARY_IMPL(m) {
#ifndef SK_CUDA
  m.impl("csr_validate", TORCH_BOX(&sk::csr_validate));
#endif
  m.impl("csr_transpose", TORCH_BOX(&sk::csr_transpose));
  m.impl("csr_gather", TORCH_BOX(&sk::csr_gather));
  m.impl("csr_scatter", TORCH_BOX(&sk::csr_scatter));
}
