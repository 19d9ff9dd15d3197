"""The replies of a sweep, by condition and item."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from lvr_jax.api.reply import Attention, Reply
from lvr_jax.api.sight import Sight
from lvr_jax.evaluation.content import ContentReader
from lvr_jax.latents.conditions import Condition, ConditionError
from lvr_jax.latents.positions import before
from lvr_jax.latents.sweep_files import SweepResults
from lvr_jax.models.layers import Compute
from lvr_jax.prism.measure.items import Items


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """Replies by condition and item: `sweep["donor"]` is a list in the order of the items, the clean pass is "clean".

    conditions: names, the clean pass first; items: names; records: the conditions as the engine ran them
    """

    conditions: tuple[str, ...]
    items: tuple[str, ...]
    records: tuple[Condition, ...]
    replies: tuple[tuple[Reply, ...], ...]

    def __repr__(self) -> str:
        return f"Sweep({len(self.items)} items under {', '.join(self.conditions)})"

    def __getitem__(self, condition: str) -> list[Reply]:
        if condition not in self.conditions:
            known = ", ".join(self.conditions)
            raise ConditionError(f"condition {condition!r} is not in the sweep, expected one of {known}")
        return list(self.replies[self.conditions.index(condition)])

    def __iter__(self) -> Iterator[str]:
        return iter(self.conditions)

    def __len__(self) -> int:
        return len(self.conditions)

    def table(self) -> list[dict]:
        """A record a condition and item, for `pandas.DataFrame`: the reply's fields, and whether it is the clean one.

        changed: the content is not that of the clean reply; kind, strength: of the condition (noise: sigma)
        """
        clean = self.replies[0]
        return [
            reply.record() | {"changed": reply.content != own.content, "kind": record.kind, "strength": record.strength}
            for record, row in zip(self.records, self.replies) for reply, own in zip(row, clean)
        ]  # fmt: skip

    def summary(self) -> list[dict]:
        """A record a condition, over the items that it had something to feed: shares of right and of changed contents,
        the mean margin, and how many items were left out. None where no item counts."""
        found = []
        for record, row in zip(self.records, self.replies):
            there = [(reply, own) for reply, own in zip(row, self.replies[0]) if not reply.missing]
            right = [reply.right for reply, _ in there if reply.right is not None]
            margin = [reply.margin for reply, _ in there if reply.margin is not None]
            changed = [reply.content != own.content for reply, own in there]
            found.append({"condition": record.name, "kind": record.kind, "strength": record.strength,
                          "items": len(there), "missing": len(row) - len(there), "accuracy": _mean(right),
                          "changed": _mean(changed), "margin": _mean(margin)})  # fmt: skip
        return found


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def read(items: Items, results: SweepResults, compute: Compute) -> Sweep:
    """Reads a finished sweep of these items, in their order."""
    order = np.argsort(items.places(results.items), kind="stable")
    arrays = {key: value[:, order] for key, value in results.arrays.items()}
    token, live, latent = (arrays[key] for key in ("token", "live", "latent"))
    said = items.replies(token, live, latent)
    reader = ContentReader.of(items.benchmark.rows, [each.word for each in said[0]])
    names = [stage.name for stage in items.subject.spec.stages]
    sights = [Sight(items, i, compute) for i in range(len(items.ids))]

    def reply(c: int, i: int) -> Reply:
        row, fed = items.benchmark.rows[i], arrays["count"][c, i]
        content = reader.read(i, said[c][i].word, said[c][i].letter)
        letters = arrays["letters@answer"][c, i, : len(row.choices)]
        known = bool(items.place.ids) and len(letters) > 0 and bool(np.isfinite(letters).all())
        donor = int(results.donor[c, order[i]])
        shares = arrays.get("attention@answer")
        return Reply(
            item=row.id, condition=results.conditions[c], text=said[c][i].said, tokens=token[c, i][live[c, i]],
            is_latent=before(latent[c, i] & live[c, i])[live[c, i]], letter=said[c][i].letter if row.choices else None,
            content=content.content, right=content.right if row.answer else None,
            probabilities=dict(zip(row.choices, _softmax(letters))) if known else None,
            margin=_margin(letters, list(row.choices), row.letter or said[0][i].letter) if known else None,
            latents=np.concatenate([arrays["blocks"][c, i, g, :n] for g, n in enumerate(fed)]),
            stages=tuple(name for name, n in zip(names, fed) for _ in range(n)),
            attention=None if shares is None else Attention.of(shares[c, i]),
            missing=bool(results.missing[c, order[i]]), donor=results.items[donor] if donor >= 0 else None,
            _sight=sights[i],
        )  # fmt: skip

    return Sweep(
        tuple(results.conditions), tuple(items.ids), tuple(results.records),
        tuple(tuple(reply(c, i) for i in range(len(items.ids))) for c in range(len(results.conditions))),
    )  # fmt: skip


def _softmax(letters: np.ndarray) -> list[float]:
    shares = np.exp(letters - letters.max())
    return (shares / shares.sum()).tolist()


def _margin(letters: np.ndarray, names: list[str], letter: str | None) -> float | None:
    """Logit of a letter over the best other one."""
    if letter not in names:
        return None
    at = names.index(letter)
    return float(letters[at] - np.delete(letters, at).max())
