/* Loads of several registers in one instruction, at a pointer that moves on by itself.
 *
 * C cannot ask for it: compilers form the post-indexed ld1 of a list only with a constant step, and a list of consecutive
 * registers beside 24 accumulators makes them spill. So each is one instruction of assembly into fixed registers. They are
 * volatile: kept in order, which also keeps two steps from overlapping and running out of registers. */
#ifndef TERSOR_NEON_LOADS_H
#define TERSOR_NEON_LOADS_H

#include <arm_neon.h>

#include "inline.h"

/* What an instruction reads, so that it is not moved before what wrote it. */
#define TERSOR_READS(P, BYTES) "m"(*(const int8_t(*)[BYTES])(const void *)(P))

/* NAME(v, n, p, step): n registers (1 to 4, a constant) at *p, which then moves on by `step` bytes. */
#define TERSOR_DEFINE_LOAD(NAME, A, B, C, D)                                                                           \
    TERSOR_INLINE void NAME(int8x16_t *v, int n, const int8_t **p, ptrdiff_t step)                                     \
    {                                                                                                                  \
        register int8x16_t a __asm__(A), b __asm__(B), c __asm__(C), d __asm__(D);                                     \
        switch (n) {                                                                                                   \
        case 1:                                                                                                        \
            __asm__ volatile("ld1 {" A ".16b}, [%0], %2" : "+r"(*p), "=w"(a) : "r"(step), TERSOR_READS(*p, 16));       \
            v[0] = a;                                                                                                  \
            break;                                                                                                     \
        case 2:                                                                                                        \
            __asm__ volatile("ld1 {" A ".16b, " B ".16b}, [%0], %3"                                                    \
                             : "+r"(*p), "=w"(a), "=w"(b) : "r"(step), TERSOR_READS(*p, 32));                          \
            v[0] = a, v[1] = b;                                                                                        \
            break;                                                                                                     \
        case 3:                                                                                                        \
            __asm__ volatile("ld1 {" A ".16b-" C ".16b}, [%0], %4"                                                     \
                             : "+r"(*p), "=w"(a), "=w"(b), "=w"(c) : "r"(step), TERSOR_READS(*p, 48));                 \
            v[0] = a, v[1] = b, v[2] = c;                                                                              \
            break;                                                                                                     \
        default:                                                                                                       \
            __asm__ volatile("ld1 {" A ".16b-" D ".16b}, [%0], %5"                                                     \
                             : "+r"(*p), "=w"(a), "=w"(b), "=w"(c), "=w"(d) : "r"(step), TERSOR_READS(*p, 64));        \
            v[0] = a, v[1] = b, v[2] = c, v[3] = d;                                                                    \
            break;                                                                                                     \
        }                                                                                                              \
    }
TERSOR_DEFINE_LOAD(tersor_load_pixels, "v0", "v1", "v2", "v3")
TERSOR_DEFINE_LOAD(tersor_load_more_pixels, "v20", "v21", "v22", "v23")

/* n registers (1, 2 or 4, a constant) at *w, which then moves behind them. */
TERSOR_INLINE void tersor_load_weights(int8x16_t *v, int n, const int8_t **w)
{
    register int8x16_t a __asm__("v4"), b __asm__("v5"), c __asm__("v6"), d __asm__("v7");
    switch (n) {
    case 1:
        __asm__ volatile("ld1 {v4.16b}, [%0], #16" : "+r"(*w), "=w"(a) : TERSOR_READS(*w, 16));
        v[0] = a;
        break;
    case 2:
        __asm__ volatile("ld1 {v4.16b, v5.16b}, [%0], #32" : "+r"(*w), "=w"(a), "=w"(b) : TERSOR_READS(*w, 32));
        v[0] = a, v[1] = b;
        break;
    default:
        __asm__ volatile("ld1 {v4.16b-v7.16b}, [%0], #64"
                         : "+r"(*w), "=w"(a), "=w"(b), "=w"(c), "=w"(d) : TERSOR_READS(*w, 64));
        v[0] = a, v[1] = b, v[2] = c, v[3] = d;
        break;
    }
}

/* NAME(v, w): four words at *w, each repeated through a register. */
#define TERSOR_DEFINE_REPEAT(NAME, A, B, C, D)                                                                         \
    TERSOR_INLINE void NAME(int8x16_t v[4], const int8_t **w)                                                          \
    {                                                                                                                  \
        register int8x16_t a __asm__(A), b __asm__(B), c __asm__(C), d __asm__(D);                                     \
        __asm__ volatile("ld4r {" A ".4s-" D ".4s}, [%0], #16"                                                         \
                         : "+r"(*w), "=w"(a), "=w"(b), "=w"(c), "=w"(d) : TERSOR_READS(*w, 16));                       \
        v[0] = a, v[1] = b, v[2] = c, v[3] = d;                                                                        \
    }
TERSOR_DEFINE_REPEAT(tersor_repeat_weights, "v4", "v5", "v6", "v7")
TERSOR_DEFINE_REPEAT(tersor_repeat_more_weights, "v16", "v17", "v18", "v19")

/* 16 accumulators in v8 to v23, four times the four elements at p, each repeated through a register. One instruction
 * where copies take four; all at once, or GCC finds room to exchange them. */
TERSOR_INLINE void tersor_start_16(int32x4_t *acc, const int32_t *p)
{
    register int32x4_t r0 __asm__("v8"), r1 __asm__("v9"), r2 __asm__("v10"), r3 __asm__("v11");
    register int32x4_t r4 __asm__("v12"), r5 __asm__("v13"), r6 __asm__("v14"), r7 __asm__("v15");
    register int32x4_t r8 __asm__("v16"), r9 __asm__("v17"), r10 __asm__("v18"), r11 __asm__("v19");
    register int32x4_t r12 __asm__("v20"), r13 __asm__("v21"), r14 __asm__("v22"), r15 __asm__("v23");
    __asm__ volatile("ld4r {v8.4s-v11.4s}, [%16]\n\tld4r {v12.4s-v15.4s}, [%16]\n\t"
                     "ld4r {v16.4s-v19.4s}, [%16]\n\tld4r {v20.4s-v23.4s}, [%16]"
                     : "=w"(r0), "=w"(r1), "=w"(r2), "=w"(r3), "=w"(r4), "=w"(r5), "=w"(r6), "=w"(r7), "=w"(r8),
                       "=w"(r9), "=w"(r10), "=w"(r11), "=w"(r12), "=w"(r13), "=w"(r14), "=w"(r15)
                     : "r"(p), TERSOR_READS(p, 16));
    acc[0] = r0, acc[1] = r1, acc[2] = r2, acc[3] = r3;
    acc[4] = r4, acc[5] = r5, acc[6] = r6, acc[7] = r7;
    acc[8] = r8, acc[9] = r9, acc[10] = r10, acc[11] = r11;
    acc[12] = r12, acc[13] = r13, acc[14] = r14, acc[15] = r15;
}

/* NAME(acc, p, q): the same for 24 in v8 to v31: three times the four elements at p (".4s": int32; ".2d": pairs of them),
 * three times those at q. */
#define TERSOR_DEFINE_START_24(NAME, SIZE, BYTES)                                                                      \
    TERSOR_INLINE void NAME(int32x4_t *acc, const       int32_t *p, const int32_t *q)                                     \
    {                                                                                                                  \
        register int32x4_t r0 __asm__("v8"), r1 __asm__("v9"), r2 __asm__("v10"), r3 __asm__("v11");                   \
        register int32x4_t r4 __asm__("v12"), r5 __asm__("v13"), r6 __asm__("v14"), r7 __asm__("v15");                 \
        register int32x4_t r8 __asm__("v16"), r9 __asm__("v17"), r10 __asm__("v18"), r11 __asm__("v19");               \
        register int32x4_t r12 __asm__("v20"), r13 __asm__("v21"), r14 __asm__("v22"), r15 __asm__("v23");             \
        register int32x4_t r16 __asm__("v24"), r17 __asm__("v25"), r18 __asm__("v26"), r19 __asm__("v27");             \
        register int32x4_t r20 __asm__("v28"), r21 __asm__("v29"), r22 __asm__("v30"), r23 __asm__("v31");             \
        __asm__ volatile("ld4r {v8" SIZE "-v11" SIZE "}, [%24]\n\tld4r {v12" SIZE "-v15" SIZE "}, [%24]\n\t"           \
                         "ld4r {v16" SIZE "-v19" SIZE "}, [%24]\n\tld4r {v20" SIZE "-v23" SIZE "}, [%25]\n\t"          \
                         "ld4r {v24" SIZE "-v27" SIZE "}, [%25]\n\tld4r {v28" SIZE "-v31" SIZE "}, [%25]"              \
                         : "=w"(r0), "=w"(r1), "=w"(r2), "=w"(r3),                                                     \
                           "=w"(r4), "=w"(r5), "=w"(r6), "=w"(r7),                                                     \
                           "=w"(r8), "=w"(r9), "=w"(r10), "=w"(r11),                                                   \
                           "=w"(r12), "=w"(r13), "=w"(r14), "=w"(r15),                                                 \
                           "=w"(r16), "=w"(r17), "=w"(r18), "=w"(r19),                                                 \
                           "=w"(r20), "=w"(r21), "=w"(r22), "=w"(r23)                                                  \
                         : "r"(p), "r"(q), TERSOR_READS(p, BYTES), TERSOR_READS(q, BYTES));                            \
        acc[0] = r0, acc[1] = r1, acc[2] = r2, acc[3] = r3;                                                            \
        acc[4] = r4, acc[5] = r5, acc[6] = r6, acc[7] = r7;                                                            \
        acc[8] = r8, acc[9] = r9, acc[10] = r10, acc[11] = r11;                                                        \
        acc[12] = r12, acc[13] = r13, acc[14] = r14, acc[15] = r15;                                                    \
        acc[16] = r16, acc[17] = r17, acc[18] = r18, acc[19] = r19;                                                    \
        acc[20] = r20, acc[21] = r21, acc[22] = r22, acc[23] = r23;                                                    \
    }
TERSOR_DEFINE_START_24(tersor_start_24, ".4s", 16)
TERSOR_DEFINE_START_24(tersor_start_24_pairs, ".2d", 32)

/* No instruction: the accumulators are where tersor_start put them. Said behind a loop, it keeps GCC from moving them before
 * it to where they are wanted after it. */
TERSOR_INLINE void tersor_stay_16(const int32x4_t *acc)
{
    register int32x4_t r0 __asm__("v8") = acc[0], r1 __asm__("v9") = acc[1];
    register int32x4_t r2 __asm__("v10") = acc[2], r3 __asm__("v11") = acc[3];
    register int32x4_t r4 __asm__("v12") = acc[4], r5 __asm__("v13") = acc[5];
    register int32x4_t r6 __asm__("v14") = acc[6], r7 __asm__("v15") = acc[7];
    register int32x4_t r8 __asm__("v16") = acc[8], r9 __asm__("v17") = acc[9];
    register int32x4_t r10 __asm__("v18") = acc[10], r11 __asm__("v19") = acc[11];
    register int32x4_t r12 __asm__("v20") = acc[12], r13 __asm__("v21") = acc[13];
    register int32x4_t r14 __asm__("v22") = acc[14], r15 __asm__("v23") = acc[15];
    __asm__ volatile("" : :
                     "w"(r0), "w"(r1), "w"(r2), "w"(r3), "w"(r4), "w"(r5), "w"(r6), "w"(r7),
                     "w"(r8), "w"(r9), "w"(r10), "w"(r11), "w"(r12), "w"(r13), "w"(r14), "w"(r15));
}

TERSOR_INLINE void tersor_stay_24(const int32x4_t *acc)
{
    register int32x4_t r0 __asm__("v8") = acc[0], r1 __asm__("v9") = acc[1];
    register int32x4_t r2 __asm__("v10") = acc[2], r3 __asm__("v11") = acc[3];
    register int32x4_t r4 __asm__("v12") = acc[4], r5 __asm__("v13") = acc[5];
    register int32x4_t r6 __asm__("v14") = acc[6], r7 __asm__("v15") = acc[7];
    register int32x4_t r8 __asm__("v16") = acc[8], r9 __asm__("v17") = acc[9];
    register int32x4_t r10 __asm__("v18") = acc[10], r11 __asm__("v19") = acc[11];
    register int32x4_t r12 __asm__("v20") = acc[12], r13 __asm__("v21") = acc[13];
    register int32x4_t r14 __asm__("v22") = acc[14], r15 __asm__("v23") = acc[15];
    register int32x4_t r16 __asm__("v24") = acc[16], r17 __asm__("v25") = acc[17];
    register int32x4_t r18 __asm__("v26") = acc[18], r19 __asm__("v27") = acc[19];
    register int32x4_t r20 __asm__("v28") = acc[20], r21 __asm__("v29") = acc[21];
    register int32x4_t r22 __asm__("v30") = acc[22], r23 __asm__("v31") = acc[23];
    __asm__ volatile("" : :
                     "w"(r0), "w"(r1), "w"(r2), "w"(r3), "w"(r4), "w"(r5), "w"(r6), "w"(r7),
                     "w"(r8), "w"(r9), "w"(r10), "w"(r11), "w"(r12), "w"(r13), "w"(r14), "w"(r15),
                     "w"(r16), "w"(r17), "w"(r18), "w"(r19), "w"(r20), "w"(r21), "w"(r22), "w"(r23));
}

/* No instruction: `next` is not there before `done` is. Otherwise GCC starts everything at once and spills. */
TERSOR_INLINE void tersor_order(int32x4_t *done, int8x16_t *next)
{
    __asm__("" : "+w"(*done), "+w"(*next));
}

/* No instruction: holds the registers of v until here. Otherwise GCC moves accumulators into them as they fall free. */
TERSOR_INLINE void tersor_hold(const int8x16_t *v, int n)
{
    TERSOR_UNROLL
    for (int i = 0; i < n; i++)
        __asm__ volatile("" : : "w"(v[i]));
}

#endif
