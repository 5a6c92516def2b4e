// The forward pass of the Llama family in one call: tokens in, hidden states out, all phases on one thread team.
// models/families/llama_torch.py is the reference implementation; the tests compare both. The residual stream is
// float32 for every number format of the weights. Rows are padded with zeros to a multiple of 64; see linear.h and
// attention.h.
#include <cstddef>
#include <new>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "low_rank.h"
#include "rows.h"
#include "thread_team.h"

namespace headrace {

struct Layer {
  const float* attention_norm;
  Linear qkv;
  const float* query_norm;  // Qwen3 only, else null
  const float* key_norm;
  Linear out;
  const float* mlp_norm;
  Linear gate_up;  // each panel holds 16 gates and their 16 ups
  Linear down;
  int64_t window;  // sliding window in positions, the token included; 0: none
};

struct Model {
  int64_t num_layers, hidden, heads, kv_heads, head_dim, threads;
  double eps, scale;
  const void* embedding;  // (vocab, hidden) in the cache's format; null: shared with the head
  const float* cosines;   // (positions, head_dim / 2)
  const float* sines;
  Format cache_format;
  const Layer* layers;
  const float* norm;
  Linear head;
};

// Consecutive tokens of one request: rows `first` to `first + count - 1` of the pass, at positions from `start` on.
struct Sequence {
  int64_t first, count, start;
  const int32_t* pages;
  const LayerAdapter* adapter;  // one for each layer; null: the model as it is
};

struct Pass {
  int64_t num_tokens, num_sequences;
  const int64_t* tokens;
  const Sequence* sequences;
  float* hidden;  // (num_tokens, padded hidden), the result
  void* keys;     // the cache: the pages of each layer, one layer after the other
  void* values;
  int64_t pages;  // in one layer
  const int32_t* interrupt;  // null, or a flag: any thread may set it to end the pass after the current layer
};

enum class Outcome : int32_t { kDone, kNoMemory, kInterrupted };

namespace {

// Scratch memory of a pass. Grows to the size of the largest pass.
struct Workspace {
  RowBuffer normed, qkv, attended, attended_rows, inner, inner_rows, head_rows, added;

  void fit(const Model& model, int64_t n) {
    const Layer& layer = model.layers[0];
    normed.fit(n, model.hidden);
    qkv.fit(n, layer.qkv.panels * kPanel);
    attended.fit(n, model.heads * model.head_dim);
    attended_rows.fit(n, model.heads * model.head_dim);
    inner.fit(n, layer.down.inputs);
    inner_rows.fit(n, layer.down.inputs);
  }

  void fit_added(const Model& model, int64_t n) {
    const Layer& layer = model.layers[0];
    added.fit(n, std::max({layer.qkv.panels, layer.out.panels, layer.gate_up.panels, layer.down.panels}) * kPanel);
  }
};

struct QueryGroup {
  const Sequence* sequence;
  int64_t first, count;
};

constexpr int64_t kRowChunk = 8;  // chunk size of phases that treat each row alone

// One layer's part of the cache.
template <class T>
struct Cache {
  T *keys, *values;
};

template <class T>
class ForwardPass {
 public:
  ForwardPass(const Model& model, const Pass& pass, Workspace& space)
      : model_(model), pass_(pass), space_(space), stride_(padded(model.hidden)) {
    space.fit(model, pass.num_tokens);
    const int64_t share = model.heads / model.kv_heads, most = std::max<int64_t>(1, kMaxQueries / share);
    for (int64_t s = 0; s < pass.num_sequences; s++) {
      const Sequence& sequence = pass.sequences[s];
      for (int64_t i = 0; i < sequence.count; i += most)
        queries_.push_back({&sequence, i, std::min(most, sequence.count - i)});
      if (!sequence.adapter) continue;
      adapters_.resize(pass.num_tokens);
      std::fill_n(adapters_.begin() + sequence.first, sequence.count, sequence.adapter);
    }
    if (!adapters_.empty()) space.fit_added(model, pass.num_tokens);
  }

  void run(ThreadTeam& team) {
    configure_tiles_for_linear();
    std::vector<float> row(stride_, 0.0f);
    Attention<T> attention(model_.kv_heads, model_.head_dim, (float)model_.scale);
    embed(team);
    for (int64_t index = 0; index < model_.num_layers; index++) {
      const Layer& layer = model_.layers[index];
      attend(team, layer, index, attention, row);
      feed_forward(team, layer, index, row);
      // One thread reads the flag in a phase of its own, so that all threads agree on the next phase. (A late thread
      // may see the result of a later layer. It then leaves early.) After the last layer there is nothing to stop.
      if (pass_.interrupt && index + 1 < model_.num_layers)
        team.parallel_for(1, 1, [&](int64_t, int64_t) {
          interrupted_ = __atomic_load_n(pass_.interrupt, __ATOMIC_RELAXED) != 0;
        });
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

  // The adapter of a row in one layer, or null.
  const LayerAdapter* adapter(int64_t n, int64_t layer) const {
    return adapters_.empty() || !adapters_[n] ? nullptr : adapters_[n] + layer;
  }

  // Computes what the adapter of a row, if it has one, adds to the modules `first` to `last` of a linear layer.
  void adapt(int64_t n, int64_t layer, Module first, Module last, const float* row, int64_t inputs) {
    const LayerAdapter* found = adapter(n, layer);
    if (!found) return;
    std::memset(space_.added.row(n), 0, space_.added.rows().stride * sizeof(float));
    for (int module = first; module <= last; module++)
      if (found->modules[module].rank) write_low_rank<T>(found->modules[module], row, inputs, space_.added.row(n));
  }

  // Adds what `adapt` has computed to both halves of a panel.
  void add_adapted(int64_t n, int64_t panel, Floats& low, Floats& high) {
    if (adapters_.empty() || !adapters_[n]) return;
    const float* added = space_.added.row(n) + panel * kPanel;
    low = low + load(added);
    high = high + load(added + kLanes);
  }

  template <class Work>
  void each_row(ThreadTeam& team, const Work& work) {
    // A row with an adapter is much more work than others.
    team.parallel_for(pass_.num_tokens, adapters_.empty() ? kRowChunk : 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++) work(n);
    });
  }

  void embed(ThreadTeam& team) {
    each_row(team, [&](int64_t n) {
      if (model_.embedding) {
        const T* from = (const T*)model_.embedding + pass_.tokens[n] * model_.hidden;
        for (int64_t i = 0; i < stride_; i++) hidden(n)[i] = i < model_.hidden ? to_float(from[i]) : 0.0f;
      } else {
        read_weight_row(model_.head, pass_.tokens[n], hidden(n));
      }
    });
  }

  void norm_rows(ThreadTeam& team, const float* weight, Format format, int64_t layer, Module first, Module last,
                 std::vector<float>& row) {
    each_row(team, [&](int64_t n) {
      normalise(hidden(n), weight, model_.hidden, model_.eps, row.data());
      write_row(format, row.data(), space_.normed.rows(), n);
      adapt(n, layer, first, last, row.data(), stride_);
    });
  }

  // Converts rows to the format of a linear layer, which is one module. float32 needs no copy.
  Rows convert_rows(ThreadTeam& team, Format format, int64_t layer, Module module, RowBuffer& from, RowBuffer& to) {
    const bool is_same = format == Format::kFloat32;
    if (!is_same || !adapters_.empty())
      each_row(team, [&](int64_t n) {
        if (!is_same) write_row(format, from.row(n), to.rows(), n);
        adapt(n, layer, module, module, from.row(n), from.rows().stride);
      });
    return is_same ? from.rows() : to.rows();
  }

  void add_to_hidden(ThreadTeam& team, const Linear& linear, const Rows& rows) {
    gemm(team, linear, rows, pass_.num_tokens, [&](int64_t n, int64_t panel, Floats low, Floats high) {
      float* to = hidden(n) + panel * kPanel;
      add_adapted(n, panel, low, high);
      store(to, load(to) + low);
      store(to + kLanes, load(to + kLanes) + high);
    });
  }

  void attend(ThreadTeam& team, const Layer& layer, int64_t index, Attention<T>& attention, std::vector<float>& row) {
    const Cache<T> cache = this->cache(index);
    norm_rows(team, layer.attention_norm, layer.qkv.format, index, kQuery, kValue, row);
    gemm(team, layer.qkv, space_.normed.rows(), pass_.num_tokens,
             [&](int64_t n, int64_t panel, Floats low, Floats high) {
               add_adapted(n, panel, low, high);
               store(space_.qkv.row(n) + panel * kPanel, low);
               store(space_.qkv.row(n) + panel * kPanel + kLanes, high);
             });
    rope_and_store(team, layer, cache);
    configure_tiles_for_attention();
    team.parallel_for((int64_t)queries_.size() * model_.kv_heads, 1, [&](int64_t item, int64_t) {
      attend_query(queries_[item / model_.kv_heads], item % model_.kv_heads, layer.window, cache, attention);
    });
    configure_tiles_for_linear();
    add_to_hidden(team, layer.out,
                  convert_rows(team, layer.out.format, index, kOut, space_.attended, space_.attended_rows));
  }

  void rope_and_store(ThreadTeam& team, const Layer& layer, const Cache<T>& cache) {
    team.parallel_for(pass_.num_tokens, kRowChunk, [&](int64_t begin, int64_t end) {
      for (int64_t s = 0; s < pass_.num_sequences; s++) {
        const Sequence& sequence = pass_.sequences[s];
        const int64_t first = std::max(begin, sequence.first), last = std::min(end, sequence.first + sequence.count);
        for (int64_t n = first; n < last; n++)
          apply_rope(layer, cache, n, sequence.start + n - sequence.first, sequence.pages);
      }
    });
  }

  void apply_rope(const Layer& layer, const Cache<T>& cache, int64_t n, int64_t position, const int32_t* pages) {
    const int64_t head_dim = model_.head_dim, page = pages[position / kPage], offset = position % kPage;
    const PageShape shape{model_.kv_heads, head_dim};
    float* head = space_.qkv.row(n);
    for (int64_t h = 0; h < model_.heads + model_.kv_heads; h++, head += head_dim) {
      const bool is_query = h < model_.heads;
      const float* norm = is_query ? layer.query_norm : layer.key_norm;
      if (norm) normalise(head, norm, head_dim, model_.eps, head);
      rotate(head, position);
      if (!is_query) store_key(head, head_dim, offset, cache.keys + shape.offset(page, h - model_.heads));
    }
    for (int64_t h = 0; h < model_.kv_heads; h++, head += head_dim)
      store_value(head, head_dim, offset, cache.values + shape.offset(page, h));
  }

  void rotate(float* head, int64_t position) {
    const int64_t half = model_.head_dim / 2;
    const float *cosine = model_.cosines + position * half, *sine = model_.sines + position * half;
    for (int64_t d = 0; d < half; d += kLanes) {
      const Floats a = load(head + d), b = load(head + half + d), cos = load(cosine + d), sin = load(sine + d);
      store(head + d, multiply_add(-b, sin, a * cos));
      store(head + half + d, multiply_add(a, sin, b * cos));
    }
  }

  void attend_query(const QueryGroup& query, int64_t kv_head, int64_t window, const Cache<T>& cache,
                    Attention<T>& attention) {
    const int64_t share = model_.heads / model_.kv_heads, head_dim = model_.head_dim;
    const int32_t* pages = query.sequence->pages;
    for (int64_t i = 0; i < query.count; i++) {
      const int64_t n = query.sequence->first + query.first + i, position = query.sequence->start + query.first + i;
      const int64_t oldest = window ? std::max<int64_t>(0, position - window + 1) : 0;
      for (int64_t g = 0; g < share; g++) {
        if (attention.full()) attention.run(cache.keys, cache.values, pages, kv_head);
        const int64_t at = (kv_head * share + g) * head_dim;
        attention.add(space_.qkv.row(n) + at, oldest, position, space_.attended.row(n) + at);
      }
    }
    attention.run(cache.keys, cache.values, pages, kv_head);
  }

  void feed_forward(ThreadTeam& team, const Layer& layer, int64_t index, std::vector<float>& row) {
    norm_rows(team, layer.mlp_norm, layer.gate_up.format, index, kGate, kUp, row);
    const bool is_direct = layer.down.format == Format::kBFloat16 && adapters_.empty();
    const Rows halves = space_.inner_rows.rows();
    gemm(team, layer.gate_up, space_.normed.rows(), pass_.num_tokens,
             [&](int64_t n, int64_t panel, Floats gate, Floats up) {
               add_adapted(n, panel, gate, up);
               const Floats gated = silu(gate) * up;
               if (is_direct)
                 store(halves.row<Bf16Operand>(n) + panel * kLanes, gated);
               else
                 store(space_.inner.row(n) + panel * kLanes, gated);
             });
    add_to_hidden(team, layer.down,
                  is_direct ? halves
                            : convert_rows(team, layer.down.format, index, kDown, space_.inner, space_.inner_rows));
  }

  const Model& model_;
  const Pass& pass_;
  Workspace& space_;
  const int64_t stride_;
  std::vector<QueryGroup> queries_;
  std::vector<const LayerAdapter*> adapters_;  // one for each row; empty if no row has one
  std::atomic<bool> interrupted_ = false;
};

}  // namespace
}  // namespace headrace

using namespace headrace;

extern "C" {

// Increase this with each change of a struct or a layout. Python refuses a library of another version.
int64_t headrace_version() { return 4; }

const char* headrace_isa() {
  if (has_amx()) return "AMX";
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

// Runs all decoder layers. If there is no memory for a pass of this size, it writes nothing.
Outcome headrace_layers(const Model* model, const Pass* pass, Workspace* space) {
  const auto run = [&](auto&& forward) {
    run_team((int)model->threads, [&](ThreadTeam& team) { forward.run(team); });
    return forward.outcome();
  };
  try {
    return model->cache_format == Format::kFloat32 ? run(ForwardPass<float>(*model, *pass, *space))
                                                   : run(ForwardPass<BFloat16>(*model, *pass, *space));
  } catch (const std::bad_alloc&) {
    return Outcome::kNoMemory;
  }
}

// Logits of the `count` hidden states with the indices `selected`: (count, panels * 32).
void headrace_logits(const Model* model, const float* hidden, const int64_t* selected, int64_t count, float* out,
                     Workspace* space) {
  const int64_t stride = padded(model->hidden), columns = model->head.panels * kPanel;
  space->head_rows.fit(count, model->hidden);
  const Rows rows = space->head_rows.rows();
  run_team((int)model->threads, [&](ThreadTeam& team) {
    configure_tiles_for_linear();
    std::vector<float> row(stride, 0.0f);
    team.parallel_for(count, kRowChunk, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++) {
        normalise(hidden + selected[n] * stride, model->norm, model->hidden, model->eps, row.data());
        write_row(model->head.format, row.data(), rows, n);
      }
    });
    gemm(team, model->head, rows, count, [&](int64_t n, int64_t panel, Floats low, Floats high) {
      store(out + n * columns + panel * kPanel, low);
      store(out + n * columns + panel * kPanel + kLanes, high);
    });
    release_tiles();
  });
}

// One linear layer, for tests: floats in, (count, panels * 32) floats out. `from` is padded as a row is.
void headrace_linear(const Linear* linear, const float* from, int64_t count, float* out, int64_t threads) {
  RowBuffer buffer;
  buffer.fit(count, linear->inputs);
  const Rows rows = buffer.rows();
  run_team((int)threads, [&](ThreadTeam& team) {
    configure_tiles_for_linear();
    team.parallel_for(count, kRowChunk, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++) write_row(linear->format, from + n * linear->inputs, rows, n);
    });
    gemm(team, *linear, rows, count, [&](int64_t n, int64_t panel, Floats low, Floats high) {
      store(out + n * linear->panels * kPanel + panel * kPanel, low);
      store(out + n * linear->panels * kPanel + panel * kPanel + kLanes, high);
    });
    release_tiles();
  });
}

}  // extern "C"
