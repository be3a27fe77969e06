// The operations of a warp. Each is a meeting of the lanes in its mask; see block.h.
#pragma once
#include <cstring>
#include <type_traits>

#include "block.h"

namespace emu {

// ---- shuffles

template <class T>
struct Shuffle {
  T value;
  int source;  // lane
  T result;

  static void combine(const Meeting& meeting) {
    meeting.for_each_lane([&](int lane) {
      auto& mine = meeting.part<Shuffle>(lane);
      if (!(meeting.here >> mine.source & 1))
        fail("%s: lane %d reads lane %d, which has exited or is not in mask 0x%08x", meeting.name, lane, mine.source,
             meeting.mask);
      mine.result = meeting.part<Shuffle>(mine.source).value;
    });
  }
};

template <class T>
T shuffle(const char* name, unsigned mask, T value, int source) {
  static_assert(std::is_arithmetic_v<T> || sizeof(T) <= 4, "no such shuffle in CUDA");
  Shuffle<T> part{value, source, value};
  meet(name, Shuffle<T>::combine, mask, &part);
  return part.result;
}

// Where the current lane is in its group of `width` lanes.
inline int lane_in_group(int width) { return current->lane & (width - 1); }
inline int first_of_group(int width) { return current->lane & ~(width - 1); }

// ---- votes

struct Vote {
  bool aye;
  unsigned ayes, voters;

  static void combine(const Meeting& meeting) {
    unsigned ayes = 0;
    meeting.for_each_lane([&](int lane) { ayes |= unsigned(meeting.part<Vote>(lane).aye) << lane; });
    meeting.for_each_lane([&](int lane) {
      meeting.part<Vote>(lane).ayes = ayes;
      meeting.part<Vote>(lane).voters = meeting.here;
    });
  }
};

inline Vote vote(const char* name, unsigned mask, bool aye) {
  Vote part{aye, 0, 0};
  meet(name, Vote::combine, mask, &part);
  return part;
}

// ---- reductions

template <class T, T join(T, T)>
struct Reduction {
  static void combine(const Meeting& meeting) {
    const unsigned first = meeting.here & -meeting.here;
    T all = meeting.part<T>(__builtin_ctz(first));
    meeting.for_each_lane([&](int lane) {
      if (1u << lane != first) all = join(all, meeting.part<T>(lane));
    });
    meeting.for_each_lane([&](int lane) { meeting.part<T>(lane) = all; });
  }
};

template <class T, T join(T, T)>
T reduce(const char* name, unsigned mask, T value) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>, "no such reduction in CUDA");
  meet(name, Reduction<T, join>::combine, mask, &value);
  return value;
}

template <class T>
T sum_of(T a, T b) {
  return T(unsigned(a) + unsigned(b));
}
template <class T>
T smaller_of(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T larger_of(T a, T b) {
  return a < b ? b : a;
}
template <class T>
T and_of(T a, T b) {
  return a & b;
}
template <class T>
T or_of(T a, T b) {
  return a | b;
}

// ---- matching

template <class T>
struct Match {
  T value;
  unsigned same;

  static void combine(const Meeting& meeting) {
    meeting.for_each_lane([&](int lane) {
      auto& mine = meeting.part<Match>(lane);
      meeting.for_each_lane([&](int other) {
        const bool equal = memcmp(&mine.value, &meeting.part<Match>(other).value, sizeof(T)) == 0;
        mine.same |= unsigned(equal) << other;
      });
    });
  }
};

inline void combine_nothing(const Meeting&) {}

}  // namespace emu

inline void __syncwarp(unsigned mask = 0xffffffff) { emu::meet("__syncwarp", emu::combine_nothing, mask, nullptr); }

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return emu::shuffle("__shfl_sync", mask, value, emu::first_of_group(width) + (lane & (width - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const bool stays = unsigned(emu::lane_in_group(width)) < by;
  return emu::shuffle("__shfl_up_sync", mask, value, emu::current->lane - (stays ? 0 : int(by)));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const bool stays = unsigned(emu::lane_in_group(width)) + by >= unsigned(width);
  return emu::shuffle("__shfl_down_sync", mask, value, emu::current->lane + (stays ? 0 : int(by)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = emu::current->lane ^ bits;
  const bool stays = lane >= emu::first_of_group(width) + width;  // earlier groups may be read, later ones not
  return emu::shuffle("__shfl_xor_sync", mask, value, stays ? emu::current->lane : lane);
}

inline unsigned __ballot_sync(unsigned mask, int aye) { return emu::vote("__ballot_sync", mask, aye).ayes; }
inline int __any_sync(unsigned mask, int aye) { return emu::vote("__any_sync", mask, aye).ayes != 0; }
inline int __all_sync(unsigned mask, int aye) {
  const emu::Vote vote = emu::vote("__all_sync", mask, aye);
  return vote.ayes == vote.voters;
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4, "no such match in CUDA");
  emu::Match<T> part{value, 0};
  emu::meet("__match_any_sync", emu::Match<T>::combine, mask, &part);
  return part.same;
}

template <class T>
T __reduce_add_sync(unsigned mask, T value) {
  return emu::reduce<T, emu::sum_of<T>>("__reduce_add_sync", mask, value);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value) {
  return emu::reduce<T, emu::smaller_of<T>>("__reduce_min_sync", mask, value);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value) {
  return emu::reduce<T, emu::larger_of<T>>("__reduce_max_sync", mask, value);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value) {
  return emu::reduce<unsigned, emu::and_of<unsigned>>("__reduce_and_sync", mask, value);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return emu::reduce<unsigned, emu::or_of<unsigned>>("__reduce_or_sync", mask, value);
}
