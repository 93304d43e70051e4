/* Sums of two tensors, also as the last thing that a convolution does to its output. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "bytes_neon.h"

/* `rows` rows of `bytes` bytes in three tensors. */
typedef struct {
    const int8_t *a, *b;
    int8_t *y;
    ptrdiff_t a_row, b_row, y_row;
    int32_t rows, bytes;
} strip;

/* All that a sum needs, in registers: bytes that are stored may be what a pointer to it points to. Factors are
 * high * 2^16 + low. */
typedef struct {
    int8x16_t za, zb;
    int16x8_t a_low, b_low, a_high, b_high, zy;
    int8x16_t min, max;
    float sa, sb;
    float32x4_t sy;
    tersor_bounds bounds;
} terms;

TERSOR_INLINE int16x8_t low_half(int32_t factor)
{
    return vdupq_n_s16((int16_t)(factor & 0xFFFF));
}

TERSOR_INLINE int16x8_t high_half(int32_t factor)
{
    return vdupq_n_s16((int16_t)((factor - (int16_t)(factor & 0xFFFF)) / 65536));
}

TERSOR_INLINE terms terms_of(const tersor_binary *s)
{
    const tersor_requantize r = {.zero_point = s->y.zero_point, .min = s->min, .max = s->max};
    terms t;
    t.za = vdupq_n_s8((int8_t)s->a.zero_point), t.zb = vdupq_n_s8((int8_t)s->b.zero_point);
    t.a_low = low_half(s->a_factor), t.b_low = low_half(s->b_factor);
    t.a_high = high_half(s->a_factor), t.b_high = high_half(s->b_factor);
    t.zy = vdupq_n_s16((int16_t)(s->y.zero_point * (1 << s->shift)));
    t.min = vdupq_n_s8((int8_t)s->min), t.max = vdupq_n_s8((int8_t)s->max);
    t.sa = s->a.scale, t.sb = s->b.scale, t.sy = vdupq_n_f32(s->y.scale);
    t.bounds = tersor_bounds_of(&r);
    return t;
}

TERSOR_INLINE int8x16_t float_sum(int8x16_t a, int8x16_t b, const terms *t)
{
    float32x4_t v[4];
    TERSOR_UNROLL
    for (int i = 0; i < 4; i++) {
        const float32x4_t va = vmulq_n_f32(vcvtq_f32_s32(tersor_centred(a, vget_low_s8(t->za), i)), t->sa);
        const float32x4_t vb = vmulq_n_f32(vcvtq_f32_s32(tersor_centred(b, vget_low_s8(t->zb), i)), t->sb);
        v[i] = vminq_f32(vmaxq_f32(vdivq_f32(vaddq_f32(va, vb), t->sy), t->bounds.low), t->bounds.high);
    }
    return tersor_rounded_bytes(v, t->bounds);
}

/* (a * a_factor + b * b_factor) >> 16 of 8 values: the low halves of the factors in 32 bits, the high ones in 16. */
TERSOR_INLINE int16x8_t fixed_half(int16x8_t a, int16x8_t b, const terms *t)
{
    const int32x4_t low = vmlal_s16(vmull_s16(vget_low_s16(a), vget_low_s16(t->a_low)), vget_low_s16(b), vget_low_s16(t->b_low));
    const int32x4_t high = vmlal_high_s16(vmull_high_s16(a, t->a_low), b, t->b_low);
    const int16x8_t carried = vuzp2q_s16(vreinterpretq_s16_s32(low), vreinterpretq_s16_s32(high));
    return vqaddq_s16(vmlaq_s16(vmlaq_s16(carried, a, t->a_high), b, t->b_high), t->zy);
}

TERSOR_INLINE int16x8_t low_bytes(int8x16_t q, int8x16_t zero_point)
{
    return vsubl_s8(vget_low_s8(q), vget_low_s8(zero_point));
}

/* shift is a constant; clamped: min and max are not those of int8. */
TERSOR_INLINE int8x16_t fixed_sum(int8x16_t a, int8x16_t b, const terms *t, int shift, int clamped)
{
    const int16x8_t u = fixed_half(low_bytes(a, t->za), low_bytes(b, t->zb), t);
    const int16x8_t v = fixed_half(vsubl_high_s8(a, t->za), vsubl_high_s8(b, t->zb), t);
    int8x16_t q;
    switch (shift) {
    case 2: q = vqrshrn_high_n_s16(vqrshrn_n_s16(u, 2), v, 2); break;
    case 3: q = vqrshrn_high_n_s16(vqrshrn_n_s16(u, 3), v, 3); break;
    case 4: q = vqrshrn_high_n_s16(vqrshrn_n_s16(u, 4), v, 4); break;
    case 5: q = vqrshrn_high_n_s16(vqrshrn_n_s16(u, 5), v, 5); break;
    default: q = vqrshrn_high_n_s16(vqrshrn_n_s16(u, 6), v, 6); break;
    }
    return clamped ? vminq_s8(vmaxq_s8(q, t->min), t->max) : q;
}

typedef int8x16_t sum_function(int8x16_t a, int8x16_t b, const terms *t);

#define FIXED(SHIFT)                                                                                                   \
    TERSOR_INLINE int8x16_t fixed_##SHIFT(int8x16_t a, int8x16_t b, const terms *t)                                    \
    {                                                                                                                  \
        return fixed_sum(a, b, t, SHIFT, 0);                                                                           \
    }                                                                                                                  \
    TERSOR_INLINE int8x16_t clamped_##SHIFT(int8x16_t a, int8x16_t b, const terms *t)                                  \
    {                                                                                                                  \
        return fixed_sum(a, b, t, SHIFT, 1);                                                                           \
    }
FIXED(2)
FIXED(3)
FIXED(4)
FIXED(5)
FIXED(6)

TERSOR_INLINE void row_of(const int8_t *a, const int8_t *b, int8_t *y, int32_t n, const terms *t, sum_function *sum)
{
    for (; n >= 2 * TERSOR_REGISTER; n -= 2 * TERSOR_REGISTER) {
        const int8x16_t first = sum(vld1q_s8(a), vld1q_s8(b), t);
        const int8x16_t second = sum(vld1q_s8(a + TERSOR_REGISTER), vld1q_s8(b + TERSOR_REGISTER), t);
        vst1q_s8(y, first), vst1q_s8(y + TERSOR_REGISTER, second);
        a += 2 * TERSOR_REGISTER, b += 2 * TERSOR_REGISTER, y += 2 * TERSOR_REGISTER;
    }
    if (n >= TERSOR_REGISTER) {
        vst1q_s8(y, sum(vld1q_s8(a), vld1q_s8(b), t));
        n -= TERSOR_REGISTER, a += TERSOR_REGISTER, b += TERSOR_REGISTER, y += TERSOR_REGISTER;
    }
    if (n > 0)
        tersor_store_part(y, sum(tersor_load_part(a, n), tersor_load_part(b, n), t), n);
}

TERSOR_INLINE void rows_of(const tersor_binary *binary, const strip *s, sum_function *sum)
{
    const terms t = terms_of(binary);
    const int8_t *a = s->a, *b = s->b;
    int8_t *y = s->y;
    for (int32_t row = s->rows; row > 0; row--, a += s->a_row, b += s->b_row, y += s->y_row)
        row_of(a, b, y, s->bytes, &t, sum);
}

typedef void strip_function(const tersor_binary *binary, const strip *s);

#define STRIP(NAME)                                                                                                    \
    static void strip_##NAME(const tersor_binary *binary, const strip *s)                                              \
    {                                                                                                                  \
        rows_of(binary, s, NAME);                                                                                      \
    }
STRIP(float_sum)
STRIP(fixed_2)
STRIP(fixed_3)
STRIP(fixed_4)
STRIP(fixed_5)
STRIP(fixed_6)
STRIP(clamped_2)
STRIP(clamped_3)
STRIP(clamped_4)
STRIP(clamped_5)
STRIP(clamped_6)

static void add_strip(const tersor_binary *binary, const strip *s)
{
    static strip_function *const whole[] = {strip_fixed_2, strip_fixed_3, strip_fixed_4, strip_fixed_5, strip_fixed_6};
    static strip_function *const clamped[] = {strip_clamped_2, strip_clamped_3, strip_clamped_4, strip_clamped_5,
                                              strip_clamped_6};
    if (binary->shift < 2)
        strip_float_sum(binary, s);
    else
        (binary->min > -128 || binary->max < 127 ? clamped : whole)[binary->shift - 2](binary, s);
}

void tersor_add_neon(const tersor_binary *binary, const int8_t *a, const int8_t *b, int8_t *y, int32_t row_begin,
                     int32_t row_end)
{
    const tersor_planes *const p = &binary->planes;
    const int flat = p->a_row == p->bytes && p->b_row == p->bytes && p->y_row == p->bytes;
    for (int32_t row = row_begin, rows; row < row_end; row += rows) {
        const ptrdiff_t block = row / p->rows, in_block = row % p->rows;
        rows = row_end - row < p->rows - (int32_t)in_block ? row_end - row : p->rows - (int32_t)in_block;
        const strip s = {a + block * p->a_block + in_block * p->a_row, b + block * p->b_block + in_block * p->b_row,
                         y + block * p->y_block + in_block * p->y_row, p->a_row, p->b_row, p->y_row,
                         flat ? 1 : rows, flat ? rows * p->bytes : p->bytes};
        add_strip(binary, &s);
    }
}

/* Pixels of one block of channels whose rows have gaps: whole rows together, cut rows each by itself. */
static void add_pixels(const tersor_conv *conv, const int8_t *b, int8_t *y, int32_t begin, int32_t end, int32_t block)
{
    const tersor_residual *const r = conv->residual;
    for (int32_t pixel = begin, n; pixel < end; pixel += n) {
        const int32_t row = pixel / conv->width, column = pixel % conv->width, left = conv->width - column;
        const int whole = column == 0 && end - pixel >= conv->width;
        const int32_t rows = whole ? (end - pixel) / conv->width : 1;
        int8_t *const at = y + (ptrdiff_t)row * conv->y_row + (ptrdiff_t)column * block;
        n = whole ? rows * conv->width : end - pixel < left ? end - pixel : left;
        const strip s = {at, b + (ptrdiff_t)row * r->b_row + (ptrdiff_t)column * block, at, conv->y_row, r->b_row, conv->y_row,
                         rows, n / rows * block};
        add_strip(&r->sum, &s);
    }
}

void tersor_add_residual_neon(const tersor_conv *conv, int8_t *y, tersor_range range, int32_t block)
{
    const tersor_residual *const r = conv->residual;
    const int32_t end = range.group_end * TERSOR_GROUP < conv->channels ? range.group_end * TERSOR_GROUP : conv->channels;
    const int32_t first = range.group_begin * TERSOR_GROUP / block, blocks = (end + block - 1) / block - first;
    const int8_t *b = r->b + (ptrdiff_t)first * r->b_block;
    y += (ptrdiff_t)first * conv->y_block;
    if (conv->y_row == conv->width * block && r->b_row == conv->y_row) {
        const ptrdiff_t begin = (ptrdiff_t)range.pixel_begin * block;
        const strip s = {y + begin, b + begin, y + begin, conv->y_block, r->b_block, conv->y_block, blocks,
                         (range.pixel_end - range.pixel_begin) * block};
        add_strip(&r->sum, &s);
        return;
    }
    for (int32_t i = 0; i < blocks; i++, y += conv->y_block, b += r->b_block)
        add_pixels(conv, b, y, range.pixel_begin, range.pixel_end, block);
}

#endif
