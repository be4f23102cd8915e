// Pixels of 16 features, as the body and the head of a network store them: loads and stores of whole pixels, 16 bytes at a time.
#pragma once
#include "common.cuh"

#define FEATURES 16
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
#define TILE 16
struct Tile {
    int image, y, x;
};
DEVICE int tile_count(int images, int h, int w) { return images * ((h + TILE - 1) / TILE) * ((w + TILE - 1) / TILE); }
DEVICE Tile tile_at(int index, int h, int w) {
    int across = (w + TILE - 1) / TILE, down = (h + TILE - 1) / TILE;
    Tile t;
    t.image = index / (across * down);
    t.y = index / across % down * TILE;
    t.x = index % across * TILE;
    return t;
}
DEVICE bool inside(int y, int x, int h, int w) { return y >= 0 && y < h && x >= 0 && x < w; }
