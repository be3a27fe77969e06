// topk_project: marks the entries reserved by the floor, finds the magnitude of the last entry that fits the budget,
// then writes the pattern row by row. The search brackets that magnitude by a sample, collects what lies in the bracket
// in one pass over the weight, and ends with a radix search over the few magnitudes collected.
#include "sparsekern/topk_project.h"

#include "best.h"
#include "dispatch.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int kDigitBits = 12;  // the counts of a thread stay in its L1
constexpr int64_t kBins = int64_t(1) << kDigitBits;
constexpr int64_t kRowsPerItem = 16;
constexpr int64_t kSample = 8192;
constexpr int64_t kStripColumns = 256;  // a multiple of 8, so that strips share no byte of the reserved bits

inline int32_t popcount(uint32_t bits) { return __builtin_popcount(bits); }

// The arrays a call works with, carved out of one workspace.
struct Workspace {
  int64_t* histograms;  // (threads, bins)
  int64_t* above;       // (rows) entries kept for certain, then where the row starts
  int64_t* ties;        // (rows) entries equal to the cut, then how many of them the row may keep
  int64_t* inside;      // (items) entries collected from each block of rows
  int64_t* beyond;      // (items) entries of each block above the bracket
  void* collected;      // (rows * cols) keys; those of a block begin where the block does
  uint8_t* reserved;    // (rows, row_bytes) bits, or null
  uint8_t* best;        // (threads, best_bytes): the candidates for the floor of the neurons at hand
  int64_t row_bytes, best_bytes, bytes;
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
  const int64_t items = ceil_div(a.rows, kRowsPerItem);
  w.inside = reinterpret_cast<int64_t*>(take(items * 8));
  w.beyond = reinterpret_cast<int64_t*>(take(items * 8));
  w.collected = take(max_of(a.rows * a.cols, kSample) * int64_t(sizeof(T)));
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

// The floor.

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

// The cut.

// Magnitudes above `key` are kept, and `ties` of those equal to it.
template <class T>
struct Cut {
  Key<T> key;
  int64_t ties;
};

inline bool is_reserved(const Workspace& w, int64_t row, int64_t col) {
  return w.reserved && (w.reserved[row * w.row_bytes + col / 8] >> (col % 8) & 1);
}

// The cut that keeps `budget` > 0 of the keys in `lists` lists; list i begins at keys + i * stride, with counts[i]
// keys.
template <class T>
Cut<T> radix_cut(const TopkProjectArgs& a, const Workspace& w, const Key<T>* keys, int64_t stride,
                 const int64_t* counts, int64_t lists, int64_t budget) {
  Key<T> prefix = 0;
  for (int shift = kKeyBits<T>; shift > 0;) {
    const int bits = shift < kDigitBits ? shift : kDigitBits;
    shift -= bits;
    const int64_t bins = int64_t(1) << bits;
    for (int64_t i = 0; i < a.parallel.threads * kBins; ++i) w.histograms[i] = 0;
    for_each_item(a.parallel, lists, [&](int64_t worker, int64_t item) {
      int64_t* histogram = w.histograms + worker * kBins;
      const Key<T>* list = keys + item * stride;
      for (int64_t i = 0; i < counts[item]; ++i)  // bits + shift may be the full width of a key: shift in two steps
        if ((list[i] >> shift >> bits) == prefix) ++histogram[(list[i] >> shift) & (bins - 1)];
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

// Keys above `low` and not above `high`.
template <class T>
struct Bracket {
  Key<T> low, high;
};

// A bracket that most likely holds the cut: three standard deviations around its rank in a regular sample.
template <class T>
Bracket<T> guess_bracket(const TopkProjectArgs& a, const Workspace& w, int64_t budget, int64_t eligible) {
  Key<T>* sample = static_cast<Key<T>*>(w.collected);
  const int64_t size = a.rows * a.cols, stride = (size / kSample) | 1;  // odd: it visits all columns
  int64_t n = 0;
  for (int64_t i = 0; i < size && n < kSample; i += stride)
    if (!is_reserved(w, i / a.cols, i % a.cols)) sample[n++] = magnitude(static_cast<const T*>(a.weight)[i]);
  const double share = double(budget) / double(eligible), spread = __builtin_sqrt(n * share * (1 - share));
  const int64_t rank = int64_t(n * share), margin = int64_t(3 * spread) + 8;
  Bracket<T> bracket{-1, kMaxKey<T>};
  if (rank - margin > 0) bracket.high = radix_cut<T>(a, w, sample, 0, &n, 1, rank - margin).key;
  if (rank + margin < n) bracket.low = radix_cut<T>(a, w, sample, 0, &n, 1, rank + margin).key - 1;
  return bracket;
}

// Collects the keys in the bracket, counts those above it; false when the weight holds a NaN.
template <class T>
bool collect(const TopkProjectArgs& a, const Workspace& w, Bracket<T> bracket) {
  bool any_nan = false;
  for_each_item(a.parallel, ceil_div(a.rows, kRowsPerItem), [&](int64_t, int64_t item) {
    const int64_t begin = item * kRowsPerItem, end = min_of(a.rows, begin + kRowsPerItem);
    Key<T>* keys = static_cast<Key<T>*>(w.collected) + begin * a.cols;
    int64_t beyond = 0, inside = 0;
    uint32_t nan = 0;
    for (int64_t r = begin; r < end; ++r) {
      const T* row = static_cast<const T*>(a.weight) + r * a.cols;
      for (int64_t j = 0; j < a.cols; j += 8) {
        const uint32_t eligible = w.reserved ? ~uint32_t(w.reserved[r * w.row_bytes + j / 8]) : ~0u;
        const uint32_t over = above(row, j, a.cols, bracket.high);
        nan |= above(row, j, a.cols, KeyOf<T>::kInfinity);
        beyond += popcount(over & eligible);
        for (uint32_t in = above(row, j, a.cols, bracket.low) & ~over & eligible; in; in &= in - 1)
          keys[inside++] = magnitude(row[j + __builtin_ctz(in)]);
      }
    }
    w.inside[item] = inside;
    w.beyond[item] = beyond;
    if (nan) __atomic_store_n(&any_nan, true, __ATOMIC_RELAXED);
  });
  return !any_nan;
}

// The cut that keeps `budget` of the `eligible` entries that are not reserved; false when the weight holds a NaN.
template <class T>
bool find_cut(const TopkProjectArgs& a, const Workspace& w, int64_t budget, int64_t eligible, Cut<T>* cut) {
  const int64_t items = ceil_div(a.rows, kRowsPerItem);
  const Bracket<T> everything{-1, kMaxKey<T>};
  const bool guess = budget > 0 && eligible > 2 * kSample;
  for (Bracket<T> bracket = guess ? guess_bracket<T>(a, w, budget, eligible) : everything;; bracket = everything) {
    if (!collect<T>(a, w, bracket)) return false;
    int64_t left = budget, inside = 0;
    for (int64_t i = 0; i < items; ++i) {
      left -= w.beyond[i];
      inside += w.inside[i];
    }
    *cut = {kMaxKey<T>, 0};
    if (budget == 0) return true;
    if (left < 1 || left > inside) continue;  // the sample misled
    const Key<T>* keys = static_cast<const Key<T>*>(w.collected);
    *cut = radix_cut<T>(a, w, keys, kRowsPerItem * a.cols, w.inside, items, left);
    return true;
  }
}

// The pattern.

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
    if (a.zero_rest) keep(row + j, bits, min_of(8, a.cols - j), row + j);
  }
}

template <class T>
int64_t first_nan(const TopkProjectArgs& a) {
  const T* weight = static_cast<const T*>(a.weight);
  int64_t i = 0;
  while (magnitude(weight[i]) <= KeyOf<T>::kInfinity) ++i;
  return i;
}

template <class T, class I>
void run(const TopkProjectArgs& a) {
  const Workspace w = carve<T>(a);
  const int64_t reserved = a.floor * (a.axis == 0 ? a.rows : a.cols);
  if (reserved > 0) reserve_floor<T>(a, w);
  Cut<T> cut;
  if (!find_cut<T>(a, w, a.k - reserved, a.rows * a.cols - reserved, &cut)) {
    *a.nan_at = first_nan<T>(a);
    return;
  }
  *a.nan_at = kNoNan;
  place_rows(a, w, cut);
  for_each_range(a.parallel, a.rows, kRowsPerItem, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) write_row<T, I>(a, w, r, cut.key);
  });
  static_cast<I*>(a.crow)[a.rows] = I(a.k);
}

}  // namespace

int64_t topk_project_workspace(const TopkProjectArgs& a) {
  int64_t bytes = 0;
  with_dtype(a.dtype, [&](auto tag) { bytes = carve<typename decltype(tag)::type>(a).bytes; });
  return bytes;
}

Status topk_project(const TopkProjectArgs& a) {
  with_dtype(a.dtype, [&](auto tag) {
    with_index(a.index, [&](auto index) { run<typename decltype(tag)::type, typename decltype(index)::type>(a); });
  });
  return kOk;
}

}  // namespace SK_ISA
}  // namespace sk
