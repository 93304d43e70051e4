// First-in first-out channels for simulation with a plain C++ compiler. Processes run one after another, so a channel
// holds what a whole frame sends through it. A read from an empty channel, or values that nobody read, end the program:
// in hardware they would stop the pipeline. In synthesis the vendor's header of the same name is found instead.
#ifndef TERSOR_SIMULATION_HLS_STREAM_H
#define TERSOR_SIMULATION_HLS_STREAM_H

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace hls {

// The folder into which every channel appends what it carried, one int64 a value; null where nobody wants to know.
inline const char *&trace_folder() {
    static const char *folder = nullptr;
    return folder;
}

template <class T> class stream {
    std::string name;
    std::vector<T> values;
    std::size_t next = 0;

    [[noreturn]] void stop(const char *what) const {
        std::fprintf(stderr, "stream %s %s\n", name.c_str(), what);
        std::exit(3);
    }

    void trace() const {
        std::FILE *file = std::fopen((std::string(trace_folder()) + "/" + name + ".bin").c_str(), "ab");
        if (file == nullptr)
            stop("cannot be traced: its file cannot be opened");
        for (const T &value : values)
            value.trace(file);
        std::fclose(file);
    }

  public:
    explicit stream(const char *given) : name(given) {}
    stream(const stream &) = delete;
    stream &operator=(const stream &) = delete;
    ~stream() {
        if (next != values.size())
            stop("holds values at the end of a frame");
        if (trace_folder() != nullptr)
            trace();
    }

    void write(const T &value) { values.push_back(value); }
    T read() {
        if (next == values.size())
            stop("is read while empty");
        return values[next++];
    }
    bool empty() const { return next == values.size(); }
};

} // namespace hls

#endif
