// Selects exactly k positions of a dense matrix weight (rows, cols), writes them as a pattern and, if asked, zeroes the
// rest of the weight in place.
//
// First every row (axis 0) or column (axis 1) keeps its `floor` largest magnitudes, then the largest of what is left
// fill the budget (Gao et al. 2025, appendix A.2: min-alive). Equal magnitudes go to the lowest flat index (within a
// row or column: the lowest index), so zeros may be selected when fewer than k entries are nonzero.
// Requires floor * (rows or cols) <= k <= rows * cols. crow (rows + 1) and col (k) are written in full.
//
// On a GPU rows and cols must be below 2^31; rows * cols may be more.
//
// A NaN is an error. On a CPU the weight is then untouched; a GPU cannot stop in time, there NaN counts as the largest
// magnitude, so that it stays visible.
#pragma once
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {

constexpr int64_t kNoNan = INT64_MAX;

struct TopkProjectArgs {
  void* weight;
  void* crow;
  void* col;
  int64_t rows, cols, k, floor;
  int32_t axis;    // 0 or 1, meaningful when floor > 0
  bool zero_rest;  // false: the weight is only read
  DType dtype;
  IndexType index;
  int64_t* nan_at;  // out, beside the weight: flat index of the first NaN, or kNoNan
  void* workspace;  // topk_project_workspace bytes, 64-byte aligned
  Parallel parallel;
};

SK_KERNEL(int64_t topk_project_workspace(const TopkProjectArgs&))
SK_KERNEL(Status topk_project(const TopkProjectArgs&))

}  // namespace sk
