"""One of two ranks over gloo: RANK PORT FOLDER... prints what each folder's model says, a line of JSON each."""

import json
import sys
from pathlib import Path

import torch
from rank_threads import generate, made, opened, tokens

from model.parallel import Meeting, Ranks

if __name__ == "__main__":
    rank, port, *folders = sys.argv[1:]
    meeting = Meeting("127.0.0.1", int(port), is_host=rank == "0")
    group = meeting.form(Ranks(int(rank), 2, int(rank), 2), torch.device("cpu"), 1)
    for folder in folders:
        print(json.dumps(tokens(generate(made(opened(Path(folder), group))))))
