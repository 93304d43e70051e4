/* Pooling in portable C. */
#include "requantize_portable.h"

typedef int8_t window_function(const tersor_pool *pool, const int8_t *x);

static int32_t bias_of(const tersor_pool *pool)
{
    return pool->requantize.magic ? pool->bias - TERSOR_MAGIC_BITS : pool->bias;
}

static int8_t greatest(const tersor_pool *pool, const int8_t *x)
{
    int8_t most = x[pool->tap_offsets[0]];
    for (int32_t tap = 1; tap < pool->taps; tap++)
        if (x[pool->tap_offsets[tap]] > most)
            most = x[pool->tap_offsets[tap]];
    return most;
}

static int8_t average(const tersor_pool *pool, const int8_t *x)
{
    int32_t acc = bias_of(pool);
    for (int32_t tap = 0; tap < pool->taps; tap++)
        acc += x[pool->tap_offsets[tap]];
    return tersor_requantized(acc, 0, &pool->requantize);
}

static void run(const tersor_pool *pool, const int8_t *x, int8_t *y, tersor_range range, window_function *window)
{
    const int32_t block = pool->block;
    for (int32_t b = range.group_begin; b < range.group_end; b++)
        for (int32_t pixel = range.pixel_begin; pixel < range.pixel_end; pixel++) {
            const ptrdiff_t row = pixel / pool->width, column = pixel % pool->width;
            const int8_t *const in = x + (ptrdiff_t)b * pool->x_block + row * pool->x_row + column * block;
            int8_t *const out = y + (ptrdiff_t)b * pool->y_block + row * pool->y_row + column * block;
            for (int32_t c = 0; c < block; c++)
                out[c] = window(pool, in + c);
        }
}

void tersor_max_pool_portable(const tersor_pool *pool, const int8_t *x, int8_t *y, tersor_range range)
{
    run(pool, x, y, range, greatest);
}

void tersor_average_pool_portable(const tersor_pool *pool, const int8_t *x, int8_t *y, tersor_range range)
{
    run(pool, x, y, range, average);
}

void tersor_global_pool_portable(const tersor_pool *pool, const int8_t *x, int8_t *y, tersor_range range)
{
    for (int32_t b = range.group_begin; b < range.group_end; b++)
        for (int32_t c = 0; c < pool->block; c++) {
            const int8_t *const plane = x + (ptrdiff_t)b * pool->x_block + c;
            int32_t acc = bias_of(pool);
            for (int32_t row = 0; row < pool->rows; row++)
                for (int32_t column = 0; column < pool->width; column++)
                    acc += plane[(ptrdiff_t)row * pool->x_row + (ptrdiff_t)column * pool->block];
            y[(ptrdiff_t)b * pool->y_block + c] = tersor_requantized(acc, 0, &pool->requantize);
        }
}
