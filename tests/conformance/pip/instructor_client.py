"""Asks a server for a city through instructor, in one of its modes, and prints the object that comes of it."""

import os
import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, ConfigDict


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")  # unless told so, instructor's schema lets an answer have more fields

    is_capital: bool
    continent: Literal["Africa", "America", "Asia", "Europe"]


def main(mode: str) -> None:
    plain = OpenAI(base_url=os.environ["BASE_URL"], api_key="none")
    client = instructor.from_openai(plain, mode=instructor.Mode[mode])
    asked = {"model": os.environ["MODEL"], "messages": [{"role": "user", "content": "What kind of city is Paris?"}]}
    city = client.chat.completions.create(**asked, response_model=City, temperature=0, max_retries=0)
    print(city.model_dump_json())


if __name__ == "__main__":
    main(*sys.argv[1:])
