// One step of a decoder over the pool: prompts' chunks and decode rows in one batch, one call. Activations are
// float32 throughout; what weights and K and V are in, formats.h and attention.h say.
#include "model.h"
#include "pack.h"
#include "team.h"

namespace {

Team& team() {
  static Team* one = new Team;  // never ended: threads may outlive what a process's end destroys
  return *one;
}

struct Span { int start, count, first; const int32_t* rows; };  // first: of its tokens in the batch
struct Item { int span, from, count, head; };                   // queries of a span for one KV head

class Step {
 public:
  Step(const ModelFields& m, const LayerFields* layers)
      : m_(m), layers_(layers, layers + m.layers), hd_(m.head_dim), group_(m.heads / m.kv_heads) {
    q_width_ = padded(m.heads * hd_, LANES), kv_width_ = padded(m.kv_heads * hd_, LANES);
    qkv_ = q_width_ + 2 * kv_width_;
    x_ = padded(m.hidden, GROUP), attended_ = padded(m.heads * hd_, GROUP), inner_ = padded(m.inner, GROUP);
    widest_ = std::max(std::max(x_, attended_), inner_);
    width_ = padded(hd_, LANES);
    ropes_ = 1;
    for (auto& one : layers_) ropes_ = std::max(ropes_, one.rope + 1);
  }

  void pool(const Pool& pool) { pool_ = pool; }

  void run(const BatchFields& b, int threads) {
    b_ = &b;
    prepare(threads);
    team().run(threads, [this](int thread) { work(thread); });
    finish();
  }

  // Final norm and head alone, on rows of ``hidden`` as ``run`` left them.
  void logits(const float* hidden, int rows, float* out, int threads) {
    BatchFields b = {};
    b.picks = rows, b.hidden = (float*)hidden, b.logits = out;
    best_.need(rows), choice_.need(rows);
    b.best = best_.get(), b.choice = choice_.get();
    b_ = &b;
    own_.resize(std::max<size_t>(own_.size(), threads));
    picked(threads);
    team().run(threads, [this](int thread) { int phase = 0; head(thread, phase); });
    finish();
  }

 private:
  // ---- a step's memory and its pieces of attention -------------------------------------------------

  void prepare(int threads) {
    const BatchFields& b = *b_;
    const int64_t n = b.tokens;
    few_ = n <= FEW;
    x_all_.need(n * x_), sum_.need(n * x_), projected_.need(n * qkv_);
    seen_.need(n * attended_), gated_.need(n * inner_), angles_.need(n * ropes_ * hd_);
    ready_.need(n, widest_);
    if ((int)own_.size() < threads) own_.resize(threads);
    spans_.clear(), items_.clear();
    alone_ = true;
    int first = 0;
    for (int i = 0; i < b.spans; i++) {
      spans_.push_back({b.start[i], b.count[i], first, b.rows + b.first_row[i]});
      first += b.count[i];
      alone_ = alone_ && b.count[i] == 1;
    }
    const int many = std::clamp(96 / group_, 16, 64);
    for (int i = b.spans - 1; i >= 0; i--)  // the longest context is at a span's end
      for (int left = b.count[i]; left > 0;) {
        const int count = b.count[i] < 8 ? 1 : (left - 1) % many + 1;
        left -= count;
        for (int g = 0; g < m_.kv_heads; g++) items_.push_back({i, left, count, g});
      }
    for (int t = 0; t < threads; t++) {
      own_[t].out.need(group_ * width_), own_[t].states.need(group_);
      own_[t].tile.need(tile_floats(std::max(many, 1) * group_, width_));
      if (few_) own_[t].x.need(FEW * x_), own_[t].ready.need(FEW, widest_);
    }
    split(threads);
    picked(threads);
  }

  // Few sequences with long contexts: each context is cut, or threads would have nothing to do.
  void split(int threads) {
    int longest = 0;
    for (auto& one : spans_) longest = std::max(longest, one.start + one.count);
    cuts_ = 1;
    if (alone_ && (int)items_.size() < 4 * threads && threads > 1 && longest >= 4 * PIECE)
      cuts_ = std::min(longest / (2 * PIECE), (4 * threads + (int)items_.size() - 1) / (int)items_.size());
    if (cuts_ > 1) {
      partial_.need((int64_t)items_.size() * cuts_ * group_ * width_);
      states_.need((int64_t)items_.size() * cuts_ * group_);
    }
  }

  void picked(int threads) {
    last_.need(b_->picks, x_);
    best_of_.need((int64_t)threads * b_->picks), choice_of_.need((int64_t)threads * b_->picks);
    for (int64_t i = 0; i < (int64_t)threads * b_->picks; i++) best_of_.get()[i] = -INFINITY, choice_of_.get()[i] = -1;
  }

  void finish() {
    const int n = b_->picks, threads = team().size();
    for (int i = 0; i < n; i++) {
      float best = -INFINITY;
      int64_t choice = -1;
      for (int t = 0; t < threads; t++) {
        const float one = best_of_.get()[t * n + i];
        const int64_t at = choice_of_.get()[t * n + i];
        if (one != one) best = NAN;
        if (one > best || (one == best && at >= 0 && at < choice)) best = one, choice = at;
      }
      b_->best[i] = best, b_->choice[i] = std::max<int64_t>(0, choice);
    }
  }

  // ---- all of it, in every thread ----------------------------------------------------------------------

  void work(int thread) {
    Own& own = own_[thread];
    int phase = 0;
    const int n = b_->tokens;
    team().share(phase, n, few_ ? n : team().piece(n), [&](int a, int z) { for (; a < z; a++) begin(a); });
    team().sync(phase);
    float* x = x_all_.get();
    if (few_) {
      x = own.x.get();
      memcpy(x, x_all_.get(), sizeof(float) * n * x_);
    }
    const float* added = nullptr;  // norm of what is to be added to x; with ``add``
    bool add = false;
    for (int i = 0; i < m_.layers; i++) {
      const LayerFields& l = layers_[i];
      const Activation* a = ready(own, phase, [&](int t, Activation& to) {
        if (add) residual(x + t * x_, t, added);
        normed(x + t * x_, l.before_attention, l.q.format, l.k.format, l.v.format, to);
      });
      project(l, a, phase);
      attend(l, i, own, phase);
      a = ready(own, phase, [&](int t, Activation& to) {
        memcpy((float*)to.f, seen_.get() + t * attended_, sizeof(float) * attended_);
        if (coded(l.o.format)) quantise(to, attended_);
      });
      into_sum(l.o, l.o_bias, a, phase);
      a = ready(own, phase, [&](int t, Activation& to) {
        residual(x + t * x_, t, l.after_attention);
        normed(x + t * x_, l.before_mlp, l.gate.format, l.up.format, F32, to);
      });
      gate(l, a, phase);
      a = ready(own, phase, [&](int t, Activation& to) {
        memcpy((float*)to.f, gated_.get() + t * inner_, sizeof(float) * inner_);
        if (coded(l.down.format)) quantise(to, inner_);
      });
      into_sum(l.down, nullptr, a, phase);
      add = true, added = l.after_mlp;
    }
    team().share(phase, b_->picks, 1, [&](int at, int) {
      const int t = b_->pick[at];
      float* row = b_->hidden + (int64_t)at * m_.hidden;
      memcpy(row, x + t * x_, sizeof(float) * m_.hidden);
      if (add) residual(row, t, added);
    });
    team().sync(phase);
    head(thread, phase);
  }

  // Embedding and angles of token t.
  void begin(int t) {
    float* x = x_all_.get() + t * x_;
    unpack_row(m_.embed.w, m_.embed.format, b_->token[t], m_.hidden, x);
    for (int i = 0; i < m_.hidden; i++) x[i] *= m_.embed_scale;
    const Span& s = *std::prev(std::upper_bound(spans_.begin(), spans_.end(), t,
                                                [](int at, const Span& one) { return at < one.first; }));
    const float position = s.start + t - s.first;
    for (int r = 0; r < ropes_; r++) {
      float* at = angles_.get() + ((int64_t)t * ropes_ + r) * hd_;
      for (int i = 0; i < hd_ / 2; i++) {
        const float angle = position * m_.frequencies[r][i];
        at[i] = cosf(angle) * m_.magnitude[r], at[hd_ / 2 + i] = sinf(angle) * m_.magnitude[r];
      }
    }
  }

  // Activations of all tokens, made by ``make``: few by each thread for itself, many by all together.
  template <class Make> const Activation* ready(Own& own, int& phase, Make make) {
    const int n = b_->tokens;
    if (few_) {
      Activation* of = own.ready.of.get();
      for (int t = 0; t < n; t++) make(t, of[t]);
      return of;
    }
    Activation* of = ready_.of.get();
    team().share(phase, n, team().piece(n), [&](int a, int z) { for (; a < z; a++) make(a, of[a]); });
    team().sync(phase);
    return of;
  }

  // x += what the last product left for token t, normalised where a model does so.
  void residual(float* x, int t, const float* norm) {
    float* added = sum_.get() + t * x_;
    if (norm == nullptr) {
      for (int i = 0; i < m_.hidden; i++) x[i] += added[i];
      return;
    }
    float squares = 0;
    for (int i = 0; i < m_.hidden; i++) squares += added[i] * added[i];
    const float inverse = 1 / sqrtf(squares / m_.hidden + m_.eps);
    for (int i = 0; i < m_.hidden; i++) x[i] += added[i] * inverse * norm[i];
  }

  void normed(const float* x, const float* norm, int f1, int f2, int f3, Activation& to) {
    float* f = (float*)to.f;
    rms_norm(x, norm, m_.hidden, m_.eps, f);
    for (int64_t i = m_.hidden; i < x_; i++) f[i] = 0;
    if (coded(f1) || coded(f2) || coded(f3)) quantise(to, x_);
  }

  // ---- products ---------------------------------------------------------------------------------------

  static constexpr int TOKENS = 64;  // whose activations stay in the cache while weights pass

  // sink(token, row block, register) for row blocks [first, stop).
  template <class Sink>
  static void product(const Matrix& m, int first, int stop, const Activation* a, int n, Sink sink) {
    const int64_t stride = block_bytes(m.format, m.columns);
    Floats acc[TOKENS];
    for (int from = 0; from < n; from += TOKENS) {
      const int count = std::min(TOKENS, n - from);
      for (int j = first; j < stop; j++) {
        row_block(m, stride, j, a + from, count, acc);
        for (int i = 0; i < count; i++) sink(from + i, j, acc[i]);
      }
    }
  }

  static int blocks(const Matrix& m) { return padded(m.rows, LANES) / LANES; }

  void project(const LayerFields& l, const Activation* a, int& phase) {
    const Matrix* parts[] = {&l.q, &l.k, &l.v};
    const float* biases[] = {l.q_bias, l.k_bias, l.v_bias};
    const int64_t offset[] = {0, q_width_, q_width_ + kv_width_};
    int ends[3], all_blocks = 0;
    for (int i = 0; i < 3; i++) ends[i] = all_blocks += blocks(*parts[i]);
    team().share(phase, all_blocks, team().piece(all_blocks), [&](int first, int stop) {
      for (int i = 0, begin = 0; i < 3; begin = ends[i], i++) {
        const int from = std::max(first, begin) - begin, to = std::min(stop, ends[i]) - begin;
        if (from >= to) continue;
        product(*parts[i], from, to, a, b_->tokens, [&](int t, int j, Floats v) {
          if (biases[i]) v = add(v, load(biases[i] + 16 * j));
          store(projected_.get() + t * qkv_ + offset[i] + 16 * j, v);
        });
      }
    });
    team().sync(phase);
  }

  void into_sum(const Matrix& m, const float* bias, const Activation* a, int& phase) {
    const int count = blocks(m);
    team().share(phase, count, team().piece(count), [&](int first, int stop) {
      product(m, first, stop, a, b_->tokens, [&](int t, int j, Floats v) {
        store(sum_.get() + t * x_ + 16 * j, bias ? add(v, load(bias + 16 * j)) : v);
      });
    });
    team().sync(phase);
  }

  void gate(const LayerFields& l, const Activation* a, int& phase) {
    const int count = blocks(l.gate);
    team().share(phase, count, team().piece(count), [&](int first, int stop) {
      product(l.gate, first, stop, a, b_->tokens, [&](int t, int j, Floats g) {
        Floats z = g;
        if (m_.gelu) {
          Floats cube = mul(mul(g, g), g);
          z = mul(all(2 * 0.7978845608f), fma(all(0.044715f), cube, g));
        }
        Floats s = div(g, add(all(1.f), exponential(sub(zeros(), z))));
        store(gated_.get() + t * inner_ + 16 * j, s);
      });
      product(l.up, first, stop, a, b_->tokens, [&](int t, int j, Floats u) {
        float* at = gated_.get() + t * inner_ + 16 * j;
        store(at, mul(load(at), u));
      });
    });
    team().sync(phase);
  }

  void head(int thread, int& phase) {
    const int n = b_->picks;
    if (n == 0) return;
    Activation* a = last_.of.get();
    team().share(phase, n, 1, [&](int i, int) {
      normed(b_->hidden + (int64_t)i * m_.hidden, m_.norm, m_.head.format, F32, F32, a[i]);
    });
    team().sync(phase);
    const int count = blocks(m_.head);
    float* best = best_of_.get() + (int64_t)thread * n;
    int64_t* choice = choice_of_.get() + (int64_t)thread * n;
    team().share(phase, count, team().piece(count), [&](int first, int stop) {
      product(m_.head, first, stop, a, n, [&](int i, int j, Floats v) { logit(i, 16 * j, v, best[i], choice[i]); });
    });
    team().sync(phase);
  }

  void logit(int i, int64_t at, Floats v, float& best, int64_t& choice) {
    const int count = std::min<int64_t>(LANES, m_.head.rows - at);
    alignas(64) float all_of[LANES];
    if (m_.softcap != 0) {
      store(all_of, v);
      for (int k = 0; k < LANES; k++) all_of[k] = tanhf(all_of[k] / m_.softcap) * m_.softcap;
      v = load(all_of);
    }
    if (b_->logits) {
      float* to = b_->logits + (int64_t)i * m_.head.rows + at;
      if (count == LANES) store(to, v);
      else store(all_of, v), memcpy(to, all_of, sizeof(float) * count);
    }
    if (has_nan(v)) best = NAN;
    unsigned more = above(v, all(best)) & ((1u << count) - 1);
    if (!more) return;
    store(all_of, v);
    for (; more; more &= more - 1) {
      const int k = __builtin_ctz(more);
      if (all_of[k] > best) best = all_of[k], choice = at + k;
    }
  }

  // ---- attention --------------------------------------------------------------------------------------

  // Turned queries stay where they are; K and V of token t's KV head go to the pool.
  void turn(const LayerFields& l, int layer, const Span& s, int t, int g) {
    float* row = projected_.get() + t * qkv_;
    const float* angle = angles_.get() + ((int64_t)t * ropes_ + l.rope) * hd_;
    auto rotate = [&](float* v, const float* norm, float scale) {
      if (norm) rms_norm(v, norm, hd_, m_.eps, v);
      for (int i = 0; i < hd_ / 2; i++) {
        const float a = v[i], b = v[i + hd_ / 2], c = angle[i], s = angle[i + hd_ / 2];
        v[i] = (a * c - b * s) * scale, v[i + hd_ / 2] = (b * c + a * s) * scale;
      }
    };
    for (int h = 0; h < group_; h++) rotate(row + (g * group_ + h) * hd_, l.q_norm, m_.scale);
    float *k = row + q_width_ + g * hd_, *v = k + kv_width_;
    rotate(k, l.k_norm, 1);
    const Blocks in = blocks_of(s, layer, g);
    const int p = s.start + t - s.first, T = pool_.tokens;
    uint8_t* at = in.of(p / T) + p % T * in.token_bytes();
    keep(pool_.kept, at, k, hd_);
    keep(pool_.kept, at + in.values(), v, hd_);
  }

  Blocks blocks_of(const Span& s, int layer, int g) const {
    return {&pool_, s.rows, m_.layers, layer, m_.kv_heads, g, hd_};
  }

  void attend(const LayerFields& l, int layer, Own& own, int& phase) {
    if (!alone_ || cuts_ > 1) {
      team().share(phase, b_->spans, 1, [&](int i, int) {
        const Span& s = spans_[i];
        for (int t = s.first; t < s.first + s.count; t++)
          for (int g = 0; g < m_.kv_heads; g++) turn(l, layer, s, t, g);
      });
      team().sync(phase);
    }
    const int count = items_.size() * cuts_;
    team().share(phase, count, 1, [&](int i, int) {
      const Item& item = items_[i / cuts_];
      const Span& s = spans_[item.span];
      if (alone_ && cuts_ == 1) turn(l, layer, s, s.first, item.head);
      one(l, layer, item, i, own);
    });
    team().sync(phase);
    if (cuts_ > 1) {
      team().share(phase, (int)items_.size(), 1, [&](int i, int) { merge(i); });
      team().sync(phase);
    }
  }

  void one(const LayerFields& l, int layer, const Item& item, int number, Own& own) {
    const Span& s = spans_[item.span];
    const Blocks in = blocks_of(s, layer, item.head);
    const int t = s.first + item.from, at = s.start + item.from, stop = at + item.count;
    float* q = projected_.get() + t * qkv_ + item.head * group_ * hd_;
    if (item.count > 1) return many(in, at, item, l.window, q, own);
    int low = l.window > 0 ? std::max(0, stop - l.window) : 0, end = stop;
    float* out = own.out.get();
    Partial* state = own.states.get();
    if (cuts_ > 1) {
      const int cut = number % cuts_, length = (stop - low + cuts_ - 1) / cuts_;
      out = partial_.get() + (int64_t)number * group_ * width_, state = states_.get() + (int64_t)number * group_;
      low += cut * length, end = std::min(stop, low + length);
    }
    // Heads of a query lie head_dim apart, what is gathered of them ``width``.
    few(in, low, end, q, out, state);
    if (cuts_ > 1) return;
    float* to = seen_.get() + t * attended_ + item.head * group_ * hd_;
    for (int h = 0; h < group_; h++)
      for (int d = 0; d < hd_; d++) to[h * hd_ + d] = out[h * width_ + d] / state[h].total;
  }

  void few(const Blocks& in, int low, int end, const float* q, float* out, Partial* state) {
    const bool whole = hd_ % LANES == 0;
    switch (pool_.kept * 2 + whole) {
      case KEPT_F32 * 2: return attend_group<KEPT_F32, false>(in, low, end, q, group_, hd_, width_, out, state);
      case KEPT_F32 * 2 + 1: return attend_group<KEPT_F32, true>(in, low, end, q, group_, hd_, width_, out, state);
      case KEPT_F16 * 2: return attend_group<KEPT_F16, false>(in, low, end, q, group_, hd_, width_, out, state);
      case KEPT_F16 * 2 + 1: return attend_group<KEPT_F16, true>(in, low, end, q, group_, hd_, width_, out, state);
      case KEPT_BF16 * 2: return attend_group<KEPT_BF16, false>(in, low, end, q, group_, hd_, width_, out, state);
      case KEPT_BF16 * 2 + 1: return attend_group<KEPT_BF16, true>(in, low, end, q, group_, hd_, width_, out, state);
      case KEPT_FLOAT8 * 2: return attend_group<KEPT_FLOAT8, false>(in, low, end, q, group_, hd_, width_, out, state);
      case KEPT_FLOAT8 * 2 + 1: return attend_group<KEPT_FLOAT8, true>(in, low, end, q, group_, hd_, width_, out, state);
    }
  }

  void many(const Blocks& in, int at, const Item& item, int window, const float* q, Own& own) {
    float* out = seen_.get() + (spans_[item.span].first + item.from) * attended_ + item.head * group_ * hd_;
    float* tile = own.tile.get();
    const int n = item.count;
    switch (pool_.kept) {
      case KEPT_F32: return attend_tile<KEPT_F32>(in, at, n, window, q, group_, qkv_, out, attended_, tile);
      case KEPT_F16: return attend_tile<KEPT_F16>(in, at, n, window, q, group_, qkv_, out, attended_, tile);
      case KEPT_BF16: return attend_tile<KEPT_BF16>(in, at, n, window, q, group_, qkv_, out, attended_, tile);
      case KEPT_FLOAT8: return attend_tile<KEPT_FLOAT8>(in, at, n, window, q, group_, qkv_, out, attended_, tile);
    }
  }

  // The cuts of item i become what an uncut one would have left.
  void merge(int i) {
    const Item& item = items_[i];
    float* to = seen_.get() + (spans_[item.span].first + item.from) * attended_ + item.head * group_ * hd_;
    const Partial* states = states_.get() + (int64_t)i * cuts_ * group_;
    const float* parts = partial_.get() + (int64_t)i * cuts_ * group_ * width_;
    for (int h = 0; h < group_; h++) {
      float top = LOWEST, total = 0;
      for (int c = 0; c < cuts_; c++) top = fmaxf(top, states[c * group_ + h].top);
      for (int d = 0; d < hd_; d++) to[h * hd_ + d] = 0;
      for (int c = 0; c < cuts_; c++) {
        const Partial& one = states[c * group_ + h];
        const float weight = one.total > 0 ? expf(one.top - top) : 0;
        total += weight * one.total;
        for (int d = 0; d < hd_ && weight > 0; d++)
          to[h * hd_ + d] += weight * parts[(c * group_ + h) * width_ + d];
      }
      for (int d = 0; d < hd_; d++) to[h * hd_ + d] /= total;
    }
  }

  ModelFields m_;
  std::vector<LayerFields> layers_;
  Pool pool_ = {};
  int hd_, group_, ropes_;
  int64_t q_width_, kv_width_, qkv_, x_, attended_, inner_, widest_, width_;
  const BatchFields* b_ = nullptr;
  bool few_ = false, alone_ = false;  // alone: every span is one token
  int cuts_ = 1;
  std::vector<Span> spans_;
  std::vector<Item> items_;
  std::vector<Own> own_;
  Ready ready_, last_;
  Buffer<float> x_all_, sum_, projected_, seen_, gated_, angles_, partial_, best_, best_of_;
  Buffer<Partial> states_;
  Buffer<int64_t> choice_, choice_of_;
};

}  // namespace

extern "C" {

Step* muxd_open(const ModelFields* model) { return new Step(*model, model->layer); }
void muxd_close(Step* step) { delete step; }
void muxd_pool(Step* step, const Pool* pool) { step->pool(*pool); }
void muxd_run(Step* step, const BatchFields* batch, int threads) { step->run(*batch, threads); }
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
  for (int64_t i = 0; i < count; i++)
    pack_row(w, format, first + i, columns, from + i * bytes, kind, scratch.data());
}

void muxd_unpack(const uint8_t* w, int format, int64_t first, int64_t count, int64_t columns, float* out) {
  std::vector<float> row(padded(columns, GROUP));
  for (int64_t i = 0; i < count; i++) {
    unpack_row(w, format, first + i, columns, row.data());
    memcpy(out + i * columns, row.data(), sizeof(float) * columns);
  }
}
}
