/* The stream of a group: for each row group in turn its non-zero blocks, as many as block_counts says. */
#ifndef TERSOR_SPARSE_H
#define TERSOR_SPARSE_H

#include "inline.h"

/* Where one tile reads. `counts` has one entry for each row group of the group. */
typedef struct {
    const int8_t *stream;
    const int32_t *counts;
    int32_t halves; /* blocks of 4 output channels: 1 in a last group of at most 4 channels */
} tersor_stream;

TERSOR_INLINE tersor_stream tersor_stream_of(const tersor_conv *conv, int32_t group, int32_t rows)
{
    tersor_stream s;
    s.stream = conv->weights + conv->group_starts[group];
    s.counts = conv->block_counts + (ptrdiff_t)group * (TERSOR_GROUP / rows);
    s.halves = conv->channels - group * TERSOR_GROUP > 4 ? 2 : 1;
    return s;
}

#endif
