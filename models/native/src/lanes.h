// Sixteen numbers at a time, in as many registers as the CPU needs for them: the same source for AVX2, AVX-512 and NEON.
// Knows number formats and nothing of models.
//
// The compiler's own vector types do the arithmetic. One that is wider than a register GCC keeps in memory and takes
// apart number by number, so sixteen numbers are two halves until a half fits into a register.
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
constexpr int kRegister = 16;  // floats
#elif defined(__AVX__)
constexpr int kRegister = 8;
#else
constexpr int kRegister = 4;
#endif

// ---------------------------------------------------------------------------------------------- halves

template <class Half>
struct Twice {
  using Part = Half;
  Half low, high;
};

template <class T, int N>
struct Numbers {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

template <class T, int N>
struct Fitting {
  using type = Twice<typename Fitting<T, N / 2>::type>;
};
template <class T>
struct Fitting<T, kRegister> : Numbers<T, kRegister> {};

using Lanes = Fitting<float, kLanes>::type;
using IntLanes = Fitting<int32_t, kLanes>::type;
using BitLanes = Fitting<uint32_t, kLanes>::type;

template <class T>
inline constexpr bool is_number = std::is_arithmetic_v<T>;

#define HEADRACE_EACH_HALF(op)                                                                  \
  template <class H>                                                                            \
  inline auto operator op(Twice<H> a, Twice<H> b) {                                             \
    return Twice<decltype(a.low op b.low)>{a.low op b.low, a.high op b.high};                   \
  }                                                                                             \
  template <class H, class S, class = std::enable_if_t<is_number<S>>>                           \
  inline auto operator op(Twice<H> a, S b) {                                                    \
    return Twice<decltype(a.low op b)>{a.low op b, a.high op b};                                \
  }                                                                                             \
  template <class H, class S, class = std::enable_if_t<is_number<S>>>                           \
  inline auto operator op(S a, Twice<H> b) {                                                    \
    return Twice<decltype(a op b.low)>{a op b.low, a op b.high};                                \
  }
HEADRACE_EACH_HALF(+)
HEADRACE_EACH_HALF(-)
HEADRACE_EACH_HALF(*)
HEADRACE_EACH_HALF(/)
HEADRACE_EACH_HALF(&)
HEADRACE_EACH_HALF(|)
HEADRACE_EACH_HALF(<<)
HEADRACE_EACH_HALF(>>)
HEADRACE_EACH_HALF(<)
HEADRACE_EACH_HALF(<=)
HEADRACE_EACH_HALF(>)
HEADRACE_EACH_HALF(>=)
HEADRACE_EACH_HALF(!=)
#undef HEADRACE_EACH_HALF

template <class H>
inline Twice<H> operator-(Twice<H> a) {
  return {-a.low, -a.high};
}
template <class H>
inline Twice<H> operator~(Twice<H> a) {
  return {~a.low, ~a.high};
}
template <class H, class B>
inline Twice<H>& operator+=(Twice<H>& a, B b) {
  return a = a + b;
}
template <class H, class B>
inline Twice<H>& operator*=(Twice<H>& a, B b) {
  return a = a * b;
}

// What a vector of the compiler's does with ?:, a cast and a conversion, for halves as well.
template <class M, class V>
inline V select(M mask, V yes, V no) {
  return mask ? yes : no;
}
template <class M, class H>
inline Twice<H> select(Twice<M> mask, Twice<H> yes, Twice<H> no) {
  return {select(mask.low, yes.low, no.low), select(mask.high, yes.high, no.high)};
}

// The same bits as another type's.
template <class To, class From>
inline To bits_as(From from) {
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
struct Conversion<Twice<To>, Twice<From>> {
  static Twice<To> of(Twice<From> from) {
    return {Conversion<To, From>::of(from.low), Conversion<To, From>::of(from.high)};
  }
};
template <class To, class From>
inline To convert(From from) {
  return Conversion<To, From>::of(from);
}

// a * b + c, rounded once where the CPU can. Nothing else becomes one instruction (-ffp-contract=off): GCC would choose
// by the code around it, and a row's bits would depend on how many rows are computed with it.
template <class V>
inline V multiply_add(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Numbers<float, 16>::type>) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  if constexpr (std::is_same_v<V, Numbers<float, 8>::type>) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  if constexpr (std::is_same_v<V, Numbers<float, 4>::type>)
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#endif
  return a * b + c;
}
template <class H>
inline Twice<H> multiply_add(Twice<H> a, Twice<H> b, Twice<H> c) {
  return {multiply_add(a.low, b.low, c.low), multiply_add(a.high, b.high, c.high)};
}
template <class V>
inline V multiply_add(float a, V b, V c) {
  return multiply_add(a - V{}, b, c);
}
template <class H>
inline Twice<H> multiply_add(float a, Twice<H> b, Twice<H> c) {
  return {multiply_add(a, b.low, c.low), multiply_add(a, b.high, c.high)};
}

template <class V>
struct Memory {
  static V load(const void* from) {
    V lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
  }
  static void store(void* to, V lanes) { std::memcpy(to, &lanes, sizeof lanes); }
};
template <class H>
struct Memory<Twice<H>> {
  static Twice<H> load(const void* from) {
    return {Memory<H>::load(from), Memory<H>::load((const char*)from + sizeof(H))};
  }
  static void store(void* to, Twice<H> lanes) {
    Memory<H>::store(to, lanes.low);
    Memory<H>::store((char*)to + sizeof(H), lanes.high);
  }
};

// Numbers that fit into a smaller type, which is stored.
template <class To, class V>
inline void narrow(To* to, V lanes) {
  using Narrow = typename Numbers<To, sizeof(V) / sizeof lanes[0]>::type;
  const Narrow found = __builtin_convertvector(lanes, Narrow);
  std::memcpy(to, &found, sizeof found);
}
template <class To, class H>
inline void narrow(To* to, Twice<H> lanes) {
  narrow(to, lanes.low);
  narrow(to + sizeof(H) / 4, lanes.high);
}

// ---------------------------------------------------------------------------------------------- across lanes

// Each number and the one at a distance from it change places, in one register.
template <int Distance, class V, int... I>
inline V swapped(V x, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(x, x, (I ^ Distance)...);
#else
  return __builtin_shuffle(x, typename Numbers<int32_t, sizeof...(I)>::type{(I ^ Distance)...});
#endif
}
template <int Distance, class V>
inline V swapped(V x) {
  return swapped<Distance>(x, std::make_integer_sequence<int, kRegister>{});
}

// One number of all: op(number, number half of them further), and so on with the half that is left.
template <int Distance = kRegister / 2, class V, class Op>
inline auto fold(V x, const Op& op) {
  x = op(x, swapped<Distance>(x));
  if constexpr (Distance > 1)
    return fold<Distance / 2>(x, op);
  else
    return x[0];
}
template <class H, class Op>
inline auto fold(Twice<H> x, const Op& op) {
  return fold(op(x.low, x.high), op);
}

// Hadamard's matrix of 1 and -1 times all numbers: at each distance, from half of them down to 1, two numbers become their
// sum and their difference.
template <int Distance = kRegister / 2, class V, int... I>
inline V hadamard(V x, std::integer_sequence<int, I...> lanes) {
  x = multiply_add(x, V{(I & Distance ? -1.0f : 1.0f)...}, swapped<Distance>(x));
  if constexpr (Distance > 1)
    return hadamard<Distance / 2>(x, lanes);
  else
    return x;
}
template <class V>
inline V hadamard(V x) {
  return hadamard(x, std::make_integer_sequence<int, kRegister>{});
}
template <class H>
inline Twice<H> hadamard(Twice<H> x) {
  return {hadamard(x.low + x.high), hadamard(x.low - x.high)};
}

// ---------------------------------------------------------------------------------------------- numbers

struct BFloat16 {
  uint16_t bits;
};

// A float that has a bfloat16's value.
struct Rounded {
  float value;
};

// What is multiplied with bfloat16 numbers: pairs of them where an instruction takes those, else floats of their values.
#if defined(__AVX512BF16__)
using Factor = BFloat16;
#else
using Factor = Rounded;
#endif

inline Lanes broadcast(float value) { return value - Lanes{}; }

inline Lanes load(const float* from) { return Memory<Lanes>::load(from); }
inline IntLanes load(const int32_t* from) { return Memory<IntLanes>::load(from); }

inline void store(float* to, Lanes lanes) { Memory<Lanes>::store(to, lanes); }
inline void store(int32_t* to, IntLanes lanes) { Memory<IntLanes>::store(to, lanes); }

// The bits of the nearest bfloat16, ties to even, in the upper half; what is not finite stays so.
inline BitLanes rounded(Lanes lanes) {
  const BitLanes bits = bits_as<BitLanes>(lanes);
  const BitLanes nearest = bits + 0x7fffu + ((bits >> 16) & 1u);
  const BitLanes broken = bits | 0x400000u;
  return select(lanes != lanes, broken, nearest) & 0xffff0000u;
}

inline void store(Rounded* to, Lanes lanes) { Memory<BitLanes>::store(to, rounded(lanes)); }

inline void store(BFloat16* to, Lanes lanes) { narrow<uint16_t>(&to->bits, rounded(lanes) >> 16); }

// Of numbers that fit into bytes.
inline void store(int8_t* to, IntLanes lanes) { narrow<int8_t>(to, lanes); }

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline Lanes larger(Lanes a, Lanes b) { return select(a > b, a, b); }

inline Lanes absolute(Lanes x) { return select(x < 0.0f, -x, x); }

// The nearest whole number, ties to even, of numbers below 2^22: where the last bit of x + 1.5 * 2^23 is one.
inline IntLanes nearest(Lanes x) { return convert<IntLanes>((x + 12582912.0f) - 12582912.0f); }

// The order of these additions is part of the answer: it never depends on who shares the batch.
template <class V>
inline auto sum(V lanes) {
  return fold(lanes, [](auto a, auto b) { return a + b; });
}

inline float largest(Lanes lanes) {
  return fold(lanes, [](auto a, auto b) { return select(a > b, a, b); });
}

// e^x to about two units in the last place: 2^n * e^r with r within half a ln 2 (the Cephes polynomial).
// Below -87 the result is 0, and -infinity gives 0. NaN stays NaN.
inline Lanes exponential(Lanes x) {
  const Lanes lowest = broadcast(-87.0f), highest = broadcast(88.0f);
  const auto is_zero = x < lowest;
  Lanes clipped = select(x > highest, highest, x);
  clipped = select(is_zero, lowest, clipped);
  const Lanes half = select(clipped < 0.0f, broadcast(-0.5f), broadcast(0.5f));
  const IntLanes power = convert<IntLanes>(multiply_add(1.44269504f, clipped, half));
  const Lanes n = convert<Lanes>(power);
  const Lanes r = multiply_add(2.12194440e-4f, n, multiply_add(-0.693359375f, n, clipped));
  Lanes p = broadcast(1.9875691500e-4f);
  for (const float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = multiply_add(p, r, broadcast(next));
  p = multiply_add(p * r, r, r) + 1.0f;
  p = p * bits_as<Lanes>((power + 127) << 23);
  return select(is_zero, Lanes{}, p);
}

inline float exponential(float x) {
  float all[kLanes];
  store(all, exponential(broadcast(x)));
  return all[0];
}

inline Lanes silu(Lanes x) { return x / (1.0f + exponential(-x)); }

}  // namespace headrace
