/* Walks the rows of up to three tensors. */
#ifndef TERSOR_PLANES_H
#define TERSOR_PLANES_H

#include "inline.h"

/* Whole rows that follow each other without a gap in all three tensors. */
typedef struct {
    ptrdiff_t a, b, y; /* offsets of the first byte */
    int32_t rows, bytes;
} tersor_rows;

/* The rows from `row` on, up to `end`, that are one run of bytes. */
TERSOR_INLINE tersor_rows tersor_rows_at(const tersor_planes *p, int32_t row, int32_t end)
{
    const int32_t block = row / p->rows, in_block = row % p->rows;
    const int flat = p->a_row == p->bytes && p->b_row == p->bytes && p->y_row == p->bytes;
    const int32_t left = end - row < p->rows - in_block ? end - row : p->rows - in_block;
    tersor_rows r;
    r.a = (ptrdiff_t)block * p->a_block + (ptrdiff_t)in_block * p->a_row;
    r.b = (ptrdiff_t)block * p->b_block + (ptrdiff_t)in_block * p->b_row;
    r.y = (ptrdiff_t)block * p->y_block + (ptrdiff_t)in_block * p->y_row;
    r.rows = flat ? left : 1;
    r.bytes = r.rows * p->bytes;
    return r;
}

#endif
