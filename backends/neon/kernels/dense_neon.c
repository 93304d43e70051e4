/* Dense convolution with baseline NEON: tiles of 4 channels x 8 pixels.
 *
 * SMULL and SMLAL multiply in 16 bits: two products fit, as weights are at most 127 (2 * 127 * 128 < 2^15). SADALP then adds
 * neighbouring lanes to 32 bits. So a pair of input blocks takes 3 instructions for 16 products, where SMLAL to 32 bits
 * takes 4 and widens first. An accumulator holds [2 pixels][2 halves of the sum]. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "neon_loads.h"
#include "requantize_neon.h"
#include "tiling.h"

enum { BLOCK = 4 };

/* Two input blocks, of one channel by 4 pixels. */
TERSOR_INLINE void add_two(int32x4_t acc[2], int8x16_t x0, int8x16_t w0, int8x16_t x1, int8x16_t w1)
{
    const int16x8_t low = vmull_s8(vget_low_s8(x0), vget_low_s8(w0)), high = vmull_high_s8(x0, w0);
    acc[0] = vpadalq_s16(acc[0], vmlal_s8(low, vget_low_s8(x1), vget_low_s8(w1)));
    acc[1] = vpadalq_s16(acc[1], vmlal_high_s8(high, x1, w1));
}

TERSOR_INLINE void add_one(int32x4_t acc[2], int8x16_t x, int8x16_t w)
{
    acc[0] = vpadalq_s16(acc[0], vmull_s8(vget_low_s8(x), vget_low_s8(w)));
    acc[1] = vpadalq_s16(acc[1], vmull_high_s8(x, w));
}

TERSOR_INLINE void accumulate(int32x4_t acc[4][4], const tersor_conv *conv, const int8_t *x, const int8_t *w, int quads)
{
    const ptrdiff_t stride = conv->x_block;
    int8x16_t v[2], w0[4], v1[2], w1[4];
    for (int32_t tap = 0; tap < conv->taps; tap++) {
        const int8_t *p = x + conv->tap_offsets[tap];
        for (int32_t twice = conv->blocks / 2; twice > 0; twice--) {
            tersor_load_pixels(v, quads, &p, stride);
            tersor_repeat_weights(w0, &w);
            tersor_load_more_pixels(v1, quads, &p, stride);
            tersor_repeat_more_weights(w1, &w);
            TERSOR_UNROLL
            for (int k = 0; k < 4; k++) {
                TERSOR_UNROLL
                for (int i = 0; i < quads; i++)
                    add_two(acc[k] + 2 * i, v[i], w0[k], v1[i], w1[k]);
                if (k < 3)
                    tersor_order(&acc[k][2 * quads - 1], &w0[k + 1]);
            }
        }
        if (conv->blocks % 2) {
            tersor_load_pixels(v, quads, &p, stride);
            tersor_repeat_weights(w0, &w);
            TERSOR_UNROLL
            for (int k = 0; k < 4; k++)
                TERSOR_UNROLL
                for (int i = 0; i < quads; i++)
                    add_one(acc[k] + 2 * i, v[i], w0[k]);
        }
    }
}

TERSOR_INLINE void finish(int32x4_t acc[4][4], const int32_t *bias, float32x4_t scale, tersor_bounds bounds, int8_t *y,
                          int quads, int magic)
{
    TERSOR_UNROLL
    for (int i = 0; i < quads; i++) {
        int32x4_t sum[4];
        TERSOR_UNROLL
        for (int k = 0; k < 4; k++)
            sum[k] = vaddq_s32(vpaddq_s32(acc[k][2 * i], acc[k][2 * i + 1]), vdupq_n_s32(bias[k]));
        vst1q_s8(y + 16 * i, tersor_narrow_4x4(sum, scale, bounds, magic));
    }
}

/* 4 channels x 4 * quads pixels. */
TERSOR_INLINE void four(const tersor_conv *conv, int32_t channel, const int8_t *x, int8_t *y, const tersor_bounds *bounds,
                        int quads)
{
    int32x4_t acc[4][4];
    TERSOR_UNROLL
    for (int k = 0; k < 4; k++)
        TERSOR_UNROLL
        for (int i = 0; i < 2 * quads; i++)
            acc[k][i] = vdupq_n_s32(0);
    accumulate(acc, conv, x, conv->weights + (ptrdiff_t)channel * conv->taps * conv->blocks * BLOCK, quads);
    const float32x4_t scale = vld1q_f32(conv->requantize.scale + channel);
    if (conv->requantize.magic)
        finish(acc, conv->bias + channel, scale, *tersor_anew(bounds), y, quads, 1);
    else
        finish(acc, conv->bias + channel, scale, *tersor_anew(bounds), y, quads, 0);
}

TERSOR_INLINE void tiles(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y, ptrdiff_t y_block,
                         int32_t count, int quads)
{
    const tersor_bounds bounds = tersor_bounds_of(&conv->requantize);
    const int32_t first = group * TERSOR_GROUP, last = first + (conv->channels - first > 4 ? 4 : 0);
    for (int32_t channel = first; channel <= last; channel += 4, y += y_block)
        for (int32_t i = 0; i < count; i++)
            four(conv, channel, x + 16 * quads * i, y + 16 * quads * i, &bounds, quads);
}

TERSOR_DEFINE_TILE(tile_1, 1)
TERSOR_DEFINE_TILE(tile_2, 2)

void tersor_conv_dense_neon(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    static const tersor_tile sizes[] = {{5, 8, tile_2}, {1, 4, tile_1}};
    tersor_run_range(conv, x, y, range, sizes, sizes, BLOCK);
}

#endif
