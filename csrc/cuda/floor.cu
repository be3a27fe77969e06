// The floor of a selection, in rounds: each reads a matrix once and reserves up to kBest more entries per neuron.
//
// A thread keeps the best entries that it has seen in a sorted list in registers; the 32 lists of a warp are then
// merged. A row is read by one warp. Columns are read by a thread each, in slices of kSliceRows rows, whose lists (0.13
// bytes per parameter with float32) another kernel merges, one warp per column.
#include "floor.h"

namespace sk {
namespace cuda {
namespace {

constexpr int kBest = 4;  // the published floor; with more, keeping the lists sorted would cost more than another read
constexpr int kSliceRows = 256;
constexpr int kLoads = 8;  // in flight per thread, in slices

int64_t slices_of(const SelectMatrix& m) { return ceil_div(m.rows, kSliceRows); }

// The best entries among those a thread has seen, largest first, equal ones in the order seen.
template <class T>
struct Best {
  Key<T> key[kBest];    // -1 where there are fewer
  int32_t seen[kBest];  // which of the thread's entries it was

  __device__ __forceinline__ Best() {
#pragma unroll
    for (int i = 0; i < kBest; ++i) {
      key[i] = -1;
      seen[i] = 0;
    }
  }

  __device__ __forceinline__ bool admits(Key<T> k) const { return k > key[kBest - 1]; }

  __device__ __forceinline__ void insert(Key<T> k, int32_t s) {
    key[kBest - 1] = k;
    seen[kBest - 1] = s;
#pragma unroll
    for (int i = kBest - 1; i > 0; --i) {
      if (k > key[i - 1]) {
        key[i] = key[i - 1];
        seen[i] = seen[i - 1];
        key[i - 1] = k;
        seen[i - 1] = s;
      }
    }
  }

  __device__ __forceinline__ void pop() {
#pragma unroll
    for (int i = 0; i + 1 < kBest; ++i) {
      key[i] = key[i + 1];
      seen[i] = seen[i + 1];
    }
    key[kBest - 1] = -1;
  }
};

// The entry of a neuron that was reserved last, in the rounds before.
template <class T>
struct Last {
  Key<T> key;
  int64_t index;

  __device__ __forceinline__ bool precedes(Key<T> k, int64_t i) const { return k < key || (k == key && i > index); }
};

template <class T>
__device__ __forceinline__ Last<T> last_of(const SelectMatrix& m, int64_t neuron, int64_t done) {
  if (done == 0) return {KeyOf<T>::kMax, -1};
  const Floors<T> floors = floors_of<T>(m);
  return {floors.key[neuron], floors.index[neuron]};
}

// Reserves the best entries in the lists of a warp, as many as this round may: takes them out of the histogram, stores
// the last. index_of(seen) is an entry's index within the neuron; entries are in that order within each list.
template <class T, class IndexOf>
__device__ __forceinline__ void reserve_best(const SelectMatrix& m, int64_t neuron, int64_t done, Best<T>& best,
                                             IndexOf&& index_of) {
  const int64_t take = min_of(kBest, m.floor - done);
  Last<T> last{0, 0};
  for (int64_t taken = 0; taken < take; ++taken) {
    last.key = warp_max(best.key[0]);
    const bool is_best = best.key[0] == last.key;
    const int64_t index = is_best ? index_of(best.seen[0]) : INT64_MAX;
    last.index = -warp_max(-index);  // the lowest
    if (index == last.index) {
      const int digit = int(last.key >> kBinShift<T>);
      if (digit) atomicAdd(m.state->histogram + digit, ~0ull);  // minus 1
      best.pop();
    }
  }
  if (threadIdx.x % kWarp != 0) return;
  const Floors<T> floors = floors_of<T>(m);
  floors.key[neuron] = last.key;
  floors.index[neuron] = int32_t(last.index);
}

// axis 0: one warp per row.
template <class T>
__global__ void __launch_bounds__(kSelectThreads)
    reserve_rows(__grid_constant__ const Work work, __grid_constant__ const SelectTable table, int64_t done) {
  constexpr int kSize = Vector<T>::kSize, kBatch = 4;
  const Share share = work.share();
  const SelectMatrix& m = table.at[share.matrix];
  const int64_t row = share.block * kSelectWarps + threadIdx.x / kWarp;
  if (row >= m.rows) return;
  const Last<T> last = last_of<T>(m, row, done);
  const T* const entries = static_cast<const T*>(m.weight) + row * m.cols;
  const int first = threadIdx.x % kWarp * kSize;
  const auto column = [=](int32_t seen) { return int64_t(seen / kSize) * (kWarp * kSize) + first + seen % kSize; };
  Best<T> best;
  for (int32_t seen = 0; column(seen) < m.cols; seen += kBatch * kSize) {
    Vector<T> v[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t c = column(seen + b * kSize);
      v[b] = load_some(entries + c, int(min_of(kSize, m.cols - c)));
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b)
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        const int32_t s = seen + b * kSize + e;
        const Key<T> key = magnitude(v[b].at[e]);
        if (best.admits(key) && column(s) < m.cols && last.precedes(key, column(s))) best.insert(key, s);
      }
  }
  reserve_best(m, row, done, best, column);
}

// The lists of the slices: those of a column follow each other.
template <class T>
struct Slices {
  Key<T>* key;
  int32_t* row;  // within the slice
};
template <class T>
__host__ __device__ Slices<T> slices_at(const SelectMatrix& m, int64_t slices) {
  Key<T>* const key = static_cast<Key<T>*>(m.scratch);
  return {key, reinterpret_cast<int32_t*>(key + m.cols * slices * kBest)};
}

// axis 1, first: one thread per column and slice.
template <class T>
__global__ void __launch_bounds__(kSelectThreads)
    list_columns(__grid_constant__ const Work work, __grid_constant__ const SelectTable table, int64_t done) {
  const Share share = work.share();
  const SelectMatrix& m = table.at[share.matrix];
  const int64_t slices = ceil_div(m.rows, kSliceRows);
  const int64_t slice = share.block % slices, col = share.block / slices * kSelectThreads + threadIdx.x;
  if (col >= m.cols) return;
  const int64_t first = slice * kSliceRows;
  const int rows = int(min_of(kSliceRows, m.rows - first));
  const Last<T> last = last_of<T>(m, col, done);
  const T* const entries = static_cast<const T*>(m.weight) + first * m.cols + col;
  Best<T> best;
  for (int r = 0; r < rows; r += kLoads) {
    T v[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) v[j] = r + j < rows ? entries[(r + j) * m.cols] : T(0);
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const Key<T> key = magnitude(v[j]);
      if (best.admits(key) && r + j < rows && last.precedes(key, first + r + j)) best.insert(key, r + j);
    }
  }
  const Slices<T> lists = slices_at<T>(m, slices);
  const int64_t at = (col * slices + slice) * kBest;
#pragma unroll
  for (int i = 0; i < kBest; ++i) {
    lists.key[at + i] = best.key[i];
    lists.row[at + i] = best.seen[i];
  }
}

// axis 1, then: one warp per column merges its slices; every lane takes each 32nd slice.
template <class T>
__global__ void __launch_bounds__(kSelectThreads)
    reserve_columns(__grid_constant__ const Work work, __grid_constant__ const SelectTable table, int64_t done) {
  const Share share = work.share();
  const SelectMatrix& m = table.at[share.matrix];
  const int64_t col = share.block * kSelectWarps + threadIdx.x / kWarp;
  if (col >= m.cols) return;
  const int64_t slices = ceil_div(m.rows, kSliceRows);
  const Slices<T> lists = slices_at<T>(m, slices);
  const int lane = threadIdx.x % kWarp;
  const auto slice = [=](int32_t seen) { return int64_t(seen / kBest) * kWarp + lane; };
  const auto at = [=](int32_t seen) { return (col * slices + slice(seen)) * kBest + seen % kBest; };
  Best<T> best;
  for (int32_t seen = 0; slice(seen) < slices; ++seen) {
    const Key<T> key = lists.key[at(seen)];
    if (best.admits(key)) best.insert(key, seen);
  }
  reserve_best(m, col, done, best, [=](int32_t seen) { return slice(seen) * kSliceRows + lists.row[at(seen)]; });
}

template <class T>
Status reserve(const Selection& s) {
  int64_t floor = 0;
  for (int i = 0; i < s.count; ++i) floor = max_of(floor, s.table.at[i].floor);
  for (int64_t done = 0; done < floor; done += kBest) {
    // The blocks of the matrices with this axis that need another round; `items` each.
    const auto on_axis = [&](int axis, auto blocks_of) {
      return [=, &s](int i) {
        const SelectMatrix& m = s.table.at[i];
        return m.axis == axis && m.floor > done ? blocks_of(m) : 0;
      };
    };
    const auto rows = on_axis(0, [](const SelectMatrix& m) { return ceil_div(m.rows, kSelectWarps); });
    const auto slices =
        on_axis(1, [](const SelectMatrix& m) { return ceil_div(m.cols, kSelectThreads) * slices_of(m); });
    const auto columns = on_axis(1, [](const SelectMatrix& m) { return ceil_div(m.cols, kSelectWarps); });
    SK_TRY(launch_over(reserve_rows<T>, s.count, rows, kSelectThreads, s.parallel, s.table, done));
    SK_TRY(launch_over(list_columns<T>, s.count, slices, kSelectThreads, s.parallel, s.table, done));
    SK_TRY(launch_over(reserve_columns<T>, s.count, columns, kSelectThreads, s.parallel, s.table, done));
  }
  return kOk;
}

}  // namespace

int64_t floor_scratch(const SelectMatrix& m, DType dtype) {
  if (m.floor == 0 || m.axis == 0) return 0;
  return m.cols * slices_of(m) * kBest * ((dtype == DType::f64 ? 8 : 4) + 4);
}

Status reserve_floors(const Selection& s) {
  return with_value_dtype(s.dtype, [&](auto tag) { return reserve<typename decltype(tag)::type>(s); });
}

}  // namespace cuda
}  // namespace sk
