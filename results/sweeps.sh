#!/usr/bin/env bash
# NDA's ablations on digits, on the models of the leaderboard: patch size by timestep, α, top-k, largest timestep.
# Nothing is chosen by them.
set -euo pipefail
sweep() {
  attribench sweep --method nda --dataset digits --preset small --ground_truth.num_subsets 64 --ground_truth.num_seeds 2 "$@"
}
sweep --vary 'patch_size=[1, 3, 5, 7, 9, 11]' --series 'timesteps=[[50], [100], [200], [300], [400], [500]]'
sweep --vary 'alpha=[0.0, 0.25, 0.5, 0.75, 1.0]' --series 'low_resolution_patch_size=[4, 6, 8]'
sweep --vary 'top_k=[1, 3, 10, 30, 100]'
sweep --vary 'timesteps=[[50], [50, 100], [50, 100, 150, 200], [50, 100, 150, 200, 250, 300], [50, 100, 150, 200, 250, 300, 350, 400], [50, 100, 150, 200, 250, 300, 350, 400, 450, 500], [50, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600, 700, 800]]'
