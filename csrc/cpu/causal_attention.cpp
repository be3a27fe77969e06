// causal_attention, a head at a time: blocks of queries, which lie in the lanes, meet strips of keys. Scores stay in
// the first-level cache; the strips along the diagonal are one vector wide, so that little of what is masked is
// computed.
#include "sparsekern/causal_attention.h"

#include <cmath>

#include "dispatch.h"
#include "exp2.h"
#include "gemm.h"
#include "panel.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int kQueries = 64;  // of a block
constexpr int kKeys = 32;     // of a strip before the diagonal
constexpr int64_t kRowBytes = 512, kRowsAhead = 8;
constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

template <class T>
constexpr int kBlockVectors = kQueries / kLanes<T>;

// Where a strip meets a block: keys [key, key + keys) with the queries from vector `first` of the block on. On the
// diagonal the first of these vectors has the same positions as the keys.
struct Strip {
  int64_t key, keys;
  int first;
  bool diagonal;
};

// Calls f(strip) for all that the queries [query, query + kQueries) attend to.
template <class T, class F>
inline void for_each_strip(int64_t query, int64_t tokens, F&& f) {
  for (int64_t key = 0; key < query; key += kKeys) f(Strip{key, min_of(kKeys, query - key), 0, false});
  for (int v = 0; v < kBlockVectors<T> && query + v * kLanes<T> < tokens; ++v)
    f(Strip{query + v * kLanes<T>, kLanes<T>, v, true});
}

// A few heads that lie side by side: their rows are read and written together, because the next token is a page away.
// In memory they are of type S.
template <class S, class T = Math<S>>
struct Heads {
  int64_t tokens, width, stride, offset, count;
  int64_t head, index;  // of the first: in its sequence, and of all
  T scale;

  static int64_t most(const CausalAttentionArgs& a) {
    return max_of(1, min_of(a.heads, kRowBytes / (a.width * int64_t(sizeof(S)))));
  }
  static int64_t groups(const CausalAttentionArgs& a) { return max_of(1, ceil_div(a.heads, most(a))); }  // per sequence

  Heads(const CausalAttentionArgs& a, int64_t item)
      : tokens(a.tokens), width(a.width), stride(a.heads * a.width), scale(T(a.scale)) {
    const int64_t sequence = item / groups(a);
    head = item % groups(a) * most(a);
    index = sequence * a.heads + head;
    offset = sequence * a.tokens * stride + head * a.width;
    count = min_of(most(a), a.heads - head);
  }

  const S* of(const void* q, int64_t token) const { return static_cast<const S*>(q) + offset + token * stride; }
  S* of(void* q, int64_t token) const { return static_cast<S*>(q) + offset + token * stride; }
  int64_t padded() const { return round_up(width, kLanes<T>); }
  int64_t rows() const { return round_up(tokens, kQueries); }
};

// `rows` rows of every head from `token` on, a head after the other, padded with zeros to whole vectors; zeros for
// tokens that do not exist.
template <class S, class T>
void read_rows(const Heads<S>& heads, const void* from, int64_t token, int64_t rows, T* to) {
  constexpr int L = kLanes<T>;
  const int64_t padded = heads.padded(), there = min_of(rows, heads.tokens - token);
  for (int64_t t = 0; t < rows; ++t) {
    const S* ahead = heads.of(from, token + t + kRowsAhead);  // may lie beyond the end, where asking does no harm
    for (int64_t d = 0; d < heads.count * heads.width; d += 64 / int64_t(sizeof(S))) __builtin_prefetch(ahead + d);
    for (int64_t h = 0; h < heads.count; ++h) {
      const S* row = heads.of(from, token + t) + h * heads.width;
      T* out = to + (h * rows + t) * padded;
      for (int64_t d = 0; d < padded; d += L) {
        if (t < there && d + L <= heads.width) {
          store(out + d, load_wide(row + d));
        } else {
          store(out + d, Vec<T>{});
          for (int64_t i = d; t < there && i < heads.width; ++i) out[i] = widen(row[i]);
        }
      }
    }
  }
}

// The way back, times `factor`: past the caches where whole lines are written.
template <class S, class T>
void write_rows(const Heads<S>& heads, const T* from, T factor, int64_t token, int64_t rows, void* to) {
  constexpr int L = kLanes<T>;
  const bool lines = kCanStream && heads.width % L == 0 && reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0;
  for (int64_t t = 0; t < min_of(rows, heads.tokens - token); ++t)
    for (int64_t h = 0; h < heads.count; ++h) {
      const T* row = from + (h * rows + t) * heads.padded();
      S* out = heads.of(to, token + t) + h * heads.width;
      int64_t d = 0;
      if constexpr (sizeof(S) == sizeof(T))
        for (; lines && d < heads.width; d += L) stream(out + d, load(row + d) * factor);
      for (; d + L <= heads.width; d += L) store_narrow(out + d, load(row + d) * factor);
      for (; d < heads.width; ++d) narrow(factor * row[d], out + d);
    }
}

// A block of queries from rows to lanes, to[d * kQueries + i] = factor * from[i * padded + d], and back.
template <class S, class T>
void to_lanes(const Heads<S>& heads, const T* from, T factor, T* to) {
  pack_panel<T, kBlockVectors<T>>(from, heads.padded(), kQueries, heads.padded(), to);
  for (int64_t i = 0; factor != 1 && i < heads.width * kQueries; i += kLanes<T>) store(to + i, load(to + i) * factor);
}

template <class S, class T>
void to_rows(const Heads<S>& heads, const T* from, T* to) {
  constexpr int L = kLanes<T>;
  for (int64_t d = 0; d < heads.padded(); d += L)
    unpack_tile<T, kBlockVectors<T>, false>(from + d * kQueries, kQueries, L, to + d, heads.padded());
}

// scores (keys of the strip, kQueries) = k q, in units of log 2; -infinity where a query comes before the key.
template <class S, class T>
inline void scores_of(const Heads<S>& heads, Strip s, const T* k, const T* q, T* scores) {
  constexpr int L = kLanes<T>;
  const int64_t lane = s.first * L;
  gemm<false, T>({k + s.key * heads.padded(), heads.padded(), 1}, {q + lane, kQueries}, {scores + lane, kQueries},
                 s.keys, kBlockVectors<T> - s.first, heads.width);
  if (!s.diagonal) return;
  for (int64_t j = 1; j < s.keys; ++j)
    for (int64_t i = 0; i < j; ++i) scores[j * kQueries + lane + i] = -T(INFINITY);
}

// Scratch of one worker.
template <class T>
struct Forward {
  int64_t all, block;  // elements of a head: of all its rows, of kQueries
  T *k, *v;            // (heads, all rows, padded)
  T* rows;             // (heads, kQueries, padded): q, then y
  T *q, *y;            // (padded, kQueries)
  T* p;                // (kKeys, kQueries)

  template <class S>
  Forward(const Heads<S>& heads, int64_t most, T* at)
      : all(heads.rows() * heads.padded()), block(kQueries * heads.padded()) {
    k = at, v = k + most * all, rows = v + most * all, q = rows + most * block, y = q + block, p = y + block;
  }
  template <class S>
  static int64_t elements(const Heads<S>& heads, int64_t most) {
    return (2 * most * heads.rows() + (most + 2) * kQueries) * heads.padded() + kKeys * kQueries;
  }
  Forward of_head(int64_t h) const {
    Forward one = *this;
    one.k += h * all, one.v += h * all, one.rows += h * block;
    return one;
  }
};

// The running softmax of a block's queries: the largest score so far, the sum of the powers of two relative to it.
template <class T>
struct Running {
  T largest[kQueries], sum[kQueries];
};

// Takes the scores in w.p of a strip to powers, and what was summed before to the new largest score.
template <class S, class T>
inline void soften(const Heads<S>& heads, Strip s, const Forward<T>& w, Running<T>& run) {
  constexpr int L = kLanes<T>;
  for (int64_t lane = s.first * L; lane < kQueries; lane += L) {
    T* p = w.p + lane;
    const Vec<T> before = load(run.largest + lane);
    Vec<T> largest = before;
    for (int64_t j = 0; j < s.keys; ++j) {
      const Vec<T> score = load(p + j * kQueries);
      largest = score > largest ? score : largest;
    }
    Vec<T> sum = {};
    for (int64_t j = 0; j < s.keys; ++j) {
      const Vec<T> power = exp2<T>(load(p + j * kQueries) - largest);
      store(p + j * kQueries, power);
      sum += power;
    }
    const Vec<T> shrunk = exp2<T>(before - largest);
    store(run.largest + lane, largest);
    store(run.sum + lane, load(run.sum + lane) * shrunk + sum);
    for (int64_t d = 0; d < heads.width; ++d) {
      T* y = w.y + d * kQueries + lane;
      store(y, load(y) * shrunk);
    }
  }
}

// A block of queries of head h; their rows are in w.rows, and replaced by those of y.
template <class S, class T>
void forward_block(const CausalAttentionArgs& a, const Heads<S>& heads, int64_t h, int64_t query, const Forward<T>& w) {
  constexpr int L = kLanes<T>;
  to_lanes(heads, w.rows, T(heads.scale * kLog2e), w.q);
  for (int64_t i = 0; i < w.block; ++i) w.y[i] = 0;
  Running<T> run;
  const T* sink = a.sink ? static_cast<const T*>(a.sink) + heads.head + h : nullptr;
  for (int i = 0; i < kQueries; ++i) {
    run.largest[i] = sink ? T(*sink * kLog2e) : -T(INFINITY);
    run.sum[i] = sink ? 1 : 0;
  }
  for_each_strip<T>(query, heads.tokens, [&](Strip s) {
    scores_of(heads, s, w.k, w.q, w.p);
    soften(heads, s, w, run);
    const int64_t lane = s.first * L;
    gemm<true, T>({w.v + s.key * heads.padded(), 1, heads.padded()}, {w.p + lane, kQueries}, {w.y + lane, kQueries},
                  heads.width, kBlockVectors<T> - s.first, s.keys);
  });
  T* lse = static_cast<T*>(a.lse) + (heads.index + h) * heads.tokens + query;
  const int64_t queries = min_of(kQueries, heads.tokens - query);
  for (int64_t i = 0; i < queries; ++i) lse[i] = T(kLn2) * run.largest[i] + std::log(run.sum[i]);
  for (int64_t i = 0; i < kQueries; i += L) {
    const Vec<T> sum = load(run.sum + i);
    for (int64_t d = 0; d < heads.width; ++d) store(w.y + d * kQueries + i, load(w.y + d * kQueries + i) / sum);
  }
  to_rows(heads, w.y, w.rows);
}

template <class S, class T>
void forward_heads(const CausalAttentionArgs& a, int64_t item, T* scratch) {
  const Heads<S> heads(a, item);
  const Forward<T> w(heads, Heads<S>::most(a), scratch);
  read_rows(heads, a.k, 0, heads.rows(), w.k);
  read_rows(heads, a.v, 0, heads.rows(), w.v);
  for (int64_t query = 0; query < heads.tokens; query += kQueries) {
    read_rows(heads, a.q, query, kQueries, w.rows);
    for (int64_t h = 0; h < heads.count; ++h) forward_block(a, heads, h, query, w.of_head(h));
    write_rows(heads, w.rows, T(1), query, kQueries, a.y);
  }
  finish_streaming();
}

template <class T>
struct Backward {
  int64_t all, block;            // as forward
  T *k, *v, *dk, *dv;            // (heads, all rows, padded)
  T *q_rows, *grad_rows, *rows;  // (heads, kQueries, padded); rows: y, then dq
  T *q, *grad, *dq;              // (padded, kQueries)
  T *p, *ds;                     // (kKeys, kQueries)

  template <class S>
  Backward(const Heads<S>& heads, int64_t most, T* at)
      : all(heads.rows() * heads.padded()), block(kQueries * heads.padded()) {
    k = at, v = k + most * all, dk = v + most * all, dv = dk + most * all;
    q_rows = dv + most * all, grad_rows = q_rows + most * block, rows = grad_rows + most * block;
    q = rows + most * block, grad = q + block, dq = grad + block, p = dq + block, ds = p + kKeys * kQueries;
  }
  template <class S>
  static int64_t elements(const Heads<S>& heads, int64_t most) {
    return (4 * most * heads.rows() + (3 * most + 3) * kQueries) * heads.padded() + 2 * kKeys * kQueries;
  }
  Backward of_head(int64_t h) const {
    Backward one = *this;
    for (T** rows_of_all : {&one.k, &one.v, &one.dk, &one.dv}) *rows_of_all += h * all;
    for (T** rows_of_block : {&one.q_rows, &one.grad_rows, &one.rows}) *rows_of_block += h * block;
    return one;
  }
};

// Of the queries of a block: lse in units of log 2 (infinity for queries that do not exist), and the sum of grad * y,
// which is that of p * dp.
template <class T>
struct Sums {
  T lse[kQueries], delta[kQueries];
};

template <class S, class T>
Sums<T> sums_of(const Heads<S>& heads, const T* lse, int64_t query, const T* grad, const T* y) {
  Sums<T> sums;
  for (int i = 0; i < kQueries; ++i) sums.lse[i] = query + i < heads.tokens ? T(lse[i] * kLog2e) : T(INFINITY);
  for (int64_t i = 0; i < kQueries; i += kLanes<T>) {
    Vec<T> sum = {};
    for (int64_t d = 0; d < heads.width; ++d) sum += load(grad + d * kQueries + i) * load(y + d * kQueries + i);
    store(sums.delta + i, sum);
  }
  return sums;
}

// w.p from scores to probabilities, w.ds from their gradient to that of the scores.
template <class T>
inline void through_softmax(Strip s, const Backward<T>& w, const Sums<T>& sums) {
  for (int64_t lane = s.first * kLanes<T>; lane < kQueries; lane += kLanes<T>) {
    const Vec<T> lse = load(sums.lse + lane), delta = load(sums.delta + lane);
    for (int64_t j = 0; j < s.keys; ++j) {
      T *p = w.p + j * kQueries + lane, *ds = w.ds + j * kQueries + lane;
      const Vec<T> probability = exp2<T>(load(p) - lse);
      store(p, probability);
      store(ds, probability * (load(ds) - delta));
    }
  }
}

// A block of queries of head h; the rows of y are in w.rows, and replaced by those of dq. Returns what the block adds
// to the gradient of the sink.
template <class S, class T>
T backward_block(const CausalAttentionArgs& a, const Heads<S>& heads, int64_t h, int64_t query, const Backward<T>& w) {
  constexpr int L = kLanes<T>;
  const int64_t padded = heads.padded();
  to_lanes(heads, w.q_rows, T(heads.scale * kLog2e), w.q);
  to_lanes(heads, w.grad_rows, T(1), w.grad);
  to_lanes(heads, w.rows, T(1), w.dq);
  const T* lse = static_cast<const T*>(a.lse) + (heads.index + h) * heads.tokens + query;
  const Sums<T> sums = sums_of(heads, lse, query, w.grad, w.dq);
  for (int64_t i = 0; i < w.block; ++i) w.dq[i] = 0;

  for_each_strip<T>(query, heads.tokens, [&](Strip s) {
    const int64_t lane = s.first * L, lanes = kQueries - lane, vectors = lanes / L, row = s.key * padded;
    scores_of(heads, s, w.k, w.q, w.p);
    gemm<false, T>({w.v + row, padded, 1}, {w.grad + lane, kQueries}, {w.ds + lane, kQueries}, s.keys, vectors,
                   heads.width);
    through_softmax(s, w, sums);
    gemm<true, T>({w.p + lane, kQueries, 1}, {w.grad_rows + lane * padded, padded}, {w.dv + row, padded}, s.keys,
                  padded / L, lanes);
    gemm<true, T>({w.ds + lane, kQueries, 1}, {w.q_rows + lane * padded, padded}, {w.dk + row, padded}, s.keys,
                  padded / L, lanes);
    gemm<true, T>({w.k + row, 1, padded}, {w.ds + lane, kQueries}, {w.dq + lane, kQueries}, heads.width, vectors,
                  s.keys);
  });

  to_rows(heads, w.dq, w.rows);
  T dsink = 0;
  if (a.sink) {
    const T sink = static_cast<const T*>(a.sink)[heads.head + h];
    for (int64_t i = 0; i < min_of(kQueries, heads.tokens - query); ++i)
      dsink -= std::exp(sink - lse[i]) * sums.delta[i];
  }
  return dsink;
}

template <class S, class T>
void backward_heads(const CausalAttentionBackwardArgs& a, int64_t item, T* scratch) {
  const Heads<S> heads(a.forward, item);
  const int64_t most = Heads<S>::most(a.forward);
  const Backward<T> w(heads, most, scratch);
  T* dsink = a.dsink ? static_cast<T*>(a.dsink) + heads.index : nullptr;
  read_rows(heads, a.forward.k, 0, heads.rows(), w.k);
  read_rows(heads, a.forward.v, 0, heads.rows(), w.v);
  for (int64_t i = 0; i < 2 * most * w.all; ++i) w.dk[i] = 0;  // and dv, which follows
  for (int64_t h = 0; dsink && h < heads.count; ++h) dsink[h] = 0;
  for (int64_t query = 0; query < heads.tokens; query += kQueries) {
    read_rows(heads, a.forward.q, query, kQueries, w.q_rows);
    read_rows(heads, a.grad, query, kQueries, w.grad_rows);
    read_rows(heads, a.forward.y, query, kQueries, w.rows);
    for (int64_t h = 0; h < heads.count; ++h) {
      const T part = backward_block(a.forward, heads, h, query, w.of_head(h));
      if (dsink) dsink[h] += part;
    }
    write_rows(heads, w.rows, heads.scale, query, kQueries, a.dq);
  }
  write_rows(heads, w.dk, heads.scale, 0, heads.rows(), a.dk);
  write_rows(heads, w.dv, T(1), 0, heads.rows(), a.dv);
  finish_streaming();
}

// Elements of scratch per worker, whole cache lines.
template <class S, template <class> class Scratch>
int64_t scratch_elements(const CausalAttentionArgs& a) {
  return round_up(Scratch<Math<S>>::elements(Heads<S>(a, 0), Heads<S>::most(a)), 64 / sizeof(Math<S>));
}

template <template <class> class Scratch>
int64_t workspace_bytes(const CausalAttentionArgs& a) {
  int64_t bytes = 0;
  with_activations(a.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    bytes = int64_t(sizeof(Math<S>)) * a.parallel.threads * scratch_elements<S, Scratch>(a);
  });
  return bytes;
}

// Calls work(tag of the type in memory, item, scratch) for every group of heads.
template <template <class> class Scratch, class F>
void for_each_group(const CausalAttentionArgs& a, void* workspace, F&& work) {
  with_activations(a.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    for_each_item(a.parallel, a.batch * Heads<S>::groups(a), [&](int64_t worker, int64_t item) {
      work(tag, item, static_cast<Math<S>*>(workspace) + worker * scratch_elements<S, Scratch>(a));
    });
  });
}

}  // namespace

int64_t causal_attention_workspace(const CausalAttentionArgs& a) { return workspace_bytes<Forward>(a); }
int64_t causal_attention_backward_workspace(const CausalAttentionArgs& a) { return workspace_bytes<Backward>(a); }

Status causal_attention(const CausalAttentionArgs& a) {
  for_each_group<Forward>(a, a.workspace, [&](auto tag, int64_t item, auto* scratch) {
    forward_heads<typename decltype(tag)::type>(a, item, scratch);
  });
  return kOk;
}

Status causal_attention_backward(const CausalAttentionBackwardArgs& a) {
  for_each_group<Backward>(a.forward, a.workspace, [&](auto tag, int64_t item, auto* scratch) {
    backward_heads<typename decltype(tag)::type>(a, item, scratch);
  });
  return kOk;
}

}  // namespace SK_ISA
}  // namespace sk
