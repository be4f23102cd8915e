// Attention of the pixels of a window with each other, and of pixels to a dictionary of tokens.
// Depends on plain.cuh. Scores exist in registers alone; exponentials are powers of two, log2(e)
// being a part of the queries. Heads and queries have 16 values.
#include "plain.cuh"

#define HEAD 16
// Keys, or queries, that a block keeps in shared memory at a time.
#define WINDOW_TILE 256
// Scores that a thread computes before it updates its largest one.
#define SCORES 8
#define LOWEST -1e30f
#define LN_2 0.69314718f

DEVICE void load_head(const act* from, float (&v)[HEAD]) {
    UNROLL
    for (int i = 0; i < HEAD / PIECE; i++) {
        float piece[PIECE];
        load_piece(from + i * PIECE, piece);
        UNROLL
        for (int k = 0; k < PIECE; k++) v[i * PIECE + k] = piece[k];
    }
}
DEVICE void store_head(act* to, const float (&v)[HEAD]) {
    UNROLL
    for (int i = 0; i < HEAD / PIECE; i++) {
        float piece[PIECE];
        UNROLL
        for (int k = 0; k < PIECE; k++) piece[k] = v[i * PIECE + k];
        store_piece(to + i * PIECE, piece);
    }
}
DEVICE float dot_head(const float (&a)[HEAD], const float* b) {
    float sum = 0;
    UNROLL
    for (int i = 0; i < HEAD; i++) sum = fmaf(a[i], b[i], sum);
    return sum;
}

// A block's window and head, and its tile of queries or keys.
struct WindowBlock {
    int image, y, x, head, first;
};
DEVICE WindowBlock window_block(const WindowSizes& s) {
    int tiles = (s.window * s.window + WINDOW_TILE - 1) / WINDOW_TILE, across = s.padded_w / s.window, down = s.padded_h / s.window;
    WindowBlock b;
    int rest = blockIdx.x;
    b.first = rest % tiles * WINDOW_TILE;
    rest /= tiles;
    b.head = rest % s.heads;
    rest /= s.heads;
    b.x = rest % across * s.window;
    rest /= across;
    b.y = rest % down * s.window;
    b.image = rest / down;
    return b;
}
// Where a token of the window is: its row and column, and its number among the padded pixels and
// among the others, -1 for none.
struct Token {
    int padded, pixel;
};
DEVICE Token token_at(const WindowSizes& s, const WindowBlock& b, int token) {
    int row = token / s.window, y = b.y + row + s.shift, x = b.x + token - row * s.window + s.shift;
    if (y >= s.padded_h) y -= s.padded_h;
    if (x >= s.padded_w) x -= s.padded_w;
    Token t;
    t.padded = (b.image * s.padded_h + y) * s.padded_w + x;
    t.pixel = y < s.h && x < s.w ? (b.image * s.h + y) * s.w + x : -1;
    return t;
}
// Part 0 (q), 1 (k) or 2 (v) of the head of a padded pixel.
DEVICE long long head_at(const WindowSizes& s, int padded, int part, int head) {
    return ((long long)padded * 3 + part) * s.heads * HEAD + head * HEAD;
}

// Loads a tile of keys and values; zeros behind the last one. A thread has one token.
DEVICE void load_keys(float* keys, float* values, const act* qkv, const WindowSizes& s, const WindowBlock& b, int first) {
    float k[HEAD], v[HEAD];
    UNROLL
    for (int i = 0; i < HEAD; i++) k[i] = v[i] = 0;
    int token = first + threadIdx.x;
    if (token < s.window * s.window) {
        int at = token_at(s, b, token).padded;
        load_head(qkv + head_at(s, at, 1, b.head), k);
        load_head(qkv + head_at(s, at, 2, b.head), v);
    }
    UNROLL
    for (int i = 0; i < HEAD; i++) {
        keys[threadIdx.x * HEAD + i] = k[i];
        values[threadIdx.x * HEAD + i] = v[i];
    }
}

// A query's weighted sum of the values, its largest score and the sum of its weights.
struct Attended {
    float value[HEAD], largest, sum;
};
// Takes the keys of a tile, of which `count` exist.
DEVICE void attend(Attended& a, const float (&q)[HEAD], const float* keys, const float* values, int count) {
    ROLLED
    for (int first = 0; first < count; first += SCORES) {
        float scores[SCORES], largest = a.largest;
        UNROLL
        for (int i = 0; i < SCORES; i++) {
            scores[i] = first + i < count ? dot_head(q, keys + (first + i) * HEAD) : LOWEST;
            largest = scores[i] > largest ? scores[i] : largest;
        }
        float factor = exp2f(a.largest - largest);
        a.largest = largest;
        a.sum *= factor;
        UNROLL
        for (int i = 0; i < HEAD; i++) a.value[i] *= factor;
        UNROLL
        for (int i = 0; i < SCORES; i++) {
            float weight = exp2f(scores[i] - largest);
            a.sum += weight;
            UNROLL
            for (int k = 0; k < HEAD; k++) a.value[k] = fmaf(weight, values[(first + i) * HEAD + k], a.value[k]);
        }
    }
}
// The weighted sum of the values of all keys for the thread's query.
DEVICE void attend_window(Attended& a, const float (&q)[HEAD], const act* qkv, const WindowSizes& s, const WindowBlock& b) {
    float* keys = (float*)shared_memory();
    float* values = keys + WINDOW_TILE * HEAD;
    int tokens = s.window * s.window;
    a.largest = LOWEST;
    a.sum = 0;
    UNROLL
    for (int i = 0; i < HEAD; i++) a.value[i] = 0;
    for (int first = 0; first < tokens; first += WINDOW_TILE) {
        barrier();
        load_keys(keys, values, qkv, s, b, first);
        barrier();
        attend(a, q, keys, values, tokens - first < WINDOW_TILE ? tokens - first : WINDOW_TILE);
    }
    float inverse = 1.0f / a.sum;
    UNROLL
    for (int i = 0; i < HEAD; i++) a.value[i] *= inverse;
}

// Grid: images x windows x heads x tiles of queries; one thread a query. Shared memory: keys and
// values of a tile. 32 multiply-adds and one exponential a score, with eight loads of 16 bytes that
// are the same for all threads.
KERNEL(plain_window_attention) {
    const WindowSizes& s = arg.sizes;
    WindowBlock b = window_block(s);
    int query = b.first + threadIdx.x, exists = query < s.window * s.window;
    Token t = token_at(s, b, exists ? query : 0);
    float q[HEAD];
    load_head(arg.qkv + head_at(s, t.padded, 0, b.head), q);
    UNROLL
    for (int i = 0; i < HEAD; i++) q[i] *= s.factor;
    Attended a;
    attend_window(a, q, arg.qkv, s, b);
    if (exists && t.pixel >= 0) store_head(arg.output + (long long)t.pixel * s.heads * HEAD + b.head * HEAD, a.value);
}

// The gradients of the queries; what the gradients of keys and values need of a query is kept in
// `statistics`: [padded pixels][heads][2], log2 of the sum of its weights, and the dot product of
// output and gradient. As plain_window_attention, with twice the keys.
KERNEL(plain_window_attention_queries) {
    const WindowSizes& s = arg.sizes;
    WindowBlock b = window_block(s);
    float* keys = (float*)shared_memory();
    float* values = keys + WINDOW_TILE * HEAD;
    int tokens = s.window * s.window, query = b.first + threadIdx.x, exists = query < tokens;
    Token t = token_at(s, b, exists ? query : 0);
    float q[HEAD], d[HEAD], d_q[HEAD];
    load_head(arg.qkv + head_at(s, t.padded, 0, b.head), q);
    UNROLL
    for (int i = 0; i < HEAD; i++) {
        q[i] *= s.factor;
        d[i] = d_q[i] = 0;
    }
    if (t.pixel >= 0) load_head(arg.d_output + (long long)t.pixel * s.heads * HEAD + b.head * HEAD, d);
    Attended a;
    attend_window(a, q, arg.qkv, s, b);
    float mean = dot_head(d, a.value), logarithm = a.largest + log2f(a.sum);
    for (int first = 0; first < tokens; first += WINDOW_TILE) {
        // with one tile, it is still there
        if (tokens > WINDOW_TILE) {
            barrier();
            load_keys(keys, values, arg.qkv, s, b, first);
            barrier();
        }
        int count = tokens - first < WINDOW_TILE ? tokens - first : WINDOW_TILE;
        ROLLED
        for (int i = 0; i < count; i++) {
            float weight = exp2f(dot_head(q, keys + i * HEAD) - logarithm);
            float d_score = weight * (dot_head(d, values + i * HEAD) - mean);
            UNROLL
            for (int k = 0; k < HEAD; k++) d_q[k] = fmaf(d_score, keys[i * HEAD + k], d_q[k]);
        }
    }
    if (!exists) return;
    float* to = arg.statistics + ((long long)t.padded * s.heads + b.head) * 2;
    to[0] = logarithm;
    to[1] = mean;
    UNROLL
    for (int i = 0; i < HEAD; i++) d_q[i] *= s.factor * LN_2;
    store_head(arg.d_qkv + head_at(s, t.padded, 0, b.head), d_q);
}

// The gradients of keys and values, one thread a key. Shared memory: queries, gradients and
// statistics of a tile.
KERNEL(plain_window_attention_keys) {
    const WindowSizes& s = arg.sizes;
    WindowBlock b = window_block(s);
    float* queries = (float*)shared_memory();
    float* gradients = queries + WINDOW_TILE * HEAD;
    float* statistics = gradients + WINDOW_TILE * HEAD;
    int tokens = s.window * s.window, own = b.first + threadIdx.x, exists = own < tokens;
    int at = token_at(s, b, exists ? own : 0).padded;
    float k[HEAD], v[HEAD], d_k[HEAD], d_v[HEAD];
    load_head(arg.qkv + head_at(s, at, 1, b.head), k);
    load_head(arg.qkv + head_at(s, at, 2, b.head), v);
    UNROLL
    for (int i = 0; i < HEAD; i++) d_k[i] = d_v[i] = 0;
    for (int first = 0; first < tokens; first += WINDOW_TILE) {
        barrier();
        int query = first + threadIdx.x;
        if (query < tokens) {
            Token t = token_at(s, b, query);
            float q[HEAD], d[HEAD];
            load_head(arg.qkv + head_at(s, t.padded, 0, b.head), q);
            UNROLL
            for (int i = 0; i < HEAD; i++) d[i] = 0;
            if (t.pixel >= 0) load_head(arg.d_output + (long long)t.pixel * s.heads * HEAD + b.head * HEAD, d);
            UNROLL
            for (int i = 0; i < HEAD; i++) {
                queries[threadIdx.x * HEAD + i] = q[i] * s.factor;
                gradients[threadIdx.x * HEAD + i] = d[i];
            }
            const float* from = arg.statistics + ((long long)t.padded * s.heads + b.head) * 2;
            statistics[2 * threadIdx.x] = from[0];
            statistics[2 * threadIdx.x + 1] = from[1];
        }
        barrier();
        int count = tokens - first < WINDOW_TILE ? tokens - first : WINDOW_TILE;
        ROLLED
        for (int i = 0; i < count; i++) {
            float weight = exp2f(dot_head(k, queries + i * HEAD) - statistics[2 * i]);
            float d_score = weight * (dot_head(v, gradients + i * HEAD) - statistics[2 * i + 1]);
            UNROLL
            for (int c = 0; c < HEAD; c++) {
                d_v[c] = fmaf(weight, gradients[i * HEAD + c], d_v[c]);
                d_k[c] = fmaf(d_score, queries[i * HEAD + c], d_k[c]);
            }
        }
    }
    if (!exists) return;
    UNROLL
    for (int i = 0; i < HEAD; i++) d_k[i] *= LN_2;
    store_head(arg.d_qkv + head_at(s, at, 1, b.head), d_k);
    store_head(arg.d_qkv + head_at(s, at, 2, b.head), d_v);
}

// Keys and values of the tokens, and for the backward pass those of the tokens less their mean:
// [T][16], [T][F], twice. A constant that is added to all gradients of a pixel's weights changes no
// gradient of a score, but tokens are alike at the start of a training, and the common part would
// cancel only after it was rounded. One thread a result. Grid: ceil(T x (16 + F) / 256).
KERNEL(plain_token_keys) {
    const int width = HEAD + arg.channels;
    int at = blockIdx.x * 256 + threadIdx.x;
    if (at >= arg.tokens * width) return;
    int t = at / width, o = at - t * width;
    bool key = o < HEAD;
    const float* weight = key ? arg.key_weight + o * arg.channels : arg.value_weight + (o - HEAD) * arg.channels;
    float sum = key ? arg.key_bias[o] : arg.value_bias[o - HEAD], centred = 0;
    for (int f = 0; f < arg.channels; f++) {
        double mean = 0;
        for (int i = 0; i < arg.tokens && arg.centre; i++) mean += (double)arg.dictionary[i * arg.channels + f];
        double token = (double)arg.dictionary[t * arg.channels + f];
        sum = fmaf(weight[f], (float)token, sum);
        centred = fmaf(weight[f], (float)(token - mean / (double)arg.tokens), centred);
    }
    int offset = key ? t * HEAD + o : arg.tokens * HEAD + t * arg.channels + o - HEAD;
    arg.keys[offset] = sum;
    if (arg.centre) arg.keys[arg.tokens * width + offset] = centred;
}

// Channels of the output that a thread sums at a time.
#define TOKEN_CHANNELS 16

// One thread a pixel. Shared memory: keys and values. Grid: persistent.
KERNEL(plain_token_attention) {
    const int tokens = arg.tokens, channels = arg.channels, stride = arg.stride;
    float* keys = (float*)shared_memory();
    float* values = keys + tokens * HEAD;
    for (int i = threadIdx.x; i < tokens * (HEAD + channels); i += 256) keys[i] = arg.keys[i];
    barrier();
    for (int pixel = blockIdx.x * 256 + threadIdx.x; pixel < arg.pixels; pixel += gridDim.x * 256) {
        float q[HEAD], largest = LOWEST, sum = 0;
        load_head(arg.query + (long long)pixel * HEAD, q);
        UNROLL
        for (int i = 0; i < HEAD; i++) q[i] *= arg.factor;
        ROLLED
        for (int t = 0; t < tokens; t++) {
            float score = dot_head(q, keys + t * HEAD);
            float next = score > largest ? score : largest;
            sum = sum * exp2f(largest - next) + exp2f(score - next);
            largest = next;
        }
        float inverse = 1.0f / sum;
        ROLLED
        for (int first = 0; first < stride; first += TOKEN_CHANNELS) {
            float out[TOKEN_CHANNELS];
            UNROLL
            for (int i = 0; i < TOKEN_CHANNELS; i++) out[i] = 0;
            ROLLED
            for (int t = 0; t < tokens; t++) {
                float weight = exp2f(dot_head(q, keys + t * HEAD) - largest) * inverse;
                UNROLL
                for (int i = 0; i < TOKEN_CHANNELS; i++)
                    if (first + i < channels) out[i] = fmaf(weight, values[t * channels + first + i], out[i]);
            }
            store_head(arg.output + (long long)pixel * stride + first, out);
        }
    }
}

// The gradient of the query, and the weights and the gradients of the scores of every pixel, [pixels]
// [T] each, from which plain_conv_weights sums the gradients of keys and values. Shared memory: keys,
// centred keys and values. Grid: persistent.
KERNEL(plain_token_attention_back) {
    const int tokens = arg.tokens, channels = arg.channels, width = HEAD + channels;
    float* keys = (float*)shared_memory();
    float* centred = keys + tokens * HEAD;
    for (int i = threadIdx.x; i < tokens * HEAD; i += 256) keys[i] = arg.keys[i];
    for (int i = threadIdx.x; i < tokens * width; i += 256) centred[i] = arg.keys[tokens * width + i];
    const float* values = centred + tokens * HEAD;
    barrier();
    for (int pixel = blockIdx.x * 256 + threadIdx.x; pixel < arg.pixels; pixel += gridDim.x * 256) {
        float q[HEAD], d_q[HEAD], largest = LOWEST, sum = 0, mean = 0;
        load_head(arg.query + (long long)pixel * HEAD, q);
        float* weights = arg.weights + (long long)pixel * tokens;
        float* d_scores = arg.d_scores + (long long)pixel * tokens;
        UNROLL
        for (int i = 0; i < HEAD; i++) {
            q[i] *= arg.factor;
            d_q[i] = 0;
        }
        ROLLED
        for (int t = 0; t < tokens; t++) {
            float score = dot_head(q, keys + t * HEAD), next = score > largest ? score : largest;
            sum = sum * exp2f(largest - next) + exp2f(score - next);
            largest = next;
            weights[t] = score;
            d_scores[t] = 0;
        }
        float inverse = 1.0f / sum;
        ROLLED
        for (int first = 0; first < channels; first += HEAD) {
            float d[HEAD];
            load_head(arg.d_output + (long long)pixel * arg.stride + first, d);
            ROLLED
            for (int t = 0; t < tokens; t++) {
                float part = 0;
                UNROLL
                for (int i = 0; i < HEAD; i++)
                    if (first + i < channels) part = fmaf(d[i], values[t * channels + first + i], part);
                d_scores[t] += part;
            }
        }
        ROLLED
        for (int t = 0; t < tokens; t++) {
            weights[t] = exp2f(weights[t] - largest) * inverse;
            mean = fmaf(weights[t], d_scores[t], mean);
        }
        ROLLED
        for (int t = 0; t < tokens; t++) {
            float d_score = weights[t] * (d_scores[t] - mean);
            d_scores[t] = d_score;
            UNROLL
            for (int i = 0; i < HEAD; i++) d_q[i] = fmaf(d_score, centred[t * HEAD + i], d_q[i]);
        }
        UNROLL
        for (int i = 0; i < HEAD; i++) d_q[i] *= arg.factor * LN_2;
        store_head(arg.d_query + (long long)pixel * HEAD, d_q);
    }
}

// The gradients of the five parameters from those of the keys, [T][16] times the root of 16, and of
// the values [F][T]. One thread a gradient, in the order tokens, key, key's bias, value, value's bias.
KERNEL(plain_token_gradients) {
    const int tokens = arg.tokens, channels = arg.channels;
    int at = blockIdx.x * 256 + threadIdx.x;
    double sum = 0, factor = (double)arg.factor;
    float* to = nullptr;
    if (at < tokens * channels) {
        int t = at / channels, f = at - t * channels;
        for (int d = 0; d < HEAD; d++) sum += factor * to_double(arg.d_keys[t * HEAD + d]) * (double)arg.key_weight[d * channels + f];
        for (int o = 0; o < channels; o++) sum += to_double(arg.d_values[o * tokens + t]) * (double)arg.value_weight[o * channels + f];
        to = arg.d_dictionary + at;
    } else if ((at -= tokens * channels) < HEAD * channels) {
        int d = at / channels, f = at - d * channels;
        for (int t = 0; t < tokens; t++) sum += factor * to_double(arg.d_keys[t * HEAD + d]) * (double)arg.dictionary[t * channels + f];
        to = arg.d_key_weight + at;
    } else if ((at -= HEAD * channels) < HEAD) {
        for (int t = 0; t < tokens; t++) sum += factor * to_double(arg.d_keys[t * HEAD + at]);
        to = arg.d_key_bias + at;
    } else if ((at -= HEAD) < channels * channels) {
        int o = at / channels, f = at - o * channels;
        for (int t = 0; t < tokens; t++) sum += to_double(arg.d_values[o * tokens + t]) * (double)arg.dictionary[t * channels + f];
        to = arg.d_value_weight + at;
    } else if ((at -= channels * channels) < channels) {
        for (int t = 0; t < tokens; t++) sum += to_double(arg.d_values[at * tokens + t]);
        to = arg.d_value_bias + at;
    }
    if (to) store_gradient(to, (float)sum, arg.scalars);
}
