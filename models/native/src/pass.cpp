// The decoder layers of the Llama family as one call: tokens in, hidden states out, all phases by one team of threads.
// Mirrors models/families/llama.py, which is its twin in torch and what it is tested against. The residual is float32
// whatever the weights are. Layouts: rows are padded to 64 numbers with zeros; see linear.h and attention.h.
#include <cstddef>
#include <new>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "rows.h"
#include "team.h"

namespace headrace {

struct Layer {
  const float* attention_norm;
  Linear qkv;
  const float* query_norm;  // null but for Qwen3
  const float* key_norm;
  Linear out;
  const float* mlp_norm;
  Linear gate_up;  // panels of 16 gates and their 16 ups
  Linear down;
  int64_t window;  // how many positions a token sees, itself included; 0: all
};

struct Model {
  int64_t num_layers, hidden, heads, kv_heads, head_dim, threads;
  double eps, scale;
  const void* embedding;  // (vocab, hidden) in the cache's format; null: the head has the same numbers
  const float* cosines;   // (positions, head_dim / 2)
  const float* sines;
  Format cache_format;
  const Layer* layers;
  const float* norm;
  Linear head;
};

// Consecutive tokens of one request: rows `first` up to `first + count` of the pass, at positions from `start` on.
struct Span {
  int64_t first, count, start;
  const int32_t* pages;
};

struct Pass {
  int64_t num_tokens, num_spans;
  const int64_t* tokens;
  const Span* spans;
  float* hidden;  // (num_tokens, padded hidden), the result
  void* keys;     // the cache: every layer's pages, one layer after the other
  void* values;
  int64_t pages;  // of a layer
  const int32_t* interrupt;  // null, or what any thread may make other than 0 to end the pass after a layer
};

enum class Outcome : int32_t { kDone, kNoMemory, kInterrupted };

namespace {

// What a pass needs besides the weights; grows to the largest pass that there was.
struct Workspace {
  RowBuffer normed, qkv, attended, attended_rows, inner, inner_rows, head_rows;

  void fit(const Model& model, int64_t n) {
    const Layer& layer = model.layers[0];
    normed.fit(n, model.hidden);
    qkv.fit(n, layer.qkv.panels * kPanel);
    attended.fit(n, model.heads * model.head_dim);
    attended_rows.fit(n, model.heads * model.head_dim);
    inner.fit(n, layer.down.inputs);
    inner_rows.fit(n, layer.down.inputs);
  }
};

struct Query {
  const Span* span;
  int64_t first, count;
};

constexpr int64_t kRowsTogether = 8;  // of a phase in which each row is done by itself

// One layer's part of the cache.
template <class T>
struct Cache {
  T *keys, *values;
};

template <class T>
class Runner {
 public:
  Runner(const Model& model, const Pass& pass, Workspace& space)
      : model_(model), pass_(pass), space_(space), stride_(padded(model.hidden)) {
    space.fit(model, pass.num_tokens);
    const int64_t share = model.heads / model.kv_heads, most = std::max<int64_t>(1, kMostQueries / share);
    for (int64_t s = 0; s < pass.num_spans; s++) {
      const Span& span = pass.spans[s];
      for (int64_t i = 0; i < span.count; i += most) queries_.push_back({&span, i, std::min(most, span.count - i)});
    }
  }

  void run(Team& team) {
    tiles_for_linear();
    std::vector<float> row(stride_, 0.0f);
    Attention<T> attention(model_.kv_heads, model_.head_dim, (float)model_.scale);
    embed(team);
    for (int64_t index = 0; index < model_.num_layers; index++) {
      const Layer& layer = model_.layers[index];
      attend(team, layer, cache(index), attention, row);
      feed_forward(team, layer, row);
      // One thread looks, and all of them read it when the phase is over: they must agree on what comes next. (Who comes
      // late may see what was seen layers later, and leaves early.) After the last layer it is too late.
      if (pass_.interrupt && index + 1 < model_.num_layers)
        team.each(1, 1, [&](int64_t, int64_t) { interrupted_ = __atomic_load_n(pass_.interrupt, __ATOMIC_RELAXED) != 0; });
      if (interrupted_) break;
    }
    release_tiles();
  }

  Outcome outcome() const { return interrupted_ ? Outcome::kInterrupted : Outcome::kDone; }

 private:
  Cache<T> cache(int64_t layer) const {
    const int64_t numbers = model_.kv_heads * model_.head_dim * kPage * pass_.pages;
    return {(T*)pass_.keys + layer * numbers, (T*)pass_.values + layer * numbers};
  }

  float* hidden(int64_t index) { return pass_.hidden + index * stride_; }

  template <class Work>
  void each_row(Team& team, const Work& work) {
    team.each(pass_.num_tokens, kRowsTogether, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++) work(n);
    });
  }

  void embed(Team& team) {
    each_row(team, [&](int64_t n) {
      if (model_.embedding) {
        const T* from = (const T*)model_.embedding + pass_.tokens[n] * model_.hidden;
        for (int64_t i = 0; i < stride_; i++) hidden(n)[i] = i < model_.hidden ? to_float(from[i]) : 0.0f;
      } else {
        read_output(model_.head, pass_.tokens[n], hidden(n));
      }
    });
  }

  void norm_rows(Team& team, const float* weight, Format format, std::vector<float>& row) {
    each_row(team, [&](int64_t n) {
      normalise(hidden(n), weight, model_.hidden, model_.eps, row.data());
      write_row(format, row.data(), space_.normed.rows(), n);
    });
  }

  // float32 is read where it lies; other formats are written beside it.
  Rows converted(Team& team, Format format, RowBuffer& from, RowBuffer& to) {
    if (format == Format::kFloat32) return from.rows();
    each_row(team, [&](int64_t n) { write_row(format, from.row(n), to.rows(), n); });
    return to.rows();
  }

  void add_to_hidden(Team& team, const Linear& linear, const Rows& rows) {
    multiply(team, linear, rows, pass_.num_tokens, [&](int64_t n, int64_t panel, Lanes low, Lanes high) {
      float* to = hidden(n) + panel * kPanel;
      store(to, load(to) + low);
      store(to + kLanes, load(to + kLanes) + high);
    });
  }

  void attend(Team& team, const Layer& layer, const Cache<T>& cache, Attention<T>& attention,
              std::vector<float>& row) {
    norm_rows(team, layer.attention_norm, layer.qkv.format, row);
    multiply(team, layer.qkv, space_.normed.rows(), pass_.num_tokens,
             [&](int64_t n, int64_t panel, Lanes low, Lanes high) {
               store(space_.qkv.row(n) + panel * kPanel, low);
               store(space_.qkv.row(n) + panel * kPanel + kLanes, high);
             });
    rotate_and_store(team, layer, cache);
    tiles_for_attention();
    team.each((int64_t)queries_.size() * model_.kv_heads, 1, [&](int64_t item, int64_t) {
      answer(queries_[item / model_.kv_heads], item % model_.kv_heads, layer.window, cache, attention);
    });
    tiles_for_linear();
    add_to_hidden(team, layer.out, converted(team, layer.out.format, space_.attended, space_.attended_rows));
  }

  void rotate_and_store(Team& team, const Layer& layer, const Cache<T>& cache) {
    team.each(pass_.num_tokens, kRowsTogether, [&](int64_t begin, int64_t end) {
      for (int64_t s = 0; s < pass_.num_spans; s++) {
        const Span& span = pass_.spans[s];
        const int64_t first = std::max(begin, span.first), last = std::min(end, span.first + span.count);
        for (int64_t n = first; n < last; n++) turn_token(layer, cache, n, span.start + n - span.first, span.pages);
      }
    });
  }

  void turn_token(const Layer& layer, const Cache<T>& cache, int64_t n, int64_t position, const int32_t* pages) {
    const int64_t head_dim = model_.head_dim, page = pages[position / kPage], offset = position % kPage;
    const PageShape shape{model_.kv_heads, head_dim};
    float* head = space_.qkv.row(n);
    for (int64_t h = 0; h < model_.heads + model_.kv_heads; h++, head += head_dim) {
      const bool is_query = h < model_.heads;
      const float* norm = is_query ? layer.query_norm : layer.key_norm;
      if (norm) normalise(head, norm, head_dim, model_.eps, head);
      turn(head, position);
      if (!is_query) store_key(head, head_dim, offset, cache.keys + shape.offset(page, h - model_.heads));
    }
    for (int64_t h = 0; h < model_.kv_heads; h++, head += head_dim)
      store_value(head, head_dim, offset, cache.values + shape.offset(page, h));
  }

  void turn(float* head, int64_t position) {
    const int64_t half = model_.head_dim / 2;
    const float *cosine = model_.cosines + position * half, *sine = model_.sines + position * half;
    for (int64_t d = 0; d < half; d += kLanes) {
      const Lanes a = load(head + d), b = load(head + half + d), cos = load(cosine + d), sin = load(sine + d);
      store(head + d, multiply_add(-b, sin, a * cos));
      store(head + half + d, multiply_add(a, sin, b * cos));
    }
  }

  void answer(const Query& query, int64_t kv_head, int64_t window, const Cache<T>& cache, Attention<T>& attention) {
    const int64_t share = model_.heads / model_.kv_heads, head_dim = model_.head_dim;
    const int32_t* pages = query.span->pages;
    for (int64_t i = 0; i < query.count; i++) {
      const int64_t n = query.span->first + query.first + i, position = query.span->start + query.first + i;
      const int64_t oldest = window ? std::max<int64_t>(0, position - window + 1) : 0;
      for (int64_t g = 0; g < share; g++) {
        if (attention.full()) attention.run(cache.keys, cache.values, pages, kv_head);
        const int64_t at = (kv_head * share + g) * head_dim;
        attention.add(space_.qkv.row(n) + at, oldest, position, space_.attended.row(n) + at);
      }
    }
    attention.run(cache.keys, cache.values, pages, kv_head);
  }

  void feed_forward(Team& team, const Layer& layer, std::vector<float>& row) {
    norm_rows(team, layer.mlp_norm, layer.gate_up.format, row);
    const bool is_direct = layer.down.format == Format::kBFloat16;
    const Rows halves = space_.inner_rows.rows();
    multiply(team, layer.gate_up, space_.normed.rows(), pass_.num_tokens,
             [&](int64_t n, int64_t panel, Lanes gate, Lanes up) {
               const Lanes gated = silu(gate) * up;
               if (is_direct)
                 store(halves.row<Factor>(n) + panel * kLanes, gated);
               else
                 store(space_.inner.row(n) + panel * kLanes, gated);
             });
    add_to_hidden(team, layer.down, is_direct ? halves : converted(team, layer.down.format, space_.inner, space_.inner_rows));
  }

  const Model& model_;
  const Pass& pass_;
  Workspace& space_;
  const int64_t stride_;
  std::vector<Query> queries_;
  std::atomic<bool> interrupted_ = false;
};

}  // namespace
}  // namespace headrace

using namespace headrace;

extern "C" {

// Changes whenever a struct or a layout does, so that Python and this library never disagree in silence.
int64_t headrace_version() { return 3; }

const char* headrace_kind() {
  if (has_tiles()) return "AMX";
#if defined(__AVX512BF16__)
  return "AVX-512 BF16";
#elif defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#elif defined(__ARM_NEON)
  return "NEON";
#else
  return "generic";
#endif
}

Workspace* headrace_open() { return new Workspace; }

void headrace_close(Workspace* space) { delete space; }

// Without memory for a pass of this size nothing is written.
Outcome headrace_layers(const Model* model, const Pass* pass, Workspace* space) {
  const auto run = [&](auto&& runner) {
    together((int)model->threads, [&](Team& team) { runner.run(team); });
    return runner.outcome();
  };
  try {
    return model->cache_format == Format::kFloat32 ? run(Runner<float>(*model, *pass, *space))
                                                   : run(Runner<BFloat16>(*model, *pass, *space));
  } catch (const std::bad_alloc&) {
    return Outcome::kNoMemory;
  }
}

// Scores of `count` hidden states, those at `picked`: (count, panels * 32).
void headrace_logits(const Model* model, const float* hidden, const int64_t* picked, int64_t count, float* out,
                     Workspace* space) {
  const int64_t stride = padded(model->hidden), columns = model->head.panels * kPanel;
  space->head_rows.fit(count, model->hidden);
  const Rows rows = space->head_rows.rows();
  together((int)model->threads, [&](Team& team) {
    tiles_for_linear();
    std::vector<float> row(stride, 0.0f);
    team.each(count, kRowsTogether, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++) {
        normalise(hidden + picked[n] * stride, model->norm, model->hidden, model->eps, row.data());
        write_row(model->head.format, row.data(), rows, n);
      }
    });
    multiply(team, model->head, rows, count, [&](int64_t n, int64_t panel, Lanes low, Lanes high) {
      store(out + n * columns + panel * kPanel, low);
      store(out + n * columns + panel * kPanel + kLanes, high);
    });
    release_tiles();
  });
}

// One linear layer alone, for tests: floats in, (count, panels * 32) floats out. `from` is padded as a row is.
void headrace_linear(const Linear* linear, const float* from, int64_t count, float* out, int64_t threads) {
  RowBuffer buffer;
  buffer.fit(count, linear->inputs);
  const Rows rows = buffer.rows();
  together((int)threads, [&](Team& team) {
    tiles_for_linear();
    team.each(count, kRowsTogether, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++) write_row(linear->format, from + n * linear->inputs, rows, n);
    });
    multiply(team, *linear, rows, count, [&](int64_t n, int64_t panel, Lanes low, Lanes high) {
      store(out + n * linear->panels * kPanel + panel * kPanel, low);
      store(out + n * linear->panels * kPanel + panel * kPanel + kLanes, high);
    });
    release_tiles();
  });
}

}  // extern "C"
