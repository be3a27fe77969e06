// Softmax attention in which every token sees itself and the tokens before it, for narrow heads:
//   score[i, j] = scale * sum_d q[i, d] k[j, d],  p[i, j] = exp(score[i, j] - lse[i]) for j <= i,  y[i] = sum_j p[i, j]
//   v[j], lse[i] = log(exp(sink) + sum over j <= i of exp(score[i, j])), without the first term where there is no sink.
//
// q, k, v, y (batch, tokens, heads, width), contiguous; sink (heads, or null); lse (batch, heads, tokens), both and
// dsink like values beside activations (types.h). A result depends neither on the other heads nor on the number of
// threads.
#pragma once
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {

struct CausalAttentionArgs {
  const void *q, *k, *v;
  const void* sink;
  void *y, *lse;
  int64_t batch, tokens, heads, width;
  double scale;
  DType dtype;
  void* workspace;  // causal_attention_workspace bytes, 64-byte aligned
  Parallel parallel;
};

struct CausalAttentionBackwardArgs {
  CausalAttentionArgs forward;  // as it was called; y and lse are read
  const void* grad;             // of y
  void *dq, *dk, *dv;
  void* dsink;      // (batch, heads), to be summed over the batch; null without a sink
  void* workspace;  // causal_attention_backward_workspace bytes, 64-byte aligned; that of forward is unused
};

SK_CPU_KERNEL(int64_t causal_attention_workspace(const CausalAttentionArgs&))
SK_CPU_KERNEL(Status causal_attention(const CausalAttentionArgs&))
SK_CPU_KERNEL(int64_t causal_attention_backward_workspace(const CausalAttentionArgs&))
SK_CPU_KERNEL(Status causal_attention_backward(const CausalAttentionBackwardArgs&))

}  // namespace sk
