/* Sparse convolution, blocks of 1 output by 4 input channels, with SDOT: tiles of 1 channel x 64 pixels. Blocks come in
 * pairs, so that both offsets and both weights are one load each. Unstructured weights use this too: every group of 4 input
 * channels that is not all zero is a block. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "dotprod.h"
#include "sparse.h"
#include "tiling.h"

enum { BLOCK = 4, ROWS = 1, RECORD = 4 + 4, PAIR = 2 * RECORD };

TERSOR_INLINE void add_block(int32x4_t *acc, const int8_t *x, int8x8_t w, int lane, int quads)
{
    TERSOR_UNROLL
    for (int first = 0; first < quads; first += 4) {
        const int n = quads - first < 4 ? quads - first : 4;
        int8x16_t v[4];
        tersor_load_pixels(v, n, &x, 64);
        TERSOR_UNROLL
        for (int i = 0; i < n; i++)
            acc[first + i] = lane ? vdotq_lane_s32(acc[first + i], v[i], w, 1) : vdotq_lane_s32(acc[first + i], v[i], w, 0);
    }
}

/* What a channel needs, together; the bias four times, to start accumulators from. */
typedef struct {
    int32_t bias[4];
    float scale;
    int32_t count;
} plan;

/* All blocks of one channel; gives where the next one's begin. */
TERSOR_INLINE const int8_t *add_row(int32x4_t *acc, const int8_t *stream, int32_t count, const int8_t *x, int quads)
{
    for (const int8_t *const end = stream + (ptrdiff_t)((uint32_t)count / 2) * PAIR; stream != end;) {
        const int8_t *const pair = stream;
        const int64_t offsets = tersor_load64(pair);
        const int8x8_t w = vld1_s8(pair + 8);
        stream += PAIR;
        add_block(acc, x + (int32_t)offsets, w, 0, quads);
        add_block(acc, x + (offsets >> 32), w, 1, quads);
    }
    if (quads == 16)
        tersor_stay_16(acc);
    if (count % 2) {
        const int64_t single = tersor_load64(stream);
        stream += RECORD;
        add_block(acc, x + (int32_t)single, vcreate_s8((uint64_t)single), 1, quads);
    }
    if (quads == 16)
        tersor_stay_16(acc);
    return stream;
}

/* 16 pixels a register, and those 64 bytes apart. */
TERSOR_INLINE void narrow(int8_t *out, const int32x4_t acc[16], float32x4_t scale, tersor_bounds b, int quads, int magic)
{
    TERSOR_UNROLL
    for (int i = 0; i < quads; i += 4) {
        int16x8_t v[4];
        TERSOR_UNROLL
        for (int j = 0; j < 4; j++)
            v[j] = tersor_scaled(acc[i + j], scale, -1, b, magic);
        vst1q_s8(out + 16 * i, tersor_bytes(tersor_clamped(vuzp1q_s16(v[0], v[1]), b),
                                            tersor_clamped(vuzp1q_s16(v[2], v[3]), b), b));
    }
}

/* One channel x 4 * quads pixels. */
TERSOR_INLINE const int8_t *row(const plan *p, const int8_t *stream, const int8_t *x, int8_t *out,
                                const tersor_bounds *bounds, int quads, int magic)
{
    int32x4_t acc[16];
    if (quads == 16)
        tersor_start_16(acc, p->bias);
    else
        TERSOR_UNROLL
        for (int i = 0; i < quads; i++)
            acc[i] = vld1q_s32(p->bias);
    stream = add_row(acc, stream, p->count, x, quads);
    if (magic)
        narrow(out, acc, vdupq_n_f32(p->scale), *tersor_anew(bounds), quads, 1);
    else
        narrow(out, acc, vdupq_n_f32(p->scale), *tersor_anew(bounds), quads, 0);
    return stream;
}

/* Four channels, one after another, x 4 * quads pixels; the store interleaves their bytes. */
TERSOR_INLINE void four(const plan *plans, const int8_t *stream, const int8_t *x, int8_t *y, const tersor_bounds *bounds,
                        int quads, int magic)
{
    int8_t out[4 * 64]; /* [16 pixels][channel][pixel] */
    for (int k = 0; k < 4; k++)
        stream = row(plans + k, stream, x, out + 16 * k, bounds, quads, magic);
    TERSOR_UNROLL
    for (int i = 0; i < quads / 4; i++)
        vst4q_s8(y + 64 * i, vld1q_s8_x4(out + 64 * i));
}

/* Four channels x 4 pixels, requantized together. */
TERSOR_INLINE void four_small(const plan *plans, const int8_t *stream, const int8_t *x, int8_t *y, const float *scale,
                              const tersor_bounds *bounds, int magic)
{
    int32x4_t acc[4];
    TERSOR_UNROLL
    for (int k = 0; k < 4; k++) {
        acc[k] = vld1q_s32(plans[k].bias);
        stream = add_row(acc + k, stream, plans[k].count, x, 1);
    }
    if (magic)
        vst1q_s8(y, tersor_narrow_4x4(acc, vld1q_f32(scale), *bounds, 1));
    else
        vst1q_s8(y, tersor_narrow_4x4(acc, vld1q_f32(scale), *bounds, 0));
}

/* The plans of 4 channels; gives where the blocks behind theirs begin. */
static const int8_t *make_plans(plan *plans, const tersor_conv *conv, int32_t channel, const int32_t *counts,
                                const int8_t *stream)
{
    for (int k = 0; k < 4; k++) {
        vst1q_s32(plans[k].bias, vdupq_n_s32(conv->bias[channel + k]));
        plans[k].scale = conv->requantize.scale[channel + k];
        plans[k].count = counts[k];
        stream += (ptrdiff_t)counts[k] * RECORD;
    }
    return stream;
}

TERSOR_INLINE void tiles(const tersor_conv *conv, int32_t group, const int8_t *x, int8_t *y, ptrdiff_t y_block,
                         int32_t count, int quads)
{
    const tersor_stream s = tersor_stream_of(conv, group, ROWS);
    const tersor_bounds bounds = tersor_bounds_of(&conv->requantize);
    const int magic = conv->requantize.magic;
    const int8_t *stream = s.stream;
    for (int32_t h = 0; h < s.halves; h++, y += y_block) {
        const int32_t channel = group * TERSOR_GROUP + 4 * h;
        plan plans[4];
        const int8_t *const next = make_plans(plans, conv, channel, s.counts + 4 * h, stream), *in = x;
        int8_t *out = y;
        for (int32_t i = 0; i < count; i++, in += 16 * quads, out += 16 * quads)
            if (quads == 1)
                four_small(plans, stream, in, out, conv->requantize.scale + channel, &bounds, magic);
            else
                four(plans, stream, in, out, &bounds, quads, magic);
        stream = next;
    }
}

TERSOR_DEFINE_TILE(tile_1, 1)
TERSOR_DEFINE_TILE(tile_4, 4)
TERSOR_DEFINE_TILE(tile_8, 8)
TERSOR_DEFINE_TILE(tile_16, 16)

void tersor_conv_1x4_dotprod(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    static const tersor_tile sizes[] = {{64, 64, tile_16}, {32, 32, tile_8}, {9, 16, tile_4}, {1, 4, tile_1}};
    tersor_run_range(conv, x, y, range, sizes, sizes, BLOCK);
}

#endif
