// abs_topk: a row is read once into registers, its cut is searched there by counting, and it is written once.
//
// It moves 2 sizeof(T) + 1/8 bytes per entry. At 3 TB/s an SM of an H100 then has 20 integer instructions to spend on
// an entry of bf16 (40 of f32). Counting the entries that reach a bound costs one per entry (two in f32, three in f64),
// and what comes before and after some six; a search takes about 4 counts (7) where the cut is near that of the row
// before, up to 14 (20) where it is not.
#include "sparsekern/abs_topk.h"

#include "device.h"

namespace sk {
namespace cuda {
namespace {

// ---- sixteen bytes of a row

// U: the unsigned integer of T's size. Key: the bits of a magnitude, which order like it, NaN above infinity. An entry
// reaches a bound when its key is not below it; bounds run from 1 to the limit, which no key reaches.
template <class U>
struct WordOf {
  using type = U;
};
template <>
struct WordOf<uint16_t> {
  using type = uint32_t;  // two entries
};
template <class U>
using Word = typename WordOf<U>::type;
template <class U>
using Key = Word<U>;
template <class U>
constexpr int kPerWord = int(sizeof(Word<U>) / sizeof(U));
template <class U>
constexpr int kPerVector = int(16 / sizeof(U));
template <class U>
constexpr Key<U> kLimit = Key<U>(1) << (8 * sizeof(U) - 1);
template <class U>
constexpr Word<U> kOnes = kPerWord<U> == 2 ? 0x10001 : 1;  // 1 for each entry of a word

// n, less 1 where a is below b: two additions with carry, where the compiler would take three instructions.
__device__ __forceinline__ int minus_below(uint32_t a, uint32_t b, int n) {
#ifdef SK_EMU
  return n - (a < b);
#else
  asm("{ .reg .u32 d; sub.cc.u32 d, %1, %2; subc.u32 %0, %0, 0; }" : "+r"(n) : "r"(a), "r"(b));
  return n;
#endif
}
__device__ __forceinline__ int minus_below(uint64_t a, uint64_t b, int n) { return n - (a < b); }

// A vector in a form that is quick to compare: the magnitude above the sign.
template <class U>
struct Pack {
  static constexpr int kWords = Vector<U>::kSize;
  U rotated[kWords];

  __device__ __forceinline__ void set(const Vector<U>& v) {
    for (int i = 0; i < kWords; ++i) rotated[i] = v.at[i] << 1 | v.at[i] >> (8 * sizeof(U) - 1);
  }

  // How many entries reach `bound`.
  __device__ __forceinline__ int count(U bound) const {
    int n = 0;  // twice the bound may be more than a U can hold
    for (int i = 0; i < kWords; ++i) n = minus_below(2 * bound - 1, rotated[i], n);
    return -n;
  }

  // Bit i: entry i just misses `bound`.
  __device__ __forceinline__ unsigned tied(U bound) const {
    unsigned bits = 0;
    for (int i = 0; i < kWords; ++i) bits |= unsigned((rotated[i] | 1) == 2 * bound - 1) << i;
    return bits;
  }

  // Writes the entries that reach the bound, lowered by `less` for each of them, and 0 for the others; bit i of the
  // result: entry i does.
  __device__ __forceinline__ unsigned keep(U bound, const U (&less)[kWords], Vector<U>& out) const {
    unsigned bits = 0;
    for (int i = 0; i < kWords; ++i) {
      const U key = rotated[i] >> 1;
      const bool reaches = key >= bound - less[i];
      out.at[i] = reaches ? key | rotated[i] << (8 * sizeof(U) - 1) : U(0);
      bits |= unsigned(reaches) << i;
    }
    return bits;
  }
};

// Byte i of the result is 255 where the highest bit of a byte is set, and 0 elsewhere. Hexadecimal digit i of
// `selector` names the byte: 8 to 11 for those of a, 12 to 15 for those of b.
template <unsigned selector>
__device__ __forceinline__ uint32_t spread_signs(uint32_t a, uint32_t b) {
  uint32_t result = 0;
#ifdef SK_EMU
  for (int i = 0; i < 4; ++i) {
    const unsigned byte = selector >> (4 * i) & 7;
    if ((byte < 4 ? a : b) >> (8 * (byte % 4)) & 0x80) result |= 0xffu << (8 * i);
  }
#else
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "n"(selector));
#endif
  return result;
}

// Of 16-bit entries two are compared by one subtraction: the highest bit of each half of `keys` is set, and stays so
// where the bound is reached. These bits are then summed, four at a time, by a dot product.
template <>
struct Pack<uint16_t> {
  static constexpr int kWords = 4;
  static constexpr unsigned kHalves = 0xfdb9, kBothBytes = 0xbb99;
  uint32_t entries[kWords], keys[kWords];

  __device__ __forceinline__ void set(const Vector<uint32_t>& v) {
    for (int i = 0; i < kWords; ++i) {
      entries[i] = v.at[i];
      keys[i] = v.at[i] | 0x80008000;
    }
  }

  __device__ __forceinline__ int count(uint32_t bound) const {
    const uint32_t bounds = bound * kOnes<uint16_t>;
    int n = 0;
    for (int i = 0; i < kWords; i += 2)
      n = __dp4a(int(spread_signs<kHalves>(keys[i] - bounds, keys[i + 1] - bounds)), -1, n);
    return n;
  }

  __device__ __forceinline__ unsigned tied(uint32_t bound) const {
    uint32_t words[kWords];
    for (int i = 0; i < kWords; ++i) {
      const uint32_t reached = keys[i] - bound * kOnes<uint16_t>;
      words[i] = (reached + kOnes<uint16_t>)&~reached;
    }
    return gather(words);
  }

  __device__ __forceinline__ unsigned keep(uint32_t bound, const uint32_t (&less)[kWords],
                                           Vector<uint32_t>& out) const {
    uint32_t words[kWords];
    for (int i = 0; i < kWords; ++i) {
      words[i] = keys[i] - bound * kOnes<uint16_t> + less[i];
      out.at[i] = entries[i] & spread_signs<kBothBytes>(words[i], words[i]);
    }
    return gather(words);
  }

 private:
  // The highest bits of the eight halves, as a number.
  static __device__ __forceinline__ unsigned gather(const uint32_t (&words)[kWords]) {
    const int low = int(spread_signs<kHalves>(words[0], words[1]));   // its bytes are 0 or -1,
    const int high = int(spread_signs<kHalves>(words[2], words[3]));  // those of the constants -1, -2, -4 .. -128
    return unsigned(__dp4a(low, int(0xf8fcfeff), __dp4a(high, int(0x80c0e0f0), 0)));
  }
};

// The entries at `from`, of which `left` are of the row; 0 for the others.
template <class U, class N>
__device__ __forceinline__ Vector<Word<U>> load_entries(const U* from, N left, bool aligned) {
  Vector<Word<U>> v{};
  if (aligned) {
    if (left > 0) v = load_vector(reinterpret_cast<const Word<U>*>(from));
  } else {
#pragma unroll
    for (int i = 0; i < kPerVector<U>; ++i)
      if (left > i) v.at[i / kPerWord<U>] |= Word<U>(from[i]) << (i % kPerWord<U> * 16);
  }
  return v;
}

template <class U, class N>
__device__ __forceinline__ void store_entries(U* to, N left, bool aligned, const Vector<Word<U>>& v) {
  if (aligned) {
    if (left > 0) store_vector(reinterpret_cast<Word<U>*>(to), v);
  } else {
#pragma unroll
    for (int i = 0; i < kPerVector<U>; ++i)
      if (left > i) to[i] = U(v.at[i / kPerWord<U>] >> (i % kPerWord<U> * 16));
  }
}

// ---- a row, shared by warps

template <class U>
struct Rows {
  const U* x;
  U* y;
  uint8_t* kept;
  int64_t rows, width, k;
  Key<U> octave;  // from one power of two to the next
  bool aligned;   // every row begins and ends at a multiple of 16 bytes
};

// What one lane holds of a row: a warp has consecutive vectors, so that a lane's lie 32 apart.
template <class U_, int kVectors>
struct Segment {
  using U = U_;
  using N = int;  // of entries
  static constexpr int vectors = kVectors, step = kWarp * kPerVector<U>;
  N first, left;  // the lane's first entry, and how many the row has from there on
  Pack<U> packs[kVectors];

  __device__ __forceinline__ Segment(const Rows<U>& a, const U* row, int warp, int lane)
      : first(warp * kVectors * step + lane * kPerVector<U>), left(int(a.width) - first) {
    const U* const from = row + first;
    if (a.aligned) {  // two loops, so that the loads of either are issued together
#pragma unroll
      for (int i = 0; i < kVectors; ++i) packs[i].set(load_entries(from + i * step, left - i * step, true));
    } else {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) packs[i].set(load_entries(from + i * step, left - i * step, false));
    }
  }
  __device__ __forceinline__ const Pack<U>& pack(int i) const { return packs[i]; }
};

// The same for rows too wide for the registers: read again each time, from the L2.
template <class U_>
struct Segment<U_, 0> {
  using U = U_;
  using N = int64_t;
  static constexpr int step = kWarp * kPerVector<U>;
  N vectors, first, left;
  const U* from;
  bool aligned;

  __device__ __forceinline__ Segment(const Rows<U>& a, const U* row, int warp, int lane)
      : vectors(ceil_div(a.width, int64_t(blockDim.x) * kPerVector<U>)),
        first(warp * vectors * step + lane * kPerVector<U>),
        left(a.width - first),
        from(row + first),
        aligned(a.aligned) {}
  __device__ __forceinline__ Pack<U> pack(N i) const {
    Pack<U> p;
    p.set(load_entries(from + i * step, left - i * step, aligned));
    return p;
  }
};

// Sums over the lanes of a row.
template <int kWarps, class N>
struct RowSum {
  int (*slots)[kWarps];  // two in turn, so that one barrier is enough
  int warp, turn = 0;

  // Of all lanes.
  __device__ __forceinline__ N all(int lane_value) {
    const int mine = exchange(lane_value);
    if constexpr (kWarps == 1) return mine;
    return add_slots(kWarps);
  }

  // Of the warps before this one.
  __device__ __forceinline__ N before(int lane_value) {
    if constexpr (kWarps == 1) return 0;
    exchange(lane_value);
    return add_slots(warp);
  }

 private:
  __device__ __forceinline__ int exchange(int lane_value) {
    const int mine = int(__reduce_add_sync(kAllLanes, unsigned(lane_value)));
    if constexpr (kWarps > 1) {
      turn ^= 1;
      if (threadIdx.x % kWarp == 0) slots[turn][warp] = mine;
      __syncthreads();
    }
    return mine;
  }

  __device__ __forceinline__ N add_slots(int warps) const {
    N sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += w < warps ? slots[turn][w] : 0;
    return sum;
  }
};

// ---- the search

// Kept are the entries that reach the bound, and the first `ties` of those that just miss it.
template <class U, class N>
struct Cut {
  Key<U> bound;
  N ties;
};

// The cut for 0 < k < width. count(bound): how many entries reach it. The search begins at `guess` and moves away in
// growing steps until the cut is between two bounds. Their distance is then halved down to an octave, and the counts
// are interpolated within it, with a halving now and then so that it must end.
template <class U, class N, class Count>
__device__ __forceinline__ Cut<U, N> find_cut(const Rows<U>& a, Key<U> guess, Count count) {
  const N k = N(a.k);
  Key<U> low = 0, high = kLimit<U>;  // more than k entries reach low, fewer than k reach high
  N reach_low = N(a.width), reach_high = 0;
  Key<U> stride = a.octave / 16, bound = guess;
  for (int round = 1;; ++round) {
    const N n = count(bound);
    if (n == k) return {bound, 0};
    if (n > k) {
      low = bound;
      reach_low = n;
    } else {
      high = bound;
      reach_high = n;
    }
    const Key<U> span = high - low;
    if (span == 1) return {high, k - reach_high};
    if (low == 0 && round == 3) {
      bound = 1;  // rows with fewer than k nonzeros are common in sparse models
    } else if (low == 0 || high == kLimit<U>) {
      const Key<U> step = stride < span ? stride : span / 2;
      bound = low == 0 ? high - step : low + step;
      stride = stride < kLimit<U> / 8 ? 8 * stride : kLimit<U>;
    } else if (span > a.octave || round % 3 == 0) {
      bound = low + span / 2;
    } else {
      const Key<U> step = Key<U>(float(span) * __fdividef(float(reach_low - k), float(reach_low - reach_high)));
      bound = low + (step < 1 ? 1 : step < span ? step : span - 1);
    }
  }
}

// Which entries of a lane just miss the bound: a bit for each.
template <class U, int kVectors>
struct Tied {
  static_assert(kVectors * kPerVector<U> <= 64, "the bits of a lane are one number");
  uint64_t bits = 0;

  __device__ __forceinline__ Tied(const Segment<U, kVectors>& segment, Key<U> bound) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) bits |= uint64_t(segment.pack(i).tied(bound)) << (i * kPerVector<U>);
  }
  __device__ __forceinline__ unsigned at(int i) const {
    return unsigned(bits >> (i * kPerVector<U>)) & ((1u << kPerVector<U>)-1);
  }
  __device__ __forceinline__ int count() const { return __popcll(bits); }
};

template <class U>
struct Tied<U, 0> {
  const Segment<U, 0>& segment;
  Key<U> bound;

  __device__ __forceinline__ Tied(const Segment<U, 0>& segment, Key<U> bound) : segment(segment), bound(bound) {}
  __device__ __forceinline__ unsigned at(int64_t i) const { return segment.pack(i).tied(bound); }
  __device__ __forceinline__ int count() const {
    int n = 0;
    for (int64_t i = 0; i < segment.vectors; ++i) n += __popc(at(i));
    return n;
  }
};

// Which ties a lane keeps: those in vectors before `vector`, and there the ones that `less` marks.
template <class U, class N>
struct Ties {
  N vector;
  Word<U> less[Pack<U>::kWords];
};

template <class U, int kVectors, int kWarps, class N>
__device__ __forceinline__ Ties<U, N> share_ties(const Segment<U, kVectors>& segment, Cut<U, N> cut,
                                                 RowSum<kWarps, N>& sum) {
  Ties<U, N> result{};
  if (cut.ties == 0) return result;
  const Tied<U, kVectors> tied(segment, cut.bound);
  N left = cut.ties - sum.before(tied.count());
  if (left <= 0) return result;
  unsigned bits = 0;
  for (; result.vector < segment.vectors; ++result.vector) {
    bits = tied.at(result.vector);
    const int here = int(__reduce_add_sync(kAllLanes, unsigned(__popc(bits))));
    if (here > left) break;
    left -= here;
  }
  const int mine = __popc(bits);  // of this vector, the first `left` ties of the warp
  for (N extra = warp_exclusive_sum(mine) + mine - left; bits && extra > 0; --extra)
    bits &= ~(0x80000000u >> __clz(bits));
#pragma unroll
  for (int i = 0; i < kPerVector<U>; ++i)
    result.less[i / kPerWord<U>] |= Word<U>(bits >> i & 1) << (i % kPerWord<U> * 16);
  return result;
}

// ---- the kernel

template <class Segment, class U, class N>
__device__ __forceinline__ void write_row(const Rows<U>& a, int64_t r, const Segment& segment, Key<U> bound,
                                          const Ties<U, N>& ties) {
  constexpr int kLanes = 8 / kPerVector<U>;  // that share a byte of `kept`
  const int place = threadIdx.x % kLanes;
  U* const y = a.y + r * a.width + segment.first;
  uint8_t* const kept = a.kept + r * ((a.width + 7) / 8) + segment.first / 8;
#pragma unroll
  for (N i = 0; i < segment.vectors; ++i) {
    Word<U> less[Pack<U>::kWords];
#pragma unroll
    for (int w = 0; w < Pack<U>::kWords; ++w)
      less[w] = i == ties.vector ? ties.less[w] : i < ties.vector ? kOnes<U> : 0;
    Vector<Word<U>> out;
    unsigned bits = segment.pack(i).keep(bound, less, out) << (place * kPerVector<U>);
#pragma unroll
    for (int d = 1; d < kLanes; d *= 2) bits |= __shfl_xor_sync(kAllLanes, bits, d);
    const N left = segment.left - i * Segment::step;
    store_entries(y + i * Segment::step, left, a.aligned, out);
    if (place == 0 && left > 0) kept[i * (Segment::step / 8)] = uint8_t(bits);
  }
}

constexpr int kThreads = 128;

// The rows of a block at a time, its threads, and how many blocks share the registers of an SM.
template <int kWarps>
constexpr int kRowsAtOnce = kWarps == 1 ? kThreads / kWarp : 1;
template <int kWarps>
constexpr int kBlockThreads = kRowsAtOnce<kWarps> * kWarps * kWarp;
template <class U>
constexpr int kMostVectors = sizeof(U) == 2 ? 8 : 16;
template <class U, int kWarps, int kVectors>
constexpr int kBlocks = (kVectors == kMostVectors<U> ? 512 : 1024) / kBlockThreads<kWarps>;

template <class U, int kWarps, int kVectors>
__global__ void __launch_bounds__(kBlockThreads<kWarps>, (kBlocks<U, kWarps, kVectors>)) keep_topk(const Rows<U> a) {
  using N = typename Segment<U, kVectors>::N;
  __shared__ int slots[2][kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp % kWarps;
  RowSum<kWarps, N> sum{slots, warp};
  Key<U> guess = kLimit<U> / 2;
  for (int64_t r = int64_t(blockIdx.x) * kRowsAtOnce<kWarps> + threadIdx.x / (kWarps * kWarp); r < a.rows;
       r += int64_t(gridDim.x) * kRowsAtOnce<kWarps>) {
    const Segment<U, kVectors> segment(a, a.x + r * a.width, warp, lane);
    const auto count = [&](Key<U> bound) {
      int n = 0;
#pragma unroll
      for (N i = 0; i < segment.vectors; ++i) n += segment.pack(i).count(bound);
      return sum.all(n);
    };
    Cut<U, N> cut{kLimit<U>, 0};
    if (a.k == a.width) {
      cut = {1, N(a.k) - count(1)};
    } else if (a.k > 0) {
      cut = find_cut<U, N>(a, guess, count);
      guess = cut.bound < kLimit<U> ? cut.bound : kLimit<U> / 2;
    }
    write_row(a, r, segment, cut.bound, share_ties(segment, cut, sum));
  }
}

template <class U, int kWarps, int kVectors>
Status launch_rows(const Rows<U>& a, const Parallel& parallel) {
  const int64_t blocks = min_of(ceil_div(a.rows, kRowsAtOnce<kWarps>),
                                int64_t(device_limits().multiprocessors) * kBlocks<U, kWarps, kVectors>);
  return launch(keep_topk<U, kWarps, kVectors>, dim3(unsigned(blocks)), kBlockThreads<kWarps>, 0, parallel, a);
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// exponent_at: how many bits of a T lie below its exponent.
template <class U>
Status run(const AbsTopkArgs& args, int exponent_at) {
  const Rows<U> a{static_cast<const U*>(args.x),
                  static_cast<U*>(args.y),
                  args.kept,
                  args.rows,
                  args.width,
                  args.k,
                  Key<U>(1) << exponent_at,
                  args.width % kPerVector<U> == 0 && is_aligned(args.x) && is_aligned(args.y)};
  constexpr int kMost = kMostVectors<U>;
  const int64_t vectors = ceil_div(a.width, kWarp * kPerVector<U>);  // per lane, if one warp did it all
  if (vectors <= kMost / 4) return launch_rows<U, 1, kMost / 4>(a, args.parallel);
  if (vectors <= kMost / 2) return launch_rows<U, 1, kMost / 2>(a, args.parallel);
  if (vectors <= kMost) return launch_rows<U, 1, kMost>(a, args.parallel);
  if (vectors <= 4 * kMost / 2) return launch_rows<U, 4, kMost / 2>(a, args.parallel);
  if (vectors <= 4 * kMost) return launch_rows<U, 4, kMost>(a, args.parallel);
  if (vectors <= 8 * kMost) return launch_rows<U, 8, kMost>(a, args.parallel);
  if (vectors <= 16 * kMost) return launch_rows<U, 16, kMost>(a, args.parallel);
  return launch_rows<U, 16, 0>(a, args.parallel);
}

// ---- backward

constexpr int kUnroll = 4;  // loads in flight per thread

// Rows whose bits follow each other without a gap: all entries in one. Their number is a multiple of 8.
template <class U>
__global__ void mask_entries(const U* __restrict__ grad, const uint8_t* __restrict__ kept, U* __restrict__ out,
                             int64_t entries) {
  constexpr int kSize = kPerVector<U>;
  const int64_t first = (int64_t(blockIdx.x) * blockDim.x * kUnroll + threadIdx.x) * kSize;
  Vector<U> vectors[kUnroll];
  unsigned bits[kUnroll];
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const int64_t j = first + i * kThreads * kSize;
    if (j < entries) {
      vectors[i] = load_vector(grad + j);
      bits[i] = unsigned(kept[j / 8]) >> (j % 8);
    }
  }
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const int64_t j = first + i * kThreads * kSize;
    if (j < entries) {
#pragma unroll
      for (int e = 0; e < kSize; ++e)
        if (!(bits[i] >> e & 1)) vectors[i].at[e] = 0;
      store_vector(out + j, vectors[i]);
    }
  }
}

// Any rows: one warp for each.
template <class U>
__global__ void mask_rows(const U* __restrict__ grad, const uint8_t* __restrict__ kept, U* __restrict__ out,
                          int64_t rows, int64_t width) {
  const int64_t warps = int64_t(gridDim.x) * blockDim.x / kWarp;
  for (int64_t r = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp; r < rows; r += warps) {
    const uint8_t* const bits = kept + r * ((width + 7) / 8);
    for (int64_t j = threadIdx.x % kWarp; j < width; j += kWarp)
      out[r * width + j] = bits[j / 8] >> (j % 8) & 1 ? grad[r * width + j] : U(0);
  }
}

template <class U>
Status run_backward(const AbsTopkBackwardArgs& a) {
  const U* const grad = static_cast<const U*>(a.grad);
  U* const out = static_cast<U*>(a.out);
  const int64_t entries = a.rows * a.width;
  if (a.width % 8 == 0 && is_aligned(a.grad) && is_aligned(a.out))
    return launch(mask_entries<U>, blocks_for(ceil_div(entries, kUnroll * kPerVector<U>), kThreads), kThreads, 0,
                  a.parallel, grad, a.kept, out, entries);
  const int64_t blocks = min_of(ceil_div(a.rows * kWarp, kThreads), INT32_MAX);
  return launch(mask_rows<U>, dim3(unsigned(blocks)), kThreads, 0, a.parallel, grad, a.kept, out, a.rows, a.width);
}

}  // namespace

int64_t abs_topk_workspace(const AbsTopkArgs&) { return 0; }

Status abs_topk(const AbsTopkArgs& a) {
  if (a.width == 0) return kOk;
  switch (a.dtype) {
    case DType::f32:
      return run<uint32_t>(a, 23);
    case DType::f64:
      return run<uint64_t>(a, 52);
    case DType::bf16:
      return run<uint16_t>(a, 7);
    default:
      return run<uint16_t>(a, 10);
  }
}

Status abs_topk_backward(const AbsTopkBackwardArgs& a) {
  switch (a.dtype) {
    case DType::f32:
      return run_backward<uint32_t>(a);
    case DType::f64:
      return run_backward<uint64_t>(a);
    default:
      return run_backward<uint16_t>(a);
  }
}

}  // namespace cuda
}  // namespace sk
