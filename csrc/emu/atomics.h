// Atomic operations and fences. Threads change only where they wait, so a plain update is atomic; but since threads see
// each other's work here, others may be let go first.
#pragma once
#include <type_traits>

#include "block.h"

namespace emu {

template <class T, class... Allowed>
inline constexpr bool kOneOf = (std::is_same_v<T, Allowed> || ...);

using Wide = unsigned long long;

// Replaces *at by f(*at); returns what it was.
template <class T, class F>
T update(T* at, F f) {
  interleave();
  const T before = *at;
  *at = f(before);
  interleave();
  return before;
}

template <class T>
struct Same {  // keeps a parameter out of deduction
  using type = T;
};
template <class T>
using AsIs = typename Same<T>::type;

}  // namespace emu

template <class T>
T atomicAdd(T* at, emu::AsIs<T> v) {
  static_assert(emu::kOneOf<T, int, unsigned, emu::Wide, float, double>);
  return emu::update(at, [=](T before) { return before + v; });
}
template <class T>
T atomicSub(T* at, emu::AsIs<T> v) {
  static_assert(emu::kOneOf<T, int, unsigned>);
  return emu::update(at, [=](T before) { return before - v; });
}
template <class T>
T atomicMin(T* at, emu::AsIs<T> v) {
  static_assert(emu::kOneOf<T, int, unsigned, long long, emu::Wide>);
  return emu::update(at, [=](T before) { return v < before ? v : before; });
}
template <class T>
T atomicMax(T* at, emu::AsIs<T> v) {
  static_assert(emu::kOneOf<T, int, unsigned, long long, emu::Wide>);
  return emu::update(at, [=](T before) { return before < v ? v : before; });
}
template <class T>
T atomicAnd(T* at, emu::AsIs<T> v) {
  static_assert(emu::kOneOf<T, int, unsigned, emu::Wide>);
  return emu::update(at, [=](T before) { return before & v; });
}
template <class T>
T atomicOr(T* at, emu::AsIs<T> v) {
  static_assert(emu::kOneOf<T, int, unsigned, emu::Wide>);
  return emu::update(at, [=](T before) { return before | v; });
}
template <class T>
T atomicXor(T* at, emu::AsIs<T> v) {
  static_assert(emu::kOneOf<T, int, unsigned, emu::Wide>);
  return emu::update(at, [=](T before) { return before ^ v; });
}
template <class T>
T atomicExch(T* at, emu::AsIs<T> v) {
  static_assert(emu::kOneOf<T, int, unsigned, emu::Wide, float>);
  return emu::update(at, [=](T) { return v; });
}
template <class T>
T atomicCAS(T* at, emu::AsIs<T> expected, emu::AsIs<T> v) {
  static_assert(emu::kOneOf<T, int, unsigned, emu::Wide, unsigned short>);
  return emu::update(at, [=](T before) { return before == expected ? v : before; });
}

inline void __threadfence() { emu::interleave(); }
inline void __threadfence_block() { emu::interleave(); }
inline void __threadfence_system() { emu::interleave(); }
