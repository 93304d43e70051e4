/* Products, tables and conversions of single values, 16 at a time. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "bytes_neon.h"
#include "planes.h"

TERSOR_INLINE tersor_bounds bounds_of(int32_t zero_point, int32_t min, int32_t max)
{
    const tersor_requantize r = {.zero_point = zero_point, .min = min, .max = max};
    return tersor_bounds_of(&r);
}

TERSOR_INLINE int8x16_t product(int8x16_t a, int8x16_t b, int8x8_t za, int8x8_t zb, float multiplier, tersor_bounds bounds)
{
    float32x4_t v[4];
    TERSOR_UNROLL
    for (int i = 0; i < 4; i++) {
        const int32x4_t acc = vmulq_s32(tersor_centred(a, za, i), tersor_centred(b, zb, i));
        v[i] = vminq_f32(vmaxq_f32(vmulq_n_f32(vcvtq_f32_s32(acc), multiplier), bounds.low), bounds.high);
    }
    return tersor_rounded_bytes(v, bounds);
}

void tersor_mul_neon(const tersor_binary *binary, const int8_t *a, const int8_t *b, int8_t *y, int32_t row_begin,
                     int32_t row_end)
{
    const tersor_bounds bounds = bounds_of(binary->y.zero_point, binary->min, binary->max);
    const int8x8_t za = vdup_n_s8((int8_t)binary->a.zero_point), zb = vdup_n_s8((int8_t)binary->b.zero_point);
    const float multiplier = binary->multiplier;
    for (int32_t row = row_begin; row < row_end;) {
        const tersor_rows r = tersor_rows_at(&binary->planes, row, row_end);
        const int8_t *pa = a + r.a, *pb = b + r.b;
        int8_t *py = y + r.y;
        int32_t n = r.bytes;
        for (; n >= TERSOR_REGISTER; n -= TERSOR_REGISTER, pa += TERSOR_REGISTER, pb += TERSOR_REGISTER, py += TERSOR_REGISTER)
            vst1q_s8(py, product(vld1q_s8(pa), vld1q_s8(pb), za, zb, multiplier, bounds));
        if (n > 0)
            tersor_store_part(py, product(tersor_load_part(pa, n), tersor_load_part(pb, n), za, zb, multiplier, bounds), n);
        row += r.rows;
    }
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
        for (; n >= TERSOR_REGISTER; n -= TERSOR_REGISTER, pa += TERSOR_REGISTER, py += TERSOR_REGISTER)
            vst1q_s8(py, looked_up(parts, vld1q_s8(pa)));
        if (n > 0)
            tersor_store_part(py, looked_up(parts, tersor_load_part(pa, n)), n);
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
    return tersor_rounded_bytes(v, b);
}

void tersor_quantize_neon(const float *x, int8_t *y, int32_t count, tersor_grid grid, int32_t min, int32_t max)
{
    const tersor_bounds bounds = bounds_of(grid.zero_point, min, max);
    const float32x4_t scale = vdupq_n_f32(grid.scale);
    for (; count >= TERSOR_REGISTER; count -= TERSOR_REGISTER, x += TERSOR_REGISTER, y += TERSOR_REGISTER)
        vst1q_s8(y, quantized(x, scale, bounds));
    if (count > 0) {
        float part[TERSOR_REGISTER] = {0};
        memcpy(part, x, (size_t)count * sizeof *x);
        tersor_store_part(y, quantized(part, scale, bounds), count);
    }
}

TERSOR_INLINE void dequantized(float *y, int8x16_t x, int8x8_t zero_point, float scale)
{
    TERSOR_UNROLL
    for (int i = 0; i < 4; i++)
        vst1q_f32(y + 4 * i, vmulq_n_f32(vcvtq_f32_s32(tersor_centred(x, zero_point, i)), scale));
}

void tersor_dequantize_neon(const int8_t *x, float *y, int32_t count, tersor_grid grid)
{
    const int8x8_t zero_point = vdup_n_s8((int8_t)grid.zero_point);
    for (; count >= TERSOR_REGISTER; count -= TERSOR_REGISTER, x += TERSOR_REGISTER, y += TERSOR_REGISTER)
        dequantized(y, vld1q_s8(x), zero_point, grid.scale);
    if (count > 0) {
        float part[TERSOR_REGISTER];
        dequantized(part, tersor_load_part(x, count), zero_point, grid.scale);
        memcpy(y, part, (size_t)count * sizeof *y);
    }
}

#endif
