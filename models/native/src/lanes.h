// Sixteen numbers at a time, in the compiler's own vector type: the same source for AVX2, AVX-512 and NEON.
// Knows number formats and nothing of models.
#pragma once

#include <cstdint>
#include <cstring>

namespace headrace {

constexpr int kLanes = 16;

typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t IntLanes __attribute__((vector_size(64)));
typedef uint32_t BitLanes __attribute__((vector_size(64)));
typedef uint16_t HalfLanes __attribute__((vector_size(32)));
typedef int8_t ByteLanes __attribute__((vector_size(16)));

struct BFloat16 {
  uint16_t bits;
};

inline Lanes broadcast(float value) { return value - Lanes{}; }

inline Lanes load(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

inline Lanes load(const BFloat16* from) {
  HalfLanes half;
  std::memcpy(&half, from, sizeof half);
  return (Lanes)(__builtin_convertvector(half, BitLanes) << 16);
}

inline void store(float* to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

// Rounds to nearest, ties to even; what is not finite stays so.
inline void store(BFloat16* to, Lanes lanes) {
  BitLanes bits = (BitLanes)lanes;
  BitLanes rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  BitLanes broken = (bits >> 16) | 0x40u;
  BitLanes is_nan = (BitLanes)(lanes != lanes);
  HalfLanes half = __builtin_convertvector((rounded & ~is_nan) | (broken & is_nan), HalfLanes);
  std::memcpy(to, &half, sizeof half);
}

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

// The nearest whole number, ties to even, of numbers below 2^22: where the last bit of x + 1.5 * 2^23 is one.
inline IntLanes nearest(Lanes x) { return __builtin_convertvector((x + 12582912.0f) - 12582912.0f, IntLanes); }

// The order of these additions is part of the answer: it never depends on who shares the batch.
inline float sum(Lanes lanes) {
  float parts[kLanes];
  store(parts, lanes);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) parts[i] += parts[i + width];
  return parts[0];
}

inline float largest(Lanes lanes) {
  float parts[kLanes];
  store(parts, lanes);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) parts[i] = parts[i] > parts[i + width] ? parts[i] : parts[i + width];
  return parts[0];
}

// e^x to about two units in the last place: 2^n * e^r with r within half a ln 2 (the Cephes polynomial).
// Below -87 the result is 0, and -infinity gives 0. NaN stays NaN.
inline Lanes exponential(Lanes x) {
  const Lanes lowest = broadcast(-87.0f), highest = broadcast(88.0f);
  IntLanes is_zero = x < lowest;
  Lanes clipped = x > highest ? highest : x;
  clipped = is_zero ? lowest : clipped;
  Lanes half = clipped < 0.0f ? broadcast(-0.5f) : broadcast(0.5f);
  IntLanes power = __builtin_convertvector(clipped * 1.44269504f + half, IntLanes);
  Lanes n = __builtin_convertvector(power, Lanes);
  Lanes r = clipped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Lanes p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  p = p * (Lanes)((power + 127) << 23);
  return is_zero ? Lanes{} : p;
}

inline Lanes silu(Lanes x) { return x / (1.0f + exponential(-x)); }

}  // namespace headrace
