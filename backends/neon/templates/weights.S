/* @name@'s constants, linked in. */
#if defined(__APPLE__)
    .const
    .globl _@name@_weights
    .p2align 6
_@name@_weights:
#else
    .section .rodata
    .globl @name@_weights
    .p2align 6
@name@_weights:
#endif
    .incbin "weights.bin"
#if defined(__linux__) && defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
