/* Registers of 16 bytes: parts of one at the end of a row, and what single values go through. */
#ifndef TERSOR_BYTES_NEON_H
#define TERSOR_BYTES_NEON_H

#include "requantize_neon.h"

enum { TERSOR_REGISTER = 16 };

/* 0 to 7 bytes in the low end. Four and more are two loads that may overlap. */
TERSOR_INLINE uint64_t tersor_load_few(const int8_t *p, int32_t n)
{
    uint64_t few = 0;
    if (n >= 4)
        few = (uint32_t)tersor_load32(p) | (uint64_t)(uint32_t)tersor_load32(p + n - 4) << (8 * (n - 4));
    else
        for (int32_t i = 0; i < n; i++)
            few |= (uint64_t)(uint8_t)p[i] << (8 * i);
    return few;
}

TERSOR_INLINE void tersor_store_few(int8_t *p, uint64_t few, int32_t n)
{
    const uint32_t low = (uint32_t)few, high = (uint32_t)(n >= 4 ? few >> (8 * (n - 4)) : 0);
    if (n >= 4)
        memcpy(p, &low, 4), memcpy(p + n - 4, &high, 4);
    else
        for (int32_t i = 0; i < n; i++, few >>= 8)
            p[i] = (int8_t)few;
}

/* Sixteen bytes, of which the first `n`, 1 to 15, are there; the others are zero. */
TERSOR_INLINE int8x16_t tersor_load_part(const int8_t *p, int32_t n)
{
    const uint64_t low = n >= 8 ? (uint64_t)tersor_load64(p) : tersor_load_few(p, n);
    const uint64_t high = n >= 8 ? tersor_load_few(p + 8, n - 8) : 0;
    return vreinterpretq_s8_u64(vcombine_u64(vcreate_u64(low), vcreate_u64(high)));
}

TERSOR_INLINE void tersor_store_part(int8_t *p, int8x16_t v, int32_t n)
{
    const uint64x2_t halves = vreinterpretq_u64_s8(v);
    if (n >= 8)
        vst1_s8(p, vget_low_s8(v)), tersor_store_few(p + 8, vgetq_lane_u64(halves, 1), n - 8);
    else
        tersor_store_few(p, vgetq_lane_u64(halves, 0), n);
}

/* Lane group i (of 4) of q - zero_point, in 32 bits. */
TERSOR_INLINE int32x4_t tersor_centred(int8x16_t q, int8x8_t zero_point, int i)
{
    const int16x8_t half = vsubl_s8(i < 2 ? vget_low_s8(q) : vget_high_s8(q), zero_point);
    return i % 2 ? vmovl_high_s16(half) : vmovl_s16(vget_low_s16(half));
}

/* Values that are clamped already -> bytes, rounded half to even. */
TERSOR_INLINE int8x16_t tersor_rounded_bytes(const float32x4_t value[4], tersor_bounds b)
{
    int16x8_t v[4];
    TERSOR_UNROLL
    for (int i = 0; i < 4; i++)
        v[i] = vreinterpretq_s16_f32(vaddq_f32(value[i], b.magic));
    return tersor_bytes(vuzp1q_s16(v[0], v[1]), vuzp1q_s16(v[2], v[3]), b);
}

#endif
