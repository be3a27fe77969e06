// Binding of csr_sddmm: checks, allocation, registration.
#include "sparsekern/csr_sddmm.h"

#include <tuple>

#include "common.h"

namespace sk {
namespace {

// The values, and where `sums` is not null the sums over the tokens of a.
Tensor sampled(const char* op, const Tensor& a_in, const Tensor& b_in, const Tensor& crow, const Tensor& col,
               const Tensor& ccol, Tensor* sums) {
  SK_CHECK(a_in.dim() >= 1 && b_in.dim() >= 1, op, ": a and b must have at least one dimension");
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  check_device(op,
               {{"a", &a_in}, {"b", &b_in}, {"crow_indices", &crow}, {"col_indices", &col}, {"ccol_indices", &ccol}});
  CsrSddmmArgs args{};
  args.dtype = dtype_of(op, "a", a);
  args.w = pattern_of(op, crow, col, ccol.numel() - 1);
  args.tokens = leading(a);
  SK_CHECK(b.scalar_type() == a.scalar_type(), op, ": a and b must have the same dtype, got ",
           torch::headeronly::toString(a.scalar_type()), " and ", torch::headeronly::toString(b.scalar_type()));
  SK_CHECK(a.size(a.dim() - 1) == args.w.rows, op, ": a must have ", args.w.rows,
           " features in its last dimension, got shape ", shape_of(a));
  SK_CHECK(b.size(b.dim() - 1) == args.w.cols, op, ": b must have ", args.w.cols,
           " features in its last dimension, got shape ", shape_of(b));
  SK_CHECK(same_leading(a, b), op, ": a and b must have the same leading dimensions, got shapes ", shape_of(a), " and ",
           shape_of(b));

  const Device device(a);
  Tensor out = torch::stable::new_empty(a, {args.w.nnz}, value_type(args.dtype));
  args.a = a.const_data_ptr();
  args.b = b.const_data_ptr();
  args.out = out.mutable_data_ptr();
  if (sums) {
    *sums = torch::stable::new_empty(a, {args.w.rows}, value_type(args.dtype));
    args.sums = sums->mutable_data_ptr();
  }
  args.parallel = device.parallel();
  Workspace workspace(a, SK_PICK(csr_sddmm_workspace)(args));
  args.workspace = workspace.data();
  check_status(op, SK_PICK(csr_sddmm)(args));
  return out;
}

// The whole pattern comes along for the gradient; row and perm are not needed here and may be empty.
Tensor csr_sddmm(const Tensor& a, const Tensor& b, const Tensor& crow, const Tensor& col, const Tensor& ccol,
                 const Tensor& /*row*/, const Tensor& /*perm*/) {
  return sampled("csr_sddmm", a, b, crow, col, ccol, nullptr);
}

#ifndef SK_CUDA
// On a GPU two ops do this.
std::tuple<Tensor, Tensor> csr_sddmm_sums(const Tensor& a, const Tensor& b, const Tensor& crow, const Tensor& col,
                                          const Tensor& ccol, const Tensor& /*row*/, const Tensor& /*perm*/) {
  Tensor sums;
  Tensor out = sampled("csr_sddmm_sums", a, b, crow, col, ccol, &sums);
  return {out, sums};
}
#endif

}  // namespace
}  // namespace sk

SK_LIBRARY_IMPL(m) {
  m.impl("csr_sddmm", TORCH_BOX(&sk::csr_sddmm));
#ifndef SK_CUDA
  m.impl("csr_sddmm_sums", TORCH_BOX(&sk::csr_sddmm_sums));
#endif
}
