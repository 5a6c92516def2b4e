// Dot products of bfloat16 pairs: sixteen pairs times one pair, added to sixteen sums.
#pragma once

#include "simd.h"

namespace headrace {

#if defined(__AVX512BF16__)

struct Bf16Pairs {
  __m512bh both;
  Bf16Pairs() = default;
  explicit Bf16Pairs(const BFloat16* from) : both((__m512bh)_mm512_loadu_si512(from)) {}
};

inline Floats dot_add(Floats sums, const BFloat16* pair, Bf16Pairs pairs) {
  int32_t both;
  std::memcpy(&both, pair, sizeof both);
  return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32(both), pairs.both);
}

#else

struct Bf16Pairs {
  Floats firsts, seconds;
  Bf16Pairs() = default;
  explicit Bf16Pairs(const BFloat16* from) {
    const Uints both = Unaligned<Uints>::load(from);
    firsts = bit_cast<Floats>(both << 16);
    seconds = bit_cast<Floats>(both & 0xffff0000u);
  }
};

inline Floats dot_add(Floats sums, const Bf16AsFloat* pair, Bf16Pairs pairs) {
  return multiply_add(pair[1].value, pairs.seconds, multiply_add(pair[0].value, pairs.firsts, sums));
}

#endif

}  // namespace headrace
