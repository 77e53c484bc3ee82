#!/usr/bin/env bash
# Everything in results/ about digits-lora. Its ground truth is in results/ground-truth/; retraining it (128 LoRAs, about an hour on two
# CPU cores) and writing it anew:
#   attribench ground-truth export --dataset digits-lora --out results/ground-truth/digits-lora.truth
# Times in records are those of a machine with other work.
set -euo pipefail
on() { attribench "$1" --dataset digits-lora --ground-truth results/ground-truth/digits-lora.truth "${@:2}"; }

# Options, chosen on validation queries at one draw of noise; configs/datasets/digits-lora.yaml has them. λ of trak at 10 timesteps is
# the best of what its search tried there; dtrak's is the best with the published output.
on tune --method nda --method.noise_draws 1
on tune --method ekfac --method.num_timesteps 10
on tune --method trak --method.noise_draws 1
on tune --method dtrak --method.f mean-squared-l2-norm --method.num_timesteps 10 --method.noise_draws 1

# The board. Gradients are of LoRA's weights, at 10 timesteps, as published.
on run --method nda,pixel-cosine,pixel-dot,random,trak,dtrak,ekfac,gradient-dot

# Where gradients have converged; the last two methods are not in results/ yet.
on tune --method trak-converged --method.noise_draws 1
on run --method trak-converged,gradient-dot-converged
on tune --method dtrak-converged --method.f mean --method.num_timesteps 100 --method.noise_draws 1
on tune --method ekfac-converged --method.num_timesteps 100
on run --method dtrak-converged,ekfac-converged
