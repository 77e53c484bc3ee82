"""``attribench attribute``: one's own folders, without a model."""

from __future__ import annotations

import sys
from pathlib import Path

from attribench.commands.decoys import add_decoy_options, decoys_of, told
from attribench.commands.parsing import add_runtime_options, new_parser, parse, print_options, runtime_of, split_dotted
from attribench.commands.writable import writable_folder
from attribench.data.decoding import Channels
from attribench.errors import UsageError


def attribute(arguments: list[str]) -> int:
    parser = new_parser(
        "attribute", "Rank the images of one folder by how they shaped those of another; no model needed."
    )
    parser.add_argument("--train", type=str, help="Folder of train images, searched with its subfolders.")
    parser.add_argument("--queries", type=str, help="Folder of the images to explain.")
    parser.add_argument("--out", type=str, help="Folder for scores.parquet and report.html.")
    parser.add_argument(
        "--method", type=str, default="nda", help="A method that needs no model: nda, pixel, clip, yours."
    )
    parser.add_argument("--top", type=int, default=20, help="Train images to report for each query; 0 = all.")
    parser.add_argument("--image-size", "--image_size", type=int, default=32, help="Images are resized and cropped to squares "
                        "of so many pixels.")  # fmt: skip
    parser.add_argument("--channels", type=Channels, default="auto", help="auto: grey if no image "
                        "has colour.")  # fmt: skip
    parser.add_argument("--heat-maps", "--heat_maps", type=int, default=20, help="Train images of each query to show heat "
                        "maps for, where the method can.")  # fmt: skip
    add_decoy_options(parser)
    add_runtime_options(parser)
    own, dotted = split_dotted(arguments)

    from attribench.configuration.files import DatasetConfig
    from attribench.configuration.resolution import method_config

    options = parse(parser, [argument for argument in own if argument not in ("-h", "--help")])
    if "." in options.method and "" not in sys.path:
        sys.path.insert(0, "")  # so that a class in the current folder can be named
    unknown = sorted(set(dotted) - {"method"})
    if unknown:
        raise UsageError(
            f"Unknown option --{unknown[0]}.*: only options of the method, --method.NAME, have a dot here."
        )
    config = method_config(options.method, DatasetConfig("", "", {}, {}, {}), "", dotted.get("method", {}))
    if "-h" in own or "--help" in own:
        print(parser.format_help().rstrip())
        print_options({"method": config.cls})
        return 0
    for name in ("train", "queries", "out"):
        if not getattr(options, name):
            raise UsageError(f"--{name} is needed: attribench attribute --train DIR --queries DIR --out DIR.")

    from attribench.computing.progress import terminal_progress
    from attribench.records.answers import save_scores
    from attribench.reporting.pages.attribution import attribution_page
    from attribench.store.files import atomic_write
    from attribench.workflows.attribution import Request
    from attribench.workflows.attribution import attribute as compute

    channels: Channels = options.channels
    request = Request(
        Path(options.train), Path(options.queries), options.top, options.image_size, channels, options.heat_maps,
        decoys_of(options),
    )  # fmt: skip
    out = writable_folder("--out", options.out)
    result = compute(request, config, runtime_of(options), terminal_progress())
    scores, page = out / "scores.parquet", out / "report.html"
    save_scores(result, scores)
    atomic_write(page, attribution_page(result).encode())
    print(f"{len(result.queries)} queries, {len(result.train)} train images, ranked by {result.method}:")
    print(scores, page, sep="\n")
    for line in told(result, out):
        print(line)
    left_out = sum(len(names) for names in result.skipped.values())
    if left_out:
        print(f"{left_out} files were left out; report.html says which and why.")
    return 0
