/* Depthwise convolution. A register is 16 bytes of neighbouring channels and pixels, whatever the block, and the products of
 * two taps are added in 16 bits (2 * 127 * 128 < 2^15) before they are widened. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "requantize_neon.h"
#include "tiling.h"

/* acc[register][4 values of it]. */
TERSOR_INLINE void widen(int32x4_t acc[4], int16x8_t low, int16x8_t high)
{
    acc[0] = vaddw_s16(acc[0], vget_low_s16(low));
    acc[1] = vaddw_high_s16(acc[1], low);
    acc[2] = vaddw_s16(acc[2], vget_low_s16(high));
    acc[3] = vaddw_high_s16(acc[3], high);
}

TERSOR_INLINE void add_two(int32x4_t acc[4][4], const int8_t *x0, int8x16_t w0, const int8_t *x1, int8x16_t w1, int n)
{
    TERSOR_UNROLL
    for (int i = 0; i < n; i++) {
        const int8x16_t a = vld1q_s8(x0 + 16 * i), b = vld1q_s8(x1 + 16 * i);
        const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(w0)), high = vmull_high_s8(a, w0);
        widen(acc[i], vmlal_s8(low, vget_low_s8(b), vget_low_s8(w1)), vmlal_high_s8(high, b, w1));
    }
}

TERSOR_INLINE void add_one(int32x4_t acc[4][4], const int8_t *x, int8x16_t w, int n)
{
    TERSOR_UNROLL
    for (int i = 0; i < n; i++) {
        const int8x16_t a = vld1q_s8(x + 16 * i);
        widen(acc[i], vmull_s8(vget_low_s8(a), vget_low_s8(w)), vmull_high_s8(a, w));
    }
}

/* The weights of one tap, again and again through a register. */
TERSOR_INLINE int8x16_t repeated(const int8_t *w, int block)
{
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(tersor_load32(w)));
    const int8x8_t eight = block == 8 ? vld1_s8(w) : vget_low_s8(four);
    return vcombine_s8(eight, eight);
}

TERSOR_INLINE void finish(int32x4_t acc[4][4], const float *scale, tersor_bounds b, int8_t *y, int block, int n, int magic)
{
    TERSOR_UNROLL
    for (int i = 0; i < n; i++) {
        int16x8_t v[4];
        TERSOR_UNROLL
        for (int j = 0; j < 4; j++)
            v[j] = tersor_scaled(acc[i][j], vld1q_f32(scale + (block == 8 ? j % 2 * 4 : 0)), -1, b, magic);
        vst1q_s8(y + 16 * i, tersor_bytes(tersor_clamped(vuzp1q_s16(v[0], v[1]), b),
                                          tersor_clamped(vuzp1q_s16(v[2], v[3]), b), b));
    }
}

/* One block of channels x n registers. */
TERSOR_INLINE void tile(const tersor_conv *conv, int32_t channel, const int8_t *x, int8_t *y, const tersor_bounds *bounds,
                        int block, int n)
{
    int32x4_t acc[4][4];
    const int8_t *w = conv->weights + (ptrdiff_t)channel * conv->taps;
    const int32_t *taps = conv->tap_offsets, *const bias = conv->bias + channel;
    TERSOR_UNROLL
    for (int i = 0; i < n; i++)
        TERSOR_UNROLL
        for (int j = 0; j < 4; j++)
            acc[i][j] = vld1q_s32(bias + (block == 8 ? j % 2 * 4 : 0));
    for (int32_t pairs = conv->taps / 2; pairs > 0; pairs--, taps += 2, w += 2 * block)
        add_two(acc, x + taps[0], repeated(w, block), x + taps[1], repeated(w + block, block), n);
    if (conv->taps % 2)
        add_one(acc, x + *taps, repeated(w, block), n);
    if (conv->requantize.magic)
        finish(acc, conv->requantize.scale + channel, *tersor_anew(bounds), y, block, n, 1);
    else
        finish(acc, conv->requantize.scale + channel, *tersor_anew(bounds), y, block, n, 0);
}

/* A depthwise convolution reads as many channels as it writes, so the input moves with the output. */
TERSOR_INLINE void tiles(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y, ptrdiff_t y_block,
                         int32_t count, int block, int n)
{
    const tersor_bounds bounds = tersor_bounds_of(&conv->requantize);
    const int32_t first = group * TERSOR_GROUP, left = conv->channels - first;
    for (int32_t c = 0; c < TERSOR_GROUP && c < left; c += block, y += y_block) {
        const int8_t *const in = x + (ptrdiff_t)((first + c) / block) * conv->x_block;
        for (int32_t i = 0; i < count; i++)
            tile(conv, first + c, in + 16 * n * i, y + 16 * n * i, &bounds, block, n);
    }
}

TERSOR_DEFINE_TILE(tile_4_1, 4, 1)
TERSOR_DEFINE_TILE(tile_4_4, 4, 4)
TERSOR_DEFINE_TILE(tile_8_1, 8, 1)
TERSOR_DEFINE_TILE(tile_8_4, 8, 4)

void tersor_depthwise_c4_neon(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    static const tersor_tile sizes[] = {{9, 16, tile_4_4}, {1, 4, tile_4_1}};
    tersor_run_range(conv, x, y, range, sizes, sizes, 4);
}

void tersor_depthwise_c8_neon(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    static const tersor_tile sizes[] = {{5, 8, tile_8_4}, {1, 2, tile_8_1}};
    tersor_run_range(conv, x, y, range, sizes, sizes, 8);
}

#endif
