/* Layers between the kernels of tersor_kernels.h, in portable C, and how threads share any of them. */
#ifndef TERSOR_LAYERS_H
#define TERSOR_LAYERS_H

#include "tersor_kernels.h"

/* One thread's share of a layer; the shares of a layer are disjoint. */
typedef struct {
    int32_t part, parts;
} tersor_share;

typedef struct {
    int32_t begin, end;
} tersor_span;

static inline tersor_span tersor_share_of(int32_t count, tersor_share share)
{
    const int64_t total = count;
    return (tersor_span){(int32_t)(total * share.part / share.parts), (int32_t)(total * (share.part + 1) / share.parts)};
}

/* Of a convolution: some of its pixels where there are many, in whole tiles; else some of its groups of channels. */
static inline tersor_range tersor_part_of(int32_t pixels, int32_t groups, tersor_share share)
{
    const int32_t tiles = (pixels + 15) / 16;
    tersor_range range = {0, pixels, 0, groups};
    if (tiles >= groups) {
        const tersor_span span = tersor_share_of(tiles, share);
        range.pixel_begin = span.begin * 16 < pixels ? span.begin * 16 : pixels;
        range.pixel_end = span.end * 16 < pixels ? span.end * 16 : pixels;
    } else {
        const tersor_span span = tersor_share_of(groups, share);
        range.group_begin = span.begin;
        range.group_end = span.end;
    }
    return range;
}

/* Divides every plane of rows x width pixels by its strides: y[block][i][row][column][B] has, for each phase wanted[i], the
 * pixels (dy + row * stride_y, dx + column * stride_x), where the phase is dy * stride_x + dx, in ceil(rows / stride_y) rows
 * of ceil(width / stride_x) pixels. Those that are not there are left as they are. Slack behind x is read. */
typedef struct {
    int32_t blocks, block, rows, width;
    int32_t x_block, x_row;
    int32_t stride_y, stride_x;
    const int32_t *wanted;
    int32_t count;
} tersor_phases;
void tersor_split_phases(const tersor_phases *phases, const int8_t *x, int8_t *y, tersor_share share);

/* [channel][row][pixel] <-> blocks: `bytes` is pixels in a row of the plain tensor, whose rows are `a_row` (to) or `y_row`
 * (from) bytes apart and channels a_block or y_block. Channels that fill up the last block become `rest`. */
void tersor_to_blocks(const tersor_planes *planes, int32_t block, int32_t channels, int8_t rest, const int8_t *a, int8_t *y,
                      tersor_share share);
void tersor_from_blocks(const tersor_planes *planes, int32_t block, int32_t channels, const int8_t *a, int8_t *y,
                        tersor_share share);

/* Copies `bytes` bytes at every step of nested loops, the outermost first; x and y are the strides in bytes. */
typedef struct {
    int32_t count, x, y;
} tersor_loop;
void tersor_copy_loops(const tersor_loop *loops, int32_t depth, int32_t bytes, const int8_t *x, int8_t *y,
                       tersor_share share);

/* The same where there is no order in it. runs: target, source and length in bytes, one after another. */
void tersor_copy_runs(const int32_t *runs, int32_t count, const int8_t *x, int8_t *y, tersor_share share);

/* Averages of windows that are cut at the plane's edge: acc = sum(x - zero_point) of what lies inside, requantized by
 * scale[position], or by scale[0] where shared. */
typedef struct {
    int32_t blocks, block, rows, width; /* of the input */
    int32_t x_block, x_row, y_block, y_row;
    int32_t out_rows, out_width;
    int32_t kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x;
    int32_t zero_point, shared;
    tersor_requantize requantize;
} tersor_window;

void tersor_layer_average(const tersor_window *window, const int8_t *x, int8_t *y, tersor_share share);

/* a[batch][m][k] x b[batch][k][n], acc = sum((a - za) * (b - zb)), requantized by scale[0]; a and y are row-major. b_row and
 * b_column are the bytes from one row of b to the next and from one column, so b may lie transposed. It is packed first, into
 * TERSOR_PANELS_SIZE(batch, k, n) bytes, aligned to 4. Up to 3 bytes behind a are read. */
#define TERSOR_PANELS_SIZE(BATCH, K, N) ((BATCH) * (((N) + 15) / 16) * (64 + ((K) + 3) / 4 * 64))
typedef struct {
    int32_t batch, m, k, n, b_row, b_column, zero_a, zero_b;
    tersor_requantize requantize;
} tersor_product;

typedef void tersor_product_kernel(const tersor_product *product, const int8_t *a, const int8_t *panels, int8_t *y,
                                   tersor_share share);
void tersor_pack_product(const tersor_product *product, const int8_t *b, int8_t *panels, tersor_share share);
tersor_product_kernel tersor_matmul_neon, tersor_matmul_dotprod, tersor_matmul_portable;

/* x[rows][length]; exponentials[256] with 20 fractional bits; numerator is round(2^46 / output scale). */
typedef struct {
    int32_t rows, length;
    const int32_t *exponentials;
    int64_t numerator;
    int32_t zero_point, min, max;
    const int8_t *hidden; /* not zero where a value is left out: int8[hidden_rows][length], again and again; or null */
    int32_t hidden_rows;
} tersor_softmax;

/* y[row] = where in x[rows][length] the greatest value of a row stands, or the least; of several, the first. y is of
 * int32_t or int64_t. */
typedef struct {
    int32_t rows, length, bytes, least;
} tersor_place;

void tersor_layer_place(const tersor_place *place, const int8_t *x, void *y, tersor_share share);

void tersor_layer_softmax(const tersor_softmax *softmax, const int8_t *x, int8_t *y, tersor_share share);

/* x[rows][length], normalized with 12 fractional bits, times weight plus bias (either may be null), requantized by
 * scale[0]. center: less the mean, as layer norm; else RMS norm. Values have a weight and a bias together in runs of `run`,
 * which divides length, and begin again after `parameters` of them. root_bits: fractional bits of the root. */
typedef struct {
    int32_t rows, length, run, parameters, root_bits, zero_point, center;
    int64_t epsilon;
    const int32_t *weight, *bias;
    tersor_requantize requantize;
} tersor_normalization;

void tersor_layer_normalize(const tersor_normalization *normalization, const int8_t *x, int8_t *y, tersor_share share);

/* `count` numbers of an input, each of 4 or 8 bytes: those at the positions, or all in order where that is null. A position
 * below 0 is no place but a number itself: -1 - number. */
typedef struct {
    int32_t count, bytes;
    const int32_t *positions;
} tersor_indices;

/* y[count][width] = table[number][width]. Every number has a row: tersor_indices_within was asked. */
void tersor_layer_gather(const tersor_indices *indices, const void *input, const int8_t *table, int32_t width, int8_t *y,
                         tersor_share share);
int64_t tersor_index(const tersor_indices *indices, const void *input, int32_t at);

/* x[rows][in], weights[out][in]; y = float(sum(x * weight) + bias) * scale[channel], or scale[0] where shared; the bias holds
 * what the zero point of x takes off. */
typedef struct {
    int32_t rows, in, out, shared;
    const int8_t *weights;
    const int32_t *bias;
    const float *scale;
} tersor_linear_float;

void tersor_layer_linear_float(const tersor_linear_float *linear, const int8_t *x, float *y, tersor_share share);

#endif
