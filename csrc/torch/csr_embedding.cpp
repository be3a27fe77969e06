// Binding of csr_embedding and its backward pass: checks, allocation, registration.
#include "sparsekern/csr_embedding.h"

#include "common.h"

namespace sk {
namespace {

// Contiguous int64 ids, all of them rows of the table.
Tensor checked_ids(const char* op, const Tensor& ids_in, [[maybe_unused]] int64_t rows) {
  SK_CHECK(ids_in.scalar_type() == ScalarType::Long, op, ": ids must be int64, got scalar type ",
           torch::headeronly::toString(ids_in.scalar_type()));
  const Tensor ids = torch::stable::contiguous(ids_in);
#ifndef SK_CUDA  // a GPU checks them itself
  const int64_t* id = static_cast<const int64_t*>(ids.const_data_ptr());
  for (int64_t t = 0; t < ids.numel(); ++t)
    SK_CHECK(id[t] >= 0 && id[t] < rows, op, ": ids must be between 0 and ", rows - 1, ", got ", id[t]);
#endif
  return ids;
}

Tensor csr_embedding(const Tensor& ids_in, const Tensor& values, const Tensor& crow, const Tensor& col, int64_t cols) {
  constexpr const char* op = "csr_embedding";
  check_device(op, {{"values", &values}, {"ids", &ids_in}, {"crow_indices", &crow}, {"col_indices", &col}});
  CsrEmbeddingArgs a{};
  a.dtype = value_dtype_of(op, "values", values);
  a.table = pattern_of(op, crow, col, cols);
  check_vector(op, "values", values, values.scalar_type(), a.table.nnz);
  const Tensor ids = checked_ids(op, ids_in, a.table.rows);
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < ids.dim(); ++d) sizes.push_back(ids.size(d));
  sizes.push_back(cols);

  const Device device(values);
  Tensor out = torch::stable::new_empty(values, sizes);
  a.ids = static_cast<const int64_t*>(ids.const_data_ptr());
  a.values = values.const_data_ptr();
  a.out = out.mutable_data_ptr();
  a.tokens = ids.numel();
  a.parallel = device.parallel();
  check_status(op, SK_PICK(csr_embedding)(a));
  return out;
}

Tensor csr_embedding_backward(const Tensor& grad_in, const Tensor& ids_in, const Tensor& crow, const Tensor& col) {
  constexpr const char* op = "csr_embedding_backward";
  SK_CHECK(grad_in.dim() >= 1, op, ": grad must have at least one dimension");
  const Tensor grad = torch::stable::contiguous(grad_in);
  check_device(op, {{"grad", &grad}, {"ids", &ids_in}, {"crow_indices", &crow}, {"col_indices", &col}});
  CsrEmbeddingBackwardArgs a{};
  a.dtype = value_dtype_of(op, "grad", grad);
  a.table = pattern_of(op, crow, col, grad.size(grad.dim() - 1));
  const Tensor ids = checked_ids(op, ids_in, a.table.rows);
  a.tokens = ids.numel();
  SK_CHECK(leading(grad) == a.tokens, op, ": grad must have one row per id (", a.tokens, "), got shape ",
           shape_of(grad));

  const Device device(grad);
  Tensor out = torch::stable::new_empty(grad, {a.table.nnz});
  a.ids = static_cast<const int64_t*>(ids.const_data_ptr());
  a.grad = grad.const_data_ptr();
  a.out = out.mutable_data_ptr();
  a.parallel = device.parallel();
  Workspace workspace(grad, SK_PICK(csr_embedding_backward_workspace)(a));
  a.workspace = workspace.data();
  check_status(op, SK_PICK(csr_embedding_backward)(a));
  return out;
}

}  // namespace
}  // namespace sk

SK_LIBRARY_IMPL(m) {
  m.impl("csr_embedding", TORCH_BOX(&sk::csr_embedding));
  m.impl("csr_embedding_backward", TORCH_BOX(&sk::csr_embedding_backward));
}
