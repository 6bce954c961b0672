"""What the checkpoint tests share: texts that tokenizers disagree on, and small GGUF files."""

import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

TEXTS = [
    "",
    " ",
    "  leading, double  inside and trailing  ",
    "The quick brown fox jumps over the lazy dog. It's what they'd said: we'll, I'm, you've, they're, don't!",
    "IT'S WHAT THEY'D SAID: WE'LL, I'M, YOU'VE, THEY'RE, DON'T! ’Tis ‘quoted’",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F 2026-01-31 v1.2.3 ١٢٣ १२३ ²³ ½ Ⅷ ①",
    "def f(x: int) -> str:\n    return f'{x!r}'  # comment\n\n\nclass A:\n\tpass\r\n\r\n\tif x:\n\t\ty()\n",
    '<div class="a b">&nbsp;</div> {"key": [1, 2.5e-3, null, true]} SELECT * FROM t WHERE a<>b;',
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * c[i]; } // ---- ==== ****",
    "Zażółć gęślą jaźń. Füße, Straße, ÄÖÜ. Où êtes-vous, garçon? ¿Qué pasó, señor? Ελληνικά. Русский язык.",
    "中文分词很有意思。日本語のテキスト、カタカナ。한국어 문장입니다. ภาษาไทยไม่มีช่องว่าง हिन्दी में लिखा। עברית العربية",
    "😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ☕️ ✈ 🧑🏿‍🚀",
    "e\u0301 vs \u00e9, \u1e9b\u0323, \u212b vs \u00c5, ﬁ ligature, ｆｕｌｌ ｗｉｄｔｈ, \u0130 \u0131",
    "\x00 \x01\x02\x07\x08\x1b[0m\x7f\u0085 \ufeffBOM \u200b\u200c\u200d\u2060 \ufffd \ue000",
    "\t\t tabs \u00a0nbsp\u2003em\u3000ideographic \x0b\x0c \u2028\u2029 end\n",
    "\n\n\n \n  \n\r\n \r\r   \n a\n\n b   c\n",
    "    " * 9 + "x" + " " * 17,
    "aaaaaaaaaaaaaaaaaaaaaaaaa bbbbb----------==========!!!!!!!!!!??????",
    "▁ U+2581 ▁▁ itself ▁x",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𒀀 𠀀 \U000e0041\U0010ffff",
    "<0x41> <0xFF> </ s> <|not_special|> [UNK] <unused0>",
]


def random_texts() -> list[str]:
    """Neighbours from anywhere in Unicode, short enough to be read when one fails."""
    choose = random.Random(7)
    ranges = [(0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x6FF), (0x900, 0xE7F), (0x2000, 0x2BFF)]
    ranges += [(0x3000, 0x9FFF), (0xAC00, 0xD7A3), (0xFE00, 0xFFFF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF)]
    return ["".join(chr(choose.randint(*choose.choice(ranges))) for _ in range(24)) for _ in range(200)]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS + random_texts()


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Writes a GGUF file with the gguf package; a tensor's value is an array, or (bytes, GGML type)."""

    def write(metadata: dict[str, Any], tensors: dict[str, Any] | None = None, name: str = "tiny.gguf") -> Path:
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        for key, value in metadata.items():
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add.get(type(value), writer.add_array)(key, value)
        for tensor, value in (tensors or {}).items():
            data, kind = value if isinstance(value, tuple) else (value, None)
            assert isinstance(data, np.ndarray)
            writer.add_tensor(tensor, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write


class Request(BaseHTTPRequestHandler):
    """A GET or HEAD request that `serve` got."""

    def reply(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.begin(len(data), status, **headers)
        if self.command == "GET":
            self.wfile.write(data)

    def begin(self, length: int, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Any], None]], str]]:
    """Answers on loopback with a function from `Request`; gives the address."""
    servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(answer: Callable[[Any], None]) -> str:
        handler = type("Handler", (Request,), {"do_GET": answer, "do_HEAD": answer})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()
