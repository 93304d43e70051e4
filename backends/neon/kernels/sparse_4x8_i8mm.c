/* Sparse convolution, blocks of 4 output by 8 input channels, with SMMLA: tiles of 4 channels x 24 pixels, 24 accumulators of
 * [2 pixels][2 channels]. Channels are paired 0 2, 1 3, because the narrowing transpose then puts them in order. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "i8mm.h"
#include "sparse.h"

enum { BLOCK = 8, ROWS = 4, RECORD = 4 + 32 };

/* acc[2 pixels][channel pair]. */
TERSOR_INLINE void add_block(int32x4_t acc[12][2], const int8_t *x, const int8x16_t w[2], int pairs)
{
    TERSOR_UNROLL
    for (int first = 0; first < pairs; first += 4) {
        const int n = pairs - first < 4 ? pairs - first : 4;
        int8x16_t v[4];
        tersor_load_pixels(v, n, &x, 64);
        TERSOR_UNROLL
        for (int i = 0; i < n; i++)
            TERSOR_UNROLL
            for (int k = 0; k < 2; k++)
                acc[first + i][k] = vmmlaq_s32(acc[first + i][k], v[i], w[k]);
    }
}

/* -> [pixel][4 channels] in bytes, 4 pixels a register. */
TERSOR_INLINE void narrow(int8x16_t *out, int32x4_t acc[12][2], float32x4_t scale, tersor_bounds b, int pairs, int magic)
{
    TERSOR_UNROLL
    for (int i = 0; i < pairs; i += 2) {
        int16x8_t v[2];
        TERSOR_UNROLL
        for (int j = 0; j < 2; j++)
            v[j] = tersor_clamped(vtrn1q_s16(tersor_scaled(acc[i + j][0], tersor_pair_f32(scale, 0), -1, b, magic),
                                             tersor_scaled(acc[i + j][1], tersor_pair_f32(scale, 1), -1, b, magic)), b);
        out[i / 2] = tersor_bytes(v[0], v[1], b);
    }
}

/* One row group x 2 * pairs pixels. `bias` has the pairs 0 2, 1 3, twice; `scale` once. */
TERSOR_INLINE void rows(const int8_t *stream, const int8_t *end, const int8_t *x, const int32_t *bias, const float *scale,
                        const tersor_bounds *bounds, int8x16_t *out, int pairs, int magic)
{
    int32x4_t acc[12][2];
    if (pairs == 12)
        tersor_start_24_pairs(&acc[0][0], bias, bias);
    else
        TERSOR_UNROLL
        for (int i = 0; i < pairs; i++)
            acc[i][0] = tersor_pair_s32(vld1q_s32(bias), 0), acc[i][1] = tersor_pair_s32(vld1q_s32(bias), 1);
    while (stream != end) {
        const int8_t *const record = stream;
        stream += RECORD;
        const int8x16_t w[2] = {vld1q_s8(record + 4), vld1q_s8(record + 20)};
        add_block(acc, x + tersor_load32(record), w, pairs);
    }
    if (pairs == 12)
        tersor_stay_24(&acc[0][0]);
    if (magic)
        narrow(out, acc, vld1q_f32(scale), *tersor_anew(bounds), pairs, 1);
    else
        narrow(out, acc, vld1q_f32(scale), *tersor_anew(bounds), pairs, 0);
}

/* 0 1 2 3 -> 0 2 1 3, of 32 bits each. */
TERSOR_INLINE int32x4_t in_pairs(const void *from)
{
    const int32x4_t v = vreinterpretq_s32_s8(vld1q_s8(from));
    return vzip1q_s32(v, vextq_s32(v, v, 2));
}

/* Tiles of 8 channels x 2 * pairs pixels: two row groups, whose bytes are interleaved by the store. */
TERSOR_INLINE void tiles(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y, ptrdiff_t y_block,
                         int32_t count, int pairs)
{
    const tersor_stream s = tersor_stream_of(conv, group, ROWS);
    const tersor_bounds bounds = tersor_bounds_of(&conv->requantize);
    const int8_t *const second = s.stream + (ptrdiff_t)s.counts[0] * RECORD;
    const int8_t *const streams[3] = {s.stream, second, second + (ptrdiff_t)s.counts[1] * RECORD};
    const int magic = conv->requantize.magic;
    int32_t bias[2][8];
    float scale[2][4];
    (void)y_block;
    for (int h = 0; h < 2; h++) {
        const int32_t channel = group * TERSOR_GROUP + 4 * h;
        vst1q_s32(bias[h], in_pairs(conv->bias + channel));
        vst1q_s32(bias[h] + 4, in_pairs(conv->bias + channel));
        vst1q_f32(scale[h], vreinterpretq_f32_s32(in_pairs(conv->requantize.scale + channel)));
    }
    for (; count > 0; count--, x += 16 * pairs, y += 16 * pairs) {
        int8x16_t out[2][6];
        for (int h = 0; h < 2; h++)
            rows(streams[h], streams[h + 1], x, bias[h], scale[h], &bounds, out[h], pairs, magic);
        TERSOR_UNROLL
        for (int i = 0; i < pairs / 2; i++) {
            const int32x4x2_t both = {{vreinterpretq_s32_s8(out[0][i]), vreinterpretq_s32_s8(out[1][i])}};
            vst2q_s32((int32_t *)(void *)(y + 32 * i), both);
        }
    }
}

TERSOR_DEFINE_TILE(tile_2, 2)
TERSOR_DEFINE_TILE(tile_4, 4)
TERSOR_DEFINE_TILE(tile_12, 12)

void tersor_conv_4x8_i8mm(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    static const tersor_tile sizes[] = {{24, 24, tile_12}, {5, 8, tile_4}, {1, 4, tile_2}};
    tersor_run_range(conv, x, y, range, sizes, sizes, BLOCK);
}

#endif
