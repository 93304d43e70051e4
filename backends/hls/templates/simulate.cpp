// Frames from the standard input through the design to the standard output, one int64 a value.
// With an argument, every stream is traced into that folder.
@INCLUDES@
#include <cstdio>
#include <cstdlib>

static bool ended = false;

static long long take() {
    long long value = 0;
    if (std::fread(&value, sizeof value, 1, stdin) != 1)
        ended = true;
    return value;
}

static void give(long long value) { std::fwrite(&value, sizeof value, 1, stdout); }

static void frame() {
@FRAME@
}

int main(int count, char **arguments) {
    if (count > 1)
        hls::trace_folder() = arguments[1];
    const long long frames = take();
    for (long long i = 0; i < frames && !ended; i++)
        frame();
    return ended ? 4 : 0;
}
