// Vectors of sixteen numbers: one source for AVX2, AVX-512 and NEON. No model code.
//
// The arithmetic uses the vector types of the compiler. GCC keeps a vector that is wider than a register in memory and
// computes it element by element. So a vector of sixteen is a pair of halves, until a half fits into a register.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace headrace {

constexpr int kLanes = 16;

#if defined(__AVX512F__)
constexpr int kRegisterLanes = 16;  // floats
#elif defined(__AVX__)
constexpr int kRegisterLanes = 8;
#else
constexpr int kRegisterLanes = 4;
#endif

// ---------------------------------------------------------------------------------------------- halves

template <class Half>
struct VecPair {
  using Part = Half;
  Half low, high;
};

template <class T, int N>
struct RegisterVec {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

template <class T, int N>
struct VecOf {
  using type = VecPair<typename VecOf<T, N / 2>::type>;
};
template <class T>
struct VecOf<T, kRegisterLanes> : RegisterVec<T, kRegisterLanes> {};

using Floats = VecOf<float, kLanes>::type;
using Ints = VecOf<int32_t, kLanes>::type;
using Uints = VecOf<uint32_t, kLanes>::type;

template <class T>
inline constexpr bool is_scalar = std::is_arithmetic_v<T>;

#define HEADRACE_ELEMENTWISE(op)                                                                  \
  template <class H>                                                                            \
  inline auto operator op(VecPair<H> a, VecPair<H> b) {                                             \
    return VecPair<decltype(a.low op b.low)>{a.low op b.low, a.high op b.high};                   \
  }                                                                                             \
  template <class H, class S, class = std::enable_if_t<is_scalar<S>>>                           \
  inline auto operator op(VecPair<H> a, S b) {                                                    \
    return VecPair<decltype(a.low op b)>{a.low op b, a.high op b};                                \
  }                                                                                             \
  template <class H, class S, class = std::enable_if_t<is_scalar<S>>>                           \
  inline auto operator op(S a, VecPair<H> b) {                                                    \
    return VecPair<decltype(a op b.low)>{a op b.low, a op b.high};                                \
  }
HEADRACE_ELEMENTWISE(+)
HEADRACE_ELEMENTWISE(-)
HEADRACE_ELEMENTWISE(*)
HEADRACE_ELEMENTWISE(/)
HEADRACE_ELEMENTWISE(&)
HEADRACE_ELEMENTWISE(|)
HEADRACE_ELEMENTWISE(<<)
HEADRACE_ELEMENTWISE(>>)
HEADRACE_ELEMENTWISE(<)
HEADRACE_ELEMENTWISE(<=)
HEADRACE_ELEMENTWISE(>)
HEADRACE_ELEMENTWISE(>=)
HEADRACE_ELEMENTWISE(!=)
#undef HEADRACE_ELEMENTWISE

template <class H>
inline VecPair<H> operator-(VecPair<H> a) {
  return {-a.low, -a.high};
}
template <class H>
inline VecPair<H> operator~(VecPair<H> a) {
  return {~a.low, ~a.high};
}
template <class H, class B>
inline VecPair<H>& operator+=(VecPair<H>& a, B b) {
  return a = a + b;
}
template <class H, class B>
inline VecPair<H>& operator*=(VecPair<H>& a, B b) {
  return a = a * b;
}

// Selection by a mask, bit casts and conversions, for single registers and for pairs.
template <class M, class V>
inline V select(M mask, V yes, V no) {
  return mask ? yes : no;
}
template <class M, class H>
inline VecPair<H> select(VecPair<M> mask, VecPair<H> yes, VecPair<H> no) {
  return {select(mask.low, yes.low, no.low), select(mask.high, yes.high, no.high)};
}

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class To, class From>
struct Conversion {
  static To of(From from) { return __builtin_convertvector(from, To); }
};
template <class To, class From>
struct Conversion<VecPair<To>, VecPair<From>> {
  static VecPair<To> of(VecPair<From> from) {
    return {Conversion<To, From>::of(from.low), Conversion<To, From>::of(from.high)};
  }
};
template <class To, class From>
inline To convert(From from) {
  return Conversion<To, From>::of(from);
}

// a * b + c, rounded once if the CPU has the instruction. This is the only fused operation (-ffp-contract=off). If GCC
// chose where to fuse, the bits of a row would depend on the number of rows that are computed with it.
template <class V>
inline V multiply_add(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, RegisterVec<float, 16>::type>)
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  if constexpr (std::is_same_v<V, RegisterVec<float, 8>::type>)
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  if constexpr (std::is_same_v<V, RegisterVec<float, 4>::type>)
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#endif
  return a * b + c;
}
template <class H>
inline VecPair<H> multiply_add(VecPair<H> a, VecPair<H> b, VecPair<H> c) {
  return {multiply_add(a.low, b.low, c.low), multiply_add(a.high, b.high, c.high)};
}
template <class V>
inline V multiply_add(float a, V b, V c) {
  return multiply_add(a - V{}, b, c);
}
template <class H>
inline VecPair<H> multiply_add(float a, VecPair<H> b, VecPair<H> c) {
  return {multiply_add(a, b.low, c.low), multiply_add(a, b.high, c.high)};
}

template <class V>
struct Unaligned {
  static V load(const void* from) {
    V lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
  }
  static void store(void* to, V lanes) { std::memcpy(to, &lanes, sizeof lanes); }
};
template <class H>
struct Unaligned<VecPair<H>> {
  static VecPair<H> load(const void* from) {
    return {Unaligned<H>::load(from), Unaligned<H>::load((const char*)from + sizeof(H))};
  }
  static void store(void* to, VecPair<H> lanes) {
    Unaligned<H>::store(to, lanes.low);
    Unaligned<H>::store((char*)to + sizeof(H), lanes.high);
  }
};

// Stores numbers as a smaller type, into which they must fit.
template <class To, class V>
inline void narrow(To* to, V lanes) {
  using Narrow = typename RegisterVec<To, sizeof(V) / sizeof lanes[0]>::type;
  const Narrow found = __builtin_convertvector(lanes, Narrow);
  std::memcpy(to, &found, sizeof found);
}
template <class To, class H>
inline void narrow(To* to, VecPair<H> lanes) {
  narrow(to, lanes.low);
  narrow(to + sizeof(H) / 4, lanes.high);
}

// ---------------------------------------------------------------------------------------------- memory

// Cache lines of later weights, prefetched a few at a time between the products: many at once would delay the products.
// A block is sixteen steps through a panel; each step reads two cache lines. (One prefetch in each step was not faster,
// and slower on a CPU with few registers.)
struct PrefetchSlice {
  const char* at = nullptr;
  int lines = 0;  // in a block, up to 32

  void begin_block() {
    for (int line = 0; line < lines; line++, at += 64) __builtin_prefetch(at, 0, 2);
  }
};

constexpr int kBlock = 16;

// ---------------------------------------------------------------------------------------------- across lanes

// Swaps each lane with the lane at this distance, within one register.
template <int Distance, class V, int... I>
inline V swap_lanes(V x, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(x, x, (I ^ Distance)...);
#else
  return __builtin_shuffle(x, typename RegisterVec<int32_t, sizeof...(I)>::type{(I ^ Distance)...});
#endif
}
template <int Distance, class V>
inline V swap_lanes(V x) {
  return swap_lanes<Distance>(x, std::make_integer_sequence<int, kRegisterLanes>{});
}

// Reduces all lanes to one number: op(lane, lane at half the width), then the same on the half that is left.
template <int Distance = kRegisterLanes / 2, class V, class Op>
inline auto reduce(V x, const Op& op) {
  x = op(x, swap_lanes<Distance>(x));
  if constexpr (Distance > 1)
    return reduce<Distance / 2>(x, op);
  else
    return x[0];
}
template <class H, class Op>
inline auto reduce(VecPair<H> x, const Op& op) {
  return reduce(op(x.low, x.high), op);
}

// Fast Walsh-Hadamard transform, not normalised: at each distance, from half the width down to 1, two numbers become
// their sum and their difference.
template <int Distance = kRegisterLanes / 2, class V, int... I>
inline V hadamard(V x, std::integer_sequence<int, I...> lanes) {
  x = multiply_add(x, V{(I & Distance ? -1.0f : 1.0f)...}, swap_lanes<Distance>(x));
  if constexpr (Distance > 1)
    return hadamard<Distance / 2>(x, lanes);
  else
    return x;
}
template <class V>
inline V hadamard(V x) {
  return hadamard(x, std::make_integer_sequence<int, kRegisterLanes>{});
}
template <class H>
inline VecPair<H> hadamard(VecPair<H> x) {
  return {hadamard(x.low + x.high), hadamard(x.low - x.high)};
}

// ---------------------------------------------------------------------------------------------- numbers

struct BFloat16 {
  uint16_t bits;
};

// A float with the value of a bfloat16.
struct Bf16AsFloat {
  float value;
};

// The other operand of a bfloat16 product: bfloat16 if the CPU multiplies pairs of them, else floats of the same value.
#if defined(__AVX512BF16__)
using Bf16Operand = BFloat16;
#else
using Bf16Operand = Bf16AsFloat;
#endif

inline Floats broadcast(float value) { return value - Floats{}; }

inline Floats load(const float* from) { return Unaligned<Floats>::load(from); }
inline Ints load(const int32_t* from) { return Unaligned<Ints>::load(from); }

inline void store(float* to, Floats lanes) { Unaligned<Floats>::store(to, lanes); }
inline void store(int32_t* to, Ints lanes) { Unaligned<Ints>::store(to, lanes); }

// The bits of the nearest bfloat16, ties to even, in the upper half. NaN and infinity stay as they are.
inline Uints round_to_bf16(Floats lanes) {
  const Uints bits = bit_cast<Uints>(lanes);
  const Uints round_to_int = bits + 0x7fffu + ((bits >> 16) & 1u);
  const Uints broken = bits | 0x400000u;
  return select(lanes != lanes, broken, round_to_int) & 0xffff0000u;
}

inline void store(Bf16AsFloat* to, Floats lanes) { Unaligned<Uints>::store(to, round_to_bf16(lanes)); }

inline void store(BFloat16* to, Floats lanes) {
#if defined(__AVX512BF16__)
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)lanes);  // numbers below 2^-126 become zero
  std::memcpy(to, &rounded, sizeof rounded);
#else
  narrow<uint16_t>(&to->bits, round_to_bf16(lanes) >> 16);
#endif
}

// The numbers must fit into 8 bits.
inline void store(int8_t* to, Ints lanes) { narrow<int8_t>(to, lanes); }

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline Floats elementwise_max(Floats a, Floats b) { return select(a > b, a, b); }

inline Floats absolute(Floats x) { return select(x < 0.0f, -x, x); }

// The nearest integer, ties to even, for |x| below 2^22: x + 1.5 * 2^23 has no bits for a fraction.
inline Ints round_to_int(Floats x) { return convert<Ints>((x + 12582912.0f) - 12582912.0f); }

// The order of these additions is fixed: it never depends on the other rows of the batch.
template <class V>
inline auto reduce_add(V lanes) {
  return reduce(lanes, [](auto a, auto b) { return a + b; });
}

inline float reduce_max(Floats lanes) {
  return reduce(lanes, [](auto a, auto b) { return select(a > b, a, b); });
}

// e^x to about two units in the last place: 2^n * 2^f, where n is the nearest integer to x * log2(e) and |f| is at most a
// half. The polynomial is the minimax of degree 6 for 2^f. Below -87.7 the result is 0, and -infinity gives 0. NaN stays
// NaN.
inline Floats exponential(Floats x) {
  // After this addition the lowest bits are n + 127, the exponent of 2^n as a float has it.
  constexpr float kShift = 12582912.0f + 127.0f;
  const Floats lowest = broadcast(-88.1f), highest = broadcast(88.0f);
  x = select(lowest > x, lowest, x);
  x = select(highest < x, highest, x);
  const Floats shifted = multiply_add(1.44269502f, x, broadcast(kShift));
  const Floats f = multiply_add(1.925963033e-8f, x, multiply_add(1.44269502f, x, kShift - shifted));
  Floats p = broadcast(1.534581206e-4f);
  for (const float next : {1.339993127e-3f, 9.618488957e-3f, 5.550328777e-2f, 2.402264689e-1f, 6.931472057e-1f, 1.0f})
    p = multiply_add(p, f, broadcast(next));
  return p * bit_cast<Floats>(bit_cast<Ints>(shifted) << 23);
}

inline float exponential(float x) {
  float all[kLanes];
  store(all, exponential(broadcast(x)));
  return all[0];
}

inline Floats silu(Floats x) { return x / (1.0f + exponential(-x)); }

}  // namespace headrace
