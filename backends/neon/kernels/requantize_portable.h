/* Requantization of one accumulator, in portable C. */
#ifndef TERSOR_REQUANTIZE_PORTABLE_H
#define TERSOR_REQUANTIZE_PORTABLE_H

#include "inline.h"

/* clamp(round_half_even(value) + zero_point, min, max). The bounds are whole numbers, so clamping first is the same; then
 * the value is small, and the sum with the magic constant rounds it. No rounding mode or library function is involved. */
TERSOR_INLINE int8_t tersor_rounded(float value, int32_t zero_point, int32_t min, int32_t max)
{
    const float low = (float)(min - zero_point), high = (float)(max - zero_point);
    const float not_low = value > low ? value : low; /* in this order, not-a-number becomes the lower bound */
    const float clamped = not_low < high ? not_low : high;
    const float shifted = clamped + TERSOR_MAGIC;
    return (int8_t)((int32_t)(shifted - TERSOR_MAGIC) + zero_point);
}

TERSOR_INLINE int8_t tersor_requantized(int32_t acc, int32_t channel, const tersor_requantize *r)
{
    const float scaled = (float)acc * r->scale[channel];
    return tersor_rounded(scaled, r->zero_point, r->min, r->max);
}

/* The bias without the magic constant that it may hold. */
TERSOR_INLINE int32_t tersor_plain_bias(const tersor_conv *conv, int32_t channel)
{
    return conv->requantize.magic ? conv->bias[channel] - TERSOR_MAGIC_BITS : conv->bias[channel];
}

#endif
