"""What `test_hosts.py` runs in one process and in two: from sound to a saved run.

Started as a program it is one of two processes: `hosts_program.py FOLDER RANK PORT`.
"""

import dataclasses
import pathlib
import sys

import numpy as np

NUM_CLIPS, BAD = 23, (5, 16)  # one that cannot be read in each process's share


def run(folder, mesh):
    """Arrays by name; leaves a cache and a saved run in `folder`.

    `folder / "half"` holds an unfinished cache, to be finished.
    """
    import jax
    import test_cache

    from apex_jax import (
        audioprotopnet,
        bank,
        cache,
        data,
        explain,
        fit,
        hosts,
        masking,
        metrics,
        optimize,
    )
    from apex_jax.models import audioprotopnet as prototypes

    cache.SHARD_BYTES = 1  # a shard a batch
    classifier = test_cache.classifier_of()
    clips = [
        data.Clip(path=folder.parent / f"wavs/clip{n:02d}.wav", label=n % 3)
        for n in range(NUM_CLIPS)
    ]
    arguments = (classifier, clips, test_cache.FRONT_END)
    options = {"content": "maps", "batch_size": 4, "mesh": mesh}
    log, seen = data.SkipLog(), []
    cached = cache.build(
        folder / "cache", *arguments, skip_log=log, on_progress=seen.append, **options
    )
    found = {
        "done": np.array(hosts.collect(sum(seen))),
        "skipped": np.array([path for path, _ in log.entries()]),
        "clips": np.array([str(clip.path) for clip in cached.clips]),
        "pooled": cached.features.pooled,
        "logits": cached.features.logits,
    }
    if (folder / "half").exists():
        seen = []
        finished = cache.build(
            folder / "half",
            *arguments,
            skip_log=data.SkipLog(),
            on_progress=seen.append,
            **options,
        )
        found["finished"] = finished.features.pooled
        found["finished_done"] = np.array(hosts.collect(sum(seen[1:])))

    config = optimize.Config(
        epochs=4,
        prototypes_start=6,
        prototypes_end=3,
        batch_size=16,
        learning_rate=0.01,
    )
    fitted = fit.explainer(
        jax.random.key(3),
        classifier,
        cached,
        test_cache.FRONT_END,
        "time_frequency",
        config=config,
        mesh=mesh,
    )
    explainer = fitted.explainer
    found |= {
        "epochs": fitted.history.epoch_purity,
        "rounds": fitted.history.round_purity,
        "matrix": explainer.transform.matrix,
        "audit": [
            value
            for value in dataclasses.asdict(fitted.audit).values()
            if not isinstance(value, str)  # the cause, of an audit that failed
        ],
        # What a host computes by itself, with what all of them computed.
        "explained": explainer.head(explainer.transform(cached.features.pooled)),
    }
    features = cached.features.to_mesh(mesh)
    cells = bank.build(explainer.transform, features, scheme="square", mesh=mesh)
    banks = {"cells": cells}
    banks |= {name: getattr(explainer, name) for name in ("positive", "negative")}
    for name, one in banks.items():
        for field in ("clip", "location", "activation", "purity"):
            found[f"{name} {field}"] = getattr(one, field)
    explain.save(folder / "run", explainer)
    explain.save(folder / "run", explainer, overwrite=True)

    log = data.SkipLog()
    study = masking.study(
        jax.random.key(4),
        classifier,
        explainer.transform,
        clips,
        test_cache.FRONT_END,
        scheme="square",
        draws=1,
        batch_size=4,
        mesh=mesh,
        skip_log=log,
    )
    known = {k: v for k, v in dataclasses.asdict(study).items() if v is not None}
    found |= {f"study {name}": value for name, value in known.items()}
    found["study skipped"] = np.array([path for path, _ in log.entries()])
    labels = np.eye(3, dtype=bool)[study.index % 3]
    found["metrics"] = [
        score(labels, logits)
        for score in (metrics.mean_average_precision, metrics.auroc)
        for logits in (study.none, study.apex)
    ]
    model = prototypes.on(
        classifier.params, num_classes=3, num_prototypes=2, key=jax.random.key(5)
    )
    log = data.SkipLog()
    arguments = (model, clips, test_cache.FRONT_END)
    options = {"batch_size": 4, "mesh": mesh, "skip_log": log}
    nearest = audioprotopnet.nearest(*arguments, num=3, **options)
    pushed, _ = audioprotopnet.push(*arguments, **options)
    found |= {
        "nearest index": nearest.index,
        "nearest similarity": nearest.similarity,
        "pushed": pushed.head.prototypes[...],
    }
    return {name: np.asarray(value) for name, value in found.items()}


def main(folder, rank, port):
    """One of two processes; writes what it found."""
    from jaxtyping import install_import_hook

    with install_import_hook("apex_jax", "beartype.beartype"):
        import jax

        from apex_jax import hosts, mesh

    jax.config.update("jax_numpy_rank_promotion", "raise")
    hosts.connect(
        hosts.Config(coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    )
    assert (jax.process_count(), len(jax.local_devices())) == (2, 4)
    assert hosts.is_primary() == (rank == 0)
    ragged = hosts.concatenate(np.arange(6).reshape(3, 2)[rank:])
    np.testing.assert_array_equal(ragged, [[0, 1], [2, 3], [4, 5], [2, 3], [4, 5]])
    assert hosts.collect({"é": rank}) == [{"é": 0}, {"é": 1}]
    assert hosts.collect(list(hosts.share(7))) == [[0, 1, 2], [3, 4, 5, 6]]
    np.savez(folder / f"process{rank}.npz", **run(folder, mesh.make()))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
