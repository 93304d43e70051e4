// The cycle-level simulation of simulate.py, for designs of many cycles. Reads a description from the standard input:
//
//     channels, actors, latency, frames
//     for each channel: its depth
//     for each actor: turns, how many channels it reads, which, how many it writes, which, events, then for each event
//     its turn, and for each event a bit for every channel that passes a beat then, those that are read first
//
// all int64, and writes, for each channel, when each beat was written and read: count, count times, count, count times.
// When nothing can go on it says so by its exit status, and writes what it has.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

typedef std::int64_t Int;

struct Channel {
    Int depth;
    std::vector<Int> written, read;
};

struct Actor {
    Int turns;
    std::vector<Int> reads, writes, places, masks;
    std::size_t at = 0;
    Int clock = 0, last = 0;
};

Int take() {
    Int value = 0;
    if (std::fread(&value, sizeof value, 1, stdin) != 1)
        value = 0;
    return value;
}

std::vector<Int> take_all(Int count) {
    std::vector<Int> values(static_cast<std::size_t>(count));
    for (Int &value : values)
        value = take();
    return values;
}

Channel &channel_of(const Actor &actor, std::size_t bit, std::vector<Channel> &channels) {
    const std::size_t reads = actor.reads.size();
    return channels[static_cast<std::size_t>(bit < reads ? actor.reads[bit] : actor.writes[bit - reads])];
}

// Run one actor until it has to wait.
bool go(Actor &actor, std::vector<Channel> &channels, Int latency, Int frames) {
    const std::size_t start = actor.at, count = actor.places.size(), end = count * static_cast<std::size_t>(frames);
    const std::size_t reads = actor.reads.size(), bits = reads + actor.writes.size();
    for (; actor.at < end; actor.at++) {
        const Int turn = actor.places[actor.at % count] + static_cast<Int>(actor.at / count) * actor.turns;
        const Int mask = actor.masks[actor.at % count];
        Int time = actor.clock + turn - actor.last;
        for (std::size_t bit = 0; bit < bits; bit++) {
            if (((mask >> bit) & 1) == 0)
                continue;
            const Channel &channel = channel_of(actor, bit, channels);
            if (bit < reads) {
                if (channel.read.size() >= channel.written.size())
                    return actor.at > start;
                time = std::max(time, channel.written[channel.read.size()] + 1);
                continue;
            }
            const Int freed = static_cast<Int>(channel.written.size()) - channel.depth;
            if (freed >= static_cast<Int>(channel.read.size()))
                return actor.at > start;
            if (freed >= 0)
                time = std::max(time, channel.read[static_cast<std::size_t>(freed)] + 1 - latency);
        }
        for (std::size_t bit = 0; bit < bits; bit++) {
            if (((mask >> bit) & 1) == 0)
                continue;
            Channel &channel = channel_of(actor, bit, channels);
            if (bit < reads)
                channel.read.push_back(time);
            else
                channel.written.push_back(time + latency);
        }
        actor.clock = time;
        actor.last = turn;
    }
    return actor.at > start;
}

void give(const std::vector<Int> &values) {
    const Int count = static_cast<Int>(values.size());
    std::fwrite(&count, sizeof count, 1, stdout);
    std::fwrite(values.data(), sizeof(Int), values.size(), stdout);
}

} // namespace

int main() {
    const Int channel_count = take(), actor_count = take(), latency = take(), frames = take();
    std::vector<Channel> channels(static_cast<std::size_t>(channel_count));
    for (Channel &channel : channels)
        channel.depth = take();
    std::vector<Actor> actors(static_cast<std::size_t>(actor_count));
    for (Actor &actor : actors) {
        actor.turns = take();
        actor.reads = take_all(take());
        actor.writes = take_all(take());
        const Int events = take();
        actor.places = take_all(events);
        actor.masks = take_all(events);
    }
    bool moved = true;
    while (moved) {
        moved = false;
        for (Actor &actor : actors)
            moved = go(actor, channels, latency, frames) || moved;
    }
    bool done = true;
    for (const Actor &actor : actors)
        done = done && actor.at == actor.places.size() * static_cast<std::size_t>(frames);
    for (const Channel &channel : channels) {
        give(channel.written);
        give(channel.read);
    }
    return done ? 0 : 5;
}
