// Rows times a packed weight, in three formats. Each result is one sum, in the order of the inputs, whatever the number
// of rows: so a row's result is bitwise the same alone and in any batch.
//
// Weights lie in panels of 32 outputs, each panel contiguous and read once a pass:
//   float32   panel[k][32]
//   bfloat16  panel[k / 32][half of 16 outputs][pair of k: 16][16 outputs][2]        an AMX tile a half
//   int8      panel[k / 64][half of 16 outputs][four k: 16][16 outputs][4], and scales[k / 64][32]
// int8 rows have one scale for each 64 inputs, weights one for each 64 inputs of an output.
#pragma once

#include <type_traits>

#include "lanes.h"
#include "team.h"
#include "tiles.h"

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

// Rows in the format of the linear layer that reads them, padded with zeros to its inputs.
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

// ---------------------------------------------------------------------------------------------- registers

template <int R>
void multiply_rows(const float* rows, int64_t stride, const float* panel, int64_t inputs, Lanes (*out)[2]) {
  Lanes sums[R][2] = {};
  for (int64_t k = 0; k < inputs; k++) {
    Lanes low = load(panel + k * kPanel), high = load(panel + k * kPanel + kLanes);
    for (int r = 0; r < R; r++) {
      sums[r][0] += rows[r * stride + k] * low;
      sums[r][1] += rows[r * stride + k] * high;
    }
  }
  for (int r = 0; r < R; r++) out[r][0] = sums[r][0], out[r][1] = sums[r][1];
}

#if defined(__AVX512BF16__)
template <int R>
void multiply_rows(const BFloat16* rows, int64_t stride, const BFloat16* panel, int64_t inputs, Lanes (*out)[2]) {
  __m512 sums[R][2];
  for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
  for (int64_t k = 0; k < inputs; k += 32) {
    const BFloat16* block = panel + k * kPanel;
    for (int pair = 0; pair < 16; pair++) {
      __m512bh low = (__m512bh)_mm512_loadu_si512(block + pair * 32);
      __m512bh high = (__m512bh)_mm512_loadu_si512(block + 512 + pair * 32);
      for (int r = 0; r < R; r++) {
        int32_t both;
        std::memcpy(&both, rows + r * stride + k + 2 * pair, sizeof both);
        __m512bh row = (__m512bh)_mm512_set1_epi32(both);
        sums[r][0] = _mm512_dpbf16_ps(sums[r][0], row, low);
        sums[r][1] = _mm512_dpbf16_ps(sums[r][1], row, high);
      }
    }
  }
  for (int r = 0; r < R; r++) out[r][0] = (Lanes)sums[r][0], out[r][1] = (Lanes)sums[r][1];
}
#else
template <int R>
void multiply_rows(const BFloat16* rows, int64_t stride, const BFloat16* panel, int64_t inputs, Lanes (*out)[2]) {
  Lanes sums[R][2] = {};
  for (int64_t k = 0; k < inputs; k += 32) {
    for (int half = 0; half < 2; half++) {
      const BFloat16* block = panel + k * kPanel + half * 512;
      for (int pair = 0; pair < 16; pair++) {
        BitLanes both;
        std::memcpy(&both, block + pair * 32, sizeof both);
        Lanes even = (Lanes)(both << 16), odd = (Lanes)(both & 0xffff0000u);
        for (int r = 0; r < R; r++) {
          const BFloat16* row = rows + r * stride + k + 2 * pair;
          sums[r][half] += to_float(row[0]) * even;
          sums[r][half] += to_float(row[1]) * odd;
        }
      }
    }
  }
  for (int r = 0; r < R; r++) out[r][0] = sums[r][0], out[r][1] = sums[r][1];
}
#endif

// One group's products, exact: 64 inputs of R rows times 64 x 32 weights.
template <int R>
inline void multiply_group(const Rows& rows, int64_t first, int64_t group, const int8_t* block, IntLanes (*whole)[2]) {
  const int8_t* inputs = rows.row<int8_t>(first) + group * kGroup;
#if defined(__AVX512VNNI__)
  // The instruction wants one side unsigned: weights + 128, made good by the sum of the row's numbers.
  const int64_t groups = rows.stride / kGroup;
  const __m512i flip = _mm512_set1_epi8((char)0x80);
  __m512i sums[R][2];
  for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = _mm512_set1_epi32(-128 * rows.sums[(first + r) * groups + group]);
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
  for (int r = 0; r < R; r++) whole[r][0] = (IntLanes)sums[r][0], whole[r][1] = (IntLanes)sums[r][1];
#else
  for (int r = 0; r < R; r++) {
    int32_t sums[kPanel] = {};
    for (int half = 0; half < 2; half++)
      for (int four = 0; four < 16; four++)
        for (int output = 0; output < 16; output++)
          for (int k = 0; k < 4; k++)
            sums[half * 16 + output] +=
                int(inputs[r * rows.stride + four * 4 + k]) * block[half * 1024 + (four * 16 + output) * 4 + k];
    std::memcpy(whole[r], sums, sizeof sums);
  }
#endif
}

template <int R>
void multiply_rows(const Rows& rows, int64_t first, const int8_t* panel, const float* scales, int64_t groups,
                   Lanes (*out)[2]) {
  Lanes sums[R][2] = {};
  for (int64_t group = 0; group < groups; group++) {
    IntLanes whole[R][2];
    multiply_group<R>(rows, first, group, panel + group * kGroup * kPanel, whole);
    for (int half = 0; half < 2; half++) {
      Lanes scale = load(scales + group * kPanel + half * kLanes);
      for (int r = 0; r < R; r++)
        sums[r][half] += __builtin_convertvector(whole[r][half], Lanes) * (scale * rows.scales[(first + r) * groups + group]);
    }
  }
  for (int r = 0; r < R; r++) out[r][0] = sums[r][0], out[r][1] = sums[r][1];
}

// ---------------------------------------------------------------------------------------------- tiles

#ifdef HEADRACE_AMX
// 16 rows times a panel, of which `count` are wanted: exact products of each group on the tiles, added up in floats.
inline void multiply_tiles(const Rows& rows, int64_t first, int count, const int8_t* panel, const float* scales,
                           int64_t groups, float* out) {
  alignas(64) int32_t whole[kTileRows * kPanel];
  std::memset(out, 0, count * kPanel * sizeof(float));
  for (int64_t group = 0; group < groups; group++) {
    tile_group(rows.row<int8_t>(first) + group * kGroup, rows.stride, panel + group * kGroup * kPanel, whole);
    for (int half = 0; half < 2; half++) {
      Lanes scale = load(scales + group * kPanel + half * kLanes);
      for (int r = 0; r < count; r++) {
        IntLanes product;
        std::memcpy(&product, whole + r * kPanel + half * kLanes, sizeof product);
        float* to = out + r * kPanel + half * kLanes;
        store(to, load(to) + __builtin_convertvector(product, Lanes) * (scale * rows.scales[(first + r) * groups + group]));
      }
    }
  }
}

inline void rows_by_tiles(const Linear& linear, int64_t panel, const Rows& rows, int64_t first, int count, float* out) {
  if (linear.format == Format::kInt8)
    multiply_tiles(rows, first, count, linear.panel<int8_t>(panel), linear.panel_scales(panel), linear.groups(), out);
  else if (count > kTileRows)
    tile_product<2>(rows.row<BFloat16>(first), rows.stride, linear.panel<BFloat16>(panel), linear.inputs, out);
  else
    tile_product<1>(rows.row<BFloat16>(first), rows.stride, linear.panel<BFloat16>(panel), linear.inputs, out);
}
#endif

// ---------------------------------------------------------------------------------------------- the whole product

constexpr int kMostRows = 12;     // float32, bfloat16: 24 sums in the 32 registers
constexpr int kMostRowsInt8 = 6;  // whole sums and real ones

inline void rows_by_registers(const Linear& linear, int64_t panel, const Rows& rows, int64_t first, int count, float* out) {
  with_constant<kMostRows>(count, [&](auto constant) {
    constexpr int R = decltype(constant)::value;
    Lanes found[R][2];
    if (linear.format == Format::kFloat32)
      multiply_rows<R>(rows.row<float>(first), rows.stride, linear.panel<float>(panel), linear.inputs, found);
    else if (linear.format == Format::kBFloat16)
      multiply_rows<R>(rows.row<BFloat16>(first), rows.stride, linear.panel<BFloat16>(panel), linear.inputs, found);
    else if constexpr (R <= kMostRowsInt8)
      multiply_rows<R>(rows, first, linear.panel<int8_t>(panel), linear.panel_scales(panel), linear.groups(), found);
    std::memcpy(out, found, sizeof found);
  });
}

// How many rows go together, and by what.
struct Way {
  int rows;
  void (*compute)(const Linear&, int64_t, const Rows&, int64_t, int, float*);
};

inline Way way_of(Format format) {
#ifdef HEADRACE_AMX
  if (format != Format::kFloat32 && has_tiles())
    return {format == Format::kInt8 ? kTileRows : 2 * kTileRows, rows_by_tiles};
#endif
  return {format == Format::kInt8 ? kMostRowsInt8 : kMostRows, rows_by_registers};
}

constexpr int kPanelsTogether = 4;  // stay in the second cache while all rows go past them, a few rows in the first

// Calls `take(row, panel, low 16 outputs, high 16 outputs)`, bias included, for every row of this thread's panels.
template <class Take>
void multiply(const Team& team, const Linear& linear, const Rows& rows, int64_t num_rows, const Take& take) {
  const Way way = way_of(linear.format);
  const Range mine = team.share(linear.panels);
  alignas(64) float out[2 * kTileRows * kPanel];
  for (int64_t begin = mine.begin; begin < mine.end; begin += kPanelsTogether)
    for (int64_t first = 0; first < num_rows; first += way.rows)
      for (int64_t panel = begin; panel < std::min(mine.end, begin + kPanelsTogether); panel++) {
        const int count = (int)std::min<int64_t>(way.rows, num_rows - first);
        way.compute(linear, panel, rows, first, count, out);
        Lanes bias[2] = {};
        if (linear.bias)
          for (int half = 0; half < 2; half++) bias[half] = load(linear.bias + panel * kPanel + half * kLanes);
        for (int r = 0; r < count; r++)
          take(first + r, panel, load(out + r * kPanel) + bias[0], load(out + r * kPanel + kLanes) + bias[1]);
      }
}

}  // namespace headrace
