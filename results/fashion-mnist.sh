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
on run --method unlearning,fine-tune,ekfac-converged,journey-trak
for method in tracincp gas; do
  on run --method $method-converged --method.num_timesteps 50
done

# The strict protocol chooses on a half of the validation queries and of the subsets, and reports on the others.
strict() { on "$1" --protocol strict "${@:2}"; }
strict tune --method nda,score-machine,nda-plus
strict run --method nda,nda-plus,score-machine,pixel-cosine,pixel-dot,random --tuned
for method in nda nda-plus; do
  strict run --method $method --tuned --method.noise_draws 10
done
strict tune --method dtrak-converged --method.num_timesteps 10
f=$(python3 -c "import json; print(json.load(open('results/tuned/fashion-mnist/board/dtrak-converged.strict.json'))['options']['f'])")
strict tune --method dtrak-converged --method.f "$f" --method.num_timesteps 100
for method in trak das; do
  strict tune --method $method-converged --method.num_timesteps 100
done
strict run --method dtrak-converged,trak-converged,das-converged --tuned

# What more timesteps and draws of noise buy, and how many retrained models each method is worth.
on sweep --method nda --vary 'noise_draws=[1,3,10]'
on sweep --method datamodel --vary 'num_retrainings=[8,16,32,48]'
for method in dtrak-converged trak-converged das-converged; do
  on sweep --method $method --vary 'num_timesteps=[10,20,50,100]'
done
for method in relative-influence renormalized-influence gradient-dot gradient-cosine; do
  on sweep --method $method-converged --vary 'num_timesteps=[10,100]'
done

# NDA's ablations, with one patch size for all timesteps: patch size by timestep, α, top-k. Nothing is chosen by them.
single=(--method.patch_size 7 --method.alpha 1.0 --method.low_resolution_patch_size 6
  --method.timesteps '[50, 100, 150, 200, 250, 300, 350, 400, 450, 500]')
on sweep --method nda "${single[@]}" --vary 'patch_size=[1, 3, 5, 7, 9, 11]' --series 'timesteps=[[50], [100], [200], [300], [400], [500]]'
on sweep --method nda "${single[@]}" --vary 'alpha=[0.0, 0.25, 0.5, 0.75, 1.0]' --series 'low_resolution_patch_size=[6, 8, 10]'
on sweep --method nda "${single[@]}" --vary 'top_k=[1, 3, 10, 30, 100]'

# What images look like without the ones ranked first: 49 models of Fashion-MNIST, about an hour.
on counterfactual --method nda,dtrak,pixel-cosine,random --counterfactual.num_queries 12 --counterfactual.num_seeds 1
