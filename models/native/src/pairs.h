// Pairs of bfloat16 numbers, sixteen side by side, times a pair that is the same for all.
#pragma once

#include "lanes.h"

namespace headrace {

#if defined(__AVX512BF16__)

struct Pairs {
  __m512bh both;
  Pairs() = default;
  explicit Pairs(const BFloat16* from) : both((__m512bh)_mm512_loadu_si512(from)) {}
};

inline Lanes add_products(Lanes sums, const BFloat16* pair, Pairs pairs) {
  int32_t both;
  std::memcpy(&both, pair, sizeof both);
  return (Lanes)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32(both), pairs.both);
}

#else

struct Pairs {
  Lanes firsts, seconds;
  Pairs() = default;
  explicit Pairs(const BFloat16* from) {
    const BitLanes both = Memory<BitLanes>::load(from);
    firsts = bits_as<Lanes>(both << 16);
    seconds = bits_as<Lanes>(both & 0xffff0000u);
  }
};

inline Lanes add_products(Lanes sums, const Rounded* pair, Pairs pairs) {
  return multiply_add(pair[1].value, pairs.seconds, multiply_add(pair[0].value, pairs.firsts, sums));
}

#endif

}  // namespace headrace
