/* A TCG plugin for qemu-aarch64 (user mode): how many guest instructions each marked stretch of a program executes.
 *
 *     qemu-aarch64 -plugin libcount.so,out=FILE PROGRAM
 *
 * A stretch begins with `hint #96` and ends with `hint #97`, which real processors execute as no operation. FILE gets one
 * line per stretch, in order: instructions, and how many of them multiply and accumulate. Markers do not count.
 *
 * Blocks of guest code are counted whole when they start, except those with a marker, which are counted an instruction at
 * a time; so the counts are exact and repeatable. For guests of one thread. QEMU's header is not needed: what is used of
 * its interface (version 1, QEMU 4.2 and later) is declared here.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { NO_REGISTERS = 0, INLINE_ADD_U64 = 0 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                                  void (*callback)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*callback)(qemu_plugin_id_t, void *), void *data);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int operation, void *counter,
                                                     uint64_t amount);
extern void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *instruction, int operation, void *counter,
                                                       uint64_t amount);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *instruction,
                                                   void (*callback)(unsigned, void *), int flags, void *data);

EXPORT int qemu_plugin_version = 1;

enum { HINT_BEGIN = 0xd5032c1f, HINT_END = 0xd5032c3f };

static FILE *report;
static uint64_t executed, macs;
static uint64_t executed_at_begin, macs_at_begin;

static uint32_t word_of(struct qemu_plugin_insn *instruction)
{
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
    return word;
}

/* The vector instructions that multiply and accumulate, or begin an accumulation: masks over the A64 encoding. */
static int is_mac(uint32_t word)
{
    static const struct {
        uint32_t mask, value;
    } table[] = {
        {0x9f20fc00, 0x0e009400}, /* sdot, udot */
        {0x9f00f400, 0x0f00e000}, /* sdot, udot by element */
        {0xbf20fc00, 0x0e009c00}, /* usdot */
        {0xbf00f400, 0x0f00f000}, /* usdot, sudot by element */
        {0x9f20f400, 0x0e00a400}, /* smmla, ummla, usmmla */
        {0x9f20fc00, 0x0e208000}, /* smlal, umlal */
        {0x9f00f400, 0x0f002000}, /* smlal, umlal by element */
        {0x9f20fc00, 0x0e20c000}, /* smull, umull */
        {0x9f00f400, 0x0f00a000}, /* smull, umull by element */
        {0xbf20fc00, 0x0e209400}, /* mla */
        {0xbf00f400, 0x2f000000}, /* mla by element */
        {0xbfa0fc00, 0x0e20cc00}, /* fmla */
        {0xbf80f400, 0x0f801000}, /* fmla by element */
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if ((word & table[i].mask) == table[i].value)
            return 1;
    return 0;
}

static void begin(unsigned cpu, void *data)
{
    (void)cpu, (void)data;
    executed_at_begin = executed;
    macs_at_begin = macs;
}

static void end(unsigned cpu, void *data)
{
    (void)cpu, (void)data;
    fprintf(report, "%llu %llu\n", (unsigned long long)(executed - executed_at_begin),
            (unsigned long long)(macs - macs_at_begin));
}

/* Markers are not counted themselves, so it does not matter on which side of its own count a callback runs. */
static void count_each(struct qemu_plugin_tb *block, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        const uint32_t word = word_of(instruction);
        if (word == HINT_BEGIN || word == HINT_END) {
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, word == HINT_BEGIN ? begin : end, NO_REGISTERS, NULL);
            continue;
        }
        qemu_plugin_register_vcpu_insn_exec_inline(instruction, INLINE_ADD_U64, &executed, 1);
        if (is_mac(word))
            qemu_plugin_register_vcpu_insn_exec_inline(instruction, INLINE_ADD_U64, &macs, 1);
    }
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    const size_t length = qemu_plugin_tb_n_insns(block);
    uint64_t multiplying = 0;
    (void)id;
    for (size_t i = 0; i < length; i++) {
        const uint32_t word = word_of(qemu_plugin_tb_get_insn(block, i));
        if (word == HINT_BEGIN || word == HINT_END) {
            count_each(block, length);
            return;
        }
        multiplying += (uint64_t)is_mac(word);
    }
    qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &executed, length);
    if (multiplying)
        qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &macs, multiplying);
}

static void finish(qemu_plugin_id_t id, void *data)
{
    (void)id, (void)data;
    fclose(report);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info;
    if (argc != 1 || strncmp(argv[0], "out=", 4) != 0 || !(report = fopen(argv[0] + 4, "w"))) {
        fputs("count_instructions: give out=FILE, a file that can be written\n", stderr);
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finish, NULL);
    return 0;
}
