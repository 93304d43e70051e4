/* Products of two activations: the right side is packed into panels first, by another step.
 *
 * A panel is 16 columns of b: int32 start[16], then for every 4 rows of b: [16 columns][4 rows] of bytes, zeros where b has
 * ended. start = sum over k of za * (zb - b), so that acc = start + sum(a * b) - zb * sum(a) is the sum of
 * (a - za) * (b - zb). */
#ifndef TERSOR_MATMUL_H
#define TERSOR_MATMUL_H

#include "tersor_layers.h"

#include "inline.h"

enum { TERSOR_PANEL = 16 };

TERSOR_INLINE int32_t tersor_panels(const tersor_product *p)
{
    return (p->n + TERSOR_PANEL - 1) / TERSOR_PANEL;
}

TERSOR_INLINE ptrdiff_t tersor_panel_bytes(const tersor_product *p)
{
    return TERSOR_PANEL * 4 + (ptrdiff_t)((p->k + 3) / 4) * 4 * TERSOR_PANEL;
}

/* zb times the sum of one row of a. */
TERSOR_INLINE int32_t tersor_row_share(const tersor_product *p, const int8_t *a)
{
    int32_t sum = 0;
    if (p->zero_b == 0)
        return 0;
    for (int32_t i = 0; i < p->k; i++)
        sum += a[i];
    return p->zero_b * sum;
}

#endif
