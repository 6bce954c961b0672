"""Who may load adapters while the server runs: nobody, unless the operator asks for keys."""

import pytest


@pytest.mark.parametrize(("what", "path"), [("load", {"lora_path": "x"}), ("unload", {})])
def test_a_server_without_keys_loads_and_unloads_nothing(serve, tmp_path, what, path):
    served = serve(adapter_folders=(tmp_path,))
    answer = served.http.post(f"/v1/{what}_lora_adapter", json={"lora_name": "a", **path})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


def test_without_a_folder_that_was_named_there_is_nothing_to_load(serve, tmp_path):
    served = serve(api_keys=("key",))
    body = {"lora_name": "a", "lora_path": str(tmp_path)}
    answer = served.http.post("/v1/load_lora_adapter", json=body, headers={"Authorization": "Bearer key"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_path")
    assert str(tmp_path) not in answer.text
