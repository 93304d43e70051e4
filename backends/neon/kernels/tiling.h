/* Walks the groups and pixels of a range in tiles. */
#ifndef TERSOR_TILING_H
#define TERSOR_TILING_H

#include "inline.h"

/* Computes `count` tiles, of a fixed number of pixels, of one group of 8 channels (or its first 4, where no more are left).
 * They follow each other, so that what is set up for a group is set up once. */
typedef void tersor_tile_function(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y, ptrdiff_t y_block,
                                  int32_t count);

/* The tiles of one size, by the kernel's own `tiles`, whose last arguments are constants here. */
#define TERSOR_DEFINE_TILE(NAME, ...)                                                                                  \
    static void NAME(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y, ptrdiff_t y_block,            \
                     int32_t count)                                                                                    \
    {                                                                                                                  \
        tiles(conv, group, x, y, y_block, count, __VA_ARGS__);                                                         \
    }

/* For `least` pixels or more that are left; ends with least = 1. A tile larger than what is left goes through a buffer. */
typedef struct {
    int32_t least, pixels;
    tersor_tile_function *function;
} tersor_tile;

enum { TERSOR_LARGEST_TILE = 64 * 4 };

/* With so many pixels a sum that follows is done after each group, while its output is near; with fewer, after all. */
enum { TERSOR_FEW_PIXELS = 64 };

/* A tile whose first `pixels` are wanted. */
static inline void tersor_part_of_tile(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y,
                                       tersor_tile tile, int32_t pixels, int32_t block)
{
    int8_t whole[2 * TERSOR_LARGEST_TILE];
    const int32_t left = conv->channels - group * TERSOR_GROUP;
    const int32_t blocks = block < TERSOR_GROUP && left > block ? 2 : 1;
    tile.function(conv, group, x, whole, TERSOR_LARGEST_TILE, 1);
    for (int32_t b = 0; b < blocks; b++)
        memcpy(y + (ptrdiff_t)b * conv->y_block, whole + b * TERSOR_LARGEST_TILE, (size_t)(pixels * block));
}

/* Pixels that follow each other in both tensors. */
static inline void tersor_run_of_tiles(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y,
                                       const tersor_tile *tiles, int32_t pixels, int32_t block)
{
    while (pixels > 0) {
        while (pixels < tiles->least)
            tiles++;
        if (pixels < tiles->pixels) {
            tersor_part_of_tile(conv, group, x, y, *tiles, pixels, block);
            return;
        }
        const int32_t count = pixels / tiles->pixels, done = count * tiles->pixels;
        tiles->function(conv, group, x, y, conv->y_block, count);
        x += done * block, y += done * block, pixels -= done;
    }
}

/* `half` is for a last group of at most 4 channels, in blocks of 4. */
static inline void tersor_run_range(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range,
                                    const tersor_tile *tiles, const tersor_tile *half, int32_t block)
{
    const int32_t bytes = conv->width * block;
    const int flat = conv->x_row == bytes && conv->y_row == bytes;
    const int large = range.pixel_end - range.pixel_begin > TERSOR_FEW_PIXELS;
    for (int32_t group = range.group_begin; group < range.group_end; group++) {
        const tersor_tile *sizes = conv->channels - group * TERSOR_GROUP > 4 ? tiles : half;
        int8_t *const out = y + (ptrdiff_t)group * (TERSOR_GROUP / block) * conv->y_block;
        for (int32_t pixel = range.pixel_begin, run; pixel < range.pixel_end; pixel += run) {
            const int32_t row = pixel / conv->width, column = pixel % conv->width;
            run = range.pixel_end - pixel;
            if (!flat && run > conv->width - column)
                run = conv->width - column;
            tersor_run_of_tiles(conv, group, x + (ptrdiff_t)row * conv->x_row + (ptrdiff_t)column * block,
                                out + (ptrdiff_t)row * conv->y_row + (ptrdiff_t)column * block, sizes, run, block);
        }
        if (conv->residual && (large || group + 1 == range.group_end)) {
            const tersor_range done = {range.pixel_begin, range.pixel_end, large ? group : range.group_begin, group + 1};
            tersor_add_residual_neon(conv, y, done, block);
        }
    }
}

#endif
