/* Sparse convolution, blocks of 1 output by 4 input channels, with baseline NEON: tiles of 1 channel x 32 pixels. Blocks come
 * in pairs, whose products are added in 16 bits as in dense_neon.c. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "neon_loads.h"
#include "requantize_neon.h"
#include "sparse.h"
#include "tiling.h"

enum { BLOCK = 4, ROWS = 1, RECORD = 4 + 4, PAIR = 2 * RECORD };

TERSOR_INLINE int8x16_t repeated(const int8_t *w)
{
    return vreinterpretq_s8_s32(vdupq_n_s32(tersor_load32(w)));
}

/* acc[2 pixels][2 halves of the sum] += two blocks. */
TERSOR_INLINE void add_two(int32x4_t acc[16], const int8_t *x0, int8x16_t w0, const int8_t *x1, int8x16_t w1, int quads)
{
    TERSOR_UNROLL
    for (int first = 0; first < quads; first += 4) {
        const int n = quads - first < 4 ? quads - first : 4;
        int8x16_t v0[4], v1[4];
        tersor_load_pixels(v0, n, &x0, 64);
        tersor_load_more_pixels(v1, n, &x1, 64);
        TERSOR_UNROLL
        for (int i = 0; i < n; i++) {
            int32x4_t *const a = acc + 2 * (first + i);
            const int16x8_t low = vmull_s8(vget_low_s8(v0[i]), vget_low_s8(w0)), high = vmull_high_s8(v0[i], w0);
            a[0] = vpadalq_s16(a[0], vmlal_s8(low, vget_low_s8(v1[i]), vget_low_s8(w1)));
            a[1] = vpadalq_s16(a[1], vmlal_high_s8(high, v1[i], w1));
            if (i + 1 < n)
                tersor_order(&a[1], &v0[i + 1]);
        }
    }
}

TERSOR_INLINE void add_one(int32x4_t acc[16], const int8_t *x, int8x16_t w, int quads)
{
    TERSOR_UNROLL
    for (int first = 0; first < quads; first += 4) {
        const int n = quads - first < 4 ? quads - first : 4;
        int8x16_t v[4];
        tersor_load_pixels(v, n, &x, 64);
        TERSOR_UNROLL
        for (int i = 0; i < n; i++) {
            int32x4_t *const a = acc + 2 * (first + i);
            a[0] = vpadalq_s16(a[0], vmull_s8(vget_low_s8(v[i]), vget_low_s8(w)));
            a[1] = vpadalq_s16(a[1], vmull_high_s8(v[i], w));
        }
    }
}

/* 16 pixels a register. */
TERSOR_INLINE void narrow(int8x16_t *out, const int32x4_t acc[16], int32x4_t bias, float32x4_t scale, tersor_bounds b, int quads, int magic)
{
    TERSOR_UNROLL
    for (int i = 0; i < quads; i += 4) {
        int16x8_t v[4];
        TERSOR_UNROLL
        for (int j = 0; j < 4; j++) {
            const int at = 2 * (i + j < quads ? i + j : i);
            v[j] = tersor_scaled(vaddq_s32(vpaddq_s32(acc[at], acc[at + 1]), bias), scale, -1, b, magic);
        }
        out[i / 4] = tersor_bytes(tersor_clamped(vuzp1q_s16(v[0], v[1]), b), tersor_clamped(vuzp1q_s16(v[2], v[3]), b), b);
    }
}

/* One channel x 4 * quads pixels. */
TERSOR_INLINE void row(const tersor_conv *conv, int32_t channel, const int8_t *stream, int32_t count, const int8_t *x,
                       int8x16_t *out, const tersor_bounds *bounds, int quads)
{
    int32x4_t acc[16];
    TERSOR_UNROLL
    for (int i = 0; i < 2 * quads; i++)
        acc[i] = vdupq_n_s32(0);
    for (int32_t pairs = count / 2; pairs > 0; pairs--, stream += PAIR)
        add_two(acc, x + tersor_load32(stream), repeated(stream + 8), x + tersor_load32(stream + 4), repeated(stream + 12),
                quads);
    if (count % 2)
        add_one(acc, x + tersor_load32(stream), repeated(stream + 4), quads);
    const int32x4_t bias = vdupq_n_s32(conv->bias[channel]);
    const float32x4_t scale = vdupq_n_f32(conv->requantize.scale[channel]);
    if (conv->requantize.magic)
        narrow(out, acc, bias, scale, *tersor_anew(bounds), quads, 1);
    else
        narrow(out, acc, bias, scale, *tersor_anew(bounds), quads, 0);
}

/* [channel][pixel] -> [pixel][4 channels], interleaved by the store. */
TERSOR_INLINE void store(int8_t *y, int8x16_t out[4][2], int quads)
{
    TERSOR_UNROLL
    for (int i = 0; i < quads / 4; i++) {
        const int8x16x4_t all = {{out[0][i], out[1][i], out[2][i], out[3][i]}};
        vst4q_s8(y + 64 * i, all);
    }
    if (quads == 1) {
        const int8x16_t low = vzip1q_s8(out[0][0], out[2][0]), high = vzip1q_s8(out[1][0], out[3][0]);
        vst1q_s8(y, vzip1q_s8(low, high));
    }
}

TERSOR_INLINE void tiles(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y, ptrdiff_t y_block,
                         int32_t count, int quads)
{
    const tersor_stream s = tersor_stream_of(conv, group, ROWS);
    const tersor_bounds bounds = tersor_bounds_of(&conv->requantize);
    const int8_t *first = s.stream;
    for (int32_t h = 0; h < s.halves; h++, y += y_block) {
        const int32_t *const counts = s.counts + 4 * h;
        for (int32_t i = 0; i < count; i++) {
            const int8_t *stream = first;
            int8x16_t out[4][2];
            for (int32_t k = 0; k < 4; stream += counts[k] * RECORD, k++)
                row(conv, group * TERSOR_GROUP + 4 * h + k, stream, counts[k], x + 16 * quads * i, out[k], &bounds, quads);
            store(y + 16 * quads * i, out, quads);
        }
        first += (ptrdiff_t)(counts[0] + counts[1] + counts[2] + counts[3]) * RECORD;
    }
}

TERSOR_DEFINE_TILE(tile_1, 1)
TERSOR_DEFINE_TILE(tile_4, 4)
TERSOR_DEFINE_TILE(tile_8, 8)

void tersor_conv_1x4_neon(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    static const tersor_tile sizes[] = {{32, 32, tile_8}, {9, 16, tile_4}, {1, 4, tile_1}};
    tersor_run_range(conv, x, y, range, sizes, sizes, BLOCK);
}

#endif
