"""The bench of training: rivals that do what they are said to, proportions of the real model, figures that add up."""

import os
import sys

import numpy as np
import pytest
import torch

from tests.bench import recipes, scaled, train
from tests.bench.recipes import NOTEBOOK, PEFT, Habits
from utils.dataset import Layout
from utils.sizes import known_config
from utils.stages import read_json, write_json

pytestmark = pytest.mark.slow
LAYOUT = Layout(image_id=9, queries=2, bos_id=2, pad_id=1, newline_id=3)
SMALL = {"rank": 2, "alpha": 4, "dropout": 0.0, "global_batch": 4, "micro_batch": 2, "epochs": 1}


class Split:
    """Stands for a prepared split."""

    def __init__(self, *captions):
        self.captions = captions

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, row):
        return {"input_ids": torch.tensor(self.captions[row]), "pixels": torch.zeros(3, 2, 2, dtype=torch.uint8)}


def batches(habits, *captions):
    return recipes.UsualBatches(Split(*captions), {"mean": [0.5] * 3, "std": [0.5] * 3}, LAYOUT, habits)


def order_in(folder, prepared, recipe, preset="decoder"):
    folder.mkdir(parents=True)
    config = train.CONFIG | SMALL | {"preset": preset}
    order = {"prepared": str(prepared), "output": str(folder), "recipe": recipe, "config": config,
             "threads": 1, "pinned": False}  # fmt: skip
    write_json(folder / "order.json", order)
    return order


def test_the_usual_batch_takes_images_and_padding_for_labels():
    batch = batches(NOTEBOOK, [5, 6, 3], [7]).batch([0, 1])
    assert batch["input_ids"].tolist() == [[9, 9, 2, 5, 6, 3], [9, 9, 2, 7, 1, 1]]
    assert batch["labels"].tolist() == batch["input_ids"].tolist()
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    assert batch["pixel_values"].unique().tolist() == [-1]
    assert "attention_mask" not in batches(PEFT, [5]).batch([0])


def test_the_usual_pass_takes_every_pair_once_and_counts_its_tokens():
    pairs = batches(Habits(2, True, False, 0), [5, 3], [6, 3], [7, 7, 7, 3], [8, 8, 8, 3])
    rows = [row for batch in pairs for row in batch["input_ids"].tolist()]
    assert sorted(row[3] for row in rows) == [5, 6, 7, 8]
    # images and BOS are 3 of each; 12 tokens of captions
    assert pairs.useful == 4 * 3 + 12
    assert pairs.computed == sum(map(len, rows))
    list(pairs)  # the next pass counts anew
    assert pairs.useful == 24


def test_the_first_notebooks_batches_of_four_waste_a_quarter_of_the_tokens():
    lengths = np.random.default_rng(0).permutation(scaled.caption_lengths(2000)).tolist()
    pairs = batches(NOTEBOOK, *([5] * length for length in lengths))
    pairs.layout = Layout(9, scaled.QUERIES, 2, 1, 3)
    list(pairs)
    assert pairs.useful / pairs.computed == pytest.approx(0.73, abs=0.02)


@pytest.mark.parametrize(("recipe", "emptied"), [("notebook", 2), ("peft", 0)])
def test_a_published_recipe_trains_what_ours_trains(prepared_folder, tmp_path, monkeypatch, recipe, emptied):
    seen, calls, rows = [], [], []
    monkeypatch.setattr(recipes, "empty", lambda: calls.append(1) or 1000.0)
    monkeypatch.setattr(recipes, "NOTEBOOK", Habits(4, True, True, 1))
    monkeypatch.setitem(recipes.RECIPES, "notebook", lambda order: recipes.usual(order, recipes.NOTEBOOK))

    class Step(recipes.UsualStep):
        def __call__(self, inputs):
            seen.append(super().__call__(inputs))
            rows.append(len(inputs["input_ids"]))

    monkeypatch.setattr(recipes, "UsualStep", Step)
    figures = recipes.RECIPES[recipe](order_in(tmp_path / "run", prepared_folder, recipe))
    batch = {"notebook": 4, "peft": 2}[recipe]
    assert rows == [batch] * (1 + 8 // batch)  # one before the clock starts
    assert seen[0] > 0
    assert (figures["images"], len(calls)) == (8, emptied)
    assert figures["emptying"] == (1000 if emptied else 0)
    assert (figures["seconds"] < 0) == (emptied > 0)  # it is off the clock
    assert 0.5 < figures["useful"] <= 1


def test_a_step_of_the_usual_loop_moves_what_is_trained_and_clips_where_it_should():
    def stepped(clip):
        layer = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.zeros_(layer.weight)
        layer.forward = lambda x: type("Out", (), {"loss": (layer.weight * x).sum()})
        step = recipes.UsualStep(layer, 0.1, clip)
        norms = []
        step.optimizer.register_step_pre_hook(lambda *_: norms.append(layer.weight.grad.norm().item()))
        assert step({"x": torch.tensor([[30.0, 40.0]])}) == 0
        return norms[0], layer.weight.detach().tolist()

    assert stepped(True)[0] == pytest.approx(1, abs=1e-4)
    norm, weight = stepped(False)
    assert norm == 50
    assert weight == [[pytest.approx(-0.1), pytest.approx(-0.1)]]  # AdamW's first step is the rate


def test_the_longest_pairs_warm_a_recipe_up():
    assert recipes.longest([5, 9, 7, 9], 3) == [1, 3, 2]


def test_ours_is_the_training_of_notebook_03_and_its_own_log_tells_the_rate(prepared_folder, tmp_path):
    order = order_in(tmp_path / "run", prepared_folder, "ours", "connector")
    recipes.main(str(tmp_path / "run" / "order.json"))
    figures, run = (read_json(tmp_path / "run" / f"{name}.json") for name in ("result", "run"))
    assert (run["preset"], run["steps"], run["ended"]) == ("connector", 2, "finished")
    assert figures["images"] == 8
    assert figures["useful"] == run["useful_share"]
    assert figures["images"] / figures["seconds"] == pytest.approx(run["images_per_s"], rel=0.5)
    assert 0.1 < figures["gib"] < 8
    assert order["config"]["global_batch"] == 4


def test_features_are_computed_once_where_the_decoder_run_looks_for_them(prepared_folder, tmp_path, capsys):
    figures = recipes.features(order_in(tmp_path / "f", prepared_folder, "features"))
    assert figures["images"] == 8 + 4
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.safetensors")}
    assert len(shards) == 2
    recipes.ours(order_in(tmp_path / "c", prepared_folder, "ours"))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "features").rglob("*.safetensors")} == shards


def test_a_rank_keeps_to_its_own_cores(monkeypatch):
    taken = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 3, 5, 1})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: taken.append(cores))
    recipes.pin(0, 1)
    recipes.pin(1, 2)
    assert taken == [[1], [5, 7]]


def test_the_operations_are_those_that_are_known_of_the_real_model():
    """facts: ViT-g .52 TFLOP an image, OPT-6.7B 13.3 GFLOP a token with its head."""
    flops = scaled.forward_flops(known_config(train.REAL_MODEL), 1)
    assert flops["ViT"] == pytest.approx(0.52e12, rel=0.01)
    assert flops["OPT's layers"] + flops["OPT's head"] == pytest.approx(13.3e9, rel=0.01)
    assert flops["Q-Former"] == pytest.approx(0.0127e12, rel=0.01)


def test_the_scaled_model_spends_its_arithmetic_as_the_real_one_does():
    ours, theirs = (train.shares(c, 66) for c in (scaled.build_config(), known_config(train.REAL_MODEL)))
    assert sum(ours.values()) == pytest.approx(100)
    for part, off in {"ViT": 0.05, "OPT's layers": 0.02, "OPT's head": 0.05, "Q-Former": 0.15}.items():
        assert ours[part] == pytest.approx(theirs[part], rel=off)


def test_only_opt_is_run_backwards(monkeypatch):
    monkeypatch.setattr(scaled, "forward_flops", lambda *_: {"ViT": 30, "Q-Former": 10, "OPT's layers": 20, "OPT's head": 10})
    assert train.shares(None, 66) == {"ViT": 30, "Q-Former": 10, "OPT's layers": 40, "OPT's head": 20}


def test_caption_lengths_without_the_captions_have_their_median_mean_and_longest(monkeypatch, tmp_path):
    monkeypatch.setattr(scaled, "REAL", tmp_path)
    lengths = scaled.caption_lengths(1000)
    assert (np.median(lengths), min(lengths) >= 2, max(lengths)) == (27, True, 121)
    assert np.mean(lengths) == pytest.approx(33, abs=0.7)  # 33.6 before the longest are cut
    assert "log-normal of median 27" in scaled.origin()


def test_caption_lengths_are_those_of_the_real_captions(real_release):
    lengths = scaled.caption_lengths(1000)
    assert (np.median(lengths), max(lengths)) == (27, 118)
    assert scaled.origin() == "12,487 ROCO captions in OPT's tokens"


def test_the_pairs_can_be_trained_on_with_the_model(tmp_path):
    config = scaled.build_config(opt=1, wide=64, vit=1, narrow=128)
    scaled.write_model(tmp_path / "weights", config)
    scaled.write_pairs(tmp_path / "pairs", tmp_path / "weights", 6)
    from utils import model
    from utils.dataset import PreparedSplit

    split = PreparedSplit(tmp_path / "pairs", "train")
    layout = model.layout_of(config, model.load_tokenizer(str(tmp_path / "weights")))
    assert sorted(split.lengths) == sorted(scaled.caption_lengths(6))
    special = {layout.image_id, layout.bos_id, layout.pad_id, layout.newline_id}
    for row in range(6):
        *ids, last = split[row]["input_ids"].tolist()
        assert last == layout.newline_id
        assert not special & set(ids)
        assert max(ids, default=0) < scaled.VOCABULARY
    assert split.pixels(0).shape == (3, 224, 224)


def rounds(**seconds):
    """Two rounds of 100 images, the second three times as slow."""
    figures = {"images": 100, "useful": 0.9, "gib": 2.0, "emptying": 0.5}
    return [{name: figures | {"seconds": seconds[name[1]] * factor} for name in train.SYSTEMS} for factor in (1, 3)]


def test_rates_are_medians_over_the_rounds_held_against_the_first_recipe():
    usual, habit, *others = train.rate_lines(rounds(a=10, b=12, c=5, d=9))
    # 100 images in 10 and in 30 seconds: 10 and 3.33 a second
    assert (usual.ours, usual.bar, habit.ours) == (pytest.approx(6.667, abs=1e-3), None, 0.5)
    assert [round(line.figure, 3) for line in others] == [0.833, 2.0, 1.111]
    assert [line.bar for line in others] == [None, 1.35, 1.1]


def test_features_are_paid_for_when_what_they_save_has_reached_what_they_cost():
    once, passes = train.cache_lines({"images": 10, "seconds": 1}, rounds(a=1, b=1, c=5, d=9))
    # 0.1 s an image; of 150 / 20 and 270 / 20 ms an image, by the medians of the rates, 60 ms are saved
    assert (once.ours, passes.ours) == (pytest.approx(100), pytest.approx(0.1 / 0.06))


def test_only_ours_have_to_waste_little():
    lines = train.token_lines(dict.fromkeys(train.SYSTEMS, 0.9))
    assert [line.met for line in lines] == [True, True, False, False, True]
    assert lines[-1].ours == pytest.approx(0.946, abs=0.005)


def test_what_a_gpu_saves_besides_is_counted_for_the_real_model():
    held, logits, unpackings = train.gpu_lines({train.A: 0.72, train.C: 0.93})
    assert (held.ours, held.theirs) == (pytest.approx(3.50, abs=0.01), pytest.approx(5.73, abs=0.01))
    # 66 columns / .93 - 32, and 66 / .72, times 4 bytes of 50,304 words
    assert (logits.ours, logits.theirs) == (pytest.approx(7.8, abs=0.1), pytest.approx(18.3, abs=0.2))
    assert (unpackings.ours, unpackings.theirs) == (0.25, 0.5)


def test_a_recipe_that_fails_ends_the_bench(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match="The run x of the recipe peft failed"):
        train.trained(tmp_path, "x", "peft", "decoder")


@pytest.mark.slow
def test_every_recipe_trains_in_a_process_of_its_own(monkeypatch):
    small = scaled.build_config(opt=2, wide=64, vit=1, narrow=128)
    monkeypatch.setattr(scaled, "build_config", lambda: small)
    monkeypatch.setattr(train, "ROUNDS", 1)
    lines = {line.what: line for line in train.run(0.1)}
    assert all(lines[name].ours > 0 for name in train.SYSTEMS)
    assert lines["useful of all computed tokens, (c)"].ours > lines["useful of all computed tokens, (a)"].ours
    assert lines["(d) on two ranks of one core, same global batch"].ours > 0
