/* Integer kernels on channel-blocked int8 tensors.
 *
 * ACTIVATIONS. A tensor of C channels is x[ceil(C / B)][pixel][B]: B = 4 for the kernels of baseline NEON and dotprod, B = 8
 * for those of i8mm. A plane is a row-major grid of pixels with whatever border its readers need, filled with the tensor's
 * zero point, so a convolution reads its padding like any other pixel. Channels that fill up the last block may hold
 * anything: their weights are zero.
 *
 * SLACK. Kernels compute whole tiles and store only what was asked for, so they may read (never use, never write) up to
 * TERSOR_SLACK bytes behind the last pixel of a tensor: every activation buffer ends with that many readable bytes.
 * Weights, biases, scales and tables are read up to their stated ends and no further.
 *
 * ARITHMETIC. acc = bias + sum(x * weight) in int32, where bias already holds -zero_point_of_x * sum(weight); then
 * q = clamp(round_half_even(float(acc) * scale) + zero_point, min, max), product and sum in float32, never contracted. The
 * caller answers for |acc| < 2^31 and for weights in [-127, 127].
 *
 * Nothing here allocates or writes a global: any kernel may run in several threads at once, and several threads may share
 * one layer by disjoint ranges.
 */
#ifndef TERSOR_KERNELS_H
#define TERSOR_KERNELS_H

#include <stdint.h>

#include "tersor_names.h"

#define TERSOR_SLACK 64

/* Channels in one group: what tersor_range counts, and what the packed weights are divided by. */
#define TERSOR_GROUP 8

/* 1.5 * 2^23: a float32 near it has steps of 1, so adding it rounds half to even; as bits, its low half is zero. */
#define TERSOR_MAGIC 12582912.0f
#define TERSOR_MAGIC_BITS 0x4B400000

/* scale has one entry a channel, filled up to whole groups. magic: proven |acc| < 2^22 and |acc * scale| <= 32767; then the
 * biases given to the kernel hold TERSOR_MAGIC_BITS as well. The result is the same bits; it costs less. */
typedef struct {
    const float *scale;
    int32_t zero_point;
    int32_t min;
    int32_t max;
    int32_t magic;
} tersor_requantize;

/* Bytes of up to three tensors: `rows` rows of `bytes` bytes in each of `blocks` blocks. In a range rows are counted block
 * by block over blocks * rows. No slack is read. */
typedef struct {
    int32_t blocks, rows, bytes;
    int32_t a_block, a_row;
    int32_t b_block, b_row;
    int32_t y_block, y_row;
} tersor_planes;

/* q stands for (q - zero_point) * scale. */
typedef struct {
    float scale;
    int32_t zero_point;
} tersor_grid;

/* add: q = clamp(round_half_even(((a - za) * sa + (b - zb) * sb) / sy) + zy, min, max), each step in float32.
 * mul: acc = (a - za) * (b - zb), then q = clamp(round_half_even(float(acc) * multiplier) + zy, min, max).
 * shift, 2 to 6 where a sum is proven to be the same for every pair, else 0: acc = (a - za) * a_factor + (b - zb) * b_factor
 * in int32, q = clamp((((acc >> 16) + (zy << shift) + (1 << (shift - 1))) >> shift, min, max). */
typedef struct {
    tersor_planes planes;
    tersor_grid a, b, y;
    float multiplier;
    int32_t min, max;
    int32_t a_factor, b_factor, shift;
} tersor_binary;

/* A sum that follows a convolution: y = add(y, b), where y stands. `sum` is as for tersor_add, but for its planes. */
typedef struct {
    tersor_binary sum;
    const int8_t *b;
    int32_t b_block, b_row;
} tersor_residual;

/* A convolution of stride 1 over `rows` x `width` output pixels; also a linear layer, whose pixels are the rows of its
 * input. Output pixel (row, column), tap t and input block b read the pixel at
 *     x + row * x_row + column * B + tap_offsets[t] + b * x_block,
 * which covers dilation, any border, and strides, whose input is first divided into phases (tersor_split_phases).
 * All strides and offsets are in bytes. Where rows follow each other without a gap in both tensors they are run as one.
 * Sparse kernels ignore blocks, taps, x_block and tap_offsets: their stream holds finished offsets. */
typedef struct {
    int32_t channels; /* of the output */
    int32_t rows, width;
    int32_t blocks; /* of the input */
    int32_t taps;
    int32_t x_block, x_row;
    int32_t y_block, y_row;
    const int32_t *tap_offsets;
    const int8_t *weights;         /* packed by pack.py */
    const int32_t *group_starts;   /* sparse: where each group of 8 channels begins in weights, in bytes */
    const int32_t *block_counts;   /* sparse: non-zero blocks of each row group, 8 / rows-of-a-block entries a group */
    const int32_t *bias;           /* one a channel, filled up to whole groups */
    tersor_requantize requantize;
    const tersor_residual *residual; /* or null; the kernels of linear layers take none */
} tersor_conv;

/* Pixels are counted row by row over rows * width; groups are of TERSOR_GROUP output channels. */
typedef struct {
    int32_t pixel_begin, pixel_end;
    int32_t group_begin, group_end;
} tersor_range;

typedef void tersor_conv_kernel(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range);

/* What the convolution kernels call for conv->residual, group by group; `block` is B. */
typedef void tersor_residual_kernel(const tersor_conv *conv, int8_t *y, tersor_range range, int32_t block);
tersor_residual_kernel tersor_add_residual_neon, tersor_add_residual_portable;

/* Dense. Weights: for each group of 8 channels, tap, input block: [channel][B]; a last group of at most 4 channels is
 * stored as 4 rows where B = 4. i8mm: rows in the order 0 4 1 5 2 6 3 7. neon: the same with groups of 4. */
tersor_conv_kernel tersor_conv_dense_neon, tersor_conv_dense_dotprod, tersor_conv_dense_i8mm;

/* Sparse, named by the rows (output channels) and columns (input channels) of a block. A group of 8 channels is 8 / rows
 * row groups (half as many where only 4 channels are left), each a list of non-zero blocks: int32 offset, then its
 * weights row by row. 1x4: blocks in pairs, both offsets first; an odd last block alone. 4x8: rows in the order 0 2 1 3. */
tersor_conv_kernel tersor_conv_1x4_neon, tersor_conv_1x4_dotprod, tersor_conv_2x4_dotprod, tersor_conv_4x4_dotprod;
tersor_conv_kernel tersor_conv_2x8_i8mm, tersor_conv_4x8_i8mm;

/* A linear layer on one row of input (rows = width = 1), on the weights of the convolution kernel of the same name. Its
 * input and output are the same bytes in blocks of 4 and of 8, so i8mm, which computes two rows at a time, uses these too.
 * They read no slack. */
tersor_conv_kernel tersor_linear_dense_neon, tersor_linear_dense_dotprod, tersor_linear_4x4_dotprod;

/* Depthwise, in blocks of 4 and of 8; `blocks` is ignored. Weights: [block][tap][B]. */
tersor_conv_kernel tersor_depthwise_c4_neon, tersor_depthwise_c8_neon;

/* The same functions of the same data in portable C. A linear layer is a convolution of one pixel. */
tersor_conv_kernel tersor_conv_dense_neon_portable, tersor_conv_dense_dotprod_portable, tersor_conv_dense_i8mm_portable;
tersor_conv_kernel tersor_conv_1x4_portable, tersor_conv_2x4_portable, tersor_conv_4x4_portable;
tersor_conv_kernel tersor_conv_2x8_portable, tersor_conv_4x8_portable;
tersor_conv_kernel tersor_depthwise_c4_portable, tersor_depthwise_c8_portable;

/* Pooling over windows of `taps` offsets, which are as a convolution's; `block` is B. max: the border has to hold -128.
 * average: acc = bias + sum(x), where bias is -taps * zero_point_of_x (with TERSOR_MAGIC_BITS where requantize.magic), then
 * requantized with scale[0]; at most 65536 taps. In a range, groups are blocks of B channels. */
typedef struct {
    int32_t block;
    int32_t rows, width;
    int32_t taps;
    int32_t x_block, x_row;
    int32_t y_block, y_row;
    const int32_t *tap_offsets;
    int32_t bias;
    tersor_requantize requantize;
} tersor_pool;

typedef void tersor_pool_kernel(const tersor_pool *pool, const int8_t *x, int8_t *y, tersor_range range);
tersor_pool_kernel tersor_max_pool_neon, tersor_average_pool_neon;
tersor_pool_kernel tersor_max_pool_portable, tersor_average_pool_portable;

/* The average of whole planes of rows x width pixels, to one pixel a block: taps and tap_offsets are ignored, y_row is too,
 * and of a range only the groups count. At most 65536 pixels. */
tersor_pool_kernel tersor_global_pool_neon, tersor_global_pool_portable;

typedef void tersor_binary_kernel(const tersor_binary *binary, const int8_t *a, const int8_t *b, int8_t *y,
                                  int32_t row_begin, int32_t row_end);
tersor_binary_kernel tersor_add_neon, tersor_mul_neon, tersor_add_portable, tersor_mul_portable;

/* y = table[(uint8_t)a]: 256 entries, for 0 to 127 and then for -128 to -1. */
typedef void tersor_lookup_kernel(const tersor_planes *planes, const int8_t *table, const int8_t *a, int8_t *y,
                                  int32_t row_begin, int32_t row_end);
tersor_lookup_kernel tersor_lookup_neon, tersor_lookup_portable;

/* Fills the border of every plane: `top` and `bottom` rows, `left` and `right` pixels of a y_row, around planes->rows rows of
 * planes->bytes bytes. y is where the first row of the border begins, y_block the bytes of a plane with its border. */
typedef struct {
    int32_t top, bottom, left, right;
} tersor_border;
/* The whole of it, where that takes fewer stores. */
void tersor_fill(int8_t *y, int32_t bytes, int8_t value);
void tersor_fill_border(const tersor_planes *planes, tersor_border border, int32_t block, int8_t value, int8_t *y);

/* q = clamp(round_half_even(x / scale) + zero_point, min, max), not-a-number becomes min; x = (q - zero_point) * scale. */
typedef void tersor_quantize_kernel(const float *x, int8_t *y, int32_t count, tersor_grid grid, int32_t min, int32_t max);
typedef void tersor_dequantize_kernel(const int8_t *x, float *y, int32_t count, tersor_grid grid);
tersor_quantize_kernel tersor_quantize_neon, tersor_quantize_portable;
tersor_dequantize_kernel tersor_dequantize_neon, tersor_dequantize_portable;

#endif
