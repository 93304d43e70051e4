/* The convolutions in portable C: the same data, one pixel at a time. They read no slack. */
#include "requantize_portable.h"

/* How a kernel's weights are laid out; see tersor_kernels.h. */
typedef struct {
    int32_t block;    /* input channels of a block */
    int32_t rows;     /* output channels packed together */
    int32_t order[8]; /* the channel in each packed row */
} layout;

/* The sums of `rows` output channels at one pixel. */
typedef void sums_function(const tersor_conv *conv, const layout *l, int32_t channel, const int8_t *x, int32_t *acc);

static void add_block(const layout *l, const int8_t *x, const int8_t *w, int32_t rows, int32_t *acc)
{
    for (int32_t k = 0; k < rows; k++)
        for (int32_t c = 0; c < l->block; c++)
            acc[l->order[k]] += x[c] * w[k * l->block + c];
}

/* The rows that are packed together from `channel` on: fewer in a last group of at most 4 channels. */
static int32_t rows_at(const tersor_conv *conv, const layout *l, int32_t channel)
{
    return l->block == 4 && conv->channels - channel <= 4 && l->rows == 8 ? 4 : l->rows;
}

static void dense_sums(const tersor_conv *conv, const layout *l, int32_t channel, const int8_t *x, int32_t *acc)
{
    const int32_t rows = rows_at(conv, l, channel);
    const int8_t *w = conv->weights + (ptrdiff_t)channel * conv->taps * conv->blocks * l->block;
    for (int32_t tap = 0; tap < conv->taps; tap++)
        for (int32_t b = 0; b < conv->blocks; b++, w += rows * l->block)
            add_block(l, x + conv->tap_offsets[tap] + (ptrdiff_t)b * conv->x_block, w, rows, acc);
}

/* Bytes of `count` blocks; in 1x4, pairs or not, a block has one offset and its weights. */
static ptrdiff_t bytes_of(const layout *l, int32_t count)
{
    return (ptrdiff_t)count * (4 + l->rows * l->block);
}

static void sparse_sums(const tersor_conv *conv, const layout *l, int32_t channel, const int8_t *x, int32_t *acc)
{
    const int32_t group = channel / TERSOR_GROUP, first = group * TERSOR_GROUP / l->rows, mine = channel / l->rows;
    const int8_t *stream = conv->weights + conv->group_starts[group];
    for (int32_t i = first; i < mine; i++)
        stream += bytes_of(l, conv->block_counts[i]);
    for (int32_t i = 0, count = conv->block_counts[mine]; i < count; i++) {
        const int paired = l->rows == 1 && i / 2 * 2 + 1 < count;
        const int8_t *record = stream + bytes_of(l, paired ? i / 2 * 2 : i);
        const int8_t *offset = paired ? record + 4 * (i % 2) : record;
        const int8_t *w = paired ? record + 8 + 4 * (i % 2) : record + 4;
        add_block(l, x + tersor_load32(offset), w, l->rows, acc);
    }
}

/* The channels that are packed together with `channel` as the first, at one pixel. */
static void pixel_of(const tersor_conv *conv, const layout *l, sums_function *sums, int32_t channel, const int8_t *x,
                     int8_t *y)
{
    int32_t acc[8];
    const int32_t rows = rows_at(conv, l, channel);
    for (int32_t k = 0; k < rows; k++)
        acc[k] = tersor_plain_bias(conv, channel + k);
    sums(conv, l, channel, x, acc);
    for (int32_t k = 0; k < rows; k++) {
        const int32_t c = channel + k;
        y[(ptrdiff_t)(c / l->block) * conv->y_block + c % l->block] = tersor_requantized(acc[k], c, &conv->requantize);
    }
}

static void run(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range, const layout *l,
                sums_function *sums)
{
    const int32_t whole = (conv->channels + l->block - 1) / l->block * l->block;
    const int32_t last = range.group_end * TERSOR_GROUP < whole ? range.group_end * TERSOR_GROUP : whole;
    for (int32_t channel = range.group_begin * TERSOR_GROUP; channel < last; channel += l->rows)
        for (int32_t pixel = range.pixel_begin; pixel < range.pixel_end; pixel++) {
            const int32_t row = pixel / conv->width, column = pixel % conv->width;
            pixel_of(conv, l, sums, channel, x + (ptrdiff_t)row * conv->x_row + (ptrdiff_t)column * l->block,
                     y + (ptrdiff_t)row * conv->y_row + (ptrdiff_t)column * l->block);
        }
    if (conv->residual)
        tersor_add_residual_portable(conv, y, range, l->block);
}

#define CONV(NAME, SUMS, ...)                                                                                          \
    void tersor_conv_##NAME##_portable(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)        \
    {                                                                                                                  \
        static const layout l = __VA_ARGS__;                                                                           \
        run(conv, x, y, range, &l, SUMS);                                                                              \
    }
CONV(dense_neon, dense_sums, {4, 4, {0, 1, 2, 3}})
CONV(dense_dotprod, dense_sums, {4, 8, {0, 1, 2, 3, 4, 5, 6, 7}})
CONV(dense_i8mm, dense_sums, {8, 8, {0, 4, 1, 5, 2, 6, 3, 7}})
CONV(1x4, sparse_sums, {4, 1, {0}})
CONV(2x4, sparse_sums, {4, 2, {0, 1}})
CONV(4x4, sparse_sums, {4, 4, {0, 1, 2, 3}})
CONV(2x8, sparse_sums, {8, 2, {0, 1}})
CONV(4x8, sparse_sums, {8, 4, {0, 2, 1, 3}})
