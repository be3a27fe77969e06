// Binding of bsr_sddmm: checks, allocation, registration. On a GPU it is written in Triton.
#ifndef SK_CUDA
#include "sparsekern/bsr_sddmm.h"

#include "blocks.h"

namespace sk {
namespace {

// The whole pattern comes along for the gradient; row and perm are not needed here.
Tensor bsr_sddmm(const Tensor& a_in, const Tensor& b_in, const Tensor& crow, const Tensor& col, const Tensor& ccol,
                 const Tensor& /*row*/, const Tensor& /*perm*/, int64_t block_rows, int64_t block_cols) {
  constexpr const char* op = "bsr_sddmm";
  SK_CHECK(a_in.dim() >= 1 && b_in.dim() >= 1, op, ": a and b must have at least one dimension");
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  check_device(op, {{"a", &a}, {"b", &b}, {"crow_indices", &crow}, {"col_indices", &col}, {"ccol_indices", &ccol}});
  BsrSddmmArgs args{};
  args.dtype = dtype_of(op, "a", a);
  args.w = pattern_of(op, crow, col, ccol.numel() - 1);
  args.block_rows = block_rows;
  args.block_cols = block_cols;
  args.tokens = leading(a);
  args.rows = a.size(a.dim() - 1);
  args.cols = b.size(b.dim() - 1);
  SK_CHECK(b.scalar_type() == a.scalar_type(), op, ": a and b must have the same dtype, got ",
           torch::headeronly::toString(a.scalar_type()), " and ", torch::headeronly::toString(b.scalar_type()));
  check_side(op, "block_rows", block_rows);
  check_side(op, "block_cols", block_cols);
  check_grid(op, "features of a", args.rows, args.w.rows, block_rows);
  check_grid(op, "features of b", args.cols, args.w.cols, block_cols);
  SK_CHECK(same_leading(a, b), op, ": a and b must have the same leading dimensions, got shapes ", shape_of(a), " and ",
           shape_of(b));

  const Device device(a);
  Tensor out = torch::stable::new_empty(a, {args.w.nnz, block_rows, block_cols}, value_type(args.dtype));
  args.a = a.const_data_ptr();
  args.b = b.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.parallel = device.parallel();
  Workspace workspace(a, SK_PICK(bsr_sddmm_workspace)(args));
  args.workspace = workspace.data();
  check_status(op, SK_PICK(bsr_sddmm)(args));
  return out;
}

}  // namespace
}  // namespace sk

SK_LIBRARY_IMPL(m) { m.impl("bsr_sddmm", TORCH_BOX(&sk::bsr_sddmm)); }
#endif
