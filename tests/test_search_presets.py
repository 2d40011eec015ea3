"""What presets search: against LoraHub's own loop, and mergekit-evolve's own genomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from mergekit.common import ModelReference
from mergekit.evo.genome import ModelGenome, ModelGenomeDefinition

from mergepipe.errors import InputError, Problems
from mergepipe.pipeline import prepare
from mergepipe.pipeline.preparing import read_recipe
from mergepipe.recipe import parse
from mergepipe.search.evo import lorahub
from mergepipe.search.optimizer import Nevergrad
from mergepipe.search.space import read_space, untuned

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"
LABELS = ("german", "python", "arithmetic")


def recipe(folder, preset, method="task_arithmetic", models=LABELS, search=None, **merge):
    base = {} if method == "linear" else {"base": "base"}
    data = {
        "mergepipe": 1,
        "models": {label: str(QUICKSTART / label) for label in ("base", *LABELS)},
        "merge": {"method": method, **base, "models": models, **merge},
        "evaluate": [{"use": "bits_per_byte", "data": "x.jsonl"}],
        "search": {"preset": preset, **(search or {})},
    }
    data["merge"]["models"] = models if isinstance(models, dict) else list(models)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return folder / "recipe.yaml"


def read(file):
    """What is searched, the settings, and the whole recipe at its start."""
    problems = Problems()
    document = read_recipe(file, problems)
    space = read_space(document, 4, problems)
    parsed = parse(untuned(document, problems), problems)
    problems.raise_any()
    assert parsed is not None
    return space, parsed.search.fields, parsed


def test_lorahub_asks_what_lorahub_asks(tmp_path):
    """The same candidates as the loop of its own, but for the start, which comes before."""
    space, fields, _ = read(recipe(tmp_path, "lorahub"))
    assert (fields.optimizer, fields.budget, fields.penalty) == ("NGOpt", 40, 0.05)
    theirs = []

    def loss(weights):
        return sum((weight - 0.3) ** 2 for weight in weights)

    def evaluate(genomes):
        theirs.extend(one.weights for one in genomes)
        return [loss(one.weights) for one in genomes]

    lorahub(3, evaluate, seed=5)
    ours = Nevergrad("NGOpt", space.genes, budget=40, batch=fields.batch, seed=5)
    for wanted in [(0.0,) * 3, *theirs[:6]]:
        asked = ours.ask()
        assert asked == wanted
        ours.tell((loss(asked) + fields.penalty * float(np.mean(np.abs(asked))),))


def test_what_a_recipe_says_itself_stands(tmp_path):
    models = {"german": {"weight": 0.7}, "python": {"weight": {"search": [0, 1]}}, "arithmetic": {}}
    file = recipe(tmp_path, "lorahub", models=models, search={"budget": 7, "penalty": 0.0})
    space, fields, parsed = read(file)
    assert [(gene.name.split(".")[2], gene.low) for gene in space.genes] == [
        ("python", 0),
        ("arithmetic", -1.5),
    ]
    assert (fields.budget, fields.penalty, fields.optimizer) == (7, 0.0, "NGOpt")
    assert parsed.merges["merge"].each["german"] == {"weight": 0.7}


def their_start(method, **fields):
    """Where mergekit-evolve's own genome starts."""
    base, *models = (ModelReference.parse(str(QUICKSTART / one)) for one in ("base", *LABELS))
    given = {} if method == "linear" else {"base_model": base}
    definition = ModelGenomeDefinition(models=models, merge_method=method, **given, **fields)
    return ModelGenome(definition).initial_genotype().numpy()


CASES = [
    ("linear", {}),
    ("task_arithmetic", {"filters": ["self_attn", "mlp"]}),
    ("ties", {"layer_granularity": 2}),
    ("dare_ties", {"layer_granularity": 1, "filters": ["mlp"], "smooth": True}),
]


@pytest.mark.parametrize(("method", "fields"), CASES)
def test_the_genome_is_mergekit_evolves(method, fields, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelGenome, "__init__", with_layers(4))
    start = their_start(method, **fields)
    space, _, parsed = read(
        recipe(tmp_path, "mergekit-evolve", method=method, search={"genome": fields})
    )
    assert len(space.genes) == start.size
    assert sorted(gene.start for gene in space.genes) == pytest.approx(sorted(start.flatten()))
    assert all(gene.sigma == 1 / 6 for gene in space.genes)
    if method != "task_arithmetic":
        assert parsed.merges["merge"].shared["normalize"] is True


def with_layers(layers):
    def begin(self, definition):
        self.definition, self.num_layers = definition, layers

    return begin


@pytest.mark.parametrize("negative", [False, True])
def test_genes_become_values_as_mergekit_evolve_has_it(negative, tmp_path):
    """Densities are sizes cut off at 1; weights are sizes unless negative ones are allowed."""
    file = recipe(
        tmp_path,
        "mergekit-evolve",
        method="ties",
        search={"genome": {"allow_negative_weights": negative}},
    )
    genes = read(file)[0].genes
    optimizer = Nevergrad("CMA", genes, budget=400, batch=200, seed=0)
    optimizer.ask()
    raw = [one.value for one in (optimizer._optimizer.ask() for _ in range(150))]
    ours = np.array([optimizer.plain(one) for one in raw])
    weights, densities = (np.array(raw)[:, at::2] for at in (0, 1))
    assert np.std(weights, axis=0) == pytest.approx(1 / 6, rel=0.25)
    assert np.array_equal(ours[:, 0::2], weights if negative else np.abs(weights))
    assert np.array_equal(ours[:, 1::2], np.clip(np.abs(densities), 0, 1))
    assert (weights < 0).any()
    assert (densities > 1).any()


def test_a_group_has_so_many_layers_and_the_last_one_what_is_left(tmp_path):
    file = recipe(tmp_path, "mergekit-evolve", search={"genome": {"layer_granularity": 3}})
    problems = Problems()
    space = read_space(read_recipe(file, problems), 7, problems)
    filled = space.filled([0.1, 0.2, 0.3, *[1.0] * 6]).data["merge"]["models"]["german"]
    assert filled["weight"] == [0.1] * 3 + [0.2] * 3 + [0.3]


def test_slerp_of_two_searches_its_t(tmp_path):
    space, _, _ = read(recipe(tmp_path, "mergekit-evolve", method="slerp", models=["german"]))
    (gene,) = space.genes
    assert (gene.name, gene.low, gene.high, gene.start) == ("merge.t", 0, 1, 0.5)
    assert gene.sigma == pytest.approx(0.0589, abs=1e-4)


FAULTS = [
    ({"preset": "lorahup"}, "search.preset"),
    ({"preset": "lorahub", "method": "ties"}, "recipe.yaml:8:3: merge.method: ties: the preset"),
    ({"preset": "mergekit-evolve", "method": "widen"}, "searches linear, task_arithmetic"),
    ({"preset": "lorahub", "search": {"genome": {}}}, "is for `preset: mergekit-evolve`"),
    (
        {"preset": "mergekit-evolve", "search": {"genome": {"filter": ["mlp"]}}},
        "did you mean 'filters'",
    ),
    (
        {"preset": "mergekit-evolve", "search": {"genome": {"layer_granularity": -1}}},
        "search.genome.layer_granularity",
    ),
]


@pytest.mark.parametrize(("change", "words"), FAULTS)
def test_a_preset_that_does_not_fit_is_refused_where_it_stands(change, words, tmp_path):
    with pytest.raises(InputError) as caught:
        prepare(recipe(tmp_path, **change))
    assert words in str(caught.value)


def test_a_preset_needs_a_merge_of_models(tmp_path):
    file = recipe(tmp_path, "lorahub")
    data = yaml.safe_load(file.read_text())
    data["stages"] = {"one": {"merge": data.pop("merge")}}
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match="preset lorahub searches a `merge:` of `models:`"):
        prepare(file)
