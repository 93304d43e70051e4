/* Sparse convolution, blocks of 2 output by 4 input channels, with SDOT: tiles of 2 channels x 48 pixels, 24 accumulators. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "dotprod.h"
#include "sparse.h"
#include "tiling.h"

enum { BLOCK = 4, ROWS = 2, RECORD = 4 + 8 };

TERSOR_INLINE void add_block(int32x4_t acc[2][12], const int8_t *x, int8x8_t w, int quads)
{
    TERSOR_UNROLL
    for (int first = 0; first < quads; first += 4) {
        const int n = quads - first < 4 ? quads - first : 4;
        int8x16_t v[4];
        tersor_load_pixels(v, n, &x, 64);
        TERSOR_UNROLL
        for (int i = 0; i < n; i++) {
            acc[0][first + i] = vdotq_lane_s32(acc[0][first + i], v[i], w, 0);
            acc[1][first + i] = vdotq_lane_s32(acc[1][first + i], v[i], w, 1);
        }
    }
}

/* -> [pixel][2 channels] in bytes, 8 pixels a register. */
TERSOR_INLINE void narrow(int8x16_t *out, int32x4_t acc[2][12], float32x4_t scale, tersor_bounds b, int quads, int magic)
{
    TERSOR_UNROLL
    for (int i = 0; i < quads; i += 2) {
        int16x8_t v[2];
        TERSOR_UNROLL
        for (int j = 0; j < 2; j++) {
            const int at = i + j < quads ? i + j : i;
            v[j] = tersor_clamped(vtrn1q_s16(tersor_scaled(acc[0][at], scale, 0, b, magic),
                                             tersor_scaled(acc[1][at], scale, 1, b, magic)), b);
        }
        out[i / 2] = tersor_bytes(v[0], v[1], b);
    }
}

/* One row group x 4 * quads pixels. `bias` holds each four times. */
TERSOR_INLINE void rows(const int8_t *stream, const int8_t *end, const int8_t *x, const int32_t (*bias)[4], const float *scale,
                        const tersor_bounds *bounds, int8x16_t *out, int quads, int magic)
{
    int32x4_t acc[2][12];
    if (quads == 12)
        tersor_start_24(&acc[0][0], bias[0], bias[1]);
    else
        TERSOR_UNROLL
        for (int i = 0; i < quads; i++)
            acc[0][i] = vld1q_s32(bias[0]), acc[1][i] = vld1q_s32(bias[1]);
    while (stream != end) {
        const int8_t *const record = stream;
        stream += RECORD;
        add_block(acc, x + tersor_load32(record), vld1_s8(record + 4), quads);
    }
    const float32x2_t m = vld1_f32(scale);
    if (magic)
        narrow(out, acc, vcombine_f32(m, m), *tersor_anew(bounds), quads, 1);
    else
        narrow(out, acc, vcombine_f32(m, m), *tersor_anew(bounds), quads, 0);
}

/* [row group][pixel][2 channels] -> [pixel][4 channels], interleaved by the store. */
TERSOR_INLINE void store(int8_t *y, int8x16_t out[2][6], int quads)
{
    TERSOR_UNROLL
    for (int i = 0; i < quads / 2; i++) {
        const int16x8x2_t both = {{vreinterpretq_s16_s8(out[0][i]), vreinterpretq_s16_s8(out[1][i])}};
        vst2q_s16((int16_t *)(void *)(y + 32 * i), both);
    }
    if (quads == 1)
        vst1q_s8(y, vreinterpretq_s8_s16(vzip1q_s16(vreinterpretq_s16_s8(out[0][0]), vreinterpretq_s16_s8(out[1][0]))));
}

TERSOR_INLINE void tiles(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y, ptrdiff_t y_block,
                         int32_t count, int quads)
{
    const tersor_stream s = tersor_stream_of(conv, group, ROWS);
    const tersor_bounds bounds = tersor_bounds_of(&conv->requantize);
    const int magic = conv->requantize.magic;
    const int8_t *stream = s.stream;
    for (int32_t h = 0; h < s.halves; h++, y += y_block) {
        const int32_t channel = group * TERSOR_GROUP + 4 * h, *const counts = s.counts + 2 * h;
        const float *const scale = conv->requantize.scale + channel;
        const int8_t *const second = stream + (ptrdiff_t)counts[0] * RECORD;
        const int8_t *const end = second + (ptrdiff_t)counts[1] * RECORD, *in = x;
        int8_t *to = y;
        int32_t bias[4][4];
        for (int k = 0; k < 4; k++)
            vst1q_s32(bias[k], vdupq_n_s32(conv->bias[channel + k]));
        for (int32_t i = 0; i < count; i++, in += 16 * quads, to += 16 * quads) {
            int8x16_t out[2][6];
            rows(stream, second, in, (const int32_t(*)[4])bias, scale, &bounds, out[0], quads, magic);
            rows(second, end, in, (const int32_t(*)[4])bias + 2, scale + 2, &bounds, out[1], quads, magic);
            store(to, out, quads);
        }
        stream = end;
    }
}

TERSOR_DEFINE_TILE(tile_1, 1)
TERSOR_DEFINE_TILE(tile_4, 4)
TERSOR_DEFINE_TILE(tile_12, 12)

void tersor_conv_2x4_dotprod(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    static const tersor_tile sizes[] = {{48, 48, tile_12}, {9, 16, tile_4}, {1, 4, tile_1}};
    tersor_run_range(conv, x, y, range, sizes, sizes, BLOCK);
}

#endif
