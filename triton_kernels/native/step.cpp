// One step of a decoder over the pool: prompts' chunks and decode rows in one batch, one call. Activations are
// float32 throughout; what weights and K and V are in, formats.h and attention.h say.
#include "attending.h"
#include "delta.h"
#include "logits.h"
#include "lora.h"
#include "mixture.h"
#include "pack.h"

namespace {

Team& team() {
  static Team* one = new Team;  // never ended: threads may outlive what a process's end destroys
  return *one;
}

class Step final : public Attending, public Job {
 public:
  Step(const ModelFields& m, const LayerFields* layers)
      : Attending(m, layers), mixing_(layers_), recurring_(m.linear) {
    for (auto& one : layers_) {
      into_mixture_.push_back(one.mixture ? Mixing::into(*one.mixture) : 0);
      within_mixture_.push_back(one.mixture ? Mixing::within(*one.mixture) : 0);
      beside_ = beside_ || (one.mixture && dense(one));
      shares_ = shares_ || one.shared.w;
    }
    into_mlp_.resize(m.layers), into_down_.resize(m.layers);
    x_ = padded(m.hidden, GROUP), inner_ = padded(std::max(m.inner, m.input), GROUP);
    inputs_ = padded((int64_t)m.layers * m.input, LANES), recurrent_ = padded(recurring_.given(), GROUP);
    widest_ = std::max({x_, attended_, inner_, recurrent_});
  }
  ~Step() { team().leave(*this); }

  void run(const BatchFields& b, int threads) {
    team().leave(*this);
    b_ = b;
    const int64_t n = b.tokens;
    few_ = n <= FEW;
    for (int i = 0; i < m_.layers; i++) {
      const LayerFields& l = layers_[i];
      into_mlp_[i] = (dense(l) ? 0 : into_mixture_[i]) | needed({l.gate.format, l.up.format, l.shared.format}, n);
      into_down_[i] = needed({l.down.format}, n);
    }
    x_all_.need(n * x_), sum_.need(n * x_), gated_.need(n * inner_);
    ready_.need(n, widest_);
    if (m_.input) inputs_all_.need(n * inputs_);
    if (beside_) given_.need(n * x_), scored_.need(n, x_);
    if (shares_) shared_.need(n, inner_), share_.need(n * LANES);
    lay_out(threads);
    adapting_.group(m_, b_);
    mixing_.lay_out(n);
    recurring_.lay_out(n, threads);
    head_alone_ = false;
    sample(threads);
  }

  // Final norm and head alone, on rows of ``hidden`` as ``run`` left them.
  void logits(const float* hidden, int rows, float* out, int threads) {
    team().leave(*this);
    b_ = {};
    best_.need(rows), choice_.need(rows);
    b_.picks = rows, b_.hidden = (float*)hidden, b_.logits = out, b_.best = best_.get(), b_.choice = choice_.get();
    head_alone_ = true;
    sample(threads);
  }

 private:
  void sample(int threads) {
    const int64_t n = b_.best ? (int64_t)threads * b_.picks : 0;
    if (b_.best) last_.need(b_.picks, x_);
    bests_.need(n);
    for (int64_t i = 0; i < n; i++) bests_.get()[i] = {-INFINITY, -1};
    team().run(*this, threads);
    for (int i = 0; n && i < b_.picks; i++) {
      Best best = {-INFINITY, -1};
      for (int t = 0; t < threads; t++) best.join(bests_.get()[t * b_.picks + i]);
      b_.best[i] = best.logit, b_.choice[i] = std::max<int64_t>(0, best.at);
    }
  }

  // ---- all of it, in every thread ----------------------------------------------------------------------

  void work(int thread, Phases& phases) override {
    if (!head_alone_) layers(thread, phases);
    head(thread, phases);
  }

  void layers(int thread, Phases& phases) {
    const int n = b_.tokens;
    Activation* a = ready_.of.get();
    auto before_attention = [&](int i, int t) {
      const LayerFields& l = layers_[i];
      normed(row(t), l.before_attention, into_mixing(l), a[t]);
    };
    // What layer ``i`` added last joins the state, which is ready for the next one then.
    auto end = [&](int i, int t, const float* norm) {
      residual(row(t), t, norm);
      scaled(row(t), layers_[i].scalar);
      if (i + 1 < m_.layers) before_attention(i + 1, t);
    };
    each_token(phases, n, few_ ? n : team().piece(n), [&](int first, int stop) {
      for (; first < stop; first++) begin(first);
    }, [&](int t) {
      if (m_.input) normed(row(t), nullptr, needed({m_.input_made.format}, n), a[t]);
      else before_attention(0, t);
    });
    if (m_.input) make_inputs(a, phases, [&](int t) { before_attention(0, t); });
    for (int i = 0; i < m_.layers; i++) {
      const LayerFields& l = layers_[i];
      if (l.linear) recur_layer(l, i, thread, a, phases);
      else attend_layer(l, i, thread, a, phases);
      into_sum(l.o, i, O, l.o_bias, a, phases, [&](int t) {
        if (!m_.parallel) residual(row(t), t, l.after_attention);
        normed(row(t), m_.parallel ? l.before_attention : l.before_mlp, into_mlp_[i], a[t]);
        if (m_.parallel) residual(row(t), t, l.after_attention);
      });
      auto after_mlp = [&](int t) {
        if (!m_.input) return end(i, t, l.after_mlp);
        residual(row(t), t, l.after_mlp);
        normed(row(t), nullptr, needed({l.input_gate.format}, n), a[t]);
      };
      mlp(l, i, a, phases, after_mlp);
      if (m_.input) take_input(l, i, a, phases, [&](int t) { end(i, t, l.after_input); });
    }
    phases.each(b_.picks, team().piece(b_.picks), [&](int first, int stop) {
      for (; first < stop; first++)
        memcpy(b_.hidden + (int64_t)first * m_.hidden, row(b_.pick[first]), sizeof(float) * m_.hidden);
    });
  }

  static bool dense(const LayerFields& l) { return l.mixture == nullptr || l.router_norm != nullptr; }

  // MLP, experts, or both, into the sum; then make(t) as in each_token.
  template <class Make>
  void mlp(const LayerFields& l, int i, const Activation* a, Phases& phases, Make make) {
    const int n = b_.tokens;
    auto mixed = [&](const Activation* scored, auto after) {
      if (l.shared.w) share(l, i, a, phases);
      auto begin = [&](int first, int stop, int from, int some) { begin_sum(l, first, stop, from, some); };
      mixing_.mix(*l.mixture, within_mixture_[i], scored, a, n, few_, sum_.get(), x_, team(), phases, begin, after);
    };
    if (!dense(l)) return mixed(a, make);
    const int64_t width = padded(l.inner, GROUP);
    gate(l, i, a, phases, [&](int t) {
      copied(gated_.get() + t * inner_, l.inner, width, into_down_[i], ready_.of.get()[t]);
    });
    if (!l.mixture) return into_sum(l.down, i, DOWN, nullptr, a, phases, make);
    into_sum(l.down, i, DOWN, nullptr, a, phases, [&](int t) {
      normalise(sum_.get() + t * x_, l.after_dense, given_.get() + t * x_);
      normed(row(t), l.router_norm, needed(l.mixture->router.format), scored_.of.get()[t]);
      normed(row(t), l.before_experts, into_mixture_[i], ready_.of.get()[t]);
    });
    mixed(scored_.of.get(), [&](int t) {
      float *sum = sum_.get() + t * x_, *given = given_.get() + t * x_;
      normalise(sum, l.after_experts, sum);
      for (int k = 0; k < m_.hidden; k++) sum[k] += given[k];
      make(t);
    });
  }

  // What each layer gets of a token beside its state: made of the embedding, and looked up.
  template <class Make> void make_inputs(const Activation* a, Phases& phases, Make make) {
    const int count = blocks(m_.input_made);
    each_token(phases, count, team().piece(count), [&](int first, int stop) {
      product(m_.input_made, first, stop, a, b_.tokens, [&](int t, int j, Floats v) {
        store(inputs_all_.get() + t * inputs_ + 16 * j, mul(v, all(m_.made_scale)));
      }, widest_);
    }, [&](int t) {
      std::vector<float> told(padded(m_.input_table.columns, GROUP));
      unpack_row(m_.input_table.w, m_.input_table.format, b_.token[t], m_.input_table.columns, told.data());
      for (int i = 0; i < m_.layers; i++) {
        float* at = inputs_all_.get() + t * inputs_ + (int64_t)i * m_.input;
        rms_norm(at, m_.input_norm, m_.input, m_.eps, at);
        for (int k = 0; k < m_.input; k++)
          at[k] = (at[k] + m_.table_scale * told[(int64_t)i * m_.input + k]) * 0.70710678f;
      }
      make(t);
    });
  }

  // out(gelu(gate x) · input) into the sum.
  template <class Make>
  void take_input(const LayerFields& l, int i, const Activation* a, Phases& phases, Make make) {
    const int count = blocks(l.input_gate);
    each_token(phases, count, team().piece(count), [&](int first, int stop) {
      product(l.input_gate, first, stop, a, b_.tokens, [&](int t, int j, Floats g) {
        store(gated_.get() + t * inner_ + 16 * j, sigmoid_times(g, gelu_inside(g)));
      }, widest_);
    }, [&](int t) {
      float* at = gated_.get() + t * inner_;
      const float* own = inputs_all_.get() + t * inputs_ + (int64_t)i * m_.input;
      for (int k = 0; k < m_.input; k++) at[k] *= own[k];
      copied(at, m_.input, padded(m_.input, GROUP), needed({l.input_out.format}, b_.tokens), ready_.of.get()[t]);
    });
    const int blocks_out = blocks(l.input_out);
    each_token(phases, blocks_out, team().piece(blocks_out), [&](int first, int stop) {
      product(l.input_out, first, stop, a, b_.tokens, [&](int t, int j, Floats v) {
        store(sum_.get() + t * x_ + 16 * j, v);
      }, widest_);
    }, make);
  }

  // ---- what is done a token at a time: by all threads together, or, of few, by whoever was last before it ----

  template <class Make> void at_once(Make make) {
    for (int t = 0; few_ && t < b_.tokens; t++) make(t);
  }

  template <class Make> void rather_together(Phases& phases, Make make) {
    const int n = b_.tokens;
    if (few_) return;
    phases.each(n, team().piece(n), [&](int first, int stop) { for (; first < stop; first++) make(first); });
  }

  template <class F, class Make> void each_token(Phases& phases, int count, int piece, F f, Make make) {
    phases.each(count, piece, f, [&] { at_once(make); });
    rather_together(phases, make);
  }

  float* row(int t) { return x_all_.get() + t * x_; }

  void scaled(float* x, float by) const {
    for (int i = 0; by != 1 && i < m_.hidden; i++) x[i] *= by;
  }

  void begin(int t) {
    float* x = row(t);
    unpack_row(m_.embed.w, m_.embed.format, b_.token[t], m_.hidden, x);
    for (int i = 0; i < m_.hidden; i++) x[i] *= m_.embed_scale;
    angles(t);
  }

  // x += what the last product left for token t, normalised where a model does so.
  void residual(float* x, int t, const float* norm) {
    float* added = sum_.get() + t * x_;
    if (norm) normalise(added, norm, added);
    for (int i = 0; i < m_.hidden; i++) x[i] += m_.residual_scale * added[i];
  }

  void normalise(const float* x, const float* norm, float* to) {
    if (m_.centred) {
      const float mean = mean_of(x, m_.hidden);
      for (int i = 0; i < m_.hidden; i++) to[i] = x[i] - mean;
      x = to;
    }
    rms_norm(x, norm, m_.hidden, m_.eps, to);
  }

  // Without a norm: as it is.
  void normed(const float* x, const float* norm, int needs, Activation& to) {
    float* f = (float*)to.f;
    if (norm) normalise(x, norm, f);
    else memcpy(f, x, sizeof(float) * m_.hidden);
    for (int64_t i = m_.hidden; i < x_; i++) f[i] = 0;
    make_ready(to, x_, needs);
  }

  // Of ``n`` numbers, zeros behind them up to ``k``.
  void copied(const float* from, int64_t n, int64_t k, int needs, Activation& to) {
    float* f = (float*)to.f;
    memcpy(f, from, sizeof(float) * n);
    for (int64_t i = n; i < k; i++) f[i] = 0;
    make_ready(to, k, needs);
  }

  // ---- products ---------------------------------------------------------------------------------------

  // Where a product leaves what it gives of the first token; part: whose adapters join it, -1: nobody's.
  struct Projection {
    const Matrix* m;
    float* to;
    int part;
    const float* bias;
  };

  // Several products of the same activations, to rows that lie ``apart``. Nothing is written behind a product's last
  // row: another one may begin there.
  void project(std::initializer_list<Projection> parts, int64_t apart, int layer, const Activation* a,
               Phases& phases) {
    int all_blocks = 0;
    for (const Projection& one : parts) all_blocks += blocks(*one.m);
    phases.each(all_blocks, team().piece(all_blocks), [&](int first, int stop) {
      int begin = 0, place = 0;
      for (const Projection& one : parts) {
        const int count = blocks(*one.m), from = std::max(first - begin, 0), to = std::min(stop - begin, count);
        if (from < to)
          product(*one.m, from, to, a, b_.tokens, [&](int t, int j, Floats v) {
            if (one.bias) v = add(v, load(one.bias + 16 * j));
            if (one.part >= 0) v = adapting_.add_to(v, t, layer, one.part, place, j);
            store_some(one.to + t * apart + 16 * j, v, std::min<int64_t>(LANES, one.m->rows - 16 * j));
          }, widest_);
        begin += count, place++;
      }
    });
  }

  // What a layer's tokens are to be ready for.
  int into_mixing(const LayerFields& l) const {
    if (l.linear) return Recurring::into(*l.linear, b_.tokens);
    return needed({l.q.format, l.k.format, l.v.format, l.output_gate.format}, b_.tokens);
  }

  // From the normed tokens to what ``o`` multiplies: attention, or the rule of a layer that has a state.
  void attend_layer(const LayerFields& l, int i, int thread, Activation* a, Phases& phases) {
    adapting_.lower(i, {Q, K, V}, a, phases);
    float* to = projected_.get();
    const Kind& own = kind(i);
    project({{&l.q, to, Q, l.q_bias},
             {&l.k, to + own.q_width, K, l.k_bias},
             {&l.v, to + own.q_width + own.kv_width, V, l.v_bias},
             {&l.output_gate, to + own.qkv(), -1, nullptr}},
            qkv_, i, a, phases);
    if (m_.wide_qk_norm) norm_widely(l, own, phases);
    auto before_o = [&](int t) {
      if (l.output_gate.w) gate_output(own, t);
      copied(seen_.get() + t * attended_, m_.heads * l.head_dim, attended(l), needed({l.o.format}, b_.tokens),
             a[t]);
    };
    attend(l, i, own_[thread], phases, [&] { at_once(before_o); });
    rather_together(phases, before_o);
  }

  void recur_layer(const LayerFields& l, int i, int thread, Activation* a, Phases& phases) {
    const LinearFields& own = *l.linear;
    float* to = recurring_.mixed(0);
    project({{&own.q, to, -1, nullptr},
             {&own.k, to + recurring_.keys(), -1, nullptr},
             {&own.v, to + 2 * recurring_.keys(), -1, nullptr},
             {&own.z, recurring_.z(0), -1, nullptr},
             {&own.b, recurring_.b(0), -1, nullptr},
             {&own.a, recurring_.a(0), -1, nullptr}},
            recurring_.apart(), i, a, phases);
    auto before_o = [&](int t) {
      float* f = (float*)a[t].f;
      recurring_.gate(own, t, m_.eps, f);
      for (int64_t at = recurring_.given(); at < recurrent_; at++) f[at] = 0;
      make_ready(a[t], recurrent_, needed({l.o.format}, b_.tokens));
    };
    recurring_.recur(own, spans_, pool_, thread, phases, [&] { at_once(before_o); });
    rather_together(phases, before_o);
  }

  void norm_widely(const LayerFields& l, const Kind& kind, Phases& phases) {
    const int n = b_.tokens;
    phases.each(n, team().piece(n), [&](int first, int stop) {
      for (; first < stop; first++) {
        float *q = projected_.get() + first * qkv_, *k = q + kind.q_width;
        rms_norm(q, l.q_norm, m_.heads * kind.hd, m_.eps, q);
        rms_norm(k, l.k_norm, kind.kv_heads * kind.hd, m_.eps, k);
      }
    });
  }

  template <class Make>
  void into_sum(const Matrix& m, int layer, Part part, const float* bias, const Activation* a, Phases& phases,
                Make make) {
    adapting_.lower(layer, {part}, a, phases);
    const int count = blocks(m);
    each_token(phases, count, team().piece(count), [&](int first, int stop) {
      product(m, first, stop, a, b_.tokens, [&](int t, int j, Floats v) {
        if (bias) v = add(v, load(bias + 16 * j));
        store(sum_.get() + t * x_ + 16 * j, adapting_.add_to(v, t, layer, part, 0, j));
      }, widest_);
    }, make);
  }

  template <class Make>
  void gate(const LayerFields& l, int layer, const Activation* a, Phases& phases, Make make) {
    adapting_.lower(layer, {GATE, UP}, a, phases);
    const int count = blocks(l.gate);
    each_token(phases, count, team().piece(count), [&](int first, int stop) {
      product(l.gate, first, stop, a, b_.tokens, [&](int t, int j, Floats g) {
        g = adapting_.add_to(g, t, layer, GATE, 0, j);
        store(gated_.get() + t * inner_ + 16 * j, sigmoid_times(g, m_.gelu ? gelu_inside(g) : g));
      }, widest_);
      product(l.up, first, stop, a, b_.tokens, [&](int t, int j, Floats u) {
        float* at = gated_.get() + t * inner_ + 16 * j;
        store(at, mul(load(at), adapting_.add_to(u, t, layer, UP, 1, j)));
      }, widest_);
    }, make);
  }

  // The shared expert of a mixture up to its last matrix: what that is multiplied with, times its own score.
  void share(const LayerFields& l, int i, const Activation* a, Phases& phases) {
    project({{&l.shared, share_.get(), -1, nullptr}}, LANES, i, a, phases);
    gate(l, i, a, phases, [&](int t) {
      float* row = gated_.get() + t * inner_;
      const float part = 1 / (1 + expf(-share_.get()[t * LANES]));
      for (int64_t k = 0; k < l.gate.rows; k++) row[k] *= part;
      // A mixture takes a long prompt in parts: the last one may be too short for tiles.
      copied(row, l.gate.rows, inner_, into_down_[i] | needed(l.down.format), shared_.of.get()[t]);
    });
  }

  // What experts add to: the shared one's, or nothing.
  void begin_sum(const LayerFields& l, int first, int stop, int from, int n) {
    float* sum = sum_.get() + from * x_;
    if (l.shared.w)
      return product(l.down, first, stop, shared_.of.get() + from, n,
                     [&](int t, int j, Floats v) { store(sum + t * x_ + 16 * j, v); }, inner_);
    for (int t = 0; t < n; t++) memset(sum + t * x_ + 16 * first, 0, sizeof(float) * 16 * (stop - first));
  }

  void head(int thread, Phases& phases) {
    const int n = b_.picks;
    if (n == 0 || !b_.best) return;
    Activation* a = last_.of.get();
    phases.each(n, team().piece(n), [&](int i, int stop) {
      for (; i < stop; i++) normed(b_.hidden + (int64_t)i * m_.hidden, m_.norm, needed({m_.head.format}, n), a[i]);
    });
    const int count = blocks(m_.head);
    Best* best = bests_.get() + (int64_t)thread * n;
    phases.each(count, team().piece(count), [&](int first, int stop) {
      product(m_.head, first, stop, a, n, [&](int i, int j, Floats v) {
        take_logits(m_, 16 * j, v, b_.logits ? b_.logits + (int64_t)i * m_.head.rows : nullptr, best[i]);
      }, x_);
    });
  }

  int64_t x_, inner_, inputs_, recurrent_, widest_;
  bool beside_ = false;  // some layer has experts beside its MLP
  bool shares_ = false;  // some mixture has a shared expert
  bool few_ = false, head_alone_ = false;
  Adapting adapting_;
  Mixing mixing_;
  Recurring recurring_;
  // By layer: what activations are to be ready for.
  std::vector<int> into_mlp_, into_down_, into_mixture_, within_mixture_;
  Ready ready_, scored_, last_, shared_;
  Buffer<float> x_all_, sum_, gated_, given_, inputs_all_, share_, best_;
  Buffer<int64_t> choice_;
  Buffer<Best> bests_;
};

}  // namespace

extern "C" {

Step* muxd_open(const ModelFields* model) { return new Step(*model, model->layer); }
void muxd_close(Step* step) { delete step; }
void muxd_pool(Step* step, const Pool* pool) { step->pool(*pool); }
// How many threads it had.
int muxd_run(Step* step, const BatchFields* batch, int threads) {
  step->run(*batch, threads);
  return team().size();
}
void muxd_logits(Step* step, const float* hidden, int rows, float* out, int threads) {
  step->logits(hidden, rows, out, threads);
}

int64_t muxd_block_bytes(int format, int64_t columns) { return block_bytes(format, columns); }
int64_t muxd_file_row_bytes(int format, int64_t columns) { return file_row_bytes(format, columns); }

// Rows [first, first + count) of a matrix at ``w`` from rows of a file, one after another.
void muxd_pack(uint8_t* w, int format, int64_t first, int64_t count, int64_t columns, const uint8_t* from,
               int kind) {
  std::vector<float> scratch(padded(columns, GROUP));
  const int64_t bytes = file_row_bytes(kind, columns);
  for (int64_t i = 0; i < count; i++) {
    const bool whole = (first + i) % LANES == 0 && i + LANES <= count;
    uint8_t* block = w + (first + i) / LANES * block_bytes(format, columns);
    if (whole && pack_rows(block, format, columns, from + i * bytes, kind)) i += LANES - 1;
    else pack_row(w, format, first + i, columns, from + i * bytes, kind, scratch.data());
  }
}

void muxd_unpack(const uint8_t* w, int format, int64_t first, int64_t count, int64_t columns, float* out) {
  std::vector<float> row(padded(columns, GROUP));
  for (int64_t i = 0; i < count; i++) {
    unpack_row(w, format, first + i, columns, row.data());
    memcpy(out + i * columns, row.data(), sizeof(float) * columns);
  }
}
}
