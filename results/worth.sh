#!/usr/bin/env bash
# What the answers are worth: everything in results/ that docs/worth.md speaks of. Without the retraining some minutes on two CPU
# cores; the retraining below takes about two hours and a half: some 440 models of 62 to 580 digits at up to 35 seconds each, and 31 of
# Fashion-MNIST at 136, two at a time.
set -euo pipefail

# What methods can see: nothing is retrained, one small model is trained for those that look at one.
attribench known-answers --method nda,nda-plus,score-machine,pixel-cosine,pixel-dot,random,trak,dtrak,das,gradient-dot,gradient-cosine,tracincp,gas \
  --model --out results/known-answers/answers.json

# How much of the losses is due to the images, from the ground truths at hand.
attribench attributability --dataset digits
attribench attributability --dataset fashion-mnist --preset board --ground-truth results/ground-truth/fashion-mnist.truth

# Clothes, new digits and copies, judged among digits.
python benchmarks/decoys.py --output results/benchmarks

# ---- Retraining from here on.

# How attributability falls with the number of train images: 144 models of 62 to 250 images, about 20 minutes.
attribench attributability --dataset digits --preset small --retrain --ground_truth.num_seeds 2 --sizes '[125, 250, 500]'

# Groups of queries without what is ranked first for them: 122 models, about 50 minutes.
attribench removals --dataset digits --method nda,dtrak-converged,pixel-cosine --groups 5 --group-size 5 --removed '[25, 50, 100]' --seeds 2

# Known answers: without a class (61 models, 25 minutes), and without copies (46 models of 500 to 580 images, 25 minutes).
attribench removals --dataset digits --ask class --method nda,dtrak-converged --groups 5 --group-size 8 --seeds 1
attribench removals --dataset digits --ask copies --method nda --groups 5 --group-size 2 --copies 8 --seeds 1

# The same of Fashion-MNIST, fewer of it: 31 models of up to 1,000 images, about 35 minutes.
attribench removals --dataset fashion-mnist --preset board --ground-truth results/ground-truth/fashion-mnist.truth \
  --method nda,dtrak-converged --groups 5 --group-size 5 --removed '[50, 200]' --seeds 1
