// A model and a batch, as Python hands them over (``native.py`` has the same fields), and a step's memory.
#pragma once
#include <cstdlib>
#include <utility>

#include "attention.h"
#include "products.h"

// Experts in place of a layer's gate, up and down, or beside them. Biases: each expert's padded to whole registers; null: none.
struct MixtureFields {
  int32_t count, chosen, inner;  // chosen: of a token
  int32_t normalised;            // the weights of those chosen add up to 1
  int32_t gelu;                  // the gate is gelu, by tanh's approximation
  float alpha, limit;            // the gate is g sigmoid(alpha g); limit 0: none
  Matrix router;
  const Matrix *gate, *up, *down;  // [count]
  const float *router_bias, *gate_bias, *up_bias, *down_bias;
  const float* scale;  // [count], multiplies the weight of one that is chosen; null: nothing does
};

// Layers with a state in place of keys and values (``delta.h``): the same in all of them.
struct LinearShape {
  int32_t k_heads, v_heads, k_dim, v_dim;
  int32_t kernel;              // of the convolution; its tail is one line less
  int32_t rows, per_row;       // state rows of a sequence; blocks of a row
  int32_t lines, head_blocks;  // of a v head's state: lines of v_dim in a block, and blocks
};

struct LinearFields {
  Matrix q, k, v, z, b, a;    // q: all three, where they are stored in one piece
  const float* conv;          // [kernel, channels]: each line padded to whole registers
  const float *rate, *bias;   // [v_heads]: -exp(A_log), dt_bias
  const float* norm;          // [v_dim]
  int32_t first;              // of a state's blocks: the first of this layer
};

struct LayerFields {
  Matrix q, k, v, o, gate, up, down;  // gate, up, down beside a mixture: its shared expert, or the MLP
  Matrix input_gate, input_out;       // of a layer with an input of a token's own
  const float *before_attention, *after_attention;  // norms; null: none
  const float *before_mlp, *after_mlp;
  const float* after_input;
  // Where experts are beside the MLP, else null: of what the router reads, the experts read and give, the MLP gives.
  const float *router_norm, *before_experts, *after_experts, *after_dense;
  const float *q_norm, *k_norm, *v_norm;  // v_norm: of each value
  const float* sinks;  // [heads]
  const float *q_bias, *k_bias, *v_bias, *o_bias;
  int32_t window;  // 0: sees everything
  int32_t rope;    // which of the model's
  int32_t head_dim, kv_heads;  // 0 KV heads: neither keys nor values
  int32_t first, per_head;     // of a row's head blocks: where the layer's begin; how many a head has
  int32_t own;                 // else its keys and values are an earlier layer's, which it reads
  int32_t inner;               // of gate and up
  float scalar;                // multiplies what the layer leaves
  const MixtureFields* mixture;  // null: gate, up and down
  const LinearFields* linear;    // null: attention
  Matrix output_gate;            // of attention; without ``w``: none
  Matrix shared;                 // one row: the shared expert's score, whose sigmoid multiplies it
};

// What an adapter adds to one matrix: scale · B (A x); without ``w``: nothing.
struct Low {
  Matrix a, b;
  float scale;
};

enum Part { Q, K, V, O, GATE, UP, DOWN, MATRICES };
struct LayerLows { Low of[MATRICES]; };

constexpr int ROPES = 3;

struct ModelFields {
  int32_t layers, hidden, heads, row_blocks, inner, vocab;  // row_blocks: head blocks of a row; inner: the most
  int32_t input;         // numbers that each layer gets of a token beside its state, or 0
  int32_t gelu;          // the gate's activation: tanh's approximation of gelu, else silu
  int32_t centred;       // norms, but those of queries and keys, subtract the mean first
  int32_t parallel;      // attention and MLP read the same
  int32_t wide_qk_norm;  // queries and keys are normalised over all heads together
  float eps, scale, embed_scale;        // scale: of scores
  float residual_scale, logit_scale;    // of what a block adds; of logits, before their soft cap
  float softcap, attention_softcap;     // of logits and of scores; 0: none
  float table_scale, made_scale;        // of inputs that are looked up, and made of an embedding
  const float *frequencies[ROPES], *magnitudes[ROPES];  // of the ropes, half a head each
  Matrix embed, head, input_table, input_made;
  const float *norm, *input_norm;
  const LayerFields* layer;
  const LayerLows* lora;  // [adapters, layers], or null
  int32_t rank;           // the largest of them all
  LinearShape linear;     // without v heads: there are none
};

// Spans of tokens, each of one sequence; a decode row is a span of one token.
struct BatchFields {
  int32_t spans, tokens, picks;
  const int32_t *start, *count;     // [spans]
  const int32_t *rows, *first_row;  // rows of all sequences one after another, and where each begins
  const int32_t *token;             // [tokens]
  const int32_t *pick;              // [picks]: tokens after which somebody samples, rising
  float* hidden;                    // [picks, hidden]
  float* logits;                    // [picks, vocab], or null
  float* best;                      // [picks]: the largest logit, NaN where there is a NaN; null: no head at all
  int64_t* choice;                  // [picks]: where it is
  const int32_t* adapter;           // [tokens]: whose, from 1 on, 0: none; null: no token has one
  const int32_t* state;             // [spans, linear.rows]: state rows, or null
};

// first: of its tokens in the batch; state: of its state rows.
struct Span { int start, count, first; const int32_t *rows, *state; };

constexpr int FEW = 4;  // tokens that one thread prepares alone: quicker than to wait for another

// Zeroed floats at a cache line's border, with room behind for reads beyond the end.
template <class T> class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;  // the memory has one owner; a vector that grows moves it
  Buffer(Buffer&& other) noexcept : at_(std::exchange(other.at_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  ~Buffer() { free(at_); }
  void need(int64_t count) {
    if (count <= size_) return;
    free(at_);
    const size_t bytes = (count * sizeof(T) + 256 + 63) / 64 * 64;
    at_ = (T*)aligned_alloc(64, bytes);
    if (at_ == nullptr) abort();
    memset((void*)at_, 0, bytes);
    size_ = count;
  }
  T* get() const { return at_; }

 private:
  T* at_ = nullptr;
  int64_t size_ = 0;
};

// Activations of tokens, ready to be multiplied.
struct Ready {
  Buffer<float> f, scale, weighted;
  Buffer<int8_t> q;
  Buffer<int32_t> total;
  Buffer<uint16_t> rounded;
  Buffer<Activation> of;

  void need(int64_t tokens, int64_t k) {
    const int64_t groups = k / GROUP;
    f.need(tokens * k), q.need(tokens * k);
    scale.need(tokens * groups), weighted.need(tokens * groups), total.need(2 * tokens * groups);
    if (PAIRS) rounded.need(padded(tokens, TILE) * k);
    of.need(tokens);
    for (int64_t i = 0; i < tokens; i++)
      of.get()[i] = {f.get() + i * k, q.get() + i * k, scale.get() + i * groups, weighted.get() + i * groups,
                     total.get() + 2 * i * groups, rounded.get() + i * k};
  }
};

// What multiplies activations beside float32, by format.
enum Needs { AS_CODES = 1, AS_PAIRS = 2 };
inline int needed(int format) { return coded(format) ? AS_CODES : format == BF16 ? AS_PAIRS : 0; }
// By ``n`` tokens that lie evenly apart.
inline int needed(std::initializer_list<int> formats, int n) {
  int all = 0;
  for (int one : formats) all |= by_tiles(one, n) ? (int)AS_PAIRS : needed(one);
  return all;
}

// From ``a.f`` of ``k`` padded columns.
inline void make_ready(Activation& a, int64_t k, int needs) {
  if (needs & AS_CODES) quantise(a, k);
  if (needs & AS_PAIRS) round_pairs(a.f, a.rounded, k);
}

// g sigmoid(z): silu with z = g, gelu by tanh's approximation with z = gelu_inside(g).
inline Floats sigmoid_times(Floats g, Floats z) { return div(g, add(all(1.f), exponential(sub(zeros(), z)))); }
inline Floats gelu_inside(Floats g) {
  return mul(all(2 * 0.7978845608f), fma(all(0.044715f), mul(mul(g, g), g), g));
}

inline float mean_of(const float* x, int n) {
  float total = 0;
  int i = 0;
  Floats acc = zeros();
  for (; i + LANES <= n; i += LANES) acc = add(acc, load(x + i));
  for (total = sum(acc); i < n; i++) total += x[i];
  return total / n;
}

inline void rms_norm(const float* x, const float* w, int n, float eps, float* out) {
  float squares = 0;
  int i = 0;
  Floats acc = zeros();
  for (; i + LANES <= n; i += LANES) acc = fma(load(x + i), load(x + i), acc);
  for (squares = sum(acc); i < n; i++) squares += x[i] * x[i];
  const float inverse = 1 / sqrtf(squares / n + eps);
  for (i = 0; i + LANES <= n; i += LANES) store(out + i, mul(mul(load(x + i), all(inverse)), load(w + i)));
  for (; i < n; i++) out[i] = x[i] * inverse * w[i];
}
