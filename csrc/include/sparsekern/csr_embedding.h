// out[t, :] = row ids[t] of the sparse (rows, cols) table, written dense. ids are in [0, rows): the caller checks.
//
// csr_embedding_backward: out[p] = sum over tokens t with ids[t] == row p of grad[t, col p], in the order of t.
#pragma once
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {

struct CsrEmbeddingArgs {
  CsrPattern table;
  const int64_t* ids;  // (tokens)
  const void* values;  // (nnz)
  void* out;           // (tokens, cols)
  int64_t tokens;
  DType dtype;
  Parallel parallel;
};

struct CsrEmbeddingBackwardArgs {
  CsrPattern table;
  const int64_t* ids;  // (tokens)
  const void* grad;    // (tokens, cols)
  void* out;           // (nnz)
  int64_t tokens;
  DType dtype;
  void* workspace;  // csr_embedding_backward_workspace bytes, 64-byte aligned
  Parallel parallel;
};

SK_KERNEL(Status csr_embedding(const CsrEmbeddingArgs&))
SK_KERNEL(int64_t csr_embedding_backward_workspace(const CsrEmbeddingBackwardArgs&))
SK_KERNEL(Status csr_embedding_backward(const CsrEmbeddingBackwardArgs&))

}  // namespace sk
