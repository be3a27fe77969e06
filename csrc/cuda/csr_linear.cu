// csr_linear, and both gradients in one pass. x and y move once (x again per further thousand rows where its features
// do not fit in shared memory): 2 (N + K) bytes per token of 16-bit data against 2 nnz multiply-adds, so that on an
// H100 (3 TB/s, 9e12 multiply-adds/s, see csr_tile.h) memory is the limit below a density of about 3e12 (N + K) / (9e12
// N K).
#include "sparsekern/csr_linear.h"

#include "csr_tile.h"

namespace sk {
namespace cuda {
namespace {

// ---- few tokens: nothing to share, so every thread gathers for its own row of W and up to kDirectTokens tokens

constexpr int kDirectTokens = 4;
constexpr int64_t kMostDirectTokens = 16;
constexpr int kDirectThreads = 128;

template <class T, class I>
__global__ void __launch_bounds__(kDirectThreads) direct_kernel(const TileArgs<T, I> a) {
  using A = Acc<T>;
  const int64_t r = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, token = int64_t(blockIdx.y) * kDirectTokens;
  if (r >= a.rows) return;
  const int tokens = int(min_of(kDirectTokens, a.tokens - token));
  A sums[kDirectTokens] = {};
  for (I p = a.crow[r]; p < a.crow[r + 1]; ++p) {
    const A v = a.values[a.order ? a.order[p] : p];
    const T* const x = a.x + token * a.cols + a.col[p];
#pragma unroll
    for (int t = 0; t < kDirectTokens; ++t)
      if (t < tokens) sums[t] = fma(v, to_acc(x[t * a.cols]), sums[t]);
  }
  const A bias = a.bias ? a.bias[r] : A(0);
#pragma unroll
  for (int t = 0; t < kDirectTokens; ++t)
    if (t < tokens) a.y[(token + t) * a.rows + r] = from_acc<T>(sums[t] + bias);
}

template <class T, class I>
Status run_direct(const CsrLinearArgs& args, TileArgs<T, I> a) {
  a.crow = static_cast<const I*>(args.w.crow);
  a.col = static_cast<const I*>(args.w.col);
  a.rows = args.w.rows;
  a.cols = args.w.cols;
  const dim3 grid(unsigned(ceil_div(a.rows, kDirectThreads)), unsigned(ceil_div(a.tokens, kDirectTokens)));
  return launch(direct_kernel<T, I>, grid, kDirectThreads, 0, args.parallel, a);
}

TilePlan plan_of(const CsrLinearArgs& a) { return plan_tiles(tile_problem(a.w, a.tokens, a.dtype, false)); }
TilePlan plan_of(const CsrLinearBackwardArgs& a) { return plan_tiles(tile_problem(a.wt, a.tokens, a.dtype, true)); }

}  // namespace

int64_t csr_linear_workspace(const CsrLinearArgs& a) {
  return a.tokens <= kMostDirectTokens ? 0 : tile_workspace(plan_of(a), a.w, a.dtype, false);
}

Status csr_linear(const CsrLinearArgs& a) {
  if (a.tokens == 0 || a.w.rows == 0) return kOk;
  return with_dtype(a.dtype, [&](auto tag) {
    return with_index(a.w.index, [&](auto index) {
      using T = typename decltype(tag)::type;
      using I = typename decltype(index)::type;
      TileArgs<T, I> args{};
      args.order = static_cast<const I*>(a.order);
      args.values = static_cast<const Acc<T>*>(a.values);
      args.x = static_cast<const T*>(a.x);
      args.bias = static_cast<const Acc<T>*>(a.bias);
      args.y = static_cast<T*>(a.y);
      args.tokens = a.tokens;
      if (a.tokens <= kMostDirectTokens) return run_direct(a, args);
      return run_tiles<true, false>(args, a.w, plan_of(a), a.workspace, nullptr, a.parallel);
    });
  });
}

int64_t csr_linear_backward_workspace(const CsrLinearBackwardArgs& a) {
  return tile_workspace(plan_of(a), a.wt, a.dtype, true);
}

Status csr_linear_backward(const CsrLinearBackwardArgs& a) {
  if (a.tokens == 0) return fill_zero(a.dvalues, a.wt.nnz * acc_bytes_of(a.dtype), a.parallel);
  return with_dtype(a.dtype, [&](auto tag) {
    return with_index(a.wt.index, [&](auto index) {
      using T = typename decltype(tag)::type;
      using I = typename decltype(index)::type;
      TileArgs<T, I> args{};
      args.order = static_cast<const I*>(a.perm);
      args.values = static_cast<const Acc<T>*>(a.values);
      args.x = static_cast<const T*>(a.grad);
      args.y = static_cast<T*>(a.dx);
      args.other = static_cast<const T*>(a.x);
      args.tokens = a.tokens;
      return run_tiles<true, true>(args, a.wt, plan_of(a), a.workspace, static_cast<Acc<T>*>(a.dvalues), a.parallel);
    });
  });
}

}  // namespace cuda
}  // namespace sk
