/* @name@: @summary@
 *
 * Made by tersor @version@ from a program of the integer stage; every instruction set gives the same bits.
 *
@tensors@
 *
 * Tensors are row-major. Call @name@_run, or share each step among threads:
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
#define @NAME@_ARENA_SIZE @arena_size@ /* of the instruction set that takes most */

enum {
    @NAME@_OK = 0,
    @NAME@_NULL,          /* a pointer is missing */
    @NAME@_WRONG_SIZE,    /* an input or output has another number of values */
    @NAME@_SMALL_ARENA,   /* less than @name@_arena_size() */
    @NAME@_UNALIGNED,     /* arena or weights are not aligned to @NAME@_ALIGNMENT */
    @NAME@_WRONG_STEP,    /* no such step, or no such share of it */
    @NAME@_NO_VARIANT,    /* TERSOR_ISA names an instruction set that the model or the processor lacks */
    @NAME@_ARITHMETIC,    /* floats are contracted, or not rounded to nearest even */
    @NAME@_WRONG_WEIGHTS, /* the weights are cut off, damaged, or of another model */
    @NAME@_WRONG_INDEX    /* an input has a number that its table has no row for */
};

/* Values of each input and output, and the bytes of one value. */
extern const size_t @name@_input_counts[@NAME@_INPUTS];
extern const size_t @name@_input_bytes[@NAME@_INPUTS];
extern const size_t @name@_output_counts[@NAME@_OUTPUTS];
extern const size_t @name@_output_bytes[@NAME@_OUTPUTS];

typedef struct {
    const @input_type@ *inputs[@NAME@_INPUTS];
    size_t input_counts[@NAME@_INPUTS];
    @output_type@ *outputs[@NAME@_OUTPUTS];
    size_t output_counts[@NAME@_OUTPUTS];
    void *arena;          /* @name@_arena_size() bytes, aligned; its contents need not be kept between calls */
    size_t arena_size;
    const void *weights;  /* the contents of weights.bin, aligned; NULL where they are linked in */
    size_t weights_size;  /* @NAME@_WEIGHTS_SIZE; 0 where they are linked in */
} @name@_call;

/* The instruction set that will run: neon, dotprod or i8mm; NULL where there is none. */
const char *@name@_isa(void);
size_t @name@_arena_size(void);
int @name@_steps(void);

/* The whole model in this thread. Returns @NAME@_OK or what is wrong, and then has written nothing. */
int @name@_run(const @name@_call *call);

/* The share `part` of `parts` of one step. */
int @name@_step(const @name@_call *call, int step, int part, int parts);

/* Once for weights that were read or mapped from a file, before they are used: every byte is looked at. @name@_run only
 * looks at their size and their head. Returns @NAME@_OK, @NAME@_NULL, @NAME@_UNALIGNED or @NAME@_WRONG_WEIGHTS. */
int @name@_check_weights(const void *weights, size_t size);

/* A code in words. */
const char *@name@_message(int code);

#ifdef __cplusplus
}
#endif

#endif
