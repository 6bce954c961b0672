// Replays a recorded forward pass: the same operations on the same memory, with another number of rows.
#include "operations.h"

namespace headrace {
namespace {

// `tape.py` mirrors this. Pointers lead in every argument structure; the first integer counts rows, or, in attention,
// the spans, to which the last pointer leads.
struct Entry {
    void (*operation)(const void*);
    char* arguments;
    int64_t num_pointers;
    int64_t rows_each;  // rows of this operation for each row of the step; 0 for attention
};

}  // namespace
}  // namespace headrace

extern "C" __attribute__((visibility("default"))) void headrace_replay(
    const headrace::Entry* entries, int64_t count, int64_t rows, const headrace::SpanArgs* spans, int64_t num_spans) {
    for (const headrace::Entry* entry = entries; entry != entries + count; ++entry) {
        int64_t* words = reinterpret_cast<int64_t*>(entry->arguments);
        int64_t& length = words[entry->num_pointers];
        if (entry->rows_each) {
            length = rows * entry->rows_each;
        } else {
            words[entry->num_pointers - 1] = reinterpret_cast<int64_t>(spans);
            length = num_spans;
        }
        entry->operation(entry->arguments);
    }
}
