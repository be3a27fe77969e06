// The passes of a selection after the first; what they move and why stands in select.h.
#include "select.h"

#include "floor.h"

namespace sk {
namespace cuda {
namespace {

constexpr int kScanThreads = 1024;

// ---- the cut

// One block per matrix.
template <class I>
__global__ void __launch_bounds__(kSelectThreads) begin(__grid_constant__ const SelectTable table) {
  const SelectMatrix& m = table.at[blockIdx.x];
  for (int i = threadIdx.x; i < kBins; i += kSelectThreads) m.state->histogram[i] = 0;
  if (m.cols == 0)
    for (int64_t r = threadIdx.x; r < m.rows; r += kSelectThreads) static_cast<I*>(m.crow)[r] = 0;
  if (threadIdx.x != 0) return;
  m.state->prefix = 0;
  m.state->left = m.k - m.floor * m.neurons();
  static_cast<I*>(m.crow)[m.rows] = I(m.k);
  *m.nan_at = kNoNan;
}

// Finds the next digit of the cut, from the largest down: the first that reaches the budget. One block per matrix. With
// a budget of 0 that is the largest digit of all, which no magnitude has: the cut comes out above them.
__global__ void __launch_bounds__(kSelectThreads) pick_digit(__grid_constant__ const SelectTable table, int bits) {
  SelectState& s = *table.at[blockIdx.x].state;
  const int digits = 1 << bits, per_thread = digits / kSelectThreads;
  const int first = digits - 1 - int(threadIdx.x) * per_thread;
  const int64_t left = s.left;
  int64_t sum = 0;
  for (int d = first; d > first - per_thread; --d) sum += int64_t(s.histogram[d]);
  int64_t above = block_exclusive_sum<kSelectThreads>(sum);
  for (int d = first; d > first - per_thread; --d) {
    const int64_t count = int64_t(s.histogram[d]);
    const bool begins_here = above < left || d == digits - 1, ends_here = left <= above + count || d == 0;
    if (begins_here && ends_here) {
      s.prefix = s.prefix << bits | d;
      s.left = left - above;
    }
    above += count;
    s.histogram[d] = 0;
  }
}

// For each entry of a vector, the key of the last one that the floor reserved in its neuron; above every magnitude
// where there is no entry.
template <class T>
__device__ __forceinline__ Vector<Key<T>> floors_at(const SelectMatrix& m, const Key<T>* keys, Place place, int left) {
  constexpr int kSize = Vector<T>::kSize;
  const int32_t cols = int32_t(m.cols);
  Vector<Key<T>> last;
  if (left >= kSize && place.col <= cols - kSize) {  // within one row
    if (m.axis == 1) return load_some(keys + place.col, kSize);
    const Key<T> of_row = keys[place.row];
#pragma unroll
    for (int e = 0; e < kSize; ++e) last.at[e] = of_row;
    return last;
  }
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    last.at[e] = e < left ? keys[m.axis == 0 ? place.row : place.col] : KeyOf<T>::kMax;
    place.next(cols);
  }
  return last;
}

// The magnitudes of a vector, -1 where there is no entry, and which entries (bits) the floor reserved.
template <class T>
struct Keys {
  Key<T> at[Vector<T>::kSize];
  unsigned reserved;

  __device__ __forceinline__ Keys(const SelectMatrix& m, Place place, const Vector<T>& v, int left) : reserved(0) {
    constexpr int kSize = Vector<T>::kSize;
#pragma unroll
    for (int e = 0; e < kSize; ++e) at[e] = e < left ? magnitude(v.at[e]) : Key<T>(-1);
    if (m.floor == 0) return;
    const Floors<T> floors = floors_of<T>(m);
    const Vector<Key<T>> last = floors_at<T>(m, floors.key, place, left);
    unsigned equal = 0;
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      reserved |= unsigned(at[e] > last.at[e]) << e;
      equal |= unsigned(at[e] == last.at[e]) << e;
    }
#pragma unroll 1
    for (unsigned bit = 1; equal >= bit; bit *= 2) {  // reserved only up to a certain index of the neuron
      if (equal & bit) {
        const int32_t index = m.axis == 0 ? place.col : place.row;
        if (index <= floors.index[m.axis == 0 ? place.row : place.col]) reserved |= bit;
      }
      place.next(int32_t(m.cols));
    }
  }
};

// Lists the keys with the cut's first digit that are not reserved, as far as there is room, and counts them; counts the
// entries that are certain to be kept.
template <class T>
__global__ void __launch_bounds__(kSelectThreads, 3)
    collect(__grid_constant__ const Work work, __grid_constant__ const SelectTable table) {
  const Share share = work.share();
  const SelectMatrix& m = table.at[share.matrix];
  const Key<T> bin = Key<T>(m.state->prefix);
  const int lane = threadIdx.x % kWarp;
  for_each_segment(m, share.block, [&](int64_t segment) {
    Key<T>* const list = static_cast<Key<T>*>(m.scratch) + segment * kListed;
    int kept = 0, listed = 0;
    const auto list_vector = [&](int64_t, Place place, const Vector<T>& v, int left) {
      const Keys<T> keys(m, place, v, left);
#pragma unroll
      for (int e = 0; e < Vector<T>::kSize; ++e) {
        const bool reserved = keys.reserved >> e & 1;
        const Key<T> its_bin = keys.at[e] >> kBinShift<T>;
        kept += reserved || its_bin > bin;
        const bool is_in = !reserved && its_bin == bin;
        const unsigned in = __ballot_sync(kAllLanes, is_in);
        const int to = listed + __popc(in & ((1u << lane) - 1));
        if (is_in && to < kListed) list[to] = keys.at[e];
        listed += __popc(in);
      }
    };
    for_each_vector<T, 4>(m, segment, ReadWeights<T>().of(m, 0), list_vector);
    kept = warp_sum(kept);
    if (lane == 0) m.segments[segment] = {kept, listed};
  });
}

// Calls f(key) for every key of the segment with the cut's first digit that is not reserved: from the list, or where
// that was too short from the weight.
template <class T, class F>
__device__ __forceinline__ void for_each_listed(const SelectMatrix& m, int64_t segment, Key<T> bin, F&& f) {
  const int64_t listed = m.segments[segment].tied;
  if (listed <= kListed) {
    const Key<T>* const list = static_cast<const Key<T>*>(m.scratch) + segment * kListed;
    for (int64_t i = threadIdx.x % kWarp; i < listed; i += kWarp) f(list[i]);
    return;
  }
  const auto visit_vector = [&](int64_t, Place place, const Vector<T>& v, int left) {
    const Keys<T> keys(m, place, v, left);
#pragma unroll
    for (int e = 0; e < Vector<T>::kSize; ++e)
      if (!(keys.reserved >> e & 1) && keys.at[e] >> kBinShift<T> == bin) f(keys.at[e]);
  };
  for_each_vector<T, 2>(m, segment, ReadWeights<T>().of(m, 0), visit_vector);
}

// Counts digit d, not the first, of the keys that begin with the digits found so far.
template <class T>
__global__ void __launch_bounds__(kSelectThreads, 3)
    refine(__grid_constant__ const Work work, __grid_constant__ const SelectTable table, Digit d) {
  __shared__ uint32_t bins[kLaterBins];
  const Share share = work.share();
  const SelectMatrix& m = table.at[share.matrix];
  const int known = d.shift + d.bits, count = 1 << d.bits;
  const Key<T> prefix = Key<T>(m.state->prefix), bin = prefix >> (kBinShift<T> - known);
  clear_bins(bins, count);
  for_each_segment(m, share.block, [&](int64_t segment) {
    for_each_listed<T>(m, segment, bin, [&](Key<T> key) {
      if (key >> known == prefix) count_digit(bins, int(key >> d.shift) & (count - 1));
    });
  });
  add_bins(bins, count, m.state->histogram);
}

// ---- the pattern

// What each segment keeps for certain, and how many of its entries equal the cut.
template <class T>
__global__ void __launch_bounds__(kSelectThreads, 3)
    count_kept(__grid_constant__ const Work work, __grid_constant__ const SelectTable table) {
  const Share share = work.share();
  const SelectMatrix& m = table.at[share.matrix];
  const Key<T> cut = Key<T>(m.state->prefix), bin = cut >> kBinShift<T>;
  for_each_segment(m, share.block, [&](int64_t segment) {
    int kept = 0, tied = 0;
    for_each_listed<T>(m, segment, bin, [&](Key<T> key) {
      kept += key > cut;
      tied += key == cut;
    });
    kept = warp_sum(kept);
    tied = warp_sum(tied);
    if (threadIdx.x % kWarp == 0) m.segments[segment] = {m.segments[segment].kept + kept, tied};
  });
}

// Counts of the segments -> their sums over the segments before. One block per matrix, a run of segments per thread.
__global__ void __launch_bounds__(kScanThreads) sum_segments(__grid_constant__ const SelectTable table) {
  const SelectMatrix& m = table.at[blockIdx.x];
  const int64_t count = segments_of(m), run = ceil_div(count, kScanThreads);
  const int64_t first = min_of(count, threadIdx.x * run), end = min_of(count, first + run);
  SelectSegment sum{0, 0};
  for (int64_t i = first; i < end; ++i) {
    sum.kept += m.segments[i].kept;
    sum.tied += m.segments[i].tied;
  }
  SelectSegment before{block_exclusive_sum<kScanThreads>(sum.kept), block_exclusive_sum<kScanThreads>(sum.tied)};
  for (int64_t i = first; i < end; ++i) {
    const SelectSegment own = m.segments[i];
    m.segments[i] = before;
    before.kept += own.kept;
    before.tied += own.tied;
  }
}

// Sets in `kept` the bits of `tied` (entries of this lane's vector that equal the cut) that are among the first
// `ties_left` of the warp, in the order of the lanes; returns how many are left after it.
__device__ __forceinline__ int keep_ties(unsigned tied, int ties_left, unsigned& kept) {
  if (ties_left == 0 || !__any_sync(kAllLanes, tied != 0)) return ties_left;
  int rank = warp_exclusive_sum(__popc(tied));
  const int all = __shfl_sync(kAllLanes, rank + __popc(tied), kWarp - 1);
  for (; tied; tied &= tied - 1, ++rank)
    if (rank < ties_left) kept |= tied & -tied;
  return all < ties_left ? ties_left - all : 0;
}

// Zeroes what is not kept, decays what is, writes crow and col.
template <class T, class I>
__global__ void __launch_bounds__(kSelectThreads, 3)
    write(__grid_constant__ const Work work, __grid_constant__ const SelectTable table, bool zero_rest,
          const double* lr, double weight_decay) {
  const Share share = work.share();
  const SelectMatrix& m = table.at[share.matrix];
  const Key<T> cut = Key<T>(m.state->prefix);
  T* const weight = static_cast<T*>(m.weight);
  const int32_t cols = int32_t(m.cols);
  const T decay = lr ? T(1 - *lr * weight_decay) : T(1);
  for_each_segment(m, share.block, [&](int64_t segment) {
    const SelectSegment before = m.segments[segment];
    const int64_t ties = m.state->left, start = before.kept + min_of(ties, before.tied);
    I *const crow = static_cast<I*>(m.crow), *const col = static_cast<I*>(m.col) + start;
    int written = 0, ties_left = int(min_of(kSegment, max_of(0, ties - before.tied)));
    const auto write_vector = [&](int64_t at, Place place, const Vector<T>& v, int left) {
      const Keys<T> keys(m, place, v, left);
      unsigned kept = keys.reserved, tied = 0;  // bit e: entry e of the vector
#pragma unroll
      for (int e = 0; e < Vector<T>::kSize; ++e) {
        kept |= unsigned(keys.at[e] > cut) << e;
        tied |= unsigned(keys.at[e] == cut) << e;
      }
      ties_left = keep_ties(tied & ~keys.reserved, ties_left, kept);
      if (zero_rest) {
        Vector<T> out;
#pragma unroll
        for (int e = 0; e < Vector<T>::kSize; ++e) out.at[e] = kept >> e & 1 ? v.at[e] * decay : T(0);
        store_some(weight + at, out, left);
      }
      int to = written;
      if (__any_sync(kAllLanes, kept != 0)) {
        to += warp_exclusive_sum(__popc(kept));
        written = __shfl_sync(kAllLanes, to + __popc(kept), kWarp - 1);
      }
      if (place.col > 0 && place.col <= cols - Vector<T>::kSize) {  // no row begins here
#pragma unroll 1
        for (; kept; kept &= kept - 1) col[to++] = I(place.col + __ffs(int(kept)) - 1);
        return;
      }
#pragma unroll 1
      for (int e = 0; e < Vector<T>::kSize && e < left; ++e) {
        if (place.col == 0) crow[place.row] = I(start + to);
        if (kept >> e & 1) col[to++] = I(place.col);
        place.next(cols);
      }
    };
    for_each_vector<T, 2>(m, segment, ReadWeights<T>().of(m, 0), write_vector);
  });
}

// ---- host

template <class Kernel, class... Args>
Status launch_per_matrix(Kernel kernel, int threads, const Selection& s, const Args&... args) {
  return launch(kernel, dim3(unsigned(s.count)), dim3(unsigned(threads)), 0, s.parallel, s.table, args...);
}

template <class Kernel, class... Args>
Status launch_per_span(Kernel kernel, const Selection& s, const Args&... args) {
  return launch_over(kernel, s.count, spans_of(s), kSelectThreads, s.parallel, s.table, args...);
}

template <class T, class I>
Status finish(const Selection& s) {
  SK_TRY(reserve_floors(s));
  SK_TRY(launch_per_matrix(pick_digit, kSelectThreads, s, digit<T>(0).bits));
  SK_TRY(launch_per_span(collect<T>, s));
  for (int i = 1; i < kDigitCount<T>; ++i) {
    SK_TRY(launch_per_span(refine<T>, s, digit<T>(i)));
    SK_TRY(launch_per_matrix(pick_digit, kSelectThreads, s, digit<T>(i).bits));
  }
  SK_TRY(launch_per_span(count_kept<T>, s));
  SK_TRY(launch_per_matrix(sum_segments, kScanThreads, s));
  return launch_per_span(write<T, I>, s, s.zero_rest, s.lr, s.weight_decay);
}

}  // namespace

int64_t place_workspace(Selection& s, void* workspace) {
  const int64_t key_bytes = s.dtype == DType::f64 ? 8 : 4;
  char* at = static_cast<char*>(workspace);
  const auto take = [&](int64_t bytes) {
    char* const taken = at;
    at += round_up(bytes, 64);
    return taken;
  };
  int64_t segments = 0;
  for (int i = 0; i < s.count; ++i) segments += segments_of(s.table.at[i]);
  const int64_t even = segments / (kBlocks * device_limits().multiprocessors);
  const int64_t span = max_of(kSelectWarps, min_of(even, kMostSpan));
  for (int i = 0; i < s.count; ++i) {
    SelectMatrix& m = s.table.at[i];
    m.span = int32_t(span);
    m.state = reinterpret_cast<SelectState*>(take(sizeof(SelectState)));
    m.segments = reinterpret_cast<SelectSegment*>(take(segments_of(m) * int64_t(sizeof(SelectSegment))));
    m.scratch = take(max_of(segments_of(m) * kListed * key_bytes, floor_scratch(m, s.dtype)));
    m.floors = m.floor ? take(round_up(m.neurons() * key_bytes, 64) + m.neurons() * 4) : nullptr;
  }
  return at - static_cast<char*>(workspace);
}

Status begin_selection(const Selection& s) {
  return with_index(
      s.index, [&](auto index) { return launch_per_matrix(begin<typename decltype(index)::type>, kSelectThreads, s); });
}

Status finish_selection(const Selection& s) {
  return with_value_dtype(s.dtype, [&](auto tag) {
    return with_index(
        s.index, [&](auto index) { return finish<typename decltype(tag)::type, typename decltype(index)::type>(s); });
  });
}

}  // namespace cuda
}  // namespace sk
