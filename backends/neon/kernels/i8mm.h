/* SMMLA: 8 channels of 2 pixels by 8 channels of 2 output channels. */
#ifndef TERSOR_I8MM_H
#define TERSOR_I8MM_H

/* GCC takes the instruction set from here. Clang wants it from the command line: -march=armv8.2-a+i8mm, for the files that
 * include this one and for no others. */
#if !defined(__ARM_FEATURE_MATMUL_INT8)
#if defined(__clang__)
#error "compile this file with -march=armv8.2-a+i8mm"
#else
#pragma GCC target("arch=armv8.2-a+i8mm")
#endif
#endif

#include "neon_loads.h"
#include "requantize_neon.h"
#include "tiling.h"

/* Lanes 0 1 0 1 (pair 0) or 2 3 2 3 (pair 1): what belongs to accumulators of [2 pixels][2 channels]. */
TERSOR_INLINE int32x4_t tersor_pair_s32(int32x4_t v, int pair)
{
    return vreinterpretq_s32_s64(pair ? vdupq_laneq_s64(vreinterpretq_s64_s32(v), 1)
                                      : vdupq_laneq_s64(vreinterpretq_s64_s32(v), 0));
}

TERSOR_INLINE float32x4_t tersor_pair_f32(float32x4_t v, int pair)
{
    return vreinterpretq_f32_s32(tersor_pair_s32(vreinterpretq_s32_f32(v), pair));
}

#endif
