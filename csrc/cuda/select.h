// Selection of exactly k entries of several matrices at once by the rule of sparsekern/topk_project.h, for
// topk_project, adamw_project and adamw_select.
//
// The magnitude of the last entry kept, the cut, is found digit by digit in histograms of the magnitude bits; it stays
// in device memory, so that nothing waits. In bytes per parameter (float32):
//   count_first_digit  4  by whoever makes the weights: what the caller does anyway, plus a histogram of 12 bits
//   reserve_floors     4  only with a floor, see floor.h
//   collect            4  lists the few magnitudes with the cut's first digit, counts those above them
//   refine, count      0  the other digits, then what each segment keeps: from the lists
//   write              8  zeroes the rest, decays what is kept, writes the pattern in order
// A matrix is cut into segments of the flat index, one for a warp at a time, whatever its shape. Counts are integers,
// so their order does not matter, and the lists are in order: the result is the same in every run.
#pragma once

#include "sparsekern/topk_project.h"
#include "table.h"

namespace sk {
namespace cuda {

// ---- magnitudes as integers: the bits of a float without its sign order like its absolute value

template <class T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = int32_t;
  static constexpr int32_t kMax = 0x7fffffff, kNan = 0x7f800001;
};
template <>
struct KeyOf<double> {
  using type = int64_t;
  static constexpr int64_t kMax = 0x7fffffffffffffff, kNan = 0x7ff0000000000001;
};
template <class T>
using Key = typename KeyOf<T>::type;  // signed: -1 is below every magnitude

// All NaN are one magnitude, above infinity.
template <class T>
__device__ __forceinline__ Key<T> magnitude(T x) {
  Key<T> bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= KeyOf<T>::kMax;
  return bits < KeyOf<T>::kNan ? bits : KeyOf<T>::kNan;
}

// Digit i of a key is its `bits` bits from `shift` up. The second is short: it is counted in blocks that see few keys.
struct Digit {
  int shift, bits;
};
constexpr int kDigits[] = {12, 8, 11, 11, 11, 10};
constexpr int kBins = 1 << 12, kLaterBins = 1 << 11;

template <class T>
constexpr int kDigitCount = sizeof(T) == 4 ? 3 : 6;
template <class T>
constexpr Digit digit(int i) {
  int shift = 8 * int(sizeof(T)) - 1;
  for (int d = 0; d <= i; ++d) shift -= kDigits[d];
  return {shift, kDigits[i]};
}
template <class T>
constexpr int kBinShift = digit<T>(0).shift;

// ---- matrices

// Of one matrix, in device memory. After all digits, entries above `prefix` are kept and `left` of those equal to it.
struct SelectState {
  int64_t prefix;                       // the digits of the cut found so far
  int64_t left;                         // of the budget, for the entries that share them
  unsigned long long histogram[kBins];  // of the next digit; digit 0 is not counted, it gets what the others leave
};

// Of a segment: first the entries certain to be kept and those listed, then those kept and those equal to the cut,
// last the sums of these over the segments before.
struct SelectSegment {
  int64_t kept, tied;
};

struct SelectMatrix {
  void* weight;
  void* crow;
  void* col;
  int64_t* nan_at;
  int64_t rows, cols, k, floor;
  int32_t axis;
  int32_t span;  // segments of a block; set by place_workspace, as is what follows, in the workspace
  SelectState* state;
  SelectSegment* segments;
  void* scratch;  // the best of every slice (floor.cu), then the lists: kListed keys per segment
  void* floors;   // the last entry reserved of every neuron: keys, then indices within the neuron; see floors_of

  __host__ __device__ int64_t size() const { return rows * cols; }
  __host__ __device__ int64_t neurons() const { return axis == 0 ? rows : cols; }
};

struct SelectTable {
  SelectMatrix at[kTable];
};

constexpr int kSelectThreads = 256;
constexpr int kSelectWarps = kSelectThreads / kWarp;
constexpr int kSegment = 2048;          // entries
constexpr int kMostSpan = 32;           // segments of a block, which adds up its histogram once
constexpr int kBlocks = 2;              // per multiprocessor: with less work than for these, blocks get smaller
constexpr int kListed = kSegment / 16;  // a bin of the first digit spans 1/16 octave: rarely more than 3 % of all

__host__ __device__ inline int64_t segments_of(const SelectMatrix& m) { return ceil_div(m.size(), kSegment); }

template <class T>
struct Floors {
  Key<T>* key;
  int32_t* index;
};
template <class T>
__host__ __device__ Floors<T> floors_of(const SelectMatrix& m) {
  char* const base = static_cast<char*>(m.floors);
  return {reinterpret_cast<Key<T>*>(base),
          reinterpret_cast<int32_t*>(base + round_up(m.neurons() * int64_t(sizeof(Key<T>)), 64))};
}

// ---- walking over a matrix

struct Place {
  int32_t row, col;

  __device__ __forceinline__ void next(int32_t cols) {
    if (++col < cols) return;
    col = 0;
    ++row;
  }

  __device__ __forceinline__ void advance(int32_t by_rows, int32_t by_cols, int32_t cols) {
    const bool wraps = col >= cols - by_cols;
    row += by_rows + wraps;
    col += by_cols - (wraps ? cols : 0);
  }
};

// The vector at `from`, of which `left` elements exist (more or fewer than it has); 0 beyond.
template <class T>
__device__ __forceinline__ Vector<T> load_some(const T* from, int left) {
  if (left >= Vector<T>::kSize && reinterpret_cast<uintptr_t>(from) % sizeof(Vector<T>) == 0) return load_vector(from);
  Vector<T> v;
  for (int e = 0; e < Vector<T>::kSize; ++e) v.at[e] = e < left ? from[e] : T(0);
  return v;
}

// To global memory. The intrinsic is one instruction for sure; the compiler splits some assignments of 16 bytes.
template <class T>
__device__ __forceinline__ void store_some(T* to, const Vector<T>& v, int left) {
  if (left >= Vector<T>::kSize && reinterpret_cast<uintptr_t>(to) % sizeof(Vector<T>) == 0) {
    uint4 bits;
    memcpy(&bits, &v, sizeof bits);
    __stwb(reinterpret_cast<uint4*>(to), bits);
    return;
  }
  for (int e = 0; e < Vector<T>::kSize; ++e)
    if (e < left) to[e] = v.at[e];
}

// Calls f(segment) for those of the block's segments that belong to this warp.
template <class F>
__device__ __forceinline__ void for_each_segment(const SelectMatrix& m, int64_t block, F&& f) {
  const int64_t end = min_of(segments_of(m), (block + 1) * m.span);
#pragma unroll 1
  for (int64_t s = block * m.span + threadIdx.x / kWarp; s < end; s += kSelectWarps) f(s);
}

// Calls f(at, place, v, left) for the vectors of a segment: v = load(at, left) begins at flat index `at` and `place`,
// and `left` entries are left there (none or fewer in some lanes). All lanes call f together. kBatch loads are in
// flight at a time.
template <class T, int kBatch, class Load, class F>
__device__ __forceinline__ void for_each_vector(const SelectMatrix& m, int64_t segment, Load&& load, F&& f) {
  constexpr int kStep = kWarp * Vector<T>::kSize;
  const int64_t first = segment * kSegment;
  const int32_t cols = int32_t(m.cols), step_rows = kStep / cols, step_cols = kStep % cols;
  const int entries = int(min_of(kSegment, m.size() - first)), lane_begin = threadIdx.x % kWarp * Vector<T>::kSize;
  Place place{int32_t((first + lane_begin) / cols), int32_t((first + lane_begin) % cols)};
#pragma unroll 1
  for (int begin = 0; begin < entries; begin += kBatch * kStep) {
    const int at = begin + lane_begin;
    Vector<T> v[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) v[b] = load(first + at + b * kStep, entries - at - b * kStep);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      f(first + at + b * kStep, place, v[b], entries - at - b * kStep);
      place.advance(step_rows, step_cols, cols);
    }
  }
}

// The weights as they are: what for_each_vector loads, and the first pass where nothing else is to be done.
template <class T>
struct ReadWeights {
  static constexpr int kBatch = 4;
  struct Load {
    const T* weight;
    __device__ __forceinline__ Vector<T> operator()(int64_t at, int left) const { return load_some(weight + at, left); }
  };
  __device__ __forceinline__ Load of(const SelectMatrix& m, int) const { return {static_cast<const T*>(m.weight)}; }
};

// ---- histograms: counted in shared memory (uint32_t[kBins]), then added to the matrix's

__device__ __forceinline__ void clear_bins(uint32_t* bins, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) bins[i] = 0;
  __syncthreads();
}

__device__ __forceinline__ void count_digit(uint32_t* bins, int digit) {
  if (digit) atomicAdd(bins + digit, 1u);
}

__device__ __forceinline__ void add_bins(const uint32_t* bins, int count, unsigned long long* histogram) {
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    if (bins[i]) atomicAdd(histogram + i, static_cast<unsigned long long>(bins[i]));
}

// ---- the passes

// Makes the weights that are selected from, counts the first digit of their magnitudes, finds NaN.
// Source::of(matrix, its number) returns what for_each_vector takes as load.
template <class T, class Source>
__global__ void __launch_bounds__(kSelectThreads)
    count_first_digit(__grid_constant__ const Work work, __grid_constant__ const SelectTable table,
                      __grid_constant__ const Source source) {
  __shared__ uint32_t bins[kBins];
  const Share share = work.share();
  const SelectMatrix& m = table.at[share.matrix];
  const auto load = source.of(m, share.matrix);
  clear_bins(bins, kBins);
  int64_t nan_at = kNoNan;
  for_each_segment(m, share.block, [&](int64_t segment) {
    for_each_vector<T, Source::kBatch>(m, segment, load, [&](int64_t at, Place, const Vector<T>& v, int left) {
#pragma unroll
      for (int e = 0; e < Vector<T>::kSize; ++e) {
        const Key<T> key = e < left ? magnitude(v.at[e]) : 0;  // 0 is not counted
        count_digit(bins, int(key >> kBinShift<T>));
        if (key == KeyOf<T>::kNan) nan_at = min_of(nan_at, at + e);
      }
    });
  });
  if (nan_at != kNoNan)
    atomicMin(reinterpret_cast<unsigned long long*>(m.nan_at), static_cast<unsigned long long>(nan_at));
  add_bins(bins, kBins, m.state->histogram);
}

// A launch of at most kTable matrices.
struct Selection {
  SelectTable table;  // filled in by the caller, then by place_workspace
  int count;
  DType dtype;      // f32 or f64
  IndexType index;  // of crow and col
  bool zero_rest;
  const double* lr;  // null, or what is kept is multiplied by 1 - lr * weight_decay
  double weight_decay;
  Parallel parallel;
};

// The blocks of a pass over all entries.
inline auto spans_of(const Selection& s) {
  return [&s](int i) { return ceil_div(segments_of(s.table.at[i]), s.table.at[i].span); };
}

// Carves up a workspace that is 64-byte aligned; returns its bytes.
int64_t place_workspace(Selection& s, void* workspace);

Status begin_selection(const Selection& s);
// Between the two.
template <class T, class Source>
Status run_first_pass(const Selection& s, const Source& source) {
  return launch_over(count_first_digit<T, Source>, s.count, spans_of(s), kSelectThreads, s.parallel, s.table, source);
}
Status finish_selection(const Selection& s);

}  // namespace cuda
}  // namespace sk
