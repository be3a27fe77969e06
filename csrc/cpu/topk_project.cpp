// topk_project: marks the entries reserved by the floor, finds the magnitude of the last entry that fits the budget by
// a radix search over histograms of the magnitude bits, then writes the pattern row by row.
#include "sparsekern/topk_project.h"

#include "dispatch.h"
#include "magnitude.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int kDigitBits = 12;  // the counts of a thread stay in its L1
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

// The `floor` largest entries seen so far of `count` neurons: for each its keys, largest first, equal ones by index.
template <class T>
struct Best {
  Key<T>* lowest;  // (count) the smallest of each neuron's keys
  Key<T>* keys;    // (count, floor)
  int64_t* index;  // (count, floor)

  Best(uint8_t* memory, int64_t count, int64_t floor)
      : lowest(reinterpret_cast<Key<T>*>(memory)), keys(lowest + round_up(count, 8)) {
    index = reinterpret_cast<int64_t*>(keys + round_up(count * floor, 8));
    for (int64_t i = 0; i < round_up(count, 8); ++i) lowest[i] = i < count ? -1 : kMaxKey<T>;
    for (int64_t i = 0; i < count * floor; ++i) keys[i] = -1;
  }

  static int64_t bytes(int64_t count, int64_t floor) {
    return int64_t(sizeof(Key<T>)) * (round_up(count, 8) + round_up(count * floor, 8)) + 8 * count * floor;
  }

  // key is above lowest[neuron]; an equal key that came before has the lower index and stays ahead.
  inline void insert(int64_t neuron, int64_t floor, Key<T> key, int64_t at) {
    Key<T>* k = keys + neuron * floor;
    int64_t *ids = index + neuron * floor, i = floor - 1;
    for (; i > 0 && key > k[i - 1]; --i) {
      k[i] = k[i - 1];
      ids[i] = ids[i - 1];
    }
    k[i] = key;
    ids[i] = at;
    lowest[neuron] = k[floor - 1];
  }
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
  w.best_bytes = round_up(Best<T>::bytes(neurons, a.floor), 64);
  w.histograms = reinterpret_cast<int64_t*>(take(a.parallel.threads * kBins * 8));
  w.above = reinterpret_cast<int64_t*>(take(a.rows * 8));
  w.ties = reinterpret_cast<int64_t*>(take(a.rows * 8));
  w.nan_at = reinterpret_cast<int64_t*>(take(a.parallel.threads * 8));
  w.reserved = a.floor > 0 ? take(a.rows * w.row_bytes) : nullptr;
  w.best = take(a.parallel.threads * w.best_bytes);
  w.bytes = used;
  return w;
}

// Bit i is set when entry j + i of the row exists and its magnitude is above `key`, for 8 entries.
template <class T>
inline uint32_t above(const T* row, int64_t j, int64_t cols, Key<T> key) {
  if (j + 8 <= cols) return above8(row + j, key);
  uint32_t bits = 0;
  for (int64_t i = 0; j + i < cols; ++i) bits |= uint32_t(magnitude(row[j + i]) > key) << i;
  return bits;
}

// ---- the floor
// -------------------------------------------------------------------------------------------------------

inline void reserve(const Workspace& w, int64_t row, int64_t col) {
  w.reserved[row * w.row_bytes + col / 8] |= uint8_t(1u << (col % 8));
}

// Marks the `floor` largest entries of one row.
template <class T>
void reserve_row(const TopkProjectArgs& a, const Workspace& w, Best<T> best, int64_t r) {
  const T* row = static_cast<const T*>(a.weight) + r * a.cols;
  for (int64_t j = 0; j < a.cols; j += 8)
    for (uint32_t bits = above(row, j, a.cols, best.lowest[0]); bits; bits &= bits - 1) {
      const int64_t c = j + __builtin_ctz(bits);
      if (magnitude(row[c]) > best.lowest[0]) best.insert(0, a.floor, magnitude(row[c]), c);
    }
  for (int64_t i = 0; i < a.floor; ++i) reserve(w, r, best.index[i]);
}

// Marks the `floor` largest entries of each of the columns first .. first + count - 1.
template <class T>
void reserve_columns(const TopkProjectArgs& a, const Workspace& w, Best<T> best, int64_t first, int64_t count) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* strip = static_cast<const T*>(a.weight) + r * a.cols + first;
    for (int64_t c = 0; c < count; c += 8) {
      uint32_t bits = c + 8 <= count ? above8(strip + c, best.lowest + c) : (1u << (count - c)) - 1;
      for (; bits; bits &= bits - 1) {
        const int64_t n = c + __builtin_ctz(bits);
        if (magnitude(strip[n]) > best.lowest[n]) best.insert(n, a.floor, magnitude(strip[n]), r);
      }
    }
  }
  for (int64_t i = 0; i < count * a.floor; ++i) reserve(w, best.index[i], first + i / a.floor);
}

template <class T>
void reserve_floor(const TopkProjectArgs& a, const Workspace& w) {
  for (int64_t i = 0; i < a.rows * w.row_bytes; ++i) w.reserved[i] = 0;
  const auto best = [&](int64_t worker, int64_t count) {
    return Best<T>(w.best + worker * w.best_bytes, count, a.floor);
  };
  if (a.axis == 0) {
    for_each_item(a.parallel, a.rows, [&](int64_t worker, int64_t r) { reserve_row<T>(a, w, best(worker, 1), r); });
  } else {
    for_each_item(a.parallel, ceil_div(a.cols, kStripColumns), [&](int64_t worker, int64_t strip) {
      const int64_t first = strip * kStripColumns, count = min_of(kStripColumns, a.cols - first);
      reserve_columns<T>(a, w, best(worker, count), first, count);
    });
  }
}

// ---- the cut
// ---------------------------------------------------------------------------------------------------------

// Magnitudes above `key` are kept, and `ties` of those equal to it.
template <class T>
struct Cut {
  Key<T> key;
  int64_t ties;
};

// Counts, by the digit of `bits` bits at `shift`, the entries that are not reserved and whose higher bits equal
// `prefix`.
template <class T>
void histogram_row(const TopkProjectArgs& a, const Workspace& w, int64_t r, int shift, int bits, Key<T> prefix,
                   int64_t* histogram) {
  const T* row = static_cast<const T*>(a.weight) + r * a.cols;
  const Key<T> digit_mask = Key<T>((uint64_t(1) << bits) - 1);
  const Key<T> rest = Key<T>((uint64_t(1) << (bits + shift)) - 1);
  const Key<T> first = Key<T>(uint64_t(prefix) << (bits + shift)), last = first | rest;  // the keys with this prefix
  for (int64_t j = 0; j < a.cols; j += 8) {
    uint32_t wanted = above(row, j, a.cols, Key<T>(first - 1));
    if (wanted) wanted &= ~above(row, j, a.cols, last);
    if (w.reserved) wanted &= ~uint32_t(w.reserved[r * w.row_bytes + j / 8]);
    const auto count = [&](int64_t at) { ++histogram[(magnitude(row[at]) >> shift) & digit_mask]; };
    if (wanted == 0xff)
      for (int i = 0; i < 8; ++i) count(j + i);
    else
      for (; wanted; wanted &= wanted - 1) count(j + __builtin_ctz(wanted));
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
      for (int64_t r = item * kRowsPerItem; r < min_of(a.rows, (item + 1) * kRowsPerItem); ++r)
        histogram_row<T>(a, w, r, shift, bits, prefix, w.histograms + worker * kBins);
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

// ---- the pattern
// -----------------------------------------------------------------------------------------------------

// Of 8 entries (fewer at the end of a row): the bits of those kept for certain, and of those equal to the cut.
struct Verdict {
  uint32_t kept, tied;
};

template <class T>
inline Verdict judge(const TopkProjectArgs& a, const Workspace& w, const T* row, int64_t r, int64_t j, Key<T> key) {
  const uint32_t certain = above(row, j, a.cols, key), reached = above(row, j, a.cols, Key<T>(key - 1));
  const uint32_t reserved = w.reserved ? w.reserved[r * w.row_bytes + j / 8] : 0;
  return {certain | reserved, reached & ~certain & ~reserved};
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
    with_index(a.index,
               [&](auto index) { status = run<typename decltype(tag)::type, typename decltype(index)::type>(a); });
  });
  return status;
}

}  // namespace SK_ISA
}  // namespace sk
