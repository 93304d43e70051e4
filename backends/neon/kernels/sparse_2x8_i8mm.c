/* Sparse convolution, blocks of 2 output by 8 input channels, with SMMLA: tiles of 2 channels x 32 pixels, 16 accumulators of
 * [2 pixels][2 channels]. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "i8mm.h"
#include "sparse.h"

enum { BLOCK = 8, ROWS = 2, RECORD = 4 + 16 };

TERSOR_INLINE void add_block(int32x4_t acc[16], const int8_t *x, int8x16_t w, int pairs)
{
    TERSOR_UNROLL
    for (int first = 0; first < pairs; first += 4) {
        const int n = pairs - first < 4 ? pairs - first : 4;
        int8x16_t v[4];
        tersor_load_pixels(v, n, &x, 64);
        TERSOR_UNROLL
        for (int i = 0; i < n; i++)
            acc[first + i] = vmmlaq_s32(acc[first + i], v[i], w);
    }
}

/* -> [pixel][2 channels] in bytes, 8 pixels a register. */
TERSOR_INLINE void narrow(int8x16_t *out, const int32x4_t acc[16], float32x4_t scale, tersor_bounds b, int pairs, int magic)
{
    TERSOR_UNROLL
    for (int i = 0; i < pairs; i += 4) {
        int16x8_t v[4];
        TERSOR_UNROLL
        for (int j = 0; j < 4; j++)
            v[j] = tersor_scaled(acc[i + j], scale, -1, b, magic);
        out[i / 4] = tersor_bytes(tersor_clamped(vuzp1q_s16(v[0], v[1]), b), tersor_clamped(vuzp1q_s16(v[2], v[3]), b), b);
    }
}

/* One row group x 2 * pairs pixels. */
TERSOR_INLINE void rows(const tersor_conv *conv, int32_t channel, const int8_t *stream, int32_t count, const int8_t *x,
                        int8x16_t *out, const tersor_bounds *bounds, int pairs)
{
    int32x4_t acc[16];
    const int32x2_t bias = vld1_s32(conv->bias + channel);
    TERSOR_UNROLL
    for (int i = 0; i < pairs; i++)
        acc[i] = vcombine_s32(bias, bias);
    for (; count > 0; count--) {
        const int8_t *const record = stream;
        stream += RECORD;
        add_block(acc, x + tersor_load32(record), vld1q_s8(record + 4), pairs);
    }
    const float32x2_t m = vld1_f32(conv->requantize.scale + channel);
    if (conv->requantize.magic)
        narrow(out, acc, vcombine_f32(m, m), *tersor_anew(bounds), pairs, 1);
    else
        narrow(out, acc, vcombine_f32(m, m), *tersor_anew(bounds), pairs, 0);
}

/* Tiles of 8 channels x 2 * pairs pixels: four row groups, whose bytes are interleaved by the store. */
TERSOR_INLINE void tiles(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y, ptrdiff_t y_block,
                         int32_t count, int pairs)
{
    const tersor_stream s = tersor_stream_of(conv, group, ROWS);
    const tersor_bounds bounds = tersor_bounds_of(&conv->requantize);
    (void)y_block;
    for (; count > 0; count--, x += 16 * pairs, y += 16 * pairs) {
        const int8_t *stream = s.stream;
        int8x16_t out[4][4];
        for (int k = 0; k < 4; stream += s.counts[k] * RECORD, k++)
            rows(conv, group * TERSOR_GROUP + 2 * k, stream, s.counts[k], x, out[k], &bounds, pairs);
        TERSOR_UNROLL
        for (int i = 0; i < pairs / 4; i++) {
            const int16x8x4_t all = {{vreinterpretq_s16_s8(out[0][i]), vreinterpretq_s16_s8(out[1][i]),
                                      vreinterpretq_s16_s8(out[2][i]), vreinterpretq_s16_s8(out[3][i])}};
            vst4q_s16((int16_t *)(void *)(y + 64 * i), all);
        }
    }
}

TERSOR_DEFINE_TILE(tile_4, 4)
TERSOR_DEFINE_TILE(tile_16, 16)

void tersor_conv_2x8_i8mm(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    static const tersor_tile sizes[] = {{32, 32, tile_16}, {1, 8, tile_4}};
    tersor_run_range(conv, x, y, range, sizes, sizes, BLOCK);
}

#endif
