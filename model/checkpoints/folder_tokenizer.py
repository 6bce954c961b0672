"""What a Hugging Face folder says of its tokenizer: tokenizer.json and the files around it."""

from pathlib import Path
from typing import Any

from model.checkpoints.contents import TokenizerCard
from model.checkpoints.errors import CheckpointError
from model.checkpoints.json_file import parse_object, read_object, read_optional_object, read_text

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def tokenizer_card(folder: Path, config: dict[str, Any], name: str) -> TokenizerCard:
    """`config` is the content of config.json. Raises CheckpointError, also where there is no tokenizer.json."""
    text = read_text(folder / "tokenizer.json")
    tokenizer = parse_object(folder / "tokenizer.json", text)
    settings = read_optional_object(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(folder, settings)
    generation = read_optional_object(folder / "generation_config.json")
    endings = _ids(folder / "generation_config.json", generation) + _ids(folder / "config.json", config)
    if "eos_token" in special_tokens:
        endings.append(_id_of(folder, tokenizer, special_tokens["eos_token"]))
    return TokenizerCard(
        tokenizer_json=text,
        chat_template=_chat_template(folder, settings),
        special_tokens=special_tokens,
        eos_ids=list(dict.fromkeys(endings)),
        name=name,
    )


def _special_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """tokenizer_config.json over the older special_tokens_map.json; a token is its text or an object with it."""
    named = read_optional_object(folder / "special_tokens_map.json") | settings
    tokens = {}
    for name in SPECIAL_TOKENS:
        token = named.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        if not isinstance(token, str | None):
            raise CheckpointError(folder / "tokenizer_config.json", f"{name} is not a text")
        if token is not None:
            tokens[name] = token
    return tokens


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").exists():
        return read_text(folder / "chat_template.jinja")
    file = "chat_template.json" if (folder / "chat_template.json").exists() else "tokenizer_config.json"
    template = (read_object(folder / file) if file == "chat_template.json" else settings).get("chat_template")
    if isinstance(template, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if not isinstance(template, str | None):
        raise CheckpointError(folder / file, "chat_template is not a text")
    return template


def _ids(path: Path, settings: dict[str, Any]) -> list[int]:
    ids = settings.get("eos_token_id")
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(type(id) is int and id >= 0 for id in ids):
        raise CheckpointError(path, f"eos_token_id is {settings['eos_token_id']!r}, not a token id or a list of them")
    return list(ids)


def _id_of(folder: Path, tokenizer: dict[str, Any], token: str) -> int:
    try:
        added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []}
        id = added[token] if token in added else tokenizer["model"]["vocab"][token]
    except (KeyError, TypeError):
        id = None
    if type(id) is not int:
        raise CheckpointError(folder / "tokenizer.json", f"has no id for the eos_token {token!r}")
    return id
