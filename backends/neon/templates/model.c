/* @name@: its entry points. The layers are in @name@_*.c. */
#include "@name@.h"

#include "tersor_model.h"

const size_t @name@_input_counts[@inputs@] = {@input_counts@};
const size_t @name@_output_counts[@outputs@] = {@output_counts@};

/* NULL where the library is built with @NAME@_MAPPED_WEIGHTS and without weights.S. */
#ifndef @NAME@_MAPPED_WEIGHTS
extern const int8_t @name@_weights[];
static const int8_t *const linked = @name@_weights;
#else
static const int8_t *const linked = NULL;
#endif

@externs@

static const tersor_variant *const variants[] = {@variants@};

static const tersor_variant *chosen(void)
{
    return tersor_choose(variants, sizeof variants / sizeof *variants);
}

const char *@name@_isa(void)
{
    const tersor_variant *variant = chosen();
    return variant ? variant->name : NULL;
}

size_t @name@_arena_size(void)
{
    const tersor_variant *variant = chosen();
    return variant ? variant->arena_size : 0;
}

int @name@_steps(void)
{
    const tersor_variant *variant = chosen();
    return variant ? variant->count : 0;
}

static int misaligned(const void *pointer)
{
    return (uintptr_t)pointer % @NAME@_ALIGNMENT != 0;
}

static int check(const @name@_call *call, const tersor_variant *variant)
{
    if (!variant)
        return @NAME@_NO_VARIANT;
    if (!call || !call->arena || !(call->weights || linked))
        return @NAME@_NULL;
    for (int i = 0; i < @NAME@_INPUTS; i++)
        if (!call->inputs[i])
            return @NAME@_NULL;
        else if (call->input_counts[i] != @name@_input_counts[i])
            return @NAME@_WRONG_SIZE;
    for (int i = 0; i < @NAME@_OUTPUTS; i++)
        if (!call->outputs[i])
            return @NAME@_NULL;
        else if (call->output_counts[i] != @name@_output_counts[i])
            return @NAME@_WRONG_SIZE;
    if (call->arena_size < variant->arena_size)
        return @NAME@_SMALL_ARENA;
    if (misaligned(call->arena) || misaligned(call->weights))
        return @NAME@_UNALIGNED;
    return tersor_check_arithmetic() ? @NAME@_ARITHMETIC : @NAME@_OK;
}

static void run(const @name@_call *call, const tersor_variant *variant, int step, tersor_share share)
{
    const int8_t *weights = call->weights ? call->weights : linked;
    variant->steps[step](weights, call->arena, call->inputs, call->outputs, share);
}

int @name@_run(const @name@_call *call)
{
    const tersor_variant *variant = chosen();
    const int wrong = check(call, variant);
    if (wrong)
        return wrong;
    for (int step = 0; step < variant->count; step++)
        run(call, variant, step, (tersor_share){0, 1});
    return @NAME@_OK;
}

int @name@_step(const @name@_call *call, int step, int part, int parts)
{
    const tersor_variant *variant = chosen();
    const int wrong = check(call, variant);
    if (wrong)
        return wrong;
    if (step < 0 || step >= variant->count || part < 0 || part >= parts)
        return @NAME@_WRONG_STEP;
    run(call, variant, step, (tersor_share){part, parts});
    return @NAME@_OK;
}
