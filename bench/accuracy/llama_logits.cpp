// What llama.cpp computes: the logits after every token of the windows that come on standard input.
//
// llama_logits MODEL WINDOW THREADS < int32 tokens > of each window the vocabulary's size in int32, and WINDOW rows of float32

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "llama.h"

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    const int window = std::atoi(argv[2]), threads = std::atoi(argv[3]);
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);

    llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) return 1;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = window;
    params.n_threads = params.n_threads_batch = threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;  // as llama-server is measured
    llama_context* context = llama_init_from_model(model, params);
    if (!context) return 1;

    const int32_t vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::vector<llama_token> tokens(window);
    llama_batch batch = llama_batch_init(window, 0, 1);
    while (std::fread(tokens.data(), sizeof(llama_token), window, stdin) == static_cast<size_t>(window)) {
        for (int i = 0; i < window; ++i) {
            batch.token[i] = tokens[i];
            batch.pos[i] = i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = true;
        }
        batch.n_tokens = window;
        llama_memory_clear(llama_get_memory(context), true);
        if (llama_decode(context, batch) != 0) return 1;
        std::fwrite(&vocabulary, sizeof(vocabulary), 1, stdout);
        std::fwrite(llama_get_logits(context), sizeof(float), size_t(window) * vocabulary, stdout);
        std::fflush(stdout);
    }
}
