// topk_project: a selection from one matrix whose weights are only read in the first pass. It moves 16 bytes per
// float32 parameter (20 with a floor), see select.h.
#include "sparsekern/topk_project.h"

#include "select.h"

namespace sk {
namespace cuda {
namespace {

Selection selection_of(const TopkProjectArgs& a) {
  Selection s{};
  SelectMatrix& m = s.table.at[0];
  m.weight = a.weight;
  m.crow = a.crow;
  m.col = a.col;
  m.nan_at = a.nan_at;
  m.rows = a.rows;
  m.cols = a.cols;
  m.k = a.k;
  m.floor = a.floor;
  m.axis = a.axis;
  s.count = 1;
  s.dtype = a.dtype;
  s.index = a.index;
  s.zero_rest = a.zero_rest;
  s.parallel = a.parallel;
  return s;
}

}  // namespace

int64_t topk_project_workspace(const TopkProjectArgs& a) {
  Selection s = selection_of(a);
  return place_workspace(s, nullptr);
}

Status topk_project(const TopkProjectArgs& a) {
  Selection s = selection_of(a);
  place_workspace(s, a.workspace);
  SK_TRY(begin_selection(s));
  SK_TRY(with_value_dtype(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return run_first_pass<T>(s, ReadWeights<T>());
  }));
  return finish_selection(s);
}

}  // namespace cuda
}  // namespace sk
