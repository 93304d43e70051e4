/* Linear layers on one row of input, with SDOT: the roles of pixels and channels are exchanged, so that an accumulator holds 4
 * output channels, and the weights of the convolution kernels serve as they are. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "dotprod.h"

enum { BLOCK = 4, RECORD = 4 + 16 };

/* 4 channels in order. */
TERSOR_INLINE void store(int8_t *y, int32x4_t acc, const float *scale, const tersor_requantize *requantize)
{
    const tersor_bounds b = tersor_bounds_of(requantize);
    const float32x4_t m = vld1q_f32(scale);
    const int16x8_t v = requantize->magic ? tersor_scaled(acc, m, -1, b, 1) : tersor_scaled(acc, m, -1, b, 0);
    const int16x8_t clamped = tersor_clamped(vuzp1q_s16(v, v), b);
    vst1q_lane_s32((int32_t *)(void *)y, vreinterpretq_s32_s8(tersor_bytes(clamped, clamped, b)), 0);
}

/* acc[even or odd block][4 channels]: four chains, as one SDOT waits for the one before it. */
TERSOR_INLINE void accumulate(int32x4_t acc[2][2], const tersor_conv *conv, const int8_t *x, const int8_t *w, int halves)
{
    int32_t blocks = conv->blocks;
    for (; blocks >= 4; blocks -= 4, x += 16) {
        const int8x16_t v = vld1q_s8(x);
        TERSOR_UNROLL
        for (int first = 0; first < 4 * halves; first += 4, w += 64) {
            const int8x16x4_t u = vld1q_s8_x4(w);
            TERSOR_UNROLL
            for (int i = 0; i < 4; i++) {
                const int b = (first + i) / halves, h = (first + i) % halves;
                acc[b % 2][h] = tersor_dot(acc[b % 2][h], u.val[i], v, b);
            }
        }
    }
    for (; blocks > 0; blocks--, x += BLOCK) {
        const int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(tersor_load32(x)));
        TERSOR_UNROLL
        for (int h = 0; h < halves; h++, w += 16)
            acc[0][h] = tersor_dot(acc[0][h], vld1q_s8(w), v, 0);
    }
}

TERSOR_INLINE void group_of(const tersor_conv *conv, int32_t channel, const int8_t *x, int8_t *y, int halves)
{
    int32x4_t acc[2][2];
    for (int h = 0; h < halves; h++)
        acc[0][h] = vld1q_s32(conv->bias + channel + 4 * h), acc[1][h] = vdupq_n_s32(0);
    accumulate(acc, conv, x, conv->weights + (ptrdiff_t)channel * conv->blocks * BLOCK, halves);
    for (int h = 0; h < halves; h++)
        store(y + (ptrdiff_t)h * conv->y_block, vaddq_s32(acc[0][h], acc[1][h]),
              conv->requantize.scale + channel + 4 * h, &conv->requantize);
}

void tersor_linear_dense_dotprod(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    if (range.pixel_begin >= range.pixel_end)
        return;
    for (int32_t group = range.group_begin; group < range.group_end; group++) {
        const int32_t channel = group * TERSOR_GROUP;
        int8_t *const out = y + (ptrdiff_t)group * (TERSOR_GROUP / BLOCK) * conv->y_block;
        if (conv->channels - channel > 4)
            group_of(conv, channel, x, out, 2);
        else
            group_of(conv, channel, x, out, 1);
    }
}

void tersor_linear_4x4_dotprod(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    if (range.pixel_begin >= range.pixel_end)
        return;
    for (int32_t group = range.group_begin; group < range.group_end; group++) {
        const int8_t *stream = conv->weights + conv->group_starts[group];
        for (int32_t h = 0; h < 2 && group * TERSOR_GROUP + 4 * h < conv->channels; h++) {
            const int32_t row = group * (TERSOR_GROUP / BLOCK) + h;
            int32x4_t acc = vld1q_s32(conv->bias + 4 * row);
            for (int32_t count = conv->block_counts[row]; count > 0; count--, stream += RECORD) {
                const int32_t four = tersor_load32(x + tersor_load32(stream));
                acc = vdotq_s32(acc, vld1q_s8(stream + 4), vreinterpretq_s8_s32(vdupq_n_s32(four)));
            }
            store(y + (ptrdiff_t)row * conv->y_block, acc, conv->requantize.scale + 4 * row, &conv->requantize);
        }
    }
}

#endif
