// csr_sddmm: b lies in shared memory, a is read alongside the rows; both move once, 2 (N + K) bytes per token of 16-bit
// data, and every block adds to partial sums of its own, which a last pass adds up in order (see csr_tile.h).
#include "sparsekern/csr_sddmm.h"

#include "csr_tile.h"

namespace sk {
namespace cuda {
namespace {

TilePlan plan_of(const CsrSddmmArgs& a) { return plan_tiles(tile_problem(a.w, a.tokens, a.dtype, true)); }

}  // namespace

int64_t csr_sddmm_workspace(const CsrSddmmArgs& a) { return tile_workspace(plan_of(a), a.w, a.dtype, true); }

Status csr_sddmm(const CsrSddmmArgs& a) {
  if (a.tokens == 0) return fill_zero(a.out, a.w.nnz * acc_bytes_of(a.dtype), a.parallel);
  return with_dtype(a.dtype, [&](auto tag) {
    return with_index(a.w.index, [&](auto index) {
      using T = typename decltype(tag)::type;
      using I = typename decltype(index)::type;
      TileArgs<T, I> args{};
      args.x = static_cast<const T*>(a.b);
      args.other = static_cast<const T*>(a.a);
      args.tokens = a.tokens;
      return run_tiles<false, true>(args, a.w, plan_of(a), a.workspace, static_cast<Acc<T>*>(a.out), a.parallel);
    });
  });
}

}  // namespace cuda
}  // namespace sk
