/* Sums, products, tables and conversions of single values, 16 at a time. */
#if defined(__aarch64__)

#include "planes.h"
#include "requantize_neon.h"

enum { REGISTER = 16 };

/* Sixteen bytes, of which the first `n` are there. */
TERSOR_INLINE int8x16_t load_part(const int8_t *p, int32_t n)
{
    int8_t part[REGISTER] = {0};
    memcpy(part, p, (size_t)n);
    return vld1q_s8(part);
}

TERSOR_INLINE void store_part(int8_t *p, int8x16_t v, int32_t n)
{
    int8_t part[REGISTER];
    vst1q_s8(part, v);
    memcpy(p, part, (size_t)n);
}

/* Lane group i (of 4) of q - zero_point, in 32 bits. */
TERSOR_INLINE int32x4_t centred(int8x16_t q, int8x8_t zero_point, int i)
{
    const int16x8_t half = vsubl_s8(i < 2 ? vget_low_s8(q) : vget_high_s8(q), zero_point);
    return i % 2 ? vmovl_high_s16(half) : vmovl_s16(vget_low_s16(half));
}

/* Values that are clamped already -> bytes, rounded half to even. */
TERSOR_INLINE int8x16_t rounded(const float32x4_t value[4], tersor_bounds b)
{
    int16x8_t v[4];
    TERSOR_UNROLL
    for (int i = 0; i < 4; i++)
        v[i] = vreinterpretq_s16_f32(vaddq_f32(value[i], b.magic));
    return tersor_bytes(vuzp1q_s16(v[0], v[1]), vuzp1q_s16(v[2], v[3]), b);
}

TERSOR_INLINE tersor_bounds bounds_of(int32_t zero_point, int32_t min, int32_t max)
{
    const tersor_requantize r = {.zero_point = zero_point, .min = min, .max = max};
    return tersor_bounds_of(&r);
}

typedef int8x16_t binary_function(const tersor_binary *binary, int8x16_t a, int8x16_t b, tersor_bounds bounds);

TERSOR_INLINE int8x16_t sum(const tersor_binary *binary, int8x16_t a, int8x16_t b, tersor_bounds bounds)
{
    const int8x8_t za = vdup_n_s8((int8_t)binary->a.zero_point), zb = vdup_n_s8((int8_t)binary->b.zero_point);
    const float32x4_t sy = vdupq_n_f32(binary->y.scale);
    float32x4_t v[4];
    TERSOR_UNROLL
    for (int i = 0; i < 4; i++) {
        const float32x4_t va = vmulq_n_f32(vcvtq_f32_s32(centred(a, za, i)), binary->a.scale);
        const float32x4_t vb = vmulq_n_f32(vcvtq_f32_s32(centred(b, zb, i)), binary->b.scale);
        v[i] = vminq_f32(vmaxq_f32(vdivq_f32(vaddq_f32(va, vb), sy), bounds.low), bounds.high);
    }
    return rounded(v, bounds);
}

/* High halves of (a - za) * a_factor + (b - zb) * b_factor, of 8 values. */
TERSOR_INLINE int16x8_t fixed_half(int16x8_t a, int16x8_t b, int32x4_t a_factor, int32x4_t b_factor)
{
    const int32x4_t low = vmlaq_s32(vmulq_s32(vmovl_s16(vget_low_s16(a)), a_factor), vmovl_s16(vget_low_s16(b)), b_factor);
    const int32x4_t high = vmlaq_s32(vmulq_s32(vmovl_high_s16(a), a_factor), vmovl_high_s16(b), b_factor);
    return vuzp2q_s16(vreinterpretq_s16_s32(low), vreinterpretq_s16_s32(high));
}

TERSOR_INLINE int8x16_t fixed_sum(const tersor_binary *binary, int8x16_t a, int8x16_t b, int shift)
{
    const int8x8_t za = vdup_n_s8((int8_t)binary->a.zero_point), zb = vdup_n_s8((int8_t)binary->b.zero_point);
    const int32x4_t fa = vdupq_n_s32(binary->a_factor), fb = vdupq_n_s32(binary->b_factor);
    const int16x8_t zy = vdupq_n_s16((int16_t)(binary->y.zero_point * (1 << shift)));
    const int16x8_t low = fixed_half(vsubl_s8(vget_low_s8(a), za), vsubl_s8(vget_low_s8(b), zb), fa, fb);
    const int16x8_t high = fixed_half(vsubl_s8(vget_high_s8(a), za), vsubl_s8(vget_high_s8(b), zb), fa, fb);
    const int16x8_t u = vqaddq_s16(low, zy), v = vqaddq_s16(high, zy);
    int8x16_t q;
    switch (shift) {
    case 2: q = vqrshrn_high_n_s16(vqrshrn_n_s16(u, 2), v, 2); break;
    case 3: q = vqrshrn_high_n_s16(vqrshrn_n_s16(u, 3), v, 3); break;
    case 4: q = vqrshrn_high_n_s16(vqrshrn_n_s16(u, 4), v, 4); break;
    case 5: q = vqrshrn_high_n_s16(vqrshrn_n_s16(u, 5), v, 5); break;
    default: q = vqrshrn_high_n_s16(vqrshrn_n_s16(u, 6), v, 6); break;
    }
    return vminq_s8(vmaxq_s8(q, vdupq_n_s8((int8_t)binary->min)), vdupq_n_s8((int8_t)binary->max));
}

#define FIXED(SHIFT)                                                                                                   \
    TERSOR_INLINE int8x16_t fixed_##SHIFT(const tersor_binary *binary, int8x16_t a, int8x16_t b, tersor_bounds bounds) \
    {                                                                                                                  \
        (void)bounds;                                                                                                  \
        return fixed_sum(binary, a, b, SHIFT);                                                                         \
    }
FIXED(2)
FIXED(3)
FIXED(4)
FIXED(5)
FIXED(6)

TERSOR_INLINE int8x16_t product(const tersor_binary *binary, int8x16_t a, int8x16_t b, tersor_bounds bounds)
{
    const int8x8_t za = vdup_n_s8((int8_t)binary->a.zero_point), zb = vdup_n_s8((int8_t)binary->b.zero_point);
    float32x4_t v[4];
    TERSOR_UNROLL
    for (int i = 0; i < 4; i++) {
        const int32x4_t acc = vmulq_s32(centred(a, za, i), centred(b, zb, i));
        const float32x4_t value = vmulq_n_f32(vcvtq_f32_s32(acc), binary->multiplier);
        v[i] = vminq_f32(vmaxq_f32(value, bounds.low), bounds.high);
    }
    return rounded(v, bounds);
}

TERSOR_INLINE void run(const tersor_binary *binary, const int8_t *a, const int8_t *b, int8_t *y, int32_t row, int32_t end,
                       binary_function *function)
{
    const tersor_bounds bounds = bounds_of(binary->y.zero_point, binary->min, binary->max);
    while (row < end) {
        const tersor_rows r = tersor_rows_at(&binary->planes, row, end);
        const int8_t *pa = a + r.a, *pb = b + r.b;
        int8_t *py = y + r.y;
        int32_t n = r.bytes;
        for (; n >= 2 * REGISTER; n -= 2 * REGISTER, pa += 2 * REGISTER, pb += 2 * REGISTER, py += 2 * REGISTER) {
            vst1q_s8(py, function(binary, vld1q_s8(pa), vld1q_s8(pb), bounds));
            vst1q_s8(py + REGISTER, function(binary, vld1q_s8(pa + REGISTER), vld1q_s8(pb + REGISTER), bounds));
        }
        if (n >= REGISTER) {
            vst1q_s8(py, function(binary, vld1q_s8(pa), vld1q_s8(pb), bounds));
            n -= REGISTER, pa += REGISTER, pb += REGISTER, py += REGISTER;
        }
        if (n > 0)
            store_part(py, function(binary, load_part(pa, n), load_part(pb, n), bounds), n);
        row += r.rows;
    }
}

void tersor_add_neon(const tersor_binary *binary, const int8_t *a, const int8_t *b, int8_t *y, int32_t row_begin,
                     int32_t row_end)
{
    switch (binary->shift) {
    case 2: run(binary, a, b, y, row_begin, row_end, fixed_2); break;
    case 3: run(binary, a, b, y, row_begin, row_end, fixed_3); break;
    case 4: run(binary, a, b, y, row_begin, row_end, fixed_4); break;
    case 5: run(binary, a, b, y, row_begin, row_end, fixed_5); break;
    case 6: run(binary, a, b, y, row_begin, row_end, fixed_6); break;
    default: run(binary, a, b, y, row_begin, row_end, sum); break;
    }
}

void tersor_mul_neon(const tersor_binary *binary, const int8_t *a, const int8_t *b, int8_t *y, int32_t row_begin,
                     int32_t row_end)
{
    run(binary, a, b, y, row_begin, row_end, product);
}

/* tbl takes 64 entries and gives 0 beyond them; tbx leaves what it finds. */
TERSOR_INLINE int8x16_t looked_up(const int8x16x4_t table[4], int8x16_t a)
{
    uint8x16_t at = vreinterpretq_u8_s8(a);
    int8x16_t y = vqtbl4q_s8(table[0], at);
    TERSOR_UNROLL
    for (int i = 1; i < 4; i++) {
        at = vsubq_u8(at, vdupq_n_u8(64));
        y = vqtbx4q_s8(y, table[i], at);
    }
    return y;
}

void tersor_lookup_neon(const tersor_planes *planes, const int8_t *table, const int8_t *a, int8_t *y, int32_t row_begin,
                        int32_t row_end)
{
    const int8x16x4_t parts[4] = {vld1q_s8_x4(table), vld1q_s8_x4(table + 64), vld1q_s8_x4(table + 128),
                                  vld1q_s8_x4(table + 192)};
    for (int32_t row = row_begin; row < row_end;) {
        const tersor_rows r = tersor_rows_at(planes, row, row_end);
        const int8_t *pa = a + r.a;
        int8_t *py = y + r.y;
        int32_t n = r.bytes;
        for (; n >= REGISTER; n -= REGISTER, pa += REGISTER, py += REGISTER)
            vst1q_s8(py, looked_up(parts, vld1q_s8(pa)));
        if (n > 0)
            store_part(py, looked_up(parts, load_part(pa, n)), n);
        row += r.rows;
    }
}

/* maxnm and minnm give the number where the other is none, so not-a-number becomes the lower bound. */
TERSOR_INLINE int8x16_t quantized(const float *x, float32x4_t scale, tersor_bounds b)
{
    float32x4_t v[4];
    TERSOR_UNROLL
    for (int i = 0; i < 4; i++)
        v[i] = vminnmq_f32(vmaxnmq_f32(vdivq_f32(vld1q_f32(x + 4 * i), scale), b.low), b.high);
    return rounded(v, b);
}

void tersor_quantize_neon(const float *x, int8_t *y, int32_t count, tersor_grid grid, int32_t min, int32_t max)
{
    const tersor_bounds bounds = bounds_of(grid.zero_point, min, max);
    const float32x4_t scale = vdupq_n_f32(grid.scale);
    for (; count >= REGISTER; count -= REGISTER, x += REGISTER, y += REGISTER)
        vst1q_s8(y, quantized(x, scale, bounds));
    if (count > 0) {
        float part[REGISTER] = {0};
        memcpy(part, x, (size_t)count * sizeof *x);
        store_part(y, quantized(part, scale, bounds), count);
    }
}

TERSOR_INLINE void dequantized(float *y, int8x16_t x, int8x8_t zero_point, float scale)
{
    TERSOR_UNROLL
    for (int i = 0; i < 4; i++)
        vst1q_f32(y + 4 * i, vmulq_n_f32(vcvtq_f32_s32(centred(x, zero_point, i)), scale));
}

void tersor_dequantize_neon(const int8_t *x, float *y, int32_t count, tersor_grid grid)
{
    const int8x8_t zero_point = vdup_n_s8((int8_t)grid.zero_point);
    for (; count >= REGISTER; count -= REGISTER, x += REGISTER, y += REGISTER)
        dequantized(y, vld1q_s8(x), zero_point, grid.scale);
    if (count > 0) {
        float part[REGISTER];
        dequantized(part, load_part(x, count), zero_point, grid.scale);
        memcpy(y, part, (size_t)count * sizeof *y);
    }
}

#endif
