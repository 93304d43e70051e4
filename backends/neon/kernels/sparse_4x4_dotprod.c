/* Sparse convolution, blocks of 4 output by 4 input channels, with SDOT: tiles of 4 channels x 24 pixels, 24 accumulators,
 * so that a block is 24 SDOT to 2 loads of pixels, its weights and its offset. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "dotprod.h"
#include "sparse.h"
#include "tiling.h"

enum { BLOCK = 4, ROWS = 4, RECORD = 4 + 16 };

TERSOR_INLINE void start(int32x4_t acc[6][4], const int32_t *bias, int quads)
{
    if (quads == 6)
        tersor_start_24(&acc[0][0], bias, bias);
    else
        TERSOR_UNROLL
        for (int i = 0; i < quads; i++)
            TERSOR_UNROLL
            for (int k = 0; k < 4; k++)
                acc[i][k] = vdupq_n_s32(bias[k]);
}

/* acc[4 pixels][channel] += one block. */
TERSOR_INLINE void add_block(int32x4_t acc[6][4], const int8_t *x, int8x16_t w, int quads)
{
    TERSOR_UNROLL
    for (int first = 0; first < quads; first += 4) {
        const int n = quads - first < 4 ? quads - first : 4;
        int8x16_t v[4];
        tersor_load_pixels(v, n, &x, 64);
        TERSOR_UNROLL
        for (int i = 0; i < n; i++)
            TERSOR_UNROLL
            for (int k = 0; k < 4; k++)
                acc[first + i][k] = tersor_dot(acc[first + i][k], v[i], w, k);
    }
}

TERSOR_INLINE void finish(int32x4_t acc[6][4], float32x4_t scale, tersor_bounds bounds, int8_t *y, int quads, int magic)
{
    TERSOR_UNROLL
    for (int i = 0; i < quads; i++)
        vst1q_s8(y + 16 * i, tersor_narrow_4x4(acc[i], scale, bounds, magic));
}

/* One row group x 4 * quads pixels. */
TERSOR_INLINE void rows(const int8_t *stream, const int8_t *end, const int8_t *x, int8_t *y, const int32_t *bias,
                        const float *scale, const tersor_bounds *bounds, int quads, int magic)
{
    int32x4_t acc[6][4];
    start(acc, bias, quads);
    while (stream != end) {
        const int8_t *const record = stream;
        stream += RECORD;
        add_block(acc, x + tersor_load32(record), vld1q_s8(record + 4), quads);
    }
    if (magic)
        finish(acc, vld1q_f32(scale), *tersor_anew(bounds), y, quads, 1);
    else
        finish(acc, vld1q_f32(scale), *tersor_anew(bounds), y, quads, 0);
}

TERSOR_INLINE void tiles(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y, ptrdiff_t y_block,
                         int32_t count, int quads)
{
    const tersor_stream s = tersor_stream_of(conv, group, ROWS);
    const tersor_bounds bounds = tersor_bounds_of(&conv->requantize);
    const int magic = conv->requantize.magic;
    const int8_t *stream = s.stream;
    for (int32_t h = 0; h < s.halves; h++, y += y_block) {
        const int32_t channel = group * TERSOR_GROUP + 4 * h, *const bias = conv->bias + channel;
        const float *const scale = conv->requantize.scale + channel;
        const int8_t *const end = stream + (ptrdiff_t)s.counts[h] * RECORD, *in = x;
        int8_t *out = y;
        for (int32_t i = 0; i < count; i++, in += 16 * quads, out += 16 * quads)
            rows(stream, end, in, out, bias, scale, &bounds, quads, magic);
        stream = end;
    }
}

TERSOR_DEFINE_TILE(tile_1, 1)
TERSOR_DEFINE_TILE(tile_3, 3)
TERSOR_DEFINE_TILE(tile_6, 6)

void tersor_conv_4x4_dotprod(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    static const tersor_tile sizes[] = {{13, 24, tile_6}, {5, 12, tile_3}, {1, 4, tile_1}};
    tersor_run_range(conv, x, y, range, sizes, sizes, BLOCK);
}

#endif
