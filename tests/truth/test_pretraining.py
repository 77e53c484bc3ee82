"""LoRA in the benchmark: where the base is from, what is bound to it, and that results do not depend on how it was had."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attribench.cli import main
from attribench.commands.status_lines import status_lines
from attribench.computing.progress import silent_progress
from attribench.configuration.resolution import resolve
from attribench.diffusion.network import build_network
from attribench.diffusion.training import loop as training
from attribench.errors import AttribenchError, ModelError, UsageError
from attribench.records.lds import load_records
from attribench.settings import ModelSettings, Runtime, Settings, TrainingSettings
from attribench.truth.base import store_base
from attribench.truth.experiment import Experiment
from attribench.workflows.opening import open_experiment, setting_hash

pytestmark = pytest.mark.slow


NETWORK = {"block_out_channels": [32], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}


def opened(workdir: Path, base: str | None = None, workers: int = 1, dataset: str = "digits-lora") -> Experiment:
    options = {} if base is None else {"model": {"base": base}}
    runtime = Runtime(workdir=str(workdir), accelerator="cpu", workers=workers)
    return open_experiment(resolve(dataset, "smoke", [], options), runtime, silent_progress)


def saved(folder: Path, model: ModelSettings, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> Path:
    """A diffusers folder with an untrained network."""
    torch.manual_seed(seed)
    network = build_network(model, shape)
    network.save_pretrained(folder)  # type: ignore[operator]
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = opened(tmp_path_factory.mktemp("runs"))
    experiment.prepare()
    return experiment


@pytest.fixture
def folder(tmp_path: Path, tiny_model: ModelSettings) -> Path:
    return saved(tmp_path / "base", tiny_model)


def lora_names(network: nn.Module) -> set[str]:
    return {name for name, value in network.named_parameters() if value.requires_grad}


def test_the_base_is_the_target_model_of_its_setting(made: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    pretraining = opened(made.store.root, dataset="digits-base")
    target = pretraining.target.find(made.store)
    assert target is not None
    assert set(pretraining.train.labels.tolist()) == {0, 1, 2, 3, 4}
    assert set(made.train.labels.tolist()) == {5, 6, 7, 8, 9}
    trained = made.target.load(made.store)
    weights = target.load_tensors("model")
    frozen = {
        name.replace(".base_layer", ""): value for name, value in trained.state_dict().items() if ".lora_" not in name
    }
    assert frozen.keys() == weights.keys()
    assert all(torch.equal(frozen[name], weights[name]) for name in weights), "bit for bit what it was"
    monkeypatch.setattr(training, "_fit", lambda *_: pytest.fail("trained again"))
    again = opened(made.store.root)
    again.prepare()
    assert again.base == made.base


def test_a_model_in_the_store_is_its_lora_alone(made: Experiment) -> None:
    whole = opened(made.store.root, dataset="digits-base").target.find(made.store)
    assert whole is not None
    for job in (made.target, made.retrainings[1][0]):
        artifact = job.find(made.store)
        assert artifact is not None
        names = lora_names(job.load(made.store))
        assert artifact.load_tensors("model").keys() == {name.replace(".default.", ".") for name in names}
        kept, full = (found.folder / "model.safetensors" for found in (artifact, whole))
        assert kept.stat().st_size < full.stat().st_size / 3
    checkpoints = list(made.models().checkpoints())  # type: ignore[union-attr]
    assert len(checkpoints) == 2
    last, target = checkpoints[-1].state_dict(), made.target.load(made.store).state_dict()
    assert all(torch.equal(last[name], target[name]) for name in target)
    first = checkpoints[0].state_dict()
    assert {name for name in target if not torch.equal(first[name], target[name])} <= lora_names(checkpoints[0])


def test_worker_processes_give_the_same_ground_truth_bit_for_bit(made: Experiment, tmp_path: Path) -> None:
    beside = opened(tmp_path, workers=2)
    beside.prepare()
    for name in ("validation", "generation"):
        assert torch.equal(beside.ground_truth(name).losses, made.ground_truth(name).losses)


def test_another_base_is_another_model_wherever_it_lies(tmp_path: Path, tiny_model: ModelSettings) -> None:
    first, other = (saved(tmp_path / name, tiny_model, seed=seed) for name, seed in (("one", 0), ("two", 1)))
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copytree(first, tmp_path / "elsewhere" / "one")
    experiments = [opened(tmp_path / "runs", str(path)) for path in (first, moved, other)]
    keys = [experiment.store.key(experiment.target.spec) for experiment in experiments]
    assert keys[0] == keys[1] != keys[2]
    configs = [resolve("digits-lora", "smoke", [], {"model": {"base": str(path)}}) for path in (first, moved, other)]
    hashes = [setting_hash(experiment, config) for experiment, config in zip(experiments, configs, strict=True)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert configs[0].overrides == configs[1].overrides == {"model.base": "one"}


@pytest.mark.parametrize("changed", [{"norm_eps": 1e-2}, {"act_fn": "relu"}, {"freq_shift": 1}])
def test_the_same_weights_used_otherwise_are_another_base(
    folder: Path, tmp_path: Path, changed: dict[str, object]
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other" / "base"))
    config = json.loads((other / "config.json").read_text())
    assert config.items().isdisjoint(changed.items())
    (other / "config.json").write_text(json.dumps({**config, **changed}))
    ours, theirs = (opened(tmp_path / "runs", str(path)) for path in (folder, other))
    noisy, timesteps = torch.randn(1, 1, 8, 8), torch.tensor([5])
    with torch.no_grad():
        outputs = [of.base.load(of.store)(noisy, timesteps).sample for of in (ours, theirs)]  # type: ignore[union-attr]
    assert not torch.allclose(*outputs, atol=1e-3)
    assert ours.store.key(ours.target.spec) != theirs.store.key(theirs.target.spec)
    config_of = [resolve("digits-lora", "smoke", [], {"model": {"base": str(path)}}) for path in (folder, other)]
    assert setting_hash(ours, config_of[0]) != setting_hash(theirs, config_of[1])


def test_a_base_is_the_same_from_a_setting_a_folder_a_bundle_and_another_diffusers(
    made: Experiment, tmp_path: Path
) -> None:
    base = made.base
    assert base is not None
    network: Any = base.load(made.store)
    network.save_pretrained(tmp_path / "base")
    config_file = tmp_path / "base" / "config.json"
    written = json.loads(config_file.read_text())
    assert opened(tmp_path / "runs", str(tmp_path / "base")).base.content == base.content  # type: ignore[union-attr]
    exported = store_base(made.store, dict(network.config), network.state_dict())
    assert exported.content == base.content
    # One version writes an option that another does not know yet, or leaves one out that has its usual value.
    assert written["act_fn"] == "silu"
    older = {key: value for key, value in written.items() if key != "act_fn"}
    config_file.write_text(json.dumps({**older, "option_of_the_future": None}))
    assert opened(tmp_path / "runs", str(tmp_path / "base")).base.content == base.content  # type: ignore[union-attr]


def test_other_lora_is_another_model(made: Experiment) -> None:
    def key(**options: object) -> str:
        settings = replace(made.settings, training=replace(made.settings.training, **options))
        job = replace(made.target, training=settings.training)
        return made.store.key(job.spec)

    rank = made.settings.training.lora_rank
    assert key(lora_alpha=float(rank)) == key()  # it is what none means
    assert len({key(), key(lora_rank=rank + 1), key(lora_alpha=1.0), key(lora_modules=["to_q"])}) == 4


def test_a_folder_is_a_base(folder: Path, tmp_path: Path, tiny_model: ModelSettings) -> None:
    from diffusers import DDPMScheduler, UNet2DModel

    experiment = opened(tmp_path / "runs", str(folder))
    with experiment.progress.task("", 1) as task:
        experiment.train_only([experiment.target], task)
    shutil.rmtree(folder.parent / "base")
    network = experiment.target.load(experiment.store)
    assert isinstance(network, UNet2DModel)
    assert lora_names(network)
    (tmp_path / "as-usual").mkdir()
    usual = saved(tmp_path / "as-usual", tiny_model)
    DDPMScheduler().save_pretrained(usual)
    assert opened(tmp_path / "runs", str(usual)).base is not None
    with pytest.raises(ModelError, match=r"There is no base at .*base: --model.base takes a diffusers folder"):
        opened(tmp_path / "runs", str(folder)).base  # noqa: B018


def test_bases_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, tiny_model: ModelSettings) -> None:
    from diffusers import DDPMScheduler, UNet2DConditionModel, UNet2DModel

    colour = saved(tmp_path / "colour", tiny_model, (3, 8, 8))
    large = saved(tmp_path / "large", tiny_model, (1, 16, 16))
    classes = tmp_path / "classes"
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    UNet2DModel(8, 1, 1, block_out_channels=(8, 16), norm_num_groups=4, num_class_embeds=3, **blocks).save_pretrained(
        classes
    )
    cosine = saved(tmp_path / "cosine", tiny_model)
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(cosine / "scheduler")
    told = tmp_path / "told"
    blocks = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    UNet2DConditionModel(
        8, 1, 1, block_out_channels=[8], norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4, **blocks
    ).save_pretrained(told)
    empty = tmp_path / "empty"
    empty.mkdir()
    for base, message in {
        str(colour): r"is of images of 3×8×8 \(channels, height, width\), and the data set's are 1×8×8",
        str(large): r"is of images of 1×16×16",
        str(classes): "is told classes",
        str(told): "holds a UNet2DConditionModel, which is told a text",
        str(empty): "is no diffusers folder",
        str(cosine): "was trained with another noise schedule or prediction",
        "nowhere": "There is no base at nowhere",
        "digits-bass:smoke": r"--model.base digits-bass:smoke, a setting DATASET:PRESET: Unknown data set 'digits-bass'",
        "digits-base:smok": r"no preset 'smok'\. Did you mean 'smoke'",
        "digits-lora:smoke": "that setting trains LoRA itself, on digits-base:smoke",
    }.items():
        with pytest.raises(AttribenchError, match=message) as caught:
            opened(tmp_path / "runs", base).base  # noqa: B018
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "training", "message"),
    [
        ({"base": "a:b"}, {}, "--model.base needs --training.lora_rank"),
        ({}, {"lora_rank": 2}, "--training.lora_rank needs --model.base"),
        ({"base": "a:b", "layers_per_block": 1}, {"lora_rank": 2}, "--model.layers_per_block with --model.base"),
        ({"base": "a:b", "down_block_types": ["x"]}, {"lora_rank": 2}, "--model.down_block_types with --model.base"),
        ({"base": ""}, {"lora_rank": 2}, "--model.base is empty"),
        ({}, {"lora_alpha": 2.0}, "--training.lora_alpha is of no use without --training.lora_rank"),
        ({}, {"lora_rank": -1}, "--training.lora_rank must be at least 1"),
        ({"base": "a:b"}, {"lora_rank": 1, "lora_modules": []}, "--training.lora_modules names no layer"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    model: dict[str, object], training: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Settings.of({"model": {**(NETWORK if "base" not in model else {}), **model}, "training": training})


def test_status_looks_only(tmp_path: Path, made: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_fit", lambda *_: pytest.fail("trained"))
    lines = status_lines(opened(tmp_path))
    assert lines[1].split() == ["base", "missing", "(digits-base:smoke):", "all", "else", "is", "trained", "on", "it"]
    assert "  subset models         4 of 4" in status_lines(opened(made.store.root))


def test_a_damaged_base_is_trained_again_and_its_models_stay_in_use(
    made: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(made.store.root, tmp_path / "runs"))
    target = opened(root, dataset="digits-base").target
    artifact = target.find(made.store)
    assert artifact is not None
    file = root / "models" / artifact.key / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))
    trained: list[object] = []
    original = training._fit
    monkeypatch.setattr(training, "_fit", lambda *given: (trained.append(given), original(*given)))
    again = opened(root)
    again.prepare()
    assert len(trained) == 1
    assert again.ground_truth("validation").hash == made.ground_truth("validation").hash


def test_as_a_file_it_gives_the_same_record_elsewhere(
    made: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoke = ("--dataset", "digits-lora", "--preset", "smoke", "--workdir", str(made.store.root))
    truth = tmp_path / "lora.truth"
    assert main(["ground-truth", "export", *smoke, "--out", str(truth)]) == 0
    assert main(["run", "--method", "pixel,random", *smoke, "--results", str(tmp_path / "there")]) == 0
    monkeypatch.setattr(training, "_fit", lambda *_: pytest.fail("trained"))
    place = ("--workdir", str(tmp_path / "runs"), "--results", str(tmp_path / "here"))
    assert main(["run", "--method", "pixel,random", "--ground-truth", str(truth), *place]) == 0
    here, there = (load_records(tmp_path / name) for name in ("here", "there"))
    assert len(here) == len(there) == 2
    for ours, theirs in zip(here, there, strict=True):
        apart = {"created", "cost", "ground_truth"}
        assert ours.model_dump(exclude=apart) == theirs.model_dump(exclude=apart)
    config = resolve("digits-lora", "smoke", [], {})
    runtime = Runtime(workdir=str(tmp_path / "runs"), accelerator="cpu")
    experiment = open_experiment(replace(config, ground_truth=str(truth)), runtime, silent_progress)
    experiment.prepare()
    own, others = (of.target.load(of.store).state_dict() for of in (experiment, made))
    assert own.keys() == others.keys()
    assert all(torch.equal(own[name], others[name]) for name in own)


def test_peft_and_diffusers_read_what_is_exported(made: Experiment, tmp_path: Path) -> None:
    from diffusers import UNet2DModel
    from peft import PeftModel

    call = [
        "ground-truth",
        "export",
        "--dataset",
        "digits-lora",
        "--preset",
        "smoke",
        "--workdir",
        str(made.store.root),
    ]
    assert main([*call, "--out", str(tmp_path / "lora.truth")]) == 0
    shutil.unpack_archive(tmp_path / "lora.truth", tmp_path / "files", "zip")
    noisy, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([10, 700])
    names = made.target.checkpoint_names()
    (first,) = (tmp_path / "files" / "checkpoints").iterdir()
    for folder, name in ((tmp_path / "files" / "model", names[-1]), (first, names[0])):
        base = UNet2DModel.from_pretrained(tmp_path / "files" / "base").eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # peft's way to say that a weight is missing
            plain = base(noisy, timesteps).sample
            found = PeftModel.from_pretrained(base, str(folder)).eval()(noisy, timesteps).sample
            expected = made.target.load_checkpoint(made.store, name)(noisy, timesteps).sample
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, plain, atol=1e-3)


def test_somebodys_model_is_not_passed_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["ground-truth", "export", "--dataset", "digits-lora", "--preset", "smoke", "--model.base", str(folder)]
    assert main([*call, "--workdir", str(tmp_path / "runs"), "--out", str(tmp_path / "x.truth")]) == 2
    assert "somebody's pretrained model" in capsys.readouterr().err
    assert not (tmp_path / "x.truth").exists()


def test_dropout_is_the_usual_one_or_the_base_s_own(made: Experiment, tiny_model: ModelSettings) -> None:
    given, own = replace(tiny_model, dropout=None), ModelSettings(base="some-base")
    assert given.stated == {**tiny_model.stated, "dropout": 0.1}
    assert own.stated == {"base": "some-base", "dropout": None}
    assert made.settings.model.dropout == 0.1  # its preset says so
    assert made.target.spec["model"]["dropout"] == 0.1
    jobs = [replace(made.target, model=replace(made.settings.model, dropout=dropout)) for dropout in (None, 0.1, 0.0)]
    assert len({made.store.key(job.spec) for job in jobs}) == 3
    with pytest.raises(UsageError, match=r"--model\.dropout must be in"):
        ModelSettings(base="some-base", dropout=1.0)


def test_what_was_made_before_there_was_lora_keeps_its_name(tiny_model: ModelSettings) -> None:
    assert not {"base"} & tiny_model.stated.keys()
    assert not {"lora_rank", "lora_alpha", "lora_modules"} & TrainingSettings().stated.keys()
