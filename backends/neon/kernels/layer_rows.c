/* Layers on row-major tensors: products of two activations, softmax, normalization, and the last layer's floats. Integer
 * arithmetic throughout; >> of a negative number rounds down, as every compiler for these machines does it. */
#include "layers.h"

void tersor_layer_matmul(const tersor_product *p, const int8_t *a, const int8_t *b, int8_t *y, tersor_share share)
{
    const tersor_span rows = tersor_share_of(p->batch * p->m, share);
    for (int32_t row = rows.begin; row < rows.end; row++) {
        const int8_t *left = a + (ptrdiff_t)row * p->k, *right = b + (ptrdiff_t)(row / p->m) * p->k * p->n;
        for (int32_t j = 0; j < p->n; j++) {
            int32_t acc = 0;
            for (int32_t i = 0; i < p->k; i++)
                acc += (left[i] - p->zero_a) * (right[(ptrdiff_t)i * p->n + j] - p->zero_b);
            y[(ptrdiff_t)row * p->n + j] = tersor_requantized(acc, 0, &p->requantize);
        }
    }
}

static int8_t clamped(int64_t value, int32_t min, int32_t max)
{
    return (int8_t)(value < min ? min : value > max ? max : value);
}

static void softmax_row(const tersor_softmax *s, const int8_t *x, int8_t *y)
{
    int32_t most = -128;
    int64_t total = 0;
    for (int32_t i = 0; i < s->length; i++)
        most = x[i] > most ? x[i] : most;
    for (int32_t i = 0; i < s->length; i++)
        total += s->exponentials[most - x[i]];
    const int64_t reciprocal = s->numerator / total;
    for (int32_t i = 0; i < s->length; i++) {
        const int64_t steps = (s->exponentials[most - x[i]] * reciprocal + ((int64_t)1 << 45)) >> 46;
        y[i] = clamped(steps + s->zero_point, s->min, s->max);
    }
}

void tersor_layer_softmax(const tersor_softmax *s, const int8_t *x, int8_t *y, tersor_share share)
{
    const tersor_span rows = tersor_share_of(s->rows, share);
    for (int32_t row = rows.begin; row < rows.end; row++)
        softmax_row(s, x + (ptrdiff_t)row * s->length, y + (ptrdiff_t)row * s->length);
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

static void normalize_row(const tersor_normalization *n, const int8_t *x, int8_t *y)
{
    int64_t total = 0, squares = 0;
    for (int32_t i = 0; i < n->length; i++) {
        const int32_t value = x[i] - n->zero_point;
        total += value;
        squares += value * value;
    }
    const int64_t mean = n->center ? total : 0;
    const int64_t root = root_of((n->length * squares - mean * mean + n->epsilon) << 16);
    const int64_t reciprocal = ((int64_t)1 << 48) / (root ? root : 1);
    for (int32_t i = 0; i < n->length; i++) {
        const int64_t from_mean = (int64_t)n->length * (x[i] - n->zero_point) - mean;
        int64_t acc = (from_mean * reciprocal + ((int64_t)1 << 27)) >> 28;
        acc = n->weight ? acc * n->weight[i] : acc;
        acc = n->bias ? acc + n->bias[i] : acc;
        y[i] = tersor_requantized((int32_t)acc, 0, &n->requantize);
    }
}

void tersor_layer_normalize(const tersor_normalization *n, const int8_t *x, int8_t *y, tersor_share share)
{
    const tersor_span rows = tersor_share_of(n->rows, share);
    for (int32_t row = rows.begin; row < rows.end; row++)
        normalize_row(n, x + (ptrdiff_t)row * n->length, y + (ptrdiff_t)row * n->length);
}

void tersor_layer_linear_float(const tersor_linear_float *l, const int8_t *x, float *y, tersor_share share)
{
    const tersor_span channels = tersor_share_of(l->out, share);
    for (int32_t row = 0; row < l->rows; row++)
        for (int32_t channel = channels.begin; channel < channels.end; channel++) {
            const int8_t *values = x + (ptrdiff_t)row * l->in, *w = l->weights + (ptrdiff_t)channel * l->in;
            int32_t acc = l->bias[channel];
            for (int32_t i = 0; i < l->in; i++)
                acc += (values[i] - l->zero_point) * w[i];
            y[(ptrdiff_t)row * l->out + channel] = (float)acc * l->scale[l->shared ? 0 : channel];
        }
}
