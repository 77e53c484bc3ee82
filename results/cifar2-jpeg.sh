#!/usr/bin/env bash
# Everything in results/ about CIFAR-2's photos, read from a folder of JPEG files: about an hour and a half on two CPU cores, half of
# it the retraining of 33 models. No image of theirs is kept (--galleries false).
set -euo pipefail
root=${1:?the folder with train/ and test/, each with automobile/ and horse/}
on() { attribench "$1" --dataset cifar2-jpeg --preset small --data.root "$root" "${@:2}"; }
run() { on run --galleries false "$@"; }

# Data methods: chosen at one draw of noise, reported at one and at ten; NDA also with train images mirrored, as in training.
on tune --method nda,score-machine,nda-plus
run --method nda,score-machine,nda-plus --tuned
for method in nda nda-plus; do
  run --method $method --tuned --method.noise_draws 10
done
run --method nda --tuned --method.flips true
run --method nda --tuned --method.flips true --method.noise_draws 10
for method in nda-plus score-machine; do  # whose YAML has flips
  run --method $method --tuned --method.flips false
done
run --method pixel-cosine,pixel-dot,random,datamodel,empirical-influence

# Model methods, as published and with 100 timesteps; D-TRAK's f was chosen at 10.
for method in trak dtrak das; do
  on tune --method $method --method.num_timesteps 10
  run --method $method --tuned
done
run --method relative-influence,renormalized-influence,gradient-dot,gradient-cosine,tracincp,gas,logra
f=$(python3 -c "import json; print(json.load(open('results/tuned/cifar2-jpeg/small/dtrak.standard.json'))['options']['f'])")
on tune --method dtrak-converged --method.f "$f" --method.num_timesteps 100
for method in trak das relative-influence renormalized-influence; do
  on tune --method $method-converged --method.num_timesteps 100
done
run --method dtrak-converged,trak-converged,das-converged,relative-influence-converged,renormalized-influence-converged --tuned
run --method gradient-dot-converged,gradient-cosine-converged
on tune --method ekfac --method.num_timesteps 10
run --method ekfac --tuned
run --method datainf
