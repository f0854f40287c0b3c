// A step's attention: K and V of its tokens into the pool, and every query over what it may see there.
#pragma once
#include <vector>

#include "model.h"
#include "team.h"

struct Item { int span, from, count, head; };                   // queries of a span for one KV head

// What one thread has for itself.
struct Own {
  Buffer<float> tile, out;
  Buffer<Partial> states;
};

// Layers whose KV heads are as many and as wide.
struct Kind {
  int hd, kv_heads, group, most;  // group: query heads of a KV head; most: queries of a tile
  int64_t q_width, kv_width, width;
  std::vector<Item> items;  // of the batch
  int cuts;                 // of each context

  Kind(int heads, int head_dim, int kv_heads)
      : hd(head_dim), kv_heads(kv_heads), group(heads / kv_heads), most(std::clamp(192 / group, 16, 64)),
        q_width(padded(heads * hd, LANES)), kv_width(padded(kv_heads * hd, LANES)), width(padded(hd, LANES)), cuts(1) {}
  int64_t qkv() const { return q_width + 2 * kv_width; }
};

class Attending {
 public:
  void pool(const Pool& pool) { pool_ = pool; }

 protected:
  Attending(const ModelFields& m, const LayerFields* layers) : m_(m), layers_(layers, layers + m.layers) {
    ropes_ = 1, qkv_ = attended_ = hd_ = 0;
    for (auto& one : layers_) {
      if (one.kv_heads == 0) {  // neither keys nor values
        kind_of_.push_back(0);
        continue;
      }
      size_t k = 0;
      while (k < kinds_.size() && (kinds_[k].hd != one.head_dim || kinds_[k].kv_heads != one.kv_heads)) k++;
      if (k == kinds_.size()) kinds_.emplace_back(m.heads, one.head_dim, one.kv_heads);
      kind_of_.push_back(k);
      qkv_ = std::max(qkv_, kinds_[k].qkv() + (one.output_gate.w ? kinds_[k].q_width : 0));
      attended_ = std::max(attended_, attended(one));
      hd_ = std::max(hd_, one.head_dim), ropes_ = std::max(ropes_, one.rope + 1);
      turns_[one.rope] = one.head_dim;
    }
  }

  // Of a batch: its spans, and the pieces of attention over them.
  void lay_out(int threads) {
    projected_.need(b_.tokens * qkv_), seen_.need(b_.tokens * attended_);
    angles_.need((int64_t)b_.tokens * ropes_ * hd_);
    if ((int)own_.size() < threads) own_.resize(threads);
    spans_.clear();
    alone_ = true;
    int first = 0;
    for (int i = 0; i < b_.spans; i++) {
      spans_.push_back({b_.start[i], b_.count[i], first, b_.rows + b_.first_row[i], b_.state + i * m_.linear.rows});
      first += b_.count[i];
      alone_ = alone_ && b_.count[i] == 1;
    }
    for (auto& kind : kinds_) lay_out(kind, threads);
  }

  // Cosines and sines of token t's position.
  void angles(int t) {
    const Span& s = *std::prev(std::upper_bound(spans_.begin(), spans_.end(), t,
                                                [](int at, const Span& one) { return at < one.first; }));
    const float position = s.start + t - s.first;
    for (int r = 0; r < ropes_; r++) {
      float* at = angles_.get() + ((int64_t)t * ropes_ + r) * hd_;
      const int half = turns_[r] / 2;
      for (int i = 0; i < half; i++) {
        const float angle = position * m_.frequencies[r][i];
        const float magnitude = m_.magnitudes[r][i];
        at[i] = cosf(angle) * magnitude, at[half + i] = sinf(angle) * magnitude;
      }
    }
  }

  // From what was projected to what was seen; then ``after()`` as in Phases.
  template <class After>
  void attend(const LayerFields& l, int layer, Own& own, Phases& phases, After after) {
    const Kind& kind = kinds_[kind_of_[layer]];
    const int items = kind.items.size(), cuts = kind.cuts;
    const bool turned = !alone_ || cuts > 1;
    if (turned)
      phases.each(b_.spans, 1, [&](int i, int) {
        const Span& s = spans_[i];
        for (int t = s.first; t < s.first + s.count; t++)
          for (int g = 0; g < kind.kv_heads; g++) turn(l, kind, s, t, g);
      });
    auto piece = [&](int i, int) {
      const Item& item = kind.items[i / cuts];
      if (!turned) turn(l, kind, spans_[item.span], spans_[item.span].first, item.head);
      one(l, kind, item, i, own);
    };
    if (cuts == 1) return phases.each(items, 1, piece, after);
    phases.each(items * cuts, 1, piece);
    phases.each(items, 1, [&](int i, int) { merge(l, kind, i); }, after);
  }

  // What token t saw, times the sigmoid of its output gate, which lies behind its v (Qiu et al. 2025).
  void gate_output(const Kind& kind, int64_t t) {
    float* seen = seen_.get() + t * attended_;
    const float* gate = projected_.get() + t * qkv_ + kind.qkv();
    for (int64_t i = 0; i < kind.q_width; i += LANES) store(seen + i, mul(load(seen + i), sigmoid(load(gate + i))));
  }

  // Numbers that a layer's heads have seen of a token, padded as the next product takes them.
  int64_t attended(const LayerFields& l) const { return padded(m_.heads * l.head_dim, GROUP); }
  const Kind& kind(int layer) const { return kinds_[kind_of_[layer]]; }

  ModelFields m_;
  std::vector<LayerFields> layers_;
  BatchFields b_ = {};  // a copy: threads may be late
  Pool pool_ = {};
  std::vector<Span> spans_;
  std::vector<Own> own_;
  int64_t qkv_, attended_;  // from one token's to the next one's, in all layers
  Buffer<float> projected_, seen_;

 private:
  static constexpr int FEW_QUERIES = 8;  // of a span: fewer are attended one by one

  void lay_out(Kind& kind, int threads) {
    kind.items.clear();
    for (int i = b_.spans - 1; i >= 0; i--)  // the longest context is at a span's end
      for (int left = b_.count[i]; left > 0;) {
        const int count = b_.count[i] < FEW_QUERIES ? 1 : (left - 1) % kind.most + 1;
        left -= count;
        for (int g = 0; g < kind.kv_heads; g++) kind.items.push_back({i, left, count, g});
      }
    for (int t = 0; t < threads; t++) {
      own_[t].out.need(kind.group * kind.width), own_[t].states.need(kind.group);
      own_[t].tile.need(tile_floats(kind.most * kind.group, kind.width));
    }
    cut(kind, threads);
  }

  // Few sequences with long contexts: each context is cut, or threads would have nothing to do.
  void cut(Kind& kind, int threads) {
    const int items = kind.items.size();
    int longest = 0;
    for (auto& one : spans_) longest = std::max(longest, one.start + one.count);
    kind.cuts = 1;
    if (alone_ && items < 4 * threads && threads > 1 && longest >= 4 * PIECE)
      kind.cuts = std::min(longest / (2 * PIECE), (4 * threads + items - 1) / items);
    if (kind.cuts > 1) {
      partial_.need((int64_t)items * kind.cuts * kind.group * kind.width);
      states_.need((int64_t)items * kind.cuts * kind.group);
    }
  }

  // Turned queries stay where they are; K and V of token t's KV head go to the pool, where they are the layer's.
  void turn(const LayerFields& l, const Kind& kind, const Span& s, int t, int g) {
    float* row = projected_.get() + t * qkv_;
    const int hd = kind.hd, half = hd / 2;
    const float* angle = angles_.get() + ((int64_t)t * ropes_ + l.rope) * hd_;
    auto rotate = [&](float* v, const float* norm, float scale) {
      if (norm) rms_norm(v, norm, hd, m_.eps, v);
      for (int i = 0; i < half; i++) {
        const float a = v[i], b = v[i + half], c = angle[i], s = angle[i + half];
        v[i] = (a * c - b * s) * scale, v[i + half] = (b * c + a * s) * scale;
      }
    };
    const float *q_norm = m_.wide_qk_norm ? nullptr : l.q_norm, *k_norm = m_.wide_qk_norm ? nullptr : l.k_norm;
    for (int h = 0; h < kind.group; h++) rotate(row + (g * kind.group + h) * hd, q_norm, m_.scale);
    if (!l.own) return;
    float *k = row + kind.q_width + g * hd, *v = k + kind.kv_width;
    rotate(k, k_norm, 1);
    if (l.v_norm) rms_norm(v, l.v_norm, hd, m_.eps, v);
    const Blocks in = blocks_of(l, kind, s, g);
    const int p = s.start + t - s.first, T = pool_.tokens;
    const int64_t slot = p % T * in.token_bytes();
    keep(pool_.kept, in.of(p / T) + slot, k, hd);
    keep(pool_.kept, in.values_of(p / T) + slot, v, hd);
  }

  Blocks blocks_of(const LayerFields& l, const Kind& kind, const Span& s, int g) const {
    return {&pool_, s.rows, m_.row_blocks, l.first + g * l.per_head, l.per_head, kind.hd, m_.attention_softcap,
            l.sinks ? l.sinks + g * kind.group : nullptr};
  }

  void one(const LayerFields& l, const Kind& kind, const Item& item, int number, Own& own) {
    const Span& s = spans_[item.span];
    const Blocks in = blocks_of(l, kind, s, item.head);
    const int hd = kind.hd, group = kind.group;
    const int t = s.first + item.from, at = s.start + item.from, stop = at + item.count;
    float* q = projected_.get() + t * qkv_ + item.head * group * hd;
    if (item.count > 1) return many(in, kind, at, item, l.window, q, own);
    int low = l.window > 0 ? std::max(0, stop - l.window) : 0, end = stop;
    float* out = own.out.get();
    Partial* state = own.states.get();
    if (kind.cuts > 1) {
      const int cut = number % kind.cuts, length = (stop - low + kind.cuts - 1) / kind.cuts;
      out = partial_.get() + (int64_t)number * group * kind.width, state = states_.get() + (int64_t)number * group;
      low += cut * length, end = std::min(stop, low + length);
    }
    // Heads of a query lie head_dim apart, what is gathered of them ``width``.
    few(in, kind, low, end, q, out, state);
    if (kind.cuts > 1) return;
    float* to = seen_.get() + t * attended_ + item.head * group * hd;
    for (int h = 0; h < group; h++) {
      const float total = state[h].total + in.sunk(h, state[h].top);
      for (int d = 0; d < hd; d++) to[h * hd + d] = out[h * kind.width + d] / total;
    }
  }

  void few(const Blocks& in, const Kind& kind, int low, int end, const float* q, float* out, Partial* state) {
    const int hd = kind.hd, group = kind.group, width = kind.width;
    const bool whole = hd % LANES == 0;
    switch (pool_.kept * 2 + whole) {
      case KEPT_F32 * 2: return attend_group<KEPT_F32, false>(in, low, end, q, group, hd, width, out, state);
      case KEPT_F32 * 2 + 1: return attend_group<KEPT_F32, true>(in, low, end, q, group, hd, width, out, state);
      case KEPT_F16 * 2: return attend_group<KEPT_F16, false>(in, low, end, q, group, hd, width, out, state);
      case KEPT_F16 * 2 + 1: return attend_group<KEPT_F16, true>(in, low, end, q, group, hd, width, out, state);
      case KEPT_BF16 * 2: return attend_group<KEPT_BF16, false>(in, low, end, q, group, hd, width, out, state);
      case KEPT_BF16 * 2 + 1: return attend_group<KEPT_BF16, true>(in, low, end, q, group, hd, width, out, state);
      case KEPT_FLOAT8 * 2: return attend_group<KEPT_FLOAT8, false>(in, low, end, q, group, hd, width, out, state);
      case KEPT_FLOAT8 * 2 + 1: return attend_group<KEPT_FLOAT8, true>(in, low, end, q, group, hd, width, out, state);
    }
  }

  void many(const Blocks& in, const Kind& kind, int at, const Item& item, int window, const float* q, Own& own) {
    const int hd = kind.hd, group = kind.group, n = item.count;
    float* out = seen_.get() + (spans_[item.span].first + item.from) * attended_ + item.head * group * hd;
    float* tile = own.tile.get();
    switch (pool_.kept) {
      case KEPT_F32: return attend_tile<KEPT_F32, false>(in, at, n, window, q, group, qkv_, out, attended_, tile);
      case KEPT_F16: return attend_tile<KEPT_F16, false>(in, at, n, window, q, group, qkv_, out, attended_, tile);
      case KEPT_BF16:
        if (PAIRS && hd % (2 * LANES) == 0)
          return attend_tile<KEPT_BF16, PAIRS>(in, at, n, window, q, group, qkv_, out, attended_, tile);
        return attend_tile<KEPT_BF16, false>(in, at, n, window, q, group, qkv_, out, attended_, tile);
      case KEPT_FLOAT8: return attend_tile<KEPT_FLOAT8, false>(in, at, n, window, q, group, qkv_, out, attended_, tile);
    }
  }

  // The cuts of item i become what an uncut one would have left.
  void merge(const LayerFields& l, const Kind& kind, int i) {
    const Item& item = kind.items[i];
    const Blocks in = blocks_of(l, kind, spans_[item.span], item.head);
    const int hd = kind.hd, group = kind.group, cuts = kind.cuts;
    float* to = seen_.get() + (spans_[item.span].first + item.from) * attended_ + item.head * group * hd;
    const Partial* states = states_.get() + (int64_t)i * cuts * group;
    const float* parts = partial_.get() + (int64_t)i * cuts * group * kind.width;
    for (int h = 0; h < group; h++) {
      float top = LOWEST, total = 0;
      for (int c = 0; c < cuts; c++) top = fmaxf(top, states[c * group + h].top);
      for (int d = 0; d < hd; d++) to[h * hd + d] = 0;
      for (int c = 0; c < cuts; c++) {
        const Partial& one = states[c * group + h];
        const float weight = one.total > 0 ? expf(one.top - top) : 0;
        total += weight * one.total;
        for (int d = 0; d < hd && weight > 0; d++)
          to[h * hd + d] += weight * parts[(c * group + h) * kind.width + d];
      }
      total += in.sunk(h, top);
      for (int d = 0; d < hd; d++) to[h * hd + d] /= total;
    }
  }

  std::vector<Kind> kinds_;
  std::vector<int> kind_of_;  // by layer
  int hd_, ropes_;            // the widest head; how many ropes, and how wide what each turns
  int turns_[ROPES] = {};
  bool alone_ = false;  // every span is one token
  Buffer<float> angles_, partial_;
  Buffer<Partial> states_;
};
