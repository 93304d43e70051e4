/* Linear layers on one row of input, with baseline NEON: as dense_neon.c, with the roles of pixels and channels exchanged. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "requantize_neon.h"

enum { BLOCK = 4 };

TERSOR_INLINE int8x16_t repeated(const int8_t *x)
{
    return vreinterpretq_s8_s32(vdupq_n_s32(tersor_load32(x)));
}

/* acc[2 channels][2 halves of the sum] += 4 channels x `blocks` input blocks. */
TERSOR_INLINE void accumulate(int32x4_t acc[2], const int8_t *x, const int8_t *w, int32_t blocks)
{
    for (; blocks >= 2; blocks -= 2, x += 2 * BLOCK, w += 32) {
        const int8x16_t x0 = repeated(x), x1 = repeated(x + BLOCK), w0 = vld1q_s8(w), w1 = vld1q_s8(w + 16);
        const int16x8_t low = vmull_s8(vget_low_s8(w0), vget_low_s8(x0)), high = vmull_high_s8(w0, x0);
        acc[0] = vpadalq_s16(acc[0], vmlal_s8(low, vget_low_s8(w1), vget_low_s8(x1)));
        acc[1] = vpadalq_s16(acc[1], vmlal_high_s8(high, w1, x1));
    }
    if (blocks) {
        const int8x16_t v = repeated(x), u = vld1q_s8(w);
        acc[0] = vpadalq_s16(acc[0], vmull_s8(vget_low_s8(u), vget_low_s8(v)));
        acc[1] = vpadalq_s16(acc[1], vmull_high_s8(u, v));
    }
}

static void four(const tersor_conv *conv, int32_t channel, const int8_t *x, int8_t *y)
{
    const tersor_bounds b = tersor_bounds_of(&conv->requantize);
    const float32x4_t m = vld1q_f32(conv->requantize.scale + channel);
    int32x4_t acc[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
    accumulate(acc, x, conv->weights + (ptrdiff_t)channel * conv->blocks * BLOCK, conv->blocks);
    const int32x4_t sum = vaddq_s32(vpaddq_s32(acc[0], acc[1]), vld1q_s32(conv->bias + channel));
    const int16x8_t v = conv->requantize.magic ? tersor_scaled(sum, m, -1, b, 1) : tersor_scaled(sum, m, -1, b, 0);
    const int16x8_t clamped = tersor_clamped(vuzp1q_s16(v, v), b);
    vst1q_lane_s32((int32_t *)(void *)y, vreinterpretq_s32_s8(tersor_bytes(clamped, clamped, b)), 0);
}

void tersor_linear_dense_neon(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    if (range.pixel_begin >= range.pixel_end)
        return;
    const int32_t end = range.group_end * TERSOR_GROUP;
    for (int32_t channel = range.group_begin * TERSOR_GROUP; channel < end && channel < conv->channels; channel += BLOCK)
        four(conv, channel, x, y + (ptrdiff_t)(channel / BLOCK) * conv->y_block);
}

#endif
