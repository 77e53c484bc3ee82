#!/usr/bin/env bash
# Everything in results/ about Fashion-MNIST, on the ground truth beside it: about an hour on two CPU cores. The ground truth itself
# is `attribench ground-truth --dataset fashion-mnist --preset board`: 129 models, about two and a half hours. Times in
# records are those of an otherwise idle machine.
set -euo pipefail
on() { attribench "$1" --dataset fashion-mnist --preset board --ground-truth results/ground-truth/fashion-mnist.truth "${@:2}"; }
published=dtrak,trak,relative-influence,renormalized-influence,gradient-dot,gradient-cosine,tracincp,gas,das,das-signed,ekfac,datainf,logra
converged=dtrak-converged,trak-converged,relative-influence-converged,renormalized-influence-converged,gradient-dot-converged,gradient-cosine-converged,das-converged

# Options, chosen on validation queries; configs/datasets/fashion-mnist.yaml has them. D-TRAK's f was chosen at 10 timesteps.
for method in nda score-machine nda-plus dtrak trak relative-influence renormalized-influence das; do
  on tune --method $method
done
for method in ekfac datainf; do
  on tune --method $method --method.num_timesteps 10
done
for method in trak-converged relative-influence-converged renormalized-influence-converged; do
  on tune --method $method
done
on tune --method dtrak-converged --method.f mean --method.num_timesteps 100
on tune --method das-converged --method.num_timesteps 100

on run --method "nda,nda-converged,score-machine,nda-plus,nda-plus-converged,pixel-cosine,pixel-dot,random,datamodel,empirical-influence,$published"
on run --method "$converged"

# What more timesteps and draws of noise buy, and how many retrained models each method is worth.
on sweep --method nda --vary 'noise_draws=[1,3,10]'
on sweep --method datamodel --vary 'num_retrainings=[8,16,32,48]'
for method in dtrak-converged trak-converged das-converged; do
  on sweep --method $method --vary 'num_timesteps=[10,20,50,100]'
done
for method in relative-influence renormalized-influence gradient-dot gradient-cosine; do
  on sweep --method $method-converged --vary 'num_timesteps=[10,100]'
done
