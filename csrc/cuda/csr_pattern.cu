// Operations on patterns: transposition, gather from and scatter to a dense matrix.
#include "sparsekern/csr_pattern.h"

#include "device.h"

namespace sk {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// ---- transposition: a counting sort by column
//
// The rows are cut into groups. One warp counts the columns of a group, the counts become the places where the entries
// of the group go in each column, and the warp puts them there row by row: the entries of one row lie in different
// columns, so its lanes do not meet, and rows come out ascending within each column.

constexpr int64_t kMaxGroups = 1024;

// How many groups: enough to fill a GPU, few enough for the counters (groups x cols) to stay near the size of the
// input.
inline int64_t groups_of(const CsrPattern& w) {
  const int64_t by_entries = ceil_div(4 * w.nnz, max_of(w.cols, 1));
  return max_of(1, min_of(min_of(kMaxGroups, w.rows), by_entries));
}

template <class I>
struct Transposition {
  const I* crow;
  const I* col;
  I* ccol;
  I* row;
  I* perm;
  I* counts;  // (groups, cols)
  int64_t rows, cols, groups;

  __device__ int64_t first_row(int64_t group) const { return rows * group / groups; }
};

// One warp per group; with `place` the counts are already places.
template <class I, bool place>
__global__ void walk_groups(Transposition<I> t) {
  const int lane = threadIdx.x % kWarp;
  const int64_t group = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (group >= t.groups) return;
  I* const counts = t.counts + group * t.cols;
  for (int64_t r = t.first_row(group); r < t.first_row(group + 1); ++r) {
    for (I p = t.crow[r] + lane; p < t.crow[r + 1]; p += kWarp) {
      const I at = counts[t.col[p]]++;
      if constexpr (place) {
        t.row[at] = I(r);
        t.perm[at] = p;
      }
    }
    __syncwarp();
  }
}

// Sums the counts of a column over the groups: counts[g][c] becomes the entries of column c before group g, ccol[c] all
// of them.
template <class I>
__global__ void sum_groups(Transposition<I> t) {
  const int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= t.cols) return;
  I sum = 0;
  for (int64_t g = 0; g < t.groups; ++g) {
    const I count = t.counts[g * t.cols + c];
    t.counts[g * t.cols + c] = sum;
    sum += count;
  }
  t.ccol[c] = sum;
}

// ccol: counts of the columns -> where each begins. One block.
template <class I>
__global__ void scan_columns(Transposition<I> t) {
  __shared__ I warp_sums[kThreads / kWarp];
  __shared__ I carry;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (threadIdx.x == 0) carry = 0;
  for (int64_t first = 0; first <= t.cols; first += kThreads) {
    const int64_t c = first + threadIdx.x;
    const I count = c < t.cols ? t.ccol[c] : 0;
    const I before = warp_exclusive_sum(count);
    if (lane == kWarp - 1) warp_sums[warp] = before + count;
    __syncthreads();
    I start = carry + before;
    for (int w = 0; w < warp; ++w) start += warp_sums[w];
    if (c <= t.cols) t.ccol[c] = start;
    __syncthreads();
    if (threadIdx.x == kThreads - 1) carry = start + count;
    __syncthreads();
  }
}

template <class I>
__global__ void add_column_starts(Transposition<I> t) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < t.groups * t.cols) t.counts[i] += t.ccol[i % t.cols];
}

template <class I>
Status transpose(const CsrTransposeArgs& a) {
  const Transposition<I> t{static_cast<const I*>(a.w.crow),
                           static_cast<const I*>(a.w.col),
                           static_cast<I*>(a.ccol),
                           static_cast<I*>(a.row),
                           static_cast<I*>(a.perm),
                           static_cast<I*>(a.workspace),
                           a.w.rows,
                           a.w.cols,
                           groups_of(a.w)};
  SK_TRY(fill_zero(t.counts, t.groups * t.cols * int64_t(sizeof(I)), a.parallel));
  SK_TRY(launch(walk_groups<I, false>, blocks_for(t.groups * kWarp, kThreads), kThreads, 0, a.parallel, t));
  SK_TRY(launch(sum_groups<I>, blocks_for(t.cols, kThreads), kThreads, 0, a.parallel, t));
  SK_TRY(launch(scan_columns<I>, 1, kThreads, 0, a.parallel, t));
  SK_TRY(launch(add_column_starts<I>, blocks_for(t.groups * t.cols, kThreads), kThreads, 0, a.parallel, t));
  return launch(walk_groups<I, true>, blocks_for(t.groups * kWarp, kThreads), kThreads, 0, a.parallel, t);
}

// ---- gather and scatter: one warp per row

template <class T, class I>
__global__ void move_values(const I* __restrict__ crow, const I* __restrict__ col, T* dense, T* values, int64_t rows,
                            int64_t cols, bool to_values) {
  const int lane = threadIdx.x % kWarp;
  const int64_t r = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (r >= rows) return;
  for (I p = crow[r] + lane; p < crow[r + 1]; p += kWarp) {
    T* const at = dense + r * cols + col[p];
    if (to_values)
      values[p] = *at;
    else
      *at = values[p];
  }
}

}  // namespace

int64_t csr_transpose_workspace(const CsrTransposeArgs& a) {
  return groups_of(a.w) * a.w.cols * (a.w.index == IndexType::i64 ? 8 : 4);
}

Status csr_transpose(const CsrTransposeArgs& a) {
  return with_index(a.w.index, [&](auto index) { return transpose<typename decltype(index)::type>(a); });
}

Status csr_dense(const CsrDenseArgs& a) {
  return with_value_dtype(a.dtype, [&](auto tag) {
    return with_index(a.w.index, [&](auto index) {
      using T = typename decltype(tag)::type;
      using I = typename decltype(index)::type;
      return launch(move_values<T, I>, blocks_for(a.w.rows * kWarp, kThreads), kThreads, 0, a.parallel,
                    static_cast<const I*>(a.w.crow), static_cast<const I*>(a.w.col), static_cast<T*>(a.dense),
                    static_cast<T*>(a.values), a.w.rows, a.w.cols, a.to_values);
    });
  });
}

}  // namespace cuda
}  // namespace sk
