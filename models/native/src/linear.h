// Rows times a packed weight, in three formats. Each result is one sum, in the order of the inputs, whatever the number
// of rows: so a row's result is bitwise the same alone and in any batch.
//
// Weights lie in panels of 32 outputs, each panel contiguous and read once a pass:
//   float32   panel[k][32]
//   bfloat16  panel[k / 32][half of 16 outputs][pair of k: 16][16 outputs][2]        an AMX tile a half
//   int8      panel[k / 64][half of 16 outputs][four k: 16][16 outputs][4], and scales[k / 64][32]
// int8 rows have one scale for each 64 inputs, weights one for each 64 inputs of an output.
#pragma once

#include "lanes.h"
#include "pairs.h"
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

// Writes the weights of one output, all its inputs, padding included. Not for int8, whose numbers are rounded.
inline void read_output(const Linear& linear, int64_t output, float* to) {
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

// Rows in the format of the linear layer that reads them (for bfloat16 that is Factor), padded with zeros to its inputs.
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

// How many rows go together, so that all their sums stay in registers, and how many halves of a panel at once: both
// while there is room, which keeps a CPU busy that few rows do not.
#if defined(__AVX512F__)
constexpr int kMostRows = 12, kMostRowsBFloat16 = 12;  // 24 sums of 32 registers
constexpr int kMostRowsInt8 = 6;                       // whole sums and real ones
template <int R, int Most>
constexpr int kHalves = 2;
#else
constexpr int kMostRows = 6;  // 12 sums of AVX2's 16 registers, 24 of NEON's 32
constexpr int kMostRowsBFloat16 = 5;
constexpr int kMostRowsInt8 = 3;  // with a fourth the whole sums go to memory and back
template <int R, int Most>
constexpr int kHalves = 2 * R <= Most ? 2 : 1;
#endif

// Weights that come next, fetched a few lines at a time between the products: many at once would keep these waiting. A
// block is sixteen steps through a panel, each of which reads two lines of it. (A line at each step was no faster, and
// with few registers slower.)
struct Fetch {
  const char* at = nullptr;
  int lines = 0;  // in a block, up to 32

  void begin_block() {
    for (int line = 0; line < lines; line++, at += 64) __builtin_prefetch(at, 0, 2);
  }
};

constexpr int kBlock = 16;

// The sums of R rows, in registers: written out one by one, for GCC would clear them in memory first.
template <int R, int H>
struct Sums {
  Lanes of[R][H];

  Sums() {
    for (int r = 0; r < R; r++)
      for (int h = 0; h < H; h++) of[r][h] = Lanes{};
  }

  void store_to(float* out, int half) const {
    for (int r = 0; r < R; r++)
      for (int h = 0; h < H; h++) store(out + r * kPanel + (half + h) * kLanes, of[r][h]);
  }
};

// Each of these computes H halves of a panel from `half` on: out[row][32].
template <int R, int H>
void multiply_rows(const float* rows, int64_t stride, const float* panel, int64_t inputs, int half, Fetch fetch,
                   float* out) {
  Sums<R, H> sums;
  for (int64_t k = 0; k < inputs; k += kBlock) {
    fetch.begin_block();
    for (int n = 0; n < kBlock; n++) {
      Lanes weights[H];
      for (int h = 0; h < H; h++) weights[h] = load(panel + (k + n) * kPanel + (half + h) * kLanes);
      for (int r = 0; r < R; r++)
        for (int h = 0; h < H; h++) sums.of[r][h] = multiply_add(rows[r * stride + k + n], weights[h], sums.of[r][h]);
    }
  }
  sums.store_to(out, half);
}

template <int R, int H>
void multiply_rows(const Factor* rows, int64_t stride, const BFloat16* panel, int64_t inputs, int half,
                   Fetch fetch, float* out) {
  Sums<R, H> sums;
  for (int64_t k = 0; k < inputs; k += 2 * kBlock) {
    fetch.begin_block();
    const BFloat16* block = panel + k * kPanel + half * 512;
    for (int pair = 0; pair < kBlock; pair++) {
      Pairs weights[H];
      for (int h = 0; h < H; h++) weights[h] = Pairs(block + h * 512 + pair * 32);
      for (int r = 0; r < R; r++)
        for (int h = 0; h < H; h++)
          sums.of[r][h] = add_products(sums.of[r][h], rows + r * stride + k + 2 * pair, weights[h]);
    }
  }
  sums.store_to(out, half);
}

// One group's products, exact: 64 inputs of R rows times H halves of 64 x 32 weights, from `half` on.
template <int R, int H>
inline void multiply_group(const Rows& rows, int64_t first, int64_t group, const int8_t* block, int half,
                           IntLanes (*whole)[H]) {
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
#elif defined(__AVX2__)
  // Here, too, one side is unsigned: the row without its signs, which the weights take over. Two products of at most
  // 127 * 127 fit into 16 bits.
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
    for (int h = 0; h < H; h++) std::memcpy(&whole[r][h], &sums[r][2 * h], sizeof(IntLanes));
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
    for (int h = 0; h < H; h++) std::memcpy(&whole[r][h], &sums[r][4 * h], sizeof(IntLanes));
#else
  for (int r = 0; r < R; r++)
    for (int h = 0; h < H; h++) {
      int32_t sums[kLanes] = {};
      for (int four = 0; four < 16; four++)
        for (int output = 0; output < kLanes; output++)
          for (int k = 0; k < 4; k++)
            sums[output] += int(inputs[r * rows.stride + four * 4 + k]) * block[(half + h) * 1024 + (four * 16 + output) * 4 + k];
      whole[r][h] = load(sums);
    }
#endif
}

template <int R, int H>
void multiply_rows(const Rows& rows, int64_t first, const int8_t* panel, const float* scales, int64_t groups, int half,
                   Fetch fetch, float* out) {
  Sums<R, H> sums;
  for (int64_t group = 0; group < groups; group++) {
    fetch.begin_block();
    IntLanes whole[R][H];
    multiply_group<R, H>(rows, first, group, panel + group * kGroup * kPanel, half, whole);
    for (int h = 0; h < H; h++) {
      const Lanes scale = load(scales + group * kPanel + (half + h) * kLanes);
      for (int r = 0; r < R; r++)
        sums.of[r][h] = multiply_add(convert<Lanes>(whole[r][h]), scale * rows.scales[(first + r) * groups + group],
                                     sums.of[r][h]);
    }
  }
  sums.store_to(out, half);
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
      const Lanes scale = load(scales + group * kPanel + half * kLanes);
      for (int r = 0; r < count; r++) {
        const Lanes product = convert<Lanes>(load(whole + r * kPanel + half * kLanes));
        float* to = out + r * kPanel + half * kLanes;
        store(to, multiply_add(product, scale * rows.scales[(first + r) * groups + group], load(to)));
      }
    }
  }
}

inline void rows_by_tiles(const Linear& linear, int64_t panel, const Rows& rows, int64_t first, int count, Fetch,
                          float* out) {
  if (linear.format == Format::kInt8)
    multiply_tiles(rows, first, count, linear.panel<int8_t>(panel), linear.panel_scales(panel), linear.groups(), out);
  else if (count > kTileRows)
    tile_product<2>(rows.row<BFloat16>(first), rows.stride, linear.panel<BFloat16>(panel), linear.inputs, out);
  else
    tile_product<1>(rows.row<BFloat16>(first), rows.stride, linear.panel<BFloat16>(panel), linear.inputs, out);
}
#endif

// ---------------------------------------------------------------------------------------------- the whole product

template <int R, int Most, class Multiply>
void by_halves(const Fetch& fetch, const Multiply& multiply) {
  if constexpr (R <= Most) {
    constexpr int H = kHalves<R, Most>;
    for (int half = 0; half < 2; half += H) multiply(std::integral_constant<int, H>{}, half, half ? Fetch{} : fetch);
  }
}

inline void rows_by_registers(const Linear& linear, int64_t panel, const Rows& rows, int64_t first, int count, Fetch fetch,
                              float* out) {
  const int64_t inputs = linear.inputs, stride = rows.stride;
  with_constant<kMostRows>(count, [&](auto constant) {
    constexpr int R = decltype(constant)::value;
    if (linear.format == Format::kFloat32)
      by_halves<R, kMostRows>(fetch, [&](auto h, int half, const Fetch& now) {
        multiply_rows<R, h>(rows.row<float>(first), stride, linear.panel<float>(panel), inputs, half, now, out);
      });
    else if (linear.format == Format::kBFloat16)
      by_halves<R, kMostRowsBFloat16>(fetch, [&](auto h, int half, const Fetch& now) {
        multiply_rows<R, h>(rows.row<Factor>(first), stride, linear.panel<BFloat16>(panel), inputs, half, now, out);
      });
    else
      by_halves<R, kMostRowsInt8>(fetch, [&](auto h, int half, const Fetch& now) {
        multiply_rows<R, h>(rows, first, linear.panel<int8_t>(panel), linear.panel_scales(panel), linear.groups(), half,
                            now, out);
      });
  });
}

// How many rows go together, and by what. On tiles, which were not measured with it, nothing is fetched ahead.
struct Way {
  int rows;
  void (*compute)(const Linear&, int64_t, const Rows&, int64_t, int, Fetch, float*);
  bool fetches_ahead;
};

inline Way way_of(Format format, int64_t num_rows) {
#ifdef HEADRACE_AMX
  if (format != Format::kFloat32 && has_tiles())
    return {format == Format::kInt8 ? kTileRows : 2 * kTileRows, rows_by_tiles, false};
#endif
  const int most = format == Format::kFloat32 ? kMostRows : format == Format::kInt8 ? kMostRowsInt8 : kMostRowsBFloat16;
  // As evenly as they go: the last few would otherwise cost as much as many.
  const int64_t times = std::max<int64_t>(1, (num_rows + most - 1) / most);
  return {(int)std::max<int64_t>(1, (num_rows + times - 1) / times), rows_by_registers, true};
}

constexpr int kPanelsTogether = 4;
constexpr int64_t kHandful = 192 << 10;  // bytes that stay in the second cache, with as many that come next

inline int64_t panel_bytes(const Linear& linear) {
  return linear.inputs * kPanel * (linear.format == Format::kFloat32 ? 4 : linear.format == Format::kBFloat16 ? 2 : 1);
}

// How many panels all rows go past at a time: those stay in the second cache, a few rows in the first.
inline int64_t panels_together(const Linear& linear, const Way& way) {
  if (!way.fetches_ahead) return kPanelsTogether;
  return std::clamp<int64_t>(kHandful / panel_bytes(linear), 1, kPanelsTogether);
}

// The panels after those in hand, fetched bit by bit while all rows go past these: with few rows to a panel a thread
// would otherwise wait for memory at every first one.
class Ahead {
 public:
  // `times`: how often each panel is gone through, for some rows each time.
  Ahead(const Linear& linear, const Way& way, int64_t begin, int64_t end, int64_t times) {
    const int64_t panel = panel_bytes(linear), count = std::min(end - begin, linear.panels - end);
    at_ = (const char*)linear.weight + end * panel;
    end_ = at_ + (way.fetches_ahead ? count * panel : 0);
    lines_ = (int)((2 * kBlock + times - 1) / std::max<int64_t>(times, 1));
    bytes_ = panel / (2 * kBlock) * lines_;
  }

  // What to fetch while a panel is gone through once.
  Fetch next() {
    if (at_ >= end_) return {at_, 0};
    at_ += bytes_;
    return {at_ - bytes_, lines_};
  }

 private:
  const char *at_, *end_;
  int lines_;
  int64_t bytes_;
};

// A phase: calls `take(row, panel, low 16 outputs, high 16 outputs)`, bias included, for every row and panel.
template <class Take>
void multiply(Team& team, const Linear& linear, const Rows& rows, int64_t num_rows, const Take& take) {
  const Way way = way_of(linear.format, num_rows);
  alignas(64) float out[2 * kTileRows * kPanel];
  team.each(linear.panels, panels_together(linear, way), [&](int64_t begin, int64_t end) {
    Ahead ahead(linear, way, begin, end, (num_rows + way.rows - 1) / way.rows);
    for (int64_t first = 0; first < num_rows; first += way.rows)
      for (int64_t panel = begin; panel < end; panel++) {
        const int count = (int)std::min<int64_t>(way.rows, num_rows - first);
        way.compute(linear, panel, rows, first, count, ahead.next(), out);
        Lanes bias[2] = {};
        if (linear.bias)
          for (int half = 0; half < 2; half++) bias[half] = load(linear.bias + panel * kPanel + half * kLanes);
        for (int r = 0; r < count; r++)
          take(first + r, panel, load(out + r * kPanel) + bias[0], load(out + r * kPanel + kLanes) + bias[1]);
      }
  });
}

}  // namespace headrace
