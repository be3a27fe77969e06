// Binding of topk_project_ and topk_select: checks, allocation, registration.
#include "sparsekern/topk_project.h"

#include <limits>
#include <tuple>

#include "common.h"

namespace sk {
namespace {

std::tuple<Tensor, Tensor, Tensor> select(const char* op, const Tensor& weight, int64_t k, int64_t floor, int64_t axis,
                                          bool zero_rest) {
  SK_CHECK(weight.dim() == 2 && weight.is_contiguous(), op, ": weight must be a contiguous matrix, got shape ",
           shape_of(weight));
  TopkProjectArgs a{};
  a.dtype = value_dtype_of(op, "weight", weight);
  a.rows = weight.size(0);
  a.cols = weight.size(1);
  check_sides(op, "weight", weight);
  a.k = k;
  a.floor = floor;
  a.axis = int32_t(axis);
  SK_CHECK(k >= 0 && k <= a.rows * a.cols, op, ": k must be between 0 and ", a.rows * a.cols, ", got ", k);
  SK_CHECK(axis == 0 || axis == 1, op, ": axis must be 0 (rows) or 1 (columns), got ", axis);
  const int64_t neurons = axis == 0 ? a.rows : a.cols;
  SK_CHECK(floor >= 0 && floor * neurons <= k, op, ": k must be at least floor * ", neurons, " = ", floor * neurons,
           ", got ", k);
  a.zero_rest = zero_rest;
  a.index = k > std::numeric_limits<int32_t>::max() ? IndexType::i64 : IndexType::i32;

  const ScalarType index = a.index == IndexType::i64 ? ScalarType::Long : ScalarType::Int;
  const Device device(weight);
  Tensor crow = torch::stable::new_empty(weight, {a.rows + 1}, index);
  Tensor col = torch::stable::new_empty(weight, {k}, index);
  Tensor nan_at = torch::stable::new_empty(weight, {}, ScalarType::Long);
  // Read only unless zero_rest, whose op declares the mutation.
  a.weight = const_cast<void*>(weight.const_data_ptr());
  a.crow = crow.mutable_data_ptr();
  a.col = col.mutable_data_ptr();
  a.nan_at = static_cast<int64_t*>(nan_at.mutable_data_ptr());
  a.parallel = device.parallel();
  Workspace workspace(weight, SK_PICK(topk_project_workspace)(a));
  a.workspace = workspace.data();
  check_status(op, SK_PICK(topk_project)(a));
#ifndef SK_CUDA  // reading it would wait for the GPU
  SK_CHECK(*a.nan_at == kNoNan, op, ": weight must not contain NaN, found one at [", *a.nan_at / a.cols, ", ",
           *a.nan_at % a.cols, "]");
#endif
  return {crow, col, nan_at};
}

std::tuple<Tensor, Tensor, Tensor> topk_project(Tensor weight, int64_t k, int64_t floor, int64_t axis) {
  return select("topk_project_", weight, k, floor, axis, true);
}

std::tuple<Tensor, Tensor, Tensor> topk_select(const Tensor& weight, int64_t k, int64_t floor, int64_t axis) {
  return select("topk_select", torch::stable::contiguous(weight), k, floor, axis, false);
}

}  // namespace
}  // namespace sk

SK_LIBRARY_IMPL(m) {
  m.impl("topk_project_", TORCH_BOX(&sk::topk_project));
  m.impl("topk_select", TORCH_BOX(&sk::topk_select));
}
