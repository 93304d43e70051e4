/* Requantization of accumulators in registers.
 *
 * Both forms end with float32 values near TERSOR_MAGIC, whose low 16 bits are the rounded number. Transposes of bytes are
 * done by the narrowing itself: trn1 takes the low halves of two registers and interleaves them. */
#ifndef TERSOR_REQUANTIZE_NEON_H
#define TERSOR_REQUANTIZE_NEON_H

#include <arm_neon.h>

#include "inline.h"

/* Bounds are kept relative to the zero point, which is added last, in 8 bits, where it cannot overflow any more. */
typedef struct {
    float32x4_t magic, low, high;
    int16x8_t min, max;
    int8x16_t zero_point;
} tersor_bounds;

TERSOR_INLINE tersor_bounds tersor_bounds_of(const tersor_requantize *r)
{
    const int32_t low = r->min - r->zero_point, high = r->max - r->zero_point;
    tersor_bounds bounds;
    bounds.magic = vdupq_n_f32(TERSOR_MAGIC);
    __asm__("" : "+w"(bounds.magic)); /* or subtracting it becomes adding a second constant */
    bounds.low = vdupq_n_f32((float)low);
    bounds.high = vdupq_n_f32((float)high);
    bounds.min = vdupq_n_s16((int16_t)low);
    bounds.max = vdupq_n_s16((int16_t)high);
    bounds.zero_point = vdupq_n_s8((int8_t)r->zero_point);
    return bounds;
}

/* The same place, of which the compiler does not know what it holds: it loads from there, where it would otherwise keep the
 * values in registers through the loop over the input, or store and load them around it. */
TERSOR_INLINE const tersor_bounds *tersor_anew(const tersor_bounds *bounds)
{
    __asm__("" : "+r"(bounds));
    return bounds;
}

/* One lane of `scale` for all, or (lane = -1) each its own. Assembly, as GCC copies a lane that is used more than once. */
TERSOR_INLINE float32x4_t tersor_times(float32x4_t value, float32x4_t scale, int lane)
{
    float32x4_t product;
    switch (lane) {
    case 0: __asm__("fmul %0.4s, %1.4s, %2.s[0]" : "=w"(product) : "w"(value), "w"(scale)); break;
    case 1: __asm__("fmul %0.4s, %1.4s, %2.s[1]" : "=w"(product) : "w"(value), "w"(scale)); break;
    case 2: __asm__("fmul %0.4s, %1.4s, %2.s[2]" : "=w"(product) : "w"(value), "w"(scale)); break;
    case 3: __asm__("fmul %0.4s, %1.4s, %2.s[3]" : "=w"(product) : "w"(value), "w"(scale)); break;
    default: product = vmulq_f32(value, scale); break;
    }
    return product;
}

/* Low 16 bits of each lane: round_half_even(acc * scale). The bounds are whole numbers, so the exact form may clamp before
 * it rounds, and has to: only a small number keeps its rounding in the sum with the magic constant. */
TERSOR_INLINE int16x8_t tersor_scaled(int32x4_t acc, float32x4_t scale, int lane, tersor_bounds b, int magic)
{
    float32x4_t value;
    if (magic) {
        value = tersor_times(vsubq_f32(vreinterpretq_f32_s32(acc), b.magic), scale, lane);
    } else {
        value = tersor_times(vcvtq_f32_s32(acc), scale, lane);
        value = vminq_f32(vmaxq_f32(value, b.low), b.high);
    }
    return vreinterpretq_s16_f32(vaddq_f32(value, b.magic));
}

TERSOR_INLINE int16x8_t tersor_clamped(int16x8_t value, tersor_bounds b)
{
    return vminq_s16(vmaxq_s16(value, b.min), b.max);
}

/* Four accumulators of 4 pixels, a channel each -> [pixel][4 channels]. */
TERSOR_INLINE int8x16_t tersor_narrow_4x4(const int32x4_t acc[4], float32x4_t scale, tersor_bounds b, int magic)
{
    int16x8_t v[4], even, odd;
    TERSOR_UNROLL
    for (int k = 0; k < 4; k++)
        v[k] = tersor_scaled(acc[k], scale, k, b, magic);
    even = tersor_clamped(vtrn1q_s16(v[0], v[2]), b);
    odd = tersor_clamped(vtrn1q_s16(v[1], v[3]), b);
    return vaddq_s8(vtrn1q_s8(vreinterpretq_s8_s16(even), vreinterpretq_s8_s16(odd)), b.zero_point);
}

/* Low bytes of sixteen 16-bit numbers, with the zero point. */
TERSOR_INLINE int8x16_t tersor_bytes(int16x8_t low, int16x8_t high, tersor_bounds b)
{
    return vaddq_s8(vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high)), b.zero_point);
}

#endif
