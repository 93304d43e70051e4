/* What every kernel file starts with: no contraction, forced inlining and unrolling. */
#ifndef TERSOR_INLINE_H
#define TERSOR_INLINE_H

#include <float.h>
#include <stddef.h>
#include <string.h>

#include "tersor_kernels.h"

/* A fused multiply-add rounds once where the definition rounds twice. GCC heeds no pragma about it, so build files pass
 * -ffp-contract=off. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#define TERSOR_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TERSOR_UNROLL _Pragma("GCC unroll 64")
#endif

#if FLT_EVAL_METHOD != 0
#error "float32 arithmetic with excess precision gives other bits"
#endif

/* Weights and tables are little-endian in the file, and kernels take four bytes at once for a number. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "this library is for little-endian processors"
#endif

#define TERSOR_INLINE static inline __attribute__((always_inline))

TERSOR_INLINE int32_t tersor_load32(const int8_t *p)
{
    int32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

/* Two int32 that follow each other: the first in the low half. */
TERSOR_INLINE int64_t tersor_load64(const int8_t *p)
{
    int64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

#endif
