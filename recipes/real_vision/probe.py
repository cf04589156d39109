"""Which nouns the encoder's features can tell apart in cut-outs they were not fitted on: ``python -m recipes.real_vision.probe``.

A logistic regression on the mean feature of pictures of one thing each, in four folds of whole series, of the cut-outs of
train and dev. It is how the nouns were chosen; test takes no part.
"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from recipes.real_vision import build
from recipes.real_vision.cutouts import PACKAGES, collect, split, unpacked
from recipes.real_vision.data import pixels
from recipes.real_vision.nouns import CANDIDATES
from recipes.real_vision.scenes import Look, compose

SIDE, CUT, SIZES, VIEWS, FOLDS, BATCH = 200, 192, (150, 185), 2, 4, 25


def main() -> None:
    splits = split(collect({key: unpacked(key) for key in PACKAGES}), CANDIDATES)
    cutouts = [c for name in ("train", "dev") for parts in splits[name].values() for c in parts] * VIEWS
    tower = build.published()[0].model.vision_tower.eval()
    rng = random.Random(0)
    found = []
    for start in range(0, len(cutouts), BATCH):
        scenes = [compose([c], rng, Look(SIZES), side=SIDE) for c in cutouts[start : start + BATCH]]
        with torch.inference_mode():
            found.append(tower(pixels(scenes)[..., :CUT, :CUT]).last_hidden_state.mean(1))
    features, nouns = torch.cat(found).numpy(), np.array([c.noun for c in cutouts])
    series = np.array([c.series for c in cutouts])
    guessed = np.empty_like(nouns)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for fitted, held in folds.split(features, nouns, series):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=150, class_weight="balanced"))
        guessed[held] = model.fit(features[fitted], nouns[fitted]).predict(features[held])
    print(f"all: {(guessed == nouns).mean():.3f}")
    recall = {n: float((guessed[nouns == n] == n).mean()) for n in sorted(set(nouns))}
    for noun in sorted(recall, key=recall.__getitem__):
        taken = Counter(g for g in guessed[nouns == noun] if g != noun).most_common(3)
        print(
            f"{noun:<10} {recall[noun]:.2f} of {(nouns == noun).sum():>3}   {', '.join(f'{n} {k}' for n, k in taken)}"
        )


if __name__ == "__main__":
    main()
