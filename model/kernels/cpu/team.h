// Who computes: the calling thread and a few workers that share out the units of one operation.
#pragma once

namespace headrace {

typedef void (*Work)(void* context, int unit);

// How many threads take part from now on, the caller among them.
void set_threads(int threads);

// Calls work(context, unit) once for each unit in 0..units-1, on any thread and in any order, and returns when all are
// done. A caller that finds the team at work for another caller does its units alone.
void run_units(int units, Work work, void* context);

// `bytes` of memory of the calling thread, the same at every call: what one call leaves there, the next may overwrite.
void* scratch(long bytes);

}  // namespace headrace
