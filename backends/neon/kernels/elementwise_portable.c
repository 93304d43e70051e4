/* Sums, products, tables and conversions of single values in portable C. */
#include "planes.h"
#include "requantize_portable.h"

typedef int8_t binary_function(const tersor_binary *binary, int8_t a, int8_t b);

static int8_t sum(const tersor_binary *binary, int8_t a, int8_t b)
{
    const float va = (float)(a - binary->a.zero_point) * binary->a.scale;
    const float vb = (float)(b - binary->b.zero_point) * binary->b.scale;
    const float both = va + vb;
    return tersor_rounded(both / binary->y.scale, binary->y.zero_point, binary->min, binary->max);
}

static int8_t product(const tersor_binary *binary, int8_t a, int8_t b)
{
    const float acc = (float)((a - binary->a.zero_point) * (b - binary->b.zero_point));
    return tersor_rounded(acc * binary->multiplier, binary->y.zero_point, binary->min, binary->max);
}

static void run(const tersor_binary *binary, const int8_t *a, const int8_t *b, int8_t *y, int32_t row, int32_t end,
                binary_function *function)
{
    while (row < end) {
        const tersor_rows r = tersor_rows_at(&binary->planes, row, end);
        for (int32_t i = 0; i < r.bytes; i++)
            y[r.y + i] = function(binary, a[r.a + i], b[r.b + i]);
        row += r.rows;
    }
}

void tersor_add_portable(const tersor_binary *binary, const int8_t *a, const int8_t *b, int8_t *y, int32_t row_begin,
                         int32_t row_end)
{
    run(binary, a, b, y, row_begin, row_end, sum);
}

void tersor_add_residual_portable(const tersor_conv *conv, int8_t *y, tersor_range range, int32_t block)
{
    const tersor_residual *const r = conv->residual;
    const int32_t end = range.group_end * TERSOR_GROUP < conv->channels ? range.group_end * TERSOR_GROUP : conv->channels;
    for (int32_t b = range.group_begin * TERSOR_GROUP / block; b * block < end; b++)
        for (int32_t pixel = range.pixel_begin; pixel < range.pixel_end; pixel++) {
            const ptrdiff_t row = pixel / conv->width, column = pixel % conv->width;
            int8_t *const out = y + (ptrdiff_t)b * conv->y_block + row * conv->y_row + column * block;
            const int8_t *const in = r->b + (ptrdiff_t)b * r->b_block + row * r->b_row + column * block;
            for (int32_t c = 0; c < block; c++)
                out[c] = sum(&r->sum, out[c], in[c]);
        }
}

void tersor_mul_portable(const tersor_binary *binary, const int8_t *a, const int8_t *b, int8_t *y, int32_t row_begin,
                         int32_t row_end)
{
    run(binary, a, b, y, row_begin, row_end, product);
}

void tersor_lookup_portable(const tersor_planes *planes, const int8_t *table, const int8_t *a, int8_t *y, int32_t row_begin,
                            int32_t row_end)
{
    for (int32_t row = row_begin; row < row_end;) {
        const tersor_rows r = tersor_rows_at(planes, row, row_end);
        for (int32_t i = 0; i < r.bytes; i++)
            y[r.y + i] = table[(uint8_t)a[r.a + i]];
        row += r.rows;
    }
}

void tersor_quantize_portable(const float *x, int8_t *y, int32_t count, tersor_grid grid, int32_t min, int32_t max)
{
    for (int32_t i = 0; i < count; i++)
        y[i] = tersor_rounded(x[i] / grid.scale, grid.zero_point, min, max);
}

void tersor_dequantize_portable(const int8_t *x, float *y, int32_t count, tersor_grid grid)
{
    for (int32_t i = 0; i < count; i++)
        y[i] = (float)(x[i] - grid.zero_point) * grid.scale;
}
