// Linear layers (GEMM): rows times a packed weight, in three number formats. Each result is one sum in the order of the
// inputs, for any number of rows. So the result of a row has the same bits alone and in every batch.
//
// Weights are packed in panels of 32 outputs. A panel is contiguous and read once a pass:
//   float32   panel[k][32]
//   bfloat16  panel[k / 32][half of 16 outputs][pair of k: 16][16 outputs][2]        a half is an AMX tile
//   int8      panel[k / 64][half of 16 outputs][four k: 16][16 outputs][4], and scales[k / 64][32]
// int8 rows have one scale for each 64 inputs, weights one for each 64 inputs of an output.
#pragma once

#include "simd.h"
#include "bf16_dot.h"
#include "thread_team.h"
#include "amx.h"

namespace headrace {

constexpr int kPanel = 32;
constexpr int kGroup = 64;

enum class Format : int64_t { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2 };

struct Linear {
  const void* weight;
  const float* scales;
  const float* bias;
  int64_t inputs;  // padded to 64
  int64_t panels;
  Format format;

  int64_t groups() const { return inputs / kGroup; }
  template <class T>
  const T* panel(int64_t index) const {
    return (const T*)weight + index * inputs * kPanel;
  }
  const float* panel_scales(int64_t index) const { return scales + index * groups() * kPanel; }
};

// Unpacks the weights of one output, padding included. Not for int8, which is lossy.
inline void read_weight_row(const Linear& linear, int64_t output, float* to) {
  const int64_t panel = output / kPanel, lane = output % kPanel;
  if (linear.format == Format::kFloat32) {
    const float* from = linear.panel<float>(panel) + lane;
    for (int64_t k = 0; k < linear.inputs; k++) to[k] = from[k * kPanel];
    return;
  }
  const BFloat16* from = linear.panel<BFloat16>(panel) + lane / kLanes * 512 + lane % kLanes * 2;
  for (int64_t k = 0; k < linear.inputs; k += 2) {
    const BFloat16* pair = from + k / 32 * 1024 + k % 32 / 2 * 32;
    to[k] = to_float(pair[0]);
    to[k + 1] = to_float(pair[1]);
  }
}

// Rows in the format of the linear layer that reads them (Bf16Operand for bfloat16), padded with zeros to its inputs.
struct Rows {
  void* data;
  float* scales;   // int8: [rows][inputs / 64]
  int32_t* sums;   // int8: the sums of each 64 inputs
  int64_t stride;  // numbers from one row to the next

  template <class T>
  T* row(int64_t index) const {
    return (T*)data + index * stride;
  }
};

// ---------------------------------------------------------------------------------------------- SIMD

// The most rows with sums that fit into registers together, and the number of halves of a panel per call: both halves if
// the registers suffice, because few rows alone do not keep a CPU busy.
#if defined(__AVX512F__)
constexpr int kMaxRows = 12, kMaxRowsBFloat16 = 12;  // 24 sums of 32 registers
constexpr int kMaxRowsInt8 = 6;                       // integer and float sums
template <int R, int Most>
constexpr int kHalves = 2;
#else
constexpr int kMaxRows = 6;  // 12 sums of AVX2's 16 registers, 24 of NEON's 32
constexpr int kMaxRowsBFloat16 = 5;
constexpr int kMaxRowsInt8 = 3;  // a fourth row would spill the integer sums
template <int R, int Most>
constexpr int kHalves = 2 * R <= Most ? 2 : 1;
#endif

// The sums of R rows in registers. Cleared one by one, because GCC would otherwise clear them in memory.
template <int R, int H>
struct Accumulators {
  Floats of[R][H];

  Accumulators() {
    for (int r = 0; r < R; r++)
      for (int h = 0; h < H; h++) of[r][h] = Floats{};
  }

  void store_to(float* out, int half) const {
    for (int r = 0; r < R; r++)
      for (int h = 0; h < H; h++) store(out + r * kPanel + (half + h) * kLanes, of[r][h]);
  }
};

// Computes H halves of a panel from `half` on, for R rows. `out` is [row][32].
template <int R, int H>
void gemm_rows(const float* rows, int64_t stride, const float* panel, int64_t inputs, int half, PrefetchSlice prefetch,
               float* out) {
  Accumulators<R, H> sums;
  for (int64_t k = 0; k < inputs; k += kBlock) {
    prefetch.begin_block();
    for (int n = 0; n < kBlock; n++) {
      Floats weights[H];
      for (int h = 0; h < H; h++) weights[h] = load(panel + (k + n) * kPanel + (half + h) * kLanes);
      for (int r = 0; r < R; r++)
        for (int h = 0; h < H; h++) sums.of[r][h] = multiply_add(rows[r * stride + k + n], weights[h], sums.of[r][h]);
    }
  }
  sums.store_to(out, half);
}

template <int R, int H>
void gemm_rows(const Bf16Operand* rows, int64_t stride, const BFloat16* panel, int64_t inputs, int half,
               PrefetchSlice prefetch, float* out) {
  Accumulators<R, H> sums;
  for (int64_t k = 0; k < inputs; k += 2 * kBlock) {
    prefetch.begin_block();
    const BFloat16* block = panel + k * kPanel + half * 512;
    for (int pair = 0; pair < kBlock; pair++) {
      Bf16Pairs weights[H];
      for (int h = 0; h < H; h++) weights[h] = Bf16Pairs(block + h * 512 + pair * 32);
      for (int r = 0; r < R; r++)
        for (int h = 0; h < H; h++)
          sums.of[r][h] = dot_add(sums.of[r][h], rows + r * stride + k + 2 * pair, weights[h]);
    }
  }
  sums.store_to(out, half);
}

// The integer products of one group: 64 inputs of R rows times H halves of 64 x 32 weights, from `half` on.
template <int R, int H>
inline void gemm_int8_group(const Rows& rows, int64_t first, int64_t group, const int8_t* block, int half,
                            Ints (*whole)[H]) {
  const int8_t* inputs = rows.row<int8_t>(first) + group * kGroup;
#if defined(__AVX512VNNI__)
  // The instruction needs one unsigned operand: weights + 128. The sum of the row's numbers corrects for the 128.
  const int64_t groups = rows.stride / kGroup;
  const __m512i flip = _mm512_set1_epi8((char)0x80);
  __m512i sums[R][2];
  for (int r = 0; r < R; r++)
    sums[r][0] = sums[r][1] = _mm512_set1_epi32(-128 * rows.sums[(first + r) * groups + group]);
  for (int four = 0; four < 16; four++) {
    __m512i low = _mm512_xor_si512(_mm512_loadu_si512(block + four * 64), flip);
    __m512i high = _mm512_xor_si512(_mm512_loadu_si512(block + 1024 + four * 64), flip);
    for (int r = 0; r < R; r++) {
      int32_t numbers;
      std::memcpy(&numbers, inputs + r * rows.stride + four * 4, sizeof numbers);
      __m512i row = _mm512_set1_epi32(numbers);
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], low, row);
      sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], high, row);
    }
  }
  for (int r = 0; r < R; r++) whole[r][0] = (Ints)sums[r][0], whole[r][1] = (Ints)sums[r][1];
#elif defined(__AVX2__)
  // The instruction needs one unsigned operand: the absolute values of the row. The weights get the signs of the row.
  // The sum of two products of at most 127 * 127 fits into 16 bits.
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[R][2 * H];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < 2 * H; n++) sums[r][n] = _mm256_setzero_si256();
  for (int four = 0; four < 16; four++) {
    __m256i weights[2 * H];
    for (int n = 0; n < 2 * H; n++)
      weights[n] = _mm256_loadu_si256((const __m256i*)(block + (half + n / 2) * 1024 + four * 64 + n % 2 * 32));
    for (int r = 0; r < R; r++) {
      int32_t numbers;
      std::memcpy(&numbers, inputs + r * rows.stride + four * 4, sizeof numbers);
      const __m256i row = _mm256_set1_epi32(numbers), sizes = _mm256_abs_epi8(row);
      for (int n = 0; n < 2 * H; n++) {
        const __m256i pairs = _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(weights[n], row));
        sums[r][n] = _mm256_add_epi32(sums[r][n], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int h = 0; h < H; h++) std::memcpy(&whole[r][h], &sums[r][2 * h], sizeof(Ints));
#elif defined(__ARM_FEATURE_DOTPROD)
  int32x4_t sums[R][4 * H];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < 4 * H; n++) sums[r][n] = vdupq_n_s32(0);
  for (int four = 0; four < 16; four++) {
    int8x16_t weights[4 * H];
    for (int n = 0; n < 4 * H; n++) weights[n] = vld1q_s8(block + (half + n / 4) * 1024 + four * 64 + n % 4 * 16);
    for (int r = 0; r < R; r++) {
      int32_t numbers;
      std::memcpy(&numbers, inputs + r * rows.stride + four * 4, sizeof numbers);
      const int8x16_t row = vreinterpretq_s8_s32(vdupq_n_s32(numbers));
      for (int n = 0; n < 4 * H; n++) sums[r][n] = vdotq_s32(sums[r][n], weights[n], row);
    }
  }
  for (int r = 0; r < R; r++)
    for (int h = 0; h < H; h++) std::memcpy(&whole[r][h], &sums[r][4 * h], sizeof(Ints));
#else
  for (int r = 0; r < R; r++)
    for (int h = 0; h < H; h++) {
      int32_t sums[kLanes] = {};
      for (int four = 0; four < 16; four++)
        for (int output = 0; output < kLanes; output++)
          for (int k = 0; k < 4; k++)
            sums[output] += int(inputs[r * rows.stride + four * 4 + k]) *
                            block[(half + h) * 1024 + (four * 16 + output) * 4 + k];
      whole[r][h] = load(sums);
    }
#endif
}

template <int R, int H>
void gemm_rows(const Rows& rows, int64_t first, const int8_t* panel, const float* scales, int64_t groups, int half,
               PrefetchSlice prefetch, float* out) {
  Accumulators<R, H> sums;
  for (int64_t group = 0; group < groups; group++) {
    prefetch.begin_block();
    Ints whole[R][H];
    gemm_int8_group<R, H>(rows, first, group, panel + group * kGroup * kPanel, half, whole);
    for (int h = 0; h < H; h++) {
      const Floats scale = load(scales + group * kPanel + (half + h) * kLanes);
      for (int r = 0; r < R; r++)
        sums.of[r][h] = multiply_add(convert<Floats>(whole[r][h]), scale * rows.scales[(first + r) * groups + group],
                                     sums.of[r][h]);
    }
  }
  sums.store_to(out, half);
}

// ---------------------------------------------------------------------------------------------- AMX

#ifdef HEADRACE_AMX
// T * 16 rows times a panel; the first `count` are stored. The tiles compute some groups, then the registers sum them.
template <int T>
void gemm_int8_amx(const Rows& rows, int64_t first, int count, const int8_t* panel, const float* scales, int64_t groups,
                   PrefetchSlice prefetch, float* out) {
  constexpr int kAtOnce = 4, kNumbers = T * kTileRows * kPanel;
  alignas(64) int32_t whole[kAtOnce * kNumbers];
  for (int64_t from = 0; from < groups; from += kAtOnce) {
    const int found = (int)std::min<int64_t>(kAtOnce, groups - from);
    for (int g = 0; g < found; g++) {
      prefetch.begin_block();
      amx_gemm_int8_group<T>(rows.row<int8_t>(first) + (from + g) * kGroup, rows.stride,
                             panel + (from + g) * kGroup * kPanel, whole + g * kNumbers);
    }
    for (int r = 0; r < count; r++) {
      float* to = out + r * kPanel;
      Floats low = from ? load(to) : Floats{}, high = from ? load(to + kLanes) : Floats{};
      for (int g = 0; g < found; g++) {
        const float scale = rows.scales[(first + r) * groups + from + g];
        const float* by = scales + (from + g) * kPanel;
        const int32_t* product = whole + g * kNumbers + r * kPanel;
        low = multiply_add(convert<Floats>(load(product)), load(by) * scale, low);
        high = multiply_add(convert<Floats>(load(product + kLanes)), load(by + kLanes) * scale, high);
      }
      store(to, low);
      store(to + kLanes, high);
    }
  }
}

inline void gemm_amx(const Linear& linear, int64_t panel, const Rows& rows, int64_t first, int count,
                     PrefetchSlice prefetch, float* out) {
  with_constant<2>(count > kTileRows ? 2 : 1, [&](auto tiles) {
    if (linear.format == Format::kInt8)
      gemm_int8_amx<tiles>(rows, first, count, linear.panel<int8_t>(panel), linear.panel_scales(panel), linear.groups(),
                           prefetch, out);
    else
      amx_gemm_bf16<tiles>(rows.row<BFloat16>(first), rows.stride, linear.panel<BFloat16>(panel), linear.inputs,
                           prefetch, out);
  });
}
#endif

// ---------------------------------------------------------------------------------------------- the whole product

template <int R, int Most, class Multiply>
void for_each_half(const PrefetchSlice& prefetch, const Multiply& gemm) {
  if constexpr (R <= Most) {
    constexpr int H = kHalves<R, Most>;
    for (int half = 0; half < 2; half += H)
      gemm(std::integral_constant<int, H>{}, half, half ? PrefetchSlice{} : prefetch);
  }
}

inline void gemm_simd(const Linear& linear, int64_t panel, const Rows& rows, int64_t first, int count,
                      PrefetchSlice prefetch, float* out) {
  const int64_t inputs = linear.inputs, stride = rows.stride;
  with_constant<kMaxRows>(count, [&](auto constant) {
    constexpr int R = decltype(constant)::value;
    if (linear.format == Format::kFloat32)
      for_each_half<R, kMaxRows>(prefetch, [&](auto h, int half, const PrefetchSlice& now) {
        gemm_rows<R, h>(rows.row<float>(first), stride, linear.panel<float>(panel), inputs, half, now, out);
      });
    else if (linear.format == Format::kBFloat16)
      for_each_half<R, kMaxRowsBFloat16>(prefetch, [&](auto h, int half, const PrefetchSlice& now) {
        gemm_rows<R, h>(rows.row<Bf16Operand>(first), stride, linear.panel<BFloat16>(panel), inputs, half, now, out);
      });
    else
      for_each_half<R, kMaxRowsInt8>(prefetch, [&](auto h, int half, const PrefetchSlice& now) {
        gemm_rows<R, h>(rows, first, linear.panel<int8_t>(panel), linear.panel_scales(panel), linear.groups(), half,
                            now, out);
      });
  });
}

constexpr int64_t kChunkBytes = 192 << 10;      // twice this fits into the L2 cache
constexpr int64_t kBigChunkBytes = 768 << 10;   // twice this fits into the L2 cache of a CPU with AMX
constexpr int64_t kManyRowBytes = 1 << 20;

// The kernel for one product, the number of rows in each call, and the bytes of weights in one chunk of panels. Small
// chunks are prefetched in time. Rows that do not stay in the L2 cache are read again for each chunk, so these are large.
struct GemmKernel {
  int rows;
  void (*compute)(const Linear&, int64_t, const Rows&, int64_t, int, PrefetchSlice, float*);
  int64_t chunk_bytes;
};

inline GemmKernel choose_kernel(Format format, int64_t num_rows, int64_t inputs) {
#ifdef HEADRACE_AMX
  if (format != Format::kFloat32 && has_amx())
    return {2 * kTileRows, gemm_amx,
            num_rows * inputs * (format == Format::kInt8 ? 1 : 2) > kManyRowBytes ? kBigChunkBytes : kChunkBytes};
#endif
  const int most = format == Format::kFloat32 ? kMaxRows : format == Format::kInt8 ? kMaxRowsInt8 : kMaxRowsBFloat16;
  // Equal parts: a last part with few rows would cost as much as a full one.
  const int64_t times = std::max<int64_t>(1, (num_rows + most - 1) / most);
  return {(int)std::max<int64_t>(1, (num_rows + times - 1) / times), gemm_simd, kChunkBytes};
}

inline int64_t panel_bytes(const Linear& linear) {
  return linear.inputs * kPanel * (linear.format == Format::kFloat32 ? 4 : linear.format == Format::kBFloat16 ? 2 : 1);
}

// Panels in one chunk. The panels of a chunk stay in the L2 cache, a few rows in L1. A thread has some chunks, so that
// others can take of them.
inline int64_t panels_per_chunk(const Linear& linear, const GemmKernel& kernel, int threads) {
  const int64_t most = std::max<int64_t>(4, linear.panels / (4 * threads));
  return std::clamp<int64_t>(kernel.chunk_bytes / panel_bytes(linear), 1, most);
}

// Prefetches the next chunk of panels in slices, while all rows are multiplied with the current chunk. With few rows,
// a thread would otherwise wait for memory at the start of each panel.
class Prefetcher {
 public:
  // `times`: how often each panel is read, for some of the rows each time.
  Prefetcher(const Linear& linear, int64_t begin, int64_t end, int64_t times) {
    const int64_t panel = panel_bytes(linear), count = std::min(end - begin, linear.panels - end);
    at_ = (const char*)linear.weight + end * panel;
    end_ = at_ + count * panel;
    lines_ = (int)((2 * kBlock + times - 1) / std::max<int64_t>(times, 1));
    bytes_ = panel / (2 * kBlock) * lines_;
  }

  // The slice to prefetch while a panel is read once.
  PrefetchSlice next() {
    if (at_ >= end_) return {at_, 0};
    at_ += bytes_;
    return {at_ - bytes_, lines_};
  }

 private:
  const char *at_, *end_;
  int lines_;
  int64_t bytes_;
};

// One phase: multiplies all rows, and calls `epilogue(row, panel, low 16 outputs, high 16 outputs)` for every row and
// panel, with the bias added.
template <class Epilogue>
void gemm(ThreadTeam& team, const Linear& linear, const Rows& rows, int64_t num_rows, const Epilogue& epilogue) {
  const GemmKernel kernel = choose_kernel(linear.format, num_rows, linear.inputs);
  alignas(64) float out[2 * kTileRows * kPanel];
  team.parallel_for(linear.panels, panels_per_chunk(linear, kernel, team.size()), [&](int64_t begin, int64_t end) {
    Prefetcher prefetcher(linear, begin, end, (num_rows + kernel.rows - 1) / kernel.rows);
    for (int64_t first = 0; first < num_rows; first += kernel.rows)
      for (int64_t panel = begin; panel < end; panel++) {
        const int count = (int)std::min<int64_t>(kernel.rows, num_rows - first);
        kernel.compute(linear, panel, rows, first, count, prefetcher.next(), out);
        Floats bias[2] = {};
        if (linear.bias)
          for (int half = 0; half < 2; half++) bias[half] = load(linear.bias + panel * kPanel + half * kLanes);
        for (int r = 0; r < count; r++)
          epilogue(first + r, panel, load(out + r * kPanel) + bias[0], load(out + r * kPanel + kLanes) + bias[1]);
      }
  });
}

}  // namespace headrace
