/* Moves bytes: borders, phases, layouts and copies. NEON where the processor has it; the rest is what the tails run. */
#include "planes.h"

#include "tersor_layers.h"
#include "tersor_model.h"

#if TERSOR_NATIVE
#include <arm_neon.h>
#endif

/* Pixels are of 4 or 8 bytes. */
static void fill(int8_t *y, int32_t bytes, int8_t value)
{
    if (bytes == 8)
        memset(y, value, 8);
    else if (bytes == 16)
        memset(y, value, 16);
    else if (bytes > 64)
        memset(y, value, (size_t)bytes);
    else
        for (int32_t i = 0; i < bytes; i += 4)
            memset(y + i, value, 4);
}

/* What is right of one row and left of the next is one run of bytes. */
void tersor_fill_border(const tersor_planes *p, tersor_border border, int32_t block, int8_t value, int8_t *y)
{
    const int32_t left = border.left * block, right = border.right * block;
    const int32_t above = border.top * p->y_row + left, below = border.bottom * p->y_row + right;
    for (int32_t b = 0; b < p->blocks; b++) {
        int8_t *row = y + (ptrdiff_t)b * p->y_block;
        fill(row, above, value);
        row += above + p->bytes;
        for (int32_t i = 1; i < p->rows; i++, row += p->y_row)
            fill(row, left + right, value);
        fill(row, below, value);
    }
}

/* Every stride-th pixel of `count`, from the first on. Of the last pair that NEON loads, the second lies in the slack. */
static void pick(const int8_t *x, int8_t *y, int32_t count, int32_t stride, int32_t block)
{
    int32_t i = 0;
#if TERSOR_NATIVE
    if (stride == 2 && block == 4)
        for (; i + 4 <= count; i += 4)
            vst1q_s32((int32_t *)(void *)(y + 4 * i), vld2q_s32((const int32_t *)(const void *)(x + 8 * i)).val[0]);
    if (stride == 2 && block == 8)
        for (; i + 2 <= count; i += 2)
            vst1q_s64((int64_t *)(void *)(y + 8 * i), vld2q_s64((const int64_t *)(const void *)(x + 16 * i)).val[0]);
#endif
    if (block == 4)
        for (; i < count; i++)
            memcpy(y + 4 * i, x + (ptrdiff_t)4 * stride * i, 4);
    else
        for (; i < count; i++)
            memcpy(y + 8 * i, x + (ptrdiff_t)8 * stride * i, 8);
}

#if TERSOR_NATIVE
/* Even and odd pixels of one row. */
TERSOR_INLINE void both_halves(const int8_t *x, int8_t *even, int8_t *odd, int32_t width, int32_t block)
{
    const int32_t step = 16 / block, whole = width / 2 / step * step;
    for (int32_t i = 0; i < whole; i += step, x += 32, even += 16, odd += 16) {
        if (block == 4) {
            const int32x4x2_t v = vld2q_s32((const int32_t *)(const void *)x);
            vst1q_s32((int32_t *)(void *)even, v.val[0]), vst1q_s32((int32_t *)(void *)odd, v.val[1]);
        } else {
            const int64x2x2_t v = vld2q_s64((const int64_t *)(const void *)x);
            vst1q_s64((int64_t *)(void *)even, v.val[0]), vst1q_s64((int64_t *)(void *)odd, v.val[1]);
        }
    }
    for (int32_t i = whole; i < width / 2; i++, x += 2 * block, even += block, odd += block)
        memcpy(even, x, (size_t)block), memcpy(odd, x + block, (size_t)block);
    if (width % 2)
        memcpy(even, x, (size_t)block);
}

/* Whether phase i and the one after it are the even and the odd pixels of the same rows, and have been written together. */
static int halves(const tersor_phases *p, int32_t block, int32_t i, const int8_t *x, int8_t *y, int32_t row_bytes,
                  int32_t plane_bytes)
{
    if (p->stride_x != 2 || p->wanted[i] % 2 || p->wanted[i + 1] != p->wanted[i] + 1)
        return 0;
    int8_t *out = y + ((ptrdiff_t)block * p->count + i) * plane_bytes;
    x += (ptrdiff_t)block * p->x_block;
    for (int32_t row = p->wanted[i] / 2; row < p->rows; row += p->stride_y, out += row_bytes)
        if (p->block == 4)
            both_halves(x + (ptrdiff_t)row * p->x_row, out, out + plane_bytes, p->width, 4);
        else
            both_halves(x + (ptrdiff_t)row * p->x_row, out, out + plane_bytes, p->width, 8);
    return 1;
}
#endif

void tersor_split_phases(const tersor_phases *p, const int8_t *x, int8_t *y, tersor_share share)
{
    const int32_t row_bytes = (p->width + p->stride_x - 1) / p->stride_x * p->block;
    const int32_t plane_bytes = (p->rows + p->stride_y - 1) / p->stride_y * row_bytes;
    const tersor_span blocks = tersor_share_of(p->blocks, share);
    for (int32_t b = blocks.begin; b < blocks.end; b++)
        for (int32_t i = 0; i < p->count; i++) {
#if TERSOR_NATIVE
            if (i + 1 < p->count && halves(p, b, i, x, y, row_bytes, plane_bytes)) {
                i++;
                continue;
            }
#endif
            const int32_t dy = p->wanted[i] / p->stride_x, dx = p->wanted[i] % p->stride_x;
            const int32_t count = (p->width - dx + p->stride_x - 1) / p->stride_x;
            const int8_t *in = x + (ptrdiff_t)b * p->x_block + dx * p->block;
            int8_t *out = y + ((ptrdiff_t)b * p->count + i) * plane_bytes;
            for (int32_t row = dy; row < p->rows; row += p->stride_y, out += row_bytes)
                pick(in + (ptrdiff_t)row * p->x_row, out, count, p->stride_x, p->block);
        }
}

#if TERSOR_NATIVE
/* 16 pixels of 4 or 8 channels, of which `there` exist. */
static void to_blocks_16(const int8_t *in, ptrdiff_t step, int8_t *out, int32_t block, int32_t there, int8x16_t rest)
{
    int8x16_t v[8];
    TERSOR_UNROLL
    for (int c = 0; c < 8; c++)
        v[c] = c < there ? vld1q_s8(in + c * step) : rest;
    if (block == 4) {
        const int8x16x4_t four = {{v[0], v[1], v[2], v[3]}}; /* a name: clang's vst4q is a macro */
        vst4q_s8(out, four);
        return;
    }
    TERSOR_UNROLL
    for (int half = 0; half < 2; half++) {
        int16x8x4_t pairs;
        TERSOR_UNROLL
        for (int c = 0; c < 4; c++)
            pairs.val[c] = vreinterpretq_s16_s8(half ? vzip2q_s8(v[2 * c], v[2 * c + 1]) : vzip1q_s8(v[2 * c], v[2 * c + 1]));
        vst4q_s16((int16_t *)(void *)(out + 64 * half), pairs);
    }
}

static void from_blocks_16(const int8_t *in, int8_t *out, ptrdiff_t step, int32_t block, int32_t there)
{
    int8x16_t v[8];
    if (block == 4) {
        const int8x16x4_t four = vld4q_s8(in);
        for (int c = 0; c < 4; c++)
            v[c] = four.val[c];
    } else {
        const int16x8x4_t low = vld4q_s16((const int16_t *)(const void *)in);
        const int16x8x4_t high = vld4q_s16((const int16_t *)(const void *)(in + 64));
        for (int c = 0; c < 4; c++) {
            const int8x16_t a = vreinterpretq_s8_s16(low.val[c]), b = vreinterpretq_s8_s16(high.val[c]);
            v[2 * c] = vuzp1q_s8(a, b), v[2 * c + 1] = vuzp2q_s8(a, b);
        }
    }
    for (int32_t c = 0; c < there; c++)
        vst1q_s8(out + c * step, v[c]);
}
#endif

static void to_blocks_row(const int8_t *in, ptrdiff_t step, int8_t *out, int32_t count, int32_t block, int32_t there,
                          int8_t rest)
{
    int32_t i = 0;
#if TERSOR_NATIVE
    for (; i + 16 <= count; i += 16)
        to_blocks_16(in + i, step, out + (ptrdiff_t)i * block, block, there, vdupq_n_s8(rest));
#endif
    for (; i < count; i++)
        for (int32_t c = 0; c < block; c++)
            out[(ptrdiff_t)i * block + c] = c < there ? in[c * step + i] : rest;
}

static void from_blocks_row(const int8_t *in, int8_t *out, ptrdiff_t step, int32_t count, int32_t block, int32_t there)
{
    int32_t i = 0;
#if TERSOR_NATIVE
    for (; i + 16 <= count; i += 16)
        from_blocks_16(in + (ptrdiff_t)i * block, out + i, step, block, there);
#endif
    for (; i < count; i++)
        for (int32_t c = 0; c < there; c++)
            out[c * step + i] = in[(ptrdiff_t)i * block + c];
}

/* The number of rows that are one run of pixels in both tensors: all or one. */
static int32_t joined(const tersor_planes *p, int32_t plain_row, int32_t blocked_row, int32_t block)
{
    return plain_row == p->bytes && blocked_row == p->bytes * block ? p->rows : 1;
}

void tersor_to_blocks(const tersor_planes *p, int32_t block, int32_t channels, int8_t rest, const int8_t *a, int8_t *y,
                      tersor_share share)
{
    const int32_t rows = joined(p, p->a_row, p->y_row, block);
    const tersor_span blocks = tersor_share_of((channels + block - 1) / block, share);
    for (int32_t b = blocks.begin; b < blocks.end; b++)
        for (int32_t row = 0; row < p->rows; row += rows)
            to_blocks_row(a + (ptrdiff_t)b * block * p->a_block + (ptrdiff_t)row * p->a_row, p->a_block,
                          y + (ptrdiff_t)b * p->y_block + (ptrdiff_t)row * p->y_row, rows * p->bytes, block,
                          channels - b * block < block ? channels - b * block : block, rest);
}

void tersor_from_blocks(const tersor_planes *p, int32_t block, int32_t channels, const int8_t *a, int8_t *y,
                        tersor_share share)
{
    const int32_t rows = joined(p, p->y_row, p->a_row, block);
    const tersor_span blocks = tersor_share_of((channels + block - 1) / block, share);
    for (int32_t b = blocks.begin; b < blocks.end; b++)
        for (int32_t row = 0; row < p->rows; row += rows)
            from_blocks_row(a + (ptrdiff_t)b * p->a_block + (ptrdiff_t)row * p->a_row,
                            y + (ptrdiff_t)b * block * p->y_block + (ptrdiff_t)row * p->y_row, p->y_block, rows * p->bytes,
                            block, channels - b * block < block ? channels - b * block : block);
}

/* The innermost loop of a copy, for a number of bytes that is known. */
#define COPY_EACH(BYTES)                                                                                               \
    for (int32_t i = 0; i < loop->count; i++, x += loop->x, y += loop->y)                                              \
    memcpy(y, x, BYTES)

static void copy_row(const tersor_loop *loop, const int8_t *x, int8_t *y, int32_t bytes)
{
    switch (bytes) {
    case 1: COPY_EACH(1); break;
    case 2: COPY_EACH(2); break;
    case 4: COPY_EACH(4); break;
    case 8: COPY_EACH(8); break;
    default: COPY_EACH((size_t)bytes); break;
    }
}

static void copy_loops(const tersor_loop *loops, int32_t depth, const int8_t *x, int8_t *y, int32_t bytes)
{
    if (depth == 1) {
        copy_row(loops, x, y, bytes);
        return;
    }
    for (int32_t i = 0; i < loops->count; i++)
        copy_loops(loops + 1, depth - 1, x + (ptrdiff_t)i * loops->x, y + (ptrdiff_t)i * loops->y, bytes);
}

void tersor_copy_loops(const tersor_loop *loops, int32_t depth, int32_t bytes, const int8_t *x, int8_t *y,
                       tersor_share share)
{
    const tersor_span span = tersor_share_of(loops->count, share);
    const tersor_loop mine = {span.end - span.begin, loops->x, loops->y};
    x += (ptrdiff_t)span.begin * loops->x, y += (ptrdiff_t)span.begin * loops->y;
    if (depth == 1)
        copy_row(&mine, x, y, bytes);
    else
        for (int32_t i = 0; i < mine.count; i++)
            copy_loops(loops + 1, depth - 1, x + (ptrdiff_t)i * mine.x, y + (ptrdiff_t)i * mine.y, bytes);
}

void tersor_copy_runs(const int32_t *runs, int32_t count, const int8_t *x, int8_t *y, tersor_share share)
{
    const tersor_span mine = tersor_share_of(count, share);
    for (int32_t i = mine.begin; i < mine.end; i++)
        memcpy(y + runs[3 * i], x + runs[3 * i + 1], (size_t)runs[3 * i + 2]);
}
