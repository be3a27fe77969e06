// Operations on patterns: validation, transposition, gather from and scatter to a dense matrix.
#include "sparsekern/csr_pattern.h"

#include "dispatch.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int64_t kRowsPerItem = 64;

template <class I>
PatternFault validate(const CsrPattern& w, int64_t* at) {
  const I *crow = static_cast<const I*>(w.crow), *col = static_cast<const I*>(w.col);
  const auto fault = [at](PatternFault f, int64_t where) {
    *at = where;
    return f;
  };
  if (crow[0] != 0) return fault(kCrowStart, 0);
  for (int64_t r = 0; r < w.rows; ++r)
    if (crow[r + 1] < crow[r]) return fault(kCrowDecreasing, r);
  if (crow[w.rows] != w.nnz) return fault(kCrowEnd, w.rows);
  for (int64_t r = 0; r < w.rows; ++r)
    for (I p = crow[r]; p < crow[r + 1]; ++p) {
      if (col[p] < 0 || col[p] >= w.cols) return fault(kColRange, p);
      if (p > crow[r] && col[p] <= col[p - 1]) return fault(kColOrder, p);
    }
  return kPatternOk;
}

// A counting sort by column: rows come out ascending within each column.
template <class I>
void transpose(const CsrTransposeArgs& a) {
  const I *crow = static_cast<const I*>(a.w.crow), *col = static_cast<const I*>(a.w.col);
  I *ccol = static_cast<I*>(a.ccol), *row = static_cast<I*>(a.row), *perm = static_cast<I*>(a.perm);
  for (int64_t c = 0; c <= a.w.cols; ++c) ccol[c] = 0;
  for (int64_t p = 0; p < a.w.nnz; ++p) ++ccol[col[p]];
  I sum = 0;
  for (int64_t c = 0; c <= a.w.cols; ++c) ccol[c] = sum += ccol[c];  // ends of the columns; filled from the back
  for (int64_t r = a.w.rows - 1; r >= 0; --r)
    for (I p = crow[r + 1] - 1; p >= crow[r]; --p) {
      const I q = --ccol[col[p]];
      row[q] = I(r);
      perm[q] = p;
    }
}

template <class T, class I>
void move_values(const CsrDenseArgs& a) {
  const I *crow = static_cast<const I*>(a.w.crow), *col = static_cast<const I*>(a.w.col);
  T* values = static_cast<T*>(a.values);
  for_each_range(a.parallel, a.w.rows, kRowsPerItem, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T* dense = static_cast<T*>(a.dense) + r * a.w.cols;
      if (a.to_values)
        for (I p = crow[r]; p < crow[r + 1]; ++p) values[p] = dense[col[p]];
      else
        for (I p = crow[r]; p < crow[r + 1]; ++p) dense[col[p]] = values[p];
    }
  });
}

}  // namespace

PatternFault csr_validate(const CsrPattern& w, int64_t* at) {
  PatternFault fault = kPatternOk;
  with_index(w.index, [&](auto index) { fault = validate<typename decltype(index)::type>(w, at); });
  return fault;
}

int64_t csr_transpose_workspace(const CsrTransposeArgs&) { return 0; }

Status csr_transpose(const CsrTransposeArgs& a) {
  with_index(a.w.index, [&](auto index) { transpose<typename decltype(index)::type>(a); });
  return kOk;
}

Status csr_dense(const CsrDenseArgs& a) {
  with_dtype(a.dtype, [&](auto tag) {
    with_index(a.w.index,
               [&](auto index) { move_values<typename decltype(tag)::type, typename decltype(index)::type>(a); });
  });
  return kOk;
}

}  // namespace SK_ISA
}  // namespace sk
