/* Pooling. A register is 16 bytes of neighbouring channels and pixels, whatever the block. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "bytes_neon.h"
#include "neon_loads.h"

/* 255 * 128 < 2^15: that many int8 add up in 16 bits. */
enum { FIT_16_BITS = 255, REGISTER = TERSOR_REGISTER };

/* Bytes that follow each other: n registers (1 or 4, a constant) of the output, from any number of windows. */
typedef void window_function(const tersor_pool *pool, const int8_t *x, const tersor_bounds *bounds, int8x16_t *y, int n);

TERSOR_INLINE void greatest(const tersor_pool *pool, const int8_t *x, const tersor_bounds *bounds, int8x16_t *y, int n)
{
    const int32_t *offset = pool->tap_offsets, *const end = offset + pool->taps;
    const int8_t *p = x + *offset++;
    (void)bounds;
    tersor_load_pixels(y, n, &p, 0);
    while (offset != end) {
        int8x16_t v[4];
        p = x + *offset++;
        tersor_load_more_pixels(v, n, &p, 0);
        TERSOR_UNROLL
        for (int i = 0; i < n; i++)
            y[i] = vmaxq_s8(y[i], v[i]);
    }
}

TERSOR_INLINE void widen(int32x4_t acc[4], int16x8_t low, int16x8_t high)
{
    acc[0] = vaddw_s16(acc[0], vget_low_s16(low));
    acc[1] = vaddw_high_s16(acc[1], low);
    acc[2] = vaddw_s16(acc[2], vget_low_s16(high));
    acc[3] = vaddw_high_s16(acc[3], high);
}

TERSOR_INLINE int8x16_t narrow(const int32x4_t acc[4], float scale, tersor_bounds b, int magic)
{
    const float32x4_t m = vdupq_n_f32(scale);
    int16x8_t v[4];
    TERSOR_UNROLL
    for (int j = 0; j < 4; j++)
        v[j] = magic ? tersor_scaled(acc[j], m, -1, b, 1) : tersor_scaled(acc[j], m, -1, b, 0);
    return tersor_bytes(tersor_clamped(vuzp1q_s16(v[0], v[1]), b), tersor_clamped(vuzp1q_s16(v[2], v[3]), b), b);
}

TERSOR_INLINE int8x16_t average_of(const tersor_pool *pool, const int8_t *x, const tersor_bounds *bounds)
{
    const int32x4_t bias = vdupq_n_s32(pool->bias);
    int32x4_t acc[4] = {bias, bias, bias, bias};
    for (int32_t first = 0; first < pool->taps; first += FIT_16_BITS) {
        const int32_t end = pool->taps - first < FIT_16_BITS ? pool->taps : first + FIT_16_BITS;
        int16x8_t low = vdupq_n_s16(0), high = low;
        for (int32_t tap = first; tap < end; tap++) {
            const int8x16_t v = vld1q_s8(x + pool->tap_offsets[tap]);
            low = vaddw_s8(low, vget_low_s8(v));
            high = vaddw_high_s8(high, v);
        }
        widen(acc, low, high);
    }
    return narrow(acc, pool->requantize.scale[0], *bounds, pool->requantize.magic);
}

TERSOR_INLINE void average(const tersor_pool *pool, const int8_t *x, const tersor_bounds *bounds, int8x16_t *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = average_of(pool, x + i * REGISTER, bounds);
}

/* `bytes` bytes that follow each other in both tensors. */
TERSOR_INLINE void run_of(const tersor_pool *pool, const int8_t *x, int8_t *y, int32_t bytes, const tersor_bounds *bounds,
                          window_function *window)
{
    int8x16_t v[4];
    for (; bytes >= 4 * REGISTER; bytes -= 4 * REGISTER, x += 4 * REGISTER, y += 4 * REGISTER) {
        window(pool, x, bounds, v, 4);
        TERSOR_UNROLL
        for (int i = 0; i < 4; i++)
            vst1q_s8(y + i * REGISTER, v[i]);
    }
    for (; bytes > 0; bytes -= REGISTER, x += REGISTER, y += REGISTER) {
        window(pool, x, bounds, v, 1);
        if (bytes >= REGISTER)
            vst1q_s8(y, v[0]);
        else
            tersor_store_part(y, v[0], bytes);
    }
}

TERSOR_INLINE void run(const tersor_pool *pool, const int8_t *x, int8_t *y, tersor_range range, window_function *window)
{
    const tersor_bounds bounds = tersor_bounds_of(&pool->requantize);
    const int32_t block = pool->block;
    const int flat = pool->x_row == pool->width * block && pool->y_row == pool->x_row;
    for (int32_t b = range.group_begin; b < range.group_end; b++)
        for (int32_t pixel = range.pixel_begin, n; pixel < range.pixel_end; pixel += n) {
            const int32_t row = pixel / pool->width, column = pixel % pool->width;
            n = range.pixel_end - pixel;
            if (!flat && n > pool->width - column)
                n = pool->width - column;
            run_of(pool, x + (ptrdiff_t)b * pool->x_block + (ptrdiff_t)row * pool->x_row + (ptrdiff_t)column * block,
                   y + (ptrdiff_t)b * pool->y_block + (ptrdiff_t)row * pool->y_row + (ptrdiff_t)column * block, n * block,
                   &bounds, window);
        }
}

void tersor_max_pool_neon(const tersor_pool *pool, const int8_t *x, int8_t *y, tersor_range range)
{
    run(pool, x, y, range, greatest);
}

void tersor_average_pool_neon(const tersor_pool *pool, const int8_t *x, int8_t *y, tersor_range range)
{
    run(pool, x, y, range, average);
}

/* acc[16 bytes of a register] += a row, whose last pixels are taken with zeros behind them. */
static void add_row(int32x4_t acc[4], const int8_t *x, int32_t bytes)
{
    while (bytes > 0) {
        int16x8_t low = vdupq_n_s16(0), high = low;
        int32_t some = bytes / REGISTER < FIT_16_BITS - 1 ? bytes / REGISTER : FIT_16_BITS - 1;
        for (bytes -= some * REGISTER; some > 0; some--, x += REGISTER) {
            low = vaddw_s8(low, vget_low_s8(vld1q_s8(x)));
            high = vaddw_high_s8(high, vld1q_s8(x));
        }
        if (bytes > 0 && bytes < REGISTER) {
            const int8x16_t part = tersor_load_part(x, bytes);
            low = vaddw_s8(low, vget_low_s8(part));
            high = vaddw_high_s8(high, part);
            bytes = 0;
        }
        widen(acc, low, high);
    }
}

/* The sums of one block: blocks of 4 in [0], blocks of 8 in [0] and [1]. */
TERSOR_INLINE void plane_sums(int32x4_t sums[2], const tersor_pool *pool, const int8_t *plane, int32x4_t bias, int32_t rows,
                              int32_t bytes, int32_t block)
{
    int32x4_t acc[4] = {bias, vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    if (block == 8)
        acc[1] = bias;
    if (rows == 1 && bytes % REGISTER == 0 && bytes <= FIT_16_BITS / 2 * REGISTER) {
        int16x8_t low = vdupq_n_s16(0), high = low;
        for (; bytes > 0; bytes -= REGISTER, plane += REGISTER) {
            const int8x16_t v = vld1q_s8(plane);
            low = vaddw_s8(low, vget_low_s8(v)), high = vaddw_high_s8(high, v);
        }
        low = vaddq_s16(low, high);
        acc[0] = vaddw_s16(acc[0], vget_low_s16(low)), acc[1] = vaddw_high_s16(acc[1], low);
    } else {
        for (int32_t row = 0; row < rows; row++)
            add_row(acc, plane + (ptrdiff_t)row * pool->x_row, bytes);
        /* Registers 0 and 2 hold the same channels, and so do 1 and 3. */
        acc[0] = vaddq_s32(acc[0], acc[2]), acc[1] = vaddq_s32(acc[1], acc[3]);
    }
    sums[0] = block == 8 ? acc[0] : vaddq_s32(acc[0], acc[1]);
    sums[1] = acc[1];
}

/* One pixel of a block. */
TERSOR_INLINE void store_block(int8_t *y, int8x16_t q, int32_t block)
{
    if (block == 8)
        vst1_s8(y, vget_low_s8(q));
    else
        vst1q_lane_s32((int32_t *)(void *)y, vreinterpretq_s32_s8(q), 0);
}

/* Blocks that fill a register together are requantized together. */
TERSOR_INLINE void global_pool(const tersor_pool *pool, const int8_t *x, int8_t *y, tersor_range range, int32_t block)
{
    const tersor_bounds bounds = tersor_bounds_of(&pool->requantize);
    const float scale = pool->requantize.scale[0];
    const int32_t magic = pool->requantize.magic, flat = pool->x_row == pool->width * block, half = block / 4;
    const int32_t rows = flat ? 1 : pool->rows, bytes = pool->width * block * (flat ? pool->rows : 1);
    const int32x4_t bias = vdupq_n_s32(pool->bias);
    int32x4_t sums[5];
    x += (ptrdiff_t)range.group_begin * pool->x_block, y += (ptrdiff_t)range.group_begin * pool->y_block;
    int32_t left = range.group_end - range.group_begin;
    for (; left >= 4 / half; left -= 4 / half) {
        TERSOR_UNROLL
        for (int i = 0; i < 4; i += half, x += pool->x_block)
            plane_sums(sums + i, pool, x, bias, rows, bytes, block);
        int8x16_t q = narrow(sums, scale, bounds, magic);
        TERSOR_UNROLL
        for (int i = 0; i < 4; i += half, y += pool->y_block, q = half == 2 ? vextq_s8(q, q, 8) : vextq_s8(q, q, 4))
            store_block(y, q, block);
    }
    for (; left > 0; left--, x += pool->x_block, y += pool->y_block) {
        plane_sums(sums, pool, x, bias, rows, bytes, block);
        sums[2] = sums[3] = sums[0];
        store_block(y, narrow(sums, scale, bounds, magic), block);
    }
}

void tersor_global_pool_neon(const tersor_pool *pool, const int8_t *x, int8_t *y, tersor_range range)
{
    if (pool->block == 8)
        global_pool(pool, x, y, range, 8);
    else
        global_pool(pool, x, y, range, 4);
}

#endif
