/* What a generated model consists of: one list of steps for each instruction set. */
#ifndef TERSOR_MODEL_H
#define TERSOR_MODEL_H

#include <stddef.h>

#include "tersor_layers.h"

#if defined(__aarch64__) && !defined(TERSOR_PORTABLE)
#define TERSOR_NATIVE 1
#else
#define TERSOR_NATIVE 0
#endif

/* One layer, or one thread's share of it. Steps run in order; all shares of a step before any of the next. */
typedef void tersor_step(const int8_t *weights, int8_t *arena, const void *const *inputs, void *const *outputs,
                         tersor_share share);

typedef struct {
    const char *name;
    tersor_step *const *steps;
    int32_t count;
    size_t arena_size;
} tersor_variant;

/* What weights.bin begins with; `checksum` is the CRC-32 of all that follows this. */
#define TERSOR_WEIGHTS "tersor1"
typedef struct {
    char name[8];
    uint64_t size;
    uint32_t checksum, zero;
} tersor_weights_head;

int tersor_has_head(const void *weights, const tersor_weights_head *head);
int tersor_is_whole(const void *weights, const tersor_weights_head *head); /* looks at every byte */

/* Whether each number that `gather` looks up has a row among `rows`. */
int tersor_indices_within(const tersor_indices *indices, const void *input, int64_t rows);

/* 0 where float32 arithmetic is what the model was proven with: rounded to nearest even, never contracted. */
int tersor_check_arithmetic(void);

/* The best of the variants, which are ordered from the plainest, for this processor; the environment variable TERSOR_ISA
 * names another. NULL where that name is none of them, or this processor lacks it. */
const tersor_variant *tersor_choose(const tersor_variant *const *variants, int32_t count);

#endif
