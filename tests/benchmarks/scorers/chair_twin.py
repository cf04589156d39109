"""CHAIR's text side once more, slowly: another tokenizer (a regular expression) and recursion instead of loops."""

from __future__ import annotations

import re
from functools import cache

from textblob.en.inflect import singularize

DOUBLE = """motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light, fire hydrant,
stop sign, parking meter, suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass, hot dog,
cell phone, mobile phone, teddy bear, hair drier, potted plant, laptop computer, stove top oven, home plate"""
ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]


@cache
def one(word: str) -> str:
    return str(singularize(word))


def doubles() -> dict[str, str]:
    found = {" ".join(d.split()): " ".join(d.split()) for d in DOUBLE.split(",")}
    found.update({"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"})
    found.update({f"{a} {x}": x for x in ANIMALS for a in ("baby", "adult")})
    found.update({"passenger jet": "jet", "passenger train": "train"})
    return found


def merge(words: list[str], pairs: dict[str, str]) -> list[str]:
    if len(words) < 2:
        return words
    pair = f"{words[0]} {words[1]}"
    return [pairs[pair], *merge(words[2:], pairs)] if pair in pairs else [words[0], *merge(words[1:], pairs)]


def mentions(caption: str, synonyms: str) -> list[str]:
    node = {w: line.strip().split(", ")[0] for line in synonyms.splitlines() for w in line.strip().split(", ")}
    words = [one(w) for w in re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*|'s|[^\sa-z0-9]", caption.lower())]
    words = merge(words, doubles())
    if {"toilet", "seat"} <= set(words):
        words = [w for w in words if w != "seat"]
    return [node[w] for w in words if w in node]


def chair(captions: list[list[str]], truths: list[set[str]]) -> dict[str, float]:
    wrong = [[m for m in c if m not in t] for c, t in zip(captions, truths, strict=True)]
    return {
        "CHAIR_s": sum(map(bool, wrong)) / len(captions),
        "CHAIR_i": sum(map(len, wrong)) / sum(map(len, captions)),
        "recall": sum(len(set(c) & t) for c, t in zip(captions, truths, strict=True)) / sum(map(len, truths)),
    }
