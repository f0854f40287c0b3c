// A step's attention: K and V of its tokens into the pool, and every query over what it may see there.
#pragma once
#include <vector>

#include "model.h"
#include "team.h"

struct Span { int start, count, first; const int32_t* rows; };  // first: of its tokens in the batch
struct Item { int span, from, count, head; };                   // queries of a span for one KV head

// What one thread has for itself.
struct Own {
  Buffer<float> tile, out;
  Buffer<Partial> states;
};

class Attending {
 public:
  void pool(const Pool& pool) { pool_ = pool; }

 protected:
  Attending(const ModelFields& m, const LayerFields* layers)
      : m_(m), layers_(layers, layers + m.layers), hd_(m.head_dim), group_(m.heads / m.kv_heads) {
    q_width_ = padded(m.heads * hd_, LANES), kv_width_ = padded(m.kv_heads * hd_, LANES);
    qkv_ = q_width_ + 2 * kv_width_, attended_ = padded(m.heads * hd_, GROUP), width_ = padded(hd_, LANES);
    ropes_ = 1;
    for (auto& one : layers_) ropes_ = std::max(ropes_, one.rope + 1);
  }

  // Of a batch: its spans, and the pieces of attention over them.
  void lay_out(int threads) {
    projected_.need(b_.tokens * qkv_), seen_.need(b_.tokens * attended_);
    angles_.need((int64_t)b_.tokens * ropes_ * hd_);
    if ((int)own_.size() < threads) own_.resize(threads);
    spans_.clear(), items_.clear();
    alone_ = true;
    int first = 0;
    for (int i = 0; i < b_.spans; i++) {
      spans_.push_back({b_.start[i], b_.count[i], first, b_.rows + b_.first_row[i]});
      first += b_.count[i];
      alone_ = alone_ && b_.count[i] == 1;
    }
    const int most = std::clamp(192 / group_, 16, 64);
    for (int i = b_.spans - 1; i >= 0; i--)  // the longest context is at a span's end
      for (int left = b_.count[i]; left > 0;) {
        const int count = b_.count[i] < FEW_QUERIES ? 1 : (left - 1) % most + 1;
        left -= count;
        for (int g = 0; g < m_.kv_heads; g++) items_.push_back({i, left, count, g});
      }
    for (int t = 0; t < threads; t++) {
      own_[t].out.need(group_ * width_), own_[t].states.need(group_);
      own_[t].tile.need(tile_floats(most * group_, width_));
    }
    cut(threads);
  }

  // Cosines and sines of token t's position.
  void angles(int t) {
    const Span& s = *std::prev(std::upper_bound(spans_.begin(), spans_.end(), t,
                                                [](int at, const Span& one) { return at < one.first; }));
    const float position = s.start + t - s.first;
    for (int r = 0; r < ropes_; r++) {
      float* at = angles_.get() + ((int64_t)t * ropes_ + r) * hd_;
      for (int i = 0; i < hd_ / 2; i++) {
        const float angle = position * m_.frequencies[r][i];
        const float magnitude = m_.magnitudes[r][i];
        at[i] = cosf(angle) * magnitude, at[hd_ / 2 + i] = sinf(angle) * magnitude;
      }
    }
  }

  // From what was projected to what was seen; then ``after()`` as in Phases.
  template <class After>
  void attend(const LayerFields& l, int layer, Own& own, Phases& phases, After after) {
    const bool turned = !alone_ || cuts_ > 1;
    if (turned)
      phases.each(b_.spans, 1, [&](int i, int) {
        const Span& s = spans_[i];
        for (int t = s.first; t < s.first + s.count; t++)
          for (int g = 0; g < m_.kv_heads; g++) turn(l, layer, s, t, g);
      });
    auto piece = [&](int i, int) {
      const Item& item = items_[i / cuts_];
      if (!turned) turn(l, layer, spans_[item.span], spans_[item.span].first, item.head);
      one(l, layer, item, i, own);
    };
    if (cuts_ == 1) return phases.each(items_.size(), 1, piece, after);
    phases.each(items_.size() * cuts_, 1, piece);
    phases.each(items_.size(), 1, [&](int i, int) { merge(layer, i); }, after);
  }

  ModelFields m_;
  std::vector<LayerFields> layers_;
  BatchFields b_ = {};  // a copy: threads may be late
  std::vector<Own> own_;
  int64_t qkv_, q_width_, kv_width_, attended_, width_;
  Buffer<float> projected_, seen_;

 private:
  static constexpr int FEW_QUERIES = 8;  // of a span: fewer are attended one by one

  // Few sequences with long contexts: each context is cut, or threads would have nothing to do.
  void cut(int threads) {
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
    const float *q_norm = m_.wide_qk_norm ? nullptr : l.q_norm, *k_norm = m_.wide_qk_norm ? nullptr : l.k_norm;
    for (int h = 0; h < group_; h++) rotate(row + (g * group_ + h) * hd_, q_norm, m_.scale);
    float *k = row + q_width_ + g * hd_, *v = k + kv_width_;
    rotate(k, k_norm, 1);
    const Blocks in = blocks_of(s, layer, g);
    const int p = s.start + t - s.first, T = pool_.tokens;
    uint8_t* at = in.of(p / T) + p % T * in.token_bytes();
    keep(pool_.kept, at, k, hd_);
    keep(pool_.kept, at + in.values(), v, hd_);
  }

  Blocks blocks_of(const Span& s, int layer, int g) const {
    return {&pool_, s.rows, m_.layers, layer, m_.kv_heads, g, hd_, m_.attention_softcap,
            layers_[layer].sinks ? layers_[layer].sinks + g * group_ : nullptr};
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
    for (int h = 0; h < group_; h++) {
      const float total = state[h].total + in.sunk(h, state[h].top);
      for (int d = 0; d < hd_; d++) to[h * hd_ + d] = out[h * width_ + d] / total;
    }
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
      case KEPT_F32: return attend_tile<KEPT_F32, false>(in, at, n, window, q, group_, qkv_, out, attended_, tile);
      case KEPT_F16: return attend_tile<KEPT_F16, false>(in, at, n, window, q, group_, qkv_, out, attended_, tile);
      case KEPT_BF16:
        if (PAIRS && hd_ % (2 * LANES) == 0)
          return attend_tile<KEPT_BF16, PAIRS>(in, at, n, window, q, group_, qkv_, out, attended_, tile);
        return attend_tile<KEPT_BF16, false>(in, at, n, window, q, group_, qkv_, out, attended_, tile);
      case KEPT_FLOAT8: return attend_tile<KEPT_FLOAT8, false>(in, at, n, window, q, group_, qkv_, out, attended_, tile);
    }
  }

  // The cuts of item i become what an uncut one would have left.
  void merge(int layer, int i) {
    const Item& item = items_[i];
    const Blocks in = blocks_of(spans_[item.span], layer, item.head);
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
      total += in.sunk(h, top);
      for (int d = 0; d < hd_; d++) to[h * hd_ + d] /= total;
    }
  }

  Pool pool_ = {};
  int hd_, group_, ropes_;
  bool alone_ = false;  // every span is one token
  int cuts_ = 1;
  std::vector<Span> spans_;
  std::vector<Item> items_;
  Buffer<float> angles_, partial_;
  Buffer<Partial> states_;
};
