// The cycle-level simulation of simulate.py, for designs of many cycles. Reads a description from the standard input:
//
//     channels, actors, latency, frames
//     for each channel: its depth, how many beats it carries a frame
//     for each actor: turns, how many channels it reads, which, how many it writes, which, events, then for each event
//     its turn, and for each event a bit for every channel that passes a beat then, those that are read first
//
// all int64, and writes, for each channel: the most beats that it held, the cycles that its writer waited for room and
// that its reader waited for beats after the first frame, and the cycle in which the last beat of each frame was read,
// -1 where it never was. When nothing can go on it says so by its exit status; then it writes for each channel whether
// it is full.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

typedef std::int64_t Int;

struct Channel {
    Int depth, beats, written_count = 0, read_count = 0, full = 0, empty = 0;
    std::vector<Int> written, read; // when each beat was

    bool is_full() const { return written_count - read_count >= depth; }
};

struct Side {
    Channel *channel;
    bool is_read;
};

struct Actor {
    Int turns;
    std::vector<Side> sides;
    std::vector<Int> places, masks;
    Int frame = 0, clock = 0, last = 0;
    std::size_t at = 0; // event of the frame
};

std::vector<Int> take_all(Int count) {
    std::vector<Int> values(static_cast<std::size_t>(count));
    if (std::fread(values.data(), sizeof(Int), values.size(), stdin) != values.size())
        std::fill(values.begin(), values.end(), 0);
    return values;
}

Int take() { return take_all(1)[0]; }

// The cycle from which a beat may pass, -1 where another process has to go first. A beat that is written in cycle t is
// sent `latency` cycles after its turn.
Int ready(const Side &side, Int latency) {
    const Channel &channel = *side.channel;
    if (side.is_read)
        return channel.read_count < channel.written_count ? channel.written[channel.read_count] + 1 : -1;
    const Int freed = channel.written_count - channel.depth;
    if (freed < 0)
        return 0;
    return freed < channel.read_count ? std::max<Int>(channel.read[freed] + 1 - latency, 0) : -1;
}

void pass(const Side &side, Int time, Int latency) {
    Channel &channel = *side.channel;
    if (side.is_read)
        channel.read[channel.read_count++] = time;
    else
        channel.written[channel.written_count++] = time + latency;
}

// One event of an actor; false where it waits for another process to go first.
bool step(Actor &actor, Int mask, Int turn, Int latency) {
    const Int wanted = actor.clock + turn - actor.last;
    Int time = wanted;
    const Side *waits = nullptr;
    const std::size_t count = actor.sides.size();
    for (std::size_t bit = 0; bit < count; bit++) {
        if (((mask >> bit) & 1) == 0)
            continue;
        const Int from = ready(actor.sides[bit], latency);
        if (from < 0)
            return false;
        if (from > time) {
            time = from;
            waits = &actor.sides[bit];
        }
    }
    if (waits != nullptr && actor.frame > 0)
        (waits->is_read ? waits->channel->empty : waits->channel->full) += time - wanted;
    for (std::size_t bit = 0; bit < count; bit++) {
        if ((mask >> bit) & 1)
            pass(actor.sides[bit], time, latency);
    }
    actor.clock = time;
    actor.last = turn;
    return true;
}

// Run one actor until it has to wait; whether it moved.
bool go(Actor &actor, Int latency, Int frames) {
    bool moved = false;
    while (actor.frame < frames && !actor.places.empty()) {
        if (!step(actor, actor.masks[actor.at], actor.places[actor.at] + actor.frame * actor.turns, latency))
            return moved;
        moved = true;
        if (++actor.at == actor.places.size()) {
            actor.at = 0;
            actor.frame++;
        }
    }
    return moved;
}

// The most beats held at once: beats are written and read in order, so both lists of times ascend.
Int most_held(const Channel &channel) {
    Int most = 0, gone = 0;
    for (Int beat = 0; beat < channel.written_count; beat++) {
        while (gone < channel.read_count && channel.read[gone] < channel.written[beat])
            gone++;
        most = std::max(most, beat + 1 - gone);
    }
    return most;
}

void give(Int value) { std::fwrite(&value, sizeof value, 1, stdout); }

void report(const Channel &channel, Int frames) {
    give(most_held(channel));
    give(channel.full);
    give(channel.empty);
    for (Int frame = 1; frame <= frames; frame++)
        give(channel.beats > 0 ? channel.read[frame * channel.beats - 1] : -1);
}

} // namespace

int main() {
    const Int channel_count = take(), actor_count = take(), latency = take(), frames = take();
    std::vector<Channel> channels(static_cast<std::size_t>(channel_count));
    for (Channel &channel : channels) {
        channel.depth = take();
        channel.beats = take();
        channel.written.resize(static_cast<std::size_t>(channel.beats * frames));
        channel.read.resize(channel.written.size());
    }
    std::vector<Actor> actors(static_cast<std::size_t>(actor_count));
    for (Actor &actor : actors) {
        actor.turns = take();
        for (const bool is_read : {true, false}) {
            for (const Int index : take_all(take()))
                actor.sides.push_back({&channels[static_cast<std::size_t>(index)], is_read});
        }
        const Int events = take();
        actor.places = take_all(events);
        actor.masks = take_all(events);
    }
    bool moved = true;
    while (moved) {
        moved = false;
        for (Actor &actor : actors)
            moved = go(actor, latency, frames) || moved;
    }
    bool done = true;
    for (const Actor &actor : actors)
        done = done && (actor.frame == frames || actor.places.empty());
    for (const Channel &channel : channels) {
        if (done)
            report(channel, frames);
        else
            give(channel.is_full() ? 1 : 0);
    }
    return done ? 0 : 5;
}
