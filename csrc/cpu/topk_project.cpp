// topk_project: marks the entries reserved by the floor, finds the magnitude of the last entry that fits the budget by a
// radix search over histograms of the magnitude bits, then writes the pattern row by row.
#include "sparsekern/topk_project.h"

#include "dispatch.h"
#include "magnitude.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int kDigitBits = 16;
constexpr int64_t kBins = int64_t(1) << kDigitBits;
constexpr int64_t kRowsPerItem = 16;
constexpr int64_t kStripColumns = 256;  // a multiple of 8, so that strips share no byte of the reserved bits

inline int32_t popcount(uint32_t bits) { return __builtin_popcount(bits); }

// The arrays a call works with, carved out of one workspace.
struct Workspace {
  int64_t* histograms;  // (threads, bins)
  int64_t* above;       // (rows) entries kept for certain, then where the row starts
  int64_t* ties;        // (rows) entries equal to the cut, then how many of them the row may keep
  int64_t* nan_at;      // (threads)
  uint8_t* reserved;    // (rows, row_bytes) bits, or null
  uint8_t* best;        // (threads, best_bytes): the candidates for the floor of the neurons at hand
  int64_t row_bytes, best_bytes, bytes;
};

// The `floor` largest entries seen so far of one neuron, largest first, equal ones by index.
template <class T>
struct Best {
  Key<T> key;
  int64_t index;
};

template <class T>
Workspace carve(const TopkProjectArgs& a) {
  Workspace w;
  uint8_t* const base = static_cast<uint8_t*>(a.workspace);
  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    uint8_t* p = base + used;
    used += round_up(bytes, 64);
    return p;
  };
  const int64_t neurons = a.axis == 0 ? 1 : min_of(a.cols, kStripColumns);
  w.row_bytes = (a.cols + 7) / 8;
  w.best_bytes = round_up(neurons * a.floor * int64_t(sizeof(Best<T>)), 64);
  w.histograms = reinterpret_cast<int64_t*>(take(a.parallel.threads * kBins * 8));
  w.above = reinterpret_cast<int64_t*>(take(a.rows * 8));
  w.ties = reinterpret_cast<int64_t*>(take(a.rows * 8));
  w.nan_at = reinterpret_cast<int64_t*>(take(a.parallel.threads * 8));
  w.reserved = a.floor > 0 ? take(a.rows * w.row_bytes) : nullptr;
  w.best = take(a.parallel.threads * w.best_bytes);
  w.bytes = used;
  return w;
}

// ---- the floor -------------------------------------------------------------------------------------------------------

template <class T>
inline void offer(Best<T>* best, int64_t floor, Key<T> key, int64_t index) {
  if (key <= best[floor - 1].key) return;  // an equal key with a lower index came first
  int64_t i = floor - 1;
  for (; i > 0 && key > best[i - 1].key; --i) best[i] = best[i - 1];
  best[i] = {key, index};
}

inline void reserve(const Workspace& w, int64_t row, int64_t col) {
  w.reserved[row * w.row_bytes + col / 8] |= uint8_t(1u << (col % 8));
}

// Marks the `floor` largest entries of the neurons first .. first + count - 1: rows (axis 0) or columns (axis 1).
template <class T>
void reserve_neurons(const TopkProjectArgs& a, const Workspace& w, int64_t worker, int64_t first, int64_t count) {
  Best<T>* best = reinterpret_cast<Best<T>*>(w.best + worker * w.best_bytes);
  const T* weight = static_cast<const T*>(a.weight);
  for (int64_t i = 0; i < count * a.floor; ++i) best[i] = {-1, 0};
  if (a.axis == 0) {
    for (int64_t j = 0; j < a.cols; ++j) offer(best, a.floor, magnitude(weight[first * a.cols + j]), j);
    for (int64_t i = 0; i < a.floor; ++i) reserve(w, first, best[i].index);
  } else {
    for (int64_t r = 0; r < a.rows; ++r)
      for (int64_t c = 0; c < count; ++c)
        offer(best + c * a.floor, a.floor, magnitude(weight[r * a.cols + first + c]), r);
    for (int64_t i = 0; i < count * a.floor; ++i) reserve(w, best[i].index, first + i / a.floor);
  }
}

template <class T>
void reserve_floor(const TopkProjectArgs& a, const Workspace& w) {
  for (int64_t i = 0; i < a.rows * w.row_bytes; ++i) w.reserved[i] = 0;
  const int64_t neurons = a.axis == 0 ? a.rows : a.cols, step = a.axis == 0 ? 1 : kStripColumns;
  for_each_item(a.parallel, ceil_div(neurons, step), [&](int64_t worker, int64_t item) {
    reserve_neurons<T>(a, w, worker, item * step, min_of(step, neurons - item * step));
  });
}

// ---- the cut ---------------------------------------------------------------------------------------------------------

// Magnitudes above `key` are kept, and `ties` of those equal to it.
template <class T>
struct Cut {
  Key<T> key;
  int64_t ties;
};

inline bool is_reserved(const Workspace& w, int64_t row, int64_t col) {
  return w.reserved && (w.reserved[row * w.row_bytes + col / 8] >> (col % 8) & 1);
}

// Counts, by the digit at `shift`, the entries that are not reserved and whose higher bits equal `prefix`.
template <class T>
void histogram_rows(const TopkProjectArgs& a, const Workspace& w, int64_t begin, int64_t end, int shift, int bits,
                    Key<T> prefix, int64_t* histogram) {
  for (int64_t r = begin; r < end; ++r) {
    const T* row = static_cast<const T*>(a.weight) + r * a.cols;
    for (int64_t j = 0; j < a.cols; ++j) {
      const Key<T> key = magnitude(row[j]);
      // bits + shift may be the full width of the type: shift in two steps
      if ((key >> shift >> bits) == prefix && !is_reserved(w, r, j))
        ++histogram[(key >> shift) & ((Key<T>(1) << bits) - 1)];
    }
  }
}

// The cut that keeps `budget` of the entries that are not reserved.
template <class T>
Cut<T> find_cut(const TopkProjectArgs& a, const Workspace& w, int64_t budget) {
  if (budget == 0) return {kMaxKey<T>, 0};
  const int64_t items = ceil_div(a.rows, kRowsPerItem);
  Key<T> prefix = 0;
  for (int shift = kKeyBits<T>; shift > 0;) {
    const int bits = shift < kDigitBits ? shift : kDigitBits;
    shift -= bits;
    const int64_t bins = int64_t(1) << bits;
    for (int64_t i = 0; i < a.parallel.threads * kBins; ++i) w.histograms[i] = 0;
    for_each_item(a.parallel, items, [&](int64_t worker, int64_t item) {
      histogram_rows<T>(a, w, item * kRowsPerItem, min_of(a.rows, (item + 1) * kRowsPerItem), shift, bits, prefix,
                        w.histograms + worker * kBins);
    });
    int64_t digit = bins, count = 0;
    do {  // from the largest digit down, until the rest of the budget fits
      budget -= count;
      --digit;
      count = 0;
      for (int64_t t = 0; t < a.parallel.threads; ++t) count += w.histograms[t * kBins + digit];
    } while (count < budget);
    prefix = Key<T>(prefix << bits) | Key<T>(digit);
  }
  return {prefix, budget};
}

// ---- the pattern -----------------------------------------------------------------------------------------------------

template <class T>
inline uint32_t above_tail(const T* x, int64_t count, Key<T> key) {
  uint32_t bits = 0;
  for (int64_t i = 0; i < count; ++i) bits |= uint32_t(magnitude(x[i]) > key) << i;
  return bits;
}

// Of 8 entries (fewer at the end of a row): the bits of those kept for certain, and of those equal to the cut.
struct Verdict {
  uint32_t kept, tied;
};

template <class T>
inline Verdict judge(const TopkProjectArgs& a, const Workspace& w, const T* row, int64_t r, int64_t j, Key<T> key) {
  const bool full = j + 8 <= a.cols;
  const uint32_t above = full ? above8(row + j, key) : above_tail(row + j, a.cols - j, key);
  const uint32_t reached = full ? above8(row + j, key - 1) : above_tail(row + j, a.cols - j, Key<T>(key - 1));
  const uint32_t reserved = w.reserved ? w.reserved[r * w.row_bytes + j / 8] : 0;
  return {above | reserved, reached & ~above & ~reserved};
}

// Counts of every row, then where each row starts and how many ties it may keep: ties go to the first rows.
template <class T>
void place_rows(const TopkProjectArgs& a, const Workspace& w, Cut<T> cut) {
  for_each_range(a.parallel, a.rows, kRowsPerItem, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* row = static_cast<const T*>(a.weight) + r * a.cols;
      int64_t kept = 0, tied = 0;
      for (int64_t j = 0; j < a.cols; j += 8) {
        const Verdict v = judge(a, w, row, r, j, cut.key);
        kept += popcount(v.kept);
        tied += popcount(v.tied);
      }
      w.above[r] = kept;
      w.ties[r] = tied;
    }
  });
  int64_t start = 0, ties_left = cut.ties;
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t kept = w.above[r], tied = min_of(ties_left, w.ties[r]);
    w.above[r] = start;
    w.ties[r] = tied;
    start += kept + tied;
    ties_left -= tied;
  }
}

template <class T, class I>
void write_row(const TopkProjectArgs& a, const Workspace& w, int64_t r, Key<T> key) {
  T* row = static_cast<T*>(a.weight) + r * a.cols;
  I* col = static_cast<I*>(a.col) + w.above[r];
  int64_t ties = w.ties[r];
  static_cast<I*>(a.crow)[r] = I(w.above[r]);
  for (int64_t j = 0; j < a.cols; j += 8) {
    const Verdict v = judge(a, w, row, r, j, key);
    uint32_t bits = v.kept;
    for (uint32_t tied = v.tied; tied && ties > 0; tied &= tied - 1, --ties) bits |= tied & -tied;
    for (uint32_t left = bits; left; left &= left - 1) *col++ = I(j + __builtin_ctz(left));
    if (!a.zero_rest) continue;
    if (j + 8 <= a.cols)
      keep8(row + j, bits, row + j);
    else
      for (int64_t i = 0; j + i < a.cols; ++i) row[j + i] = bits >> i & 1 ? row[j + i] : T(0);
  }
}

template <class T>
int64_t find_nan(const TopkProjectArgs& a, const Workspace& w) {
  for (int64_t t = 0; t < a.parallel.threads; ++t) w.nan_at[t] = -1;
  for_each_item(a.parallel, ceil_div(a.rows, kRowsPerItem), [&](int64_t worker, int64_t item) {
    const T* weight = static_cast<const T*>(a.weight);
    const int64_t begin = item * kRowsPerItem * a.cols, end = min_of(a.rows, (item + 1) * kRowsPerItem) * a.cols;
    bool found = false;
    for (int64_t i = begin; i < end; ++i) found |= magnitude(weight[i]) > KeyOf<T>::kInfinity;
    if (!found || w.nan_at[worker] >= 0) return;
    int64_t i = begin;
    while (magnitude(weight[i]) <= KeyOf<T>::kInfinity) ++i;
    w.nan_at[worker] = i;
  });
  int64_t first = -1;  // the lowest of the workers', so that the answer does not depend on their number
  for (int64_t t = 0; t < a.parallel.threads; ++t)
    if (w.nan_at[t] >= 0 && (first < 0 || w.nan_at[t] < first)) first = w.nan_at[t];
  return first;
}

template <class T, class I>
SelectStatus run(TopkProjectArgs& a) {
  const Workspace w = carve<T>(a);
  a.nan_at = find_nan<T>(a, w);
  if (a.nan_at >= 0) return kSelectNan;
  if (a.floor > 0) reserve_floor<T>(a, w);
  const Cut<T> cut = find_cut<T>(a, w, a.k - a.floor * (a.axis == 0 ? a.rows : a.cols));
  place_rows(a, w, cut);
  for_each_range(a.parallel, a.rows, kRowsPerItem, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) write_row<T, I>(a, w, r, cut.key);
  });
  static_cast<I*>(a.crow)[a.rows] = I(a.k);
  return kSelectOk;
}

}  // namespace

int64_t topk_project_workspace(const TopkProjectArgs& a) {
  int64_t bytes = 0;
  with_dtype(a.dtype, [&](auto tag) { bytes = carve<typename decltype(tag)::type>(a).bytes; });
  return bytes;
}

SelectStatus topk_project(TopkProjectArgs& a) {
  SelectStatus status = kSelectOk;
  with_dtype(a.dtype, [&](auto tag) {
    with_index(a.index, [&](auto index) { status = run<typename decltype(tag)::type, typename decltype(index)::type>(a); });
  });
  return status;
}

}  // namespace SK_ISA
}  // namespace sk
