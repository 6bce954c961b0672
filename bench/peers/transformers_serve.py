"""Where `transformers serve` comes from: an environment in the user's cache, and the model in fp32."""

import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

from bench.peers.llama_cpp import cache_folder

# The generation config knows no end of text, so that every answer gets its full length:
# the server refuses ignore_eos.
DEQUANTIZE = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
source, target = Path(sys.argv[1]), sys.argv[2]
dense = GgufConfig(dequantize=True)
AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)
model = AutoModelForCausalLM.from_pretrained(
    source.parent, gguf_file=source.name, dtype=torch.float32, quantization_config=dense
)
model.config.eos_token_id = model.generation_config.eos_token_id = None
model.save_pretrained(target)
"""


def prepare(model: Path) -> tuple[Path, Path]:
    """The program, and the folder with the dequantised weights; both from the cache where they are there.

    Raises CalledProcessError after the tool's words.
    """
    environment, folder = cache_folder() / "transformers", cache_folder() / f"{model.stem}.F32"
    program = environment / "bin" / "transformers"
    if not program.is_file():
        print(f"installing transformers in {environment}: once", file=sys.stderr)
        venv.create(environment, with_pip=True)
        # the versions that our own tests use
        wanted = [f"transformers[serving]=={version('transformers')}", f"torch=={version('torch')}", "gguf"]
        _run(environment, "-m", "pip", "install", "--quiet", *wanted)
    if not (folder / "model.safetensors").is_file():
        _run(environment, "-c", DEQUANTIZE, str(model), str(folder))
    return program, folder


def _run(environment: Path, *arguments: str) -> None:
    subprocess.run([str(environment / "bin" / "python"), *arguments], check=True, stdout=sys.stderr)
