// The largest entries of several neurons, gathered while all entries pass by once.
#pragma once
#include "dispatch.h"
#include "magnitude.h"

namespace sk {
namespace SK_ISA {
namespace {

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

}  // namespace
}  // namespace SK_ISA
}  // namespace sk
