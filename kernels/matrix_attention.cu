// Attention of the pixels of a window with each other on tensor cores, and its gradients, in half
// precision. Depends on plain_attention.cu.
//
// A block has 256 queries of a window's head, a warp 32 of them; keys and values come 256 at a time
// into shared memory. For 32 keys a warp has its scores in registers: their largest ones, the powers
// of two and their sums are f32, the weights are rounded to half precision and go into the next
// product as they are, because a lane holds the same rows and columns of a result and of an operand.
// The order of a head's 16 values is free: lane t has 4t .. 4t+3 of queries, keys and results. The
// backward pass rounds the gradients of the scores, too.
// Grid: images x windows x heads x tiles of queries. Least traffic: q, k and v read and the output
// written once; powers of two (one a score) take longer than that where bandwidth is high.
#pragma once
#include "mma.cuh"
#include "plain.cuh"

#if PRECISION != 0

// Scores of a query that a warp has at a time.
#define CHUNK_KEYS 32

// Of the queries 8r + group of a warp, r = 2m + half: sums of weighted values [m][4t .. 4t+1, then 4t+2
// .. 4t+3], and for each r the largest score so far and the lane's sum of weights.
struct MatrixAttended {
    float value[2][2][4], largest[4], sum[4];
};

// The 16 values of 256 tokens as two planes of eight, whose columns 2t and 2t + 1 are a lane's four
// values: as rows of an operand a lane takes a word of each plane, and as columns ldmatrix takes a plane.
// A thread writes one token.
DEVICE void put_token(Wide* planes, const act* from) {
    Wide low = {{0, 0, 0, 0}}, high = low;
    if (from) {
        low = ((const Wide*)from)[0];
        high = ((const Wide*)from)[1];
    }
    UNROLL
    for (int i = 0; i < 2; i++) planes[WINDOW_TILE * i + threadIdx.x] = {{low.word[i], low.word[2 + i], high.word[i], high.word[2 + i]}};
}
// The operand words of token `token` + group for its place as a column, and those of 16 tokens from `token`
// on for their place as rows: of the results 4t, 4t + 1, then 4t + 2, 4t + 3.
DEVICE void token_column(u32 (&words)[2], const Wide* planes, int token) {
    int lane = threadIdx.x % 32;
    UNROLL
    for (int i = 0; i < 2; i++) words[i] = ((const u32*)(planes + WINDOW_TILE * i + token))[lane];
}
DEVICE void token_rows(u32 (&low)[2], u32 (&high)[2], const Wide* planes, int token) {
    u32 words[4];
    int lane = threadIdx.x % 32;
    load_matrices_transposed(words, planes + lane / 16 * WINDOW_TILE + token + lane % 16);
    UNROLL
    for (int i = 0; i < 2; i++) {
        low[i] = words[i];
        high[i] = words[2 + i];
    }
}
// The operand of 32 tokens, of which the lane has 8r + group for r = 2m + half; `from` is where that one's
// values begin, or null.
DEVICE void put_row(u32 (&rows)[2][4], int r, const act* from) {
    Pair p = {{0, 0}};
    if (from) p = load_pair(from, threadIdx.x % 4);
    rows[r / 2][r % 2] = p.word[0];
    rows[r / 2][2 + r % 2] = p.word[1];
}
// Products of 32 tokens with the eight from `token` on: [m][4] of the results' eight columns.
DEVICE void multiply_tokens(float (&products)[2][4], const u32 (&rows)[2][4], const Wide* planes, int token) {
    u32 words[2];
    token_column(words, planes, token);
    UNROLL
    for (int m = 0; m < 2; m++) {
        UNROLL
        for (int i = 0; i < 4; i++) products[m][i] = 0;
        mma_16x8x16(products[m], rows[m], words);
    }
}
// Adds the products of 32 x 16 weights with the 16 tokens from `token` on; the weights of the first
// and of the second eight tokens are rounded to half precision as they are: [m][rows of 8].
DEVICE void add_tokens(float (&sums)[2][2][4], const u32 (&first)[2][2], const u32 (&second)[2][2], const Wide* planes, int token) {
    u32 low[2], high[2];
    token_rows(low, high, planes, token);
    UNROLL
    for (int m = 0; m < 2; m++) {
        u32 w[4] = {first[m][0], first[m][1], second[m][0], second[m][1]};
        mma_16x8x16(sums[m][0], w, low);
        mma_16x8x16(sums[m][1], w, high);
    }
}
DEVICE void pack_products(u32 (&words)[2][2], const float (&products)[2][4]) {
    UNROLL
    for (int i = 0; i < 4; i++) words[i / 2][i % 2] = pack_half(products[i / 2][i % 2 * 2], products[i / 2][i % 2 * 2 + 1]);
}
DEVICE void clear(float (&sums)[2][2][4]) {
    UNROLL
    for (int i = 0; i < 16; i++) sums[i / 8][i / 4 % 2][i % 4] = 0;
}
// Stores the lane's four values of row r, times a factor.
DEVICE void store_row(act* to, const float (&sums)[2][2][4], int r, float factor) {
    Pair result;
    UNROLL
    for (int i = 0; i < 2; i++) result.word[i] = pack_half(factor * sums[r / 2][i][r % 2 * 2], factor * sums[r / 2][i][r % 2 * 2 + 1]);
    store_pair(to, threadIdx.x % 4, result);
}
// Stores the gradients of a warp's 32 queries (part 0), keys (1) or values (2), times a factor.
DEVICE void store_gradients(act* d_qkv, const WindowSizes& s, const WindowBlock& b, int part, const float (&sums)[2][2][4], float factor) {
    Lane l = lane_position();
    UNROLL
    for (int r = 0; r < 4; r++) {
        int token = b.first + l.warp * 32 + 8 * r + l.group;
        if (token < s.window * s.window) store_row(d_qkv + head_at(s, token_at(s, b, token).padded, part, b.head), sums, r, factor);
    }
}
// Loads a tile of keys and values; zeros behind the last one.
DEVICE void load_matrix_keys(Wide* keys, Wide* values, const act* qkv, const WindowSizes& s, const WindowBlock& b, int first) {
    int token = first + threadIdx.x;
    bool exists = token < s.window * s.window;
    int at = exists ? token_at(s, b, token).padded : 0;
    put_token(keys, exists ? qkv + head_at(s, at, 1, b.head) : nullptr);
    put_token(values, exists ? qkv + head_at(s, at, 2, b.head) : nullptr);
}

// Takes the 32 keys from number k of the tile on, of which `count` exist.
DEVICE void attend_matrix(MatrixAttended& a, const u32 (&q)[2][4], const Wide* keys, const Wide* values, int k, int count, float factor) {
    float scores[4][2][4];  // [8 keys][m]
    u32 weights[4][2][2];
    UNROLL
    for (int n = 0; n < 4; n++) multiply_tokens(scores[n], q, keys, k + 8 * n);
    if (count < CHUNK_KEYS) {
        int t = threadIdx.x % 4;
        UNROLL
        for (int i = 0; i < 32; i++)
            if (i / 8 * 8 + 2 * t + i % 2 >= count) scores[i / 8][i / 4 % 2][i % 4] = LOWEST;
    }
    UNROLL
    for (int r = 0; r < 4; r++) {
        float most = LOWEST;
        UNROLL
        for (int i = 0; i < 8; i++) {
            float value = scores[i / 2][r / 2][r % 2 * 2 + i % 2];
            most = value > most ? value : most;
        }
        UNROLL
        for (int mask = 1; mask < 4; mask *= 2) {
            float other = shuffle_xor(most, mask);
            most = other > most ? other : most;
        }
        most *= factor;
        float largest = most > a.largest[r] ? most : a.largest[r], shrink = fast_exp2(a.largest[r] - largest);
        a.largest[r] = largest;
        a.sum[r] *= shrink;
        UNROLL
        for (int i = 0; i < 4; i++) a.value[r / 2][i / 2][r % 2 * 2 + i % 2] *= shrink;
        UNROLL
        for (int n = 0; n < 4; n++) {
            const float* score = scores[n][r / 2] + r % 2 * 2;
            u32 word = pack_half(fast_exp2(fmaf(score[0], factor, -largest)), fast_exp2(fmaf(score[1], factor, -largest)));
            weights[n][r / 2][r % 2] = word;
            // the rounded ones, because weights that are nearly equal are all rounded in one direction
            a.sum[r] += low_half(word) + high_half(word);
        }
    }
    add_tokens(a.value, weights[0], weights[1], values, k);
    add_tokens(a.value, weights[2], weights[3], values, k + 16);
}
// The weighted sums of the values of all keys for the queries in q, before the division by the sums of
// the weights. A warp whose first query does not exist attends to nothing.
DEVICE void attend_matrix_window(MatrixAttended& a, const u32 (&q)[2][4], Wide* keys, Wide* values, const act* qkv, const WindowSizes& s, const WindowBlock& b, int first_query) {
    int tokens = s.window * s.window;
    clear(a.value);
    UNROLL
    for (int r = 0; r < 4; r++) {
        a.largest[r] = LOWEST;
        a.sum[r] = 0;
    }
    for (int first = 0; first < tokens; first += WINDOW_TILE) {
        barrier();
        load_matrix_keys(keys, values, qkv, s, b, first);
        barrier();
        int end = first_query >= tokens ? 0 : tokens - first < WINDOW_TILE ? tokens - first : WINDOW_TILE;
        ROLLED
        for (int k = 0; k < end; k += CHUNK_KEYS) attend_matrix(a, q, keys, values, k, end - k, s.factor);
    }
    UNROLL
    for (int r = 0; r < 4; r++) {
        a.sum[r] += shuffle_xor(a.sum[r], 1);
        a.sum[r] += shuffle_xor(a.sum[r], 2);
    }
}

KERNEL_CROWDED(matrix_window_attention, 2) {
    const WindowSizes& s = arg.sizes;
    WindowBlock b = window_block(s);
    Wide* keys = (Wide*)shared_memory();
    Wide* values = keys + 2 * WINDOW_TILE;
    Lane l = lane_position();
    int tokens = s.window * s.window, first_query = b.first + l.warp * 32;
    u32 q[2][4];
    UNROLL
    for (int r = 0; r < 4; r++) {
        int query = first_query + 8 * r + l.group;
        put_row(q, r, query < tokens ? arg.qkv + head_at(s, token_at(s, b, query).padded, 0, b.head) : nullptr);
    }
    MatrixAttended a;
    attend_matrix_window(a, q, keys, values, arg.qkv, s, b, first_query);
    UNROLL
    for (int r = 0; r < 4; r++) {
        int query = first_query + 8 * r + l.group;
        if (query >= tokens) continue;
        Token t = token_at(s, b, query);
        if (t.pixel >= 0) store_row(arg.output + (long long)t.pixel * s.heads * HEAD + b.head * HEAD, a.value, r, 1.0f / a.sum[r]);
    }
}

// The gradients of the queries, and `statistics` for the gradients of keys and values, as
// plain_window_attention_queries has them.
KERNEL_CROWDED(matrix_window_attention_queries, 2) {
    const WindowSizes& s = arg.sizes;
    WindowBlock b = window_block(s);
    Wide* keys = (Wide*)shared_memory();
    Wide* values = keys + 2 * WINDOW_TILE;
    Lane l = lane_position();
    int tokens = s.window * s.window, first_query = b.first + l.warp * 32;
    u32 q[2][4], d[2][4];
    UNROLL
    for (int r = 0; r < 4; r++) {
        int query = first_query + 8 * r + l.group;
        bool exists = query < tokens;
        Token t = token_at(s, b, exists ? query : 0);
        put_row(q, r, exists ? arg.qkv + head_at(s, t.padded, 0, b.head) : nullptr);
        put_row(d, r, exists && t.pixel >= 0 ? arg.d_output + (long long)t.pixel * s.heads * HEAD + b.head * HEAD : nullptr);
    }
    float logarithm[4], mean[4], d_q[2][2][4];
    {
        MatrixAttended a;
        attend_matrix_window(a, q, keys, values, arg.qkv, s, b, first_query);
        UNROLL
        for (int r = 0; r < 4; r++) {
            float dot = 0;
            UNROLL
            for (int i = 0; i < 4; i++) {
                u32 word = d[r / 2][i / 2 * 2 + r % 2];
                dot = fmaf(i % 2 ? high_half(word) : low_half(word), a.value[r / 2][i / 2][r % 2 * 2 + i % 2], dot);
            }
            dot += shuffle_xor(dot, 1);
            dot += shuffle_xor(dot, 2);
            mean[r] = dot / a.sum[r];
            logarithm[r] = a.largest[r] + log2f(a.sum[r]);
            int query = first_query + 8 * r + l.group;
            if (query < tokens && l.t == 0) {
                float* to = arg.statistics + ((long long)token_at(s, b, query).padded * s.heads + b.head) * 2;
                to[0] = logarithm[r];
                to[1] = mean[r];
            }
        }
    }
    clear(d_q);
    for (int first = 0; first < tokens; first += WINDOW_TILE) {
        // with one tile, it is still there
        if (tokens > WINDOW_TILE) {
            barrier();
            load_matrix_keys(keys, values, arg.qkv, s, b, first);
            barrier();
        }
        int end = first_query >= tokens ? 0 : tokens - first < WINDOW_TILE ? tokens - first : WINDOW_TILE;
        ROLLED
        for (int k = 0; k < end; k += 16) {
            float scores[2][2][4], d_scores[2][2][4];  // [8 keys][m]
            UNROLL
            for (int n = 0; n < 2; n++) {
                multiply_tokens(scores[n], q, keys, k + 8 * n);
                multiply_tokens(d_scores[n], d, values, k + 8 * n);
            }
            UNROLL
            for (int i = 0; i < 16; i++) {
                int r = i / 4 % 2 * 2 + i / 2 % 2;
                float weight = k + i / 8 * 8 + 2 * l.t + i % 2 < end ? fast_exp2(fmaf(scores[i / 8][i / 4 % 2][i % 4], s.factor, -logarithm[r])) : 0.0f;
                float& d_score = d_scores[i / 8][i / 4 % 2][i % 4];
                d_score = weight * (d_score - mean[r]);
            }
            u32 words[2][2][2];
            UNROLL
            for (int n = 0; n < 2; n++) pack_products(words[n], d_scores[n]);
            add_tokens(d_q, words[0], words[1], keys, k);
        }
    }
    store_gradients(arg.d_qkv, s, b, 0, d_q, s.factor * LN_2);
}

// The gradients of keys and values: a warp has 32 keys, the rows of its scores; queries, gradients and
// their statistics come 256 at a time into shared memory.
KERNEL_CROWDED(matrix_window_attention_keys, 2) {
    const WindowSizes& s = arg.sizes;
    WindowBlock b = window_block(s);
    Wide* queries = (Wide*)shared_memory();
    Wide* gradients = queries + 2 * WINDOW_TILE;
    Pair* statistics = (Pair*)(gradients + 2 * WINDOW_TILE);
    Lane l = lane_position();
    int tokens = s.window * s.window, first_key = b.first + l.warp * 32;
    u32 k[2][4], v[2][4];
    float d_k[2][2][4], d_v[2][2][4];
    clear(d_k);
    clear(d_v);
    UNROLL
    for (int r = 0; r < 4; r++) {
        int key = first_key + 8 * r + l.group;
        bool exists = key < tokens;
        int at = token_at(s, b, exists ? key : 0).padded;
        put_row(k, r, exists ? arg.qkv + head_at(s, at, 1, b.head) : nullptr);
        put_row(v, r, exists ? arg.qkv + head_at(s, at, 2, b.head) : nullptr);
    }
    for (int first = 0; first < tokens; first += WINDOW_TILE) {
        barrier();
        // queries that do not exist, and gradients outside of the image, are 0
        int query = first + threadIdx.x;
        bool exists = query < tokens;
        Token t = token_at(s, b, exists ? query : 0);
        put_token(queries, exists ? arg.qkv + head_at(s, t.padded, 0, b.head) : nullptr);
        put_token(gradients, exists && t.pixel >= 0 ? arg.d_output + (long long)t.pixel * s.heads * HEAD + b.head * HEAD : nullptr);
        Pair none = {{0, 0}};
        statistics[threadIdx.x] = exists ? ((const Pair*)arg.statistics)[(long long)t.padded * s.heads + b.head] : none;
        barrier();
        int end = first_key >= tokens ? 0 : tokens - first < WINDOW_TILE ? tokens - first : WINDOW_TILE;
        ROLLED
        for (int at = 0; at < end; at += 16) {
            u32 weights[2][2][2], d_scores[2][2][2];  // [8 queries][m]
            UNROLL
            for (int n = 0; n < 2; n++) {
                float weight[2][4], d_score[2][4];
                multiply_tokens(weight, k, queries, at + 8 * n);
                multiply_tokens(d_score, v, gradients, at + 8 * n);
                UNROLL
                for (int i = 0; i < 2; i++) {
                    Pair of = statistics[at + 8 * n + 2 * l.t + i];
                    UNROLL
                    for (int r = 0; r < 4; r++) {
                        float &w = weight[r / 2][r % 2 * 2 + i], &d = d_score[r / 2][r % 2 * 2 + i];
                        w = fast_exp2(fmaf(w, s.factor, -bits_to_float(of.word[0])));
                        d = w * (d - bits_to_float(of.word[1]));
                    }
                }
                pack_products(weights[n], weight);
                pack_products(d_scores[n], d_score);
            }
            add_tokens(d_v, weights[0], weights[1], gradients, at);
            add_tokens(d_k, d_scores[0], d_scores[1], queries, at);
        }
    }
    store_gradients(arg.d_qkv, s, b, 1, d_k, s.factor * LN_2);
    store_gradients(arg.d_qkv, s, b, 2, d_v, 1.0f);
}
#endif
