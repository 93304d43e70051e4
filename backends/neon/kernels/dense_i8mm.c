/* Dense convolution with SMMLA: tiles of 8 channels x 8 pixels, 16 accumulators of [2 pixels][2 channels], so that a step
 * of 8 input channels is 16 SMMLA to 2 loads. Channels are paired 0 4, 1 5, 2 6, 3 7, because the two narrowing transposes
 * then put them in order. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "i8mm.h"

enum { BLOCK = 8 };

/* acc[2 pixels][2 channels] += one input block. */
TERSOR_INLINE void step(int32x4_t acc[4][4], const int8_t **x, ptrdiff_t stride, const int8_t **w, int pairs)
{
    int8x16_t v[4], u[4];
    tersor_load_weights(u, 4, w);
    tersor_load_pixels(v, pairs, x, stride);
    TERSOR_UNROLL
    for (int i = 0; i < pairs; i++)
        TERSOR_UNROLL
        for (int k = 0; k < 4; k++)
            acc[i][k] = vmmlaq_s32(acc[i][k], v[i], u[k]);
}

TERSOR_INLINE void accumulate(int32x4_t acc[4][4], const tersor_conv *conv, const int8_t *x, const int8_t *w, int pairs)
{
    const ptrdiff_t stride = conv->x_block;
    for (int32_t tap = 0; tap < conv->taps; tap++) {
        const int8_t *p = x + conv->tap_offsets[tap];
        for (int32_t twice = conv->blocks / 2; twice > 0; twice--) {
            step(acc, &p, stride, &w, pairs);
            step(acc, &p, stride, &w, pairs);
        }
        if (conv->blocks % 2)
            step(acc, &p, stride, &w, pairs);
    }
}

TERSOR_INLINE void finish(int32x4_t acc[4][4], const float *scale, tersor_bounds b, int8_t *y, int pairs, int magic)
{
    TERSOR_UNROLL
    for (int i = 0; i < pairs; i++) {
        int16x8_t v[4];
        TERSOR_UNROLL
        for (int k = 0; k < 4; k++)
            v[k] = tersor_scaled(acc[i][k], tersor_pair_f32(vld1q_f32(scale + k / 2 * 4), k % 2), -1, b, magic);
        const int16x8_t even = tersor_clamped(vtrn1q_s16(v[0], v[2]), b), odd = tersor_clamped(vtrn1q_s16(v[1], v[3]), b);
        vst1q_s8(y + 16 * i,
                 vaddq_s8(vtrn1q_s8(vreinterpretq_s8_s16(even), vreinterpretq_s8_s16(odd)), b.zero_point));
    }
}

/* 0 1 2 3 4 5 6 7 -> 0 4 1 5 2 6 3 7, of 32 bits each. */
TERSOR_INLINE void in_pairs(void *to, const void *from)
{
    const int8_t *p = from;
    const int32x4_t low = vreinterpretq_s32_s8(vld1q_s8(p)), high = vreinterpretq_s32_s8(vld1q_s8(p + 16));
    vst1q_s8(to, vreinterpretq_s8_s32(vzip1q_s32(low, high)));
    vst1q_s8((int8_t *)to + 16, vreinterpretq_s8_s32(vzip2q_s32(low, high)));
}

/* Tiles of 8 channels x 2 * pairs pixels. */
TERSOR_INLINE void tiles(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y, ptrdiff_t y_block,
                         int32_t count, int pairs)
{
    const int32_t channel = group * TERSOR_GROUP;
    const int8_t *const w = conv->weights + (ptrdiff_t)channel * conv->taps * conv->blocks * BLOCK;
    const tersor_bounds bounds = tersor_bounds_of(&conv->requantize);
    int32_t bias[8];
    float scale[8];
    in_pairs(bias, conv->bias + channel);
    in_pairs(scale, conv->requantize.scale + channel);
    (void)y_block;
    for (; count > 0; count--, x += 16 * pairs, y += 16 * pairs) {
        int32x4_t acc[4][4];
        TERSOR_UNROLL
        for (int i = 0; i < pairs; i++)
            TERSOR_UNROLL
            for (int k = 0; k < 4; k++)
                acc[i][k] = tersor_pair_s32(vld1q_s32(bias + k / 2 * 4), k % 2);
        accumulate(acc, conv, x, w, pairs);
        if (conv->requantize.magic)
            finish(acc, scale, *tersor_anew(&bounds), y, pairs, 1);
        else
            finish(acc, scale, *tersor_anew(&bounds), y, pairs, 0);
    }
}

TERSOR_DEFINE_TILE(tile_2, 2)
TERSOR_DEFINE_TILE(tile_4, 4)

void tersor_conv_dense_i8mm(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    static const tersor_tile sizes[] = {{5, 8, tile_4}, {1, 4, tile_2}};
    tersor_run_range(conv, x, y, range, sizes, sizes, BLOCK);
}

#endif
