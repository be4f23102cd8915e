// Loads and stores of whole pixels of 16 features, 16 bytes at a time, and the tiles that they are
// computed in.
#pragma once
#include "common.cuh"

#define FEATURE_PIECES ((int)(FEATURES * sizeof(act) / 16))

DEVICE void load_features(const act* from, float (&v)[FEATURES]) {
#if PRECISION == 0
    for (int i = 0; i < FEATURE_PIECES; i++) {
        Wide piece = ((const Wide*)from)[i];
        for (int k = 0; k < 4; k++) v[4 * i + k] = bits_to_float(piece.word[k]);
    }
#else
    for (int i = 0; i < FEATURE_PIECES; i++) {
        Wide piece = ((const Wide*)from)[i];
        for (int k = 0; k < 4; k++) {
            v[8 * i + 2 * k] = from_half((u16)piece.word[k]);
            v[8 * i + 2 * k + 1] = from_half((u16)(piece.word[k] >> 16));
        }
    }
#endif
}

DEVICE void store_features(act* to, const float (&v)[FEATURES]) {
    for (int i = 0; i < FEATURE_PIECES; i++) {
        Wide piece;
#if PRECISION == 0
        for (int k = 0; k < 4; k++) piece.word[k] = float_to_bits(v[4 * i + k]);
#else
        for (int k = 0; k < 4; k++) piece.word[k] = pack_half(v[8 * i + 2 * k], v[8 * i + 2 * k + 1]);
#endif
        ((Wide*)to)[i] = piece;
    }
}

// Square tiles of TILE x TILE pixels, numbered through all images, row by row.
struct Tile {
    int image, y, x;

    // To the next one.
    DEVICE_MEMBER void move_on(int h, int w) {
        x += TILE;
        if (x < w) return;
        x = 0;
        y += TILE;
        if (y < h) return;
        y = 0;
        image++;
    }
};
DEVICE int tile_count(int images, int h, int w) { return images * ((h + TILE - 1) / TILE) * ((w + TILE - 1) / TILE); }
DEVICE Tile tile_at(int index, int h, int w) {
    // two unsigned divisions, which cost less than signed ones
    u32 across = (u32)(w + TILE - 1) / TILE, down = (u32)(h + TILE - 1) / TILE, line = (u32)index / across, image = line / down;
    Tile t;
    t.image = (int)image;
    t.y = (int)(line - image * down) * TILE;
    t.x = (int)((u32)index - line * across) * TILE;
    return t;
}
// The same for a kernel that loops over tiles: the reciprocals are computed once. A division is some
// twenty instructions that wait for one another, and nothing can be loaded before its result.
struct Tiles {
    u32 across_share, down_share;  // floor((2^32 - 1) / divisor)

    DEVICE_MEMBER Tiles(int h, int w) {
        across_share = 0xffffffffu / ((u32)(w + TILE - 1) / TILE);
        down_share = 0xffffffffu / ((u32)(h + TILE - 1) / TILE);
    }
    // a / divisor for a < 2^31: the product with the share is less by one at most.
    DEVICE_MEMBER static u32 divide(u32 a, u32 divisor, u32 share) {
        u32 quotient = (u32)((u64)a * share >> 32);
        return a - quotient * divisor < divisor ? quotient : quotient + 1;
    }
    DEVICE_MEMBER Tile at(int index, int h, int w) const {
        u32 across = (u32)(w + TILE - 1) / TILE, down = (u32)(h + TILE - 1) / TILE;
        u32 line = divide((u32)index, across, across_share), image = divide(line, down, down_share);
        Tile t;
        t.image = (int)image;
        t.y = (int)(line - image * down) * TILE;
        t.x = (int)((u32)index - line * across) * TILE;
        return t;
    }
};
DEVICE bool inside(int y, int x, int h, int w) { return (u32)y < (u32)h && (u32)x < (u32)w; }

#if PRECISION != 0
// Fragments of tensor core instructions. The order of channels in a product is free as long as both
// operands have the same, so it is chosen such that every lane holds neighbours: of a pixel's
// features lane t has 4t .. 4t+3, as two words, which are the lower and the upper eight of a step
// along k; and of 16 results also 4t .. 4t+3. With group = lane / 4, column `group` of result word
// `m` is then feature 4 (group / 2) + 2m + group % 2.
DEVICE int fragment_feature(int group, int word) { return 4 * (group / 2) + 2 * word + group % 2; }

struct __attribute__((aligned(8))) Pair {
    u32 word[2];
};
// Features 4t .. 4t+3 of a pixel. Four lanes with the same pixel and eight with the same t access
// 256 consecutive bytes.
DEVICE Pair load_pair(const act* pixel, int t) { return ((const Pair*)pixel)[t]; }
DEVICE void store_pair(act* pixel, int t, Pair value) { ((Pair*)pixel)[t] = value; }

DEVICE float low_half(u32 word) { return from_half((u16)word); }
DEVICE float high_half(u32 word) { return from_half((u16)(word >> 16)); }

// A thread's warp, and its position in fragments.
struct Lane {
    int warp, lane, group, t;
};
DEVICE Lane lane_position(u32 thread) {
    Lane l;
    l.warp = thread / 32;
    l.lane = thread % 32;
    l.group = thread % 32 / 4;
    l.t = thread % 4;
    return l;
}
DEVICE Lane lane_position() { return lane_position(threadIdx.x); }
#endif
