"""`headrace generate`: one continuation, streamed to standard output."""

import sys

from server.console.running import EngineFailed, complain
from server.console.talk import TalkOptions, opened
from server.errors import HeadraceError


async def generate(prompt: str, options: TalkOptions) -> int:
    """Prints the continuation alone, so that it can be piped; the exit code."""
    try:
        async with opened(options) as talk:
            ids = await talk.tools.prompts.text(prompt)
            async for text in talk.answer(ids, "prompt"):
                sys.stdout.write(text)
                sys.stdout.flush()
            sys.stdout.write("\n")
    except EngineFailed as error:
        return complain(error)
    except HeadraceError as error:
        print(f"headrace: {error.message}", file=sys.stderr)
        return 1
    return 0
