/* SDOT by lane: 4 channels of 4 pixels by 4 channels of one output channel. */
#ifndef TERSOR_DOTPROD_H
#define TERSOR_DOTPROD_H

/* GCC takes the instruction set from here. Clang wants it from the command line: -march=armv8.2-a+dotprod, for the files
 * that include this one and for no others. */
#if !defined(__ARM_FEATURE_DOTPROD)
#if defined(__clang__)
#error "compile this file with -march=armv8.2-a+dotprod"
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#endif

#include "neon_loads.h"
#include "requantize_neon.h"

/* `lane` is a constant after unrolling; clang wants it to be one already in the source. */
TERSOR_INLINE int32x4_t tersor_dot(int32x4_t acc, int8x16_t x, int8x16_t w, int lane)
{
    switch (lane) {
    case 0: return vdotq_laneq_s32(acc, x, w, 0);
    case 1: return vdotq_laneq_s32(acc, x, w, 1);
    case 2: return vdotq_laneq_s32(acc, x, w, 2);
    default: return vdotq_laneq_s32(acc, x, w, 3);
    }
}

#endif
