#!/usr/bin/env bash
# Everything in results/ about digits-lora. Retraining its ground truth (128 LoRAs, half an hour to an hour on two CPU cores) and exporting it:
#   attribench ground-truth export --dataset digits-lora --out results/ground-truth/digits-lora.truth
# The rest, on that file, takes a quarter of an hour. Times in records are those of a machine with other work.
set -euo pipefail
on() { attribench "$1" --dataset digits-lora --ground-truth results/ground-truth/digits-lora.truth "${@:2}"; }

# Options, chosen on validation queries; configs/datasets/digits-lora.yaml has them.
for method in nda trak dtrak; do
  on tune --method $method --method.noise_draws 1
done
on tune --method ekfac --method.num_timesteps 10
for method in trak-converged dtrak-converged; do
  on tune --method $method --method.noise_draws 1
done
on tune --method ekfac-converged --method.num_timesteps 100

# The board: each gradient method as published, with 10 timesteps, and where it has converged. Gradients are of LoRA's weights.
on run --method nda,pixel-cosine,pixel-dot,random,trak,dtrak,ekfac,gradient-dot,gas
on run --method trak-converged,dtrak-converged,ekfac-converged
