"""``attribench attribute``: one's own folders, with or without the model that was trained on them."""

from __future__ import annotations

from attribench.commands.decoys import add_decoy_options, told
from attribench.commands.parsing import (
    add_runtime_options,
    new_parser,
    options_of_method,
    parse,
    print_options,
    runtime_of,
    split_dotted,
)
from attribench.commands.writable import writable_folder
from attribench.data.decoding import Channels
from attribench.errors import UsageError


def attribute(arguments: list[str]) -> int:
    parser = new_parser(
        "attribute", "Rank the images of one folder by how they shaped those of another, with or without the model."
    )
    parser.add_argument("--train", type=str, help="Folder of train images, searched with its subfolders.")
    parser.add_argument("--queries", type=str, help="Folder of the images to explain.")
    parser.add_argument("--out", type=str, help="Folder for scores.parquet and report.html; of several methods, in a "
                        "folder each.")  # fmt: skip
    parser.add_argument("--method", type=str, default="nda", help="Method, or several separated by commas. Without a model: "
                        "nda, pixel, clip, yours; with one also dtrak, trak, ekfac, …")  # fmt: skip
    parser.add_argument("--model", type=str, help="The model that was trained on --train: a diffusers folder (a pipeline or a "
                        "UNet2DModel, safetensors), or a Lightning checkpoint of attribench (.ckpt).")  # fmt: skip
    parser.add_argument("--scheduler", type=str, help="Its noise schedule, where --model does not bring it: a folder with "
                        "scheduler_config.json, or ddpm for the defaults of DDPMScheduler.")  # fmt: skip
    parser.add_argument("--checkpoints", type=str, help="Folder of models of the course of its training, for methods that "
                        "look at these: diffusers folders, .ckpt or .safetensors.")  # fmt: skip
    parser.add_argument("--lora", type=str, help="LoRA of --model, as peft and diffusers write it (safetensors): gradients are "
                        "of that alone.")  # fmt: skip
    parser.add_argument("--captions", type=str, help="Captions of the train images, for a model that is told a text: CSV or "
                        "JSONL with file_name and caption. Without it, metadata.jsonl or text files beside the images are "
                        "taken.")  # fmt: skip
    parser.add_argument("--query-captions", "--query_captions", type=str, help="Captions of the queries, likewise.")
    parser.add_argument("--space", type=str, default="pixel", help="What methods that compare images are given: pixel, or "
                        "latent, the latents of --model's autoencoder with its noise schedule.")  # fmt: skip
    parser.add_argument("--top", type=int, default=20, help="Train images to report for each query; 0 = all.")
    parser.add_argument("--image-size", "--image_size", type=int, help="Images are resized and cropped to squares of so many "
                        "pixels (default: the model's, or 32).")  # fmt: skip
    parser.add_argument("--channels", type=Channels, default="auto", help="RGB, grey, or auto: the model's, or grey if no "
                        "image has colour.")  # fmt: skip
    parser.add_argument("--heat-maps", "--heat_maps", type=int, default=20, help="Train images of each query to show heat "
                        "maps for, where the method can.")  # fmt: skip
    add_decoy_options(parser)
    add_runtime_options(parser)
    own, dotted = split_dotted(arguments)

    from attribench.api import attribute_all, decoy_request, own_method_config
    from attribench.workflows.own_images import Request

    options = parse(parser, [argument for argument in own if argument not in ("-h", "--help")])
    names = list(dict.fromkeys(name.strip() for name in options.method.split(",") if name.strip()))
    if not names:
        raise UsageError("--method is empty. See attribench list.")
    changed = options_of_method(names, dotted)
    configs = [own_method_config(name, changed) for name in names]
    if "-h" in own or "--help" in own:
        print(parser.format_help().rstrip())
        for config in configs:
            print_options({"method": config.cls})
        return 0
    for name in ("train", "queries", "out"):
        if not getattr(options, name):
            raise UsageError(f"--{name} is needed: attribench attribute --train DIR --queries DIR --out DIR.")
    channels: Channels = options.channels
    request = Request(
        options.train, options.queries, options.top, options.image_size, channels, options.heat_maps,
        options.model, options.scheduler, options.checkpoints,
        decoy_request(options.decoys, options.contributors, options.false_discovery), options.lora,
        options.captions, options.query_captions, options.space,
    )  # fmt: skip

    from attribench.computing.progress import terminal_progress
    from attribench.records.files import safe

    out = writable_folder("--out", options.out)
    num_left_out = 0
    for result in attribute_all(request, configs, runtime_of(options), terminal_progress()):
        folder, num_left_out = out if len(configs) == 1 else out / safe(result.method), result.num_left_out
        written = result.to_parquet(folder / "scores.parquet"), result.to_html(folder / "report.html")
        print(f"{len(result.queries)} queries, {len(result.train)} train images, ranked by {result.method}:")
        print(*written, *told(result.answer, folder), sep="\n")
    if num_left_out:
        print(f"{num_left_out} files were left out; report.html says which and why.")
    return 0
