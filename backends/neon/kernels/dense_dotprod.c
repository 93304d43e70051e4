/* Dense convolution with SDOT: tiles of 8 channels x 12 pixels, 24 accumulators, so that a step of 4 input channels is 24
 * SDOT to 2 loads. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "dotprod.h"
#include "tiling.h"

enum { BLOCK = 4 };

TERSOR_INLINE void start(int32x4_t acc[2][3][4], const int32_t *bias, int halves, int quads)
{
    if (halves == 2 && quads == 3)
        tersor_start_24(&acc[0][0][0], bias, bias + 4);
    else
        TERSOR_UNROLL
        for (int k = 0; k < 4 * halves; k++)
            TERSOR_UNROLL
            for (int i = 0; i < quads; i++)
                acc[k / 4][i][k % 4] = vdupq_n_s32(bias[k]);
}

/* acc[half][4 pixels][channel] += one input block. */
TERSOR_INLINE void step(int32x4_t acc[2][3][4], const int8_t **x, ptrdiff_t stride, const int8x16_t *w, int halves, int quads)
{
    int8x16_t v[3];
    tersor_load_pixels(v, quads, x, stride);
    TERSOR_UNROLL
    for (int k = 0; k < 4 * halves; k++)
        TERSOR_UNROLL
        for (int i = 0; i < quads; i++)
            acc[k / 4][i][k % 4] = tersor_dot(acc[k / 4][i][k % 4], v[i], w[k / 4], k % 4);
}

TERSOR_INLINE void accumulate(int32x4_t acc[2][3][4], const tersor_conv *conv, const int8_t *x, const int8_t *w, int halves,
                              int quads)
{
    const ptrdiff_t stride = conv->x_block;
    for (int32_t tap = 0; tap < conv->taps; tap++) {
        const int8_t *p = x + conv->tap_offsets[tap];
        int8x16_t v[4];
        for (int32_t pairs = conv->blocks / 2; pairs > 0; pairs--) {
            tersor_load_weights(v, 2 * halves, &w);
            step(acc, &p, stride, v, halves, quads);
            step(acc, &p, stride, v + halves, halves, quads);
            tersor_hold(v, 2 * halves);
        }
        if (conv->blocks % 2) {
            tersor_load_weights(v, halves, &w);
            step(acc, &p, stride, v, halves, quads);
        }
    }
}

TERSOR_INLINE void finish(int32x4_t acc[2][3][4], const float *scale, tersor_bounds bounds, int8_t *y, ptrdiff_t y_block,
                          int halves, int quads, int magic)
{
    TERSOR_UNROLL
    for (int h = 0; h < halves; h++)
        TERSOR_UNROLL
        for (int i = 0; i < quads; i++)
            vst1q_s8(y + h * y_block + 16 * i, tersor_narrow_4x4(acc[h][i], vld1q_f32(scale + 4 * h), bounds, magic));
}

/* Tiles of 4 * halves channels x 4 * quads pixels. */
TERSOR_INLINE void tiles(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y, ptrdiff_t y_block,
                         int32_t count, int halves, int quads)
{
    const int32_t channel = group * TERSOR_GROUP;
    const int8_t *const w = conv->weights + (ptrdiff_t)channel * conv->taps * conv->blocks * BLOCK;
    const float *const scale = conv->requantize.scale + channel;
    const tersor_bounds bounds = tersor_bounds_of(&conv->requantize);
    for (; count > 0; count--, x += 16 * quads, y += 16 * quads) {
        int32x4_t acc[2][3][4];
        start(acc, conv->bias + channel, halves, quads);
        accumulate(acc, conv, x, w, halves, quads);
        if (conv->requantize.magic)
            finish(acc, scale, *tersor_anew(&bounds), y, y_block, halves, quads, 1);
        else
            finish(acc, scale, *tersor_anew(&bounds), y, y_block, halves, quads, 0);
    }
}

TERSOR_DEFINE_TILE(tile_1_1, 1, 1)
TERSOR_DEFINE_TILE(tile_1_2, 1, 2)
TERSOR_DEFINE_TILE(tile_1_3, 1, 3)
TERSOR_DEFINE_TILE(tile_2_1, 2, 1)
TERSOR_DEFINE_TILE(tile_2_2, 2, 2)
TERSOR_DEFINE_TILE(tile_2_3, 2, 3)

void tersor_conv_dense_dotprod(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    static const tersor_tile whole[] = {{9, 12, tile_2_3}, {5, 8, tile_2_2}, {1, 4, tile_2_1}};
    static const tersor_tile half[] = {{9, 12, tile_1_3}, {5, 8, tile_1_2}, {1, 4, tile_1_1}};
    tersor_run_range(conv, x, y, range, whole, half, BLOCK);
}

#endif
