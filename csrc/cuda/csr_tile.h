// The kernel behind csr_linear, csr_sddmm and csr_linear_backward.
//
// A block holds a tile of x in shared memory, feature-major: each feature is a segment of 64 bytes, one entry for each
// of 64 / sizeof(T) tokens. A group of four lanes takes a row of W and walks over its nonzeros; every nonzero is one
// 16-byte load per lane from the segment of its column, and each lane keeps the sums of its own tokens in registers.
// Rows of W are read once per tile: four nonzeros at a time, one by each lane of the group, handed round by shuffles.
//
// Eight nonzeros (one per group of a warp) with all tokens of the tile cost 4 shared-memory wavefronts (5 to 6 with
// bank conflicts, where two segments of a phase have the same parity) and 2 shuffles: for 16-bit x about 40
// multiply-adds per clock and multiprocessor, some 9e12 per second on an H100.
//
// Where the segments of all features do not fit, panels of features are loaded one after another, while the sums of
// more rows (kRows per group) wait in registers. Every sum is taken in the order of the row's positions, so that a
// token's result depends neither on the other tokens nor on panels, tiles or devices.
#pragma once
#include "device.h"
#include "tile_plan.h"

namespace sk {
namespace cuda {

template <class T, class I>
struct TileArgs {
  const I* crow;         // rows of W: its nonzeros are summed over
  const I* col;          // features of x
  const I* order;        // or null: values are read at order[p], sampled ones written there
  const I* splits;       // (panels - 1, rows): where a row enters the second and later panels
  const Acc<T>* values;  // (nnz)
  const T* x;            // (tokens, cols)
  const Acc<T>* bias;    // (rows), or null
  T* y;                  // (tokens, rows): linear
  const T* other;        // (tokens, rows): sampled
  Acc<T>* partial;       // (slices, nnz): sampled
  int64_t rows, cols, nnz, tokens;
  TilePlan plan;
};

constexpr int kGroup = 4;       // lanes that share a row
constexpr int kBlockRows = 16;  // rows that a warp finishes together: 32 bytes of each token of 16-bit y

template <class T>
struct TileShape {
  static constexpr int kTokens = kSegmentBytes / sizeof(T);  // of a tile
  static constexpr int kLane = 16 / sizeof(T);               // tokens of a lane
  static constexpr int kRun = 32 / sizeof(T);                // neighbouring features (or rows) a lane moves at a time
};

// Copies 16 neighbouring features (or rows) of every token of a tile between row-major global memory, `stride` apart,
// and segments in shared memory; one warp. `valid` of the 16 exist.
template <class T>
__device__ __forceinline__ void gather_segments(const T* from, int64_t stride, int64_t valid, int64_t tokens,
                                                bool aligned, T* segments) {
  using Shape = TileShape<T>;
  const int lane = threadIdx.x % kWarp, token = lane % Shape::kTokens, first = lane / Shape::kTokens * Shape::kRun;
  T run[Shape::kRun];
  const T* const source = from + token * stride + first;
  if (token < tokens && aligned && first + Shape::kRun <= valid) {
    for (int v = 0; v < 2; ++v) {
      const Vector<T> loaded = load_vector(source + v * Shape::kLane);
#pragma unroll
      for (int i = 0; i < Shape::kLane; ++i) run[v * Shape::kLane + i] = loaded.at[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < Shape::kRun; ++i)
      run[i] = token < tokens && first + i < valid ? source[i] : from_acc<T>(Acc<T>(0));
  }
#pragma unroll
  for (int i = 0; i < Shape::kRun; ++i)
    if (first + i < valid) segments[(first + i) * Shape::kTokens + token] = run[i];
}

template <class T>
__device__ __forceinline__ void scatter_segments(const T* segments, T* to, int64_t stride, int64_t valid,
                                                 int64_t tokens, bool aligned) {
  using Shape = TileShape<T>;
  const int lane = threadIdx.x % kWarp, token = lane % Shape::kTokens, first = lane / Shape::kTokens * Shape::kRun;
  if (token >= tokens) return;
  T* const target = to + token * stride + first;
  if (aligned && first + Shape::kRun <= valid) {
    for (int v = 0; v < 2; ++v) {
      Vector<T> run;
#pragma unroll
      for (int i = 0; i < Shape::kLane; ++i)
        run.at[i] = segments[(first + v * Shape::kLane + i) * Shape::kTokens + token];
      store_vector(target + v * Shape::kLane, run);
    }
  } else {
    for (int i = 0; i < Shape::kRun && first + i < valid; ++i)
      target[i] = segments[(first + i) * Shape::kTokens + token];
  }
}

// Rows of `width` entries can be moved 16 bytes at a time.
template <class T>
__device__ __forceinline__ bool is_aligned(const T* p, int64_t width) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && width * int64_t(sizeof(T)) % 16 == 0;
}

// One entry per lane of a group -> lane i holds the sum of the i-th over the group; 3 shuffles.
template <class A>
__device__ __forceinline__ A transposed_sum(const A (&v)[kGroup]) {
  const int lane = threadIdx.x % kGroup;
  const bool high = lane & 2, odd = lane & 1;
  const A even_half = (high ? v[2] : v[0]) + __shfl_xor_sync(kAllLanes, high ? v[0] : v[2], 2);
  const A odd_half = (high ? v[3] : v[1]) + __shfl_xor_sync(kAllLanes, high ? v[1] : v[3], 2);
  return (odd ? odd_half : even_half) + __shfl_xor_sync(kAllLanes, odd ? even_half : odd_half, 1);
}

// Adds the nonzeros begin .. end - 1 of the group's row to `sums` and, sampled, their dots with `other` to `partial`.
template <class T, class I, bool kLinear, bool kSample>
__device__ __forceinline__ void walk_row(const TileArgs<T, I>& a, const T* tile, int64_t panel_begin, I begin, I end,
                                         const Acc<T> (&other)[TileShape<T>::kLane], Acc<T>* partial, bool first_tile,
                                         Acc<T> (&sums)[TileShape<T>::kLane]) {
  using A = Acc<T>;
  using Shape = TileShape<T>;
  const int sub = threadIdx.x % kGroup;
  const T* const mine = tile + sub * Shape::kLane;
  int longest = int(end - begin);  // of the rows of this warp: its lanes stay together for the shuffles
  for (int d = kGroup; d < kWarp; d *= 2) {
    const int of_others = __shfl_xor_sync(kAllLanes, longest, d);
    longest = of_others > longest ? of_others : longest;
  }
  for (int base = 0; base < longest; base += kGroup) {
    const bool own = base + sub < int(end - begin);
    const I p = begin + base + sub;
    int feature = 0;
    A value = 0, before = 0;
    if (own) {
      feature = int(a.col[p] - panel_begin);
      if constexpr (kLinear) value = a.values[a.order ? a.order[p] : p];
      if constexpr (kSample) before = first_tile ? A(0) : partial[p];
    }
    [[maybe_unused]] A dots[kGroup];
#pragma unroll
    for (int s = 0; s < kGroup; ++s) {
      const int from = __shfl_sync(kAllLanes, feature, s, kGroup);
      [[maybe_unused]] A v = 0;
      if constexpr (kLinear) v = __shfl_sync(kAllLanes, value, s, kGroup);
      A dot = 0;
      if (base + s < int(end - begin)) {  // a multiplication by zero would not do: zero times infinity is not zero
        const Vector<T> xs = load_vector(mine + int64_t(from) * Shape::kTokens);
#pragma unroll
        for (int i = 0; i < Shape::kLane; ++i) {
          const A xi = to_acc(xs.at[i]);
          if constexpr (kLinear) sums[i] = fma(v, xi, sums[i]);
          if constexpr (kSample) dot = fma(other[i], xi, dot);
        }
      }
      dots[s] = dot;
    }
    if constexpr (kSample) {
      const A sum = transposed_sum(dots);
      if (own) partial[p] = before + sum;
    }
  }
}

// kRows (even): rows of a group whose sums are in registers at a time.
template <class T, class I, bool kLinear, bool kSample, int kRows>
__global__ void __launch_bounds__(kTileThreads<kRows>, 1) tile_kernel(const TileArgs<T, I> a) {
  using A = Acc<T>;
  using Shape = TileShape<T>;
  constexpr int kWarps = kTileThreads<kRows> / kWarp;
  constexpr int kGroups = kWarp / kGroup;
  SK_DYNAMIC_SHARED(T, shared);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, group = lane / kGroup, sub = lane % kGroup;
  T* const tile = shared;  // (panel_cols, kTokens)
  T* const stage =
      shared + (a.plan.panel_cols + warp * kBlockRows) * Shape::kTokens;  // (kBlockRows, kTokens), the warp's
  const bool x_aligned = is_aligned(a.x, a.cols) && a.plan.panel_cols % 16 == 0;
  const bool y_aligned = is_aligned(kLinear ? a.y : a.other, a.rows) && is_aligned(kSample ? a.other : a.y, a.rows);

  const int64_t tiles = ceil_div(a.tokens, Shape::kTokens);
  const int64_t first_tile = tiles * blockIdx.x / gridDim.x, last_tile = tiles * (blockIdx.x + 1) / gridDim.x;
  [[maybe_unused]] A* const partial = kSample ? a.partial + blockIdx.x * a.nnz : nullptr;
  constexpr int kBlocks = kRows / 2;  // row blocks of a warp at a time
  const int64_t row_blocks = ceil_div(a.rows, kBlockRows), chunk = int64_t(kWarps) * kBlocks;

  for (int64_t t = first_tile; t < last_tile; ++t) {
    const int64_t token = t * Shape::kTokens, tokens = min_of(Shape::kTokens, a.tokens - token);
    bool loaded = false;
    for (int64_t c = blockIdx.y * chunk; c < row_blocks; c += gridDim.y * chunk) {
      A sums[kRows][Shape::kLane] = {};
      for (int panel = 0; panel < a.plan.panels; ++panel) {
        const int64_t panel_begin = int64_t(panel) * a.plan.panel_cols;
        const int64_t panel_cols = min_of(a.plan.panel_cols, a.cols - panel_begin);
        if (!loaded || a.plan.panels > 1) {
          __syncthreads();  // the previous tile is no longer read
          for (int64_t f = warp * 16; f < panel_cols; f += kWarps * 16)
            gather_segments(a.x + token * a.cols + panel_begin + f, a.cols, panel_cols - f, tokens, x_aligned,
                            tile + f * Shape::kTokens);
          __syncthreads();
          loaded = true;
        }
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          const int64_t row = (c + b * kWarps + warp) * kBlockRows;
          if (row >= a.rows) break;
          if constexpr (kSample) {
            gather_segments(a.other + token * a.rows + row, a.rows, a.rows - row, tokens, y_aligned, stage);
            __syncwarp();
          }
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int in_block = half * kGroups + group;
            const int64_t r = row + in_block;
            I begin = 0, end = 0;
            A other[Shape::kLane] = {};
            if (r < a.rows) {
              begin = panel == 0 ? a.crow[r] : a.splits[(panel - 1) * a.rows + r];
              end = panel == a.plan.panels - 1 ? a.crow[r + 1] : a.splits[panel * a.rows + r];
              if constexpr (kSample) {
                const Vector<T> staged = load_vector(stage + in_block * Shape::kTokens + sub * Shape::kLane);
#pragma unroll
                for (int i = 0; i < Shape::kLane; ++i) other[i] = to_acc(staged.at[i]);
              }
            }
            walk_row<T, I, kLinear, kSample>(a, tile, panel_begin, begin, end, other, partial, t == first_tile,
                                             sums[b * 2 + half]);
          }
          __syncwarp();
        }
      }
      if constexpr (kLinear) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          const int64_t row = (c + b * kWarps + warp) * kBlockRows;
          if (row >= a.rows) break;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int in_block = half * kGroups + group;
            const A bias = a.bias && row + in_block < a.rows ? a.bias[row + in_block] : A(0);
            Vector<T> out;
#pragma unroll
            for (int i = 0; i < Shape::kLane; ++i) out.at[i] = from_acc<T>(sums[b * 2 + half][i] + bias);
            store_vector(stage + in_block * Shape::kTokens + sub * Shape::kLane, out);
          }
          __syncwarp();
          scatter_segments(stage, a.y + token * a.rows + row, a.rows, a.rows - row, tokens, y_aligned);
          __syncwarp();
        }
      }
    }
  }
}

// splits[panel - 1][row]: the first position of the row whose column lies in `panel` or beyond.
template <class I>
__global__ void split_rows(const I* __restrict__ crow, const I* __restrict__ col, I* splits, int64_t rows,
                           TilePlan plan) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= rows * (plan.panels - 1)) return;
  const int64_t row = i % rows, first_col = (i / rows + 1) * plan.panel_cols;
  I low = crow[row], high = crow[row + 1];
  while (low < high) {
    const I middle = low + (high - low) / 2;
    if (col[middle] < first_col)
      low = middle + 1;
    else
      high = middle;
  }
  splits[i] = low;
}

// out[order[p] or p] = the sum of partial[slice][p] over the slices, in their order.
template <class A, class I>
__global__ void sum_slices(const A* __restrict__ partial, const I* __restrict__ order, A* out, int64_t nnz,
                           int64_t slices) {
  const int64_t p = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (p >= nnz) return;
  A sum = 0;
  for (int64_t s = 0; s < slices; ++s) sum += partial[s * nnz + p];
  out[order ? int64_t(order[p]) : p] = sum;
}

inline int64_t bytes_of(IndexType index) { return index == IndexType::i64 ? 8 : 4; }
inline int64_t acc_bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

inline TileProblem tile_problem(const CsrPattern& w, int64_t tokens, DType dtype, bool sampled) {
  const DeviceLimits limits = device_limits();
  return {w.rows, w.cols, w.nnz, tokens, dtype, sampled, limits.multiprocessors, limits.shared_bytes};
}

// What the workspace holds: splits, then partial sums.
inline int64_t split_bytes(const TilePlan& plan, const CsrPattern& w) {
  return round_up((plan.panels - 1) * w.rows * bytes_of(w.index), 64);
}
inline int64_t tile_workspace(const TilePlan& plan, const CsrPattern& w, DType dtype, bool sampled) {
  return split_bytes(plan, w) + (sampled ? plan.blocks * w.nnz * acc_bytes_of(dtype) : 0);
}

// Runs the kernel; pattern, plan and workspace of `a` are filled in here. `out` (nnz): sampled.
template <bool kLinear, bool kSample, class T, class I>
Status run_tiles(TileArgs<T, I> a, const CsrPattern& w, const TilePlan& plan, void* workspace, Acc<T>* out,
                 const Parallel& parallel) {
  a.crow = static_cast<const I*>(w.crow);
  a.col = static_cast<const I*>(w.col);
  a.rows = w.rows;
  a.cols = w.cols;
  a.nnz = w.nnz;
  a.plan = plan;
  I* const splits = static_cast<I*>(workspace);
  a.splits = splits;
  a.partial = reinterpret_cast<Acc<T>*>(static_cast<char*>(workspace) + split_bytes(plan, w));
  if (plan.panels > 1)
    SK_TRY(launch(split_rows<I>, blocks_for(w.rows * (plan.panels - 1), 256), 256, 0, parallel, a.crow, a.col, splits,
                  w.rows, plan));
  const dim3 grid(unsigned(plan.blocks), unsigned(plan.shares));
  if (plan.panels > 1)
    SK_TRY(launch(tile_kernel<T, I, kLinear, kSample, kRowsSplit>, grid, kTileThreads<kRowsSplit>, plan.shared_bytes,
                  parallel, a));
  else
    SK_TRY(launch(tile_kernel<T, I, kLinear, kSample, kRowsWhole>, grid, kTileThreads<kRowsWhole>, plan.shared_bytes,
                  parallel, a));
  if constexpr (kSample) {
    SK_TRY(launch(sum_slices<Acc<T>, I>, blocks_for(w.nnz, 256), 256, 0, parallel, a.partial, a.order, out, w.nnz,
                  plan.blocks));
  }
  return kOk;
}

}  // namespace cuda
}  // namespace sk
