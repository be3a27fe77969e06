// Transposition of patterns: a stable counting sort of the positions by column.
//
// The positions of a pattern are cut into groups. A warp counts the columns of a group; summed over the groups the
// counts become the places where its positions go in each column, and the warp puts them there, 32 at a time, so that
// rows come out ascending within each column. Per position and with 4-byte indices this moves 8 bytes of columns, 12 of
// results and, in counters, no more than 5 x 16: next to nothing beside the dense matrix.
#include "transpose.h"

namespace sk {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kScanThreads = 1024;

constexpr int64_t kMaxGroups = 1024;

// How many groups: enough to fill a GPU, few enough for the counters (groups x cols) to stay near the size of the
// pattern.
int64_t groups_of(const CsrPattern& w) {
  const int64_t by_counters = ceil_div(4 * w.nnz, max_of(w.cols, 1));
  return max_of(1, min_of(min_of(kMaxGroups, ceil_div(w.nnz, kWarp)), by_counters));
}

template <class I>
struct Transposition {
  const I* crow;
  const I* col;
  I* ccol;
  I* row;
  I* perm;
  I* counts;  // (groups, cols)
  int64_t rows, cols, nnz, groups;
};

template <class I>
struct Transpositions {
  Transposition<I> at[kTable];
};

__device__ __forceinline__ int32_t add(int32_t* to, int32_t v) { return atomicAdd(to, v); }
__device__ __forceinline__ int64_t add(int64_t* to, int64_t v) {
  return int64_t(atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(v)));
}

// The row that owns position p: the last that begins at or before it.
template <class I>
__device__ __forceinline__ int64_t row_of(const Transposition<I>& t, I p) {
  int64_t low = 0, high = t.rows;  // crow[low] <= p < crow[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (t.crow[middle] <= p ? low : high) = middle;
  }
  return low;
}

template <class I>
__global__ void __launch_bounds__(kThreads)
    count_columns(__grid_constant__ const Work work, __grid_constant__ const Transpositions<I> all) {
  const Share share = work.share();
  const Transposition<I>& t = all.at[share.matrix];
  const int64_t group = share.block * kWarps + threadIdx.x / kWarp;
  if (group >= t.groups) return;
  I* const counts = t.counts + group * t.cols;
  const int64_t end = t.nnz * (group + 1) / t.groups;
  for (int64_t p = t.nnz * group / t.groups + threadIdx.x % kWarp; p < end; p += kWarp) add(counts + t.col[p], I(1));
}

// counts[g][c] becomes the positions of column c before group g, ccol[c] all of them. A block has 32 columns, and each
// of its warps a run of the groups.
template <class I>
__global__ void __launch_bounds__(kThreads)
    sum_groups(__grid_constant__ const Work work, __grid_constant__ const Transpositions<I> all) {
  __shared__ I sums[kWarps][kWarp];
  const Share share = work.share();
  const Transposition<I>& t = all.at[share.matrix];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t c = share.block * kWarp + lane;
  const int64_t first = t.groups * warp / kWarps, end = t.groups * (warp + 1) / kWarps;
  I sum = 0;
  if (c < t.cols) {
#pragma unroll 8
    for (int64_t g = first; g < end; ++g) sum += t.counts[g * t.cols + c];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (c >= t.cols) return;
  I before = 0;
  for (int w = 0; w < warp; ++w) before += sums[w][lane];
  for (int64_t g = first; g < end; ++g) {
    const I count = t.counts[g * t.cols + c];
    t.counts[g * t.cols + c] = before;
    before += count;
  }
  if (warp == kWarps - 1) t.ccol[c] = before;
}

// ccol: counts of the columns -> where each begins. One block per pattern, a run of columns per thread.
template <class I>
__global__ void __launch_bounds__(kScanThreads) scan_columns(__grid_constant__ const Transpositions<I> all) {
  const Transposition<I>& t = all.at[blockIdx.x];
  const int64_t run = ceil_div(t.cols, kScanThreads);
  const int64_t first = min_of(t.cols, threadIdx.x * run), end = min_of(t.cols, first + run);
  I sum = 0;
  for (int64_t c = first; c < end; ++c) sum += t.ccol[c];
  I before = block_exclusive_sum<kScanThreads>(sum);
  for (int64_t c = first; c < end; ++c) {
    const I count = t.ccol[c];
    t.ccol[c] = before;
    before += count;
  }
  if (threadIdx.x == 0) t.ccol[t.cols] = I(t.nnz);
}

// One warp per group, which alone touches the counts of its group.
template <class I>
__global__ void __launch_bounds__(kThreads)
    place_positions(__grid_constant__ const Work work, __grid_constant__ const Transpositions<I> all) {
  const Share share = work.share();
  const Transposition<I>& t = all.at[share.matrix];
  const int64_t group = share.block * kWarps + threadIdx.x / kWarp;
  if (group >= t.groups) return;
  const int lane = threadIdx.x % kWarp;
  I* const counts = t.counts + group * t.cols;
  const int64_t end = t.nnz * (group + 1) / t.groups;
  for (int64_t first = t.nnz * group / t.groups; first < end; first += kWarp) {
    const int64_t p = first + lane;
    const unsigned present = __ballot_sync(kAllLanes, p < end);
    if (p < end) {
      const I c = t.col[p];
      const unsigned same = __match_any_sync(present, c);
      const int before = __popc(same & ((1u << lane) - 1));
      I at = before == 0 ? add(counts + c, I(__popc(same))) : I(0);
      at = __shfl_sync(present, at, __ffs(int(same)) - 1) + t.ccol[c] + before;
      t.row[at] = I(row_of(t, I(p)));
      t.perm[at] = I(p);
    }
    __syncwarp();
  }
}

template <class I>
Status run(const CsrTransposeArgs* patterns, int count, void* workspace, const Parallel& parallel) {
  Transpositions<I> all{};
  I* counts = static_cast<I*>(workspace);
  for (int i = 0; i < count; ++i) {
    const CsrTransposeArgs& a = patterns[i];
    all.at[i] = {static_cast<const I*>(a.w.crow),
                 static_cast<const I*>(a.w.col),
                 static_cast<I*>(a.ccol),
                 static_cast<I*>(a.row),
                 static_cast<I*>(a.perm),
                 counts,
                 a.w.rows,
                 a.w.cols,
                 a.w.nnz,
                 groups_of(a.w)};
    counts += all.at[i].groups * a.w.cols;
  }
  const auto groups = [&](int i) { return ceil_div(all.at[i].groups, kWarps); };
  const auto columns = [&](int i) { return ceil_div(all.at[i].cols, kWarp); };
  SK_TRY(fill_zero(workspace, (counts - static_cast<I*>(workspace)) * int64_t(sizeof(I)), parallel));
  SK_TRY(launch_over(count_columns<I>, count, groups, kThreads, parallel, all));
  SK_TRY(launch_over(sum_groups<I>, count, columns, kThreads, parallel, all));
  SK_TRY(launch(scan_columns<I>, dim3(unsigned(count)), dim3(kScanThreads), 0, parallel, all));
  return launch_over(place_positions<I>, count, groups, kThreads, parallel, all);
}

}  // namespace

int64_t transpose_workspace(const CsrTransposeArgs* patterns, int count) {
  int64_t counters = 0;
  for (int i = 0; i < count; ++i) counters += groups_of(patterns[i].w) * patterns[i].w.cols;
  return counters * (count && patterns[0].w.index == IndexType::i64 ? 8 : 4);
}

Status transpose(const CsrTransposeArgs* patterns, int count, void* workspace, const Parallel& parallel) {
  if (count == 0) return kOk;
  return with_index(patterns[0].w.index, [&](auto index) {
    return run<typename decltype(index)::type>(patterns, count, workspace, parallel);
  });
}

}  // namespace cuda
}  // namespace sk
