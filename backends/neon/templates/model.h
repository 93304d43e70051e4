/* @name@: @summary@
 *
 * Made by tersor @version@ from a program of the integer stage; every instruction set gives the same bits.
 *
@tensors@
 *
 * Call @name@_run, or share each step among threads:
 *
 *     for (int step = 0; step < @name@_steps(); step++)
 *         every thread: @name@_step(&call, step, thread, threads), then wait for the others
 *
 * Nothing allocates or writes a global; calls with arenas of their own may run at the same time.
 */
#ifndef @NAME@_H
#define @NAME@_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define @NAME@_INPUTS @inputs@
#define @NAME@_OUTPUTS @outputs@
#define @NAME@_ALIGNMENT 64
#define @NAME@_WEIGHTS_SIZE @weights_size@

enum {
    @NAME@_OK = 0,
    @NAME@_NULL,          /* a pointer is missing */
    @NAME@_WRONG_SIZE,    /* an input or output has another number of values */
    @NAME@_SMALL_ARENA,   /* less than @name@_arena_size() */
    @NAME@_UNALIGNED,     /* arena or weights are not aligned to @NAME@_ALIGNMENT */
    @NAME@_WRONG_STEP,    /* no such step, or no such share of it */
    @NAME@_NO_VARIANT,    /* TERSOR_ISA names an instruction set that the model or the processor lacks */
    @NAME@_ARITHMETIC     /* floats are contracted, or not rounded to nearest even */
};

/* Values of each input and output, in float32. */
extern const size_t @name@_input_counts[@inputs@];
extern const size_t @name@_output_counts[@outputs@];

typedef struct {
    const float *inputs[@inputs@];
    size_t input_counts[@inputs@];
    float *outputs[@outputs@];
    size_t output_counts[@outputs@];
    void *arena;          /* @name@_arena_size() bytes, aligned; its contents need not be kept between calls */
    size_t arena_size;
    const void *weights;  /* the contents of weights.bin, aligned; NULL where they are linked in */
} @name@_call;

/* The instruction set that will run: neon, dotprod or i8mm; NULL where there is none. */
const char *@name@_isa(void);
size_t @name@_arena_size(void);
int @name@_steps(void);

/* The whole model in this thread. Returns @NAME@_OK or what is wrong, and then has written nothing. */
int @name@_run(const @name@_call *call);

/* The share `part` of `parts` of one step. */
int @name@_step(const @name@_call *call, int step, int part, int parts);

#ifdef __cplusplus
}
#endif

#endif
