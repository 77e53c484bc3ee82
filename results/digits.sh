#!/usr/bin/env bash
# Everything in results/ about digits, on the ground truth that ships: about an hour and a half on two CPU cores, half of it the
# retraining of the counterfactual. Times in records are those of an otherwise idle machine.
set -euo pipefail
on() { attribench "$1" --dataset digits "${@:2}"; }
published=dtrak,trak,relative-influence,renormalized-influence,gradient-dot,gradient-cosine,tracincp,gas
converged=dtrak-converged,trak-converged,relative-influence-converged,renormalized-influence-converged

# Options, chosen on validation queries at one draw of noise; configs/datasets/digits.yaml has them. The strict protocol chooses
# on a half, and its rows have one draw.
for method in ${converged//,/ } dtrak trak relative-influence renormalized-influence nda; do
  on tune --method $method --method.noise_draws 1
done
for method in nda das-converged ekfac-converged ${converged//,/ }; do
  on tune --method $method --method.noise_draws 1 --protocol strict
done
for method in score-machine nda-plus; do
  on tune --method $method --protocol strict
done
for method in score-machine nda-plus; do
  on tune --method $method
done
for method in das ekfac datainf; do
  on tune --method $method --method.num_timesteps 10
done
for method in das-converged ekfac-converged; do
  on tune --method $method --method.num_timesteps 100
done

# The board: each gradient method as published, with 10 timesteps, and where it has converged.
on run --method "nda,pixel-cosine,pixel-dot,random,$published,datamodel,empirical-influence"
on run --method "nda-converged,$converged,gradient-dot-converged,gradient-cosine-converged,tracincp-converged,gas-converged"
on run --method score-machine,nda-plus,das,das-signed,ekfac,datainf,logra,unlearning,fine-tune
on run --method journey-trak
on run --method nda-plus-converged,das-converged,ekfac-converged,datainf-converged
on run --method "nda,nda-plus,score-machine,pixel-cosine,pixel-dot,random,das-converged,ekfac-converged,$converged" --protocol strict --tuned
for method in nda nda-plus; do
  on run --method $method --protocol strict --tuned --method.noise_draws 10
done

# What more timesteps and draws of noise buy.
for method in trak-converged dtrak-converged; do
  on sweep --method $method --vary 'num_timesteps=[10,20,50,100]' --series 'noise_draws=[1,3]'
  on sweep --method $method --vary 'noise_draws=[10]' --series 'num_timesteps=[100]'
done
for method in relative-influence renormalized-influence gradient-dot gradient-cosine; do
  on sweep --method $method-converged --vary 'num_timesteps=[10,100]' --series 'noise_draws=[1,3]'
done
for method in tracincp gas; do
  on sweep --method $method-converged --vary 'num_timesteps=[10,20,50,100]'
done
on sweep --method nda --vary 'noise_draws=[1,3,10]'

# How many retrained models each method is worth.
on sweep --method datamodel --vary 'num_retrainings=[8,16,32,48]'

# NDA's ablations, with one patch size for all timesteps: patch size by timestep, α, top-k, largest timestep. Nothing is chosen by them.
single=(--method.patch_size 7 --method.alpha 1.0 --method.low_resolution_patch_size 6
  --method.timesteps '[50, 100, 150, 200, 250, 300, 350, 400, 450, 500]')
on sweep --method nda "${single[@]}" --vary 'patch_size=[1, 3, 5, 7, 9, 11]' --series 'timesteps=[[50], [100], [200], [300], [400], [500]]'
on sweep --method nda "${single[@]}" --vary 'alpha=[0.0, 0.25, 0.5, 0.75, 1.0]' --series 'low_resolution_patch_size=[4, 6, 8]'
on sweep --method nda "${single[@]}" --vary 'top_k=[1, 3, 10, 30, 100]'
on sweep --method nda "${single[@]}" --vary 'timesteps=[[50], [50, 100], [50, 100, 150, 200], [50, 100, 150, 200, 250, 300], [50, 100, 150, 200, 250, 300, 350, 400], [50, 100, 150, 200, 250, 300, 350, 400, 450, 500], [50, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600, 700, 800]]'

on counterfactual --method nda,dtrak,pixel-cosine,random --preset small
