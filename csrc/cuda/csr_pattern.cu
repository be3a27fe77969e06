// Operations on patterns: transposition (transpose.cu), gather from and scatter to a dense matrix.
#include "sparsekern/csr_pattern.h"

#include "transpose.h"

namespace sk {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// One warp per row.
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

int64_t csr_transpose_workspace(const CsrTransposeArgs& a) { return transpose_workspace(&a, 1); }

Status csr_transpose(const CsrTransposeArgs& a) { return transpose(&a, 1, a.workspace, a.parallel); }

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
