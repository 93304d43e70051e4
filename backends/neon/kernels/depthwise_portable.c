/* Depthwise convolution in portable C. */
#include "requantize_portable.h"

static int8_t value(const tersor_conv *conv, int32_t channel, int32_t block, const int8_t *x)
{
    const int8_t *w = conv->weights + (ptrdiff_t)(channel / block) * block * conv->taps + channel % block;
    int32_t acc = tersor_plain_bias(conv, channel);
    x += (ptrdiff_t)(channel / block) * conv->x_block + channel % block;
    for (int32_t tap = 0; tap < conv->taps; tap++)
        acc += x[conv->tap_offsets[tap]] * w[tap * block];
    return tersor_requantized(acc, channel, &conv->requantize);
}

static void run(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range, int32_t block)
{
    const int32_t whole = (conv->channels + block - 1) / block * block;
    const int32_t last = range.group_end * TERSOR_GROUP < whole ? range.group_end * TERSOR_GROUP : whole;
    for (int32_t c = range.group_begin * TERSOR_GROUP; c < last; c++)
        for (int32_t pixel = range.pixel_begin; pixel < range.pixel_end; pixel++) {
            const int32_t row = pixel / conv->width, column = pixel % conv->width;
            y[(ptrdiff_t)(c / block) * conv->y_block + (ptrdiff_t)row * conv->y_row + (ptrdiff_t)column * block + c % block] =
                value(conv, c, block, x + (ptrdiff_t)row * conv->x_row + (ptrdiff_t)column * block);
        }
    if (conv->residual)
        tersor_add_residual_portable(conv, y, range, block);
}

void tersor_depthwise_c4_portable(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    run(conv, x, y, range, 4);
}

void tersor_depthwise_c8_portable(const tersor_conv *conv, const int8_t *x, int8_t *y, tersor_range range)
{
    run(conv, x, y, range, 8);
}
