// Powers of two of vectors.
#pragma once
#include "magnitude.h"
#include "vec.h"

namespace sk {
namespace SK_ISA {
namespace {

template <class T>
struct Exp2;

// The polynomials are the best ones for the relative error on [-1/2, 1/2]; adding `round` leaves the nearest integer in
// the low bits of the sum.
template <>
struct Exp2<float> {
  static constexpr float round = 0x1.8p23f, lowest = -126;
  static constexpr int mantissa = 23;
  static constexpr float coefficients[] = {1.3276472167819943e-3f, 9.6755413310213911e-3f, 5.5507132728753912e-2f,
                                           2.4022119723969179e-1f, 6.9314696706526493e-1f, 1.0000000716546416f};
};
template <>
struct Exp2<double> {
  static constexpr double round = 0x1.8p52, lowest = -1022;
  static constexpr int mantissa = 52;
  static constexpr double coefficients[] = {4.4352809446103362e-10, 7.0741056262456594e-9, 1.0178198033328528e-7,
                                            1.3215433089594629e-6,  1.5252733489960805e-5, 1.5403530462514613e-4,
                                            1.3333558146789950e-3,  9.6181291075883351e-3, 5.5504108664819921e-2,
                                            2.4022650695910156e-1,  6.9314718055994533e-1, 1.0};
};

// 2^x, relative error below 1e-7 (f32) or 3e-16; 0 below the normal numbers, NaN for NaN. x at most 126 (f32).
template <class T>
inline Vec<T> exp2(Vec<T> x) {
  using E = Exp2<T>;
  using Bits = Vec<Key<T>>;
  const Vec<T> shifted = x + E::round, f = x - (shifted - E::round);
  Vec<T> p = f * E::coefficients[0] + E::coefficients[1];
#pragma GCC unroll 10
  for (int i = 2; i < int(sizeof E::coefficients / sizeof(T)); ++i) p = p * f + E::coefficients[i];
  const Vec<T> y = (Vec<T>)((Bits)p + ((Bits)shifted << E::mantissa));
  return x < E::lowest ? Vec<T>{} : y;
}

}  // namespace
}  // namespace SK_ISA
}  // namespace sk
