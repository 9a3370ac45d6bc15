#!/usr/bin/env bash
# Makes 35 curves to judge by: five references of 4 layers, from each targets of 1, 2 and 3 layers beside random init.
# Other data, order and learning rate for each. About 25 minutes of one core.
#
#     studies/abandonment/curves.sh DIR && python studies/abandonment/judge.py studies/abandonment/result.json DIR/[rt]*/
set -euo pipefail
export OMP_NUM_THREADS=1
mkdir -p "$1"
cd "$1"
for settings in "51 1e-3 400" "52 3e-3 500" "53 2e-3 600" "54 1.5e-3 450" "55 2.5e-3 550"; do
  read -r seed rate steps <<<"$settings"
  cat >"ref$seed.yaml" <<YAML
name: ref$seed
architecture:
  config: {model_type: llama, hidden_size: 64, intermediate_size: 176, num_hidden_layers: 4, num_attention_heads: 4,
           num_key_value_heads: 2, max_position_embeddings: 128, tie_word_embeddings: true}
  vocabulary: 1024
data: {sources: [python-source], tokens: 1200K, sequence_length: 128, seed: $seed, validation_share: 0.05,
       validation_tokens: 16K, development_share: 0.02, development_tokens: 4K, held_out_document_tokens: 256}
train: {batch_sequences: 8, micro_batch_sequences: 8, learning_rate: $rate, final_learning_rate: 1e-4, warmup_steps: 40,
        max_steps: 900, validate_every_steps: 36, checkpoint_every_steps: 900, compile: never, compute_dtype: float32,
        seed: $seed}
YAML
  inheritune run "ref$seed.yaml" --out "ref$seed"
  for layers in 1 2 3; do
    last=$((steps + 50 * layers))
    cat >"t$seed-$layers.yaml" <<YAML
name: t$seed-$layers
reference: ref$seed/model
inherit: {layers: $layers}
data: {prepared: ref$seed/data, sequence_length: 128, seed: $seed}
train: {batch_sequences: 8, micro_batch_sequences: 8, learning_rate: $rate, final_learning_rate: 1e-4, warmup_steps: 30,
        max_steps: $last, validate_every_steps: $((last / 25)), checkpoint_every_steps: $last, compile: never,
        compute_dtype: float32, seed: $((seed + layers))}
controls: [random]
YAML
    inheritune run "t$seed-$layers.yaml" --out "t$seed-$layers"
  done
done
