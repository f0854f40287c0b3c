// Layers with a state in place of keys and values: the gated delta rule (Yang, Kautz and Hatamizadeh 2024, section
// 3). q, k and v go through a causal convolution of each channel and SiLU; then, for each v head, token by token,
//   S <- e^g S;  S <- S + k (beta (v - S^T k))^T;  o = S^T q
// with q and k of length one and q times k_dim^-1/2. S [k_dim, v_dim] and the last inputs of the convolution, its
// tail, are a sequence's state and lie in the pool in float32 (``models/state_layout.py``). Columns of S never meet,
// so a tile of them stays in the nearest cache while all tokens of a prompt go through it.
#pragma once
#include <cmath>
#include <vector>

#include "model.h"
#include "team.h"

// A layer's part of a sequence's state: blocks of its state rows, one after another.
struct State {
  const Pool* pool;
  const int32_t* rows;
  int per_row, first;

  float* block(int64_t j) const {
    const int64_t at = first + j, row = rows[at / per_row];
    return (float*)(pool->base + pool->block_bytes * pool->table[row * per_row + at % per_row]);
  }

  // f(where, how many, how many before) for the runs of floats [e, e + n) of an array cut into whole blocks.
  template <class F> void runs(int64_t e, int64_t n, F f) const {
    const int64_t per = pool->block_bytes / 4;
    for (int64_t done = 0; done < n;) {
      const int64_t at = (e + done) % per, some = std::min(n - done, per - at);
      f(block((e + done) / per) + at, some, done);
      done += some;
    }
  }
};

class Recurring {
 public:
  explicit Recurring(const LinearShape& shape) : s_(shape) {
    if (!s_.v_heads) return;
    keys_ = (int64_t)s_.k_heads * s_.k_dim, channels_ = 2 * keys_ + given();
    wide_ = padded(channels_, LANES);
    z_ = wide_, b_ = z_ + padded(given(), LANES), a_ = b_ + padded(s_.v_heads, LANES);
    apart_ = a_ + padded(s_.v_heads, LANES);
    for (int at = 0; at < s_.v_dim;) {
      const int left = s_.v_dim - at, some = left >= TILE ? TILE : std::min(left, LANES);
      tiles_.push_back({at, some}), at += some;
    }
  }

  // What a layer's tokens are to be ready for.
  static int into(const LinearFields& l, int n) {
    return needed({l.q.format, l.k.format, l.v.format, l.z.format, l.b.format, l.a.format}, n);
  }

  // Of a batch.
  void lay_out(int64_t tokens, int threads) {
    if (!s_.v_heads) return;
    projected_.need(tokens * apart_), given_.need(tokens * given());
    if ((int)own_.size() < threads) own_.resize(threads);
    for (int t = 0; t < threads; t++) {
      own_[t].past.need((int64_t)s_.kernel * CHANNELS);
      own_[t].q.need(s_.k_dim), own_[t].k.need(s_.k_dim), own_[t].line.need(s_.k_dim);
    }
  }

  // Where products leave what they give: of token t, rows so many floats apart. q begins there, k and v behind it.
  float* mixed(int64_t t) const { return projected_.get() + t * apart_; }
  float* z(int64_t t) const { return mixed(t) + z_; }
  float* b(int64_t t) const { return mixed(t) + b_; }
  float* a(int64_t t) const { return mixed(t) + a_; }
  int64_t apart() const { return apart_; }
  int64_t keys() const { return keys_; }
  // Floats that a token's v heads give together.
  int64_t given() const { return (int64_t)s_.v_heads * s_.v_dim; }

  // From what was projected to what the heads give, and the states of all spans behind their last tokens; then
  // ``after()`` as in Phases.
  template <class After>
  void recur(const LinearFields& l, const std::vector<Span>& spans, const Pool& pool, int thread, Phases& phases,
             After after) {
    Own& own = own_[thread];
    const int chunks = padded(channels_, CHANNELS) / CHANNELS, tiles = tiles_.size(), many = spans.size();
    phases.each(many * chunks, 1, [&](int i, int) {
      convolve(l, spans[i / chunks], pool, i % chunks * CHANNELS, own);
    });
    phases.each(many * s_.v_heads * tiles, 1, [&](int i, int) {
      const Tile& tile = tiles_[i % tiles];
      const Span& span = spans[i / tiles / s_.v_heads];
      const int head = i / tiles % s_.v_heads;
      if (tile.columns == TILE) return rule<TILE / LANES, true>(l, span, pool, head, tile, own);
      if (tile.columns == LANES) return rule<1, true>(l, span, pool, head, tile, own);
      rule<1, false>(l, span, pool, head, tile, own);
    }, after);
  }

  // Each head's output of token t, normalised, times SiLU of its gate.
  void gate(const LinearFields& l, int64_t t, float eps, float* to) const {
    const int n = s_.v_dim;
    for (int h = 0; h < s_.v_heads; h++) {
      const float *given = given_.get() + t * this->given() + h * n, *gates = z(t) + h * n;
      const float inverse = 1 / sqrtf(squares(given, n) / n + eps);
      for (int i = 0; i < n; i += LANES) {
        const int some = std::min(LANES, n - i);
        const Floats gate = load_some(gates + i, some);
        const Floats normed = mul(mul(load_some(given + i, some), all(inverse)), load_some(l.norm + i, some));
        store_some(to + h * n + i, mul(normed, mul(gate, sigmoid(gate))), some);
      }
    }
  }

 private:
  static constexpr int CHANNELS = 256;  // of the convolution, of one piece of work
  static constexpr int TILE = MUXD_WIDE ? 64 : 32;  // columns of a state: sums of two lines fill the registers

  struct Tile { int from, columns; };
  struct Own {
    Buffer<float> past, q, k;
    Buffer<float*> line;
  };

  static float squares(const float* x, int n) {
    Floats total = zeros();
    for (int i = 0; i < n; i += LANES) {
      const Floats v = load_some(x + i, std::min(LANES, n - i));
      total = fma(v, v, total);
    }
    return sum(total);
  }

  State state(const LinearFields& l, const Span& s, const Pool& pool) const {
    return {&pool, s.state, s_.per_row, l.first};
  }

  // Channels from ``from`` on of a span, in place: from its last token to its first, which is never needed again.
  void convolve(const LinearFields& l, const Span& s, const Pool& pool, int from, Own& own) const {
    const int kept = s_.kernel - 1, count = std::min<int64_t>(CHANNELS, channels_ - from);
    State tail = state(l, s, pool);
    tail.first += s_.v_heads * s_.head_blocks;
    float *past = own.past.get(), *x = mixed(s.first) + from;
    auto input = [&](int j) { return j >= 0 ? x + j * apart_ : past + (j + kept) * CHANNELS; };
    for (int i = 0; i < kept; i++) {
      float* line = past + i * CHANNELS;
      if (s.start == 0) memset(line, 0, sizeof(float) * CHANNELS);
      else tail.runs(i * channels_ + from, count, [&](const float* at, int64_t some, int64_t done) {
        memcpy(line + done, at, sizeof(float) * some);
      });
    }
    for (int i = 0; i < kept; i++) {
      const float* line = input(s.count - kept + i);
      tail.runs(i * channels_ + from, count, [&](float* at, int64_t some, int64_t done) {
        memcpy(at, line + done, sizeof(float) * some);
      });
    }
    for (int t = s.count - 1; t >= 0; t--)
      for (int c = 0; c < count; c += LANES) {
        Floats total = zeros();
        for (int i = 0; i <= kept; i++)
          total = fma(load(input(t - kept + i) + c), load(l.conv + i * wide_ + from + c), total);
        store(x + t * apart_ + c, mul(total, sigmoid(total)));
      }
  }

  // x / |x|, times ``scale``.
  void unit(const float* x, float scale, float* to) const {
    const float by = scale / sqrtf(squares(x, s_.k_dim) + 1e-6f);
    for (int i = 0; i < s_.k_dim; i++) to[i] = x[i] * by;
  }

  // One tile of a head's columns, V registers wide; all tokens of a span.
  template <int V, bool WHOLE>
  void rule(const LinearFields& l, const Span& s, const Pool& pool, int h, const Tile& tile, Own& own) const {
    auto get = [&](const float* p) { return WHOLE ? load(p) : load_some(p, tile.columns); };
    auto put = [&](float* p, Floats v) { WHOLE ? store(p, v) : store_some(p, v, tile.columns); };
    const State at = state(l, s, pool);
    const int K = s_.k_dim, of = h / (s_.v_heads / s_.k_heads);
    float **line = own.line.get(), *q = own.q.get(), *k = own.k.get();
    for (int i = 0; i < K; i += s_.lines) {
      float* block = at.block((int64_t)h * s_.head_blocks + i / s_.lines) + tile.from;
      for (int j = i; j < std::min(K, i + s_.lines); j++) line[j] = block + (int64_t)(j - i) * s_.v_dim;
    }
    if (s.start == 0)  // nobody has cleared it
      for (int i = 0; i < K; i++) memset(line[i], 0, sizeof(float) * tile.columns);
    for (int64_t t = s.first; t < s.first + s.count; t++) {
      const float* row = mixed(t);
      unit(row + (int64_t)of * K, 1 / sqrtf(K), q), unit(row + keys_ + (int64_t)of * K, 1, k);
      const float dt = a(t)[h] + l.bias[h];
      const float decay = expf(l.rate[h] * (dt > 20 ? dt : log1pf(expf(dt)))), beta = 1 / (1 + expf(-b(t)[h]));
      Floats known[2][V], change[V], out[V];
      for (int v = 0; v < V; v++) known[0][v] = known[1][v] = out[v] = zeros();
      int i = 0;
      for (; i + 2 <= K; i += 2)
        for (int two = 0; two < 2; two++)
          for (int v = 0; v < V; v++)
            known[two][v] = fma(get(line[i + two] + LANES * v), all(k[i + two]), known[two][v]);
      for (; i < K; i++)
        for (int v = 0; v < V; v++) known[0][v] = fma(get(line[i] + LANES * v), all(k[i]), known[0][v]);
      const float* given = row + 2 * keys_ + (int64_t)h * s_.v_dim + tile.from;
      for (int v = 0; v < V; v++) {
        const Floats old = mul(all(decay), add(known[0][v], known[1][v]));
        change[v] = mul(all(beta), sub(get(given + LANES * v), old));
      }
      for (i = 0; i < K; i++) {
        const Floats by = all(k[i]), seen = all(q[i]);
        for (int v = 0; v < V; v++) {
          const Floats now = fma(by, change[v], mul(all(decay), get(line[i] + LANES * v)));
          put(line[i] + LANES * v, now);
          out[v] = fma(now, seen, out[v]);
        }
      }
      float* to = given_.get() + t * this->given() + (int64_t)h * s_.v_dim + tile.from;
      for (int v = 0; v < V; v++) put(to + LANES * v, out[v]);
    }
  }

  LinearShape s_;
  int64_t keys_ = 0, channels_ = 0, wide_ = 0, z_ = 0, b_ = 0, a_ = 0, apart_ = 0;
  std::vector<Tile> tiles_;
  std::vector<Own> own_;
  Buffer<float> projected_, given_;
};
