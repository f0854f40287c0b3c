// A mixture of experts in place of a layer's MLP: the router's choice, tokens side by side by expert, and what
// their experts give, added by the router's weights in the order of experts, whoever else is in the batch.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "model.h"
#include "team.h"

class Mixing {
 public:
  explicit Mixing(const std::vector<LayerFields>& layers) {
    for (const auto& one : layers)
      if (one.mixture) {
        const MixtureFields& m = *one.mixture;
        chosen_ = m.chosen, experts_ = m.count, width_ = padded(m.count, LANES), inner_ = padded(m.inner, GROUP);
      }
    // So many tokens at a time: their experts' activations stay within some tens of MB.
    if (experts_) most_ = std::clamp<int64_t>((4 << 20) / (chosen_ * inner_), 16, 1 << 16);
  }

  // What a layer's tokens, and its experts' activations, are to be ready for.
  static int into(const MixtureFields& m) {
    int all = needed(m.router.format);
    for (int e = 0; e < m.count; e++) all |= needed(m.gate[e].format) | needed(m.up[e].format);
    return all;
  }
  static int within(const MixtureFields& m) {
    int all = 0;
    for (int e = 0; e < m.count; e++) all |= needed(m.down[e].format);
    return all;
  }

  // Of a batch.
  void lay_out(int64_t tokens) {
    if (!experts_) return;
    const int64_t n = std::min(tokens, most_), pairs = n * chosen_;
    scores_.need(n * width_), weight_.need(pairs), expert_.need(pairs);
    pair_.need(pairs), used_.need(experts_), starts_.need(experts_ + 1), next_.need(experts_);
    own_.need(pairs), ready_.need(pairs, inner_);
  }

  // sum[t] for all tokens, then make(t) for each: at once where they are ``few``. ``scored``: what the router reads.
  // begin(first, stop, from, n) sets row blocks [first, stop) of the sums of tokens [from, from + n) to what experts
  // add to.
  template <class Begin, class Make>
  void mix(const MixtureFields& m, int needs, const Activation* scored, const Activation* a, int tokens, bool few,
           float* sum, int64_t apart, Team& team, Phases& phases, Begin begin, Make make) {
    for (int from = 0; from < tokens; from += most_) {
      const int n = std::min<int64_t>(tokens - from, most_), pairs = n * chosen_;
      choose(m, scored + from, a + from, n, few, team, phases);
      activate(m, n, few, needs, team, phases);
      const int count = blocks(m.down[0]);
      float* to = sum + from * apart;
      phases.each(count, team.piece(count), [&](int first, int stop) {
        begin(first, stop, from, n);
        give(m, first, stop, to, apart);
      },
                  [&] { for (int t = 0; few && t < tokens; t++) make(t); });
    }
    if (!few) phases.each(tokens, team.piece(tokens), [&](int t, int stop) { for (; t < stop; t++) make(t); });
  }

 private:
  void choose(const MixtureFields& m, const Activation* scored, const Activation* a, int n, bool few, Team& team,
              Phases& phases) {
    const int count = blocks(m.router);
    auto score = [&](int first, int stop) {
      product(m.router, first, stop, scored, n, [&](int t, int j, Floats v) {
        store(scores_.get() + t * width_ + 16 * j, m.router_bias ? add(v, load(m.router_bias + 16 * j)) : v);
      });
    };
    auto best = [&](int t, int stop) { for (; t < stop; t++) best_of(m, t); };
    auto place = [&] { group(a, n); };
    if (few) return phases.each(count, team.piece(count), score, [&] { best(0, n), place(); });
    phases.each(count, team.piece(count), score);
    phases.each(n, team.piece(n), best, place);
  }

  // Its experts and their weights: a softmax over all scores, or over those of the chosen. Where no score is a
  // number some experts are chosen nevertheless, and the weights are none.
  void best_of(const MixtureFields& m, int t) {
    float* score = scores_.get() + t * width_;
    float* weight = weight_.get() + t * chosen_;
    const float top = *std::max_element(score, score + m.count);
    float total = 0;
    for (int e = 0; e < m.count && !m.normalised; e++) total += expf(score[e] - top);
    for (int i = 0; i < chosen_; i++) {
      int at = 0;
      for (int e = 1; e < m.count; e++) at = score[e] > score[at] ? e : at;
      expert_.get()[t * chosen_ + i] = at, weight[i] = expf(score[at] - top);
      if (m.normalised) total += weight[i];
      score[at] = -INFINITY;
    }
    for (int i = 0; i < chosen_; i++) {
      weight[i] /= total;
      if (m.scale) weight[i] *= m.scale[expert_.get()[t * chosen_ + i]];
    }
  }

  // Pairs of a token and one of its experts, by expert.
  void group(const Activation* a, int n) {
    int32_t *starts = starts_.get(), *next = next_.get(), *used = used_.get();
    const int pairs = n * chosen_;
    std::fill(starts, starts + experts_ + 1, 0), std::fill(used, used + experts_, -1);
    for (int p = 0; p < pairs; p++) starts[expert_.get()[p] + 1]++;
    for (int e = 0, some = 0; e < experts_; e++) {
      if (starts[e + 1]) used[some++] = e;
      next[e] = starts[e], starts[e + 1] += starts[e];
    }
    for (int p = 0; p < pairs; p++) {
      const int at = next[expert_.get()[p]]++;
      pair_.get()[at] = p, own_.get()[at] = a[p / chosen_];
    }
  }

  // act(gate x) · (up x) of every pair, ready for its down.
  void activate(const MixtureFields& m, int n, bool few, int needs, Team& team, Phases& phases) {
    // As many places for experts as could be chosen: their number itself is known only within a phase.
    const int pairs = n * chosen_, each = blocks(m.gate[0]), count = std::min(pairs, (int)experts_) * each;
    auto finish = [&](int p, int stop) { for (; p < stop; p++) make_ready(ready_.of.get()[p], inner_, needs); };
    phases.each(count, team.piece(count), [&](int first, int stop) {
      for (int at = first, end; at < stop; at = end) {
        end = std::min(stop, (at / each + 1) * each);
        const int e = used_.get()[at / each];
        if (e < 0) return;
        gate_up(m, e, at % each, at % each + end - at);
      }
    }, [&] { if (few) finish(0, pairs); });
    if (!few) phases.each(pairs, team.piece(pairs), finish);
  }

  void gate_up(const MixtureFields& m, int e, int first, int stop) {
    const int start = starts_.get()[e], count = starts_.get()[e + 1] - start;
    const int64_t padding = padded(m.inner, LANES);
    auto at = [&](int p, int j) { return (float*)ready_.of.get()[start + p].f + 16 * j; };
    const Activation* a = own_.get() + start;
    product(m.gate[e], first, stop, a, count, [&](int p, int j, Floats g) {
      if (m.gate_bias) g = add(g, load(m.gate_bias + e * padding + 16 * j));
      if (m.limit > 0) g = smaller(all(m.limit), g);
      store(at(p, j), sigmoid_times(g, m.gelu ? gelu_inside(g) : mul(all(m.alpha), g)));
    });
    product(m.up[e], first, stop, a, count, [&](int p, int j, Floats u) {
      if (m.up_bias) u = add(u, load(m.up_bias + e * padding + 16 * j));
      if (m.limit > 0) u = add(larger(all(-m.limit), smaller(all(m.limit), u)), all(1.f));
      store(at(p, j), mul(load(at(p, j)), u));
    });
  }

  // What experts add to row blocks [first, stop) of every token's sum.
  void give(const MixtureFields& m, int first, int stop, float* sum, int64_t apart) {
    const int64_t padding = padded(m.down[0].rows, LANES);
    for (int i = 0; i < experts_ && used_.get()[i] >= 0; i++) {
      const int e = used_.get()[i], start = starts_.get()[e], count = starts_.get()[e + 1] - start;
      product(m.down[e], first, stop, ready_.of.get() + start, count, [&](int p, int j, Floats v) {
        if (m.down_bias) v = add(v, load(m.down_bias + e * padding + 16 * j));
        const int pair = pair_.get()[start + p];
        float* at = sum + pair / chosen_ * apart + 16 * j;
        store(at, fma(all(weight_.get()[pair]), v, load(at)));
      });
    }
  }

  int64_t chosen_ = 0, experts_ = 0, width_ = 0, inner_ = 0, most_ = 1 << 30;
  Buffer<float> scores_, weight_;
  Buffer<int32_t> expert_, pair_, used_, starts_, next_;
  Buffer<Activation> own_;
  Ready ready_;
};
