// abs_topk by bisection on the bits of the magnitudes: a row sits in L1 while the k-th largest is searched.
#include "sparsekern/abs_topk.h"

#include "dispatch.h"
#include "magnitude.h"
#include "vec.h"

namespace sk {
namespace SK_ISA {
namespace {

constexpr int64_t kRowsPerItem = 16;

inline int64_t padded(int64_t width) { return round_up(width, 64); }

// The sum of the lanes of counts, which are not negative.
template <class K>
inline int64_t add_counts(Vec<K> counts) {
  if constexpr (sizeof(K) == sizeof(int16_t)) {
    const Vec<uint32_t> pairs = (Vec<uint32_t>)counts;
    return add_lanes<uint32_t>((pairs & 0xffff) + (pairs >> 16));
  } else {
    return add_lanes<K>(counts);
  }
}

template <class T>
inline int64_t count_above(const T* row, int64_t padded_width, Key<T> key) {
  constexpr int64_t kMost = INT16_MAX * int64_t(kLanes<T>);  // what counts of 16 bits hold
  int64_t total = 0;
  for (int64_t begin = 0; begin < padded_width; begin += kMost) {
    const int64_t end = min_of(padded_width, begin + kMost);
    Vec<Key<T>> counts = {};
    for (int64_t j = begin; j < end; j += kLanes<T>)
      counts -= (Vec<Key<T>>)(load(reinterpret_cast<const Key<T>*>(row + j)) > key);  // a true lane is -1
    total += add_counts<Key<T>>(counts);
  }
  return total;
}

// Magnitudes above `key` are kept, and the first `ties` of those equal to it.
template <class T>
struct Cut {
  Key<T> key;
  int64_t ties;
};

// row: magnitudes, padded with zeros. 0 < k < width. The search begins at `guess`, the cut of a similar row: it gallops
// until the cut is between two keys, then interpolates the counts, with a bisection now and then so that it must end.
template <class T>
Cut<T> find_cut(const T* row, int64_t padded_width, int64_t k, Key<T> guess) {
  Key<T> low = -1, high = kMaxKey<T>;  // more than k entries are above low, fewer than k above high
  int64_t above_low = padded_width, above_high = 0;
  uint64_t stride = uint64_t(1) << (kKeyBits<T> - 12);
  Key<T> key = guess;
  for (int round = 1;; ++round) {
    const int64_t n = count_above(row, padded_width, key);
    if (n == k) return {key, 0};
    if (n > k) {
      low = key;
      above_low = n;
    } else {
      high = key;
      above_high = n;
    }
    const uint64_t span = uint64_t(high) - uint64_t(low);
    if (span == 1) return {high, k - above_high};
    if (low == -1) {
      key = 0;  // rows with fewer than k nonzeros are common in sparse models
    } else if (high == kMaxKey<T> || low == 0) {
      const uint64_t step = stride < span ? stride : span - 1;
      key = low == 0 ? Key<T>(uint64_t(high) - step) : Key<T>(uint64_t(low) + step);
      stride *= 2;
    } else if (round % 4 == 0) {
      key = Key<T>(uint64_t(low) + span / 2);
    } else {
      const uint64_t step = uint64_t(double(span) * double(above_low - k) / double(above_low - above_high));
      key = Key<T>(uint64_t(low) + (step < 1 ? 1 : step < span ? step : span - 1));
    }
  }
}

// The lowest `ties` of the set bits, counted down.
inline uint32_t take_ties(uint32_t bits, int64_t& ties) {
  uint32_t taken = 0;
  for (; bits && ties > 0; bits &= bits - 1, --ties) taken |= bits & -bits;
  return taken;
}

// guess: the cut of the row before, replaced by that of this one.
template <class T>
void topk_row(const T* x, int64_t width, int64_t k, Key<T>& guess, T* row, T* y, uint8_t* kept) {
  for (int64_t j = 0; j < width; ++j) {
    const Key<T> m = magnitude(x[j]);
    __builtin_memcpy(row + j, &m, sizeof m);
  }
  Cut<T> cut{kMaxKey<T>, 0};
  if (k == width)
    cut.key = -1;
  else if (k > 0)
    cut = find_cut(row, padded(width), k, guess);
  if (k > 0 && k < width) guess = cut.key;

  for (int64_t j = 0; j < width; j += 8) {  // the row is padded, x and y are not
    uint32_t bits = above8(row + j, cut.key);
    if (cut.ties > 0) bits |= take_ties(above8(row + j, Key<T>(cut.key - 1)) & ~bits, cut.ties);
    kept[j / 8] = uint8_t(bits);
    keep(x + j, bits, min_of(8, width - j), y + j);
  }
  if (width % 8) kept[width / 8] &= uint8_t((1u << (width % 8)) - 1);  // padding may have tied with zeros
}

template <class T>
void run(const AbsTopkArgs& a) {
  const int64_t kept_bytes = (a.width + 7) / 8, row_elements = padded(a.width);
  T* workspace = static_cast<T*>(a.workspace);
  for (int64_t w = 0; w < a.parallel.threads; ++w)
    for (int64_t j = a.width; j < row_elements; ++j) workspace[w * row_elements + j] = T{};
  for_each_item(a.parallel, ceil_div(a.rows, kRowsPerItem), [&](int64_t worker, int64_t item) {
    const int64_t end = min_of(a.rows, (item + 1) * kRowsPerItem);
    Key<T> guess = magnitude(one<T>());
    for (int64_t r = item * kRowsPerItem; r < end; ++r)
      topk_row(static_cast<const T*>(a.x) + r * a.stride, a.width, a.k, guess, workspace + worker * row_elements,
               static_cast<T*>(a.y) + r * a.width, a.kept + r * kept_bytes);
  });
}

template <class T>
void mask_row(const T* grad, const uint8_t* kept, int64_t width, T* out) {
  for (int64_t j = 0; j < width; j += 8) keep(grad + j, kept[j / 8], min_of(8, width - j), out + j);
}

}  // namespace

int64_t abs_topk_workspace(const AbsTopkArgs& a) {
  int64_t bytes = 0;
  with_activations(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    bytes = int64_t(sizeof(T)) * a.parallel.threads * padded(a.width);
  });
  return bytes;
}

Status abs_topk(const AbsTopkArgs& a) {
  with_activations(a.dtype, [&](auto tag) { run<typename decltype(tag)::type>(a); });
  return kOk;
}

Status abs_topk_backward(const AbsTopkBackwardArgs& a) {
  const int64_t kept_bytes = (a.width + 7) / 8;
  with_activations(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_each_range(a.parallel, a.rows, 4 * kRowsPerItem, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        mask_row(static_cast<const T*>(a.grad) + r * a.width, a.kept + r * kept_bytes, a.width,
                 static_cast<T*>(a.out) + r * a.width);
    });
  });
  return kOk;
}

}  // namespace SK_ISA
}  // namespace sk
