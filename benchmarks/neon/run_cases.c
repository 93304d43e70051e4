/* Runs kernels on cases from standard input and writes what they wrote to standard output.
 *
 * A case is little-endian: int32 kernel, int32 how many integers, the integers, int32 how many buffers, and for each its
 * int32 size and bytes. Every buffer ends at a page that may not be touched, so a read or write behind it is a fault; the
 * 64 bytes before it are checked afterwards. The answer to a case is its last buffer.
 */
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tersor_layers.h"

enum { MAX_INTEGERS = 32, MAX_BUFFERS = 8, GUARD = 64, GUARD_BYTE = 0x5A };

typedef struct {
    int8_t *data;
    int32_t size;
    uint8_t *mapped;
    size_t mapped_size;
} buffer;

typedef struct {
    int32_t integers[MAX_INTEGERS];
    buffer buffers[MAX_BUFFERS];
} call;

typedef void handler(call *c, const void *kernel);

#if defined(__aarch64__)
#define BEGIN() __asm__ volatile("hint #96" : : : "memory")
#define END() __asm__ volatile("hint #97" : : : "memory")
#define NEON(FUNCTION, PORTABLE) FUNCTION
#else
#define BEGIN()
#define END()
#define NEON(FUNCTION, PORTABLE) PORTABLE
#endif

static void fail(const char *why)
{
    fprintf(stderr, "run_cases: %s\n", why);
    exit(1);
}

static void read_exactly(void *to, size_t size)
{
    if (size && fread(to, size, 1, stdin) != 1)
        fail("the input ends inside a case");
}

static int32_t read_int(void)
{
    int32_t value;
    read_exactly(&value, sizeof value);
    return value;
}

#if defined(__SANITIZE_ADDRESS__)
static void make(buffer *b)
{
    b->mapped = malloc(GUARD + (size_t)b->size);
    if (!b->mapped)
        fail("out of memory");
    b->data = (int8_t *)b->mapped + GUARD;
}

static void drop(buffer *b)
{
    free(b->mapped);
}
#else
static void make(buffer *b)
{
    const size_t page = 65536, whole = (GUARD + (size_t)b->size + page - 1) / page * page;
    b->mapped_size = whole + page;
    b->mapped = mmap(NULL, b->mapped_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->mapped == MAP_FAILED || mprotect(b->mapped + whole, page, PROT_NONE))
        fail("out of memory");
    b->data = (int8_t *)b->mapped + whole - b->size;
}

static void drop(buffer *b)
{
    munmap(b->mapped, b->mapped_size);
}
#endif

static void read_buffer(buffer *b)
{
    b->size = read_int();
    make(b);
    memset(b->data - GUARD, GUARD_BYTE, GUARD);
    read_exactly(b->data, (size_t)b->size);
}

static void check_guard(const buffer *b)
{
    for (int i = 1; i <= GUARD; i++)
        if (b->data[-i] != GUARD_BYTE)
            fail("a kernel wrote before a buffer");
}

static int32_t *ints(const buffer *b)
{
    return (int32_t *)(void *)b->data;
}

static float *floats(const buffer *b)
{
    return (float *)(void *)b->data;
}

/* Integers: channels rows width blocks taps x_block x_row y_block y_row zero_point min max magic range[4] x y. */
static void run_conv(call *c, const void *kernel)
{
    const int32_t *const n = c->integers;
    const buffer *const b = c->buffers;
    const tersor_conv conv = {
        .channels = n[0], .rows = n[1], .width = n[2], .blocks = n[3], .taps = n[4], .x_block = n[5], .x_row = n[6],
        .y_block = n[7], .y_row = n[8], .tap_offsets = ints(&b[0]), .weights = b[1].data,
        .group_starts = ints(&b[2]),
        .block_counts = ints(&b[3]), .bias = ints(&b[4]),
        .requantize = {floats(&b[5]), n[9], n[10], n[11], n[12]},
    };
    const tersor_range range = {n[13], n[14], n[15], n[16]};
    tersor_conv_kernel *const run = *(tersor_conv_kernel *const *)kernel;
    BEGIN();
    run(&conv, b[6].data + n[17], b[7].data + n[18], range);
    END();
}

/* Integers: block rows width taps x_block x_row y_block y_row bias zero_point min max magic range[4] x y. */
static void run_pool(call *c, const void *kernel)
{
    const int32_t *const n = c->integers;
    const buffer *const b = c->buffers;
    const tersor_pool pool = {
        .block = n[0], .rows = n[1], .width = n[2], .taps = n[3], .x_block = n[4], .x_row = n[5], .y_block = n[6],
        .y_row = n[7], .tap_offsets = ints(&b[0]), .bias = n[8],
        .requantize = {floats(&b[1]), n[9], n[10], n[11], n[12]},
    };
    const tersor_range range = {n[13], n[14], n[15], n[16]};
    tersor_pool_kernel *const run = *(tersor_pool_kernel *const *)kernel;
    BEGIN();
    run(&pool, b[2].data + n[17], b[3].data + n[18], range);
    END();
}

static tersor_planes planes_of(const int32_t n[9])
{
    const tersor_planes planes = {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8]};
    return planes;
}

/* Integers: planes[9] za zb zy min max begin end a_factor b_factor shift. Floats: sa sb sy multiplier. */
static void run_binary(call *c, const void *kernel)
{
    const int32_t *const n = c->integers;
    const float *const f = floats(&c->buffers[0]);
    const tersor_binary binary = {planes_of(n), {f[0], n[9]}, {f[1], n[10]}, {f[2], n[11]}, f[3], n[12], n[13],
                                  n[16], n[17], n[18]};
    tersor_binary_kernel *const run = *(tersor_binary_kernel *const *)kernel;
    BEGIN();
    run(&binary, c->buffers[1].data, c->buffers[2].data, c->buffers[3].data, n[14], n[15]);
    END();
}

/* Integers: planes[9] begin end. */
static void run_lookup(call *c, const void *kernel)
{
    const tersor_planes planes = planes_of(c->integers);
    tersor_lookup_kernel *const run = *(tersor_lookup_kernel *const *)kernel;
    BEGIN();
    run(&planes, c->buffers[0].data, c->buffers[1].data, c->buffers[2].data, c->integers[9], c->integers[10]);
    END();
}

/* Integers: planes[9], which movement, and what it takes; the last two are a share. Buffers: a table, what is read, what is
 * written. */
static void run_movement(call *c, const void *kernel)
{
    const int32_t *const n = c->integers + 10, *const table = ints(&c->buffers[0]);
    const tersor_planes planes = planes_of(c->integers);
    const int8_t *const a = c->buffers[1].data;
    int8_t *const y = c->buffers[2].data;
    const tersor_border border = {n[0], n[1], n[2], n[3]};
    const int32_t block = n[0] > 0 ? n[0] : 1;
    const tersor_phases phases = {
        planes.blocks, n[0], planes.rows, planes.bytes / block, planes.a_block, planes.a_row, n[1], n[2],
        table, c->buffers[0].size / 4,
    };
    (void)kernel;
    switch (c->integers[9]) {
    case 0: tersor_fill_border(&planes, border, n[4], (int8_t)n[5], y); break;
    case 1: tersor_split_phases(&phases, a, y, (tersor_share){n[3], n[4]}); break;
    case 2: tersor_to_blocks(&planes, n[0], n[1], (int8_t)n[2], a, y, (tersor_share){n[3], n[4]}); break;
    case 3: tersor_from_blocks(&planes, n[0], n[1], a, y, (tersor_share){n[2], n[3]}); break;
    case 4:
        tersor_copy_loops((const tersor_loop *)(const void *)table, n[0], n[1], a, y, (tersor_share){n[2], n[3]});
        break;
    case 5: tersor_copy_runs(table, n[0], a, y, (tersor_share){n[1], n[2]}); break;
    case 6: tersor_fill(y, n[0], (int8_t)n[1]); break;
    default: fail("no such movement");
    }
}

/* Integers: count zero_point min max. Floats: scale. */
static void run_quantize(call *c, const void *kernel)
{
    const int32_t *const n = c->integers;
    const tersor_grid grid = {*floats(&c->buffers[0]), n[1]};
    tersor_quantize_kernel *const run = *(tersor_quantize_kernel *const *)kernel;
    run(floats(&c->buffers[1]), c->buffers[2].data, n[0], grid, n[2], n[3]);
}

static void run_dequantize(call *c, const void *kernel)
{
    const tersor_grid grid = {*floats(&c->buffers[0]), c->integers[1]};
    tersor_dequantize_kernel *const run = *(tersor_dequantize_kernel *const *)kernel;
    run(c->buffers[1].data, floats(&c->buffers[2]), c->integers[0], grid);
}

/* The kernels that a case names by their place. */
#define ENTRY(HANDLER, FIELD, FUNCTION, PORTABLE) {HANDLER, {.FIELD = NEON(FUNCTION, PORTABLE)}}
#define CONV(FUNCTION, PORTABLE) ENTRY(run_conv, conv, FUNCTION, PORTABLE)
static const struct {
    handler *handle;
    union {
        tersor_conv_kernel *conv;
        tersor_pool_kernel *pool;
        tersor_binary_kernel *binary;
        tersor_lookup_kernel *lookup;
        tersor_quantize_kernel *quantize;
        tersor_dequantize_kernel *dequantize;
    } kernel;
} kernels[] = {
    CONV(tersor_conv_dense_neon, tersor_conv_dense_neon_portable),
    CONV(tersor_conv_dense_dotprod, tersor_conv_dense_dotprod_portable),
    CONV(tersor_conv_dense_i8mm, tersor_conv_dense_i8mm_portable),
    CONV(tersor_conv_1x4_neon, tersor_conv_1x4_portable),
    CONV(tersor_conv_1x4_dotprod, tersor_conv_1x4_portable),
    CONV(tersor_conv_2x4_dotprod, tersor_conv_2x4_portable),
    CONV(tersor_conv_4x4_dotprod, tersor_conv_4x4_portable),
    CONV(tersor_conv_2x8_i8mm, tersor_conv_2x8_portable),
    CONV(tersor_conv_4x8_i8mm, tersor_conv_4x8_portable),
    CONV(tersor_linear_dense_neon, tersor_conv_dense_neon_portable),
    CONV(tersor_linear_dense_dotprod, tersor_conv_dense_dotprod_portable),
    CONV(tersor_linear_4x4_dotprod, tersor_conv_4x4_portable),
    CONV(tersor_depthwise_c4_neon, tersor_depthwise_c4_portable),
    CONV(tersor_depthwise_c8_neon, tersor_depthwise_c8_portable),
    ENTRY(run_pool, pool, tersor_max_pool_neon, tersor_max_pool_portable),
    ENTRY(run_pool, pool, tersor_average_pool_neon, tersor_average_pool_portable),
    ENTRY(run_pool, pool, tersor_global_pool_neon, tersor_global_pool_portable),
    ENTRY(run_binary, binary, tersor_add_neon, tersor_add_portable),
    ENTRY(run_binary, binary, tersor_mul_neon, tersor_mul_portable),
    ENTRY(run_lookup, lookup, tersor_lookup_neon, tersor_lookup_portable),
    {run_movement, {NULL}},
    ENTRY(run_quantize, quantize, tersor_quantize_neon, tersor_quantize_portable),
    ENTRY(run_dequantize, dequantize, tersor_dequantize_neon, tersor_dequantize_portable),
};

static void run_case(int32_t kernel)
{
    static call c;
    const int32_t integers = read_int();
    if (kernel < 0 || (size_t)kernel >= sizeof kernels / sizeof *kernels || integers > MAX_INTEGERS)
        fail("no such kernel, or too many integers");
    read_exactly(c.integers, (size_t)integers * sizeof *c.integers);
    const int32_t buffers = read_int();
    if (buffers < 1 || buffers > MAX_BUFFERS)
        fail("a case has 1 to 8 buffers");
    for (int32_t i = 0; i < buffers; i++)
        read_buffer(&c.buffers[i]);
    kernels[kernel].handle(&c, &kernels[kernel].kernel);
    const buffer *const answer = &c.buffers[buffers - 1];
    if (answer->size && fwrite(answer->data, (size_t)answer->size, 1, stdout) != 1)
        fail("cannot write");
    for (int32_t i = 0; i < buffers; i++) {
        check_guard(&c.buffers[i]);
        drop(&c.buffers[i]);
    }
}

int main(void)
{
    int32_t kernel;
    while (fread(&kernel, sizeof kernel, 1, stdin) == 1)
        run_case(kernel);
    return fflush(stdout) ? 1 : 0;
}
