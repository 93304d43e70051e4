/* Moves bytes: borders, phases, layouts and copies. NEON where the processor has it; the rest is what the tails run. */
#include "planes.h"

#include "tersor_layers.h"
#include "tersor_model.h"

#if TERSOR_NATIVE
#include "bytes_neon.h"
#endif

/* Whole pixels, of 4 or 8 bytes. */
TERSOR_INLINE void fill(int8_t *y, int32_t bytes, int8_t value)
{
#if TERSOR_NATIVE
    const int8x16_t v = vdupq_n_s8(value);
    int8_t *const last = y + bytes - 16;
    if (bytes >= 16) {
        for (; y < last; y += 16)
            vst1q_s8(y, v);
        vst1q_s8(last, v); /* over what is there already */
    } else if (bytes >= 8) {
        vst1_s8(y, vget_low_s8(v)), vst1_s8(last + 8, vget_low_s8(v));
    } else if (bytes > 0) {
        memset(y, value, 4);
    }
#else
    memset(y, value, (size_t)bytes);
#endif
}

/* `count` gaps between rows; the usual widths of a border have loops of their own. */
TERSOR_INLINE void fill_gaps(int8_t *y, int32_t bytes, int32_t count, ptrdiff_t row, int8_t value)
{
    switch (bytes) {
    case 0: break;
    case 4:
        for (; count > 0; count--, y += row)
            memset(y, value, 4);
        break;
    case 8:
        for (; count > 0; count--, y += row)
            memset(y, value, 8);
        break;
    case 16:
        for (; count > 0; count--, y += row)
            memset(y, value, 16);
        break;
    default:
        for (; count > 0; count--, y += row)
            fill(y, bytes, value);
    }
}

void tersor_fill(int8_t *y, int32_t bytes, int8_t value)
{
#if TERSOR_NATIVE
    const int8x16_t v = vdupq_n_s8(value);
    for (; bytes >= 64; bytes -= 64, y += 64)
        vst1q_s8(y, v), vst1q_s8(y + 16, v), vst1q_s8(y + 32, v), vst1q_s8(y + 48, v);
#endif
    memset(y, value, (size_t)bytes);
}

/* What is right of one row and left of the next is one run of bytes; so is what is below one plane and above the next. */
void tersor_fill_border(const tersor_planes *p, tersor_border border, int32_t block, int8_t value, int8_t *y)
{
    const int32_t left = border.left * block, right = border.right * block, above = border.top * p->y_row + left;
    const int32_t bytes = p->bytes, rows = p->rows - 1;
    const ptrdiff_t step = p->y_row, plane = p->y_block, inside = rows * step + bytes;
    const int32_t outside = (int32_t)(plane - inside);
    fill(y, above, value);
    y += above + bytes;
    for (int32_t b = p->blocks; b > 0; b--, y += plane) {
        fill_gaps(y, left + right, rows, step, value);
        fill(y + rows * step, b > 1 ? outside : outside - above, value);
    }
}

#if TERSOR_NATIVE
/* The first `n` pixels of a register: some, but not all. */
TERSOR_INLINE void store_pixels(int8_t *y, int8x16_t v, int32_t n, int32_t block)
{
    if (block == 8 || n == 2) {
        vst1_s8(y, vget_low_s8(v));
    } else if (n == 1) {
        vst1q_lane_s32((int32_t *)(void *)y, vreinterpretq_s32_s8(v), 0);
    } else {
        vst1_s8(y, vget_low_s8(v));
        vst1q_lane_s32((int32_t *)(void *)(y + 8), vreinterpretq_s32_s8(v), 2);
    }
}

/* 32 bytes of pixels as the even and the odd ones. */
TERSOR_INLINE int8x16x2_t parted(const int8_t *x, int32_t block)
{
    int8x16x2_t v;
    if (block == 4) {
        const int32x4x2_t u = vld2q_s32((const int32_t *)(const void *)x);
        v.val[0] = vreinterpretq_s8_s32(u.val[0]), v.val[1] = vreinterpretq_s8_s32(u.val[1]);
    } else {
        const int64x2x2_t u = vld2q_s64((const int64_t *)(const void *)x);
        v.val[0] = vreinterpretq_s8_s64(u.val[0]), v.val[1] = vreinterpretq_s8_s64(u.val[1]);
    }
    return v;
}
#endif

/* One phase, or two that lie side by side in x, of some blocks. */
typedef struct {
    const int8_t *x;
    int8_t *y;
    ptrdiff_t odd; /* from the first phase in y to the second, or 0 */
    ptrdiff_t x_block, y_block, x_step, y_step;
    int32_t blocks, rows, count, odds, stride;
} phase;

#if TERSOR_NATIVE
TERSOR_INLINE void store_parted(int8_t *out, ptrdiff_t odd, int8x16x2_t v, int both)
{
    vst1q_s8(out, v.val[0]);
    if (both)
        vst1q_s8(out + odd, v.val[1]);
}

/* Even pixels of a row, and odd ones where there are `both`, of which one may be missing. What is read behind the last pair
 * is slack. */
TERSOR_INLINE void part_row(const int8_t *in, int8_t *out, const phase *p, int32_t block, int both)
{
    const int32_t step = 16 / block, whole = p->odds / step;
    const int32_t even_rest = p->count - whole * step, odd_rest = p->odds - whole * step;
    for (int32_t i = whole; i > 0; i--, in += 32, out += 16)
        store_parted(out, p->odd, parted(in, block), both);
    if (even_rest) {
        const int8x16x2_t v = parted(in, block);
        if (even_rest == step)
            vst1q_s8(out, v.val[0]);
        else
            store_pixels(out, v.val[0], even_rest, block);
        if (both && odd_rest)
            store_pixels(out + p->odd, v.val[1], odd_rest, block);
    }
}

/* Whole registers, of which the last of a row may reach into the next row, which comes after it; so not the last row. */
TERSOR_INLINE void part_rows(const int8_t *x, int8_t *y, const phase *p, int32_t block, int both, int32_t registers)
{
    for (int32_t row = p->rows; row > 1; row--, x += p->x_step, y += p->y_step)
        for (int32_t i = 0; i < registers; i++)
            store_parted(y + 16 * i, p->odd, parted(x + 32 * i, block), both);
}

TERSOR_INLINE void part_plane(const int8_t *x, int8_t *y, const phase *p, int32_t block, int both)
{
    const int32_t step = 16 / block, registers = (p->count + step - 1) / step, before = p->rows - 1;
    if (p->odds < p->count || p->count < step - 1) { /* or it would reach what is left as it is, or beyond the next row */
        for (int32_t row = before; row > 0; row--, x += p->x_step, y += p->y_step)
            part_row(x, y, p, block, both);
    } else {
        if (registers == 1)
            part_rows(x, y, p, block, both, 1);
        else if (registers == 2)
            part_rows(x, y, p, block, both, 2);
        else
            part_rows(x, y, p, block, both, registers);
        x += before * p->x_step, y += before * p->y_step;
    }
    part_row(x, y, p, block, both);
}

TERSOR_INLINE void part_planes(const phase *p, int32_t block, int both)
{
    const phase all = *p;
    const int8_t *x = all.x;
    int8_t *y = all.y;
    for (int32_t b = all.blocks; b > 0; b--, x += all.x_block, y += all.y_block)
        part_plane(x, y, &all, block, both);
}

static void halves(const phase *p, int32_t block)
{
    if (block == 4 && p->odd)
        part_planes(p, 4, 1);
    else if (block == 4)
        part_planes(p, 4, 0);
    else if (p->odd)
        part_planes(p, 8, 1);
    else
        part_planes(p, 8, 0);
}
#endif

/* Every stride-th pixel of each row, from the first on. */
static void pick(const phase *p, int32_t block)
{
    for (int32_t at = 0; at < p->blocks * p->rows; at++) {
        const ptrdiff_t b = at / p->rows, row = at % p->rows;
        const int8_t *const x = p->x + b * p->x_block + row * p->x_step;
        int8_t *const y = p->y + b * p->y_block + row * p->y_step;
        for (int32_t i = 0; i < p->count; i++)
            if (block == 4)
                memcpy(y + 4 * i, x + (ptrdiff_t)4 * p->stride * i, 4);
            else
                memcpy(y + 8 * i, x + (ptrdiff_t)8 * p->stride * i, 8);
    }
}

/* Phase i, and the one after it where these are the even and the odd pixels of the same rows: how many. */
static int32_t split(const tersor_phases *p, int32_t i, const int8_t *x, int8_t *y, tersor_span blocks)
{
    const int32_t dy = p->wanted[i] / p->stride_x, dx = p->wanted[i] % p->stride_x;
    const int32_t row_bytes = (p->width + p->stride_x - 1) / p->stride_x * p->block;
    const int32_t plane_bytes = (p->rows + p->stride_y - 1) / p->stride_y * row_bytes;
    const int32_t right = dx + 1 < p->stride_x && i + 1 < p->count && p->wanted[i + 1] == p->wanted[i] + 1;
    phase mine = {.x_block = p->x_block, .y_block = (ptrdiff_t)p->count * plane_bytes, .y_step = row_bytes};
    mine.x = x + blocks.begin * mine.x_block + (ptrdiff_t)dy * p->x_row + dx * p->block;
    mine.y = y + blocks.begin * mine.y_block + (ptrdiff_t)i * plane_bytes;
    mine.x_step = (ptrdiff_t)p->stride_y * p->x_row, mine.stride = p->stride_x, mine.blocks = blocks.end - blocks.begin;
    mine.rows = (p->rows - dy + p->stride_y - 1) / p->stride_y;
    mine.count = mine.odds = (p->width - dx + p->stride_x - 1) / p->stride_x;
#if TERSOR_NATIVE
    if (p->stride_x == 2) {
        if (right)
            mine.odd = plane_bytes, mine.odds = p->width / 2;
        halves(&mine, p->block);
        return 1 + right;
    }
#endif
    (void)right;
    pick(&mine, p->block);
    return 1;
}

void tersor_split_phases(const tersor_phases *p, const int8_t *x, int8_t *y, tersor_share share)
{
    const tersor_span blocks = tersor_share_of(p->blocks, share);
    for (int32_t i = 0; i < p->count;)
        i += split(p, i, x, y, blocks);
}

#if TERSOR_NATIVE
/* v[c] is channel c of 16 pixels, of 4 or 8 channels. */
TERSOR_INLINE void interleave(const int8x16_t v[8], int8_t *out, int32_t block)
{
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

TERSOR_INLINE void part_channels(const int8_t *in, int8x16_t v[8], int32_t block)
{
    if (block == 4) {
        const int8x16x4_t four = vld4q_s8(in);
        for (int c = 0; c < 4; c++)
            v[c] = four.val[c];
        return;
    }
    const int16x8x4_t low = vld4q_s16((const int16_t *)(const void *)in);
    const int16x8x4_t high = vld4q_s16((const int16_t *)(const void *)(in + 64));
    for (int c = 0; c < 4; c++) {
        const int8x16_t a = vreinterpretq_s8_s16(low.val[c]), b = vreinterpretq_s8_s16(high.val[c]);
        v[2 * c] = vuzp1q_s8(a, b), v[2 * c + 1] = vuzp2q_s8(a, b);
    }
}

/* 16 pixels, of whose channels `there` exist. */
static void to_blocks_16(const int8_t *in, ptrdiff_t step, int8_t *out, int32_t block, int32_t there, int8x16_t rest)
{
    int8x16_t v[8];
    TERSOR_UNROLL
    for (int c = 0; c < 8; c++)
        v[c] = c < there ? vld1q_s8(in + c * step) : rest;
    interleave(v, out, block);
}

/* 8 pixels of the same, of one block of 4 or 8 channels. */
static void to_blocks_8(const int8_t *in, ptrdiff_t step, int8_t *out, int32_t block, int32_t there, int8x16_t rest)
{
    int8x8_t v[8];
    TERSOR_UNROLL
    for (int c = 0; c < 8; c++)
        v[c] = c < there ? vld1_s8(in + c * step) : vget_low_s8(rest);
    if (block == 4) {
        const int8x8x4_t four = {{v[0], v[1], v[2], v[3]}};
        vst4_s8(out, four);
        return;
    }
    int16x8x4_t pairs;
    TERSOR_UNROLL
    for (int c = 0; c < 4; c++)
        pairs.val[c] = vreinterpretq_s16_s8(vzip1q_s8(vcombine_s8(v[2 * c], v[2 * c]), vcombine_s8(v[2 * c + 1], v[2 * c + 1])));
    vst4q_s16((int16_t *)(void *)out, pairs);
}

/* The last `n` pixels of a row, less than 8. */
static void to_blocks_part(const int8_t *in, ptrdiff_t step, int8_t *out, int32_t n, int32_t block, int32_t there,
                           int8x16_t rest)
{
    int8x16_t v[8];
    int8_t part[16 * 8];
    for (int c = 0; c < block; c++)
        v[c] = c < there ? tersor_load_part(in + c * step, n) : rest;
    interleave(v, part, block);
    memcpy(out, part, (size_t)(n * block));
}

static void from_blocks_16(const int8_t *in, int8_t *out, ptrdiff_t step, int32_t n, int32_t block, int32_t there)
{
    int8x16_t v[8];
    int8_t part[16 * 8];
    if (n < 16)
        memcpy(part, in, (size_t)(n * block));
    part_channels(n < 16 ? part : in, v, block);
    for (int32_t c = 0; c < there; c++)
        if (n < 16)
            tersor_store_part(out + c * step, v[c], n);
        else
            vst1q_s8(out + c * step, v[c]);
}
#endif

static void to_blocks_row(const int8_t *in, ptrdiff_t step, int8_t *out, int32_t count, int32_t block, int32_t there,
                          int8_t rest)
{
#if TERSOR_NATIVE
    const int8x16_t filling = vdupq_n_s8(rest);
    int32_t i = 0;
    for (; i + 16 <= count; i += 16)
        to_blocks_16(in + i, step, out + (ptrdiff_t)i * block, block, there, filling);
    if (i + 8 <= count) {
        to_blocks_8(in + i, step, out + (ptrdiff_t)i * block, block, there, filling);
        i += 8;
    }
    if (i < count)
        to_blocks_part(in + i, step, out + (ptrdiff_t)i * block, count - i, block, there, filling);
#else
    for (int32_t i = 0; i < count; i++)
        for (int32_t c = 0; c < block; c++)
            out[(ptrdiff_t)i * block + c] = c < there ? in[c * step + i] : rest;
#endif
}

static void from_blocks_row(const int8_t *in, int8_t *out, ptrdiff_t step, int32_t count, int32_t block, int32_t there)
{
#if TERSOR_NATIVE
    for (int32_t i = 0; i < count; i += 16)
        from_blocks_16(in + (ptrdiff_t)i * block, out + i, step, count - i, block, there);
#else
    for (int32_t i = 0; i < count; i++)
        for (int32_t c = 0; c < there; c++)
            out[c * step + i] = in[(ptrdiff_t)i * block + c];
#endif
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
