/* Layers on row-major tensors: softmax, normalization, rows of a table, and the last layer's floats. Integer
 * arithmetic throughout; >> of a negative number rounds down, as every compiler for these machines does it. */
#include "layers.h"
#include "tersor_model.h"

#if TERSOR_NATIVE
#include <arm_neon.h>
#endif

static int8_t clamped(int64_t value, int32_t min, int32_t max)
{
    return (int8_t)(value < min ? min : value > max ? max : value);
}

/* hidden: bytes that are not zero where a value is left out, or null. A row that hides all of them is all zero. */
static void softmax_row(const tersor_softmax *s, const int8_t *hidden, const int8_t *x, int8_t *y)
{
    int32_t most = -128;
    int64_t total = 0;
    for (int32_t i = 0; i < s->length; i++)
        most = x[i] > most && !(hidden && hidden[i]) ? x[i] : most;
    for (int32_t i = 0; i < s->length; i++)
        total += hidden && hidden[i] ? 0 : s->exponentials[most - x[i]];
    const int64_t reciprocal = s->numerator / (total ? total : 1);
    for (int32_t i = 0; i < s->length; i++) {
        const int64_t term = hidden && hidden[i] ? 0 : s->exponentials[most - x[i]];
        y[i] = clamped(((term * reciprocal + ((int64_t)1 << 45)) >> 46) + s->zero_point, s->min, s->max);
    }
}

void tersor_layer_softmax(const tersor_softmax *s, const int8_t *x, int8_t *y, tersor_share share)
{
    const tersor_span rows = tersor_share_of(s->rows, share);
    for (int32_t row = rows.begin; row < rows.end; row++) {
        const int8_t *const hidden = s->hidden ? s->hidden + (ptrdiff_t)(row % s->hidden_rows) * s->length : NULL;
        softmax_row(s, hidden, x + (ptrdiff_t)row * s->length, y + (ptrdiff_t)row * s->length);
    }
}

/* The integer part of a square root, two bits a step. */
static int64_t root_of(int64_t value)
{
    int64_t root = 0;
    for (int64_t bit = (int64_t)1 << 62; bit; bit >>= 2) {
        const int64_t trial = root + bit;
        root >>= 1;
        if (value >= trial) {
            value -= trial;
            root += bit;
        }
    }
    return root;
}

/* `first`: which weight and bias the row begins with. */
static void normalize_row(const tersor_normalization *n, int32_t first, const int8_t *x, int8_t *y)
{
    int64_t total = 0, squares = 0;
    for (int32_t i = 0; i < n->length; i++) {
        const int32_t value = x[i] - n->zero_point;
        total += value;
        squares += value * value;
    }
    const int64_t mean = n->center ? total : 0;
    const int64_t root = root_of(((n->length * squares - mean * mean) << (2 * n->root_bits)) + n->epsilon);
    const int64_t reciprocal = ((int64_t)1 << 48) / (root ? root : 1);
    const int32_t shift = 36 - n->root_bits;
    for (int32_t begin = 0, at = first; begin < n->length; begin += n->run, at = at + 1 < n->parameters ? at + 1 : 0) {
        const int64_t weight = n->weight ? n->weight[at] : 1, bias = n->bias ? n->bias[at] : 0;
        for (int32_t i = begin; i < begin + n->run; i++) {
            const int64_t from_mean = (int64_t)n->length * (x[i] - n->zero_point) - mean;
            const int64_t normal = (from_mean * reciprocal + ((int64_t)1 << (shift - 1))) >> shift;
            y[i] = tersor_requantized((int32_t)(normal * weight + bias), 0, &n->requantize);
        }
    }
}

void tersor_layer_normalize(const tersor_normalization *n, const int8_t *x, int8_t *y, tersor_share share)
{
    const tersor_span rows = tersor_share_of(n->rows, share);
    for (int32_t row = rows.begin; row < rows.end; row++) {
        const int64_t first = (int64_t)row * (n->length / n->run) % n->parameters;
        normalize_row(n, (int32_t)first, x + (ptrdiff_t)row * n->length, y + (ptrdiff_t)row * n->length);
    }
}

int64_t tersor_index(const tersor_indices *indices, const void *input, int32_t at)
{
    const int32_t position = indices->positions ? indices->positions[at] : at;
    int32_t small;
    int64_t large;
    if (position < 0)
        return -1 - (int64_t)position;
    const char *const from = (const char *)input + (ptrdiff_t)position * indices->bytes;
    if (indices->bytes == sizeof small)
        return memcpy(&small, from, sizeof small), small;
    return memcpy(&large, from, sizeof large), large;
}

static int32_t greatest(const int8_t *x, int32_t length, int8_t flipped)
{
    int32_t place = 0;
    for (int32_t i = 1; i < length; i++)
        if ((x[i] ^ flipped) > (x[place] ^ flipped))
            place = i;
    return place;
}

void tersor_layer_place(const tersor_place *p, const int8_t *x, void *y, tersor_share share)
{
    const tersor_span rows = tersor_share_of(p->rows, share);
    for (int32_t row = rows.begin; row < rows.end; row++) {
        /* All bits turned, the order is turned. */
        const int32_t place = greatest(x + (ptrdiff_t)row * p->length, p->length, p->least ? -1 : 0);
        if (p->bytes == sizeof place)
            ((int32_t *)y)[row] = place;
        else
            ((int64_t *)y)[row] = place;
    }
}

void tersor_layer_gather(const tersor_indices *indices, const void *input, const int8_t *table, int32_t width, int8_t *y,
                         tersor_share share)
{
    const tersor_span rows = tersor_share_of(indices->count, share);
    for (int32_t row = rows.begin; row < rows.end; row++)
        memcpy(y + (ptrdiff_t)row * width, table + tersor_index(indices, input, row) * width, (size_t)width);
}

/* bias holds what the input's zero point takes off. Two products fit 16 bits: 2 * 128 * 127 < 2^15. */
static int32_t dot(const int8_t *x, const int8_t *w, int32_t count)
{
    int32_t acc = 0, i = 0;
#if TERSOR_NATIVE
    int32x4_t sums = vdupq_n_s32(0);
    for (; i + 16 <= count; i += 16) {
        const int8x16_t a = vld1q_s8(x + i), b = vld1q_s8(w + i);
        sums = vpadalq_s16(sums, vmlal_high_s8(vmull_s8(vget_low_s8(a), vget_low_s8(b)), a, b));
    }
    acc = vaddvq_s32(sums);
#endif
    for (; i < count; i++)
        acc += x[i] * w[i];
    return acc;
}

void tersor_layer_linear_float(const tersor_linear_float *l, const int8_t *x, float *y, tersor_share share)
{
    const tersor_span channels = tersor_share_of(l->out, share);
    for (int32_t row = 0; row < l->rows; row++)
        for (int32_t channel = channels.begin; channel < channels.end; channel++) {
            const int32_t acc = dot(x + (ptrdiff_t)row * l->in, l->weights + (ptrdiff_t)channel * l->in, l->in);
            y[(ptrdiff_t)row * l->out + channel] = (float)(acc + l->bias[channel]) * l->scale[l->shared ? 0 : channel];
        }
}
